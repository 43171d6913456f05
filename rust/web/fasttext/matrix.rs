//! Rows of weights, plain or as codes of a product quantiser.
//!
//! Sums and products go number by number in fastText's order, and nothing is fused, so that
//! results are the same to the bit.
//! Source: Jégou et al. 2011, product quantisation; Joulin et al. 2016 (arXiv:1612.03651).

use crate::memory::prefetch;

/// Centroids of each part of a row: as many as a byte can name.
pub const N_CENTROIDS: usize = 256;
/// Up to this size, rows are written out when a model is loaded, and so faster to add.
const MAX_WRITTEN_OUT: usize = 256 << 20;
/// Columns whose sums stay in registers while rows are added.
const BLOCK: usize = 16;

/// A matrix of f32, row by row.
pub struct Matrix {
    dim: usize,
    n_rows: usize,
    rows: Rows,
    /// What a quantised row's products are multiplied by at last.
    norms: Option<Vec<f32>>,
}

enum Rows {
    Plain(Aligned),
    Codes {
        codes: Vec<u8>,
        quantizer: Quantizer,
    },
}

impl Matrix {
    /// Of weights, `dim` in each row.
    pub fn dense(weights: Vec<f32>, dim: usize) -> Self {
        Self {
            dim,
            n_rows: weights.len() / dim,
            rows: Rows::Plain(Aligned::new(weights)),
            norms: None,
        }
    }

    /// Of codes: for each row one for each part.
    pub fn quantized(codes: Vec<u8>, quantizer: Quantizer, norms: Option<Vec<f32>>) -> Self {
        Self {
            dim: quantizer.dim,
            n_rows: codes.len() / quantizer.n_parts(),
            rows: Rows::Codes { codes, quantizer },
            norms,
        }
    }

    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// The same sums, faster: rows as numbers, times their norms, unless they take much memory.
    pub fn written_out(self) -> Self {
        let Rows::Codes { .. } = self.rows else {
            return self;
        };
        if self.n_rows.saturating_mul(self.dim) > MAX_WRITTEN_OUT / 4 {
            return self;
        }
        let mut weights = vec![0.0; self.n_rows * self.dim];
        for (row, out) in weights.chunks_exact_mut(self.dim).enumerate() {
            // Zero plus a number is that number, but for the sign of zero.
            self.add_row(row, out);
        }
        Self::dense(weights, self.dim)
    }

    /// Has rows brought near that will be added soon.
    pub fn prefetch_rows(&self, rows: &[u32]) {
        if let Rows::Plain(weights) = &self.rows {
            for &row in rows {
                prefetch(&weights.as_slice()[row as usize * self.dim]);
            }
        }
    }

    /// Adds rows to a sum, one after the other.
    pub fn add_rows(&self, rows: &[u32], sum: &mut [f32]) {
        let Rows::Plain(weights) = &self.rows else {
            for &row in rows {
                self.add_row(row as usize, sum);
            }
            return;
        };
        let weights = weights.as_slice();
        let n_blocks = self.dim / BLOCK;
        for (number, block) in sum.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
            let mut own = *block;
            for &row in rows {
                let start = row as usize * self.dim + number * BLOCK;
                let numbers = &weights[start..start + BLOCK];
                for (sum, number) in own.iter_mut().zip(numbers) {
                    *sum += number;
                }
            }
            *block = own;
        }
        let rest = n_blocks * BLOCK;
        if rest < self.dim {
            for &row in rows {
                let row = &weights[row as usize * self.dim..][rest..self.dim];
                for (sum, number) in sum[rest..].iter_mut().zip(row) {
                    *sum += number;
                }
            }
        }
    }

    fn add_row(&self, row: usize, sum: &mut [f32]) {
        match &self.rows {
            Rows::Plain(_) => self.add_rows(&[row as u32], sum),
            Rows::Codes { codes, quantizer } => {
                let norm = self.norms.as_ref().map_or(1.0, |norms| norms[row]);
                quantizer.for_each(codes, row, |column, numbers| {
                    for (sum, number) in sum[column..].iter_mut().zip(numbers) {
                        *sum += norm * number;
                    }
                });
            }
        }
    }

    /// The product of a row with a vector.
    pub fn dot(&self, row: usize, vector: &[f32]) -> f32 {
        let mut sum = 0.0;
        match &self.rows {
            Rows::Plain(weights) => {
                let weights = &weights.as_slice()[row * self.dim..][..self.dim];
                for (a, b) in weights.iter().zip(vector) {
                    sum += a * b;
                }
                sum
            }
            Rows::Codes { codes, quantizer } => {
                quantizer.for_each(codes, row, |column, numbers| {
                    for (a, b) in vector[column..].iter().zip(numbers) {
                        sum += a * b;
                    }
                });
                sum * self.norms.as_ref().map_or(1.0, |norms| norms[row])
            }
        }
    }
}

/// For each part of a row, the numbers that its codes stand for.
pub struct Quantizer {
    dim: usize,
    part: usize,
    centroids: Vec<f32>,
}

impl Quantizer {
    /// Of `N_CENTROIDS` times `dim` numbers, for parts of `part` columns, the last perhaps fewer.
    pub fn new(dim: usize, part: usize, centroids: Vec<f32>) -> Self {
        Self {
            dim,
            part,
            centroids,
        }
    }

    pub fn n_parts(&self) -> usize {
        self.dim.div_ceil(self.part)
    }

    /// The numbers of a code in a part.
    pub fn centroids(&self, part: usize, code: u8) -> &[f32] {
        let width = self.part.min(self.dim - part * self.part);
        let start = part * self.part * N_CENTROIDS + usize::from(code) * width;
        &self.centroids[start..start + width]
    }

    fn for_each(&self, codes: &[u8], row: usize, mut take: impl FnMut(usize, &[f32])) {
        let n_parts = self.n_parts();
        let codes = &codes[row * n_parts..][..n_parts];
        for (part, &code) in codes.iter().enumerate() {
            take(part * self.part, self.centroids(part, code));
        }
    }
}

/// Numbers that begin with a cache line, so that a row of 16 is one line and not two.
struct Aligned {
    numbers: Vec<f32>,
    start: usize,
}

impl Aligned {
    fn new(numbers: Vec<f32>) -> Self {
        if numbers.as_ptr().align_offset(64) == 0 {
            return Self { numbers, start: 0 };
        }
        let mut moved: Vec<f32> = Vec::with_capacity(numbers.len() + 16);
        let start = moved.as_ptr().align_offset(64).min(16);
        moved.resize(start, 0.0);
        moved.extend_from_slice(&numbers);
        Self {
            numbers: moved,
            start,
        }
    }

    fn as_slice(&self) -> &[f32] {
        &self.numbers[self.start..]
    }
}
