//! SHA-256 of several messages at a time, by the processor's own instructions.

use std::arch::x86_64::{
    __m128i, _mm_add_epi32, _mm_alignr_epi8, _mm_extract_epi64, _mm_set_epi8, _mm_set_epi32,
    _mm_set_epi64x, _mm_sha256msg1_epu32, _mm_sha256msg2_epu32, _mm_sha256rnds2_epu32,
    _mm_shuffle_epi8, _mm_shuffle_epi32,
};

/// Whether the processor has the instructions.
#[inline]
pub(super) fn can_sha256() -> bool {
    is_x86_feature_detected!("sha")
        && is_x86_feature_detected!("sse4.1")
        && is_x86_feature_detected!("ssse3")
}

/// The eight words of a hash under way, as the instructions take them: A, B, E, F and C, D, G,
/// H, the first in the highest lane.
#[derive(Clone, Copy)]
pub(super) struct State {
    abef: __m128i,
    cdgh: __m128i,
}

impl State {
    /// Of no block yet.
    #[target_feature(enable = "sse2")]
    pub(super) fn new() -> Self {
        Self {
            abef: four([0x6A09_E667, 0xBB67_AE85, 0x510E_527F, 0x9B05_688C]),
            cdgh: four([0x3C6E_F372, 0xA54F_F53A, 0x1F83_D9AB, 0x5BE0_CD19]),
        }
    }

    /// The first 16 bytes of the hash, as two little-endian numbers.
    #[target_feature(enable = "sse4.1")]
    pub(super) fn head(&self) -> [u64; 2] {
        [self.abef, self.cdgh].map(|words| {
            let pair = _mm_extract_epi64::<1>(words).cast_unsigned();
            pair.swap_bytes()
        })
    }
}

/// The first in the highest lane.
#[inline]
#[target_feature(enable = "sse2")]
fn four([a, b, c, d]: [u32; 4]) -> __m128i {
    let [a, b, c, d] = [a, b, c, d].map(u32::cast_signed);
    _mm_set_epi32(a, b, c, d)
}

/// FIPS 180-4, section 4.2.2: of the cube roots of the first 64 primes.
const CONSTANTS: [[u32; 4]; 16] = [
    [0x428A_2F98, 0x7137_4491, 0xB5C0_FBCF, 0xE9B5_DBA5],
    [0x3956_C25B, 0x59F1_11F1, 0x923F_82A4, 0xAB1C_5ED5],
    [0xD807_AA98, 0x1283_5B01, 0x2431_85BE, 0x550C_7DC3],
    [0x72BE_5D74, 0x80DE_B1FE, 0x9BDC_06A7, 0xC19B_F174],
    [0xE49B_69C1, 0xEFBE_4786, 0x0FC1_9DC6, 0x240C_A1CC],
    [0x2DE9_2C6F, 0x4A74_84AA, 0x5CB0_A9DC, 0x76F9_88DA],
    [0x983E_5152, 0xA831_C66D, 0xB003_27C8, 0xBF59_7FC7],
    [0xC6E0_0BF3, 0xD5A7_9147, 0x06CA_6351, 0x1429_2967],
    [0x27B7_0A85, 0x2E1B_2138, 0x4D2C_6DFC, 0x5338_0D13],
    [0x650A_7354, 0x766A_0ABB, 0x81C2_C92E, 0x9272_2C85],
    [0xA2BF_E8A1, 0xA81A_664B, 0xC24B_8B70, 0xC76C_51A3],
    [0xD192_E819, 0xD699_0624, 0xF40E_3585, 0x106A_A070],
    [0x19A4_C116, 0x1E37_6C08, 0x2748_774C, 0x34B0_BCB5],
    [0x391C_0CB3, 0x4ED8_AA4A, 0x5B9C_CA4F, 0x682E_6FF3],
    [0x748F_82EE, 0x78A5_636F, 0x84C8_7814, 0x8CC7_0208],
    [0x90BE_FFFA, 0xA450_6CEB, 0xBEF9_A3F7, 0xC671_78F2],
];

/// Takes as many blocks of each message into its state: of two messages at 3.3 GB/s, of one at
/// 1.8.
///
/// Never inlined: beside other code the compiler puts the rounds of one message behind those of
/// the other, which takes as long as one after the other.
#[allow(clippy::needless_range_loop)]
#[inline(never)]
#[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
pub(super) fn compress<const N: usize>(states: &mut [State; N], messages: [&[[u8; 64]]; N]) {
    let n_blocks = messages.map(<[_]>::len).into_iter().min().unwrap_or(0);
    // Indices throughout: iterators are functions of their own, which know nothing of the
    // instructions and so are not always inlined here.
    for block in 0..n_blocks {
        let mut words = [[states[0].abef; N]; 4];
        for group in 0..4 {
            for lane in 0..N {
                words[group][lane] = load(&messages[lane][block], 2 * group);
            }
        }
        let mut now = *states;
        macro_rules! four_rounds {
            ($($group:literal)*) => {$(
                for lane in 0..N {
                    if $group >= 4 {
                        let (next, third) = (words[($group + 1) % 4][lane], words[($group + 2) % 4][lane]);
                        let last = words[($group + 3) % 4][lane];
                        let mixed = _mm_sha256msg1_epu32(words[$group % 4][lane], next);
                        let mixed = _mm_add_epi32(mixed, _mm_alignr_epi8::<4>(last, third));
                        words[$group % 4][lane] = _mm_sha256msg2_epu32(mixed, last);
                    }
                }
                let [a, b, c, d] = CONSTANTS[$group];
                let constants = four([d, c, b, a]);
                for lane in 0..N {
                    let State { abef, cdgh } = now[lane];
                    let two = _mm_add_epi32(words[$group % 4][lane], constants);
                    let cdgh = _mm_sha256rnds2_epu32(cdgh, abef, two);
                    let two = _mm_shuffle_epi32::<0b1110>(two);
                    now[lane] = State { abef: _mm_sha256rnds2_epu32(abef, cdgh, two), cdgh };
                }
            )*};
        }
        four_rounds!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
        for lane in 0..N {
            states[lane].abef = _mm_add_epi32(states[lane].abef, now[lane].abef);
            states[lane].cdgh = _mm_add_epi32(states[lane].cdgh, now[lane].cdgh);
        }
    }
}

/// Four big-endian words, the first in the lowest lane; `at` counts halves of them.
#[inline]
#[target_feature(enable = "sse2,ssse3")]
fn load(block: &[u8; 64], at: usize) -> __m128i {
    let (halves, _) = block.as_chunks::<8>();
    let low = i64::from_le_bytes(halves[at]);
    let high = i64::from_le_bytes(halves[at + 1]);
    let swapped = _mm_set_epi8(12, 13, 14, 15, 8, 9, 10, 11, 4, 5, 6, 7, 0, 1, 2, 3);
    _mm_shuffle_epi8(_mm_set_epi64x(high, low), swapped)
}
