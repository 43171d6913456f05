//! Binding of [`crate::web::pii`].

use std::borrow::Cow;

use pyo3::prelude::*;
use pyo3::types::PyString;

use super::super::run;
use super::texts_of;
use crate::web::batch::map_in_parallel;
use crate::web::pii::{Preset, mask, mask_kind};

/// (the masked text or None where nothing was masked, counts, why the page is dropped), or None
/// for a text with lone surrogates.
type Row = Option<(Option<String>, Vec<(&'static str, u64)>, &'static str)>;

/// Masks each text.
#[pyfunction]
pub fn mask_pii(
    py: Python<'_>,
    texts: Vec<Bound<'_, PyString>>,
    preset: &str,
    n_threads: usize,
) -> PyResult<Vec<Row>> {
    let preset = Preset::named(preset)?;
    let texts = texts_of(&texts);
    run(py, None, |tick| {
        map_in_parallel(&texts, n_threads, |&text| Ok(row(text, preset)), tick)
    })
}

fn row(text: Option<&str>, preset: &Preset) -> Row {
    let masked = mask(text?, preset);
    Some((owned(masked.text), masked.counts, masked.drop_reason))
}

/// Masks one kind alone: (the masked text or None, masks put), or None for lone surrogates.
#[pyfunction]
pub fn mask_pii_kind(
    py: Python<'_>,
    text: &Bound<'_, PyString>,
    preset: &str,
    kind: &str,
) -> PyResult<Option<(Option<String>, u64)>> {
    let preset = Preset::named(preset)?;
    let Ok(text) = text.to_str() else {
        return Ok(None);
    };
    let (masked, n_masks) = py.detach(|| mask_kind(text, preset, kind))?;
    Ok(Some((owned(masked), n_masks)))
}

fn owned(text: Cow<str>) -> Option<String> {
    match text {
        Cow::Borrowed(_) => None,
        Cow::Owned(text) => Some(text),
    }
}
