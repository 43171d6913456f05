//! Text -> ids: the cache is asked for a batch of pretokens at a time; what it does not
//! know is merged.

use super::cache::{BATCH, Find, WordCache, find_portable};
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
    let mut start = batch.start;
    for ends in batch.ends.chunks(BATCH) {
        let part = Batch {
            start,
            ends,
            ..batch
        };
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2")
            && std::arch::is_x86_feature_detected!("bmi2")
        {
            // SAFETY: the processor has the instructions.
            unsafe { encode_avx2(tokenizer, part, words, out) };
        } else {
            encode_part(tokenizer, part, words, out, find_portable);
        }
        #[cfg(not(target_arch = "x86_64"))]
        encode_part(tokenizer, part, words, out, find_portable);
        start = ends.last().map_or(start, |&end| end as usize);
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,bmi1,bmi2")]
fn encode_avx2<I: TokenId>(
    tokenizer: &Tokenizer,
    batch: Batch<'_>,
    words: &mut Words,
    out: &mut Vec<I>,
) {
    encode_part(
        tokenizer,
        batch,
        words,
        out,
        #[inline(always)]
        |line, key| super::cache::find_avx2(line, key),
    );
}

/// Compiled once for each set of instructions, which works only where all of it is inlined.
#[inline(always)]
fn encode_part<I: TokenId>(
    tokenizer: &Tokenizer,
    batch: Batch<'_>,
    words: &mut Words,
    out: &mut Vec<I>,
    find: impl Find,
) {
    let Words { cache, merger } = words;
    cache.encode_batch(batch, out, find, |pretoken, write| {
        write(tokenizer.merge_pretoken(pretoken, merger));
    });
}
