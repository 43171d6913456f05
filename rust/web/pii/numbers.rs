//! IPv4 addresses and phone numbers.

use super::{Span, is_word_at, is_word_before, run_before, run_length};
use crate::web::segment::unicode::is_space;

fn is_digit(byte: u8) -> bool {
    byte.is_ascii_digit()
}

/// Whether these digits are a number up to 255, of one to three figures, zeros before it allowed.
fn is_byte(digits: &[u8]) -> bool {
    match digits {
        [_] | [_, _] | [b'0' | b'1', _, _] => true,
        [b'2', tens, ones] => *tens < b'5' || *tens == b'5' && *ones <= b'5',
        _ => false,
    }
}

/// The digits before a place, at most three and none before `lowest`: the longest that are a
/// number up to 255.
fn byte_before(bytes: &[u8], place: usize, lowest: usize) -> Option<usize> {
    let n_digits = bytes[lowest..place]
        .iter()
        .rev()
        .take(3)
        .take_while(|&&byte| is_digit(byte))
        .count();
    (1..=n_digits)
        .rev()
        .map(|n| place - n)
        .find(|&start| is_byte(&bytes[start..place]))
}

/// Three numbers with two full stops between them, from here on: where they end. The last one
/// is as long as it can be, or as long as its digits are where nothing else may follow.
fn three_bytes(bytes: &[u8], start: usize, whole: bool) -> Option<usize> {
    let mut at = start;
    for _ in 0..2 {
        let n = run_length(bytes, at, is_digit).min(4);
        if bytes.get(at + n) != Some(&b'.') || !is_byte(&bytes[at..at + n]) {
            return None;
        }
        at += n + 1;
    }
    let n = run_length(bytes, at, is_digit).min(4);
    if whole {
        return is_byte(&bytes[at..at + n]).then_some(at + n);
    }
    let n = n.min(3);
    (1..=n)
        .rev()
        .map(|n| at + n)
        .find(|&end| is_byte(&bytes[at..end]))
}

/// Four numbers between full stops, found by the first of these.
fn find_ips(text: &str, whole: bool) -> Vec<Span> {
    let bytes = text.as_bytes();
    let (mut spans, mut end) = (Vec::new(), 0);
    for dot in memchr::memchr_iter(b'.', bytes) {
        let between = dot > end
            && is_digit(bytes[dot - 1])
            && bytes.get(dot + 1).copied().is_some_and(is_digit);
        if !between {
            continue;
        }
        let Some(start) = byte_before(bytes, dot, end) else {
            continue;
        };
        if whole && start > 0 && is_digit(bytes[start - 1]) {
            continue;
        }
        if let Some(stop) = three_bytes(bytes, dot + 1, whole) {
            spans.push((start, stop));
            end = stop;
        }
    }
    spans
}

/// With no digit beside.
pub fn ips_course(text: &str) -> Vec<Span> {
    find_ips(text, true)
}

/// Without borders.
pub fn ips(text: &str) -> Vec<Span> {
    find_ips(text, false)
}

/// Without borders, if routable on the public internet.
pub fn global_ips(text: &str) -> Vec<Span> {
    let mut spans = find_ips(text, false);
    spans.retain(|&(start, end)| is_global(&text[start..end]));
    spans
}

/// As IANA's special-purpose registry had it in 2024; addresses with leading zeros are none.
fn is_global(address: &str) -> bool {
    let mut numbers = [0_u8; 4];
    for (number, digits) in numbers.iter_mut().zip(address.split('.')) {
        if digits.len() > 1 && digits.starts_with('0') {
            return false;
        }
        match digits.parse() {
            Ok(parsed) => *number = parsed,
            Err(_) => return false,
        }
    }
    match numbers {
        [192, 0, 0, last] => last == 9 || last == 10,
        [0 | 10 | 127 | 240.., ..]
        | [100, 64..=127, ..]
        | [169, 254, ..]
        | [172, 16..=31, ..]
        | [192, 0, 2, _]
        | [192, 168, ..]
        | [198, 18 | 19, ..]
        | [198, 51, 100, _]
        | [203, 0, 113, _] => false,
        _ => true,
    }
}

/// The places where runs of digits begin.
///
/// Most text has few: a block without one is passed over by a loop without a branch, which the
/// compiler makes take 16 or 32 bytes at once.
struct DigitRuns<'t> {
    bytes: &'t [u8],
    at: usize,
}

impl Iterator for DigitRuns<'_> {
    type Item = usize;

    #[inline]
    fn next(&mut self) -> Option<usize> {
        const BLOCK: usize = 64;
        let bytes = self.bytes;
        loop {
            // At the start of a block or in the middle of one with digits.
            if self.at.is_multiple_of(BLOCK)
                && let Some(block) = bytes.get(self.at..self.at + BLOCK)
                && !block.iter().fold(false, |any, &byte| any | is_digit(byte))
            {
                self.at += BLOCK;
                continue;
            }
            let byte = *bytes.get(self.at)?;
            let place = self.at;
            self.at += 1;
            if is_digit(byte) && (place == 0 || !is_digit(bytes[place - 1])) {
                return Some(place);
            }
        }
    }
}

/// US numbers of ten digits, maybe after `+1`, with no word character beside.
pub fn phones_course(text: &str) -> Vec<Span> {
    let bytes = text.as_bytes();
    let (mut spans, mut end) = (Vec::new(), 0);
    for run in (DigitRuns { bytes, at: 0 }) {
        // A number begins at its digits or at what stands before them; the first start wins.
        let before = run
            .checked_sub(1)
            .filter(|&before| before >= end && matches!(bytes[before], b'(' | b'+'));
        for start in before.into_iter().chain([run]) {
            if start < end || is_word_before(text, start) {
                continue;
            }
            if let Some(stop) = phone_course(bytes, start)
                && !is_word_at(text, stop)
            {
                spans.push((start, stop));
                end = stop;
                break;
            }
        }
    }
    spans
}

fn phone_course(bytes: &[u8], start: usize) -> Option<usize> {
    let mut at = start;
    if bytes[at] == b'+' {
        if bytes.get(at + 1) != Some(&b'1') {
            return None;
        }
        at = after_separator(bytes, at + 2);
    }
    let in_brackets = bytes.get(at) == Some(&b'(');
    at = digits(bytes, at + usize::from(in_brackets), 3)?;
    if in_brackets {
        if bytes.get(at) != Some(&b')') {
            return None;
        }
        at += 1;
    }
    at = digits(bytes, after_separator(bytes, at), 3)?;
    digits(bytes, after_separator(bytes, at), 4)
}

fn after_separator(bytes: &[u8], at: usize) -> usize {
    at + usize::from(matches!(bytes.get(at), Some(b' ' | b'.' | b'-')))
}

/// Past so many digits.
fn digits(bytes: &[u8], at: usize, n: usize) -> Option<usize> {
    let found = bytes.get(at..at + n)?;
    found.iter().all(|&byte| is_digit(byte)).then_some(at + n)
}

/// Ten digits after a blank of the same line, with all the blanks before them.
pub fn phones_dolma(text: &str) -> Vec<Span> {
    let bytes = text.as_bytes();
    let is_blank = |character: char| character != '\n' && is_space(character);
    let (mut spans, mut end) = (Vec::new(), 0);
    for run in (DigitRuns { bytes, at: 0 }) {
        let bracket = run.checked_sub(1).filter(|&place| bytes[place] == b'(');
        let start = bracket.unwrap_or(run);
        if start < end || !text[..start].ends_with(is_blank) {
            continue;
        }
        if let Some(stop) = phone_dolma(bytes, run) {
            spans.push((run_before(text, start, end, is_blank), stop));
            end = stop;
        }
    }
    spans
}

/// From its first digit on.
fn phone_dolma(bytes: &[u8], start: usize) -> Option<usize> {
    let mut at = digits(bytes, start, 3)?;
    at += usize::from(bytes.get(at) == Some(&b')'));
    at += run_length(bytes, at, |byte| matches!(byte, b'-' | b'.' | b' '));
    at = digits(bytes, at, 3)?;
    digits(bytes, after_separator(bytes, at), 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_their_borders() {
        assert_eq!(ips("1234.1.1.1234"), [(1, 12)]);
        assert_eq!(ips_course("1234.1.1.1234"), []);
        assert_eq!(ips("1.1.1.1.1.1.1.1"), [(0, 7), (8, 15)]);
        assert_eq!(ips("1.1.1.256 299.1.1.1"), [(0, 8), (11, 19)]);
        assert!(!is_global("10.0.0.1") && is_global("8.8.8.8") && !is_global("08.8.8.8"));
    }

    #[test]
    fn phones_in_long_texts() {
        for n in 0..140 {
            let text = format!("{} (283) 182-3829", "x".repeat(n));
            assert_eq!(phones_course(&text), [(n + 1, n + 15)]);
            assert_eq!(phones_dolma(&text), [(n, n + 15)]);
        }
    }
}
