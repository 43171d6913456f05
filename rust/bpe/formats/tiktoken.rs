//! tiktoken's files: a line for each token, its bytes in base64 and its rank.

use std::fmt::Write as _;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rustc_hash::FxHashSet;

use crate::bpe::tokenizer::{MAX_TOKEN_BYTES, MergeBy, Parts, Tokenizer};
use crate::error::{Error, Result};

pub(super) fn looks_like(bytes: &[u8]) -> bool {
    bytes
        .split(|&byte| byte == b'\n')
        .next()
        .is_some_and(|line| parse_line(line).is_some())
}

fn parse_line(line: &[u8]) -> Option<(u32, Vec<u8>)> {
    let (token, rank) = std::str::from_utf8(line).ok()?.trim_end().split_once(' ')?;
    let token_bytes = BASE64.decode(token).ok()?;
    let fits = !token_bytes.is_empty() && token_bytes.len() <= MAX_TOKEN_BYTES;
    fits.then_some((rank.parse().ok()?, token_bytes))
}

pub(super) fn parse(path: &Path, bytes: &[u8], pattern: Option<&str>) -> Result<Parts> {
    let pattern = pattern.ok_or_else(|| {
        Error::Argument(format!(
            "pattern must be given for {}: a .tiktoken file does not say how text is split \
             (gpt2, cl100k, o200k or a regular expression)",
            path.display()
        ))
    })?;
    let mut vocab = Vec::new();
    for (number, line) in bytes.split(|&byte| byte == b'\n').enumerate() {
        if line.trim_ascii().is_empty() {
            continue;
        }
        vocab.push(parse_line(line).ok_or_else(|| {
            Error::format(
                path,
                format!(
                    "line {} must be a token in base64 (1 to {MAX_TOKEN_BYTES} bytes), a blank \
                     and its rank",
                    number + 1
                ),
            )
        })?);
    }
    Ok(Parts {
        vocab,
        merges: Vec::new(),
        special_tokens: Vec::new(),
        pattern: pattern.to_owned(),
        merge_by: MergeBy::Ids,
    })
}

/// The lines of every token that is not special, by rank, which is its id.
///
/// # Errors
/// `Argument` where merging by ids would not do what the tokenizer does.
pub(super) fn write(tokenizer: &Tokenizer) -> Result<Vec<u8>> {
    let special: FxHashSet<u32> = tokenizer.special_tokens().map(|(_, id)| id).collect();
    let ordinary: Vec<(u32, Vec<u8>)> = tokenizer
        .vocab()
        .iter()
        .filter(|(id, token_bytes)| token_bytes.len() == 1 || !special.contains(id))
        .map(|(id, token_bytes)| (id, token_bytes.to_vec()))
        .collect();
    if tokenizer.merge_by() != MergeBy::Ids {
        check_ranks(tokenizer, &ordinary)?;
    }
    let mut text = String::new();
    for (id, token_bytes) in ordinary {
        writeln!(text, "{} {id}", BASE64.encode(token_bytes)).expect("a string grows");
    }
    Ok(text.into_bytes())
}

/// The merges are what ranks give if those that build each token from smaller ids are the
/// very list ([`Tokenizer::merges_reach_every_token`] says why), or if they are every
/// mergeable pair, which is what converters from tiktoken write.
fn check_ranks(tokenizer: &Tokenizer, ordinary: &[(u32, Vec<u8>)]) -> Result<()> {
    let refuse = |reason: String| {
        Err(Error::Argument(format!(
            "ids must be the ranks of the merges to be saved as tiktoken, {reason}"
        )))
    };
    let mut seen = FxHashSet::default();
    if let Some((id, _)) = ordinary
        .iter()
        .find(|(_, token_bytes)| !seen.insert(token_bytes))
    {
        return refuse(format!("but token {id} has the bytes of another"));
    }
    let by_ids = Tokenizer::new(Parts {
        vocab: ordinary.to_vec(),
        merges: Vec::new(),
        special_tokens: Vec::new(),
        pattern: "gpt2".into(),
        merge_by: MergeBy::Ids,
    })?;
    let merges = tokenizer.merges();
    let whole = tokenizer.merge_by() == MergeBy::TokensThenMerges;
    if merges == by_ids.merges() && by_ids.merges_reach_every_token() {
        return Ok(());
    }
    if whole && merges.is_sorted_by_key(|merge| merge.new) {
        let mut sorted = merges.to_vec();
        sorted.sort_unstable_by_key(|pair| (pair.new, pair.left));
        if sorted == by_ids.mergeable_pairs() {
            return Ok(());
        }
    }
    let differing = merges.iter().zip(by_ids.merges()).find(|(a, b)| a != b);
    match differing {
        Some((merge, _)) => refuse(format!(
            "but the merge of token {} is none that smaller ids give at its place",
            merge.new
        )),
        None => refuse(format!(
            "but {} merges do not make every token of several bytes",
            merges.len()
        )),
    }
}
