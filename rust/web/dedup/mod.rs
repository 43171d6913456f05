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
//! - `characters`, `normalize`, `signature`: a text -> its words -> its shingles -> its MinHash,
//! - `container`, `runs`: files of records; sorting and merging beyond memory,
//! - `lines`; `signatures`, `documents`, `join`, `clusters`: the stages,
//! - `among`: near-duplicates in memory, pair by pair as the Python twin finds them.

mod among;
mod characters;
mod clusters;
mod container;
mod documents;
mod join;
mod lines;
mod normalize;
mod runs;
mod signature;
mod signatures;
mod union_find;

pub use among::{Found, find_among};
pub use characters::Rule;
pub use clusters::{ClusterTotals, Keep, cluster, dropped_rows};
pub use join::{Cap, JoinTotals, join};
pub use lines::{
    LineCounter, LineTotals, Repeated, check_repeated, count_files, merge_lines, rewrite_files,
};
pub use normalize::normalize;
pub use signature::{HashFunctions, hash_shingles};
pub use signatures::{ExactSigner, MinHash, MinHashSigner, Shingled, exact_key};
