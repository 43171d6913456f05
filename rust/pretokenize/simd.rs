//! GPT-2's pretokens as mask algebra on 64-byte blocks.
//!
//! A block becomes one bit per byte for each class (letter, digit, whitespace, blank,
//! apostrophe), from a compare of all 64 bytes at once where they are ASCII and from the
//! class table where they are not. Each byte of a character has the class of the
//! character. Where a pretoken begins follows from shifts of those words:
//!
//! - a run of letters, digits or punctuation begins one, unless U+0020 stands before it,
//! - a run of whitespace begins one, and its last character begins another, unless the
//!   segment ends there,
//! - a contraction begins one at its apostrophe and ends another after it: looked at one
//!   by one, as they are rare.
//!
//! [`super::scalar::gpt2`] says the same one character at a time and is the oracle.
//!
//! Source of the idea: Langdale and Lemire 2019, simdjson, section 3.1 (arXiv:1902.08318).

// The body of a scanner is compiled once for each set of instructions, which works only
// where everything that it calls is part of it.
#![allow(clippy::inline_always)]

use super::scalar::{char_at, contraction_end};
use super::unicode::Class;

const BLOCK: usize = 64;

/// One bit per byte of a block.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
struct Masks {
    letter: u64,
    number: u64,
    /// Every byte of every whitespace character.
    white: u64,
    /// U+0020.
    blank: u64,
    apostrophe: u64,
    /// Bytes from 0x80.
    high: u64,
}

/// Class masks of 64 bytes without vector instructions.
#[inline(always)]
fn masks_portable(block: &[u8; BLOCK]) -> Masks {
    let mut masks = Masks::default();
    for (i, chunk) in block.chunks_exact(8).enumerate() {
        let x = u64::from_le_bytes(chunk.try_into().expect("8 bytes"));
        let shift = 8 * i;
        let high = x & HIGHS;
        let low = x & !HIGHS;
        // Adding to the low seven bits carries into the eighth exactly when the byte is
        // at least a bound; a byte that is high itself is masked out.
        let at_least = |x: u64, bound: u8| (x + splat(0x80 - bound)) & HIGHS;
        let folded = low | splat(0x20);
        let letter = at_least(folded, b'a') & !at_least(folded, b'z' + 1) & !high;
        let number = at_least(low, b'0') & !at_least(low, b'9' + 1) & !high;
        let blank = at_least(low, b' ') & !at_least(low, b' ' + 1) & !high;
        let white = (at_least(low, b'\t') & !at_least(low, b'\r' + 1) & !high) | blank;
        let apostrophe = at_least(low, b'\'') & !at_least(low, b'\'' + 1) & !high;
        masks.letter |= gather(letter) << shift;
        masks.number |= gather(number) << shift;
        masks.white |= gather(white) << shift;
        masks.blank |= gather(blank) << shift;
        masks.apostrophe |= gather(apostrophe) << shift;
        masks.high |= gather(high) << shift;
    }
    masks
}

const HIGHS: u64 = 0x8080_8080_8080_8080;

const fn splat(byte: u8) -> u64 {
    byte as u64 * 0x0101_0101_0101_0101
}

/// The eighth bit of each byte as eight adjacent bits.
#[inline(always)]
fn gather(highs: u64) -> u64 {
    ((highs >> 7).wrapping_mul(0x0102_0408_1020_4080)) >> 56
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{BLOCK, Masks};
    #[allow(clippy::wildcard_imports)] // Fourteen intrinsics, each named where it is used.
    use std::arch::x86_64::*;

    /// Class masks of 64 bytes, one 512-bit vector.
    #[target_feature(enable = "avx512bw")]
    #[inline]
    pub(super) fn masks_avx512(block: &[u8; BLOCK]) -> Masks {
        // SAFETY: the reference is to 64 readable bytes, and the load needs no alignment.
        let x = unsafe { _mm512_loadu_si512(block.as_ptr().cast()) };
        let byte = |b: u8| _mm512_set1_epi8(b.cast_signed());
        let within = |x, low: u8, high: u8| {
            _mm512_cmple_epu8_mask(_mm512_sub_epi8(x, byte(low)), byte(high - low))
        };
        let blank = _mm512_cmpeq_epi8_mask(x, byte(b' '));
        Masks {
            letter: within(_mm512_or_si512(x, byte(0x20)), b'a', b'z'),
            number: within(x, b'0', b'9'),
            white: within(x, b'\t', b'\r') | blank,
            blank,
            apostrophe: _mm512_cmpeq_epi8_mask(x, byte(b'\'')),
            high: _mm512_movepi8_mask(x),
        }
    }

    /// Class masks of 64 bytes, two 256-bit vectors.
    #[target_feature(enable = "avx2")]
    #[inline]
    pub(super) fn masks_avx2(block: &[u8; BLOCK]) -> Masks {
        let (low, high) = (half_avx2(&block[..32]), half_avx2(&block[32..]));
        let join = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        Masks {
            letter: join(low[0], high[0]),
            number: join(low[1], high[1]),
            white: join(low[2], high[2]),
            blank: join(low[3], high[3]),
            apostrophe: join(low[4], high[4]),
            high: join(low[5], high[5]),
        }
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn half_avx2(half: &[u8]) -> [u32; 6] {
        assert!(half.len() == 32);
        // SAFETY: the slice holds 32 readable bytes, and the load needs no alignment.
        let x = unsafe { _mm256_loadu_si256(half.as_ptr().cast()) };
        let byte = |b: u8| _mm256_set1_epi8(b.cast_signed());
        let bits = |x| _mm256_movemask_epi8(x).cast_unsigned();
        let within = |x, low: u8, high: u8| {
            let shifted = _mm256_sub_epi8(x, byte(low));
            bits(_mm256_cmpeq_epi8(
                _mm256_min_epu8(shifted, byte(high - low)),
                shifted,
            ))
        };
        let blank = bits(_mm256_cmpeq_epi8(x, byte(b' ')));
        [
            within(_mm256_or_si256(x, byte(0x20)), b'a', b'z'),
            within(x, b'0', b'9'),
            within(x, b'\t', b'\r') | blank,
            blank,
            bits(_mm256_cmpeq_epi8(x, byte(b'\''))),
            bits(x),
        ]
    }
}

/// What one block leaves to the next.
#[derive(Clone, Copy)]
struct Carry {
    /// Class bits of the last byte.
    letter: u64,
    number: u64,
    white: u64,
    blank: u64,
    other: u64,
    /// Class of the character that began before the block, and its bytes still to come.
    class: Class,
    n_bytes: usize,
    /// Starts that a contraction adds to the next block, and takes from it.
    added: u64,
    removed: u64,
}

/// Scans one segment block by block.
pub(super) struct BlockScanner<'t> {
    text: &'t [u8],
    at: usize,
    carry: Carry,
}

impl<'t> BlockScanner<'t> {
    pub(super) fn new(text: &'t [u8]) -> Self {
        let carry = Carry {
            letter: 0,
            number: 0,
            white: 0,
            blank: 0,
            other: 0,
            class: Class::Other,
            n_bytes: 0,
            added: 0,
            removed: 0,
        };
        Self { text, at: 0, carry }
    }

    /// Appends where pretokens begin in the next blocks, at most `n_blocks`; whether any
    /// text is left.
    pub(super) fn next_starts(&mut self, n_blocks: usize, starts: &mut Vec<u32>) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            if std::arch::is_x86_feature_detected!("avx512bw") {
                // SAFETY: the processor has the instructions.
                return unsafe { self.next_avx512(n_blocks, starts) };
            }
            if std::arch::is_x86_feature_detected!("avx2") {
                // SAFETY: the processor has the instructions.
                return unsafe { self.next_avx2(n_blocks, starts) };
            }
        }
        self.next_by(masks_portable, n_blocks, starts)
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512bw,bmi1,bmi2,popcnt,lzcnt")]
    fn next_avx512(&mut self, n_blocks: usize, starts: &mut Vec<u32>) -> bool {
        self.next_by(|block| x86::masks_avx512(block), n_blocks, starts)
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    fn next_avx2(&mut self, n_blocks: usize, starts: &mut Vec<u32>) -> bool {
        self.next_by(|block| x86::masks_avx2(block), n_blocks, starts)
    }

    #[inline(always)]
    fn next_by(
        &mut self,
        masks_of: impl Fn(&[u8; BLOCK]) -> Masks,
        n_blocks: usize,
        starts: &mut Vec<u32>,
    ) -> bool {
        for _ in 0..n_blocks {
            let rest = &self.text[self.at..];
            if rest.is_empty() {
                return false;
            }
            let mut bits = if let Some((block, _)) = rest.split_first_chunk() {
                self.block_starts(masks_of(block), BLOCK)
            } else {
                // Padding counts as whitespace, so that the last run has no last character.
                let mut block = [b' '; BLOCK];
                block[..rest.len()].copy_from_slice(rest);
                self.block_starts(masks_of(&block), rest.len())
            };
            starts.reserve(BLOCK);
            while bits != 0 {
                starts.push(self.at as u32 + bits.trailing_zeros());
                bits &= bits - 1;
            }
            self.at += BLOCK.min(rest.len());
        }
        self.at < self.text.len()
    }

    /// Where pretokens begin in the block at `self.at`, of which `n` bytes are text.
    #[inline(always)]
    fn block_starts(&mut self, mut masks: Masks, n: usize) -> u64 {
        let mut white_lasts = 0;
        if masks.high != 0 || self.carry.n_bytes != 0 {
            white_lasts = self.classify_high(&mut masks);
        }
        let Masks {
            letter,
            number,
            white,
            blank,
            apostrophe,
            high,
        } = masks;
        let other = !(letter | number | white);
        let carry = self.carry;
        let before = |mask: u64, carried: u64| mask << 1 | carried;
        let runs = letter & !before(letter, carry.letter)
            | number & !before(number, carry.number)
            | other & !before(other, carry.other);
        let white_runs = white & !before(white, carry.white);
        white_lasts |= white & !high & !(white >> 1);
        if white_lasts >> 63 != 0 && high >> 63 == 0 && self.is_white_or_end(self.at + BLOCK) {
            white_lasts &= !(1 << 63);
        }
        let mut starts = runs & !before(blank, carry.blank) | white_runs | white_lasts;
        starts = starts & !carry.removed | carry.added;
        self.carry = Carry {
            letter: letter >> 63,
            number: number >> 63,
            white: white >> 63,
            blank: blank >> 63,
            other: other >> 63,
            added: 0,
            removed: 0,
            ..self.carry
        };
        let candidates = apostrophe & !before(other, carry.other) & !before(blank, carry.blank);
        if candidates != 0 {
            starts = self.contractions(starts, candidates);
        }
        if n < BLOCK {
            starts & ((1 << n) - 1)
        } else {
            starts
        }
    }
    fn is_white_or_end(&self, at: usize) -> bool {
        char_at(self.text, at).is_none_or(|c| c.class == Class::Space)
    }

    /// Puts the bytes of non-ASCII characters into their classes; returns where among
    /// them the last character of a run of whitespace begins.
    #[inline(never)]
    fn classify_high(&mut self, masks: &mut Masks) -> u64 {
        let mut white_lasts = 0;
        let (class, n_bytes) = (self.carry.class, self.carry.n_bytes);
        masks.add(class, (1 << n_bytes) - 1);
        masks.high |= (1 << n_bytes) - 1;
        self.carry.n_bytes = 0;
        let mut left = masks.high & !((1 << n_bytes) - 1);
        while left != 0 {
            let i = left.trailing_zeros() as usize;
            let Some(c) = char_at(self.text, self.at + i) else {
                break;
            };
            let bytes = ((1u64 << c.len) - 1) << i;
            masks.add(c.class, bytes);
            left &= !bytes;
            if i + c.len > BLOCK {
                self.carry.class = c.class;
                self.carry.n_bytes = i + c.len - BLOCK;
            }
            if c.class == Class::Space && !self.is_white_or_end(self.at + i + c.len) {
                white_lasts |= 1 << i;
            }
        }
        white_lasts
    }

    /// Starts corrected for contractions at the given apostrophes, which begin pretokens.
    #[inline(never)]
    fn contractions(&mut self, mut starts: u64, mut candidates: u64) -> u64 {
        while candidates != 0 {
            let i = candidates.trailing_zeros() as usize;
            candidates &= candidates - 1;
            let Some(end) = contraction_end(self.text, self.at + i) else {
                continue;
            };
            // Bit i of a pair of blocks.
            let removed = 1u128 << (i + 1);
            let added = if end < self.text.len() {
                1u128 << (end - self.at)
            } else {
                0
            };
            starts = starts & !(removed as u64) | added as u64;
            self.carry.removed |= (removed >> BLOCK) as u64;
            self.carry.added |= (added >> BLOCK) as u64;
        }
        starts
    }
}

impl Masks {
    #[inline(always)]
    fn add(&mut self, class: Class, bytes: u64) {
        match class {
            Class::Space => self.white |= bytes,
            Class::Number => self.number |= bytes,
            class if class.is_letter() => self.letter |= bytes,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pretokenize::scalar::gpt2;

    type NextStarts = fn(&mut BlockScanner<'_>, &mut Vec<u32>) -> bool;

    fn portable(scanner: &mut BlockScanner<'_>, starts: &mut Vec<u32>) -> bool {
        scanner.next_by(masks_portable, 2, starts)
    }

    #[cfg(target_arch = "x86_64")]
    fn avx2(scanner: &mut BlockScanner<'_>, starts: &mut Vec<u32>) -> bool {
        // SAFETY: listed only where the processor has the instructions.
        unsafe { scanner.next_avx2(2, starts) }
    }

    fn back_ends() -> Vec<(&'static str, NextStarts)> {
        let mut out: Vec<(&'static str, NextStarts)> = vec![
            ("portable", portable),
            ("dispatched", |scanner, starts| {
                scanner.next_starts(2, starts)
            }),
        ];
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2") {
            out.push(("avx2", avx2));
        }
        out
    }

    fn check(text: &[u8]) {
        let mut expected = Vec::new();
        let mut at = 0;
        while at < text.len() {
            expected.push(at as u32);
            at = gpt2(text, at);
        }
        for (name, next) in back_ends() {
            let mut scanner = BlockScanner::new(text);
            let mut starts = Vec::new();
            while next(&mut scanner, &mut starts) {}
            assert_eq!(
                starts,
                expected,
                "{name} on {:?}",
                text.escape_ascii().to_string()
            );
        }
    }

    const PIECES: [&[u8]; 26] = [
        b" ",
        b" ",
        b"\n",
        b"\r",
        b"\t",
        b"a",
        b"B",
        b"s",
        b"re",
        b"ll",
        b"1",
        b"23",
        b"!",
        b"'",
        b"'",
        b"'s",
        "\u{a0}".as_bytes(),
        "\u{2003}".as_bytes(),
        "é".as_bytes(),
        "世".as_bytes(),
        "😀".as_bytes(),
        "\u{301}".as_bytes(),
        "٣".as_bytes(),
        b"\xE4\xB8",
        b"\x80",
        b"\0",
    ];

    #[test]
    fn blocks_equal_the_scalar_scanner_on_random_mixtures() {
        let mut state = 11u64;
        let mut random = move |below: usize| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % below
        };
        for round in 0..30_000 {
            let n = random(if round % 10 == 0 { 200 } else { 90 });
            let palette = random(PIECES.len()) + 1;
            let mut text = Vec::new();
            for _ in 0..n {
                text.extend_from_slice(PIECES[random(palette)]);
            }
            check(&text);
        }
    }

    #[test]
    fn blocks_equal_the_scalar_scanner_from_every_offset() {
        let text = "Y'all'd've it's ''s x's '\u{a0}\u{2003}a \u{2003}\u{2003} 'tis 12's—don't！ 日本語。\u{a0} z ";
        let text = text.repeat(4);
        for start in 0..160 {
            check(&text.as_bytes()[start..]);
            check(&text.as_bytes()[..text.len() - start]);
        }
    }
}
