//! What `manifest.json` holds: origin, tokenizer and the hashes of every shard.
//!
//! The text is JSON in UTF-8 with sorted keys, two blanks of indentation and a final
//! newline, so that both implementations write the same bytes. `manifest_sha256` is the
//! hash of the text with 64 zeros in its own place: any changed byte shows.

use std::path::Path;

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::header::{HEADER_BYTES, NPY_HEADER_BYTES, ShardHeader};
use super::{TokenFileSummary, hex, index_name, itemsize_for, shard_name};
use crate::error::{Error, Result};

const FORMAT: &str = "rslm token file";
const VERSION: u64 = 1;
/// Stands in the place of the manifest's own hash while that is computed.
const NO_HASH: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Everything the manifest says; the rest of its text follows from this.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Manifest {
    pub command: String,
    pub dataset: String,
    pub n_split_documents: u64,
    pub rslm_version: String,
    pub shards: Vec<ShardRecord>,
    pub sources: Vec<(String, u64)>,
    pub tokenizer: ManifestTokenizer,
}

/// The tokenizer as the manifest records it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ManifestTokenizer {
    pub end_of_text: Option<u32>,
    pub json: String,
    pub name: String,
    pub sha256: [u8; 32],
    pub special_tokens: Vec<(String, u32)>,
    pub vocab_size: u32,
}

/// One shard; file names and sizes follow from its place and counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardRecord {
    /// Tokens of its payload.
    pub n_tokens: u64,
    /// Entries of its index.
    pub n_documents: u64,
    /// Bytes of text that its tokens stand for.
    pub n_utf8_bytes: u64,
    /// SHA-256 of the payload.
    pub sha256: [u8; 32],
    /// SHA-256 of the whole index file.
    pub index_sha256: [u8; 32],
    /// CRC-32 of each block of the payload.
    pub crc32: Vec<u32>,
}

impl ShardRecord {
    /// Size of the shard's file: header and payload.
    pub(super) fn file_bytes(&self, itemsize: u8) -> u64 {
        self.n_tokens
            .saturating_mul(u64::from(itemsize))
            .saturating_add(HEADER_BYTES as u64)
    }

    /// Size of the index file: one offset more than there are documents.
    pub(super) fn index_bytes(&self) -> u64 {
        let offsets = self.n_documents.saturating_add(1);
        offsets
            .saturating_mul(4)
            .saturating_add(NPY_HEADER_BYTES as u64)
    }

    pub(super) fn to_json(&self, index: usize, itemsize: u8) -> Value {
        json!({
            "bytes": self.file_bytes(itemsize),
            "crc32": self.crc32,
            "file": shard_name(index),
            "index": {
                "bytes": self.index_bytes(),
                "file": index_name(index),
                "sha256": hex(&self.index_sha256),
            },
            "n_documents": self.n_documents,
            "n_tokens": self.n_tokens,
            "n_utf8_bytes": self.n_utf8_bytes,
            "sha256": hex(&self.sha256),
        })
    }

    pub(super) fn from_json(shard: &Value) -> std::result::Result<Self, &'static str> {
        Ok(Self {
            n_tokens: count(shard, "n_tokens")?,
            n_documents: count(shard, "n_documents")?,
            n_utf8_bytes: count(shard, "n_utf8_bytes")?,
            sha256: digest(shard, "sha256")?,
            index_sha256: digest(&shard["index"], "sha256")?,
            crc32: list(shard, "crc32", |crc| small(crc).ok_or("crc32"))?,
        })
    }
}

impl Manifest {
    /// Bytes per token.
    pub fn itemsize(&self) -> u8 {
        itemsize_for(self.tokenizer.vocab_size)
    }

    /// The header that shard `index` must have.
    pub fn shard_header(&self, index: usize) -> ShardHeader<'_> {
        let shard = &self.shards[index];
        let before = &self.shards[..index];
        ShardHeader {
            itemsize: self.itemsize(),
            n_tokens: shard.n_tokens,
            n_documents: shard.n_documents,
            n_utf8_bytes: shard.n_utf8_bytes,
            vocab_size: self.tokenizer.vocab_size,
            end_of_text: self.tokenizer.end_of_text,
            shard_index: index as u32,
            first_token: sum(before, |shard| shard.n_tokens),
            first_document: sum(before, |shard| shard.n_documents),
            tokenizer_sha256: self.tokenizer.sha256,
            payload_sha256: shard.sha256,
            index_sha256: shard.index_sha256,
            n_crc_blocks: shard.crc32.len() as u32,
            tokenizer_name: &self.tokenizer.name,
            dataset: &self.dataset,
        }
    }

    /// The totals over all shards.
    pub fn summary(&self) -> TokenFileSummary {
        TokenFileSummary {
            n_tokens: sum(&self.shards, |shard| shard.n_tokens),
            n_documents: sum(&self.shards, |shard| shard.n_documents),
            n_utf8_bytes: sum(&self.shards, |shard| shard.n_utf8_bytes),
            n_shards: self.shards.len() as u32,
            itemsize: self.itemsize(),
            fingerprint: self.fingerprint(),
            shards: self.shards.clone(),
        }
    }

    /// Identity of the content: moving, renaming or another origin does not change it.
    fn fingerprint(&self) -> String {
        let content = json!({
            "payload_sha256": self.shards.iter().map(|shard| hex(&shard.sha256)).collect::<Vec<_>>(),
            "policy": self.policy(),
            "tokenizer_sha256": hex(&self.tokenizer.sha256),
        });
        hex(&Sha256::digest(content.to_string()))
    }

    /// How documents follow each other in the stream.
    fn policy(&self) -> Value {
        let ends = if self.tokenizer.end_of_text.is_some() {
            "end_of_text"
        } else {
            "none"
        };
        json!({"documents": ends, "order": "source"})
    }

    /// The text of `manifest.json`.
    pub fn encode(&self) -> Vec<u8> {
        let mut text = self.to_text();
        let own_hash = hex(&Sha256::digest(&text));
        // No string holds the end of a line, so this is the key of the outermost object.
        let key = "\n  \"manifest_sha256\": \"";
        let start = text.find(key).expect("the key is there") + key.len();
        text.replace_range(start..start + NO_HASH.len(), &own_hash);
        text.into_bytes()
    }

    // Keys are listed in sorted order, so the text does not depend on how the map keeps them.
    fn to_text(&self) -> String {
        let totals = self.summary();
        let itemsize = self.itemsize();
        let shards = self
            .shards
            .iter()
            .enumerate()
            .map(|(i, shard)| shard.to_json(i, itemsize));
        let sources = self
            .sources
            .iter()
            .map(|(file, bytes)| json!({"bytes": bytes, "file": file}));
        let value = json!({
            "command": self.command,
            "dataset": self.dataset,
            "dtype": if itemsize == 2 { "uint16" } else { "uint32" },
            "fingerprint": totals.fingerprint,
            "format": FORMAT,
            "manifest_sha256": NO_HASH,
            "n_documents": totals.n_documents,
            "n_shards": totals.n_shards,
            "n_split_documents": self.n_split_documents,
            "n_tokens": totals.n_tokens,
            "n_utf8_bytes": totals.n_utf8_bytes,
            "policy": self.policy(),
            "rslm_version": self.rslm_version,
            "shards": shards.collect::<Vec<_>>(),
            "sources": sources.collect::<Vec<_>>(),
            "tokenizer": self.tokenizer.to_json(),
            "version": VERSION,
        });
        let text = serde_json::to_string_pretty(&value);
        text.expect("every key is a string") + "\n"
    }

    /// Reads the text of `manifest.json` and checks it against itself.
    pub fn decode(path: &Path, text: &[u8]) -> Result<Self> {
        let value: Value = serde_json::from_slice(text).map_err(|error| {
            Error::format(
                path,
                format!("line {}: not valid JSON: {error}", error.line()),
            )
        })?;
        if value["format"] != FORMAT || value["version"] != VERSION {
            let found = format!("{} {}", value["format"], value["version"]);
            let reason = format!("format and version must be \"{FORMAT}\" {VERSION}, got {found}");
            return Err(Error::format(path, reason));
        }
        let manifest = Self::from_json(&value)
            .map_err(|field| Error::format(path, format!("{field} is missing or malformed")))?;
        // Totals, names, sizes, fingerprint and own hash all follow from what was read, so one
        // comparison with the text they must give covers them and every stray byte.
        let expected = manifest.encode();
        if expected != text {
            let at = expected
                .iter()
                .zip(text)
                .take_while(|(a, b)| a == b)
                .count();
            let reason = format!("at byte {at}: the manifest contradicts its own hash or totals");
            return Err(Error::format(path, reason));
        }
        Ok(manifest)
    }

    fn from_json(value: &Value) -> std::result::Result<Self, &'static str> {
        Ok(Self {
            command: text(value, "command")?,
            dataset: text(value, "dataset")?,
            n_split_documents: count(value, "n_split_documents")?,
            rslm_version: text(value, "rslm_version")?,
            shards: list(value, "shards", ShardRecord::from_json)?,
            sources: list(value, "sources", |source| {
                Ok((text(source, "file")?, count(source, "bytes")?))
            })?,
            tokenizer: ManifestTokenizer::from_json(&value["tokenizer"])?,
        })
    }
}

impl ManifestTokenizer {
    fn to_json(&self) -> Value {
        let mut special_tokens = self.special_tokens.clone();
        special_tokens.sort();
        let special_tokens = special_tokens
            .into_iter()
            .map(|(token, id)| (token, Value::from(id)));
        json!({
            "end_of_text": self.end_of_text,
            "json": self.json,
            "name": self.name,
            "sha256": hex(&self.sha256),
            "special_tokens": special_tokens.collect::<Map<_, _>>(),
            "vocab_size": self.vocab_size,
        })
    }

    fn from_json(value: &Value) -> std::result::Result<Self, &'static str> {
        let end_of_text = match &value["end_of_text"] {
            Value::Null => None,
            id => Some(small(id).ok_or("end_of_text")?),
        };
        let special_tokens = value["special_tokens"]
            .as_object()
            .ok_or("special_tokens")?;
        let special_tokens = special_tokens
            .iter()
            .map(|(token, id)| Ok::<_, &str>((token.clone(), small(id).ok_or("special_tokens")?)))
            .collect::<std::result::Result<_, _>>()?;
        Ok(Self {
            end_of_text,
            json: text(value, "json")?,
            name: text(value, "name")?,
            sha256: digest(value, "sha256")?,
            special_tokens,
            vocab_size: small(&value["vocab_size"]).ok_or("vocab_size")?,
        })
    }
}

/// Sum of a count over shards; a crafted manifest saturates instead of overflowing.
fn sum(shards: &[ShardRecord], count: impl Fn(&ShardRecord) -> u64) -> u64 {
    shards
        .iter()
        .fold(0, |total, shard| total.saturating_add(count(shard)))
}

// The readers below give the name of a field that is absent or of the wrong type as the error.

pub(super) fn text(
    value: &Value,
    field: &'static str,
) -> std::result::Result<String, &'static str> {
    value[field].as_str().map(str::to_owned).ok_or(field)
}

pub(super) fn count(value: &Value, field: &'static str) -> std::result::Result<u64, &'static str> {
    value[field].as_u64().ok_or(field)
}

fn small(value: &Value) -> Option<u32> {
    u32::try_from(value.as_u64()?).ok()
}

fn digest(value: &Value, field: &'static str) -> std::result::Result<[u8; 32], &'static str> {
    let text = value[field].as_str().ok_or(field)?;
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return Err(field);
    }
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).map_err(|_| field)?;
    }
    Ok(bytes)
}

pub(super) fn list<T>(
    value: &Value,
    field: &'static str,
    read: impl Fn(&Value) -> std::result::Result<T, &'static str>,
) -> std::result::Result<Vec<T>, &'static str> {
    value[field]
        .as_array()
        .ok_or(field)?
        .iter()
        .map(read)
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        Manifest {
            command: "rslm \"x\" \u{7f}\n\u{1}é".to_owned(),
            dataset: String::new(),
            n_split_documents: 0,
            rslm_version: "1".to_owned(),
            shards: vec![ShardRecord {
                n_tokens: 3,
                n_documents: 1,
                n_utf8_bytes: 4,
                sha256: [1; 32],
                index_sha256: [2; 32],
                crc32: vec![u32::MAX],
            }],
            sources: Vec::new(),
            tokenizer: ManifestTokenizer {
                end_of_text: None,
                json: "{}".to_owned(),
                name: "t".to_owned(),
                sha256: [3; 32],
                special_tokens: vec![("b".to_owned(), 1), ("a".to_owned(), 2)],
                vocab_size: 300,
            },
        }
    }

    #[test]
    fn decode_inverts_encode() {
        let path = Path::new("manifest.json");
        let mut expected = manifest();
        let decoded = Manifest::decode(path, &expected.encode()).unwrap();
        expected.tokenizer.special_tokens.sort();
        assert_eq!(decoded, expected);
        assert_eq!(decoded.encode(), expected.encode());
    }

    #[test]
    fn fingerprint_follows_content_not_origin() {
        let base = manifest();
        let mut moved = manifest();
        moved.command = "another".to_owned();
        moved.dataset = "another".to_owned();
        assert_eq!(moved.fingerprint(), base.fingerprint());
        let mut changed = manifest();
        changed.shards[0].sha256 = [9; 32];
        assert_ne!(changed.fingerprint(), base.fingerprint());
    }

    #[test]
    fn decode_refuses_what_is_no_manifest() {
        let deep = "[".repeat(100_000);
        for text in [
            "",
            "{",
            "null",
            "[1]",
            "{\"format\": \"rslm token file\"}",
            &deep,
            "\u{0}",
        ] {
            let error = Manifest::decode(Path::new("m"), text.as_bytes()).unwrap_err();
            assert!(matches!(error, Error::Format { .. }), "{error:?}");
        }
        let text = String::from_utf8(manifest().encode()).unwrap();
        let text = text.replace(
            "\"n_tokens\": 3,\n      \"n_utf8",
            "\"n_tokens\": -3,\n      \"n_utf8",
        );
        let error = Manifest::decode(Path::new("m"), text.as_bytes()).unwrap_err();
        assert_eq!(error.to_string(), "m: n_tokens is missing or malformed");
    }
}
