//! Token ids into shards: in one pass, in bounded memory, complete or absent.

use std::path::Path;

use super::folder::LockedFolder;
use super::manifest::Manifest;
use super::plan::{Plan, check_same_origin};
use super::reader::read_manifest;
use super::resume::{Position, ResumeState, Resumed, check_shards};
use super::shard::ShardWriter;
use super::{MANIFEST_NAME, MAX_PAYLOAD_BYTES, TokenFileOptions, TokenFileSummary};
use crate::TokenId;
use crate::error::{Error, Result};

/// Writes a stream of token ids as a token file.
///
/// Memory: a buffer of 1 MiB, whatever the length of the stream. Dropping a writer that
/// was not finished removes everything it wrote; one that resumes keeps finished shards.
///
/// What has its name is on the disk: a file is synced before it is renamed and its folder
/// after, shard by shard, then the state for a writer that resumes, the manifest last.
#[derive(Debug)]
pub struct TokenFileWriter {
    folder: LockedFolder,
    manifest: Manifest,
    token_byte_lengths: Vec<u32>,
    shard_tokens: u64,
    max_tokens: u64,
    shard: Option<ShardWriter>,
    failed: bool,
    conditions: Vec<(String, String)>,
    /// Where the stream stands in its input, once somebody has said so.
    position: Option<Position>,
}

impl TokenFileWriter {
    /// Opens a new token file in the folder `out`, which is made if it is missing.
    ///
    /// What a killed writer left there is removed first.
    ///
    /// # Errors
    ///
    /// If the folder holds anything else, if another writer is at work in it, or if an
    /// option is out of range.
    pub fn create(out: &Path, options: TokenFileOptions) -> Result<Self> {
        Self::create_with_limit(out, options, MAX_PAYLOAD_BYTES)
    }

    /// Goes on where a writer that was stopped left off, with the shards it had finished;
    /// where there is none, opens a new token file.
    ///
    /// # Errors
    ///
    /// As [`Self::create`], and if what was begun there was begun with other options.
    pub fn resume(out: &Path, options: TokenFileOptions) -> Result<Resumed> {
        Self::resume_with_limit(out, options, MAX_PAYLOAD_BYTES)
    }

    pub(super) fn resume_with_limit(
        out: &Path,
        options: TokenFileOptions,
        limit: u64,
    ) -> Result<Resumed> {
        let plan = Plan::new(options, limit)?;
        if out.join(MANIFEST_NAME).exists() {
            let complete = read_manifest(out)?;
            check_same_origin(out, &complete, &plan.manifest)?;
            LockedFolder::clean_complete(out);
            return Ok(Resumed::Complete(complete.summary()));
        }
        let mut writer = Self::new(LockedFolder::open(out)?, plan);
        let mut start = Position::default();
        if let Some(state) = ResumeState::read(out)? {
            state.check_conditions(out, &writer.conditions)?;
            writer.manifest.shards = state.shards;
            writer.manifest.n_split_documents = state.n_split_documents;
            check_shards(out, &writer.manifest)?;
            start = state.position;
        }
        let n_shards = writer.manifest.shards.len();
        writer.folder.keep_shards(n_shards, true)?;
        Ok(Resumed::Writer(Box::new(writer), start))
    }

    fn create_with_limit(out: &Path, options: TokenFileOptions, max_bytes: u64) -> Result<Self> {
        let plan = Plan::new(options, max_bytes)?;
        let mut writer = Self::new(LockedFolder::open(out)?, plan);
        writer.folder.keep_shards(0, false)?;
        Ok(writer)
    }

    fn new(folder: LockedFolder, plan: Plan) -> Self {
        Self {
            folder,
            manifest: plan.manifest,
            token_byte_lengths: plan.token_byte_lengths,
            shard_tokens: plan.shard_tokens,
            max_tokens: plan.max_tokens,
            shard: None,
            failed: false,
            conditions: plan.conditions,
            position: None,
        }
    }

    /// Says where in the input the tokens of the next [`Self::write`] come from; from then
    /// on the folder is one that [`Self::resume`] can go on with.
    pub fn set_position(&mut self, position: Position) {
        self.position = Some(position);
    }

    /// Appends `token_ids`; a document ends at each of `document_ends`.
    ///
    /// The ends are offsets into `token_ids`, ascending, each behind at least one token of
    /// its document; 0 ends the document that the call before left open. Tokens behind the
    /// last end begin or continue a document that the next call goes on with.
    ///
    /// # Errors
    ///
    /// If an id is not below the vocabulary size or an end is out of order (nothing is
    /// written then), or if the system refuses to write. A writer that failed stays failed.
    pub fn write<I: TokenId>(&mut self, token_ids: &[I], document_ends: &[usize]) -> Result<()> {
        self.write_counted(token_ids, document_ends, None)
    }

    /// As [`Self::write`] where it is known how many bytes of text the tokens stand for, so
    /// that they need not be added up.
    ///
    /// # Errors
    ///
    /// As [`Self::write`].
    pub fn write_text<I: TokenId>(
        &mut self,
        token_ids: &[I],
        document_ends: &[usize],
        n_utf8_bytes: u64,
    ) -> Result<()> {
        let shard = self.shard.as_ref();
        let n_before = shard.map_or(0, ShardWriter::n_tokens);
        // Where a shard may be closed in between, each has to be given its part.
        let is_one_shard = n_before + (token_ids.len() as u64) < self.shard_tokens;
        let known = is_one_shard.then_some(n_utf8_bytes);
        self.write_counted(token_ids, document_ends, known)
    }

    fn write_counted<I: TokenId>(
        &mut self,
        token_ids: &[I],
        document_ends: &[usize],
        n_utf8_bytes: Option<u64>,
    ) -> Result<()> {
        self.check_usable()?;
        // Stays set if any of the following returns early.
        self.failed = true;
        self.check_ids(token_ids)?;
        self.check_ends(document_ends, token_ids.len())?;
        let is_known = n_utf8_bytes.is_some();
        let mut start = 0;
        for &end in document_ends {
            self.append(&token_ids[start..end], is_known)?;
            self.end_document()?;
            start = end;
        }
        self.append(&token_ids[start..], is_known)?;
        if let (Some(n_bytes), Some(shard)) = (n_utf8_bytes, &mut self.shard) {
            debug_assert_eq!(n_bytes, bytes_of_text(token_ids, &self.token_byte_lengths));
            shard.add_utf8_bytes(n_bytes);
        }
        self.failed = false;
        Ok(())
    }

    /// Ends an open document, writes the manifest and returns the totals.
    pub fn finish(mut self) -> Result<TokenFileSummary> {
        self.check_usable()?;
        self.close_shard()?;
        self.folder.complete(&self.manifest.encode())?;
        Ok(self.manifest.summary())
    }

    /// What a kill does: it runs no destructor and gives up the lock.
    #[cfg(test)]
    pub(super) fn kill(self) {
        self.folder.unlock();
        std::mem::forget(self);
    }

    fn check_usable(&self) -> Result<()> {
        if self.failed {
            let reason = "a token file writer must not be used after it failed";
            return Err(Error::Argument(reason.to_owned()));
        }
        Ok(())
    }

    fn check_ids<I: TokenId>(&self, token_ids: &[I]) -> Result<()> {
        let vocab_size = self.manifest.tokenizer.vocab_size;
        // The maximum vectorises, of the ids as they are; the position is looked up only to
        // report it.
        let largest = token_ids.iter().copied().fold(I::default(), I::max);
        if token_ids.is_empty() || largest.id() < vocab_size {
            return Ok(());
        }
        let at = token_ids
            .iter()
            .position(|id| id.id() >= vocab_size)
            .unwrap_or_default();
        Err(Error::UnknownToken(format!(
            "token_ids must be below vocab_size {vocab_size}, got {} at position {at}",
            token_ids[at].id()
        )))
    }

    fn check_ends(&self, document_ends: &[usize], n_tokens: usize) -> Result<()> {
        let open = self.shard.as_ref().is_some_and(ShardWriter::document_open);
        let mut least = usize::from(!open);
        for &end in document_ends {
            if end < least || end > n_tokens {
                return Err(Error::Argument(format!(
                    "document_ends must ascend from {least} to at most {n_tokens}, got {end}"
                )));
            }
            least = end + 1;
        }
        Ok(())
    }

    /// Appends tokens of one document, going on in the next shard where one is full. Where
    /// `n_bytes_known`, somebody else says how many bytes of text they stand for.
    fn append<I: TokenId>(&mut self, mut token_ids: &[I], n_bytes_known: bool) -> Result<()> {
        while !token_ids.is_empty() {
            let mut shard = match self.shard.take() {
                Some(shard) => shard,
                None => self.new_shard()?,
            };
            let room = self.max_tokens.saturating_sub(shard.n_tokens()) as usize;
            let (now, later) = token_ids.split_at(token_ids.len().min(room));
            shard.append(now)?;
            if !n_bytes_known {
                shard.add_utf8_bytes(bytes_of_text(now, &self.token_byte_lengths));
            }
            if let Some(position) = &mut self.position {
                position.n_tokens += now.len() as u64;
            }
            self.shard = Some(shard);
            if !later.is_empty() {
                self.manifest.n_split_documents += 1;
                self.close_shard()?;
            }
            token_ids = later;
        }
        Ok(())
    }

    fn end_document(&mut self) -> Result<()> {
        if let Some(shard) = &mut self.shard {
            shard.end_document();
            if shard.n_tokens() >= self.shard_tokens {
                self.close_shard()?;
                // Only here: a shard that ends within a document can be followed by no
                // other but the one that goes on with it.
                return self.save_state();
            }
        }
        Ok(())
    }

    fn save_state(&mut self) -> Result<()> {
        let Some(position) = self.position else {
            return Ok(());
        };
        let state = ResumeState::encode(&self.manifest, &self.conditions, position);
        self.folder.save_state(&state, self.manifest.shards.len())
    }

    fn new_shard(&self) -> Result<ShardWriter> {
        let index = self.manifest.shards.len();
        ShardWriter::create(self.folder.path(), index, self.manifest.itemsize())
    }

    /// Brings the open shard, if there is one, to the disk under its name.
    fn close_shard(&mut self) -> Result<()> {
        let Some(shard) = self.shard.take() else {
            return Ok(());
        };
        let (record, payload) = shard.close_index()?;
        self.manifest.shards.push(record);
        let header = self
            .manifest
            .shard_header(self.manifest.shards.len() - 1)
            .encode();
        payload.commit(&header)?;
        self.folder.sync()
    }
}

/// Bytes of text that some tokens stand for.
fn bytes_of_text<I: TokenId>(token_ids: &[I], token_byte_lengths: &[u32]) -> u64 {
    let lengths = token_ids
        .iter()
        .map(|id| u64::from(token_byte_lengths[id.id() as usize]));
    lengths.sum()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
mod tests {
    use std::fs;

    use super::super::testing::{Folder, documents, names, options};
    use super::super::verify;
    use super::*;

    /// The stream of some documents and where they end in it.
    fn stream(documents: &[Vec<u32>]) -> (Vec<u32>, Vec<usize>) {
        let ends = documents.iter().scan(0, |end, document| {
            *end += document.len();
            Some(*end)
        });
        (documents.concat(), ends.collect())
    }

    fn write_all(out: &Path, options: TokenFileOptions, limit: u64) -> TokenFileSummary {
        let (ids, ends) = stream(&documents(options.tokenizer.vocab_size));
        let mut writer = TokenFileWriter::create_with_limit(out, options, limit).unwrap();
        writer.write(&ids, &ends).unwrap();
        writer.finish().unwrap()
    }

    fn message<T: std::fmt::Debug>(result: Result<T>) -> String {
        result.unwrap_err().to_string()
    }

    /// The golden files were written by `token_file.py`, whose version line they have.
    #[test]
    fn writer_rewrites_the_golden_files_byte_for_byte() {
        for (vocab_size, name) in [(300, "token_file_u16"), (70_000, "token_file_u32")] {
            let golden = Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("tests/fixtures")
                .join(name);
            let folder = Folder::new(name);
            let (ids, ends) = stream(&documents(vocab_size));
            let mut writer = TokenFileWriter::create(folder.path(), options(vocab_size)).unwrap();
            "golden".clone_into(&mut writer.manifest.rslm_version);
            writer.write(&ids, &ends).unwrap();
            assert_eq!(writer.finish().unwrap(), verify(&golden).unwrap());
            let files = names(&golden);
            assert_eq!(names(folder.path()), files);
            for file in files {
                let [ours, theirs] =
                    [folder.path(), &golden].map(|place| fs::read(place.join(&file)).unwrap());
                assert!(ours == theirs, "{name}/{file} differs");
            }
        }
    }

    #[test]
    fn writer_gives_the_same_files_for_any_pieces() {
        let whole = Folder::new("pieces_whole");
        write_all(whole.path(), options(300), 64);
        for size in [1, 2, 7, 16] {
            let pieces = Folder::new(&format!("pieces_{size}"));
            let (ids, ends) = stream(&documents(300));
            let mut writer =
                TokenFileWriter::create_with_limit(pieces.path(), options(300), 64).unwrap();
            for (start, piece) in (0..).step_by(size).zip(ids.chunks(size)) {
                let inside = |end: &&usize| start < **end && **end <= start + piece.len();
                let ends: Vec<_> = ends.iter().filter(inside).map(|end| end - start).collect();
                writer.write(piece, &ends).unwrap();
            }
            writer.finish().unwrap();
            for file in names(whole.path()) {
                let [a, b] = [&whole, &pieces].map(|f| fs::read(f.path().join(&file)).unwrap());
                assert!(a == b, "{file} differs for pieces of {size}");
            }
        }
    }

    #[test]
    fn shard_closes_at_the_first_document_end_past_its_size() {
        let folder = Folder::new("shard_sizes");
        let mut writer = TokenFileWriter::create(folder.path(), options(300)).unwrap();
        let (ids, ends) = stream(&documents(300));
        writer.write(&ids, &ends).unwrap();
        let sizes: Vec<_> = writer
            .manifest
            .shards
            .iter()
            .map(|shard| shard.n_tokens)
            .collect();
        // Lengths 3 1 9 5 | 12 2 8 | with 16 tokens a shard.
        assert_eq!(sizes, [18, 22]);
        assert_eq!(writer.finish().unwrap().n_shards, 2);
    }

    #[test]
    fn document_longer_than_the_limit_goes_on_in_the_next_shard() {
        let folder = Folder::new("split");
        let mut options = options(300);
        options.shard_tokens = 4;
        // 10 bytes are 5 tokens of 2 bytes.
        let mut writer = TokenFileWriter::create_with_limit(folder.path(), options, 10).unwrap();
        writer.write(&[1u32; 12], &[12]).unwrap();
        writer.write(&[2u32; 5], &[5]).unwrap();
        let sizes: Vec<_> = writer
            .manifest
            .shards
            .iter()
            .map(|shard| shard.n_tokens)
            .collect();
        // The last piece of the long document leaves room, so the next document joins it.
        assert_eq!(sizes, [5, 5, 5]);
        assert_eq!(writer.manifest.n_split_documents, 3);
        let summary = writer.finish().unwrap();
        assert_eq!(
            (summary.n_tokens, summary.n_documents, summary.n_shards),
            (17, 5, 4)
        );
        assert_eq!(verify(folder.path()).unwrap(), summary);
    }

    #[test]
    fn document_that_exactly_fills_a_shard_is_not_split() {
        let folder = Folder::new("exact");
        let mut options = options(300);
        options.shard_tokens = 5;
        let mut writer = TokenFileWriter::create_with_limit(folder.path(), options, 10).unwrap();
        writer.write(&[1u32; 5], &[]).unwrap();
        writer.write(&[2u32; 5], &[0, 5]).unwrap();
        assert_eq!(writer.manifest.n_split_documents, 0);
        assert_eq!(writer.finish().unwrap().n_documents, 2);
    }

    #[test]
    fn finish_closes_an_open_document() {
        let folder = Folder::new("open");
        let mut writer = TokenFileWriter::create(folder.path(), options(300)).unwrap();
        writer.write(&[5u32, 6, 0, 7], &[3]).unwrap();
        let summary = writer.finish().unwrap();
        assert_eq!(
            (summary.n_tokens, summary.n_documents, summary.n_utf8_bytes),
            (4, 2, 6)
        );
        assert_eq!(verify(folder.path()).unwrap(), summary);
    }

    #[test]
    fn payload_may_be_empty_or_longer_than_a_block() {
        let folder = Folder::new("empty");
        let writer = TokenFileWriter::create(folder.path(), options(300)).unwrap();
        let summary = writer.finish().unwrap();
        assert_eq!((summary.n_tokens, summary.n_shards), (0, 0));
        assert_eq!(verify(folder.path()).unwrap(), summary);

        for vocab_size in [300, 70_000] {
            let folder = Folder::new(&format!("blocks_{vocab_size}"));
            let mut writer = TokenFileWriter::create(folder.path(), options(vocab_size)).unwrap();
            let ids: Vec<u32> = (0..2_200_000).map(|i| i % vocab_size).collect();
            writer.write(&ids, &[1_234_567]).unwrap();
            let summary = writer.finish().unwrap();
            assert_eq!(summary.n_tokens, 2_200_000);
            assert_eq!(verify(folder.path()).unwrap(), summary);
        }
    }

    #[test]
    fn unknown_ids_and_bad_ends_are_refused_and_leave_nothing() {
        let cases: [(&[u32], &[usize], &str); 4] = [
            (
                &[1, 300],
                &[],
                "token_ids must be below vocab_size 300, got 300 at position 1",
            ),
            (
                &[1, 2],
                &[3],
                "document_ends must ascend from 1 to at most 2, got 3",
            ),
            (
                &[1, 2],
                &[0],
                "document_ends must ascend from 1 to at most 2, got 0",
            ),
            (
                &[1, 2],
                &[1, 1],
                "document_ends must ascend from 2 to at most 2, got 1",
            ),
        ];
        for (ids, ends, expected) in cases {
            let folder = Folder::new("refused");
            let mut writer = TokenFileWriter::create(folder.path(), options(300)).unwrap();
            writer.write(&[1u32, 2, 0], &[3]).unwrap();
            assert_eq!(message(writer.write(ids, ends)), expected);
            assert!(message(writer.write(&[1u32], &[1])).contains("after it failed"));
            assert!(message(writer.finish()).contains("after it failed"));
            assert!(!folder.path().exists());
        }
    }

    #[test]
    fn id_65536_is_wide_and_never_wrapped() {
        for (vocab_size, itemsize) in [(1 << 16, 2), ((1 << 16) + 1, 4)] {
            let folder = Folder::new(&format!("width_{itemsize}"));
            let mut writer = TokenFileWriter::create(folder.path(), options(vocab_size)).unwrap();
            writer.write(&[vocab_size - 1], &[1]).unwrap();
            assert_eq!(writer.finish().unwrap().itemsize, itemsize);
        }
    }

    #[test]
    fn killed_writer_leaves_no_manifest_and_is_cleared_by_the_next() {
        let folder = Folder::new("killed");
        let (ids, ends) = stream(&documents(300));
        let mut writer = TokenFileWriter::create(folder.path(), options(300)).unwrap();
        writer.write(&ids[..20], &ends[..4]).unwrap();
        writer.kill();
        let left = names(folder.path());
        assert!(left.contains(&"shard_00000.bin".to_owned()));
        assert!(left.contains(&"shard_00001.bin.tmp".to_owned()));
        assert!(message(verify(folder.path())).contains("manifest.json is missing"));

        let summary = write_all(folder.path(), options(300), MAX_PAYLOAD_BYTES);
        assert_eq!(verify(folder.path()).unwrap(), summary);
        assert_eq!(names(folder.path()).len(), 5);
    }

    #[test]
    fn second_writer_is_refused() {
        let folder = Folder::new("second");
        let first = TokenFileWriter::create(folder.path(), options(300)).unwrap();
        let second = TokenFileWriter::create(folder.path(), options(300));
        assert!(message(second).contains("another writer is at work"));
        drop(first);
        assert!(!folder.path().exists());
    }

    #[test]
    fn foreign_and_complete_folders_are_refused_untouched() {
        let folder = Folder::new("foreign");
        fs::create_dir_all(folder.path()).unwrap();
        let file = folder.path().join("shard_00000.bin");
        fs::write(&file, "precious").unwrap();
        let refused = TokenFileWriter::create(folder.path(), options(300));
        assert!(message(refused).ends_with("holds shard_00000.bin"));
        assert_eq!(fs::read(&file).unwrap(), b"precious");

        fs::remove_file(&file).unwrap();
        let summary = write_all(folder.path(), options(300), MAX_PAYLOAD_BYTES);
        let refused = TokenFileWriter::create(folder.path(), options(300));
        assert!(message(refused).ends_with("holds a complete token file"));
        assert_eq!(verify(folder.path()).unwrap(), summary);
    }

    #[test]
    fn options_out_of_range_are_refused() {
        type Change = fn(&mut TokenFileOptions);
        let cases: [(Change, &str); 6] = [
            (
                |o| o.shard_tokens = 0,
                "shard_tokens must be between 1 and 536870912, got 0",
            ),
            (|o| o.shard_tokens = (1 << 29) + 1, "got 536870913"),
            (
                |o| o.dataset = "é".repeat(33),
                "dataset must have at most 64 bytes",
            ),
            (
                |o| o.tokenizer.token_byte_lengths = vec![],
                "must have vocab_size = 300 entries",
            ),
            (
                |o| o.tokenizer.end_of_text = Some(300),
                "end_of_text must be below",
            ),
            (
                |o| o.tokenizer.sha256 = [0; 32],
                "must be that of its canonical_json",
            ),
        ];
        for (change, expected) in cases {
            let folder = Folder::new("options");
            let mut options = options(300);
            change(&mut options);
            let message = message(TokenFileWriter::create(folder.path(), options));
            assert!(message.contains(expected), "{message}");
            assert!(!folder.path().exists());
        }
    }
}
