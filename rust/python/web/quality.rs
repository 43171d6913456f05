//! Binding of [`crate::web::quality`].

use pyo3::prelude::*;
use pyo3::types::PyString;

use super::super::run;
use super::texts_of;
use crate::web::batch::map_in_parallel;
use crate::web::quality::{LinesRemoved, Preset, check};

/// (reason, the edited text or None where it did not change, lines removed), or None for a text
/// with lone surrogates.
type Row = Option<(&'static str, Option<String>, LinesRemoved)>;

/// Whether each page is kept, edited or dropped by a recipe.
#[pyfunction]
pub fn check_quality(
    py: Python<'_>,
    texts: Vec<Bound<'_, PyString>>,
    preset: &str,
    n_threads: usize,
) -> PyResult<Vec<Row>> {
    let preset = Preset::named(preset)?;
    let texts = texts_of(&texts);
    let judge = |text: &Option<&str>| {
        let Some(text) = text else { return Ok(None) };
        let verdict = check(text, preset)?;
        let is_edited = verdict.reason.is_empty() && verdict.text != *text;
        let edited = is_edited.then(|| verdict.text.into_owned());
        Ok(Some((verdict.reason, edited, verdict.lines_removed)))
    };
    run(py, None, |tick| {
        map_in_parallel(&texts, n_threads, judge, tick)
    })
}
