//! Binding of [`crate::web::quality`].

use pyo3::prelude::*;
use pyo3::types::PyString;

use super::super::run;
use super::texts_of;
use crate::Result;
use crate::web::batch::map_in_parallel;
use crate::web::quality::{LinesRemoved, Preset, check, check_step};
use crate::web::segment;

/// (reason, the edited text or None where it did not change, lines removed), or None for a text
/// with lone surrogates.
type Row = Option<(&'static str, Option<String>, LinesRemoved)>;

/// Whether each page is kept, edited or dropped by a recipe, or by one step of it alone.
#[pyfunction]
#[pyo3(signature = (texts, preset, n_threads, step=None))]
pub fn check_quality(
    py: Python<'_>,
    texts: Vec<Bound<'_, PyString>>,
    preset: &str,
    n_threads: usize,
    step: Option<usize>,
) -> PyResult<Vec<Row>> {
    let preset = Preset::named(preset)?;
    let texts = texts_of(&texts);
    run(py, None, |tick| {
        map_in_parallel(&texts, n_threads, |&text| row(text, preset, step), tick)
    })
}

fn row(text: Option<&str>, preset: &Preset, step: Option<usize>) -> Result<Row> {
    let Some(text) = text else { return Ok(None) };
    let verdict = match step {
        Some(step) => check_step(text, preset, step)?,
        None => check(text, preset)?,
    };
    let is_edited = verdict.reason.is_empty() && verdict.text != text;
    let edited = is_edited.then(|| verdict.text.into_owned());
    Ok(Some((verdict.reason, edited, verdict.lines_removed)))
}

/// The words and marks of UAX #29, as the rules see them; None for lone surrogates.
#[pyfunction]
pub fn unicode_words(text: &Bound<'_, PyString>) -> Option<Vec<String>> {
    let text = text.to_str().ok()?;
    let words = segment::unicode_words(text);
    let of = |word: &segment::Word| text[word.start()..word.end()].to_owned();
    Some(words.iter().map(of).collect())
}

/// How many sentences of UAX #29 the text has; None for lone surrogates.
#[pyfunction]
pub fn count_sentences(text: &Bound<'_, PyString>) -> Option<usize> {
    Some(segment::count_sentences(text.to_str().ok()?, usize::MAX))
}
