//! Words and punctuation marks of UAX #29, section 4.1, rules WB1 to WB999.

use super::unicode::{Properties, WordClass, properties_of};
use super::{BEGINS_ALPHANUMERIC, Growing, HAS_LETTER, ONLY_SYMBOLS, Word};

/// The segments between word borders that hold more than blanks, in order.
///
/// A border depends on nothing before the segment that ends there: a rule that looks further
/// back would have joined what it looks at. So each segment is cut by itself, by bytes as long as
/// they are ASCII, else by classes; what looks ahead passes over marks once for each of them.
pub fn unicode_words(text: &str) -> Vec<Word> {
    let bytes = text.as_bytes();
    let mut words = Vec::with_capacity(bytes.len() / 5 + 8);
    let mut start = 0;
    while start < bytes.len() {
        let end = match ascii_segment(bytes, start) {
            Cut::Word { end, info } => {
                words.push(Word::new(start, end, end - start, info));
                end
            }
            Cut::Blank { end } => end,
            Cut::Unknown => {
                let (end, segment) = segment(text, start);
                if !segment.only_spaces {
                    words.push(Word::new(start, end, segment.n_characters, segment.info));
                }
                end
            }
        };
        start = end;
    }
    words
}

/// A segment as far as ASCII alone decides it.
enum Cut {
    Word { end: usize, info: u32 },
    Blank { end: usize },
    Unknown,
}

const LETTER: u8 = 1;
const NUMBER: u8 = 2;
const UNDERSCORE: u8 = 4;
const RUN: u8 = LETTER | NUMBER | UNDERSCORE;
const MID_LETTER: u8 = 8;
const MID_NUMBER: u8 = 16;
const BLANK: u8 = 32;
const NOT_ASCII: u8 = 64;

const KINDS: [u8; 256] = {
    let mut kinds = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        kinds[byte] = match byte as u8 {
            b'a'..=b'z' | b'A'..=b'Z' => LETTER,
            b'0'..=b'9' => NUMBER,
            b'_' => UNDERSCORE,
            b'.' | b'\'' => MID_LETTER | MID_NUMBER,
            b':' => MID_LETTER,
            b',' | b';' => MID_NUMBER,
            b'\t'..=b'\r' | 0x1c..=b' ' => BLANK,
            128.. => NOT_ASCII,
            _ => 0,
        };
        byte += 1;
    }
    kinds
};

/// The kind of a byte; the end of the text is like a mark that joins nothing.
#[inline]
fn kind(bytes: &[u8], position: usize) -> u8 {
    bytes.get(position).map_or(0, |&byte| KINDS[byte as usize])
}

/// Tried and dropped: masks of 64 bytes for the classes, as the pretokeniser has them. Words are
/// four to five bytes long, and finding one in a mask costs what the loop does.
#[inline]
fn ascii_segment(bytes: &[u8], start: usize) -> Cut {
    let first = kind(bytes, start);
    if first & RUN != 0 {
        return ascii_run(bytes, start, first);
    }
    let mut end = start + 1;
    match bytes[start] {
        b' ' => {
            while bytes.get(end) == Some(&b' ') {
                end += 1;
            }
        }
        b'\r' if bytes.get(end) == Some(&b'\n') => return Cut::Blank { end: end + 1 },
        // No mark attaches to what breaks lines.
        b'\n' | b'\r' | 0x0b | 0x0c => return Cut::Blank { end },
        _ => {}
    }
    if (first | kind(bytes, end)) & NOT_ASCII != 0 {
        Cut::Unknown
    } else if first & BLANK != 0 {
        // U+001C to U+001F are blanks of Python alone and no space of Unicode's.
        Cut::Blank { end }
    } else {
        Cut::Word {
            end,
            info: ONLY_SYMBOLS,
        }
    }
}

/// Letters, digits and underscores, with the marks that stand between two of a kind.
#[inline]
fn ascii_run(bytes: &[u8], start: usize, first: u8) -> Cut {
    let (mut seen, mut last, mut end) = (first, first, start + 1);
    loop {
        let mut next = kind(bytes, end);
        while next & RUN != 0 {
            seen |= next;
            last = next;
            end += 1;
            next = kind(bytes, end);
        }
        if next & NOT_ASCII != 0 {
            return Cut::Unknown;
        }
        // LETTER << 3 is MID_LETTER, NUMBER << 3 is MID_NUMBER.
        if next & (last << 3) & (MID_LETTER | MID_NUMBER) == 0 {
            break;
        }
        let after = kind(bytes, end + 1);
        if after & NOT_ASCII != 0 {
            return Cut::Unknown;
        }
        if after & last & (LETTER | NUMBER) == 0 {
            break;
        }
        seen |= after;
        end += 2;
    }
    let letter = if seen & LETTER != 0 { HAS_LETTER } else { 0 };
    let begins = if first == UNDERSCORE {
        0
    } else {
        BEGINS_ALPHANUMERIC
    };
    let symbols = if seen == UNDERSCORE { ONLY_SYMBOLS } else { 0 };
    Cut::Word {
        end,
        info: letter | begins | symbols,
    }
}

use WordClass as W;

fn is_letter(class: WordClass) -> bool {
    matches!(class, W::ALetter | W::HebrewLetter)
}

fn is_line(class: WordClass) -> bool {
    matches!(class, W::CarriageReturn | W::LineFeed | W::Newline)
}

fn is_ignored(class: WordClass) -> bool {
    matches!(class, W::Extend | W::Format | W::Zwj)
}

fn is_mid_letter(class: WordClass) -> bool {
    matches!(class, W::MidLetter | W::MidNumLet | W::SingleQuote)
}

fn is_mid_number(class: WordClass) -> bool {
    matches!(class, W::MidNum | W::MidNumLet | W::SingleQuote)
}

fn is_joined_by_underscore(class: WordClass) -> bool {
    is_letter(class) || matches!(class, W::Numeric | W::Katakana | W::ExtendNumLet)
}

/// One segment, by classes.
fn segment(text: &str, start: usize) -> (usize, Growing) {
    let mut characters = text[start..].char_indices();
    let Some((_, first)) = characters.next() else {
        unreachable!("a segment begins inside the text");
    };
    let properties = properties_of(first);
    let mut segment = Growing::new(properties);
    let (mut before, mut left) = (W::Other, properties.word_class());
    let mut previous = left; // the class of the character before, where left is of the unit
    let mut n_flags = usize::from(left == W::RegionalIndicator);
    for (offset, character) in characters {
        let properties = properties_of(character);
        let right = properties.word_class();
        if !is_ignored(right) || is_line(left) {
            let place = start + offset + character.len_utf8();
            let joins = right == W::RegionalIndicator && n_flags % 2 == 1
                || joins_by_character(previous, left, properties)
                || joins_words(before, left, right, || class_after(text, place));
            if !joins {
                return (start + offset, segment);
            }
            (before, left) = (left, right);
            n_flags = if right == W::RegionalIndicator {
                n_flags + 1
            } else {
                0
            };
        }
        segment.push(properties);
        previous = right;
    }
    (text.len(), segment)
}

/// The class of the next unit; what marks attach to comes before the place.
fn class_after(text: &str, place: usize) -> WordClass {
    text[place..]
        .chars()
        .map(|character| properties_of(character).word_class())
        .find(|&class| !is_ignored(class))
        .unwrap_or(W::Other)
}

/// `WB3c` and `WB3d`, which look at the character before and not at the unit before.
#[inline]
fn joins_by_character(previous: WordClass, left: WordClass, right: Properties) -> bool {
    if previous == W::Zwj {
        return !is_line(left) && right.is_pictograph();
    }
    previous == W::Space && right.word_class() == W::Space
}

/// No border between two units, by the units beyond them (WB3, WB5 to `WB13b`).
#[inline]
fn joins_words(
    before: WordClass,
    left: WordClass,
    right: WordClass,
    after: impl Fn() -> WordClass,
) -> bool {
    if is_letter(left) {
        if is_letter(right) || right == W::Numeric {
            return true;
        }
        if is_mid_letter(right) && is_letter(after()) {
            return true;
        }
        if left == W::HebrewLetter
            && (right == W::SingleQuote || right == W::DoubleQuote && after() == W::HebrewLetter)
        {
            return true;
        }
    }
    if left == W::Numeric
        && (is_letter(right)
            || right == W::Numeric
            || is_mid_number(right) && after() == W::Numeric)
    {
        return true;
    }
    if is_letter(right) && is_letter(before) && is_mid_letter(left) {
        return true;
    }
    if right == W::HebrewLetter && before == W::HebrewLetter && left == W::DoubleQuote {
        return true;
    }
    if right == W::Numeric && before == W::Numeric && is_mid_number(left) {
        return true;
    }
    match (left, right) {
        (W::Katakana, W::Katakana) | (W::CarriageReturn, W::LineFeed) => true,
        (_, W::ExtendNumLet) => is_joined_by_underscore(left),
        (W::ExtendNumLet, _) => is_joined_by_underscore(right),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<&str> {
        let words = unicode_words(text);
        words
            .iter()
            .map(|word| &text[word.start()..word.end()])
            .collect()
    }

    #[test]
    fn words_by_the_rules() {
        assert_eq!(
            words("can't 3.14 a_b a.b. x:"),
            ["can't", "3.14", "a_b", "a.b", ".", "x", ":"]
        );
        assert_eq!(
            words("\u{5d0}'\u{5d0} 1,2;"),
            ["\u{5d0}'\u{5d0}", "1,2", ";"]
        );
        assert_eq!(
            words("a\u{301}b\n\u{301}c \u{301}"),
            ["a\u{301}b", "\u{301}", "c", " \u{301}"]
        );
        assert_eq!(words("__ _1 \u{1f}"), ["__", "_1"]);
    }

    #[test]
    fn bytes_and_classes_agree() {
        // Every text of four characters out of one of each kind.
        let kinds = [
            'a', '1', '_', '.', ',', ':', '\'', '"', ' ', '\n', '\r', '\t', '\x1c', '#',
        ];
        for code in 0..kinds.len().pow(4) {
            let text: String = (0..4)
                .map(|i| kinds[code / kinds.len().pow(i) % kinds.len()])
                .collect();
            let mut expected = Vec::new();
            let mut start = 0;
            while start < text.len() {
                let (end, segment) = segment(&text, start);
                if !segment.only_spaces {
                    expected.push(Word::new(start, end, segment.n_characters, segment.info));
                }
                start = end;
            }
            assert_eq!(unicode_words(&text), expected, "{text:?}");
        }
    }
}
