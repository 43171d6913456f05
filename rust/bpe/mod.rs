//! Byte-pair encoding: counts -> merges, text -> ids. Knows no files of text.

mod cache;
mod count;
mod decode;
mod dropout;
mod encode;
pub mod formats;
mod merge;
mod pair_ranks;
mod tokenizer;
mod train;
mod vocab;

pub use count::{
    Counter, CountsOrigin, CountsReader, CountsTotal, Footprint, PretokenCounts, Runs,
    merge_counts, write_counts,
};
pub use dropout::Dropout;
pub use tokenizer::{MergeBy, Parts, Tokenizer};
pub use train::{TieBreak, TrainOptions, Trained, train};
pub use vocab::{Merge, Vocab};
