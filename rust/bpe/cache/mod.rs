//! Remembers what pretokens become: of a hundred in a text, ninety-nine came before.
//!
//! Exact: a pretoken is compared with the one that was remembered, never its hash alone.
//! Bounded: tables of small buckets that stop growing, so memory does not follow the text,
//! and text made to fill the cache only makes it useless. A pretoken lives in one of two:
//!
//! | table | pretokens | ids | a slot | bytes |
//! |---|---|---|---|---|
//! | short | up to 8 bytes, without NUL | up to 3 | 16 bytes, 4 to a line | 2 MiB |
//! | middle | up to 255 bytes | up to 6 | 32 bytes, 2 to a line | 0.25 to 16 MiB |
//! | its store | more than 15 bytes or 6 ids | any | as it needs | up to 16 MiB |
//!
//! Nine of ten pretokens of English are looked up in the short table, whose busy lines
//! fit a second-level cache: 1.4 times as fast as one table of 32-byte slots (GPT-2's
//! vocabulary, 160 MB of books, 0.46 s -> 0.33 s of one Zen 4 core). What lies in the
//! middle table is asked for a batch ahead too, which is why it may be large: 46 languages in
//! 22 MB have 320,000 distinct pretokens, and with 4 MiB a third of the time went into
//! merging those again that others had put out (0.16 s -> 0.09 s with all of it). It begins
//! small, as its pages cost a text of 20 MB a tenth of its time. Tried and dropped: filling
//! the tables from the vocabulary beforehand (costs what it saves), half of the short table
//! (5-10 % slower).

mod middle;
mod requests;
mod short;
mod store;
mod words;

use crate::TokenId;
use crate::memory::with_huge_pages;
use crate::random::GAMMA;
use middle::MiddleTable;
pub(super) use requests::BATCH;
#[cfg(target_arch = "x86_64")]
pub(super) use words::{Avx2, Avx512};
pub(super) use words::{Instructions, Portable, WordCache};

/// Longest pretoken whose bytes and length fill a 16-byte key.
pub(super) const MAX_KEY_BYTES: usize = 15;

/// Up to three ids and their number in one word, so that a table's answer is one load.
///
/// From the low end: the low 16 bits of each id, four bits for the number of ids (of which
/// a table may hold more than the three that are here), bits 16 to 19 of each id. Read as
/// four u16, the word begins with the ids of any vocabulary of at most 65,536.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct PackedIds(u64);

impl PackedIds {
    pub const MAX_IDS: usize = 3;

    /// The first three of some ids and the number of all; `None` for an id from 2^20 up.
    pub fn new(token_ids: &[u32]) -> Option<Self> {
        let mut word = (token_ids.len() as u64) << 48;
        for (i, &id) in token_ids.iter().enumerate().take(Self::MAX_IDS) {
            if id >= 1 << 20 {
                return None;
            }
            word |= u64::from(id & 0xFFFF) << (16 * i) | u64::from(id >> 16) << (52 + 4 * i);
        }
        Some(Self(word))
    }

    /// Writes four places, of which the first are ids; their number.
    ///
    /// # Safety
    /// Four places can be written, and `I` holds every id.
    #[inline(always)]
    unsafe fn unpack_to<I: TokenId>(self, out: *mut I) -> usize {
        if size_of::<I>() == size_of::<u16>() {
            // SAFETY: four u16 are a word.
            unsafe { out.cast::<u64>().write_unaligned(self.0.to_le()) };
            // Ids that a u16 holds have no bits above the number.
            (self.0 >> 48) as usize
        } else {
            // SAFETY: as the caller promises.
            unsafe { out.cast::<[I; 4]>().write(self.wide().map(I::from_id)) };
            self.len()
        }
    }

    #[inline(always)]
    pub fn len(self) -> usize {
        (self.0 >> 48) as usize & 15
    }

    /// The ids; the fourth is none.
    #[inline(always)]
    pub fn wide(self) -> [u32; 4] {
        let id = |i: u32| {
            (self.0 >> (16 * i)) as u32 & 0xFFFF | ((self.0 >> (52 + 4 * i)) as u32 & 15) << 16
        };
        [id(0), id(1), id(2), 0]
    }
}

/// The pretoken `text[start..end]` as a key; `None` where it is longer than 15 bytes.
#[inline]
pub(super) fn key_at(text: &[u8], start: usize, end: usize) -> Option<u128> {
    let len = end - start;
    if len > MAX_KEY_BYTES {
        return None;
    }
    // The length in the top byte tells apart what zero padding would not, and makes no
    // key zero, which marks an empty slot.
    let bytes = if let Some(bytes) = text[start..].first_chunk::<16>() {
        u128::from_le_bytes(*bytes) & ((1 << (8 * len)) - 1)
    } else {
        let mut padded = [0; 16];
        padded[..len].copy_from_slice(&text[start..end]);
        u128::from_le_bytes(padded)
    };
    Some(bytes | (len as u128) << 120)
}

/// A hash of a key: one multiplication, folded.
#[inline]
pub(super) fn hash_of(key: u128) -> u64 {
    let folded = (key as u64) ^ ((key >> 64) as u64).rotate_left(29);
    let product = u128::from(folded) * u128::from(GAMMA);
    (product as u64) ^ (product >> 64) as u64
}

/// A hash of bytes, 8 at a time by multiplication and folding.
pub(super) fn hash_bytes(bytes: &[u8]) -> u64 {
    const K: u64 = GAMMA;
    let fold = |h: u64, word: u64| {
        let product = u128::from(h ^ word) * u128::from(K);
        (product as u64) ^ (product >> 64) as u64
    };
    let mut hash = K ^ bytes.len() as u64;
    let mut chunks = bytes.chunks_exact(8);
    for chunk in &mut chunks {
        hash = fold(hash, u64::from_le_bytes(chunk.try_into().expect("8 bytes")));
    }
    let mut last = [0; 8];
    let rest = chunks.remainder();
    last[..rest.len()].copy_from_slice(rest);
    fold(hash, u64::from_le_bytes(last) ^ K.rotate_left(17))
}

/// Lines of `N` words, which begin where lines of the processor's cache begin.
///
/// Zeroed memory comes from the system untouched, so an unused table costs nothing.
struct Lines<const N: usize> {
    words: Vec<u64>,
    first: usize,
}

impl<const N: usize> Lines<N> {
    fn new(n_lines: usize) -> Self {
        let words = with_huge_pages(vec![0u64; n_lines * N + 7]);
        let misplaced = words.as_ptr().addr() / 8 % 8;
        Self {
            first: (8 - misplaced) % 8,
            words,
        }
    }

    #[inline(always)]
    fn all(&self) -> &[[u64; N]] {
        self.words[self.first..].as_chunks().0
    }

    #[inline(always)]
    fn get(&self, line: usize) -> &[u64; N] {
        &self.all()[line]
    }

    #[inline(always)]
    fn get_mut(&mut self, line: usize) -> &mut [u64; N] {
        &mut self.words[self.first..].as_chunks_mut().0[line]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_ids_come_back() {
        for ids in [
            &[0u32][..],
            &[65_535, 7],
            &[(1 << 20) - 1, 65_536, 1],
            &[1, 2, 3, 4, 5],
        ] {
            let packed = PackedIds::new(ids).expect("small ids");
            assert_eq!(packed.len(), ids.len());
            let n = ids.len().min(3);
            assert_eq!(packed.wide()[..n], ids[..n]);
        }
        assert_eq!(PackedIds::new(&[1 << 20]), None);
    }

    #[test]
    fn keys_tell_padding_apart_and_leave_long_words_out() {
        assert_ne!(key_at(b"a\0", 0, 1), key_at(b"a\0", 0, 2));
        assert_ne!(key_at(b"\0\0", 0, 1), key_at(b"\0\0", 0, 2));
        assert!(key_at(&[1; 30], 3, 18).is_some() && key_at(&[1; 30], 3, 19).is_none());
        let long = [7; 40];
        for len in 0..16 {
            assert_eq!(key_at(&long, 0, len), key_at(&long[..len], 0, len), "{len}");
        }
    }

    #[test]
    fn lines_begin_at_cache_lines() {
        for n_lines in [1, 100, 1 << 14] {
            let lines = Lines::<8>::new(n_lines);
            for line in [0, n_lines - 1] {
                assert_eq!(std::ptr::from_ref(lines.get(line)).addr() % 64, 0);
            }
        }
    }
}
