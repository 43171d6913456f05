//! Sixteen floats in the registers of x86-64.

#[allow(clippy::wildcard_imports)] // Two dozen intrinsics, each named where it is used.
use std::arch::x86_64::*;

use super::lanes::{LANES, Lanes};

/// Two registers of eight.
#[derive(Clone, Copy)]
pub struct Avx2(__m256, __m256);

/// One register of sixteen.
#[derive(Clone, Copy)]
pub struct Avx512(__m512);

// SAFETY of both: values are made and used within functions compiled for the set, which run
// only where it was detected; loads and stores go through references to as many bytes, those
// under a mask touch the lanes below the slice's length alone.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Lanes for Avx2 {
    #[inline(always)]
    fn splat(x: f32) -> Self {
        unsafe { Self(_mm256_set1_ps(x), _mm256_set1_ps(x)) }
    }
    #[inline(always)]
    fn load(x: &[f32; LANES]) -> Self {
        unsafe {
            Self(
                _mm256_loadu_ps(x.as_ptr()),
                _mm256_loadu_ps(x.as_ptr().add(8)),
            )
        }
    }
    #[inline(always)]
    fn load_i8(x: &[i8; LANES]) -> Self {
        unsafe {
            let bytes = _mm_loadu_si128(x.as_ptr().cast());
            let high = _mm_unpackhi_epi64(bytes, bytes);
            Self(
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(high)),
            )
        }
    }
    #[inline(always)]
    fn store(self, out: &mut [f32; LANES]) {
        unsafe {
            _mm256_storeu_ps(out.as_mut_ptr(), self.0);
            _mm256_storeu_ps(out.as_mut_ptr().add(8), self.1);
        }
    }
    #[inline(always)]
    fn prefetch<T>(x: &T) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(x).cast()) }
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        unsafe {
            Self(
                _mm256_add_ps(self.0, other.0),
                _mm256_add_ps(self.1, other.1),
            )
        }
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        unsafe {
            Self(
                _mm256_mul_ps(self.0, other.0),
                _mm256_mul_ps(self.1, other.1),
            )
        }
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        unsafe {
            Self(
                _mm256_div_ps(self.0, other.0),
                _mm256_div_ps(self.1, other.1),
            )
        }
    }
    #[inline(always)]
    fn fma(self, other: Self, rest: Self) -> Self {
        unsafe {
            Self(
                _mm256_fmadd_ps(self.0, other.0, rest.0),
                _mm256_fmadd_ps(self.1, other.1, rest.1),
            )
        }
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        unsafe {
            Self(
                _mm256_max_ps(self.0, other.0),
                _mm256_max_ps(self.1, other.1),
            )
        }
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        unsafe {
            Self(
                _mm256_min_ps(self.0, other.0),
                _mm256_min_ps(self.1, other.1),
            )
        }
    }
    #[inline(always)]
    fn scale(self, power: Self) -> Self {
        #[inline(always)]
        fn half(x: __m256, power: __m256) -> __m256 {
            unsafe {
                let shifted = _mm256_slli_epi32::<23>(_mm256_castps_si256(power));
                _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), shifted))
            }
        }
        Self(half(self.0, power.0), half(self.1, power.1))
    }
    #[inline(always)]
    fn sum4([a, b, c, d]: [Self; 4]) -> [f32; 4] {
        // Written out: a map over an array is a call, here.
        unsafe {
            sum4_of_halves(
                _mm256_add_ps(a.0, a.1),
                _mm256_add_ps(b.0, b.1),
                _mm256_add_ps(c.0, c.1),
                _mm256_add_ps(d.0, d.1),
            )
        }
    }
}

#[allow(clippy::undocumented_unsafe_blocks)]
impl Lanes for Avx512 {
    #[inline(always)]
    fn splat(x: f32) -> Self {
        unsafe { Self(_mm512_set1_ps(x)) }
    }
    #[inline(always)]
    fn load(x: &[f32; LANES]) -> Self {
        unsafe { Self(_mm512_loadu_ps(x.as_ptr())) }
    }
    #[inline(always)]
    fn load_part(x: &[f32]) -> Self {
        assert!(x.len() <= LANES);
        let mask = (0xffff_u32 >> (LANES - x.len())) as u16;
        unsafe { Self(_mm512_maskz_loadu_ps(mask, x.as_ptr())) }
    }
    #[inline(always)]
    fn store_part(self, out: &mut [f32]) {
        assert!(out.len() <= LANES);
        let mask = (0xffff_u32 >> (LANES - out.len())) as u16;
        unsafe { _mm512_mask_storeu_ps(out.as_mut_ptr(), mask, self.0) }
    }
    #[inline(always)]
    fn load_i8(x: &[i8; LANES]) -> Self {
        unsafe {
            let bytes = _mm_loadu_si128(x.as_ptr().cast());
            Self(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)))
        }
    }
    #[inline(always)]
    fn store(self, out: &mut [f32; LANES]) {
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), self.0) }
    }
    #[inline(always)]
    fn prefetch<T>(x: &T) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(x).cast()) }
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        unsafe { Self(_mm512_add_ps(self.0, other.0)) }
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        unsafe { Self(_mm512_mul_ps(self.0, other.0)) }
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        unsafe { Self(_mm512_div_ps(self.0, other.0)) }
    }
    #[inline(always)]
    fn fma(self, other: Self, rest: Self) -> Self {
        unsafe { Self(_mm512_fmadd_ps(self.0, other.0, rest.0)) }
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        unsafe { Self(_mm512_max_ps(self.0, other.0)) }
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        unsafe { Self(_mm512_min_ps(self.0, other.0)) }
    }
    #[inline(always)]
    fn scale(self, power: Self) -> Self {
        unsafe {
            let shifted = _mm512_slli_epi32::<23>(_mm512_castps_si512(power.0));
            Self(_mm512_castsi512_ps(_mm512_add_epi32(
                _mm512_castps_si512(self.0),
                shifted,
            )))
        }
    }
    #[inline(always)]
    fn sum4([a, b, c, d]: [Self; 4]) -> [f32; 4] {
        #[inline(always)]
        fn halve(x: __m512) -> __m256 {
            unsafe { _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x)) }
        }
        unsafe { sum4_of_halves(halve(a.0), halve(b.0), halve(c.0), halve(d.0)) }
    }
    /// Two vectors become one at each level of the tree: half the instructions of four `sum4`.
    #[inline(always)]
    fn sum16([a, b, c, d]: [[Self; 4]; 4]) -> [[f32; 4]; 4] {
        let mut out = [[0.0; 4]; 4];
        unsafe {
            let (ac0, ac1) = (halves(a[0].0, c[0].0), halves(a[1].0, c[1].0));
            let (ac2, ac3) = (halves(a[2].0, c[2].0), halves(a[3].0, c[3].0));
            let (bd0, bd1) = (halves(b[0].0, d[0].0), halves(b[1].0, d[1].0));
            let (bd2, bd3) = (halves(b[2].0, d[2].0), halves(b[3].0, d[3].0));
            let (all0, all1) = (quarters(ac0, bd0), quarters(ac1, bd1));
            let (all2, all3) = (quarters(ac2, bd2), quarters(ac3, bd3));
            let sums = neighbours(neighbours(all0, all1), neighbours(all2, all3));
            // The rows lie as a, c, b, d.
            let sums = _mm512_shuffle_f32x4::<0b11_01_10_00>(sums, sums);
            _mm512_storeu_ps(out.as_mut_ptr().cast(), sums);
        }
        out
    }
}

/// Lanes i and i + 8 added: eight sums of the one vector, then eight of the other.
#[target_feature(enable = "avx512f,avx512dq")]
#[inline]
fn halves(a: __m512, b: __m512) -> __m512 {
    let low = _mm512_shuffle_f32x4::<0b01_00_01_00>(a, b);
    let high = _mm512_shuffle_f32x4::<0b11_10_11_10>(a, b);
    _mm512_add_ps(low, high)
}

/// Lanes i and i + 4 of each half added: four sums from each half of the one, then of the other.
#[target_feature(enable = "avx512f,avx512dq")]
#[inline]
fn quarters(a: __m512, b: __m512) -> __m512 {
    let low = _mm512_shuffle_f32x4::<0b10_00_10_00>(a, b);
    let high = _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b);
    _mm512_add_ps(low, high)
}

/// Neighbours of each four lanes added: two sums of the one vector, then two of the other.
#[target_feature(enable = "avx512f,avx512dq")]
#[inline]
fn neighbours(a: __m512, b: __m512) -> __m512 {
    let even = _mm512_shuffle_ps::<0b10_00_10_00>(a, b);
    let odd = _mm512_shuffle_ps::<0b11_01_11_01>(a, b);
    _mm512_add_ps(even, odd)
}

/// The rest of the tree, from eight lanes on.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn sum4_of_halves(a: __m256, b: __m256, c: __m256, d: __m256) -> [f32; 4] {
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    fn halve(x: __m256) -> __m128 {
        _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x))
    }
    let (a, b, c, d) = (halve(a), halve(b), halve(c), halve(d));
    let sums = _mm_hadd_ps(_mm_hadd_ps(a, b), _mm_hadd_ps(c, d));
    let mut out = [0.0; 4];
    // SAFETY: the reference is to four floats, and the store needs no alignment.
    unsafe { _mm_storeu_ps(out.as_mut_ptr(), sums) };
    out
}
