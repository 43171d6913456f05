//! The table of longer pretokens: words of scripts with three bytes to a letter, mostly.

use super::{Lines, hash_bytes};

const LINE_BITS: u32 = 14;
/// Words of a line: two of head and key, eight of ids.
const WORDS: usize = 16;

/// Words of 16 to 62 bytes with at most 16 ids; a word has one place.
pub(super) struct LongTable {
    lines: Lines<WORDS>,
}

impl LongTable {
    pub const MAX_BYTES: usize = 62;
    pub const MAX_IDS: usize = 16;

    pub fn new() -> Self {
        Self {
            lines: Lines::new(1 << LINE_BITS),
        }
    }

    fn line_of(pretoken: &[u8]) -> usize {
        (hash_bytes(pretoken) >> (64 - LINE_BITS)) as usize
    }

    /// Length and bytes, zero-padded: no two pretokens have the same.
    fn key_of(pretoken: &[u8], n_ids: usize) -> [u64; 8] {
        let mut bytes = [0; 64];
        bytes[0] = pretoken.len() as u8;
        bytes[1] = n_ids as u8;
        bytes[2..2 + pretoken.len()].copy_from_slice(pretoken);
        let mut words = [0; 8];
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        words
    }

    /// Calls `each` with the ids of a pretoken of 16 to 62 bytes; whether it is known.
    pub fn get(&self, pretoken: &[u8], each: &mut impl FnMut(&[u32])) -> bool {
        let line = self.lines.get(Self::line_of(pretoken));
        let n_ids = (line[0] >> 8) as usize & 0xFF;
        if n_ids == 0 || line[..8] != Self::key_of(pretoken, n_ids) {
            return false;
        }
        let mut ids = [0; Self::MAX_IDS];
        for (pair, &word) in ids.as_chunks_mut().0.iter_mut().zip(&line[8..]) {
            *pair = [word as u32, (word >> 32) as u32];
        }
        each(&ids[..n_ids]);
        true
    }

    /// Remembers the ids of a pretoken of 16 to 62 bytes, if they are not too many.
    pub fn insert(&mut self, pretoken: &[u8], token_ids: &[u32]) {
        if token_ids.len() > Self::MAX_IDS {
            return;
        }
        let line = self.lines.get_mut(Self::line_of(pretoken));
        line[..8].copy_from_slice(&Self::key_of(pretoken, token_ids.len()));
        for (word, pair) in line[8..].iter_mut().zip(token_ids.chunks(2)) {
            *word = u64::from(pair[0]) | u64::from(*pair.get(1).unwrap_or(&0)) << 32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_found_is_what_was_put_there() {
        let mut table = LongTable::new();
        let word = |i: u32| format!("{i:017}{}", "\0".repeat(i as usize % 40)).into_bytes();
        let mut found = 0;
        for i in 0..40_000u32 {
            let ids: Vec<u32> = (i..=i + i % 16).collect();
            table.insert(&word(i), &ids);
            for j in [i, i / 2] {
                let mut check = |ids: &[u32]| assert!(ids.iter().copied().eq(j..=j + j % 16));
                found += u32::from(table.get(&word(j), &mut check));
            }
        }
        assert!(
            found > 45_000,
            "a cache that forgets everything is none: {found}"
        );
        table.insert(b"12345678901234567890", &[1; 17]);
        assert!(!table.get(b"12345678901234567890", &mut |_| ()));
    }
}
