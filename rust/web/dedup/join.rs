//! Documents that share a key, over all shards: which of them are duplicates.

use std::path::{Path, PathBuf};

use super::container::{Contents, Kind, Section, SectionStream, u32_at};
use super::documents::{Documents, Member, Row, jaccard};
use super::lines::require_different_shards;
use super::records::{BandRecord, ExactRecord};
use super::runs::{Record, merge_sections};
use super::signatures::{BANDS, COPIES, N_NUMBERS};
use super::union_find::UnionFind;
use super::writer::Writer;
use crate::{Error, Progress, Result};

/// Bytes of an edge: shard and row of each end.
pub(super) const EDGE_BYTES: usize = 16;

/// From which size on a bucket is not compared in full, and with how many then.
#[derive(Clone, Copy, Debug)]
pub struct Cap {
    /// Members of the largest bucket of which every pair is compared.
    pub max_bucket: usize,
    /// Members of a larger one that all others are compared with.
    pub n_representatives: usize,
}

/// What joining found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JoinTotals {
    /// Pairs of one bucket that were compared, or linked unseen.
    pub n_candidate_pairs: u64,
    /// Those that were linked.
    pub n_duplicate_pairs: u64,
    /// Links between copies of one text.
    pub n_copies: u64,
    /// Buckets that were not compared in full.
    pub n_capped_buckets: u64,
    /// Members of the largest bucket.
    pub largest_bucket: u64,
}

/// Files of signatures that belong together.
pub(super) struct Signatures {
    pub files: Vec<Contents>,
    pub is_exact: bool,
    pub n_ranges: u64,
    pub n_bands: u64,
    pub threshold: Option<f64>,
}

impl Signatures {
    pub(super) fn open(paths: &[PathBuf]) -> Result<Self> {
        let mut files = paths
            .iter()
            .map(|path| Contents::open(path, Kind::Signatures, N_NUMBERS))
            .collect::<Result<Vec<_>>>()?;
        require_different_shards(files.iter())?;
        files.sort_by_key(|file| file.numbers[0]);
        // Where there is nothing, any options will do.
        let first = files
            .first()
            .map_or([0; N_NUMBERS].to_vec(), |file| file.numbers.clone());
        if let Some(other) = files
            .iter()
            .find(|file| file.numbers[1] != first[1] || file.numbers[3..] != first[3..])
        {
            return Err(Error::Argument(format!(
                "signatures must be made with the same options and n_ranges, got {} and {}",
                files[0].path.display(),
                other.path.display()
            )));
        }
        let n_parts = first[3].saturating_mul(first[4]);
        let is_exact = first[1] == 0;
        let n_sections = if is_exact {
            n_parts
        } else {
            n_parts.saturating_add(BANDS as u64)
        };
        if let Some(file) = files
            .iter()
            .find(|file| file.sections.len() as u64 != n_sections)
        {
            return Err(file.damaged(0, &format!("{n_sections} sections")));
        }
        Ok(Self {
            files,
            is_exact,
            n_ranges: first[3],
            n_bands: first[4],
            threshold: (first[6] != 0).then(|| f64::from_bits(first[6])),
        })
    }

    /// The sections of one part, of files' own numbers.
    pub(super) fn sections(&self, part: usize) -> Result<Vec<(&Contents, Section)>> {
        let (number, n_bytes) = if self.is_exact {
            (part, ExactRecord::BYTES)
        } else {
            (BANDS + part, BandRecord::BYTES)
        };
        self.files
            .iter()
            .map(|file| Ok((file, file.section(number, n_bytes)?)))
            .collect()
    }

    /// Shard and row of copies and their firsts, within each shard.
    pub(super) fn each_copy(
        &self,
        mut each: impl FnMut(u32, u32, u32) -> Result<()>,
    ) -> Result<()> {
        for file in &self.files {
            let mut stream = SectionStream::open(file, &file.section(COPIES, 8)?)?;
            let mut bytes = [0; 8];
            while stream.left > 0 {
                stream.read(&mut bytes)?;
                each(file.numbers[0] as u32, u32_at(&bytes, 0), u32_at(&bytes, 4))?;
            }
        }
        Ok(())
    }
}

/// Writes the links between documents that share a key in one part: a range of keys, of one
/// band. Links of a part make the same clusters whatever order the files come in.
///
/// Memory: the members of one bucket, 8 bytes each, and sets up to the limit and one more.
///
/// # Errors
/// `Io`; `Format` if a file is damaged; `Argument` if the files do not belong together.
pub fn join(
    paths: &[PathBuf],
    part: u64,
    target: &Path,
    cap: Cap,
    limit_bytes: u64,
    progress: &mut Progress,
) -> Result<JoinTotals> {
    let signatures = Signatures::open(paths)?;
    let n_parts = signatures.n_ranges * signatures.n_bands;
    if part >= n_parts && !paths.is_empty() {
        return Err(Error::Argument(format!(
            "part must be below {n_parts}, got {part}"
        )));
    }
    let mut edges = Edges {
        writer: Writer::create(target)?,
        totals: JoinTotals::default(),
    };
    edges.writer.begin(EDGE_BYTES);
    if !paths.is_empty() {
        let sections = signatures.sections(part as usize)?;
        let mut tick = || progress("join", 0, 1);
        if signatures.is_exact {
            join_exact(&sections, target, &mut edges, &mut tick)?;
        } else {
            if part == 0 {
                signatures
                    .each_copy(|shard, first, row| edges.copy((shard, first), (shard, row)))?;
            }
            let mut buckets = Buckets::new(&signatures, cap, limit_bytes);
            let mut each = |record: &BandRecord| buckets.push(record, &mut edges);
            merge_sections(&sections, target, &mut each, &mut tick)?;
            buckets.close(&mut edges)?;
        }
    }
    edges.writer.end();
    edges.writer.finish(Kind::Edges, &[])?;
    Ok(edges.totals)
}

fn join_exact(
    sections: &[(&Contents, Section)],
    target: &Path,
    edges: &mut Edges,
    tick: &mut dyn FnMut() -> Result<()>,
) -> Result<()> {
    let mut first: Option<ExactRecord> = None;
    let mut n_members = 0;
    let mut each = |record: &ExactRecord| match first {
        Some(first) if first.key == record.key => {
            n_members += 1;
            edges.totals.largest_bucket = edges.totals.largest_bucket.max(n_members);
            edges.copy((first.shard, first.row), (record.shard, record.row))
        }
        _ => {
            first = Some(*record);
            n_members = 1;
            Ok(())
        }
    };
    merge_sections(sections, target, &mut each, tick)
}

struct Edges {
    writer: Writer,
    totals: JoinTotals,
}

impl Edges {
    fn write(&mut self, a: (u32, u32), b: (u32, u32)) -> Result<()> {
        let mut bytes = [0; EDGE_BYTES];
        for (chunk, number) in bytes.chunks_exact_mut(4).zip([a.0, a.1, b.0, b.1]) {
            chunk.copy_from_slice(&number.to_le_bytes());
        }
        self.writer.push(&bytes)
    }

    fn copy(&mut self, first: (u32, u32), other: (u32, u32)) -> Result<()> {
        self.totals.n_copies += 1;
        self.write(first, other)
    }
}

/// Collects who shares a key, and compares them.
struct Buckets<'a> {
    key: u64,
    /// Shard and row, ascending.
    members: Vec<(u32, u32)>,
    documents: Documents<'a>,
    file_of: rustc_hash::FxHashMap<u32, u32>,
    threshold: Option<f64>,
    cap: Cap,
}

impl<'a> Buckets<'a> {
    fn new(signatures: &'a Signatures, cap: Cap, limit_bytes: u64) -> Self {
        let numbered = signatures.files.iter().enumerate();
        Self {
            key: 0,
            members: Vec::new(),
            documents: Documents::new(signatures.files.iter().collect(), limit_bytes),
            file_of: numbered
                .map(|(n, file)| (file.numbers[0] as u32, n as u32))
                .collect(),
            threshold: signatures.threshold,
            cap,
        }
    }

    fn push(&mut self, record: &BandRecord, edges: &mut Edges) -> Result<()> {
        if record.key != self.key {
            self.close(edges)?;
            self.key = record.key;
        }
        self.members.push((record.shard, record.row));
        Ok(())
    }

    fn close(&mut self, edges: &mut Edges) -> Result<()> {
        if self.members.len() > 1 {
            edges.totals.largest_bucket =
                edges.totals.largest_bucket.max(self.members.len() as u64);
            match self.threshold {
                None => self.link_neighbours(edges)?,
                Some(threshold) => {
                    let members = self.part_copies(edges)?;
                    self.compare(&members, threshold, edges)?;
                }
            }
        }
        self.members.clear();
        Ok(())
    }

    fn link_neighbours(&self, edges: &mut Edges) -> Result<()> {
        let n_pairs = self.members.len() as u64 - 1;
        edges.totals.n_candidate_pairs += n_pairs;
        edges.totals.n_duplicate_pairs += n_pairs;
        self.members
            .windows(2)
            .try_for_each(|pair| edges.write(pair[0], pair[1]))
    }

    fn member(&self, (shard, row): (u32, u32)) -> Result<Member> {
        let file = self.file_of.get(&shard);
        file.map(|&file| (file, row)).ok_or_else(|| {
            Error::Argument(format!(
                "records must be of the shards of their files, got {shard}"
            ))
        })
    }

    /// Links copies of a text in several shards to the first of them, which alone stays.
    ///
    /// Copies share all their bands, so that the same ones stay in every bucket.
    fn part_copies(&mut self, edges: &mut Edges) -> Result<Vec<Compared>> {
        let mut first_of = rustc_hash::FxHashMap::default();
        let mut firsts = Vec::new();
        for place in std::mem::take(&mut self.members) {
            let member = self.member(place)?;
            let row = self.documents.row(member)?;
            match first_of.entry(row.text) {
                std::collections::hash_map::Entry::Vacant(entry) => {
                    entry.insert(place);
                    firsts.push(Compared { place, member, row });
                }
                std::collections::hash_map::Entry::Occupied(first) => {
                    edges.copy(*first.get(), place)?;
                }
            }
        }
        Ok(firsts)
    }

    /// Compares the pairs of the bucket that are not yet linked over others of it: no fewer
    /// documents are found so, and a bucket of many copies costs little more than its size.
    ///
    /// Each member in turn is compared with those before it, so that its set is read once.
    fn compare(&mut self, members: &[Compared], threshold: f64, edges: &mut Edges) -> Result<()> {
        let n = members.len();
        let is_capped = n > self.cap.max_bucket;
        edges.totals.n_capped_buckets += u64::from(is_capped);
        let n_first = if is_capped {
            self.cap.n_representatives
        } else {
            n
        };
        let mut linked = UnionFind::new(n);
        for (second, right) in members.iter().enumerate() {
            for (first, left) in members.iter().enumerate().take(n_first.min(second)) {
                if linked.find(first) == linked.find(second) {
                    continue;
                }
                edges.totals.n_candidate_pairs += 1;
                if left.row.may_be_similar(&right.row, threshold) {
                    let right_set = self.documents.set(right.member, &right.row)?;
                    let left_set = self.documents.set(left.member, &left.row)?;
                    if jaccard(&left_set, &right_set) >= threshold {
                        linked.union(first, second);
                        edges.totals.n_duplicate_pairs += 1;
                        edges.write(left.place, right.place)?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// A member of a bucket that is compared.
struct Compared {
    place: (u32, u32),
    member: Member,
    row: Row,
}
