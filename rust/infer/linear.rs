//! Products with a weight matrix, rows of it against rows of the input.

use std::ops::Range;

use super::lanes::{LANES, Lanes, dispatch};
use super::scratch::Scratch;
use super::{InstructionSet, threads};
use crate::{Error, Result};

/// Rows of the input that share the loads of a weight; its cache lines are read once for them.
const ROWS: usize = 4;
/// Outputs computed side by side, so that one sum does not wait for another.
const OUTPUTS: usize = 4;
/// Rows of the input for which all outputs are computed before the next: what a cache holds.
const ROW_BLOCK: usize = 64;
/// Bytes of a cache line.
const LINE: usize = 64;

/// A matrix of shape (outputs, inputs), row after row.
#[derive(Clone, Copy)]
pub enum Weights<'a> {
    /// The numbers themselves.
    Float(&'a [f32]),
    /// Integers of one byte, and what each output's sum is multiplied by.
    Int8(&'a [i8], &'a [f32]),
}

impl Weights<'_> {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Float(weights) => weights.len(),
            Self::Int8(weights, _) => weights.len(),
        }
    }
}

/// y = x Wᵀ + bias for rows of `n_inputs`, into `out` of as many rows.
pub fn linear(
    set: InstructionSet,
    x: &[f32],
    weights: Weights<'_>,
    bias: Option<&[f32]>,
    n_inputs: usize,
    out: &mut [f32],
    n_threads: usize,
) -> Result<()> {
    if n_inputs == 0 || !x.len().is_multiple_of(n_inputs) || !weights.len().is_multiple_of(n_inputs)
    {
        return Err(Error::Argument(format!(
            "input and weights must be rows of {n_inputs} numbers, got {} and {}",
            x.len(),
            weights.len()
        )));
    }
    let (n_rows, n_outputs) = (x.len() / n_inputs, weights.len() / n_inputs);
    let has_scales = match weights {
        Weights::Float(_) => true,
        Weights::Int8(_, scales) => scales.len() == n_outputs,
    };
    let fits = has_scales && bias.is_none_or(|bias| bias.len() == n_outputs);
    if !fits || out.len() != n_rows * n_outputs {
        return Err(Error::Argument(format!(
            "scales and bias must have {n_outputs} numbers and the output {n_rows} rows of as many"
        )));
    }
    let n_parts = threads::n_parts(n_threads, n_rows * n_outputs * n_inputs);
    let out = Output {
        start: out.as_mut_ptr(),
        n_rows,
        n_outputs,
    };
    threads::run(n_parts, &|part| {
        let outputs = threads::bounds(n_outputs, OUTPUTS, part, n_parts);
        let product = &Product {
            x,
            n_inputs,
            bias,
            outputs,
            out: &out,
        };
        match weights {
            Weights::Float(weights) => {
                dispatch!(set, float_product(product: &Product<'_>, weights: &[f32]));
            }
            Weights::Int8(weights, scales) => dispatch!(
                set,
                int8_product(product: &Product<'_>, weights: &[i8], scales: &[f32])
            ),
        }
    });
    Ok(())
}

/// Where several threads write, each its own columns.
struct Output {
    start: *mut f32,
    n_rows: usize,
    n_outputs: usize,
}

// SAFETY: each number is written by the one part whose outputs it belongs to, and read by nobody
// before `threads::run` has waited for all parts.
unsafe impl Sync for Output {}

impl Output {
    #[inline(always)]
    fn set<const C: usize>(&self, row: usize, output: usize, values: &[f32; C]) {
        assert!(row < self.n_rows && output + C <= self.n_outputs);
        // SAFETY: within the slice that `linear` borrows mutably, by the line above.
        unsafe {
            let at = self.start.add(row * self.n_outputs + output);
            at.cast::<[f32; C]>().write_unaligned(*values);
        }
    }
}

/// The part of a product that one thread computes.
struct Product<'a> {
    x: &'a [f32],
    n_inputs: usize,
    bias: Option<&'a [f32]>,
    outputs: Range<usize>,
    out: &'a Output,
}

/// A number that weights are stored as.
pub(super) trait Element: Copy + Default {
    fn load<L: Lanes>(x: &[Self; LANES]) -> L;

    /// Zeros after what a shorter slice has.
    #[inline(always)]
    fn load_part<L: Lanes>(x: &[Self]) -> L {
        let mut padded = [Self::default(); LANES];
        padded[..x.len()].copy_from_slice(x);
        Self::load(&padded)
    }
}

impl Element for f32 {
    #[inline(always)]
    fn load<L: Lanes>(x: &[Self; LANES]) -> L {
        L::load(x)
    }
    #[inline(always)]
    fn load_part<L: Lanes>(x: &[Self]) -> L {
        L::load_part(x)
    }
}

impl Element for i8 {
    #[inline(always)]
    fn load<L: Lanes>(x: &[Self; LANES]) -> L {
        L::load_i8(x)
    }
}

#[inline(always)]
fn float_product<L: Lanes>(product: &Product<'_>, weights: &[f32]) {
    multiply::<L, f32>(product, weights, None);
}

#[inline(always)]
fn int8_product<L: Lanes>(product: &Product<'_>, weights: &[i8], scales: &[f32]) {
    multiply::<L, i8>(product, weights, Some(scales));
}

#[inline(always)]
fn multiply<L: Lanes, W: Element>(product: &Product<'_>, weights: &[W], scales: Option<&[f32]>) {
    let n = product.n_inputs;
    let (n_rows, outputs) = (product.x.len() / n, &product.outputs);
    // Integers that many rows meet become floats once, which changes no product.
    let mut unpacked = (scales.is_some() && n_rows >= 2 * ROWS).then(|| Scratch::new(OUTPUTS * n));
    let mut first = 0;
    while first < n_rows {
        let rows = first..(first + ROW_BLOCK).min(n_rows);
        let mut output = outputs.start;
        while output + OUTPUTS <= outputs.end {
            let after = (output + OUTPUTS) * n;
            let (w, ahead) = (
                &weights[output * n..after],
                &weights[after..outputs.end * n],
            );
            if let Some(room) = unpacked.as_mut() {
                unpack::<L, W>(w, ahead, room);
                blocks::<L, f32>(product, room, &[], scales, rows.clone(), output);
            } else {
                blocks::<L, W>(product, w, ahead, scales, rows.clone(), output);
            }
            output += OUTPUTS;
        }
        for output in output..outputs.end {
            let w = &weights[output * n..(output + 1) * n];
            for row in rows.clone() {
                block::<L, W, 1, 1>(product, w, &[], scales, row, output);
            }
        }
        first = rows.end;
    }
}

/// Floats of integers, while the cache is told of those that will be read after them.
#[inline(always)]
fn unpack<L: Lanes, W: Element>(w: &[W], ahead: &[W], out: &mut [f32]) {
    for line in ahead[..w.len().min(ahead.len())].chunks(LINE / size_of::<W>()) {
        L::prefetch(&line[0]);
    }
    for (w, out) in w.chunks(LANES).zip(out.chunks_mut(LANES)) {
        if let (Ok(w), Ok(out)) = (w.try_into(), <&mut [f32; LANES]>::try_from(&mut *out)) {
            W::load::<L>(w).store(out);
        } else {
            W::load_part::<L>(w).store_part(out);
        }
    }
}

/// The outputs from `output` on, whose weights are `w`, of a range of rows.
#[inline(always)]
fn blocks<L: Lanes, W: Element>(
    product: &Product<'_>,
    w: &[W],
    ahead: &[W],
    scales: Option<&[f32]>,
    rows: Range<usize>,
    output: usize,
) {
    // The first rows wait for these weights, and ask for those that come next.
    let (mut row, mut ahead) = (rows.start, ahead);
    while row < rows.end {
        let n_left = rows.end - row;
        match n_left {
            ROWS.. => block::<L, W, ROWS, OUTPUTS>(product, w, ahead, scales, row, output),
            3 => block::<L, W, 3, OUTPUTS>(product, w, ahead, scales, row, output),
            2 => block::<L, W, 2, OUTPUTS>(product, w, ahead, scales, row, output),
            _ => block::<L, W, 1, OUTPUTS>(product, w, ahead, scales, row, output),
        }
        row += ROWS.min(n_left);
        ahead = &[];
    }
}

/// The outputs `output..output + C`, whose weights are `weights`, of the rows `row..row + R`.
#[inline(always)]
fn block<L: Lanes, W: Element, const R: usize, const C: usize>(
    product: &Product<'_>,
    weights: &[W],
    ahead: &[W],
    scales: Option<&[f32]>,
    row: usize,
    output: usize,
) {
    let n = product.n_inputs;
    let mut x: [&[f32]; R] = [&[]; R];
    for (r, x) in x.iter_mut().enumerate() {
        *x = &product.x[(row + r) * n..(row + r + 1) * n];
    }
    let mut w: [&[W]; C] = [&[]; C];
    for (c, w) in w.iter_mut().enumerate() {
        *w = &weights[c * n..(c + 1) * n];
    }
    let mut sums = dots_ahead::<L, W, R, C>(x, w, ahead);
    for (r, sums) in sums.iter_mut().enumerate() {
        if let Some(scales) = scales {
            for (sum, scale) in sums.iter_mut().zip(&scales[output..output + C]) {
                *sum *= scale;
            }
        }
        if let Some(bias) = product.bias {
            for (sum, bias) in sums.iter_mut().zip(&bias[output..output + C]) {
                *sum += bias;
            }
        }
        product.out.set(row + r, output, sums);
    }
}

/// Every row of `x` times every row of `w`, all of one length.
///
/// One vector of partial sums for each pair, from the front to the back: what else is
/// computed beside it changes nothing.
#[inline(always)]
pub(super) fn dots<L: Lanes, W: Element, const R: usize, const C: usize>(
    x: [&[f32]; R],
    w: [&[W]; C],
) -> [[f32; C]; R] {
    dots_ahead::<L, W, R, C>(x, w, &[])
}

/// The same, while the cache is told of numbers that will be read after these.
#[inline(always)]
#[allow(clippy::needless_range_loop)]
fn dots_ahead<L: Lanes, W: Element, const R: usize, const C: usize>(
    x: [&[f32]; R],
    w: [&[W]; C],
    ahead: &[W],
) -> [[f32; C]; R] {
    let n = x[0].len();
    let n_whole = n / LANES;
    // Loops over indices with constant bounds: those over arrays keep the sums in memory.
    let mut x_chunks: [&[[f32; LANES]]; R] = [&[]; R];
    let mut w_chunks: [&[[W; LANES]]; C] = [&[]; C];
    for r in 0..R {
        x_chunks[r] = &x[r].as_chunks().0[..n_whole];
    }
    for c in 0..C {
        w_chunks[c] = &w[c].as_chunks().0[..n_whole];
    }
    let mut sums = [[L::splat(0.0); C]; R];
    let per_line = LINE / size_of::<W>();
    // As much of what comes as is read here, evenly.
    let mut parts = ahead.chunks_exact(C * LANES);
    for i in 0..n_whole {
        if let Some(part) = parts.next() {
            for line in part.chunks(per_line) {
                L::prefetch(&line[0]);
            }
        }
        let mut loaded = [L::splat(0.0); C];
        for c in 0..C {
            loaded[c] = W::load(&w_chunks[c][i]);
        }
        for r in 0..R {
            let x = L::load(&x_chunks[r][i]);
            for c in 0..C {
                sums[r][c] = x.fma(loaded[c], sums[r][c]);
            }
        }
    }
    if !n.is_multiple_of(LANES) {
        let at = n_whole * LANES;
        let mut loaded = [L::splat(0.0); C];
        for c in 0..C {
            loaded[c] = W::load_part(&w[c][at..]);
        }
        for r in 0..R {
            let x = L::load_part(&x[r][at..]);
            for c in 0..C {
                sums[r][c] = x.fma(loaded[c], sums[r][c]);
            }
        }
    }
    let mut out = [[0.0; C]; R];
    if R == 1 && C == 16 {
        let mut sixteen = [[L::splat(0.0); 4]; 4];
        for c in 0..C {
            sixteen[c / 4][c % 4] = sums[0][c];
        }
        for (four, out) in L::sum16(sixteen).iter().zip(out[0].chunks_exact_mut(4)) {
            out.copy_from_slice(four);
        }
        return out;
    }
    if R == 4 && C == 4 {
        let mut sixteen = [[L::splat(0.0); 4]; 4];
        for r in 0..R {
            for c in 0..C {
                sixteen[r][c] = sums[r][c];
            }
        }
        let sixteen = L::sum16(sixteen);
        for r in 0..R {
            out[r].copy_from_slice(&sixteen[r][..C]);
        }
        return out;
    }
    for r in 0..R {
        let mut four = [L::splat(0.0); 4];
        four[..C].copy_from_slice(&sums[r]);
        let four = L::sum4(four);
        out[r].copy_from_slice(&four[..C]);
    }
    out
}

/// Each row as integers of -127 to 127, and the factor that gives it back.
///
/// Symmetric: the largest number of a row becomes 127, halves go to the even integer. The factor
/// of a row that is not finite is not finite either, so that nothing computed with it is.
pub fn quantize_rows(weights: &[f32], n_inputs: usize) -> (Vec<i8>, Vec<f32>) {
    let mut integers = Vec::with_capacity(weights.len());
    let mut scales = Vec::with_capacity(weights.len() / n_inputs.max(1));
    for row in weights.chunks_exact(n_inputs.max(1)) {
        let largest = row.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
        // `max` passes over what is no number.
        let is_known = row.iter().all(|x| !x.is_nan());
        let scale = if is_known { largest / 127.0 } else { f32::NAN };
        let factor = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        integers.extend(row.iter().map(|x| (x * factor).round_ties_even() as i8));
        scales.push(scale);
    }
    (integers, scales)
}
