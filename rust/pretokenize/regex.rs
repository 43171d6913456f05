//! Any other pattern: a regular expression that a user or a published tokenizer brings.
//!
//! Two engines. An automaton reads each byte a bounded number of times and runs whatever has
//! no lookaround and no possessive quantifier. Most published expressions would have none but
//! for their ending `\s+(?!\S)|\s+`, which is therefore taken off: the automaton finds a run
//! of whitespace, and [`RegexPattern::split`] gives its last character back where text
//! follows. Backtracking, slower by a factor of ten and more, runs the rest; the ending is
//! taken off there too, as it alone would make a megabyte of whitespace too much for it.

use regex_automata::{Input, meta};
use regex_syntax::ast;

use crate::error::{Error, Result};

/// A compiled expression with its source.
#[derive(Clone, Debug)]
pub struct RegexPattern {
    source: String,
    engine: Engine,
}

#[derive(Clone, Debug)]
enum Engine {
    /// Pattern 1, if there is one, is the ending.
    Automaton(meta::Regex),
    /// The group that holds the ending, if there is one.
    Backtracking(fancy_regex::Regex, Option<usize>),
}

/// What follows the other alternatives of most published expressions; both say the same, as
/// the last alternative meets a single character only.
const ENDINGS: [&str; 2] = [r"|\s+(?!\S)|\s+", r"|\s+(?!\S)|\s"];

/// A match: where it ends after where it starts, and whether it is the ending's.
type Match = (usize, usize, bool);

impl RegexPattern {
    pub(super) fn new(source: &str) -> Result<Self> {
        let engine = match automaton(source) {
            Some(regex) => Engine::Automaton(regex),
            None => backtracking(source).map_err(|error| {
                Error::Argument(format!(
                    "pattern must be gpt2, cl100k, cl100k_2023, o200k, qwen2, llama3 or a regular \
                     expression, got {source:?}: {error}"
                ))
            })?,
        };
        Ok(Self {
            source: source.to_owned(),
            engine,
        })
    }

    pub(super) fn as_str(&self) -> &str {
        &self.source
    }

    pub(super) fn backtracks(&self) -> bool {
        matches!(self.engine, Engine::Backtracking(..))
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
        match &self.engine {
            Engine::Automaton(regex) => each_match(text, &mut end_at, |at| {
                let found = regex.find(Input::new(text).range(at..));
                Ok(found.map(|m| (m.start(), m.end(), m.pattern().as_usize() == 1)))
            }),
            Engine::Backtracking(regex, Some(group)) => each_match(text, &mut end_at, |at| {
                let found = regex.captures_from_pos(text, at);
                let found = found.map_err(|error| self.gave_up(&error))?;
                Ok(found.and_then(|groups| {
                    let whole = groups.get(0)?;
                    Some((whole.start(), whole.end(), groups.get(*group).is_some()))
                }))
            }),
            Engine::Backtracking(regex, None) => regex.find_iter(text).try_for_each(|found| {
                let found = found.map_err(|error| self.gave_up(&error))?;
                end_at(found.start());
                end_at(found.end());
                Ok(())
            }),
        }?;
        end_at(segment.len());
        Ok(())
    }

    fn gave_up(&self, error: &fancy_regex::Error) -> Error {
        Error::Argument(format!("pattern {:?} gave up: {error}", self.source))
    }
}

/// Calls `end_at` with both ends of all matches.
fn each_match(
    text: &str,
    end_at: &mut impl FnMut(usize),
    mut find: impl FnMut(usize) -> Result<Option<Match>>,
) -> Result<()> {
    let mut at = 0;
    while at < text.len() {
        let Some((start, mut end, is_ending)) = find(at)? else {
            break;
        };
        if is_ending && end < text.len() {
            // `\s+(?!\S)` gives the last character back, unless it is the only one.
            let last = text[start..end]
                .chars()
                .next_back()
                .map_or(0, char::len_utf8);
            if end - last > start {
                end -= last;
            }
        }
        end_at(start);
        end_at(end);
        at = end;
        if start == end {
            // The next match is looked for after the next character.
            at += text[end..].chars().next().map_or(1, char::len_utf8);
        }
    }
    Ok(())
}

/// The other alternatives of an expression with the ending.
fn without_ending(source: &str) -> Option<&str> {
    let rest = ENDINGS.iter().find_map(|end| source.strip_suffix(end))?;
    // Flags that are set for the rest of the expression could change what the ending says,
    // or that it is one: after `(?x)` it may be a comment.
    let sets_flags = rest.match_indices("(?").any(|(i, _)| {
        let flags = rest[i + 2..].find(|c: char| !c.is_ascii_alphabetic() && c != '-');
        flags.is_some_and(|n| {
            n > 0 && !rest[i + 2..].starts_with('P') && rest[i + 2..][..n].contains(['x', 'u', '-'])
        })
    });
    (!sets_flags && !rest.is_empty()).then_some(rest)
}

/// The automaton of an expression, if it has one.
fn automaton(source: &str) -> Option<meta::Regex> {
    let patterns = match without_ending(source) {
        Some(rest) => vec![rest, r"\s+"],
        None => vec![source],
    };
    let parsed = ast::parse::Parser::new().parse(patterns[0]).ok()?;
    if ast::visit(&parsed, Possessive).is_err() {
        return None;
    }
    meta::Regex::new_many(&patterns).ok()
}

fn backtracking(source: &str) -> std::result::Result<Engine, Box<fancy_regex::Error>> {
    let compile = fancy_regex::Regex::new;
    // The whole must be an expression, and so must what is left of it.
    let whole = compile(source)?;
    let Some(Ok(rest)) = without_ending(source).map(compile) else {
        return Ok(Engine::Backtracking(whole, None));
    };
    let with_group = format!(r"{}|(\s+)", rest.as_str());
    match compile(&with_group) {
        Ok(regex) => {
            let group = regex.captures_len() - 1;
            Ok(Engine::Backtracking(regex, Some(group)))
        }
        _ => Ok(Engine::Backtracking(whole, None)),
    }
}

/// Fails at a quantifier of a quantifier: possessive to one engine, not to the other.
struct Possessive;

impl ast::Visitor for Possessive {
    type Output = ();
    type Err = ();

    fn finish(self) -> std::result::Result<(), ()> {
        Ok(())
    }

    fn visit_pre(&mut self, ast: &ast::Ast) -> std::result::Result<(), ()> {
        match ast {
            ast::Ast::Repetition(outer) if matches!(*outer.ast, ast::Ast::Repetition(_)) => Err(()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(pattern: &str, text: &str) -> Vec<u32> {
        let pattern = RegexPattern::new(pattern).expect("a valid expression");
        let mut ends = Vec::new();
        pattern.split(text.as_bytes(), &mut ends).expect("UTF-8");
        ends
    }

    /// As one backtracking engine sees the whole expression.
    fn oracle(regex: &fancy_regex::Regex, text: &str) -> Vec<u32> {
        let found = regex.find_iter(text).map(|m| m.expect("no limit is met"));
        let mut ends: Vec<u32> = found
            .flat_map(|m| [m.start() as u32, m.end() as u32])
            .chain([text.len() as u32])
            .collect();
        ends.dedup();
        ends.retain(|&end| end > 0);
        ends
    }

    /// Expression, and whether it must backtrack.
    const EXPRESSIONS: [(&str, bool); 14] = [
        (r"\d+", false),
        (r"\p{L}+|\s", false),
        (r"\w+?b|a(?i:B)+", false),
        (r"(?i)s+|\bx|^ |\s+(?!\S)|\s+", false),
        (r"\p{N}{1,2}| ?\p{L}+|[^\s\p{L}]+|\s+(?!\S)|\s+", false),
        (r" ?\w+|\s*[\r\n]|\s+(?!\S)|\s", false),
        (r" ?\w++|\s+(?!\S)|\s+", true),
        (r"a++a|\s+(?!\S)|\s+", true),
        (r"(?x) a # |\s+(?!\S)|\s+", false),
        (r"(?<=a)b|\w|\s+(?!\S)|\s", true),
        (r"(\w)\1|\w|\s+(?!\S)|\s+", true),
        (r"\s+(?!\S)|\S+", true),
        (r"a*|\s+(?!\S)|\s+", false),
        (r"a*b?", false),
    ];

    #[test]
    fn both_engines_equal_the_whole_expression() {
        let alphabet = [
            " ", "\n", "\u{A0}", "\u{3000}", "a", "b", "1", "s", "x", "é",
        ];
        let texts: Vec<String> = (0..10_000)
            .map(|number| {
                let digits = [number / 1000, number / 100, number / 10, number].map(|n| n % 10);
                digits.map(|i| alphabet[i]).concat()
            })
            .collect();
        for (expression, backtracks) in EXPRESSIONS {
            let pattern = RegexPattern::new(expression).expect("a valid expression");
            assert_eq!(pattern.backtracks(), backtracks, "{expression}");
            let regex = fancy_regex::Regex::new(expression).expect("a valid expression");
            for text in &texts {
                let mut ends = Vec::new();
                pattern.split(text.as_bytes(), &mut ends).expect("UTF-8");
                assert_eq!(ends, oracle(&regex, text), "{expression} on {text:?}");
            }
        }
    }

    #[test]
    fn megabytes_of_whitespace_are_no_limit() {
        let text = format!("{}x", " ".repeat(3_000_000));
        let end = text.len() as u32;
        for (expression, _) in EXPRESSIONS {
            if expression.contains(r"|\s+(?!\S)|\s") && !expression.contains("(?x)") {
                let ends = split(expression, &text);
                assert!(
                    ends.contains(&(end - 2)) || ends.contains(&1),
                    "{expression}"
                );
                assert_eq!(ends.last(), Some(&end));
            }
        }
        // Elsewhere than at the end the lookahead is left as it is, and says that it gave up.
        let pattern = RegexPattern::new(r"\s+(?!\S)|\S+").expect("a valid expression");
        let result = pattern.split(text.as_bytes(), &mut Vec::new());
        assert!(matches!(result, Err(Error::Argument(_))));
    }

    #[test]
    fn gaps_between_matches_are_kept() {
        assert_eq!(split(r"\d+", "ab12c3d"), [2, 4, 5, 6, 7]);
    }

    #[test]
    fn an_invalid_expression_is_an_argument_error() {
        for bad in ["(", r"(|\s+(?!\S)|\s+", r"a\|\s+(?!\S)|\s+)"] {
            assert!(matches!(
                RegexPattern::new(bad).map(|_| ()),
                Err(Error::Argument(_))
            ));
        }
    }
}
