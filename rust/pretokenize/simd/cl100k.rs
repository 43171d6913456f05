//! GPT-4's pretokens, and those of its relatives.
//!
//! - A run of letters begins one, unless whitespace other than CR and LF stands before it, or
//!   a single character of punctuation that begins a pretoken itself,
//! - so does every first or every third digit of a run,
//! - a run of punctuation, unless U+0020 stands before it; line ends after it belong to it,
//! - whitespace as [`Lines`] says,
//! - what follows a contraction.

use super::super::scalar::{self, Cl100kEnd};
use super::bits::{Lines, Numbers, Pending, before, flood, whole_chars};
use super::masks::Masks;
use super::{Block, Scheme};

/// The scheme with at most `DIGITS` digits in a pretoken; `SHIPPED`: whitespace at the end of
/// a segment is not cut, see [`Cl100kEnd`].
#[derive(Clone, Copy, Default)]
pub struct Cl100kScheme<const DIGITS: usize, const SHIPPED: bool> {
    letter: u64,
    other: u64,
    blank: u64,
    /// Whether line ends that go on are taken by the punctuation before them.
    taken: u64,
    /// Whether a single character of punctuation came last that the next word may begin with.
    prefix: u64,
    numbers: Numbers<DIGITS>,
    lines: Lines,
    pending: Pending,
}

pub type Cl100k = Cl100kScheme<3, true>;
pub type Cl100k2023 = Cl100kScheme<3, false>;
pub type Qwen2 = Cl100kScheme<1, false>;

impl<const DIGITS: usize, const SHIPPED: bool> Scheme for Cl100kScheme<DIGITS, SHIPPED> {
    fn scalar_end(text: &[u8], at: usize) -> usize {
        let at_end = if SHIPPED {
            Cl100kEnd::Shipped
        } else {
            Cl100kEnd::Spelling2023
        };
        scalar::cl100k(text, at, at_end, DIGITS)
    }

    #[inline(always)]
    fn starts(&mut self, masks: &Masks, block: Block<'_>) -> Option<u64> {
        let &Masks {
            letter,
            number,
            white,
            newline,
            ..
        } = masks;
        let other = !(letter | number | white);
        let after_other = before(other, self.other);
        let taken = flood(newline & (after_other | self.taken), newline);
        let joins = before(white & !newline, self.lines.inline());
        let others = other & !after_other & !before(masks.blank, self.blank);
        let prefixes = whole_chars(others, masks.tail);
        let letters =
            letter & !(before(letter, self.letter) | joins | before(prefixes, self.prefix));
        let numbers = self.numbers.starts(masks, block);
        let whites = self.lines.starts(masks, block, taken, !SHIPPED);
        let mut starts = self.pending.apply(letters | numbers | others | whites);
        self.letter = block.last(letter);
        self.other = block.last(other);
        self.blank = block.last(masks.blank);
        self.taken = block.last(taken);
        self.prefix = block.last(prefixes);
        let candidates = masks.apostrophe & others & (letter >> 1 | 1 << (block.n - 1));
        if candidates != 0 {
            let end_of = scalar::caseless_contraction_end;
            starts = self.pending.contractions(starts, candidates, block, end_of);
        }
        Some(starts)
    }
}
