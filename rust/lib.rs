//! Byte-level BPE at corpus scale, and the token files that language models train on.
//!
//! The way of a text through the crate, left to right; nothing on the left sees what is
//! on its right:
//!
//! ```text
//! error, token_id, memory, random, sandbox -> pretokenize, bpe::vocab
//!       -> bpe::{count, pair_ranks, merge, cache}, token_file
//!       -> bpe::{tokenizer, encode, decode, dropout, formats, train}, files -> python
//! ```
//!
//! - [`pretokenize`]: special tokens are cut out, the rest is split by a pattern. Where a
//!   text may be divided without changing the result is decided here alone.
//! - [`bpe`]: pretoken counts -> merges; pretokens -> ids. Knows no files of text.
//! - [`token_file`]: ids -> shards, index and manifest, and back. Knows no BPE.
//! - [`files`]: the whole-corpus jobs that join them: parallel, in order, bounded memory.
//! - [`infer`]: the arithmetic of running a model on a CPU. Knows no texts.
//! - [`sandbox`]: walls around a process that runs code nobody trusts. Knows nothing of the rest.
//! - `web` (feature `web`): crawled pages to documents worth training on. Knows neither BPE nor
//!   token files.
//!
//! Invariants: a result never depends on the number of threads or on where a text was
//! divided; counts are u64; no input costs more than O(n log n); bad input is an
//! [`Error`], never a panic.

pub mod bpe;
mod error;
pub mod files;
pub mod infer;
mod memory;
pub mod pretokenize;
#[cfg(feature = "python")]
mod python;
mod random;
pub mod sandbox;
pub mod token_file;
mod token_id;
#[cfg(feature = "web")]
pub mod web;

pub use bpe::Tokenizer;
pub use error::{Error, Result};
pub use token_id::TokenId;

/// Told what has been done of what there is to do, in a named phase ("count" and "merge
/// runs" in bytes, "merge" in merges, "encode" in bytes). An error it returns stops the work.
pub type Progress<'p> = dyn FnMut(&str, u64, u64) -> Result<()> + 'p;
