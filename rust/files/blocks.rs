//! Blocks of text that may be worked on apart, and where a text may be divided.

use std::sync::Arc;

use super::buffers::Buffer;
use super::in_order::Job;
use super::input::InputOptions;
use super::jsonl::{Lines, texts_of_lines};
use super::lines;
use crate::bpe::Tokenizer;
use crate::error::{Error, Result};
use crate::pretokenize::{Batch, Pattern, Segment, SpecialTokens, safe_cut};
use crate::token_file::Position;

/// What to do with bytes that are not UTF-8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invalid {
    /// Refuse, with path and offset.
    Strict,
    /// Put U+FFFD for each maximal invalid part.
    Replace,
    /// Keep the bytes; each counts as a character of class Other.
    Raw,
}

/// What is pretokenized as one text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// What stands between special tokens.
    Document,
    /// Each line, its ending kept: as Hugging Face trains from files.
    Line,
}

/// How text is divided: into segments, and into blocks that are worked on apart.
pub struct Splitter {
    /// The pattern within a segment.
    pub pattern: Pattern,
    /// Hard boundaries.
    pub specials: SpecialTokens,
    /// Whether lines are segments.
    pub unit: Unit,
}

impl Splitter {
    /// The splitter of a tokenizer's documents.
    pub fn of(tokenizer: &Tokenizer) -> Self {
        Self {
            pattern: tokenizer.pattern().clone(),
            specials: tokenizer.specials().clone(),
            unit: Unit::Document,
        }
    }

    /// Where `text`, which goes on, may be divided, short of its end; or else where to
    /// look from once it has grown. `from` is 0 or the latter answer for a shorter text:
    /// so a long text without a cut is looked at once, not once for each growth.
    pub fn last_cut(&self, text: &[u8], from: usize) -> std::result::Result<usize, usize> {
        if self.unit == Unit::Document && !self.pattern.has_safe_cuts() {
            return self.specials.last_end(text, from);
        }
        let mut end = text.len();
        while let Some(cut) = self.cut_before(&text[..end], from) {
            if cut < text.len() && self.specials.may_cut(text, cut) {
                return Ok(cut);
            }
            end = cut - 1;
        }
        // What may be a begun special token, or half a character, may turn out not to be.
        Err(text
            .len()
            .saturating_sub(self.specials.longest() + 4)
            .max(from))
    }

    fn cut_before(&self, text: &[u8], from: usize) -> Option<usize> {
        match self.unit {
            Unit::Document => safe_cut(text, from),
            Unit::Line => {
                let from = from.min(text.len());
                memchr::memrchr(b'\n', &text[from..]).map(|i| from + i + 1)
            }
        }
    }

    /// Calls `each` with every pretoken of a text, batch by batch; `ends` is working memory.
    pub fn for_each_batch(
        &self,
        text: &[u8],
        ends: &mut Vec<u32>,
        mut each: impl FnMut(Batch<'_>),
    ) -> Result<()> {
        self.specials.split(text, |segment| match segment {
            Segment::Special(_) => Ok(()),
            Segment::Text(text) => self.split_segment(text, ends, &mut each),
        })
    }

    /// The same for text in which special tokens are ordinary text.
    fn split_segment(
        &self,
        text: &[u8],
        ends: &mut Vec<u32>,
        mut each: impl FnMut(Batch<'_>),
    ) -> Result<()> {
        match self.unit {
            Unit::Document => self.pattern.split_batches(text, ends, &mut each),
            Unit::Line => lines::for_each_batch(&self.pattern, text, ends, &mut each),
        }
    }
}

/// Text that can be worked on by itself.
pub struct Block {
    bytes: Buffer,
    /// Where each independent text in `bytes` ends.
    ends: Vec<usize>,
    /// Set where `bytes` are JSON lines that have to be taken apart first.
    pub(super) lines: Option<Arc<InputOptions>>,
    /// Whether each text is a row of a table.
    pub(super) is_rows: bool,
    /// Whether special tokens are recognised in the texts.
    pub(super) holds_specials: bool,
    /// Whether the last text ends a document whatever follows; the others always do.
    pub(super) closes_document: bool,
    pub(super) place: String,
    /// Where the block begins.
    pub(super) position: Position,
    /// Bytes of the file that were read for it.
    pub(super) n_input_bytes: u64,
}

impl Block {
    /// A block of texts of a file; `ends` says where each of them ends.
    pub(super) fn new(bytes: impl Into<Buffer>, ends: Vec<usize>) -> Self {
        let bytes = bytes.into();
        Self {
            n_input_bytes: bytes.len() as u64,
            bytes,
            ends,
            lines: None,
            is_rows: false,
            holds_specials: true,
            closes_document: true,
            place: "texts".into(),
            position: Position::default(),
        }
    }

    /// A block of whole texts, for sources that are no files.
    pub fn of_texts<'t>(texts: impl IntoIterator<Item = &'t str>) -> Self {
        let (mut bytes, mut ends) = (Vec::new(), Vec::new());
        for text in texts {
            bytes.extend_from_slice(text.as_bytes());
            ends.push(bytes.len());
        }
        Self::new(bytes, ends)
    }

    /// Does the work that every text needs first: rows are taken out of their lines, and
    /// bytes that are not UTF-8 are refused or replaced.
    pub(super) fn prepare(&mut self, invalid: Invalid) -> Result<()> {
        let Some(options) = self.lines.take() else {
            return self.check_utf8(invalid);
        };
        let lines = Lines {
            bytes: &self.bytes,
            place: &self.place,
            offset: self.position.offset,
            n_before: self.position.n_rows,
        };
        let limit = options.max_document_bytes;
        let (bytes, ends) = texts_of_lines(&lines, &options.text_field, limit, invalid)?;
        (self.bytes, self.ends) = (bytes.into(), ends);
        Ok(())
    }

    fn check_utf8(&mut self, invalid: Invalid) -> Result<()> {
        if invalid == Invalid::Raw || self.texts().all(|text| str::from_utf8(text).is_ok()) {
            return Ok(());
        }
        let mut replaced = Vec::with_capacity(self.bytes.len());
        let mut ends = Vec::with_capacity(self.ends.len());
        for (text, number) in self.texts().zip(self.position.n_rows..) {
            if invalid == Invalid::Strict
                && let Err(error) = str::from_utf8(text)
            {
                return Err(self.not_utf8(number, error.valid_up_to() as u64));
            }
            let text = String::from_utf8_lossy(text);
            replaced.extend_from_slice(text.as_bytes());
            ends.push(replaced.len());
        }
        (self.bytes, self.ends) = (replaced.into(), ends);
        Ok(())
    }

    fn not_utf8(&self, row: u64, offset: u64) -> Error {
        let (place, offset) = if self.is_rows {
            (format!("{}: row {row}", self.place), offset)
        } else {
            (self.place.clone(), self.position.offset + offset)
        };
        Error::Utf8 { place, offset }
    }

    /// The texts, each of which can be worked on by itself.
    pub(super) fn texts(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts
            .zip(&self.ends)
            .map(|(start, &end)| &self.bytes[start..end])
    }

    /// Calls `each` with the pretokens of all texts, batch by batch.
    pub(super) fn for_each_batch(
        &self,
        splitter: &Splitter,
        ends: &mut Vec<u32>,
        mut each: impl FnMut(Batch<'_>),
    ) -> Result<()> {
        for text in self.texts() {
            if self.holds_specials {
                splitter.for_each_batch(text, ends, &mut each)?;
            } else {
                splitter.split_segment(text, ends, &mut each)?;
            }
        }
        Ok(())
    }
}

impl Job for Block {
    fn n_bytes(&self) -> usize {
        self.bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn splitter(pattern: &str, specials: &[&str], unit: Unit) -> Splitter {
        let texts: Vec<_> = specials.iter().map(ToString::to_string).collect();
        Splitter {
            pattern: Pattern::new(pattern).expect("valid"),
            specials: SpecialTokens::new(&texts).expect("valid"),
            unit,
        }
    }

    #[test]
    fn cuts_never_divide_specials_or_change_pretokens() {
        let text = "One  two\n\n three<|x y|>four, it's\t五六。 七\nend<|x y|><|x y|> a1 b2 !?";
        for (pattern, unit) in [
            ("gpt2", Unit::Document),
            ("o200k", Unit::Document),
            ("cl100k", Unit::Line),
            (r"\w+|\W", Unit::Document),
        ] {
            let splitter = splitter(pattern, &["<|x y|>", "<|x y|><|x y|>"], unit);
            let collect = |part: &[u8]| {
                let mut out = Vec::new();
                let each = |batch: Batch<'_>| {
                    let pretokens = batch.pretokens();
                    out.extend(pretokens.map(|(start, end)| batch.segment[start..end].to_vec()));
                };
                splitter
                    .for_each_batch(part, &mut Vec::new(), each)
                    .expect("UTF-8");
                out
            };
            let whole = collect(text.as_bytes());
            for end in text.char_indices().map(|(i, _)| i) {
                if let Ok(cut) = splitter.last_cut(&text.as_bytes()[..end], 0) {
                    let mut parts = collect(&text.as_bytes()[..cut]);
                    parts.extend(collect(&text.as_bytes()[cut..]));
                    assert_eq!(parts, whole, "{pattern} cut at {cut} of {end}");
                }
            }
        }
    }
    #[test]
    fn looking_from_where_it_left_off_finds_the_same_cuts() {
        let text =
            "One  two\n\n three<|x y|>four, it's\t五六。 七\nend<|x y|><|x y|> a1 b2 !?aab<|x";
        for (pattern, unit) in [
            ("gpt2", Unit::Document),
            ("gpt2", Unit::Line),
            (r"\w+|\W", Unit::Document),
        ] {
            let splitter = splitter(pattern, &["<|x y|>", "<|x y|><|x y|>", "aab", "ab<"], unit);
            let mut from = 0;
            for end in text.char_indices().map(|(i, _)| i) {
                let grown = splitter.last_cut(&text.as_bytes()[..end], from);
                let fresh = splitter.last_cut(&text.as_bytes()[..end], 0);
                assert_eq!(
                    grown.ok(),
                    fresh.ok().filter(|&cut| cut >= from),
                    "{pattern} at {end}"
                );
                from = grown.err().unwrap_or(0);
            }
        }
    }
}
