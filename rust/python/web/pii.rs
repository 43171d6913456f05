//! Binding of [`crate::web::pii`].

use std::borrow::Cow;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyString, PyTuple};

use super::super::run;
use super::texts_of;
use crate::web::batch::map_in_parallel;
use crate::web::pii::{Masked, Preset, mask, mask_kind};

/// Masks each text: (the text, counts, why the page is dropped), or None for one with lone
/// surrogates.
///
/// One thread makes the objects while the others wait, so there are as few as can be.
#[pyfunction]
pub fn mask_pii<'py>(
    py: Python<'py>,
    texts: Vec<Bound<'py, PyString>>,
    preset: &str,
    n_threads: usize,
) -> PyResult<Bound<'py, PyList>> {
    let preset = Preset::named(preset)?;
    let given = texts_of(&texts);
    let masked = run(py, None, |tick| {
        map_in_parallel(
            &given,
            n_threads,
            |&text| Ok(text.map(|text| mask(text, preset))),
            tick,
        )
    })?;
    let none = PyDict::new(py);
    for name in preset.kinds() {
        none.set_item(PyString::intern(py, name), 0)?;
    }
    let rows = texts.iter().zip(masked);
    let rows = rows.map(|(text, masked)| masked.map(|masked| row(text, masked, &none)).transpose());
    PyList::new(py, rows.collect::<PyResult<Vec<_>>>()?)
}

fn row<'py>(
    text: &Bound<'py, PyString>,
    masked: Masked<'_>,
    none: &Bound<'py, PyDict>,
) -> PyResult<Bound<'py, PyTuple>> {
    let py = text.py();
    let counts = none.copy()?;
    for (name, n) in masked.counts {
        if n > 0 {
            counts.set_item(PyString::intern(py, name), n)?;
        }
    }
    let text = match masked.text {
        Cow::Borrowed(_) => text.clone(),
        Cow::Owned(text) => PyString::new(py, &text),
    };
    (text, counts, PyString::intern(py, masked.drop_reason)).into_pyobject(py)
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
