//! A model file, read field by field: nothing in it is believed before it was held against the
//! rest of the file.
//!
//! Source: the format, version 12, as fastText 0.9.2 writes it (`fasttext.cc`, `dictionary.cc`,
//! `matrix.cc`, `quantmatrix.cc`, `productquantizer.cc`).

// Numbers are signed in the file, and held against its rest before they are cast.
#![allow(clippy::cast_possible_wrap, clippy::cast_sign_loss)]

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::path::{Path, PathBuf};

use super::matrix::{Matrix, N_CENTROIDS, Quantizer};
use super::{Arguments, LossKind};
use crate::{Error, Result};

const MAGIC: i32 = 793712314;
const SUPERVISED: i32 = 3;
/// A trained model is far within these. Products and sums of such weights are finite.
const MAX_WEIGHT: f32 = 1e6;
/// A long word costs its length times `maxn`.
const MAX_NGRAM: i32 = 64;
const MAX_DIM: i32 = 1 << 16;
/// What the Huffman tree takes for infinite.
const MAX_COUNT: i64 = 1_000_000_000_000_000;

/// What a model file holds.
pub struct ModelFile {
    pub arguments: Arguments,
    pub words: Vec<Vec<u8>>,
    pub labels: Vec<(String, i64)>,
    /// (bucket, row behind those of the words) in the file's order; None where none is left out.
    pub pruned: Option<Vec<(i32, u32)>>,
    pub input: Matrix,
    pub output: Matrix,
}

/// Reads the model of a file.
///
/// Memory: what the model takes, and no more than a constant times the file's size.
pub fn read_model(path: &Path) -> Result<ModelFile> {
    let file = File::open(path).map_err(|error| Error::io(path, error))?;
    let size = file
        .metadata()
        .map_err(|error| Error::io(path, error))?
        .len();
    let mut reader = Reader {
        file: BufReader::with_capacity(1 << 16, file),
        path: path.to_path_buf(),
        size,
        at: 0,
    };
    reader.model()
}

struct Reader {
    file: BufReader<File>,
    path: PathBuf,
    size: u64,
    at: u64,
}

impl Reader {
    fn model(&mut self) -> Result<ModelFile> {
        let (magic, version) = (self.i32()?, self.i32()?);
        self.require(magic == MAGIC && (version == 11 || version == 12), || {
            "it has another magic or version".into()
        })?;
        let arguments = self.arguments(version)?;
        let (words, labels, pruned) = self.dictionary()?;
        let quantized = self.flag()?;
        self.require(quantized || pruned.is_none(), || {
            "only quantised ones are pruned".into()
        })?;
        let input = self.matrix(quantized, arguments.dim)?;
        let wanted = rows_needed(&arguments, words.len(), pruned.as_deref());
        self.require(input.n_rows() as u64 >= wanted, || {
            format!("{wanted} rows are needed, and there are {}", input.n_rows())
        })?;
        let quantized_output = self.flag()?;
        let output = self.matrix(quantized && quantized_output, arguments.dim)?;
        self.require(output.n_rows() == labels.len(), || {
            format!("{} labels have {} rows", labels.len(), output.n_rows())
        })?;
        self.require(self.at == self.size, || {
            format!("{} bytes are left over", self.size - self.at)
        })?;
        Ok(ModelFile {
            arguments,
            words,
            labels,
            pruned,
            input,
            output,
        })
    }

    fn arguments(&mut self, version: i32) -> Result<Arguments> {
        let mut values = [0; 12];
        for value in &mut values {
            *value = self.i32()?;
        }
        self.bytes::<8>()?;
        let [
            dim,
            _,
            _,
            _,
            _,
            word_ngrams,
            loss,
            model,
            bucket,
            minn,
            maxn,
            _,
        ] = values;
        self.require(model == SUPERVISED, || {
            "it was not trained on labels".into()
        })?;
        let loss = match loss {
            1 => LossKind::Tree,
            2 | 4 => LossKind::Logistic,
            3 => LossKind::Softmax,
            _ => return self.bad("its loss is unknown"),
        };
        self.require((1..=MAX_DIM).contains(&dim), || {
            format!("rows of {dim} numbers are impossible")
        })?;
        let lengths_fit = [word_ngrams, minn, maxn]
            .iter()
            .all(|length| (0..=MAX_NGRAM).contains(length));
        self.require(lengths_fit, || "n-grams have no such length".into())?;
        let uses_buckets = maxn > 0 || word_ngrams > 1;
        self.require(bucket >= i32::from(uses_buckets), || {
            "n-grams have no buckets".into()
        })?;
        Ok(Arguments {
            dim: dim as usize,
            word_ngrams: word_ngrams as usize,
            loss,
            bucket: bucket as u32,
            minn: minn as usize,
            // Version 11 wrote lengths that it did not use.
            maxn: if version == 11 { 0 } else { maxn as usize },
        })
    }

    #[allow(clippy::type_complexity)]
    fn dictionary(
        &mut self,
    ) -> Result<(Vec<Vec<u8>>, Vec<(String, i64)>, Option<Vec<(i32, u32)>>)> {
        let (n_entries, n_words, n_labels) = (self.i32()?, self.i32()?, self.i32()?);
        let (_, n_pruned) = (self.i64()?, self.i64()?);
        let sizes_fit =
            n_words >= 0 && n_labels >= 1 && n_words.checked_add(n_labels) == Some(n_entries);
        self.require(sizes_fit && n_pruned >= -1, || {
            "the dictionary's sizes contradict each other".into()
        })?;
        // Each entry takes ten bytes at least, so a count cannot promise more than the file has.
        self.require(n_entries as u64 <= self.size / 10, || {
            "the dictionary is larger than the file".into()
        })?;
        let mut words = Vec::with_capacity(n_words as usize);
        for _ in 0..n_words {
            words.push(self.entry(0)?.0);
        }
        let mut labels: Vec<(String, i64)> = Vec::with_capacity(n_labels as usize);
        let mut total = 0_i64;
        for _ in 0..n_labels {
            let (label, count) = self.entry(1)?;
            let Ok(label) = String::from_utf8(label) else {
                return self.bad("a label is not UTF-8");
            };
            // As a trained model has them, so that the Huffman tree is complete.
            let ordered = labels.last().is_none_or(|&(_, before)| count <= before);
            total = total.saturating_add(count);
            self.require(ordered && count >= 0 && total < MAX_COUNT, || {
                "counts are impossible".into()
            })?;
            labels.push((label, count));
        }
        let pruned = match u64::try_from(n_pruned) {
            Ok(n_pruned) => Some(self.pruned(n_pruned)?),
            Err(_) => None,
        };
        Ok((words, labels, pruned))
    }

    /// An entry of the dictionary: its bytes and how often it was seen.
    fn entry(&mut self, kind: u8) -> Result<(Vec<u8>, i64)> {
        let mut bytes = Vec::new();
        let taken = self.file.read_until(0, &mut bytes);
        let taken = taken.map_err(|error| Error::io(&self.path, error))?;
        self.at += taken as u64;
        self.require(bytes.pop() == Some(0) && self.at <= self.size, || {
            "an entry is none".into()
        })?;
        bytes.shrink_to_fit();
        let count = self.i64()?;
        let found = self.bytes::<1>()?[0];
        self.require(found == kind, || "an entry is none".into())?;
        Ok((bytes, count))
    }

    fn pruned(&mut self, n_pruned: u64) -> Result<Vec<(i32, u32)>> {
        self.need(n_pruned, 8)?;
        let mut pairs = Vec::with_capacity(n_pruned as usize);
        for _ in 0..n_pruned {
            let (bucket, row) = (self.i32()?, self.i32()?);
            self.require(row >= 0, || "a pruned row is below 0".into())?;
            pairs.push((bucket, row as u32));
        }
        Ok(pairs)
    }

    fn matrix(&mut self, quantized: bool, dim: usize) -> Result<Matrix> {
        let with_norm = quantized && self.flag()?;
        let (n_rows, n_columns) = (self.i64()?, self.i64()?);
        self.require(n_rows >= 0 && n_columns == dim as i64, || {
            format!("a matrix has {n_columns} columns, not {dim}")
        })?;
        let n_rows = n_rows as u64;
        if !quantized {
            let weights = self.weights(n_rows.saturating_mul(dim as u64))?;
            return Ok(Matrix::dense(weights, dim));
        }
        let n_codes = self.i32()?;
        let codes = self.codes(i64::from(n_codes))?;
        let parts = self.quantizer(dim)?;
        let n_parts = parts.n_parts() as u64;
        self.require(
            n_rows.checked_mul(n_parts) == Some(codes.len() as u64),
            || "codes do not fit the rows".into(),
        )?;
        let norms = if with_norm {
            let codes = self.codes(n_rows as i64)?;
            let norms = self.quantizer(1)?;
            let norm = |&code: &u8| norms.centroids(0, code)[0];
            Some(codes.iter().map(norm).collect())
        } else {
            None
        };
        Ok(Matrix::quantized(codes, parts, norms))
    }

    fn quantizer(&mut self, dim: usize) -> Result<Quantizer> {
        let [own_dim, n_parts, part, last] = [self.i32()?, self.i32()?, self.i32()?, self.i32()?];
        let fits = own_dim as i64 == dim as i64
            && part >= 1
            && n_parts >= 1
            && (1..=part).contains(&last)
            && i64::from(n_parts - 1) * i64::from(part) + i64::from(last) == dim as i64;
        self.require(fits, || "a quantiser does not fit its rows".into())?;
        let centroids = self.weights((dim * N_CENTROIDS) as u64)?;
        Ok(Quantizer::new(dim, part as usize, centroids))
    }

    fn codes(&mut self, count: i64) -> Result<Vec<u8>> {
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        self.need(count, 1)?;
        let mut codes = vec![0; count as usize];
        self.fill(&mut codes)?;
        Ok(codes)
    }

    fn weights(&mut self, count: u64) -> Result<Vec<f32>> {
        self.need(count, 4)?;
        let mut weights = Vec::with_capacity(count as usize);
        let mut block = [0; 1 << 14];
        let mut left = 4 * count as usize;
        while left > 0 {
            let block = &mut block[..left.min(1 << 14)];
            self.fill(block)?;
            let numbers = block.as_chunks().0.iter();
            let start = weights.len();
            weights.extend(numbers.map(|&bytes| f32::from_le_bytes(bytes)));
            // False for a NaN.
            let possible = weights[start..].iter().all(|w: &f32| w.abs() <= MAX_WEIGHT);
            self.require(possible, || "a weight is no possible number".into())?;
            left -= block.len();
        }
        Ok(weights)
    }

    fn flag(&mut self) -> Result<bool> {
        let flag = self.bytes::<1>()?[0];
        self.require(flag <= 1, || "a flag is none".into())?;
        Ok(flag == 1)
    }

    fn i32(&mut self) -> Result<i32> {
        Ok(i32::from_le_bytes(self.bytes()?))
    }

    fn i64(&mut self) -> Result<i64> {
        Ok(i64::from_le_bytes(self.bytes()?))
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<()> {
        self.need(bytes.len() as u64, 1)?;
        self.file
            .read_exact(bytes)
            .map_err(|error| match error.kind() {
                ErrorKind::UnexpectedEof => self.error("it was cut while it was read"),
                _ => Error::io(&self.path, error),
            })?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    /// Refuses a count that the rest of the file cannot hold.
    fn need(&self, count: u64, item_bytes: u64) -> Result<()> {
        let size = count.saturating_mul(item_bytes);
        self.require(size <= self.size.saturating_sub(self.at), || {
            format!("it ends within {size} bytes at {}", self.at)
        })
    }

    fn require(&self, holds: bool, otherwise: impl FnOnce() -> String) -> Result<()> {
        if holds {
            Ok(())
        } else {
            Err(self.error(otherwise()))
        }
    }

    fn bad<T>(&self, reason: &str) -> Result<T> {
        Err(self.error(reason))
    }

    fn error(&self, reason: impl AsRef<str>) -> Error {
        let reason = format!("not a whole fastText model: {}", reason.as_ref());
        Error::format(&self.path, reason)
    }
}

/// Rows of the input matrix that texts can ask for.
fn rows_needed(arguments: &Arguments, n_words: usize, pruned: Option<&[(i32, u32)]>) -> u64 {
    let n_buckets = match pruned {
        None => u64::from(arguments.bucket),
        Some(pairs) => pairs
            .iter()
            .map(|&(_, row)| u64::from(row) + 1)
            .max()
            .unwrap_or(0),
    };
    n_words as u64 + n_buckets
}
