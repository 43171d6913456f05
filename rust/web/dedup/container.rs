//! The files that stages leave for each other: sections of records of one size, and at the end
//! what is where.
//!
//! ```text
//! "RSLMDUP\0"                                              8 bytes
//! sections                                                 records, nothing between
//! footer    numbers: u64 each
//!           sections: start, n_bytes, record_bytes, checksum, u64 each
//! trailer   footer_start, n_numbers, n_sections, checksum of the footer: u64 each
//!           kind, version: u32 each; "RSLMDUP\0"           48 bytes
//! ```
//!
//! All numbers are little-endian, checksums xxh3-64 of the bytes. A file is written beside its
//! name, synced and renamed. What is read is checked: the footer when a file is opened, a
//! section when it was read to its end.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::{Error, Result};

pub(super) const MAGIC: [u8; 8] = *b"RSLMDUP\0";
pub(super) const VERSION: u32 = 1;
const TRAILER_BYTES: u64 = 48;
const SECTION_BYTES: usize = 32;

/// What a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Lines of a shard.
    Counts = 1,
    /// Repeated lines of a range of hashes.
    Repeated = 2,
    /// Keys of the documents of a shard.
    Signatures = 3,
    /// Pairs of duplicates.
    Edges = 4,
    /// Documents to drop.
    Clusters = 5,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Counts => "line counts",
            Self::Repeated => "repeated lines",
            Self::Signatures => "signatures",
            Self::Edges => "edges",
            Self::Clusters => "clusters",
        }
    }
}

/// A section of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Section {
    /// Where it begins in the file.
    pub start: u64,
    /// Its length.
    pub n_bytes: u64,
    pub(super) record_bytes: u64,
    pub(super) checksum: u64,
}

/// A file of which the footer was read and holds what it must.
#[derive(Clone, Debug)]
pub struct Contents {
    /// The file.
    pub path: PathBuf,
    /// Numbers about the whole file: see those who write them.
    pub numbers: Vec<u64>,
    /// Its sections, in order.
    pub sections: Vec<Section>,
}

impl Contents {
    /// Reads the footer of a file of a kind, with so many numbers.
    ///
    /// # Errors
    /// `Io`; `Format` if it is cut, damaged, or of another kind or version.
    pub fn open(path: &Path, kind: Kind, n_numbers: usize) -> Result<Self> {
        let io = |error| Error::io(path, error);
        let mut file = File::open(path).map_err(io)?;
        let n_bytes = file.metadata().map_err(io)?.len();
        let damaged = |offset: u64, reason: &str| {
            let name = kind.name();
            Error::format(
                path,
                format!("a file of {name} must hold {reason} at byte {offset}"),
            )
        };
        let least = TRAILER_BYTES + MAGIC.len() as u64;
        if n_bytes < least {
            return Err(damaged(
                n_bytes,
                &format!("{least} bytes or more, and ends"),
            ));
        }
        let trailer_start = n_bytes - TRAILER_BYTES;
        file.seek(SeekFrom::Start(trailer_start)).map_err(io)?;
        let mut trailer = [0; TRAILER_BYTES as usize];
        file.read_exact(&mut trailer).map_err(io)?;
        let number = |at: usize| u64_at(&trailer, 8 * at);
        let (start, n_found, n_sections, checksum) = (number(0), number(1), number(2), number(3));
        if trailer[40..] != MAGIC {
            return Err(damaged(trailer_start + 40, "the letters that end it"));
        }
        if number(4) != u64::from(kind as u32) | u64::from(VERSION) << 32 {
            return Err(damaged(trailer_start + 32, "its kind and a known version"));
        }
        let n_footer = n_found
            .checked_mul(8)
            .zip(n_sections.checked_mul(SECTION_BYTES as u64))
            .and_then(|(numbers, sections)| numbers.checked_add(sections));
        let fits = n_footer.and_then(|n| start.checked_add(n)) == Some(trailer_start)
            && start >= MAGIC.len() as u64;
        if !fits || n_found != n_numbers as u64 {
            return Err(damaged(trailer_start, "the place and length of the footer"));
        }
        file.seek(SeekFrom::Start(start)).map_err(io)?;
        let mut footer = vec![0; (trailer_start - start) as usize];
        file.read_exact(&mut footer).map_err(io)?;
        if xxh3_64(&footer) != checksum {
            return Err(damaged(start, "a footer of its checksum"));
        }
        let (numbers, sections) = footer.split_at(8 * n_numbers);
        let contents = Self {
            path: path.to_path_buf(),
            numbers: numbers.chunks_exact(8).map(|n| u64_at(n, 0)).collect(),
            sections: sections
                .chunks_exact(SECTION_BYTES)
                .map(section_of)
                .collect(),
        };
        let fits = |section: &Section| {
            let end = section.start.checked_add(section.n_bytes);
            end.is_some_and(|end| end <= start)
                && section.record_bytes > 0
                && section.n_bytes.is_multiple_of(section.record_bytes)
        };
        match contents.sections.iter().find(|section| !fits(section)) {
            Some(section) => Err(damaged(section.start, "whole records before the footer")),
            None => Ok(contents),
        }
    }

    /// The section of a number, of records of a size.
    ///
    /// # Errors
    /// `Format` if there is none.
    pub fn section(&self, number: usize, record_bytes: usize) -> Result<Section> {
        let section = self.sections.get(number).copied();
        section
            .filter(|section| section.record_bytes == record_bytes as u64)
            .ok_or_else(|| {
                self.damaged(
                    0,
                    &format!("section {number} of records of {record_bytes} bytes"),
                )
            })
    }

    /// The error of a file that does not hold what it must at a place.
    pub fn damaged(&self, offset: u64, must: &str) -> Error {
        Error::format(&self.path, format!("must hold {must} at byte {offset}"))
    }

    /// The section, read to its end and checked.
    ///
    /// # Errors
    /// `Io`, `Format`.
    pub fn check(&self, section: &Section) -> Result<()> {
        let mut stream = SectionStream::open(self, section)?;
        let mut buffer = vec![0; 1 << 18];
        while stream.left > 0 {
            let n = buffer.len().min(stream.left as usize);
            stream.read(&mut buffer[..n])?;
        }
        Ok(())
    }
}

fn section_of(bytes: &[u8]) -> Section {
    Section {
        start: u64_at(bytes, 0),
        n_bytes: u64_at(bytes, 8),
        record_bytes: u64_at(bytes, 16),
        checksum: u64_at(bytes, 24),
    }
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(number)
}

/// A section read from its beginning; the last bytes are given only if the checksum is right.
pub struct SectionStream {
    path: PathBuf,
    file: std::io::BufReader<File>,
    section: Section,
    /// Bytes not yet read.
    pub left: u64,
    hasher: Xxh3,
}

impl SectionStream {
    /// # Errors
    /// `Io`.
    pub fn open(contents: &Contents, section: &Section) -> Result<Self> {
        let path = contents.path.clone();
        let io = |error| Error::io(&contents.path, error);
        let mut file = File::open(&path).map_err(io)?;
        file.seek(SeekFrom::Start(section.start)).map_err(io)?;
        Ok(Self {
            path,
            file: std::io::BufReader::with_capacity(1 << 16, file),
            section: *section,
            left: section.n_bytes,
            hasher: Xxh3::new(),
        })
    }

    /// The file, and the byte that is read next.
    pub(super) fn place(&self) -> (&PathBuf, u64) {
        (
            &self.path,
            self.section.start + self.section.n_bytes - self.left,
        )
    }

    /// Fills the buffer, which must not be longer than what is left.
    ///
    /// # Errors
    /// `Io`; `Format` if the file was cut meanwhile or the checksum is another.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<()> {
        let read = self.file.read_exact(buffer);
        read.map_err(|error| Error::io(&self.path, error))?;
        self.hasher.update(buffer);
        self.left -= buffer.len() as u64;
        if self.left == 0 && self.hasher.digest() != self.section.checksum {
            let Section { start, n_bytes, .. } = self.section;
            return Err(Error::format(
                &self.path,
                format!("must hold {n_bytes} bytes of their checksum at byte {start}"),
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::writer::Writer;
    use super::*;
    use std::fs;

    fn written(path: &Path) -> Vec<u8> {
        let mut writer = Writer::create(path).expect("a writable folder");
        for section in [&b"aabbcc"[..], b"", b"ddee"] {
            writer.begin(2);
            writer.push(section).expect("a writable file");
            writer.end();
        }
        writer
            .finish(Kind::Edges, &[7, 8])
            .expect("a writable file");
        fs::read(path).expect("a file")
    }

    fn read_all(path: &Path) -> Result<usize> {
        let contents = Contents::open(path, Kind::Edges, 2)?;
        for section in &contents.sections {
            contents.check(section)?;
        }
        Ok(contents.sections.len())
    }

    #[test]
    fn a_file_cut_or_changed_anywhere_is_refused() {
        let folder = std::env::temp_dir().join(format!("rslm-container-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a writable folder");
        let path = folder.join("edges");
        let whole = written(&path);
        assert_eq!(read_all(&path).expect("whole"), 3);
        for n in 0..whole.len() {
            fs::write(&path, &whole[..n]).expect("a writable file");
            let refused = read_all(&path);
            assert!(matches!(refused, Err(Error::Format { .. })), "cut at {n}");
            let mut changed = whole.clone();
            changed[n] ^= 0x81;
            fs::write(&path, &changed).expect("a writable file");
            // The letters at the beginning are for people; all else is needed.
            let refused = read_all(&path);
            assert!(
                n < 8 || matches!(refused, Err(Error::Format { .. })),
                "changed at {n}"
            );
        }
        fs::remove_dir_all(&folder).expect("a folder of ours");
    }
}
