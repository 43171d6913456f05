//! The `.counts` file: pretokens with their counts, sorted, so that files can be summed.
//!
//! ```text
//! 0   8 B   "RSLMCNT\x01"
//! 8   u32   length of the header
//! 12        header: JSON with pattern, special_tokens, unicode_version, unit
//!     u32   CRC-32 of everything before
//!           n_entries entries, ascending by bytes:
//!             varint  bytes shared with the pretoken before (at most 63)
//!             varint  length of the rest, at least 1
//!             bytes   the rest
//!             varint  count, at least 1
//! -28 u64   n_entries
//! -20 u64   sum of the counts
//! -12 u64   sum of count x length
//! -4  u32   CRC-32 of everything before
//! ```
//!
//! Numbers are little-endian. What is shared is bounded so that no file can stand for
//! pretokens of more than some 16 times its own size.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::varint::{push_varint, read_varint};
use crate::error::{Error, Result};

const MAGIC: &[u8; 8] = b"RSLMCNT\x01";
const FOOTER_BYTES: u64 = 28;
const MAX_SHARED: usize = 63;
const MAX_HEADER_BYTES: u32 = 1 << 26;
/// A file that claims a longer pretoken is refused before memory is taken for it.
const MAX_PRETOKEN_BYTES: u64 = 1 << 28;
pub(super) const BUFFER_BYTES: usize = 1 << 16;

/// How the pretokens of a file were made. Only counts that agree may be summed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CountsOrigin {
    /// Name of the pattern, or a regular expression.
    pub pattern: String,
    /// Strings that were cut out first.
    pub special_tokens: Vec<String>,
    /// "document" or "line".
    pub unit: String,
    /// Version of the Unicode data.
    pub unicode_version: String,
}

impl CountsOrigin {
    fn to_json(&self) -> Vec<u8> {
        let value = json!({
            "pattern": self.pattern,
            "special_tokens": self.special_tokens,
            "unicode_version": self.unicode_version,
            "unit": self.unit,
        });
        value.to_string().into_bytes()
    }

    fn from_json(bytes: &[u8]) -> Option<Self> {
        let value: Value = serde_json::from_slice(bytes).ok()?;
        let text = |name| Some(value.get(name)?.as_str()?.to_owned());
        let specials = value.get("special_tokens")?.as_array()?.iter();
        Some(Self {
            pattern: text("pattern")?,
            special_tokens: specials
                .map(|special| Some(special.as_str()?.to_owned()))
                .collect::<Option<_>>()?,
            unit: text("unit")?,
            unicode_version: text("unicode_version")?,
        })
    }

    /// Refuses counts that were made in another way; the order of special tokens does not
    /// matter. `name` and `other_name` say whose they are.
    ///
    /// # Errors
    /// `Argument` with the first thing that differs.
    pub fn check_same(&self, other: &Self, name: &str, other_name: &str) -> Result<()> {
        let sorted = |origin: &Self| {
            let mut texts = origin.special_tokens.clone();
            texts.sort();
            format!("{texts:?}")
        };
        let quoted = |text: &String| format!("{text:?}");
        let things = [
            ("pattern", quoted(&self.pattern), quoted(&other.pattern)),
            ("special_tokens", sorted(self), sorted(other)),
            ("unit", quoted(&self.unit), quoted(&other.unit)),
            (
                "unicode_version",
                quoted(&self.unicode_version),
                quoted(&other.unicode_version),
            ),
        ];
        for (thing, ours, theirs) in things {
            if ours != theirs {
                return Err(Error::Argument(format!(
                    "{thing} must be the same for all counts, got {ours} in {name} and \
                     {theirs} in {other_name}"
                )));
            }
        }
        Ok(())
    }
}

/// What a multiset of pretokens comes to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CountsTotal {
    /// Different pretokens.
    pub n_entries: u64,
    /// All of them: the sum of the counts.
    pub n_pretokens: u64,
    /// Bytes of text they stand for.
    pub n_bytes: u64,
}

impl CountsTotal {
    /// Takes another different pretoken in.
    ///
    /// # Errors
    /// `Argument` where the text would be longer than 2^63 - 1 bytes. No pair of symbols
    /// occurs more often than there are bytes, so whatever training adds up then fits too.
    #[inline]
    pub fn add(&mut self, pretoken: &[u8], count: u64) -> Result<()> {
        let n_bytes = count
            .checked_mul(pretoken.len() as u64)
            .and_then(|n_bytes| n_bytes.checked_add(self.n_bytes))
            .filter(|&n_bytes| i64::try_from(n_bytes).is_ok());
        let Some(n_bytes) = n_bytes else {
            return Err(Error::Argument(format!(
                "the counts must stand for at most {} bytes of text, got more with the count \
                 {count} of {:?}",
                i64::MAX,
                String::from_utf8_lossy(&pretoken[..pretoken.len().min(40)])
            )));
        };
        self.n_entries += 1;
        self.n_pretokens += count;
        self.n_bytes = n_bytes;
        Ok(())
    }
}

/// Writes a `.counts` file, entry by entry.
pub(super) struct CountsWriter {
    file: File,
    /// Named in errors.
    path: PathBuf,
    buffer: Vec<u8>,
    crc: crc32fast::Hasher,
    last: Vec<u8>,
    total: CountsTotal,
}

impl CountsWriter {
    pub(super) fn new(file: File, path: &Path, origin: &CountsOrigin) -> Result<Self> {
        let header = origin.to_json();
        let length = u32::try_from(header.len())
            .ok()
            .filter(|&length| length <= MAX_HEADER_BYTES)
            .ok_or_else(|| {
                Error::Argument(format!(
                    "pattern and special tokens must take at most {MAX_HEADER_BYTES} bytes, got {}",
                    header.len()
                ))
            })?;
        let mut buffer = Vec::with_capacity(2 * BUFFER_BYTES);
        buffer.extend_from_slice(MAGIC);
        buffer.extend_from_slice(&length.to_le_bytes());
        buffer.extend_from_slice(&header);
        let crc = crc32fast::hash(&buffer);
        buffer.extend_from_slice(&crc.to_le_bytes());
        Ok(Self {
            file,
            path: path.to_path_buf(),
            buffer,
            crc: crc32fast::Hasher::new(),
            last: Vec::new(),
            total: CountsTotal::default(),
        })
    }

    /// Appends a pretoken, which is greater than the one before.
    #[inline]
    pub(super) fn push(&mut self, pretoken: &[u8], count: u64) -> Result<()> {
        debug_assert!(self.total.n_entries == 0 || *pretoken > *self.last);
        if pretoken.len() as u64 > MAX_PRETOKEN_BYTES {
            return Err(Error::Argument(format!(
                "a pretoken must be at most {MAX_PRETOKEN_BYTES} bytes to be written down, got {}",
                pretoken.len()
            )));
        }
        self.total.add(pretoken, count)?;
        let most = MAX_SHARED.min(self.last.len()).min(pretoken.len() - 1);
        let same = |&(a, b): &(&u8, &u8)| a == b;
        let pairs = self.last[..most].iter().zip(pretoken);
        let shared = pairs.take_while(same).count();
        push_varint(&mut self.buffer, shared as u64);
        push_varint(&mut self.buffer, (pretoken.len() - shared) as u64);
        self.buffer.extend_from_slice(&pretoken[shared..]);
        push_varint(&mut self.buffer, count);
        self.last.truncate(shared);
        self.last.extend_from_slice(&pretoken[shared..]);
        if self.buffer.len() >= BUFFER_BYTES {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        self.crc.update(&self.buffer);
        self.write()
    }

    fn write(&mut self) -> Result<()> {
        let written = self.file.write_all(&self.buffer);
        self.buffer.clear();
        written.map_err(|error| Error::io(&self.path, error))
    }

    /// Writes the end; the file has all its bytes, not yet synced.
    pub(super) fn finish(mut self) -> Result<(File, CountsTotal)> {
        let total = self.total;
        for number in [total.n_entries, total.n_pretokens, total.n_bytes] {
            self.buffer.extend_from_slice(&number.to_le_bytes());
        }
        self.flush()?;
        let crc = self.crc.clone().finalize();
        self.buffer.extend_from_slice(&crc.to_le_bytes());
        self.write()?;
        Ok((self.file, total))
    }
}

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

    pub(super) fn new(mut file: File, path: &Path) -> Result<Self> {
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
