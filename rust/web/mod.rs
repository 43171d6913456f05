//! Web data at crawl scale: pages -> text -> verdicts, masks, duplicates.
//!
//! Every part but `fasttext`, which the library itself judges, has a readable twin in
//! `python/rslm/data`, which is its specification: what the
//! two give is equal on any text, by test. Work is over batches of texts or over files of a
//! shard; nothing calls back into Python for a document.
//!
//! - `warc`: members of crawl files,
//! - `rows`: lines of JSON -> texts,
//! - `decode`, `extract`: bytes of a page -> its text -> its main text,
//! - `segment`: words and sentences (UAX #29), cut once for all rules,
//! - `quality`, `pii`: the named recipes,
//! - `fasttext`: languages and classes of texts, by models of fastText,
//! - `url_filter`: lists of addresses and words,
//! - `decontaminate`: n-grams of evaluation sets, found in text,
//! - `dedup`: repeated lines, equal documents, near-duplicates, in bounded memory.

pub(crate) mod batch;
pub mod decode;
pub mod decontaminate;
pub mod dedup;
pub mod extract;
pub mod fasttext;
pub mod pii;
pub mod quality;
pub mod rows;
pub mod segment;
pub mod url_filter;
pub mod warc;
