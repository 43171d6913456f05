//! Binding of [`crate::web::extract`].

use pyo3::prelude::*;
use pyo3::types::PyString;

use super::super::{run, text_of};
use crate::web::extract::{Extracted, Limits, Problem, Reader, check, extract_batch};

/// Most bytes of a page, depth, nodes, and bytes of a text.
type LimitValues = (usize, usize, usize, usize);

fn limits_of(values: LimitValues) -> Limits {
    let (max_page_bytes, max_depth, max_nodes, max_text_bytes) = values;
    Limits {
        max_page_bytes,
        max_depth,
        max_nodes,
        max_text_bytes,
    }
}

/// Of each page its main text and "", or "" and the problem with it.
///
/// The reference is slower and gives the same texts.
#[pyfunction]
#[pyo3(signature = (pages, limits, n_threads, *, reference = false))]
pub fn extract_readable(
    py: Python<'_>,
    pages: Vec<Bound<'_, PyString>>,
    limits: LimitValues,
    n_threads: usize,
    reference: bool,
) -> PyResult<Vec<(String, &'static str)>> {
    let pages = pages.iter().map(text_of).collect::<PyResult<Vec<_>>>()?;
    let pages: Vec<&str> = pages.iter().map(AsRef::as_ref).collect();
    let limits = limits_of(limits);
    let reader = if reference {
        Reader::Reference
    } else {
        Reader::Fast
    };
    let texts = run(py, None, |progress| {
        extract_batch(&pages, &limits, reader, n_threads, progress)
    })?;
    Ok(texts.into_iter().map(as_pair).collect())
}

/// The problem with parsing a page within the limits, or "".
#[pyfunction]
pub fn page_problem(
    py: Python<'_>,
    page: Bound<'_, PyString>,
    limits: LimitValues,
) -> PyResult<&'static str> {
    let page = text_of(&page)?;
    let limits = limits_of(limits);
    let checked = py.detach(|| check(&page, &limits));
    Ok(checked.map_or_else(Problem::name, |()| ""))
}

fn as_pair(extracted: Extracted) -> (String, &'static str) {
    match extracted {
        Ok(text) => (text, ""),
        Err(problem) => (String::new(), problem.name()),
    }
}
