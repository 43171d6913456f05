//! SHA-1 of several messages at a time, by the processor's own instructions.

use std::arch::x86_64::{
    __m128i, _mm_add_epi32, _mm_extract_epi64, _mm_set_epi8, _mm_set_epi32, _mm_set_epi64x,
    _mm_sha1msg1_epu32, _mm_sha1msg2_epu32, _mm_sha1nexte_epu32, _mm_sha1rnds4_epu32,
    _mm_shuffle_epi8, _mm_xor_si128,
};

/// Whether the processor has the instructions.
#[inline]
pub(super) fn can_sha1() -> bool {
    is_x86_feature_detected!("sha")
        && is_x86_feature_detected!("sse4.1")
        && is_x86_feature_detected!("ssse3")
}

/// The first 8 bytes of the SHA-1 of messages of one padded block each, little-endian.
#[allow(clippy::needless_range_loop)]
#[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
pub(super) fn heads_of_blocks<const N: usize>(blocks: &[[u8; 64]; N]) -> [u64; N] {
    // The first word in the highest lane.
    let start = _mm_set_epi32(
        0x6745_2301,
        0xEFCD_AB89_u32.cast_signed(),
        0x98BA_DCFE_u32.cast_signed(),
        0x1032_5476,
    );
    let start_e = _mm_set_epi32(0xC3D2_E1F0_u32.cast_signed(), 0, 0, 0);
    // Indices throughout: iterators are functions of their own, which know nothing of the
    // instructions and so are not always inlined here.
    let mut words = [[start; N]; 4];
    for group in 0..4 {
        for lane in 0..N {
            words[group][lane] = load(&blocks[lane], 2 * group);
        }
    }
    let mut state = [start; N];
    // What the word of the next four rounds is added to.
    let mut before = [start_e; N];
    macro_rules! four_rounds {
        ($function:literal, $($group:literal)*) => {$(
            for lane in 0..N {
                if $group >= 4 {
                    let next = words[($group + 1) % 4][lane];
                    let mixed = _mm_sha1msg1_epu32(words[$group % 4][lane], next);
                    let mixed = _mm_xor_si128(mixed, words[($group + 2) % 4][lane]);
                    let last = words[($group + 3) % 4][lane];
                    words[$group % 4][lane] = _mm_sha1msg2_epu32(mixed, last);
                }
                let word = words[$group % 4][lane];
                let added = if $group == 0 {
                    _mm_add_epi32(before[lane], word)
                } else {
                    _mm_sha1nexte_epu32(before[lane], word)
                };
                before[lane] = state[lane];
                state[lane] = _mm_sha1rnds4_epu32::<$function>(state[lane], added);
            }
        )*};
    }
    four_rounds!(0, 0 1 2 3 4);
    four_rounds!(1, 5 6 7 8 9);
    four_rounds!(2, 10 11 12 13 14);
    four_rounds!(3, 15 16 17 18 19);
    let mut heads = [0; N];
    for lane in 0..N {
        let state = _mm_add_epi32(state[lane], start);
        heads[lane] = _mm_extract_epi64::<1>(state).cast_unsigned().swap_bytes();
    }
    heads
}

/// Four big-endian words, the first in the highest lane; `at` counts halves of them.
#[inline]
#[target_feature(enable = "sse2,ssse3")]
fn load(block: &[u8; 64], at: usize) -> __m128i {
    let (halves, _) = block.as_chunks::<8>();
    let low = i64::from_le_bytes(halves[at]);
    let high = i64::from_le_bytes(halves[at + 1]);
    let reversed = _mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    _mm_shuffle_epi8(_mm_set_epi64x(high, low), reversed)
}
