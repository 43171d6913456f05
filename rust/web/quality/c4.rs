//! C4's rules, which remove lines from a page, and Dolma's one rule out of them.

use std::borrow::Cow;

use super::page::Page;
use super::phrases::{Phrase, may_hold_phrase, phrase_in};
use super::{LinesRemoved, Outcome, count_removed, edited};
use crate::web::segment::unicode::{is_space, properties_of};
use crate::web::segment::{count_sentences, n_characters, split_lines, strip};

const MAX_WORD_LENGTH: usize = 1000;
const MIN_WORDS_PER_LINE: usize = 3;
const MIN_SENTENCES: usize = 5;
const CITATIONS: [&str; 2] = ["edit]", "citation needed]"];

/// What becomes of a line.
enum Fate {
    Kept,
    Removed(&'static str),
    PageDropped(&'static str),
}

/// What is looked for in each line, if the page holds it at all.
struct Looks {
    phrases: bool,
    citations: bool,
    curly_brackets: bool,
}

/// Removes lines, or drops the page, line by line in the order of datatrove.
pub fn check(page: &Page, terminal_punctuation: bool, removed: &mut LinesRemoved) -> Outcome {
    let bytes = page.text().as_bytes();
    let looks = Looks {
        phrases: may_hold_phrase(bytes),
        citations: memchr::memchr(b'[', bytes).is_some(),
        curly_brackets: memchr::memchr(b'{', bytes).is_some(),
    };
    let mut kept = String::with_capacity(bytes.len());
    let mut n_sentences = 0;
    for line in split_lines(page.text()) {
        let line = strip(line);
        // A word that is too long goes before citations do, and so do the words counted.
        let is_long = has_long_word(line);
        let is_short = !has_words(line, MIN_WORDS_PER_LINE);
        let line = if looks.citations && !is_long {
            without_citations(line)
        } else {
            Cow::Borrowed(line)
        };
        match judge(&line, is_long, is_short, terminal_punctuation, &looks) {
            Fate::PageDropped(reason) => return Outcome::Drop(reason),
            Fate::Removed(reason) => count_removed(removed, reason, 1),
            Fate::Kept => {
                // What an empty first line leaves out is stripped at the end.
                if !kept.is_empty() {
                    kept.push('\n');
                }
                kept.push_str(&line);
                if n_sentences < MIN_SENTENCES {
                    n_sentences += count_sentences(&line, MIN_SENTENCES - n_sentences);
                }
            }
        }
    }
    if n_sentences < MIN_SENTENCES {
        return Outcome::Drop("c4_too_few_sentences");
    }
    let text = strip(&kept);
    if text.len() < kept.len() {
        return edited(page, text.to_owned());
    }
    edited(page, kept)
}

/// The first rule that hits the line.
fn judge(
    line: &str,
    is_long: bool,
    is_short: bool,
    terminal_punctuation: bool,
    looks: &Looks,
) -> Fate {
    if is_long {
        return Fate::Removed("c4_long_word");
    }
    if terminal_punctuation && !ends_in_punctuation(line) {
        return Fate::Removed("c4_no_terminal_punctuation");
    }
    if is_short {
        return Fate::Removed("c4_few_words");
    }
    let phrase = if looks.phrases { phrase_in(line) } else { None };
    match phrase {
        Some(Phrase::LoremIpsum) => return Fate::PageDropped("c4_lorem_ipsum"),
        Some(Phrase::Javascript) => return Fate::Removed("c4_javascript"),
        _ => {}
    }
    if looks.curly_brackets && line.contains('{') {
        return Fate::PageDropped("c4_curly_bracket");
    }
    if phrase == Some(Phrase::Policy) {
        return Fate::Removed("c4_policy");
    }
    Fate::Kept
}

fn ends_in_punctuation(line: &str) -> bool {
    line.ends_with(['.', '?', '!', '"', '\'']) && !line.ends_with("...")
}

fn has_long_word(line: &str) -> bool {
    line.len() > MAX_WORD_LENGTH
        && line.split(is_space).any(|word| {
            word.len() > MAX_WORD_LENGTH && n_characters(word.as_bytes()) > MAX_WORD_LENGTH
        })
}

/// Whether a stripped line has so many blank-separated words.
fn has_words(line: &str, n: usize) -> bool {
    let mut words = line.split(is_space).filter(|word| !word.is_empty());
    words.nth(n - 1).is_some()
}

/// The line without `[12]`, `[]`, `[edit]` and `[citation needed]`.
fn without_citations(line: &str) -> Cow<'_, str> {
    let mut out = String::new();
    let mut copied = 0;
    for start in memchr::memchr_iter(b'[', line.as_bytes()) {
        if let Some(length) = citation_length(&line[start + 1..]) {
            out.push_str(&line[copied..start]);
            copied = start + 1 + length;
        }
    }
    if copied == 0 {
        return Cow::Borrowed(line);
    }
    out.push_str(&line[copied..]);
    Cow::Owned(out)
}

/// How much of what follows `[` closes a citation.
fn citation_length(after: &str) -> Option<usize> {
    if let Some(known) = CITATIONS.iter().find(|known| after.starts_with(**known)) {
        return Some(known.len());
    }
    let digits = after.find(|character: char| !properties_of(character).is_decimal())?;
    after[digits..].starts_with(']').then_some(digits + 1)
}

/// Dolma's C4 `NoPunc`: lines that do not end in `. ? ! "` go, with their newline.
pub fn remove_unpunctuated_lines(page: &Page, removed: &mut LinesRemoved) -> Outcome {
    let mut kept = String::with_capacity(page.text().len());
    let mut n_removed = 0;
    for line in page.text().split_inclusive('\n') {
        if strip(line).ends_with(['.', '?', '!', '"']) {
            kept.push_str(line);
        } else {
            n_removed += 1;
        }
    }
    count_removed(removed, "c4_no_terminal_punctuation", n_removed);
    edited(page, kept)
}
