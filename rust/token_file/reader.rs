//! Reads a whole token file back and compares it with its manifest.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::header::{HEADER_BYTES, NAME_BYTES, NPY_HEADER_BYTES, first_difference, npy_header};
use super::manifest::{Manifest, ShardRecord};
use super::{
    CRC_BLOCK_BYTES, MANIFEST_NAME, MAX_MANIFEST_BYTES, MAX_PAYLOAD_BYTES, TokenFileSummary, hex,
    index_name, shard_name,
};
use crate::error::{Error, Result};

/// Reads everything in the folder `path` and returns the totals.
///
/// Checked are the manifest against itself, every header against the manifest, sizes, CRC-32
/// blocks, SHA-256, ids against the vocabulary size, and that the index ascends. Sizes are
/// compared with those of the files before anything is read; memory is one block of 4 MiB.
///
/// # Errors
///
/// [`Error::Format`] with path and offset at the first thing that does not hold.
pub fn verify(path: &Path) -> Result<TokenFileSummary> {
    let manifest = read_manifest(path)?;
    for (i, shard) in manifest.shards.iter().enumerate() {
        verify_payload(&path.join(shard_name(i)), &manifest, i)?;
        verify_index(&path.join(index_name(i)), shard)?;
    }
    Ok(manifest.summary())
}

pub(super) fn read_manifest(folder: &Path) -> Result<Manifest> {
    let metadata = fs::metadata(folder).map_err(|e| Error::io(folder, e))?;
    if !metadata.is_dir() {
        return Err(Error::format(folder, "must be the folder of a token file"));
    }
    let path = folder.join(MANIFEST_NAME);
    if !path.exists() {
        let reason = format!("not a complete token file, {MANIFEST_NAME} is missing");
        return Err(Error::format(folder, reason));
    }
    let mut text = Vec::new();
    let mut file = open(&path)?;
    file.by_ref()
        .take(MAX_MANIFEST_BYTES + 1)
        .read_to_end(&mut text)
        .map_err(|e| Error::io(&path, e))?;
    if text.len() as u64 > MAX_MANIFEST_BYTES {
        let reason = format!("a manifest must have at most {MAX_MANIFEST_BYTES} bytes");
        return Err(Error::format(&path, reason));
    }
    let manifest = Manifest::decode(&path, &text)?;
    check_manifest(&manifest).map_err(|reason| Error::format(&path, reason))?;
    Ok(manifest)
}

fn check_manifest(manifest: &Manifest) -> std::result::Result<(), String> {
    let tokenizer = &manifest.tokenizer;
    if Sha256::digest(&tokenizer.json)[..] != tokenizer.sha256 {
        let found = hex(&tokenizer.sha256);
        return Err(format!(
            "tokenizer.sha256 must be that of tokenizer.json, got {found}"
        ));
    }
    if tokenizer.name.len() > NAME_BYTES || manifest.dataset.len() > NAME_BYTES {
        return Err(format!(
            "tokenizer.name and dataset must have at most {NAME_BYTES} bytes"
        ));
    }
    let max_tokens = MAX_PAYLOAD_BYTES / u64::from(manifest.itemsize());
    match manifest
        .shards
        .iter()
        .find(|shard| !(1..=max_tokens).contains(&shard.n_tokens))
    {
        Some(shard) => Err(format!(
            "a shard must hold 1 to {max_tokens} tokens, got {}",
            shard.n_tokens
        )),
        None => Ok(()),
    }
}

fn verify_payload(path: &Path, manifest: &Manifest, i: usize) -> Result<()> {
    let shard = &manifest.shards[i];
    let itemsize = manifest.itemsize();
    let mut file = open_of_size(path, shard.file_bytes(itemsize))?;
    let mut header = [0; HEADER_BYTES];
    file.read_exact(&mut header)
        .map_err(|e| Error::io(path, e))?;
    if let Some((at, field)) = first_difference(&manifest.shard_header(i).encode(), &header) {
        let reason = format!("at byte {at}: {field} must agree with {MANIFEST_NAME}");
        return Err(Error::format(path, reason));
    }

    let mut blocks = Blocks::new(path, file, HEADER_BYTES as u64);
    let mut crc32 = shard.crc32.iter();
    while let Some((at, block)) = blocks.next()? {
        if crc32.next() != Some(&crc32fast::hash(block)) {
            let end = at + block.len() as u64;
            let reason = format!("at byte {at}: bytes {at} to {end} do not match their CRC-32");
            return Err(Error::format(path, reason));
        }
        check_ids(path, at, block, itemsize, manifest.tokenizer.vocab_size)?;
    }
    if crc32.next().is_some() {
        let found = shard.crc32.len();
        return Err(Error::format(
            path,
            format!("the manifest has too many CRC-32s, {found}"),
        ));
    }
    blocks.check_sha256(HEADER_BYTES, shard.sha256)
}

fn check_ids(path: &Path, at: u64, block: &[u8], itemsize: u8, vocab_size: u32) -> Result<()> {
    let bad = if itemsize == 2 {
        let ids = block.as_chunks::<2>().0.iter();
        first_above(ids.map(|id| u32::from(u16::from_le_bytes(*id))), vocab_size)
    } else {
        first_above(
            block
                .as_chunks::<4>()
                .0
                .iter()
                .map(|id| u32::from_le_bytes(*id)),
            vocab_size,
        )
    };
    let Some((position, id)) = bad else {
        return Ok(());
    };
    let at = at + position as u64 * u64::from(itemsize);
    let reason = format!("at byte {at}: ids must be below vocab_size {vocab_size}, got {id}");
    Err(Error::format(path, reason))
}

fn first_above(ids: impl Iterator<Item = u32> + Clone, vocab_size: u32) -> Option<(usize, u32)> {
    // The maximum vectorises, the search does not.
    if ids.clone().max().is_none_or(|id| id < vocab_size) {
        return None;
    }
    ids.enumerate().find(|(_, id)| *id >= vocab_size)
}

fn verify_index(path: &Path, shard: &ShardRecord) -> Result<()> {
    let mut file = open_of_size(path, shard.index_bytes())?;
    let mut header = [0; NPY_HEADER_BYTES];
    file.read_exact(&mut header)
        .map_err(|e| Error::io(path, e))?;
    let expected = npy_header(shard.n_documents + 1);
    if let Some(at) = expected.iter().zip(&header).position(|(a, b)| a != b) {
        let reason = format!(
            "at byte {at}: not the NPY header of u32[{}]",
            shard.n_documents + 1
        );
        return Err(Error::format(path, reason));
    }
    let mut blocks = Blocks::new(path, file, NPY_HEADER_BYTES as u64);
    blocks.sha256.update(header);
    let mut next_least = 0;
    let mut last = 0;
    while let Some((at, block)) = blocks.next()? {
        for (i, bytes) in block.as_chunks::<4>().0.iter().enumerate() {
            last = u64::from(u32::from_le_bytes(*bytes));
            let is_first = at == NPY_HEADER_BYTES as u64 && i == 0;
            if last < next_least || (is_first && last != 0) {
                let at = at + 4 * i as u64;
                let reason = format!("at byte {at}: offsets must ascend from 0, got {last}");
                return Err(Error::format(path, reason));
            }
            next_least = last + 1;
        }
    }
    if last != shard.n_tokens {
        let at = shard.index_bytes() - 4;
        let n_tokens = shard.n_tokens;
        let reason = format!("at byte {at}: the last offset must be {n_tokens}, got {last}");
        return Err(Error::format(path, reason));
    }
    blocks.check_sha256(0, shard.index_sha256)
}

/// The rest of a file in blocks of [`CRC_BLOCK_BYTES`], hashed on the way.
struct Blocks<'a> {
    path: &'a Path,
    file: File,
    at: u64,
    block: Vec<u8>,
    sha256: Sha256,
}

impl<'a> Blocks<'a> {
    fn new(path: &'a Path, file: File, at: u64) -> Self {
        Self {
            path,
            file,
            at,
            block: Vec::new(),
            sha256: Sha256::new(),
        }
    }

    /// The next block and its offset in the file.
    fn next(&mut self) -> Result<Option<(u64, &[u8])>> {
        self.at += self.block.len() as u64;
        self.block.clear();
        self.file
            .by_ref()
            .take(CRC_BLOCK_BYTES as u64)
            .read_to_end(&mut self.block)
            .map_err(|e| Error::io(self.path, e))?;
        self.sha256.update(&self.block);
        Ok((!self.block.is_empty()).then_some((self.at, &self.block[..])))
    }

    fn check_sha256(self, from: usize, expected: [u8; 32]) -> Result<()> {
        if self.sha256.finalize()[..] == expected {
            return Ok(());
        }
        let reason = format!(
            "at byte {from}: SHA-256 from here must be {}",
            hex(&expected)
        );
        Err(Error::format(self.path, reason))
    }
}

/// Opens a file whose size must be `expected`, so that a wrong size is refused unread.
fn open_of_size(path: &Path, expected: u64) -> Result<File> {
    let file = open(path)?;
    let found = file.metadata().map_err(|e| Error::io(path, e))?.len();
    if found != expected {
        let at = found.min(expected);
        let reason = format!("at byte {at}: the file must have {expected} bytes, got {found}");
        return Err(Error::format(path, reason));
    }
    Ok(file)
}

/// Opens a regular file; a missing one is a format error, for the manifest promised it.
fn open(path: &Path) -> Result<File> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => File::open(path).map_err(|e| Error::io(path, e)),
        Ok(_) => Err(Error::format(path, "must be a regular file")),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(Error::format(
            path,
            "belongs to the token file but is missing",
        )),
        Err(e) => Err(Error::io(path, e)),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
mod tests {
    use std::path::PathBuf;

    use super::super::testing::{Folder, documents, options};
    use super::super::writer::TokenFileWriter;
    use super::*;

    fn token_file(name: &str) -> Folder {
        let folder = Folder::new(name);
        let mut writer = TokenFileWriter::create(folder.path(), options(300)).unwrap();
        for document in documents(300) {
            writer.write(&document, &[document.len()]).unwrap();
        }
        writer.finish().unwrap();
        folder
    }

    fn change(path: &PathBuf, change: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
        let before = fs::read(path).unwrap();
        let mut bytes = before.clone();
        change(&mut bytes);
        fs::write(path, bytes).unwrap();
        before
    }

    /// One bit of every eleventh byte of every file; the Python test takes every byte.
    #[test]
    fn verify_finds_any_flipped_byte_and_names_the_file() {
        let folder = token_file("flipped");
        for entry in fs::read_dir(folder.path()).unwrap() {
            let path = entry.unwrap().path();
            let size = fs::metadata(&path).unwrap().len() as usize;
            for at in (0..size).step_by(11).chain([size - 1]) {
                let before = change(&path, |bytes| bytes[at] ^= 1 << (at % 7));
                let error = verify(folder.path()).unwrap_err();
                assert!(matches!(error, Error::Format { .. }), "{error:?}");
                let message = error.to_string();
                assert!(
                    message.starts_with(&format!("{}: ", path.display())),
                    "{message}"
                );
                fs::write(&path, before).unwrap();
            }
        }
        verify(folder.path()).unwrap();
    }

    #[test]
    fn verify_refuses_a_wrong_size_unread() {
        let folder = token_file("size");
        for (name, size) in [
            ("shard_00001.bin", 1024 + 44),
            ("shard_00000.idx.npy", 128 + 20),
        ] {
            let path = folder.path().join(name);
            for (wrong, at) in [(size - 1, size - 1), (size + 1, size), (0, 0)] {
                let before = change(&path, |bytes| bytes.resize(wrong, 0));
                let message = verify(folder.path()).unwrap_err().to_string();
                let expected =
                    format!("at byte {at}: the file must have {size} bytes, got {wrong}");
                assert!(message.ends_with(&expected), "{message}");
                fs::write(&path, before).unwrap();
            }
        }
    }

    #[test]
    fn verify_names_a_missing_file() {
        for name in ["manifest.json", "shard_00001.bin", "shard_00001.idx.npy"] {
            let folder = token_file("missing");
            fs::remove_file(folder.path().join(name)).unwrap();
            let message = verify(folder.path()).unwrap_err().to_string();
            assert!(
                message.contains(name) && message.contains("missing"),
                "{message}"
            );
        }
        let missing = verify(Path::new("/nonexistent")).unwrap_err();
        assert!(matches!(missing, Error::Io { .. }), "{missing}");
    }

    /// A manifest that is true to itself, but crafted: counts far above the files' sizes.
    #[test]
    fn verify_refuses_crafted_counts() {
        for (n_tokens, n_documents) in [(1 << 29, 4), (18, u64::MAX), (u64::MAX, 4), (0, 0)] {
            let folder = token_file("crafted");
            let path = folder.path().join(MANIFEST_NAME);
            let mut manifest = Manifest::decode(&path, &fs::read(&path).unwrap()).unwrap();
            manifest.shards[0].n_tokens = n_tokens;
            manifest.shards[0].n_documents = n_documents;
            fs::write(&path, manifest.encode()).unwrap();
            let error = verify(folder.path()).unwrap_err();
            assert!(matches!(error, Error::Format { .. }), "{error:?}");
        }
    }

    /// Hashes that agree do not make an id or an offset valid.
    #[test]
    fn verify_checks_ids_and_offsets_themselves() {
        let too_large = first_above([1, 299, 300].into_iter(), 300);
        assert_eq!(too_large, Some((2, 300)));

        let folder = token_file("offsets");
        let path = folder.path().join(index_name(0));
        change(&path, |bytes| {
            bytes[132..136].copy_from_slice(&0u32.to_le_bytes());
        });
        let message = verify(folder.path()).unwrap_err().to_string();
        assert!(
            message.ends_with("at byte 132: offsets must ascend from 0, got 0"),
            "{message}"
        );
    }
}
