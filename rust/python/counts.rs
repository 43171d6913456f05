//! Pretoken counts: made, saved, read, and given to training.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyIterator, PyString};

use super::corpus::invalid_of;
use super::rows::{Inputs, Raised};
use super::{run, text_of};
use crate::bpe::CountsTotal;
use crate::files::{
    Block, CountJob, Counted, InputOptions, MemoryLimit, OpenRows, PairCounter, Splitter, Unit,
};
use crate::pretokenize::{Pattern, SpecialTokens};
use crate::{Error, Progress, Result};

/// What is counted, how, and within which limits: the fields of `rslm.corpus.Counting`.
#[derive(FromPyObject)]
pub struct Counting<'py> {
    paths: Vec<PathBuf>,
    texts: Option<Bound<'py, PyAny>>,
    pub(super) special_tokens: Vec<String>,
    pub(super) pattern: String,
    unit: String,
    errors: String,
    n_threads: Option<usize>,
    memory_limit: Option<u64>,
    spill_dir: Option<PathBuf>,
    inputs: Inputs,
}

impl Counting<'_> {
    /// Takes the arguments apart. These special tokens may be more than those given: training
    /// adds those of the tokenizer that it extends.
    pub(super) fn corpus(self, special_tokens: &[String], raised: &Raised) -> PyResult<Corpus> {
        let (inputs, open_rows) = self.inputs.split(raised)?;
        let job = CountJob {
            splitter: Splitter {
                pattern: Pattern::new(&self.pattern)?,
                specials: SpecialTokens::new(special_tokens)?,
                unit: unit_of(&self.unit)?,
            },
            invalid: invalid_of(&self.errors)?,
            n_threads: self.n_threads,
            limit: self.memory_limit.map(|bytes| MemoryLimit {
                bytes,
                spill_folder: self.spill_dir.unwrap_or_else(std::env::temp_dir),
            }),
        };
        let texts = self.texts.map(|texts| texts.try_iter().map(Bound::unbind));
        Ok(Corpus {
            texts: texts.transpose()?.map(|texts| TextBlocks {
                texts,
                raised: raised.clone(),
                block_bytes: 1 << 20,
            }),
            paths: self.paths,
            inputs,
            open_rows,
            job,
        })
    }
}

/// Files, or texts where these are given, and how to count them; nothing of it needs the
/// interpreter's attention but where it is asked for more texts.
pub struct Corpus {
    paths: Vec<PathBuf>,
    texts: Option<TextBlocks>,
    inputs: InputOptions,
    open_rows: OpenRows,
    pub(super) job: CountJob,
}

impl Corpus {
    /// Counts the pretokens.
    pub(super) fn count(self, progress: &mut Progress) -> Result<Counted> {
        let Self {
            paths, texts, job, ..
        } = self;
        if let Some(mut texts) = texts {
            let most = job.block_bytes()?.unwrap_or(usize::MAX);
            texts.block_bytes = texts.block_bytes.min(most);
            return job.count_blocks(texts, 0, progress);
        }
        job.count_files(&paths, self.inputs, self.open_rows, progress)
    }
}

/// Texts of a Python iterable, a megabyte or so at a time.
struct TextBlocks {
    texts: Py<PyIterator>,
    raised: Raised,
    /// A block ends with the text that reaches this size.
    block_bytes: usize,
}

impl Iterator for TextBlocks {
    type Item = Result<Block>;

    fn next(&mut self) -> Option<Self::Item> {
        let block = Python::attach(|py| {
            let mut texts = Vec::new();
            let mut size = 0;
            let mut iterator = self.texts.bind(py).clone();
            while size < self.block_bytes && texts.len() < 1 << 16 {
                let Some(text) = iterator.next().transpose()? else {
                    break;
                };
                let text = text.cast_into::<PyString>()?;
                let text = text_of(&text)?.into_owned();
                size += text.len();
                texts.push(text);
            }
            Ok((!texts.is_empty()).then(|| Block::of_texts(texts.iter().map(String::as_str))))
        });
        block.map_err(|error| self.raised.keep(error)).transpose()
    }
}

fn unit_of(name: &str) -> Result<Unit> {
    Ok(match name {
        "document" => Unit::Document,
        "line" => Unit::Line,
        _ => {
            return Err(Error::Argument(format!(
                "unit must be document or line, got {name:?}"
            )));
        }
    })
}

/// (pretoken, count) pairs of a Python iterable.
pub(super) fn pairs_of(py: Python<'_>, pairs: &Bound<'_, PyAny>) -> PyResult<PairCounter> {
    let mut counter = PairCounter::default();
    for (i, pair) in pairs.try_iter()?.enumerate() {
        if i % (1 << 12) == 0 {
            py.check_signals()?;
        }
        let (pretoken, count): (Bound<'_, PyBytes>, Bound<'_, PyAny>) = pair?.extract()?;
        let number = count.extract::<u64>().map_err(|error| {
            if error.is_instance_of::<pyo3::exceptions::PyOverflowError>(py) {
                return PyValueError::new_err(format!(
                    "a count must be from 0 to 2^64 - 1, got {count}"
                ));
            }
            error
        })?;
        counter.add(pretoken.as_bytes(), number)?;
    }
    Ok(counter)
}

fn total_of(py: Python<'_>, total: CountsTotal) -> PyResult<Bound<'_, PyDict>> {
    let out = PyDict::new(py);
    out.set_item("n_entries", total.n_entries)?;
    out.set_item("n_pretokens", total.n_pretokens)?;
    out.set_item("n_bytes", total.n_bytes)?;
    Ok(out)
}

/// Counts the pretokens of what `counting` names into the file `out`.
#[pyfunction]
pub fn count_pretokens<'py>(
    py: Python<'py>,
    counting: Counting<'py>,
    out: PathBuf,
    progress: Option<Py<PyAny>>,
) -> PyResult<Bound<'py, PyDict>> {
    let raised = Raised::default();
    let special_tokens = counting.special_tokens.clone();
    let corpus = counting.corpus(&special_tokens, &raised)?;
    let result = run(py, progress, |progress: &mut Progress| {
        let origin = corpus.job.splitter.origin();
        corpus.count(progress)?.write(&out, &origin, progress)
    });
    total_of(py, raised.or(result)?)
}

/// Reads a file of counts entry by entry; see `rslm.tokenizer.read_counts`.
#[pyclass(frozen, module = "rslm._rslm")]
pub struct CountsReader(Mutex<crate::bpe::CountsReader>);

#[pymethods]
impl CountsReader {
    #[new]
    fn new(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let reader = py.detach(|| crate::bpe::CountsReader::open(&path))?;
        Ok(Self(Mutex::new(reader)))
    }

    /// How the pretokens were made, and what they come to.
    #[getter]
    fn header<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let reader = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let out = total_of(py, reader.total())?;
        let origin = reader.origin();
        out.set_item("pattern", &origin.pattern)?;
        out.set_item("special_tokens", &origin.special_tokens)?;
        out.set_item("unit", &origin.unit)?;
        out.set_item("unicode_version", &origin.unicode_version)?;
        Ok(out)
    }

    fn __iter__(slf: PyRef<'_, Self>) -> PyRef<'_, Self> {
        slf
    }

    fn __next__<'py>(&self, py: Python<'py>) -> PyResult<Option<(Bound<'py, PyBytes>, u64)>> {
        let mut reader = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !reader.advance()? {
            return Ok(None);
        }
        Ok(Some((PyBytes::new(py, reader.pretoken()), reader.count())))
    }
}
