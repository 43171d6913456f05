//! The table of pretokens of at most 8 bytes.

use super::{Lines, PackedIds};
use crate::random::GAMMA;

/// Longest pretoken of this table.
pub const SHORT_BYTES: usize = 8;

const N_LINES: usize = 1 << ShortTable::LINE_BITS;

/// The bits of a filter of 64 KiB.
const ELSEWHERE_BITS: u32 = 19;

/// Four keys, then the ids of each.
pub type Line = [u64; 8];

/// Words whose key is their bytes, at the high end of zeros.
///
/// No key is zero: a pretoken with a NUL byte is not for this table. Behind the lines that
/// are found by hash lie `N_SPARE` more, for the answers of the other table to one batch;
/// their keys stay zero.
pub struct ShortTable {
    lines: Lines<8>,
    /// A bit for hashes of keys that are in the middle table.
    elsewhere: Vec<u64>,
    turn: usize,
}

impl ShortTable {
    pub const LINE_BITS: u32 = 15;
    pub const N_SPARE: usize = 256;
    /// A key times this has the number of its line at the high end.
    pub const FACTOR: u64 = GAMMA;
    /// What to ask a spare line for.
    pub const SPARE_KEY: u64 = 0;
    /// What neither a spare line nor any other knows.
    pub const NO_KEY: u64 = 1;

    pub fn new() -> Self {
        Self {
            lines: Lines::new(N_LINES + Self::N_SPARE),
            elsewhere: vec![0; 1 << (ELSEWHERE_BITS - 6)],
            turn: 0,
        }
    }

    /// The line of a key.
    #[inline(always)]
    pub fn line_of(key: u64) -> u32 {
        hash(key, Self::LINE_BITS) as u32
    }

    /// Whether a key that is not here may be in the middle table.
    pub fn may_be_elsewhere(&self, key: u64) -> bool {
        let bit = hash(key, ELSEWHERE_BITS);
        self.elsewhere[bit / 64] >> (bit % 64) & 1 == 1
    }

    /// Notes that a key is in the middle table.
    pub fn note_elsewhere(&mut self, key: u64) {
        let bit = hash(key, ELSEWHERE_BITS);
        self.elsewhere[bit / 64] |= 1 << (bit % 64);
    }

    /// The spare line with a number below `N_SPARE`.
    #[inline(always)]
    pub fn spare(number: usize) -> u32 {
        (N_LINES + number) as u32
    }

    /// Which spare line a line is.
    #[inline(always)]
    pub fn spare_number(line: u32) -> Option<usize> {
        (line as usize).checked_sub(N_LINES)
    }

    /// All lines, the spare ones last.
    #[inline(always)]
    pub fn lines(&self) -> &[Line] {
        self.lines.all()
    }

    /// Says what a spare line answers to [`ShortTable::SPARE_KEY`].
    #[inline(always)]
    pub fn set_spare(&mut self, number: usize, token_ids: PackedIds) {
        self.lines.get_mut(N_LINES + number)[4] = token_ids.0;
    }

    /// Remembers ids, all of which are in `token_ids`; returns what was forgotten for it.
    ///
    /// Who comes first to a line keeps its place, and mostly is a frequent word; of the
    /// four places two are then taken in turns.
    pub fn insert(&mut self, key: u64, token_ids: PackedIds) -> Option<(u64, PackedIds)> {
        let line = self.lines.get_mut(Self::line_of(key) as usize);
        let place = line[..4].iter().position(|&other| other == 0);
        let place = place.unwrap_or_else(|| {
            self.turn ^= 1;
            2 + self.turn
        });
        let forgotten = (line[place], PackedIds(line[4 + place]));
        (line[place], line[4 + place]) = (key, token_ids.0);
        if forgotten.0 != 0 {
            self.note_elsewhere(forgotten.0);
        }
        (forgotten.0 != 0).then_some(forgotten)
    }
}

/// A hash of so many bits.
#[inline(always)]
fn hash(key: u64, n_bits: u32) -> usize {
    (key.wrapping_mul(ShortTable::FACTOR) >> (64 - n_bits)) as usize
}

/// The key that the middle table has for a word of the short one.
pub fn middle_key(key: u64) -> u128 {
    let n_zeros = key.trailing_zeros() / 8;
    u128::from(key >> (8 * n_zeros)) | u128::from(8 - n_zeros) << 120
}

/// Which of a line's keys is the one, by comparing one after the other without a branch.
#[inline(always)]
pub fn find_portable(line: &Line, key: u64) -> Option<usize> {
    let equal = |i: usize| u32::from(line[i] == key) << i;
    let found = equal(0) | equal(1) | equal(2) | equal(3);
    (found != 0).then_some(found.trailing_zeros() as usize)
}

/// As [`find_portable`], all four at once.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
#[inline]
pub fn find_avx2(line: &Line, key: u64) -> Option<usize> {
    use std::arch::x86_64::{
        _mm256_castsi256_pd, _mm256_cmpeq_epi64, _mm256_loadu_si256, _mm256_movemask_pd,
        _mm256_set1_epi64x,
    };
    // SAFETY: the reference is to 64 readable bytes, and the load needs no alignment.
    let keys = unsafe { _mm256_loadu_si256(line.as_ptr().cast()) };
    let equal = _mm256_cmpeq_epi64(keys, _mm256_set1_epi64x(key.cast_signed()));
    let found = _mm256_movemask_pd(_mm256_castsi256_pd(equal));
    (found != 0).then_some(found.trailing_zeros() as usize)
}

#[cfg(test)]
mod tests {
    use super::super::key_at;
    use super::*;

    fn get(table: &ShortTable, line: u32, key: u64) -> Option<PackedIds> {
        let line = &table.lines()[line as usize];
        find_portable(line, key).map(|place| PackedIds(line[4 + place]))
    }

    #[test]
    fn what_is_found_is_what_was_put_there() {
        let mut table = ShortTable::new();
        let mut found = 0;
        for i in 1..400_000u32 {
            let packed = PackedIds::new(&[i, i + 1]).expect("small ids");
            table.insert(u64::from(i), packed);
            for j in [i, i / 2 + 1] {
                let ids = get(&table, ShortTable::line_of(j.into()), j.into());
                assert!(ids.is_none_or(|ids| ids.wide()[..ids.len()] == [j, j + 1]));
                found += u32::from(ids.is_some());
            }
        }
        assert!(
            found > 450_000,
            "a cache that forgets everything is none: {found}"
        );
    }

    #[test]
    fn spare_lines_know_what_they_are_told_and_no_more() {
        let mut table = ShortTable::new();
        for ids in [9, 7] {
            let ids = PackedIds::new(&[ids]).expect("small ids");
            table.set_spare(3, ids);
            let line = ShortTable::spare(3);
            assert_eq!(get(&table, line, ShortTable::SPARE_KEY), Some(ids));
            assert_eq!(get(&table, line, ShortTable::NO_KEY), None);
        }
    }

    #[test]
    fn what_is_forgotten_has_the_key_of_its_bytes() {
        let mut table = ShortTable::new();
        let ids = PackedIds::new(&[9]).expect("small ids");
        // Keys that differ in what the hash does not use share a line.
        let text = |i: usize| format!("{i:07}");
        let mut forgotten = Vec::new();
        for i in 0..200_000 {
            let mut bytes = [0; 8];
            bytes[1..].copy_from_slice(text(i).as_bytes());
            forgotten.extend(table.insert(u64::from_le_bytes(bytes), ids));
        }
        assert!(!forgotten.is_empty());
        for (key, _) in forgotten {
            let key = middle_key(key);
            let number: usize = String::from_utf8_lossy(&key.to_le_bytes()[..7])
                .parse()
                .expect("seven digits");
            assert_eq!(Some(key), key_at(text(number).as_bytes(), 0, 7));
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn both_ways_to_find_agree() {
        if !std::arch::is_x86_feature_detected!("avx2") {
            return;
        }
        for keys in [[1, 2, 3, 4], [5, 0, 5, 7], [u64::MAX, 1 << 63, 0, 9]] {
            let mut line = [77; 8];
            line[..4].copy_from_slice(&keys);
            for key in [0, 1, 3, 4, 5, 7, 9, 1 << 63, u64::MAX, 77] {
                // SAFETY: the processor has the instructions.
                let at_once = unsafe { find_avx2(&line, key) };
                assert_eq!(find_portable(&line, key), at_once, "{key} in {keys:?}");
            }
        }
    }
}
