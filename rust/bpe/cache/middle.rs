//! The table of pretokens of at most 15 bytes that the short table does not take.

use std::hint::select_unpredictable;

use super::{Lines, PackedIds, hash_of};

const LINE_BITS: u32 = 16;

/// Words whose key is their bytes and length. A line holds two slots of key and ids.
pub(super) struct MiddleTable {
    lines: Lines<8>,
}

impl MiddleTable {
    pub const MAX_IDS: usize = 2 * PackedIds::MAX_IDS;

    pub fn new() -> Self {
        Self {
            lines: Lines::new(1 << LINE_BITS),
        }
    }

    #[inline(always)]
    fn line_of(key: u128) -> usize {
        hash_of(key) as usize & ((1 << LINE_BITS) - 1)
    }

    /// Asks the memory for the line of a key that is looked up soon.
    #[inline(always)]
    pub fn prefetch(&self, key: u128) {
        super::prefetch(self.lines.get(Self::line_of(key)));
    }

    /// The first three ids of a key with the number of all, and the next three.
    #[inline(always)]
    pub fn get(&self, key: u128) -> Option<(PackedIds, PackedIds)> {
        let line = self.lines.get(Self::line_of(key));
        let (low, high) = (key as u64, (key >> 64) as u64);
        let differs = |slot: usize| (line[slot] ^ low) | (line[slot + 1] ^ high);
        let is_first = differs(0) == 0;
        let is_known = differs(0).min(differs(4)) == 0;
        // Which of two it is cannot be foretold.
        let first = select_unpredictable(is_first, line[2], line[6]);
        let rest = select_unpredictable(is_first, line[3], line[7]);
        is_known.then_some((PackedIds(first), PackedIds(rest)))
    }

    /// Remembers the ids of a key, if there are at most six, below 2^20.
    pub fn insert(&mut self, key: u128, token_ids: &[u32]) {
        if token_ids.len() > Self::MAX_IDS {
            return;
        }
        let rest = token_ids.get(PackedIds::MAX_IDS..).unwrap_or_default();
        if let (Some(first), Some(rest)) = (PackedIds::new(token_ids), PackedIds::new(rest)) {
            self.insert_packed(key, first, rest);
        }
    }

    /// As [`MiddleTable::insert`].
    ///
    /// Who comes first to a line keeps the first place; the others replace each other in
    /// the second. Moving the newest to the front lets two rare words put out a frequent one.
    pub fn insert_packed(&mut self, key: u128, first: PackedIds, rest: PackedIds) {
        let line = self.lines.get_mut(Self::line_of(key));
        // The length in the key's top byte is never zero.
        let slot = if line[1] == 0 { 0 } else { 4 };
        line[slot..slot + 4].copy_from_slice(&[key as u64, (key >> 64) as u64, first.0, rest.0]);
    }
}

#[cfg(test)]
mod tests {
    use super::super::key_at;
    use super::*;

    #[test]
    fn what_is_found_is_what_was_put_there() {
        let mut table = MiddleTable::new();
        let key = |i: u32| key_at(format!("word {i}").as_bytes(), 0, 11).unwrap_or(1);
        let key = |i: u32| key(i + 100_000);
        let mut found = 0;
        for i in 0..100_000 {
            table.insert(key(i), &[i, 1, 2, 3, i + 1]);
            if let Some((first, rest)) = table.get(key(i / 2)) {
                assert_eq!((first.len(), rest.len()), (5, 2));
                assert_eq!(first.wide()[..3], [i / 2, 1, 2]);
                assert_eq!(rest.wide()[..2], [3, i / 2 + 1]);
                found += 1;
            }
        }
        assert!(
            found > 30_000,
            "a cache that forgets everything is none: {found}"
        );
        table.insert(7 << 120, &[0; 7]);
        table.insert(7 << 120, &[1 << 20]);
        assert_eq!(table.get(7 << 120), None);
    }
}
