//! Packing plans as flat arrays.

use numpy::{IntoPyArray, PyArray1, PyArrayMethods};
use pyo3::prelude::*;

use super::run;
use crate::token_file::{self, Packing};
use crate::{Error, Progress};

type Column<'py, T> = Bound<'py, PyArray1<T>>;
type Columns<'py> = (
    Column<'py, u64>,
    Column<'py, u32>,
    Column<'py, u32>,
    Column<'py, u32>,
);

/// Packs documents of these lengths into rows of `context_length` targets.
#[pyfunction]
pub fn plan_packing<'py>(
    py: Python<'py>,
    lengths: &Bound<'py, PyArray1<u32>>,
    context_length: u32,
    policy: &str,
) -> PyResult<Columns<'py>> {
    let policy = match policy {
        "bos-bestfit" => Packing::BosBestFit,
        "obfd" => Packing::Obfd,
        _ => {
            return Err(Error::Argument(format!(
                "policy must be bos-bestfit or obfd, got {policy:?}"
            ))
            .into());
        }
    };
    // A copy, for the owner may write while the interpreter is away.
    let lengths = lengths.to_vec()?;
    let plan = run(py, None, |progress: &mut Progress| {
        token_file::plan_packing(&lengths, context_length, policy, progress)
    })?;
    Ok((
        plan.row_offsets.into_pyarray(py),
        plan.documents.into_pyarray(py),
        plan.starts.into_pyarray(py),
        plan.lengths.into_pyarray(py),
    ))
}
