//! Which documents share a row of a training batch.
//!
//! A row holds `capacity` targets, and so does a document of that many tokens: each token is
//! predicted once, the first from the end-of-text token before it. `rslm/packing_reference.py`
//! is the same in plain Python, and specifies the result to the last piece.

use crate::Progress;
use crate::error::{Error, Result};

/// Documents among which `bos-bestfit` looks for the best one.
const BUFFER_DOCUMENTS: usize = 1000;
/// Longest row: the index of rooms has two numbers for each length.
const MAX_CAPACITY: u32 = 1 << 24;
/// Documents between two looks at the caller's wishes.
const STRIDE: usize = 1 << 16;
const NONE: u32 = u32::MAX;

/// How documents are put into rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// Rows are filled one after the other with whole documents, the longest that fits of the
    /// next 1000; where none fits the shortest is cut to fill the row, and its rest dropped.
    BosBestFit,
    /// Documents are cut into rows and a rest, and rests go, the longest first, where the
    /// least room is left; nothing is dropped, and what stays free is padding.
    Obfd,
}

/// Rows of pieces of documents, piece by piece.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct PackingPlan {
    /// Row r has the pieces from `row_offsets[r]` to `row_offsets[r + 1]`.
    pub row_offsets: Vec<u64>,
    /// The document of a piece.
    pub documents: Vec<u32>,
    /// Its first token, counted from the document's.
    pub starts: Vec<u32>,
    /// Its tokens.
    pub lengths: Vec<u32>,
}

impl PackingPlan {
    fn new() -> Self {
        Self {
            row_offsets: vec![0],
            ..Self::default()
        }
    }

    fn push(&mut self, document: u32, start: u32, length: u32) {
        self.documents.push(document);
        self.starts.push(start);
        self.lengths.push(length);
    }

    fn end_row(&mut self) {
        self.row_offsets.push(self.documents.len() as u64);
    }
}

/// Packs documents of these lengths, in tokens, into rows of `capacity`.
///
/// Time O(n log buffer) and O(n · capacity / 4096); beside lengths and result, memory is 8
/// bytes a document and 16 a row for [`Packing::Obfd`], and nothing that grows for the other.
///
/// # Errors
///
/// [`Error::Argument`] for a capacity, a length or a number of documents out of range.
pub fn plan_packing(
    lengths: &[u32],
    capacity: u32,
    policy: Packing,
    progress: &mut Progress,
) -> Result<PackingPlan> {
    if !(1..=MAX_CAPACITY).contains(&capacity) {
        return Err(Error::Argument(format!(
            "context_length must be between 1 and {MAX_CAPACITY} to pack documents, got {capacity}"
        )));
    }
    if lengths.len() >= NONE as usize {
        let found = lengths.len();
        return Err(Error::Argument(format!(
            "a packing plan must have fewer than {NONE} documents, got {found}"
        )));
    }
    if let Some(document) = lengths.iter().position(|length| *length == 0) {
        return Err(Error::Argument(format!(
            "a document must have at least one token, got none in document {document}"
        )));
    }
    match policy {
        Packing::BosBestFit => pack_best_fit(lengths, capacity, progress),
        Packing::Obfd => pack_decreasing(lengths, capacity, progress),
    }
}

fn pack_best_fit(lengths: &[u32], capacity: u32, progress: &mut Progress) -> Result<PackingPlan> {
    let mut plan = PackingPlan::new();
    // Keys of length and document, ascending: a vector of a thousand moves within the cache
    // faster than a tree walks.
    let mut buffer: Vec<u64> = Vec::with_capacity(BUFFER_DOCUMENTS);
    let mut next = 0;
    let mut room = capacity;
    loop {
        while buffer.len() < BUFFER_DOCUMENTS && next < lengths.len() {
            let key = key(lengths[next], next as u32);
            buffer.insert(buffer.partition_point(|other| *other < key), key);
            next += 1;
            if next.is_multiple_of(STRIDE) {
                progress("pack", next as u64, lengths.len() as u64)?;
            }
        }
        if buffer.is_empty() {
            break;
        }
        let n_fitting = buffer.partition_point(|other| *other < key(room + 1, 0));
        // Of equally long ones the first.
        let chosen = match n_fitting.checked_sub(1) {
            Some(last) => {
                let length = (buffer[last] >> 32) as u32;
                buffer.partition_point(|other| *other < key(length, 0))
            }
            None => 0,
        };
        let taken = buffer.remove(chosen);
        let length = ((taken >> 32) as u32).min(room);
        plan.push(taken as u32, 0, length);
        room -= length;
        if room == 0 {
            plan.end_row();
            room = capacity;
        }
    }
    if room < capacity {
        plan.end_row();
    }
    Ok(plan)
}

fn key(length: u32, document: u32) -> u64 {
    u64::from(length) << 32 | u64::from(document)
}

fn pack_decreasing(lengths: &[u32], capacity: u32, progress: &mut Progress) -> Result<PackingPlan> {
    let mut plan = PackingPlan::new();
    let order = rests_by_length(lengths, capacity);
    // Room made once, so that nothing is copied as the columns grow.
    let n_whole: u64 = lengths.iter().map(|n| u64::from(n / capacity)).sum();
    let n_pieces = n_whole as usize + order.len();
    for column in [&mut plan.documents, &mut plan.starts, &mut plan.lengths] {
        column.reserve_exact(n_pieces);
    }
    plan.row_offsets.reserve_exact(n_whole as usize);
    for (document, length) in lengths.iter().enumerate() {
        for number in 0..length / capacity {
            plan.push(document as u32, number * capacity, capacity);
            plan.end_row();
        }
    }
    let (rows, n_pieces) = place_rests(lengths, capacity, &order, progress)?;

    let n_whole = plan.documents.len();
    let mut ends = Vec::with_capacity(n_pieces.len());
    let mut end = n_whole;
    plan.row_offsets.reserve_exact(n_pieces.len());
    for n in n_pieces {
        ends.push(end);
        end += n as usize;
        plan.row_offsets.push(end as u64);
    }
    for column in [&mut plan.documents, &mut plan.starts, &mut plan.lengths] {
        column.resize(end, 0);
    }
    for (document, row) in order.into_iter().zip(rows) {
        let at = ends[row as usize];
        ends[row as usize] += 1;
        let length = lengths[document as usize];
        plan.documents[at] = document;
        plan.starts[at] = length - length % capacity;
        plan.lengths[at] = length % capacity;
    }
    Ok(plan)
}

/// The documents that have a rest, by its length, the longest first; equal ones in order.
fn rests_by_length(lengths: &[u32], capacity: u32) -> Vec<u32> {
    let mut places = vec![0_u32; capacity as usize];
    for length in lengths {
        places[(length % capacity) as usize] += 1;
    }
    let n_without = std::mem::take(&mut places[0]) as usize;
    let mut place = 0;
    for n in places.iter_mut().rev() {
        place += std::mem::replace(n, place);
    }
    let mut order = vec![0; lengths.len() - n_without];
    for (document, length) in lengths.iter().enumerate() {
        let rest = (length % capacity) as usize;
        if rest > 0 {
            order[places[rest] as usize] = document as u32;
            places[rest] += 1;
        }
    }
    order
}

/// The row of each rest, and how many rests each row has.
fn place_rests(
    lengths: &[u32],
    capacity: u32,
    order: &[u32],
    progress: &mut Progress,
) -> Result<(Vec<u32>, Vec<u32>)> {
    let mut rooms = Rooms::new(capacity);
    let mut rows = Vec::with_capacity(order.len());
    let mut n_pieces: Vec<u32> = Vec::new();
    for (done, document) in order.iter().enumerate() {
        if done.is_multiple_of(STRIDE) {
            progress("pack", done as u64, order.len() as u64)?;
        }
        let rest = lengths[*document as usize] % capacity;
        let (row, room) = rooms.take(rest).unwrap_or_else(|| {
            n_pieces.push(0);
            (n_pieces.len() as u32 - 1, capacity)
        });
        n_pieces[row as usize] += 1;
        rows.push(row);
        if room > rest {
            rooms.put(row, room - rest);
        }
    }
    Ok((rows, n_pieces))
}

/// Rows by the room they have left; rows with equal room leave in the order they came.
///
/// A bit for each room that some row has, and one for each word with such a bit: finding the
/// least room that suffices reads a few words, where a segment tree walks log(capacity) nodes.
struct Rooms {
    words: Vec<u64>,
    summary: Vec<u64>,
    first: Vec<u32>,
    last: Vec<u32>,
    /// The row that came after a row with the same room.
    after: Vec<u32>,
}

impl Rooms {
    fn new(capacity: u32) -> Self {
        let n_words = capacity as usize / 64 + 1;
        Self {
            words: vec![0; n_words],
            summary: vec![0; n_words / 64 + 1],
            first: vec![NONE; capacity as usize + 1],
            last: vec![NONE; capacity as usize + 1],
            after: Vec::new(),
        }
    }

    fn put(&mut self, row: u32, room: u32) {
        let at = room as usize;
        if self.after.len() <= row as usize {
            self.after.resize(row as usize + 1, NONE);
        }
        self.after[row as usize] = NONE;
        if self.first[at] == NONE {
            self.first[at] = row;
            self.words[at / 64] |= 1 << (at % 64);
            self.summary[at / 4096] |= 1 << (at / 64 % 64);
        } else {
            self.after[self.last[at] as usize] = row;
        }
        self.last[at] = row;
    }

    /// Takes out a row with the least room that is at least `needed`, and that room.
    fn take(&mut self, needed: u32) -> Option<(u32, u32)> {
        let at = self.least(needed as usize)?;
        let row = self.first[at];
        self.first[at] = self.after[row as usize];
        if self.first[at] == NONE {
            self.words[at / 64] &= !(1 << (at % 64));
            if self.words[at / 64] == 0 {
                self.summary[at / 4096] &= !(1 << (at / 64 % 64));
            }
        }
        Some((row, at as u32))
    }

    fn least(&self, needed: usize) -> Option<usize> {
        let word = needed / 64;
        let found = self.words[word] & (u64::MAX << (needed % 64));
        if found != 0 {
            return Some(word * 64 + found.trailing_zeros() as usize);
        }
        let after = word + 1;
        let mut mask = u64::MAX << (after % 64);
        for (number, bits) in self.summary.iter().enumerate().skip(after / 64) {
            let found = bits & mask;
            if found != 0 {
                let word = number * 64 + found.trailing_zeros() as usize;
                return Some(word * 64 + self.words[word].trailing_zeros() as usize);
            }
            mask = u64::MAX;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::random_from;

    fn plan(lengths: &[u32], capacity: u32, policy: Packing) -> PackingPlan {
        plan_packing(lengths, capacity, policy, &mut |_, _, _| Ok(())).unwrap()
    }

    /// Rows of (document, start, length).
    fn rows(plan: &PackingPlan) -> Vec<Vec<(u32, u32, u32)>> {
        let piece = |i: u64| {
            let i = i as usize;
            (plan.documents[i], plan.starts[i], plan.lengths[i])
        };
        let ends = plan.row_offsets.windows(2);
        ends.map(|ends| (ends[0]..ends[1]).map(piece).collect())
            .collect()
    }

    #[test]
    fn best_fit_takes_the_longest_that_fits_and_cuts_the_shortest() {
        // Row 0: 6, then of 3, 3, 5 (room 4) the first 3, then nothing fits 1: the other 3 is cut.
        let found = rows(&plan(&[3, 6, 3, 5], 10, Packing::BosBestFit));
        assert_eq!(
            found,
            [vec![(1, 0, 6), (0, 0, 3), (2, 0, 1)], vec![(3, 0, 5)]]
        );
    }

    #[test]
    fn decreasing_fills_the_least_room_that_suffices() {
        let found = rows(&plan(&[6, 25, 4, 7, 3, 2], 10, Packing::Obfd));
        assert_eq!(
            found,
            [
                vec![(1, 0, 10)],
                vec![(1, 10, 10)],
                vec![(3, 0, 7), (4, 0, 3)],
                vec![(0, 0, 6), (2, 0, 4)],
                vec![(1, 20, 5), (5, 0, 2)],
            ]
        );
    }

    #[test]
    fn no_documents_make_no_rows() {
        for policy in [Packing::BosBestFit, Packing::Obfd] {
            assert_eq!(plan(&[], 4, policy).row_offsets, [0]);
        }
    }

    #[test]
    fn decreasing_covers_every_token_once_and_no_row_overflows() {
        let mut random = random_from(3);
        for capacity in [1, 2, 63, 64, 65, 4095, 4096, 9000] {
            let lengths: Vec<u32> = (0..500)
                .map(|_| random(2 * capacity + 9) as u32 + 1)
                .collect();
            let capacity = capacity as u32;
            let mut seen: Vec<Vec<(u32, u32)>> = vec![Vec::new(); lengths.len()];
            for row in rows(&plan(&lengths, capacity, Packing::Obfd)) {
                assert!(!row.is_empty());
                assert!(row.iter().map(|piece| piece.2).sum::<u32>() <= capacity);
                for (document, start, length) in row {
                    seen[document as usize].push((start, length));
                }
            }
            for (mut pieces, length) in seen.into_iter().zip(lengths) {
                pieces.sort_unstable();
                let end = pieces.iter().fold(0, |end, (start, length)| {
                    assert_eq!(end, *start);
                    end + length
                });
                assert_eq!(end, length);
            }
        }
    }

    #[test]
    fn rooms_give_the_least_that_suffices_as_a_scan_does() {
        let mut random = random_from(5);
        let capacity = 20_000;
        let mut rooms = Rooms::new(capacity);
        let mut rows: Vec<(u32, u32)> = Vec::new();
        let mut next = 0;
        for _ in 0..5000 {
            if random(2) == 0 {
                let room = 1 + random(u64::from(capacity)) as u32;
                rooms.put(next, room);
                rows.push((next, room));
                next += 1;
            } else {
                let needed = 1 + random(u64::from(capacity)) as u32;
                let fitting = rows.iter().filter(|(_, room)| *room >= needed);
                let expected = fitting.min_by_key(|(_, room)| *room).copied();
                assert_eq!(rooms.take(needed), expected);
                rows.retain(|row| Some(*row) != expected);
            }
        }
    }

    #[test]
    fn what_is_out_of_range_is_refused() {
        let refused = |lengths: &[u32], capacity| {
            let plan = plan_packing(lengths, capacity, Packing::Obfd, &mut |_, _, _| Ok(()));
            plan.unwrap_err().to_string()
        };
        assert!(refused(&[1], 0).contains("context_length must be between 1 and"));
        assert!(refused(&[1], MAX_CAPACITY + 1).contains("context_length must be between 1 and"));
        assert!(refused(&[1, 0], 4).ends_with("got none in document 1"));
    }

    #[test]
    fn a_caller_who_wants_to_stop_is_heard() {
        for policy in [Packing::BosBestFit, Packing::Obfd] {
            let stop = &mut |_: &str, _, _| Err(Error::Interrupted);
            let outcome = plan_packing(&vec![3; STRIDE], 10, policy, stop);
            assert!(matches!(outcome, Err(Error::Interrupted)));
        }
    }
}
