//! What the rules ask of a code point, from pinned Unicode data.
//!
//! A verdict depends on which code points are letters and where words end, so the data is pinned:
//! neither the running Python's tables nor those of its `regex` package are asked, and the Python
//! reference reads the same numbers from `unicode_table.py`. What Unicode 16 has not assigned is
//! in no class, and stays so when a later version assigns it.

use std::sync::LazyLock;

use super::unicode_table::{CLASS_CHANGES, PROPERTIES};

/// Classes of UAX #29 for words, table 3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum WordClass {
    Other,
    ALetter,
    HebrewLetter,
    Numeric,
    Katakana,
    ExtendNumLet,
    MidLetter,
    MidNum,
    MidNumLet,
    SingleQuote,
    DoubleQuote,
    Extend,
    Format,
    Zwj,
    RegionalIndicator,
    CarriageReturn,
    LineFeed,
    Newline,
    Space,
}

/// Classes of UAX #29 for sentences, table 4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum SentenceClass {
    Other,
    Separator,
    CarriageReturn,
    LineFeed,
    Space,
    Lower,
    Upper,
    OtherLetter,
    Numeric,
    AmbiguousTerm,
    Term,
    Close,
    Continue,
    Extend,
    Format,
}

const WORD_CLASSES: [WordClass; 19] = {
    use WordClass as W;
    [
        W::Other,
        W::ALetter,
        W::HebrewLetter,
        W::Numeric,
        W::Katakana,
        W::ExtendNumLet,
        W::MidLetter,
        W::MidNum,
        W::MidNumLet,
        W::SingleQuote,
        W::DoubleQuote,
        W::Extend,
        W::Format,
        W::Zwj,
        W::RegionalIndicator,
        W::CarriageReturn,
        W::LineFeed,
        W::Newline,
        W::Space,
    ]
};

const SENTENCE_CLASSES: [SentenceClass; 15] = {
    use SentenceClass as S;
    [
        S::Other,
        S::Separator,
        S::CarriageReturn,
        S::LineFeed,
        S::Space,
        S::Lower,
        S::Upper,
        S::OtherLetter,
        S::Numeric,
        S::AmbiguousTerm,
        S::Term,
        S::Close,
        S::Continue,
        S::Extend,
        S::Format,
    ]
};

/// All that is known of one code point; the low 16 bits are what the table stores.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Properties(u32);

const SENTENCE_SHIFT: u32 = 5;
const LETTER: u32 = 1 << 9;
const NUMBER: u32 = 1 << 10;
const DECIMAL: u32 = 1 << 11;
const DIGIT: u32 = 1 << 12;
const UPPER: u32 = 1 << 13;
const TERMINAL: u32 = 1 << 14;
const PICTOGRAPH: u32 = 1 << 15;
// Fixed sets of Python and of datatrove, added when the table is unpacked.
const SPACE: u32 = 1 << 16;
const SYMBOL: u32 = 1 << 17;

impl Properties {
    /// Its class in the rules on words.
    #[inline]
    pub fn word_class(self) -> WordClass {
        WORD_CLASSES[(self.0 & 31) as usize]
    }

    /// Its class in the rules on sentences.
    #[inline]
    pub fn sentence_class(self) -> SentenceClass {
        SENTENCE_CLASSES[(self.0 >> SENTENCE_SHIFT & 15) as usize]
    }

    /// Category L, as `str.isalpha`.
    #[inline]
    pub fn is_letter(self) -> bool {
        self.0 & LETTER != 0
    }

    /// Category L or N, as `str.isalnum`.
    #[inline]
    pub fn is_alphanumeric(self) -> bool {
        self.0 & (LETTER | NUMBER) != 0
    }

    /// Category Nd, as `\d` and `str.isdecimal`.
    #[inline]
    pub fn is_decimal(self) -> bool {
        self.0 & DECIMAL != 0
    }

    /// Decimals, superscripts and their like, as `str.isdigit`.
    #[inline]
    pub fn is_digit(self) -> bool {
        self.0 & DIGIT != 0
    }

    /// Upper case, as `str.isupper`.
    #[inline]
    pub fn is_upper(self) -> bool {
        self.0 & UPPER != 0
    }

    /// Ends sentences in some script.
    #[inline]
    pub fn is_sentence_terminal(self) -> bool {
        self.0 & TERMINAL != 0
    }

    /// `Extended_Pictographic`.
    #[inline]
    pub fn is_pictograph(self) -> bool {
        self.0 & PICTOGRAPH != 0
    }

    /// A blank to Python.
    #[inline]
    pub fn is_space(self) -> bool {
        self.0 & SPACE != 0
    }

    /// A symbol to datatrove.
    #[inline]
    pub fn is_symbol(self) -> bool {
        self.0 & SYMBOL != 0
    }
}

/// What Python's `str.isspace`, `split` and `strip` take for a blank: `White_Space` and the four
/// separators U+001C to U+001F.
#[inline]
pub fn is_space(character: char) -> bool {
    matches!(
        character,
        '\t'..='\r' | '\x1c'..='\x20' | '\u{85}' | '\u{a0}' | '\u{1680}' | '\u{2000}'..='\u{200a}'
            | '\u{2028}' | '\u{2029}' | '\u{202f}' | '\u{205f}' | '\u{3000}'
    )
}

// The marks of CCNet's normalisation; controls but tab and newline, and terminals, come to them.
const MARKS: &str =
    "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~«´»–—’“”„…∶━►、。〈〉《》「」【】！％（），．１：；？～";

fn is_symbol(code_point: u32, stored: u32) -> bool {
    let control = matches!(code_point, 0..=8 | 0x0b..=0x1f | 0x7f..=0x9f);
    control
        || stored & TERMINAL != 0
        || char::from_u32(code_point).is_some_and(|character| MARKS.contains(character))
}

const BLOCK_BITS: u32 = 7;
const BLOCK_SIZE: usize = 1 << BLOCK_BITS;

/// Two-level table: equal blocks of 128 code points are stored once.
struct Table {
    block_of: Vec<u16>,
    properties: Vec<Properties>,
}

static TABLE: LazyLock<Table> = LazyLock::new(|| {
    let mut flat: Vec<Properties> = Vec::with_capacity(0x11_0000);
    for (i, &change) in CLASS_CHANGES.iter().enumerate() {
        let end = CLASS_CHANGES.get(i + 1).map_or(0x11_0000, |next| next >> 8);
        flat.resize(
            end as usize,
            Properties(PROPERTIES[(change & 255) as usize].into()),
        );
    }
    for (code_point, properties) in flat.iter_mut().enumerate() {
        let code_point = code_point as u32;
        if char::from_u32(code_point).is_some_and(is_space) {
            properties.0 |= SPACE;
        }
        if is_symbol(code_point, properties.0) {
            properties.0 |= SYMBOL;
        }
    }
    let mut known = std::collections::HashMap::new();
    let mut table = Table {
        block_of: Vec::new(),
        properties: Vec::new(),
    };
    for block in flat.chunks(BLOCK_SIZE) {
        let key: Vec<u32> = block.iter().map(|properties| properties.0).collect();
        let next = (table.properties.len() / BLOCK_SIZE) as u16;
        let index = *known.entry(key).or_insert(next);
        if index == next {
            table.properties.extend_from_slice(block);
        }
        table.block_of.push(index);
    }
    table
});

/// The properties of a character.
#[inline]
pub fn properties_of(character: char) -> Properties {
    let table = &*TABLE;
    let code_point = character as usize;
    let block = table.block_of[code_point >> BLOCK_BITS] as usize;
    table.properties[block << BLOCK_BITS | code_point & (BLOCK_SIZE - 1)]
}

#[cfg(test)]
#[path = "unicode_tests.rs"]
mod tests;
