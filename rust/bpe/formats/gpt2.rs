//! GPT-2's two files: `vocab.json` (token -> id) and `merges.txt` (one pair a line), with
//! each byte written as a printable character.

use std::fmt::Write as _;
use std::path::Path;

use rustc_hash::{FxHashMap, FxHashSet};
use serde_json::Value;

use super::read_file;
use crate::bpe::Merge;
use crate::bpe::tokenizer::{MergeBy, Parts, Tokenizer};
use crate::bpe::train::bytes_by_stand_in;
use crate::error::{Error, Result};

/// The printable characters that stand for bytes in byte-level files, both ways.
pub(super) struct StandIns {
    bytes: FxHashMap<char, u8>,
    chars: [char; 256],
}

impl StandIns {
    pub(super) fn new() -> Self {
        let order = bytes_by_stand_in();
        let (kept, moved) = order.split_at(188);
        let kept = kept.iter().map(|&byte| (char::from(byte), byte));
        let moved = ('\u{100}'..).zip(moved.iter().copied());
        let bytes: FxHashMap<char, u8> = kept.chain(moved).collect();
        let mut chars = ['\0'; 256];
        for (&stand_in, &byte) in &bytes {
            chars[byte as usize] = stand_in;
        }
        Self { bytes, chars }
    }

    /// The bytes of a token; `None` where a character stands for no byte.
    pub(super) fn token_bytes(&self, token: &str) -> Option<Vec<u8>> {
        token.chars().map(|c| self.bytes.get(&c).copied()).collect()
    }

    /// A token as printable characters.
    pub(super) fn token_text(&self, token_bytes: &[u8]) -> String {
        let chars = token_bytes.iter().map(|&byte| self.chars[byte as usize]);
        chars.collect()
    }
}

pub(super) fn parse(
    vocab_path: &Path,
    vocab: &Value,
    merges_path: &Path,
    special_tokens: &[(String, Option<u32>)],
) -> Result<Parts> {
    let stand_ins = StandIns::new();
    let entries = vocab
        .as_object()
        .ok_or_else(|| Error::format(vocab_path, "must be a JSON object from tokens to ids"))?;
    let specials: FxHashSet<&str> = special_tokens
        .iter()
        .map(|(text, _)| text.as_str())
        .collect();
    // The string of one stand-in is that byte, even where it is a special token as well.
    let is_special = |token: &str, _| token.chars().nth(1).is_some() && specials.contains(token);
    let vocab = parse_vocab(vocab_path, entries, &stand_ins, is_special)?;
    let merges = parse_merges_text(merges_path, &read_file(merges_path)?, &stand_ins)?;
    Ok(Parts {
        vocab,
        merges,
        special_tokens: Vec::new(),
        pattern: "gpt2".into(),
        merge_by: MergeBy::Merges,
    })
}

/// Token strings with ids, from a JSON object.
pub(super) fn parse_vocab(
    path: &Path,
    entries: &serde_json::Map<String, Value>,
    stand_ins: &StandIns,
    is_special: impl Fn(&str, u32) -> bool,
) -> Result<Vec<(u32, Vec<u8>)>> {
    let parse = |(token, id): (&'_ String, &Value)| {
        let number = id.as_u64().and_then(|id| u32::try_from(id).ok());
        number.ok_or_else(|| {
            let id: String = id.to_string().chars().take(80).collect();
            Error::format(
                path,
                format!("the id of {token:?} must be a whole number, got {id}"),
            )
        })
    };
    let ids = entries.iter().map(parse).collect::<Result<Vec<u32>>>()?;
    let listed = ids.into_iter().zip(entries.keys().map(String::as_str));
    decode_vocab(path, listed, stand_ins, is_special)
}

/// Ids and bytes of tokens in printable characters. What `is_special` accepts is taken as
/// it is written, as is a token with a character that stands for no byte, unless another
/// token has its bytes: then merges could not tell them apart.
pub(super) fn decode_vocab<'t>(
    path: &Path,
    listed: impl Iterator<Item = (u32, &'t str)>,
    stand_ins: &StandIns,
    is_special: impl Fn(&str, u32) -> bool,
) -> Result<Vec<(u32, Vec<u8>)>> {
    let mut vocab = Vec::new();
    let mut literal = Vec::new();
    for (id, token) in listed {
        let token_bytes = if is_special(token, id) {
            token.as_bytes().to_vec()
        } else {
            stand_ins.token_bytes(token).unwrap_or_else(|| {
                literal.push(vocab.len());
                token.as_bytes().to_vec()
            })
        };
        vocab.push((id, token_bytes));
    }
    check_literal(path, &vocab, &literal)?;
    Ok(vocab)
}

fn check_literal(path: &Path, vocab: &[(u32, Vec<u8>)], literal: &[usize]) -> Result<()> {
    if literal.is_empty() {
        return Ok(());
    }
    let places: FxHashSet<usize> = literal.iter().copied().collect();
    let others: FxHashSet<&[u8]> = (0..vocab.len())
        .filter(|place| !places.contains(place))
        .map(|place| vocab[place].1.as_slice())
        .collect();
    match literal
        .iter()
        .find(|&&at| others.contains(vocab[at].1.as_slice()))
    {
        None => Ok(()),
        Some(&at) => Err(Error::format(
            path,
            format!(
                "token {} must be written in byte-level characters, as another token has the \
                 same bytes; got \"{}\"",
                vocab[at].0,
                vocab[at].1.escape_ascii()
            ),
        )),
    }
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

/// Each token as byte-level files write it, `None` for a hole: ordinary tokens in
/// stand-ins, special ones as they are.
///
/// # Errors
/// `Argument` where two tokens would be written alike.
pub(super) fn token_texts(
    tokenizer: &Tokenizer,
    stand_ins: &StandIns,
) -> Result<Vec<Option<String>>> {
    let special: FxHashMap<u32, &str> = tokenizer.special_tokens().map(|(t, id)| (id, t)).collect();
    let mut seen = FxHashMap::default();
    let mut texts = vec![None; tokenizer.vocab().len()];
    for (id, token_bytes) in tokenizer.vocab().iter() {
        let text = match special.get(&id) {
            Some(&text) => text.to_owned(),
            None => stand_ins.token_text(token_bytes),
        };
        if let Some(other) = seen.insert(text.clone(), id) {
            return Err(Error::Argument(format!(
                "tokens must be written differently in a byte-level file, but {other} and {id} \
                 are both {text:?}"
            )));
        }
        texts[id as usize] = Some(text);
    }
    Ok(texts)
}

/// The merge list for a reader that knows nothing but such a list.
///
/// # Errors
/// `Argument` where no list gives the tokenizer's ids.
pub(super) fn plain_merges<'t>(tokenizer: &'t Tokenizer, format: &str) -> Result<&'t [Merge]> {
    if tokenizer.merge_by() == MergeBy::Merges || tokenizer.merges_reach_every_token() {
        return Ok(tokenizer.merges());
    }
    Err(Error::Argument(format!(
        "every token must follow from the merges to be saved as {format}, but this tokenizer \
         also takes pretokens whole; save it as rslm or hf"
    )))
}

/// The contents of `vocab.json` and `merges.txt`.
///
/// # Errors
/// `Argument` where the two files cannot say what the tokenizer does.
pub(super) fn write(tokenizer: &Tokenizer) -> Result<(Vec<u8>, Vec<u8>)> {
    let pattern = tokenizer.pattern().as_str();
    if pattern != "gpt2" {
        return Err(Error::Argument(format!(
            "pattern must be gpt2 to be saved as GPT-2's files, which carry none; got {pattern:?}"
        )));
    }
    let merges = plain_merges(tokenizer, "gpt2")?;
    let texts = token_texts(tokenizer, &StandIns::new())?;
    let text = |id: u32| texts[id as usize].as_deref().unwrap_or_default();
    let mut list = String::from("#version: 0.2\n");
    for merge in merges {
        writeln!(list, "{} {}", text(merge.left), text(merge.right)).expect("a string grows");
    }
    let mut vocab = String::from("{");
    write_entries(&mut vocab, &texts);
    vocab.push('}');
    Ok((vocab.into_bytes(), list.into_bytes()))
}

/// `"token": id` for every token, in order of id.
pub(super) fn write_entries(out: &mut String, texts: &[Option<String>]) {
    let mut separator = "";
    for (id, text) in texts.iter().enumerate() {
        if let Some(text) = text {
            let text = Value::String(text.clone());
            write!(out, "{separator}{text}: {id}").expect("a string grows");
            separator = ", ";
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stand_ins_are_those_of_gpt2() {
        let stand_ins = StandIns::new();
        assert_eq!(stand_ins.bytes.len(), 256);
        assert_eq!(stand_ins.token_bytes("Ġthe"), Some(b" the".to_vec()));
        assert_eq!(stand_ins.token_bytes("Ċ"), Some(b"\n".to_vec()));
        assert_eq!(stand_ins.token_bytes("\u{143}"), Some(vec![0xAD]));
        assert_eq!(stand_ins.token_bytes("a b"), None);
        let every_byte: Vec<u8> = (0..=255).collect();
        let text = stand_ins.token_text(&every_byte);
        assert_eq!(stand_ins.token_bytes(&text), Some(every_byte));
    }

    #[test]
    fn a_literal_token_must_not_hide_an_ordinary_one() {
        let parse = |text: &str| {
            let value: Value = serde_json::from_str(text).expect("JSON");
            let entries = value.as_object().expect("an object");
            parse_vocab(Path::new("v"), entries, &StandIns::new(), |_, _| false)
        };
        assert_eq!(
            parse(r#"{"a b": 1}"#).expect("alone"),
            [(1, b"a b".to_vec())]
        );
        assert!(parse(r#"{"a b": 1, "aĠb": 2}"#).is_err());
    }
}
