//! Distinct pretokens with their counts: what training needs of a corpus.

use super::cache::{MAX_KEY_BYTES, hash_bytes, hash_of, key_at, prefetch};
use crate::pretokenize::Batch;

#[derive(Clone, Copy, Default)]
#[repr(C, align(32))]
struct Short {
    /// The pretoken itself; 0 marks an empty slot.
    key: u128,
    count: u64,
}

#[derive(Clone, Copy, Default)]
struct Long {
    /// 0 marks an empty slot.
    count: u64,
    start: u64,
    len: u32,
    /// High half of the hash: most different pretokens are told apart without their bytes.
    tag: u32,
}

/// A multiset of pretokens. Counts are u64 and memory is bounded by the distinct
/// pretokens, whatever the size of the corpus.
///
/// Pretokens of at most 15 bytes are their own keys; longer ones lie in an arena and are
/// compared there, so no two are ever confused.
pub struct PretokenCounts {
    short: Vec<Short>,
    n_short: usize,
    long: Vec<Long>,
    n_long: usize,
    bytes: Vec<u8>,
}

impl Default for PretokenCounts {
    fn default() -> Self {
        Self::new()
    }
}

impl PretokenCounts {
    /// An empty multiset.
    pub fn new() -> Self {
        Self {
            short: vec![Short::default(); 1 << 14],
            n_short: 0,
            long: vec![Long::default(); 1 << 10],
            n_long: 0,
            bytes: Vec::new(),
        }
    }

    /// Adds one occurrence of each pretoken of a batch.
    ///
    /// The lines of the table are fetched for all of them before the first is counted.
    #[inline]
    pub fn add_batch(&mut self, batch: Batch<'_>, keys: &mut Vec<u128>) {
        // Growth moves the table, so there is room for the whole batch before it begins.
        while 2 * (self.n_short + batch.ends.len()) > self.short.len() {
            self.grow_short();
        }
        keys.clear();
        let mask = self.short.len() - 1;
        for (start, end) in batch.pretokens() {
            let key = key_at(batch.segment, start, end).unwrap_or(0);
            prefetch(&self.short[hash_of(key) as usize & mask]);
            keys.push(key);
        }
        for (i, (start, end)) in batch.pretokens().enumerate() {
            match keys[i] {
                0 => self.add_long(&batch.segment[start..end], 1),
                key => self.add_short(key, 1),
            }
        }
    }

    /// Adds `count` occurrences of a pretoken, which is not empty.
    #[inline]
    pub fn add(&mut self, pretoken: &[u8], count: u64) {
        if count == 0 {
            return;
        }
        if let Some(key) = key_at(pretoken, 0, pretoken.len()) {
            if 2 * self.n_short >= self.short.len() {
                self.grow_short();
            }
            self.add_short(key, count);
        } else {
            self.add_long(pretoken, count);
        }
    }

    #[inline]
    fn add_short(&mut self, key: u128, count: u64) {
        let slot = find_short(&mut self.short, key);
        self.n_short += usize::from(slot.key == 0);
        slot.key = key;
        slot.count += count;
    }

    fn grow_short(&mut self) {
        let doubled = vec![Short::default(); self.short.len() * 2];
        let old = std::mem::replace(&mut self.short, doubled);
        for slot in old.into_iter().filter(|slot| slot.key != 0) {
            *find_short(&mut self.short, slot.key) = slot;
        }
    }

    #[inline(never)]
    fn add_long(&mut self, pretoken: &[u8], count: u64) {
        let hash = hash_bytes(pretoken);
        let mask = self.long.len() - 1;
        let mut index = hash as usize & mask;
        loop {
            let slot = &self.long[index];
            let same = slot.tag == (hash >> 32) as u32
                && slot.len as usize == pretoken.len()
                && self.bytes_of(slot) == pretoken;
            if slot.count == 0 || same {
                break;
            }
            index = (index + 1) & mask;
        }
        let slot = &mut self.long[index];
        if slot.count == 0 {
            slot.start = self.bytes.len() as u64;
            slot.len = pretoken.len() as u32;
            slot.tag = (hash >> 32) as u32;
            self.bytes.extend_from_slice(pretoken);
            self.n_long += 1;
        }
        slot.count += count;
        if self.n_long * 2 > self.long.len() {
            self.grow_long();
        }
    }

    fn bytes_of(&self, slot: &Long) -> &[u8] {
        &self.bytes[slot.start as usize..slot.start as usize + slot.len as usize]
    }

    fn grow_long(&mut self) {
        let doubled = vec![Long::default(); self.long.len() * 2];
        let mask = doubled.len() - 1;
        let old = std::mem::replace(&mut self.long, doubled);
        for slot in old.into_iter().filter(|slot| slot.count > 0) {
            let mut index = hash_bytes(self.bytes_of(&slot)) as usize & mask;
            while self.long[index].count > 0 {
                index = (index + 1) & mask;
            }
            self.long[index] = slot;
        }
    }

    /// Adds everything that another multiset holds.
    pub fn merge(&mut self, other: &Self) {
        other.for_each(|pretoken, count| self.add(pretoken, count));
    }

    /// How many different pretokens are held.
    pub fn len(&self) -> usize {
        self.n_short + self.n_long
    }

    /// Whether nothing has been counted.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Calls `each` with every pretoken and its count, in no particular order.
    pub fn for_each(&self, mut each: impl FnMut(&[u8], u64)) {
        for slot in self.short.iter().filter(|slot| slot.key != 0) {
            let padded = slot.key.to_le_bytes();
            each(&padded[..padded[MAX_KEY_BYTES] as usize], slot.count);
        }
        for slot in self.long.iter().filter(|slot| slot.count > 0) {
            each(self.bytes_of(slot), slot.count);
        }
    }
}

/// The slot of a key, or the empty one where it belongs.
#[inline]
fn find_short(slots: &mut [Short], key: u128) -> &mut Short {
    let mask = slots.len() - 1;
    let mut index = hash_of(key) as usize & mask;
    while slots[index].key != key && slots[index].key != 0 {
        index = (index + 1) & mask;
    }
    &mut slots[index]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn counts_equal_a_hash_map_through_growth_and_merging() {
        let mut counts = PretokenCounts::new();
        let mut other = PretokenCounts::new();
        let mut expected: HashMap<Vec<u8>, u64> = HashMap::new();
        for i in 0..60_000u64 {
            let number = (i * i) % 19_973;
            let padding = "x".repeat(number as usize % 22);
            let pretoken = format!("{number}\0{padding}").into_bytes();
            if i % 3 == 0 { &mut other } else { &mut counts }.add(&pretoken, i + 1);
            *expected.entry(pretoken).or_default() += i + 1;
        }
        counts.merge(&other);
        assert_eq!(counts.len(), expected.len());
        counts.for_each(|pretoken, count| assert_eq!(expected[pretoken], count));
    }

    #[test]
    fn a_batch_counts_each_pretoken_once() {
        let mut counts = PretokenCounts::new();
        let segment = b"aabababcabcdefghijklmnopq";
        let batch = Batch {
            segment,
            start: 0,
            ends: &[1, 2, 4, 6, 8, 25],
        };
        counts.add_batch(batch, &mut Vec::new());
        let mut found = HashMap::new();
        counts
            .for_each(|pretoken, count| assert!(found.insert(pretoken.to_vec(), count).is_none()));
        let expected = [
            (&b"a"[..], 2),
            (b"ba", 2),
            (b"bc", 1),
            (b"abcdefghijklmnopq", 1),
        ];
        assert_eq!(
            found,
            expected.into_iter().map(|(p, n)| (p.to_vec(), n)).collect()
        );
    }

    #[test]
    fn trailing_nul_bytes_make_different_pretokens() {
        let mut counts = PretokenCounts::new();
        counts.add(b"a", 1);
        counts.add(b"a\0", 1);
        assert_eq!(counts.len(), 2);
    }
}
