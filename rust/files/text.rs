//! The text of a file, up to places where it may be divided.

use super::buffers::{Buffer, Buffers};
use super::compressed::InputReader;
use super::input::Input;
use crate::error::{Error, Result};

/// Usual size of a block.
pub(super) const BLOCK_BYTES: usize = 1 << 20;
/// Text passed over between two looks at Ctrl-C.
const SKIP_BYTES: u64 = 64 << 20;

/// A file of text or lines, somewhere in it.
pub(super) struct TextContent {
    reader: InputReader,
    n_to_skip: u64,
    /// Text behind the last block's end.
    carry: Vec<u8>,
    buffers: Buffers,
}

impl TextContent {
    /// Opens a file of text at a byte of that text.
    pub fn open(input: &Input, offset: u64, buffers: Buffers) -> Result<Self> {
        let (reader, n_to_skip) = InputReader::open(input, offset)?;
        Ok(Self {
            reader,
            n_to_skip,
            carry: Vec::new(),
            buffers,
        })
    }

    /// Bytes of the file read so far.
    pub fn n_file_bytes(&self) -> u64 {
        self.reader.n_file_bytes()
    }

    /// Text up to a place where `cut` lets it be divided, and whether the file ends there;
    /// none while there is text to be passed over. It begins at the byte `offset`
    /// and has about `block_bytes`.
    pub fn next(
        &mut self,
        input: &Input,
        offset: u64,
        block_bytes: usize,
        limit: usize,
        cut: impl Fn(&[u8], usize) -> std::result::Result<usize, usize>,
    ) -> Result<(Buffer, bool)> {
        if self.n_to_skip > 0 {
            let now = self.n_to_skip.min(SKIP_BYTES);
            self.reader.skip(now)?;
            self.n_to_skip -= now;
            return Ok((Vec::new().into(), false));
        }
        let mut bytes = self.buffers.take();
        bytes.reserve_exact(block_bytes.max(self.carry.len()));
        bytes.append(&mut self.carry);
        // With what was left over no more than a block, so that all buffers are alike.
        let rest = block_bytes.saturating_sub(bytes.len());
        let (mut wanted, mut from) = (if rest > 0 { rest } else { block_bytes }, 0);
        loop {
            bytes.reserve(wanted);
            if self.reader.read(wanted, &mut bytes)? < wanted {
                return Ok((self.buffers.lend(bytes, block_bytes), true));
            }
            match cut(&bytes, from) {
                Ok(at) => {
                    self.carry.extend_from_slice(&bytes[at..]);
                    bytes.truncate(at);
                    return Ok((self.buffers.lend(bytes, block_bytes), false));
                }
                Err(_) if bytes.len() > limit => {
                    let reason = format!(
                        "at byte {offset}: a row, or text without a place where it may be divided, \
                         must have at most max_document_bytes = {limit} bytes, but goes on"
                    );
                    return Err(Error::format(input.place(), reason));
                }
                // One byte above the limit tells that it is passed.
                Err(next) => {
                    wanted = bytes.len().min(limit + 1 - bytes.len());
                    from = next;
                }
            }
        }
    }
}

/// Where the last whole line of a text that goes on ends.
pub(super) fn last_line_end(text: &[u8], from: usize) -> std::result::Result<usize, usize> {
    memchr::memrchr(b'\n', &text[from..])
        .map(|at| from + at + 1)
        .ok_or(text.len())
}
