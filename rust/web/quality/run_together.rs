//! `FineWeb`'s duplicate n-grams, which are compared run together: ("ab", "c") equals ("a", "bc").
//!
//! Names of words do not help, then, and the walk for each n jumps over what it finds. But two
//! n-grams that are equal have their first 16 bytes in common, if they have as many: a place whose
//! next 16 bytes stand nowhere else has no twin for any n. One pass finds the others, a tenth of
//! prose, and the six walks look only at these.
//!
//! Tried and dropped: rolling hashes of all n-grams, six passes over a table each, at three times
//! the cost of all the rest of the rules.

use super::table::{Table, hash_of_16};
use crate::web::segment::Word;

/// The words of a page without what stands between them.
pub struct RunTogether {
    bytes: Vec<u8>,
    /// Where each word begins in them, and where the last one ends; the same in code points.
    starts: Vec<u32>,
    characters: Vec<u32>,
    /// Places where an n-gram may have a twin, ascending.
    candidates: Vec<u32>,
}

const PREFIX: usize = 16;
/// The shortest n-grams that are asked for: longer ones have longer texts.
const MIN_N: usize = 5;

impl RunTogether {
    /// Of these words.
    pub fn new(text: &str, words: &[Word]) -> Self {
        let mut bytes = Vec::with_capacity(text.len());
        let mut starts = Vec::with_capacity(words.len() + 1);
        let mut characters = Vec::with_capacity(words.len() + 1);
        let mut n_characters = 0;
        for word in words {
            starts.push(bytes.len() as u32);
            characters.push(n_characters);
            bytes.extend_from_slice(word.bytes(text));
            n_characters += word.n_characters() as u32;
        }
        starts.push(bytes.len() as u32);
        characters.push(n_characters);
        let candidates = candidates(&bytes, &starts);
        Self {
            bytes,
            starts,
            characters,
            candidates,
        }
    }

    /// Code points of n-grams met before, in a walk that jumps over each of them.
    pub fn duplicate_characters(&self, n: usize) -> usize {
        debug_assert!(n >= MIN_N);
        if self.candidates.is_empty() {
            return 0;
        }
        let mut table = Table::new(self.candidates.len());
        let (mut next, mut total) = (0, 0);
        for &place in &self.candidates {
            let i = place as usize;
            if i < next {
                continue;
            }
            let Some(ngram) = self.ngram(i, n) else { break };
            let key = xxhash_rust::xxh3::xxh3_64(ngram);
            let is_same = |other| self.ngram(other as usize, n) == Some(ngram);
            if table.find_or_insert(key, place, is_same).1 {
                total += (self.characters[i + n] - self.characters[i]) as usize;
                next = i + n;
            }
        }
        total
    }

    fn ngram(&self, place: usize, n: usize) -> Option<&[u8]> {
        let end = *self.starts.get(place + n)? as usize;
        Some(&self.bytes[self.starts[place] as usize..end])
    }
}

fn candidates(bytes: &[u8], starts: &[u32]) -> Vec<u32> {
    let n_words = starts.len() - 1;
    let mut is_candidate = vec![false; n_words];
    let mut table = Table::new(n_words);
    for place in 0..n_words.saturating_sub(MIN_N - 1) {
        let start = starts[place] as usize;
        if let Some(prefix) = bytes.get(start..start + PREFIX) {
            let (first, known) = table.find_or_insert(hash_of_16(prefix), place as u32, |_| true);
            if known {
                is_candidate[first as usize] = true;
                is_candidate[place] = true;
            }
        }
        if ((starts[place + MIN_N] as usize) - start) < PREFIX {
            is_candidate[place] = true;
        }
    }
    (0..n_words as u32)
        .filter(|&place| is_candidate[place as usize])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::web::segment::split_words;
    use std::collections::HashSet;

    fn plainly(text: &str, words: &[Word], n: usize) -> usize {
        let (mut seen, mut i, mut total) = (HashSet::new(), 0, 0);
        while i + n <= words.len() {
            let ngram: Vec<u8> = words[i..i + n]
                .iter()
                .flat_map(|word| word.bytes(text))
                .copied()
                .collect();
            let repeats = seen.contains(&ngram);
            if repeats {
                total += words[i..i + n]
                    .iter()
                    .map(Word::n_characters)
                    .sum::<usize>();
            }
            seen.insert(ngram);
            i += if repeats { n } else { 1 };
        }
        total
    }

    #[test]
    fn walks_find_what_a_set_of_strings_finds() {
        let texts = [
            "ab c d e f g x a bc d e f g y ab c d e f g",
            "a a a a a a a a a a a a a a a a a a a a a a a",
            "one two three four five six seven one two three four five six seven eight",
            "onetwothree four fivesix seven eight nine one twothreefour five six seven eight nine",
            // Equal n-grams shorter than the prefix, before different words.
            "a b c d e onetwothreefour a b c d e fivesixseveneight and on to the end of it",
            "a b c d e",
            "",
        ];
        for text in texts {
            let words = split_words(text);
            let run = RunTogether::new(text, &words);
            for n in 5..=10 {
                assert_eq!(
                    run.duplicate_characters(n),
                    plainly(text, &words, n),
                    "{text} {n}"
                );
            }
        }
    }
}
