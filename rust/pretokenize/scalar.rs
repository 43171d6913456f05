//! The readable scanners: one function per pattern that returns where a pretoken ends.
//!
//! Each spells out by hand what its regular expression matches at one position, in
//! the order of the expression's alternatives. They read raw bytes: a byte that
//! starts no valid UTF-8 character counts as one character of class `Other`.

use super::unicode::{ASCII_CLASS, Class, class_of};

/// One character of the text: its class and its length in bytes.
#[derive(Clone, Copy)]
pub(super) struct Char {
    pub class: Class,
    pub len: usize,
    /// Whether the bytes are valid UTF-8.
    pub valid: bool,
}

/// The character that starts at `at`, or `None` at the end of the segment.
#[inline]
pub(super) fn char_at(text: &[u8], at: usize) -> Option<Char> {
    let &first = text.get(at)?;
    if first < 128 {
        return Some(Char {
            class: ASCII_CLASS[first as usize],
            len: 1,
            valid: true,
        });
    }
    Some(match decode(&text[at..]) {
        Some((code_point, len)) => Char {
            class: class_of(code_point),
            len,
            valid: true,
        },
        None => Char {
            class: Class::Other,
            len: 1,
            valid: false,
        },
    })
}

/// Decodes the non-ASCII character at the front; `None` where it is not well-formed
/// UTF-8 (overlong forms, surrogates and code points above U+10FFFF included).
#[inline]
fn decode(bytes: &[u8]) -> Option<(u32, usize)> {
    let continuation = |i: usize| match bytes.get(i) {
        Some(&byte) if byte & 0xC0 == 0x80 => Some(u32::from(byte & 0x3F)),
        _ => None,
    };
    let first = u32::from(bytes[0]);
    match first {
        0xC2..=0xDF => Some(((first & 0x1F) << 6 | continuation(1)?, 2)),
        0xE0..=0xEF => {
            let code_point = (first & 0x0F) << 12 | continuation(1)? << 6 | continuation(2)?;
            let surrogate = (0xD800..0xE000).contains(&code_point);
            (code_point >= 0x800 && !surrogate).then_some((code_point, 3))
        }
        0xF0..=0xF4 => {
            let high = (first & 0x07) << 18 | continuation(1)? << 12;
            let code_point = high | continuation(2)? << 6 | continuation(3)?;
            (0x1_0000..=0x10_FFFF)
                .contains(&code_point)
                .then_some((code_point, 4))
        }
        _ => None,
    }
}

/// End of the longest run from `at` whose characters satisfy `accept`.
#[inline]
fn run_end(text: &[u8], mut at: usize, accept: impl Fn(Class) -> bool) -> usize {
    while let Some(c) = char_at(text, at) {
        if !accept(c.class) {
            break;
        }
        at += c.len;
    }
    at
}

#[inline]
fn is_letter(class: Class) -> bool {
    class.is_letter()
}

#[inline]
fn is_space(class: Class) -> bool {
    class == Class::Space
}

#[inline]
fn is_number(class: Class) -> bool {
    class == Class::Number
}

/// `[^\s\p{L}\p{N}]`: marks count as punctuation.
#[inline]
fn is_punctuation(class: Class) -> bool {
    matches!(class, Class::Other | Class::Mark)
}

/// Start of the last character before `end`, all of `text[start..end]` being valid.
fn last_char_start(text: &[u8], end: usize) -> usize {
    let mut at = end - 1;
    while text[at] & 0xC0 == 0x80 {
        at -= 1;
    }
    at
}

/// `\s+(?!\S)|\s+` over the whitespace run `start..end`: at the end of the segment the
/// whole run; else all but its last character, which the next pretoken may want.
fn whitespace_end(text: &[u8], start: usize, end: usize) -> usize {
    if end == text.len() {
        return end;
    }
    let last = last_char_start(text, end);
    if last > start { last } else { end }
}

/// End after the last CR or LF of `text[start..end]`, if there is one.
fn after_last_newline(text: &[u8], start: usize, end: usize) -> Option<usize> {
    memchr::memrchr2(b'\r', b'\n', &text[start..end]).map(|i| start + i + 1)
}

/// End of `'(?:[sdmt]|ll|ve|re)` at `at`.
pub(super) fn contraction_end(text: &[u8], at: usize) -> Option<usize> {
    match text.get(at + 1..)? {
        [b's' | b'd' | b'm' | b't', ..] => Some(at + 2),
        [b'l', b'l', ..] | [b'v' | b'r', b'e', ..] => Some(at + 3),
        _ => None,
    }
}

/// End of `'(?i:[sdmt]|ll|ve|re)` at `at`. Case folding adds U+017F (long s) to `s`.
pub(super) fn caseless_contraction_end(text: &[u8], at: usize) -> Option<usize> {
    match text.get(at + 1..)? {
        [b's' | b'S' | b'd' | b'D' | b'm' | b'M' | b't' | b'T', ..] => Some(at + 2),
        [b'l' | b'L', b'l' | b'L', ..]
        | [b'v' | b'V' | b'r' | b'R', b'e' | b'E', ..]
        | [0xC5, 0xBF, ..] => Some(at + 3),
        _ => None,
    }
}

/// End of the pretoken that starts at `at < text.len()`, GPT-2's pattern.
///
/// `'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
#[inline]
pub fn gpt2(text: &[u8], at: usize) -> usize {
    if text[at] == b'\''
        && let Some(end) = contraction_end(text, at)
    {
        return end;
    }
    let body = if text[at] == b' ' { at + 1 } else { at };
    let Some(first) = char_at(text, body) else {
        return body;
    };
    let next = body + first.len;
    match first.class {
        Class::Space => whitespace_end(text, at, run_end(text, next, is_space)),
        Class::Number => run_end(text, next, is_number),
        class if class.is_letter() => run_end(text, next, is_letter),
        _ => run_end(text, next, is_punctuation),
    }
}

/// How cl100k treats whitespace at the end of a segment; see [`cl100k`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Cl100kEnd {
    /// As tiktoken ships it: `\s++$` comes first, one pretoken to the end.
    Shipped,
    /// The spelling of 2023 (also minbpe's "GPT-4"): cut after the last newline first.
    Spelling2023,
}

/// End of the pretoken that starts at `at < text.len()`, cl100k's pattern.
///
/// `'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+|
/// ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s`, where `most_digits` is the 3.
#[inline]
pub fn cl100k(text: &[u8], at: usize, at_end: Cl100kEnd, most_digits: usize) -> usize {
    if text[at] == b'\''
        && let Some(end) = caseless_contraction_end(text, at)
    {
        return end;
    }
    let Some(first) = char_at(text, at) else {
        return at;
    };
    let next = at + first.len;
    if first.class.is_letter() {
        return run_end(text, next, is_letter);
    }
    if first.class == Class::Number {
        return numbers_end(text, at, most_digits);
    }
    let second = char_at(text, next).map_or(Class::Space, |c| c.class);
    if second.is_letter() && !matches!(text[at], b'\r' | b'\n') {
        return run_end(text, next, is_letter);
    }
    if is_punctuation(first.class)
        || (text[at] == b' ' && is_punctuation(second) && next < text.len())
    {
        return trailing_end(text, run_end(text, next, is_punctuation), b"\r\n");
    }
    let end = run_end(text, next, is_space);
    if at_end == Cl100kEnd::Shipped && end == text.len() {
        return end;
    }
    after_last_newline(text, at, end).unwrap_or_else(|| whitespace_end(text, at, end))
}

/// End of `\p{N}{1,most}` at `at`, where a number is known to stand.
fn numbers_end(text: &[u8], mut at: usize, most: usize) -> usize {
    for _ in 0..most {
        match char_at(text, at) {
            Some(c) if c.class == Class::Number => at += c.len,
            _ => break,
        }
    }
    at
}

/// End of the run of the given ASCII bytes from `at`.
fn trailing_end(text: &[u8], at: usize, bytes: &[u8]) -> usize {
    let run = text[at..].iter().take_while(|byte| bytes.contains(byte));
    at + run.count()
}

/// End of the pretoken that starts at `at < text.len()`, o200k's pattern.
///
/// A word is an optional non-letter, then `U*L+` or else `U+L*`, then an optional
/// contraction, where U = `[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]` and
/// L = `[\p{Ll}\p{Lm}\p{Lo}\p{M}]`; then
/// `\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+`
#[inline]
pub fn o200k(text: &[u8], at: usize) -> usize {
    let Some(first) = char_at(text, at) else {
        return at;
    };
    let next = at + first.len;
    // The prefix is greedy: each form is tried with it first, then without.
    let may_prefix = !(first.class.is_letter()
        || first.class == Class::Number
        || matches!(text[at], b'\r' | b'\n'));
    let word = lower_ended_word(text, next, may_prefix)
        .or_else(|| lower_ended_word(text, at, true))
        .or_else(|| upper_word(text, next, may_prefix))
        .or_else(|| upper_word(text, at, true));
    if let Some(end) = word {
        if text.get(end) == Some(&b'\'') {
            return caseless_contraction_end(text, end).unwrap_or(end);
        }
        return end;
    }
    if first.class == Class::Number {
        return numbers_end(text, at, 3);
    }
    let second = char_at(text, next).map(|c| c.class);
    if is_punctuation(first.class) || (text[at] == b' ' && second.is_some_and(is_punctuation)) {
        return trailing_end(text, run_end(text, next, is_punctuation), b"\r\n/");
    }
    let end = run_end(text, next, is_space);
    after_last_newline(text, at, end).unwrap_or_else(|| whitespace_end(text, at, end))
}

fn is_upper_form(class: Class) -> bool {
    matches!(class, Class::Upper | Class::Caseless | Class::Mark)
}

fn is_lower_form(class: Class) -> bool {
    matches!(class, Class::Lower | Class::Caseless | Class::Mark)
}

/// End of `U*L+` at `at`. Where no lower form follows the run of upper forms, the
/// expression backtracks to the run's last character that is both.
fn lower_ended_word(text: &[u8], at: usize, tried: bool) -> Option<usize> {
    if !tried {
        return None;
    }
    let mut end = at;
    let mut last_both = None;
    while let Some(c) = char_at(text, end) {
        if !is_upper_form(c.class) {
            break;
        }
        end += c.len;
        if is_lower_form(c.class) {
            last_both = Some(end);
        }
    }
    let lower_end = run_end(text, end, is_lower_form);
    if lower_end > end {
        Some(lower_end)
    } else {
        last_both
    }
}

/// End of `U+` at `at`; `L*` adds nothing, as [`lower_ended_word`] has failed before.
fn upper_word(text: &[u8], at: usize, tried: bool) -> Option<usize> {
    let end = if tried {
        run_end(text, at, is_upper_form)
    } else {
        at
    };
    (end > at).then_some(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decode_accepts_exactly_utf8() {
        for code_point in 128..0x11_0000u32 {
            let Some(c) = char::from_u32(code_point) else {
                continue;
            };
            let mut buffer = [0; 4];
            let bytes = c.encode_utf8(&mut buffer).as_bytes();
            assert_eq!(decode(bytes), Some((code_point, bytes.len())));
            assert_eq!(decode(&bytes[..bytes.len() - 1]), None);
        }
        let bad: [&[u8]; 6] = [
            b"\x80",
            b"\xC1\xBF",
            b"\xE0\x9F\xBF",
            b"\xED\xA0\x80",
            b"\xF0\x8F\xBF\xBF",
            b"\xF4\x90\x80\x80",
        ];
        for bytes in bad {
            assert_eq!(decode(bytes), None, "{bytes:x?}");
        }
    }
}
