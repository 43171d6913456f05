//! The rank and the product of every pair of tokens that may merge.

use rustc_hash::FxHashMap;

use super::vocab::{ID_LIMIT, Merge, Vocab};

/// The rank of a pair that does not merge; no rank is as large.
pub(super) const NO_RANK: u32 = u32::MAX;

/// Ids and ranks have 21 bits, so that a pair and its rank are one word of the table.
const BITS: u32 = 21;
const _: () = assert!(ID_LIMIT <= 1 << BITS);
const EMPTY: u64 = u64::MAX;

/// Which pairs merge, the lowest rank first, and what they become.
///
/// A word of the table is left id, right id and rank, from the high end, below a bit that
/// is 0; the table is at most half full and a pair lies behind its place without a gap.
/// Half as many cache lines as a general hash map touches, for what encoding does most
/// after looking up whole words. (A bit for each pair in front of it, to tell most of those
/// that do not merge, gained nothing measurable.) Pairs of bytes, with which every word begins, have a
/// table without any search.
#[derive(Clone, Debug)]
pub(super) struct PairRanks {
    slots: Vec<u64>,
    shift: u32,
    /// By rank.
    products: Vec<u32>,
    /// By left byte and right byte.
    of_bytes: Vec<u32>,
    byte_ids: [u32; 256],
}

impl PairRanks {
    /// Ranks by position in the list; a repeated merge keeps its last rank, as in
    /// Hugging Face tokenizers. Ids are below [`ID_LIMIT`], and so is their number.
    pub(super) fn from_merges(merges: &[Merge], byte_ids: &[u32; 256]) -> Self {
        let products = merges.iter().map(|merge| merge.new).collect();
        let ranked = (0..).zip(merges).map(|(rank, m)| (m.left, m.right, rank));
        Self::new(ranked, merges.len(), products, byte_ids)
    }

    /// Ranks as tiktoken has them: any two tokens whose joined bytes are a token may
    /// merge, and that token's id is the rank.
    pub(super) fn from_ids(ids: &FxHashMap<Box<[u8]>, u32>, byte_ids: &[u32; 256]) -> Self {
        let mut ranked = Vec::new();
        for (token_bytes, &id) in ids {
            for cut in 1..token_bytes.len() {
                let (left, right) = token_bytes.split_at(cut);
                if let (Some(&left), Some(&right)) = (ids.get(left), ids.get(right)) {
                    ranked.push((left, right, id));
                }
            }
        }
        let n_ids = ids.values().max().map_or(0, |&last| last + 1);
        let n_pairs = ranked.len();
        Self::new(ranked, n_pairs, (0..n_ids).collect(), byte_ids)
    }

    fn new(
        ranked: impl IntoIterator<Item = (u32, u32, u32)>,
        n_pairs: usize,
        products: Vec<u32>,
        byte_ids: &[u32; 256],
    ) -> Self {
        let n_slots = (2 * n_pairs).next_power_of_two().max(64);
        let mut ranks = Self {
            slots: vec![EMPTY; n_slots],
            shift: 64 - n_slots.trailing_zeros(),
            products,
            of_bytes: Vec::new(),
            byte_ids: *byte_ids,
        };
        for (left, right, rank) in ranked {
            let pair = u64::from(left) << BITS | u64::from(right);
            let mut place = ranks.place_of(pair);
            while ranks.slots[place] != EMPTY && ranks.slots[place] >> BITS != pair {
                place = (place + 1) & (n_slots - 1);
            }
            ranks.slots[place] = pair << BITS | u64::from(rank);
        }
        let pairs =
            (0..1 << 16).map(|pair: usize| ranks.rank(byte_ids[pair >> 8], byte_ids[pair & 0xFF]));
        ranks.of_bytes = pairs.collect();
        ranks
    }

    #[inline(always)]
    fn place_of(&self, pair: u64) -> usize {
        (pair.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> self.shift) as usize
    }

    /// The rank of a pair of ids, [`NO_RANK`] where they do not merge.
    #[inline]
    pub(super) fn rank(&self, left: u32, right: u32) -> u32 {
        let pair = u64::from(left) << BITS | u64::from(right);
        let mut place = self.place_of(pair);
        loop {
            let slot = self.slots[place];
            if slot >> BITS == pair {
                return slot as u32 & ((1 << BITS) - 1);
            }
            if slot == EMPTY {
                return NO_RANK;
            }
            place = (place + 1) & (self.slots.len() - 1);
        }
    }

    /// As [`PairRanks::rank`] for the ids of two bytes.
    #[inline(always)]
    pub(super) fn rank_of_bytes(&self, left: u8, right: u8) -> u32 {
        self.of_bytes[usize::from(left) << 8 | usize::from(right)]
    }

    /// The id that the pair of a rank becomes.
    #[inline(always)]
    pub(super) fn product(&self, rank: u32) -> u32 {
        self.products[rank as usize]
    }

    /// One above the largest rank.
    pub(super) fn len(&self) -> usize {
        self.products.len()
    }

    /// The id of a byte.
    #[inline(always)]
    pub(super) fn byte_id(&self, byte: u8) -> u32 {
        self.byte_ids[usize::from(byte)]
    }

    /// The merges that build each token from its bytes by smaller ids alone, in order of
    /// id. A token that no chain of merges reaches has none. Where several lists would do,
    /// this is one of them.
    pub(super) fn derive_merges(
        &self,
        vocab: &Vocab,
        ids: &FxHashMap<Box<[u8]>, u32>,
    ) -> Vec<Merge> {
        let mut merges = Vec::new();
        for (id, token_bytes) in vocab.iter() {
            if token_bytes.len() < 2 || ids.get(token_bytes) != Some(&id) {
                continue;
            }
            let mut symbols: Vec<u32> = token_bytes.iter().map(|&b| self.byte_id(b)).collect();
            self.merge_below(&mut symbols, id);
            if let [left, right] = symbols[..] {
                let new = id;
                merges.push(Merge { left, right, new });
            }
        }
        merges
    }

    /// Every mergeable pair, by id of the product, then of the left token.
    pub(super) fn pairs(&self) -> Vec<Merge> {
        let ids = |slot: u64| (slot >> (2 * BITS), slot >> BITS, slot);
        let low = |word: u64| word as u32 & ((1 << BITS) - 1);
        let filled = self.slots.iter().filter(|&&slot| slot != EMPTY);
        let mut pairs: Vec<Merge> = filled
            .map(|&slot| {
                let (left, right, rank) = ids(slot);
                Merge {
                    left: low(left),
                    right: low(right),
                    new: self.product(low(rank)),
                }
            })
            .collect();
        pairs.sort_unstable_by_key(|pair| (pair.new, pair.left));
        pairs
    }

    /// Merges with ranks below `limit` alone; for single tokens, whose symbols are few
    /// enough to scan for the minimum, but too many to look each pair up at every merge.
    fn merge_below(&self, symbols: &mut Vec<u32>, limit: u32) {
        let pairs = symbols.windows(2);
        let mut found: Vec<u32> = pairs.map(|pair| self.rank(pair[0], pair[1])).collect();
        while let Some(at) = (0..found.len()).min_by_key(|&at| found[at]) {
            if found[at] >= limit {
                return;
            }
            symbols[at] = self.product(found[at]);
            symbols.remove(at + 1);
            found.remove(at);
            if at > 0 {
                found[at - 1] = self.rank(symbols[at - 1], symbols[at]);
            }
            if at < found.len() {
                found[at] = self.rank(symbols[at], symbols[at + 1]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_found_as_in_a_hash_map() {
        let mut expected = FxHashMap::default();
        let mut merges = Vec::new();
        let mut state = 1u64;
        for rank in 0..5_000u32 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let (left, right) = ((state >> 40) as u32 % 300, (state >> 20) as u32 % 70);
            expected.insert((left, right), rank);
            let new = 300 + rank;
            merges.push(Merge { left, right, new });
        }
        let ranks = PairRanks::from_merges(&merges, &std::array::from_fn(|i| i as u32));
        for left in 0..301 {
            for right in 0..301 {
                let rank = expected.get(&(left, right)).copied();
                assert_eq!(ranks.rank(left, right), rank.unwrap_or(NO_RANK));
                if left < 256 && right < 256 {
                    let of_bytes = ranks.rank_of_bytes(left as u8, right as u8);
                    assert_eq!(of_bytes, ranks.rank(left, right));
                }
            }
        }
        assert_eq!(ranks.product(17), 317);
        assert!(
            ranks
                .pairs()
                .iter()
                .all(|pair| { expected[&(pair.left, pair.right)] + 300 == pair.new })
        );
        assert_eq!(ranks.pairs().len(), expected.len());
        assert_eq!(ranks.rank(ID_LIMIT - 1, ID_LIMIT - 1), NO_RANK);
    }
}
