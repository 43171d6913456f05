//! Bytes of a page as text.
//!
//! Which encoding a page declares is found in Python, of its first bytes; here it is decoded as
//! browsers do, or guessed at where nothing is declared and it is not UTF-8.

use std::borrow::Cow;

use chardetng::{EncodingDetector, Iso2022JpDetection, Utf8Detection};
use encoding_rs::{Encoding, UTF_8};

/// What is looked at together for controls.
const CHUNK_BYTES: usize = 256;

/// The page as clean text, and the name of its encoding, in the words of the WHATWG.
///
/// Without a label, or with one that names nothing, it is UTF-8 if it is valid UTF-8, else what
/// `chardetng` takes it for. A byte order mark is text like any other.
pub fn decode<'a>(page: &'a [u8], label: &str) -> (Cow<'a, str>, &'static str) {
    let encoding = Encoding::for_label(label.as_bytes()).unwrap_or_else(|| guess(page));
    let (text, _) = encoding.decode_without_bom_handling(page);
    let text = match text {
        Cow::Borrowed(text) => clean(text),
        Cow::Owned(text) => Cow::Owned(match clean(&text) {
            Cow::Borrowed(_) => text,
            Cow::Owned(cleaned) => cleaned,
        }),
    };
    (text, encoding.name())
}

fn guess(page: &[u8]) -> &'static Encoding {
    if std::str::from_utf8(page).is_ok() {
        return UTF_8;
    }
    let mut detector = EncodingDetector::new(Iso2022JpDetection::Deny);
    detector.feed(page, true);
    detector.guess(None, Utf8Detection::Deny)
}

/// Text with `\n` as its only line end, and no other C0 control than tab.
pub fn clean(text: &str) -> Cow<'_, str> {
    if !has_controls(text.as_bytes()) {
        return Cow::Borrowed(text);
    }
    let mut cleaned = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.bytes().position(is_control) {
        cleaned.push_str(&rest[..at]);
        let ends_line = rest[at..].starts_with('\r') && !rest[at..].starts_with("\r\n");
        if ends_line {
            cleaned.push('\n');
        }
        rest = &rest[at + 1..];
    }
    cleaned.push_str(rest);
    Cow::Owned(cleaned)
}

fn is_control(byte: u8) -> bool {
    byte < b' ' && byte != b'\n' && byte != b'\t'
}

/// Looks at chunks without stopping within one, which compiles to vector code.
fn has_controls(bytes: &[u8]) -> bool {
    bytes.chunks(CHUNK_BYTES).any(|chunk| {
        chunk
            .iter()
            .fold(false, |found, &byte| found | is_control(byte))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clean_keeps_only_what_text_holds() {
        assert_eq!(clean("a\r\nb\rc\n\td\0\x1b\x7fe\r"), "a\nb\nc\n\td\x7fe\n");
        assert!(matches!(clean("a\nb\tc\u{85}"), Cow::Borrowed(_)));
    }

    #[test]
    fn undeclared_pages_are_guessed() {
        let russian = "Это страница на русском языке, в старой кодировке.";
        let (bytes, _, _) = encoding_rs::WINDOWS_1251.encode(russian);
        assert_eq!(decode(&bytes, ""), (Cow::Borrowed(russian), "windows-1251"));
        assert_eq!(decode(russian.as_bytes(), "").1, "UTF-8");
        assert_eq!(decode(&bytes, "koi8-r").1, "KOI8-R");
    }
}
