//! Hugging Face `tokenizer.json`, as far as it is byte-level BPE.
//!
//! Whatever would make our ids differ from theirs (a normalizer, a prefix space, another
//! pre-tokenizer, dropout) is refused by name. Post-processors are ignored: they add
//! tokens around a text, not in it.

use std::path::Path;

use rustc_hash::FxHashMap;
use serde_json::Value;

use super::gpt2::{StandIns, parse_pair, parse_vocab};
use super::parse_json;
use crate::bpe::tokenizer::{MergeBy, Parts};
use crate::error::{Error, Result};

pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<Parts> {
    let value = parse_json(path, bytes)?;
    let refuse = |reason: String| Error::format(path, reason);
    let model = &value["model"];
    check_model(model).map_err(refuse)?;
    if !value["normalizer"].is_null() {
        return Err(refuse(format!(
            "the normalizer must be absent, as it changes the text; got {}",
            kind(&value["normalizer"])
        )));
    }
    let pattern = pattern_of(&value["pre_tokenizer"]).map_err(refuse)?;
    let stand_ins = StandIns::new();
    let entries = model["vocab"].as_object();
    let entries = entries.ok_or_else(|| refuse("model.vocab must be an object".into()))?;
    let mut vocab = parse_vocab(path, entries, &stand_ins)?;
    let merges = parse_merges(&model["merges"], &stand_ins).map_err(refuse)?;
    let special_tokens = add_tokens(&value["added_tokens"], &mut vocab).map_err(refuse)?;
    Ok(Parts {
        vocab,
        merges,
        special_tokens,
        pattern,
        merge_by: MergeBy::Merges,
    })
}

fn kind(value: &Value) -> String {
    value["type"]
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

fn is_unset(value: &Value) -> bool {
    matches!(value, Value::Null | Value::Bool(false)) || value == "" || value == 0.0
}

fn check_model(model: &Value) -> std::result::Result<(), String> {
    let name = model["type"].as_str();
    if name.is_some_and(|name| name != "BPE") || model["merges"].is_null() {
        return Err(format!(
            "the model must be byte-level BPE, got {}",
            name.unwrap_or("no merges")
        ));
    }
    for option in [
        "dropout",
        "continuing_subword_prefix",
        "end_of_word_suffix",
        "byte_fallback",
        "ignore_merges",
    ] {
        if !is_unset(&model[option]) {
            return Err(format!("model.{option} must be off, got {}", model[option]));
        }
    }
    Ok(())
}

/// The pattern of `ByteLevel` alone, or of `Split` followed by `ByteLevel`.
fn pattern_of(pre_tokenizer: &Value) -> std::result::Result<String, String> {
    let steps = match pre_tokenizer["pretokenizers"].as_array() {
        Some(steps) if kind(pre_tokenizer) == "Sequence" => steps.as_slice(),
        _ => std::slice::from_ref(pre_tokenizer),
    };
    let byte_level = |step: &Value, use_regex: bool| {
        let regex = step["use_regex"].as_bool().unwrap_or(true);
        kind(step) == "ByteLevel" && is_unset(&step["add_prefix_space"]) && regex == use_regex
    };
    match steps {
        [step] if byte_level(step, true) => Ok("gpt2".into()),
        [split, step] if kind(split) == "Split" && byte_level(step, false) => split_pattern(split),
        _ => Err(format!(
            "the pre_tokenizer must be ByteLevel without prefix space, or Split and ByteLevel; got {}",
            steps.iter().map(kind).collect::<Vec<_>>().join(", ")
        )),
    }
}

fn split_pattern(split: &Value) -> std::result::Result<String, String> {
    let expression = split["pattern"]["Regex"].as_str();
    let plain = match (
        split["behavior"].as_str(),
        split["invert"].as_bool().unwrap_or(false),
    ) {
        (Some("Isolated"), false) => true,
        // "Removed" with invert keeps the matches; what no match covers would be lost.
        _ => false,
    };
    match expression {
        Some(expression) if plain => Ok(expression.to_owned()),
        _ => Err(format!(
            "Split must be a Regex with behavior Isolated, got {split}"
        )),
    }
}

type MergeBytes = Vec<(Vec<u8>, Vec<u8>)>;

/// `["a b", ...]` as written until 0.19, or `[["a", "b"], ...]` since.
fn parse_merges(merges: &Value, stand_ins: &StandIns) -> std::result::Result<MergeBytes, String> {
    let merges = merges.as_array().ok_or("model.merges must be a list")?;
    let parse = |(rank, merge): (usize, &Value)| {
        let pair = match merge {
            Value::String(line) => parse_pair(line, stand_ins),
            Value::Array(pair) => match pair.as_slice() {
                [Value::String(left), Value::String(right)] => stand_ins
                    .token_bytes(left)
                    .zip(stand_ins.token_bytes(right)),
                _ => None,
            },
            _ => None,
        };
        pair.ok_or_else(|| format!("model.merges[{rank}] must be a pair of byte-level tokens"))
    };
    merges.iter().enumerate().map(parse).collect()
}

/// Adds the reserved strings to the vocabulary; an id that it holds must agree.
fn add_tokens(
    added: &Value,
    vocab: &mut Vec<(u32, Vec<u8>)>,
) -> std::result::Result<Vec<(String, Option<u32>)>, String> {
    let mut specials = Vec::new();
    let empty = Vec::new();
    let place: FxHashMap<u32, usize> = vocab.iter().enumerate().map(|(i, e)| (e.0, i)).collect();
    for token in added.as_array().unwrap_or(&empty) {
        let content = token["content"].as_str();
        let id = token["id"].as_u64().and_then(|id| u32::try_from(id).ok());
        let (Some(content), Some(id)) = (content, id) else {
            return Err(format!(
                "an added token must have content and id, got {token}"
            ));
        };
        for flag in ["lstrip", "rstrip", "single_word"] {
            if !is_unset(&token[flag]) {
                return Err(format!("added token {content:?} must not set {flag}"));
            }
        }
        match place.get(&id) {
            Some(&known) if vocab[known].1 == content.as_bytes() => {}
            Some(_) => {
                return Err(format!(
                    "added token {content:?} must have its own id, got {id}"
                ));
            }
            None => vocab.push((id, content.as_bytes().to_vec())),
        }
        specials.push((content.to_owned(), Some(id)));
    }
    Ok(specials)
}
