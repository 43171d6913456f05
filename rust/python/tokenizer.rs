//! `Tokenizer` and what reads and writes text through it.

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use numpy::{IntoPyArray, PyArray1, PyArray2, PyArrayMethods};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyBytes, PyDict, PyInt, PyIterator, PyList, PySlice, PyString};

use super::text_of;
use crate::TokenId;
use crate::bpe::formats::{self, Format};
use crate::bpe::{Dropout, MergeBy, Parts};
use crate::files::{StreamEncoder, encode_batch};
use crate::memory::with_huge_pages;

/// Byte-level BPE: the core of `rslm.Tokenizer`.
#[pyclass(frozen, module = "rslm._rslm")]
pub struct Tokenizer {
    pub(super) core: Arc<crate::Tokenizer>,
    /// One integer object for each id, once as many were listed as there are.
    integers: Mutex<Option<Arc<Vec<Py<PyInt>>>>>,
    n_listed: AtomicUsize,
}

impl From<crate::Tokenizer> for Tokenizer {
    fn from(tokenizer: crate::Tokenizer) -> Self {
        Self {
            core: Arc::new(tokenizer),
            integers: Mutex::new(None),
            n_listed: AtomicUsize::new(0),
        }
    }
}

impl Tokenizer {
    /// A list of ids. Making an integer costs ten times as much as counting one more
    /// reference to it, so lists come to share one integer per id of the vocabulary.
    fn list<'py, I: TokenId>(
        &self,
        py: Python<'py>,
        token_ids: &[I],
    ) -> PyResult<Bound<'py, PyList>> {
        let ids = token_ids.iter().map(|id| id.id());
        let shared = match self.integers() {
            None => {
                let n_before = self.n_listed.fetch_add(ids.len(), Ordering::Relaxed);
                if n_before + ids.len() < self.core.vocab().len() {
                    return PyList::new(py, ids);
                }
                self.make_integers(py)
            }
            Some(shared) => shared,
        };
        PyList::new(py, ids.map(|id| shared[id as usize].bind(py)))
    }

    /// Never waits for the lock: after a fork, the thread that held it may not exist.
    fn integers(&self) -> Option<Arc<Vec<Py<PyInt>>>> {
        self.integers
            .try_lock()
            .ok()
            .and_then(|shared| shared.clone())
    }

    fn make_integers(&self, py: Python<'_>) -> Arc<Vec<Py<PyInt>>> {
        let ids = 0..self.core.vocab().len();
        let made = Arc::new(
            ids.map(|id| PyInt::new(py, id).unbind())
                .collect::<Vec<_>>(),
        );
        if let Ok(mut shared) = self.integers.try_lock() {
            *shared = Some(Arc::clone(&made));
        }
        made
    }
}

/// Token ids from a sequence of integers.
fn ids_of(token_ids: &Bound<'_, PyAny>) -> PyResult<Vec<u32>> {
    let listed;
    let token_ids = if token_ids.hasattr("tolist")? {
        listed = token_ids.call_method0("tolist")?;
        &listed
    } else {
        token_ids
    };
    let mut out = Vec::with_capacity(token_ids.len().unwrap_or(0));
    for token_id in token_ids.try_iter()? {
        let token_id = token_id?;
        out.push(token_id.extract().map_err(|error: PyErr| {
            if error.is_instance_of::<PyTypeError>(token_id.py()) {
                return error;
            }
            PyValueError::new_err(format!(
                "token ids must be from 0 to 4294967295, got {token_id}"
            ))
        })?);
    }
    Ok(out)
}

/// The bytes of a `str` or `bytes` object.
enum Text<'a> {
    Str(Cow<'a, str>),
    Bytes(&'a [u8]),
}

impl<'a> Text<'a> {
    fn of(text: &'a Bound<'_, PyAny>) -> PyResult<Self> {
        if let Ok(text) = text.cast::<PyString>() {
            return Ok(Self::Str(text_of(text)?));
        }
        match text.cast::<PyBytes>() {
            Ok(bytes) => Ok(Self::Bytes(bytes.as_bytes())),
            Err(_) => Err(PyTypeError::new_err(format!(
                "a text must be str or bytes, got {}",
                text.get_type().name()?
            ))),
        }
    }

    fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Str(text) => text.as_bytes(),
            Self::Bytes(bytes) => bytes,
        }
    }
}

/// `pre`, tokens, their types, merges.
type GgufVocabulary = (String, Vec<String>, Vec<i32>, Vec<String>);

#[pymethods]
impl Tokenizer {
    #[new]
    fn new(
        vocab: &Bound<'_, PyDict>,
        merges: Vec<(PyBackedBytes, PyBackedBytes)>,
        special_tokens: Vec<(String, Option<u32>)>,
        pattern: String,
    ) -> PyResult<Self> {
        let mut entries = Vec::with_capacity(vocab.len());
        for (id, token_bytes) in vocab {
            let id: u32 = id.extract().map_err(|_| {
                PyValueError::new_err(format!(
                    "vocab must map whole numbers from 0 to bytes, got the key {id}"
                ))
            })?;
            entries.push((id, token_bytes.cast::<PyBytes>()?.as_bytes().to_vec()));
        }
        let merges = merges
            .iter()
            .map(|(left, right)| (left.to_vec(), right.to_vec()))
            .collect();
        let merge_by = MergeBy::Merges;
        let parts = Parts {
            vocab: entries,
            merges,
            special_tokens,
            pattern,
            merge_by,
        };
        Ok(crate::Tokenizer::new(parts)?.into())
    }

    #[staticmethod]
    fn load(
        py: Python<'_>,
        path: PathBuf,
        format: Option<&str>,
        pattern: Option<&str>,
        special_tokens: Vec<(String, Option<u32>)>,
    ) -> PyResult<Self> {
        let format = format.map(Format::new).transpose()?;
        let tokenizer = py.detach(|| formats::load(&path, format, pattern, &special_tokens))?;
        Ok(tokenizer.into())
    }

    #[staticmethod]
    fn load_gpt2(
        py: Python<'_>,
        vocab_path: PathBuf,
        merges_path: PathBuf,
        special_tokens: Vec<(String, Option<u32>)>,
        pattern: &str,
    ) -> PyResult<Self> {
        let load = || formats::load_gpt2(&vocab_path, &merges_path, &special_tokens, pattern);
        Ok(py.detach(load)?.into())
    }

    #[staticmethod]
    fn from_json(py: Python<'_>, data: &[u8]) -> PyResult<Self> {
        Ok(py.detach(|| formats::from_canonical_json(data))?.into())
    }

    fn to_files<'py>(
        &self,
        py: Python<'py>,
        format: &str,
    ) -> PyResult<Vec<(&'static str, Bound<'py, PyBytes>)>> {
        let format = Format::new(format)?;
        let files = py.detach(|| formats::to_files(&self.core, format))?;
        let files = files.into_iter();
        Ok(files
            .map(|(name, data)| (name, PyBytes::new(py, &data)))
            .collect())
    }

    fn gguf_vocabulary(&self, py: Python<'_>, pre: Option<&str>) -> PyResult<GgufVocabulary> {
        let made = py.detach(|| formats::to_gguf(&self.core, pre))?;
        Ok((made.pre, made.tokens, made.token_types, made.merges))
    }

    fn to_json<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &formats::to_canonical_json(&self.core))
    }

    fn sha256<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.core.sha256())
    }

    #[getter]
    fn vocab_size(&self) -> usize {
        self.core.vocab().len()
    }

    #[getter]
    fn pattern(&self) -> &str {
        self.core.pattern().as_str()
    }

    #[getter]
    fn vocab<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let vocab = PyDict::new(py);
        for (id, token_bytes) in self.core.vocab().iter() {
            vocab.set_item(id, PyBytes::new(py, token_bytes))?;
        }
        Ok(vocab)
    }

    #[getter]
    fn merges<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let vocab = self.core.vocab();
        let token = |id| PyBytes::new(py, vocab.get(id).unwrap_or_default());
        PyList::new(
            py,
            self.core
                .merges()
                .iter()
                .map(|m| (token(m.left), token(m.right))),
        )
    }

    #[getter]
    fn special_tokens<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let specials = PyDict::new(py);
        for (text, id) in self.core.special_tokens() {
            specials.set_item(text, id)?;
        }
        Ok(specials)
    }

    fn token_byte_lengths<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<u32>> {
        self.core.token_byte_lengths().into_pyarray(py)
    }

    fn encode<'py>(
        &self,
        py: Python<'py>,
        text: &Bound<'py, PyString>,
    ) -> PyResult<Bound<'py, PyList>> {
        let text = text_of(text)?;
        if self.core.is_narrow() {
            self.list(py, &self.encoded::<u16>(py, text.as_bytes())?)
        } else {
            self.list(py, &self.encoded::<u32>(py, text.as_bytes())?)
        }
    }

    fn encode_to_numpy<'py>(
        &self,
        py: Python<'py>,
        text: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let text = Text::of(text)?;
        Ok(if self.core.is_narrow() {
            let ids = self.encoded::<u16>(py, text.as_bytes())?;
            ids.into_pyarray(py).into_any()
        } else {
            let ids = self.encoded::<u32>(py, text.as_bytes())?;
            ids.into_pyarray(py).into_any()
        })
    }

    fn encode_ordinary<'py>(
        &self,
        py: Python<'py>,
        text: &Bound<'py, PyString>,
    ) -> PyResult<Bound<'py, PyList>> {
        let text = text_of(text)?;
        let mut out: Vec<u32> = Vec::new();
        py.detach(|| self.core.encode_ordinary_into(text.as_bytes(), &mut out))?;
        self.list(py, &out)
    }

    fn encode_allowing<'py>(
        &self,
        py: Python<'py>,
        text: &Bound<'py, PyString>,
        allowed: Vec<String>,
    ) -> PyResult<Bound<'py, PyList>> {
        let text = text_of(text)?;
        let mut out: Vec<u32> = Vec::new();
        let is_allowed = |special: &str| allowed.iter().any(|other| other == special);
        py.detach(|| {
            self.core
                .encode_allowing(text.as_bytes(), is_allowed, &mut out)
        })?;
        self.list(py, &out)
    }

    fn encode_with_dropout<'py>(
        &self,
        py: Python<'py>,
        text: &Bound<'py, PyString>,
        dropout: f64,
        seed: u64,
    ) -> PyResult<Bound<'py, PyList>> {
        let text = text_of(text)?;
        let mut dropout = Dropout::new(dropout, seed)?;
        let mut out = Vec::new();
        py.detach(|| {
            self.core
                .encode_with_dropout(text.as_bytes(), &mut dropout, &mut out)
        })?;
        self.list(py, &out)
    }

    /// Start and end of each id in the characters of the text.
    fn offsets<'py>(
        &self,
        py: Python<'py>,
        token_ids: Vec<u32>,
    ) -> PyResult<Bound<'py, PyArray2<i64>>> {
        let offsets = py.detach(|| self.core.offsets(&token_ids))?;
        let n = offsets.len();
        offsets.into_flattened().into_pyarray(py).reshape([n, 2])
    }

    fn count(&self, py: Python<'_>, text: &Bound<'_, PyAny>) -> PyResult<usize> {
        let text = Text::of(text)?;
        let text = text.as_bytes();
        Ok(detach_if_long(py, text, || self.core.count(text))?)
    }

    fn encode_batch<'py>(
        &self,
        py: Python<'py>,
        texts: &Bound<'py, PyAny>,
        n_threads: Option<usize>,
    ) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyArray1<i64>>)> {
        let objects: Vec<Bound<'_, PyAny>> = texts.try_iter()?.collect::<PyResult<_>>()?;
        let texts = objects.iter().map(Text::of).collect::<PyResult<Vec<_>>>()?;
        let texts: Vec<&[u8]> = texts.iter().map(Text::as_bytes).collect();
        let (token_ids, ends) = if self.core.is_narrow() {
            let (ids, ends) = py.detach(|| encode_batch::<u16>(&self.core, &texts, n_threads))?;
            (ids.into_pyarray(py).into_any(), ends)
        } else {
            let (ids, ends) = py.detach(|| encode_batch::<u32>(&self.core, &texts, n_threads))?;
            (ids.into_pyarray(py).into_any(), ends)
        };
        let mut offsets = vec![0; ends.len() + 1];
        for (offset, end) in offsets[1..].iter_mut().zip(ends) {
            *offset = end.cast_signed() as i64;
        }
        Ok((token_ids, offsets.into_pyarray(py)))
    }

    fn encode_iterable(&self, texts: &Bound<'_, PyAny>) -> PyResult<EncodeIterator> {
        Ok(EncodeIterator {
            tokenizer: Arc::clone(&self.core),
            texts: texts.try_iter()?.unbind(),
            state: Mutex::new(IteratorState {
                stream: Some(StreamEncoder::new(&self.core)),
                surrogate: None,
                ready: Vec::new(),
                next: 0,
            }),
        })
    }

    fn decode_bytes<'py>(
        &self,
        py: Python<'py>,
        token_ids: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        // Arrays are read where they lie, and the interpreter stays: their owner may write.
        if let Ok(array) = token_ids.cast::<PyArray1<u16>>()
            && let Ok(array) = array.try_readonly()
            && let Ok(token_ids) = array.as_slice()
        {
            return self.decoded(py, token_ids);
        }
        if let Ok(array) = token_ids.cast::<PyArray1<u32>>()
            && let Ok(array) = array.try_readonly()
            && let Ok(token_ids) = array.as_slice()
        {
            return self.decoded(py, token_ids);
        }
        self.decoded(py, &ids_of(token_ids)?)
    }

    fn token_to_id(&self, token_bytes: &[u8]) -> Option<u32> {
        self.core.id_of(token_bytes)
    }
}

/// Leaving the interpreter costs more than encoding a short text.
fn detach_if_long<T: Send>(py: Python<'_>, text: &[u8], work: impl Send + FnOnce() -> T) -> T {
    if text.len() < 1024 {
        work()
    } else {
        py.detach(work)
    }
}

impl Tokenizer {
    fn encoded<I: TokenId>(&self, py: Python<'_>, text: &[u8]) -> PyResult<Vec<I>> {
        let mut out = with_huge_pages(Vec::with_capacity(text.len() / 4 + 16));
        detach_if_long(py, text, || self.core.encode_into(text, &mut out))?;
        Ok(out)
    }

    fn decoded<'py, I: TokenId>(
        &self,
        py: Python<'py>,
        token_ids: &[I],
    ) -> PyResult<Bound<'py, PyBytes>> {
        let n_bytes = self.core.decoded_bytes(token_ids)?;
        PyBytes::new_with(py, n_bytes, |out| {
            self.core.decode_to(token_ids, out);
            Ok(())
        })
    }
}

struct IteratorState {
    /// `None` once the text has ended.
    stream: Option<StreamEncoder>,
    /// A high surrogate at the end of a piece, whose other half may begin the next one.
    surrogate: Option<Py<PyString>>,
    ready: Vec<u32>,
    next: usize,
}

/// The ids of a text that comes in pieces; see `rslm.Tokenizer.encode_iterable`.
#[pyclass(frozen, module = "rslm._rslm")]
pub struct EncodeIterator {
    tokenizer: Arc<crate::Tokenizer>,
    texts: Py<PyIterator>,
    state: Mutex<IteratorState>,
}

#[pymethods]
impl EncodeIterator {
    fn __iter__(slf: PyRef<'_, Self>) -> PyRef<'_, Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<u32>> {
        let id = self.next_id(py);
        if id.is_err() {
            // As a generator that raised: what comes after the lost text is not the ids of it all.
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.stream = None;
            state.ready.clear();
        }
        id
    }
}

impl EncodeIterator {
    fn next_id(&self, py: Python<'_>) -> PyResult<Option<u32>> {
        loop {
            {
                let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(&id) = state.ready.get(state.next) {
                    state.next += 1;
                    return Ok(Some(id));
                }
                if state.stream.is_none() {
                    return Ok(None);
                }
            }
            // A source of empty texts would keep Ctrl-C waiting.
            py.check_signals()?;
            // The source is asked outside the lock: it may be slow, or this very iterator.
            let text = self.texts.bind(py).clone().next().transpose()?;
            let text = text.map(Bound::cast_into::<PyString>).transpose()?;
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            let IteratorState {
                stream,
                surrogate,
                ready,
                next,
            } = &mut *state;
            ready.clear();
            *next = 0;
            let Some(encoder) = stream.as_mut() else {
                return Ok(None);
            };
            if let Some(text) = text {
                let text = join_surrogates(text, surrogate)?;
                encoder.push(&self.tokenizer, &text_of(&text)?, ready)?;
            } else {
                if let Some(lone) = surrogate.take() {
                    encoder.push(&self.tokenizer, &text_of(lone.bind(py))?, ready)?;
                }
                encoder.finish(&self.tokenizer, ready)?;
                *stream = None;
            }
        }
    }
}

/// The text after the surrogate that was held, and without the one that it ends with,
/// which is held now: its other half may begin the next text.
fn join_surrogates<'py>(
    text: Bound<'py, PyString>,
    held: &mut Option<Py<PyString>>,
) -> PyResult<Bound<'py, PyString>> {
    let py = text.py();
    let text = match held.take() {
        Some(high) => high.bind(py).add(text)?.cast_into()?,
        None => text,
    };
    if text.to_str().is_ok() {
        return Ok(text);
    }
    let last = text.len()? - 1;
    let end = text.get_item(last)?.cast_into::<PyString>()?;
    let utf16: Vec<u8> = end
        .call_method1("encode", ("utf-16-be", "surrogatepass"))?
        .extract()?;
    if !matches!(utf16[..], [0xD8..=0xDB, _]) {
        return Ok(text);
    }
    *held = Some(end.unbind());
    Ok(text
        .get_item(PySlice::new(py, 0, last.cast_signed(), 1))?
        .cast_into()?)
}

/// Decodes ids one at a time and never shows half a character.
///
/// `add` returns the text that the new id completes, `finish` what is left. Joined, the
/// pieces are `decode` of all ids with `errors="replace"`.
#[pyclass(frozen, module = "rslm._rslm")]
pub struct StreamDecoder {
    tokenizer: Arc<crate::Tokenizer>,
    pending: Mutex<Vec<u8>>,
}

#[pymethods]
impl StreamDecoder {
    #[new]
    fn new(tokenizer: &Bound<'_, PyAny>) -> PyResult<Self> {
        let core = tokenizer
            .getattr("_core")
            .unwrap_or_else(|_| tokenizer.clone());
        let tokenizer = Arc::clone(&core.cast::<Tokenizer>()?.get().core);
        Ok(Self {
            tokenizer,
            pending: Mutex::default(),
        })
    }

    /// The text that this id completes: perhaps none, never half a character.
    fn add(&self, token_id: i64) -> PyResult<String> {
        let id = u32::try_from(token_id)
            .ok()
            .filter(|&id| self.tokenizer.vocab().get(id).is_some());
        let id = id.ok_or_else(|| {
            PyValueError::new_err(format!(
                "token_id must be in the vocabulary of {} tokens, got {token_id}",
                self.tokenizer.vocab().len()
            ))
        })?;
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        self.tokenizer.decode_into(&[id], &mut pending)?;
        let keep = pending.len() - incomplete_tail(&pending);
        let text = String::from_utf8_lossy(&pending[..keep]).into_owned();
        pending.drain(..keep);
        Ok(text)
    }

    /// What is left, with U+FFFD for a character that never became whole.
    fn finish(&self) -> String {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&std::mem::take(&mut *pending)).into_owned()
    }
}

/// Bytes at the end that begin a character and may yet become one: at most three.
fn incomplete_tail(bytes: &[u8]) -> usize {
    let mut rest = bytes;
    while let Err(error) = std::str::from_utf8(rest) {
        match error.error_len() {
            Some(invalid) => rest = &rest[error.valid_up_to() + invalid..],
            None => return rest.len() - error.valid_up_to(),
        }
    }
    0
}
