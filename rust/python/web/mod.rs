//! The binding of [`crate::web`], one file per area.

pub mod decontaminate;
pub mod dedup;
pub mod extract;
pub mod fasttext;
pub mod pages;
pub mod pii;
pub mod quality;
pub mod url_filter;

use pyo3::prelude::*;
use pyo3::types::PyString;

/// The texts as UTF-8; None for one with lone surrogates, which has none.
fn texts_of<'a>(texts: &'a [Bound<'_, PyString>]) -> Vec<Option<&'a str>> {
    texts.iter().map(|text| text.to_str().ok()).collect()
}
