//! One pretoken -> token ids, by the ranks of the merges.
//!
//! The lowest rank merges first, the leftmost of equals. Short pretokens scan for the
//! minimum; long ones keep the candidates in a heap, so no input costs more than
//! O(n log n) and nothing recurses.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rustc_hash::FxHashMap;

use super::vocab::{Merge, Vocab};

/// Up to this many symbols a scan for the minimum beats the heap.
const SCAN_LIMIT: usize = 32;

const NO_RANK: u32 = u32::MAX;

/// Rank and product of every mergeable pair of ids.
#[derive(Clone, Debug, Default)]
pub(super) struct PairRanks {
    ranks: FxHashMap<(u32, u32), (u32, u32)>,
}

impl PairRanks {
    /// Ranks by position in the list; a repeated merge keeps its last rank, as in
    /// Hugging Face tokenizers.
    pub(super) fn from_merges(merges: &[Merge]) -> Self {
        let ranked = merges.iter().enumerate();
        Self {
            ranks: ranked
                .map(|(rank, m)| ((m.left, m.right), (rank as u32, m.new)))
                .collect(),
        }
    }

    /// Ranks as tiktoken has them: any two tokens whose joined bytes are a token may
    /// merge, and that token's id is the rank.
    pub(super) fn from_ids(ids: &FxHashMap<Box<[u8]>, u32>) -> Self {
        let mut ranks = FxHashMap::default();
        for (token_bytes, &id) in ids {
            for cut in 1..token_bytes.len() {
                let (left, right) = token_bytes.split_at(cut);
                if let (Some(&left), Some(&right)) = (ids.get(left), ids.get(right)) {
                    ranks.insert((left, right), (id, id));
                }
            }
        }
        Self { ranks }
    }

    /// The merges that build each token from its bytes by smaller ids alone, in order of
    /// id. A token that no chain of merges reaches has none. Where several lists would do,
    /// this is one of them.
    pub(super) fn derive_merges(
        &self,
        vocab: &Vocab,
        ids: &FxHashMap<Box<[u8]>, u32>,
        byte_ids: &[u32; 256],
    ) -> Vec<Merge> {
        let mut merges = Vec::new();
        for (id, token_bytes) in vocab.iter() {
            if token_bytes.len() < 2 || ids.get(token_bytes) != Some(&id) {
                continue;
            }
            let mut symbols: Vec<u32> = token_bytes
                .iter()
                .map(|&byte| byte_ids[byte as usize])
                .collect();
            self.merge_below(&mut symbols, id);
            if let [left, right] = symbols[..] {
                merges.push(Merge {
                    left,
                    right,
                    new: id,
                });
            }
        }
        merges
    }

    /// Merges with ranks below `limit` alone; quadratic, for single tokens.
    fn merge_below(&self, symbols: &mut Vec<u32>, limit: u32) {
        loop {
            let ranked = (1..symbols.len()).map(|i| (self.rank(symbols[i - 1], symbols[i]), i - 1));
            match ranked.min_by_key(|&((rank, _), at)| (rank, at)) {
                Some(((rank, new), at)) if rank < limit => {
                    symbols[at] = new;
                    symbols.remove(at + 1);
                }
                _ => return,
            }
        }
    }

    #[inline]
    fn rank(&self, left: u32, right: u32) -> (u32, u32) {
        self.ranks
            .get(&(left, right))
            .copied()
            .unwrap_or((NO_RANK, NO_RANK))
    }

    /// Merges `symbols` in place as far as the ranks go.
    pub(super) fn merge(&self, symbols: &mut Vec<u32>, scratch: &mut MergeScratch) {
        if symbols.len() <= SCAN_LIMIT {
            self.merge_by_scan(symbols);
        } else {
            self.merge_by_heap(symbols, scratch);
        }
    }

    fn merge_by_scan(&self, symbols: &mut Vec<u32>) {
        let mut found = [(NO_RANK, NO_RANK); SCAN_LIMIT];
        let mut n = symbols.len();
        for i in 1..n {
            found[i - 1] = self.rank(symbols[i - 1], symbols[i]);
        }
        while n > 1 {
            let mut best = 0;
            for i in 1..n - 1 {
                if found[i].0 < found[best].0 {
                    best = i;
                }
            }
            if found[best].0 == NO_RANK {
                break;
            }
            symbols[best] = found[best].1;
            symbols.copy_within(best + 2..n, best + 1);
            found.copy_within(best + 1..n - 1, best);
            n -= 1;
            if best > 0 {
                found[best - 1] = self.rank(symbols[best - 1], symbols[best]);
            }
            if best + 1 < n {
                found[best] = self.rank(symbols[best], symbols[best + 1]);
            }
        }
        symbols.truncate(n);
    }

    /// Symbols form a doubly linked list over their positions; heap entries are
    /// `rank << 32 | position of the left symbol`, stale where the list has moved on.
    fn merge_by_heap(&self, symbols: &mut Vec<u32>, scratch: &mut MergeScratch) {
        let n = symbols.len() as u32;
        let MergeScratch {
            heap,
            next,
            previous,
        } = scratch;
        next.clear();
        next.extend(1..=n);
        previous.clear();
        previous.extend((0..n).map(|i| i.wrapping_sub(1)));
        heap.clear();
        let entry = |rank: u32, at: u32| Reverse(u64::from(rank) << 32 | u64::from(at));
        let first: Vec<_> = (1..n)
            .map(|i| {
                (
                    i - 1,
                    self.rank(symbols[i as usize - 1], symbols[i as usize]).0,
                )
            })
            .filter(|&(_, rank)| rank != NO_RANK)
            .map(|(at, rank)| entry(rank, at))
            .collect();
        heap.extend(first);
        while let Some(Reverse(top)) = heap.pop() {
            let (rank, left) = ((top >> 32) as u32, top as u32);
            let right = next[left as usize];
            if symbols[left as usize] == DEAD || right >= n {
                continue;
            }
            let (now, new) = self.rank(symbols[left as usize], symbols[right as usize]);
            if now != rank {
                continue;
            }
            symbols[left as usize] = new;
            symbols[right as usize] = DEAD;
            let after = next[right as usize];
            next[left as usize] = after;
            if after < n {
                previous[after as usize] = left;
                let (rank, _) = self.rank(new, symbols[after as usize]);
                if rank != NO_RANK {
                    heap.push(entry(rank, left));
                }
            }
            let before = previous[left as usize];
            if before != u32::MAX {
                let (rank, _) = self.rank(symbols[before as usize], new);
                if rank != NO_RANK {
                    heap.push(entry(rank, before));
                }
            }
        }
        symbols.retain(|&symbol| symbol != DEAD);
    }
}

/// A symbol that has become part of the one on its left; no id is as large.
const DEAD: u32 = u32::MAX;

/// Buffers of the heap path, reused between pretokens.
#[derive(Default)]
pub(super) struct MergeScratch {
    heap: BinaryHeap<Reverse<u64>>,
    next: Vec<u32>,
    previous: Vec<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, word for word: find the lowest rank, merge its leftmost place.
    fn merge_by_definition(ranks: &PairRanks, symbols: &mut Vec<u32>) {
        ranks.merge_below(symbols, NO_RANK);
    }

    #[test]
    fn scan_and_heap_equal_the_definition_on_random_merges() {
        let mut state = 7u64;
        let mut random = move |below: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) % below
        };
        let mut scratch = MergeScratch::default();
        for _ in 0..300 {
            let mut merges = Vec::new();
            for new in 3..20u32 {
                let id = |r: u64| r as u32;
                let (left, right) = (id(random(u64::from(new))), id(random(u64::from(new))));
                merges.push(Merge { left, right, new });
            }
            let ranks = PairRanks::from_merges(&merges);
            let len = random(31) as usize;
            let word: Vec<u32> = (0..len).map(|_| random(3) as u32).collect();
            let (mut expected, mut scanned, mut heaped) = (word.clone(), word.clone(), word);
            merge_by_definition(&ranks, &mut expected);
            ranks.merge_by_scan(&mut scanned);
            ranks.merge_by_heap(&mut heaped, &mut scratch);
            assert_eq!(scanned, expected);
            assert_eq!(heaped, expected);
        }
    }
}
