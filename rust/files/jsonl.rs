//! JSON lines -> the texts in one field of them.

use std::fmt;

use serde_core::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, Visitor};

use super::blocks::Invalid;
use crate::error::{Error, Result};

/// The text of each line, one after the other, and where each ends.
///
/// Blank lines are passed over. Of a field that a line names twice the last counts.
///
/// # Errors
/// `Format`, with the line's number and the byte in the file, where a line is no object
/// with a string in `field` or is longer than `max_bytes`; `Utf8` under
/// [`Invalid::Strict`].
pub(super) fn texts_of_lines(
    lines: &Lines<'_>,
    field: &str,
    max_bytes: usize,
    invalid: Invalid,
) -> Result<(Vec<u8>, Vec<usize>)> {
    if invalid == Invalid::Strict
        && let Err(error) = str::from_utf8(lines.bytes)
    {
        return Err(Error::Utf8 {
            place: lines.place.to_owned(),
            offset: lines.offset + error.valid_up_to() as u64,
        });
    }
    let (mut texts, mut ends) = (Vec::with_capacity(lines.bytes.len()), Vec::new());
    let (mut number, mut at) = (lines.n_before, 0);
    for line in lines.bytes.split_inclusive(|&byte| byte == b'\n') {
        number += 1;
        let refuse = |reason: String| {
            let offset = lines.offset + at as u64;
            let reason = format!("line {number} (byte {offset}): {reason}");
            Err(Error::format(lines.place, reason))
        };
        if line.len() > max_bytes {
            return refuse(format!(
                "a line must have at most max_document_bytes = {max_bytes} bytes, got {}",
                line.len()
            ));
        }
        if !line.trim_ascii().is_empty() {
            let row = Row {
                field,
                text: Text {
                    start: texts.len(),
                    out: &mut texts,
                    invalid,
                },
            };
            let mut json = serde_json::Deserializer::from_slice(line);
            if let Err(error) = row.deserialize(&mut json).and_then(|()| json.end()) {
                return refuse(reason_of(&error));
            }
            ends.push(texts.len());
        }
        at += line.len();
    }
    Ok((texts, ends))
}

/// Some lines of a file.
pub(super) struct Lines<'b> {
    pub bytes: &'b [u8],
    pub place: &'b str,
    /// Where in the file they begin.
    pub offset: u64,
    /// How many lines stand before them.
    pub n_before: u64,
}

/// The parser's message; its line is always 1, its column a byte of our line.
fn reason_of(error: &serde_json::Error) -> String {
    let message = error.to_string();
    let (what, column) = message
        .split_once(" at line 1 column ")
        .unwrap_or((&message, ""));
    let place = if column.is_empty() || column == "0" {
        String::new()
    } else {
        format!(" at column {column}")
    };
    // An escape that begins a pair and stands alone, as JavaScript writes them.
    let hint = if what.contains("hex escape") {
        "; errors=\"replace\" accepts a lone surrogate"
    } else {
        ""
    };
    format!("a line must be a JSON object with the text in one field, got {what}{place}{hint}")
}

/// An object of which one field matters.
struct Row<'a> {
    field: &'a str,
    text: Text<'a>,
}

impl<'de> DeserializeSeed<'de> for Row<'_> {
    type Value = ();

    fn deserialize<D: serde_core::Deserializer<'de>>(
        self,
        json: D,
    ) -> std::result::Result<(), D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Row<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<(), A::Error> {
        let Self { field, mut text } = self;
        let mut found = false;
        while let Some(is_field) = map.next_key_seed(Key(field))? {
            if is_field {
                map.next_value_seed(&mut text)?;
                found = true;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        if found {
            Ok(())
        } else {
            Err(A::Error::custom(format_args!("none named {field:?}")))
        }
    }
}

/// Whether a key is this one; as bytes, which need not be UTF-8.
struct Key<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = bool;

    fn deserialize<D: serde_core::Deserializer<'de>>(
        self,
        json: D,
    ) -> std::result::Result<bool, D::Error> {
        json.deserialize_bytes(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_bytes<E>(self, key: &[u8]) -> std::result::Result<bool, E> {
        Ok(key == self.0.as_bytes())
    }

    fn visit_str<E>(self, key: &str) -> std::result::Result<bool, E> {
        Ok(key == self.0)
    }
}

/// A string that goes to the end of the texts.
struct Text<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
    invalid: Invalid,
}

impl<'de> DeserializeSeed<'de> for &mut Text<'_> {
    type Value = ();

    fn deserialize<D: serde_core::Deserializer<'de>>(
        self,
        json: D,
    ) -> std::result::Result<(), D::Error> {
        // Strings as bytes may hold lone surrogates and what is not UTF-8.
        match self.invalid {
            Invalid::Strict => json.deserialize_str(self),
            Invalid::Replace | Invalid::Raw => json.deserialize_bytes(self),
        }
    }
}

impl Visitor<'_> for &mut Text<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E>(self, text: &str) -> std::result::Result<(), E> {
        self.out.truncate(self.start);
        self.out.extend_from_slice(text.as_bytes());
        Ok(())
    }

    fn visit_bytes<E>(self, text: &[u8]) -> std::result::Result<(), E> {
        self.out.truncate(self.start);
        if self.invalid == Invalid::Raw {
            self.out.extend_from_slice(text);
        } else {
            append_replaced(text, self.out);
        }
        Ok(())
    }
}

/// Appends text with U+FFFD for each lone surrogate and each invalid part.
fn append_replaced(text: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(text);
    if str::from_utf8(text).is_ok() {
        return;
    }
    // A surrogate takes three bytes, ED A0 80 to ED BF BF, and is one character to whoever
    // wrote its escape.
    let mut i = start;
    while i + 3 <= out.len() {
        if let [0xED, 0xA0..=0xBF, 0x80..=0xBF] = out[i..i + 3] {
            out[i..i + 3].copy_from_slice("\u{FFFD}".as_bytes());
        }
        i += 1;
    }
    let replaced = String::from_utf8_lossy(&out[start..]).into_owned();
    out.truncate(start);
    out.extend_from_slice(replaced.as_bytes());
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
mod tests {
    use super::*;

    fn texts(bytes: &[u8], invalid: Invalid) -> Result<Vec<Vec<u8>>> {
        let lines = Lines {
            bytes,
            place: "f.jsonl",
            offset: 1000,
            n_before: 6,
        };
        let (texts, ends) = texts_of_lines(&lines, "text", 200, invalid)?;
        let mut start = 0;
        let cut = |end| {
            let text = texts[start..end].to_vec();
            start = end;
            text
        };
        Ok(ends.into_iter().map(cut).collect())
    }

    #[test]
    fn text_is_found_among_other_fields() {
        let lines = concat!(
            "{\"text\": \"a\\n\\u00e9\\ud83d\\ude00\\\"\"}\n",
            "\r\n \n",
            "{\"id\": [1, {\"text\": \"no\"}], \"text\": \"\", \"n\": null}\r\n",
            "{\"text\": \"first\", \"te\\u0078t\": \"last\"}",
        );
        let expected = ["a\né😀\"", "", "last"];
        for invalid in [Invalid::Strict, Invalid::Replace, Invalid::Raw] {
            let found = texts(lines.as_bytes(), invalid).unwrap();
            assert_eq!(found, expected.map(|text| text.as_bytes().to_vec()));
        }
    }

    #[test]
    fn bad_lines_are_refused_with_number_and_byte() {
        let long = format!("{{\"text\": \"{}\"}}", "x".repeat(200));
        for (line, expected) in [
            ("{\"text\": \"a\"", "EOF while parsing an object"),
            ("{\"text\": null}", "invalid type: null, expected a string"),
            ("{\"text\": 1}", "integer `1`, expected a string"),
            ("[\"text\"]", "invalid type: sequence, expected an object"),
            ("\"text\"", "expected an object"),
            ("{\"body\": \"a\"}", "none named \"text\""),
            ("{\"text\": \"a\"} {}", "trailing characters"),
            ("{\"text\": \"\u{1}\"}", "control character"),
            (
                &long,
                "a line must have at most max_document_bytes = 200 bytes, got 213",
            ),
        ] {
            let lines = format!("{{\"text\": \"ok\"}}\n\n{line}\n{{\"text\": \"ok\"}}\n");
            let error = texts(lines.as_bytes(), Invalid::Strict).unwrap_err();
            let message = error.to_string();
            assert!(
                message.starts_with("f.jsonl: line 9 (byte 1016): "),
                "{message}"
            );
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn invalid_text_is_treated_as_asked() {
        let line = b"{\"\xff\": \"\xff\", \"text\": \"a\xff \\ud800b\"}\n";
        let error = texts(line, Invalid::Strict).unwrap_err();
        assert!(error.to_string().contains("at byte 1002"), "{error}");
        let replaced = texts(line, Invalid::Replace).unwrap();
        assert_eq!(String::from_utf8_lossy(&replaced[0]), "a\u{FFFD} \u{FFFD}b");
        assert_eq!(
            texts(line, Invalid::Raw).unwrap()[0],
            b"a\xff \xed\xa0\x80b"
        );
        let surrogate = b"{\"text\": \"\\ud800b\"}\n";
        let error = texts(surrogate, Invalid::Strict).unwrap_err().to_string();
        assert!(
            error.contains("errors=\"replace\" accepts a lone surrogate"),
            "{error}"
        );
    }
}
