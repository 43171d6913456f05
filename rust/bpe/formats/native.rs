//! Our own file, in the canonical form that is hashed: ASCII JSON, sorted keys, no
//! blanks, byte strings in base64.

use std::fmt::Write as _;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use super::canonical;
use crate::bpe::tokenizer::{MergeBy, Parts, Tokenizer};
use crate::error::{Error, Result};
use crate::pretokenize::UNICODE_VERSION;

pub(super) const FORMAT: &str = "rslm-tokenizer";
pub(super) const VERSION: u64 = 1;

const MERGE_BY: [MergeBy; 3] = [MergeBy::Merges, MergeBy::Ids, MergeBy::TokensThenMerges];

fn name_of(merge_by: MergeBy) -> &'static str {
    match merge_by {
        MergeBy::Merges => "merges",
        MergeBy::Ids => "ids",
        MergeBy::TokensThenMerges => "tokens_then_merges",
    }
}

/// The rule of merging that has a name.
pub(super) fn merge_by_of(name: &str) -> Option<MergeBy> {
    MERGE_BY
        .into_iter()
        .find(|&merge_by| name_of(merge_by) == name)
}

/// The canonical JSON of a tokenizer.
///
/// Written in one go: a JSON value for each id would take ten times the memory.
pub fn to_canonical_json(tokenizer: &Tokenizer) -> Vec<u8> {
    let vocab = tokenizer.vocab();
    let merge_by = tokenizer.merge_by();
    let name = name_of(merge_by);
    // Merging by ids needs no list; the one that could be derived is not unique.
    let merges = match merge_by {
        MergeBy::Ids => &[],
        _ => tokenizer.merges(),
    };
    let specials: serde_json::Map<String, Value> = tokenizer
        .special_tokens()
        .map(|(text, id)| (text.to_owned(), json!(id)))
        .collect();
    let head = format!(r#"{{"format":"{FORMAT}","merge_by":"{name}","merges":["#);
    // A token takes four letters for three bytes begun, and three or so around them.
    let mut out = Vec::with_capacity(48 * merges.len() + 16 * vocab.len() + (1 << 12));
    out.extend_from_slice(head.as_bytes());
    for (rank, merge) in merges.iter().enumerate() {
        out.extend_from_slice(if rank == 0 { b"[" } else { b",[" });
        push_token(&mut out, vocab.get(merge.left));
        out.push(b',');
        push_token(&mut out, vocab.get(merge.right));
        out.push(b']');
    }
    let rest = json!({
        "pattern": tokenizer.pattern().as_str(),
        "special_tokens": specials,
        "unicode_version": UNICODE_VERSION,
        "version": VERSION,
    });
    let rest = to_ascii(&rest.to_string());
    out.extend_from_slice(b"],");
    out.extend_from_slice(&rest.as_bytes()[1..rest.len() - 1]);
    out.extend_from_slice(br#","vocab":["#);
    for id in 0..vocab.len() as u32 {
        if id > 0 {
            out.push(b',');
        }
        push_token(&mut out, vocab.get(id));
    }
    out.extend_from_slice(b"]}");
    out
}

fn push_token(out: &mut Vec<u8>, token_bytes: Option<&[u8]>) {
    match token_bytes {
        Some(token_bytes) => canonical::push_token(out, token_bytes),
        None => out.extend_from_slice(b"null"),
    }
}

/// Escapes what is not ASCII, which JSON holds in strings only.
fn to_ascii(text: &str) -> String {
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
    out
}

pub(super) fn parse(path: &Path, value: &Value) -> Result<Parts> {
    let reader = Reader { path, value };
    reader.expect("format", &json!(FORMAT))?;
    reader.expect("version", &json!(VERSION))?;
    reader.expect("unicode_version", &json!(UNICODE_VERSION))?;
    let name = reader.text("merge_by")?;
    let Some(merge_by) = merge_by_of(name) else {
        return Err(reader.error(format!(
            "merge_by must be merges, ids or tokens_then_merges, got {name:?}"
        )));
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
        let found: String = found.to_string().chars().take(80).collect();
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
