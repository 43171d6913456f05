//! Lines that come more than once: counted per shard, merged per range of hashes, taken out.
//!
//! A line is known by 128 bits of xxh3. Of 10^10 different lines the chance that any two share
//! them is 1.5 * 10^-19; whoever makes lines for that end can find two that do.

use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_128;

use super::container::{Contents, Kind, Section, u32_at, u64_at};
use super::records::{range_of, write_groups};
use super::runs::{Record, Sorter, merge_sections};
use super::writer::Writer;
use crate::{Error, Progress, Result};

/// A line: how often it comes, and the first of its places.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LineRecord {
    // As two halves: a u128 would make the record longer by its alignment.
    pub(super) hash: [u64; 2],
    pub(super) place: Place,
    n: u32,
}

/// Shard, row and number of a line.
pub type Place = (u32, u32, u32);

impl Record for LineRecord {
    const BYTES: usize = 32;

    fn put(&self, bytes: &mut [u8]) {
        let (shard, row, line) = self.place;
        bytes[..8].copy_from_slice(&self.hash[0].to_le_bytes());
        bytes[8..16].copy_from_slice(&self.hash[1].to_le_bytes());
        for (chunk, number) in bytes[16..]
            .chunks_exact_mut(4)
            .zip([shard, row, line, self.n])
        {
            chunk.copy_from_slice(&number.to_le_bytes());
        }
    }

    fn get(bytes: &[u8]) -> Self {
        Self {
            hash: [u64_at(bytes, 0), u64_at(bytes, 8)],
            place: (u32_at(bytes, 16), u32_at(bytes, 20), u32_at(bytes, 24)),
            n: u32_at(bytes, 28),
        }
    }

    /// Counts stop at the greatest that they hold.
    fn absorb(&mut self, next: &Self) -> bool {
        let is_same = self.hash == next.hash;
        if is_same {
            self.n = self.n.saturating_add(next.n);
        }
        is_same
    }
}

#[inline]
pub(super) fn hash_of(line: &[u8]) -> [u64; 2] {
    let hash = xxh3_128(line);
    [(hash >> 64) as u64, hash as u64]
}

/// The lines of a text without their newlines; of an empty text none.
pub(super) fn lines_of(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut start = 0;
    let ends = memchr::memchr_iter(b'\n', text).chain(
        text.last()
            .is_some_and(|&last| last != b'\n')
            .then_some(text.len()),
    );
    ends.map(move |end| {
        let line = &text[start..end];
        start = end + 1;
        line
    })
}

/// Counts the lines of a shard.
pub struct LineCounter {
    shard: u32,
    row: u32,
    n_lines: u64,
    sorter: Sorter<LineRecord>,
}

impl LineCounter {
    /// Of a shard of that number; what does not fit the limit is spilled beside `target`.
    pub fn new(shard: u32, target: &Path, memory_limit_bytes: u64) -> Self {
        Self {
            shard,
            row: 0,
            n_lines: 0,
            sorter: Sorter::new(target, memory_limit_bytes),
        }
    }

    /// Counts the next document.
    ///
    /// # Errors
    /// `Io`; `Argument` beyond 2^32 documents or lines of one.
    pub fn add(&mut self, text: &[u8]) -> Result<()> {
        for (number, line) in lines_of(text).enumerate() {
            self.push(line, number as u64)?;
        }
        self.end_document()
    }

    #[inline]
    pub(super) fn push(&mut self, line: &[u8], number: u64) -> Result<()> {
        let place = (
            self.shard,
            self.row,
            checked(number, "lines of a document")?,
        );
        self.n_lines += 1;
        self.sorter.push(LineRecord {
            hash: hash_of(line),
            place,
            n: 1,
        })
    }

    pub(super) fn end_document(&mut self) -> Result<()> {
        self.row = checked(u64::from(self.row) + 1, "documents of a shard")?;
        Ok(())
    }

    /// Writes the counts to `target`; gives the number of lines.
    ///
    /// # Errors
    /// `Io`, `Interrupted`.
    pub fn finish(self, target: &Path, n_ranges: u32, progress: &mut Progress) -> Result<u64> {
        let mut writer = Writer::create(target)?;
        let mut tick = || progress("write counts", 0, 1);
        let range = |record: &LineRecord| range_of(record.hash[0], n_ranges);
        write_groups(
            &mut writer,
            n_ranges,
            self.sorter,
            range,
            |record| *record,
            &mut tick,
        )?;
        let numbers = [u64::from(self.shard), u64::from(n_ranges), self.n_lines];
        writer.finish(Kind::Counts, &numbers)?;
        Ok(self.n_lines)
    }
}

pub(super) fn checked(number: u64, what: &str) -> Result<u32> {
    u32::try_from(number)
        .map_err(|_| Error::Argument(format!("{what} must be fewer than 2^32, got {number}")))
}

/// What merging found in a range of hashes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LineTotals {
    /// All lines.
    pub n_lines: u64,
    /// Those that differ from each other.
    pub n_distinct: u64,
    /// Those of these that come more than once.
    pub n_repeated: u64,
    /// How often all of the repeated ones come.
    pub n_copies: u64,
}

/// Writes the repeated lines of one range of hashes to `target`.
///
/// # Errors
/// `Io`; `Format` if a file is damaged; `Argument` if the files do not belong together.
pub fn merge_lines(
    counts: &[PathBuf],
    range: u32,
    target: &Path,
    n_ranges: u32,
    progress: &mut Progress,
) -> Result<LineTotals> {
    let mut files = Vec::with_capacity(counts.len());
    for path in counts {
        let contents = Contents::open(path, Kind::Counts, 3)?;
        if contents.numbers[1] != u64::from(n_ranges) || range >= n_ranges {
            return Err(Error::Argument(format!(
                "range {range} of {n_ranges} must be one of those that were counted, got {} of \
                 {} in {}",
                contents.numbers[1],
                n_ranges,
                path.display()
            )));
        }
        let section = contents.section(range as usize, LineRecord::BYTES)?;
        files.push((contents, section));
    }
    require_different_shards(files.iter().map(|(contents, _)| contents))?;
    let sections: Vec<(&Contents, Section)> = files.iter().map(|(c, s)| (c, *s)).collect();
    let mut totals = LineTotals::default();
    let mut writer = Writer::create(target)?;
    writer.begin(LineRecord::BYTES);
    let mut each = |record: &LineRecord| {
        totals.n_distinct += 1;
        totals.n_lines += u64::from(record.n);
        if record.n > 1 {
            totals.n_repeated += 1;
            totals.n_copies += u64::from(record.n);
            let mut bytes = [0; LineRecord::BYTES];
            record.put(&mut bytes);
            writer.push(&bytes)?;
        }
        Ok(())
    };
    merge_sections(&sections, target, &mut each, &mut || {
        progress("merge", 0, 1)
    })?;
    writer.end();
    writer.finish(Kind::Repeated, &[u64::from(range), u64::from(n_ranges)])?;
    Ok(totals)
}

/// Refuses two files of one shard, whose places would be the same.
pub(super) fn require_different_shards<'a>(
    files: impl Iterator<Item = &'a Contents>,
) -> Result<()> {
    let mut seen = rustc_hash::FxHashMap::default();
    for contents in files {
        if let Some(first) = seen.insert(contents.numbers[0], &contents.path) {
            return Err(Error::Argument(format!(
                "files must be of different shards, got shard {} in {} and {}",
                contents.numbers[0],
                first.display(),
                contents.path.display()
            )));
        }
    }
    Ok(())
}

/// Checks a file of repeated lines; gives range, number of ranges, start and length of its
/// records.
///
/// # Errors
/// `Io`, `Format`.
pub fn check_repeated(path: &Path) -> Result<(u64, u64, u64, u64)> {
    let contents = Contents::open(path, Kind::Repeated, 2)?;
    let section = contents.section(0, LineRecord::BYTES)?;
    contents.check(&section)?;
    let (range, n_ranges) = (contents.numbers[0], contents.numbers[1]);
    Ok((range, n_ranges, section.start, section.n_bytes))
}
