//! The whole-corpus jobs: files -> pretoken counts, files -> token files.
//!
//! - `input`, `compressed`: what a file is by its name, and its bytes, decompressed,
//! - `source`, `text`, `blocks`, `buffers`, `jsonl`: files -> blocks of text, and the texts in
//!   them,
//! - `in_order`: work in parallel, results in order; `encode`: blocks -> token file.
//!
//! One thread reads blocks that end where a text may be divided ([`Splitter::last_cut`]),
//! workers take them, and results come back in the order of the blocks. At most a few
//! blocks per worker exist at a time, so memory does not depend on the size of the corpus.

mod batch;
mod blocks;
mod buffers;
mod compressed;
mod count;
mod encode;
mod in_order;
mod input;
mod jsonl;
mod lines;
mod source;
mod stream;
mod text;

pub use batch::encode_batch;
pub use blocks::{Block, Invalid, Splitter, Unit};
pub use count::{CountJob, Counted, MemoryLimit, PairCounter, sum_counts};
pub use encode::{EncodeJob, encode_files};
pub use in_order::thread_count;
pub use input::{Format, InputOptions};
pub use source::{FileBlocks, OpenRows, Rows};
pub use stream::StreamEncoder;

use crate::error::Result;
use crate::pretokenize;

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
