//! Lines of JSON whose text, id and source are strings: what nearly all lines of a corpus are.
//!
//! The twin of `read_documents` in Python, which is asked about every line that is not so plain.
//! Whatever is given here, it would give as well.

use std::borrow::Cow;
use std::fmt;

use serde_core::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use crate::web::decode::clean;

/// What a plain line says of a document, cleaned.
#[derive(Debug, PartialEq, Eq)]
pub struct Row {
    /// Not only white space.
    pub text: String,
    /// The row's own.
    pub id: String,
    /// The row's own, if it names one.
    pub source: Option<String>,
}

/// The row of a line with the text in a field; None where Python must say what the line is: it
/// is no object, a field has another type or comes twice, or something else is out of the common.
///
/// `text_field` must not be one of a document's other fields.
pub fn plain_row(line: &[u8], text_field: &str) -> Option<Row> {
    let mut json = serde_json::Deserializer::from_slice(line);
    let fields = json.deserialize_map(Fields { text_field }).ok()?;
    json.end().ok()?;
    let text = clean(&fields.text).into_owned();
    let is_blank = text.trim_start().is_empty();
    (!is_blank).then(|| Row {
        text,
        id: clean(&fields.id).into_owned(),
        source: fields.source.map(|source| clean(&source).into_owned()),
    })
}

/// The line of JSON with a text alone, as `json.dumps` writes it without escaping what need not
/// be.
pub fn text_line(text: &str) -> Vec<u8> {
    let mut line = Vec::with_capacity(text.len() + text.len() / 16 + 16);
    line.extend_from_slice(b"{\"text\": ");
    // Memory takes any string.
    let written = serde_json::to_writer(&mut line, text);
    debug_assert!(written.is_ok());
    line.extend_from_slice(b"}\n");
    line
}

struct Found<'de> {
    text: Cow<'de, str>,
    id: Cow<'de, str>,
    source: Option<Cow<'de, str>>,
}

struct Fields<'f> {
    text_field: &'f str,
}

impl<'de> Visitor<'de> for Fields<'_> {
    type Value = Found<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with strings")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Found<'de>, A::Error> {
        let (mut text, mut id, mut source) = (None, None, None);
        while let Some(Text(key)) = map.next_key()? {
            let field = match &*key {
                key if key == self.text_field => &mut text,
                "id" => &mut id,
                "source" => &mut source,
                _ => {
                    map.next_value::<Anything>()?;
                    continue;
                }
            };
            if field.replace(map.next_value::<Text>()?.0).is_some() {
                return Err(A::Error::custom("a field that comes twice"));
            }
        }
        match (text, id) {
            (Some(text), Some(id)) => Ok(Found { text, id, source }),
            _ => Err(A::Error::custom("no text or no id")),
        }
    }
}

/// A string, borrowed where it holds no escapes.
struct Text<'de>(Cow<'de, str>);

impl<'de> Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        struct Borrow;
        impl<'de> Visitor<'de> for Borrow {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        json.deserialize_str(Borrow)
    }
}

/// A value of which it only matters that it is one.
///
/// `IgnoredAny` would pass over what Python refuses: numbers of thousands of digits, and strings
/// that are no text.
struct Anything;

impl<'de> Deserialize<'de> for Anything {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        json.deserialize_any(Self)
    }
}

impl<'de> Visitor<'de> for Anything {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self, A::Error> {
        while seq.next_element::<Self>()?.is_some() {}
        Ok(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self, A::Error> {
        while map.next_entry::<Text, Self>()?.is_some() {}
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_lines_are_read_and_others_are_left() {
        let row = |line: &str| plain_row(line.as_bytes(), "text");
        let plain = Row {
            text: "a\nb".to_owned(),
            id: "1".to_owned(),
            source: None,
        };
        let line = r#" {"id":"1","text":"a\r\nb","x":[1,-2,3.5,null,true,{"y":"\n"}]} "#;
        assert_eq!(row(line), Some(plain));
        for line in [
            "",
            "[]",
            r#"{"text":"a"}"#,
            r#"{"text":"a","id":1}"#,
            r#"{"text":"a","id":null}"#,
            r#"{"text":" \u0000\u2003","id":"1"}"#,
            r#"{"text":"a","id":"1","id":"1"}"#,
            r#"{"text":"a","id":"1","source":2}"#,
            r#"{"text":"\ud800","id":"1"}"#,
            r#"{"text":"a","id":"1","x":"\ud800"}"#,
            r#"{"text":"a","id":"1","x":NaN}"#,
            r#"{"text":"a","id":"1"} {}"#,
            "\u{feff}{\"text\":\"a\",\"id\":\"1\"}",
        ] {
            assert_eq!(row(line), None, "{line}");
        }
        let digits = format!(r#"{{"text":"a","id":"1","x":{}}}"#, "1".repeat(5000));
        assert_eq!(row(&digits), None);
    }

    #[test]
    fn a_text_is_escaped_as_python_does_it() {
        let expected = "{\"text\": \"\\\"\\\\\\n\\t\\u0001\u{7f}é/\"}\n";
        assert_eq!(text_line("\"\\\n\t\u{1}\u{7f}é/"), expected.as_bytes());
    }
}
