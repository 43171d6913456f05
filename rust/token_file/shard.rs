//! One shard on its way to the disk.
//!
//! Payload and hashes go together, piece by piece, while the piece is in the cache. A file
//! is written beside its name with zeros for a header; the header follows when the hashes
//! are known, then the file is synced and renamed.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Seek, Write};
use std::mem;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::header::{HEADER_BYTES, NPY_HEADER_BYTES, npy_header};
use super::manifest::ShardRecord;
use super::{CRC_BLOCK_BYTES, index_name, shard_name};
use crate::TokenId;
use crate::error::{Error, Result};
use crate::memory::begin_writing_back;

/// What is gathered before it is hashed and written: it is still in a cache then, and in
/// smaller pieces the system takes longer. The blocks that have a CRC-32 are whole multiples.
const PIECE_BYTES: usize = 1 << 20;
const _: () = assert!(CRC_BLOCK_BYTES.is_multiple_of(PIECE_BYTES));

/// One open shard: the payload, piece by piece, and the index of its documents.
#[derive(Debug)]
pub(super) struct ShardWriter {
    payload: PendingFile,
    index: BufWriter<PendingFile>,
    itemsize: u8,
    piece: Box<[u8]>,
    /// Bytes of `piece` that count.
    n_piece: usize,
    sha256: Sha256,
    crc32: Vec<u32>,
    block_crc32: crc32fast::Hasher,
    /// Bytes of the block that is being hashed.
    n_block: usize,
    n_tokens: u64,
    n_documents: u64,
    n_utf8_bytes: u64,
    document_open: bool,
}

impl ShardWriter {
    pub fn create(folder: &Path, index: usize, itemsize: u8) -> Result<Self> {
        let payload = PendingFile::create(folder.join(shard_name(index)), HEADER_BYTES)?;
        let index = PendingFile::create(folder.join(index_name(index)), NPY_HEADER_BYTES)?;
        Ok(Self {
            payload,
            index: BufWriter::with_capacity(1 << 16, index),
            itemsize,
            piece: vec![0; PIECE_BYTES].into(),
            n_piece: 0,
            sha256: Sha256::new(),
            crc32: Vec::new(),
            block_crc32: crc32fast::Hasher::new(),
            n_block: 0,
            n_tokens: 0,
            n_documents: 0,
            n_utf8_bytes: 0,
            document_open: false,
        })
    }

    /// Tokens written so far.
    pub fn n_tokens(&self) -> u64 {
        self.n_tokens
    }

    /// Whether the next token continues a document of this shard.
    pub fn document_open(&self) -> bool {
        self.document_open
    }

    /// The next token begins a document.
    pub fn end_document(&mut self) {
        self.document_open = false;
    }

    /// Appends tokens of one document; the ids are known to fit.
    pub fn append<I: TokenId>(&mut self, mut token_ids: &[I]) -> Result<()> {
        if !token_ids.is_empty() && !self.document_open {
            self.document_open = true;
            self.n_documents += 1;
            self.write_offset()?;
        }
        self.n_tokens += token_ids.len() as u64;
        while !token_ids.is_empty() {
            let room = &mut self.piece[self.n_piece..];
            let n = token_ids.len().min(room.len() / usize::from(self.itemsize));
            let (now, later) = token_ids.split_at(n);
            self.n_piece += write_ids(room, now, self.itemsize);
            if self.n_piece == PIECE_BYTES {
                self.flush_piece()?;
            }
            token_ids = later;
        }
        Ok(())
    }

    /// Counts bytes of text that appended tokens stand for.
    pub fn add_utf8_bytes(&mut self, n: u64) {
        self.n_utf8_bytes += n;
    }

    /// Writes where in this shard the stream stands to the index.
    fn write_offset(&mut self) -> Result<()> {
        let offset = (self.n_tokens as u32).to_le_bytes();
        self.index
            .write_all(&offset)
            .map_err(|e| Error::io(&self.index.get_ref().path, e))
    }

    fn flush_piece(&mut self) -> Result<()> {
        let piece = &self.piece[..self.n_piece];
        self.sha256.update(piece);
        self.block_crc32.update(piece);
        self.payload
            .write_all(piece)
            .map_err(|e| Error::io(&self.payload.path, e))?;
        self.n_block += self.n_piece;
        self.n_piece = 0;
        if self.n_block == CRC_BLOCK_BYTES {
            self.end_block();
            let end = (HEADER_BYTES + self.crc32.len() * CRC_BLOCK_BYTES) as u64;
            let block = CRC_BLOCK_BYTES as u64;
            begin_writing_back(&self.payload.file, end - block, block);
        }
        Ok(())
    }

    fn end_block(&mut self) {
        self.crc32.push(mem::take(&mut self.block_crc32).finalize());
        self.n_block = 0;
    }

    /// Completes the index, whose hash the payload's header needs, and hands over the payload.
    pub fn close_index(mut self) -> Result<(ShardRecord, PendingFile)> {
        self.flush_piece()?;
        if self.n_block > 0 {
            self.end_block();
        }
        self.write_offset()?;
        let path = self.index.get_ref().path.clone();
        let index = self
            .index
            .into_inner()
            .map_err(|e| Error::io(&path, e.into_error()))?;
        index.commit(&npy_header(self.n_documents + 1))?;
        let record = ShardRecord {
            n_tokens: self.n_tokens,
            n_documents: self.n_documents,
            n_utf8_bytes: self.n_utf8_bytes,
            sha256: self.sha256.finalize().into(),
            index_sha256: hash_file(&path)?,
            crc32: self.crc32,
        };
        Ok((record, self.payload))
    }
}

/// Writes ids as little-endian integers of `itemsize` bytes; returns how many bytes.
fn write_ids<I: TokenId>(target: &mut [u8], token_ids: &[I], itemsize: u8) -> usize {
    if itemsize == 2 {
        for (bytes, id) in target.as_chunks_mut::<2>().0.iter_mut().zip(token_ids) {
            *bytes = (id.id() as u16).to_le_bytes();
        }
    } else {
        for (bytes, id) in target.as_chunks_mut::<4>().0.iter_mut().zip(token_ids) {
            *bytes = id.id().to_le_bytes();
        }
    }
    token_ids.len() * usize::from(itemsize)
}

/// SHA-256 of an index file; read back, because its header comes first and is known last.
fn hash_file(path: &Path) -> Result<[u8; 32]> {
    let mut file = File::open(path).map_err(|e| Error::io(path, e))?;
    let mut sha256 = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let n = file.read(&mut buffer).map_err(|e| Error::io(path, e))?;
        if n == 0 {
            return Ok(sha256.finalize().into());
        }
        sha256.update(&buffer[..n]);
    }
}

/// A file that gets its name only when it is complete.
#[derive(Debug)]
pub(super) struct PendingFile {
    file: File,
    path: PathBuf,
}

impl PendingFile {
    /// Opens the file beside `path` with zeros in place of its header.
    pub fn create(path: PathBuf, header_bytes: usize) -> Result<Self> {
        let beside = beside(&path);
        File::create_new(&beside)
            .and_then(|mut file| file.write_all(&vec![0; header_bytes]).map(|()| file))
            .map_err(|e| Error::io(&beside, e))
            .map(|file| Self { file, path })
    }

    /// Writes the header, syncs the file and gives it its name.
    pub fn commit(mut self, header: &[u8]) -> Result<()> {
        let mut write = || {
            self.file.rewind()?;
            self.file.write_all(header)?;
            self.file.sync_all()?;
            fs::rename(beside(&self.path), &self.path)
        };
        write().map_err(|e| Error::io(&self.path, e))
    }
}

impl Write for PendingFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// The name a file has until it is complete.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn write_ids_is_little_endian_at_both_widths() {
        let mut bytes = [9; 9];
        assert_eq!(write_ids(&mut bytes, &[1u32, 0xFFFE], 2), 4);
        assert_eq!(write_ids(&mut bytes[4..], &[0x0001_0203u32], 4), 4);
        assert_eq!(bytes, [1, 0, 0xFE, 0xFF, 3, 2, 1, 0, 9]);
    }
}
