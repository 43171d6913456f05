//! Sixteen floats side by side, the same bits on every instruction set.

#[cfg(target_arch = "x86_64")]
#[allow(clippy::wildcard_imports)] // Two dozen intrinsics, each named where it is used.
use std::arch::x86_64::*;

/// Partial sums of a reduction.
pub const LANES: usize = 16;

/// Which instructions compute; all give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstructionSet {
    /// What any processor has: the reference.
    Scalar,
    /// 256-bit vectors with fused multiply-add.
    Avx2,
    /// 512-bit vectors.
    Avx512,
}

impl InstructionSet {
    /// The widest one of this processor.
    pub fn detect() -> Self {
        *Self::available().last().expect("the list is never empty")
    }

    /// Those of this processor, the reference first.
    pub fn available() -> Vec<Self> {
        #[allow(unused_mut)]
        let mut sets = vec![Self::Scalar];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                sets.push(Self::Avx2);
            }
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("fma")
            {
                sets.push(Self::Avx512);
            }
        }
        sets
    }
}

/// Calls `$generic::<L>` compiled for the instruction set of the first argument.
macro_rules! dispatch {
    ($set:expr, $generic:ident ( $($name:ident : $type:ty),* $(,)? )) => {{
        #[cfg(target_arch = "x86_64")]
        {
            #[target_feature(enable = "avx2,fma")]
            fn with_avx2($($name: $type),*) {
                $generic::<$crate::infer::lanes::Avx2>($($name),*)
            }
            #[target_feature(enable = "avx512f,avx512dq,avx2,fma")]
            fn with_avx512($($name: $type),*) {
                $generic::<$crate::infer::lanes::Avx512>($($name),*)
            }
            match $set {
                $crate::infer::InstructionSet::Scalar => {
                    $generic::<$crate::infer::lanes::Scalar>($($name),*)
                }
                // SAFETY: a set other than the scalar one comes from `detect` or `available`.
                $crate::infer::InstructionSet::Avx2 => unsafe { with_avx2($($name),*) },
                // SAFETY: as above.
                $crate::infer::InstructionSet::Avx512 => unsafe { with_avx512($($name),*) },
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            let _ = $set;
            $generic::<$crate::infer::lanes::Scalar>($($name),*)
        }
    }};
}
pub(super) use dispatch;

/// Sixteen floats. Every operation is IEEE's on each lane, and `sum` is one tree.
pub trait Lanes: Copy {
    fn splat(x: f32) -> Self;
    fn load(x: &[f32; LANES]) -> Self;
    fn load_i8(x: &[i8; LANES]) -> Self;
    fn store(self, out: &mut [f32; LANES]);
    fn add(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    fn div(self, other: Self) -> Self;
    /// self · other + rest, rounded once.
    fn fma(self, other: Self, rest: Self) -> Self;
    /// self > other ? self : other, so that what is no number in `other` stays.
    fn max(self, other: Self) -> Self;
    /// self < other ? self : other.
    fn min(self, other: Self) -> Self;
    /// Multiplied by 2 to the power in the lowest bits of `power`, added to the exponent.
    fn scale(self, power: Self) -> Self;
    /// Sums of four: halves are added until four lanes are left, then neighbours.
    fn sum4(x: [Self; 4]) -> [f32; 4];

    /// Sums of sixteen, by the same tree.
    #[inline(always)]
    fn sum16([a, b, c, d]: [[Self; 4]; 4]) -> [[f32; 4]; 4] {
        [Self::sum4(a), Self::sum4(b), Self::sum4(c), Self::sum4(d)]
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        let zero = Self::splat(0.0);
        Self::sum4([self, zero, zero, zero])[0]
    }

    /// The lanes of a shorter slice, zeros after it.
    #[inline(always)]
    fn load_part(x: &[f32]) -> Self {
        let mut padded = [0.0; LANES];
        padded[..x.len()].copy_from_slice(x);
        Self::load(&padded)
    }

    /// Stores as many lanes as `out` has.
    #[inline(always)]
    fn store_part(self, out: &mut [f32]) {
        let mut padded = [0.0; LANES];
        self.store(&mut padded);
        out.copy_from_slice(&padded[..out.len()]);
    }

    /// e to the power of each lane, to two units in the last place; from 2^-126 to 2^127.
    ///
    /// Source of the polynomial: Moshier's Cephes library, expf.
    #[inline(always)]
    fn exp(self) -> Self {
        // Adding 1.5 · 2^23 rounds to an integer, which is then in the lowest bits.
        let magic = Self::splat(12_582_912.0);
        let x = Self::splat(-87.336_54).max(self);
        let x = Self::splat(88.0).min(x);
        let power = x.fma(Self::splat(std::f32::consts::LOG2_E), magic);
        let n = power.add(Self::splat(-12_582_912.0));
        let r = n.fma(Self::splat(-0.693_359_4), x);
        let r = n.fma(Self::splat(2.121_944_4e-4), r);
        let p = Self::splat(1.987_569_1e-4);
        let p = p.fma(r, Self::splat(1.398_199_9e-3));
        let p = p.fma(r, Self::splat(8.333_452e-3));
        let p = p.fma(r, Self::splat(4.166_579_6e-2));
        let p = p.fma(r, Self::splat(0.166_666_65));
        let p = p.fma(r, Self::splat(0.500_000_1));
        let p = p.fma(r.mul(r), r).add(Self::splat(1.0));
        // The sum is what it was, unless x is no number: then its bits may have become one's.
        x.fma(Self::splat(0.0), p.scale(power))
    }
}

/// The reference.
#[derive(Clone, Copy)]
pub struct Scalar([f32; LANES]);

impl Scalar {
    #[inline(always)]
    fn map(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        let mut out = self.0;
        for (x, y) in out.iter_mut().zip(other.0) {
            *x = f(*x, y);
        }
        Self(out)
    }
}

impl Lanes for Scalar {
    #[inline(always)]
    fn splat(x: f32) -> Self {
        Self([x; LANES])
    }
    #[inline(always)]
    fn load(x: &[f32; LANES]) -> Self {
        Self(*x)
    }
    #[inline(always)]
    fn load_i8(x: &[i8; LANES]) -> Self {
        Self(x.map(f32::from))
    }
    #[inline(always)]
    fn store(self, out: &mut [f32; LANES]) {
        *out = self.0;
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.map(other, |x, y| x + y)
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.map(other, |x, y| x * y)
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        self.map(other, |x, y| x / y)
    }
    #[inline(always)]
    fn fma(self, other: Self, rest: Self) -> Self {
        let mut out = rest.0;
        for (z, (x, y)) in out.iter_mut().zip(self.0.into_iter().zip(other.0)) {
            *z = x.mul_add(y, *z);
        }
        Self(out)
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        self.map(other, |x, y| if x > y { x } else { y })
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        self.map(other, |x, y| if x < y { x } else { y })
    }
    #[inline(always)]
    fn scale(self, power: Self) -> Self {
        self.map(power, |x, p| {
            f32::from_bits(x.to_bits().wrapping_add(p.to_bits() << 23))
        })
    }
    #[inline(always)]
    fn sum4(x: [Self; 4]) -> [f32; 4] {
        x.map(|Self(x)| {
            let mut x = x;
            for half in [8, 4] {
                for i in 0..half {
                    x[i] += x[i + half];
                }
            }
            (x[0] + x[1]) + (x[2] + x[3])
        })
    }
}

/// Two registers of eight.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub struct Avx2(__m256, __m256);

/// One register of sixteen.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub struct Avx512(__m512);

// SAFETY of both: values are made and used within functions compiled for the set, which run
// only where it was detected; loads and stores go through references to as many bytes.
#[cfg(target_arch = "x86_64")]
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

#[cfg(target_arch = "x86_64")]
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
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq")]
#[inline]
fn halves(a: __m512, b: __m512) -> __m512 {
    let low = _mm512_shuffle_f32x4::<0b01_00_01_00>(a, b);
    let high = _mm512_shuffle_f32x4::<0b11_10_11_10>(a, b);
    _mm512_add_ps(low, high)
}

/// Lanes i and i + 4 of each half added: four sums from each half of the one, then of the other.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq")]
#[inline]
fn quarters(a: __m512, b: __m512) -> __m512 {
    let low = _mm512_shuffle_f32x4::<0b10_00_10_00>(a, b);
    let high = _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b);
    _mm512_add_ps(low, high)
}

/// Neighbours of each four lanes added: two sums of the one vector, then two of the other.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq")]
#[inline]
fn neighbours(a: __m512, b: __m512) -> __m512 {
    let even = _mm512_shuffle_ps::<0b10_00_10_00>(a, b);
    let odd = _mm512_shuffle_ps::<0b11_01_11_01>(a, b);
    _mm512_add_ps(even, odd)
}

/// The rest of the tree, from eight lanes on.
#[cfg(target_arch = "x86_64")]
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
