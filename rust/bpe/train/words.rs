//! The distinct words of a corpus as sequences of symbols, packed for being visited in any
//! order.

use super::pairs::Side;
use crate::TokenId;
use crate::error::{Error, Result};
use crate::memory::{apart, prefetch};

/// An id as it lies in memory: u16 where the vocabulary allows it.
pub(super) trait Symbol: TokenId + Eq {}

impl<I: TokenId + Eq> Symbol for I {}

/// All words in one buffer. A word is its count, its length and its symbols, side by side,
/// so that a visit waits for the memory once; it shrinks where it lies.
pub(super) struct Words<S> {
    buffer: Vec<S>,
}

/// Where a word begins, counted in four bytes.
pub(super) type Place = u32;

impl<S: Symbol> Words<S> {
    /// Values of the buffer in four bytes.
    const STRIDE: usize = 4 / size_of::<S>();
    /// Eight bytes of count and four of length.
    const HEADER: usize = 3 * Self::STRIDE;

    /// No words.
    pub fn new() -> Self {
        Self { buffer: apart(0) }
    }

    /// Adds a word.
    pub fn push(&mut self, symbols: impl ExactSizeIterator<Item = S>, count: u64) -> Result<()> {
        let at = self.buffer.len();
        if at / Self::STRIDE > u32::MAX as usize {
            return Err(Error::Argument(
                "the different pretokens of a corpus must take less than 16 GiB".into(),
            ));
        }
        self.buffer.resize(at + Self::HEADER, S::default());
        self.write(at, 2, count);
        self.write(at + 2 * Self::STRIDE, 1, symbols.len() as u64);
        self.buffer.extend(symbols);
        let end = self.buffer.len().next_multiple_of(Self::STRIDE);
        self.buffer.resize(end, S::default());
        Ok(())
    }

    /// Calls `each` with every word; only before words have shrunk.
    pub fn for_each(&self, mut each: impl FnMut(Place, u64, &[S])) {
        let mut at = 0;
        while at < self.buffer.len() {
            let symbols = self.symbols(at);
            each((at / Self::STRIDE) as Place, self.read(at, 2), symbols);
            at = (at + Self::HEADER + symbols.len()).next_multiple_of(Self::STRIDE);
        }
    }

    /// Asks the memory for a word that is visited soon.
    #[inline(always)]
    pub fn prefetch(&self, place: Place) {
        let at = place as usize * Self::STRIDE;
        // A word may begin in one line of the cache and end in the next.
        if let Some(word) = self.buffer.get(at..at + 2 * Self::HEADER) {
            prefetch(&word[0]);
            prefetch(&word[word.len() - 1]);
        }
    }

    /// How often the pair stands in a word, times the word's count.
    #[inline]
    pub fn count_pair(&self, place: Place, left: u32, right: u32) -> u64 {
        let at = place as usize * Self::STRIDE;
        let (left, right) = (S::from_id(left), S::from_id(right));
        let pairs = self.symbols(at).windows(2);
        let n: u32 = pairs
            .map(|pair| u32::from(pair[0] == left) & u32::from(pair[1] == right))
            .sum();
        u64::from(n) * self.read(at, 2)
    }

    /// Replaces the pair in a word, left to right without overlap, and tells the sides what
    /// stands beside the new symbol now.
    #[inline]
    pub fn merge(&mut self, place: Place, left: u32, right: u32, new: u32, sides: &mut [Side; 2]) {
        let at = place as usize * Self::STRIDE;
        let (left, right, new) = (S::from_id(left), S::from_id(right), S::from_id(new));
        let count = self.read(at, 2);
        let first = at + Self::HEADER;
        let end = first + self.len(at);
        let word = &mut self.buffer[first..end];
        let Some(found) = word
            .windows(2)
            .position(|pair| pair[0] == left && pair[1] == right)
        else {
            return;
        };
        let [before, after] = sides;
        let (mut read, mut write) = (found, found);
        let mut follows_new = false;
        while read < word.len() {
            let symbol = word[read];
            if symbol == left && word.get(read + 1) == Some(&right) {
                if write > 0 {
                    before.meet(word[write - 1].id(), place, count);
                }
                word[write] = new;
                read += 2;
                follows_new = true;
            } else {
                if follows_new {
                    after.meet(symbol.id(), place, count);
                }
                word[write] = symbol;
                read += 1;
                follows_new = false;
            }
            write += 1;
        }
        self.write(at + 2 * Self::STRIDE, 1, write as u64);
    }

    #[inline(always)]
    fn len(&self, at: usize) -> usize {
        self.read(at + 2 * Self::STRIDE, 1) as usize
    }

    #[inline(always)]
    fn symbols(&self, at: usize) -> &[S] {
        let first = at + Self::HEADER;
        &self.buffer[first..first + self.len(at)]
    }

    /// A number of so many times four bytes, the low end first.
    #[inline(always)]
    fn read(&self, at: usize, n_fours: usize) -> u64 {
        let parts = &self.buffer[at..at + n_fours * Self::STRIDE];
        let bits = 8 * size_of::<S>();
        let part = |(i, part): (usize, &S)| u64::from(part.id()) << (i * bits);
        parts.iter().enumerate().map(part).sum()
    }

    #[inline(always)]
    fn write(&mut self, at: usize, n_fours: usize, number: u64) {
        let bits = 8 * size_of::<S>();
        for (i, part) in self.buffer[at..at + n_fours * Self::STRIDE]
            .iter_mut()
            .enumerate()
        {
            *part = S::from_id((number >> (i * bits)) as u32);
        }
    }
}
