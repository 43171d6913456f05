//! Repeated lines taken out of documents and of whole files.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use super::lines::{LineCounter, LineRecord, Place, hash_of, lines_of};
use super::records::range_of;
use super::runs::Record;
use super::writer::{beside, sync_folder_of};
use crate::{Error, Progress, Result};

/// Repeated lines, looked up where they lie: the records of all ranges, in order.
pub struct Repeated<'a>(pub Vec<&'a [u8]>);

impl Repeated<'_> {
    /// The first place of a line that comes more than once.
    #[inline]
    fn first(&self, line: &[u8]) -> Option<Place> {
        let hash = hash_of(line);
        let table = self.0[range_of(hash[0], self.0.len() as u32) as usize];
        find(table, hash, self.0.len() as u64)
    }

    /// Writes what stays of a document to `out`; gives the number of lines that went.
    pub fn rewrite(
        &self,
        text: &[u8],
        place: (u32, u32),
        keep_first: bool,
        out: &mut Vec<u8>,
    ) -> u64 {
        let mut n_removed = 0;
        let mut start = 0;
        for (number, line) in lines_of(text).enumerate() {
            let end = (start + line.len() + 1).min(text.len());
            if self.stays(line, (place.0, place.1, number as u32), keep_first) {
                out.extend_from_slice(&text[start..end]);
            } else {
                n_removed += 1;
            }
            start = end;
        }
        n_removed
    }

    #[inline]
    fn stays(&self, line: &[u8], place: Place, keep_first: bool) -> bool {
        self.first(line)
            .is_none_or(|first| keep_first && first == place)
    }
}

/// Looks a hash up among ascending records of one of `n_ranges` equal ranges.
///
/// Hashes are spread evenly, so that a line's place is known but for some records: two or three
/// reads instead of the thirty of a search by halves, which would each miss the cache.
fn find(table: &[u8], hash: [u64; 2], n_ranges: u64) -> Option<Place> {
    let n = table.len() / LineRecord::BYTES;
    let at =
        |number: usize| LineRecord::get(&table[number * LineRecord::BYTES..][..LineRecord::BYTES]);
    let within = hash[0].wrapping_mul(n_ranges);
    let guess = ((u128::from(within) * n as u128) >> 64) as usize;
    let (mut low, mut high) = (0, n);
    // Steps that double from the guess, until the hash is between them.
    let mut step = 8;
    let mut probe = guess;
    while low < high && probe < n {
        let found = at(probe);
        if found.hash == hash {
            return Some(found.place);
        }
        if found.hash < hash {
            low = probe + 1;
            if high < n {
                break;
            }
            probe = probe.saturating_add(step);
        } else {
            high = probe;
            if low > 0 || probe == 0 {
                break;
            }
            probe = probe.saturating_sub(step);
        }
        step *= 2;
    }
    while low < high {
        let middle = usize::midpoint(low, high);
        let found = at(middle);
        match found.hash.cmp(&hash) {
            std::cmp::Ordering::Equal => return Some(found.place),
            std::cmp::Ordering::Less => low = middle + 1,
            std::cmp::Ordering::Greater => high = middle,
        }
    }
    None
}

/// Lines of a file, read in turn; a line is held whole.
fn each_line(path: &Path, mut each: impl FnMut(&[u8], &[u8], u64) -> Result<()>) -> Result<()> {
    let io = |error| Error::io(path, error);
    let mut reader = BufReader::with_capacity(1 << 18, File::open(path).map_err(io)?);
    let mut line = Vec::new();
    let mut number = 0;
    loop {
        line.clear();
        if reader.by_ref().read_until(b'\n', &mut line).map_err(io)? == 0 {
            return Ok(());
        }
        let content = line.strip_suffix(b"\n").unwrap_or(&line);
        each(content, &line, number)?;
        number += 1;
    }
}

/// Counts the lines of files, each of which is one document.
///
/// # Errors
/// `Io`, `Argument`, `Interrupted`.
pub fn count_files(
    paths: &[PathBuf],
    target: &Path,
    memory_limit_bytes: u64,
    progress: &mut Progress,
) -> Result<u64> {
    let mut counter = LineCounter::new(0, target, memory_limit_bytes);
    for (number, path) in paths.iter().enumerate() {
        each_line(path, |line, _, number| counter.push(line, number))?;
        counter.end_document()?;
        progress("count", number as u64, paths.len() as u64)?;
    }
    counter.finish(target, 1, progress)
}

/// Writes what stays of each file to its target, beside and renamed; gives the lines written.
///
/// # Errors
/// `Io`, `Interrupted`; each target is the old one or the new one.
pub fn rewrite_files(
    repeated: &Repeated<'_>,
    paths: &[(PathBuf, PathBuf)],
    keep_first: bool,
    progress: &mut Progress,
) -> Result<u64> {
    let mut n_kept = 0;
    for (row, (path, target)) in paths.iter().enumerate() {
        let beside = beside(target, "tmp");
        let io = |error| Error::io(target, error);
        let mut write = || {
            let mut file = BufWriter::with_capacity(1 << 18, File::create(&beside).map_err(io)?);
            each_line(path, |content, line, number| {
                if repeated.stays(content, (0, row as u32, number as u32), keep_first) {
                    n_kept += 1;
                    file.write_all(line).map_err(io)?;
                }
                Ok(())
            })?;
            let file = file.into_inner().map_err(|error| io(error.into_error()))?;
            file.sync_all().map_err(io)?;
            fs::rename(&beside, target).map_err(io)?;
            sync_folder_of(target).map_err(io)
        };
        let written: Result<()> = write();
        if written.is_err() {
            let _ = fs::remove_file(&beside);
        }
        written?;
        progress("rewrite", row as u64, paths.len() as u64)?;
    }
    Ok(n_kept)
}
