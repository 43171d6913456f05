//! Words, sentences and lines: as Unicode borders them (UAX #29), and as Python's `str` does.
//!
//! A segment is an offset, a length and what the rules ask of it, so that a page is cut once and
//! each rule only counts. ASCII, most of most pages, is cut by bytes without a look at the tables.

mod blanks;
mod sentences;
pub mod unicode;
mod unicode_table;
mod words;

pub use blanks::{collapsed_newlines, split_lines, split_words, strip};
pub use sentences::count_sentences;
pub use words::unicode_words;

use unicode::Properties;

/// Texts must be shorter, in bytes: a word keeps its length in 29 bits.
pub const MAX_TEXT_BYTES: usize = 1 << 29;

/// A word of a text: where it stands, its code points, and what they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word {
    start: u32,
    end: u32,
    info: u32,
}

const HAS_LETTER: u32 = 1;
const ONLY_SYMBOLS: u32 = 2;
const BEGINS_ALPHANUMERIC: u32 = 4;
const INFO_BITS: u32 = 3;

impl Word {
    fn new(start: usize, end: usize, n_characters: usize, info: u32) -> Self {
        Self {
            start: start as u32,
            end: end as u32,
            info: (n_characters as u32) << INFO_BITS | info,
        }
    }

    /// Its bytes.
    #[inline]
    pub fn bytes<'t>(&self, text: &'t str) -> &'t [u8] {
        &text.as_bytes()[self.start as usize..self.end as usize]
    }

    /// Where it begins, in bytes.
    #[inline]
    pub fn start(&self) -> usize {
        self.start as usize
    }

    /// Where it ends, in bytes.
    #[inline]
    pub fn end(&self) -> usize {
        self.end as usize
    }

    /// Code points.
    #[inline]
    pub fn n_characters(&self) -> usize {
        (self.info >> INFO_BITS) as usize
    }

    /// Whether any character is a letter.
    #[inline]
    pub fn has_letter(&self) -> bool {
        self.info & HAS_LETTER != 0
    }

    /// Whether every character is one of datatrove's symbols.
    #[inline]
    pub fn is_symbols_only(&self) -> bool {
        self.info & ONLY_SYMBOLS != 0
    }

    /// Whether the first character is a letter or a number.
    #[inline]
    pub fn begins_alphanumeric(&self) -> bool {
        self.info & BEGINS_ALPHANUMERIC != 0
    }
}

/// What is known of a segment while it grows.
#[derive(Clone, Copy)]
struct Growing {
    n_characters: usize,
    info: u32,
    only_spaces: bool,
}

impl Growing {
    #[inline]
    fn new(first: Properties) -> Self {
        let begins = if first.is_alphanumeric() {
            BEGINS_ALPHANUMERIC
        } else {
            0
        };
        let mut segment = Self {
            n_characters: 0,
            info: ONLY_SYMBOLS | begins,
            only_spaces: true,
        };
        segment.push(first);
        segment
    }

    #[inline]
    fn push(&mut self, properties: Properties) {
        self.n_characters += 1;
        if properties.is_letter() {
            self.info |= HAS_LETTER;
        }
        if !properties.is_symbol() {
            self.info &= !ONLY_SYMBOLS;
        }
        self.only_spaces &= properties.is_space();
    }
}

/// Code points of UTF-8: the bytes that continue none.
pub fn n_characters(bytes: &[u8]) -> usize {
    // Sums of at most 255 ones fit a byte, and add up many lanes at a time.
    let begins = |byte: &u8| u8::from(byte.cast_signed() >= -0x40);
    bytes
        .chunks(192)
        .map(|chunk| chunk.iter().map(begins).sum::<u8>() as usize)
        .sum()
}
