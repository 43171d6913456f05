//! One pretoken -> token ids, by the ranks of the merges.
//!
//! The lowest rank merges first, the leftmost of equals. Short pretokens scan for the
//! minimum; long ones file the places of each rank, so no input costs more than
//! O(n log n) and nothing recurses.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::hint::select_unpredictable;

use super::pair_ranks::{NO_RANK, PairRanks};

/// Up to this many bytes a scan for the minimum beats filing.
const SCAN_LIMIT: usize = 32;

/// A symbol that has become part of the one on its left; no id is as large.
const DEAD: u32 = u32::MAX;

/// The rank and the place of a pair as one number, [`NONE`] where it does not merge.
#[inline(always)]
fn file(rank: u32, place: usize) -> u32 {
    select_unpredictable(rank == NO_RANK, NONE, rank << 5 | place as u32)
}

const NONE: u32 = u32::MAX;

/// Buffers, reused between pretokens.
#[derive(Default)]
pub(super) struct Merger {
    symbols: Vec<u32>,
    next: Vec<u32>,
    previous: Vec<u32>,
    queue: RankQueue,
}

impl Merger {
    /// One id as the answer.
    pub(super) fn single(&mut self, id: u32) -> &[u32] {
        self.symbols.clear();
        self.symbols.push(id);
        &self.symbols
    }

    /// The ids of a pretoken.
    pub(super) fn merge(&mut self, ranks: &PairRanks, pretoken: &[u8]) -> &[u32] {
        // One huge pretoken must not keep its buffers for the tokenizer's life.
        if self.symbols.capacity() > 1 << 16 {
            *self = Self::default();
        }
        if pretoken.len() <= SCAN_LIMIT {
            self.merge_by_scan(ranks, pretoken);
        } else {
            self.merge_by_queue(ranks, pretoken);
        }
        &self.symbols
    }

    fn merge_by_scan(&mut self, ranks: &PairRanks, pretoken: &[u8]) {
        #[cfg(target_arch = "x86_64")]
        let has_bits = std::arch::is_x86_feature_detected!("bmi1")
            && std::arch::is_x86_feature_detected!("lzcnt");
        #[cfg(target_arch = "x86_64")]
        if has_bits && std::arch::is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has the instructions.
            return unsafe {
                if pretoken.len() <= 16 {
                    self.merge_by_scan_avx512::<1>(ranks, pretoken);
                } else {
                    self.merge_by_scan_avx512::<2>(ranks, pretoken);
                }
            };
        } else if has_bits && std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has the instructions.
            return unsafe { self.merge_by_scan_avx2(ranks, pretoken) };
        }
        self.merge_by_scan_inlined(ranks, pretoken);
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,bmi1,lzcnt")]
    fn merge_by_scan_avx2(&mut self, ranks: &PairRanks, pretoken: &[u8]) {
        self.merge_by_scan_inlined(ranks, pretoken);
    }

    /// As [`Merger::merge_by_scan_inlined`], with the pairs in registers: to read eight that
    /// were just written one by one, a processor waits until all are in its cache.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,bmi1,lzcnt")]
    fn merge_by_scan_avx512<const N: usize>(&mut self, ranks: &PairRanks, pretoken: &[u8]) {
        use std::arch::x86_64::{
            _mm512_loadu_si512, _mm512_mask_set1_epi32, _mm512_min_epu32, _mm512_reduce_min_epu32,
        };
        let n = pretoken.len().min(16 * N);
        let mut symbols = [0; SCAN_LIMIT];
        let mut filed = [NONE; SCAN_LIMIT];
        for (i, &byte) in pretoken[..n].iter().enumerate() {
            symbols[i] = ranks.byte_id(byte);
        }
        for (i, pair) in pretoken[..n].windows(2).enumerate() {
            filed[i] = file(ranks.rank_of_bytes(pair[0], pair[1]), i);
        }
        let sixteens = &filed.as_chunks::<16>().0[..N];
        // SAFETY: each reference is to sixteen words, and no alignment is asked for.
        let mut pairs: [_; N] =
            std::array::from_fn(|i| unsafe { _mm512_loadu_si512(sixteens[i].as_ptr().cast()) });
        let mut left = ((1u64 << n) - 1) as u32;
        loop {
            let least = pairs[1..]
                .iter()
                .fold(pairs[0], |a, &b| _mm512_min_epu32(a, b));
            let lowest = _mm512_reduce_min_epu32(least);
            if lowest == NONE {
                break;
            }
            let (at, new) = (lowest as usize % 32, ranks.product(lowest >> 5));
            symbols[at] = new;
            // The symbol on the right becomes part of this one.
            let behind = NONE << at << 1;
            let right = (left & behind).trailing_zeros() % 32;
            left &= !(1 << right);
            let (after, before) = (left & behind, left & ((1 << at) - 1));
            let pair_after = match after.trailing_zeros() as usize {
                32 => NONE,
                after => file(ranks.rank(new, symbols[after]), at),
            };
            let before_at = 31_usize.saturating_sub(before.leading_zeros() as usize);
            let pair_before = match before {
                0 => NONE,
                _ => file(ranks.rank(symbols[before_at], new), before_at),
            };
            let before_bit = if before == 0 { 0 } else { 1 << before_at };
            for (i, pairs) in pairs.iter_mut().enumerate() {
                let lane = |bits: u32| (bits >> (16 * i)) as u16;
                let set = |pairs, bits, pair: u32| {
                    _mm512_mask_set1_epi32(pairs, lane(bits), pair.cast_signed())
                };
                *pairs = set(*pairs, 1 << right, NONE);
                *pairs = set(*pairs, 1 << at, pair_after);
                *pairs = set(*pairs, before_bit, pair_before);
            }
        }
        self.keep(&symbols, left);
    }

    /// The symbols that are left, in order.
    #[inline(always)]
    fn keep(&mut self, symbols: &[u32; SCAN_LIMIT], mut left: u32) {
        self.symbols.clear();
        while left != 0 {
            self.symbols
                .push(symbols[left.trailing_zeros() as usize % 32]);
            left &= left - 1;
        }
    }

    /// Symbols stay where they are; bits say which are left. The rank and the place of a
    /// pair are one number, so that the least of eight at a time is the leftmost of the
    /// lowest rank.
    #[inline(always)]
    fn merge_by_scan_inlined(&mut self, ranks: &PairRanks, pretoken: &[u8]) {
        let n = pretoken.len();
        let mut symbols = [0; SCAN_LIMIT];
        let mut pairs = [NONE; SCAN_LIMIT];
        for (i, &byte) in pretoken.iter().enumerate() {
            symbols[i] = ranks.byte_id(byte);
        }
        for (i, pair) in pretoken.windows(2).enumerate() {
            pairs[i] = file(ranks.rank_of_bytes(pair[0], pair[1]), i);
        }
        let eights = &mut pairs.as_chunks_mut::<8>().0[..n.div_ceil(8).max(1)];
        let mut left = ((1u64 << n) - 1) as u32;
        loop {
            let mut least = eights[0];
            for eight in &eights[1..] {
                for (a, &b) in least.iter_mut().zip(eight) {
                    *a = b.min(*a);
                }
            }
            let lowest = least.into_iter().fold(NONE, u32::min);
            if lowest == NONE {
                break;
            }
            let (at, new) = (lowest as usize % 32, ranks.product(lowest >> 5));
            symbols[at] = new;
            // The symbol on the right becomes part of this one.
            let right = (left & (NONE << at << 1)).trailing_zeros() as usize % 32;
            left &= !(1 << right);
            eights[right / 8][right % 8] = NONE;
            let after = left & (NONE << at << 1);
            eights[at / 8][at % 8] = if after == 0 {
                NONE
            } else {
                let after = after.trailing_zeros() as usize % 32;
                file(ranks.rank(new, symbols[after]), at)
            };
            let before = left & ((1 << at) - 1);
            if before != 0 {
                let before = 31 - before.leading_zeros() as usize;
                eights[before / 8][before % 8] = file(ranks.rank(symbols[before], new), before);
            }
        }
        self.keep(&symbols, left);
    }

    /// Symbols form a doubly linked list over their positions. A filed place is stale
    /// where the pair that it stood for is gone.
    fn merge_by_queue(&mut self, ranks: &PairRanks, pretoken: &[u8]) {
        let n = pretoken.len() as u32;
        let Self {
            symbols,
            next,
            previous,
            queue,
        } = self;
        symbols.clear();
        symbols.extend(pretoken.iter().map(|&byte| ranks.byte_id(byte)));
        next.clear();
        next.extend(1..=n);
        previous.clear();
        previous.extend((0..n).map(|i| i.wrapping_sub(1)));
        queue.start(ranks.len());
        for (at, pair) in (0..).zip(pretoken.windows(2)) {
            queue.push(ranks.rank_of_bytes(pair[0], pair[1]), at);
        }
        while let Some((rank, left)) = queue.pop() {
            let right = next[left as usize];
            let is_stale = right >= n
                || symbols[left as usize] == DEAD
                || ranks.rank(symbols[left as usize], symbols[right as usize]) != rank;
            if is_stale {
                continue;
            }
            let new = ranks.product(rank);
            symbols[left as usize] = new;
            symbols[right as usize] = DEAD;
            let after = next[right as usize];
            next[left as usize] = after;
            if after < n {
                previous[after as usize] = left;
                queue.push(ranks.rank(new, symbols[after as usize]), left);
            }
            let before = previous[left as usize];
            if before != u32::MAX {
                queue.push(ranks.rank(symbols[before as usize], new), before);
            }
        }
        symbols.retain(|&symbol| symbol != DEAD);
    }
}

/// Places by rank: the lowest rank first, of one rank the leftmost.
///
/// Merges visit ranks mostly in ascending order and the places of one rank from left to
/// right, so a rank's places lie in a list that is sorted once, when its turn comes; one
/// heap of all places instead takes 0.3 s for a million equal bytes, most of it waiting for
/// memory. What comes to a rank whose turn has begun goes to a heap of its own.
#[derive(Default)]
struct RankQueue {
    /// The list of each rank, from 1; 0 is none.
    list_of: Vec<u32>,
    lists: Vec<List>,
    n_lists: usize,
    /// Ranks with places, one bit each, and which words of those bits are not zero.
    ranks: Vec<u64>,
    words: Vec<u64>,
    /// No word of `words` before this one has a bit.
    first: usize,
}

#[derive(Default)]
struct List {
    rank: u32,
    places: Vec<u32>,
    next: usize,
    begun: bool,
    late: BinaryHeap<Reverse<u32>>,
}

impl RankQueue {
    /// Makes room for ranks below `n_ranks`. The queue is empty: pops have emptied it.
    fn start(&mut self, n_ranks: usize) {
        for list in &mut self.lists[..self.n_lists] {
            self.list_of[list.rank as usize] = 0;
            list.places.clear();
            (list.next, list.begun) = (0, false);
        }
        self.n_lists = 0;
        if self.list_of.len() < n_ranks {
            self.list_of.resize(n_ranks, 0);
            self.ranks.resize(n_ranks.div_ceil(64), 0);
            self.words.resize(n_ranks.div_ceil(64 * 64), 0);
        }
        self.first = self.words.len();
    }

    #[inline]
    fn push(&mut self, rank: u32, place: u32) {
        if rank == NO_RANK {
            return;
        }
        let mut number = self.list_of[rank as usize] as usize;
        if number == 0 {
            if self.n_lists == self.lists.len() {
                self.lists.push(List::default());
            }
            self.lists[self.n_lists].rank = rank;
            self.n_lists += 1;
            number = self.n_lists;
            self.list_of[rank as usize] = number as u32;
        }
        let list = &mut self.lists[number - 1];
        if list.begun {
            list.late.push(Reverse(place));
        } else {
            list.places.push(place);
        }
        let word = rank as usize / 64;
        self.ranks[word] |= 1 << (rank % 64);
        self.words[word / 64] |= 1 << (word % 64);
        self.first = self.first.min(word / 64);
    }

    #[inline]
    fn pop(&mut self) -> Option<(u32, u32)> {
        while *self.words.get(self.first)? == 0 {
            self.first += 1;
        }
        let word = self.first * 64 + self.words[self.first].trailing_zeros() as usize;
        let rank = word as u32 * 64 + self.ranks[word].trailing_zeros();
        let list = &mut self.lists[self.list_of[rank as usize] as usize - 1];
        if !list.begun {
            list.begun = true;
            if !list.places.is_sorted() {
                list.places.sort_unstable();
            }
        }
        let listed = list.places.get(list.next).copied();
        let late = list.late.peek().map(|&Reverse(place)| place);
        let place = match (listed, late) {
            (Some(listed), late) if late.is_none_or(|late| listed <= late) => {
                list.next += 1;
                listed
            }
            _ => list.late.pop()?.0,
        };
        if list.next == list.places.len() && list.late.is_empty() {
            self.ranks[word] &= !(1 << (rank % 64));
            if self.ranks[word] == 0 {
                self.words[self.first] &= !(1 << (word % 64));
            }
        }
        Some((rank, place))
    }
}

#[cfg(test)]
mod tests {
    use super::super::vocab::Merge;
    use super::*;
    use crate::random::random_from;

    /// The definition, word for word: find the lowest rank, merge its leftmost place.
    fn merge_by_definition(ranks: &PairRanks, symbols: &mut Vec<u32>) {
        let pairs = |symbols: &[u32]| -> Option<(u32, usize)> {
            let ranked = symbols.windows(2).map(|pair| ranks.rank(pair[0], pair[1]));
            ranked.zip(0..).min()
        };
        while let Some((rank, at)) = pairs(symbols).filter(|&(rank, _)| rank != NO_RANK) {
            symbols[at] = ranks.product(rank);
            symbols.remove(at + 1);
        }
    }

    /// Merge lists in any order, so that products may rank before their parts.
    #[test]
    fn scan_and_queue_equal_the_definition_on_random_merges() {
        let mut random = random_from(7);
        let byte_ids: [u32; 256] = std::array::from_fn(|i| i as u32);
        let mut words = Merger::default();
        for _ in 0..2_000 {
            let mut merges = Vec::new();
            for new in 256..256 + 18u32 {
                let mut part = || match random(u64::from(new - 253)) as u32 {
                    byte @ 0..3 => byte,
                    product => 253 + product,
                };
                let (left, right) = (part(), part());
                merges.push(Merge { left, right, new });
            }
            for i in 0..merges.len() {
                let j = random(18) as usize;
                if random(2) == 0 {
                    merges.swap(i, j);
                }
            }
            let ranks = PairRanks::from_merges(&merges, &byte_ids);
            let word: Vec<u8> = (0..random(120)).map(|_| random(3) as u8).collect();
            let mut expected: Vec<u32> = word.iter().map(|&byte| u32::from(byte)).collect();
            merge_by_definition(&ranks, &mut expected);
            assert_eq!(words.merge(&ranks, &word), expected, "{merges:?} {word:?}");
            if word.len() <= SCAN_LIMIT {
                words.merge_by_scan_inlined(&ranks, &word);
                assert_eq!(words.symbols, expected, "{merges:?} {word:?}");
            }
            words.merge_by_queue(&ranks, &word);
            assert_eq!(words.symbols, expected, "{merges:?} {word:?}");
        }
    }

    #[test]
    fn the_queue_gives_places_in_order_of_rank() {
        let mut random = random_from(3);
        let mut queue = RankQueue::default();
        for _ in 0..50 {
            queue.start(10_000);
            let mut expected = BinaryHeap::new();
            for _ in 0..300 {
                if random(3) > 0 {
                    let (rank, place) = (random(9_999).pow(2) / 9_999, random(50));
                    queue.push(rank as u32, place as u32);
                    expected.push(Reverse((rank as u32, place as u32)));
                } else {
                    assert_eq!(queue.pop(), expected.pop().map(|Reverse(top)| top));
                }
            }
            while let Some(Reverse(top)) = expected.pop() {
                assert_eq!(queue.pop(), Some(top));
            }
            assert_eq!(queue.pop(), None);
        }
    }
}
