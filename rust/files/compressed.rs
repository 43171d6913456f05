//! Bytes of an input file, decompressed on the way.
//!
//! gzip is read by zlib-rs (500 MB/s of books). For zstd the C library is taken: it decodes
//! 845 MB/s on a machine where the pure-Rust ruzstd reaches 265, which one reading thread
//! would have to share among all workers, and it checks the checksums.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::rc::Rc;

use flate2::bufread::MultiGzDecoder;

use super::input::{Compression, Input};
use crate::error::{Error, Result};

/// The largest window a zstd frame may ask for, as a power of two: 128 MiB, the most that
/// the `zstd` command makes without being asked, and uses without being asked.
const MAX_WINDOW_LOG: u32 = 27;
/// Read from the file at a time.
const BUFFER_BYTES: usize = 1 << 17;

/// Reads the text of a file, and knows how much of the file itself that took.
pub(super) struct InputReader {
    path: PathBuf,
    is_compressed: bool,
    bytes: Box<dyn Read>,
    /// Counted below a decoder, and here where there is none.
    n_file_bytes: Rc<Cell<u64>>,
}

impl InputReader {
    /// Opens a file; `offset` bytes of its text are passed over at once where that needs
    /// no reading. Returns how many are left to pass over.
    pub fn open(input: &Input, offset: u64) -> Result<(Self, u64)> {
        let io = |error| Error::io(&input.path, error);
        let mut file = File::open(&input.path).map_err(io)?;
        let is_compressed = input.compression != Compression::None;
        let n_file_bytes = Rc::new(Cell::new(0));
        if !is_compressed {
            n_file_bytes.set(file.seek(SeekFrom::Start(offset)).map_err(io)?);
        }
        let buffered = |file| {
            let n_bytes = Rc::clone(&n_file_bytes);
            BufReader::with_capacity(BUFFER_BYTES, Counted { file, n_bytes })
        };
        let bytes: Box<dyn Read> = match input.compression {
            // As it is: a file reads into memory that nobody has filled, anything else has
            // it zeroed first.
            Compression::None => Box::new(file),
            Compression::Gzip => Box::new(MultiGzDecoder::new(buffered(file))),
            Compression::Zstd => {
                let mut decoder = zstd::Decoder::with_buffer(buffered(file)).map_err(io)?;
                decoder.window_log_max(MAX_WINDOW_LOG).map_err(io)?;
                Box::new(decoder)
            }
        };
        let reader = Self {
            path: input.path.clone(),
            is_compressed,
            bytes,
            n_file_bytes,
        };
        Ok((reader, if is_compressed { offset } else { 0 }))
    }

    /// Bytes of the file read so far, passed over or not.
    pub fn n_file_bytes(&self) -> u64 {
        self.n_file_bytes.get()
    }

    /// Appends up to `n` bytes of text; fewer only at its end.
    pub fn read(&mut self, n: usize, into: &mut Vec<u8>) -> Result<usize> {
        let read = self.bytes.by_ref().take(n as u64).read_to_end(into);
        let n_read = read.map_err(|error| self.error(error))?;
        if !self.is_compressed {
            self.n_file_bytes.update(|before| before + n_read as u64);
        }
        Ok(n_read)
    }

    /// Passes over `n` bytes of text.
    pub fn skip(&mut self, n: u64) -> Result<()> {
        let skipped = io::copy(&mut self.bytes.by_ref().take(n), &mut io::sink());
        if skipped.map_err(|error| self.error(error))? < n {
            let reason = "the text ends before the place where the run to resume stood";
            return Err(Error::format(&self.path, reason));
        }
        Ok(())
    }

    /// What the system says is an I/O error; what a decoder says is a corrupt file.
    fn error(&self, error: io::Error) -> Error {
        if !self.is_compressed || error.raw_os_error().is_some() {
            return Error::io(&self.path, error);
        }
        let at = self.n_file_bytes();
        let reason = if error.kind() == io::ErrorKind::UnexpectedEof {
            format!("the compressed data must not end before its last block, but ends at byte {at}")
        } else {
            format!("the compressed data must be whole, but is not before byte {at}: {error}")
        };
        Error::format(&self.path, reason)
    }
}

/// A file that counts what is read of it.
struct Counted {
    file: File,
    n_bytes: Rc<Cell<u64>>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read(buffer)?;
        self.n_bytes.set(self.n_bytes.get() + n as u64);
        Ok(n)
    }
}
