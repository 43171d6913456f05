//! N-grams of evaluation items, found in text: what must not be trained on.
//!
//! A word is a run of letters, marks and numbers, in lower case character by character; all
//! else parts words. An item gives every run of `ngram_words` of its words; one of fewer words,
//! but of `min_words` at least, is sought whole.
//!
//! A text is read once. Word hashes go into a polynomial over all words so far, from which the
//! hash of the last n words follows for any n; two gates of bits answer nearly all questions,
//! a table the rest, and what the table has is compared word by word. So hashes decide about
//! speed alone.

mod gate;
mod words;

use rustc_hash::FxHashMap;

use self::gate::{Gate, extend};
use self::words::Words;
use crate::error::{Error, Result};

/// The longest n-gram; a power of two, as the ring of prefixes has twice as many places.
pub const MAX_NGRAM_WORDS: usize = 64;
const RING: usize = 2 * MAX_NGRAM_WORDS;
const NONE: u32 = u32::MAX;

/// An evaluation item and the n-gram of it that a text holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlap {
    /// Number of the first item that has the n-gram.
    pub item: u32,
    /// Its words, joined by blanks.
    pub ngram: String,
}

struct Entry {
    first_word: u32,
    n_words: u32,
    item: u32,
    /// The next entry of the same hash.
    next: u32,
}

/// What is sought; immutable once it is made.
pub struct NgramIndex {
    ngram_words: usize,
    min_words: usize,
    /// Words of the items that have any n-gram, end to end, and where each ends.
    words: String,
    word_ends: Vec<usize>,
    entries: Vec<Entry>,
    table: FxHashMap<u64, u32>,
    /// For `ngram_words`, and for the lengths of shorter items.
    gates: Vec<Gate>,
    n_skipped: u64,
}

impl NgramIndex {
    /// The index of items.
    ///
    /// # Errors
    /// `Argument` where the lengths are out of range, or the items hold 2^32 words.
    pub fn new<'a>(
        items: impl IntoIterator<Item = &'a str>,
        ngram_words: usize,
        min_words: usize,
    ) -> Result<Self> {
        if !(1..=MAX_NGRAM_WORDS).contains(&ngram_words) {
            return Err(Error::Argument(format!(
                "ngram_words must be from 1 to {MAX_NGRAM_WORDS}, got {ngram_words}"
            )));
        }
        if !(1..=ngram_words).contains(&min_words) {
            return Err(Error::Argument(format!(
                "min_words must be from 1 to ngram_words = {ngram_words}, got {min_words}"
            )));
        }
        let mut index = Self {
            ngram_words,
            min_words,
            words: String::new(),
            word_ends: Vec::new(),
            entries: Vec::new(),
            table: FxHashMap::default(),
            gates: Vec::new(),
            n_skipped: 0,
        };
        for (number, item) in items.into_iter().enumerate() {
            index.add(number as u32, item)?;
        }
        index.make_gates();
        Ok(index)
    }

    /// N-grams that are sought, each counted once.
    pub fn n_ngrams(&self) -> usize {
        self.entries.len()
    }

    /// Items with too few words to be sought.
    pub fn n_skipped(&self) -> u64 {
        self.n_skipped
    }

    fn add(&mut self, number: u32, item: &str) -> Result<()> {
        let first = self.word_ends.len();
        let mut hashes = Vec::new();
        let mut words = Words::new(item);
        while let Some(word) = words.next(Some(&mut self.words)) {
            hashes.push(word.hash);
            self.word_ends.push(self.words.len());
        }
        if self.word_ends.len() >= NONE as usize || number == NONE {
            let reason = "evaluation items must hold fewer than 2^32 words";
            return Err(Error::Argument(reason.to_owned()));
        }
        if hashes.len() < self.min_words {
            self.n_skipped += 1;
            self.word_ends.truncate(first);
            let end = self.word_ends.last().map_or(0, |&end| end);
            self.words.truncate(end);
            return Ok(());
        }
        let n = hashes.len().min(self.ngram_words);
        for (at, window) in hashes.windows(n).enumerate() {
            let hash = window.iter().fold(0, |sum, &word| extend(sum, word));
            self.insert(salted(hash, n), first + at, n, number);
        }
        Ok(())
    }

    fn insert(&mut self, hash: u64, first_word: usize, n_words: usize, item: u32) {
        let head = self.table.get(&hash).copied().unwrap_or(NONE);
        let mut at = head;
        while at != NONE {
            let entry = &self.entries[at as usize];
            if self.ngram_of(entry).eq(self.words_at(first_word, n_words)) {
                return;
            }
            at = entry.next;
        }
        self.table.insert(hash, self.entries.len() as u32);
        self.entries.push(Entry {
            first_word: first_word as u32,
            n_words: n_words as u32,
            item,
            next: head,
        });
    }

    fn make_gates(&mut self) {
        let mut counts = [0_usize; MAX_NGRAM_WORDS + 1];
        for entry in &self.entries {
            counts[entry.n_words as usize] += 1;
        }
        for range in [
            self.ngram_words..=self.ngram_words,
            1..=self.ngram_words - 1,
        ] {
            let lengths: Vec<usize> = range.rev().filter(|&n| counts[n] > 0).collect();
            if lengths.is_empty() {
                continue;
            }
            let n_ngrams = lengths.iter().map(|&n| counts[n]).sum();
            let mut gate = Gate::new(lengths, n_ngrams);
            for entry in &self.entries {
                let n = entry.n_words as usize;
                if gate.lengths.iter().any(|&(length, _)| length == n) {
                    let words = self.ngram_of(entry).skip(n - gate.n_words);
                    let hashes = words.filter_map(|word| Words::new(word).next(None));
                    gate.open_for(hashes.fold(0, |sum, word| extend(sum, word.hash)));
                }
            }
            self.gates.push(gate);
        }
    }

    fn ngram_of(&self, entry: &Entry) -> WordSlices<'_> {
        self.words_at(entry.first_word as usize, entry.n_words as usize)
    }

    fn words_at(&self, first: usize, n: usize) -> WordSlices<'_> {
        WordSlices {
            index: self,
            at: first,
            end: first + n,
        }
    }

    /// The overlap whose last word comes first in the text; of several, the longest.
    ///
    /// Linear in the text. A text without one word in common costs a hash for each word.
    pub fn find(&self, text: &str) -> Option<Overlap> {
        if self.entries.is_empty() {
            return None;
        }
        // Slot k holds the polynomial of the first k words and where word k begins.
        let mut prefixes = [0_u64; RING];
        let mut starts = [0_usize; RING];
        let mut n_read = 0_usize;
        let mut words = Words::new(text);
        while let Some(word) = words.next(None) {
            starts[n_read % RING] = word.start;
            let sum = extend(prefixes[n_read % RING], word.hash);
            n_read += 1;
            prefixes[n_read % RING] = sum;
            let last = |n: usize, power: u64| {
                sum.wrapping_sub(prefixes[(n_read - n) % RING].wrapping_mul(power))
            };
            for gate in &self.gates {
                if gate.n_words > n_read || !gate.is_open(last(gate.n_words, gate.power)) {
                    continue;
                }
                for &(n, power) in gate.lengths.iter().filter(|&&(n, _)| n <= n_read) {
                    let start = starts[(n_read - n) % RING];
                    let ngram = &text[start..words.at];
                    if let Some(found) = self.verify(salted(last(n, power), n), n, ngram) {
                        return Some(found);
                    }
                }
            }
        }
        None
    }

    /// The entry that these words are, if one of this hash is.
    fn verify(&self, hash: u64, n: usize, text: &str) -> Option<Overlap> {
        let mut at = *self.table.get(&hash)?;
        let mut ngram = String::with_capacity(text.len());
        let mut words = Words::new(text);
        while words.next(Some(&mut ngram)).is_some() {
            ngram.push(' ');
        }
        ngram.pop();
        while at != NONE {
            let entry = &self.entries[at as usize];
            if entry.n_words as usize == n && self.ngram_of(entry).eq(ngram.split(' ')) {
                let item = entry.item;
                return Some(Overlap { item, ngram });
            }
            at = entry.next;
        }
        None
    }
}

struct WordSlices<'i> {
    index: &'i NgramIndex,
    at: usize,
    end: usize,
}

impl<'i> Iterator for WordSlices<'i> {
    type Item = &'i str;

    fn next(&mut self) -> Option<&'i str> {
        if self.at == self.end {
            return None;
        }
        let ends = &self.index.word_ends;
        let start = self.at.checked_sub(1).map_or(0, |before| ends[before]);
        self.at += 1;
        Some(&self.index.words[start..ends[self.at - 1]])
    }
}

/// Lengths apart, so that a table serves all of them.
fn salted(hash: u64, n: usize) -> u64 {
    hash ^ (n as u64).wrapping_mul(0xD6E8_FEB8_6659_FD93)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
mod tests {
    use super::*;

    fn index(items: &[&str], n: usize, min: usize) -> NgramIndex {
        NgramIndex::new(items.iter().copied(), n, min).unwrap()
    }

    #[test]
    fn overlap_is_found_whatever_case_and_marks() {
        let found = index(&["x", "The cat's hat,  Σο1 is!"], 3, 3)
            .find("a CAT s—hat 'then' the cat s hat")
            .unwrap();
        assert_eq!((found.item, found.ngram.as_str()), (1, "cat s hat"));
        let index = index(&["The cat's hat,  Σο1 is!"], 3, 3);
        assert_eq!(index.find("hat ΣΟ1 is").unwrap().ngram, "hat σο1 is");
        assert_eq!(index.find("hat ΣΟ 1 is"), None);
        assert_eq!(index.n_ngrams(), 4);
    }

    #[test]
    fn short_items_are_sought_whole_or_skipped() {
        let index = index(&["a b c d e f", "u v w", "x y", ""], 4, 3);
        assert_eq!((index.n_ngrams(), index.n_skipped()), (4, 2));
        assert_eq!(index.find("t u v w x").unwrap().item, 1);
        assert_eq!(index.find("x y x y a b c x"), None);
    }

    #[test]
    fn first_end_wins_and_then_the_longest() {
        let index = index(&["c d", "b c d", "a b c"], 3, 2);
        assert_eq!(index.find("a b c d").unwrap().item, 2);
        assert_eq!(index.find("x b c d").unwrap().item, 1);
    }

    #[test]
    fn lengths_out_of_range_are_refused() {
        for (n, min) in [(0, 0), (65, 8), (13, 14), (13, 0)] {
            assert!(NgramIndex::new(["a"], n, min).is_err());
        }
    }
}
