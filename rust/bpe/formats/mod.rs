//! Tokenizer files: our canonical JSON, and the byte-level formats of others.

mod gpt2;
mod hf;
mod native;
mod tiktoken;

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::tokenizer::{Parts, Tokenizer};
use crate::error::{Error, Result};
use crate::pretokenize::{Pattern, SpecialTokens};

pub use native::to_canonical_json;

/// The formats that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Our own JSON: everything, with pattern and Unicode version.
    Rslm,
    /// Hugging Face `tokenizer.json` with a byte-level BPE model.
    Hf,
    /// GPT-2's `vocab.json` with `merges.txt` beside it.
    Gpt2,
    /// tiktoken's lines of base64 and rank.
    Tiktoken,
}

/// A file that is larger is no tokenizer file.
const MAX_FILE_BYTES: u64 = 1 << 30;

impl Format {
    /// The format of a name.
    ///
    /// # Errors
    /// `Argument` for any other name.
    pub fn new(name: &str) -> Result<Self> {
        Ok(match name {
            "rslm" => Self::Rslm,
            "hf" => Self::Hf,
            "gpt2" => Self::Gpt2,
            "tiktoken" => Self::Tiktoken,
            _ => {
                return Err(Error::Argument(format!(
                    "format must be rslm, hf, gpt2 or tiktoken, got {name:?}"
                )));
            }
        })
    }
}

/// Reads a tokenizer.
///
/// `format` is recognised from the content where it is `None`. `pattern` overrides the
/// file's (a `.tiktoken` file has none: there it is required; GPT-2's files mean `gpt2`).
/// `special_tokens` are added to the file's own.
///
/// # Errors
/// `Io` where the file cannot be read; `Format` where it does not hold a byte-level BPE
/// tokenizer; `Argument` where `pattern` is missing or an argument is invalid.
pub fn load(
    path: &Path,
    format: Option<Format>,
    pattern: Option<&str>,
    special_tokens: &[(String, Option<u32>)],
) -> Result<Tokenizer> {
    let path = &if path.is_dir() {
        file_in_folder(path)?
    } else {
        path.to_path_buf()
    };
    let bytes = read_file(path)?;
    let format = match format {
        Some(format) => format,
        None => detect(path, &bytes)?,
    };
    let mut parts = match format {
        Format::Rslm => native::parse(path, &bytes)?,
        Format::Hf => hf::parse(path, &bytes)?,
        Format::Gpt2 => gpt2::parse(path, &bytes, &path.with_file_name("merges.txt"))?,
        Format::Tiktoken => tiktoken::parse(path, &bytes, pattern)?,
    };
    if let Some(pattern) = pattern {
        Pattern::new(pattern)?;
        pattern.clone_into(&mut parts.pattern);
    }
    build(path, parts, special_tokens)
}

/// Reads our own format from memory.
///
/// # Errors
/// `Format` where the bytes are no tokenizer of ours.
pub fn from_canonical_json(bytes: &[u8]) -> Result<Tokenizer> {
    let path = Path::new("tokenizer JSON");
    build(path, native::parse(path, bytes)?, &[])
}

/// Reads GPT-2's two files.
///
/// # Errors
/// As [`load`].
pub fn load_gpt2(
    vocab_path: &Path,
    merges_path: &Path,
    special_tokens: &[(String, Option<u32>)],
    pattern: &str,
) -> Result<Tokenizer> {
    let mut parts = gpt2::parse(vocab_path, &read_file(vocab_path)?, merges_path)?;
    Pattern::new(pattern)?;
    pattern.clone_into(&mut parts.pattern);
    build(vocab_path, parts, special_tokens)
}

/// What a file holds is wrong as a format; what the caller adds is wrong as an argument.
fn build(
    path: &Path,
    mut parts: Parts,
    special_tokens: &[(String, Option<u32>)],
) -> Result<Tokenizer> {
    let texts: Vec<String> = special_tokens
        .iter()
        .map(|(text, _)| text.clone())
        .collect();
    SpecialTokens::new(&texts)?;
    for (text, id) in special_tokens {
        match parts
            .special_tokens
            .iter_mut()
            .find(|(known, _)| known == text)
        {
            Some((_, known_id)) => *known_id = id.or(*known_id),
            None => parts.special_tokens.push((text.clone(), *id)),
        }
    }
    Tokenizer::new(parts).map_err(|error| Error::format(path, error.to_string()))
}

fn read_file(path: &Path) -> Result<Vec<u8>> {
    let metadata = fs::metadata(path).map_err(|error| Error::io(path, error))?;
    if !metadata.is_file() {
        return Err(Error::format(
            path,
            "a tokenizer must be a regular file, and this is none",
        ));
    }
    let size = metadata.len();
    if size > MAX_FILE_BYTES {
        return Err(Error::format(
            path,
            format!("a tokenizer file must be at most {MAX_FILE_BYTES} bytes, got {size}"),
        ));
    }
    fs::read(path).map_err(|error| Error::io(path, error))
}

fn file_in_folder(folder: &Path) -> Result<std::path::PathBuf> {
    let names = ["tokenizer.json", "vocab.json"];
    let found = names
        .iter()
        .map(|name| folder.join(name))
        .find(|path| path.is_file());
    found.ok_or_else(|| {
        Error::format(
            folder,
            "a tokenizer folder must hold tokenizer.json or vocab.json",
        )
    })
}

fn detect(path: &Path, bytes: &[u8]) -> Result<Format> {
    if bytes.trim_ascii_start().first() != Some(&b'{') {
        let is_tiktoken =
            path.extension().is_some_and(|e| e == "tiktoken") || tiktoken::looks_like(bytes);
        return if is_tiktoken {
            Ok(Format::Tiktoken)
        } else {
            Err(Error::format(
                path,
                "must be a tokenizer in JSON or a .tiktoken file, and is neither",
            ))
        };
    }
    let value = parse_json(path, bytes)?;
    if value.get("format").and_then(Value::as_str) == Some(native::FORMAT) {
        Ok(Format::Rslm)
    } else if value.get("model").is_some() {
        Ok(Format::Hf)
    } else {
        Ok(Format::Gpt2)
    }
}

fn parse_json(path: &Path, bytes: &[u8]) -> Result<Value> {
    serde_json::from_slice(bytes)
        .map_err(|error| Error::format(path, format!("must be valid JSON: {error}")))
}
