//! Writes a `.counts` file.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::super::varint::push_varint;
use super::{
    BUFFER_BYTES, CountsOrigin, CountsTotal, MAGIC, MAX_HEADER_BYTES, MAX_PRETOKEN_BYTES,
    MAX_SHARED,
};
use crate::error::{Error, Result};

/// Writes a `.counts` file, entry by entry.
pub(in super::super) struct CountsWriter {
    file: File,
    /// Named in errors.
    path: PathBuf,
    buffer: Vec<u8>,
    crc: crc32fast::Hasher,
    last: Vec<u8>,
    total: CountsTotal,
}

impl CountsWriter {
    pub(in super::super) fn new(file: File, path: &Path, origin: &CountsOrigin) -> Result<Self> {
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
    pub(in super::super) fn push(&mut self, pretoken: &[u8], count: u64) -> Result<()> {
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
    pub(in super::super) fn finish(mut self) -> Result<(File, CountsTotal)> {
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
