//! The answers that are too large for a slot: many ids, and the bytes of long pretokens.

use std::mem::MaybeUninit;

use crate::TokenId;
use crate::memory::prefetch_at;

/// Bytes of all answers; when they are full, all of them are forgotten.
const MAX_BYTES: usize = 16 << 20;

/// Ids that are copied at once.
pub(super) const STEP: usize = 16;

/// Bytes behind the last answer that are copied with its ids.
const SLACK: usize = STEP * size_of::<u32>();

/// Where an answer lies. One of an earlier generation is forgotten.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    pub at: u32,
    pub n_ids: u8,
    pub is_wide: bool,
    pub generation: u16,
}

impl Place {
    #[inline(always)]
    pub fn from_word(word: u64) -> Self {
        Self {
            at: word as u32,
            n_ids: (word >> 32) as u8,
            is_wide: word >> 40 & 1 == 1,
            generation: (word >> 48) as u16,
        }
    }

    pub fn to_word(self) -> u64 {
        u64::from(self.at)
            | u64::from(self.n_ids) << 32
            | u64::from(self.is_wide) << 40
            | u64::from(self.generation) << 48
    }
}

/// Pretokens' bytes and ids, one behind the other.
#[derive(Default)]
pub(super) struct Store {
    bytes: Vec<u8>,
    generation: u16,
}

impl Store {
    /// Keeps a key and at most 255 ids, and says where; and whether all places of before
    /// are to be forgotten, as generations begin to repeat.
    pub fn insert(&mut self, key: &[u8], token_ids: &[u32]) -> (Place, bool) {
        let n_bytes = key.len() + size_of_val(token_ids) + SLACK;
        let is_full = self.bytes.len() + n_bytes > MAX_BYTES;
        if is_full {
            self.bytes.clear();
            self.generation = self.generation.wrapping_add(1);
        }
        let at = self.bytes.len().saturating_sub(SLACK);
        let is_wide = token_ids.iter().any(|&id| id > u32::from(u16::MAX));
        self.bytes.truncate(at);
        self.bytes.extend(key);
        for &id in token_ids {
            if is_wide {
                self.bytes.extend(id.to_le_bytes());
            } else {
                self.bytes.extend((id as u16).to_le_bytes());
            }
        }
        self.bytes.extend([0; SLACK]);
        let place = Place {
            at: at as u32,
            n_ids: token_ids.len() as u8,
            is_wide,
            generation: self.generation,
        };
        (place, is_full && self.generation == 0)
    }

    #[inline(always)]
    pub fn prefetch(&self, place: Place) {
        let line = self.bytes.as_ptr().wrapping_add(place.at as usize);
        prefetch_at(line);
        prefetch_at(line.wrapping_add(64));
    }

    /// Writes the ids at a place to the beginning of `out`, and more behind them, up to a
    /// multiple of `STEP`; false where the place is forgotten or another key's.
    #[inline(always)]
    pub fn copy_to<I: TokenId>(
        &self,
        place: Place,
        key: &[u8],
        out: &mut [MaybeUninit<I>],
    ) -> bool {
        let Some(kept) = self.bytes.get(place.at as usize..) else {
            return false;
        };
        let Some(kept_key) = kept.get(..key.len()) else {
            return false;
        };
        if place.generation != self.generation || !are_equal(kept_key, key) {
            return false;
        }
        let from = &kept[key.len()..];
        let n_ids = usize::from(place.n_ids);
        if place.is_wide {
            copy(from, out, n_ids, |bytes| u32::from_le_bytes(*bytes));
        } else {
            copy(from, out, n_ids, |bytes| u16::from_le_bytes(*bytes).into());
        }
        true
    }
}

/// As `==`, without a call for keys as they mostly are, empty or of some sixteen bytes.
#[inline(always)]
fn are_equal(a: &[u8], b: &[u8]) -> bool {
    if a.len() < 8 {
        return a.is_empty() && b.is_empty() || a == b;
    }
    let (a_words, b_words) = (a.as_chunks::<8>().0, b.as_chunks::<8>().0);
    let last = |bytes: &[u8]| bytes.last_chunk::<8>().copied();
    let differences = a_words.iter().zip(b_words);
    let differ = differences.fold(0, |any, (a, b)| {
        any | (u64::from_ne_bytes(*a) ^ u64::from_ne_bytes(*b))
    });
    differ == 0 && last(a) == last(b)
}

#[inline(always)]
fn copy<I: TokenId, const WIDTH: usize>(
    from: &[u8],
    out: &mut [MaybeUninit<I>],
    n_ids: usize,
    id: impl Fn(&[u8; WIDTH]) -> u32,
) {
    let from = from.as_chunks::<WIDTH>().0.as_chunks::<STEP>().0;
    let to = out.as_chunks_mut::<STEP>().0;
    for (to, from) in to.iter_mut().zip(from).take(n_ids.div_ceil(STEP)) {
        for (to, bytes) in to.iter_mut().zip(from) {
            to.write(I::from_id(id(bytes)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_found_is_what_was_put_there_until_all_is_forgotten() {
        let mut store = Store::default();
        let mut places = Vec::new();
        let answer = |i: u32| -> (Vec<u8>, Vec<u32>) {
            let width = (i % 60) as usize;
            let key = format!("{i:0width$}").into_bytes();
            (key, (i..i + i % 256).collect())
        };
        let mut generations = 1;
        for i in 0..200_000 {
            let (key, ids) = answer(i * 7 % 200_000);
            let (place, _) = store.insert(&key, &ids);
            assert_eq!(Place::from_word(place.to_word()), place);
            if places
                .last()
                .is_some_and(|&(_, last): &(u32, Place)| last.generation != place.generation)
            {
                generations += 1;
            }
            places.push((i * 7 % 200_000, place));
        }
        assert!(generations > 3);
        let mut n_kept = 0;
        for &(i, place) in &places {
            let (key, ids) = answer(i);
            let mut out = [MaybeUninit::new(7u32); 256 + STEP];
            let is_kept = place.generation == store.generation;
            assert_eq!(store.copy_to(place, &key, &mut out), is_kept);
            if is_kept {
                // SAFETY: all of it was written.
                let out_ids = out[..ids.len()]
                    .iter()
                    .map(|id| unsafe { id.assume_init() });
                assert!(out_ids.eq(ids));
                assert!(!store.copy_to(place, b"other", &mut out));
                n_kept += 1;
            }
        }
        assert!(n_kept > 1_000);
    }

    #[test]
    fn generations_that_repeat_are_told() {
        let mut store = Store {
            generation: u16::MAX,
            ..Store::default()
        };
        let repeats = (0..40_000).find(|_| store.insert(&[1; 200], &[9; 255]).1);
        assert!(repeats.is_some_and(|n| n > 5_000));
    }
}
