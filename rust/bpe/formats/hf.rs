//! Hugging Face `tokenizer.json`, as far as it is byte-level BPE.
//!
//! Whatever would make our ids differ from theirs (a normalizer, a prefix space, another
//! pre-tokenizer, dropout) is refused by name. Post-processors, truncation and padding are
//! ignored: they act around the tokens of a text, not in it, and we never add any.

use std::fmt::Write as _;
use std::path::Path;

use rustc_hash::FxHashMap;
use serde_json::{Value, json};

use super::check_special_length;
use super::gpt2::{StandIns, parse_pair, parse_vocab, token_texts, write_entries};
use crate::bpe::Merge;
use crate::bpe::tokenizer::{MergeBy, Parts, Tokenizer};
use crate::error::{Error, Result};
use crate::pretokenize::{LLAMA3_EXPRESSION, Pattern, QWEN2_EXPRESSION, Segment, SpecialTokens};

pub(super) fn parse(path: &Path, value: &Value) -> Result<Parts> {
    let refuse = |reason: String| Error::format(path, reason);
    let model = &value["model"];
    check_model(model).map_err(refuse)?;
    check_normalizer(&value["normalizer"]).map_err(refuse)?;
    let pattern = pattern_of(&value["pre_tokenizer"]).map_err(refuse)?;
    let added = parse_added(&value["added_tokens"]).map_err(refuse)?;
    let by_id: FxHashMap<u32, &str> = added.iter().map(|t| (t.id, t.content.as_str())).collect();
    let stand_ins = StandIns::new();
    let entries = model["vocab"].as_object();
    let entries = entries.ok_or_else(|| refuse("model.vocab must be an object".into()))?;
    let mut vocab = parse_vocab(path, entries, &stand_ins, |token, id| {
        by_id.get(&id) == Some(&token)
    })?;
    let merges = parse_merges(&model["merges"], &stand_ins).map_err(refuse)?;
    check_ids(&added, entries).map_err(refuse)?;
    add_tokens(&added, &mut vocab).map_err(refuse)?;
    check_order(&added).map_err(refuse)?;
    let special_tokens = added.into_iter().map(|t| (t.content, Some(t.id)));
    Ok(Parts {
        vocab,
        merges,
        special_tokens: special_tokens.collect(),
        pattern,
        merge_by: if model["ignore_merges"] == true {
            MergeBy::TokensThenMerges
        } else {
            MergeBy::Merges
        },
    })
}

type Refusal<T> = std::result::Result<T, String>;

/// The type of a step, or what stands in its place, shortened.
fn kind(value: &Value) -> String {
    let text = value["type"]
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned);
    text.chars().take(80).collect()
}

fn is_unset(value: &Value) -> bool {
    matches!(value, Value::Null | Value::Bool(false)) || value == "" || value == 0.0
}

fn check_model(model: &Value) -> Refusal<()> {
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
    ] {
        if !is_unset(&model[option]) {
            return Err(format!(
                "model.{option} must be off, got {}",
                kind(&model[option])
            ));
        }
    }
    let whole = &model["ignore_merges"];
    if !is_unset(whole) && *whole != true {
        return Err(format!(
            "model.ignore_merges must be true or false, got {}",
            kind(whole)
        ));
    }
    Ok(())
}

fn check_normalizer(normalizer: &Value) -> Refusal<()> {
    let steps = normalizer["normalizers"].as_array().map(Vec::as_slice);
    match (normalizer, steps) {
        (Value::Null, _) => Ok(()),
        (_, Some(steps)) if kind(normalizer) == "Sequence" => {
            steps.iter().try_for_each(check_normalizer_step)
        }
        _ => check_normalizer_step(normalizer),
    }
}

fn check_normalizer_step(step: &Value) -> Refusal<()> {
    Err(format!(
        "the normalizer must be absent, as it changes the text; got {}",
        kind(step)
    ))
}

/// The pattern of `ByteLevel` alone, or of `Split` followed by `ByteLevel`.
fn pattern_of(pre_tokenizer: &Value) -> Refusal<String> {
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
            "the pre_tokenizer must be ByteLevel without prefix space, or one Split and \
             ByteLevel(use_regex=false); got {}",
            steps
                .iter()
                .take(8)
                .map(kind)
                .collect::<Vec<_>>()
                .join(", ")
        )),
    }
}

fn split_pattern(split: &Value) -> Refusal<String> {
    let refuse = || {
        Err(format!(
            "Split must be a Regex with behavior Isolated, got {}",
            split.to_string().chars().take(400).collect::<String>()
        ))
    };
    let Some(expression) = split["pattern"]["Regex"].as_str() else {
        return refuse();
    };
    let invert = split["invert"].as_bool().unwrap_or(false);
    let keeps_text = match (split["behavior"].as_str(), invert) {
        (Some("Isolated"), false) => true,
        // This keeps the matches alone. What no match covers is lost, and only of the
        // patterns that we know it is known that they leave nothing.
        (Some("Removed"), true) => {
            Pattern::new(expression).is_ok_and(|pattern| pattern.as_str() != expression)
        }
        _ => false,
    };
    if keeps_text {
        Ok(expression.to_owned())
    } else {
        refuse()
    }
}

type MergeBytes = Vec<(Vec<u8>, Vec<u8>)>;

/// `["a b", ...]` as written until 0.19, or `[["a", "b"], ...]` since.
fn parse_merges(merges: &Value, stand_ins: &StandIns) -> Refusal<MergeBytes> {
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

/// A reserved string.
struct Added {
    content: String,
    id: u32,
    /// Found after all others, in what they leave of the text.
    normalized: bool,
}

fn parse_added(added: &Value) -> Refusal<Vec<Added>> {
    let empty = Vec::new();
    let parse = |token: &Value| {
        let content = token["content"].as_str();
        let id = token["id"].as_u64().and_then(|id| u32::try_from(id).ok());
        let (Some(content), Some(id)) = (content, id) else {
            return Err(format!(
                "an added token must have content and id, got {}",
                token.to_string().chars().take(200).collect::<String>()
            ));
        };
        check_special_length(content)?;
        for flag in ["lstrip", "rstrip", "single_word"] {
            if !is_unset(&token[flag]) {
                return Err(format!("added token {content:?} must not set {flag}"));
            }
        }
        Ok(Added {
            content: content.to_owned(),
            id,
            normalized: token["normalized"] == true,
        })
    };
    let added = added.as_array().unwrap_or(&empty);
    added.iter().map(parse).collect()
}

/// Their library numbers an added token that the vocabulary does not hold itself, whatever
/// id the file says; a file of which it would make something else is refused.
fn check_ids(added: &[Added], entries: &serde_json::Map<String, Value>) -> Refusal<()> {
    let size = entries.len() as u64;
    let mut next = size;
    for token in added {
        let expected = entries
            .get(&token.content)
            .and_then(Value::as_u64)
            .unwrap_or(next);
        if u64::from(token.id) != expected {
            return Err(format!(
                "added token {:?} must have the id {expected} that follows from the \
                 vocabulary and the tokens before it, got {}",
                token.content, token.id
            ));
        }
        next = next.max(expected + 1);
    }
    Ok(())
}

/// Adds the reserved strings to the vocabulary; an id that it holds must agree.
fn add_tokens(added: &[Added], vocab: &mut Vec<(u32, Vec<u8>)>) -> Refusal<()> {
    let place: FxHashMap<u32, usize> = vocab.iter().enumerate().map(|(i, e)| (e.0, i)).collect();
    for Added { content, id, .. } in added {
        match place.get(id) {
            Some(&known) if vocab[known].1 == content.as_bytes() => {}
            Some(_) => {
                return Err(format!(
                    "added token {content:?} must have its own id, got {id}"
                ));
            }
            None => vocab.push((*id, content.as_bytes().to_vec())),
        }
    }
    Ok(())
}

/// Tokens that are `normalized` are looked for in what the others leave of a text, while we
/// look for all at once. Both find the same unless one of the first begins before one of
/// the others and reaches into it, or holds it.
fn check_order(added: &[Added]) -> Refusal<()> {
    let texts = |normalized: bool| -> Vec<String> {
        let chosen = added.iter().filter(|t| t.normalized == normalized);
        chosen.map(|token| token.content.clone()).collect()
    };
    let (late, mut early) = (texts(true), texts(false));
    let finder = SpecialTokens::new(&early).map_err(|error| error.to_string())?;
    early.sort_unstable();
    let reaches_into = |token: &str| {
        (1..token.len()).any(|start| {
            let tail = &token.as_bytes()[start..];
            let after = early.partition_point(|other| other.as_bytes() < tail);
            early
                .get(after)
                .is_some_and(|other| other.as_bytes().starts_with(tail))
        })
    };
    for token in late {
        let mut holds = false;
        finder
            .split(token.as_bytes(), |segment| {
                holds |= matches!(segment, Segment::Special(_));
                Ok(())
            })
            .map_err(|error| error.to_string())?;
        if holds || reaches_into(&token) {
            return Err(format!(
                "added token {token:?} must not overlap with one that is not normalized"
            ));
        }
    }
    Ok(())
}

/// The published expression of a pattern, in a spelling that their engine (Oniguruma) reads
/// as ours does. There `{1,3}+` is not possessive, and `$` matches before a line end.
fn expression_of(pattern: &Pattern) -> &str {
    match pattern.as_str() {
        "cl100k" => {
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+\z|\s*[\r\n]|\s+(?!\S)|\s"
        }
        "cl100k_2023" => {
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        }
        "o200k" => {
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        }
        "llama3" => LLAMA3_EXPRESSION,
        "qwen2" => QWEN2_EXPRESSION,
        expression => expression,
    }
}

fn pre_tokenizer(pattern: &Pattern) -> Value {
    let byte_level = |use_regex: bool| {
        json!({
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
            "use_regex": use_regex,
        })
    };
    if pattern.as_str() == "gpt2" {
        return byte_level(true);
    }
    let split = json!({
        "type": "Split", "pattern": {"Regex": expression_of(pattern)},
        "behavior": "Isolated", "invert": false,
    });
    json!({"type": "Sequence", "pretokenizers": [split, byte_level(false)]})
}

/// The merges, and whether pretokens that are tokens must be taken whole.
pub(super) fn merges_of(tokenizer: &Tokenizer) -> (Vec<Merge>, bool) {
    match tokenizer.merge_by() {
        MergeBy::Merges => (tokenizer.merges().to_vec(), false),
        MergeBy::TokensThenMerges => (tokenizer.merges().to_vec(), true),
        MergeBy::Ids if tokenizer.merges_reach_every_token() => {
            (tokenizer.merges().to_vec(), false)
        }
        MergeBy::Ids => (tokenizer.mergeable_pairs(), true),
    }
}

/// The contents of `tokenizer.json`.
///
/// Special tokens are in the vocabulary as well, which pins ids that leave holes.
///
/// # Errors
/// `Argument` where two tokens would be written alike.
pub(super) fn write(tokenizer: &Tokenizer) -> Result<Vec<u8>> {
    let stand_ins = StandIns::new();
    let texts = token_texts(tokenizer, &stand_ins)?;
    let (merges, ignore_merges) = merges_of(tokenizer);
    let mut specials: Vec<_> = tokenizer.special_tokens().collect();
    specials.sort_unstable_by_key(|&(_, id)| id);
    let added: Vec<Value> = specials
        .into_iter()
        .map(|(content, id)| {
            json!({
                "id": id, "content": content, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true,
            })
        })
        .collect();
    let decoder = json!({
        "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true,
    });
    let mut out =
        String::from("{\n\"version\": \"1.0\",\n\"truncation\": null,\n\"padding\": null");
    for (key, value) in [
        ("added_tokens", Value::Array(added)),
        ("normalizer", Value::Null),
        ("pre_tokenizer", pre_tokenizer(tokenizer.pattern())),
        ("post_processor", Value::Null),
        ("decoder", decoder),
    ] {
        write!(out, ",\n\"{key}\": {value}").expect("a string grows");
    }
    write!(
        out,
        ",\n\"model\": {{\"type\": \"BPE\", \"dropout\": null, \"unk_token\": null, \
         \"continuing_subword_prefix\": null, \"end_of_word_suffix\": null, \"fuse_unk\": false, \
         \"byte_fallback\": false, \"ignore_merges\": {ignore_merges},\n\"vocab\": {{"
    )
    .expect("a string grows");
    write_entries(&mut out, &texts);
    out.push_str("},\n\"merges\": [");
    let text = |id: u32| Value::from(stand_ins.token_text(tokenizer.vocab().bytes(id)));
    for (rank, merge) in merges.iter().enumerate() {
        let separator = if rank == 0 { "" } else { ", " };
        write!(
            out,
            "{separator}[{}, {}]",
            text(merge.left),
            text(merge.right)
        )
        .expect("a string grows");
    }
    out.push_str("]}\n}\n");
    Ok(out.into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_expression_written_is_read_as_its_pattern() {
        for name in ["cl100k", "cl100k_2023", "o200k"] {
            let pattern = Pattern::new(name).expect("a name");
            let read = Pattern::new(expression_of(&pattern)).expect("an expression");
            assert_eq!(read.as_str(), name);
        }
    }

    #[test]
    fn normalized_tokens_must_not_reach_into_others() {
        let added = |content: &str, normalized| Added {
            content: content.into(),
            id: 0,
            normalized,
        };
        for (late, fine) in [
            ("<b>", true),
            ("<a><b>", false),
            ("x<", false),
            ("a>", true),
        ] {
            let tokens = [added("<a>", false), added(late, true)];
            assert_eq!(check_order(&tokens).is_ok(), fine, "{late}");
        }
    }
}
