//! The edits of `DCLM`-Baseline's heuristics: newlines and lines.

use super::gopher::n_alphanumeric_words;
use super::page::Page;
use super::{LinesRemoved, Outcome, count_removed, edited, ratio};
use crate::web::segment::strip;
use crate::web::segment::unicode::{is_space, properties_of};

const MAX_UPPERCASE: f64 = 0.5;
const MAX_DIGITS: f64 = 0.999_999;
const MIN_WORDS_PER_LINE: usize = 2;
const MAX_WORDS_OF_FURNITURE_LINE: usize = 10;
const MAX_REMOVED_WORDS: f64 = 0.05;
const COUNTED: [&str; 12] = [
    "likes",
    "shares",
    "comments",
    "retweets",
    "reposts",
    "quotes",
    "bookmarks",
    "upvotes",
    "downvotes",
    "downloads",
    "views",
    "followers",
];

type Goes = fn(&str) -> bool;

const LINE_RULES: [(&str, Goes); 4] = [
    ("dclm_uppercase_line", is_uppercase),
    ("dclm_digits_line", is_digits),
    ("dclm_counter_line", is_counter),
    ("dclm_short_line", is_one_word),
];
const FURNITURE: [fn(&str) -> String; 3] =
    [without_items_in_cart, without_read_more, without_sign_in];

/// At most two `\n` in a row.
pub fn limit_newlines(page: &Page) -> Outcome {
    let text = page.text();
    if memchr::memmem::find(text.as_bytes(), b"\n\n\n").is_none() {
        return Outcome::Keep;
    }
    let mut out = String::with_capacity(text.len());
    let mut n_newlines = 0;
    for line in text.split_inclusive('\n') {
        n_newlines = if line == "\n" { n_newlines + 1 } else { 1 };
        if line != "\n" || n_newlines <= 2 {
            out.push_str(line);
        }
    }
    Outcome::Edit(out)
}

/// Removes lines and furniture; drops the page if more than 5 % of its words went.
pub fn edit_lines(page: &Page, removed: &mut LinesRemoved) -> Outcome {
    let mut text = page.text().to_owned();
    for (reason, goes) in LINE_RULES {
        let mut kept: Vec<&str> = text.split('\n').collect();
        let n_lines = kept.len();
        kept.retain(|line| !goes(line));
        count_removed(removed, reason, (n_lines - kept.len()) as u64);
        let joined = kept.join("\n");
        strip(&joined).clone_into(&mut text);
    }
    for without in FURNITURE {
        let mut kept = Vec::new();
        let mut n_lines = 0;
        for line in text.split('\n') {
            n_lines += 1;
            let after = if has_more_words(line, MAX_WORDS_OF_FURNITURE_LINE) {
                line.to_owned()
            } else {
                without(line)
            };
            if line.is_empty() || !strip(&after).is_empty() {
                kept.push(after);
            }
        }
        count_removed(removed, "dclm_furniture", (n_lines - kept.len()) as u64);
        let joined = kept.join("\n");
        strip(&joined).clone_into(&mut text);
    }
    let (before, after) = (
        n_alphanumeric_words(page.text()),
        n_alphanumeric_words(&text),
    );
    if text.is_empty() || ratio(before.saturating_sub(after), before) > MAX_REMOVED_WORDS {
        return Outcome::Drop("dclm_removed_words");
    }
    edited(page, text)
}

fn share(line: &str, is: impl Fn(char) -> bool) -> f64 {
    let (mut n, mut total) = (0, 0);
    for character in line.chars() {
        total += 1;
        n += usize::from(is(character));
    }
    ratio(n, total)
}

fn is_uppercase(line: &str) -> bool {
    share(line, |character| properties_of(character).is_upper()) > MAX_UPPERCASE
}

fn is_digits(line: &str) -> bool {
    share(line, |character| properties_of(character).is_digit()) > MAX_DIGITS
}

fn is_one_word(line: &str) -> bool {
    !line.is_empty() && !has_more_words(line, MIN_WORDS_PER_LINE - 1)
}

fn has_more_words(line: &str, n: usize) -> bool {
    let mut words = line.split(is_space).filter(|word| !word.is_empty());
    words.nth(n).is_some()
}

/// The character as `str.lower` has it, as far as it can be a letter of a counter; the sign for
/// kelvin is the only one beyond ASCII.
fn lower(character: char) -> char {
    match character {
        '\u{212a}' => 'k',
        other => other.to_ascii_lowercase(),
    }
}

fn is_word_character(character: char) -> bool {
    character == '_' || properties_of(character).is_alphanumeric()
}

/// A number and what it counts, alone: `3 likes`, `1.2K followers`.
fn is_counter(line: &str) -> bool {
    let rest = line.trim_start_matches(|character| !is_word_character(character));
    let number = |character| properties_of(character).is_decimal();
    if !rest.starts_with(number) {
        return false;
    }
    let rest = rest.trim_start_matches(|character| number(character) || ",.".contains(character));
    let rest = match rest.chars().next() {
        Some(unit) if "kmb".contains(lower(unit)) => &rest[unit.len_utf8()..],
        _ => rest,
    };
    let counted = rest.trim_start_matches(is_space);
    if counted.len() == rest.len() {
        return false;
    }
    COUNTED.iter().any(|word| {
        let mut characters = counted.chars();
        let begins = word
            .chars()
            .all(|letter| characters.next().map(lower) == Some(letter));
        begins && !characters.any(is_word_character)
    })
}

/// The length of a phrase that begins here in any case, by the folding of Python's `re`: there
/// `i` is also U+0130 and U+0131, and `s` also U+017F.
fn phrase_length(text: &str, phrase: &str) -> Option<usize> {
    let fold = |character: char| match character {
        '\u{130}' | '\u{131}' => 'i',
        '\u{17f}' => 's',
        other => other.to_ascii_lowercase(),
    };
    let mut characters = text.chars();
    let mut length = 0;
    for letter in phrase.chars() {
        let character = characters.next().filter(|&c| fold(c) == letter)?;
        length += character.len_utf8();
    }
    Some(length)
}

fn without_items_in_cart(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(first) = rest.chars().next() {
        let blank = if is_space(first) { first.len_utf8() } else { 0 };
        if let Some(length) = phrase_length(&rest[blank..], "items in cart") {
            rest = &rest[blank + length..];
        } else {
            out.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
    out
}

/// The dots of the pattern are wildcards: three more characters go, whatever they are.
fn without_read_more(line: &str) -> String {
    const N_CHARACTERS: usize = "read more".len() + 3;
    let start = line.char_indices().rev().nth(N_CHARACTERS - 1);
    let kept = match start {
        Some((start, _)) if phrase_length(&line[start..], "read more").is_some() => {
            let before = &line[..start];
            before.strip_suffix(is_space).unwrap_or(before)
        }
        _ => line,
    };
    kept.to_owned()
}

fn without_sign_in(line: &str) -> String {
    let kept = phrase_length(line, "sign-in").map_or(line, |length| {
        let rest = &line[length..];
        rest.strip_prefix(is_space).unwrap_or(rest)
    });
    kept.to_owned()
}
