//! Token files: shards of token ids with an index of documents and a manifest.
//!
//! The format is specified in the docstring of `python/rslm/token_file.py`, which is
//! also its other implementation; golden files in `tests/fixtures` are read and
//! rewritten byte for byte by both. Here:
//!
//! - `header`: the 1024 bytes before a shard's payload, and the NPY header of its index,
//! - `manifest`: what `manifest.json` holds, its text and its fingerprint,
//! - `plan`: the options of a writer, checked,
//! - `shard`, `folder`: one shard on its way to the disk; the folder under its lock,
//! - `resume`: what a writer that was stopped leaves for the one that goes on,
//! - [`TokenFileWriter`]: a stream of token ids into shards, in bounded memory,
//! - [`verify`]: reads everything back and compares,
//! - [`permute`]: the order in which training visits the windows of a token file,
//! - [`plan_packing`]: which documents share a row of a training batch.
//!
//! Invariant: a folder with a `manifest.json` is complete, for the manifest is renamed
//! into place after every shard it names has reached the disk.

mod folder;
mod header;
mod manifest;
mod packing;
mod permutation;
mod plan;
mod reader;
mod resume;
mod shard;
mod writer;

pub use manifest::ShardRecord;
pub use packing::{Packing, PackingPlan, plan_packing};
pub use permutation::permute;
pub use reader::verify;
pub use resume::{Position, Resumed};
pub use writer::TokenFileWriter;

/// Payload limit of one shard: llm.c's readers seek with 32-bit offsets.
const MAX_PAYLOAD_BYTES: u64 = 1 << 30;
/// Size of the blocks that have a CRC-32 of their own in the manifest, as a power of two.
const CRC_BLOCK_LOG2: u32 = 22;
/// [`CRC_BLOCK_LOG2`] in bytes; payloads are written and verified in such blocks.
const CRC_BLOCK_BYTES: usize = 1 << CRC_BLOCK_LOG2;
/// The file whose presence makes a folder a complete token file.
const MANIFEST_NAME: &str = "manifest.json";
/// Larger manifests are refused unread.
const MAX_MANIFEST_BYTES: u64 = 1 << 27;

/// What a token file remembers about the tokenizer that made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenizerRecord {
    /// SHA-256 of `canonical_json`.
    pub sha256: [u8; 32],
    /// A name for people, at most 64 bytes.
    pub name: String,
    /// Number of ids, special tokens included; decides the width of the payload.
    pub vocab_size: u32,
    /// The tokenizer itself, embedded in the manifest.
    pub canonical_json: Vec<u8>,
    /// Special tokens and their ids.
    pub special_tokens: Vec<(String, u32)>,
    /// The token that ends every document of this file; `None` when none does.
    pub end_of_text: Option<u32>,
    /// UTF-8 bytes that each id stands for; 0 for special tokens.
    pub token_byte_lengths: Vec<u32>,
}

/// How a token file is written and what its manifest says about its origin.
#[derive(Clone, Debug)]
pub struct TokenFileOptions {
    /// The tokenizer of the ids to come.
    pub tokenizer: TokenizerRecord,
    /// A name for the text, such as `tinystories/train`, at most 64 bytes.
    pub dataset: String,
    /// A shard is closed at the first end of a document at which it holds this many tokens.
    pub shard_tokens: u64,
    /// Name and size in bytes of each input file.
    pub sources: Vec<(String, u64)>,
    /// The command that made the file.
    pub command: String,
    /// Names and values of what else the tokens depend on: a writer that resumes must be
    /// given the same.
    pub conditions: Vec<(String, String)>,
}

/// The totals of a complete token file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenFileSummary {
    /// Tokens of all shards.
    pub n_tokens: u64,
    /// Entries of all indexes; a document split by the payload limit counts once per shard.
    pub n_documents: u64,
    /// UTF-8 bytes that the tokens stand for.
    pub n_utf8_bytes: u64,
    /// Number of shards.
    pub n_shards: u32,
    /// Bytes per token, 2 or 4.
    pub itemsize: u8,
    /// SHA-256, in hexadecimal, over payload hashes, tokenizer hash and policy.
    pub fingerprint: String,
    /// The shards in order.
    pub shards: Vec<ShardRecord>,
}

/// Bytes per token for a vocabulary: 2 as long as every id fits, never wrapped.
const fn itemsize_for(vocab_size: u32) -> u8 {
    if vocab_size <= 1 << 16 { 2 } else { 4 }
}

/// File name of a shard's payload.
fn shard_name(index: usize) -> String {
    format!("shard_{index:05}.bin")
}

/// File name of a shard's index of documents.
fn index_name(index: usize) -> String {
    format!("shard_{index:05}.idx.npy")
}

/// Lower-case hexadecimal, as `hashlib` prints digests.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes
        .iter()
        .fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

#[cfg(test)]
mod testing;
