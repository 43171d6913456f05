//! The merge loop: pretoken counts -> vocabulary and merges.
//!
//! Source: Sennrich, Haddow and Birch 2016, Algorithm 1 (arXiv:1508.07909), on bytes as in
//! Radford et al. 2019. Instead of recounting every pair in every step, a merge visits
//! only the words that hold its pair, and changes the counts of the neighbours.
//!
//! Facts this rests on:
//! - A pair gains occurrences only in the step that creates its newer symbol; from then on
//!   its count falls. So the queue is lazy: an entry may be stale-high, never stale-low.
//! - After the merge of (a, b), no (a, b) is left: its count is set to 0, not computed
//!   from deltas, which are wrong for overlapping occurrences ("aaa").
//! - Two different pairs never make the same bytes, as the inside of a future symbol
//!   evolves alike in every word; so ids stand for byte strings.

use rustc_hash::FxHashMap;

use super::count::PretokenCounts;
use super::vocab::{Merge, Vocab};
use crate::Progress;
use crate::error::{Error, Result};

/// How initial ids are laid out and which pair wins among equally frequent ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TieBreak {
    /// Special tokens, then bytes 0-255; the greatest pair (left bytes, right bytes).
    Bytes,
    /// Special tokens, then bytes in the order of their printable stand-ins; the smallest
    /// pair of ids. As Hugging Face tokenizers with the byte-level alphabet.
    Hf,
    /// Bytes 0-255, merges, special tokens last; the smallest pair of ids. As rustbpe.
    FirstId,
}

/// What to train.
#[derive(Clone, Debug)]
pub struct TrainOptions {
    /// Size of the vocabulary, special tokens included.
    pub vocab_size: usize,
    /// Reserved strings.
    pub special_tokens: Vec<String>,
    /// The tie rule.
    pub tie_break: TieBreak,
}

impl TrainOptions {
    /// # Errors
    /// `Argument` where the vocabulary cannot hold the bytes and special tokens, or a
    /// special token is a single byte, which is a token already.
    pub fn check(&self) -> Result<()> {
        if let Some(text) = self.special_tokens.iter().find(|text| text.len() == 1) {
            return Err(Error::Argument(format!(
                "special_tokens must be longer than one byte, as each byte is a token by \
                 itself; got {text:?}"
            )));
        }
        let specials = self.special_tokens.len();
        let least = 256 + specials;
        if self.vocab_size < least || self.vocab_size > 1 << 24 {
            let noun = if specials == 1 { "token" } else { "tokens" };
            return Err(Error::Argument(format!(
                "vocab_size must be at least {least} (256 bytes + {specials} special {noun}) \
                 and at most {}, got {}",
                1 << 24,
                self.vocab_size
            )));
        }
        Ok(())
    }
}

/// A trained vocabulary with its merges in order of creation.
#[derive(Debug)]
pub struct Trained {
    /// Every token's bytes, special tokens included.
    pub vocab: Vocab,
    /// The merges.
    pub merges: Vec<Merge>,
}

/// The order of byte values under the printable stand-ins of GPT-2's byte-level files:
/// printable Latin-1 keeps its code point, the 68 others move above U+0100 in order.
pub(super) fn bytes_by_stand_in() -> [u8; 256] {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut order = [0; 256];
    let kept = (0..=255).filter(|&b| printable(b));
    let moved = (0..=255).filter(|&b| !printable(b));
    for (place, byte) in order.iter_mut().zip(kept.chain(moved)) {
        *place = byte;
    }
    order
}

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
    symbols: Vec<u32>,
    starts: Vec<usize>,
    lens: Vec<u32>,
    counts: Vec<u64>,
    pairs: FxHashMap<Pair, PairState>,
    queue: Queue,
}

/// Trains on pretokens with counts. The result is a function of the multiset alone.
///
/// # Errors
/// `Argument` from [`TrainOptions::check`]; whatever `progress` returns.
pub fn train(
    pretokens: &PretokenCounts,
    options: &TrainOptions,
    progress: &mut Progress,
) -> Result<Trained> {
    options.check()?;
    let mut trainer = Trainer::new(pretokens, options)?;
    let specials_last = options.tie_break == TieBreak::FirstId;
    let reserved = if specials_last {
        options.special_tokens.len()
    } else {
        0
    };
    let n_merges = (options.vocab_size - reserved - trainer.vocab.len()) as u64;
    let mut merges = Vec::new();
    while (merges.len() as u64) < n_merges {
        if merges.len() % 256 == 0 {
            progress("merge", merges.len() as u64, n_merges)?;
        }
        let Some(merge) = trainer.step()? else { break };
        merges.push(merge);
    }
    progress("merge", merges.len() as u64, merges.len() as u64)?;
    let mut vocab = trainer.vocab;
    if specials_last {
        for special in &options.special_tokens {
            vocab.push(special.as_bytes())?;
        }
    }
    Ok(Trained { vocab, merges })
}

impl Trainer {
    fn new(pretokens: &PretokenCounts, options: &TrainOptions) -> Result<Self> {
        let mut vocab = Vocab::new(Vec::new())?;
        if options.tie_break != TieBreak::FirstId {
            for special in &options.special_tokens {
                vocab.push(special.as_bytes())?;
            }
        }
        let mut byte_order: [u8; 256] = std::array::from_fn(|i| i as u8);
        if options.tie_break == TieBreak::Hf {
            byte_order = bytes_by_stand_in();
        }
        let mut byte_ids = [0; 256];
        for byte in byte_order {
            byte_ids[byte as usize] = vocab.push(&[byte])?;
        }
        let mut trainer = Self {
            vocab,
            tie_break: options.tie_break,
            symbols: Vec::new(),
            starts: Vec::new(),
            lens: Vec::new(),
            counts: Vec::new(),
            pairs: FxHashMap::default(),
            queue: Queue::default(),
        };
        pretokens.for_each(|pretoken, count| {
            if pretoken.len() > 1 {
                trainer.starts.push(trainer.symbols.len());
                trainer.lens.push(pretoken.len() as u32);
                trainer.counts.push(count);
                trainer
                    .symbols
                    .extend(pretoken.iter().map(|&byte| byte_ids[byte as usize]));
            }
        });
        trainer.count_pairs();
        Ok(trainer)
    }

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
    fn step(&mut self) -> Result<Option<Merge>> {
        let Some(pair) = self.next_pair() else {
            return Ok(None);
        };
        let mut token_bytes = self.vocab.bytes(pair.0).to_vec();
        token_bytes.extend_from_slice(self.vocab.bytes(pair.1));
        let new = self.vocab.push(&token_bytes)?;
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
        Ok(Some(Merge {
            left: pair.0,
            right: pair.1,
            new,
        }))
    }

    /// The most frequent pair, ties by the rule; stale entries are filed again.
    fn next_pair(&mut self) -> Option<Pair> {
        loop {
            let entry = self.queue.pop(&self.vocab, self.tie_break)?;
            let count = self.pairs.get(&entry.pair).map_or(0, |state| state.count);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn merges(words: &[(&str, u64)], vocab_size: usize, tie_break: TieBreak) -> Vec<String> {
        let options = TrainOptions {
            vocab_size,
            special_tokens: Vec::new(),
            tie_break,
        };
        let mut pretokens = PretokenCounts::new();
        for (word, count) in words {
            pretokens.add(word.as_bytes(), *count);
        }
        let trained = train(&pretokens, &options, &mut |_, _, _| Ok(())).expect("valid options");
        let text = |id| String::from_utf8_lossy(trained.vocab.bytes(id)).into_owned();
        trained
            .merges
            .iter()
            .map(|m| format!("{}+{}", text(m.left), text(m.right)))
            .collect()
    }

    const SENNRICH: [(&str, u64); 4] = [("low", 5), ("lower", 2), ("widest", 3), ("newest", 6)];

    #[test]
    fn tie_rules_give_the_published_merges() {
        let bytes = merges(&SENNRICH, 256 + 6, TieBreak::Bytes);
        assert_eq!(bytes, ["s+t", "e+st", "o+w", "l+ow", "w+est", "n+e"]);
        let hf = merges(&SENNRICH, 256 + 6, TieBreak::Hf);
        assert_eq!(hf, ["e+s", "es+t", "l+o", "lo+w", "e+w", "n+ew"]);
    }

    #[test]
    fn overlapping_occurrences_merge_left_to_right() {
        assert_eq!(
            merges(&[("aaaa", 2), ("aaa", 1)], 300, TieBreak::Bytes),
            ["a+a", "aa+aa", "aa+a"]
        );
        assert_eq!(
            merges(&[("abababab", 1)], 300, TieBreak::Bytes),
            ["a+b", "ab+ab", "abab+abab"]
        );
    }

    #[test]
    fn a_vocabulary_too_small_is_refused() {
        let options = TrainOptions {
            vocab_size: 256,
            special_tokens: vec!["<|endoftext|>".into()],
            tie_break: TieBreak::Bytes,
        };
        let error = options.check().expect_err("257 is the least");
        assert!(
            error
                .to_string()
                .starts_with("vocab_size must be at least 257 (256 bytes + 1")
        );
    }
}
