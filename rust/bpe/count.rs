//! Distinct pretokens with their counts: what training needs of a corpus.

mod counter;
mod file;
mod footprint;
mod merge;
mod runs;
mod varint;

pub use counter::Counter;
pub use file::{CountsOrigin, CountsReader, CountsTotal};
pub use footprint::Footprint;
pub use merge::merge_counts;
pub use runs::{Runs, write_counts};
use varint::{push_varint, take_varint};

use crate::error::Result;
use crate::memory::apart;

use super::cache::{MAX_KEY_BYTES, hash_bytes, hash_of, key_at};

#[derive(Clone, Copy, Default)]
#[repr(C, align(32))]
struct Short {
    /// The pretoken itself; 0 marks an empty slot.
    key: u128,
    count: u64,
}

impl Short {
    /// Lends the pretoken of a slot that is not empty.
    #[inline]
    fn with_bytes<T>(&self, work: impl FnOnce(&[u8]) -> T) -> T {
        let padded = self.key.to_le_bytes();
        work(&padded[..padded[MAX_KEY_BYTES] as usize])
    }
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
/// compared there, so no two are ever confused. What came from disk is kept packed, at a
/// fourth of the memory of a table or less.
#[derive(Clone)]
pub struct PretokenCounts {
    short: Vec<Short>,
    n_short: usize,
    long: Vec<Long>,
    n_long: usize,
    bytes: Vec<u8>,
    /// Different pretokens, none of them in the tables: length, bytes, count.
    packed: Vec<u8>,
    n_packed: usize,
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
            packed: Vec::new(),
            n_packed: 0,
        }
    }

    /// Makes room for so many pretokens of at most 15 bytes: growth moves the table.
    fn make_room(&mut self, n_pretokens: usize) {
        self.unpack();
        while self.n_short + n_pretokens > most_entries(self.short.len()) {
            self.grow_short();
        }
    }

    /// Adds `count` occurrences of a pretoken, which is not empty.
    #[inline]
    pub fn add(&mut self, pretoken: &[u8], count: u64) {
        if count == 0 {
            return;
        }
        self.unpack();
        if let Some(key) = key_at(pretoken, 0, pretoken.len()) {
            self.make_room(1);
            self.add_short(key, count);
        } else {
            self.add_long(pretoken, count);
        }
    }

    #[inline]
    fn add_short(&mut self, key: u128, count: u64) -> u64 {
        let slot = find_short(&mut self.short, key);
        self.n_short += usize::from(slot.key == 0);
        slot.key = key;
        slot.count += count;
        slot.count
    }

    fn grow_short(&mut self) {
        let doubled = empty_table(self.short.len() * 2);
        let old = std::mem::replace(&mut self.short, doubled);
        for slot in old.into_iter().filter(|slot| slot.key != 0) {
            *find_short(&mut self.short, slot.key) = slot;
        }
    }

    #[inline(never)]
    fn add_long(&mut self, pretoken: &[u8], count: u64) {
        let (index, tag) = self.find_long(pretoken);
        let slot = &mut self.long[index];
        if slot.count == 0 {
            slot.start = self.bytes.len() as u64;
            slot.len = pretoken.len() as u32;
            slot.tag = tag;
            self.bytes.extend_from_slice(pretoken);
            self.n_long += 1;
        }
        slot.count += count;
        if self.n_long > most_entries(self.long.len()) {
            self.grow_long();
        }
    }

    /// The slot of a pretoken, or the empty one where it belongs, and its tag.
    fn find_long(&self, pretoken: &[u8]) -> (usize, u32) {
        let hash = hash_bytes(pretoken);
        let tag = (hash >> 32) as u32;
        let mask = self.long.len() - 1;
        let mut index = hash as usize & mask;
        loop {
            let slot = &self.long[index];
            let is_same = slot.tag == tag
                && slot.len as usize == pretoken.len()
                && self.bytes_of(slot) == pretoken;
            if slot.count == 0 || is_same {
                return (index, tag);
            }
            index = (index + 1) & mask;
        }
    }

    fn bytes_of(&self, slot: &Long) -> &[u8] {
        &self.bytes[slot.start as usize..slot.start as usize + slot.len as usize]
    }

    fn grow_long(&mut self) {
        let doubled: Vec<Long> = empty_table(self.long.len() * 2);
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

    /// Adds a pretoken that is not held yet, packed.
    pub fn push_packed(&mut self, pretoken: &[u8], count: u64) {
        push_varint(&mut self.packed, pretoken.len() as u64);
        self.packed.extend_from_slice(pretoken);
        push_varint(&mut self.packed, count);
        self.n_packed += 1;
    }

    /// Moves what is packed into the tables, where counts can be added to.
    #[inline]
    fn unpack(&mut self) {
        if self.n_packed > 0 {
            self.n_packed = 0;
            let packed = std::mem::take(&mut self.packed);
            for_each_packed(&packed, |pretoken, count| self.add(pretoken, count));
        }
    }

    /// Bytes of memory that all this takes.
    pub fn memory_bytes(&self) -> u64 {
        let tables = size_of_val(&*self.short) + size_of_val(&*self.long);
        (tables + self.bytes.capacity() + self.packed.capacity()) as u64
    }

    /// The most memory it takes while so many pretokens of so many bytes are added, all of
    /// them new; a table and its double exist side by side while it grows.
    #[inline]
    pub fn memory_bytes_with(&self, n_pretokens: usize, n_bytes: usize) -> u64 {
        let short = Self::grown(&self.short, self.n_short + n_pretokens);
        let long = Self::grown(
            &self.long,
            self.n_long + n_pretokens.min(n_bytes / MAX_KEY_BYTES),
        );
        (short + long + self.bytes.len() + n_bytes) as u64
    }

    #[inline]
    fn grown<T>(table: &[T], n_entries: usize) -> usize {
        let mut n_slots = table.len();
        while n_entries > most_entries(n_slots) {
            n_slots *= 2;
        }
        let held_while_it_grows = if n_slots > table.len() {
            table.len()
        } else {
            0
        };
        (held_while_it_grows + n_slots) * size_of::<T>()
    }

    /// Calls `each` with every pretoken, ascending by bytes, and its count; holds nothing
    /// afterwards, in the same memory.
    ///
    /// # Errors
    /// What `each` returns.
    pub fn drain_sorted(&mut self, mut each: impl FnMut(&[u8], u64) -> Result<()>) -> Result<()> {
        self.unpack();
        let n_short = move_to_front(&mut self.short, |slot| slot.key != 0);
        let n_long = move_to_front(&mut self.long, |slot| slot.count > 0);
        let bytes = std::mem::take(&mut self.bytes);
        let bytes_of = |slot: &Long| &bytes[slot.start as usize..][..slot.len as usize];
        // The first byte of a key is its lowest: swapped, numbers order like the bytes, and
        // the length, now lowest, tells padding from NUL.
        self.short[..n_short].sort_unstable_by_key(|slot| slot.key.swap_bytes());
        self.long[..n_long].sort_unstable_by(|a, b| bytes_of(a).cmp(bytes_of(b)));
        let mut long = self.long[..n_long].iter().peekable();
        for slot in &self.short[..n_short] {
            slot.with_bytes(|pretoken| {
                while let Some(slot) = long.next_if(|slot| bytes_of(slot) < pretoken) {
                    each(bytes_of(slot), slot.count)?;
                }
                each(pretoken, slot.count)
            })?;
        }
        for slot in long {
            each(bytes_of(slot), slot.count)?;
        }
        self.short.fill(Short::default());
        self.long.fill(Long::default());
        (self.n_short, self.n_long, self.bytes) = (0, 0, bytes);
        self.bytes.clear();
        Ok(())
    }

    /// Adds everything that another multiset holds. What is new stays packed: that needs no
    /// larger table, and is as good where nothing more is added.
    pub fn merge(&mut self, mut other: Self) {
        self.unpack();
        other.unpack();
        if other.short.len() > self.short.len() {
            std::mem::swap(self, &mut other);
        }
        // Both tables are in the order of the hash, so neither is read at random.
        for slot in other.short.iter().filter(|slot| slot.key != 0) {
            let own = find_short(&mut self.short, slot.key);
            if own.key == 0 {
                slot.with_bytes(|pretoken| self.push_packed(pretoken, slot.count));
            } else {
                own.count += slot.count;
            }
        }
        for slot in other.long.iter().filter(|slot| slot.count > 0) {
            let pretoken = other.bytes_of(slot);
            let (index, _) = self.find_long(pretoken);
            if self.long[index].count == 0 {
                self.push_packed(pretoken, slot.count);
            } else {
                self.long[index].count += slot.count;
            }
        }
    }

    /// How many different pretokens are held.
    pub fn len(&self) -> usize {
        self.n_short + self.n_long + self.n_packed
    }

    /// Whether nothing has been counted.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Calls `each` with every pretoken and its count, in no particular order.
    pub fn for_each(&self, mut each: impl FnMut(&[u8], u64)) {
        for slot in self.short.iter().filter(|slot| slot.key != 0) {
            slot.with_bytes(|pretoken| each(pretoken, slot.count));
        }
        for slot in self.long.iter().filter(|slot| slot.count > 0) {
            each(self.bytes_of(slot), slot.count);
        }
        for_each_packed(&self.packed, each);
    }
}

fn empty_table<T: Clone + Default>(n_slots: usize) -> Vec<T> {
    let mut table = apart(n_slots);
    table.resize(n_slots, T::default());
    table
}

fn for_each_packed(mut packed: &[u8], mut each: impl FnMut(&[u8], u64)) {
    while !packed.is_empty() {
        let length = take_varint(&mut packed) as usize;
        let (pretoken, rest) = packed.split_at(length);
        packed = rest;
        each(pretoken, take_varint(&mut packed));
    }
}

/// As many entries as a table of so many slots holds before it grows. Most pretokens that are
/// looked up in it are there, so a full table costs less than the lines of a larger one.
const fn most_entries(n_slots: usize) -> usize {
    n_slots / 4 * 3
}

/// Moves the slots that are taken to the front; returns how many there are.
fn move_to_front<T>(slots: &mut [T], is_taken: impl Fn(&T) -> bool) -> usize {
    let mut n_taken = 0;
    for i in 0..slots.len() {
        if is_taken(&slots[i]) {
            slots.swap(n_taken, i);
            n_taken += 1;
        }
    }
    n_taken
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
        counts.merge(other);
        assert_eq!(counts.len(), expected.len());
        counts.for_each(|pretoken, count| assert_eq!(expected[pretoken], count));
    }

    #[test]
    fn drained_and_packed_counts_are_the_same_in_order() {
        let mut counts = PretokenCounts::new();
        let mut expected = Vec::new();
        for i in 0..50_000u64 {
            let number = (i * 7919) % 50_000;
            let padding = ["", "\0", "\0\0", "\u{ff}", "0123456789abcdef"][number as usize % 5];
            let pretoken = format!("{}{padding}", number / 5).into_bytes();
            counts.add(&pretoken, number + 1);
            expected.push((pretoken, number + 1));
        }
        expected.sort();
        let (mut drained, mut packed) = (Vec::new(), PretokenCounts::new());
        let each = |pretoken: &[u8], count| {
            drained.push((pretoken.to_vec(), count));
            packed.push_packed(pretoken, count);
            Ok(())
        };
        counts.drain_sorted(each).expect("nothing fails");
        assert_eq!(drained, expected);
        assert!(counts.is_empty());
        assert!(4 * (packed.packed.len() as u64) < counts.memory_bytes());
        counts.add(b"again", 1);
        assert_eq!(counts.len(), 1);
        let mut unpacked = Vec::new();
        packed.for_each(|pretoken, count| unpacked.push((pretoken.to_vec(), count)));
        assert_eq!(unpacked, expected);
        // What is added to packed counts finds the pretokens that are packed.
        packed.add(&expected[0].0, 5);
        assert_eq!(packed.len(), expected.len());
        let mut first = 0;
        packed.for_each(|pretoken, count| first += count * u64::from(*pretoken == expected[0].0));
        assert_eq!(first, expected[0].1 + 5);
    }

    #[test]
    fn memory_is_foretold() {
        let mut counts = PretokenCounts::new();
        for i in 0..100_000u32 {
            let pretoken = format!("{i}{}", "z".repeat(i as usize % 30));
            let foretold = counts.memory_bytes_with(1, pretoken.len());
            counts.add(pretoken.as_bytes(), 1);
            let tables = counts.memory_bytes() - counts.bytes.capacity() as u64;
            assert!(tables + counts.bytes.len() as u64 <= foretold);
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
