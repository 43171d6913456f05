//! Which n-grams of a page's words are equal: names instead of hashes, so that none collide.
//!
//! Words get numbers in the order of their first places. The name of an n-gram is the number of
//! the pair (name of its first n - 1 words, number of the last), a key of 64 bits that is exact
//! (Karp, Miller and Rosenberg 1972). An n-gram repeats only if both (n - 1)-grams in it do, and
//! in prose few 3-grams do: each level looks only at what is left of the one before.

use super::table::{Table, hash, load};
use crate::web::segment::Word;

/// The n-grams of one length that may repeat.
pub struct Names {
    /// The word's number, for each place.
    words: Vec<u32>,
    /// Places whose n-gram stands more than once, ascending, and its name.
    repeated: Vec<(u32, u32)>,
    /// How often each name stands; and where first.
    counts: Vec<u32>,
    firsts: Vec<u32>,
    n: usize,
}

impl Names {
    /// Single words, by their bytes.
    pub fn of(text: &str, words: &[Word]) -> Self {
        let mut table = Table::new(words.len() / 2);
        let mut names = Self {
            words: Vec::with_capacity(words.len()),
            repeated: Vec::new(),
            counts: Vec::with_capacity(words.len() / 2),
            firsts: Vec::with_capacity(words.len() / 2),
            n: 1,
        };
        for (place, word) in words.iter().enumerate() {
            let bytes = word.bytes(text);
            let next = names.counts.len() as u32;
            let (number, known) = if bytes.len() < 8 {
                table.find_or_insert(short_key(text.as_bytes(), word), next, |_| true)
            } else {
                table.find_or_insert(hash(bytes) | LONG, next, |other| {
                    words[names.firsts[other as usize] as usize].bytes(text) == bytes
                })
            };
            names.count(number, known, place);
            names.words.push(number);
        }
        let places = names.words.iter().enumerate();
        names.repeated = places
            .filter(|&(_, &number)| names.counts[number as usize] > 1)
            .map(|(place, &number)| (place as u32, number))
            .collect();
        names
    }

    #[inline]
    fn count(&mut self, name: u32, known: bool, place: usize) {
        if known {
            self.counts[name as usize] += 1;
        } else {
            self.counts.push(1);
            self.firsts.push(place as u32);
        }
    }

    /// On to n-grams of one word more.
    pub fn lengthen(&mut self) {
        let candidates = std::mem::take(&mut self.repeated);
        self.counts.clear();
        self.firsts.clear();
        self.n += 1;
        if candidates.is_empty() {
            return;
        }
        let mut table = Table::new(candidates.len() / 2);
        let mut named = Vec::with_capacity(candidates.len());
        for pair in candidates.windows(2) {
            let [(place, name), (next, _)] = *pair else {
                continue;
            };
            if next != place + 1 {
                continue;
            }
            let last = self.words[place as usize + self.n - 1];
            let key = u64::from(name) << 32 | u64::from(last);
            let (name, known) = table.find_or_insert(key, self.counts.len() as u32, |_| true);
            self.count(name, known, place as usize);
            named.push((place, name));
        }
        let counts = &self.counts;
        named.retain(|&(_, name)| counts[name as usize] > 1);
        self.repeated = named;
    }

    /// On to this n, which is not below the present one.
    pub fn lengthen_to(&mut self, n: usize) {
        while self.n < n {
            self.lengthen();
        }
    }

    /// The places of n-grams that stand more than once, ascending.
    pub fn repeated_places(&self) -> impl Iterator<Item = usize> {
        self.repeated.iter().map(|&(place, _)| place as usize)
    }

    /// The highest count, if any n-gram repeats, and the first places of all that have it, in
    /// their order.
    pub fn commonest(&self) -> Option<(usize, impl Iterator<Item = usize>)> {
        let highest = self
            .counts
            .iter()
            .copied()
            .max()
            .filter(|&count| count > 1)?;
        let pairs = self.counts.iter().zip(&self.firsts);
        let places = pairs
            .filter(move |&(&count, _)| count == highest)
            .map(|(_, &place)| place as usize);
        Some((highest as usize, places))
    }
}

const LONG: u64 = 1 << 63;

/// A word of one to seven bytes and its length: exact.
#[inline]
fn short_key(text: &[u8], word: &Word) -> u64 {
    let (start, n) = (word.start(), word.end() - word.start());
    let bytes = match text.get(start..start + 8) {
        Some(bytes) => load(bytes) & ((1 << (8 * n)) - 1),
        None => text[start..start + n]
            .iter()
            .rev()
            .fold(0, |key, &byte| key << 8 | u64::from(byte)),
    };
    bytes | (n as u64) << 56
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::web::segment::split_words;
    use std::collections::HashMap;

    #[test]
    fn names_count_as_a_map_of_tuples() {
        let text = "a bb a bb a averylongword bb a averylongword bb averylongworD c\0 c a bb a";
        let words = split_words(text);
        let strings: Vec<&[u8]> = words.iter().map(|word| word.bytes(text)).collect();
        let mut names = Names::of(text, &words);
        for n in 2..6 {
            names.lengthen_to(n);
            let mut counts: HashMap<&[&[u8]], usize> = HashMap::new();
            for ngram in strings.windows(n) {
                *counts.entry(ngram).or_default() += 1;
            }
            let windows = strings.windows(n).enumerate();
            let repeated: Vec<usize> = windows
                .filter(|(_, ngram)| counts[ngram] > 1)
                .map(|(place, _)| place)
                .collect();
            assert_eq!(names.repeated_places().collect::<Vec<_>>(), repeated);
            let highest = counts.values().copied().max().filter(|&count| count > 1);
            assert_eq!(names.commonest().map(|(count, _)| count), highest);
        }
    }
}
