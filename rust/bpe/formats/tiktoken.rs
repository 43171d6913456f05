//! tiktoken's files: a line for each token, its bytes in base64 and its rank.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::bpe::tokenizer::{MAX_TOKEN_BYTES, MergeBy, Parts};
use crate::error::{Error, Result};

pub(super) fn looks_like(bytes: &[u8]) -> bool {
    bytes
        .split(|&byte| byte == b'\n')
        .next()
        .is_some_and(|line| parse_line(line).is_some())
}

fn parse_line(line: &[u8]) -> Option<(u32, Vec<u8>)> {
    let (token, rank) = std::str::from_utf8(line).ok()?.trim_end().split_once(' ')?;
    let token_bytes = BASE64.decode(token).ok()?;
    let fits = !token_bytes.is_empty() && token_bytes.len() <= MAX_TOKEN_BYTES;
    fits.then_some((rank.parse().ok()?, token_bytes))
}

pub(super) fn parse(path: &Path, bytes: &[u8], pattern: Option<&str>) -> Result<Parts> {
    let pattern = pattern.ok_or_else(|| {
        Error::Argument(format!(
            "pattern must be given for {}: a .tiktoken file does not say how text is split \
             (gpt2, cl100k, o200k or a regular expression)",
            path.display()
        ))
    })?;
    let mut vocab = Vec::new();
    for (number, line) in bytes.split(|&byte| byte == b'\n').enumerate() {
        if line.trim_ascii().is_empty() {
            continue;
        }
        vocab.push(parse_line(line).ok_or_else(|| {
            Error::format(
                path,
                format!(
                    "line {} must be a token in base64 (1 to {MAX_TOKEN_BYTES} bytes), a blank \
                     and its rank",
                    number + 1
                ),
            )
        })?);
    }
    Ok(Parts {
        vocab,
        merges: Vec::new(),
        special_tokens: Vec::new(),
        pattern: pattern.to_owned(),
        merge_by: MergeBy::Ids,
    })
}
