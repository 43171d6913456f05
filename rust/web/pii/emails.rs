//! E-mail addresses: each `@` is a candidate, and no search goes back over another's.

use super::{Span, is_word_before, run_before, run_length};
use crate::web::segment::unicode::is_space;

/// Addresses with a domain that ends in letters; dots before and the stop after are not of them.
pub fn course(text: &str) -> Vec<Span> {
    let bytes = text.as_bytes();
    let (mut spans, mut end) = (Vec::new(), 0);
    for at in memchr::memchr_iter(b'@', bytes) {
        if at < end {
            continue;
        }
        let is_local =
            |character: char| character.is_ascii_alphanumeric() || "._%+-".contains(character);
        let mut start = run_before(text, at, end, is_local);
        start += run_length(&bytes[..at], start, |byte| byte == b'.');
        if start == at {
            continue;
        }
        if let Some(stop) = domain_course(bytes, at + 1) {
            spans.push((start, stop));
            end = stop;
        }
    }
    spans
}

fn is_label(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'-'
}

/// The length of the run of a label's characters here, and whether it is one: with a letter or
/// digit at both ends.
fn label(bytes: &[u8], at: usize) -> (usize, bool) {
    let n = run_length(bytes, at, is_label);
    (n, n > 0 && bytes[at] != b'-' && bytes[at + n - 1] != b'-')
}

/// Labels, each with a full stop behind, as many as leave two letters or more for the end.
fn domain_course(bytes: &[u8], start: usize) -> Option<usize> {
    let (mut at, mut end) = (start, None);
    loop {
        let (n, is_whole) = label(bytes, at);
        if at > start {
            let n_letters = run_length(bytes, at, |byte| byte.is_ascii_alphabetic());
            if n_letters >= 2 {
                end = Some(at + n_letters);
            }
        }
        if !is_whole || bytes.get(at + n) != Some(&b'.') {
            return end;
        }
        at += n + 1;
    }
}

/// Addresses of RFC 5322's dot-atoms, or with an address in brackets for a domain.
pub fn fineweb(text: &str) -> Vec<Span> {
    let bytes = text.as_bytes();
    let (mut spans, mut end) = (Vec::new(), 0);
    for at in memchr::memchr_iter(b'@', bytes) {
        if at < end {
            continue;
        }
        let is_local = |character: char| {
            character.is_ascii_alphanumeric() || "!#$%&'*+/=?^_`{|}~-.".contains(character)
        };
        let run = run_before(text, at, end, is_local);
        // No dot is doubled, and none stands at the end.
        let doubled = memchr::memmem::rfind(&bytes[run..at], b"..");
        let begin = doubled.map_or(run, |place| run + place + 2);
        if at == begin || bytes[at - 1] == b'.' {
            continue;
        }
        let is_start = |&place: &usize| {
            let is_word = bytes[place].is_ascii_alphanumeric() || bytes[place] == b'_';
            bytes[place] != b'.' && is_word != is_word_before(text, place)
        };
        let Some(start) = (begin..at).find(is_start) else {
            continue;
        };
        if let Some(stop) = domain_fineweb(bytes, at + 1) {
            spans.push((start, stop));
            end = stop;
        }
    }
    spans
}

/// Two labels or more, or a literal in brackets.
fn domain_fineweb(bytes: &[u8], start: usize) -> Option<usize> {
    if bytes.get(start) == Some(&b'[') {
        return literal(bytes, start + 1);
    }
    let (mut at, mut end) = (start, None);
    loop {
        let (n, is_whole) = label(bytes, at);
        if at > start && n > 0 && bytes[at] != b'-' {
            let run = &bytes[at..at + n];
            let n_hyphens = run.iter().rev().take_while(|&&byte| byte == b'-').count();
            end = Some(at + n - n_hyphens);
        }
        if !is_whole || bytes.get(at + n) != Some(&b'.') {
            return end;
        }
        at += n + 1;
    }
}

/// Three numbers up to 255 and full stops, then a fourth or a tag and a colon, and the bracket.
fn literal(bytes: &[u8], start: usize) -> Option<usize> {
    let number = |at: usize| {
        let n = run_length(bytes, at, |byte| byte.is_ascii_digit()).min(4);
        let is_byte = match &bytes[at..at + n] {
            [_] | [_, _] | [b'0' | b'1', _, _] => true,
            [b'2', tens, ones] => *tens < b'5' || *tens == b'5' && *ones <= b'5',
            _ => false,
        };
        is_byte.then_some(at + n)
    };
    let mut at = start;
    for _ in 0..3 {
        at = number(at).filter(|&end| bytes.get(end) == Some(&b'.'))? + 1;
    }
    let closes = |end: usize| (bytes.get(end) == Some(&b']')).then_some(end + 1);
    if let Some(end) = number(at).and_then(closes) {
        return Some(end);
    }
    let n = run_length(bytes, at, is_label);
    let is_tag = n > 0 && bytes[at + n - 1] != b'-' && bytes.get(at + n) == Some(&b':');
    if is_tag { closes(at + n + 1) } else { None }
}

fn is_mark(character: char) -> bool {
    ".@,?!;:)(".contains(character)
}

/// Addresses before a blank of the same line, with the blanks and marks on both sides.
pub fn dolma(text: &str) -> Vec<Span> {
    let bytes = text.as_bytes();
    let mut spans = Vec::new();
    let (mut end, mut line_end) = (0, 0);
    for at in memchr::memchr_iter(b'@', bytes) {
        if at >= line_end {
            let line_start = memchr::memrchr(b'\n', &bytes[line_end..at]);
            end = line_start.map_or(line_end, |place| line_end + place + 1);
            let next = memchr::memchr(b'\n', &bytes[at..]);
            line_end = next.map_or(bytes.len(), |place| at + place + 1);
        }
        if at < end {
            continue;
        }
        let local = run_before(text, at, end, |character| {
            character != '@' && !is_space(character)
        });
        if local == at {
            continue;
        }
        let Some((domain_end, stop)) = domain_dolma(&text[..line_end], at + 1) else {
            continue;
        };
        let start = run_before(text, local, end, |character| {
            is_mark(character) || is_space(character)
        });
        end = stop;
        let is_bracket = text[local..at].ends_with('(') && text[local..at].chars().all(is_mark);
        if bytes[at + 1..domain_end].contains(&b'.') && !is_bracket {
            spans.push((start, stop));
        }
    }
    spans
}

/// Where the domain ends and where the blank after it does.
fn domain_dolma(line: &str, start: usize) -> Option<(usize, usize)> {
    let is_end = |character: char| is_space(character) || is_mark(character) && character != '.';
    let rest = &line[start..];
    let n = rest.find(is_end).unwrap_or(rest.len());
    let end = start + n;
    let mut after = line[end..].chars();
    let (first, second) = (after.next(), after.next());
    let n_first = first.map_or(0, char::len_utf8);
    if n > 1 && line.as_bytes()[end - 1] == b'.' && first.is_some_and(is_space) {
        return Some((end - 1, end + n_first)); // The full stop is the mark.
    }
    let first = first.filter(|_| n > 0)?;
    match second.filter(|&second| is_space(second)) {
        Some(second) => Some((end, end + n_first + second.len_utf8())),
        None => is_space(first).then_some((end, end + n_first)),
    }
}
