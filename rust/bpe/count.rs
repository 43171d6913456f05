//! Distinct pretokens with their counts: what training needs of a corpus.

/// A hash of bytes, 8 at a time by multiplication and folding.
#[inline]
pub(super) fn hash_bytes(bytes: &[u8]) -> u64 {
    const K: u64 = 0x9E37_79B9_7F4A_7C15;
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

#[derive(Clone, Copy, Default)]
struct Slot {
    /// 0 marks an empty slot.
    count: u64,
    start: u64,
    len: u32,
    /// High half of the hash: most different pretokens are told apart without their bytes.
    tag: u32,
}

/// A multiset of pretokens. Counts are u64 and memory is bounded by the distinct
/// pretokens, whatever the size of the corpus.
#[derive(Default)]
pub struct PretokenCounts {
    slots: Vec<Slot>,
    bytes: Vec<u8>,
    n_distinct: usize,
}

impl PretokenCounts {
    /// An empty multiset.
    pub fn new() -> Self {
        Self {
            slots: vec![Slot::default(); 1 << 12],
            bytes: Vec::new(),
            n_distinct: 0,
        }
    }

    /// Adds `count` occurrences of a pretoken.
    #[inline]
    pub fn add(&mut self, pretoken: &[u8], count: u64) {
        if count == 0 {
            return;
        }
        let hash = hash_bytes(pretoken);
        let index = self.find(pretoken, hash);
        let slot = &mut self.slots[index];
        if slot.count == 0 {
            slot.start = self.bytes.len() as u64;
            slot.len = pretoken.len() as u32;
            slot.tag = (hash >> 32) as u32;
            self.bytes.extend_from_slice(pretoken);
            self.n_distinct += 1;
        }
        slot.count += count;
        if self.n_distinct * 2 > self.slots.len() {
            self.grow();
        }
    }

    /// The slot of a pretoken, or the empty one where it belongs.
    #[inline]
    fn find(&self, pretoken: &[u8], hash: u64) -> usize {
        let mask = self.slots.len() - 1;
        let mut index = hash as usize & mask;
        loop {
            let slot = &self.slots[index];
            let same = slot.tag == (hash >> 32) as u32
                && slot.len as usize == pretoken.len()
                && self.bytes_of(slot) == pretoken;
            if slot.count == 0 || same {
                return index;
            }
            index = (index + 1) & mask;
        }
    }

    fn bytes_of(&self, slot: &Slot) -> &[u8] {
        &self.bytes[slot.start as usize..slot.start as usize + slot.len as usize]
    }

    fn grow(&mut self) {
        let doubled = vec![Slot::default(); self.slots.len() * 2];
        let mask = doubled.len() - 1;
        let old = std::mem::replace(&mut self.slots, doubled);
        for slot in old.into_iter().filter(|slot| slot.count > 0) {
            let mut index = hash_bytes(self.bytes_of(&slot)) as usize & mask;
            while self.slots[index].count > 0 {
                index = (index + 1) & mask;
            }
            self.slots[index] = slot;
        }
    }

    /// Adds everything that another multiset holds.
    pub fn merge(&mut self, other: &Self) {
        for (pretoken, count) in other.iter() {
            self.add(pretoken, count);
        }
    }

    /// How many different pretokens are held.
    pub fn len(&self) -> usize {
        self.n_distinct
    }

    /// Whether nothing has been counted.
    pub fn is_empty(&self) -> bool {
        self.n_distinct == 0
    }

    /// Every pretoken with its count, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], u64)> {
        let held = self.slots.iter().filter(|slot| slot.count > 0);
        held.map(|slot| (self.bytes_of(slot), slot.count))
    }
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
        for i in 0..40_000u64 {
            let pretoken = format!("{}\0", (i * i) % 9_973).into_bytes();
            if i % 3 == 0 { &mut other } else { &mut counts }.add(&pretoken, i + 1);
            *expected.entry(pretoken).or_default() += i + 1;
        }
        counts.merge(&other);
        assert_eq!(counts.len(), expected.len());
        for (pretoken, count) in counts.iter() {
            assert_eq!(expected[pretoken], count);
        }
    }

    #[test]
    fn trailing_nul_bytes_make_different_pretokens() {
        let mut counts = PretokenCounts::new();
        counts.add(b"a", 1);
        counts.add(b"a\0", 1);
        assert_eq!(counts.len(), 2);
    }
}
