//! Rows of tables, read by a Python function and handed over batch by batch.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use numpy::{PyArray1, PyArrayMethods};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::PyIterator;

use crate::files::{Format, InputOptions, OpenRows, Rows};
use crate::{Error, Result};

/// The arguments about input files: format, field or column, whether rows hold special
/// tokens, the longest document, and the function that opens a table at a row.
#[derive(FromPyObject)]
pub struct Inputs(Option<String>, String, bool, usize, Py<PyAny>);

/// What a Python function raised while the crate waited for it.
#[derive(Clone, Default)]
pub struct Raised(Arc<Mutex<Option<PyErr>>>);

impl Raised {
    /// Keeps the exception; the crate stops as if it had been interrupted.
    pub fn keep(&self, raised: PyErr) -> Error {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(raised);
        Error::Interrupted
    }

    /// The exception instead of the interruption that it was taken for.
    pub fn or<T>(&self, result: PyResult<T>) -> PyResult<T> {
        let raised = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        raised.map_or(result, Err)
    }
}

impl Inputs {
    /// The options, and who opens tables.
    pub fn split(self, raised: &Raised) -> Result<(InputOptions, OpenRows)> {
        let Self(format, text_field, rows_hold_special_tokens, max_document_bytes, open) = self;
        let options = InputOptions {
            format: format.as_deref().map(Format::new).transpose()?,
            text_field,
            rows_hold_special_tokens,
            max_document_bytes,
        };
        let raised = raised.clone();
        let open_rows = move |path: &Path, column: &str, row: u64| {
            let opened = Python::attach(|py| {
                let rows = open.bind(py).call1((path, column, row))?;
                Ok(rows.try_iter()?.unbind())
            });
            let rows = opened.map_err(|error| raised.keep(error))?;
            let raised = raised.clone();
            let batches = Batches { rows, raised };
            Ok(Box::new(batches) as Box<dyn Iterator<Item = Result<Rows>>>)
        };
        Ok((options, Box::new(open_rows)))
    }
}

struct Batches {
    rows: Py<PyIterator>,
    raised: Raised,
}

impl Iterator for Batches {
    type Item = Result<Rows>;

    fn next(&mut self) -> Option<Self::Item> {
        let batch = Python::attach(|py| {
            let batch = self.rows.bind(py).clone().next().transpose()?;
            batch.map(|batch| rows_of(&batch)).transpose()
        });
        batch.map_err(|error| self.raised.keep(error)).transpose()
    }
}

/// From (bytes of all texts, where each ends as int64, bytes of the file read so far).
fn rows_of(batch: &Bound<'_, PyAny>) -> PyResult<Rows> {
    let (bytes, ends, n_file_bytes): (PyBackedBytes, Bound<'_, PyArray1<i64>>, u64) =
        batch.extract()?;
    let ends = ends.to_vec()?;
    Ok(Rows {
        bytes: bytes.to_vec(),
        ends: ends
            .into_iter()
            .map(|end| end.cast_unsigned() as usize)
            .collect(),
        n_file_bytes,
    })
}
