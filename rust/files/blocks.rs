//! Files -> blocks that may be worked on apart.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::str;

use crate::bpe::Tokenizer;
use crate::error::{Error, Result};
use crate::pretokenize::{Batch, Pattern, Segment, SpecialTokens, safe_cut};

const BLOCK_BYTES: usize = 4 << 20;

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
        self.specials
            .split(text, |segment| match (segment, self.unit) {
                (Segment::Special(_), _) => Ok(()),
                (Segment::Text(text), Unit::Document) => {
                    self.pattern.split_batches(text, ends, &mut each)
                }
                (Segment::Text(text), Unit::Line) => text
                    .split_inclusive(|&byte| byte == b'\n')
                    .try_for_each(|line| self.pattern.split_batches(line, ends, &mut each)),
            })
    }
}

/// Text that can be worked on by itself.
pub struct Block {
    pub(super) bytes: Vec<u8>,
    /// Where each independent text in `bytes` ends.
    ends: Vec<usize>,
    /// Whether the last text ends a document whatever follows.
    pub(super) closes_document: bool,
    place: String,
    offset: u64,
}

impl Block {
    /// A block of whole texts, for sources that are no files.
    pub fn of_texts<'t>(texts: impl IntoIterator<Item = &'t str>) -> Self {
        let mut block = Self {
            bytes: Vec::new(),
            ends: Vec::new(),
            closes_document: true,
            place: "texts".into(),
            offset: 0,
        };
        for text in texts {
            block.bytes.extend_from_slice(text.as_bytes());
            block.ends.push(block.bytes.len());
        }
        block
    }

    pub(super) fn check_utf8(&mut self, invalid: Invalid) -> Result<()> {
        let Err(error) = str::from_utf8(&self.bytes) else {
            return Ok(());
        };
        match invalid {
            Invalid::Raw => Ok(()),
            Invalid::Strict => Err(Error::Utf8 {
                place: self.place.clone(),
                offset: self.offset + error.valid_up_to() as u64,
            }),
            Invalid::Replace => {
                // Only blocks of files can hold invalid bytes, and they hold one text.
                self.bytes = String::from_utf8_lossy(&self.bytes)
                    .into_owned()
                    .into_bytes();
                self.ends = vec![self.bytes.len()];
                Ok(())
            }
        }
    }

    pub(super) fn texts(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts
            .zip(&self.ends)
            .map(|(start, &end)| &self.bytes[start..end])
    }
}

/// Reads files one after the other as blocks; each file ends a document.
pub struct FileBlocks<'s> {
    splitter: &'s Splitter,
    waiting: VecDeque<PathBuf>,
    open: Option<(PathBuf, File)>,
    carry: Vec<u8>,
    offset: u64,
    total_bytes: u64,
    block_bytes: usize,
}

impl<'s> FileBlocks<'s> {
    /// # Errors
    /// `Io` where a file is missing; `Argument` where a path is no regular file.
    pub fn new(paths: &[PathBuf], splitter: &'s Splitter) -> Result<Self> {
        let mut total_bytes = 0;
        for path in paths {
            let metadata = path.metadata().map_err(|error| Error::io(path, error))?;
            if !metadata.is_file() {
                let kind = if metadata.is_dir() {
                    "the folder"
                } else {
                    "the pipe or device"
                };
                return Err(Error::Argument(format!(
                    "input paths must be regular files, got {kind} {}",
                    path.display()
                )));
            }
            total_bytes += metadata.len();
        }
        let waiting = paths.iter().cloned().collect();
        Ok(Self {
            splitter,
            waiting,
            open: None,
            carry: Vec::new(),
            offset: 0,
            total_bytes,
            block_bytes: BLOCK_BYTES,
        })
    }

    /// The same in blocks of another size.
    #[must_use]
    pub fn with_block_bytes(self, block_bytes: usize) -> Self {
        Self {
            block_bytes,
            ..self
        }
    }

    /// Bytes of all files, as the system told before reading.
    pub fn total_bytes(&self) -> u64 {
        self.total_bytes
    }

    fn next_block(&mut self) -> Result<Option<Block>> {
        if self.open.is_none() {
            let Some(path) = self.waiting.pop_front() else {
                return Ok(None);
            };
            let file = File::open(&path).map_err(|error| Error::io(&path, error))?;
            self.open = Some((path, file));
            self.offset = 0;
        }
        let Some((path, file)) = self.open.as_mut() else {
            return Ok(None);
        };
        let mut bytes = std::mem::take(&mut self.carry);
        let (mut wanted, mut from) = (self.block_bytes, 0);
        let at_end = loop {
            bytes.reserve(wanted);
            let read = file.by_ref().take(wanted as u64).read_to_end(&mut bytes);
            if read.map_err(|error| Error::io(&*path, error))? < wanted {
                break true;
            }
            match self.splitter.last_cut(&bytes, from) {
                Ok(cut) => {
                    self.carry = bytes[cut..].to_vec();
                    bytes.truncate(cut);
                    break false;
                }
                Err(next) => (wanted, from) = (bytes.len(), next),
            }
        };
        let (place, offset) = (path.display().to_string(), self.offset);
        self.offset += bytes.len() as u64;
        if at_end {
            self.open = None;
        }
        let ends = vec![bytes.len()];
        Ok(Some(Block {
            bytes,
            ends,
            closes_document: at_end,
            place,
            offset,
        }))
    }
}

impl Iterator for FileBlocks<'_> {
    type Item = Result<Block>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_block().transpose()
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
