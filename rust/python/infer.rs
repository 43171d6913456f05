//! Arithmetic of inference over arrays that `PyTorch` owns.

use numpy::{
    IntoPyArray, PyArray1, PyArrayDyn, PyArrayMethods, PyReadonlyArrayDyn, PyReadwriteArrayDyn,
    PyUntypedArrayMethods,
};
use pyo3::prelude::*;

use crate::infer::{self, Activation, Heads, InstructionSet, Plan, Weights};
use crate::{Error, Result};

type Floats<'py> = PyReadonlyArrayDyn<'py, f32>;
type Quantized<'py> = (Bound<'py, PyArray1<i8>>, Bound<'py, PyArray1<f32>>);
type Output<'py> = PyReadwriteArrayDyn<'py, f32>;

/// Multiply-adds below which leaving the interpreter costs more than it gives: some 50
/// microseconds. Coming back may have to wait for a thread that took it.
const SHORT: usize = 1 << 20;

fn detach_if_long<T: Send>(
    py: Python<'_>,
    n_operations: usize,
    work: impl FnOnce() -> Result<T> + Send,
) -> PyResult<T> {
    let is_short = n_operations < SHORT;
    Ok(if is_short { work() } else { py.detach(work) }?)
}

fn slice<'a>(array: Option<&'a Floats<'_>>) -> PyResult<Option<&'a [f32]>> {
    Ok(match array {
        Some(array) => Some(array.as_slice()?),
        None => None,
    })
}

/// y = x Wᵀ + bias over the last dimension, into `out`.
#[pyfunction]
#[pyo3(signature = (x, weight, bias, out, n_threads))]
pub fn linear(
    py: Python<'_>,
    x: Floats<'_>,
    weight: Floats<'_>,
    bias: Option<Floats<'_>>,
    mut out: Output<'_>,
    n_threads: usize,
) -> PyResult<()> {
    let n_inputs = weight.shape().last().copied().unwrap_or(0);
    let (x, weight, bias) = (x.as_slice()?, weight.as_slice()?, slice(bias.as_ref())?);
    let out = out.as_slice_mut()?;
    detach_if_long(py, out.len() * n_inputs, || {
        let (set, weight) = (InstructionSet::detect(), Weights::Float(weight));
        infer::linear(set, x, weight, bias, n_inputs, out, n_threads)
    })
}

/// The same for weights of one byte, each output times its scale.
#[pyfunction]
#[pyo3(signature = (x, weight, scales, bias, out, n_threads))]
pub fn linear_int8(
    py: Python<'_>,
    x: Floats<'_>,
    weight: PyReadonlyArrayDyn<'_, i8>,
    scales: Floats<'_>,
    bias: Option<Floats<'_>>,
    mut out: Output<'_>,
    n_threads: usize,
) -> PyResult<()> {
    let n_inputs = weight.shape().last().copied().unwrap_or(0);
    let (x, bias, scales) = (x.as_slice()?, slice(bias.as_ref())?, scales.as_slice()?);
    let (weight, out) = (weight.as_slice()?, out.as_slice_mut()?);
    detach_if_long(py, out.len() * n_inputs, || {
        let (set, weight) = (InstructionSet::detect(), Weights::Int8(weight, scales));
        infer::linear(set, x, weight, bias, n_inputs, out, n_threads)
    })
}

/// Rows of weights as integers of one byte, flat, and a factor for each row.
#[pyfunction]
pub fn quantize_rows<'py>(py: Python<'py>, weight: Floats<'py>) -> PyResult<Quantized<'py>> {
    let n_inputs = weight.shape().last().copied().unwrap_or(0);
    let weight = weight.as_slice()?;
    let (integers, scales) = py.detach(|| infer::quantize_rows(weight, n_inputs));
    Ok((integers.into_pyarray(py), scales.into_pyarray(py)))
}

/// Each vector along the last dimension over its root mean square, times the gains.
#[pyfunction]
#[pyo3(signature = (x, gains, epsilon, out))]
pub fn rms_norm(
    x: Floats<'_>,
    gains: Option<Floats<'_>>,
    epsilon: f32,
    mut out: Output<'_>,
) -> PyResult<()> {
    let width = x.shape().last().copied().unwrap_or(0);
    let (x, gains, out) = (x.as_slice()?, slice(gains.as_ref())?, out.as_slice_mut()?);
    Ok(infer::rms_norm(
        InstructionSet::detect(),
        x,
        gains,
        width,
        epsilon,
        out,
    )?)
}

/// Pairs of (tokens, heads, width) turned by the angles at the tokens' positions.
#[pyfunction]
pub fn rotate(
    x: Floats<'_>,
    positions: PyReadonlyArrayDyn<'_, i64>,
    cos: Floats<'_>,
    sin: Floats<'_>,
    mut out: Output<'_>,
) -> PyResult<()> {
    let n_pairs = cos.shape().last().copied().unwrap_or(0);
    let (x, positions, out) = (x.as_slice()?, positions.as_slice()?, out.as_slice_mut()?);
    let tables = (cos.as_slice()?, sin.as_slice()?);
    Ok(infer::rotate(x, positions, tables, n_pairs, out)?)
}

/// An elementwise function by name, times a gate where one is given.
#[pyfunction]
#[pyo3(signature = (name, x, gate, out))]
pub fn activate(
    name: &str,
    x: Floats<'_>,
    gate: Option<Floats<'_>>,
    mut out: Output<'_>,
) -> PyResult<()> {
    let activation = match name {
        "silu" => Activation::Silu,
        "gelu" => Activation::Gelu,
        "tanh" => Activation::Tanh,
        _ => {
            let fault = format!("name must be silu, gelu or tanh, got {name:?}");
            return Err(Error::Argument(fault).into());
        }
    };
    let (x, gate, out) = (x.as_slice()?, slice(gate.as_ref())?, out.as_slice_mut()?);
    Ok(infer::activate(
        InstructionSet::detect(),
        activation,
        x,
        gate,
        out,
    )?)
}

/// Where the tokens of a ragged step stand, and where the keys of their sequences are.
#[pyclass(frozen)]
pub struct StepPlan(Plan);

#[pymethods]
impl StepPlan {
    #[new]
    fn new(
        positions: Vec<u32>,
        lengths: Vec<usize>,
        block_tables: Vec<Vec<u32>>,
        block_size: usize,
        n_blocks: usize,
    ) -> PyResult<Self> {
        Ok(Self(Plan::new(
            &positions,
            &lengths,
            &block_tables,
            block_size,
            n_blocks,
        )?))
    }

    /// Puts (tokens, heads, width) keys, or values, into their slots of `stored`.
    fn append(&self, new: Floats<'_>, mut stored: Output<'_>) -> PyResult<()> {
        let width = new.shape()[1..].iter().product();
        Ok(infer::append(
            &self.0,
            width,
            new.as_slice()?,
            stored.as_slice_mut()?,
        )?)
    }

    /// What a block makes of (tokens, width) `x`; its keys and values go where they belong.
    #[pyo3(signature = (block, x, keys, values, out, n_threads))]
    #[allow(clippy::too_many_arguments)]
    fn run_block(
        &self,
        py: Python<'_>,
        block: &Block,
        x: Floats<'_>,
        mut keys: Output<'_>,
        mut values: Output<'_>,
        mut out: Output<'_>,
        n_threads: usize,
    ) -> PyResult<()> {
        let arrays = block.borrow(py)?;
        let parts = arrays.block(block)?;
        let (x, out) = (x.as_slice()?, out.as_slice_mut()?);
        let stored = (keys.as_slice_mut()?, values.as_slice_mut()?);
        let n_operations = self.0.n_tokens() * block.n_weights;
        detach_if_long(py, n_operations, || {
            let set = InstructionSet::detect();
            infer::run_block(set, &self.0, &parts, x, stored, out, n_threads)
        })
    }

    /// What the queries (tokens, heads, width) see of keys and values (..., heads, width).
    #[pyo3(signature = (q, keys, values, window, scale, out, n_threads))]
    #[allow(clippy::too_many_arguments)]
    fn attend(
        &self,
        py: Python<'_>,
        q: Floats<'_>,
        keys: Floats<'_>,
        values: Floats<'_>,
        window: Option<usize>,
        scale: f32,
        mut out: Output<'_>,
        n_threads: usize,
    ) -> PyResult<()> {
        let last_two = |array: &Floats<'_>| match *array.shape() {
            [.., heads, width] => (heads, width),
            _ => (0, 0),
        };
        let ((n_heads, d_head), (n_kv_heads, _)) = (last_two(&q), last_two(&keys));
        let heads = Heads {
            n_heads,
            n_kv_heads,
            d_head,
        };
        let inputs = (q.as_slice()?, keys.as_slice()?, values.as_slice()?);
        let out = out.as_slice_mut()?;
        let n_operations = self.0.n_keys(window) * n_heads * d_head * 2;
        detach_if_long(py, n_operations, || {
            let set = InstructionSet::detect();
            infer::attend(set, &self.0, heads, inputs, window, scale, out, n_threads)
        })
    }
}

/// A matrix, and the scale of each of its rows where it is of integers.
enum Matrix {
    Float(Py<PyArrayDyn<f32>>),
    Int8(Py<PyArrayDyn<i8>>, Py<PyArrayDyn<f32>>),
}

impl Matrix {
    fn new(weight: &Bound<'_, PyAny>, scales: Option<Py<PyArrayDyn<f32>>>) -> PyResult<Self> {
        Ok(match scales {
            None => Self::Float(weight.cast::<PyArrayDyn<f32>>()?.clone().unbind()),
            Some(scales) => Self::Int8(weight.cast::<PyArrayDyn<i8>>()?.clone().unbind(), scales),
        })
    }

    fn borrow<'py>(&self, py: Python<'py>) -> PyResult<BorrowedMatrix<'py>> {
        Ok(match self {
            Self::Float(weight) => BorrowedMatrix::Float(weight.bind(py).try_readonly()?),
            Self::Int8(weight, scales) => BorrowedMatrix::Int8(
                weight.bind(py).try_readonly()?,
                scales.bind(py).try_readonly()?,
            ),
        })
    }
}

enum BorrowedMatrix<'py> {
    Float(Floats<'py>),
    Int8(PyReadonlyArrayDyn<'py, i8>, Floats<'py>),
}

impl BorrowedMatrix<'_> {
    fn weights(&self) -> PyResult<Weights<'_>> {
        Ok(match self {
            Self::Float(weight) => Weights::Float(weight.as_slice()?),
            Self::Int8(weight, scales) => Weights::Int8(weight.as_slice()?, scales.as_slice()?),
        })
    }
}

type Floating = Py<PyArrayDyn<f32>>;

/// The weights of one layer where they lie, and its sizes.
#[pyclass(frozen)]
pub struct Block {
    gains: [Floating; 2],
    /// Of queries, keys, values and the heads' output; of what is activated, its gate, the output.
    matrices: [Matrix; 7],
    turns: Option<(Floating, Floating)>,
    epsilon: f32,
    heads: Heads,
    window: Option<usize>,
    scale: f32,
    n_weights: usize,
}

#[pymethods]
impl Block {
    #[new]
    #[pyo3(signature = (gains, matrices, turns, epsilon, heads, window, scale))]
    fn new(
        gains: [Floating; 2],
        matrices: [(Bound<'_, PyAny>, Option<Floating>); 7],
        turns: Option<(Floating, Floating)>,
        epsilon: f32,
        heads: (usize, usize, usize),
        window: Option<usize>,
        scale: f32,
    ) -> PyResult<Self> {
        let mut n_weights = 0;
        let mut made = Vec::with_capacity(matrices.len());
        for (weight, scales) in matrices {
            n_weights += weight.len()? * weight.get_item(0)?.len()?;
            made.push(Matrix::new(&weight, scales)?);
        }
        let Ok(matrices) = made.try_into() else {
            unreachable!("as many as were given");
        };
        let (n_heads, n_kv_heads, d_head) = heads;
        Ok(Self {
            gains,
            matrices,
            turns,
            epsilon,
            heads: Heads {
                n_heads,
                n_kv_heads,
                d_head,
            },
            window,
            scale,
            n_weights,
        })
    }
}

/// The arrays of a block while it is read.
struct BorrowedBlock<'py> {
    gains: [Floats<'py>; 2],
    matrices: Vec<BorrowedMatrix<'py>>,
    turns: Option<(Floats<'py>, Floats<'py>)>,
}

impl Block {
    fn borrow<'py>(&self, py: Python<'py>) -> PyResult<BorrowedBlock<'py>> {
        let read = |array: &Floating| array.bind(py).try_readonly();
        let matrices = self.matrices.iter().map(|matrix| matrix.borrow(py));
        Ok(BorrowedBlock {
            gains: [read(&self.gains[0])?, read(&self.gains[1])?],
            matrices: matrices.collect::<PyResult<_>>()?,
            turns: match &self.turns {
                Some((cos, sin)) => Some((read(cos)?, read(sin)?)),
                None => None,
            },
        })
    }
}

impl BorrowedBlock<'_> {
    fn block(&self, of: &Block) -> PyResult<infer::Block<'_>> {
        let at = |i: usize| self.matrices[i].weights();
        Ok(infer::Block {
            heads: of.heads,
            gains: [self.gains[0].as_slice()?, self.gains[1].as_slice()?],
            epsilon: of.epsilon,
            attention: [at(0)?, at(1)?, at(2)?, at(3)?],
            feed_forward: [at(4)?, at(5)?, at(6)?],
            turns: match &self.turns {
                Some((cos, sin)) => Some((cos.as_slice()?, sin.as_slice()?)),
                None => None,
            },
            window: of.window,
            scale: of.scale,
        })
    }
}
