//! Copies taken out of a corpus: repeated lines, equal documents, near-duplicates.
//!
//! Stages over shards, each of which reads files and writes one; what a file holds depends on
//! the documents and their places alone.
//!
//! ```text
//! lines       count (shard) -> merge (range of hashes) -> rewrite (shard)
//! documents   sign (shard) -> join (band and range of keys) -> cluster -> dropped rows
//! ```
//!
//! - `characters`, `normalize`, `signature`, `sha1_x86`: a text -> its words -> its shingles -> its `MinHash`,
//! - `sha256`, `sha256_x86`: a text -> what it is known by among others of the same text,
//! - `container`, `writer`, `runs`: files of records; sorting and merging beyond memory,
//! - `lines`, `rewrite`; `records`, `signatures`, `documents`, `join`, `clusters`: the stages,
//! - `among`: near-duplicates in memory, pair by pair as the Python twin finds them.

mod among;
mod characters;
mod clusters;
mod container;
mod documents;
mod join;
mod lines;
mod normalize;
mod records;
mod rewrite;
mod runs;
#[cfg(target_arch = "x86_64")]
mod sha1_x86;
mod sha256;
#[cfg(target_arch = "x86_64")]
mod sha256_x86;
mod signature;
mod signatures;
mod union_find;
mod writer;

pub use among::{Found, find_among};
pub use characters::Rule;
pub use clusters::{ClusterTotals, Keep, cluster, dropped_rows};
pub use join::{Cap, JoinTotals, join};
pub use lines::{LineCounter, LineTotals, check_repeated, merge_lines};
pub use normalize::normalize;
pub use rewrite::{Repeated, count_files, rewrite_files};
pub use sha256::exact_keys;
pub use signature::{HashFunctions, hash_shingles};
pub use signatures::{ExactSigner, MinHash, MinHashSigner, Shingled};
