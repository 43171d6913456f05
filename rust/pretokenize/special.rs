//! Special tokens: reserved strings that are cut out of the text before anything else.

use aho_corasick::{AhoCorasick, MatchKind};

use crate::error::{Error, Result};

/// A set of reserved strings, found leftmost first, and the longest of those that
/// begin at the same place.
#[derive(Clone, Debug)]
pub struct SpecialTokens {
    finder: Option<AhoCorasick>,
    texts: Vec<String>,
    longest: usize,
}

/// A piece of a text between or at special tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segment<'t> {
    /// Ordinary text, never empty.
    Text(&'t [u8]),
    /// The special token with this number in the list given to [`SpecialTokens::new`].
    Special(usize),
}

impl SpecialTokens {
    /// # Errors
    /// `Argument` for an empty or repeated string.
    pub fn new(texts: &[String]) -> Result<Self> {
        let mut seen = rustc_hash::FxHashSet::default();
        for text in texts {
            if text.is_empty() {
                return Err(Error::Argument(
                    "a special token must not be empty, got \"\"".into(),
                ));
            }
            if !seen.insert(text) {
                return Err(Error::Argument(format!(
                    "special tokens must differ from one another, got {text:?} twice"
                )));
            }
        }
        let build = || {
            AhoCorasick::builder()
                .match_kind(MatchKind::LeftmostLongest)
                .build(texts)
        };
        let finder = if texts.is_empty() {
            None
        } else {
            Some(build().map_err(|error| {
                Error::Argument(format!("special tokens are too many or too long: {error}"))
            })?)
        };
        let longest = texts.iter().map(String::len).max().unwrap_or(0);
        Ok(Self {
            finder,
            texts: texts.to_vec(),
            longest,
        })
    }

    /// The strings, in the order given.
    pub fn texts(&self) -> &[String] {
        &self.texts
    }

    /// Bytes of the longest string; 0 for an empty set.
    pub fn longest(&self) -> usize {
        self.longest
    }

    /// Calls `each` with the segments of `text`, in order, until it fails.
    pub fn split<'t>(
        &self,
        text: &'t [u8],
        mut each: impl FnMut(Segment<'t>) -> Result<()>,
    ) -> Result<()> {
        let mut done = 0;
        if let Some(finder) = &self.finder {
            for found in finder.find_iter(text) {
                if found.start() > done {
                    each(Segment::Text(&text[done..found.start()]))?;
                }
                each(Segment::Special(found.pattern().as_usize()))?;
                done = found.end();
            }
        }
        if done < text.len() {
            each(Segment::Text(&text[done..]))?;
        }
        Ok(())
    }

    /// Whether `text` may be divided at `at` without dividing an occurrence of a special
    /// token, even one that begins in `text` and would end in what follows it.
    pub fn may_cut(&self, text: &[u8], at: usize) -> bool {
        let window = at.saturating_sub(self.longest.saturating_sub(1));
        (window..at).all(|start| {
            let rest = &text[start..];
            self.texts.iter().all(|special| {
                let special = special.as_bytes();
                let known = special.len().min(rest.len());
                start + special.len() <= at || special[..known] != rest[..known]
            })
        })
    }

    /// End of the last special token, short of the text's end, that nothing in later text
    /// can change; or else where to look from once the text has grown.
    pub fn last_end(&self, text: &[u8], from: usize) -> std::result::Result<usize, usize> {
        let Some(finder) = &self.finder else {
            return Err(text.len());
        };
        // No match straddles `from`, so looking from there finds what looking from the
        // start would.
        let found: Vec<_> = finder.find_iter(&text[from..]).collect();
        let mut ends = found.iter().rev().map(|m| from + m.end());
        ends.find(|&end| end < text.len() && self.may_cut(text, end))
            .ok_or_else(|| {
                let begun = text.len().saturating_sub(self.longest).max(from);
                found.first().map_or(begun, |m| begun.min(from + m.start()))
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments(specials: &[&str], text: &str) -> Vec<String> {
        let texts: Vec<String> = specials.iter().map(ToString::to_string).collect();
        let specials = SpecialTokens::new(&texts).expect("valid");
        let mut out = Vec::new();
        specials
            .split(text.as_bytes(), |segment| {
                out.push(match segment {
                    Segment::Text(t) => String::from_utf8_lossy(t).into_owned(),
                    Segment::Special(i) => format!("[{}]", texts[i]),
                });
                Ok(())
            })
            .expect("nothing fails");
        out
    }

    #[test]
    fn the_longest_special_token_wins() {
        assert_eq!(
            segments(&["<a>", "<a><a>"], "x<a><a><a>y"),
            ["x", "[<a><a>]", "[<a>]", "y"]
        );
        assert_eq!(segments(&[], "<a>"), ["<a>"]);
    }

    #[test]
    fn empty_and_repeated_special_tokens_are_refused() {
        for bad in [vec![String::new()], vec!["<a>".into(), "<a>".into()]] {
            assert!(matches!(SpecialTokens::new(&bad), Err(Error::Argument(_))));
        }
    }

    #[test]
    fn a_cut_never_divides_a_special_token_begun_or_complete() {
        let specials = SpecialTokens::new(&["<| b|>".into()]).expect("valid");
        assert!(!specials.may_cut(b"a<| b|>", 3));
        assert!(!specials.may_cut(b"a<|", 2));
        assert!(specials.may_cut(b"a<| b|>", 1));
        assert!(specials.may_cut(b"a<| b|>", 7));
    }
}
