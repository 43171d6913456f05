//! Sets of shingles, read from files of signatures where they are asked for.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::rc::Rc;

use rustc_hash::FxHashMap;
use xxhash_rust::xxh3::xxh3_64;

use super::container::{Contents, Section, u32_at, u64_at};
use super::signatures::{ROW_BYTES, ROWS, SETS, row_check};
use crate::{Error, Result};

/// Files that are open at a time.
const MOST_FILES: usize = 64;
/// Rows that are read at a time: those of a bucket are often neighbours.
const ROWS_AT_ONCE: usize = 128;

/// A document's place: the number of its file among those joined, and its row.
pub(super) type Member = (u32, u32);

/// What a file says about a document.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    /// Of the normalised words.
    pub text: [u64; 2],
    start: u64,
    n: u32,
}

impl Row {
    /// Whether the sizes of two sets allow it: at most the smaller one is shared.
    pub(super) fn may_be_similar(&self, other: &Self, threshold: f64) -> bool {
        f64::from(self.n.min(other.n)) / f64::from(self.n.max(other.n)) >= threshold
    }
}

/// Reads sets, of which it holds so many bytes at most, and one set.
pub(super) struct Documents<'a> {
    files: Vec<&'a Contents>,
    open: FxHashMap<u32, File>,
    held: FxHashMap<Member, Rc<[u64]>>,
    n_held_bytes: u64,
    limit_bytes: u64,
    block: Vec<u8>,
    block_at: Member,
}

impl<'a> Documents<'a> {
    pub(super) fn new(files: Vec<&'a Contents>, limit_bytes: u64) -> Self {
        Self {
            files,
            open: FxHashMap::default(),
            held: FxHashMap::default(),
            n_held_bytes: 0,
            limit_bytes,
            block: Vec::new(),
            block_at: (u32::MAX, 0),
        }
    }

    pub(super) fn row(&mut self, (file, row): Member) -> Result<Row> {
        let contents = self.files[file as usize];
        let rows = contents.section(ROWS, ROW_BYTES)?;
        let first = row as usize / ROWS_AT_ONCE * ROWS_AT_ONCE;
        if self.block_at != (file, first as u32) {
            let from = rows.n_bytes.min((first * ROW_BYTES) as u64);
            let n = (rows.n_bytes - from).min((ROWS_AT_ONCE * ROW_BYTES) as u64);
            let mut block = std::mem::take(&mut self.block);
            block.resize(n as usize, 0);
            self.read(file, rows, from, &mut block)?;
            self.block = block;
            self.block_at = (file, first as u32);
        }
        let within = (row as usize - first) * ROW_BYTES;
        let entry = self.block.get(within..within + ROW_BYTES);
        let entry = entry.and_then(|entry| <&[u8; ROW_BYTES]>::try_from(entry).ok());
        entry
            .filter(|entry| row_check(entry) == u32_at(*entry, 28))
            .map(|entry| Row {
                text: [u64_at(entry, 0), u64_at(entry, 8)],
                start: u64_at(entry, 16),
                n: u32_at(entry, 24),
            })
            .ok_or_else(|| {
                contents.damaged(rows.start + (first * ROW_BYTES + within) as u64, "a row")
            })
    }

    /// The hashes of a document's shingles, ascending.
    pub(super) fn set(&mut self, member: Member, row: &Row) -> Result<Rc<[u64]>> {
        if let Some(held) = self.held.get(&member) {
            return Ok(Rc::clone(held));
        }
        let contents = self.files[member.0 as usize];
        let sets = contents.section(SETS, 1)?;
        let n_bytes = 8 * u64::from(row.n) + 8;
        let damaged =
            || contents.damaged(sets.start.saturating_add(row.start), "a set of shingles");
        if row
            .start
            .checked_add(n_bytes)
            .is_none_or(|end| end > sets.n_bytes)
        {
            return Err(damaged());
        }
        let mut bytes = vec![0; n_bytes as usize];
        self.read(member.0, sets, row.start, &mut bytes)?;
        let (hashes, check) = bytes.split_at(8 * row.n as usize);
        if xxh3_64(hashes) != u64_at(check, 0) {
            return Err(damaged());
        }
        let set: Rc<[u64]> = hashes.chunks_exact(8).map(|hash| u64_at(hash, 0)).collect();
        if self.n_held_bytes + n_bytes > self.limit_bytes {
            self.held.clear();
            self.n_held_bytes = 0;
        }
        self.n_held_bytes += n_bytes;
        self.held.insert(member, Rc::clone(&set));
        Ok(set)
    }

    /// Whether two documents are as similar as they must be.
    pub(super) fn are_similar(&mut self, a: Member, b: Member, threshold: f64) -> Result<bool> {
        let (row_a, row_b) = (self.row(a)?, self.row(b)?);
        if !row_a.may_be_similar(&row_b, threshold) {
            return Ok(false);
        }
        let (a, b) = (self.set(a, &row_a)?, self.set(b, &row_b)?);
        Ok(jaccard(&a, &b) >= threshold)
    }

    fn read(&mut self, file: u32, section: Section, from: u64, bytes: &mut [u8]) -> Result<()> {
        let path = &self.files[file as usize].path;
        let io = |error| Error::io(path, error);
        if !self.open.contains_key(&file) {
            if self.open.len() == MOST_FILES {
                self.open.clear();
            }
            self.open.insert(file, File::open(path).map_err(io)?);
        }
        let mut open = &self.open[&file];
        open.seek(SeekFrom::Start(section.start + from))
            .map_err(io)?;
        open.read_exact(bytes).map_err(io)
    }
}

/// The share of either set that both have.
pub(super) fn jaccard(a: &[u64], b: &[u64]) -> f64 {
    let (mut at_a, mut at_b, mut n_shared) = (0, 0, 0);
    while at_a < a.len() && at_b < b.len() {
        let (left, right) = (a[at_a], b[at_b]);
        // Without branches: which is less is anyone's guess.
        n_shared += usize::from(left == right);
        at_a += usize::from(left <= right);
        at_b += usize::from(right <= left);
    }
    let n_either = a.len() + b.len() - n_shared;
    if n_either == 0 {
        1.0
    } else {
        n_shared as f64 / n_either as f64
    }
}
