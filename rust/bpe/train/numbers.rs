//! Finds a pair by its symbols.

use super::pairs::Pair;
use crate::memory::{apart, prefetch};
use crate::random::GAMMA;

/// The number of each pair in [`super::pairs::Pairs::all`], by left and right symbol.
///
/// The slots hold numbers only: a pair that is looked up is wanted itself.
pub(super) struct PairNumbers {
    slots: Vec<u32>,
    n_pairs: usize,
}

/// Marks an empty slot.
const NONE: u32 = u32::MAX;

impl PairNumbers {
    /// Of no pairs.
    pub fn new() -> Self {
        Self {
            slots: vec![NONE; 1 << 12],
            n_pairs: 0,
        }
    }

    /// Takes in the pairs that are new; all of them are different.
    pub fn update(&mut self, pairs: &[Pair]) {
        if 2 * pairs.len() > self.slots.len() {
            // All are put in anew, so the old table need not stay meanwhile.
            self.slots = Vec::new();
            let n_slots = (2 * pairs.len()).next_power_of_two();
            self.slots = apart(n_slots);
            self.slots.resize(n_slots, NONE);
            self.n_pairs = 0;
        }
        for (number, pair) in pairs.iter().enumerate().skip(self.n_pairs) {
            let mut slot = self.home(pair.left, pair.right);
            while self.slots[slot] != NONE {
                slot = (slot + 1) & (self.slots.len() - 1);
            }
            self.slots[slot] = number as u32;
        }
        self.n_pairs = pairs.len();
    }

    /// The number of a pair, if there is one.
    #[inline]
    pub fn find(&self, pairs: &[Pair], left: u32, right: u32) -> Option<u32> {
        let mut slot = self.home(left, right);
        while self.slots[slot] != NONE {
            let pair = &pairs[self.slots[slot] as usize];
            if pair.left == left && pair.right == right {
                return Some(self.slots[slot]);
            }
            slot = (slot + 1) & (self.slots.len() - 1);
        }
        None
    }

    /// Asks the memory for where a pair is looked for first.
    #[inline]
    pub fn prefetch(&self, left: u32, right: u32) {
        prefetch(&self.slots[self.home(left, right)]);
    }

    /// Asks the memory for the pair that is probably found.
    #[inline]
    pub fn prefetch_pair(&self, pairs: &[Pair], left: u32, right: u32) {
        if let Some(pair) = pairs.get(self.slots[self.home(left, right)] as usize) {
            prefetch(pair);
        }
    }

    #[inline]
    fn home(&self, left: u32, right: u32) -> usize {
        let product = (u64::from(left) << 32 | u64::from(right)).wrapping_mul(GAMMA);
        (product ^ product >> 32) as usize & (self.slots.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_found_through_growth_and_others_are_not() {
        let pair = |i: u32| Pair {
            left: i % 700,
            right: 3 * (i / 700),
            first_place: 0,
            n_places: 0,
            next: 0,
            count: 0,
        };
        let (mut pairs, mut numbers) = (Vec::new(), PairNumbers::new());
        for n_pairs in [1, 2, 3_000, 50_000] {
            pairs.extend((pairs.len() as u32..n_pairs).map(pair));
            numbers.update(&pairs);
            for (number, pair) in (0..).zip(&pairs) {
                assert_eq!(numbers.find(&pairs, pair.left, pair.right), Some(number));
                assert_eq!(numbers.find(&pairs, pair.left, pair.right + 1), None);
            }
        }
    }
}
