//! Any other pattern: a regular expression run by a backtracking engine.
//!
//! Slower than the scanners by a factor of ten and more, and the only way to honour an
//! expression that a user or a published tokenizer brings.

use crate::error::{Error, Result};

/// A compiled expression with its source.
#[derive(Clone, Debug)]
pub struct RegexPattern {
    regex: fancy_regex::Regex,
}

impl RegexPattern {
    pub(super) fn new(source: &str) -> Result<Self> {
        let regex = fancy_regex::Regex::new(source).map_err(|error| {
            Error::Argument(format!(
                "pattern must be gpt2, cl100k, cl100k_2023, o200k or a regular expression, \
                 got {source:?}: {error}"
            ))
        })?;
        Ok(Self { regex })
    }

    pub(super) fn as_str(&self) -> &str {
        self.regex.as_str()
    }

    /// Appends the end of every match, and of the text between matches, so that no byte is
    /// lost where the expression leaves gaps (HF's "isolated" behaviour).
    pub(super) fn split(&self, segment: &[u8], ends: &mut Vec<u32>) -> Result<()> {
        let text = std::str::from_utf8(segment).map_err(|error| {
            Error::Argument(format!(
                "a regular expression splits UTF-8 text only: invalid UTF-8 at byte {} of a segment",
                error.valid_up_to()
            ))
        })?;
        let mut done = 0;
        let mut end_at = |end: usize| {
            if end > done {
                ends.push(end as u32);
                done = end;
            }
        };
        for found in self.regex.find_iter(text) {
            let found = found.map_err(|error| {
                Error::Argument(format!("pattern {:?} gave up: {error}", self.as_str()))
            })?;
            end_at(found.start());
            end_at(found.end());
        }
        end_at(segment.len());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_between_matches_are_kept() {
        let pattern = RegexPattern::new(r"\d+").expect("a valid expression");
        let mut ends = Vec::new();
        pattern.split(b"ab12c3d", &mut ends).expect("UTF-8");
        assert_eq!(ends, [2, 4, 5, 6, 7]);
    }

    #[test]
    fn an_invalid_expression_is_an_argument_error() {
        assert!(matches!(
            RegexPattern::new("(").map(|_| ()),
            Err(Error::Argument(_))
        ));
    }
}
