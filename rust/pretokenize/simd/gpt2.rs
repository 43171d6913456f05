//! GPT-2's pretokens.
//!
//! - A run of letters, digits or punctuation begins one, unless U+0020 stands before it,
//! - a run of whitespace begins one, and its last character begins another, unless the
//!   segment ends there,
//! - a contraction begins one at its apostrophe and ends another after it: looked at one
//!   by one, as they are rare.

use super::super::scalar;
use super::bits::{Pending, before, white_lasts};
use super::masks::Masks;
use super::{Block, Scheme};

/// Class bits of the last byte, and what contractions change in the next block.
#[derive(Clone, Copy, Default)]
pub struct Gpt2 {
    letter: u64,
    number: u64,
    white: u64,
    blank: u64,
    other: u64,
    pending: Pending,
}

impl Scheme for Gpt2 {
    fn scalar_end(text: &[u8], at: usize) -> usize {
        scalar::gpt2(text, at)
    }

    #[inline(always)]
    fn starts(&mut self, masks: &Masks, block: Block<'_>) -> Option<u64> {
        let &Masks {
            letter,
            number,
            white,
            blank,
            ..
        } = masks;
        let other = !(letter | number | white);
        let runs = letter & !before(letter, self.letter)
            | number & !before(number, self.number)
            | other & !before(other, self.other);
        let after_blank = before(blank, self.blank);
        let white_runs = white & !before(white, self.white);
        let starts = runs & !after_blank | white_runs | white_lasts(masks, block);
        let mut starts = self.pending.apply(starts);
        let candidates = masks.apostrophe & !before(other, self.other) & !after_blank;
        *self = Self {
            letter: block.last(letter),
            number: block.last(number),
            white: block.last(white),
            blank: block.last(blank),
            other: block.last(other),
            pending: self.pending,
        };
        if candidates != 0 {
            let end_of = scalar::contraction_end;
            starts = self.pending.contractions(starts, candidates, block, end_of);
        }
        Some(starts)
    }
}
