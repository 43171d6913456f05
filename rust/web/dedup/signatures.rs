//! What of the documents of a shard is compared: written once, joined with that of all others.
//!
//! ```text
//! numbers   shard, kind (0 exact, 1 MinHash), n_documents, n_ranges, n_bands, checksum of the
//!           options, threshold (bits of a float64; 0: none)
//! exact     for each range: (key of 16 bytes, shard u32, row u32), ascending
//! MinHash   sets: for each document the hashes of its shingles, ascending, and their checksum
//!           rows: where each document's set is, 32 bytes each
//!           copies: (first row u32, row u32) of documents of one normalised text
//!           for each band, for each range: (key u64, shard u32, row u32), ascending
//! ```
//!
//! Sets and rows are there only where candidates are compared by them.

use std::path::Path;

use rustc_hash::FxHashMap;
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use super::characters::Rule;
use super::container::Kind;
use super::lines::checked;
use super::normalize::{close_gaps, normalize};
use super::records::{BandRecord, ExactRecord, ShardRecord, range_of, write_groups};
use super::runs::Sorter;
use super::sha256::exact_keys;
use super::signature::{HashFunctions, hash_shingles};
use super::writer::Writer;
use crate::{Progress, Result};

/// Numbers in a file of signatures.
pub(super) const N_NUMBERS: usize = 7;
/// Sections before those of the bands.
pub(super) const SETS: usize = 0;
pub(super) const ROWS: usize = 1;
pub(super) const COPIES: usize = 2;
pub(super) const BANDS: usize = 3;

/// Signs documents by their text alone.
pub struct ExactSigner {
    shard: u32,
    row: u32,
    sorter: Sorter<ExactRecord>,
}

impl ExactSigner {
    /// Of a shard of that number; what does not fit the limit is spilled beside `target`.
    pub fn new(shard: u32, target: &Path, memory_limit_bytes: u64) -> Self {
        Self {
            shard,
            row: 0,
            sorter: Sorter::new(target, memory_limit_bytes),
        }
    }

    /// Signs the next documents.
    ///
    /// # Errors
    /// `Io`; `Argument` beyond 2^32 documents.
    pub fn add<T: AsRef<[u8]>>(&mut self, texts: &[T]) -> Result<()> {
        for key in exact_keys(texts) {
            self.sorter.push(ExactRecord {
                key,
                shard: self.shard,
                row: self.row,
            })?;
            self.row = checked(u64::from(self.row) + 1, "documents of a shard")?;
        }
        Ok(())
    }

    /// Writes the keys to `target`; gives the number of documents.
    ///
    /// # Errors
    /// `Io`, `Interrupted`.
    pub fn finish(self, target: &Path, n_ranges: u32, progress: &mut Progress) -> Result<u64> {
        let mut writer = Writer::create(target)?;
        let range = |record: &ExactRecord| range_of(record.key[0], n_ranges);
        let mut tick = || progress("write signatures", 0, 1);
        write_groups(
            &mut writer,
            n_ranges,
            self.sorter,
            range,
            |record| *record,
            &mut tick,
        )?;
        let (shard, n_documents) = (u64::from(self.shard), u64::from(self.row));
        let numbers = [shard, 0, n_documents, u64::from(n_ranges), 1, 0, 0];
        writer.finish(Kind::Signatures, &numbers)?;
        Ok(n_documents)
    }
}

/// How documents are signed: the fields of `MinHashOptions` that decide it.
pub struct MinHash {
    /// By which rule texts are made alike.
    pub rule: Rule,
    /// Words of a shingle.
    pub ngram_words: usize,
    /// Whether fewer words are one shingle.
    pub whole: bool,
    /// Bands of a signature.
    pub n_bands: usize,
    /// Whether candidates are compared, and how similar duplicates are at least.
    pub threshold: Option<f64>,
    /// The factors and summands of the hash functions.
    pub factors: Vec<u64>,
    /// As many.
    pub summands: Vec<u64>,
}

impl MinHash {
    /// Another value for other options: signatures by them do not belong together.
    fn checksum(&self) -> u64 {
        let Self {
            rule,
            ngram_words,
            whole,
            n_bands,
            threshold,
            factors,
            summands,
        } = self;
        let options = format!(
            "{rule:?} {ngram_words} {whole} {n_bands} {threshold:?} {factors:?} {summands:?}"
        );
        xxh3_64(options.as_bytes())
    }
}

/// A document's normalised words and the hashes of their shingles, in buffers that are reused.
#[derive(Default)]
pub struct Shingled {
    /// The words, with one blank between.
    pub words: Vec<u8>,
    /// The hashes, one for each place in the text.
    pub hashes: Vec<u64>,
}

impl Shingled {
    /// Normalises a text.
    pub fn normalize(&mut self, text: &[u8], rule: Rule) {
        normalize(text, rule, &mut self.words);
        if rule == Rule::FineWeb {
            close_gaps(&mut self.words);
        }
    }

    /// Hashes the shingles of the words.
    pub fn hash(&mut self, ngram_words: usize, whole: bool) {
        self.hashes.clear();
        hash_shingles(&self.words, ngram_words, whole, &mut self.hashes);
    }
}

/// Signs documents by what their words have in common.
pub struct MinHashSigner {
    options: MinHash,
    functions: HashFunctions,
    shard: u32,
    writer: Writer,
    rows: Vec<[u8; ROW_BYTES]>,
    n_rows: u32,
    first_of: FxHashMap<[u64; 2], u32>,
    copies: Vec<(u32, u32)>,
    bands: Sorter<ShardRecord>,
    shingled: Shingled,
    signature: Vec<u64>,
}

/// Text hash, start of the set, number of its hashes, checksum of these.
pub(super) const ROW_BYTES: usize = 32;

impl MinHashSigner {
    /// Of a shard of that number. The file is begun beside `target`, and so is what does not
    /// fit the limit.
    ///
    /// # Errors
    /// `Io`.
    pub fn new(options: MinHash, shard: u32, target: &Path, limit_bytes: u64) -> Result<Self> {
        let functions = HashFunctions::new(&options.factors, &options.summands);
        let mut writer = Writer::create(target)?;
        writer.begin(1);
        Ok(Self {
            options,
            functions,
            shard,
            writer,
            rows: Vec::new(),
            n_rows: 0,
            first_of: FxHashMap::default(),
            copies: Vec::new(),
            bands: Sorter::new(target, limit_bytes),
            shingled: Shingled::default(),
            signature: Vec::new(),
        })
    }

    /// Signs the next document.
    ///
    /// # Errors
    /// `Io`; `Argument` beyond 2^32 documents.
    pub fn add(&mut self, text: &[u8]) -> Result<()> {
        let row = self.n_rows;
        self.n_rows = checked(u64::from(row) + 1, "documents of a shard")?;
        self.shingled.normalize(text, self.options.rule);
        let hash = xxh3_128(&self.shingled.words);
        let hash = [(hash >> 64) as u64, hash as u64];
        let mut entry = [0; ROW_BYTES];
        // What comes again agrees in everything with its first, so that it is not compared: a
        // page that a site serves a million times would make a bucket of a million.
        if let Some(&first) = self.first_of.get(&hash) {
            self.copies.push((first, row));
        } else {
            self.shingled
                .hash(self.options.ngram_words, self.options.whole);
            if !self.shingled.hashes.is_empty() {
                self.first_of.insert(hash, row);
                self.sign(row)?;
                if self.options.threshold.is_some() {
                    entry = self.write_set(hash)?;
                }
            }
        }
        if self.options.threshold.is_some() {
            self.rows.push(entry);
        }
        Ok(())
    }

    fn sign(&mut self, row: u32) -> Result<()> {
        self.functions
            .sign(&self.shingled.hashes, &mut self.signature);
        let n_rows = self.signature.len() / self.options.n_bands;
        let mut bytes = Vec::with_capacity(8 * n_rows);
        for (band, rows) in self.signature.chunks_exact(n_rows).enumerate() {
            bytes.clear();
            bytes.extend(rows.iter().flat_map(|value| value.to_le_bytes()));
            let key = xxh3_64(&bytes);
            self.bands.push(ShardRecord {
                band: band as u32,
                key,
                row,
            })?;
        }
        Ok(())
    }

    fn write_set(&mut self, hash: [u64; 2]) -> Result<[u8; ROW_BYTES]> {
        let hashes = &mut self.shingled.hashes;
        hashes.sort_unstable();
        hashes.dedup();
        let n = checked(hashes.len() as u64, "shingles of a document")?;
        let mut bytes: Vec<u8> = hashes.iter().flat_map(|hash| hash.to_le_bytes()).collect();
        bytes.extend(xxh3_64(&bytes).to_le_bytes());
        let start = self.writer.section_bytes();
        self.writer.push(&bytes)?;
        let mut entry = [0; ROW_BYTES];
        entry[..8].copy_from_slice(&hash[0].to_le_bytes());
        entry[8..16].copy_from_slice(&hash[1].to_le_bytes());
        entry[16..24].copy_from_slice(&start.to_le_bytes());
        entry[24..28].copy_from_slice(&n.to_le_bytes());
        let check = row_check(&entry);
        entry[28..].copy_from_slice(&check.to_le_bytes());
        Ok(entry)
    }

    /// Writes the rest of the file and gives it its name; gives the number of documents.
    ///
    /// # Errors
    /// `Io`, `Interrupted`.
    pub fn finish(mut self, n_ranges: u32, progress: &mut Progress) -> Result<u64> {
        let writer = &mut self.writer;
        writer.end();
        writer.begin(ROW_BYTES);
        for row in &self.rows {
            writer.push(row)?;
        }
        writer.end();
        writer.begin(8);
        for (first, row) in &self.copies {
            writer.push(&first.to_le_bytes())?;
            writer.push(&row.to_le_bytes())?;
        }
        writer.end();
        let shard = self.shard;
        let group = |r: &ShardRecord| r.band * n_ranges + range_of(r.key, n_ranges);
        let written = |r: &ShardRecord| BandRecord {
            key: r.key,
            shard,
            row: r.row,
        };
        let n_bands = self.options.n_bands as u32;
        let mut tick = || progress("write signatures", 0, 1);
        write_groups(
            writer,
            n_bands * n_ranges,
            self.bands,
            group,
            written,
            &mut tick,
        )?;
        let numbers = [
            u64::from(shard),
            1,
            u64::from(self.n_rows),
            u64::from(n_ranges),
            u64::from(n_bands),
            self.options.checksum(),
            self.options.threshold.map_or(0, f64::to_bits),
        ];
        self.writer.finish(Kind::Signatures, &numbers)?;
        Ok(u64::from(self.n_rows))
    }
}

/// The checksum of an entry's other 28 bytes.
pub(super) fn row_check(entry: &[u8; ROW_BYTES]) -> u32 {
    xxh3_64(&entry[..28]) as u32
}
