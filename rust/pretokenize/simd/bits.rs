//! What the schemes have in common, bit by bit.

use super::super::scalar::char_at;
use super::super::unicode::Class;
use super::masks::Masks;
use super::{BLOCK, Block};

/// The lowest `n` bits, `n` from 1 to 64.
#[inline(always)]
pub(super) fn low(n: usize) -> u64 {
    u64::MAX >> (BLOCK - n)
}

/// A mask moved to the next byte; the first bit is what the block before left.
#[inline(always)]
pub(super) fn before(mask: u64, carried: u64) -> u64 {
    mask << 1 | carried
}

/// The bits of `through` from any bit of `from` to the end of its run.
///
/// Source: Cameron et al. 2014, `MatchStar`, section 3.2 of "Bitwise data parallelism in
/// regular expression matching".
#[inline(always)]
pub(super) fn flood(from: u64, through: u64) -> u64 {
    let from = from & through;
    ((from.wrapping_add(through) ^ through) | from) & through
}

/// First characters with all of their bytes.
#[inline(always)]
pub(super) fn whole_chars(firsts: u64, tail: u64) -> u64 {
    if tail == 0 {
        return firsts;
    }
    firsts | flood(firsts << 1, tail)
}

/// Where the last character of a run of whitespace begins, unless it ends the segment.
#[inline(always)]
pub(super) fn white_lasts(masks: &Masks, block: Block<'_>) -> u64 {
    let mut lasts = masks.white & !masks.high & !(masks.white >> 1);
    if block.last(lasts) != 0 && block.is_white_or_end(block.n) {
        lasts &= !(1 << (block.n - 1));
    }
    if masks.white & masks.high != 0 {
        lasts |= high_white_lasts(masks, block);
    }
    lasts
}

#[inline(never)]
fn high_white_lasts(masks: &Masks, block: Block<'_>) -> u64 {
    let mut lasts = 0;
    let mut firsts = masks.white & masks.high & !masks.tail & low(block.n);
    while firsts != 0 {
        let i = firsts.trailing_zeros() as usize;
        firsts &= firsts - 1;
        let len = char_at(block.text, block.at + i).map_or(1, |c| c.len);
        if !block.is_white_or_end(i + len) {
            lasts |= 1 << i;
        }
    }
    lasts
}

/// Starts that a contraction adds to the next block and takes from it.
#[derive(Clone, Copy, Default)]
pub(super) struct Pending {
    added: u64,
    removed: u64,
}

impl Pending {
    /// The starts with what the block before changes in them.
    #[inline(always)]
    pub fn apply(&mut self, starts: u64) -> u64 {
        let Self { added, removed } = std::mem::take(self);
        starts & !removed | added
    }

    /// Adds a start at an offset of the block or of the next.
    #[inline(always)]
    pub fn add(&mut self, starts: &mut u64, offset: usize, block: Block<'_>) {
        if offset < block.n {
            *starts |= 1 << offset;
        } else if block.at + offset < block.text.len() {
            self.added |= 1 << (offset - block.n);
        }
    }

    /// Takes a start away.
    #[inline(always)]
    pub fn remove(&mut self, starts: &mut u64, offset: usize, block: Block<'_>) {
        if offset < block.n {
            *starts &= !(1 << offset);
        } else {
            self.removed |= 1 << (offset - block.n);
        }
    }

    /// Starts corrected for contractions at the given apostrophes, which begin pretokens:
    /// none begins after the apostrophe, one does where `end_of` says that the contraction
    /// ends, if it is one.
    #[inline(never)]
    pub fn contractions(
        &mut self,
        mut starts: u64,
        mut left: u64,
        block: Block<'_>,
        end_of: fn(&[u8], usize) -> Option<usize>,
    ) -> u64 {
        while left != 0 {
            let i = left.trailing_zeros() as usize;
            left &= left - 1;
            if i >= block.n {
                break;
            }
            if let Some(end) = end_of(block.text, block.at + i) {
                self.remove(&mut starts, i + 1, block);
                self.add(&mut starts, end - block.at, block);
            }
        }
        starts
    }
}

/// Where the pretokens of digits begin, `MOST` digits each.
#[derive(Clone, Copy, Default)]
pub(super) struct Numbers<const MOST: usize> {
    /// Whether the last character was a digit, and how many its pretoken has.
    number: u64,
    count: usize,
}

impl<const MOST: usize> Numbers<MOST> {
    #[inline(always)]
    pub fn starts(&mut self, masks: &Masks, block: Block<'_>) -> u64 {
        let run = masks.number;
        if MOST == 1 {
            return run & !masks.tail;
        }
        let mut starts = run & !before(run, self.number);
        // Up to three bytes are up to three digits.
        let long = run & run << 1 & run << 2 & run << 3;
        if long | run & self.number != 0 {
            starts = self.long_starts(masks, block);
        }
        self.number = block.last(run);
        if self.number != 0 && starts & low(block.n) != 0 {
            let last = (starts & low(block.n)).ilog2();
            let digits = !masks.tail & low(block.n) & u64::MAX << last;
            self.count = digits.count_ones() as usize;
        }
        starts
    }

    /// One digit after the other.
    #[inline(never)]
    fn long_starts(&self, masks: &Masks, block: Block<'_>) -> u64 {
        let run = masks.number & low(block.n);
        let mut digits = run & !masks.tail;
        let follows = before(run, self.number);
        let (mut starts, mut count) = (0, self.count);
        while digits != 0 {
            let digit = digits & digits.wrapping_neg();
            digits &= digits - 1;
            if follows & digit == 0 || count == MOST {
                starts |= digit;
                count = 0;
            }
            count += 1;
        }
        starts
    }
}

/// Where whitespace begins pretokens under the patterns that know lines.
#[derive(Clone, Copy, Default)]
pub(super) struct Lines {
    white: u64,
    /// Whitespace that is neither CR nor LF.
    inline: u64,
    /// CR or LF that no punctuation before it has taken.
    newline: u64,
}

impl Lines {
    /// `taken`: line ends that belong to the punctuation before them. `cuts_at_end`: whether
    /// a segment that ends with whitespace is cut after its last line end.
    #[inline(always)]
    pub fn starts(
        &mut self,
        masks: &Masks,
        block: Block<'_>,
        taken: u64,
        cuts_at_end: bool,
    ) -> u64 {
        let inline = masks.white & !masks.newline;
        let newline = masks.newline & !taken;
        let mut inline_runs = inline & !before(inline, self.inline);
        // What a line begins with stands alone, unless the run of whitespace has another line.
        let margins = inline_runs & before(newline, self.newline);
        if margins != 0 && ((inline << 1) & masks.newline != 0 || block.last(inline) != 0) {
            inline_runs &= !blank_lines(margins, inline, masks.newline, block, cuts_at_end);
        }
        let newline_runs = newline & !before(masks.white, self.white);
        let starts = newline_runs | inline_runs | white_lasts(masks, block) & inline;
        *self = Self {
            white: block.last(masks.white),
            inline: block.last(inline),
            newline: block.last(newline),
        };
        starts
    }

    /// Whether whitespace other than CR and LF came last: it joins the word after it.
    #[inline(always)]
    pub fn inline(&self) -> u64 {
        self.inline
    }
}

/// Which margins are followed by a line end.
#[inline(never)]
fn blank_lines(
    mut margins: u64,
    inline: u64,
    newline: u64,
    block: Block<'_>,
    cuts_at_end: bool,
) -> u64 {
    let mut blank = 0;
    margins &= low(block.n);
    while margins != 0 {
        let i = margins.trailing_zeros() as usize;
        let margin = margins & margins.wrapping_neg();
        margins &= margins - 1;
        let end = i + (inline >> i).trailing_ones() as usize;
        let is_blank = if end < block.n {
            newline >> end & 1 != 0
        } else {
            match text_after_inline(block.text, block.at + i) {
                Some(byte) => matches!(byte, b'\r' | b'\n'),
                None => !cuts_at_end,
            }
        };
        if is_blank {
            blank |= margin;
        }
    }
    blank
}

/// The first byte after the whitespace of a line.
fn text_after_inline(text: &[u8], mut at: usize) -> Option<u8> {
    while let Some(c) = char_at(text, at) {
        if c.class != Class::Space || matches!(text[at], b'\r' | b'\n') {
            return Some(text[at]);
        }
        at += c.len;
    }
    None
}
