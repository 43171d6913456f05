//! Texts made alike where a reader would not tell them apart: twin of
//! `rslm.data.dedup.normalize`, equal to it on every text.

use super::characters::{Action, Piece, Rule, SETS, SLOW, Table, is_number_separator, pieces_of};

/// Writes the normalised text to `out`, whose earlier content is lost.
///
/// `text` is UTF-8, in which lone surrogates may stand as their three bytes. Linear in its
/// length but for spacing marks, a run of which is sorted.
pub fn normalize(text: &[u8], rule: Rule, out: &mut Vec<u8>) {
    out.clear();
    let mut normalizer = Normalizer {
        text,
        rule,
        table: Table::of(rule),
        out,
        n_written: 0,
        blank: true,
    };
    normalizer.run();
    let n_written = normalizer.n_written;
    out.truncate(n_written);
    // Words of marks alone leave the blanks around them.
    let n_kept = out
        .iter()
        .rposition(|&byte| byte != b' ')
        .map_or(0, |last| last + 1);
    out.truncate(n_kept);
    let n_leading = out.iter().position(|&byte| byte != b' ').unwrap_or(0);
    out.drain(..n_leading);
}

/// The words of a normalised text with one blank between: what is left where words of marks
/// alone have gone.
pub fn close_gaps(normal: &mut Vec<u8>) {
    let mut blank = false;
    normal.retain(|&byte| {
        let again = blank && byte == b' ';
        blank = byte == b' ';
        !again
    });
}

struct Normalizer<'a> {
    text: &'a [u8],
    rule: Rule,
    table: &'static Table,
    /// Zeros from `n_written` on.
    out: &'a mut Vec<u8>,
    n_written: usize,
    /// Whether a further blank would change nothing.
    blank: bool,
}

impl Normalizer<'_> {
    fn run(&mut self) {
        let mut place = 0;
        while place < self.text.len() {
            place = self.ascii(place);
            if place < self.text.len() {
                place = self.other(place);
            }
        }
    }

    /// Plain ASCII from `place` on; where it ends.
    ///
    /// No branch but the loop's: words are short, and each border guessed wrong would cost as
    /// much as ten characters.
    fn ascii(&mut self, place: usize) -> usize {
        const MOST: usize = 1 << 14;
        let rest = &self.text[place..self.text.len().min(place + MOST)];
        self.room(rest.len());
        let out = &mut self.out[self.n_written..][..rest.len()];
        let (mut n_out, mut n_read, mut blank) = (0, 0, self.blank);
        for &byte in rest {
            if byte >= 128 {
                break;
            }
            let becomes = self.table.ascii[usize::from(byte)];
            if becomes == SLOW {
                break;
            }
            let is_blank = becomes == b' ';
            out[n_out] = becomes;
            n_out += usize::from(!(is_blank & blank));
            blank = is_blank;
            n_read += 1;
        }
        self.n_written += n_out;
        self.blank = blank;
        place + n_read
    }

    /// One code point of any kind, with the number or the marks that begin at it; where it ends.
    fn other(&mut self, place: usize) -> usize {
        let (code_point, n) = decode(self.text, place);
        match self.table.action(code_point) {
            Action::Copy => {
                let text = self.text;
                self.write(&text[place..place + n]);
            }
            Action::Blank => self.write_blank(),
            Action::Drop => self.begin_word(),
            Action::Replace { start, n } => {
                let table = self.table;
                self.write(table.bytes(start, n));
            }
            Action::Digit => {
                self.write(b"0");
                return self.number_end(place + n);
            }
            Action::Complex => return self.complex(code_point, place, place + n),
        }
        place + n
    }

    /// Where a number ends of which a digit ends at `place`: digits, and once a separator with
    /// digits after it.
    fn number_end(&self, place: usize) -> usize {
        let end = self.digits_end(place);
        if end < self.text.len() {
            let (separator, n) = decode(self.text, end);
            let fraction_end = self.digits_end(end + n);
            if is_number_separator(separator) && fraction_end > end + n {
                return fraction_end;
            }
        }
        end
    }

    fn digits_end(&self, mut place: usize) -> usize {
        while place < self.text.len() {
            let (code_point, n) = decode(self.text, place);
            if self.table.action(code_point) != Action::Digit {
                break;
            }
            place += n;
        }
        place
    }

    #[cold]
    fn complex(&mut self, code_point: u32, place: usize, end: usize) -> usize {
        if code_point == 0x3A3 {
            let is_final = is_final_sigma(self.text, place, end);
            self.write(if is_final { "ς" } else { "σ" }.as_bytes());
            return end;
        }
        self.begin_word();
        let mut marks = Vec::new();
        self.push(code_point, &mut marks);
        // Marks after it may belong before it, until a character that nothing goes before.
        let mut end = end;
        while !marks.is_empty() && end < self.text.len() {
            let (next, n) = decode(self.text, end);
            let orders_on = matches!(self.table.action(next), Action::Drop | Action::Complex)
                && next != 0x3A3
                && char::from_u32(next).is_some_and(|c| {
                    let pieces = pieces_of(c, self.rule);
                    let on =
                        |piece: &Piece| matches!(piece, Piece::Mark(true) | Piece::Reordered(..));
                    pieces.iter().all(on)
                });
            if !orders_on {
                break;
            }
            self.push(next, &mut marks);
            end += n;
        }
        self.write_marks(&mut marks);
        end
    }

    fn push(&mut self, code_point: u32, marks: &mut Vec<(u8, char)>) {
        let Some(character) = char::from_u32(code_point) else {
            return;
        };
        for piece in pieces_of(character, self.rule) {
            match piece {
                Piece::Reordered(class, mark) => marks.push((class, mark)),
                Piece::Mark(true) => {}
                starter => {
                    self.write_marks(marks);
                    match starter {
                        Piece::Kept(kept) => self.write_char(kept),
                        Piece::Blank => self.write_blank(),
                        _ => {}
                    }
                }
            }
        }
    }

    fn write_marks(&mut self, marks: &mut Vec<(u8, char)>) {
        marks.sort_by_key(|&(class, _)| class);
        for (_, mark) in marks.drain(..) {
            self.write_char(mark);
        }
    }

    fn write_char(&mut self, character: char) {
        self.write(character.encode_utf8(&mut [0; 4]).as_bytes());
    }

    #[inline]
    fn write(&mut self, bytes: &[u8]) {
        self.room(bytes.len());
        self.out[self.n_written..][..bytes.len()].copy_from_slice(bytes);
        self.n_written += bytes.len();
        self.blank = false;
    }

    fn write_blank(&mut self) {
        if !self.blank {
            self.write(b" ");
            self.blank = true;
        }
    }

    /// By `FineWeb`'s rule words are cut before marks go, so a mark alone keeps its blanks apart.
    fn begin_word(&mut self) {
        self.blank &= self.rule == Rule::Course;
    }

    #[inline]
    fn room(&mut self, n: usize) {
        let wanted = self.n_written + n;
        if wanted > self.out.len() {
            let n_text = self.text.len() + 64;
            self.out
                .resize(wanted.max(2 * self.out.len()).max(n_text), 0);
        }
    }
}

/// The code point that begins at a place, and its bytes; of what is no UTF-8, some number.
#[inline]
fn decode(text: &[u8], place: usize) -> (u32, usize) {
    let at = |offset: usize| u32::from(text.get(place + offset).copied().unwrap_or(0) & 0x3F);
    let first = u32::from(text[place]);
    let (code_point, n) = match first {
        0..0x80 => (first, 1),
        0x80..0xE0 => ((first & 0x1F) << 6 | at(1), 2),
        0xE0..0xF0 => ((first & 0xF) << 12 | at(1) << 6 | at(2), 3),
        _ => ((first & 7) << 18 | at(1) << 12 | at(2) << 6 | at(3), 4),
    };
    (code_point, n.min(text.len() - place))
}

/// Whether a sigma ends a word: something cased before it and nothing cased after it, marks and
/// other ignorable characters on either side not counted.
///
/// A sigma is cased, so that a stretch of ignorable characters is looked through twice at most.
fn is_final_sigma(text: &[u8], start: usize, end: usize) -> bool {
    let is_ignorable = |c: u32| char::from_u32(c).is_some_and(|c| SETS.case_ignorable.holds(c));
    let is_cased = |c: u32| char::from_u32(c).is_some_and(|c| SETS.cased.holds(c));
    let mut before = start;
    loop {
        let Some(first) = text[..before].iter().rposition(|&byte| byte & 0xC0 != 0x80) else {
            return false;
        };
        let (code_point, _) = decode(text, first);
        before = first;
        if !is_ignorable(code_point) {
            if !is_cased(code_point) {
                return false;
            }
            break;
        }
    }
    let mut after = end;
    while after < text.len() {
        let (code_point, n) = decode(text, after);
        if !is_ignorable(code_point) {
            return !is_cased(code_point);
        }
        after += n;
    }
    true
}
