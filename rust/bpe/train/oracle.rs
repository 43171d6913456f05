//! The merge loop as it is easily understood: a hash map from each pair to its count and
//! its words, put right after every merge. What the fast one is compared with.

use rustc_hash::FxHashMap;

use super::{TieBreak, TrainOptions};
use crate::bpe::vocab::{Merge, Vocab};

type Pair = (u32, u32);

#[derive(Default)]
struct PairState {
    count: u64,
    /// Words that hold the pair, ascending; complete from the step that creates the pair
    /// on, later perhaps stale.
    words: Vec<u32>,
}

/// The change that one merge makes to another pair.
#[derive(Default)]
struct PairChange {
    delta: i64,
    words: Vec<u32>,
}

struct Trainer {
    vocab: Vocab,
    tie_break: TieBreak,
    max_token_length: usize,
    symbols: Vec<u32>,
    starts: Vec<usize>,
    lens: Vec<u32>,
    counts: Vec<u64>,
    pairs: FxHashMap<Pair, PairState>,
    queue: Queue,
}

/// The merges of words of symbols with their counts.
pub(super) fn merges(
    words: &[(Vec<u32>, u64)],
    vocab: Vocab,
    options: &TrainOptions,
    n_merges: usize,
) -> Vec<Merge> {
    let mut trainer = Trainer {
        vocab,
        tie_break: options.tie_break,
        max_token_length: options.max_token_length.unwrap_or(usize::MAX),
        symbols: Vec::new(),
        starts: Vec::new(),
        lens: Vec::new(),
        counts: Vec::new(),
        pairs: FxHashMap::default(),
        queue: Queue::default(),
    };
    for (symbols, count) in words {
        trainer.starts.push(trainer.symbols.len());
        trainer.lens.push(symbols.len() as u32);
        trainer.counts.push(*count);
        trainer.symbols.extend(symbols);
    }
    trainer.count_pairs();
    let mut merges = Vec::new();
    while merges.len() < n_merges {
        match trainer.step(options.min_frequency.max(1)) {
            Some(merge) => merges.push(merge),
            None => break,
        }
    }
    merges
}

impl Trainer {
    fn count_pairs(&mut self) {
        for word in 0..self.starts.len() {
            let start = self.starts[word];
            let symbols = &self.symbols[start..start + self.lens[word] as usize];
            for pair in symbols.windows(2) {
                let state = self.pairs.entry((pair[0], pair[1])).or_default();
                state.count += self.counts[word];
                push_last(&mut state.words, word as u32);
            }
        }
        let entries: Vec<_> = self
            .pairs
            .iter()
            .map(|(&pair, state)| (state.count, pair))
            .collect();
        for (count, pair) in entries {
            self.queue
                .push(Entry { count, pair }, &self.vocab, self.tie_break);
        }
    }

    /// Makes the next merge; `None` when no pair is left.
    fn step(&mut self, least: u64) -> Option<Merge> {
        let pair = self.next_pair(least)?;
        let mut token_bytes = self.vocab.bytes(pair.0).to_vec();
        token_bytes.extend_from_slice(self.vocab.bytes(pair.1));
        let new = self.vocab.push(&token_bytes).expect("few tokens");
        let words = self
            .pairs
            .remove(&pair)
            .map(|state| state.words)
            .unwrap_or_default();
        let mut changes: FxHashMap<Pair, PairChange> = FxHashMap::default();
        for word in words {
            self.merge_in_word(word, pair, new, &mut changes);
        }
        changes.remove(&pair);
        for (changed, change) in changes {
            self.apply(changed, change);
        }
        Some(Merge {
            left: pair.0,
            right: pair.1,
            new,
        })
    }

    /// The most frequent pair, ties by the rule; stale entries are filed again.
    fn next_pair(&mut self, least: u64) -> Option<Pair> {
        loop {
            let entry = self.queue.pop(&self.vocab, self.tie_break)?;
            let n_bytes =
                self.vocab.bytes(entry.pair.0).len() + self.vocab.bytes(entry.pair.1).len();
            let count = self.pairs.get(&entry.pair).map_or(0, |state| state.count);
            if entry.count < least {
                return None;
            }
            if n_bytes > self.max_token_length {
                continue;
            }
            if count == entry.count {
                return Some(entry.pair);
            }
            if count > 0 {
                self.queue.push(
                    Entry {
                        count,
                        pair: entry.pair,
                    },
                    &self.vocab,
                    self.tie_break,
                );
            }
        }
    }

    /// Replaces the pair in one word, left to right without overlap, and records what
    /// that does to its neighbours.
    fn merge_in_word(
        &mut self,
        word: u32,
        (left, right): Pair,
        new: u32,
        changes: &mut FxHashMap<Pair, PairChange>,
    ) {
        let w = word as usize;
        let count = self.counts[w].cast_signed();
        let start = self.starts[w];
        let symbols = &mut self.symbols[start..start + self.lens[w] as usize];
        let mut change = |pair: Pair, delta: i64| {
            let change = changes.entry(pair).or_default();
            change.delta += delta;
            if delta > 0 {
                push_last(&mut change.words, word);
            }
        };
        let (mut read, mut write) = (0, 0);
        while read < symbols.len() {
            let here =
                read + 1 < symbols.len() && symbols[read] == left && symbols[read + 1] == right;
            if !here {
                symbols[write] = symbols[read];
                write += 1;
                read += 1;
                continue;
            }
            // What stands on the left is rewritten already, what stands on the right is
            // not: so "abab" gives (new, new) once, by way of (new, a).
            if write > 0 {
                let before = symbols[write - 1];
                change((before, left), -count);
                change((before, new), count);
            }
            if let Some(&after) = symbols.get(read + 2) {
                change((right, after), -count);
                change((new, after), count);
            }
            symbols[write] = new;
            write += 1;
            read += 2;
        }
        self.lens[w] = write as u32;
    }

    fn apply(&mut self, pair: Pair, change: PairChange) {
        if change.delta > 0 {
            // Only a pair with the new symbol gains, so it was unknown until now.
            let state = PairState {
                count: change.delta.cast_unsigned(),
                words: change.words,
            };
            let entry = Entry {
                count: state.count,
                pair,
            };
            let known = self.pairs.insert(pair, state);
            debug_assert!(
                known.is_none(),
                "a pair gains only in the step that creates it"
            );
            self.queue.push(entry, &self.vocab, self.tie_break);
        } else if let Some(state) = self.pairs.get_mut(&pair) {
            state.count -= change.delta.unsigned_abs();
            if state.count == 0 {
                self.pairs.remove(&pair);
            }
        }
    }
}

fn push_last(words: &mut Vec<u32>, word: u32) {
    if words.last() != Some(&word) {
        words.push(word);
    }
}

#[derive(Clone, Copy)]
struct Entry {
    count: u64,
    pair: Pair,
}

/// A binary heap whose order needs the vocabulary: highest count first, ties by the rule.
#[derive(Default)]
struct Queue {
    heap: Vec<Entry>,
}

impl Queue {
    fn before(a: Entry, b: Entry, vocab: &Vocab, tie_break: TieBreak) -> bool {
        if a.count != b.count {
            return a.count > b.count;
        }
        match tie_break {
            TieBreak::Bytes => {
                let key = |entry: Entry| (vocab.bytes(entry.pair.0), vocab.bytes(entry.pair.1));
                key(a) > key(b)
            }
            TieBreak::Hf | TieBreak::FirstId => a.pair < b.pair,
        }
    }

    fn push(&mut self, entry: Entry, vocab: &Vocab, tie_break: TieBreak) {
        let mut at = self.heap.len();
        self.heap.push(entry);
        while at > 0 {
            let parent = (at - 1) / 2;
            if !Self::before(self.heap[at], self.heap[parent], vocab, tie_break) {
                break;
            }
            self.heap.swap(at, parent);
            at = parent;
        }
    }

    fn pop(&mut self, vocab: &Vocab, tie_break: TieBreak) -> Option<Entry> {
        let last = self.heap.len().checked_sub(1)?;
        self.heap.swap(0, last);
        let top = self.heap.pop();
        let mut at = 0;
        loop {
            let mut first = at;
            for child in [2 * at + 1, 2 * at + 2] {
                let better = child < last
                    && Self::before(self.heap[child], self.heap[first], vocab, tie_break);
                if better {
                    first = child;
                }
            }
            if first == at {
                return top;
            }
            self.heap.swap(at, first);
            at = first;
        }
    }
}
