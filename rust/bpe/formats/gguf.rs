//! The tokenizer in a GGUF file's metadata, both ways; the tensors are never read.
//!
//! A length in the file is believed only where that many bytes are left, so a hostile file
//! costs memory in proportion to its own size. Source: the GGUF specification of ggml,
//! versions 2 and 3, little-endian; the meaning of `pre` is that of llama.cpp's loader.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use rustc_hash::FxHashSet;

use super::gpt2::{StandIns, decode_vocab, parse_pair, token_texts};
use super::hf::merges_of;
use crate::bpe::tokenizer::{MergeBy, Parts, Tokenizer};
use crate::error::{Error, Result};
use crate::pretokenize::{LLAMA3_EXPRESSION, QWEN2_EXPRESSION};

pub(super) const MAGIC: &[u8; 4] = b"GGUF";

/// Metadata that is longer is no tokenizer's: 256k tokens take 20 MB.
const MAX_METADATA_BYTES: u64 = 1 << 26;

/// Arrays in arrays in arrays: more than anybody writes.
const MAX_DEPTH: usize = 4;

/// Names of pre-tokenizers in llama.cpp with their pattern, and whether it takes a pretoken
/// that is a token whole. The first of a pattern is the one that is written.
const PRES: &[(&str, &str, bool)] = &[
    ("gpt-2", "gpt2", false),
    ("phi-2", "gpt2", false),
    ("mpt", "gpt2", false),
    ("olmo", "gpt2", false),
    ("jais", "gpt2", false),
    ("exaone4", "gpt2", false),
    ("trillion", "gpt2", false),
    ("gigachat", "gpt2", false),
    ("roberta-bpe", "gpt2", false),
    ("modern-bert", "gpt2", false),
    ("llama-bpe", LLAMA3_EXPRESSION, true),
    ("llama3", LLAMA3_EXPRESSION, true),
    ("llama-v3", LLAMA3_EXPRESSION, true),
    ("falcon3", LLAMA3_EXPRESSION, true),
    ("pixtral", LLAMA3_EXPRESSION, true),
    ("lfm2", LLAMA3_EXPRESSION, true),
    ("smaug-bpe", LLAMA3_EXPRESSION, false),
    ("dbrx", LLAMA3_EXPRESSION, false),
    ("glm4", LLAMA3_EXPRESSION, false),
    ("chatglm-bpe", LLAMA3_EXPRESSION, false),
    ("qwen2", QWEN2_EXPRESSION, false),
    ("deepseek-r1-qwen", QWEN2_EXPRESSION, false),
    ("stablelm2", QWEN2_EXPRESSION, false),
    ("hunyuan", QWEN2_EXPRESSION, false),
    ("megrez", QWEN2_EXPRESSION, false),
    ("gpt-4o", "o200k", false),
    ("llama4", "o200k", false),
    ("kanana2", "o200k", false),
];

const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

const STRING: u32 = 8;
const ARRAY: u32 = 9;

/// Bytes of a value of a type of fixed size.
fn size_of(kind: u32) -> Option<u64> {
    Some(match kind {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        4..=6 => 4,
        10..=12 => 8,
        _ => return None,
    })
}

struct Reader<'p> {
    path: &'p Path,
    file: BufReader<File>,
    at: u64,
    end: u64,
}

impl Reader<'_> {
    fn error(&self, reason: impl std::fmt::Display) -> Error {
        Error::format(self.path, format!("at byte {}: {reason}", self.at))
    }

    fn claim(&mut self, n_bytes: u64) -> Result<()> {
        let left = self.end - self.at;
        if n_bytes > left {
            return Err(self.error(format!(
                "{n_bytes} bytes must follow (metadata within {MAX_METADATA_BYTES} bytes), \
                 {left} do"
            )));
        }
        self.at += n_bytes;
        Ok(())
    }

    fn take(&mut self, n_bytes: u64) -> Result<Vec<u8>> {
        self.claim(n_bytes)?;
        let mut bytes = vec![0; n_bytes as usize];
        self.file
            .read_exact(&mut bytes)
            .map_err(|error| Error::io(self.path, error))?;
        Ok(bytes)
    }

    fn skip(&mut self, n_bytes: u64) -> Result<()> {
        self.claim(n_bytes)?;
        self.file
            .seek_relative(n_bytes.cast_signed())
            .map_err(|error| Error::io(self.path, error))
    }

    fn number<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.claim(N as u64)?;
        let mut bytes = [0; N];
        self.file
            .read_exact(&mut bytes)
            .map_err(|error| Error::io(self.path, error))?;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.number()?))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.number()?))
    }

    fn string(&mut self) -> Result<String> {
        let length = self.u64()?;
        let bytes = self.take(length)?;
        String::from_utf8(bytes).map_err(|_| self.error("a string must be UTF-8"))
    }

    fn expect(&self, key: &str, expected: u32, kind: u32) -> Result<()> {
        if kind == expected {
            return Ok(());
        }
        Err(self.error(format!("{key} must be of type {expected}, got type {kind}")))
    }

    /// The number of elements of an array of this type, after its head.
    fn array(&mut self, key: &str, kind: u32, expected: u32) -> Result<u64> {
        self.expect(key, ARRAY, kind)?;
        let element = self.u32()?;
        self.expect(key, expected, element)?;
        self.u64()
    }

    fn strings(&mut self, key: &str, kind: u32) -> Result<Vec<String>> {
        let n = self.array(key, kind, STRING)?;
        // Each takes eight bytes at least, so a made-up count ends with the file.
        (0..n).map(|_| self.string()).collect()
    }

    fn i32s(&mut self, key: &str, kind: u32) -> Result<Vec<i32>> {
        let n = self.array(key, kind, 5)?;
        let bytes = self.take(n.saturating_mul(4))?;
        let (words, _) = bytes.as_chunks::<4>();
        Ok(words.iter().map(|&word| i32::from_le_bytes(word)).collect())
    }

    fn skip_value(&mut self, kind: u32, depth: usize) -> Result<()> {
        if let Some(size) = size_of(kind) {
            return self.skip(size);
        }
        match kind {
            STRING => {
                let length = self.u64()?;
                self.skip(length)
            }
            ARRAY if depth < MAX_DEPTH => {
                let (element, n) = (self.u32()?, self.u64()?);
                match size_of(element) {
                    Some(size) => self.skip(n.saturating_mul(size)),
                    None => (0..n).try_for_each(|_| self.skip_value(element, depth + 1)),
                }
            }
            ARRAY => Err(self.error(format!("arrays must nest at most {MAX_DEPTH} deep"))),
            _ => Err(self.error(format!("the type of a value must be 0 to 12, got {kind}"))),
        }
    }
}

/// The keys of a tokenizer.
#[derive(Default)]
struct Metadata {
    model: Option<String>,
    pre: Option<String>,
    tokens: Option<Vec<String>>,
    types: Option<Vec<i32>>,
    merges: Option<Vec<String>>,
}

impl Metadata {
    fn read(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|error| Error::io(path, error))?;
        let size = file
            .metadata()
            .map_err(|error| Error::io(path, error))?
            .len();
        let mut reader = Reader {
            path,
            file: BufReader::with_capacity(1 << 16, file),
            at: 0,
            end: size.min(MAX_METADATA_BYTES),
        };
        if reader.number()? != *MAGIC {
            return Err(Error::format(path, "a GGUF file must begin with GGUF"));
        }
        let version = reader.u32()?;
        if !matches!(version, 2 | 3) {
            return Err(reader.error(format!(
                "the GGUF version must be 2 or 3, little-endian; got {version}"
            )));
        }
        let (_n_tensors, n_keys) = (reader.u64()?, reader.u64()?);
        let mut found = Self::default();
        let mut seen = FxHashSet::default();
        for _ in 0..n_keys {
            let key = reader.string()?;
            let kind = reader.u32()?;
            found.read_value(&mut reader, &key, kind)?;
            if !seen.insert(key.clone()) {
                return Err(reader.error(format!("keys must differ, got {key:?} twice")));
            }
        }
        Ok(found)
    }

    fn read_value(&mut self, reader: &mut Reader<'_>, key: &str, kind: u32) -> Result<()> {
        match key.strip_prefix("tokenizer.ggml.") {
            Some("model") => {
                reader.expect(key, STRING, kind)?;
                self.model = Some(reader.string()?);
            }
            Some("pre") => {
                reader.expect(key, STRING, kind)?;
                self.pre = Some(reader.string()?);
            }
            Some("tokens") => self.tokens = Some(reader.strings(key, kind)?),
            Some("token_type") => self.types = Some(reader.i32s(key, kind)?),
            Some("merges") => self.merges = Some(reader.strings(key, kind)?),
            _ => reader.skip_value(kind, 0)?,
        }
        Ok(())
    }
}

pub(super) fn parse(path: &Path, pattern: Option<&str>) -> Result<Parts> {
    let metadata = Metadata::read(path)?;
    let refuse = |reason: String| Error::format(path, reason);
    match metadata.model.as_deref() {
        Some("gpt2") => {}
        Some(model) => {
            return Err(refuse(format!(
                "tokenizer.ggml.model must be gpt2, which is byte-level BPE; got {model:?}"
            )));
        }
        None => {
            return Err(refuse(
                "must hold a tokenizer, tokenizer.ggml.model is missing".into(),
            ));
        }
    }
    let pre = metadata.pre.as_deref().unwrap_or("default");
    let known = PRES.iter().find(|(name, _, _)| *name == pre);
    let Some(pattern) = pattern.or(known.map(|(_, pattern, _)| *pattern)) else {
        return Err(Error::Argument(format!(
            "pattern must be given for {}: its pre-tokenizer {pre:?} is none of those known",
            path.display()
        )));
    };
    let tokens = metadata.tokens.unwrap_or_default();
    let types = metadata.types.unwrap_or_else(|| vec![NORMAL; tokens.len()]);
    if types.len() != tokens.len() {
        return Err(refuse(format!(
            "token_type must have one entry for each of {} tokens, got {}",
            tokens.len(),
            types.len()
        )));
    }
    if let Some(id) = types.iter().position(|&kind| kind == BYTE) {
        return Err(refuse(format!(
            "tokens must not fall back to bytes in byte-level BPE, but token {id} does"
        )));
    }
    let stand_ins = StandIns::new();
    let is_special = |id: u32| matches!(types[id as usize], UNKNOWN | CONTROL | USER_DEFINED);
    let used = |&(id, token): &(u32, &str)| !token.is_empty() && types[id as usize] != UNUSED;
    let listed = || (0u32..).zip(tokens.iter().map(String::as_str)).filter(used);
    let vocab = decode_vocab(path, listed(), &stand_ins, |_, id| is_special(id))?;
    let specials = listed().filter(|&(id, _)| is_special(id));
    Ok(Parts {
        vocab,
        merges: parse_merges(&metadata.merges.unwrap_or_default(), &stand_ins).map_err(refuse)?,
        special_tokens: specials
            .map(|(id, text)| (text.to_owned(), Some(id)))
            .collect(),
        pattern: pattern.to_owned(),
        merge_by: match known {
            Some((_, _, true)) => MergeBy::TokensThenMerges,
            _ => MergeBy::Merges,
        },
    })
}

type MergeBytes = Vec<(Vec<u8>, Vec<u8>)>;

/// A repeated merge keeps its first rank, as llama.cpp has it.
fn parse_merges(lines: &[String], stand_ins: &StandIns) -> std::result::Result<MergeBytes, String> {
    let mut seen = FxHashSet::default();
    let mut merges = Vec::with_capacity(lines.len());
    for (rank, line) in lines.iter().enumerate() {
        let pair = parse_pair(line, stand_ins)
            .ok_or_else(|| format!("merge {rank} must be two byte-level tokens, got {line:?}"))?;
        if seen.insert(line) {
            merges.push(pair);
        }
    }
    Ok(merges)
}

/// What `tokenizer.ggml.*` must say of a tokenizer.
pub struct GgufVocabulary {
    /// llama.cpp's name of the pattern.
    pub pre: String,
    /// Tokens by id.
    pub tokens: Vec<String>,
    /// 1 ordinary, 3 special, 5 for a hole in the ids.
    pub token_types: Vec<i32>,
    /// Two tokens with a blank between them, in order of rank.
    pub merges: Vec<String>,
}

/// The metadata of a tokenizer; `pre` overrides the name that its pattern has.
///
/// # Errors
/// `Argument` where llama.cpp has no name for the pattern, or would not merge alike.
pub fn to_gguf(tokenizer: &Tokenizer, pre: Option<&str>) -> Result<GgufVocabulary> {
    let takes_whole = tokenizer.merge_by() != MergeBy::Merges;
    let reaches = tokenizer.merges_reach_every_token();
    let pre = match pre {
        Some(pre) => pre,
        None => pre_of(tokenizer.pattern().as_str(), takes_whole, reaches)?,
    };
    let stand_ins = StandIns::new();
    let mut seen = FxHashSet::default();
    let mut tokens = Vec::with_capacity(tokenizer.vocab().len());
    let mut token_types = Vec::with_capacity(tokens.capacity());
    let special: FxHashSet<u32> = tokenizer.special_tokens().map(|(_, id)| id).collect();
    for (id, text) in (0u32..).zip(token_texts(tokenizer, &stand_ins)?) {
        token_types.push(match text {
            None => UNUSED,
            Some(_) if special.contains(&id) => CONTROL,
            Some(_) => NORMAL,
        });
        let text = text.unwrap_or_else(|| format!("[PAD{id}]"));
        if !seen.insert(text.clone()) {
            return Err(Error::Argument(format!(
                "no token may be written like a hole in the ids, but token {text:?} is"
            )));
        }
        tokens.push(text);
    }
    let text = |id: u32| stand_ins.token_text(tokenizer.vocab().bytes(id));
    let mut listed = FxHashSet::default();
    let mut merges: Vec<_> = merges_of(tokenizer)
        .0
        .iter()
        .rev()
        .filter(|merge| listed.insert((merge.left, merge.right)))
        .map(|merge| format!("{} {}", text(merge.left), text(merge.right)))
        .collect();
    merges.reverse();
    Ok(GgufVocabulary {
        pre: pre.to_owned(),
        tokens,
        token_types,
        merges,
    })
}

fn pre_of(pattern: &str, takes_whole: bool, reaches: bool) -> Result<&'static str> {
    let expression = match pattern {
        "cl100k_2023" | "llama3" => LLAMA3_EXPRESSION,
        "qwen2" => QWEN2_EXPRESSION,
        other => other,
    };
    let named = || PRES.iter().filter(|(_, other, _)| *other == expression);
    let exact = named().find(|(_, _, whole)| *whole == takes_whole);
    let found = exact.or_else(|| named().next().filter(|_| reaches));
    match found {
        Some((name, _, _)) => Ok(name),
        None if named().next().is_some() => Err(Error::Argument(format!(
            "every token must follow from the merges, as llama.cpp has no name for the pattern \
             {pattern:?} that takes pretokens {}",
            if takes_whole { "whole" } else { "apart" }
        ))),
        None => Err(Error::Argument(format!(
            "pre must be given, as llama.cpp has no name for the pattern {pattern:?}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, bytes: &[u8]) -> Result<Metadata> {
        let path = std::env::temp_dir().join(format!("rslm-{name}-{}.gguf", std::process::id()));
        std::fs::write(&path, bytes).expect("a writable folder");
        let result = Metadata::read(&path);
        std::fs::remove_file(&path).expect("it was written");
        result
    }

    fn head(n_keys: u64) -> Vec<u8> {
        [&b"GGUF\x03\0\0\0"[..], &[0; 8], &n_keys.to_le_bytes()].concat()
    }

    #[test]
    fn lengths_are_believed_only_as_far_as_the_file_goes() {
        assert!(read("empty", &head(0)).is_ok());
        let long_key = [&head(1)[..], &u64::MAX.to_le_bytes()].concat();
        let huge_array = [
            &head(1)[..],
            &1u64.to_le_bytes(),
            b"k",
            &9u32.to_le_bytes(),
            &5u32.to_le_bytes(),
            &(u64::MAX / 2).to_le_bytes(),
        ]
        .concat();
        for (name, bytes) in [
            ("keys", head(u64::MAX)),
            ("key", long_key),
            ("array", huge_array),
        ] {
            let error = read(name, &bytes).err().expect("not that long");
            assert!(error.to_string().contains("bytes must follow"), "{error}");
        }
    }

    #[test]
    fn deep_arrays_are_refused() {
        let mut bytes = [&head(1)[..], &1u64.to_le_bytes(), b"k", &9u32.to_le_bytes()].concat();
        for _ in 0..1000 {
            bytes.extend_from_slice(&9u32.to_le_bytes());
            bytes.extend_from_slice(&1u64.to_le_bytes());
        }
        let error = read("deep", &bytes).err().expect("too deep");
        assert!(error.to_string().contains("nest at most"), "{error}");
    }
}
