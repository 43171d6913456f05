//! Binding of [`crate::web::fasttext`].

use std::borrow::Cow;
use std::path::PathBuf;

use pyo3::prelude::*;
use pyo3::types::PyString;

use super::super::{run, text_of};
use crate::web::batch::map_in_parallel;
use crate::web::fasttext;

/// A supervised fastText model; see `rslm.data.language` and `rslm.data.classify`.
#[pyclass(frozen)]
pub struct FastText(fasttext::FastText);

#[pymethods]
impl FastText {
    /// Of a file.
    #[new]
    fn new(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        Ok(Self(py.detach(|| fasttext::FastText::read(path))?))
    }

    /// The labels, in the order of their numbers.
    fn labels(&self) -> Vec<&str> {
        self.0.labels().iter().map(String::as_str).collect()
    }

    /// (number of the likeliest label, its score) for each text; None where there is none.
    fn predict(
        &self,
        py: Python<'_>,
        texts: Vec<Bound<'_, PyString>>,
        n_threads: usize,
    ) -> PyResult<Vec<Option<(usize, f32)>>> {
        let texts: Vec<Cow<str>> = texts.iter().map(text_of).collect::<PyResult<_>>()?;
        run(py, None, |tick| {
            map_in_parallel(&texts, n_threads, |text| Ok(self.0.predict(text)), tick)
        })
    }

    /// The score of one label for each text.
    fn scores(
        &self,
        py: Python<'_>,
        texts: Vec<Bound<'_, PyString>>,
        label: usize,
        n_threads: usize,
    ) -> PyResult<Vec<f32>> {
        let texts: Vec<Cow<str>> = texts.iter().map(text_of).collect::<PyResult<_>>()?;
        let score = |text: &Cow<str>| Ok(self.0.scores(text).get(label).copied().unwrap_or(0.0));
        run(py, None, |tick| {
            map_in_parallel(&texts, n_threads, score, tick)
        })
    }
}
