//! The rank and the product of every pair of tokens that may merge.

use std::hint::select_unpredictable;

use rustc_hash::FxHashMap;

use super::vocab::{ID_LIMIT, Merge, Vocab};
use crate::random::GAMMA;

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
    n_pairs: usize,
    shift: u32,
    /// By rank; none where each is its rank and `first_product`, which saves waiting for
    /// the memory at every merge.
    products: Vec<u32>,
    first_product: u32,
    n_ranks: usize,
    /// By left byte and right byte.
    of_bytes: Vec<u32>,
    byte_ids: [u32; 256],
}

impl PairRanks {
    /// Ranks by position in the list; a repeated merge keeps its last rank, as in
    /// Hugging Face tokenizers. Ids are below [`ID_LIMIT`], and so is their number.
    pub(super) fn from_merges(merges: &[Merge], byte_ids: &[u32; 256]) -> Self {
        let products = merges.iter().map(|merge| merge.new).collect();
        let mut ranks = Self::new(merges.len(), products, byte_ids);
        for (rank, merge) in (0..).zip(merges) {
            ranks.insert(merge.left, merge.right, rank);
        }
        ranks.fill_of_bytes();
        ranks
    }

    /// Ranks as tiktoken has them: any two tokens whose joined bytes are a token may
    /// merge, and that token's id is the rank. Also the merges that build each token from
    /// its bytes by smaller ids alone, in order of id; a token that no chain of merges
    /// reaches has none.
    ///
    /// Only pairs that ever meet are kept. Whatever stands around a token's bytes, those
    /// inside of them merge as they do alone until the token is made: so a token that is
    /// reached by smaller ids has one pair, its last. Of a token that is not, all pairs are
    /// kept. (o200k: 200,000 pairs of 650,000, and tables of 4 MiB, not 16.)
    pub(super) fn from_ids(
        vocab: &Vocab,
        ids: &FxHashMap<Box<[u8]>, u32>,
        byte_ids: &[u32; 256],
    ) -> (Self, Vec<Merge>) {
        let n_ids = ids.values().max().map_or(0, |&last| last + 1);
        let mut ranks = Self::new(ids.len(), (0..n_ids).collect(), byte_ids);
        let mut merges = Vec::with_capacity(ids.len());
        let (mut symbols, mut found) = (Vec::new(), Vec::new());
        for (new, token_bytes) in vocab.iter() {
            if token_bytes.len() < 2 || ids.get(token_bytes) != Some(&new) {
                continue;
            }
            symbols.clear();
            symbols.extend(token_bytes.iter().map(|&byte| ranks.byte_id(byte)));
            // Larger ids have no pairs yet but those of tokens that are not reached.
            ranks.merge_below(&mut symbols, &mut found, new);
            if let [left, right] = symbols[..] {
                ranks.insert(left, right, new);
                merges.push(Merge { left, right, new });
                continue;
            }
            for cut in 1..token_bytes.len() {
                let (left, right) = token_bytes.split_at(cut);
                if let (Some(&left), Some(&right)) = (ids.get(left), ids.get(right)) {
                    ranks.insert(left, right, new);
                }
            }
        }
        ranks.fill_of_bytes();
        (ranks, merges)
    }

    /// No pairs yet, but room for some.
    fn new(n_pairs: usize, products: Vec<u32>, byte_ids: &[u32; 256]) -> Self {
        let n_slots = (2 * n_pairs).next_power_of_two().max(64);
        let n_ranks = products.len();
        let first_product = products.first().copied().unwrap_or_default();
        let ascend = (first_product..)
            .zip(&products)
            .all(|(id, &product)| id == product);
        Self {
            slots: vec![EMPTY; n_slots],
            n_pairs: 0,
            shift: 64 - n_slots.trailing_zeros(),
            products: if ascend { Vec::new() } else { products },
            first_product,
            n_ranks,
            of_bytes: Vec::new(),
            byte_ids: *byte_ids,
        }
    }

    /// Gives a pair a rank, in place of the one that it had.
    fn insert(&mut self, left: u32, right: u32, rank: u32) {
        if 2 * self.n_pairs >= self.slots.len() {
            let slots = std::mem::take(&mut self.slots);
            self.slots = vec![EMPTY; 2 * slots.len()];
            self.shift -= 1;
            for slot in slots.into_iter().filter(|&slot| slot != EMPTY) {
                let place = self.find(slot >> BITS);
                self.slots[place] = slot;
            }
        }
        let pair = u64::from(left) << BITS | u64::from(right);
        let place = self.find(pair);
        self.n_pairs += usize::from(self.slots[place] == EMPTY);
        self.slots[place] = pair << BITS | u64::from(rank);
    }

    /// The slot of a pair, or the one where it belongs.
    fn find(&self, pair: u64) -> usize {
        let mut place = self.place_of(pair);
        while self.slots[place] != EMPTY && self.slots[place] >> BITS != pair {
            place = (place + 1) & (self.slots.len() - 1);
        }
        place
    }

    fn fill_of_bytes(&mut self) {
        let ids = self.byte_ids;
        let pairs = 0..1usize << 16;
        self.of_bytes = pairs
            .map(|pair| self.rank(ids[pair >> 8], ids[pair & 0xFF]))
            .collect();
    }

    #[inline(always)]
    fn place_of(&self, pair: u64) -> usize {
        (pair.wrapping_mul(GAMMA) >> self.shift) as usize
    }

    /// The rank of a pair of ids, [`NO_RANK`] where they do not merge.
    #[inline]
    pub(super) fn rank(&self, left: u32, right: u32) -> u32 {
        let pair = u64::from(left) << BITS | u64::from(right);
        let place = self.place_of(pair);
        let slot = self.slots[place];
        let is_it = slot >> BITS == pair;
        if is_it || slot == EMPTY {
            // Mostly it is one of the two, and which one cannot be foretold.
            return select_unpredictable(is_it, slot as u32 & ((1 << BITS) - 1), NO_RANK);
        }
        let slot = self.slots[self.find(pair)];
        if slot == EMPTY {
            NO_RANK
        } else {
            slot as u32 & ((1 << BITS) - 1)
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
        if self.products.is_empty() {
            self.first_product + rank
        } else {
            self.products[rank as usize]
        }
    }

    /// One above the largest rank.
    pub(super) fn len(&self) -> usize {
        self.n_ranks
    }

    /// The id of a byte.
    #[inline(always)]
    pub(super) fn byte_id(&self, byte: u8) -> u32 {
        self.byte_ids[usize::from(byte)]
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
    fn merge_below(&self, symbols: &mut Vec<u32>, found: &mut Vec<u32>, limit: u32) {
        found.clear();
        found.extend(symbols.windows(2).map(|pair| self.rank(pair[0], pair[1])));
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

    /// All pairs whose bytes are a token, by definition.
    fn all_pairs(ids: &FxHashMap<Box<[u8]>, u32>) -> FxHashMap<(u32, u32), u32> {
        let mut pairs = FxHashMap::default();
        for (bytes, &id) in ids {
            for (left, right) in (1..bytes.len()).map(|cut| bytes.split_at(cut)) {
                if let (Some(&left), Some(&right)) = (ids.get(left), ids.get(right)) {
                    pairs.insert((left, right), id);
                }
            }
        }
        pairs
    }

    /// Vocabularies whose tokens have any order, so that parts may have larger ids than what
    /// they become and tokens may be out of reach.
    #[test]
    fn pairs_that_are_left_out_never_meet() {
        let mut random = crate::random::random_from(11);
        let byte_ids: [u32; 256] = std::array::from_fn(|i| i as u32);
        let (mut n_kept, mut n_all) = (0, 0);
        for _ in 0..500 {
            let mut entries: Vec<(u32, Vec<u8>)> =
                (0..256).map(|byte| (byte, vec![byte as u8])).collect();
            for id in 256..290 {
                let token: Vec<u8> = (0..2 + random(4)).map(|_| random(3) as u8).collect();
                if entries.iter().all(|(_, known)| *known != token) {
                    entries.push((id, token));
                }
            }
            let ids = entries
                .iter()
                .map(|(id, token)| (token.clone().into_boxed_slice(), *id));
            let ids: FxHashMap<Box<[u8]>, u32> = ids.collect();
            let vocab = Vocab::new(entries).expect("ids differ");
            let (ranks, _) = PairRanks::from_ids(&vocab, &ids, &byte_ids);
            let all = all_pairs(&ids);
            (n_kept, n_all) = (n_kept + ranks.pairs().len(), n_all + all.len());
            for _ in 0..200 {
                let word: Vec<u32> = (0..random(12)).map(|_| random(3) as u32).collect();
                let merged = |rank: &dyn Fn(u32, u32) -> Option<u32>| {
                    let mut symbols = word.clone();
                    loop {
                        let pairs = symbols.windows(2).map(|pair| rank(pair[0], pair[1]));
                        let ranked = pairs.zip(0..).filter_map(|(rank, at)| Some((rank?, at)));
                        let Some((new, at)) = ranked.min() else {
                            return symbols;
                        };
                        symbols[at] = new;
                        symbols.remove(at + 1);
                    }
                };
                let kept = |left, right| Some(ranks.rank(left, right)).filter(|&r| r != NO_RANK);
                let by_definition = |left, right| all.get(&(left, right)).copied();
                assert_eq!(merged(&kept), merged(&by_definition), "{ids:?} {word:?}");
            }
        }
        assert!(n_kept < n_all);
    }
}
