//! What the tests of this module share.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::{TokenFileOptions, TokenizerRecord};

/// A folder of its own for each test, removed when it ends.
pub(super) struct Folder(PathBuf);

impl Folder {
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("rslm_{name}_{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Options like those of the golden files: small shards, end of text 0.
pub(super) fn options(vocab_size: u32) -> TokenFileOptions {
    let canonical_json = br#"{"note":"stands for a tokenizer"}"#.to_vec();
    TokenFileOptions {
        tokenizer: TokenizerRecord {
            sha256: Sha256::digest(&canonical_json).into(),
            name: "golden".to_owned(),
            vocab_size,
            canonical_json,
            special_tokens: vec![("<|endoftext|>".to_owned(), 0)],
            end_of_text: Some(0),
            token_byte_lengths: (0..vocab_size)
                .map(|id| if id == 0 { 0 } else { 1 + id % 5 })
                .collect(),
        },
        dataset: "golden/é".to_owned(),
        shard_tokens: 16,
        sources: vec![("golden.txt".to_owned(), 123)],
        command: "make golden".to_owned(),
        conditions: Vec::new(),
    }
}

/// The documents of the golden files, end of text included.
pub(super) fn documents(vocab_size: u32) -> Vec<Vec<u32>> {
    [3, 1, 9, 5, 12, 2, 8]
        .iter()
        .zip(0..)
        .map(|(length, d)| {
            let ids = (0..length - 1).map(|j| 1 + (d * 7919 + j * 104_729) % (vocab_size - 1));
            ids.chain([0]).collect()
        })
        .collect()
}

/// The names in a folder, sorted.
pub(super) fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("the folder exists");
    let mut names = entries
        .map(|entry| entry.expect("the folder is readable").file_name())
        .map(|name| name.to_string_lossy().into_owned())
        .collect::<Vec<_>>();
    names.sort();
    names
}
