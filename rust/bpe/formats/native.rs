//! Our own file, in the canonical form that is hashed: ASCII JSON, sorted keys, no
//! blanks, byte strings in base64.

use std::fmt::Write as _;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use super::parse_json;
use crate::bpe::tokenizer::{MergeBy, Parts, Tokenizer};
use crate::error::{Error, Result};
use crate::pretokenize::UNICODE_VERSION;

pub(super) const FORMAT: &str = "rslm-tokenizer";
const VERSION: u64 = 1;

/// The canonical JSON of a tokenizer.
pub fn to_canonical_json(tokenizer: &Tokenizer) -> Vec<u8> {
    let vocab = tokenizer.vocab();
    let encode = |id: u32| vocab.get(id).map(|token_bytes| BASE64.encode(token_bytes));
    let by_ids = tokenizer.merge_by() == MergeBy::Ids;
    // Merging by ids needs no list; the one that could be derived is not unique.
    let listed = if by_ids { &[] } else { tokenizer.merges() };
    let merges: Vec<_> = listed
        .iter()
        .map(|m| json!([encode(m.left), encode(m.right)]))
        .collect();
    let specials: serde_json::Map<String, Value> = tokenizer
        .special_tokens()
        .map(|(text, id)| (text.to_owned(), json!(id)))
        .collect();
    let value = json!({
        "format": FORMAT,
        "merge_by": if by_ids { "ids" } else { "merges" },
        "merges": merges,
        "pattern": tokenizer.pattern().as_str(),
        "special_tokens": specials,
        "unicode_version": UNICODE_VERSION,
        "version": VERSION,
        "vocab": (0..vocab.len() as u32).map(encode).collect::<Vec<_>>(),
    });
    to_ascii(&value.to_string())
}

/// Escapes what is not ASCII, which JSON holds in strings only.
fn to_ascii(text: &str) -> Vec<u8> {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_ascii() {
            out.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(out, "\\u{unit:04x}").expect("a string grows");
            }
        }
    }
    out.into_bytes()
}

pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<Parts> {
    let value = parse_json(path, bytes)?;
    let reader = Reader {
        path,
        value: &value,
    };
    reader.expect("format", &json!(FORMAT))?;
    reader.expect("version", &json!(VERSION))?;
    reader.expect("unicode_version", &json!(UNICODE_VERSION))?;
    let merge_by = match reader.text("merge_by")? {
        "merges" => MergeBy::Merges,
        "ids" => MergeBy::Ids,
        other => return Err(reader.error(format!("merge_by must be merges or ids, got {other:?}"))),
    };
    let mut vocab = Vec::new();
    for (id, token) in reader.list("vocab")?.iter().enumerate() {
        if !token.is_null() {
            vocab.push((id as u32, reader.token_bytes(token, "vocab", id)?));
        }
    }
    let mut merges = Vec::new();
    for (rank, merge) in reader.list("merges")?.iter().enumerate() {
        let Some([left, right]) = merge.as_array().map(Vec::as_slice) else {
            return Err(reader.error(format!("merges[{rank}] must be a pair of tokens")));
        };
        merges.push((
            reader.token_bytes(left, "merges", rank)?,
            reader.token_bytes(right, "merges", rank)?,
        ));
    }
    let special_tokens = reader.special_tokens(&vocab)?;
    Ok(Parts {
        vocab,
        merges,
        special_tokens,
        pattern: reader.text("pattern")?.to_owned(),
        merge_by,
    })
}

struct Reader<'a> {
    path: &'a Path,
    value: &'a Value,
}

impl<'a> Reader<'a> {
    fn error(&self, reason: String) -> Error {
        Error::format(self.path, reason)
    }

    fn get(&self, key: &str) -> Result<&'a Value> {
        self.value
            .get(key)
            .ok_or_else(|| self.error(format!("the key {key:?} must be present")))
    }

    fn expect(&self, key: &str, expected: &Value) -> Result<()> {
        let found = self.get(key)?;
        if found == expected {
            return Ok(());
        }
        Err(self.error(format!("{key} must be {expected}, got {found}")))
    }

    fn text(&self, key: &str) -> Result<&'a str> {
        self.get(key)?
            .as_str()
            .ok_or_else(|| self.error(format!("{key} must be a string")))
    }

    fn list(&self, key: &str) -> Result<&'a [Value]> {
        let list = self.get(key)?.as_array();
        list.map(Vec::as_slice)
            .ok_or_else(|| self.error(format!("{key} must be a list")))
    }

    fn token_bytes(&self, token: &Value, key: &str, index: usize) -> Result<Vec<u8>> {
        let decoded = token.as_str().and_then(|text| BASE64.decode(text).ok());
        decoded.ok_or_else(|| self.error(format!("{key}[{index}] must be bytes in base64")))
    }

    /// The special tokens in order of id; each must be the vocabulary's token of its id.
    fn special_tokens(&self, vocab: &[(u32, Vec<u8>)]) -> Result<Vec<(String, Option<u32>)>> {
        let found = self.get("special_tokens")?.as_object();
        let found = found.ok_or_else(|| self.error("special_tokens must be an object".into()))?;
        let mut specials = Vec::new();
        for (text, id) in found {
            let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
            let token = id.and_then(|id| vocab.binary_search_by_key(&id, |entry| entry.0).ok());
            match token.map(|at| &vocab[at]) {
                Some((id, token_bytes)) if token_bytes == text.as_bytes() => {
                    specials.push((*id, text.clone()));
                }
                _ => {
                    return Err(self.error(format!(
                        "special_tokens[{text:?}] must be the id of that token in vocab"
                    )));
                }
            }
        }
        specials.sort_unstable();
        Ok(specials
            .into_iter()
            .map(|(id, text)| (text, Some(id)))
            .collect())
    }
}
