//! Sorted counts from many files -> one sorted sequence of sums.

use super::file::CountsReader;
use crate::error::{Error, Result};

/// How many entries pass between two calls of `tick`.
const TICK_ENTRIES: usize = 1 << 12;

/// Calls `each` with every pretoken, ascending, and the sum of its counts; `tick` now and
/// then with the bytes read of how many.
///
/// # Errors
/// What a file, `each` or `tick` refuse; `Argument` where a sum does not fit.
pub fn merge_counts(
    readers: &mut [CountsReader],
    mut tick: impl FnMut(u64, u64) -> Result<()>,
    mut each: impl FnMut(&[u8], u64) -> Result<()>,
) -> Result<()> {
    let total: u64 = readers.iter().map(CountsReader::entries_end).sum();
    let mut heap = Heap::new(readers)?;
    let (mut pretoken, mut n_entries) = (Vec::new(), 0);
    while let Some(first) = heap.first() {
        pretoken.clear();
        pretoken.extend_from_slice(heap.readers[first].pretoken());
        let mut sum = heap.readers[first].count();
        heap.advance()?;
        while let Some(next) = heap.first() {
            let next = &heap.readers[next];
            if next.pretoken() != pretoken {
                break;
            }
            sum = sum.checked_add(next.count()).ok_or_else(|| {
                Error::Argument(format!(
                    "a pretoken's count must be below 2^64, got more for {:?}",
                    String::from_utf8_lossy(&pretoken[..pretoken.len().min(40)])
                ))
            })?;
            heap.advance()?;
        }
        each(&pretoken, sum)?;
        n_entries += 1;
        if n_entries % TICK_ENTRIES == 0 {
            tick(heap.readers.iter().map(CountsReader::position).sum(), total)?;
        }
    }
    tick(total, total)
}

/// The readers by their present pretokens, the smallest first.
struct Heap<'r> {
    readers: &'r mut [CountsReader],
    /// The first eight bytes, which mostly decide, and the number of the reader.
    order: Vec<(u64, usize)>,
}

impl<'r> Heap<'r> {
    fn new(readers: &'r mut [CountsReader]) -> Result<Self> {
        let mut order = Vec::with_capacity(readers.len());
        for (i, reader) in readers.iter_mut().enumerate() {
            if reader.advance()? {
                order.push((head_of(reader.pretoken()), i));
            }
        }
        let mut heap = Self { readers, order };
        for at in (0..heap.order.len() / 2).rev() {
            heap.sift_down(at);
        }
        Ok(heap)
    }

    fn first(&self) -> Option<usize> {
        self.order.first().map(|&(_, reader)| reader)
    }

    /// Moves the first reader on.
    fn advance(&mut self) -> Result<()> {
        let reader = &mut self.readers[self.order[0].1];
        if reader.advance()? {
            self.order[0].0 = head_of(reader.pretoken());
        } else {
            self.order.swap_remove(0);
        }
        self.sift_down(0);
        Ok(())
    }

    fn sift_down(&mut self, mut at: usize) {
        let before = |a: (u64, usize), b: (u64, usize)| {
            let bytes = |(_, reader): (u64, usize)| self.readers[reader].pretoken();
            a.0 < b.0 || (a.0 == b.0 && bytes(a) < bytes(b))
        };
        loop {
            let mut first = at;
            for child in [2 * at + 1, 2 * at + 2] {
                if child < self.order.len() && before(self.order[child], self.order[first]) {
                    first = child;
                }
            }
            if first == at {
                return;
            }
            self.order.swap(at, first);
            at = first;
        }
    }
}

/// The first eight bytes as a number that orders like them; shorter ones are padded.
#[inline]
fn head_of(pretoken: &[u8]) -> u64 {
    if let Some(bytes) = pretoken.first_chunk() {
        return u64::from_be_bytes(*bytes);
    }
    let mut padded = [0; 8];
    padded[..pretoken.len()].copy_from_slice(pretoken);
    u64::from_be_bytes(padded)
}
