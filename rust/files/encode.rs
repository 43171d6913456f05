//! Files -> token file: in order, in parallel, in bounded memory, and on after a kill.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::blocks::{Block, Invalid, Splitter};
use super::in_order::{Job, in_order, thread_count};
use super::input::InputOptions;
use super::source::{FileBlocks, OpenRows};
use crate::bpe::Tokenizer;
use crate::error::{Error, Result};
use crate::token_file::{Position, Resumed, TokenFileOptions, TokenFileSummary, TokenFileWriter};
use crate::{Progress, TokenId};

/// What to encode and how.
pub struct EncodeJob<'j> {
    /// The files, in the order of the tokens.
    pub paths: &'j [PathBuf],
    /// What the files are.
    pub inputs: InputOptions,
    /// What to do about bytes that are not UTF-8.
    pub invalid: Invalid,
    /// Workers; `None` means one per processor.
    pub n_threads: Option<usize>,
    /// Whether to go on where a run that was stopped left off, and to leave what is
    /// finished for the next one if this run is stopped.
    pub resume: bool,
}

/// Encodes files into a token file: in order, in parallel, in bounded memory.
///
/// A document ends after each end-of-text token of `options`, and at the end of each
/// file or row, where the token is added unless it stands there. What holds no text is no
/// document.
///
/// # Errors
/// What reading, `Invalid::Strict`, the pattern, the writer or `progress` refuse; nothing
/// that looks complete is left behind then.
pub fn encode_files(
    tokenizer: &Tokenizer,
    job: EncodeJob<'_>,
    out: &Path,
    mut options: TokenFileOptions,
    open_rows: Option<OpenRows>,
    progress: &mut Progress,
) -> Result<TokenFileSummary> {
    let splitter = Splitter::of(tokenizer);
    let encoder = Encoder {
        tokenizer,
        end_of_text: options.tokenizer.end_of_text,
        invalid: job.invalid,
        n_threads: thread_count(job.n_threads),
    };
    let blocks = FileBlocks::new(job.paths, &splitter, job.inputs, open_rows)?;
    options.conditions.extend(blocks.conditions());
    let errors = format!("{:?}", job.invalid).to_lowercase();
    options.conditions.push(("errors".to_owned(), errors));
    let (writer, start) = if job.resume {
        match TokenFileWriter::resume(out, options)? {
            Resumed::Complete(summary) => return Ok(summary),
            Resumed::Writer(writer, start) => (*writer, start),
        }
    } else {
        (TokenFileWriter::create(out, options)?, Position::default())
    };
    if tokenizer.is_narrow() {
        encoder.run::<u16>(blocks, writer, start, progress)
    } else {
        encoder.run::<u32>(blocks, writer, start, progress)
    }
}

/// Ids of one block, and what the writer needs to know of it.
struct EncodedBlock<I> {
    token_ids: Vec<I>,
    document_ends: Vec<usize>,
    /// Bytes of text that the ids stand for, where that is known without adding them up.
    n_utf8_bytes: Option<u64>,
    position: Position,
    n_input_bytes: u64,
}

struct Encoder<'t> {
    tokenizer: &'t Tokenizer,
    end_of_text: Option<u32>,
    invalid: Invalid,
    n_threads: usize,
}

impl Encoder<'_> {
    /// Encodes the blocks from `start` on and completes the token file.
    fn run<I: TokenId>(
        &self,
        mut blocks: FileBlocks<'_>,
        mut writer: TokenFileWriter,
        start: Position,
        progress: &mut Progress,
    ) -> Result<TokenFileSummary> {
        let total_bytes = blocks.total_bytes();
        let mut done = blocks.resume_at(start);
        let mut n_written = start.n_tokens as usize;
        // Memory that was used before is there already; new memory is zeroed by the system.
        let spare: Mutex<Vec<Vec<I>>> = Mutex::new(Vec::new());
        let spare = || spare.lock().unwrap_or_else(PoisonError::into_inner);
        let encode = |(): &mut (), block| {
            let used = spare().pop();
            self.encode(block, used.unwrap_or_default())
        };
        in_order(
            self.n_threads,
            blocks,
            || (),
            encode,
            |block| {
                // What the stopped run wrote of the text that is read again.
                let known = n_written.min(block.token_ids.len());
                n_written -= known;
                let ends = block.document_ends.iter().filter(|&&end| end > known);
                let ends: Vec<usize> = ends.map(|end| end - known).collect();
                writer.set_position(Position {
                    n_tokens: known as u64,
                    ..block.position
                });
                let rest = &block.token_ids[known..];
                match block.n_utf8_bytes {
                    Some(n_bytes) if known == 0 => writer.write_text(rest, &ends, n_bytes)?,
                    _ => writer.write(rest, &ends)?,
                }
                spare().push(block.token_ids);
                done += block.n_input_bytes;
                progress("encode", done, total_bytes)
            },
        )?;
        if n_written > 0 {
            return Err(Error::Argument(format!(
                "resume must be given the text that the run began with, got {n_written} tokens less"
            )));
        }
        writer.finish()
    }

    fn encode<I: TokenId>(
        &self,
        mut block: Block,
        mut token_ids: Vec<I>,
    ) -> Result<EncodedBlock<I>> {
        block.prepare(self.invalid)?;
        token_ids.clear();
        // Most text has more bytes to a token: so the buffer hardly ever grows.
        token_ids.reserve(block.n_bytes() / 3);
        let mut document_ends = Vec::new();
        let mut n_special_bytes = 0;
        let mut texts = block.texts().peekable();
        while let Some(text) = texts.next() {
            let start = token_ids.len();
            if block.holds_specials {
                let found = |place, id| {
                    n_special_bytes += self.tokenizer.vocab().get(id).map_or(0, <[u8]>::len);
                    if Some(id) == self.end_of_text {
                        document_ends.push(place + 1);
                    }
                };
                self.tokenizer.encode_finding(text, &mut token_ids, found)?;
            } else {
                self.tokenizer.encode_ordinary_into(text, &mut token_ids)?;
            }
            // The last block of a file that holds anything is not empty.
            let is_open = token_ids.len() > start && document_ends.last() != Some(&token_ids.len());
            if is_open && (block.closes_document || texts.peek().is_some()) {
                token_ids.extend(self.end_of_text.map(I::from_id));
                document_ends.push(token_ids.len());
            }
        }
        // Ordinary text may hold what looks like a special token, and merges may make it one.
        let n_bytes = (block.n_bytes() - n_special_bytes) as u64;
        Ok(EncodedBlock {
            n_utf8_bytes: block.holds_specials.then_some(n_bytes),
            document_ends,
            position: block.position,
            n_input_bytes: block.n_input_bytes,
            token_ids,
        })
    }
}
