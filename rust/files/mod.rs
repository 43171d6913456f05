//! The whole-corpus jobs: files -> pretoken counts, files -> token files.
//!
//! One thread reads blocks that end where a text may be divided ([`Splitter::last_cut`]),
//! workers take them, and results come back in the order of the blocks. At most a few
//! blocks per worker exist at a time, so memory does not depend on the size of the corpus.

mod blocks;
mod in_order;

use std::path::{Path, PathBuf};

pub use blocks::{Block, FileBlocks, Invalid, Splitter, Unit};
use in_order::in_order;
pub use in_order::thread_count;

use crate::bpe::{PretokenCounts, Tokenizer};
use crate::error::Result;
use crate::token_file::{TokenFileOptions, TokenFileSummary, TokenFileWriter};
use crate::{Progress, pretokenize};

/// Counts the pretokens of a corpus.
///
/// # Errors
/// What reading, `Invalid::Strict`, the pattern or `progress` refuse.
pub fn count_pretokens(
    blocks: impl Iterator<Item = Result<Block>>,
    total_bytes: u64,
    splitter: &Splitter,
    invalid: Invalid,
    n_threads: Option<usize>,
    progress: &mut Progress,
) -> Result<PretokenCounts> {
    let new_counter = || (PretokenCounts::new(), Vec::new(), Vec::new());
    let count = |(counts, ends, keys): &mut (PretokenCounts, _, _), mut block: Block| {
        let n_bytes = block.bytes.len() as u64;
        block.check_utf8(invalid)?;
        for text in block.texts() {
            splitter.for_each_batch(text, ends, |batch| counts.add_batch(batch, keys))?;
        }
        Ok(n_bytes)
    };
    let mut done = 0;
    let counters = in_order(
        thread_count(n_threads),
        blocks,
        new_counter,
        count,
        |n_bytes| {
            done += n_bytes;
            progress("count", done, total_bytes)
        },
    )?;
    let mut tables = counters.into_iter().map(|(counts, ..)| counts);
    let mut counts = tables.next().unwrap_or_default();
    for table in tables {
        counts.merge(&table);
    }
    Ok(counts)
}

/// Ids of one block, and what the writer needs to know of it.
struct EncodedBlock {
    token_ids: Vec<u32>,
    document_ends: Vec<usize>,
    n_bytes: u64,
}

/// Encodes files into a token file: in order, in parallel, in bounded memory.
///
/// A document ends after each end-of-text token of `options`, and at the end of each
/// file, where the token is added unless it stands there.
///
/// # Errors
/// What reading, `Invalid::Strict`, the pattern, the writer or `progress` refuse; nothing
/// that looks complete is left behind then.
pub fn encode_files(
    tokenizer: &Tokenizer,
    paths: &[PathBuf],
    out: &Path,
    options: TokenFileOptions,
    invalid: Invalid,
    n_threads: Option<usize>,
    progress: &mut Progress,
) -> Result<TokenFileSummary> {
    let splitter = Splitter::of(tokenizer);
    let end_of_text = options.tokenizer.end_of_text;
    let blocks = FileBlocks::new(paths, &splitter)?;
    let total_bytes = blocks.total_bytes();
    let mut writer = TokenFileWriter::create(out, options)?;
    let encode = |(): &mut (), mut block: Block| {
        let n_bytes = block.bytes.len() as u64;
        block.check_utf8(invalid)?;
        let mut token_ids = Vec::with_capacity(block.bytes.len() / 3);
        tokenizer.encode_into(&block.bytes, &mut token_ids)?;
        let ids = token_ids.iter().enumerate();
        let ends = ids
            .filter(|&(_, &id)| Some(id) == end_of_text)
            .map(|(i, _)| i + 1);
        let mut document_ends: Vec<usize> = ends.collect();
        // The last block of a file that holds anything is not empty.
        let is_open = !token_ids.is_empty() && document_ends.last() != Some(&token_ids.len());
        if block.closes_document && is_open {
            token_ids.extend(end_of_text);
            document_ends.push(token_ids.len());
        }
        Ok(EncodedBlock {
            token_ids,
            document_ends,
            n_bytes,
        })
    };
    let mut done = 0;
    in_order(
        thread_count(n_threads),
        blocks,
        || (),
        encode,
        |block| {
            writer.write(&block.token_ids, &block.document_ends)?;
            done += block.n_bytes;
            progress("encode", done, total_bytes)
        },
    )?;
    writer.finish()
}

/// Encodes many texts; returns all ids and where each text's ids end.
///
/// # Errors
/// As [`Tokenizer::encode_into`].
pub fn encode_batch(
    tokenizer: &Tokenizer,
    texts: &[&str],
    n_threads: Option<usize>,
) -> Result<(Vec<u32>, Vec<usize>)> {
    const SMALL: usize = 1 << 16;
    let total: usize = texts.iter().map(|text| text.len()).sum();
    let n_threads = if total < SMALL {
        1
    } else {
        thread_count(n_threads)
    };
    let share = total.div_ceil(n_threads * 4).max(SMALL);
    let encode = |group: &[&str]| {
        let mut token_ids =
            Vec::with_capacity(group.iter().map(|text| text.len()).sum::<usize>() / 3);
        let mut ends = Vec::with_capacity(group.len());
        for text in group {
            tokenizer.encode_into(text.as_bytes(), &mut token_ids)?;
            ends.push(token_ids.len());
        }
        Ok((token_ids, ends))
    };
    if n_threads == 1 {
        return encode(texts);
    }
    let groups = groups_of(texts, share).into_iter().map(Ok);
    let (mut token_ids, mut ends) = (
        Vec::with_capacity(total / 3),
        Vec::with_capacity(texts.len()),
    );
    in_order(
        n_threads,
        groups,
        || (),
        |(): &mut (), group| encode(group),
        |(ids, group_ends)| {
            ends.extend(group_ends.iter().map(|end| token_ids.len() + end));
            token_ids.extend_from_slice(&ids);
            Ok(())
        },
    )?;
    Ok((token_ids, ends))
}

/// Consecutive texts in groups of about `share` bytes.
fn groups_of<'g, 't>(texts: &'g [&'t str], share: usize) -> Vec<&'g [&'t str]> {
    let mut groups = Vec::new();
    let (mut start, mut size) = (0, 0);
    for (i, text) in texts.iter().enumerate() {
        size += text.len();
        if size >= share || i + 1 == texts.len() {
            groups.push(&texts[start..=i]);
            (start, size) = (i + 1, 0);
        }
    }
    groups
}

/// Feeds a tokenizer a text in pieces; what is decided already comes out at once.
pub struct StreamEncoder {
    splitter: Splitter,
    pending: Vec<u8>,
    /// From where the pending text has not been searched for a cut.
    from: usize,
}

impl StreamEncoder {
    /// A stream for a tokenizer.
    pub fn new(tokenizer: &Tokenizer) -> Self {
        Self {
            splitter: Splitter::of(tokenizer),
            pending: Vec::new(),
            from: 0,
        }
    }

    /// Takes the next piece; appends the ids that no later piece can change.
    pub fn push(&mut self, tokenizer: &Tokenizer, text: &str, out: &mut Vec<u32>) -> Result<()> {
        self.pending.extend_from_slice(text.as_bytes());
        match self.splitter.last_cut(&self.pending, self.from) {
            Ok(cut) => {
                tokenizer.encode_into(&self.pending[..cut], out)?;
                self.pending.drain(..cut);
                self.from = 0;
            }
            Err(from) => self.from = from,
        }
        Ok(())
    }

    /// Appends the ids of what is left; the text has ended.
    pub fn finish(&mut self, tokenizer: &Tokenizer, out: &mut Vec<u32>) -> Result<()> {
        self.from = 0;
        tokenizer.encode_into(&std::mem::take(&mut self.pending), out)
    }
}

/// The pretokens of a text without special tokens; for tests and for the curious.
pub fn pretokens<'t>(pattern: &str, text: &'t str) -> Result<Vec<&'t str>> {
    let mut out = Vec::new();
    let mut start = 0;
    pretokenize::Pattern::new(pattern)?.split(text.as_bytes(), |pretoken| {
        out.push(&text[start..start + pretoken.len()]);
        start += pretoken.len();
    })?;
    Ok(out)
}
