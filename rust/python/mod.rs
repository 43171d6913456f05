//! The binding: the only place that names `PyO3`.
//!
//! Each function takes arguments apart, leaves the interpreter, calls the crate and maps
//! the error. Decisions are made on either side, not here.

// PyO3 hands arguments over by value.
#![allow(clippy::needless_pass_by_value)]

mod corpus;
mod counts;
mod infer;
mod packing;
mod rows;
mod sandbox;
mod tokenizer;
#[cfg(feature = "web")]
mod web;

use std::borrow::Cow;
use std::time::{Duration, Instant};

use pyo3::exceptions::{PyKeyboardInterrupt, PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyString;

use crate::{Error, Progress, Result};

pyo3::import_exception!(rslm.errors, FormatError);

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        match error {
            // The constructor picks the subclass (FileNotFoundError, ...) by number.
            Error::Io { path, source } => match source.raw_os_error() {
                Some(number) => {
                    let reason = source.to_string();
                    let reason = reason
                        .split(" (os error")
                        .next()
                        .unwrap_or_default()
                        .to_owned();
                    PyOSError::new_err((number, reason, path.display().to_string()))
                }
                None => PyOSError::new_err(format!("{}: {source}", path.display())),
            },
            Error::Sandbox(reason) => PyOSError::new_err(reason),
            Error::Format { .. } => FormatError::new_err(error.to_string()),
            Error::Interrupted => PyKeyboardInterrupt::new_err(()),
            Error::Argument(_) | Error::UnknownToken(_) | Error::Utf8 { .. } => {
                PyValueError::new_err(error.to_string())
            }
        }
    }
}

/// The text of a `str`. As in tiktoken, surrogates that pair up become their character
/// and lone ones U+FFFD.
fn text_of<'a>(text: &'a Bound<'_, PyString>) -> PyResult<Cow<'a, str>> {
    if let Ok(text) = text.to_str() {
        return Ok(Cow::Borrowed(text));
    }
    let utf16 = text.call_method1("encode", ("utf-16-le", "surrogatepass"))?;
    let utf16: Vec<u8> = utf16.extract()?;
    let units: Vec<u16> = utf16
        .chunks_exact(2)
        .map(|b| u16::from_le_bytes([b[0], b[1]]))
        .collect();
    Ok(Cow::Owned(String::from_utf16_lossy(&units)))
}

/// How often Ctrl-C is looked for, and how often progress is told.
const SIGNAL_PERIOD: Duration = Duration::from_millis(50);
const PROGRESS_PERIOD: Duration = Duration::from_millis(200);

/// Runs long work without the interpreter, looking for Ctrl-C and telling progress now
/// and then.
fn run<T: Send>(
    py: Python<'_>,
    callback: Option<Py<PyAny>>,
    work: impl FnOnce(&mut Progress) -> Result<T> + Send,
) -> PyResult<T> {
    let mut error = None;
    let (mut looked, mut told) = (Instant::now(), Instant::now());
    let result = {
        let mut tick = |phase: &str, done: u64, total: u64| {
            if looked.elapsed() < SIGNAL_PERIOD && done < total {
                return Ok(());
            }
            looked = Instant::now();
            let tell = told.elapsed() >= PROGRESS_PERIOD || done >= total;
            let outcome = Python::attach(|py| {
                py.check_signals()?;
                match &callback {
                    Some(callback) if tell => callback.call1(py, (done, total, phase)).map(|_| ()),
                    _ => Ok(()),
                }
            });
            if tell {
                told = looked;
            }
            outcome.map_err(|raised| {
                error = Some(raised);
                Error::Interrupted
            })
        };
        py.detach(|| work(&mut tick))
    };
    match error {
        Some(raised) => Err(raised),
        None => Ok(result?),
    }
}

/// The Rust core of rslm.
#[pymodule(gil_used = false)]
mod _rslm {
    #[pymodule_export]
    use super::corpus::{
        encode_files, pattern_engine, permute, pretokenize, train_bpe, verify_token_file,
    };
    #[pymodule_export]
    use super::counts::{CountsReader, count_pretokens};
    #[pymodule_export]
    use super::infer::{
        Block, StepPlan, activate, linear, linear_int8, quantize_rows, rms_norm, rotate,
    };
    #[pymodule_export]
    use super::packing::plan_packing;
    #[pymodule_export]
    use super::sandbox::{
        enter_namespaces, give_up_privileges, limit_resources, restrict_calls, restrict_files,
    };
    #[pymodule_export]
    use super::tokenizer::{EncodeIterator, StreamDecoder, Tokenizer};
    #[cfg(feature = "web")]
    #[pymodule_export]
    use super::web::decontaminate::NgramIndex;
    #[cfg(feature = "web")]
    #[pymodule_export]
    use super::web::dedup::{
        ShardWriter, check_repeated_lines, cluster_edges, count_line_files, exact_keys, find_among,
        join_signatures, merge_line_files, minhash_signature, normalize_texts, read_dropped_rows,
        rewrite_line_files, rewrite_lines,
    };
    #[cfg(feature = "web")]
    #[pymodule_export]
    use super::web::extract::{extract_readable, page_problem};
    #[cfg(feature = "web")]
    #[pymodule_export]
    use super::web::fasttext::FastText;
    #[cfg(feature = "web")]
    #[pymodule_export]
    use super::web::pages::{clean_controls, decode_bytes, read_text_row, unpack_member};
    #[cfg(feature = "web")]
    #[pymodule_export]
    use super::web::pii::{mask_pii, mask_pii_kind};
    #[cfg(feature = "web")]
    #[pymodule_export]
    use super::web::quality::{check_quality, count_sentences, unicode_words};
    #[cfg(feature = "web")]
    #[pymodule_export]
    use super::web::url_filter::UrlLists;

    /// Whether this is an optimised build; benchmarks refuse to time any other.
    #[pymodule_export]
    const BUILD_PROFILE: &str = if cfg!(debug_assertions) {
        "debug"
    } else {
        "release"
    };

    /// Version of the package, as `Cargo.toml` has it.
    #[pymodule_export]
    const VERSION: &str = env!("CARGO_PKG_VERSION");

    /// Version of the Unicode data that decides what a letter is.
    #[pymodule_export]
    const UNICODE_VERSION: &str = crate::pretokenize::UNICODE_VERSION;
}
