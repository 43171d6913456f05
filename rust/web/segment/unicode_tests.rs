//! The pinned table against regex-syntax, and its generator.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::*;
use regex_syntax::hir::{Class, HirKind};

// In the order of the classes' numbers, without the first, which is the rest.
const WORD_NAMES: [&str; 18] = [
    "ALetter",
    "Hebrew_Letter",
    "Numeric",
    "Katakana",
    "ExtendNumLet",
    "MidLetter",
    "MidNum",
    "MidNumLet",
    "Single_Quote",
    "Double_Quote",
    "Extend",
    "Format",
    "ZWJ",
    "Regional_Indicator",
    "CR",
    "LF",
    "Newline",
    "WSegSpace",
];
const SENTENCE_NAMES: [&str; 14] = [
    "Sep",
    "CR",
    "LF",
    "Sp",
    "Lower",
    "Upper",
    "OLetter",
    "Numeric",
    "ATerm",
    "STerm",
    "Close",
    "SContinue",
    "Extend",
    "Format",
];
// Numeric_Type=Digit, which regex-syntax does not have; closed since Unicode 6.3.
const DIGITS: &str = "[\u{b2}\u{b3}\u{b9}\u{1369}-\u{1371}\u{19da}\u{2070}\u{2074}-\u{2079}\
    \u{2080}-\u{2089}\u{2460}-\u{2468}\u{2474}-\u{247c}\u{2488}-\u{2490}\u{24ea}\
    \u{24f5}-\u{24fd}\u{24ff}\u{2776}-\u{277e}\u{2780}-\u{2788}\u{278a}-\u{2792}\
    \u{10a40}-\u{10a43}\u{10e60}-\u{10e68}\u{11052}-\u{1105a}\u{1f100}-\u{1f10a}]";

fn set(flat: &mut [u16], pattern: &str, bits: u32) {
    let hir = regex_syntax::Parser::new()
        .parse(pattern)
        .expect("a valid class");
    let bits = bits as u16;
    match hir.kind() {
        HirKind::Class(Class::Unicode(ranges)) => {
            for range in ranges.iter() {
                for stored in &mut flat[range.start() as usize..=range.end() as usize] {
                    *stored |= bits;
                }
            }
        }
        // A class of one character is a literal.
        HirKind::Literal(literal) => {
            let text = std::str::from_utf8(&literal.0).expect("a character");
            for character in text.chars() {
                flat[character as usize] |= bits;
            }
        }
        _ => panic!("{pattern} is no class"),
    }
}

fn of_regex_syntax() -> Vec<u16> {
    let mut flat = vec![0; 0x11_0000];
    for (i, name) in WORD_NAMES.iter().enumerate() {
        set(&mut flat, &format!(r"\p{{wb={name}}}"), i as u32 + 1);
    }
    for (i, name) in SENTENCE_NAMES.iter().enumerate() {
        let class = (i as u32 + 1) << SENTENCE_SHIFT;
        set(&mut flat, &format!(r"\p{{sb={name}}}"), class);
    }
    for (pattern, flag) in [
        (r"\p{L}", LETTER),
        (r"\p{N}", NUMBER),
        (r"\p{Nd}", DECIMAL | DIGIT),
        (DIGITS, DIGIT),
        (r"\p{Uppercase}", UPPER),
        (r"\p{Sentence_Terminal}", TERMINAL),
        (r"\p{Extended_Pictographic}", PICTOGRAPH),
    ] {
        set(&mut flat, pattern, flag);
    }
    flat
}

#[test]
fn table_equals_regex_syntax_on_every_code_point() {
    for (code_point, stored) in of_regex_syntax().into_iter().enumerate() {
        if let Some(character) = char::from_u32(code_point as u32) {
            let found = properties_of(character).0 as u16;
            assert_eq!(found, stored, "U+{code_point:04X}");
        }
    }
}

#[test]
fn classes_stand_at_their_numbers() {
    for (i, class) in WORD_CLASSES.into_iter().enumerate() {
        assert_eq!(class as usize, i);
    }
    for (i, class) in SENTENCE_CLASSES.into_iter().enumerate() {
        assert_eq!(class as usize, i);
    }
    assert_eq!(properties_of('a').word_class(), WordClass::ALetter);
    assert_eq!(
        properties_of('.').sentence_class(),
        SentenceClass::AmbiguousTerm
    );
}

fn rows(numbers: &[u32], indent: &str) -> String {
    let mut out = String::new();
    let mut line = String::new();
    for number in numbers {
        let next = format!("{number},");
        if indent.len() + line.len() + next.len() > 98 {
            let _ = writeln!(out, "{indent}{}", line.trim_end());
            line.clear();
        }
        let _ = write!(line, "{next} ");
    }
    let _ = writeln!(out, "{indent}{}", line.trim_end());
    out
}

/// Writes the table for both languages: `cargo test --features web -- --ignored write_segment`.
#[test]
#[ignore = "writes the sources"]
fn write_segment_tables() {
    let flat = of_regex_syntax();
    let mut numbers = BTreeMap::new();
    for &stored in &flat {
        let next = numbers.len() as u32;
        numbers.entry(stored).or_insert(next);
    }
    let mut properties = vec![0; numbers.len()];
    for (&stored, &number) in &numbers {
        properties[number as usize] = stored.into();
    }
    let changes: Vec<u32> = (0..flat.len())
        .filter(|&i| i == 0 || flat[i] != flat[i - 1])
        .map(|i| (i as u32) << 8 | numbers[&flat[i]])
        .collect();
    assert!(numbers.len() <= 256);
    let from = "cargo test --features web -- --ignored write_segment_tables";
    let rust = format!(
        "//! What the rules ask of code points of Unicode 16.0.0: where it changes, as\n\
         //! `code_point << 8 | index` into the properties.\n//!\n\
         //! Generated by `{from}`; do not edit.\n\n\
         #[rustfmt::skip]\npub(super) const PROPERTIES: &[u16] = &[\n{}];\n\n\
         #[rustfmt::skip]\npub(super) const CLASS_CHANGES: &[u32] = &[\n{}];\n",
        rows(&properties, "    "),
        rows(&changes, "    ")
    );
    let python = format!(
        "\"\"\"What the rules ask of code points of Unicode 16.0.0, the twin of the crate's table.\n\n\
         Generated by `{from}`; do not edit.\n\"\"\"\n\n\
         # fmt: off\nPROPERTIES = (\n{})\n\n\
         # Where it changes, as `code_point << 8 | index` into the properties.\n\
         CLASS_CHANGES = (\n{})\n",
        rows(&properties, "    "),
        rows(&changes, "    ")
    );
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    std::fs::write(root.join("rust/web/segment/unicode_table.rs"), rust).expect("writable");
    let path = "python/rslm/data/quality/unicode_table.py";
    std::fs::write(root.join(path), python).expect("writable");
}
