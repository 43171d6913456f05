//! Bytes -> id of a token.

use std::hash::Hasher;

use rustc_hash::FxHasher;

use crate::bpe::vocab::Vocab;

const EMPTY: u64 = u64::MAX;

/// The id of each token of a vocabulary, which keeps the bytes: a table of ids alone is
/// made and given up much faster than one with a box of bytes for each.
///
/// A word of the table is half the hash of the bytes, then the id. The table is at most
/// half full.
pub(super) struct TokenIds {
    slots: Vec<u64>,
}

impl TokenIds {
    /// Where tokens have the same bytes, the last one. Where a special token and an
    /// ordinary one have (the runs of blanks of GPT-NeoX), the ordinary one: merges mean
    /// it, and special tokens are found in the text, not here.
    pub fn new(vocab: &Vocab, special_ids: &[u32]) -> Self {
        let n_slots = (2 * vocab.len()).next_power_of_two().max(64);
        let mut ids = Self {
            slots: vec![EMPTY; n_slots],
        };
        let mut is_special = vec![false; vocab.len()];
        for &id in special_ids {
            is_special[id as usize] = true;
        }
        for (id, token_bytes) in vocab.iter() {
            if !is_special[id as usize] {
                let (place, slot) = ids.place_of(vocab, token_bytes);
                ids.slots[place] = slot | u64::from(id);
            }
        }
        for &id in special_ids {
            let (place, slot) = ids.place_of(vocab, vocab.bytes(id));
            if ids.slots[place] == EMPTY {
                ids.slots[place] = slot | u64::from(id);
            }
        }
        ids
    }

    /// The id of some bytes; `vocab` is the one that the table was made for.
    pub fn get(&self, vocab: &Vocab, token_bytes: &[u8]) -> Option<u32> {
        let (place, _) = self.place_of(vocab, token_bytes);
        let slot = self.slots[place];
        (slot != EMPTY).then_some(slot as u32)
    }

    /// Where a token is or belongs, and the word for it without its id.
    fn place_of(&self, vocab: &Vocab, token_bytes: &[u8]) -> (usize, u64) {
        let mut hasher = FxHasher::default();
        hasher.write(token_bytes);
        let hash = hasher.finish();
        let (half, last) = (hash >> 32 << 32, self.slots.len() - 1);
        let mut place = hash as usize & last;
        loop {
            let slot = self.slots[place];
            let is_it = slot >> 32 << 32 == half && vocab.bytes(slot as u32) == token_bytes;
            if slot == EMPTY || is_it {
                return (place, half);
            }
            place = (place + 1) & last;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_found_as_in_the_vocabulary_and_ordinary_tokens_hide_special_ones() {
        let token = |id: u32| (id, id.to_string().into_bytes());
        let mut entries: Vec<_> = (0..5_000).filter(|id| id % 7 != 0).map(token).collect();
        // The same bytes twice: the last one counts, unless it is special.
        entries.extend([(6_000, b"1".to_vec()), (6_001, b"2".to_vec())]);
        let vocab = Vocab::new(entries).expect("valid");
        let ids = TokenIds::new(&vocab, &[6_001, 3]);
        for id in 0..5_100u32 {
            let expected = match id {
                1 => Some(6_000),
                id if id % 7 == 0 || id >= 5_000 => None,
                id => Some(id),
            };
            assert_eq!(ids.get(&vocab, id.to_string().as_bytes()), expected);
        }
        assert_eq!(ids.get(&vocab, b""), None);
    }
}
