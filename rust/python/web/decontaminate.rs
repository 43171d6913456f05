//! Binding of [`crate::web::decontaminate`].

use pyo3::prelude::*;
use pyo3::types::PyString;

use crate::python::text_of;
use crate::web::decontaminate;

/// N-grams of evaluation items; `find_batch` says which of them texts hold.
#[pyclass(frozen)]
pub struct NgramIndex(decontaminate::NgramIndex);

#[pymethods]
impl NgramIndex {
    #[new]
    fn new(
        py: Python<'_>,
        items: Vec<Bound<'_, PyString>>,
        ngram_words: usize,
        min_words: usize,
    ) -> PyResult<Self> {
        let items = items.iter().map(text_of).collect::<PyResult<Vec<_>>>()?;
        let made = py.detach(|| {
            decontaminate::NgramIndex::new(items.iter().map(AsRef::as_ref), ngram_words, min_words)
        });
        Ok(Self(made?))
    }

    /// For each text, the number of an item and the n-gram of it that the text holds.
    fn find_batch(
        &self,
        py: Python<'_>,
        texts: Vec<Bound<'_, PyString>>,
    ) -> PyResult<Vec<Option<(u32, String)>>> {
        let texts = texts.iter().map(text_of).collect::<PyResult<Vec<_>>>()?;
        Ok(py.detach(|| {
            let found = texts.iter().map(|text| self.0.find(text));
            found
                .map(|found| found.map(|overlap| (overlap.item, overlap.ngram)))
                .collect()
        }))
    }

    #[getter]
    fn n_ngrams(&self) -> usize {
        self.0.n_ngrams()
    }

    #[getter]
    fn n_skipped(&self) -> u64 {
        self.0.n_skipped()
    }
}
