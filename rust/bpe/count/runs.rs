//! Counts that did not fit memory: sorted runs on disk, summed in the end.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::PretokenCounts;
use super::file::{CountsOrigin, CountsReader, CountsTotal, CountsWriter};
use super::merge::merge_counts;
use crate::error::{Error, Result};

/// As many runs of one level are merged into one of the next: bounds the open files and
/// their buffers, and each count is written again once a level.
const FAN_IN: usize = 32;

/// Sorted runs in a folder for temporary files; many threads may add some.
///
/// A run has no name from the moment it is open, where the system can do that: so nothing
/// is left behind however the process ends, SIGKILL included.
pub struct Runs {
    folder: PathBuf,
    origin: CountsOrigin,
    /// With their levels.
    held: Mutex<Vec<(u32, Run)>>,
}

struct Run {
    file: File,
    /// Where the system cannot remove a file that is open.
    named: Option<PathBuf>,
}

impl Drop for Run {
    fn drop(&mut self) {
        if let Some(path) = &self.named {
            let _ = fs::remove_file(path);
        }
    }
}

impl Runs {
    /// No runs yet.
    ///
    /// # Errors
    /// `Io` where the folder is missing or not writable: now, not hours later.
    pub fn new(folder: &Path, origin: CountsOrigin) -> Result<Self> {
        let runs = Self {
            folder: folder.to_path_buf(),
            origin,
            held: Mutex::default(),
        };
        runs.create()?;
        Ok(runs)
    }

    /// Writes a table as a run and leaves it empty.
    ///
    /// # Errors
    /// `Io` where the folder is missing or full.
    pub fn spill(&self, counts: &mut PretokenCounts) -> Result<()> {
        let (run, mut writer) = self.create()?;
        counts.drain_sorted(|pretoken, count| writer.push(pretoken, count))?;
        writer.finish()?;
        self.push(0, run)
    }

    fn create(&self) -> Result<(Run, CountsWriter)> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let io = |error| Error::io(&self.folder, error);
        let (path, file) = loop {
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let name = format!("rslm-run-{}-{number}.counts", std::process::id());
            let path = self.folder.join(name);
            let mut options = OpenOptions::new();
            match options.read(true).write(true).create_new(true).open(&path) {
                Ok(file) => break (path, file),
                // Left by an earlier process of the same number.
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(io(error)),
            }
        };
        let named = if cfg!(unix) {
            fs::remove_file(&path).map_err(io)?;
            None
        } else {
            Some(path)
        };
        let writing = file.try_clone().map_err(io)?;
        let writer = CountsWriter::new(writing, &self.folder, &self.origin)?;
        Ok((Run { file, named }, writer))
    }

    /// Takes a run in; where a level is full, merges it on this thread.
    fn push(&self, level: u32, run: Run) -> Result<()> {
        let full = {
            let mut runs = self.held.lock().unwrap_or_else(PoisonError::into_inner);
            runs.push((level, run));
            let is_full = runs.iter().filter(|(l, _)| *l == level).count() >= FAN_IN;
            if !is_full {
                return Ok(());
            }
            let (full, others) = runs.drain(..).partition(|(l, _)| *l == level);
            *runs = others;
            full
        };
        let (run, mut writer) = self.create()?;
        let each = |pretoken: &[u8], count| writer.push(pretoken, count);
        self.merge_runs(&full, |_, _| Ok(()), each)?;
        writer.finish()?;
        self.push(level + 1, run)
    }

    /// Whether nothing was spilled.
    pub fn is_empty(&self) -> bool {
        let runs = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        runs.is_empty()
    }

    /// Calls `each` with every pretoken of all runs, ascending, and the sum of its counts.
    ///
    /// # Errors
    /// As [`merge_counts`].
    pub fn merge(
        self,
        tick: impl FnMut(u64, u64) -> Result<()>,
        each: impl FnMut(&[u8], u64) -> Result<()>,
    ) -> Result<()> {
        let mut runs = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let all = std::mem::take(&mut *runs);
        self.merge_runs(&all, tick, each)
    }

    fn merge_runs(
        &self,
        runs: &[(u32, Run)],
        tick: impl FnMut(u64, u64) -> Result<()>,
        each: impl FnMut(&[u8], u64) -> Result<()>,
    ) -> Result<()> {
        let open = |(_, run): &(u32, Run)| {
            let file = run.file.try_clone();
            let file = file.map_err(|error| Error::io(&self.folder, error))?;
            CountsReader::new(file, &self.folder)
        };
        let mut readers = runs.iter().map(open).collect::<Result<Vec<_>>>()?;
        merge_counts(&mut readers, tick, each)
    }
}

/// Writes the file of counts `path`: beside, synced, renamed; `each_entry` is given the
/// function that takes the pretokens, ascending.
///
/// # Errors
/// What `each_entry` refuses, and `Io`; `path` is as before then.
pub fn write_counts(
    path: &Path,
    origin: &CountsOrigin,
    each_entry: impl FnOnce(&mut dyn FnMut(&[u8], u64) -> Result<()>) -> Result<()>,
) -> Result<CountsTotal> {
    let io = |error| Error::io(path, error);
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".tmp-{}", std::process::id()));
    let beside = path.with_file_name(name);
    let file = File::create(&beside).map_err(io)?;
    let write = || {
        let mut writer = CountsWriter::new(file, path, origin)?;
        each_entry(&mut |pretoken, count| writer.push(pretoken, count))?;
        let (file, total) = writer.finish()?;
        file.sync_all().map_err(io)?;
        fs::rename(&beside, path).map_err(io)?;
        if cfg!(unix) {
            let folder = path.parent().filter(|folder| *folder != Path::new(""));
            let folder = File::open(folder.unwrap_or(Path::new("."))).map_err(io)?;
            folder.sync_all().map_err(io)?;
        }
        Ok(total)
    };
    let written = write();
    if written.is_err() {
        let _ = fs::remove_file(&beside);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn origin() -> CountsOrigin {
        CountsOrigin {
            pattern: "gpt2".into(),
            special_tokens: vec!["<a>".into()],
            unit: "line".into(),
            unicode_version: "1".into(),
        }
    }

    /// A folder of its own for each test.
    fn folder(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("rslm_runs_{name}_{}", std::process::id()));
        fs::create_dir_all(&path).expect("the temporary folder is writable");
        path
    }

    #[test]
    fn runs_of_several_levels_sum_to_what_was_added() {
        let folder = folder("levels");
        let runs = Runs::new(&folder, origin()).expect("the folder is there");
        let mut expected: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
        // More than FAN_IN x FAN_IN runs: some are merged twice.
        for run in 0..(FAN_IN * FAN_IN + 40) as u64 {
            let mut counts = PretokenCounts::new();
            for i in 0..7 {
                let number = (run * 31 + i * i * 17) % 97;
                let pretoken = format!("{}{number}\0", "y".repeat(number as usize % 40));
                counts.add(pretoken.as_bytes(), run + 1);
                *expected.entry(pretoken.into_bytes()).or_default() += run + 1;
            }
            runs.spill(&mut counts).expect("the disk has room");
            assert!(counts.is_empty());
        }
        let names = fs::read_dir(&folder).expect("the folder is there").count();
        assert!(names == 0 || !cfg!(unix), "runs have no names");
        let held = runs.held.lock().expect("no thread panicked").len();
        assert!(held <= 3 * FAN_IN, "levels bound the open files: {held}");
        let mut sums = Vec::new();
        let each = |pretoken: &[u8], count| {
            sums.push((pretoken.to_vec(), count));
            Ok(())
        };
        runs.merge(|_, _| Ok(()), each).expect("runs are whole");
        assert_eq!(sums, expected.into_iter().collect::<Vec<_>>());
        fs::remove_dir(folder).expect("nothing is left in it");
    }

    #[test]
    fn a_file_that_cannot_be_finished_leaves_the_old_one() {
        let folder = folder("write");
        let path = folder.join("x.counts");
        let total = write_counts(&path, &origin(), |push| {
            push(b"a", 1)?;
            push(b"ab", 2)
        });
        assert_eq!(total.expect("the disk has room").n_bytes, 5);
        let stopped = write_counts(&path, &origin(), |push| {
            push(b"b", 1)?;
            Err(Error::Interrupted)
        });
        assert!(matches!(stopped, Err(Error::Interrupted)));
        let mut reader = CountsReader::open(&path).expect("whole");
        assert_eq!(*reader.origin(), origin());
        let mut read = Vec::new();
        while reader.advance().expect("whole") {
            read.push((reader.pretoken().to_vec(), reader.count()));
        }
        assert_eq!(read, [(b"a".to_vec(), 1), (b"ab".to_vec(), 2)]);
        fs::remove_file(path).expect("it is there");
        fs::remove_dir(folder).expect("nothing else is left in it");
    }
}
