//! Text -> pretokens: the pieces that byte-pair encoding never merges across.
//!
//! Special tokens are cut out first ([`SpecialTokens`]); each segment between them is
//! split by a [`Pattern`]. No lookahead sees past a segment's end. [`safe_cut`] says
//! where a text may be divided so that the parts give the same pretokens as the whole.

mod regex;
mod scalar;
mod simd;
mod special;
mod unicode;
mod unicode_table;

use crate::error::{Error, Result};
pub use special::{Segment, SpecialTokens};
pub use unicode::UNICODE_VERSION;

use scalar::char_at;
use simd::Scheme;
use unicode::Class;

/// How segments are split into pretokens.
#[derive(Clone, Debug)]
pub enum Pattern {
    /// GPT-2, GPT-3 (r50k, p50k). Source: Radford et al. 2019.
    Gpt2,
    /// GPT-4, as tiktoken ships it.
    Cl100k,
    /// GPT-4 in the spelling of 2023, which differs at the end of a segment.
    Cl100k2023,
    /// GPT-4o.
    O200k,
    /// Qwen 2 and later: GPT-4 in the spelling of 2023 with one digit a pretoken.
    Qwen2,
    /// Llama 3: the same splitter as [`Pattern::Cl100k2023`].
    Llama3,
    /// Any other regular expression.
    Regex(regex::RegexPattern),
}

/// What finds the pretokens of a pattern, fastest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// Mask algebra written for the pattern.
    Scanner,
    /// An automaton made from the expression.
    Automaton,
    /// Backtracking, for lookaround, backreferences and possessive quantifiers.
    Backtracking,
}

impl Engine {
    /// `scanner`, `automaton` or `backtracking`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Scanner => "scanner",
            Self::Automaton => "automaton",
            Self::Backtracking => "backtracking",
        }
    }
}

const GPT2: &[&str] = &[
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
];
const CL100K: &[&str] = &[
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
    // For engines in which `$` and `{1,3}+` mean something else.
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+\z|\s*[\r\n]|\s+(?!\S)|\s",
];
const CL100K_2023: &[&str] = &[
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
];
const O200K: &[&str] = &[
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
];
/// The published expression of that pattern.
pub(crate) const LLAMA3_EXPRESSION: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const LLAMA3: &[&str] = &[LLAMA3_EXPRESSION];
/// The published expression of that pattern.
pub(crate) const QWEN2_EXPRESSION: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &[&str] = &[QWEN2_EXPRESSION];

impl Pattern {
    /// The pattern of a name (`gpt2`, `cl100k`, `cl100k_2023`, `o200k`, `qwen2`, `llama3`), or
    /// of a regular expression; the published spelling of a named pattern is recognised as that name.
    ///
    /// # Errors
    /// `Argument` where the expression does not compile.
    pub fn new(pattern: &str) -> Result<Self> {
        let is = |name: &str, spellings: &[&str]| pattern == name || spellings.contains(&pattern);
        Ok(if is("gpt2", GPT2) {
            Self::Gpt2
        } else if is("cl100k", CL100K) {
            Self::Cl100k
        } else if is("cl100k_2023", CL100K_2023) {
            Self::Cl100k2023
        } else if is("o200k", O200K) {
            Self::O200k
        } else if is("qwen2", QWEN2) {
            Self::Qwen2
        } else if is("llama3", LLAMA3) {
            Self::Llama3
        } else {
            Self::Regex(regex::RegexPattern::new(pattern)?)
        })
    }

    /// The name, or the regular expression itself.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Gpt2 => "gpt2",
            Self::Cl100k => "cl100k",
            Self::Cl100k2023 => "cl100k_2023",
            Self::O200k => "o200k",
            Self::Qwen2 => "qwen2",
            Self::Llama3 => "llama3",
            Self::Regex(regex) => regex.as_str(),
        }
    }

    /// What finds the pretokens.
    pub fn engine(&self) -> Engine {
        match self {
            Self::Regex(regex) if regex.backtracks() => Engine::Backtracking,
            Self::Regex(_) => Engine::Automaton,
            _ => Engine::Scanner,
        }
    }

    /// Calls `each` with every pretoken of one segment, in order; together they are the
    /// segment.
    ///
    /// # Errors
    /// `Argument` where a regular expression meets bytes that are not UTF-8 or gives up.
    #[inline]
    pub fn split(&self, segment: &[u8], mut each: impl FnMut(&[u8])) -> Result<()> {
        self.split_batches(segment, &mut Vec::new(), |batch| {
            for (start, end) in batch.pretokens() {
                each(&batch.segment[start..end]);
            }
        })
    }

    /// Calls `each` with every pretoken of one segment, batch by batch, in order; `ends` is
    /// working memory.
    ///
    /// # Errors
    /// As [`Pattern::split`].
    #[inline]
    pub fn split_batches(
        &self,
        segment: &[u8],
        ends: &mut Vec<u32>,
        mut each: impl FnMut(Batch<'_>),
    ) -> Result<()> {
        // Positions are u32. No pretoken straddles what a longer segment is divided at.
        let mut rest = segment;
        while rest.len() > MAX_PART {
            let cut = safe_cut(&rest[..MAX_PART], 0).filter(|_| self.has_safe_cuts());
            let Some(cut) = cut else {
                return Err(Error::Argument(format!(
                    "a text without word boundaries or special tokens must be shorter than 4 GiB, \
                     got {} bytes",
                    rest.len()
                )));
            };
            self.split_part(&rest[..cut], ends, &mut each)?;
            rest = &rest[cut..];
        }
        self.split_part(rest, ends, &mut each)
    }

    #[inline]
    fn split_part(
        &self,
        segment: &[u8],
        ends: &mut Vec<u32>,
        each: &mut impl FnMut(Batch<'_>),
    ) -> Result<()> {
        match self {
            Self::Gpt2 => scan::<simd::Gpt2>(segment, ends, each),
            Self::Cl100k => scan::<simd::Cl100k>(segment, ends, each),
            Self::Cl100k2023 | Self::Llama3 => scan::<simd::Cl100k2023>(segment, ends, each),
            Self::O200k => scan::<simd::O200k>(segment, ends, each),
            Self::Qwen2 => scan::<simd::Qwen2>(segment, ends, each),
            Self::Regex(regex) => {
                ends.clear();
                regex.split(segment, ends)?;
                each(Batch {
                    segment,
                    start: 0,
                    ends,
                });
            }
        }
        Ok(())
    }

    /// Whether texts may be divided at [`safe_cut`] under this pattern. Nothing is known
    /// of an unknown expression: its texts are divided at special tokens alone.
    pub fn has_safe_cuts(&self) -> bool {
        !matches!(self, Self::Regex(_))
    }
}

/// Consecutive pretokens of a segment. What looks them up in a table can ask for the lines
/// of a whole batch before it waits for the first.
#[derive(Clone, Copy)]
pub struct Batch<'b> {
    /// The segment.
    pub segment: &'b [u8],
    /// Where the first pretoken starts.
    pub start: usize,
    /// Where each of them ends, which is where the next one starts.
    pub ends: &'b [u32],
}

impl Batch<'_> {
    /// The batch in parts of at most `n` pretokens.
    #[inline]
    pub fn parts(self, n: usize) -> impl Iterator<Item = Self> {
        let mut start = self.start;
        self.ends.chunks(n).map(move |ends| {
            let part = Self {
                start,
                ends,
                ..self
            };
            start = ends.last().map_or(start, |&end| end as usize);
            part
        })
    }

    /// Start and end of the pretoken with a number.
    #[inline]
    pub fn pretoken(&self, number: usize) -> (usize, usize) {
        let start = match number.checked_sub(1) {
            Some(before) => self.ends[before] as usize,
            None => self.start,
        };
        (start, self.ends[number] as usize)
    }

    /// Start and end of each pretoken in the segment.
    #[inline]
    pub fn pretokens(&self) -> impl Iterator<Item = (usize, usize)> {
        let mut start = self.start;
        self.ends.iter().map(move |&end| {
            let from = std::mem::replace(&mut start, end as usize);
            (from, end as usize)
        })
    }
}

/// Below this length of a segment the set-up of the block scanner does not pay.
const MIN_BLOCK_SCAN: usize = 64;

/// Longest part of a segment that is scanned at once.
const MAX_PART: usize = u32::MAX as usize;

/// Most pretokens in a batch of a scanner.
const BATCH: usize = 256;

#[inline]
fn scan<S: Scheme>(segment: &[u8], ends: &mut Vec<u32>, each: &mut impl FnMut(Batch<'_>)) {
    if segment.len() < MIN_BLOCK_SCAN {
        return scan_chars::<S>(segment, ends, each);
    }
    let mut scanner = simd::BlockScanner::<S>::new(segment);
    let mut start = 0;
    let mut more = true;
    while more {
        ends.clear();
        // A pretoken ends where the next one starts.
        more = scanner.next_starts(BATCH - simd::BLOCK, ends);
        if !more {
            ends.push(segment.len() as u32);
        }
        each(Batch {
            segment,
            start,
            ends,
        });
        start = ends.last().map_or(start, |&end| end as usize);
    }
}

/// The same, one character at a time.
#[inline]
fn scan_chars<S: Scheme>(segment: &[u8], ends: &mut Vec<u32>, each: &mut impl FnMut(Batch<'_>)) {
    let mut at = 0;
    while at < segment.len() {
        let start = at;
        ends.clear();
        while at < segment.len() && ends.len() < BATCH {
            at = S::scalar_end(segment, at);
            ends.push(at as u32);
        }
        each(Batch {
            segment,
            start,
            ends,
        });
    }
}

/// The last position in `low..text.len()` at which a named pattern is sure to begin a
/// pretoken whatever follows the text, so that both sides may be split apart.
///
/// Such a position has a letter or digit before it and, after it, a character that is
/// neither letter, digit, mark nor apostrophe: a run of letters or digits ends there
/// under every named pattern (marks and apostrophes may continue a word in o200k), and
/// no lookahead of the left side reaches the border.
pub fn safe_cut(text: &[u8], low: usize) -> Option<usize> {
    let mut at = text.len();
    while at > low.max(1) {
        at -= 1;
        if text[at] & 0xC0 != 0x80 && is_safe_cut(text, at) {
            return Some(at);
        }
    }
    None
}

fn is_safe_cut(text: &[u8], at: usize) -> bool {
    let Some(right) = char_at(text, at) else {
        return false;
    };
    // A truncated or invalid character might become something else with more text.
    let ends_run = right.valid && matches!(right.class, Class::Other | Class::Space);
    if !ends_run || text[at] == b'\'' {
        return false;
    }
    let Some(start) = (at.saturating_sub(4)..at)
        .rev()
        .find(|&i| text[i] & 0xC0 != 0x80)
    else {
        return false;
    };
    char_at(text, start).is_some_and(|left| {
        let in_run = left.class.is_letter() || left.class == Class::Number;
        left.valid && in_run && start + left.len == at
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn pieces(pattern: &str, text: &str) -> Vec<String> {
        let mut out = Vec::new();
        let pattern = Pattern::new(pattern).expect("a known pattern");
        pattern
            .split(text.as_bytes(), |p| {
                out.push(String::from_utf8_lossy(p).into_owned());
            })
            .expect("a named pattern cannot fail");
        out
    }

    /// The published expressions, run by a general engine: the outside oracle.
    fn engine_pieces(expression: &str, text: &str) -> Vec<String> {
        let regex = fancy_regex::Regex::new(expression).expect("a valid expression");
        regex
            .find_iter(text)
            .map(|m| m.expect("no limit is met").as_str().to_owned())
            .collect()
    }

    #[test]
    fn scanners_equal_their_expressions_on_short_strings() {
        let alphabet = [
            ' ', '\n', '\r', '\t', 'a', 'A', '1', '!', '\'', 's', 'ſ', 'é', '世', '\u{301}',
            '\u{A0}', '\0', '/',
        ];
        let mut texts = vec![String::new()];
        let mut all = Vec::new();
        for _ in 0..3 {
            texts = texts
                .iter()
                .flat_map(|t| alphabet.iter().map(move |c| format!("{t}{c}")))
                .collect();
            all.extend(texts.iter().cloned());
        }
        for (name, spellings) in [
            ("gpt2", GPT2),
            ("cl100k", CL100K),
            ("cl100k_2023", CL100K_2023),
            ("o200k", O200K),
            ("qwen2", QWEN2),
            ("llama3", LLAMA3),
        ] {
            for spelling in spellings {
                let regex = fancy_regex::Regex::new(spelling).expect("a valid expression");
                for text in &all {
                    let expected: Vec<String> = regex
                        .find_iter(text)
                        .map(|m| m.expect("no limit").as_str().to_owned())
                        .collect();
                    assert_eq!(
                        pieces(name, text),
                        expected,
                        "{name} as {spelling} on {text:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn scanners_equal_their_expressions_on_prose() {
        let text = "Y'all'd've SEEN it—DIDN'T you? ΑΒΓαβγ 'S ſ'ſ\u{301}x  \n\n\t  12345 a/b//\n\r\n  日本語。\n字 end  ";
        for (name, spellings) in [
            ("gpt2", GPT2),
            ("cl100k", CL100K),
            ("cl100k_2023", CL100K_2023),
            ("o200k", O200K),
            ("qwen2", QWEN2),
            ("llama3", LLAMA3),
        ] {
            for start in text.char_indices().map(|(i, _)| i) {
                for spelling in spellings {
                    assert_eq!(
                        pieces(name, &text[start..]),
                        engine_pieces(spelling, &text[start..])
                    );
                }
            }
        }
    }

    #[test]
    fn parts_at_a_safe_cut_equal_the_whole() {
        let text = "It's 12 o'clock—日本語。Ünïcode\u{301}! 字\n\nand  so/on's  \n";
        for name in ["gpt2", "cl100k", "cl100k_2023", "o200k", "qwen2", "llama3"] {
            let whole = pieces(name, text);
            for end in text.char_indices().map(|(i, _)| i) {
                if let Some(cut) = safe_cut(&text.as_bytes()[..end], 0) {
                    let mut parts = pieces(name, &text[..cut]);
                    parts.extend(pieces(name, &text[cut..]));
                    assert_eq!(parts, whole, "{name} cut at {cut}");
                }
            }
        }
    }
}
