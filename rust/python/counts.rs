//! Pretoken counts: made, saved, read, and given to training.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use super::corpus::{TextBlocks, invalid_of, splitter_of};
use super::rows::{Inputs, Raised};
use super::run;
use crate::bpe::CountsTotal;
use crate::files::{
    self, Counted, FileBlocks, InputOptions, Invalid, MemoryLimit, OpenRows, PairCounter, Splitter,
};
use crate::{Progress, Result};

pub(super) fn limit_of(
    memory_limit: Option<u64>,
    spill_dir: Option<PathBuf>,
) -> Option<MemoryLimit> {
    memory_limit.map(|bytes| MemoryLimit {
        bytes,
        spill_folder: spill_dir.unwrap_or_else(std::env::temp_dir),
    })
}

/// (pretoken, count) pairs of a Python iterable.
pub(super) fn pairs_of(py: Python<'_>, pairs: &Bound<'_, PyAny>) -> PyResult<PairCounter> {
    let mut counter = PairCounter::default();
    for (i, pair) in pairs.try_iter()?.enumerate() {
        if i % (1 << 12) == 0 {
            py.check_signals()?;
        }
        let (pretoken, count): (Bound<'_, PyBytes>, Bound<'_, PyAny>) = pair?.extract()?;
        let number = count.extract::<u64>().map_err(|error| {
            if error.is_instance_of::<pyo3::exceptions::PyOverflowError>(py) {
                return PyValueError::new_err(format!(
                    "a count must be from 0 to 2^64 - 1, got {count}"
                ));
            }
            error
        })?;
        counter.add(pretoken.as_bytes(), number)?;
    }
    Ok(counter)
}

/// Counts the pretokens of files, or of texts where these are given.
#[allow(clippy::too_many_arguments)]
pub(super) fn counted(
    paths: &[PathBuf],
    (inputs, open_rows): (InputOptions, OpenRows),
    texts: Option<TextBlocks<'_>>,
    splitter: &Splitter,
    invalid: Invalid,
    n_threads: Option<usize>,
    limit: Option<&MemoryLimit>,
    progress: &mut Progress,
) -> Result<Counted> {
    if let Some(mut texts) = texts {
        if let Some(limit) = limit {
            texts.block_bytes = texts.block_bytes.min(limit.block_bytes(n_threads)?);
        }
        return files::count_pretokens(texts, 0, splitter, invalid, n_threads, limit, progress);
    }
    let mut blocks = FileBlocks::new(paths, splitter, inputs, Some(open_rows))?;
    if let Some(limit) = limit {
        blocks = blocks.with_block_bytes(limit.block_bytes(n_threads)?);
    }
    let total = blocks.total_bytes();
    files::count_pretokens(blocks, total, splitter, invalid, n_threads, limit, progress)
}

fn total_of(py: Python<'_>, total: CountsTotal) -> PyResult<Bound<'_, PyDict>> {
    let out = PyDict::new(py);
    out.set_item("n_entries", total.n_entries)?;
    out.set_item("n_pretokens", total.n_pretokens)?;
    out.set_item("n_bytes", total.n_bytes)?;
    Ok(out)
}

/// Counts the pretokens of files or `texts` into the file `out`.
#[pyfunction]
#[allow(clippy::too_many_arguments)]
pub fn count_pretokens<'py>(
    py: Python<'py>,
    paths: Vec<PathBuf>,
    texts: Option<&Bound<'py, PyAny>>,
    out: PathBuf,
    special_tokens: Vec<String>,
    pattern: &str,
    unit: &str,
    errors: &str,
    n_threads: Option<usize>,
    memory_limit: Option<u64>,
    spill_dir: Option<PathBuf>,
    progress: Option<Py<PyAny>>,
    inputs: Inputs,
) -> PyResult<Bound<'py, PyDict>> {
    let from_tables = Raised::default();
    let inputs = inputs.split(&from_tables)?;
    let splitter = splitter_of(pattern, &special_tokens, unit)?;
    let invalid = invalid_of(errors)?;
    let limit = limit_of(memory_limit, spill_dir);
    let mut raised = None;
    let texts = texts
        .map(|texts| texts.try_iter().map(Bound::unbind))
        .transpose()?;
    let result = run(py, progress, |progress: &mut Progress| {
        let texts = texts.map(|texts| TextBlocks::new(texts, &mut raised));
        let limit = limit.as_ref();
        let counted = counted(
            &paths, inputs, texts, &splitter, invalid, n_threads, limit, progress,
        )?;
        counted.write(&out, &splitter.origin(), progress)
    });
    match raised {
        Some(raised) => Err(raised),
        None => total_of(py, from_tables.or(result)?),
    }
}

/// Reads a file of counts entry by entry; see `rslm.tokenizer.read_counts`.
#[pyclass(frozen, module = "rslm._rslm")]
pub struct CountsReader(Mutex<crate::bpe::CountsReader>);

#[pymethods]
impl CountsReader {
    #[new]
    fn new(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let reader = py.detach(|| crate::bpe::CountsReader::open(&path))?;
        Ok(Self(Mutex::new(reader)))
    }

    /// How the pretokens were made, and what they come to.
    #[getter]
    fn header<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let reader = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let out = total_of(py, reader.total())?;
        let origin = reader.origin();
        out.set_item("pattern", &origin.pattern)?;
        out.set_item("special_tokens", &origin.special_tokens)?;
        out.set_item("unit", &origin.unit)?;
        out.set_item("unicode_version", &origin.unicode_version)?;
        Ok(out)
    }

    fn __iter__(slf: PyRef<'_, Self>) -> PyRef<'_, Self> {
        slf
    }

    fn __next__<'py>(&self, py: Python<'py>) -> PyResult<Option<(Bound<'py, PyBytes>, u64)>> {
        let mut reader = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !reader.advance()? {
            return Ok(None);
        }
        Ok(Some((PyBytes::new(py, reader.pretoken()), reader.count())))
    }
}
