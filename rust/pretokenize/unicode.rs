//! The class of a code point, from pinned Unicode data.
//!
//! The ids of a tokenizer depend on which code points are letters, so the data is
//! part of the format: the version is stored in every saved tokenizer.

use std::sync::LazyLock;

use super::unicode_table::CLASS_CHANGES;

/// Version of the Unicode data that decides what a letter is.
pub const UNICODE_VERSION: &str = "16.0.0";

/// What the patterns ask of a code point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Class {
    /// Punctuation, symbols, controls, unassigned; also a byte that is not UTF-8.
    Other = 0,
    /// The 25 code points of `White_Space`.
    Space = 1,
    /// `Lu` or `Lt`.
    Upper = 2,
    /// `Ll`.
    Lower = 3,
    /// `Lm` or `Lo`: letters without case.
    Caseless = 4,
    /// `M`.
    Mark = 5,
    /// `N`.
    Number = 6,
}

const ALL: [Class; 7] = [
    Class::Other,
    Class::Space,
    Class::Upper,
    Class::Lower,
    Class::Caseless,
    Class::Mark,
    Class::Number,
];

impl Class {
    /// Whether `\p{L}` holds.
    #[inline]
    pub fn is_letter(self) -> bool {
        matches!(self, Self::Upper | Self::Lower | Self::Caseless)
    }
}

const BLOCK_BITS: u32 = 8;
const BLOCK_SIZE: usize = 1 << BLOCK_BITS;

/// Two-level table: equal blocks of 256 code points are stored once (about 60 kB).
struct ClassTable {
    block_of: Vec<u16>,
    classes: Vec<Class>,
}

static TABLE: LazyLock<ClassTable> = LazyLock::new(|| {
    let mut flat = Vec::with_capacity(0x11_0000);
    for (i, &change) in CLASS_CHANGES.iter().enumerate() {
        let end = CLASS_CHANGES.get(i + 1).map_or(0x11_0000, |next| next >> 3);
        flat.resize(end as usize, ALL[(change & 7) as usize]);
    }
    let mut table = ClassTable {
        block_of: Vec::new(),
        classes: Vec::new(),
    };
    for block in flat.chunks(BLOCK_SIZE) {
        let known = table
            .classes
            .chunks(BLOCK_SIZE)
            .position(|seen| seen == block);
        let index = known.unwrap_or_else(|| {
            table.classes.extend_from_slice(block);
            table.classes.len() / BLOCK_SIZE - 1
        });
        table.block_of.push(index as u16);
    }
    table
});

/// The class of a Unicode code point; anything above U+10FFFF is [`Class::Other`].
#[inline]
pub fn class_of(code_point: u32) -> Class {
    let table = &*TABLE;
    match table.block_of.get((code_point >> BLOCK_BITS) as usize) {
        Some(&block) => {
            table.classes[(block as usize) << BLOCK_BITS | (code_point as usize & (BLOCK_SIZE - 1))]
        }
        None => Class::Other,
    }
}

/// Class of each ASCII byte; bytes from 128 hold [`Class::Other`] and are never asked.
pub(super) const ASCII_CLASS: [Class; 256] = {
    let mut classes = [Class::Other; 256];
    let mut byte = 0;
    while byte < 128 {
        classes[byte] = match byte as u8 {
            b'a'..=b'z' => Class::Lower,
            b'A'..=b'Z' => Class::Upper,
            b'0'..=b'9' => Class::Number,
            b'\t'..=b'\r' | b' ' => Class::Space,
            _ => Class::Other,
        };
        byte += 1;
    }
    classes
};

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write as _;

    const PATTERNS: [(&str, Class); 6] = [
        (r"\s", Class::Space),
        (r"[\p{Lu}\p{Lt}]", Class::Upper),
        (r"\p{Ll}", Class::Lower),
        (r"[\p{Lm}\p{Lo}]", Class::Caseless),
        (r"\p{M}", Class::Mark),
        (r"\p{N}", Class::Number),
    ];

    fn classes_of_regex_syntax() -> Vec<Class> {
        use regex_syntax::hir::{Class as HirClass, HirKind};
        let mut classes = vec![Class::Other; 0x11_0000];
        for (pattern, class) in PATTERNS {
            let hir = regex_syntax::Parser::new()
                .parse(pattern)
                .expect("a valid class");
            let HirKind::Class(HirClass::Unicode(ranges)) = hir.kind() else {
                panic!("{pattern} is not a class")
            };
            for range in ranges.iter() {
                classes[range.start() as usize..=range.end() as usize].fill(class);
            }
        }
        classes
    }

    #[test]
    fn table_equals_regex_syntax_on_every_code_point() {
        for (code_point, class) in classes_of_regex_syntax().into_iter().enumerate() {
            assert_eq!(class_of(code_point as u32), class, "U+{code_point:04X}");
        }
        assert_eq!(class_of(0x11_0000), Class::Other);
    }

    #[test]
    fn ascii_table_equals_the_full_table() {
        for byte in 0..128 {
            assert_eq!(ASCII_CLASS[byte as usize], class_of(byte), "{byte}");
        }
    }

    #[test]
    fn letters_are_those_of_unicode_16() {
        let letters = (0..0x11_0000).filter(|&c| class_of(c).is_letter()).count();
        assert_eq!(letters, 141_028);
    }

    #[test]
    #[ignore = "rewrites unicode_table.rs after a deliberate change of the Unicode version"]
    fn write_unicode_table() {
        let mut out = String::from(
            "//! Code-point classes of Unicode 16.0.0: where the class changes, as \
             `code_point << 3 | class`.\n//!\n//! Generated by `cargo test -- --ignored \
             write_unicode_table` from regex-syntax; do not edit.\n\n\
             #[rustfmt::skip]\npub(super) const CLASS_CHANGES: &[u32] = &[\n",
        );
        let classes = classes_of_regex_syntax();
        let changes: Vec<u32> = (0..classes.len())
            .filter(|&c| c == 0 || classes[c] != classes[c - 1])
            .map(|c| (c as u32) << 3 | classes[c] as u32)
            .collect();
        for row in changes.chunks(12) {
            out.push_str("   ");
            for change in row {
                write!(out, " {change},").expect("a string grows");
            }
            out.push('\n');
        }
        out.push_str("];\n");
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/rust/pretokenize/unicode_table.rs"
        );
        std::fs::write(path, out).expect("the source tree is writable");
    }
}
