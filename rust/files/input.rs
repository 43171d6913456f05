//! What an input file is: its format and compression, and what to make of its rows.

use std::fs::Metadata;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use crate::error::{Error, Result};

/// How a file holds its documents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Running text; documents end at end-of-text tokens in it, and with the file.
    Text,
    /// A JSON object on each line, a document in one of its fields.
    JsonLines,
    /// A table with a document in each row of one column.
    Parquet,
}

impl Format {
    /// # Errors
    /// `Argument` for a name that is none.
    pub fn new(name: &str) -> Result<Self> {
        Ok(match name {
            "text" => Self::Text,
            "jsonl" => Self::JsonLines,
            "parquet" => Self::Parquet,
            _ => {
                return Err(Error::Argument(format!(
                    "format must be text, jsonl or parquet, got {name:?}"
                )));
            }
        })
    }
}

/// How the bytes of a file are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    Gzip,
    Zstd,
}

/// What to make of input files; the same for all files of a call.
#[derive(Clone, Debug)]
pub struct InputOptions {
    /// The format of every file, or `None` to go by each name.
    pub format: Option<Format>,
    /// The field of a JSON line, or the column of a table, that holds the text.
    pub text_field: String,
    /// Whether special tokens are recognised in the text of rows. In a row they are data
    /// somebody wrote, not the corpus's own marks, so they are ordinary text by default.
    pub rows_hold_special_tokens: bool,
    /// The longest row, or text without a place where it may be divided, that is read.
    pub max_document_bytes: usize,
}

impl Default for InputOptions {
    fn default() -> Self {
        Self {
            format: None,
            text_field: "text".to_owned(),
            rows_hold_special_tokens: false,
            max_document_bytes: 1 << 24,
        }
    }
}

/// One file to read.
#[derive(Clone, Debug)]
pub(super) struct Input {
    pub path: PathBuf,
    pub format: Format,
    pub compression: Compression,
    pub n_bytes: u64,
    /// What tells whether it is still the same file: name, size and time of change.
    pub identity: String,
}

impl Input {
    /// # Errors
    /// `Io` where the file is missing; `Argument` where the path is no regular file.
    pub fn new(path: &Path, options: &InputOptions) -> Result<Self> {
        let metadata = path.metadata().map_err(|error| Error::io(path, error))?;
        if !metadata.is_file() {
            let kind = if metadata.is_dir() {
                "the folder"
            } else {
                "the pipe or device"
            };
            return Err(Error::Argument(format!(
                "input paths must be regular files, got {kind} {}",
                path.display()
            )));
        }
        let (named, compression) = recognise(path);
        Ok(Self {
            path: path.to_owned(),
            format: options.format.unwrap_or(named),
            compression,
            n_bytes: metadata.len(),
            identity: identity(path, &metadata),
        })
    }

    /// The name that messages about the text of this file give.
    pub fn place(&self) -> String {
        match self.compression {
            Compression::None => self.path.display().to_string(),
            _ => format!("{}, decompressed", self.path.display()),
        }
    }
}

/// Format and compression as the endings of the name say, in any case.
fn recognise(path: &Path) -> (Format, Compression) {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let mut endings = name.rsplit('.').map(str::to_ascii_lowercase);
    let mut ending = endings.next().unwrap_or_default();
    let compression = match ending.as_str() {
        "gz" => Compression::Gzip,
        "zst" | "zstd" => Compression::Zstd,
        _ => Compression::None,
    };
    if compression != Compression::None {
        ending = endings.next().unwrap_or_default();
    }
    let format = match ending.as_str() {
        "jsonl" | "ndjson" => Format::JsonLines,
        "parquet" => Format::Parquet,
        _ => Format::Text,
    };
    (format, compression)
}

fn identity(path: &Path, metadata: &Metadata) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let changed = metadata.modified().ok();
    let changed = changed.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    let nanoseconds = changed.map_or(0, |time| time.as_nanos());
    format!(
        "{name} of {} bytes, changed {nanoseconds} ns after 1970",
        metadata.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_format_and_compression() {
        for (name, format, compression) in [
            ("a.txt", Format::Text, Compression::None),
            ("a.b.JSONL", Format::JsonLines, Compression::None),
            ("a.ndjson.gz", Format::JsonLines, Compression::Gzip),
            ("a.gz", Format::Text, Compression::Gzip),
            ("a.parquet", Format::Parquet, Compression::None),
            ("a.jsonl.zstd", Format::JsonLines, Compression::Zstd),
            ("a.gz.txt", Format::Text, Compression::None),
            ("", Format::Text, Compression::None),
        ] {
            assert_eq!(recognise(Path::new(name)), (format, compression), "{name}");
        }
    }
}
