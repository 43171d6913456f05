//! GPT-4o's pretokens.
//!
//! As cl100k, with words that know case: a word is upper forms, then lower forms, where
//! letters without case and marks are both. Within a run of letters and marks one begins
//!
//! - at an upper letter after a lower one, letters without case and marks between them or not,
//! - after the last letter without case of upper forms that no lower letter follows.
//!
//! A contraction belongs to the word before it, and slashes after line ends after
//! punctuation belong to the punctuation. Marks directly after punctuation are punctuation
//! or letters, by what stood before: those blocks are left to the scalar scanner.

use super::super::scalar::{self, Char, char_at};
use super::super::unicode::Class;
use super::bits::{Lines, Numbers, Pending, before, flood, low, whole_chars};
use super::masks::Masks;
use super::{Block, Scheme};

/// What one block leaves to the next: classes of the last byte and more.
#[derive(Clone, Copy, Default)]
pub struct O200k {
    word: u64,
    upper: u64,
    /// Whether only letters without case and marks came since a lower letter, or it itself.
    lowered: u64,
    caseless: u64,
    /// Punctuation, and that which no line end before it has taken.
    other: u64,
    free: u64,
    blank: u64,
    taken: u64,
    prefix: u64,
    /// Where the last contraction ended: an apostrophe there begins a word.
    contraction_end: usize,
    numbers: Numbers<3>,
    lines: Lines,
    pending: Pending,
}

impl Scheme for O200k {
    fn scalar_end(text: &[u8], at: usize) -> usize {
        scalar::o200k(text, at)
    }

    #[inline(always)]
    fn starts(&mut self, masks: &Masks, block: Block<'_>) -> Option<u64> {
        let &Masks {
            letter,
            upper,
            number,
            white,
            newline,
            mark,
            ..
        } = masks;
        let word = letter | mark;
        let caseless = masks.caseless | mark;
        let lower = letter & !upper & !masks.caseless;
        let other = !(word | number | white);
        let after_other = before(other, self.other);
        if mark & after_other != 0 {
            return None;
        }
        let trail = newline | masks.slash;
        let taken = flood(newline & after_other | self.taken, trail);
        let free = other & !taken;
        let others = free & !before(free, self.free) & !before(masks.blank, self.blank);
        let prefixes = whole_chars(others, masks.tail);

        let after_word = before(word, self.word);
        let joins = before(white & !newline, self.lines.inline()) | before(prefixes, self.prefix);
        let lowered = lower | flood(before(lower, self.lowered), caseless);
        let uppers = upper & !before(upper, self.upper);
        let mut words = word & !after_word & !joins | uppers & before(lowered, self.lowered);
        let unlowered = uppers & before(caseless & !lowered, self.caseless & !self.lowered);
        if unlowered != 0 {
            words |= last_uppers(unlowered, block);
        }

        let numbers = self.numbers.starts(masks, block);
        let whites = self.lines.starts(masks, block, taken, true);
        let mut starts = self.pending.apply(words | numbers | others | whites);
        self.word = block.last(word);
        self.upper = block.last(upper);
        self.lowered = block.last(lowered);
        self.caseless = block.last(caseless);
        self.other = block.last(other);
        self.free = block.last(free);
        self.blank = block.last(masks.blank);
        self.taken = block.last(taken);
        self.prefix = block.last(prefixes);
        let candidates = masks.apostrophe & after_word & (letter >> 1 | 1 << (block.n - 1));
        if candidates != 0 {
            starts = self.contractions(starts, candidates, block)?;
        }
        Some(starts)
    }
}

impl O200k {
    /// Starts corrected for contractions at the given apostrophes, which follow words;
    /// nothing where a letter without case follows one, as it cannot know that.
    #[inline(never)]
    fn contractions(&mut self, mut starts: u64, mut left: u64, block: Block<'_>) -> Option<u64> {
        while left != 0 {
            let i = left.trailing_zeros() as usize;
            left &= left - 1;
            let at = block.at + i;
            if i >= block.n {
                break;
            }
            if at == self.contraction_end {
                continue;
            }
            let Some(end) = scalar::caseless_contraction_end(block.text, at) else {
                continue;
            };
            let caseless = |c: Char| matches!(c.class, Class::Caseless | Class::Mark);
            if char_at(block.text, end).is_some_and(caseless) {
                return None;
            }
            self.contraction_end = end;
            // In `'lL` case begins a word.
            for offset in i..end - block.at {
                self.pending.remove(&mut starts, offset, block);
            }
            self.pending.add(&mut starts, end - block.at, block);
        }
        Some(starts)
    }
}

/// Those of the given runs of upper letters that no letter and no mark follows.
#[inline(never)]
fn last_uppers(mut runs: u64, block: Block<'_>) -> u64 {
    let mut last = 0;
    runs &= low(block.n);
    while runs != 0 {
        let run = runs & runs.wrapping_neg();
        let mut at = block.at + runs.trailing_zeros() as usize;
        runs &= runs - 1;
        let next = loop {
            match char_at(block.text, at) {
                Some(c) if c.class == Class::Upper => at += c.len,
                next => break next,
            }
        };
        if !next.is_some_and(|c| c.class.is_letter() || c.class == Class::Mark) {
            last |= run;
        }
    }
    last
}
