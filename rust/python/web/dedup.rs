//! Binding of [`crate::web::dedup`].

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use numpy::{IntoPyArray, PyArray1, PyArrayMethods, PyReadonlyArray1};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyString};

use super::super::run;
use crate::web::dedup::{self, Cap, HashFunctions, Keep, MinHash, Repeated, Rule, Shingled};
use crate::{Error, Progress, Result};

fn rule_of(name: &str) -> Result<Rule> {
    match name {
        "course" => Ok(Rule::Course),
        "fineweb" => Ok(Rule::FineWeb),
        _ => Err(Error::Argument(format!(
            "normalization must be \"course\" or \"fineweb\", got {name:?}"
        ))),
    }
}

/// A text as UTF-8, in which lone surrogates are the three bytes that each would have.
fn bytes_of<'a>(text: &'a Bound<'_, PyString>) -> PyResult<Cow<'a, [u8]>> {
    if let Ok(text) = text.to_str() {
        return Ok(Cow::Borrowed(text.as_bytes()));
    }
    let bytes = text.call_method1("encode", ("utf-8", "surrogatepass"))?;
    Ok(Cow::Owned(bytes.cast::<PyBytes>()?.as_bytes().to_vec()))
}

fn all_bytes_of<'a>(texts: &'a [Bound<'_, PyString>]) -> PyResult<Vec<Cow<'a, [u8]>>> {
    texts.iter().map(bytes_of).collect()
}

/// The `str` of what [`bytes_of`] gave, or of a part of it.
fn text_from<'py>(py: Python<'py>, bytes: &[u8]) -> PyResult<Bound<'py, PyString>> {
    if let Ok(text) = std::str::from_utf8(bytes) {
        return Ok(PyString::new(py, text));
    }
    let text = PyBytes::new(py, bytes).call_method1("decode", ("utf-8", "surrogatepass"))?;
    Ok(text.cast_into()?)
}

/// Texts by a rule of `rslm.data.dedup.normalize`.
#[pyfunction]
pub fn normalize_texts<'py>(
    py: Python<'py>,
    texts: Vec<Bound<'py, PyString>>,
    rule: &str,
) -> PyResult<Bound<'py, PyList>> {
    let rule = rule_of(rule)?;
    let texts = all_bytes_of(&texts)?;
    let normal: Vec<Vec<u8>> = py.detach(|| {
        let normalized = |text: &Cow<'_, [u8]>| {
            let mut out = Vec::new();
            dedup::normalize(text, rule, &mut out);
            out
        };
        texts.iter().map(normalized).collect()
    });
    let normal = normal
        .iter()
        .map(|text| text_from(py, text))
        .collect::<PyResult<Vec<_>>>()?;
    PyList::new(py, normal)
}

/// The first 16 bytes of the SHA-256 of each text: those that copies are known by.
#[pyfunction]
pub fn exact_keys<'py>(
    py: Python<'py>,
    texts: Vec<Bound<'py, PyString>>,
) -> PyResult<Vec<Bound<'py, PyBytes>>> {
    let texts = all_bytes_of(&texts)?;
    let keys = py.detach(|| dedup::exact_keys(&texts));
    let bytes = |key: [u64; 2]| PyBytes::new(py, key.map(u64::to_le_bytes).as_flattened());
    Ok(keys.into_iter().map(bytes).collect())
}

/// The signature of a text, of numbers below 2^61; none if it has no shingle.
#[pyfunction]
pub fn minhash_signature<'py>(
    py: Python<'py>,
    text: &Bound<'py, PyString>,
    options: MinHashArguments<'py>,
) -> PyResult<Option<Bound<'py, PyArray1<u64>>>> {
    let options = options.read()?;
    let text = bytes_of(text)?;
    let mut signature = Vec::new();
    let mut shingled = Shingled::default();
    shingled.normalize(&text, options.rule);
    shingled.hash(options.ngram_words, options.whole);
    if shingled.hashes.is_empty() {
        return Ok(None);
    }
    let functions = HashFunctions::new(&options.factors, &options.summands);
    functions.sign(&shingled.hashes, &mut signature);
    Ok(Some(signature.into_pyarray(py)))
}

/// Normalisation, words of a shingle, whether fewer are one shingle, bands, threshold, factors,
/// summands.
#[derive(FromPyObject)]
pub struct MinHashArguments<'py>(
    String,
    usize,
    bool,
    usize,
    Option<f64>,
    PyReadonlyArray1<'py, u64>,
    PyReadonlyArray1<'py, u64>,
);

impl MinHashArguments<'_> {
    fn read(self) -> PyResult<MinHash> {
        let Self(rule, ngram_words, whole, n_bands, threshold, factors, summands) = self;
        let (factors, summands) = (factors.as_array().to_vec(), summands.as_array().to_vec());
        let n = factors.len();
        if ngram_words == 0 || n_bands == 0 || n == 0 || n != summands.len() || n % n_bands != 0 {
            return Err(PyValueError::new_err(
                "hash functions must fill whole bands",
            ));
        }
        let rule = rule_of(&rule)?;
        Ok(MinHash {
            rule,
            ngram_words,
            whole,
            n_bands,
            threshold,
            factors,
            summands,
        })
    }
}

enum Work {
    Lines(dedup::LineCounter),
    Exact(dedup::ExactSigner),
    MinHash(Box<dedup::MinHashSigner>),
}

impl Work {
    fn add(&mut self, texts: &[Cow<'_, [u8]>]) -> Result<()> {
        match self {
            Self::Lines(counter) => texts.iter().try_for_each(|text| counter.add(text)),
            Self::Exact(signer) => signer.add(texts),
            Self::MinHash(signer) => texts.iter().try_for_each(|text| signer.add(text)),
        }
    }
}

/// What a stage reads of the documents of one shard, and the file that it makes of them.
#[pyclass(frozen, module = "rslm._rslm")]
pub struct ShardWriter {
    target: PathBuf,
    n_ranges: u32,
    work: Mutex<Option<Work>>,
}

impl ShardWriter {
    fn new(target: PathBuf, n_ranges: u32, work: Work) -> PyResult<Self> {
        if n_ranges == 0 {
            return Err(PyValueError::new_err("n_ranges must be at least 1, got 0"));
        }
        Ok(Self {
            target,
            n_ranges,
            work: Mutex::new(Some(work)),
        })
    }
}

#[pymethods]
impl ShardWriter {
    /// Of the lines of a shard.
    #[staticmethod]
    fn of_lines(shard: u32, target: PathBuf, n_ranges: u32, limit: u64) -> PyResult<Self> {
        let counter = dedup::LineCounter::new(shard, &target, limit);
        Self::new(target, n_ranges, Work::Lines(counter))
    }

    /// Of the texts of a shard.
    #[staticmethod]
    fn of_exact(shard: u32, target: PathBuf, n_ranges: u32, limit: u64) -> PyResult<Self> {
        let signer = dedup::ExactSigner::new(shard, &target, limit);
        Self::new(target, n_ranges, Work::Exact(signer))
    }

    /// Of the signatures of a shard.
    #[staticmethod]
    fn of_minhash(
        options: MinHashArguments<'_>,
        shard: u32,
        target: PathBuf,
        n_ranges: u32,
        limit: u64,
    ) -> PyResult<Self> {
        let signer = dedup::MinHashSigner::new(options.read()?, shard, &target, limit)?;
        Self::new(target, n_ranges, Work::MinHash(Box::new(signer)))
    }

    /// Takes the next documents.
    fn add(&self, py: Python<'_>, texts: Vec<Bound<'_, PyString>>) -> PyResult<()> {
        let texts = all_bytes_of(&texts)?;
        py.detach(|| {
            let mut work = self.work.lock().unwrap_or_else(PoisonError::into_inner);
            let work = work.as_mut().ok_or_else(is_finished)?;
            work.add(&texts)
        })?;
        Ok(())
    }

    /// Writes the file; gives the number of lines or documents.
    fn finish(&self, py: Python<'_>) -> PyResult<u64> {
        let work = self
            .work
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let work = work.ok_or_else(is_finished)?;
        let (target, n_ranges) = (&self.target, self.n_ranges);
        run(py, None, |progress: &mut Progress| match work {
            Work::Lines(counter) => counter.finish(target, n_ranges, progress),
            Work::Exact(signer) => signer.finish(target, n_ranges, progress),
            Work::MinHash(signer) => signer.finish(n_ranges, progress),
        })
    }

    /// Drops what was made, if the file is not written yet.
    fn discard(&self) {
        self.work
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
    }
}

fn is_finished() -> Error {
    Error::Argument("a shard must not be written on after its end".to_owned())
}

/// Lines, different ones, repeated ones, copies of these.
#[pyfunction]
pub fn merge_line_files(
    py: Python<'_>,
    counts: Vec<PathBuf>,
    range: u32,
    target: PathBuf,
    n_ranges: u32,
) -> PyResult<(u64, u64, u64, u64)> {
    let totals = run(py, None, |progress: &mut Progress| {
        dedup::merge_lines(&counts, range, &target, n_ranges, progress)
    })?;
    Ok((
        totals.n_lines,
        totals.n_distinct,
        totals.n_repeated,
        totals.n_copies,
    ))
}

/// Range, number of ranges, and where the records of a file of repeated lines are.
#[pyfunction]
pub fn check_repeated_lines(py: Python<'_>, path: PathBuf) -> PyResult<(u64, u64, u64, u64)> {
    Ok(py.detach(|| dedup::check_repeated(&path))?)
}

type Tables<'py> = Vec<PyReadonlyArray1<'py, u8>>;

/// What stays of each text, and the number of lines that went.
#[pyfunction]
pub fn rewrite_lines<'py>(
    py: Python<'py>,
    tables: Tables<'py>,
    texts: Vec<Bound<'py, PyString>>,
    shard: u32,
    first_row: u32,
    keep_first: bool,
) -> PyResult<Vec<(Bound<'py, PyString>, u64)>> {
    let tables = tables
        .iter()
        .map(|t| Ok(t.as_slice()?))
        .collect::<PyResult<Vec<_>>>()?;
    let repeated = Repeated(tables);
    let bytes = all_bytes_of(&texts)?;
    let rewritten: Vec<(Vec<u8>, u64)> = py.detach(|| {
        let rows = bytes.iter().zip(first_row..);
        rows.map(|(text, row)| {
            let mut out = Vec::with_capacity(text.len());
            let n_removed = repeated.rewrite(text, (shard, row), keep_first, &mut out);
            (out, n_removed)
        })
        .collect()
    });
    let texts = texts.into_iter().zip(rewritten);
    texts
        .map(|(text, (out, n_removed))| match n_removed {
            0 => Ok((text, 0)),
            _ => Ok((text_from(py, &out)?, n_removed)),
        })
        .collect()
}

/// Counts the lines of whole files as those of shard 0.
#[pyfunction]
pub fn count_line_files(
    py: Python<'_>,
    paths: Vec<PathBuf>,
    target: PathBuf,
    limit: u64,
) -> PyResult<u64> {
    run(py, None, |progress: &mut Progress| {
        dedup::count_files(&paths, &target, limit, progress)
    })
}

/// Writes what stays of whole files; gives the number of lines written.
#[pyfunction]
pub fn rewrite_line_files(
    py: Python<'_>,
    tables: Tables<'_>,
    paths: Vec<(PathBuf, PathBuf)>,
    keep_first: bool,
) -> PyResult<u64> {
    let tables = tables
        .iter()
        .map(|t| Ok(t.as_slice()?))
        .collect::<PyResult<Vec<_>>>()?;
    let repeated = Repeated(tables);
    run(py, None, |progress: &mut Progress| {
        dedup::rewrite_files(&repeated, &paths, keep_first, progress)
    })
}

/// Candidates, duplicates, copies, capped buckets, members of the largest bucket.
#[pyfunction]
pub fn join_signatures(
    py: Python<'_>,
    signatures: Vec<PathBuf>,
    part: u64,
    target: PathBuf,
    cap: (usize, usize),
    limit: u64,
) -> PyResult<(u64, u64, u64, u64, u64)> {
    let cap = cap_of(cap);
    let totals = run(py, None, |progress: &mut Progress| {
        dedup::join(&signatures, part, &target, cap, limit, progress)
    })?;
    Ok((
        totals.n_candidate_pairs,
        totals.n_duplicate_pairs,
        totals.n_copies,
        totals.n_capped_buckets,
        totals.largest_bucket,
    ))
}

fn cap_of((max_bucket, n_representatives): (usize, usize)) -> Cap {
    Cap {
        max_bucket,
        n_representatives,
    }
}

type Place = (u32, u32);
type Clusters = (u64, u64, Vec<(u64, u64)>, Vec<(Place, u64, Vec<Place>)>);

/// Documents, dropped ones, sizes and how many clusters have them, the largest clusters.
#[pyfunction]
pub fn cluster_edges(
    py: Python<'_>,
    edges: Vec<PathBuf>,
    n_rows: Vec<u64>,
    target: PathBuf,
    seed: Option<u64>,
) -> PyResult<Clusters> {
    let keep = seed.map_or(Keep::First, Keep::Random);
    let totals = run(py, None, |progress: &mut Progress| {
        dedup::cluster(&edges, &n_rows, &target, keep, progress)
    })?;
    let sizes = totals.sizes.into_iter().collect();
    Ok((totals.n_documents, totals.n_dropped, sizes, totals.examples))
}

/// The rows to drop of a shard, ascending.
#[pyfunction]
pub fn read_dropped_rows(
    py: Python<'_>,
    path: PathBuf,
    shard: u32,
) -> PyResult<Bound<'_, PyArray1<u32>>> {
    let rows = py.detach(|| dedup::dropped_rows(&path, shard))?;
    Ok(rows.into_pyarray(py))
}

type Among<'py> = (Bound<'py, PyArray1<u32>>, u64, u64, u64);

/// For each rank the least of its cluster; candidates, duplicates, capped buckets.
#[pyfunction]
pub fn find_among<'py>(
    py: Python<'py>,
    path: PathBuf,
    ranks: &Bound<'py, PyArray1<u32>>,
    cap: (usize, usize),
    limit: u64,
) -> PyResult<Among<'py>> {
    let ranks = ranks.to_vec()?;
    let found = run(py, None, |progress: &mut Progress| {
        dedup::find_among(&path, &ranks, cap_of(cap), limit, progress)
    })?;
    Ok((
        found.roots.into_pyarray(py),
        found.n_candidate_pairs,
        found.n_duplicate_pairs,
        found.n_capped_buckets,
    ))
}
