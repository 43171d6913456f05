//! One merge after the other.

use super::TrainOptions;
use super::numbers::PairNumbers;
use super::pairs::{Pair, Pairs, Side};
use super::queue::{Order, Queue};
use super::start::Start;
use super::words::{Symbol, Words};
use crate::bpe::tokenizer::Tokenizer;
use crate::bpe::vocab::{Merge, Vocab};
use crate::error::Result;

/// How many words ahead the memory is asked.
const AHEAD: usize = 12;

pub(super) struct Learner<'o, S> {
    words: Words<S>,
    pairs: Pairs,
    queue: Queue,
    order: Order,
    /// What stands on the left and on the right of the symbol that is being made.
    sides: [Side; 2],
    /// For keeping the counts true; `None` where a tokenizer is extended. Its vocabulary may
    /// let two pairs make the same token, whose pairs would be there twice then.
    numbers: Option<PairNumbers>,
    limits: Limits,
    base: Option<&'o Tokenizer>,
}

/// Which pairs may merge at all.
#[derive(Clone, Copy)]
struct Limits {
    min_frequency: u64,
    max_token_length: usize,
}

impl Limits {
    #[inline]
    fn allow(self, vocab: &Vocab, left: u32, right: u32, count: u64) -> bool {
        count >= self.min_frequency
            && vocab.bytes(left).len() + vocab.bytes(right).len() <= self.max_token_length
    }
}

impl<'o, S: Symbol> Learner<'o, S> {
    pub fn new(start: Start<'o>, words: Words<S>, options: &TrainOptions) -> Self {
        let limits = Limits {
            min_frequency: options.min_frequency.max(1),
            max_token_length: options.max_token_length.unwrap_or(usize::MAX),
        };
        let pairs = start.pairs(&words, |left, right, count| {
            limits.allow(&start.vocab, left, right, count)
        });
        let base = start.base();
        let mut learner = Self {
            words,
            pairs,
            queue: Queue::new(),
            order: Order::new(options.tie_break, start.vocab),
            sides: [Side::new(options.vocab_size), Side::new(options.vocab_size)],
            numbers: base.is_none().then(PairNumbers::new),
            limits,
            base,
        };
        let pairs = &mut learner.pairs.all;
        for number in 0..pairs.len() {
            let count = pairs[number].count;
            learner
                .queue
                .push(pairs, number as u32, count, &learner.order);
        }
        if let Some(numbers) = &mut learner.numbers {
            numbers.update(pairs);
        }
        learner
    }

    pub fn vocab(&self) -> &Vocab {
        self.order.vocab()
    }

    pub fn into_vocab(self) -> Vocab {
        self.order.into_vocab()
    }

    /// Makes the next merge; `None` when no pair is left that may merge.
    pub fn step(&mut self) -> Result<Option<Merge>> {
        let Some(number) = self.next_pair() else {
            return Ok(None);
        };
        let pair = self.pairs.all[number as usize];
        let (left, right) = (pair.left, pair.right);
        let new = self.product(left, right)?;
        let places = &self.pairs.places[pair.first_place..][..pair.n_places as usize];
        for (i, &place) in places.iter().enumerate() {
            if let Some(&ahead) = places.get(i + AHEAD) {
                self.words.prefetch(ahead);
            }
            // A word that held the pair often stands there as often, and is done: looking
            // through a long one again and again would be quadratic.
            if i > 0 && places[i - 1] == place {
                continue;
            }
            self.words.merge(place, left, right, new, &mut self.sides);
        }
        if let Some(numbers) = &self.numbers {
            lose(&mut self.pairs.all, numbers, &self.sides, left, right, new);
        }
        let [before, after] = &mut self.sides;
        let (order, queue, limits) = (&self.order, &mut self.queue, self.limits);
        let allow = |left, right, count| {
            let is_allowed = limits.allow(order.vocab(), left, right, count);
            is_allowed.then_some((left, right))
        };
        let mut file = |pairs: &mut Pairs, number, count| {
            queue.push(&mut pairs.all, number, count, order);
        };
        let pairs = &mut self.pairs;
        before.drain(pairs, |id, count| allow(id, new, count), &mut file);
        after.drain(pairs, |id, count| allow(new, id, count), &mut file);
        if let Some(numbers) = &mut self.numbers {
            numbers.update(&pairs.all);
        }
        Ok(Some(Merge { left, right, new }))
    }

    /// The most frequent pair, ties by the rule. Those that have become rarer than they were
    /// when they were filed are filed again.
    fn next_pair(&mut self) -> Option<u32> {
        let least = self.limits.min_frequency;
        loop {
            let (number, filed) = self.queue.pop(&self.pairs.all, least, &self.order)?;
            let count = match self.numbers {
                Some(_) => self.pairs.all[number as usize].count,
                None => self.recount(number),
            };
            if count == filed {
                return Some(number);
            }
            if count >= least {
                let pairs = &mut self.pairs.all;
                self.queue.push(pairs, number, count, &self.order);
            }
        }
    }

    /// The count of a pair as it is now. Words that do not hold it are struck off its list.
    fn recount(&mut self, number: u32) -> u64 {
        let pair = &mut self.pairs.all[number as usize];
        let places = &mut self.pairs.places[pair.first_place..][..pair.n_places as usize];
        let mut total = 0;
        let (mut kept, mut last) = (0, None);
        for i in 0..places.len() {
            if let Some(&ahead) = places.get(i + AHEAD) {
                self.words.prefetch(ahead);
            }
            let place = places[i];
            if last == Some(place) {
                continue;
            }
            last = Some(place);
            let count = self.words.count_pair(place, pair.left, pair.right);
            total += count;
            places[kept] = place;
            kept += usize::from(count > 0);
        }
        pair.n_places = kept as u32;
        total
    }

    /// The id of a new token. The tokenizer that is extended may have these bytes as a token
    /// that its own merges never make: it is made now, and keeps its id.
    fn product(&mut self, left: u32, right: u32) -> Result<u32> {
        let mut token_bytes = self.vocab().bytes(left).to_vec();
        token_bytes.extend_from_slice(self.vocab().bytes(right));
        let known = self.base.and_then(|base| base.ordinary_id_of(&token_bytes));
        match known {
            Some(id) => Ok(id),
            None => self.order.push_token(&token_bytes),
        }
    }
}

/// Takes from the pairs of two parts that became one what they lost to the pairs of the new
/// symbol.
fn lose(
    pairs: &mut [Pair],
    numbers: &PairNumbers,
    [before, after]: &[Side; 2],
    left: u32,
    right: u32,
    new: u32,
) {
    // Between two new symbols stood the right part of one and the left part of the other.
    let outer = |neighbour| if neighbour == new { right } else { neighbour };
    let losses = || {
        let lost_before = before.counts().map(|(id, count)| (outer(id), left, count));
        let lost_after = after.counts().map(|(id, count)| (right, id, count));
        lost_before.chain(lost_after)
    };
    for (left, right, _) in losses() {
        numbers.prefetch(left, right);
    }
    for (left, right, _) in losses() {
        numbers.prefetch_pair(pairs, left, right);
    }
    for (lost_left, lost_right, count) in losses() {
        // The pair that is merged is gone.
        if (lost_left, lost_right) != (left, right)
            && let Some(number) = numbers.find(pairs, lost_left, lost_right)
        {
            pairs[number as usize].count -= count;
        }
    }
}
