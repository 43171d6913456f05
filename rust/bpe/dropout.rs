//! Merging with dropout: other segmentations of the same text, for training.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::pair_ranks::{NO_RANK, PairRanks};
use super::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::pretokenize::Segment;
use crate::random::{GAMMA, mix};

/// Drops merges at random: in each step each candidate with a probability, the best of the
/// others is made, and where none is left the word is done.
///
/// Candidates are asked in the order of rank and place until one stays, which is the same
/// in distribution. The numbers are those of `SplitMix64` from the seed, so that a seed says
/// which ids, here and in `rslm.reference`.
///
/// Source: Provilkov, Emelianenko and Voita 2020, Algorithm 1 (arXiv:1910.13267).
pub struct Dropout {
    probability: f64,
    state: u64,
}

impl Dropout {
    /// # Errors
    /// `Argument` for a probability outside 0..=1.
    pub fn new(probability: f64, seed: u64) -> Result<Self> {
        if !(0.0..=1.0).contains(&probability) {
            return Err(Error::Argument(format!(
                "dropout must be from 0 to 1, got {probability}"
            )));
        }
        let state = seed;
        Ok(Self { probability, state })
    }

    fn drops(&mut self) -> bool {
        self.state = self.state.wrapping_add(GAMMA);
        let uniform = (mix(self.state) >> 11) as f64 / (1u64 << 53) as f64;
        uniform < self.probability
    }

    /// The ids of a pretoken. O(n log n) merges and as many draws as the probability costs.
    fn merge(&mut self, ranks: &PairRanks, pretoken: &[u8]) -> Vec<u32> {
        let n = pretoken.len();
        let mut symbols: Vec<Option<u32>> =
            pretoken.iter().map(|&b| Some(ranks.byte_id(b))).collect();
        let mut next: Vec<usize> = (1..=n).collect();
        let mut previous: Vec<Option<usize>> = (0..n).map(|i| i.checked_sub(1)).collect();
        let pairs = (0..).zip(pretoken.windows(2));
        let mut heap: BinaryHeap<Reverse<(u32, usize)>> = pairs
            .map(|(at, pair)| Reverse((ranks.rank_of_bytes(pair[0], pair[1]), at)))
            .collect();
        let mut dropped = Vec::new();
        while let Some(Reverse((rank, left))) = heap.pop() {
            let right = next[left];
            let pair = symbols[left].zip(symbols.get(right).copied().flatten());
            if rank == NO_RANK || pair.is_none_or(|(a, b)| ranks.rank(a, b) != rank) {
                continue;
            }
            if self.drops() {
                dropped.push(Reverse((rank, left)));
                continue;
            }
            heap.extend(dropped.drain(..));
            let new = ranks.product(rank);
            symbols[left] = Some(new);
            symbols[right] = None;
            let after = next[right];
            next[left] = after;
            if let Some(id) = symbols.get(after).copied().flatten() {
                previous[after] = Some(left);
                heap.push(Reverse((ranks.rank(new, id), left)));
            }
            if let Some(before) = previous[left]
                && let Some(id) = symbols[before]
            {
                heap.push(Reverse((ranks.rank(id, new), before)));
            }
        }
        symbols.into_iter().flatten().collect()
    }
}

impl Tokenizer {
    /// Appends the ids of a text in which special tokens are recognised and merges dropped.
    ///
    /// # Errors
    /// What the pattern refuses.
    pub fn encode_with_dropout(
        &self,
        text: &[u8],
        dropout: &mut Dropout,
        out: &mut Vec<u32>,
    ) -> Result<()> {
        self.specials().split(text, |segment| match segment {
            Segment::Special(index) => {
                out.extend(self.special_tokens().nth(index).map(|(_, id)| id));
                Ok(())
            }
            Segment::Text(segment) => self.pattern().split(segment, |pretoken| {
                out.extend(dropout.merge(self.ranks(), pretoken));
            }),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::vocab::Merge;
    use super::*;

    #[test]
    fn no_dropout_merges_all_and_full_dropout_nothing() {
        let merges: Vec<Merge> = [(97, 97, 256), (256, 97, 257), (256, 256, 258)]
            .map(|(left, right, new)| Merge { left, right, new })
            .into();
        let ranks = PairRanks::from_merges(&merges, &std::array::from_fn(|i| i as u32));
        let merge = |probability, seed| {
            let dropout = Dropout::new(probability, seed);
            dropout.expect("a probability").merge(&ranks, b"aaaaa")
        };
        assert_eq!(merge(0.0, 1), [256, 257]);
        assert_eq!(merge(1.0, 1), [97; 5]);
        let some: Vec<_> = (0..50).map(|seed| merge(0.5, seed)).collect();
        assert!(some.iter().any(|ids| *ids != some[0]), "seeds differ");
        assert_eq!(merge(0.5, 7), merge(0.5, 7));
        assert!(Dropout::new(f64::NAN, 0).is_err() && Dropout::new(1.5, 0).is_err());
    }
}
