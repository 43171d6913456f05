//! Which pair is next: the most frequent one, ties by the rule.

use super::TieBreak;
use super::pairs::Pair;
use crate::bpe::vocab::Vocab;

/// Counts from here on are kept in a heap, those below in one list each.
const N_LISTS: usize = 1 << 16;

/// Ends a list.
const NONE: u32 = u32::MAX;

/// Pairs by count. What is popped may have become rarer since it was filed; it is filed
/// again then. Nothing is filed above what was popped last.
pub(super) struct Queue {
    large: Heap,
    /// The pair filed last under each count.
    lists: Vec<u32>,
    /// What is filed under the count `level`, in order; its list is empty.
    current: Heap,
    level: usize,
}

impl Queue {
    pub fn new() -> Self {
        Self {
            large: Heap::default(),
            lists: vec![NONE; N_LISTS],
            current: Heap::default(),
            level: N_LISTS,
        }
    }

    /// Files a pair under a count.
    #[inline]
    pub fn push(&mut self, pairs: &mut [Pair], number: u32, count: u64, order: &Order) {
        let pair = &mut pairs[number as usize];
        if count >= N_LISTS as u64 {
            self.large.push(order.entry(pair, number, count), order);
        } else if count as usize == self.level {
            self.current.push(order.entry(pair, number, count), order);
        } else {
            debug_assert!((count as usize) < self.level, "counts only fall");
            pair.next = std::mem::replace(&mut self.lists[count as usize], number);
        }
    }

    /// The first pair and the count that it was filed under, which is at least `least`.
    pub fn pop(&mut self, pairs: &[Pair], least: u64, order: &Order) -> Option<(u32, u64)> {
        if let Some(entry) = self.large.pop(order) {
            return (entry.count >= least).then_some((entry.number, entry.count));
        }
        loop {
            if let Some(entry) = self.current.pop(order) {
                return Some((entry.number, entry.count));
            }
            if self.level as u64 <= least.max(1) {
                return None;
            }
            self.level -= 1;
            let mut number = std::mem::replace(&mut self.lists[self.level], NONE);
            while number != NONE {
                let pair = &pairs[number as usize];
                self.current
                    .entries
                    .push(order.entry(pair, number, self.level as u64));
                number = pair.next;
            }
            self.current.make_heap(order);
        }
    }
}

/// The order of equally frequent pairs.
pub(super) struct Order {
    tie_break: TieBreak,
    /// The first eight bytes of each token, zeros behind, as a number that orders them.
    heads: Vec<u64>,
    vocab: Vocab,
}

#[derive(Clone, Copy)]
struct Entry {
    count: u64,
    /// The greater key is first; equal keys decide nothing.
    key: u64,
    left: u32,
    right: u32,
    number: u32,
}

impl Order {
    pub fn new(tie_break: TieBreak, vocab: Vocab) -> Self {
        let mut order = Self {
            tie_break,
            heads: Vec::new(),
            vocab,
        };
        order.read_tokens();
        order
    }

    /// The vocabulary that says what ids stand for.
    pub fn vocab(&self) -> &Vocab {
        &self.vocab
    }

    pub fn into_vocab(self) -> Vocab {
        self.vocab
    }

    /// Adds the token of a merge; its id.
    pub fn push_token(&mut self, token_bytes: &[u8]) -> crate::error::Result<u32> {
        let id = self.vocab.push(token_bytes)?;
        self.read_tokens();
        Ok(id)
    }

    fn read_tokens(&mut self) {
        for id in self.heads.len()..self.vocab.len() {
            let token_bytes = self.vocab.bytes(id as u32);
            let mut head = [0; 8];
            let n = token_bytes.len().min(8);
            head[..n].copy_from_slice(&token_bytes[..n]);
            self.heads.push(u64::from_be_bytes(head));
        }
    }

    #[inline]
    fn entry(&self, pair: &Pair, number: u32, count: u64) -> Entry {
        let (left, right) = (pair.left, pair.right);
        let key = match self.tie_break {
            TieBreak::Bytes => self.heads[left as usize],
            TieBreak::Hf | TieBreak::FirstId => !(u64::from(left) << 32 | u64::from(right)),
        };
        Entry {
            count,
            key,
            left,
            right,
            number,
        }
    }

    #[inline]
    fn is_before(&self, a: &Entry, b: &Entry) -> bool {
        if a.count != b.count {
            return a.count > b.count;
        }
        if a.key != b.key {
            return a.key > b.key;
        }
        self.tie_break == TieBreak::Bytes && self.is_greater(a, b)
    }

    #[inline]
    fn is_greater(&self, a: &Entry, b: &Entry) -> bool {
        let (a_head, b_head) = (self.heads[a.right as usize], self.heads[b.right as usize]);
        if a.left == b.left && a_head != b_head {
            return a_head > b_head;
        }
        let key = |entry: &Entry| (self.vocab.bytes(entry.left), self.vocab.bytes(entry.right));
        key(a) > key(b)
    }
}

/// A binary heap whose order is [`Order`].
#[derive(Default)]
struct Heap {
    entries: Vec<Entry>,
}

impl Heap {
    fn push(&mut self, entry: Entry, order: &Order) {
        let mut at = self.entries.len();
        self.entries.push(entry);
        while at > 0 {
            let parent = (at - 1) / 2;
            if !order.is_before(&entry, &self.entries[parent]) {
                break;
            }
            self.entries[at] = self.entries[parent];
            at = parent;
        }
        self.entries[at] = entry;
    }

    fn pop(&mut self, order: &Order) -> Option<Entry> {
        let last = self.entries.pop()?;
        let Some(top) = self.entries.first_mut() else {
            return Some(last);
        };
        let top = std::mem::replace(top, last);
        self.sink(0, order);
        Some(top)
    }

    fn make_heap(&mut self, order: &Order) {
        for at in (0..self.entries.len() / 2).rev() {
            self.sink(at, order);
        }
    }

    fn sink(&mut self, mut at: usize, order: &Order) {
        let entries = &mut self.entries[..];
        let sinking = entries[at];
        loop {
            let mut child = 2 * at + 1;
            if child >= entries.len() {
                break;
            }
            let right = child + 1;
            if right < entries.len() && order.is_before(&entries[right], &entries[child]) {
                child = right;
            }
            if !order.is_before(&entries[child], &sinking) {
                break;
            }
            entries[at] = entries[child];
            at = child;
        }
        entries[at] = sinking;
    }
}
