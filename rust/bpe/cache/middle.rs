//! The table of pretokens that the short table does not take.

use std::hint::select_unpredictable;
use std::mem::MaybeUninit;

use super::store::{Place, Store};
use super::{Lines, MAX_KEY_BYTES, PackedIds, hash_bytes, hash_of, key_at};
use crate::TokenId;
use crate::memory::prefetch;

/// Lines of a new table, and of the largest one: 256 KiB and 16 MiB.
const FIRST_LINES: usize = 1 << 12;
const MAX_LINES: usize = 1 << 18;

/// Keys, each of bytes and length or, of longer pretokens, a hash and the length; and up to
/// six ids, or where they are stored. A line holds two slots of key and answer.
pub(super) struct MiddleTable {
    lines: Lines<8>,
    n_lines: usize,
    n_filled: usize,
    store: Store,
}

/// Up to three ids with the number of all, and the next three; or that they are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Answer {
    first: PackedIds,
    rest: u64,
}

/// In place of the number of ids: they are stored.
const STORED: PackedIds = PackedIds(15 << 48);

impl Answer {
    const MAX_IDS: usize = 2 * PackedIds::MAX_IDS;

    /// All ids, if they are not more than three.
    #[inline(always)]
    pub fn few(self) -> Option<PackedIds> {
        (self.first.len() <= PackedIds::MAX_IDS).then_some(self.first)
    }
}

impl MiddleTable {
    /// Longest pretoken that is remembered.
    pub const MAX_BYTES: usize = 255;

    pub fn new() -> Self {
        Self {
            lines: Lines::new(FIRST_LINES),
            n_lines: FIRST_LINES,
            n_filled: 0,
            store: Store::default(),
        }
    }

    /// The key of `text[start..end]`.
    #[inline(always)]
    pub fn key_at(text: &[u8], start: usize, end: usize) -> u128 {
        key_at(text, start, end).unwrap_or_else(|| long_key(&text[start..end]))
    }

    #[inline(always)]
    fn line_of(&self, key: u128) -> usize {
        hash_of(key) as usize & (self.n_lines - 1)
    }

    /// Asks the memory for the line of a key that is looked up soon.
    #[inline(always)]
    pub fn prefetch(&self, key: u128) {
        prefetch(self.lines.get(self.line_of(key)));
    }

    /// What is known of a key; of a long pretoken, what may be.
    #[inline(always)]
    pub fn get(&self, key: u128) -> Option<Answer> {
        self.get_in(self.line_of(key), key)
    }

    /// As [`MiddleTable::get`], looking also where those go for whom there was no place.
    pub fn get_anywhere(&self, key: u128) -> Option<Answer> {
        let line = self.line_of(key);
        let is_full = self.lines.get(line)[5] != 0;
        self.get_in(line, key)
            .or_else(|| is_full.then(|| self.get_in(line ^ 1, key)).flatten())
    }

    #[inline(always)]
    fn get_in(&self, line: usize, key: u128) -> Option<Answer> {
        let line = self.lines.get(line);
        let (low, high) = (key as u64, (key >> 64) as u64);
        let differs = |slot: usize| (line[slot] ^ low) | (line[slot + 1] ^ high);
        let is_first = differs(0) == 0;
        let is_known = differs(0).min(differs(4)) == 0;
        // Which of two it is cannot be foretold.
        let first = PackedIds(select_unpredictable(is_first, line[2], line[6]));
        let rest = select_unpredictable(is_first, line[3], line[7]);
        is_known.then_some(Answer { first, rest })
    }

    /// Asks the memory for what is stored of an answer.
    #[inline(always)]
    pub fn prefetch_stored(&self, answer: Answer) {
        if answer.first == STORED {
            self.store.prefetch(Place::from_word(answer.rest));
        }
    }

    /// Writes the ids of a pretoken to the beginning of `out`, and more behind them; their
    /// number, or nothing where the answer is another pretoken's or forgotten.
    #[inline(always)]
    pub fn copy_to<I: TokenId>(
        &self,
        answer: Answer,
        pretoken: &[u8],
        out: &mut [MaybeUninit<I>],
    ) -> Option<usize> {
        if answer.first != STORED {
            let out: &mut [MaybeUninit<I>; 8] = out.first_chunk_mut()?;
            // SAFETY: four places from the first and from the fourth on are among the eight;
            // the caller's `I` holds the ids.
            unsafe {
                answer.first.unpack_to(out.as_mut_ptr().cast::<I>());
                PackedIds(answer.rest)
                    .unpack_to(out[PackedIds::MAX_IDS..].as_mut_ptr().cast::<I>());
            }
            return Some(answer.first.len());
        }
        let place = Place::from_word(answer.rest);
        let is_long = pretoken.len() > MAX_KEY_BYTES;
        let stored_key = if is_long { pretoken } else { &[] };
        let is_it = self.store.copy_to(place, stored_key, out);
        is_it.then_some(place.n_ids.into())
    }

    /// Remembers the ids of a pretoken, unless it is too long.
    pub fn insert(&mut self, pretoken: &[u8], token_ids: &[u32]) {
        if pretoken.len() > Self::MAX_BYTES {
            return;
        }
        let key = Self::key_at(pretoken, 0, pretoken.len());
        let is_long = pretoken.len() > MAX_KEY_BYTES;
        let rest = token_ids.get(PackedIds::MAX_IDS..).unwrap_or_default();
        let packed = (PackedIds::new(token_ids), PackedIds::new(rest));
        if let ((Some(first), Some(rest)), false, true) =
            (packed, is_long, token_ids.len() <= Answer::MAX_IDS)
        {
            return self.insert_answer(
                key,
                Answer {
                    first,
                    rest: rest.0,
                },
            );
        }
        let stored_key = if is_long { pretoken } else { &[] };
        let (place, forget) = self.store.insert(stored_key, token_ids);
        if forget {
            self.lines = Lines::new(self.n_lines);
            self.n_filled = 0;
        }
        let rest = place.to_word();
        self.insert_answer(
            key,
            Answer {
                first: STORED,
                rest,
            },
        );
    }

    /// Remembers the ids of a key, all of which are in `token_ids`.
    pub fn insert_packed(&mut self, key: u128, token_ids: PackedIds) {
        self.insert_answer(
            key,
            Answer {
                first: token_ids,
                rest: 0,
            },
        );
    }

    fn insert_answer(&mut self, key: u128, answer: Answer) {
        let high = (key >> 64) as u64;
        self.place([key as u64, high, answer.first.0, answer.rest]);
        if self.n_filled > self.n_lines && self.n_lines < MAX_LINES {
            self.n_lines *= 4;
            self.n_filled = 0;
            let lines = std::mem::replace(&mut self.lines, Lines::new(self.n_lines));
            for line in lines.all() {
                for slot in line.as_chunks().0.iter().filter(|slot| slot[1] != 0) {
                    self.place(*slot);
                }
            }
        }
    }

    /// Who comes first to a line keeps the first place; the others replace each other in
    /// the second, and who is replaced goes to the line beside.
    /// Moving the newest to the front lets two rare words put out a frequent one.
    fn place(&mut self, new: [u64; 4]) {
        let number = self.line_of(u128::from(new[1]) << 64 | u128::from(new[0]));
        let slots = self.lines.get_mut(number).as_chunks_mut::<4>().0;
        // The length in the key's top byte is never zero.
        let is_first = slots[0][1] == 0 || slots[0][..2] == new[..2];
        let replaced = std::mem::replace(&mut slots[usize::from(!is_first)], new);
        self.n_filled += usize::from(replaced[1] == 0);
        if is_first || replaced[1] == 0 || replaced[..2] == new[..2] {
            return;
        }
        let slots = self.lines.get_mut(number ^ 1).as_chunks_mut::<4>().0;
        let is_first = slots[0][1] == 0;
        let replaced = std::mem::replace(&mut slots[usize::from(!is_first)], replaced);
        self.n_filled += usize::from(replaced[1] == 0);
    }
}

/// A hash of the bytes and their number, which is more than a short key has in its top byte.
fn long_key(pretoken: &[u8]) -> u128 {
    u128::from(hash_bytes(pretoken)) | (pretoken.len() as u128) << 96 | 1 << 127
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(i: u32) -> Vec<u8> {
        let (width, nuls) = (8 + i as usize % 30, "\0".repeat(i as usize % 7));
        format!("{i:0width$}{nuls}").into_bytes()
    }

    fn ids(i: u32) -> Vec<u32> {
        (i..=i + i % 20).collect()
    }

    fn get(table: &MiddleTable, word: &[u8]) -> Option<Vec<u32>> {
        let answer = table.get(MiddleTable::key_at(word, 0, word.len()))?;
        let mut out = [MaybeUninit::new(1u32); 256];
        let n = table.copy_to(answer, word, &mut out)?;
        // SAFETY: all of it was written.
        Some(
            out[..n]
                .iter()
                .map(|id| unsafe { id.assume_init() })
                .collect(),
        )
    }

    #[test]
    fn what_is_found_is_what_was_put_there() {
        let mut table = MiddleTable::new();
        let mut found = 0;
        for i in 0..100_000 {
            table.insert(&word(i), &ids(i));
            for j in [i, i / 2] {
                let known = get(&table, &word(j));
                assert!(known.as_ref().is_none_or(|known| *known == ids(j)));
                found += u32::from(known.is_some());
            }
        }
        assert!(
            found > 130_000,
            "a cache that forgets everything is none: {found}"
        );
    }

    #[test]
    fn ids_of_any_number_and_width_come_back() {
        let mut table = MiddleTable::new();
        for n in 1..100 {
            for first in [0, 65_500, 70_000, (1 << 20) - 3, 1 << 20] {
                let ids: Vec<u32> = (first..first + n).collect();
                for len in [9, 15, 16, 255] {
                    let word = vec![n as u8; len];
                    table.insert(&word, &ids);
                    assert_eq!(get(&table, &word), Some(ids.clone()));
                }
                table.insert(&[n as u8; 256], &ids);
                assert_eq!(get(&table, &[n as u8; 256]), None);
            }
        }
    }

    #[test]
    fn a_long_word_is_not_taken_for_another_one_with_its_key() {
        let mut table = MiddleTable::new();
        let (one, other) = ([1; 40], [2; 40]);
        table.insert(&one, &[5]);
        let answer = table.get(MiddleTable::key_at(&one, 0, 40)).expect("known");
        let mut out = [MaybeUninit::new(0u32); 16];
        assert_eq!(table.copy_to(answer, &one, &mut out), Some(1));
        assert_eq!(table.copy_to(answer, &other, &mut out), None);
    }
}
