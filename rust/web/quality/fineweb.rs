//! `FineWeb`'s own rules, as released in April 2024 and as datatrove has them since December 2024.

use super::duplicates::find_duplicates;
use super::page::Page;
use super::ratio;
use crate::web::segment::n_characters;
use crate::web::segment::unicode::{is_space, properties_of};

const MIN_PUNCTUATED_LINES: f64 = 0.12;
const MAX_SHORT_LINES: f64 = 0.67;
const SHORT_LINE: usize = 30;
const MAX_DUPLICATE_CHARACTERS: f64 = 0.01;
const MAX_NEWLINES_PER_WORD: f64 = 0.3;
const TERMINAL_PUNCTUATION_RELEASED: [char; 5] = ['.', '\'', '"', '!', '?'];

/// Of which date the rules are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// April 2024: all lines count, limits are inclusive.
    Released,
    /// Since December 2024: lines with more than blanks count, limits are exclusive.
    Present,
}

/// The first rule that the page breaks.
pub fn check(page: &Page, version: Version) -> Option<&'static str> {
    let text = page.text();
    let (mut n_lines, mut n_punctuated, mut n_short) = (0, 0, 0);
    for line in text.split('\n') {
        if version == Version::Present && !is_filled(line) {
            continue;
        }
        let is_punctuated = match version {
            Version::Present => {
                let last = line.chars().next_back();
                last.is_some_and(|last| properties_of(last).is_sentence_terminal())
            }
            Version::Released => line.ends_with(TERMINAL_PUNCTUATION_RELEASED),
        };
        n_lines += 1;
        n_punctuated += usize::from(is_punctuated);
        n_short += usize::from(is_short(line));
    }
    let (punctuated, short) = (ratio(n_punctuated, n_lines), ratio(n_short, n_lines));
    let is_over = |share: f64, limit: f64| match version {
        Version::Present => share > limit,
        Version::Released => share >= limit,
    };
    if n_lines == 0 {
        return Some("fineweb_empty");
    }
    // Over the limit of the others is what is not under this one.
    if is_over(MIN_PUNCTUATED_LINES, punctuated) {
        return Some("fineweb_line_punctuation");
    }
    if is_over(short, MAX_SHORT_LINES) {
        return Some("fineweb_short_lines");
    }
    let n_newlines = memchr::memchr_iter(b'\n', text.as_bytes()).count();
    let n_duplicate = find_duplicates(text.split('\n').filter(|line| is_filled(line)));
    let duplicate = ratio(
        n_duplicate.later_characters,
        page.n_characters() - n_newlines,
    );
    if is_over(duplicate, MAX_DUPLICATE_CHARACTERS) {
        return Some("fineweb_duplicate_characters");
    }
    let too_many = ratio(n_newlines, page.unicode_words().len()) > MAX_NEWLINES_PER_WORD;
    too_many.then_some("fineweb_newlines")
}

fn is_filled(line: &str) -> bool {
    line.contains(|character| !is_space(character))
}

/// At most 30 code points, of which none has more than four bytes.
fn is_short(line: &str) -> bool {
    line.len() <= SHORT_LINE
        || line.len() <= 4 * SHORT_LINE && n_characters(line.as_bytes()) <= SHORT_LINE
}
