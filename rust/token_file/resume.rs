//! What a writer that was stopped leaves for the one that goes on.
//!
//! Beside the finished shards lies a small file that is replaced whenever a shard is
//! finished: what the shards hold, where in the input the next one begins, and everything
//! that must be the same for the rest to be what it would have been.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::header::{HEADER_BYTES, first_difference};
use super::manifest::{Manifest, ShardRecord, count, list, text};
use super::{TokenFileSummary, TokenFileWriter, hex, index_name, shard_name};
use crate::error::{Error, Result};

/// Exists in a folder that can be gone on with.
pub(super) const STATE_NAME: &str = "resume.json";
const FORMAT: &str = "rslm resume state 1";

/// Where in its input a stream of tokens stands. Whoever feeds the writer gives it a
/// meaning; the writer counts the tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// Number of the input file.
    pub input: u64,
    /// A byte or row of that file from which it can be read.
    pub offset: u64,
    /// Lines or rows of that file before it.
    pub n_rows: u64,
    /// Tokens of the text from there on that have been written.
    pub n_tokens: u64,
}

/// What [`TokenFileWriter::resume`] found.
#[derive(Debug)]
pub enum Resumed {
    /// Everything has been written.
    Complete(TokenFileSummary),
    /// The writer, and where in the input it goes on.
    Writer(Box<TokenFileWriter>, Position),
}

/// What the file says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ResumeState {
    pub conditions: Vec<(String, String)>,
    pub n_split_documents: u64,
    pub position: Position,
    pub shards: Vec<ShardRecord>,
}

impl ResumeState {
    /// The text of the file. It ends with a hash over the rest, for what is read from it
    /// goes into the manifest.
    pub fn encode(
        manifest: &Manifest,
        conditions: &[(String, String)],
        position: Position,
    ) -> Vec<u8> {
        let shards = manifest.shards.iter().enumerate();
        let content = json!({
            "conditions": conditions,
            "format": FORMAT,
            "input": position.input,
            "n_rows": position.n_rows,
            "n_split_documents": manifest.n_split_documents,
            "n_tokens": position.n_tokens,
            "offset": position.offset,
            "shards": shards
                .map(|(i, shard)| shard.to_json(i, manifest.itemsize()))
                .collect::<Vec<_>>(),
        })
        .to_string();
        let hash = hex(&Sha256::digest(&content));
        format!("{content}\n{hash}\n").into_bytes()
    }

    /// The state in a folder, if there is one.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(STATE_NAME);
        if !path.exists() {
            return Ok(None);
        }
        let bytes = fs::read(&path).map_err(|error| Error::io(&path, error))?;
        let state = Self::decode(&bytes).ok_or_else(|| {
            let reason = "must be the state of a stopped run; start anew without resume";
            Error::format(&path, reason)
        })?;
        Ok(Some(state))
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let text = str::from_utf8(bytes).ok()?.strip_suffix('\n')?;
        let (content, hash) = text.rsplit_once('\n')?;
        if hash != hex(&Sha256::digest(content)) {
            return None;
        }
        let value: Value = serde_json::from_str(content).ok()?;
        Self::from_json(&value).ok()
    }

    fn from_json(value: &Value) -> std::result::Result<Self, &'static str> {
        if text(value, "format")? != FORMAT {
            return Err("format");
        }
        Ok(Self {
            conditions: list(value, "conditions", |pair| {
                let part = |i: usize| pair[i].as_str().map(str::to_owned).ok_or("conditions");
                Ok((part(0)?, part(1)?))
            })?,
            n_split_documents: count(value, "n_split_documents")?,
            position: Position {
                input: count(value, "input")?,
                offset: count(value, "offset")?,
                n_rows: count(value, "n_rows")?,
                n_tokens: count(value, "n_tokens")?,
            },
            shards: list(value, "shards", ShardRecord::from_json)?,
        })
    }

    /// Refuses to go on under other conditions.
    pub fn check_conditions(&self, folder: &Path, ours: &[(String, String)]) -> Result<()> {
        if self.conditions == ours {
            return Ok(());
        }
        let mut pairs = self.conditions.iter().zip(ours);
        Err(match pairs.find(|(theirs, ours)| theirs != ours) {
            Some((theirs, ours)) => must_be_same(folder, &ours.0, &theirs.1, &ours.1),
            None => must_be_same(folder, "the list of options", "another", "this"),
        })
    }
}

/// The refusal of a run whose `what` is not that of the run that it resumes.
pub(super) fn must_be_same(folder: &Path, what: &str, begun: &str, given: &str) -> Error {
    Error::Argument(format!(
        "resume must be given what the run in {} began with: {what} was {begun}, got {given}",
        folder.display()
    ))
}

/// Looks whether the finished shards are there, with the sizes and headers they must have;
/// to read them whole is the business of `verify`.
pub(super) fn check_shards(folder: &Path, manifest: &Manifest) -> Result<()> {
    for (i, shard) in manifest.shards.iter().enumerate() {
        let index = folder.join(index_name(i));
        check_size(&index, shard.index_bytes())?;
        let path = folder.join(shard_name(i));
        check_size(&path, shard.file_bytes(manifest.itemsize()))?;
        let mut found = [0; HEADER_BYTES];
        fs::File::open(&path)
            .and_then(|mut file| std::io::Read::read_exact(&mut file, &mut found))
            .map_err(|error| Error::io(&path, error))?;
        let expected = manifest.shard_header(i).encode();
        if let Some((at, field)) = first_difference(&expected, &found) {
            let reason = format!("at byte {at}: {field} is not what the stopped run wrote");
            return Err(Error::format(&path, reason));
        }
    }
    Ok(())
}

fn check_size(path: &Path, expected: u64) -> Result<()> {
    let found = path.metadata().map_err(|error| Error::io(path, error))?;
    if found.len() != expected {
        let found = found.len();
        let reason = format!("must have the {expected} bytes of a finished shard, got {found}");
        return Err(Error::format(path, reason));
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
mod tests {
    use super::super::testing::{Folder, documents, names, options};
    use super::*;

    /// The documents of the golden files and two more, of which the first is longer than a
    /// shard may be.
    fn stream() -> Vec<Vec<u32>> {
        let mut all = documents(300);
        all.push([7; 40].into_iter().chain([0]).collect());
        all.push(vec![8, 0]);
        all
    }

    /// Feeds a writer from `start` on; one position for each document, `input` its number.
    fn feed(writer: &mut TokenFileWriter, start: Position, until: usize) {
        let mut known = start.n_tokens as usize;
        for (number, document) in (0..).zip(stream()).take(until) {
            if number < start.input {
                continue;
            }
            writer.set_position(Position {
                input: number,
                n_tokens: known as u64,
                ..Position::default()
            });
            // What is known is whole documents, of which each position has one.
            if known == 0 {
                writer.write(&document, &[document.len()]).unwrap();
            }
            known = 0;
        }
    }

    fn open(folder: &Path) -> (Box<TokenFileWriter>, Position) {
        match TokenFileWriter::resume_with_limit(folder, options(300), 50).unwrap() {
            Resumed::Writer(writer, start) => (writer, start),
            Resumed::Complete(_) => panic!("it is not complete"),
        }
    }

    fn contents(folder: &Path) -> Vec<(String, Vec<u8>)> {
        let read = |name: String| (fs::read(folder.join(&name)).unwrap(), name);
        names(folder)
            .into_iter()
            .map(read)
            .map(|(a, b)| (b, a))
            .collect()
    }

    #[test]
    fn writer_that_resumes_anywhere_gives_the_same_files() {
        let whole = Folder::new("resume_whole");
        let (mut writer, start) = open(whole.path());
        feed(&mut writer, start, 99);
        let summary = writer.finish().unwrap();
        assert!(summary.n_shards > 4);
        for until in 0..=stream().len() {
            let folder = Folder::new(&format!("resume_{until}"));
            let (mut writer, start) = open(folder.path());
            assert_eq!(start, Position::default());
            feed(&mut writer, start, until);
            writer.kill();
            let (mut writer, start) = open(folder.path());
            feed(&mut writer, start, 99);
            assert_eq!(writer.finish().unwrap(), summary);
            assert_eq!(
                contents(folder.path()),
                contents(whole.path()),
                "after {until}"
            );
            let again = TokenFileWriter::resume_with_limit(folder.path(), options(300), 50);
            assert!(matches!(again.unwrap(), Resumed::Complete(same) if same == summary));
        }
    }

    #[test]
    fn dropped_writer_that_resumes_keeps_finished_shards_alone() {
        let folder = Folder::new("resume_dropped");
        let (mut writer, start) = open(folder.path());
        feed(&mut writer, start, 5);
        assert!(
            names(folder.path())
                .iter()
                .any(|name| name.contains(".tmp"))
        );
        drop(writer);
        let expected = [
            "resume.json",
            "shard_00000.bin",
            "shard_00000.idx.npy",
            "writer.lock",
        ];
        assert_eq!(names(folder.path()), expected);
        // A writer that does not resume takes the folder all the same, and clears it.
        drop(TokenFileWriter::create(folder.path(), options(300)).unwrap());
        assert!(names(folder.path()).is_empty());
    }

    #[test]
    fn state_is_read_as_it_was_written_or_refused() {
        let folder = Folder::new("resume_state");
        let (mut writer, start) = open(folder.path());
        feed(&mut writer, start, 5);
        writer.kill();
        let path = folder.path().join(STATE_NAME);
        let text = fs::read(&path).unwrap();
        let state = ResumeState::read(folder.path()).unwrap().unwrap();
        assert_eq!(state.shards.len(), 1);
        // Lengths 3 1 9 5: the shard of 16 tokens ends with the fourth document.
        assert_eq!((state.position.input, state.position.n_tokens), (3, 5));
        for at in 0..text.len() {
            let mut bad = text.clone();
            bad[at] ^= 1;
            fs::write(&path, bad).unwrap();
            let read = ResumeState::read(folder.path());
            assert!(matches!(read, Err(Error::Format { .. })), "at {at}");
        }
        for text in ["", "\n", "{}\n", "null\n00\n"] {
            fs::write(&path, text).unwrap();
            assert!(ResumeState::read(folder.path()).is_err());
        }
    }
}
