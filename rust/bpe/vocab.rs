//! Token ids and their bytes.

use crate::TokenId;
use crate::error::{Error, Result};

/// Ids from here on are refused: the tables are indexed by id.
pub(super) const ID_LIMIT: u32 = 1 << 21;

/// Two adjacent tokens and the token that replaces them; the position in a list of
/// merges is the merge's rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Merge {
    /// Id of the left token.
    pub left: u32,
    /// Id of the right token.
    pub right: u32,
    /// Id of the token that both become.
    pub new: u32,
}

/// The bytes of every token id, in one buffer.
///
/// Ids need not be contiguous (o200k has holes); the id of a hole has no bytes, and no
/// token is empty.
#[derive(Clone, Debug)]
pub struct Vocab {
    /// Ends with `MARGIN` bytes that are no token's, so that each can be copied with them.
    bytes: Vec<u8>,
    starts: Vec<u32>,
}

/// Most tokens are copied as this many bytes, whatever their length, and cut off after.
const MARGIN: usize = 16;

impl Vocab {
    /// # Errors
    /// `Argument` for an id out of range or given twice, an empty token, or 4 GiB of bytes.
    pub fn new(mut entries: Vec<(u32, Vec<u8>)>) -> Result<Self> {
        entries.sort_by_key(|(id, _)| *id);
        let mut vocab = Self::empty();
        for (id, token_bytes) in entries {
            if id >= ID_LIMIT {
                return Err(Error::Argument(format!(
                    "token ids must be below {ID_LIMIT}, got {id}"
                )));
            }
            if (id as usize) < vocab.len() {
                return Err(Error::Argument(format!(
                    "token ids must differ, got {id} twice"
                )));
            }
            if token_bytes.is_empty() {
                return Err(Error::Argument(format!(
                    "token {id} must hold at least one byte"
                )));
            }
            let end = vocab.n_bytes() as u32;
            vocab.starts.resize(id as usize + 1, end);
            vocab.push(&token_bytes)?;
        }
        Ok(vocab)
    }

    pub(super) fn empty() -> Self {
        Self {
            bytes: vec![0; MARGIN],
            starts: vec![0],
        }
    }

    /// Appends an id without bytes.
    pub(super) fn push_hole(&mut self) {
        self.starts.push(self.n_bytes() as u32);
    }

    /// Appends a token; its id is the former [`Vocab::len`].
    pub(super) fn push(&mut self, token_bytes: &[u8]) -> Result<u32> {
        self.bytes.truncate(self.n_bytes());
        self.bytes.extend_from_slice(token_bytes);
        self.bytes.resize(self.bytes.len() + MARGIN, 0);
        let end = u32::try_from(self.n_bytes()).map_err(|_| {
            Error::Argument("a vocabulary must hold less than 4 GiB of token bytes".into())
        })?;
        self.starts.push(end);
        Ok(self.len() as u32 - 1)
    }

    fn n_bytes(&self) -> usize {
        self.bytes.len() - MARGIN
    }

    /// Bytes of all ids together; the place of the first that is a hole or out of range.
    pub(super) fn total_bytes<I: TokenId>(
        &self,
        token_ids: &[I],
    ) -> std::result::Result<usize, usize> {
        let mut sum = 0;
        for (place, id) in token_ids.iter().enumerate() {
            let id = id.id() as usize;
            match self.starts.get(id..id + 2) {
                Some(range) if range[0] < range[1] => sum += (range[1] - range[0]) as usize,
                _ => return Err(place),
            }
        }
        Ok(sum)
    }

    /// Writes the bytes of each id; `out` has as many as [`Vocab::total_bytes`] says.
    pub(super) fn copy_all<I: TokenId>(&self, token_ids: &[I], out: &mut [u8]) {
        let mut n = 0;
        for id in token_ids {
            let id = id.id() as usize;
            let (start, end) = (self.starts[id] as usize, self.starts[id + 1] as usize);
            let len = end - start;
            match out.get_mut(n..n + MARGIN) {
                Some(target) if len <= MARGIN => {
                    target.copy_from_slice(&self.bytes[start..start + MARGIN]);
                }
                _ => out[n..n + len].copy_from_slice(&self.bytes[start..end]),
            }
            n += len;
        }
    }

    /// One above the largest id: what a model's embedding needs.
    pub fn len(&self) -> usize {
        self.starts.len() - 1
    }

    /// Whether no token is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes of a token, `None` for a hole or an id out of range.
    #[inline]
    pub fn get(&self, id: u32) -> Option<&[u8]> {
        let id = id as usize;
        if id >= self.len() {
            return None;
        }
        let token_bytes = &self.bytes[self.starts[id] as usize..self.starts[id + 1] as usize];
        (!token_bytes.is_empty()).then_some(token_bytes)
    }

    /// The bytes of a token that is known to exist.
    #[inline]
    pub(super) fn bytes(&self, id: u32) -> &[u8] {
        &self.bytes[self.starts[id as usize] as usize..self.starts[id as usize + 1] as usize]
    }

    /// Every id with its bytes, ascending, holes left out.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &[u8])> {
        (0..self.len() as u32).filter_map(|id| Some((id, self.get(id)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_have_no_bytes() {
        let vocab = Vocab::new(vec![(4, b"b".to_vec()), (1, b"a".to_vec())]).expect("valid");
        assert_eq!(vocab.len(), 5);
        let all: Vec<_> = vocab.iter().collect();
        assert_eq!(all, [(1, &b"a"[..]), (4, &b"b"[..])]);
        assert_eq!([vocab.get(0), vocab.get(3), vocab.get(9)], [None; 3]);
    }

    #[test]
    fn bad_entries_are_refused() {
        for entries in [
            vec![(1, b"a".to_vec()), (1, b"b".to_vec())],
            vec![(1, Vec::new())],
            vec![(u32::MAX, b"a".to_vec())],
        ] {
            assert!(matches!(Vocab::new(entries), Err(Error::Argument(_))));
        }
    }
}
