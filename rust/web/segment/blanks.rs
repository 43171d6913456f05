//! Pieces of a text as Python's `str` cuts them: between blanks, and lines.

use super::unicode::{is_space, properties_of};
use super::{BEGINS_ALPHANUMERIC, Growing, HAS_LETTER, ONLY_SYMBOLS, Word};

/// The text without the blanks at both ends, as `str.strip`.
#[inline]
pub fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}

const LETTER: u8 = 1;
const NUMBER: u8 = 2;
const SYMBOL: u8 = 4;
const BLANK: u8 = 8;
const NOT_ASCII: u8 = 16;

const KINDS: [u8; 256] = {
    let mut kinds = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        kinds[byte] = match byte as u8 {
            b'a'..=b'z' | b'A'..=b'Z' => LETTER,
            b'0'..=b'9' => NUMBER,
            b'\t'..=b'\r' | 0x1c..=b' ' => BLANK,
            128.. => NOT_ASCII,
            _ => SYMBOL,
        };
        byte += 1;
    }
    kinds
};

/// The pieces between blanks, as `str.split`.
pub fn split_words(text: &str) -> Vec<Word> {
    let bytes = text.as_bytes();
    let mut words = Vec::with_capacity(bytes.len() / 6 + 8);
    let mut start = 0;
    while let Some(&byte) = bytes.get(start) {
        let first = KINDS[byte as usize];
        if first == BLANK {
            start += 1;
            continue;
        }
        let (mut seen, mut end) = (0, start);
        let stop = loop {
            let Some(&byte) = bytes.get(end) else {
                break BLANK;
            };
            let kind = KINDS[byte as usize];
            if kind & (BLANK | NOT_ASCII) != 0 {
                break kind;
            }
            seen |= kind;
            end += 1;
        };
        if stop == NOT_ASCII {
            start = any_word(text, start, &mut words);
            continue;
        }
        let mut info = if seen == SYMBOL { ONLY_SYMBOLS } else { 0 };
        if seen & LETTER != 0 {
            info |= HAS_LETTER;
        }
        if first & (LETTER | NUMBER) != 0 {
            info |= BEGINS_ALPHANUMERIC;
        }
        words.push(Word::new(start, end, end - start, info));
        start = end;
    }
    words
}

/// A word that is not ASCII alone, if no blank stands at its place; returns what comes after.
fn any_word(text: &str, start: usize, words: &mut Vec<Word>) -> usize {
    let mut word: Option<Growing> = None;
    for (offset, character) in text[start..].char_indices() {
        let properties = properties_of(character);
        match (&mut word, properties.is_space()) {
            (None, true) => return start + character.len_utf8(),
            (None, false) => word = Some(Growing::new(properties)),
            (Some(word), false) => word.push(properties),
            (Some(word), true) => {
                words.push(Word::new(
                    start,
                    start + offset,
                    word.n_characters,
                    word.info,
                ));
                return start + offset;
            }
        }
    }
    if let Some(word) = word {
        words.push(Word::new(start, text.len(), word.n_characters, word.info));
    }
    text.len()
}

/// Lines as `str.splitlines` has them: CRLF, CR, LF, VT, FF, U+001C to U+001E, NEL, U+2028 and
/// U+2029 end one, and no empty line follows the last end.
pub fn split_lines(text: &str) -> impl Iterator<Item = &str> {
    let only_newlines = !has_other_line_ends(text.as_bytes());
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (line, after) = if only_newlines {
            match memchr::memchr(b'\n', rest.as_bytes()) {
                Some(end) => (&rest[..end], &rest[end + 1..]),
                None => (rest, ""),
            }
        } else {
            cut_line(rest)
        };
        rest = after;
        Some(line)
    })
}

/// Whether a line may end in anything but LF. U+0085 is C2 85, U+2028 and U+2029 are E2 80 A8
/// and E2 80 A9.
fn has_other_line_ends(bytes: &[u8]) -> bool {
    // Compared at all places without a branch, so that the compiler takes many at once.
    const AT_A_TIME: usize = 256;
    let single = |byte: u8| matches!(byte, 0x0b..=b'\r' | 0x1c..=0x1e);
    let mut start = 0;
    while start < bytes.len() {
        let end = bytes.len().min(start + AT_A_TIME);
        let last = &bytes[start..end];
        let mut found = last.iter().fold(false, |any, &byte| any | single(byte));
        let from = start.saturating_sub(2);
        let two = &bytes[from..end];
        for (&first, &second) in two.iter().zip(&two[1.min(two.len())..]) {
            found |= first == 0xc2 && second == 0x85;
            found |= first == 0x80 && second & 0xfe == 0xa8;
        }
        if found {
            return true;
        }
        start = end;
    }
    false
}

fn cut_line(text: &str) -> (&str, &str) {
    let is_end = |character: char| {
        matches!(
            character,
            '\n'..='\r' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    match text
        .char_indices()
        .find(|&(_, character)| is_end(character))
    {
        Some((end, '\r')) if text.as_bytes().get(end + 1) == Some(&b'\n') => {
            (&text[..end], &text[end + 2..])
        }
        Some((end, character)) => (&text[..end], &text[end + character.len_utf8()..]),
        None => (text, ""),
    }
}

/// What stands between runs of at least so many newlines, as `re.split(r"\n{n,}", text)`.
pub fn collapsed_newlines(text: &str, n: usize) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let piece = rest?;
        let bytes = piece.as_bytes();
        let mut from = 0;
        while let Some(found) = memchr::memchr(b'\n', &bytes[from..]) {
            let start = from + found;
            let end = start + bytes[start..].iter().take_while(|&&b| b == b'\n').count();
            if end - start >= n {
                rest = Some(&piece[end..]);
                return Some(&piece[..start]);
            }
            from = end;
        }
        rest = None;
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_as_python_has_them() {
        let lines: Vec<_> = split_lines("a\r\nb\rc\n\nd\u{b}e\u{85}f\u{2028}g\u{1c}").collect();
        assert_eq!(lines, ["a", "b", "c", "", "d", "e", "f", "g"]);
        assert_eq!(split_lines("").count(), 0);
        assert_eq!(split_lines("a\n").count(), 1);
        assert_eq!(
            split_lines("é\u{a9}\na").collect::<Vec<_>>(),
            ["é\u{a9}", "a"]
        );
    }

    #[test]
    fn words_between_blanks() {
        let text = " a1 \u{1f}é.\u{3000}##\u{a0}x";
        let words = split_words(text);
        let found: Vec<_> = words.iter().map(|w| &text[w.start()..w.end()]).collect();
        assert_eq!(found, ["a1", "é.", "##", "x"]);
        assert!(words[2].is_symbols_only() && !words[1].is_symbols_only());
        assert!(words[1].has_letter() && words[1].n_characters() == 2);
    }

    #[test]
    fn runs_of_newlines() {
        let split = |text, n| collapsed_newlines(text, n).collect::<Vec<_>>();
        assert_eq!(split("\na\n\nb\n", 1), ["", "a", "b", ""]);
        assert_eq!(split("a\nb\n\n\nc", 2), ["a\nb", "c"]);
        assert_eq!(split("", 1), [""]);
    }
}
