//! Where training begins: the vocabulary, the words as symbols, the first pairs.

use rustc_hash::FxHashMap;

use super::pairs::{Pair, Pairs};
use super::words::{Symbol, Words};
use super::{TieBreak, TrainOptions, bytes_by_stand_in};
use crate::bpe::count::PretokenCounts;
use crate::bpe::merge::Merger;
use crate::bpe::tokenizer::Tokenizer;
use crate::bpe::vocab::Vocab;
use crate::error::Result;
use crate::memory::apart;

/// What is there before the first merge.
pub(super) struct Start<'o> {
    pub vocab: Vocab,
    options: &'o TrainOptions,
    /// Where nothing is extended.
    byte_ids: [u32; 256],
}

impl<'o> Start<'o> {
    pub fn new(options: &'o TrainOptions) -> Result<Self> {
        let mut vocab = match &options.extend {
            Some(base) => base.vocab().clone(),
            None => Vocab::new(Vec::new())?,
        };
        if options.tie_break != TieBreak::FirstId {
            for special in options.new_special_tokens() {
                vocab.push(special.as_bytes())?;
            }
        }
        let mut byte_ids = [0; 256];
        if options.extend.is_none() {
            let byte_order = match options.tie_break {
                TieBreak::Hf => bytes_by_stand_in(),
                TieBreak::Bytes | TieBreak::FirstId => std::array::from_fn(|i| i as u8),
            };
            for byte in byte_order {
                byte_ids[byte as usize] = vocab.push(&[byte])?;
            }
        }
        Ok(Self {
            vocab,
            options,
            byte_ids,
        })
    }

    /// The tokenizer that is extended.
    pub fn base(&self) -> Option<&'o Tokenizer> {
        self.options.extend.as_deref()
    }

    /// The special tokens whose ids come after those of the merges.
    pub fn last_specials(&self) -> Vec<String> {
        match self.options.tie_break {
            TieBreak::FirstId => self.options.new_special_tokens().cloned().collect(),
            TieBreak::Bytes | TieBreak::Hf => Vec::new(),
        }
    }

    /// The words of more than one symbol.
    pub fn words<S: Symbol>(&self, pretokens: &PretokenCounts) -> Result<Words<S>> {
        let mut words = Words::new();
        let mut merger = Merger::default();
        let mut result = Ok(());
        let byte_ids = self.byte_ids.map(S::from_id);
        pretokens.for_each(|pretoken, count| {
            if pretoken.len() < 2 || result.is_err() {
                return;
            }
            result = match self.base() {
                None => words.push(pretoken.iter().map(|&byte| byte_ids[byte as usize]), count),
                Some(base) => match base.merge_pretoken(pretoken, &mut merger) {
                    [_] => Ok(()),
                    symbols => words.push(symbols.iter().map(|&id| S::from_id(id)), count),
                },
            };
        });
        result.map(|()| words)
    }

    /// The pairs that stand in the words, with their counts. `is_wanted` says which of them
    /// may ever merge, by left, right and count.
    pub fn pairs<S: Symbol>(
        &self,
        words: &Words<S>,
        is_wanted: impl Fn(u32, u32, u64) -> bool,
    ) -> Pairs {
        if self.base().is_some() {
            let mut numbers = FxHashMap::default();
            first_pairs(words, is_wanted, 0, |left, right| {
                let next = numbers.len();
                *numbers.entry((left, right)).or_insert(next)
            })
        } else {
            // The ids of bytes follow each other.
            let first = self.byte_ids.iter().min().copied().unwrap_or_default();
            first_pairs(words, is_wanted, 1 << 16, |left, right| {
                ((left - first) << 8 | (right - first)) as usize
            })
        }
    }
}

#[derive(Clone, Copy, Default)]
struct FirstPair {
    count: u64,
    left: u32,
    right: u32,
    n_places: u32,
    cursor: usize,
}

/// Counts first, then files the words: each list comes out in one piece.
fn first_pairs<S: Symbol>(
    words: &Words<S>,
    is_wanted: impl Fn(u32, u32, u64) -> bool,
    n_numbers: usize,
    mut number_of: impl FnMut(u32, u32) -> usize,
) -> Pairs {
    const NOWHERE: usize = usize::MAX;
    let mut found = vec![FirstPair::default(); n_numbers];
    words.for_each(|_, count, symbols| {
        for pair in symbols.windows(2) {
            let (left, right) = (pair[0].id(), pair[1].id());
            let number = number_of(left, right);
            if number >= found.len() {
                found.resize(number + 1, FirstPair::default());
            }
            let pair = &mut found[number];
            (pair.left, pair.right) = (left, right);
            pair.count += count;
            pair.n_places += 1;
        }
    });
    let mut pairs = Pairs {
        all: apart(0),
        places: apart(0),
    };
    let mut n_places = 0;
    for pair in found.iter_mut().filter(|pair| pair.count > 0) {
        if !is_wanted(pair.left, pair.right, pair.count) {
            pair.cursor = NOWHERE;
            continue;
        }
        pair.cursor = n_places;
        pairs.all.push(Pair {
            left: pair.left,
            right: pair.right,
            first_place: n_places,
            n_places: pair.n_places,
            next: 0,
            count: pair.count,
        });
        n_places += pair.n_places as usize;
    }
    pairs.places.resize(n_places, 0);
    words.for_each(|place, _, symbols| {
        for pair in symbols.windows(2) {
            let cursor = &mut found[number_of(pair[0].id(), pair[1].id())].cursor;
            if *cursor != NOWHERE {
                pairs.places[*cursor] = place;
                *cursor += 1;
            }
        }
    });
    pairs
}
