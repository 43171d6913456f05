//! Binding of [`crate::web::warc`], [`crate::web::decode`] and [`crate::web::rows`].

use std::borrow::Cow;

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};

use crate::web::decode::{clean, decode};
use crate::web::rows::{plain_row, text_line};
use crate::web::warc::{Member, inflate_member};

/// The gzip member at `start`, unpacked, and where it ends; without one, 1 if it goes on behind
/// the bytes and 0 if it is not in order.
#[pyfunction]
pub fn unpack_member<'py>(
    py: Python<'py>,
    packed: &[u8],
    start: usize,
    max_bytes: usize,
    max_inflation: usize,
) -> (Option<Bound<'py, PyBytes>>, usize) {
    let packed = packed.get(start..).unwrap_or_default();
    match py.detach(|| inflate_member(packed, max_bytes, max_inflation)) {
        Member::Whole(bytes, n_read) => (Some(PyBytes::new(py, &bytes)), start + n_read),
        Member::Cut => (None, 1),
        Member::Refused => (None, 0),
    }
}

/// The page as clean text, and the WHATWG's name of its encoding; guessed where the label says
/// nothing and the page is not UTF-8.
#[pyfunction]
pub fn decode_bytes(py: Python<'_>, page: &[u8], label: &str) -> (Py<PyString>, &'static str) {
    let (text, name) = py.detach(|| decode(page, label));
    (PyString::new(py, &text).unbind(), name)
}

/// The text without carriage returns and controls; itself if it holds none.
///
/// It must be UTF-8: a lone surrogate is a `UnicodeEncodeError`.
#[pyfunction]
pub fn clean_controls(text: Bound<'_, PyString>) -> PyResult<Bound<'_, PyString>> {
    let cleaned = match clean(text.to_str()?) {
        Cow::Borrowed(_) => None,
        Cow::Owned(cleaned) => Some(PyString::new(text.py(), &cleaned)),
    };
    Ok(cleaned.unwrap_or(text))
}

type TextRow<'py> = (Option<String>, String, Bound<'py, PyBytes>, usize);

/// Source, id, the line with the text alone, and the bytes of the text; None for a line that
/// Python must read.
#[pyfunction]
pub fn read_text_row<'py>(py: Python<'py>, line: &[u8], text_field: &str) -> Option<TextRow<'py>> {
    let row = plain_row(line, text_field)?;
    let alone = PyBytes::new(py, &text_line(&row.text));
    Some((row.source, row.id, alone, row.text.len()))
}
