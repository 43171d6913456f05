//! Rows of short words that were met before: most words of a text are.
//!
//! A word is compared and hashed as four numbers, without a loop over its bytes.

use crate::memory::{prefetch, with_huge_pages};

/// What a place can hold; with more, a word is looked up anew.
const MAX_ROWS: usize = 6;
const MAX_BYTES: usize = 32;
/// 4 MB: what a processor's second cache does not hold is brought there in time.
const N_PLACES_LOG2: u32 = 16;

/// A word of up to 32 bytes, filled up with zeros: no word has a NUL.
pub type Key = [u128; 2];

/// The key of no word.
pub const LONG: Key = [0; 2];

/// A word with its rows; one line of the processor's cache.
#[repr(align(64))]
#[derive(Clone, Copy, Default)]
pub struct Place {
    key: Key,
    rows: [u32; MAX_ROWS],
    n_rows: u32,
    /// The word's hash, which n-grams of words are made of.
    pub hash: u32,
}

impl Place {
    pub fn holds(&self, key: Key) -> bool {
        self.key == key
    }

    pub fn push_rows(&self, rows: &mut Vec<u32>) {
        // A copy of fixed size is no call of a function, as one of any length is.
        let end = rows.len() + self.n_rows as usize;
        rows.extend_from_slice(&self.rows);
        rows.truncate(end);
    }

    /// Takes another word in, unless it has too many rows.
    pub fn fill(&mut self, key: Key, hash: u32, rows: &[u32]) {
        let Some(own) = self.rows.get_mut(..rows.len()) else {
            return;
        };
        own.copy_from_slice(rows);
        (self.key, self.hash, self.n_rows) = (key, hash, rows.len() as u32);
    }
}

/// Places of words, each word at one of them only: an older word gives way.
pub struct ShortWords(Vec<Place>);

impl Default for ShortWords {
    fn default() -> Self {
        Self(with_huge_pages(vec![Place::default(); 1 << N_PLACES_LOG2]))
    }
}

impl ShortWords {
    pub fn place_of(&mut self, key: Key) -> &mut Place {
        &mut self.0[number_of(key)]
    }

    /// Has a word's place brought near.
    pub fn prefetch(&self, key: Key) {
        prefetch(&self.0[number_of(key)]);
    }
}

fn number_of(key: Key) -> usize {
    let [a, b] = key.map(|half| half as u64 ^ ((half >> 64) as u64).rotate_left(29));
    let mixed = (a ^ b.rotate_left(13)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mixed = (mixed ^ mixed >> 32).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mixed >> (64 - N_PLACES_LOG2)) as usize
}

/// A word of a text.
#[derive(Clone, Copy, Default)]
pub struct Word {
    /// [`LONG`] for one of more than 31 bytes, or too near to the end of the text.
    pub key: Key,
    pub start: usize,
    pub end: usize,
}

/// Words between blanks.
pub struct Words<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Words<'a> {
    pub fn of(text: &'a [u8]) -> Self {
        Self { text, at: 0 }
    }
}

impl Iterator for Words<'_> {
    type Item = Word;

    fn next(&mut self) -> Option<Word> {
        while is_blank(*self.text.get(self.at)?) {
            self.at += 1;
        }
        let start = self.at;
        let (key, length) = short_word(&self.text[start..]).unwrap_or_else(|| {
            let mut bytes = self.text[start..].iter();
            let length = bytes.position(|&byte| is_blank(byte));
            (LONG, length.unwrap_or(self.text.len() - start))
        });
        self.at = start + length;
        Some(Word {
            key,
            start,
            end: self.at,
        })
    }
}

/// The word that a text begins with, and its length; None where no blank is within 32 bytes.
fn short_word(text: &[u8]) -> Option<(Key, usize)> {
    let window = text.get(..MAX_BYTES)?;
    let (halves, _) = window.as_chunks();
    let [low, high] = [halves[0], halves[1]].map(u128::from_le_bytes);
    let (key, length) = match cut(low) {
        Some((low, length)) => ([low, 0], length),
        None => cut(high).map(|(high, length)| ([low, high], length + 16))?,
    };
    // Other controls are letters to fastText.
    is_blank(window[length]).then_some((key, length))
}

/// Whether words end here: blank, line end, carriage return, tab, vertical tab, form feed, NUL.
pub fn is_blank(byte: u8) -> bool {
    const BLANKS: u64 = 1 << 32 | 1 << 10 | 1 << 13 | 1 << 9 | 1 << 11 | 1 << 12 | 1;
    byte <= b' ' && (1 << byte) & BLANKS != 0
}

/// The bytes below the first one that is a blank or a control.
fn cut(half: u128) -> Option<(u128, usize)> {
    const ONES: u128 = u128::MAX / 255;
    // In each byte the high bit, if it is below 0x21; behind the first such byte perhaps wrong.
    let marks = half.wrapping_sub(0x21 * ONES) & !half & (0x80 * ONES);
    let first = marks & marks.wrapping_neg();
    (marks != 0).then(|| {
        (
            half & ((first >> 7) - 1),
            first.trailing_zeros() as usize / 8,
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(text: &[u8]) -> Vec<&[u8]> {
        let words = Words::of(text);
        words
            .inspect(|word| {
                let mut bytes = [0; MAX_BYTES];
                let own = &text[word.start..word.end];
                if word.key != LONG {
                    bytes[..own.len()].copy_from_slice(own);
                    let halves = bytes.as_chunks().0;
                    assert_eq!(word.key, [halves[0], halves[1]].map(u128::from_le_bytes));
                }
            })
            .map(|word| &text[word.start..word.end])
            .collect()
    }

    #[test]
    fn words_are_what_stands_between_blanks() {
        let mut state = 1_u64;
        for _ in 0..20_000 {
            let mut draw = |n: u64| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
                (state >> 33) % n
            };
            let length = draw(90) as usize;
            let letters = [b' ', b'\n', 0, 1, 31, 33, b'a', b'<', 127, 128, 195, 255];
            let n_letters = 1 + draw(12);
            let text: Vec<u8> = (0..length)
                .map(|_| match draw(8) {
                    0 => letters[draw(n_letters) as usize],
                    _ => letters[draw(12) as usize] | 0x40,
                })
                .collect();
            let plain: Vec<&[u8]> = text
                .split(|&byte| is_blank(byte))
                .filter(|word| !word.is_empty())
                .collect();
            assert_eq!(split(&text), plain);
        }
    }

    #[test]
    fn a_place_gives_way_to_another_word() {
        let mut words = ShortWords::default();
        let key = [7, 0];
        let place = words.place_of(key);
        assert!(!place.holds(key));
        place.fill(key, 5, &[1, 2]);
        place.fill([8, 0], 5, &[1; MAX_ROWS + 1]);
        assert!(place.holds(key));
        let mut rows = vec![9];
        place.push_rows(&mut rows);
        assert_eq!(rows, [9, 1, 2]);
        place.fill([8, 0], 6, &[]);
        assert!(!place.holds(key) && place.holds([8, 0]));
        place.push_rows(&mut rows);
        assert_eq!(rows, [9, 1, 2]);
    }
}
