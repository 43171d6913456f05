//! What is computed on each vector alone: norms, turns of pairs, activations.

use super::InstructionSet;
use super::lanes::{LANES, Lanes, dispatch};
use crate::{Error, Result};

/// An elementwise function.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// x / (1 + e^-x).
    Silu,
    /// x times the normal distribution's function.
    Gelu,
    /// Hyperbolic tangent.
    Tanh,
}

/// Each row over its root mean square, times the gains.
pub fn rms_norm(
    set: InstructionSet,
    x: &[f32],
    gains: Option<&[f32]>,
    width: usize,
    epsilon: f32,
    out: &mut [f32],
) -> Result<()> {
    let fits = width > 0 && x.len().is_multiple_of(width) && out.len() == x.len();
    if !fits || gains.is_some_and(|gains| gains.len() != width) {
        return Err(Error::Argument(format!(
            "input, output and gains must be rows of {width} numbers, got {} and {}",
            x.len(),
            out.len()
        )));
    }
    dispatch!(
        set,
        normalise(x: &[f32], gains: Option<&[f32]>, width: usize, epsilon: f32, out: &mut [f32])
    );
    Ok(())
}

#[inline(always)]
fn normalise<L: Lanes>(
    x: &[f32],
    gains: Option<&[f32]>,
    width: usize,
    epsilon: f32,
    out: &mut [f32],
) {
    for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
        let mut sums = L::splat(0.0);
        let (chunks, rest) = x.as_chunks::<LANES>();
        for chunk in chunks {
            let x = L::load(chunk);
            sums = x.fma(x, sums);
        }
        if !rest.is_empty() {
            let x = L::load_part(rest);
            sums = x.fma(x, sums);
        }
        let inverse = 1.0 / (sums.sum() / width as f32 + epsilon).sqrt();
        match gains {
            None => {
                for (out, x) in out.iter_mut().zip(x) {
                    *out = x * inverse;
                }
            }
            Some(gains) => {
                for ((out, x), gain) in out.iter_mut().zip(x).zip(gains) {
                    *out = x * inverse * gain;
                }
            }
        }
    }
}

/// Each pair of each head turned by the angle of its token, whose cosines and sines are given.
///
/// `x` is (tokens, heads, 2 · pairs); the tables are (positions, pairs).
pub fn rotate(
    x: &[f32],
    positions: &[i64],
    (cos, sin): (&[f32], &[f32]),
    n_pairs: usize,
    out: &mut [f32],
) -> Result<()> {
    let n_tokens = positions.len();
    let length = 2 * n_pairs * n_tokens;
    if length == 0
        || !x.len().is_multiple_of(length)
        || out.len() != x.len()
        || cos.len() != sin.len()
    {
        return Err(Error::Argument(format!(
            "input and output must be rows of heads of {n_pairs} pairs for {n_tokens} tokens, got \
             {} and {} numbers",
            x.len(),
            out.len()
        )));
    }
    let n_positions = cos.len() / n_pairs;
    let is_known = |&at: &i64| usize::try_from(at).is_ok_and(|at| at < n_positions);
    if let Some(position) = positions.iter().find(|at| !is_known(at)) {
        return Err(Error::Argument(format!(
            "positions must lie in [0, {n_positions}), got {position}"
        )));
    }
    let width = x.len() / n_tokens;
    let tokens = x.chunks_exact(width).zip(out.chunks_exact_mut(width));
    for ((x, out), &position) in tokens.zip(positions) {
        let at = position.unsigned_abs() as usize * n_pairs;
        let (cos, sin) = (&cos[at..at + n_pairs], &sin[at..at + n_pairs]);
        for (x, out) in x
            .chunks_exact(2 * n_pairs)
            .zip(out.chunks_exact_mut(2 * n_pairs))
        {
            let pairs = x.as_chunks::<2>().0.iter().zip(out.as_chunks_mut::<2>().0);
            for (([a, b], out), (cos, sin)) in pairs.zip(cos.iter().zip(sin)) {
                *out = [a * cos - b * sin, a * sin + b * cos];
            }
        }
    }
    Ok(())
}

/// The function of each number of `x`, times the same of `gate` where there is one.
pub fn activate(
    set: InstructionSet,
    activation: Activation,
    x: &[f32],
    gate: Option<&[f32]>,
    out: &mut [f32],
) -> Result<()> {
    if out.len() != x.len() || gate.is_some_and(|gate| gate.len() != x.len()) {
        return Err(Error::Argument(format!(
            "input, gate and output must have {} numbers, got {}",
            x.len(),
            out.len()
        )));
    }
    match activation {
        Activation::Silu => dispatch!(set, silu(x: &[f32], out: &mut [f32])),
        Activation::Gelu => each(x, out, gelu),
        Activation::Tanh => each(x, out, |x| f64::from(x).tanh() as f32),
    }
    if let Some(gate) = gate {
        for (out, gate) in out.iter_mut().zip(gate) {
            *out *= gate;
        }
    }
    Ok(())
}

fn each(x: &[f32], out: &mut [f32], function: impl Fn(f32) -> f32) {
    for (out, x) in out.iter_mut().zip(x) {
        *out = function(*x);
    }
}

#[inline(always)]
fn silu<L: Lanes>(x: &[f32], out: &mut [f32]) {
    let (chunks, rest) = x.as_chunks::<LANES>();
    let (outs, out_rest) = out.as_chunks_mut::<LANES>();
    for (chunk, out) in chunks.iter().zip(outs) {
        silu_of(L::load(chunk)).store(out);
    }
    if !rest.is_empty() {
        silu_of(L::load_part(rest)).store_part(out_rest);
    }
}

// A function and not a closure, which would be compiled without the instruction set.
#[inline(always)]
fn silu_of<L: Lanes>(x: L) -> L {
    x.div(x.mul(L::splat(-1.0)).exp().add(L::splat(1.0)))
}

/// x Φ(x), to 2e-7 |x|.
///
/// Source of the polynomial: Abramowitz & Stegun 1964, 7.1.26.
fn gelu(x: f32) -> f32 {
    let x = f64::from(x);
    let z = x.abs() * std::f64::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * z);
    let terms = [
        1.061_405_429,
        -1.453_152_027,
        1.421_413_741,
        -0.284_496_736,
        0.254_829_592,
    ];
    let polynomial = terms.iter().fold(0.0, |sum, term| (sum + term) * t);
    let tail = 0.5 * polynomial * (-z * z).exp();
    (x * if x < 0.0 { tail } else { 1.0 - tail }) as f32
}
