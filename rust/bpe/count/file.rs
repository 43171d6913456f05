//! The `.counts` file: pretokens with their counts, sorted, so that files can be summed.
//!
//! ```text
//! 0   8 B   "RSLMCNT\x01"
//! 8   u32   length of the header
//! 12        header: JSON with pattern, special_tokens, unicode_version, unit
//!     u32   CRC-32 of everything before
//!           n_entries entries, ascending by bytes:
//!             varint  bytes shared with the pretoken before (at most 63)
//!             varint  length of the rest, at least 1
//!             bytes   the rest
//!             varint  count, at least 1
//! -28 u64   n_entries
//! -20 u64   sum of the counts
//! -12 u64   sum of count x length
//! -4  u32   CRC-32 of everything before
//! ```
//!
//! Numbers are little-endian. What is shared is bounded so that no file can stand for
//! pretokens of more than some 16 times its own size.

mod reader;
mod writer;

use serde_json::{Value, json};

pub use self::reader::CountsReader;
pub(super) use self::writer::CountsWriter;
use crate::error::{Error, Result};

const MAGIC: &[u8; 8] = b"RSLMCNT\x01";
const FOOTER_BYTES: u64 = 28;
const MAX_SHARED: usize = 63;
const MAX_HEADER_BYTES: u32 = 1 << 26;
/// A file that claims a longer pretoken is refused before memory is taken for it.
const MAX_PRETOKEN_BYTES: u64 = 1 << 28;
pub(super) const BUFFER_BYTES: usize = 1 << 16;

/// How the pretokens of a file were made. Only counts that agree may be summed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CountsOrigin {
    /// Name of the pattern, or a regular expression.
    pub pattern: String,
    /// Strings that were cut out first.
    pub special_tokens: Vec<String>,
    /// "document" or "line".
    pub unit: String,
    /// Version of the Unicode data.
    pub unicode_version: String,
}

impl CountsOrigin {
    fn to_json(&self) -> Vec<u8> {
        let value = json!({
            "pattern": self.pattern,
            "special_tokens": self.special_tokens,
            "unicode_version": self.unicode_version,
            "unit": self.unit,
        });
        value.to_string().into_bytes()
    }

    fn from_json(bytes: &[u8]) -> Option<Self> {
        let value: Value = serde_json::from_slice(bytes).ok()?;
        let text = |name| Some(value.get(name)?.as_str()?.to_owned());
        let specials = value.get("special_tokens")?.as_array()?.iter();
        Some(Self {
            pattern: text("pattern")?,
            special_tokens: specials
                .map(|special| Some(special.as_str()?.to_owned()))
                .collect::<Option<_>>()?,
            unit: text("unit")?,
            unicode_version: text("unicode_version")?,
        })
    }

    /// Refuses counts that were made in another way; the order of special tokens does not
    /// matter. `name` and `other_name` say whose they are.
    ///
    /// # Errors
    /// `Argument` with the first thing that differs.
    pub fn check_same(&self, other: &Self, name: &str, other_name: &str) -> Result<()> {
        let sorted = |origin: &Self| {
            let mut texts = origin.special_tokens.clone();
            texts.sort();
            format!("{texts:?}")
        };
        let quoted = |text: &String| format!("{text:?}");
        let things = [
            ("pattern", quoted(&self.pattern), quoted(&other.pattern)),
            ("special_tokens", sorted(self), sorted(other)),
            ("unit", quoted(&self.unit), quoted(&other.unit)),
            (
                "unicode_version",
                quoted(&self.unicode_version),
                quoted(&other.unicode_version),
            ),
        ];
        for (thing, ours, theirs) in things {
            if ours != theirs {
                return Err(Error::Argument(format!(
                    "{thing} must be the same for all counts, got {ours} in {name} and \
                     {theirs} in {other_name}"
                )));
            }
        }
        Ok(())
    }
}

/// What a multiset of pretokens comes to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CountsTotal {
    /// Different pretokens.
    pub n_entries: u64,
    /// All of them: the sum of the counts.
    pub n_pretokens: u64,
    /// Bytes of text they stand for.
    pub n_bytes: u64,
}

impl CountsTotal {
    /// Takes another different pretoken in.
    ///
    /// # Errors
    /// `Argument` where the text would be longer than 2^63 - 1 bytes. No pair of symbols
    /// occurs more often than there are bytes, so whatever training adds up then fits too.
    #[inline]
    pub fn add(&mut self, pretoken: &[u8], count: u64) -> Result<()> {
        let n_bytes = count
            .checked_mul(pretoken.len() as u64)
            .and_then(|n_bytes| n_bytes.checked_add(self.n_bytes))
            .filter(|&n_bytes| i64::try_from(n_bytes).is_ok());
        let Some(n_bytes) = n_bytes else {
            return Err(Error::Argument(format!(
                "the counts must stand for at most {} bytes of text, got more with the count \
                 {count} of {:?}",
                i64::MAX,
                String::from_utf8_lossy(&pretoken[..pretoken.len().min(40)])
            )));
        };
        self.n_entries += 1;
        self.n_pretokens += count;
        self.n_bytes = n_bytes;
        Ok(())
    }
}
