//! Our own file read straight from its canonical form.
//!
//! A tokenizer is read again and again, its file is written by us: to make a JSON value for
//! each of its 150,000 strings first takes ten times as long. What is not canonical to the
//! letter, or wrong, is left to `native`, which also says what is wrong.

use serde_json::{Map, Value};

use super::MAX_SPECIAL_BYTES;
use super::native::{FORMAT, VERSION, merge_by_of};
use crate::bpe::tokenizer::{Base, Tokenizer};
use crate::bpe::vocab::Vocab;
use crate::pretokenize::{Pattern, SpecialTokens, UNICODE_VERSION};

/// With larger files even what is canonical could be more than is accepted.
const MAX_BYTES: usize = 1 << 25;

/// Whether a file begins as the canonical form does.
pub(super) fn begins(bytes: &[u8]) -> bool {
    after_format(bytes).is_some()
}

fn after_format(bytes: &[u8]) -> Option<&[u8]> {
    let rest = bytes.strip_prefix(br#"{"format":""#)?;
    rest.strip_prefix(FORMAT.as_bytes())?
        .strip_prefix(br#"","merge_by":""#)
}

/// The tokenizer, `None` where that is for `native` to decide.
pub(super) fn parse(bytes: &[u8]) -> Option<Tokenizer> {
    if bytes.len() > MAX_BYTES {
        return None;
    }
    let rest = after_format(bytes)?;
    let end = memchr::memchr(b'"', rest)?;
    let merge_by = merge_by_of(str::from_utf8(&rest[..end]).ok()?)?;
    let (merges, rest) = parse_merges(rest[end..].strip_prefix(br#"","merges":["#)?)?;
    // No string holds this: a quotation mark in a string follows a backslash.
    let end = memchr::memmem::find(rest, VOCAB)?;
    let fields = parse_fields(&rest[..end])?;
    let vocab = parse_vocab(&rest[end + VOCAB.len()..])?;
    let (texts, special_ids) = special_tokens(&fields, &vocab)?;
    let base = Base {
        vocab,
        pattern: Pattern::new(fields.get("pattern")?.as_str()?).ok()?,
        special_ids,
        specials: SpecialTokens::new(&texts).ok()?,
        merge_by,
    };
    Tokenizer::of_base(base, merges.pairs()).ok()
}

const VOCAB: &[u8] = br#","vocab":["#;

/// Byte strings one after the other, and where each ends.
#[derive(Default)]
struct Strings {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Strings {
    fn pairs(&self) -> impl ExactSizeIterator<Item = (&[u8], &[u8])> {
        let mut start = 0;
        self.ends.as_chunks().0.iter().map(move |&[middle, end]| {
            let left = &self.bytes[start..middle];
            start = end;
            (left, &self.bytes[middle..end])
        })
    }
}

/// The pairs up to the end of their list, and what follows it.
fn parse_merges(mut rest: &[u8]) -> Option<(Strings, &[u8])> {
    let mut merges = Strings::default();
    if let Some(rest) = rest.strip_prefix(b"]") {
        return Some((merges, rest));
    }
    loop {
        rest = token(rest.strip_prefix(b"[")?, &mut merges.bytes)?;
        merges.ends.push(merges.bytes.len());
        rest = token(rest.strip_prefix(b",")?, &mut merges.bytes)?;
        merges.ends.push(merges.bytes.len());
        match rest {
            [b']', b',', after @ ..] => rest = after,
            [b']', b']', after @ ..] => return Some((merges, after)),
            _ => return None,
        }
    }
}

/// The few fields between the two lists.
fn parse_fields(json: &[u8]) -> Option<Map<String, Value>> {
    let json = [b"{", json.strip_prefix(b",")?, b"}"].concat();
    let fields: Map<String, Value> = serde_json::from_slice(&json).ok()?;
    let is_known = fields.len() == 4
        && fields.get("unicode_version")? == UNICODE_VERSION
        && fields.get("version")? == VERSION;
    is_known.then_some(fields)
}

/// The tokens, which end the file.
fn parse_vocab(mut rest: &[u8]) -> Option<Vocab> {
    let (mut vocab, mut token_bytes) = (Vocab::empty(), Vec::new());
    loop {
        if let Some(after) = rest.strip_prefix(b"null") {
            vocab.push_hole();
            rest = after;
        } else {
            token_bytes.clear();
            rest = token(rest, &mut token_bytes)?;
            vocab.push(&token_bytes).ok()?;
        }
        match rest {
            [b',', after @ ..] => rest = after,
            b"]}" => return Some(vocab),
            _ => return None,
        }
    }
}

/// The special tokens and their ids in order of id; each must be the vocabulary's token.
fn special_tokens(fields: &Map<String, Value>, vocab: &Vocab) -> Option<(Vec<String>, Vec<u32>)> {
    let mut found = Vec::new();
    for (text, id) in fields.get("special_tokens")?.as_object()? {
        let id = u32::try_from(id.as_u64()?).ok()?;
        let fits = vocab.get(id)? == text.as_bytes() && text.len() <= MAX_SPECIAL_BYTES;
        found.push(fits.then(|| (id, text.clone()))?);
    }
    found.sort_unstable();
    Some(found.into_iter().map(|(id, text)| (text, id)).unzip())
}

/// Reads a token in base64 with its quotation marks; returns what follows it.
fn token<'b>(bytes: &'b [u8], out: &mut Vec<u8>) -> Option<&'b [u8]> {
    let mut rest = bytes.strip_prefix(b"\"")?;
    let n_before = out.len();
    while *rest.first()? != b'"' {
        let four: [u8; 4] = *rest.first_chunk()?;
        let [a, b, c, d] = four.map(|letter| u32::from(SIXTETS[usize::from(letter)]));
        rest = &rest[4..];
        let bits = a << 18 | b << 12 | c << 6 | d;
        let [_, first, second, third] = bits.to_be_bytes();
        if a | b | c | d < 64 {
            out.extend_from_slice(&[first, second, third]);
            continue;
        }
        // The last bytes: what is cut off must be zero, or two texts were one token.
        match four {
            [.., b'=', b'='] if a | b < 64 && b % 16 == 0 => out.push(first),
            [.., b'='] if a | b | c < 64 && c % 4 == 0 => {
                let bits = a << 18 | b << 12 | c << 6;
                let [_, first, second, _] = bits.to_be_bytes();
                out.extend_from_slice(&[first, second]);
            }
            _ => return None,
        }
        if *rest.first()? != b'"' {
            return None;
        }
    }
    (out.len() > n_before).then_some(&rest[1..])
}

/// Writes a token in base64 with its quotation marks.
pub(super) fn push_token(out: &mut Vec<u8>, token_bytes: &[u8]) {
    let letter = |bits: u32| LETTERS[bits as usize & 63];
    out.push(b'"');
    let (threes, rest) = token_bytes.as_chunks();
    for &[a, b, c] in threes {
        let bits = u32::from_be_bytes([0, a, b, c]);
        out.extend_from_slice(&[bits >> 18, bits >> 12, bits >> 6, bits].map(letter));
    }
    match *rest {
        [a] => {
            let bits = u32::from(a) << 4;
            out.extend_from_slice(&[letter(bits >> 6), letter(bits), b'=', b'=']);
        }
        [a, b] => {
            let bits = u32::from_be_bytes([0, 0, a, b]) << 2;
            let [a, b, c] = [bits >> 12, bits >> 6, bits].map(letter);
            out.extend_from_slice(&[a, b, c, b'=']);
        }
        _ => {}
    }
    out.push(b'"');
}

const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// What the letters of base64 stand for; 255 for all other bytes.
static SIXTETS: [u8; 256] = {
    let mut sixtets = [255; 256];
    let mut i = 0;
    while i < LETTERS.len() {
        sixtets[LETTERS[i] as usize] = i as u8;
        i += 1;
    }
    sixtets
};

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD as BASE64;

    use super::super::{from_canonical_json, to_canonical_json};
    use super::*;
    use crate::bpe::{MergeBy, Parts};

    fn tokenizer(merge_by: MergeBy, pattern: &str) -> Tokenizer {
        let mut vocab: Vec<_> = (0..=255u8).map(|b| (u32::from(b), vec![b])).collect();
        // With a hole, and a token of every length from 2 to 40.
        vocab.extend((2..=40).map(|n| (300 + n, vec![b'a'; n as usize])));
        let merges = (1..40).map(|n| (vec![b'a'; n], vec![b'a']));
        Tokenizer::new(Parts {
            vocab,
            merges: merges.collect(),
            special_tokens: vec![("<|é|>".into(), None), ("\",\"vocab\":[".into(), Some(290))],
            pattern: pattern.into(),
            merge_by,
        })
        .expect("valid parts")
    }

    #[test]
    fn what_is_written_is_read_here() {
        for merge_by in [MergeBy::Merges, MergeBy::Ids, MergeBy::TokensThenMerges] {
            for pattern in ["o200k", r#"\w+|",.vocab":\[|\W"#] {
                let written = tokenizer(merge_by, pattern);
                let json = to_canonical_json(&written);
                assert!(begins(&json));
                let read = parse(&json).expect("canonical");
                assert_eq!(to_canonical_json(&read), json);
                assert_eq!(read.sha256(), written.sha256());
                assert_eq!(read.merges(), written.merges());
            }
        }
    }

    #[test]
    fn base64_is_written_as_by_the_library() {
        for n in 0..40usize {
            let token_bytes: Vec<u8> = (0..n).map(|i| (i * 89 + n * 7) as u8).collect();
            let mut out = b"x".to_vec();
            push_token(&mut out, &token_bytes);
            let expected = format!("x\"{}\"", BASE64.encode(&token_bytes));
            assert_eq!(out, expected.as_bytes());
        }
    }

    #[test]
    fn base64_is_read_as_by_the_library() {
        let mut out = Vec::new();
        for text in [
            "YQ==", "YWI=", "YWJj", "YWJjZA==", "+/+/", "YR==", "YWJ=", "Y===", "YQ=", "",
        ] {
            let quoted = format!("\"{text}\",");
            out.clear();
            let rest = token(quoted.as_bytes(), &mut out);
            let expected = BASE64.decode(text).ok().filter(|bytes| !bytes.is_empty());
            assert_eq!(rest.map(|_| out.clone()), expected, "{text}");
            assert!(rest.is_none_or(|rest| rest == b","));
        }
        for text in ["\"YQ==YQ==\"", "\"YQ", "YQ==\"", "\"YQ== \"", "\"Y\"Q=\""] {
            assert!(token(text.as_bytes(), &mut out).is_none(), "{text}");
        }
    }

    /// Wherever a byte is changed or the end is cut off, this module must not read what
    /// `native` refuses, or read something else.
    #[test]
    fn what_is_read_here_is_what_native_reads() {
        let json = to_canonical_json(&tokenizer(MergeBy::Merges, "gpt2"));
        let by_native = |bytes: &[u8]| {
            let path = std::path::Path::new("x");
            let value = super::super::parse_json(path, bytes).ok()?;
            let parts = super::super::native::parse(path, &value).ok()?;
            Tokenizer::new(parts).ok()
        };
        let same = |bytes: &[u8]| {
            let Some(found) = parse(bytes) else { return };
            let expected = by_native(bytes).expect("native reads what this module reads");
            assert_eq!(to_canonical_json(&found), to_canonical_json(&expected));
        };
        for at in (0..json.len())
            .step_by(7)
            .chain(json.len() - 400..json.len())
        {
            for byte in [b'"', b'A', b'=', b',', b'\\', b'1', json[at] ^ 1] {
                let mut changed = json.clone();
                changed[at] = byte;
                same(&changed);
            }
            assert!(parse(&json[..at]).is_none());
        }
        assert!(parse(&[&json[..], b" "].concat()).is_none());
        assert!(from_canonical_json(&[&json[..], b" "].concat()).is_ok());
    }
}
