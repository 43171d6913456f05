//! What a writer is asked to write, checked.

use std::path::Path;

use sha2::{Digest, Sha256};

use super::header::NAME_BYTES;
use super::manifest::{Manifest, ManifestTokenizer};
use super::resume::must_be_same;
use super::{MAX_MANIFEST_BYTES, TokenFileOptions, TokenizerRecord, hex, itemsize_for};
use crate::error::{Error, Result};

/// Keeps the manifest, in which the tokenizer is quoted once, below its own limit.
const MAX_TOKENIZER_BYTES: usize = MAX_MANIFEST_BYTES as usize / 4;

/// Checked options, as a writer keeps them.
pub(super) struct Plan {
    pub manifest: Manifest,
    pub token_byte_lengths: Vec<u32>,
    pub shard_tokens: u64,
    pub max_tokens: u64,
    pub conditions: Vec<(String, String)>,
}

impl Plan {
    pub fn new(options: TokenFileOptions, max_bytes: u64) -> Result<Self> {
        let max_tokens = max_bytes / u64::from(itemsize_for(options.tokenizer.vocab_size));
        check_options(&options, max_tokens)?;
        let tokenizer = options.tokenizer;
        let json = String::from_utf8(tokenizer.canonical_json)
            .map_err(|_| Error::Argument("canonical_json must be UTF-8".to_owned()))?;
        let manifest = Manifest {
            command: options.command,
            dataset: options.dataset,
            n_split_documents: 0,
            rslm_version: env!("CARGO_PKG_VERSION").to_owned(),
            shards: Vec::new(),
            sources: options.sources,
            tokenizer: ManifestTokenizer {
                end_of_text: tokenizer.end_of_text,
                json,
                name: tokenizer.name,
                sha256: tokenizer.sha256,
                special_tokens: tokenizer.special_tokens,
                vocab_size: tokenizer.vocab_size,
            },
        };
        let own = origin(&manifest).into_iter();
        let own = own.map(|(name, value)| (name.to_owned(), value));
        let mut conditions: Vec<_> = own.collect();
        conditions.push(("shard_tokens".into(), options.shard_tokens.to_string()));
        conditions.extend(options.conditions);
        Ok(Self {
            manifest,
            token_byte_lengths: tokenizer.token_byte_lengths,
            shard_tokens: options.shard_tokens,
            max_tokens,
            conditions,
        })
    }
}

/// What the manifest says of where the tokens come from, by the names users know.
fn origin(manifest: &Manifest) -> [(&'static str, String); 6] {
    let tokenizer = &manifest.tokenizer;
    let end_of_text = tokenizer
        .end_of_text
        .map_or("none".into(), |id| id.to_string());
    [
        ("the version of rslm", manifest.rslm_version.clone()),
        ("the tokenizer", hex(&tokenizer.sha256)),
        ("the name of the tokenizer", tokenizer.name.clone()),
        ("the id of end_of_text", end_of_text),
        ("dataset", manifest.dataset.clone()),
        ("command", manifest.command.clone()),
    ]
}

/// Refuses to call a folder complete that holds something else than was asked for.
pub(super) fn check_same_origin(folder: &Path, complete: &Manifest, ours: &Manifest) -> Result<()> {
    let sources = |manifest: &Manifest| {
        let named = manifest.sources.iter();
        let named = named.map(|(name, n_bytes)| format!("{name} of {n_bytes} bytes"));
        named.collect::<Vec<_>>().join(", ")
    };
    let pairs = origin(complete).into_iter().zip(origin(ours));
    let inputs = (("the input", sources(complete)), ("", sources(ours)));
    // The version is that of whoever finished it, and what is finished is not gone on with.
    match pairs
        .skip(1)
        .chain([inputs])
        .find(|((_, a), (_, b))| a != b)
    {
        Some(((what, begun), (_, given))) => Err(must_be_same(folder, what, &begun, &given)),
        None => Ok(()),
    }
}

fn check_options(options: &TokenFileOptions, max_tokens: u64) -> Result<()> {
    let tokenizer = &options.tokenizer;
    check_name("tokenizer name", &tokenizer.name)?;
    check_name("dataset", &options.dataset)?;
    check_tokenizer(tokenizer)?;
    if !(1..=max_tokens).contains(&options.shard_tokens) {
        return Err(Error::Argument(format!(
            "shard_tokens must be between 1 and {max_tokens}, got {}",
            options.shard_tokens
        )));
    }
    Ok(())
}

fn check_tokenizer(tokenizer: &TokenizerRecord) -> Result<()> {
    let vocab_size = tokenizer.vocab_size;
    let problem = if vocab_size > i32::MAX as u32 {
        format!("vocab_size must be below 2^31, got {vocab_size}")
    } else if tokenizer.token_byte_lengths.len() != vocab_size as usize {
        let found = tokenizer.token_byte_lengths.len();
        format!("token_byte_lengths must have vocab_size = {vocab_size} entries, got {found}")
    } else if tokenizer.end_of_text.is_some_and(|id| id >= vocab_size) {
        format!("end_of_text must be below vocab_size {vocab_size}")
    } else if tokenizer.canonical_json.len() > MAX_TOKENIZER_BYTES {
        let found = tokenizer.canonical_json.len();
        format!("canonical_json must have at most {MAX_TOKENIZER_BYTES} bytes, got {found}")
    } else if Sha256::digest(&tokenizer.canonical_json)[..] != tokenizer.sha256 {
        let found = hex(&tokenizer.sha256);
        format!("the tokenizer's sha256 must be that of its canonical_json, got {found}")
    } else {
        return Ok(());
    };
    Err(Error::Argument(problem))
}

fn check_name(what: &str, name: &str) -> Result<()> {
    if name.len() > NAME_BYTES || name.contains('\0') {
        return Err(Error::Argument(format!(
            "{what} must have at most {NAME_BYTES} bytes of UTF-8 and no NUL, got {name:?}"
        )));
    }
    Ok(())
}
