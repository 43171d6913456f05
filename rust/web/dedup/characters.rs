//! What each code point becomes when a text is normalised, for both rules.
//!
//! Lower case, decomposition and the removal of marks are decided per code point, once, when a
//! rule is first used; what depends on neighbours (a final sigma, spacing marks to be put in
//! order, numbers) is left to [`super::normalize`].
//!
//! The data is that of Unicode 16, whatever newer version the crates and the compiler know:
//! categories are regex-syntax's, of that version; of code points that Unicode 16 had assigned,
//! lower case and canonical decompositions never change (Unicode's stability policies), and all
//! others are left as they are.

use std::sync::LazyLock;

use regex_syntax::hir::{Class, HirKind};
use unicode_normalization::char::{canonical_combining_class, decompose_canonical};

/// The rules of `rslm.data.dedup.normalize`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// CS336's.
    Course,
    /// `FineWeb`'s.
    FineWeb,
}

/// What is done where a code point stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// It stays.
    Copy,
    /// A blank.
    Blank,
    /// Nothing is written.
    Drop,
    /// These bytes of the pool are written.
    Replace { start: usize, n: usize },
    /// A decimal digit, where numbers are replaced.
    Digit,
    /// Its neighbours decide, or it becomes several characters of several kinds.
    Complex,
}

const COPY: u32 = 0;
const BLANK: u32 = 1;
const DROP: u32 = 2;
const REPLACE: u32 = 3;
const DIGIT: u32 = 4;
const COMPLEX: u32 = 5;

/// What `FineWeb`'s rule takes for punctuation beside that of ASCII and control characters.
const FINEWEB_PUNCTUATION: &str = "«´»–—’“”„…∶━►、。〈〉《》「」【】！％（），．１：；？～";

/// A byte of ASCII that is not simply replaced by another.
pub(super) const SLOW: u8 = 0xFF;
const N_CODE_POINTS: u32 = 0x11_0000;
const BLOCK: u32 = 256;

/// Two levels: equal blocks of 256 code points are stored once.
pub(super) struct Table {
    block_of: Vec<u16>,
    entries: Vec<u32>,
    pool: Vec<u8>,
    /// What each byte of ASCII becomes, or [`SLOW`].
    pub(super) ascii: [u8; 128],
}

impl Table {
    pub(super) fn of(rule: Rule) -> &'static Self {
        static COURSE: LazyLock<Table> = LazyLock::new(|| Table::build(Rule::Course));
        static FINEWEB: LazyLock<Table> = LazyLock::new(|| Table::build(Rule::FineWeb));
        match rule {
            Rule::Course => &COURSE,
            Rule::FineWeb => &FINEWEB,
        }
    }

    #[inline]
    pub(super) fn action(&self, code_point: u32) -> Action {
        let Some(&block) = self.block_of.get((code_point / BLOCK) as usize) else {
            return Action::Copy;
        };
        let entry =
            self.entries[usize::from(block) * BLOCK as usize + (code_point % BLOCK) as usize];
        match entry & 7 {
            COPY => Action::Copy,
            BLANK => Action::Blank,
            DROP => Action::Drop,
            REPLACE => Action::Replace {
                start: (entry >> 8) as usize,
                n: (entry >> 3 & 31) as usize,
            },
            DIGIT => Action::Digit,
            _ => Action::Complex,
        }
    }

    /// The bytes of a replacement.
    #[inline]
    pub(super) fn bytes(&self, start: usize, n: usize) -> &[u8] {
        &self.pool[start..start + n]
    }

    fn build(rule: Rule) -> Self {
        let mut table = Self {
            block_of: Vec::new(),
            entries: Vec::new(),
            pool: Vec::new(),
            ascii: [SLOW; 128],
        };
        let mut known = rustc_hash::FxHashMap::default();
        for first in (0..N_CODE_POINTS).step_by(BLOCK as usize) {
            let block: Vec<u32> = (first..first + BLOCK)
                .map(|code_point| table.entry_of(code_point, rule))
                .collect();
            let n_known = known.len() as u16;
            let number = *known.entry(block.clone()).or_insert(n_known);
            if number == n_known {
                table.entries.extend(block);
            }
            table.block_of.push(number);
        }
        for byte in 0..128_u8 {
            table.ascii[usize::from(byte)] = match table.action(u32::from(byte)) {
                Action::Copy => byte,
                Action::Blank => b' ',
                Action::Replace { start, n: 1 } => table.pool[start],
                _ => SLOW,
            };
        }
        table
    }

    fn entry_of(&mut self, code_point: u32, rule: Rule) -> u32 {
        // Planes of which nothing is assigned, or all to private use.
        if matches!(code_point, 0x4_0000..0xE_0000 | 0xF_0000..) {
            return COPY;
        }
        let Some(character) = char::from_u32(code_point).filter(|&c| SETS.assigned.holds(c)) else {
            return COPY;
        };
        if character == '\u{3a3}' {
            return COMPLEX;
        }
        if rule == Rule::FineWeb {
            if SETS.digit.holds(character) {
                return DIGIT;
            }
            if is_fineweb_punctuation(character) || is_blank(character) {
                return BLANK;
            }
        }
        let pieces = pieces_of(character, rule);
        if pieces
            .iter()
            .any(|piece| matches!(piece, Piece::Reordered(..)))
        {
            return COMPLEX;
        }
        let kept: Vec<&Piece> = pieces
            .iter()
            .filter(|p| !matches!(p, Piece::Mark(_)))
            .collect();
        match kept.as_slice() {
            [] => DROP,
            [Piece::Blank] => BLANK,
            [Piece::Kept(same)] if *same == character => COPY,
            several if several.iter().all(|piece| matches!(piece, Piece::Kept(_))) => {
                let text: String = several
                    .iter()
                    .filter_map(|piece| match piece {
                        Piece::Kept(c) => Some(*c),
                        _ => None,
                    })
                    .collect();
                let start = self.pool.len() as u32;
                self.pool.extend_from_slice(text.as_bytes());
                REPLACE | (text.len() as u32) << 3 | start << 8
            }
            _ => COMPLEX,
        }
    }
}

/// What a character of a decomposed text becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// It stays, and what follows does not go before it.
    Kept(char),
    /// A blank.
    Blank,
    /// A mark that goes; whether what follows may go before it.
    Mark(bool),
    /// A mark that stays, with its combining class: marks are ordered by that.
    Reordered(u8, char),
}

/// A character in lower case, decomposed, each by the rule; a sigma as if it were not final.
pub(super) fn pieces_of(character: char, rule: Rule) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for lower in character.to_lowercase() {
        decompose_canonical(lower, |c| {
            let class = canonical_combining_class(c);
            pieces.push(if SETS.mark.holds(c) {
                Piece::Mark(class != 0)
            } else if rule == Rule::Course && (SETS.punctuation.holds(c) || is_blank(c)) {
                Piece::Blank
            } else if class != 0 {
                Piece::Reordered(class, c)
            } else {
                Piece::Kept(c)
            });
        });
    }
    pieces
}

/// As `str.isspace` of Python.
fn is_blank(character: char) -> bool {
    character.is_whitespace() || matches!(character, '\u{1c}'..='\u{1f}')
}

fn is_fineweb_punctuation(character: char) -> bool {
    character.is_ascii_punctuation()
        || character.is_control() && !matches!(character, '\t' | '\n')
        || FINEWEB_PUNCTUATION.contains(character)
}

/// Between the digits of one number: see `_NUMBER` of the Python twin.
pub(super) fn is_number_separator(code_point: u32) -> bool {
    matches!(
        code_point,
        0x2C | 0x2E | 0x060C | 0x066B | 0x2396 | 0x2397 | 0x2398
    )
}

pub(super) struct Sets {
    assigned: Set,
    mark: Set,
    punctuation: Set,
    digit: Set,
    pub(super) cased: Set,
    pub(super) case_ignorable: Set,
}

pub(super) static SETS: LazyLock<Sets> = LazyLock::new(|| Sets {
    assigned: Set::new(r"\p{Age:16.0}"),
    mark: Set::new(r"\p{Mn}"),
    punctuation: Set::new(r"[\p{P}\p{S}]"),
    digit: Set::new(r"\p{Nd}"),
    cased: Set::new(r"\p{Cased}"),
    case_ignorable: Set::new(r"\p{Case_Ignorable}"),
});

/// Ascending ranges of code points.
pub(super) struct Set(Vec<(char, char)>);

impl Set {
    fn new(pattern: &str) -> Self {
        let hir = regex_syntax::Parser::new()
            .parse(pattern)
            .expect("a class that the crate knows");
        let HirKind::Class(Class::Unicode(class)) = hir.kind() else {
            unreachable!("{pattern} is a class of several characters")
        };
        Self(
            class
                .iter()
                .map(|range| (range.start(), range.end()))
                .collect(),
        )
    }

    pub(super) fn holds(&self, character: char) -> bool {
        let after = self.0.partition_point(|&(first, _)| first <= character);
        after > 0 && character <= self.0[after - 1].1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write as _;

    /// Another value means that texts are normalised otherwise than before: a new Unicode
    /// version must be meant, and named in the documentation.
    #[test]
    fn the_rules_of_every_code_point_are_those_of_unicode_16() {
        let mut text = String::new();
        for rule in [Rule::Course, Rule::FineWeb] {
            for character in '\0'..=char::MAX {
                if SETS.assigned.holds(character) {
                    write!(text, "{:?}", pieces_of(character, rule)).expect("a string grows");
                }
            }
        }
        let checksum = xxhash_rust::xxh3::xxh3_64(text.as_bytes());
        assert_eq!(checksum, 17_005_770_507_641_624_481);
    }
}
