//! GPT-2's two files: `vocab.json` (token -> id) and `merges.txt` (one pair a line), with
//! each byte written as a printable character.

use std::path::Path;

use rustc_hash::FxHashMap;
use serde_json::Value;

use super::{parse_json, read_file};
use crate::bpe::tokenizer::{MergeBy, Parts};
use crate::bpe::train::bytes_by_stand_in;
use crate::error::{Error, Result};

/// The bytes that printable stand-in characters mean.
pub(super) struct StandIns(FxHashMap<char, u8>);

impl StandIns {
    pub(super) fn new() -> Self {
        let order = bytes_by_stand_in();
        let (kept, moved) = order.split_at(188);
        let kept = kept.iter().map(|&byte| (char::from(byte), byte));
        let moved = ('\u{100}'..).zip(moved.iter().copied());
        Self(kept.chain(moved).collect())
    }

    /// The bytes of a token; `None` where a character stands for no byte.
    pub(super) fn token_bytes(&self, token: &str) -> Option<Vec<u8>> {
        token.chars().map(|c| self.0.get(&c).copied()).collect()
    }
}

pub(super) fn parse(vocab_path: &Path, vocab_bytes: &[u8], merges_path: &Path) -> Result<Parts> {
    let stand_ins = StandIns::new();
    let value = parse_json(vocab_path, vocab_bytes)?;
    let entries = value
        .as_object()
        .ok_or_else(|| Error::format(vocab_path, "must be a JSON object from tokens to ids"))?;
    let vocab = parse_vocab(vocab_path, entries, &stand_ins)?;
    let merges = parse_merges_text(merges_path, &read_file(merges_path)?, &stand_ins)?;
    Ok(Parts {
        vocab,
        merges,
        special_tokens: Vec::new(),
        pattern: "gpt2".into(),
        merge_by: MergeBy::Merges,
    })
}

/// Token strings with ids. A token with a character that stands for no byte (a blank, as
/// in a reserved string) is taken as its UTF-8.
pub(super) fn parse_vocab(
    path: &Path,
    entries: &serde_json::Map<String, Value>,
    stand_ins: &StandIns,
) -> Result<Vec<(u32, Vec<u8>)>> {
    let parse = |(token, id): (&String, &Value)| {
        let id = id
            .as_u64()
            .and_then(|id| u32::try_from(id).ok())
            .ok_or_else(|| {
                Error::format(
                    path,
                    format!("the id of {token:?} must be a whole number, got {id}"),
                )
            })?;
        Ok((
            id,
            stand_ins
                .token_bytes(token)
                .unwrap_or_else(|| token.clone().into_bytes()),
        ))
    };
    entries.iter().map(parse).collect()
}

fn parse_merges_text(
    path: &Path,
    bytes: &[u8],
    stand_ins: &StandIns,
) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        Error::format(
            path,
            format!("must be UTF-8: invalid at byte {}", error.valid_up_to()),
        )
    })?;
    let mut merges = Vec::new();
    for (number, line) in text.lines().enumerate() {
        if line.is_empty() || (number == 0 && line.starts_with("#version")) {
            continue;
        }
        merges.push(parse_pair(line, stand_ins).ok_or_else(|| {
            Error::format(
                path,
                format!("line {} must be two tokens, got {line:?}", number + 1),
            )
        })?);
    }
    Ok(merges)
}

/// Two tokens with one blank between them.
pub(super) fn parse_pair(line: &str, stand_ins: &StandIns) -> Option<(Vec<u8>, Vec<u8>)> {
    let (left, right) = line.split_once(' ')?;
    let (left, right) = (stand_ins.token_bytes(left)?, stand_ins.token_bytes(right)?);
    (!left.is_empty() && !right.is_empty()).then_some((left, right))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stand_ins_are_those_of_gpt2() {
        let stand_ins = StandIns::new();
        assert_eq!(stand_ins.0.len(), 256);
        assert_eq!(stand_ins.token_bytes("Ġthe"), Some(b" the".to_vec()));
        assert_eq!(stand_ins.token_bytes("Ċ"), Some(b"\n".to_vec()));
        assert_eq!(stand_ins.token_bytes("\u{143}"), Some(vec![0xAD]));
        assert_eq!(stand_ins.token_bytes("a b"), None);
    }
}
