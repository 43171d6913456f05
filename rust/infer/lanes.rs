//! Sixteen floats side by side, the same bits on every instruction set.

/// Partial sums of a reduction.
pub const LANES: usize = 16;

/// Which instructions compute; all give the same bits.
///
/// Outside this crate a set is had from `detect` and `available` alone, so whoever has one other
/// than the scalar set runs on a processor with its instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstructionSet {
    /// What any processor has: the reference.
    Scalar,
    /// 256-bit vectors with fused multiply-add.
    #[non_exhaustive]
    Avx2,
    /// 512-bit vectors.
    #[non_exhaustive]
    Avx512,
}

impl InstructionSet {
    /// The widest one of this processor.
    pub fn detect() -> Self {
        let widest_first = [Self::Avx512, Self::Avx2];
        let found = widest_first.into_iter().find(|set| set.is_available());
        found.unwrap_or(Self::Scalar)
    }

    /// Those of this processor, the reference first.
    pub fn available() -> Vec<Self> {
        let mut sets = vec![Self::Scalar, Self::Avx2, Self::Avx512];
        sets.retain(|set| set.is_available());
        sets
    }

    /// Whether this processor has it; the answer is kept by the standard library.
    fn is_available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            match self {
                Self::Scalar => true,
                Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
                Self::Avx512 => {
                    is_x86_feature_detected!("avx512f")
                        && is_x86_feature_detected!("avx512dq")
                        && is_x86_feature_detected!("avx2")
                        && is_x86_feature_detected!("fma")
                }
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            self == Self::Scalar
        }
    }
}

/// Calls `$generic::<L>` compiled for the instruction set of the first argument.
macro_rules! dispatch {
    ($set:expr, $generic:ident ( $($name:ident : $type:ty),* $(,)? )) => {{
        #[cfg(target_arch = "x86_64")]
        {
            #[target_feature(enable = "avx2,fma")]
            fn with_avx2($($name: $type),*) {
                $generic::<$crate::infer::x86::Avx2>($($name),*)
            }
            #[target_feature(enable = "avx512f,avx512dq,avx2,fma")]
            fn with_avx512($($name: $type),*) {
                $generic::<$crate::infer::x86::Avx512>($($name),*)
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
    /// Asks for the cache line of `x`, which will be read soon.
    fn prefetch<T>(x: &T);
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
    fn prefetch<T>(_: &T) {}
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
