//! Classes of the non-ASCII characters of a block.
//!
//! One lane for each length of a character, so that no branch asks how long the next one is;
//! ideographs and Hangul need no table at all. A class is three bits, which are gathered in
//! three words and taken apart once per block.

use std::sync::LazyLock;

use super::super::unicode::{Class, class_of};
use super::bits::{flood, low};
use super::masks::{Leads, Masks};
use super::{BLOCK, WINDOW};

/// Class masks of non-ASCII characters, and the bytes that belong to the block.
#[derive(Clone, Copy, Default)]
pub(super) struct High {
    pub letter: u64,
    pub upper: u64,
    pub caseless: u64,
    pub mark: u64,
    pub number: u64,
    pub white: u64,
    pub tail: u64,
    pub n: usize,
}

impl High {
    /// Puts the bytes of non-ASCII characters into their classes.
    #[inline(always)]
    pub fn add_to(&self, masks: &mut Masks) {
        masks.letter |= self.letter;
        masks.upper |= self.upper;
        masks.caseless |= self.caseless;
        masks.mark |= self.mark;
        masks.number |= self.number;
        masks.white |= self.white;
        masks.tail = self.tail;
    }
}

/// No class: three bytes that are no character.
const INVALID: u8 = 7;

/// Characters that share a class table: those that differ in their last byte.
const ROW: usize = 64;

/// Class tables that the bytes of a character index as they are.
pub(super) struct Tables {
    /// By the low bits of both bytes.
    two: [u8; 1 << 11],
    /// By the low bits of the first two bytes: which row; equal rows are stored once.
    row_of: [u16; 1 << 10],
    rows: Vec<[u8; ROW]>,
}

static TABLES: LazyLock<Tables> = LazyLock::new(|| {
    let mut tables = Tables {
        two: std::array::from_fn(|code_point| class_of(code_point as u32) as u8),
        row_of: [0; 1 << 10],
        rows: Vec::new(),
    };
    for (first, row_of) in tables.row_of.iter_mut().enumerate() {
        let row: [u8; ROW] = std::array::from_fn(|last| {
            let code_point = (first * ROW + last) as u32;
            let valid = code_point >= 0x800 && char::from_u32(code_point).is_some();
            if valid {
                class_of(code_point) as u8
            } else {
                INVALID
            }
        });
        let known = tables.rows.iter().position(|seen| *seen == row);
        *row_of = known.unwrap_or_else(|| {
            tables.rows.push(row);
            tables.rows.len() - 1
        }) as u16;
    }
    tables
});

pub(super) fn tables() -> &'static Tables {
    &TABLES
}

/// The three bits of each class, one word for each.
#[derive(Default)]
struct Planes([u64; 3]);

impl Planes {
    #[inline(always)]
    fn put(&mut self, i: usize, class: u8) {
        let class = u64::from(class);
        self.0[0] |= (class & 1) << i;
        self.0[1] |= (class >> 1 & 1) << i;
        self.0[2] |= (class >> 2) << i;
    }

    /// First bytes of the characters of a class.
    #[inline(always)]
    fn of(&self, class: u8) -> u64 {
        let plane = |i: u8| {
            let wanted = u64::from(class >> i & 1).wrapping_neg();
            !(self.0[i as usize] ^ wanted)
        };
        plane(0) & plane(1) & plane(2)
    }
}

/// Classes of the characters that begin in a block and end in it; `n_text` bytes of the
/// window are text.
///
/// Compiled once for each back end, which works only where all of it is inlined.
#[inline(always)]
pub(super) fn classify(
    tables: &Tables,
    leads: Leads,
    window: &[u8; WINDOW],
    n_text: usize,
) -> High {
    // The block ends before a character that would straddle its end.
    let cut = leads.two & 1 << 63 | leads.three & 3 << 62 | leads.four & 7 << 61;
    let n = if n_text == BLOCK && cut != 0 {
        cut.trailing_zeros() as usize
    } else {
        n_text
    };
    let second = leads.continuation >> 1;
    let third = second & leads.continuation >> 2;
    let two = leads.two & second & low(n);
    let three = leads.three & third & low(n);
    let mut four = leads.four & third & leads.continuation >> 3 & low(n);

    let mut planes = Planes::default();
    // Which of four bytes 0xE4 is is not asked: 0xB7 after any ideograph's first byte sends
    // the character to the table.
    let plain = three & leads.ideograph & !(leads.hexagram >> 1);
    let mut left = two;
    while left != 0 {
        let i = left.trailing_zeros() as usize % BLOCK;
        left &= left - 1;
        let index = (window[i] & 0x1F) as usize * ROW + (window[i + 1] & 0x3F) as usize;
        planes.put(i, tables.two[index]);
    }
    let mut left = three & !plain;
    while left != 0 {
        let i = left.trailing_zeros() as usize % BLOCK;
        left &= left - 1;
        let first = (window[i] & 0x0F) as usize * ROW + (window[i + 1] & 0x3F) as usize;
        let row = &tables.rows[tables.row_of[first] as usize];
        planes.put(i, row[(window[i + 2] & 0x3F) as usize]);
    }
    let mut left = four;
    while left != 0 {
        let i = left.trailing_zeros() as usize % BLOCK;
        left &= left - 1;
        let bits = |i: usize| u32::from(window[i] & 0x3F);
        let high = u32::from(window[i] & 0x07) << 18 | bits(i + 1) << 12;
        let code_point = high | bits(i + 2) << 6 | bits(i + 3);
        if (0x1_0000..0x11_0000).contains(&code_point) {
            planes.put(i, class_of(code_point) as u8);
        } else {
            four &= !(1 << i);
        }
    }
    spread(&planes, two, three, four, plain, n)
}

/// Each byte of a character gets the class of its first.
#[inline(always)]
fn spread(planes: &Planes, two: u64, three: u64, four: u64, plain: u64, n: usize) -> High {
    let three = three & !planes.of(INVALID);
    let tail = two << 1 | three << 1 | three << 2 | four << 1 | four << 2 | four << 3;
    let firsts = two | three | four;
    let bytes = |firsts: u64| firsts | flood(firsts << 1, tail);
    let of = |class: Class| planes.of(class as u8) & firsts;
    let upper = bytes(of(Class::Upper));
    let caseless = bytes(of(Class::Caseless) | plain);
    High {
        letter: bytes(of(Class::Lower)) | upper | caseless,
        upper,
        caseless,
        mark: bytes(of(Class::Mark)),
        number: bytes(of(Class::Number)),
        white: bytes(of(Class::Space)),
        tail,
        n,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_ideographs_are_letters_without_case() {
        for code_point in (0x4000..0xA000).chain(0xB000..0xD000) {
            if !(0x4DC0..0x4E00).contains(&code_point) {
                assert_eq!(class_of(code_point), Class::Caseless, "U+{code_point:04X}");
            }
        }
    }

    #[test]
    fn every_character_has_its_class_in_every_byte() {
        let classes = [
            Class::Other,
            Class::Space,
            Class::Upper,
            Class::Lower,
            Class::Caseless,
            Class::Mark,
            Class::Number,
        ];
        for c in ('\u{80}'..=char::MAX)
            .filter(|c| (*c as u32) < 0x2_0000 || (*c as u32).is_multiple_of(97))
        {
            let mut window = [b' '; WINDOW];
            let len = c.encode_utf8(&mut window[5..]).len();
            let leads = super::super::masks::leads_portable(window.first_chunk().expect("longer"));
            let high = classify(tables(), leads, &window, BLOCK);
            let bytes = ((1 << len) - 1) << 5;
            assert_eq!(high.tail, bytes & bytes << 1, "{c:?}");
            for class in classes {
                let mask = match class {
                    Class::Other => continue,
                    Class::Space => high.white,
                    Class::Upper => high.upper,
                    Class::Lower => high.letter & !high.upper & !high.caseless,
                    Class::Caseless => high.caseless,
                    Class::Mark => high.mark,
                    Class::Number => high.number,
                };
                let expected = if class_of(c as u32) == class {
                    bytes
                } else {
                    0
                };
                assert_eq!(mask, expected, "{c:?} as {class:?}");
            }
        }
    }
}
