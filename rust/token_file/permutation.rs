//! A random order of n items that needs no memory: any position can be asked for alone.
//!
//! Four rounds of a balanced Feistel network permute the numbers below 4^h, the smallest
//! such power (of at least 256) that reaches n; a result that is not below n is permuted
//! again until it is (cycle walking), which leaves a permutation of the numbers below n.
//! The training order is defined by it, so it can never change.

use crate::random::{GAMMA, mix};

const ROUNDS: u64 = 4;

/// The item at position `index` of the random order of `n` items given by `seed` and `epoch`.
///
/// For n above 64 it takes fewer than four walks on average.
///
/// # Panics
///
/// If `index` is not below `n`.
pub fn permute(n: u64, seed: u64, epoch: u64, index: u64) -> u64 {
    assert!(index < n, "index must be below n = {n}, got {index}");
    let bits = u64::BITS - (n - 1).leading_zeros();
    let half = bits.div_ceil(2).max(4);
    let base = mix(mix(seed.wrapping_add(GAMMA)) ^ epoch);
    let mut item = feistel(index, half, base);
    while item >= n {
        item = feistel(item, half, base);
    }
    item
}

/// A permutation of the numbers below 4^half.
fn feistel(x: u64, half: u32, base: u64) -> u64 {
    let (mut left, mut right) = (x >> half, x & ((1 << half) - 1));
    for round in 1..=ROUNDS {
        let key = mix(base.wrapping_add(round.wrapping_mul(GAMMA)));
        (left, right) = (right, left ^ (mix(right ^ key) >> (64 - half)));
    }
    left << half | right
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permute_equals_the_published_vectors() {
        let order = |epoch| {
            (0..10)
                .map(|i| permute(10, 0, epoch, i))
                .collect::<Vec<_>>()
        };
        assert_eq!(order(0), [0, 9, 1, 2, 5, 7, 6, 4, 8, 3]);
        assert_eq!(order(1), [7, 2, 6, 1, 3, 8, 4, 5, 9, 0]);
        let large = (0..5)
            .map(|i| permute(1_000_003, 1337, 2, i))
            .collect::<Vec<_>>();
        assert_eq!(large, [117_638, 440_410, 817_048, 887_341, 428_612]);
        let n = 1 << 33;
        let huge = [0, 1, n - 1].map(|i| permute(n, 42, 7, i));
        assert_eq!(huge, [2_287_935_811, 6_964_179_958, 4_139_278_292]);
    }

    #[test]
    fn permute_visits_every_item_once() {
        for n in [1, 2, 16, 255, 256, 257, 5000] {
            let mut items = (0..n).map(|i| permute(n, 3, 1, i)).collect::<Vec<_>>();
            items.sort_unstable();
            assert!(items.into_iter().eq(0..n), "n = {n}");
        }
    }

    #[test]
    fn permute_takes_every_n() {
        assert!(permute(u64::MAX, 1, 2, u64::MAX - 1) < u64::MAX);
    }
}
