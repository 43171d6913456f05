//! Class masks of 64 bytes, and what each set of instructions must be able to do.

use super::classify::{self, High, Tables};
use super::{BLOCK, WINDOW};

/// One bit per byte of a block. What a scheme does not ask for is not computed.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub(in super::super) struct Masks {
    pub letter: u64,
    /// Letters that are `Lu` or `Lt`, and those that are `Lm` or `Lo`.
    pub upper: u64,
    pub caseless: u64,
    pub mark: u64,
    pub number: u64,
    /// Every byte of every whitespace character.
    pub white: u64,
    /// U+0020.
    pub blank: u64,
    /// CR and LF.
    pub newline: u64,
    pub apostrophe: u64,
    pub slash: u64,
    /// Bytes from 0x80.
    pub high: u64,
    /// Bytes of a valid character other than its first.
    pub tail: u64,
}

/// Which bytes begin characters of two, three and four bytes, and which continue one.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub(super) struct Leads {
    pub two: u64,
    pub three: u64,
    pub four: u64,
    pub continuation: u64,
    /// First bytes of three whose every character is a letter without case, U+4DC0 to
    /// U+4DFF apart: the bulk of Chinese and of Korean.
    pub ideograph: u64,
    /// The byte 0xB7, which follows 0xE4 in the characters left out there.
    pub hexagram: u64,
}

/// A set of instructions. A value exists only where the processor has them.
pub(super) trait Backend: Copy {
    /// Class masks of the ASCII bytes.
    fn masks(self, block: &[u8; BLOCK]) -> Masks;

    /// Classes of the other bytes.
    fn classify(self, tables: &Tables, window: &[u8; WINDOW], n_text: usize) -> High;

    /// Appends `base` plus the number of each bit.
    ///
    /// # Safety
    /// There is room for `BLOCK` more.
    unsafe fn push_positions(self, bits: u64, base: u32, positions: &mut Vec<u32>);
}

/// No vector instructions.
#[derive(Clone, Copy)]
pub(super) struct Portable;

impl Backend for Portable {
    #[inline(always)]
    fn masks(self, block: &[u8; BLOCK]) -> Masks {
        let mut masks = Masks::default();
        for (i, chunk) in block.chunks_exact(8).enumerate() {
            let x = u64::from_le_bytes(chunk.try_into().expect("8 bytes"));
            let high = x & HIGHS;
            let low = x & !HIGHS;
            // Adding to the low seven bits carries into the eighth exactly when the byte is
            // at least a bound; a byte that is high itself is masked out.
            let at_least = |x: u64, bound: u8| (x + splat(0x80 - bound)) & HIGHS;
            let within = |x, first, last: u8| at_least(x, first) & !at_least(x, last + 1) & !high;
            let is = |byte| within(low, byte, byte);
            let blank = is(b' ');
            let mut put = |mask: fn(&mut Masks) -> &mut u64, bits: u64| {
                *mask(&mut masks) |= gather(bits) << (8 * i);
            };
            put(|m| &mut m.letter, within(low | splat(0x20), b'a', b'z'));
            put(|m| &mut m.upper, within(low, b'A', b'Z'));
            put(|m| &mut m.number, within(low, b'0', b'9'));
            put(|m| &mut m.white, within(low, b'\t', b'\r') | blank);
            put(|m| &mut m.blank, blank);
            put(|m| &mut m.newline, is(b'\n') | is(b'\r'));
            put(|m| &mut m.apostrophe, is(b'\''));
            put(|m| &mut m.slash, is(b'/'));
            put(|m| &mut m.high, high);
        }
        masks
    }

    fn classify(self, tables: &Tables, window: &[u8; WINDOW], n_text: usize) -> High {
        let block = window.first_chunk().expect("a window is longer");
        classify::classify(tables, leads_portable(block), window, n_text)
    }

    #[inline(always)]
    unsafe fn push_positions(self, bits: u64, base: u32, positions: &mut Vec<u32>) {
        // SAFETY: passed on to the caller.
        unsafe { push_positions_by_eight(bits, base, positions) }
    }
}

pub(super) fn leads_portable(block: &[u8; BLOCK]) -> Leads {
    let mut leads = Leads::default();
    for (i, &byte) in block.iter().enumerate() {
        let bit = 1 << i;
        match byte {
            0x80..=0xBF => leads.continuation |= bit,
            0xC2..=0xDF => leads.two |= bit,
            0xE0..=0xEF => leads.three |= bit,
            0xF0..=0xF4 => leads.four |= bit,
            _ => {}
        }
        if matches!(byte, 0xE4..=0xE9 | 0xEB | 0xEC) {
            leads.ideograph |= bit;
        }
        if byte == 0xB7 {
            leads.hexagram |= bit;
        }
    }
    leads
}

/// Writes eight positions at a time, so that no branch asks how many bits are left.
///
/// # Safety
/// There is room for `BLOCK` more.
#[inline(always)]
pub(super) unsafe fn push_positions_by_eight(mut bits: u64, base: u32, out: &mut Vec<u32>) {
    debug_assert!(out.capacity() - out.len() >= BLOCK);
    let n = bits.count_ones() as usize;
    // SAFETY: in capacity by contract; `n` is at most `BLOCK`, and eight are written only
    // where less than `n` have been.
    unsafe {
        let end = out.as_mut_ptr().add(out.len());
        let mut done = 0;
        while done < n {
            for i in done..done + 8 {
                *end.add(i) = base.wrapping_add(bits.trailing_zeros());
                bits &= bits.wrapping_sub(1);
            }
            done += 8;
        }
        out.set_len(out.len() + n);
    }
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
