//! Files -> blocks, in order, from any place in them.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::blocks::{Block, Splitter};
use super::buffers::Buffers;
use super::input::{Compression, Format, Input, InputOptions};
use super::text::{BLOCK_BYTES, TextContent, last_line_end};
use crate::error::{Error, Result};
use crate::token_file::Position;

/// Some rows of a table.
pub struct Rows {
    /// The texts, one after the other.
    pub bytes: Vec<u8>,
    /// Where each text ends.
    pub ends: Vec<usize>,
    /// Bytes of the file that have been read once these rows are.
    pub n_file_bytes: u64,
}

/// Opens a table at a row; tables are read by whoever calls, not by this crate.
pub type OpenRows =
    Box<dyn FnMut(&Path, &str, u64) -> Result<Box<dyn Iterator<Item = Result<Rows>>>> + Send>;

/// Reads files one after the other as blocks; each file ends a document.
pub struct FileBlocks<'s> {
    splitter: &'s Splitter,
    options: Arc<InputOptions>,
    open_rows: Option<OpenRows>,
    inputs: Vec<Input>,
    /// Those that have not been begun, and where in the first of them to begin.
    waiting: VecDeque<(u64, Input)>,
    start: Position,
    open: Option<Open>,
    total_bytes: u64,
    block_bytes: usize,
    buffers: Buffers,
}

/// The file that is being read.
struct Open {
    input: Input,
    content: Content,
    /// Where the next block begins.
    position: Position,
    /// Bytes of the file that earlier blocks stand for.
    n_told: u64,
}

enum Content {
    Text(TextContent),
    Rows(Box<dyn Iterator<Item = Result<Rows>>>),
}

impl<'s> FileBlocks<'s> {
    /// The blocks of some files; `open_rows` is asked for the tables among them.
    ///
    /// # Errors
    /// `Io` where a file is missing; `Argument` where a path is no regular file, or a
    /// table that nobody opens.
    pub fn new(
        paths: &[PathBuf],
        splitter: &'s Splitter,
        options: InputOptions,
        open_rows: Option<OpenRows>,
    ) -> Result<Self> {
        if options.max_document_bytes == 0 {
            let reason = "max_document_bytes must be at least 1, got 0";
            return Err(Error::Argument(reason.to_owned()));
        }
        let inputs = paths.iter().map(|path| Input::new(path, &options));
        let inputs = inputs.collect::<Result<Vec<_>>>()?;
        for input in &inputs {
            check_table(input, open_rows.is_some())?;
        }
        Ok(Self {
            splitter,
            options: Arc::new(options),
            open_rows,
            waiting: (0..).zip(inputs.iter().cloned()).collect(),
            start: Position::default(),
            open: None,
            total_bytes: inputs.iter().map(|input| input.n_bytes).sum(),
            inputs,
            block_bytes: BLOCK_BYTES,
            buffers: Buffers::default(),
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

    /// Goes on at `position`, a place where a block began; returns the bytes of the files
    /// before the one it lies in.
    pub(super) fn resume_at(&mut self, position: Position) -> u64 {
        self.start = position;
        let n_passed = self.waiting.len().min(position.input as usize);
        let passed = self.waiting.drain(..n_passed);
        passed.map(|(_, input)| input.n_bytes).sum()
    }

    /// What must be the same for the blocks to be the same: a name and a value each.
    pub(super) fn conditions(&self) -> Vec<(String, String)> {
        let options = &self.options;
        let numbered = (1..).zip(&self.inputs);
        let inputs = numbered.map(|(n, input)| (format!("input {n}"), input.identity.clone()));
        let formats = (1..).zip(&self.inputs).map(|(n, input)| {
            let value = format!("{:?}", input.format).to_lowercase();
            (format!("format of input {n}"), value)
        });
        let n_inputs = self.inputs.len().to_string();
        let mut all = vec![("number of inputs".to_owned(), n_inputs)];
        all.extend(inputs.chain(formats));
        all.push(("text_field".into(), options.text_field.clone()));
        let holds = options.rows_hold_special_tokens.to_string();
        all.push(("rows_hold_special_tokens".into(), holds));
        all
    }

    fn next_block(&mut self) -> Result<Option<Block>> {
        if self.open.is_none() {
            let Some((number, input)) = self.waiting.pop_front() else {
                return Ok(None);
            };
            self.open = Some(self.open_input(number, input)?);
        }
        let Some(open) = self.open.as_mut() else {
            return Ok(None);
        };
        let (block, at_end) = open.next(self.splitter, &self.options, self.block_bytes)?;
        if at_end {
            self.open = None;
        }
        Ok(Some(block))
    }

    fn open_input(&mut self, number: u64, input: Input) -> Result<Open> {
        let start = std::mem::take(&mut self.start);
        let position = Position {
            input: number,
            n_tokens: 0,
            ..start
        };
        let content = if input.format == Format::Parquet {
            let open_rows = self.open_rows.as_mut().expect("checked before reading");
            let rows = open_rows(&input.path, &self.options.text_field, position.offset)?;
            Content::Rows(rows)
        } else {
            Content::Text(TextContent::open(
                &input,
                position.offset,
                self.buffers.clone(),
            )?)
        };
        Ok(Open {
            input,
            content,
            position,
            n_told: 0,
        })
    }
}

impl Iterator for FileBlocks<'_> {
    type Item = Result<Block>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_block().transpose()
    }
}

impl Open {
    /// The next block, perhaps an empty one, and whether the file ends with it.
    fn next(
        &mut self,
        splitter: &Splitter,
        options: &Arc<InputOptions>,
        block_bytes: usize,
    ) -> Result<(Block, bool)> {
        let position = self.position;
        let is_lines = self.input.format == Format::JsonLines;
        let (mut block, n_file_bytes, at_end) = match &mut self.content {
            Content::Text(content) => {
                let limit = options.max_document_bytes;
                let cut = |text: &[u8], from: usize| {
                    if is_lines {
                        last_line_end(text, from)
                    } else {
                        splitter.last_cut(text, from)
                    }
                };
                let (bytes, at_end) =
                    content.next(&self.input, position.offset, block_bytes, limit, cut)?;
                self.position.offset += bytes.len() as u64;
                if is_lines {
                    self.position.n_rows += memchr::memchr_iter(b'\n', &bytes).count() as u64;
                }
                let ends = vec![bytes.len()];
                let mut block = Block::new(bytes, ends);
                block.lines = is_lines.then(|| Arc::clone(options));
                block.closes_document = is_lines || at_end;
                (block, content.n_file_bytes(), at_end)
            }
            Content::Rows(rows) => {
                let Some(rows) = rows.next().transpose()? else {
                    return Ok((Block::new(Vec::new(), Vec::new()), true));
                };
                check_rows(&rows, &self.input.path, position.n_rows, options)?;
                self.position.offset += rows.ends.len() as u64;
                self.position.n_rows = self.position.offset;
                let mut block = Block::new(rows.bytes, rows.ends);
                block.is_rows = true;
                (block, rows.n_file_bytes, false)
            }
        };
        block.holds_specials =
            self.input.format == Format::Text || options.rows_hold_special_tokens;
        block.place = self.input.place();
        block.position = position;
        block.n_input_bytes = n_file_bytes.saturating_sub(self.n_told);
        self.n_told = n_file_bytes.max(self.n_told);
        Ok((block, at_end))
    }
}

fn check_table(input: &Input, is_opened: bool) -> Result<()> {
    let place = input.path.display();
    let reason = if input.format != Format::Parquet {
        return Ok(());
    } else if !is_opened {
        format!("tables are read from Python only, got {place}")
    } else if input.compression != Compression::None {
        format!("a Parquet file must not be compressed as a whole, got {place}")
    } else {
        return Ok(());
    };
    Err(Error::Argument(reason))
}

fn check_rows(rows: &Rows, path: &Path, n_before: u64, options: &InputOptions) -> Result<()> {
    let limit = options.max_document_bytes;
    let mut start = 0;
    for (number, &end) in (n_before..).zip(&rows.ends) {
        if end < start || end > rows.bytes.len() {
            return Err(Error::Argument(format!(
                "the ends of rows must ascend to at most {}, got {end} after {start}",
                rows.bytes.len()
            )));
        }
        if end - start > limit {
            let reason = format!(
                "row {number}: a row must have at most max_document_bytes = {limit} bytes, got {}",
                end - start
            );
            return Err(Error::format(path, reason));
        }
        start = end;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
mod tests {
    use std::fs;
    use std::io::Write;

    use super::super::blocks::{Invalid, Unit};
    use super::*;
    use crate::pretokenize::{Pattern, SpecialTokens};

    fn splitter() -> Splitter {
        Splitter {
            pattern: Pattern::new("gpt2").unwrap(),
            specials: SpecialTokens::new(&[]).unwrap(),
            unit: Unit::Document,
        }
    }

    /// A folder of its own for each test, removed when it ends.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("rslm_{name}_{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn write(&self, name: &str, content: &[u8]) -> PathBuf {
            let path = self.0.join(name);
            fs::write(&path, content).unwrap();
            path
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn gzip(content: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    /// All text of the blocks from a position on, and where the blocks with text began.
    fn read(paths: &[PathBuf], start: Position) -> (Vec<u8>, Vec<Position>) {
        let splitter = splitter();
        let options = InputOptions::default();
        let mut blocks = FileBlocks::new(paths, &splitter, options, None).unwrap();
        let total = blocks.total_bytes();
        let mut done = blocks.resume_at(start);
        let (mut text, mut positions) = (Vec::new(), Vec::new());
        for block in blocks {
            let mut block = block.unwrap();
            block.prepare(Invalid::Raw).unwrap();
            done += block.n_input_bytes;
            let before = text.len();
            block.texts().for_each(|part| text.extend_from_slice(part));
            if text.len() > before {
                positions.push(block.position);
            }
        }
        assert_eq!(done, total);
        (text, positions)
    }

    #[test]
    fn blocks_from_any_position_are_the_rest_of_the_text() {
        let folder = Folder::new("source_positions");
        let words = "some words in a line, \u{e9} too\n"
            .repeat(170_000)
            .into_bytes();
        let lines =
            b"{\"text\": \"some text in a line of JSON, which is longer\"}\n".repeat(75_000);
        let empty = folder.write("empty.txt", b"");
        for (name, content) in [
            ("a.txt", &words),
            ("b.jsonl", &lines),
            ("c.gz", &gzip(&words)),
            ("d.jsonl.gz", &gzip(&lines)),
        ] {
            let paths = [empty.clone(), folder.write(name, content), empty.clone()];
            let (whole, positions) = read(&paths, Position::default());
            assert!(positions.len() > 1);
            let mut n_left = usize::MAX;
            for position in positions {
                let (rest, from) = read(&paths, position);
                assert_eq!(from[0], position);
                assert!(
                    rest.len() < n_left && whole.ends_with(&rest),
                    "{position:?}"
                );
                n_left = rest.len();
            }
        }
    }

    #[test]
    fn lines_keep_their_numbers_from_any_position() {
        let folder = Folder::new("source_lines");
        let mut lines = "{\"text\": \"some text in a line\"}\n".repeat(150_000);
        lines.push_str("{}\n");
        let paths = [folder.write("a.jsonl.gz", &gzip(lines.as_bytes()))];
        let splitter = splitter();
        let error_from = |start| {
            let options = InputOptions::default();
            let mut blocks = FileBlocks::new(&paths, &splitter, options, None).unwrap();
            blocks.resume_at(start);
            let prepared = blocks.map(|block| {
                let mut block = block?;
                block.prepare(Invalid::Strict).map(|()| block.position)
            });
            let (good, bad): (Vec<_>, Vec<_>) = prepared.partition(Result::is_ok);
            (good, bad[0].as_ref().unwrap_err().to_string())
        };
        let (good, message) = error_from(Position::default());
        assert!(
            message.contains("line 150001 (byte 4800000): "),
            "{message}"
        );
        for position in good {
            assert_eq!(error_from(position.unwrap()).1, message);
        }
    }

    #[test]
    fn text_that_cannot_be_divided_is_refused_at_the_limit() {
        let folder = Folder::new("source_limit");
        for name in ["a.txt", "a.jsonl"] {
            let paths = [folder.write(name, &vec![b'a'; 6 << 20])];
            let splitter = splitter();
            for (limit, is_read) in [
                (1, false),
                (5 << 20, false),
                ((6 << 20) - 1, false),
                (6 << 20, true),
            ] {
                let options = InputOptions {
                    max_document_bytes: limit,
                    ..InputOptions::default()
                };
                let mut blocks = FileBlocks::new(&paths, &splitter, options, None).unwrap();
                assert_eq!(blocks.next().unwrap().is_ok(), is_read, "{name} {limit}");
            }
        }
    }

    #[test]
    fn tables_need_somebody_who_opens_them() {
        let folder = Folder::new("source_tables");
        let paths = [folder.write("a.parquet", b"PAR1")];
        let splitter = splitter();
        let refused = FileBlocks::new(&paths, &splitter, InputOptions::default(), None);
        assert!(refused.is_err());
        let open: OpenRows = Box::new(|_, column, first| {
            assert_eq!(column, "text");
            let rows = (first..3).map(|row| {
                let bytes = format!("row {row}").into_bytes();
                let ends = vec![bytes.len()];
                let n_file_bytes = row + 2;
                Ok(Rows {
                    bytes,
                    ends,
                    n_file_bytes,
                })
            });
            Ok(Box::new(rows))
        });
        let options = InputOptions::default();
        let mut blocks = FileBlocks::new(&paths, &splitter, options, Some(open)).unwrap();
        blocks.resume_at(Position {
            offset: 1,
            n_rows: 1,
            ..Position::default()
        });
        let found: Vec<_> = blocks
            .map(|block| {
                let block = block.unwrap();
                (
                    block.texts().map(<[u8]>::to_vec).collect::<Vec<_>>(),
                    block.position.offset,
                )
            })
            .collect();
        assert_eq!(
            found[..2],
            [(vec![b"row 1".to_vec()], 1), (vec![b"row 2".to_vec()], 2)]
        );
    }
}
