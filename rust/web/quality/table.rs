//! A hash table from 64-bit keys to numbers, for what is counted within one page.
//!
//! The standard one costs twice as much here [m]: its keys are hashed again and it asks for more
//! than a look-up that inserts. Keys that are no names but hashes are compared by the caller, so
//! that two things of one hash stay two.

/// Open addressing with linear probing, at most half full.
pub struct Table {
    slots: Vec<Slot>,
    shift: u32,
    n_filled: usize,
}

#[derive(Clone, Copy)]
struct Slot {
    key: u64,
    value: u32,
}

const EMPTY: u32 = u32::MAX;
/// A page's first table: it grows with what is different, not with what there is.
const MAX_FIRST_SLOTS: usize = 1 << 13;

impl Table {
    /// An empty table that holds so many entries before it grows, or fewer.
    pub fn new(n_expected: usize) -> Self {
        let n_slots = (2 * n_expected)
            .next_power_of_two()
            .clamp(16, MAX_FIRST_SLOTS);
        Self {
            slots: vec![
                Slot {
                    key: 0,
                    value: EMPTY
                };
                n_slots
            ],
            shift: 64 - n_slots.trailing_zeros(),
            n_filled: 0,
        }
    }

    /// The value of an entry with this key that `is_same` takes for the same, or else `value`,
    /// which is entered; and whether it was there.
    #[inline]
    pub fn find_or_insert(
        &mut self,
        key: u64,
        value: u32,
        is_same: impl Fn(u32) -> bool,
    ) -> (u32, bool) {
        let mask = self.slots.len() - 1;
        let mut at = place(key, self.shift);
        loop {
            let slot = &mut self.slots[at & mask];
            if slot.value == EMPTY {
                *slot = Slot { key, value };
                self.n_filled += 1;
                if 2 * self.n_filled > self.slots.len() {
                    self.grow();
                }
                return (value, false);
            }
            if slot.key == key && is_same(slot.value) {
                return (slot.value, true);
            }
            at += 1;
        }
    }

    #[cold]
    fn grow(&mut self) {
        let empty = Slot {
            key: 0,
            value: EMPTY,
        };
        let larger = vec![empty; 4 * self.slots.len()];
        let slots = std::mem::replace(&mut self.slots, larger);
        self.shift -= 2;
        let mask = self.slots.len() - 1;
        for slot in slots {
            if slot.value != EMPTY {
                let mut at = place(slot.key, self.shift);
                while self.slots[at & mask].value != EMPTY {
                    at += 1;
                }
                self.slots[at & mask] = slot;
            }
        }
    }
}

#[inline]
fn place(key: u64, shift: u32) -> usize {
    (mix(key, 0xd6e8_feb8_6659_fd93) >> shift) as usize
}

/// Both halves of a product, folded.
#[inline]
pub fn mix(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

// No UTF-8 holds a byte of all ones, so no eight bytes of a text make a factor zero.
const NOT_TEXT: u64 = 0xff51_afd7_ed55_8ccd;
const NOR_THIS: u64 = 0xffce_b9fe_1a85_ec53;

/// A hash of the first 16 bytes at a place where there are as many.
#[inline]
pub fn hash_of_16(bytes: &[u8]) -> u64 {
    let (first, second) = bytes[..16].split_at(8);
    mix(load(first) ^ NOT_TEXT, load(second) ^ NOR_THIS)
}

/// A hash of eight bytes or more.
#[inline]
pub fn hash(bytes: &[u8]) -> u64 {
    if bytes.len() > 16 {
        return xxhash_rust::xxh3::xxh3_64(bytes);
    }
    let (first, last) = (&bytes[..8], &bytes[bytes.len() - 8..]);
    mix(load(first) ^ NOT_TEXT, load(last) ^ NOR_THIS)
}

#[inline]
pub fn load(bytes: &[u8]) -> u64 {
    u64::from_le_bytes([
        bytes[0], bytes[1], bytes[2], bytes[3], bytes[4], bytes[5], bytes[6], bytes[7],
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_survive_growth() {
        let mut table = Table::new(1);
        for key in 0..10_000 {
            assert_eq!(
                table.find_or_insert(key, key as u32, |_| true),
                (key as u32, false)
            );
        }
        for key in 0..10_000 {
            assert_eq!(table.find_or_insert(key, 7, |_| true), (key as u32, true));
        }
    }

    #[test]
    fn equal_hashes_stay_apart() {
        let mut table = Table::new(1);
        for value in 0..100 {
            assert_eq!(
                table.find_or_insert(5, value, |other| other == value),
                (value, false)
            );
        }
        assert_eq!(
            table.find_or_insert(5, 100, |other| other == 42),
            (42, true)
        );
    }
}
