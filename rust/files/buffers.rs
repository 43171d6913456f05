//! Buffers of blocks, which come back for the blocks after them.
//!
//! Memory that the system has just given out is brought in page by page, which costs more
//! than to read a text into it.

use std::mem;
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};

/// Buffers that nobody uses.
#[derive(Clone, Default)]
pub(super) struct Buffers(Arc<Mutex<Vec<Vec<u8>>>>);

impl Buffers {
    /// An empty buffer, used before if there is one.
    pub fn take(&self) -> Vec<u8> {
        let mut spare = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        spare.pop().unwrap_or_default()
    }

    /// Bytes whose buffer comes back here, unless it is larger than `limit`.
    pub fn lend(&self, bytes: Vec<u8>, limit: usize) -> Buffer {
        let comes_back = bytes.capacity() <= limit;
        Buffer {
            bytes,
            home: comes_back.then(|| self.clone()),
        }
    }
}

/// Some bytes, whose memory goes where it came from.
pub(super) struct Buffer {
    bytes: Vec<u8>,
    home: Option<Buffers>,
}

impl From<Vec<u8>> for Buffer {
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes, home: None }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(Buffers(spare)) = self.home.take() {
            let mut bytes = mem::take(&mut self.bytes);
            bytes.clear();
            let mut spare = spare.lock().unwrap_or_else(PoisonError::into_inner);
            spare.push(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_come_back_empty_unless_they_are_large() {
        let buffers = Buffers::default();
        let small = buffers.lend(b"abc".to_vec(), 100);
        let large = buffers.lend(Vec::with_capacity(101), 100);
        assert_eq!(*small, *b"abc");
        let place = small.as_ptr();
        drop((small, large));
        let again = buffers.take();
        assert_eq!((again.as_ptr(), again.len()), (place, 0));
        assert_eq!(buffers.take().capacity(), 0);
    }
}
