//! Sorting records in bounded memory: sorted runs on disk, merged in the end.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;
use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::container::{Contents, Section, SectionStream};
use super::writer::beside;
use crate::{Error, Result};

/// As many sorted inputs are merged at a time: bounds open files and their buffers.
const FAN_IN: usize = 64;
/// The longest record.
const MOST_BYTES: usize = 32;
/// Records between two looks for Ctrl-C.
const TICK: u64 = 1 << 16;

/// A record of fixed size on disk, ordered as files of it are sorted.
pub trait Record: Copy + Ord {
    /// Bytes on disk.
    const BYTES: usize;

    /// Writes it to so many bytes.
    fn put(&self, bytes: &mut [u8]);

    /// Reads it from so many bytes.
    fn get(bytes: &[u8]) -> Self;

    /// Takes the next greater record into this one, if both are about one thing.
    fn absorb(&mut self, _next: &Self) -> bool {
        false
    }
}

/// Sorts what is pushed, of which it holds so many bytes at most.
pub struct Sorter<R> {
    held: Vec<R>,
    n_most: usize,
    /// The name that runs are made beside.
    place: PathBuf,
    runs: Vec<Run>,
}

impl<R: Record> Sorter<R> {
    /// Runs are made beside `place`.
    pub fn new(place: &Path, memory_limit_bytes: u64) -> Self {
        let n_most = memory_limit_bytes as usize / size_of::<R>();
        Self {
            held: Vec::new(),
            n_most: n_most.max(1),
            place: place.to_path_buf(),
            runs: Vec::new(),
        }
    }

    /// # Errors
    /// `Io`.
    #[inline]
    pub fn push(&mut self, record: R) -> Result<()> {
        if self.held.len() == self.held.capacity() {
            self.make_room()?;
        }
        self.held.push(record);
        Ok(())
    }

    /// Grows up to the limit, and no further than to it: a vector that doubles would hold half
    /// as much again while it is copied.
    #[cold]
    fn make_room(&mut self) -> Result<()> {
        let n = self.held.len();
        if n >= self.n_most {
            self.sort();
            // Copies of a line may have left much room.
            if self.held.len() > self.n_most / 2 {
                self.spill()?;
            }
        } else {
            let n_wanted = (2 * n).clamp(1 << 10, self.n_most.max(1 << 10));
            self.held.reserve_exact(n_wanted.min(self.n_most) - n);
        }
        Ok(())
    }

    fn sort(&mut self) {
        self.held.sort_unstable();
        self.held.dedup_by(|next, kept| kept.absorb(next));
    }

    fn spill(&mut self) -> Result<()> {
        let mut writer = RunWriter::create(&self.place)?;
        for record in self.held.drain(..) {
            writer.push(&record)?;
        }
        self.runs.push(writer.finish()?);
        if self.runs.len() == FAN_IN {
            let inputs = std::mem::take(&mut self.runs).into_iter().map(Input::from);
            let merged = merge_to_run::<R>(inputs.collect(), &self.place, &mut || Ok(()))?;
            self.runs.push(merged);
        }
        Ok(())
    }

    /// Gives everything in order.
    ///
    /// # Errors
    /// `Io`, and what `each` and `tick` return.
    pub fn finish(
        mut self,
        each: &mut dyn FnMut(&R) -> Result<()>,
        tick: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        self.sort();
        if self.runs.is_empty() {
            return self.held.iter().try_for_each(each);
        }
        self.spill()?;
        self.held = Vec::new();
        let inputs = self.runs.into_iter().map(Input::from).collect();
        merge_at_once(inputs, each, tick)
    }
}

/// A sorted run without a name, where the system can remove a file that is open: nothing is
/// left behind however the process ends.
struct Run {
    file: File,
    n_records: u64,
    name: Name,
}

struct Name(PathBuf);

impl Drop for Name {
    fn drop(&mut self) {
        if !cfg!(unix) {
            let _ = fs::remove_file(&self.0);
        }
    }
}

struct RunWriter {
    file: BufWriter<File>,
    n_records: u64,
    name: Name,
}

impl RunWriter {
    fn create(place: &Path) -> Result<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = beside(place, &format!("run-{number}"));
        let mut options = File::options();
        let file = options.read(true).write(true).create_new(true).open(&path);
        let file = file.map_err(|error| Error::io(&path, error))?;
        if cfg!(unix) {
            fs::remove_file(&path).map_err(|error| Error::io(&path, error))?;
        }
        Ok(Self {
            file: BufWriter::with_capacity(1 << 18, file),
            n_records: 0,
            name: Name(path),
        })
    }

    fn push<R: Record>(&mut self, record: &R) -> Result<()> {
        let mut bytes = [0; MOST_BYTES];
        record.put(&mut bytes[..R::BYTES]);
        self.n_records += 1;
        let written = self.file.write_all(&bytes[..R::BYTES]);
        written.map_err(|error| Error::io(&self.name.0, error))
    }

    fn finish(self) -> Result<Run> {
        let Self {
            file,
            n_records,
            name,
        } = self;
        let io = |error| Error::io(&name.0, error);
        let mut file = file.into_inner().map_err(|error| io(error.into_error()))?;
        file.rewind().map_err(io)?;
        Ok(Run {
            file,
            n_records,
            name,
        })
    }
}

/// Sorted records: a run, or a section of a file.
enum Input {
    Run {
        reader: BufReader<File>,
        left: u64,
        name: Name,
    },
    Section(Box<SectionStream>),
}

impl Input {
    fn next<R: Record>(&mut self) -> Result<Option<R>> {
        let mut bytes = [0; MOST_BYTES];
        let bytes = &mut bytes[..R::BYTES];
        match self {
            Self::Run { left: 0, .. } => return Ok(None),
            Self::Run { reader, left, name } => {
                let read = reader.read_exact(bytes);
                read.map_err(|error| Error::io(&name.0, error))?;
                *left -= 1;
            }
            Self::Section(stream) if stream.left == 0 => return Ok(None),
            Self::Section(stream) => stream.read(bytes)?,
        }
        Ok(Some(R::get(bytes)))
    }
}

impl Input {
    fn unsorted(&self) -> Error {
        let (path, offset) = match self {
            Self::Run { name, .. } => (&name.0, 0),
            Self::Section(stream) => stream.place(),
        };
        Error::format(
            path,
            format!("must hold ascending records before byte {offset}"),
        )
    }
}

impl From<Run> for Input {
    fn from(run: Run) -> Self {
        Self::Run {
            reader: BufReader::with_capacity(1 << 16, run.file),
            left: run.n_records,
            name: run.name,
        }
    }
}

/// Merges sorted sections of any number of files, in memory for [`FAN_IN`] of them; further
/// ones are first merged into runs beside `place`.
///
/// # Errors
/// `Io`, `Format`, and what `each` and `tick` return.
pub fn merge_sections<R: Record>(
    sections: &[(&Contents, Section)],
    place: &Path,
    each: &mut dyn FnMut(&R) -> Result<()>,
    tick: &mut dyn FnMut() -> Result<()>,
) -> Result<()> {
    let open = |(contents, section): &(&Contents, Section)| {
        let stream = SectionStream::open(contents, section)?;
        Ok(Input::Section(Box::new(stream)))
    };
    let mut groups = sections.chunks(FAN_IN);
    let Some(first) = groups.next() else {
        return Ok(());
    };
    let mut inputs = first.iter().map(open).collect::<Result<Vec<_>>>()?;
    // What was merged is the smallest in number but the largest in size: it goes with the next
    // group but one only when as many runs have come together.
    let mut runs = Vec::new();
    for group in groups {
        runs.push(merge_to_run::<R>(inputs, place, tick)?);
        if runs.len() == FAN_IN {
            let all = std::mem::take(&mut runs).into_iter().map(Input::from);
            runs.push(merge_to_run::<R>(all.collect(), place, tick)?);
        }
        inputs = group.iter().map(open).collect::<Result<Vec<_>>>()?;
    }
    inputs.extend(runs.into_iter().map(Input::from));
    merge_at_once(inputs, each, tick)
}

fn merge_to_run<R: Record>(
    inputs: Vec<Input>,
    place: &Path,
    tick: &mut dyn FnMut() -> Result<()>,
) -> Result<Run> {
    let mut writer = RunWriter::create(place)?;
    merge_at_once::<R>(inputs, &mut |record| writer.push(record), tick)?;
    writer.finish()
}

fn merge_at_once<R: Record>(
    mut inputs: Vec<Input>,
    each: &mut dyn FnMut(&R) -> Result<()>,
    tick: &mut dyn FnMut() -> Result<()>,
) -> Result<()> {
    let mut heads = BinaryHeap::with_capacity(inputs.len());
    for (number, input) in inputs.iter_mut().enumerate() {
        if let Some(record) = input.next::<R>()? {
            heads.push(Reverse((record, number)));
        }
    }
    let mut held: Option<R> = None;
    let mut n = 0_u64;
    while let Some(mut least) = heads.peek_mut() {
        let Reverse((record, number)) = *least;
        match inputs[number].next::<R>()? {
            Some(next) if next < record => return Err(inputs[number].unsorted()),
            Some(next) => least.0.0 = next,
            None => {
                PeekMut::pop(least);
            }
        }
        let is_absorbed = held.as_mut().is_some_and(|held| held.absorb(&record));
        if !is_absorbed && let Some(done) = held.replace(record) {
            each(&done)?;
        }
        n += 1;
        if n.is_multiple_of(TICK) {
            tick()?;
        }
    }
    held.iter().try_for_each(each)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
    struct Number(u64);

    impl Record for Number {
        const BYTES: usize = 8;

        fn put(&self, bytes: &mut [u8]) {
            bytes.copy_from_slice(&self.0.to_le_bytes());
        }

        fn get(bytes: &[u8]) -> Self {
            Self(super::super::container::u64_at(bytes, 0))
        }
    }

    #[test]
    fn any_limit_gives_the_same_order_and_leaves_no_file() {
        let folder = std::env::temp_dir().join(format!("rslm-runs-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a writable folder");
        let mut numbers: Vec<u64> = (0..20_000_u64).map(|n| n * n % 7919).collect();
        for limit in [1, 8 * 70, 8 * 3000, 1 << 20] {
            let mut pushed = Sorter::new(&folder.join("x"), limit);
            for &number in numbers.iter().take(if limit == 1 { 500 } else { 20_000 }) {
                pushed.push(Number(number)).expect("a writable folder");
            }
            let mut sorted = Vec::new();
            let mut each = |record: &Number| {
                sorted.push(record.0);
                Ok(())
            };
            pushed
                .finish(&mut each, &mut || Ok(()))
                .expect("readable runs");
            let mut expected = numbers.clone();
            expected.truncate(sorted.len());
            expected.sort_unstable();
            assert_eq!(sorted, expected);
            assert_eq!(fs::read_dir(&folder).expect("a folder").count(), 0);
        }
        numbers.clear();
        fs::remove_dir_all(&folder).expect("a folder of ours");
    }
}
