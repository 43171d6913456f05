//! The back ends of x86-64.

#[allow(clippy::wildcard_imports)] // Two dozen intrinsics, each named where it is used.
use std::arch::x86_64::*;

use super::classify::{self, High, Tables};
use super::masks::{Backend, Leads, Masks, push_positions_by_eight};
use super::{BLOCK, WINDOW};

/// 512-bit vectors with compares into masks and compression of bytes.
#[derive(Clone, Copy)]
pub(super) struct Avx512(());

impl Avx512 {
    pub fn detect() -> Option<Self> {
        let detected = is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vbmi2")
            && is_x86_feature_detected!("bmi2")
            && is_x86_feature_detected!("lzcnt");
        detected.then_some(Self(()))
    }
}

impl Backend for Avx512 {
    #[inline(always)]
    fn masks(self, block: &[u8; BLOCK]) -> Masks {
        // SAFETY: a value exists, so the processor has the instructions.
        unsafe { masks_avx512(block) }
    }

    #[inline(always)]
    fn classify(self, tables: &Tables, window: &[u8; WINDOW], n_text: usize) -> High {
        // SAFETY: a value exists, so the processor has the instructions.
        unsafe { classify_avx512(tables, window, n_text) }
    }

    #[inline(always)]
    unsafe fn push_positions(self, bits: u64, base: u32, positions: &mut Vec<u32>) {
        // SAFETY: a value exists, so the processor has the instructions; the room is there by
        // contract.
        unsafe { push_positions_avx512(bits, base, positions) }
    }
}

#[target_feature(enable = "avx512bw")]
#[inline]
fn masks_avx512(block: &[u8; BLOCK]) -> Masks {
    // SAFETY: the reference is to 64 readable bytes, and the load needs no alignment.
    let x = unsafe { _mm512_loadu_si512(block.as_ptr().cast()) };
    let byte = |b: u8| _mm512_set1_epi8(b.cast_signed());
    let within = |x, first: u8, last: u8| {
        _mm512_cmple_epu8_mask(_mm512_sub_epi8(x, byte(first)), byte(last - first))
    };
    let is = |b: u8| _mm512_cmpeq_epi8_mask(x, byte(b));
    let blank = is(b' ');
    Masks {
        letter: within(_mm512_or_si512(x, byte(0x20)), b'a', b'z'),
        upper: within(x, b'A', b'Z'),
        number: within(x, b'0', b'9'),
        white: within(x, b'\t', b'\r') | blank,
        blank,
        newline: is(b'\n') | is(b'\r'),
        apostrophe: is(b'\''),
        slash: is(b'/'),
        high: _mm512_movepi8_mask(x),
        ..Masks::default()
    }
}

#[target_feature(enable = "avx512bw,bmi1,bmi2,popcnt,lzcnt")]
#[inline(never)]
fn classify_avx512(tables: &Tables, window: &[u8; WINDOW], n_text: usize) -> High {
    // SAFETY: the reference is to more than 64 readable bytes.
    let x = unsafe { _mm512_loadu_si512(window.as_ptr().cast()) };
    let byte = |b: u8| _mm512_set1_epi8(b.cast_signed());
    let within = |first: u8, last: u8| {
        _mm512_cmple_epu8_mask(_mm512_sub_epi8(x, byte(first)), byte(last - first))
    };
    let leads = Leads {
        two: within(0xC2, 0xDF),
        three: within(0xE0, 0xEF),
        four: within(0xF0, 0xF4),
        continuation: within(0x80, 0xBF),
        ideograph: within(0xE4, 0xE9) | within(0xEB, 0xEC),
        hexagram: within(0xB7, 0xB7),
    };
    classify::classify(tables, leads, window, n_text)
}

/// The numbers 0 to 63, of which the bits choose.
static NUMBERS: [u8; BLOCK] = {
    let mut numbers = [0; BLOCK];
    let mut i = 0;
    while i < BLOCK {
        numbers[i] = i as u8;
        i += 1;
    }
    numbers
};

/// # Safety
/// There is room for `BLOCK` more.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi2,popcnt")]
#[inline]
unsafe fn push_positions_avx512(bits: u64, base: u32, out: &mut Vec<u32>) {
    debug_assert!(out.capacity() - out.len() >= BLOCK);
    // SAFETY: 64 readable bytes; 64 writable places in capacity by contract.
    unsafe {
        let numbers = _mm512_loadu_si512(NUMBERS.as_ptr().cast());
        let chosen = _mm512_maskz_compress_epi8(bits, numbers);
        let base = _mm512_set1_epi32(base.cast_signed());
        let end = out.as_mut_ptr().add(out.len());
        let n = bits.count_ones() as usize;
        let widen = |x: __m128i| _mm512_add_epi32(_mm512_cvtepu8_epi32(x), base);
        _mm512_storeu_si512(end.cast(), widen(_mm512_castsi512_si128(chosen)));
        let second = _mm512_extracti32x4_epi32::<1>(chosen);
        _mm512_storeu_si512(end.add(16).cast(), widen(second));
        // Hardly ever: two pretokens in four bytes.
        if n > 32 {
            let third = _mm512_extracti32x4_epi32::<2>(chosen);
            _mm512_storeu_si512(end.add(32).cast(), widen(third));
            let fourth = _mm512_extracti32x4_epi32::<3>(chosen);
            _mm512_storeu_si512(end.add(48).cast(), widen(fourth));
        }
        out.set_len(out.len() + n);
    }
}

/// 256-bit vectors.
#[derive(Clone, Copy)]
pub(super) struct Avx2(());

impl Avx2 {
    pub fn detect() -> Option<Self> {
        let detected = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("bmi2")
            && is_x86_feature_detected!("lzcnt");
        detected.then_some(Self(()))
    }
}

impl Backend for Avx2 {
    #[inline(always)]
    fn masks(self, block: &[u8; BLOCK]) -> Masks {
        // SAFETY: a value exists, so the processor has the instructions.
        unsafe { masks_avx2(block) }
    }

    #[inline(always)]
    fn classify(self, tables: &Tables, window: &[u8; WINDOW], n_text: usize) -> High {
        // SAFETY: a value exists, so the processor has the instructions.
        unsafe { classify_avx2(tables, window, n_text) }
    }

    #[inline(always)]
    unsafe fn push_positions(self, bits: u64, base: u32, positions: &mut Vec<u32>) {
        // SAFETY: passed on to the caller.
        unsafe { push_positions_by_eight(bits, base, positions) }
    }
}

/// Bits of the bytes from `first` to `last`.
#[target_feature(enable = "avx2")]
#[inline]
fn within_avx2([low, high]: [__m256i; 2], first: u8, last: u8) -> u64 {
    let byte = |b: u8| _mm256_set1_epi8(b.cast_signed());
    let half = |x| {
        let shifted = _mm256_sub_epi8(x, byte(first));
        let within = _mm256_cmpeq_epi8(_mm256_min_epu8(shifted, byte(last - first)), shifted);
        u64::from(_mm256_movemask_epi8(within).cast_unsigned())
    };
    half(low) | half(high) << 32
}

/// # Safety
/// 64 bytes are readable.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn load_avx2(bytes: *const u8) -> [__m256i; 2] {
    // SAFETY: readable by contract, and the load needs no alignment.
    unsafe {
        [
            _mm256_loadu_si256(bytes.cast()),
            _mm256_loadu_si256(bytes.add(32).cast()),
        ]
    }
}

#[target_feature(enable = "avx2")]
#[inline]
fn masks_avx2(block: &[u8; BLOCK]) -> Masks {
    // SAFETY: the reference is to 64 readable bytes.
    let x = unsafe { load_avx2(block.as_ptr()) };
    let folded = x.map(|half| _mm256_or_si256(half, _mm256_set1_epi8(0x20)));
    let is = |b: u8| within_avx2(x, b, b);
    let blank = is(b' ');
    Masks {
        letter: within_avx2(folded, b'a', b'z'),
        upper: within_avx2(x, b'A', b'Z'),
        number: within_avx2(x, b'0', b'9'),
        white: within_avx2(x, b'\t', b'\r') | blank,
        blank,
        newline: is(b'\n') | is(b'\r'),
        apostrophe: is(b'\''),
        slash: is(b'/'),
        high: within_avx2(x, 0x80, 0xFF),
        ..Masks::default()
    }
}

#[target_feature(enable = "avx2,bmi1,bmi2,popcnt,lzcnt")]
#[inline(never)]
fn classify_avx2(tables: &Tables, window: &[u8; WINDOW], n_text: usize) -> High {
    // SAFETY: the reference is to more than 64 readable bytes.
    let x = unsafe { load_avx2(window.as_ptr()) };
    let leads = Leads {
        two: within_avx2(x, 0xC2, 0xDF),
        three: within_avx2(x, 0xE0, 0xEF),
        four: within_avx2(x, 0xF0, 0xF4),
        continuation: within_avx2(x, 0x80, 0xBF),
        ideograph: within_avx2(x, 0xE4, 0xE9) | within_avx2(x, 0xEB, 0xEC),
        hexagram: within_avx2(x, 0xB7, 0xB7),
    };
    classify::classify(tables, leads, window, n_text)
}
