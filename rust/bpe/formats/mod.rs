//! Tokenizer files: our canonical JSON, and the byte-level formats of others.

mod canonical;
mod gguf;
mod gpt2;
mod hf;
mod native;
mod tiktoken;

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::tokenizer::{Parts, Tokenizer};
use crate::error::{Error, Result};
use crate::pretokenize::{Pattern, SpecialTokens};

pub use gguf::{GgufVocabulary, to_gguf};
pub use native::to_canonical_json;

/// The formats of tokenizer files.
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
    /// The metadata of a GGUF file, which is read only.
    Gguf,
}

/// A file that is larger is no tokenizer file; the largest published ones have 35 MB.
const MAX_FILE_BYTES: u64 = 1 << 28;

/// JSON that takes more memory is no tokenizer's; the largest published ones take 200 MB,
/// the largest id 540 MB.
const MAX_JSON_MEMORY: u64 = 3 << 28;

/// A sentence about a file is no place for half of the file.
const MAX_REASON_CHARS: usize = 600;

/// Longest special token of a file; the automaton that finds them grows with each byte.
const MAX_SPECIAL_BYTES: usize = 1024;

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
            "gguf" => Self::Gguf,
            _ => {
                return Err(Error::Argument(format!(
                    "format must be rslm, hf, gpt2, tiktoken or gguf, got {name:?}"
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
        file_in_folder(path, format)?
    } else {
        path.to_path_buf()
    };
    if let Some(pattern) = pattern {
        Pattern::new(pattern)?;
    }
    let is_as_saved = pattern.is_none() && special_tokens.is_empty();
    if is_as_saved
        && matches!(format, None | Some(Format::Rslm))
        && let Some(tokenizer) = read_canonical(path)?
    {
        return Ok(tokenizer);
    }
    let mut parts = read_parts(path, format, pattern, special_tokens).map_err(shorten)?;
    if let Some(pattern) = pattern {
        pattern.clone_into(&mut parts.pattern);
    }
    build(path, parts, special_tokens)
}

/// A tokenizer in our canonical form; `None` for any other file, and for what is wrong.
fn read_canonical(path: &Path) -> Result<Option<Tokenizer>> {
    if !canonical::begins(&first_bytes::<64>(path)?) {
        return Ok(None);
    }
    Ok(canonical::parse(&read_file(path)?))
}

fn read_parts(
    path: &Path,
    format: Option<Format>,
    pattern: Option<&str>,
    special_tokens: &[(String, Option<u32>)],
) -> Result<Parts> {
    let is_gguf = || Ok::<_, Error>(first_bytes(path)? == *gguf::MAGIC);
    if format == Some(Format::Gguf) || (format.is_none() && is_gguf()?) {
        check_regular(path)?;
        return gguf::parse(path, pattern);
    }
    let bytes = read_file(path)?;
    let is_json = bytes.trim_ascii_start().first() == Some(&b'{');
    let is_tiktoken = || tiktoken::looks_like(&bytes) || has_extension(path, "tiktoken");
    if format == Some(Format::Tiktoken) || (format.is_none() && !is_json && is_tiktoken()) {
        return tiktoken::parse(path, &bytes, pattern);
    }
    if format.is_none() && !is_json {
        return Err(Error::format(path, what_it_is_instead(path, &bytes)));
    }
    let value = parse_json(path, &bytes)?;
    match format.map_or_else(|| detect_json(path, &value), Ok)? {
        Format::Rslm => native::parse(path, &value),
        Format::Hf => hf::parse(path, &value),
        _ => gpt2::parse(
            path,
            &value,
            &path.with_file_name("merges.txt"),
            special_tokens,
        ),
    }
}

/// The files that a tokenizer is written to in a format: names and contents. A format of
/// one file has no name for it.
///
/// # Errors
/// `Argument` where the format cannot say what the tokenizer does.
pub fn to_files(tokenizer: &Tokenizer, format: Format) -> Result<Vec<(&'static str, Vec<u8>)>> {
    Ok(match format {
        Format::Rslm => vec![("", to_canonical_json(tokenizer))],
        Format::Hf => vec![("", hf::write(tokenizer)?)],
        Format::Tiktoken => vec![("", tiktoken::write(tokenizer)?)],
        Format::Gpt2 => {
            let (vocab, merges) = gpt2::write(tokenizer)?;
            vec![("merges.txt", merges), ("vocab.json", vocab)]
        }
        Format::Gguf => {
            return Err(Error::Argument(
                "format must be rslm, hf, gpt2 or tiktoken to be saved, got \"gguf\": that file \
                 holds a model, and gguf_metadata() gives what it says of the tokenizer"
                    .into(),
            ));
        }
    })
}

/// Reads our own format from memory.
///
/// # Errors
/// `Format` where the bytes are no tokenizer of ours.
pub fn from_canonical_json(bytes: &[u8]) -> Result<Tokenizer> {
    if let Some(tokenizer) = canonical::parse(bytes) {
        return Ok(tokenizer);
    }
    let path = Path::new("tokenizer JSON");
    let parts = native::parse(path, &parse_json(path, bytes)?).map_err(shorten)?;
    build(path, parts, &[])
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
    let vocab = parse_json(vocab_path, &read_file(vocab_path)?)?;
    let mut parts =
        gpt2::parse(vocab_path, &vocab, merges_path, special_tokens).map_err(shorten)?;
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
    for (text, _) in &parts.special_tokens {
        check_special_length(text).map_err(|reason| Error::format(path, reason))?;
    }
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
    Tokenizer::new(parts).map_err(|error| shorten(Error::format(path, error.to_string())))
}

fn check_special_length(text: &str) -> std::result::Result<(), String> {
    if text.len() <= MAX_SPECIAL_BYTES {
        return Ok(());
    }
    Err(format!(
        "a special token must be at most {MAX_SPECIAL_BYTES} bytes long, got {}",
        text.len()
    ))
}

/// The size of a regular file; a pipe or device would keep its reader waiting.
fn check_regular(path: &Path) -> Result<u64> {
    let metadata = fs::metadata(path).map_err(|error| Error::io(path, error))?;
    if metadata.is_file() {
        return Ok(metadata.len());
    }
    Err(Error::format(
        path,
        "a tokenizer must be a regular file, and this is none",
    ))
}

/// Zeros stand for what a shorter file does not have.
fn first_bytes<const N: usize>(path: &Path) -> Result<[u8; N]> {
    check_regular(path)?;
    let mut bytes = [0; N];
    let file = fs::File::open(path).map_err(|error| Error::io(path, error))?;
    let mut rest = &mut bytes[..];
    std::io::copy(&mut file.take(N as u64), &mut rest).map_err(|error| Error::io(path, error))?;
    Ok(bytes)
}

fn read_file(path: &Path) -> Result<Vec<u8>> {
    let size = check_regular(path)?;
    if size > MAX_FILE_BYTES {
        return Err(Error::format(
            path,
            format!("a tokenizer file must be at most {MAX_FILE_BYTES} bytes, got {size}"),
        ));
    }
    fs::read(path).map_err(|error| Error::io(path, error))
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found == extension)
}

/// The one file of a folder that holds its tokenizer: by name, else by extension.
fn file_in_folder(folder: &Path, format: Option<Format>) -> Result<PathBuf> {
    let names: &[(&str, &[Format])] = &[
        ("tokenizer.json", &[Format::Rslm, Format::Hf]),
        ("vocab.json", &[Format::Gpt2]),
    ];
    let wanted = |formats: &[Format]| format.is_none_or(|format| formats.contains(&format));
    let found = names
        .iter()
        .filter(|(_, formats)| wanted(formats))
        .map(|(name, _)| folder.join(name))
        .find(|path| path.is_file());
    if let Some(found) = found {
        return Ok(found);
    }
    let mut candidates = Vec::new();
    for entry in fs::read_dir(folder).map_err(|error| Error::io(folder, error))? {
        let path = entry.map_err(|error| Error::io(folder, error))?.path();
        if (has_extension(&path, "tiktoken") && wanted(&[Format::Tiktoken]))
            || (has_extension(&path, "gguf") && wanted(&[Format::Gguf]))
        {
            candidates.push(path);
        }
    }
    candidates.sort_unstable();
    match candidates.as_slice() {
        [only] => Ok(only.clone()),
        [first, second, ..] => Err(Error::format(
            folder,
            format!(
                "a folder must hold one tokenizer, got {} files, as {} and {}; name the file",
                candidates.len(),
                first.display(),
                second.display()
            ),
        )),
        [] => Err(Error::format(
            folder,
            match format {
                Some(format) => {
                    format!("the folder must hold a tokenizer in the format {format:?}")
                }
                None => "a tokenizer folder must hold tokenizer.json, vocab.json with \
                         merges.txt, or one .tiktoken or .gguf file"
                    .into(),
            },
        )),
    }
}

/// A word on the files that are most often taken for tokenizers of ours.
fn what_it_is_instead(path: &Path, bytes: &[u8]) -> String {
    let known = if bytes.starts_with(b"\n") && bytes.get(2) == Some(&b'\n') && bytes.contains(&0) {
        "a SentencePiece model, which is not byte-level BPE"
    } else if has_extension(path, "model") {
        "a .model file in another format"
    } else if bytes
        .split(|&byte| byte == b'\n')
        .any(|line| line.trim_ascii_end() == b"[UNK]")
    {
        "a WordPiece vocabulary, which is not byte-level BPE"
    } else if path.file_name().is_some_and(|name| name == "merges.txt")
        || bytes.starts_with(b"#version")
    {
        "merges.txt; give vocab.json, which stands beside it"
    } else {
        "neither"
    };
    format!("must be a tokenizer in JSON, a .tiktoken or a .gguf file, and is {known}")
}

fn detect_json(path: &Path, value: &Value) -> Result<Format> {
    let has = |key: &str| value.get(key).is_some();
    let entries = value.as_object();
    if value.get("format").and_then(Value::as_str) == Some(native::FORMAT) {
        Ok(Format::Rslm)
    } else if value.get("model").is_some_and(Value::is_object) {
        Ok(Format::Hf)
    } else if entries.is_some_and(|e| !e.is_empty() && e.values().all(Value::is_number)) {
        Ok(Format::Gpt2)
    } else if has("tokenizer_class") || has("added_tokens_decoder") {
        Err(Error::format(
            path,
            "must hold a tokenizer, but is a tokenizer_config.json; give tokenizer.json",
        ))
    } else {
        Err(Error::format(
            path,
            "must be JSON of rslm (with \"format\"), a tokenizer.json (with \"model\") or a \
             vocab.json (tokens and ids), and is none of them",
        ))
    }
}

/// About the memory that JSON takes once it is parsed: a value of two bytes takes 32, an
/// array or an object of one value five and twenty times as much.
fn json_memory(bytes: &[u8]) -> u64 {
    let mut weights = [0u64; 256];
    for (byte, weight) in [(b',', 32), (b':', 64), (b'"', 16), (b'[', 160), (b'{', 700)] {
        weights[byte as usize] = weight;
    }
    bytes.iter().map(|&byte| weights[byte as usize]).sum()
}

fn parse_json(path: &Path, bytes: &[u8]) -> Result<Value> {
    let memory = json_memory(bytes);
    if memory > MAX_JSON_MEMORY {
        return Err(Error::format(
            path,
            format!(
                "a tokenizer must take at most {MAX_JSON_MEMORY} bytes of memory as JSON, this \
                 would take about {memory}"
            ),
        ));
    }
    serde_json::from_slice(bytes)
        .map_err(|error| Error::format(path, format!("must be valid JSON: {error}")))
}

fn shorten(error: Error) -> Error {
    let cut = |reason: String| match reason.char_indices().nth(MAX_REASON_CHARS) {
        Some((end, _)) => format!("{} ...", &reason[..end]),
        None => reason,
    };
    match error {
        Error::Format { path, reason } => Error::Format {
            path,
            reason: cut(reason),
        },
        Error::Argument(reason) => Error::Argument(cut(reason)),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_of_many_small_values_is_refused_before_it_is_parsed() {
        let path = Path::new("x");
        let objects = [&b"["[..], &br#"{"a":0},"#.repeat(2_000_000), b"0]"].concat();
        assert!(parse_json(path, &objects).is_err());
        assert!(parse_json(path, &objects[objects.len() - 3..]).is_err());
        assert!(parse_json(path, br#"{"a": 0}"#).is_ok());
    }

    #[test]
    fn reasons_are_cut() {
        let error = shorten(Error::format("x", "é".repeat(5000)));
        assert!(error.to_string().chars().count() < MAX_REASON_CHARS + 20);
    }
}
