//! Text -> ids: the cache is asked for a batch of pretokens at a time; what it does not
//! know is merged.

#[cfg(target_arch = "x86_64")]
use super::cache::{Avx2, Avx512};
use super::cache::{BATCH, Instructions, Portable, WordCache};
use super::merge::Merger;
use super::tokenizer::Tokenizer;
use crate::TokenId;
use crate::pretokenize::Batch;

/// What it takes to encode pretokens: the cache and the buffers of the merge.
pub(super) struct Words {
    cache: WordCache,
    merger: Merger,
}

impl Words {
    pub fn new() -> Self {
        Self {
            cache: WordCache::new(),
            merger: Merger::default(),
        }
    }
}

/// Appends the ids of a batch of pretokens.
pub(super) fn encode_batch<I: TokenId>(
    tokenizer: &Tokenizer,
    batch: Batch<'_>,
    words: &mut Words,
    out: &mut Vec<I>,
) {
    for part in batch.parts(BATCH) {
        encode_dispatched(tokenizer, part, words, out);
    }
}

/// By the best instructions that the processor has.
#[inline(always)]
fn encode_dispatched<I: TokenId>(
    tokenizer: &Tokenizer,
    batch: Batch<'_>,
    words: &mut Words,
    out: &mut Vec<I>,
) {
    #[cfg(target_arch = "x86_64")]
    {
        if let Some(avx512) = Avx512::detect() {
            // SAFETY: a value exists, so the processor has the instructions.
            return unsafe { encode_avx512(tokenizer, batch, words, out, avx512) };
        }
        if let Some(avx2) = Avx2::detect() {
            // SAFETY: as above.
            return unsafe { encode_avx2(tokenizer, batch, words, out, avx2) };
        }
    }
    encode_part(tokenizer, batch, words, out, Portable);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq,avx512vl,bmi1,bmi2,popcnt")]
fn encode_avx512<I: TokenId>(
    tokenizer: &Tokenizer,
    batch: Batch<'_>,
    words: &mut Words,
    out: &mut Vec<I>,
    instructions: Avx512,
) {
    encode_part(tokenizer, batch, words, out, instructions);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,bmi1,bmi2")]
fn encode_avx2<I: TokenId>(
    tokenizer: &Tokenizer,
    batch: Batch<'_>,
    words: &mut Words,
    out: &mut Vec<I>,
    instructions: Avx2,
) {
    encode_part(tokenizer, batch, words, out, instructions);
}

/// Compiled once for each set of instructions, which works only where all of it is inlined.
#[inline(always)]
fn encode_part<I: TokenId>(
    tokenizer: &Tokenizer,
    batch: Batch<'_>,
    words: &mut Words,
    out: &mut Vec<I>,
    instructions: impl Instructions,
) {
    let Words { cache, merger } = words;
    cache.encode_batch(batch, out, instructions, |pretoken, write| {
        write(tokenizer.merge_pretoken(pretoken, merger));
    });
}
