//! Files -> pretoken counts, in bounded memory where a limit is set.

use std::path::{Path, PathBuf};

use super::blocks::{Block, Invalid, Splitter, Unit};
use super::in_order::{in_order, thread_count};
use super::input::InputOptions;
use super::source::{FileBlocks, OpenRows};
use crate::Progress;
use crate::bpe::{
    Counter, CountsOrigin, CountsReader, CountsTotal, Footprint, PretokenCounts, Runs,
    merge_counts, write_counts,
};
use crate::error::{Error, Result};
use crate::memory::give_back_freed;
use crate::pretokenize::{Batch, UNICODE_VERSION};

/// With less than this for each worker, runs are so small that the disk does all the work.
const LEAST_BYTES_PER_WORKER: u64 = 8 << 20;
/// Ends of pretokens, a writer, the readers of the runs that a worker merges, and what a
/// worker has besides its table.
const BUFFERS_PER_WORKER: u64 = (1 << 20) + Counter::MEMORY_BYTES as u64;
/// Pretokens of a batch that are counted without looking at the memory.
const PIECE: usize = 1 << 12;

/// How much memory counting and training may take, and where to put what does not fit.
#[derive(Clone, Debug)]
pub struct MemoryLimit {
    /// Bytes: tables, blocks of text, and the merge loop. The program itself comes on top.
    pub bytes: u64,
    /// Folder for temporary files.
    pub spill_folder: PathBuf,
}

impl MemoryLimit {
    /// As many workers as asked for; without a wish, as many as the limit lets work well.
    fn n_workers(&self, n_threads: Option<usize>) -> Result<usize> {
        let mut n_workers = thread_count(n_threads);
        if n_threads.is_none() {
            let most = self.bytes / LEAST_BYTES_PER_WORKER;
            n_workers = n_workers.min(most.max(1) as usize);
        }
        let least = LEAST_BYTES_PER_WORKER * n_workers as u64;
        if self.bytes < least {
            let noun = if n_workers == 1 { "thread" } else { "threads" };
            return Err(Error::Argument(format!(
                "memory_limit must be at least {least} bytes for {n_workers} {noun}, got {}",
                self.bytes
            )));
        }
        Ok(n_workers)
    }

    /// The size of the blocks that files are read in: those under way take a fifth at most.
    fn block_bytes(&self, n_threads: Option<usize>) -> Result<usize> {
        let n_workers = self.n_workers(n_threads)? as u64;
        Ok((self.bytes / (32 * n_workers)).clamp(1 << 18, 4 << 20) as usize)
    }

    /// What one worker's table may take, growth included.
    fn share(&self, n_threads: Option<usize>) -> Result<u64> {
        let n_workers = self.n_workers(n_threads)? as u64;
        let under_way = (4 * n_workers + 2) * self.block_bytes(n_threads)? as u64;
        // The allocator keeps some of what was freed.
        Ok((self.bytes * 7 / 8 - under_way) / n_workers - BUFFERS_PER_WORKER)
    }
}

impl Splitter {
    /// How the pretokens of this splitter are made.
    pub fn origin(&self) -> CountsOrigin {
        CountsOrigin {
            pattern: self.pattern.as_str().to_owned(),
            special_tokens: self.specials.texts().to_vec(),
            unit: match self.unit {
                Unit::Document => "document",
                Unit::Line => "line",
            }
            .to_owned(),
            unicode_version: UNICODE_VERSION.to_owned(),
        }
    }
}

/// The pretokens of a corpus: in memory, or in sorted runs on disk.
pub enum Counted {
    /// All fitted.
    InMemory(PretokenCounts),
    /// The limit was reached.
    OnDisk(Runs),
}

/// How to count, and within which limits.
pub struct CountJob {
    /// What cuts text into pretokens.
    pub splitter: Splitter,
    /// What to do about bytes that are not UTF-8.
    pub invalid: Invalid,
    /// Workers; `None` means one per processor, or as many as the limit lets work well.
    pub n_threads: Option<usize>,
    /// Where set, a worker's table that would outgrow its share goes to disk as a sorted
    /// run; the result is the same.
    pub limit: Option<MemoryLimit>,
}

impl CountJob {
    /// Counts the pretokens of files.
    ///
    /// # Errors
    /// What reading the files refuses; otherwise as [`CountJob::count_blocks`].
    pub fn count_files(
        &self,
        paths: &[PathBuf],
        inputs: InputOptions,
        open_rows: OpenRows,
        progress: &mut Progress,
    ) -> Result<Counted> {
        let mut blocks = FileBlocks::new(paths, &self.splitter, inputs, Some(open_rows))?;
        if let Some(n_bytes) = self.block_bytes()? {
            blocks = blocks.with_block_bytes(n_bytes);
        }
        let total_bytes = blocks.total_bytes();
        self.count_blocks(blocks, total_bytes, progress)
    }

    /// The size of blocks that the limit asks for.
    ///
    /// # Errors
    /// `Argument` where the limit is too small for the threads.
    pub fn block_bytes(&self) -> Result<Option<usize>> {
        let limit = self.limit.as_ref();
        limit
            .map(|limit| limit.block_bytes(self.n_threads))
            .transpose()
    }

    /// Counts the pretokens of blocks, of which `progress` is told `total_bytes`.
    ///
    /// # Errors
    /// What reading, `Invalid::Strict`, the pattern, the folder for runs or `progress` refuse;
    /// `Argument` where the limit is too small for the threads.
    pub fn count_blocks(
        &self,
        blocks: impl Iterator<Item = Result<Block>>,
        total_bytes: u64,
        progress: &mut Progress,
    ) -> Result<Counted> {
        let (splitter, limit) = (&self.splitter, self.limit.as_ref());
        let (n_workers, share) = match limit {
            Some(limit) => (
                limit.n_workers(self.n_threads)?,
                limit.share(self.n_threads)?,
            ),
            None => (thread_count(self.n_threads), 0),
        };
        let runs = limit.map(|limit| Runs::new(&limit.spill_folder, splitter.origin()));
        let runs = runs.transpose()?;
        let new_counter = || (Counter::new(), Vec::new());
        let count = |(counter, ends): &mut (Counter, _), mut block: Block| {
            block.prepare(self.invalid)?;
            let mut spilled = Ok(());
            match &runs {
                None => block.for_each_batch(splitter, ends, |b| counter.add_batch(b))?,
                Some(runs) => block.for_each_batch(splitter, ends, |batch| {
                    if spilled.is_ok() {
                        spilled = add_within(counter, batch, share, runs);
                    }
                })?,
            }
            spilled.map(|()| block.n_input_bytes)
        };
        let mut done = 0;
        let counters = in_order(n_workers, blocks, new_counter, count, |n_bytes| {
            done += n_bytes;
            progress("count", done, total_bytes)
        })?;
        let tables = counters
            .into_iter()
            .map(|(mut counter, _)| std::mem::take(counter.settled()))
            .collect();
        let counted = gather(tables, runs, limit);
        if limit.is_some() {
            give_back_freed();
        }
        counted
    }
}

/// Adds a batch piece by piece, spilling before the table outgrows its share.
fn add_within(counter: &mut Counter, batch: Batch<'_>, share: u64, runs: &Runs) -> Result<()> {
    let mut start = batch.start;
    for ends in batch.ends.chunks(PIECE) {
        let end = ends[ends.len() - 1] as usize;
        if counter.memory_bytes_with(ends.len(), end - start) > share && !counter.is_empty() {
            runs.spill(counter.settled())?;
        }
        let segment = batch.segment;
        counter.add_batch(Batch {
            segment,
            start,
            ends,
        });
        start = end;
    }
    Ok(())
}

/// Sums the workers' tables.
fn gather(
    mut tables: Vec<PretokenCounts>,
    runs: Option<Runs>,
    limit: Option<&MemoryLimit>,
) -> Result<Counted> {
    let n_bytes: u64 = tables.iter().map(PretokenCounts::memory_bytes).sum();
    // Beyond two, the sum may take twice what its parts take, and half of that again while it
    // grows.
    let fits = |limit: &MemoryLimit| tables.len() == 1 || 3 * n_bytes <= limit.bytes;
    if let Some(runs) = runs
        && (!runs.is_empty() || !limit.is_some_and(fits))
    {
        for mut table in tables {
            if !table.is_empty() {
                runs.spill(&mut table)?;
            }
        }
        return Ok(Counted::OnDisk(runs));
    }
    let mut counts = tables.pop().unwrap_or_default();
    for table in tables {
        counts.merge(table);
    }
    Ok(Counted::InMemory(counts))
}

impl Counted {
    /// The counts in memory, with room under the limit to train that many ids on them.
    ///
    /// # Errors
    /// `Argument` where that would need more than the limit; what the runs or `progress`
    /// refuse.
    pub fn for_training(
        self,
        vocab_size: usize,
        limit: Option<&MemoryLimit>,
        progress: &mut Progress,
    ) -> Result<PretokenCounts> {
        let mut packer = Packer::new(vocab_size, limit);
        match self {
            Self::InMemory(counts) if has_room_for(&counts, vocab_size, limit) => {
                return Ok(counts);
            }
            Self::InMemory(mut counts) => counts.drain_sorted(|p, count| packer.push(p, count))?,
            Self::OnDisk(runs) => runs.merge(
                |done, total| progress("merge runs", done, total),
                |pretoken, count| packer.push(pretoken, count),
            )?,
        }
        packer.finish()
    }

    /// Writes the `.counts` file `path`; memory does not depend on what was counted.
    ///
    /// # Errors
    /// `Io`; what the runs or `progress` refuse. `path` is as before then.
    pub fn write(
        self,
        path: &Path,
        origin: &CountsOrigin,
        progress: &mut Progress,
    ) -> Result<CountsTotal> {
        write_counts(path, origin, |push| match self {
            Self::InMemory(mut counts) => counts.drain_sorted(push),
            Self::OnDisk(runs) => {
                runs.merge(|done, total| progress("merge runs", done, total), push)
            }
        })
    }
}

/// The sum of `.counts` files, made as `origin` says, ready to train that many ids on.
///
/// # Errors
/// `Format` where a file is corrupt; `Argument` where one was made in another way, or the
/// merge loop would need more than the limit; what `progress` refuses.
pub fn sum_counts(
    paths: &[PathBuf],
    origin: &CountsOrigin,
    vocab_size: usize,
    limit: Option<&MemoryLimit>,
    progress: &mut Progress,
) -> Result<PretokenCounts> {
    let open = |path: &PathBuf| CountsReader::open(path);
    let mut readers = paths.iter().map(open).collect::<Result<Vec<_>>>()?;
    let name = |reader: &CountsReader| reader.path().display().to_string();
    if let Some((first, others)) = readers.split_first() {
        for other in others {
            let (ours, theirs) = (first.origin(), other.origin());
            ours.check_same(theirs, &name(first), &name(other))?;
        }
        let asked = "what training was asked for";
        first.origin().check_same(origin, &name(first), asked)?;
    }
    let mut packer = Packer::new(vocab_size, limit);
    let tick = |done, total| progress("merge runs", done, total);
    merge_counts(&mut readers, tick, |p, count| packer.push(p, count))?;
    packer.finish()
}

/// Takes pretokens and counts that somebody else made; equal ones are summed.
#[derive(Default)]
pub struct PairCounter {
    counts: PretokenCounts,
    total: CountsTotal,
}

impl PairCounter {
    /// # Errors
    /// `Argument` for an empty pretoken, and where the sum is too large.
    pub fn add(&mut self, pretoken: &[u8], count: u64) -> Result<()> {
        if pretoken.is_empty() {
            return Err(Error::Argument(
                "a pretoken must hold at least one byte, got b\"\"".into(),
            ));
        }
        self.total.add(pretoken, count)?;
        self.counts.add(pretoken, count);
        Ok(())
    }

    /// What was counted.
    pub fn finish(self) -> Counted {
        Counted::InMemory(self.counts)
    }
}

/// Whether counts as they lie in memory leave room under the limit for the merge loop.
fn has_room_for(counts: &PretokenCounts, vocab_size: usize, limit: Option<&MemoryLimit>) -> bool {
    limit.is_none_or(|limit| {
        let mut footprint = Footprint::new(vocab_size);
        counts.for_each(|pretoken, count| footprint.add(pretoken, count));
        footprint.training_bytes_from(counts.memory_bytes()) <= limit.bytes
    })
}

/// Packs different pretokens for training, and knows what that will need of memory.
struct Packer<'l> {
    limited: Option<(&'l MemoryLimit, Footprint)>,
    counts: PretokenCounts,
    total: CountsTotal,
}

impl<'l> Packer<'l> {
    fn new(vocab_size: usize, limit: Option<&'l MemoryLimit>) -> Self {
        Self {
            limited: limit.map(|limit| (limit, Footprint::new(vocab_size))),
            counts: PretokenCounts::new(),
            total: CountsTotal::default(),
        }
    }

    fn push(&mut self, pretoken: &[u8], count: u64) -> Result<()> {
        self.total.add(pretoken, count)?;
        if let Some((limit, footprint)) = &mut self.limited {
            footprint.add(pretoken, count);
            // Where even these do not fit, only the footprint is wanted: the message tells it.
            if footprint.packed_bytes() > limit.bytes {
                return Ok(());
            }
        }
        self.counts.push_packed(pretoken, count);
        Ok(())
    }

    fn finish(self) -> Result<PretokenCounts> {
        if let Some((limit, footprint)) = self.limited {
            let needed = footprint.training_bytes();
            if needed > limit.bytes {
                return Err(Error::Argument(format!(
                    "memory_limit must be at least {needed} bytes to train on {} different \
                     pretokens, got {}",
                    self.total.n_entries, limit.bytes
                )));
            }
        }
        Ok(self.counts)
    }
}
