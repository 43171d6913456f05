//! Texts in memory -> ids, in parallel across the texts and inside them.

use std::sync::{Mutex, PoisonError};

use super::Splitter;
use super::in_order::{Job, in_order, thread_count};
use crate::TokenId;
use crate::bpe::Tokenizer;
use crate::error::Result;
use crate::memory::with_huge_pages;

/// A thread is started for each of so many bytes: its start takes as long as 300 kB of text
/// whose words are known, and each thread merges the words that are new to it by itself, which
/// takes as long as a megabyte where nothing is known yet.
const BYTES_PER_THREAD: usize = 1 << 20;
/// What a worker takes at a time: its ids stay in the cache until they are copied.
const SHARE: usize = 1 << 18;

/// A part of a text that is encoded by itself.
struct Piece<'t> {
    text: &'t [u8],
    ends_text: bool,
}

/// Encodes many texts; returns all ids and where each text's ids end.
///
/// # Errors
/// As [`Tokenizer::encode_into`].
pub fn encode_batch<I: TokenId>(
    tokenizer: &Tokenizer,
    texts: &[&[u8]],
    n_threads: Option<usize>,
) -> Result<(Vec<I>, Vec<usize>)> {
    let total: usize = texts.iter().map(|text| text.len()).sum();
    let n_threads = thread_count(n_threads).min(total / BYTES_PER_THREAD).max(1);
    let mut token_ids = with_huge_pages(Vec::with_capacity(total / 4 + 4 * texts.len()));
    let mut ends = Vec::with_capacity(texts.len());
    if n_threads == 1 {
        for text in texts {
            tokenizer.encode_into(text, &mut token_ids)?;
            ends.push(token_ids.len());
        }
        return Ok((token_ids, ends));
    }
    let spare = Mutex::new(Vec::new());
    let take = || spare.lock().unwrap_or_else(PoisonError::into_inner).pop();
    let encode = |(): &mut (), pieces: Vec<Piece<'_>>| {
        let (mut ids, mut ends): (Vec<I>, Vec<usize>) = take().unwrap_or_default();
        ids.clear();
        ends.clear();
        for piece in pieces {
            tokenizer.encode_into(piece.text, &mut ids)?;
            if piece.ends_text {
                ends.push(ids.len());
            }
        }
        Ok((ids, ends))
    };
    let consume = |(ids, text_ends): (Vec<I>, Vec<usize>)| {
        ends.extend(text_ends.iter().map(|end| token_ids.len() + end));
        token_ids.extend_from_slice(&ids);
        let used = (ids, text_ends);
        spare
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(used);
        Ok(())
    };
    let splitter = Splitter::of(tokenizer);
    let jobs = Jobs {
        splitter: &splitter,
        texts: texts.iter(),
        open: None,
    };
    in_order(n_threads, jobs.map(Ok), || (), encode, consume)?;
    Ok((token_ids, ends))
}

impl Job for Vec<Piece<'_>> {
    fn n_bytes(&self) -> usize {
        0
    }
}

/// Hands out pieces of about `SHARE` bytes together.
struct Jobs<'t> {
    splitter: &'t Splitter,
    texts: std::slice::Iter<'t, &'t [u8]>,
    /// What is left of a long text.
    open: Option<&'t [u8]>,
}

impl<'t> Iterator for Jobs<'t> {
    type Item = Vec<Piece<'t>>;

    fn next(&mut self) -> Option<Self::Item> {
        let (mut pieces, mut n_bytes) = (Vec::new(), 0);
        while n_bytes < SHARE {
            let Some(text) = self.open.take().or_else(|| self.texts.next().copied()) else {
                break;
            };
            let cut = self.cut(text);
            let (piece, rest) = text.split_at(cut);
            self.open = (!rest.is_empty()).then_some(rest);
            n_bytes += piece.len();
            pieces.push(Piece {
                text: piece,
                ends_text: rest.is_empty(),
            });
        }
        (!pieces.is_empty()).then_some(pieces)
    }
}

impl Jobs<'_> {
    /// Where the first part of a text ends: its end, or a place where it may be divided.
    fn cut(&self, text: &[u8]) -> usize {
        let (mut size, mut from) = (SHARE, 0);
        while size < text.len() {
            match self.splitter.last_cut(&text[..size], from) {
                Ok(cut) => return cut,
                Err(next) => (size, from) = (2 * size, next),
            }
        }
        text.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bpe::{MergeBy, Parts};

    #[test]
    fn many_threads_give_the_ids_of_one_for_short_and_long_texts() {
        let tokenizer = Tokenizer::new(Parts {
            vocab: (0..=255u8).map(|b| (u32::from(b), vec![b])).collect(),
            merges: Vec::new(),
            special_tokens: vec![("<|x|>".into(), None)],
            pattern: "gpt2".into(),
            merge_by: MergeBy::Merges,
        })
        .expect("valid parts");
        let long = "some words <|x|> and  others\n".repeat(200_000);
        let unbroken = "x".repeat(SHARE * 2);
        let texts: Vec<&[u8]> = [&long, "", "short", &unbroken, "<|x|>", &long[..5_000]]
            .iter()
            .map(|text| text.as_bytes())
            .collect();
        let expected = encode_batch::<u16>(&tokenizer, &texts, Some(1)).expect("encodes");
        assert_eq!(expected.1.len(), texts.len());
        let total: usize = texts.iter().map(|text| text.len()).sum();
        assert!(total > 5 * BYTES_PER_THREAD);
        for n_threads in [2, 5] {
            let found = encode_batch::<u16>(&tokenizer, &texts, Some(n_threads));
            assert_eq!(found.expect("encodes"), expected);
        }
    }
}
