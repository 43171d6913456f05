//! The folder of a token file while it is written: one writer, nothing of anybody else's.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};

use super::resume::STATE_NAME;
use super::shard::PendingFile;
use super::{MANIFEST_NAME, index_name, shard_name};
use crate::error::{Error, Result};

/// Locked while a writer works, and left behind by one that was killed.
const LOCK_NAME: &str = "writer.lock";

/// A folder guarded against other writers. Dropped before it is complete, it is cleared,
/// or brought back to the finished shards that a later writer goes on from.
#[derive(Debug)]
pub(super) struct LockedFolder {
    path: PathBuf,
    is_new: bool,
    complete: bool,
    keep_finished: bool,
    n_finished: usize,
    /// Held for its lock, which ends with it.
    #[cfg_attr(not(test), expect(dead_code, reason = "its lifetime is its use"))]
    lock: File,
}

impl LockedFolder {
    /// Takes the folder, and makes it if it is missing. What a killed writer left stays
    /// until [`Self::keep_shards`] says how much of it counts.
    pub fn open(path: &Path) -> Result<Self> {
        let is_new = !path.exists();
        fs::create_dir_all(path).map_err(|e| Error::io(path, e))?;
        // Decided before the lock file exists: only a folder that a writer left behind may
        // hold shards. Shards without a lock file are somebody's, and stay.
        let abandoned = path.join(LOCK_NAME).exists();
        check_contents(path, abandoned)?;
        let lock = lock_folder(path)?;
        // Once more under the lock: the writer that held it may have finished meanwhile.
        check_contents(path, abandoned)?;
        Ok(Self {
            path: path.to_path_buf(),
            is_new,
            complete: false,
            // Until somebody has decided what counts, nothing is thrown away.
            keep_finished: true,
            n_finished: usize::MAX,
            lock,
        })
    }

    /// Removes all but the first `n` shards of a writer before this one. If this writer is
    /// dropped before it is complete, what is finished stays where `keep_finished` is set.
    pub fn keep_shards(&mut self, n: usize, keep_finished: bool) -> Result<()> {
        (self.n_finished, self.keep_finished) = (n, keep_finished);
        self.remove_unfinished()
    }

    /// Replaces the state from which a later writer goes on after the first `n` shards.
    pub fn save_state(&mut self, state: &[u8], n: usize) -> Result<()> {
        PendingFile::create(self.path.join(STATE_NAME), 0)?.commit(state)?;
        self.n_finished = n;
        self.sync()
    }

    /// Takes away what a writer that was killed between its last two steps left in a
    /// complete folder; not where another writer is at work.
    pub fn clean_complete(path: &Path) {
        if path.join(LOCK_NAME).exists() && lock_folder(path).is_ok() {
            for name in [STATE_NAME, LOCK_NAME] {
                let _ = fs::remove_file(path.join(name));
            }
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What a kill does besides stopping the writer: it gives up the lock.
    #[cfg(test)]
    pub fn unlock(&self) {
        self.lock.unlock().expect("the lock is held");
    }

    /// Syncs the folder's entries, so that renames in it survive a power cut.
    pub fn sync(&self) -> Result<()> {
        File::open(&self.path)
            .and_then(|folder| folder.sync_all())
            .map_err(|e| Error::io(&self.path, e))
    }

    /// Writes the manifest, the last file to get its name, and gives up the lock.
    pub fn complete(&mut self, manifest: &[u8]) -> Result<()> {
        PendingFile::create(self.path.join(MANIFEST_NAME), 0)?.commit(manifest)?;
        self.complete = true;
        self.sync()?;
        if let Some(parent) = self.path.parent().filter(|_| self.is_new) {
            // The folder's own name; a parent that may not be opened keeps it anyhow.
            let _ = File::open(parent).and_then(|parent| parent.sync_all());
        }
        let _ = fs::remove_file(self.path.join(STATE_NAME));
        let lock = self.path.join(LOCK_NAME);
        fs::remove_file(&lock).map_err(|e| Error::io(&lock, e))
    }

    /// Removes every file of a writer but the finished shards and the state naming them.
    fn remove_unfinished(&self) -> Result<()> {
        let is_finished = |name: &String| {
            let number = name.strip_prefix("shard_").and_then(|rest| {
                let digits = rest.split('.').next().unwrap_or_default();
                digits.parse().ok()
            });
            match number {
                Some(i) if i < self.n_finished => [shard_name(i), index_name(i)].contains(name),
                _ => name == STATE_NAME && self.n_finished > 0,
            }
        };
        let mut names = names(&self.path)?;
        names.retain(|name| is_writers_file(name) && !is_finished(name));
        // The state goes first: it must never name shards that are gone.
        names.sort_by_key(|name| name != STATE_NAME);
        for name in names {
            let path = self.path.join(name);
            fs::remove_file(&path).map_err(|e| Error::io(&path, e))?;
        }
        Ok(())
    }
}

impl Drop for LockedFolder {
    /// Takes back an unfinished token file, or the unfinished part of it. Failures are
    /// ignored: the folder has no manifest, so readers refuse what is left of it and the
    /// next writer clears it.
    fn drop(&mut self) {
        if self.complete {
            return;
        }
        if self.keep_finished && self.n_finished > 0 {
            if self.n_finished < usize::MAX {
                let _ = self.remove_unfinished();
            }
            // The lock file stays: it tells that the shards are a writer's.
            return;
        }
        self.n_finished = 0;
        let _ = self.remove_unfinished();
        let _ = fs::remove_file(self.path.join(LOCK_NAME));
        if self.is_new {
            let _ = fs::remove_dir(&self.path);
        }
    }
}

/// Refuses a folder with a complete token file or with files that are not a writer's.
fn check_contents(folder: &Path, abandoned: bool) -> Result<()> {
    let names = names(folder)?;
    let place = folder.display();
    if names.iter().any(|name| name == MANIFEST_NAME) {
        return Err(Error::Argument(format!(
            "out must be a new or empty folder, but {place} holds a complete token file"
        )));
    }
    match names
        .iter()
        .find(|name| *name != LOCK_NAME && !(abandoned && is_writers_file(name)))
    {
        Some(name) => Err(Error::Argument(format!(
            "out must be a new or empty folder, but {place} holds {name}"
        ))),
        None => Ok(()),
    }
}

fn names(folder: &Path) -> Result<Vec<String>> {
    fs::read_dir(folder)
        .and_then(|entries| {
            entries
                .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                .collect()
        })
        .map_err(|e| Error::io(folder, e))
}

/// Whether a writer gives this name to one of its files, the lock aside.
fn is_writers_file(name: &str) -> bool {
    let stem = name.strip_suffix(".tmp").unwrap_or(name);
    let number = stem.strip_prefix("shard_").and_then(|rest| {
        rest.strip_suffix(".bin")
            .or_else(|| rest.strip_suffix(".idx.npy"))
    });
    let is_number = |n: &str| n.len() >= 5 && n.bytes().all(|byte| byte.is_ascii_digit());
    let is_beside = stem != name;
    number.is_some_and(is_number) || stem == STATE_NAME || (stem == MANIFEST_NAME && is_beside)
}

fn lock_folder(folder: &Path) -> Result<File> {
    let path = folder.join(LOCK_NAME);
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|e| Error::io(&path, e))?;
    let taken = match lock.try_lock() {
        Ok(()) => !still_names(&path, &lock),
        Err(TryLockError::WouldBlock) => true,
        Err(TryLockError::Error(e)) => return Err(Error::io(&path, e)),
    };
    if taken {
        return Err(Error::Argument(format!(
            "out must not be in use, but another writer is at work in {}",
            folder.display()
        )));
    }
    Ok(lock)
}

/// Whether the locked file still has its name; a writer that ends removes it.
#[cfg(unix)]
fn still_names(path: &Path, lock: &File) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (fs::metadata(path), lock.metadata()) {
        (Ok(named), Ok(locked)) => named.dev() == locked.dev() && named.ino() == locked.ino(),
        _ => false,
    }
}

/// Elsewhere an open file cannot be removed.
#[cfg(not(unix))]
fn still_names(path: &Path, _lock: &File) -> bool {
    path.exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_writers_file_knows_only_a_writers_names() {
        for name in [
            "shard_00000.bin",
            "shard_123456.idx.npy.tmp",
            "manifest.json.tmp",
            "resume.json",
            "resume.json.tmp",
        ] {
            assert!(is_writers_file(name), "{name}");
        }
        for name in [
            "manifest.json",
            "shard_0.bin",
            "shard_0000x.bin",
            "shard_00000.npy",
            ".bin",
        ] {
            assert!(!is_writers_file(name), "{name}");
        }
    }
}
