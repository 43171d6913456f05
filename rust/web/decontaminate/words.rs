//! Words of a text in lower case, and their hashes.

use std::sync::OnceLock;

use regex_syntax::hir::{Class, HirKind};

/// A word of a text.
pub(super) struct Word {
    /// Where it begins.
    pub start: usize,
    /// A hash of what it is in lower case.
    pub hash: u64,
}

/// The words of a text, each with its hash.
pub(super) struct Words<'t> {
    text: &'t str,
    /// What has been read; after a word, its end.
    pub at: usize,
    letters: &'static [u64],
}

impl<'t> Words<'t> {
    pub fn new(text: &'t str) -> Self {
        Self {
            text,
            at: 0,
            letters: word_characters(),
        }
    }

    /// The next word; what it is in lower case is added to `out`.
    pub fn next(&mut self, mut out: Option<&mut String>) -> Option<Word> {
        let bytes = self.text.as_bytes();
        let mut hash = 0xCBF2_9CE4_8422_2325_u64;
        let mut start = None;
        while let Some(&byte) = bytes.get(self.at) {
            if byte < 0x80 {
                let folded = ASCII_FOLDED[byte as usize];
                if folded == 0 {
                    if start.is_some() {
                        break;
                    }
                    self.at += 1;
                    continue;
                }
                start.get_or_insert(self.at);
                self.at += 1;
                hash = add_byte(hash, folded);
                if let Some(out) = out.as_deref_mut() {
                    out.push(folded as char);
                }
                continue;
            }
            let character = self.text[self.at..].chars().next().unwrap_or_default();
            let code_point = character as usize;
            let is_letter = self.letters[code_point / 64] >> (code_point % 64) & 1 == 1;
            if !is_letter && start.is_some() {
                break;
            }
            if is_letter {
                start.get_or_insert(self.at);
                for lower in character.to_lowercase() {
                    let mut buffer = [0; 4];
                    let lower = lower.encode_utf8(&mut buffer);
                    hash = lower.bytes().fold(hash, add_byte);
                    if let Some(out) = out.as_deref_mut() {
                        out.push_str(lower);
                    }
                }
            }
            self.at += character.len_utf8();
        }
        let start = start?;
        // Mixed, for the words are the digits of the polynomial.
        hash ^= hash >> 32;
        hash = hash.wrapping_mul(0xE703_7ED1_A0B4_28DB);
        hash ^= hash >> 29;
        Some(Word { start, hash })
    }
}

/// FNV-1a.
fn add_byte(hash: u64, byte: u8) -> u64 {
    (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
}

/// ASCII letters in lower case and digits; 0 for all else.
const ASCII_FOLDED: [u8; 128] = {
    let mut table = [0; 128];
    let mut byte = 0_u8;
    while byte < 128 {
        if byte.is_ascii_alphanumeric() {
            table[byte as usize] = byte.to_ascii_lowercase();
        }
        byte += 1;
    }
    table
};

/// One bit for each code point: whether it is a letter, a mark or a number.
fn word_characters() -> &'static [u64] {
    static TABLE: OnceLock<Vec<u64>> = OnceLock::new();
    TABLE.get_or_init(|| {
        let mut table = vec![0; 0x11_0000 / 64];
        let parsed = regex_syntax::parse(r"[\p{L}\p{M}\p{N}]").expect("the pattern is valid");
        let HirKind::Class(Class::Unicode(class)) = parsed.kind() else {
            unreachable!("the pattern is a class of characters")
        };
        for range in class.ranges() {
            for code_point in range.start() as usize..=range.end() as usize {
                table[code_point / 64] |= 1 << (code_point % 64);
            }
        }
        table
    })
}
