//! Reads a `.counts` file and checks everything it says.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::super::varint::read_varint;
use super::{
    BUFFER_BYTES, CountsOrigin, CountsTotal, FOOTER_BYTES, MAGIC, MAX_HEADER_BYTES,
    MAX_PRETOKEN_BYTES, MAX_SHARED,
};
use crate::error::{Error, Result};

/// Reads a `.counts` file, entry by entry, in memory of one entry and a buffer.
pub struct CountsReader {
    file: File,
    path: PathBuf,
    origin: CountsOrigin,
    /// What the file says it holds.
    total: CountsTotal,
    /// What has come so far.
    seen: CountsTotal,
    buffer: Vec<u8>,
    at: usize,
    /// Offset in the file of the end of the buffer.
    offset: u64,
    entries_end: u64,
    crc: crc32fast::Hasher,
    pretoken: Vec<u8>,
    rest: Vec<u8>,
    count: u64,
}

impl CountsReader {
    /// Opens a file and reads its header and its totals.
    ///
    /// # Errors
    /// `Io` where it cannot be read; `Format` where it is no such file.
    pub fn open(path: &Path) -> Result<Self> {
        let metadata = path.metadata().map_err(|error| Error::io(path, error))?;
        if !metadata.is_file() {
            return Err(Error::format(
                path,
                "a file of counts must be a regular file, and this is none",
            ));
        }
        Self::new(
            File::open(path).map_err(|error| Error::io(path, error))?,
            path,
        )
    }

    pub(in super::super) fn new(mut file: File, path: &Path) -> Result<Self> {
        let io = |error| Error::io(path, error);
        let length = file.seek(SeekFrom::End(0)).map_err(io)?;
        let mut head = [0; 12];
        file.rewind().map_err(io)?;
        let is_ours = length >= 16 + FOOTER_BYTES && {
            file.read_exact(&mut head).map_err(io)?;
            head[..8] == *MAGIC
        };
        if !is_ours {
            return Err(Error::format(
                path,
                "a file of counts must begin with RSLMCNT and its version 1 at offset 0, \
                 and this does not",
            ));
        }
        let header_bytes = u32::from_le_bytes(head[8..].try_into().expect("4 bytes"));
        let entries_end = length - FOOTER_BYTES;
        if header_bytes > MAX_HEADER_BYTES || 16 + u64::from(header_bytes) > entries_end {
            return Err(Error::format(
                path,
                format!(
                    "the header must end before the totals at offset {entries_end}, got a header \
                     of {header_bytes} bytes at offset 12"
                ),
            ));
        }
        let mut header = vec![0; header_bytes as usize];
        file.read_exact(&mut header).map_err(io)?;
        let mut stored = [0; 4];
        file.read_exact(&mut stored).map_err(io)?;
        let mut crc = crc32fast::Hasher::new();
        crc.update(&head);
        crc.update(&header);
        let header_crc = crc.clone().finalize();
        if header_crc != u32::from_le_bytes(stored) {
            return Err(Error::format(
                path,
                format!(
                    "the header's checksum at offset {} must be {header_crc:08x}, got {:08x}",
                    12 + header_bytes,
                    u32::from_le_bytes(stored)
                ),
            ));
        }
        crc.update(&stored);
        let origin = CountsOrigin::from_json(&header).ok_or_else(|| {
            Error::format(
                path,
                "the header at offset 12 must be JSON with pattern, special_tokens, \
                 unicode_version and unit, and is not",
            )
        })?;
        let mut footer = [0; FOOTER_BYTES as usize];
        file.seek(SeekFrom::Start(entries_end)).map_err(io)?;
        file.read_exact(&mut footer).map_err(io)?;
        let number = |at: usize| u64::from_le_bytes(footer[at..at + 8].try_into().expect("8"));
        let offset = 16 + u64::from(header_bytes);
        file.seek(SeekFrom::Start(offset)).map_err(io)?;
        Ok(Self {
            file,
            path: path.to_path_buf(),
            origin,
            total: CountsTotal {
                n_entries: number(0),
                n_pretokens: number(8),
                n_bytes: number(16),
            },
            seen: CountsTotal::default(),
            buffer: Vec::with_capacity(BUFFER_BYTES),
            at: 0,
            offset,
            entries_end,
            crc,
            pretoken: Vec::new(),
            rest: Vec::new(),
            count: 0,
        })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How its pretokens were made.
    pub fn origin(&self) -> &CountsOrigin {
        &self.origin
    }

    /// What the file says it holds; it is checked when the last entry has been read.
    pub fn total(&self) -> CountsTotal {
        self.total
    }

    /// The pretoken that [`CountsReader::advance`] reached.
    #[inline]
    pub fn pretoken(&self) -> &[u8] {
        &self.pretoken
    }

    /// Its count.
    #[inline]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Goes to the next entry; false after the last one, when all is checked.
    ///
    /// # Errors
    /// `Format`, with the offset, where an entry, the totals or the checksum are wrong.
    #[inline]
    pub fn advance(&mut self) -> Result<bool> {
        let begin = self.position();
        if begin == self.entries_end {
            return self.check_end().map(|()| false);
        }
        let shared = self.varint(begin)?;
        let length = self.varint(begin)?;
        if shared > self.pretoken.len().min(MAX_SHARED) as u64
            || length == 0
            || length > (self.entries_end - self.position()).min(MAX_PRETOKEN_BYTES)
        {
            return Err(self.wrong(
                begin,
                &format!(
                    "must share at most {} bytes with the one before and add at least 1 and at \
                     most {}, got {shared} and {length}",
                    self.pretoken.len().min(MAX_SHARED),
                    self.entries_end - self.position(),
                ),
            ));
        }
        self.read_rest(length as usize, begin)?;
        let shared = shared as usize;
        if self.seen.n_entries > 0 && self.rest[..] <= self.pretoken[shared..] {
            return Err(self.wrong(begin, "must come after the one before, and does not"));
        }
        self.pretoken.truncate(shared);
        self.pretoken.extend_from_slice(&self.rest);
        self.count = self.varint(begin)?;
        if self.count == 0 {
            return Err(self.wrong(begin, "must have a count of at least 1, got 0"));
        }
        let added = self.seen.add(&self.pretoken, self.count);
        added.map_err(|error| self.wrong(begin, &error.to_string()))?;
        Ok(true)
    }

    fn check_end(&mut self) -> Result<()> {
        let (seen, total) = (self.seen, self.total);
        if seen != total {
            return Err(Error::format(
                &self.path,
                format!(
                    "the totals at offset {} must be those of the entries, {seen:?}, got {total:?}",
                    self.entries_end
                ),
            ));
        }
        let mut footer = [0; FOOTER_BYTES as usize];
        let read = self.file.seek(SeekFrom::Start(self.entries_end));
        let read = read.and_then(|_| self.file.read_exact(&mut footer));
        read.map_err(|error| Error::io(&self.path, error))?;
        let (numbers, stored) = footer.split_at(24);
        let mut crc = self.crc.clone();
        crc.update(numbers);
        let (crc, stored) = (
            crc.finalize(),
            u32::from_le_bytes(stored.try_into().expect("4 bytes")),
        );
        if crc != stored {
            return Err(Error::format(
                &self.path,
                format!(
                    "the checksum at offset {} must be {crc:08x}, got {stored:08x}",
                    self.entries_end + 24
                ),
            ));
        }
        Ok(())
    }

    fn wrong(&self, offset: u64, reason: &str) -> Error {
        Error::format(
            &self.path,
            format!("the pretoken at offset {offset} {reason}"),
        )
    }

    /// Offset in the file of the next byte.
    #[inline]
    pub fn position(&self) -> u64 {
        self.offset - (self.buffer.len() - self.at) as u64
    }

    /// Bytes of entries and header.
    pub fn entries_end(&self) -> u64 {
        self.entries_end
    }

    #[inline]
    fn varint(&mut self, begin: u64) -> Result<u64> {
        let number = read_varint(|| self.byte(begin))?;
        number.ok_or_else(|| self.wrong(begin, "must hold numbers of at most 64 bits, does not"))
    }

    #[inline]
    fn byte(&mut self, begin: u64) -> Result<u8> {
        if self.at == self.buffer.len() {
            self.fill(begin)?;
        }
        self.at += 1;
        Ok(self.buffer[self.at - 1])
    }

    fn read_rest(&mut self, mut length: usize, begin: u64) -> Result<()> {
        self.rest.clear();
        while length > 0 {
            if self.at == self.buffer.len() {
                self.fill(begin)?;
            }
            let n = length.min(self.buffer.len() - self.at);
            self.rest
                .extend_from_slice(&self.buffer[self.at..self.at + n]);
            self.at += n;
            length -= n;
        }
        Ok(())
    }

    #[cold]
    fn fill(&mut self, begin: u64) -> Result<()> {
        let wanted = (self.entries_end - self.offset).min(BUFFER_BYTES as u64);
        if wanted == 0 {
            return Err(self.wrong(begin, "must end before the totals, and does not"));
        }
        self.buffer.resize(wanted as usize, 0);
        self.at = 0;
        let read = self.file.read_exact(&mut self.buffer);
        read.map_err(|error| Error::io(&self.path, error))?;
        self.offset += wanted;
        self.crc.update(&self.buffer);
        Ok(())
    }
}
