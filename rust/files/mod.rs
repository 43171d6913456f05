//! The whole-corpus jobs: files -> pretoken counts, files -> token files.
//!
//! One thread reads blocks that end where a text may be divided ([`Splitter::last_cut`]),
//! workers take them, and results come back in the order of the blocks. At most a few
//! blocks per worker exist at a time, so memory does not depend on the size of the corpus.

mod batch;
mod blocks;
mod count;
mod in_order;
mod stream;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

pub use batch::encode_batch;
pub use blocks::{Block, FileBlocks, Invalid, Splitter, Unit};
pub use count::{Counted, MemoryLimit, PairCounter, count_pretokens, sum_counts};
use in_order::in_order;
pub use in_order::thread_count;
pub use stream::StreamEncoder;

use crate::bpe::Tokenizer;
use crate::error::Result;
use crate::token_file::{TokenFileOptions, TokenFileSummary, TokenFileWriter};
use crate::{Progress, TokenId, pretokenize};

/// Ids of one block, and what the writer needs to know of it.
struct EncodedBlock<I> {
    token_ids: Vec<I>,
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
    let writer = TokenFileWriter::create(out, options)?;
    let job = EncodeJob {
        tokenizer,
        end_of_text,
        invalid,
        n_threads: thread_count(n_threads),
    };
    if tokenizer.is_narrow() {
        job.run::<u16>(blocks, writer, progress)
    } else {
        job.run::<u32>(blocks, writer, progress)
    }
}

struct EncodeJob<'j> {
    tokenizer: &'j Tokenizer,
    end_of_text: Option<u32>,
    invalid: Invalid,
    n_threads: usize,
}

impl EncodeJob<'_> {
    fn run<I: TokenId>(
        &self,
        blocks: FileBlocks<'_>,
        mut writer: TokenFileWriter,
        progress: &mut Progress,
    ) -> Result<TokenFileSummary> {
        // Memory that was used before is there already; new memory is zeroed by the system.
        let spare = Mutex::new(Vec::new());
        let total_bytes = blocks.total_bytes();
        let mut done = 0;
        let take = || spare.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let encode = |(): &mut (), block| self.encode_block(block, take().unwrap_or_default());
        let consume = |block: EncodedBlock<I>| {
            writer.write(&block.token_ids, &block.document_ends)?;
            done += block.n_bytes;
            spare
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(block.token_ids);
            progress("encode", done, total_bytes)
        };
        in_order(self.n_threads, blocks, || (), encode, consume)?;
        writer.finish()
    }

    fn encode_block<I: TokenId>(
        &self,
        mut block: Block,
        mut token_ids: Vec<I>,
    ) -> Result<EncodedBlock<I>> {
        let n_bytes = block.bytes.len() as u64;
        block.check_utf8(self.invalid)?;
        token_ids.clear();
        self.tokenizer.encode_into(&block.bytes, &mut token_ids)?;
        let mut document_ends = Vec::new();
        if let Some(end_of_text) = self.end_of_text {
            let ids = token_ids.iter().enumerate();
            let ends = ids.filter(|(_, id)| id.id() == end_of_text);
            document_ends.extend(ends.map(|(i, _)| i + 1));
        }
        // The last block of a file that holds anything is not empty.
        let is_open = !token_ids.is_empty() && document_ends.last() != Some(&token_ids.len());
        if block.closes_document && is_open {
            token_ids.extend(self.end_of_text.map(I::from_id));
            document_ends.push(token_ids.len());
        }
        Ok(EncodedBlock {
            token_ids,
            document_ends,
            n_bytes,
        })
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
