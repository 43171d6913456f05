//! Whole-corpus jobs and the functions that need no tokenizer.

use std::path::PathBuf;
use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyString, PyTuple};

use super::counts::{Counting, pairs_of};
use super::rows::{Inputs, Raised};
use super::tokenizer::Tokenizer;
use super::{run, text_of};
use crate::bpe::{TieBreak, TrainOptions, train};
use crate::files::{self, EncodeJob, Invalid, sum_counts};
use crate::pretokenize::Pattern;
use crate::token_file::{self, TokenFileOptions, TokenFileSummary, TokenizerRecord, hex};
use crate::{Error, Progress, Result};

fn tie_break_of(name: &str) -> Result<TieBreak> {
    Ok(match name {
        "bytes" => TieBreak::Bytes,
        "hf" => TieBreak::Hf,
        "first_id" => TieBreak::FirstId,
        _ => {
            return Err(Error::Argument(format!(
                "tie_break must be bytes, hf or first_id, got {name:?}"
            )));
        }
    })
}

pub(super) fn invalid_of(name: &str) -> Result<Invalid> {
    Ok(match name {
        "strict" => Invalid::Strict,
        "replace" => Invalid::Replace,
        "raw" => Invalid::Raw,
        _ => {
            return Err(Error::Argument(format!(
                "errors must be strict, replace or raw, got {name:?}"
            )));
        }
    })
}

/// Trains on what `counting` names, on files of counts or on (pretoken, count) pairs,
/// whichever is given.
#[pyfunction]
#[allow(clippy::too_many_arguments)]
pub fn train_bpe(
    py: Python<'_>,
    counting: Counting<'_>,
    counts_paths: Vec<PathBuf>,
    pairs: Option<&Bound<'_, PyAny>>,
    vocab_size: usize,
    tie_break: &str,
    min_frequency: u64,
    max_token_length: Option<usize>,
    extend: Option<&Bound<'_, Tokenizer>>,
    progress: Option<Py<PyAny>>,
) -> PyResult<Tokenizer> {
    let options = TrainOptions {
        vocab_size,
        special_tokens: counting.special_tokens.clone(),
        tie_break: tie_break_of(tie_break)?,
        min_frequency,
        max_token_length,
        extend: extend.map(|base| Arc::clone(&base.get().core)),
    };
    options.check()?;
    let pattern = counting.pattern.clone();
    let raised = Raised::default();
    let corpus = counting.corpus(&options.all_special_tokens(), &raised)?;
    let pairs = pairs.map(|pairs| pairs_of(py, pairs)).transpose()?;
    let result = run(py, progress, |progress: &mut Progress| {
        let limit = corpus.job.limit.clone();
        let limit = limit.as_ref();
        let counts = if let Some(pairs) = pairs {
            pairs.finish().for_training(vocab_size, limit, progress)?
        } else if counts_paths.is_empty() {
            corpus
                .count(progress)?
                .for_training(vocab_size, limit, progress)?
        } else {
            let origin = corpus.job.splitter.origin();
            sum_counts(&counts_paths, &origin, vocab_size, limit, progress)?
        };
        train(counts, &options, progress)?.into_tokenizer(&options, pattern)
    });
    Ok(raised.or(result)?.into())
}

fn summary_of<'py>(py: Python<'py>, summary: &TokenFileSummary) -> PyResult<Bound<'py, PyDict>> {
    let out = PyDict::new(py);
    out.set_item("n_tokens", summary.n_tokens)?;
    out.set_item("n_documents", summary.n_documents)?;
    out.set_item("n_utf8_bytes", summary.n_utf8_bytes)?;
    out.set_item("n_shards", summary.n_shards)?;
    out.set_item("itemsize", summary.itemsize)?;
    out.set_item("fingerprint", &summary.fingerprint)?;
    Ok(out)
}

/// Encodes files into the token-file folder `out`.
#[pyfunction]
#[allow(clippy::too_many_arguments)]
pub fn encode_files<'py>(
    py: Python<'py>,
    tokenizer: &Bound<'py, Tokenizer>,
    paths: Vec<PathBuf>,
    out: PathBuf,
    name: String,
    dataset: String,
    shard_tokens: u64,
    end_of_text: Option<&str>,
    errors: &str,
    command: String,
    n_threads: Option<usize>,
    progress: Option<Py<PyAny>>,
    inputs: Inputs,
    resume: bool,
) -> PyResult<Bound<'py, PyDict>> {
    let tokenizer = &tokenizer.get().core;
    let from_tables = Raised::default();
    let (inputs, open_rows) = inputs.split(&from_tables)?;
    let job = EncodeJob {
        paths: &paths,
        inputs,
        invalid: invalid_of(errors)?,
        n_threads,
        resume,
    };
    let special_tokens: Vec<(String, u32)> = tokenizer
        .special_tokens()
        .map(|(text, id)| (text.to_owned(), id))
        .collect();
    let end_of_text = end_of_text
        .map(|text| {
            let found = special_tokens.iter().find(|(special, _)| special == text);
            found.map(|(_, id)| *id).ok_or_else(|| {
                Error::Argument(format!(
                    "end_of_text must be a special token of the tokenizer, got {text:?}"
                ))
            })
        })
        .transpose()?;
    let sources = paths.iter().map(|path| {
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let size = path
            .metadata()
            .map_err(|error| Error::io(path, error))?
            .len();
        Ok((name, size))
    });
    let sources = sources.collect::<Result<Vec<_>>>()?;
    let mut tokenizer_json = Vec::new();
    let summary = run(py, progress, |progress: &mut Progress| {
        let (canonical_json, sha256) = tokenizer.identity();
        tokenizer_json.clone_from(&canonical_json);
        let options = TokenFileOptions {
            tokenizer: TokenizerRecord {
                sha256,
                name,
                vocab_size: tokenizer.vocab().len() as u32,
                canonical_json,
                special_tokens,
                end_of_text,
                token_byte_lengths: tokenizer.token_byte_lengths(),
            },
            dataset,
            shard_tokens,
            sources,
            command,
            conditions: Vec::new(),
        };
        files::encode_files(tokenizer, job, &out, options, Some(open_rows), progress)
    });
    let summary = from_tables.or(summary)?;
    let shards = summary.shards.iter().map(|shard| {
        Ok((
            shard.n_tokens,
            shard.n_documents,
            shard.n_utf8_bytes,
            hex(&shard.sha256),
            hex(&shard.index_sha256),
            PyTuple::new(py, &shard.crc32)?,
        ))
    });
    let out = summary_of(py, &summary)?;
    out.set_item("shards", shards.collect::<PyResult<Vec<_>>>()?)?;
    out.set_item("tokenizer_json", PyBytes::new(py, &tokenizer_json))?;
    Ok(out)
}

/// Reads a token-file folder whole and checks everything.
#[pyfunction]
pub fn verify_token_file(py: Python<'_>, path: PathBuf) -> PyResult<Bound<'_, PyDict>> {
    let summary = py.detach(|| token_file::verify(&path))?;
    summary_of(py, &summary)
}

/// Position `index` of epoch `epoch` under `seed`: a permutation of `0..n`.
#[pyfunction]
pub fn permute(n: u64, seed: u64, epoch: u64, index: u64) -> PyResult<u64> {
    if index >= n {
        return Err(Error::Argument(format!("index must be below n = {n}, got {index}")).into());
    }
    Ok(token_file::permute(n, seed, epoch, index))
}

/// The pretokens of a text without special tokens.
#[pyfunction]
pub fn pretokenize(text: &Bound<'_, PyString>, pattern: &str) -> PyResult<Vec<String>> {
    let text = text_of(text)?;
    let pretokens = files::pretokens(pattern, &text)?;
    Ok(pretokens.into_iter().map(str::to_owned).collect())
}

/// What runs a pattern: "scanner", "automaton" or "backtracking".
#[pyfunction]
pub fn pattern_engine(pattern: &str) -> PyResult<&'static str> {
    Ok(Pattern::new(pattern)?.engine().as_str())
}
