//! The merge loop: pretoken counts -> vocabulary and merges.
//!
//! Source: Sennrich, Haddow and Birch 2016, Algorithm 1 (arXiv:1508.07909), on bytes as in
//! Radford et al. 2019. Instead of recounting every pair in every step, a merge visits
//! only the words that hold its pair.
//!
//! Facts this rests on:
//! - A pair gains occurrences only in the step that creates its newer symbol; from then on
//!   its count falls. So the list of words that hold it is complete once it is made, and a
//!   count that was true once is never too low: a pair stays filed under it until its turn
//!   comes.
//! - As often as a symbol stands beside a new one, it stood beside a part of it before. So
//!   the sums that make the new pairs are what the old ones lose.
//! - Counts of merges never rise from one to the next, so the queue only moves down.
//! - Two different pairs never make the same bytes, as the inside of a future symbol
//!   evolves alike in every word; so ids stand for byte strings.

mod learner;
mod numbers;
#[cfg(test)]
mod oracle;
mod pairs;
mod queue;
mod start;
mod words;

use std::sync::Arc;

use super::count::PretokenCounts;
use super::tokenizer::{MergeBy, Parts, Tokenizer};
use super::vocab::{ID_LIMIT, Merge, Vocab};
use crate::Progress;
use crate::error::{Error, Result};
use learner::Learner;
use start::Start;

/// How initial ids are laid out and which pair wins among equally frequent ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TieBreak {
    /// Special tokens, then bytes 0-255; the greatest pair (left bytes, right bytes).
    #[default]
    Bytes,
    /// Special tokens, then bytes in the order of their printable stand-ins; the smallest
    /// pair of ids. As Hugging Face tokenizers with the byte-level alphabet.
    Hf,
    /// Bytes 0-255, merges, special tokens last; the smallest pair of ids. As rustbpe.
    FirstId,
}

/// What to train.
#[derive(Clone, Default)]
pub struct TrainOptions {
    /// Size of the vocabulary, special tokens included.
    pub vocab_size: usize,
    /// Reserved strings.
    pub special_tokens: Vec<String>,
    /// The tie rule.
    pub tie_break: TieBreak,
    /// Training ends before a pair that is rarer than this; 0 counts as 1.
    pub min_frequency: u64,
    /// No pair of more bytes than this is merged.
    pub max_token_length: Option<usize>,
    /// A tokenizer whose ids and merges are kept, and to which others are added.
    pub extend: Option<Arc<Tokenizer>>,
}

impl TrainOptions {
    /// # Errors
    /// `Argument` where the vocabulary cannot hold the bytes and special tokens, or those of
    /// the tokenizer that is extended, or a special token is a single byte, which is a token
    /// already.
    pub fn check(&self) -> Result<()> {
        if let Some(text) = self.special_tokens.iter().find(|text| text.len() == 1) {
            return Err(Error::Argument(format!(
                "special_tokens must be longer than one byte, as each byte is a token by \
                 itself; got {text:?}"
            )));
        }
        if self.max_token_length == Some(0) {
            return Err(Error::Argument(
                "max_token_length must be at least 1, got 0".into(),
            ));
        }
        let specials = self.new_special_tokens().count();
        let noun = if specials == 1 { "token" } else { "tokens" };
        let (known, why) = match &self.extend {
            None => (256, format!("256 bytes + {specials} special {noun}")),
            Some(base) => {
                self.check_new_special_tokens(base)?;
                let n_ids = base.vocab().len();
                let known = format!("{n_ids} ids of the tokenizer to extend");
                (n_ids, format!("{known} + {specials} new special {noun}"))
            }
        };
        let least = known + specials;
        if self.vocab_size < least || self.vocab_size > ID_LIMIT as usize {
            return Err(Error::Argument(format!(
                "vocab_size must be at least {least} ({why}) and at most {ID_LIMIT}, got {}",
                self.vocab_size
            )));
        }
        Ok(())
    }

    /// The bytes of a token find its id, so a token that merges make cannot become a
    /// special token as well and keep its id.
    fn check_new_special_tokens(&self, base: &Tokenizer) -> Result<()> {
        let mut new = self.new_special_tokens();
        match new.find(|special| base.id_of(special.as_bytes()).is_some()) {
            None => Ok(()),
            Some(special) => Err(Error::Argument(format!(
                "new special tokens must not be tokens of the tokenizer to extend, \
                 got {special:?}"
            ))),
        }
    }

    /// The special tokens of the tokenizer to extend, and then the others.
    pub fn all_special_tokens(&self) -> Vec<String> {
        let base = self.extend.as_deref();
        let known = base.map_or(&[][..], |base| base.specials().texts());
        known
            .iter()
            .chain(self.new_special_tokens())
            .cloned()
            .collect()
    }

    /// The special tokens that the tokenizer to extend does not have already.
    pub fn new_special_tokens(&self) -> impl Iterator<Item = &String> {
        let is_known = |special: &String| {
            let base = self.extend.as_deref();
            base.is_some_and(|base| base.specials().texts().contains(special))
        };
        self.special_tokens
            .iter()
            .filter(move |special| !is_known(special))
    }
}

/// A trained vocabulary with its merges in order of creation.
#[derive(Debug)]
pub struct Trained {
    /// Every token's bytes, special tokens included.
    pub vocab: Vocab,
    /// The merges; those of the tokenizer that was extended are not among them.
    pub merges: Vec<Merge>,
}

impl Trained {
    /// The tokenizer of what was trained with `options`, with what it extends.
    ///
    /// # Errors
    /// `Argument` where the pattern is invalid, or from [`Tokenizer::new`].
    pub fn into_tokenizer(self, options: &TrainOptions, pattern: String) -> Result<Tokenizer> {
        let base = options.extend.as_deref();
        let token = |id| self.vocab.get(id).unwrap_or_default().to_vec();
        let known_merges = base.map_or(&[][..], Tokenizer::merges);
        let known_specials = base.into_iter().flat_map(Tokenizer::special_tokens);
        let new_specials = options.new_special_tokens();
        Tokenizer::new(Parts {
            merges: known_merges
                .iter()
                .chain(&self.merges)
                .map(|merge| (token(merge.left), token(merge.right)))
                .collect(),
            vocab: self
                .vocab
                .iter()
                .map(|(id, token_bytes)| (id, token_bytes.to_vec()))
                .collect(),
            special_tokens: known_specials
                .map(|(text, id)| (text.to_owned(), Some(id)))
                .chain(new_specials.map(|text| (text.clone(), None)))
                .collect(),
            pattern,
            merge_by: base.map_or(MergeBy::Merges, Tokenizer::merge_by),
        })
    }
}

/// Trains on pretokens with counts. The result is a function of the multiset alone.
///
/// # Errors
/// `Argument` from [`TrainOptions::check`]; whatever `progress` returns.
pub fn train(
    pretokens: PretokenCounts,
    options: &TrainOptions,
    progress: &mut Progress,
) -> Result<Trained> {
    options.check()?;
    let start = Start::new(options)?;
    if options.vocab_size <= 1 << 16 {
        learn::<u16>(pretokens, options, start, progress)
    } else {
        learn::<u32>(pretokens, options, start, progress)
    }
}

fn learn<S: words::Symbol>(
    pretokens: PretokenCounts,
    options: &TrainOptions,
    start: Start<'_>,
    progress: &mut Progress,
) -> Result<Trained> {
    let words = start.words::<S>(&pretokens)?;
    drop(pretokens);
    let last_specials = start.last_specials();
    let mut learner = Learner::new(start, words, options);
    let limit = options.vocab_size - last_specials.len();
    let n_merges = (limit - learner.vocab().len()) as u64;
    let mut merges = Vec::new();
    while learner.vocab().len() < limit {
        if merges.len() % 256 == 0 {
            progress("merge", (merges.len() as u64).min(n_merges), n_merges)?;
        }
        let Some(merge) = learner.step()? else { break };
        merges.push(merge);
    }
    progress("merge", merges.len() as u64, merges.len() as u64)?;
    let mut vocab = learner.into_vocab();
    for special in last_specials {
        vocab.push(special.as_bytes())?;
    }
    Ok(Trained { vocab, merges })
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

#[cfg(test)]
mod tests;
