//! All links joined: which documents are dropped.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::path::{Path, PathBuf};

use rustc_hash::FxHashMap;
use sha2::{Digest, Sha256};

use super::container::{Contents, Kind, SectionStream, u32_at};
use super::join::EDGE_BYTES;
use super::union_find::UnionFind;
use super::writer::Writer;
use crate::{Error, Progress, Result};

/// Clusters that are told in full, and how many members of each.
const N_EXAMPLES: usize = 20;
const N_EXAMPLE_MEMBERS: usize = 10;
/// Edges between two looks for Ctrl-C.
const TICK: u64 = 1 << 16;

/// Which member of a cluster is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// The least shard and row.
    First,
    /// The least SHA-256 of `<seed>:<shard>:<row>`.
    Random(u64),
}

/// A cluster: its kept member, its size and its first members.
pub type Example = ((u32, u32), u64, Vec<(u32, u32)>);

/// What the links came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterTotals {
    /// All documents.
    pub n_documents: u64,
    /// Those that are dropped.
    pub n_dropped: u64,
    /// How many clusters there are of each size above 1.
    pub sizes: BTreeMap<u64, u64>,
    /// The largest clusters.
    pub examples: Vec<Example>,
}

/// Numbers of documents, shard after shard.
struct Numbering {
    /// Where each shard begins, and where the last one ends.
    starts: Vec<u64>,
}

impl Numbering {
    fn new(n_rows: &[u64]) -> Result<Self> {
        let mut starts = vec![0_u64];
        for &n in n_rows {
            if n > u64::from(u32::MAX) {
                return Err(Error::Argument(format!(
                    "n_rows must be below 2^32, got {n}"
                )));
            }
            starts.push(starts[starts.len() - 1] + n);
        }
        Ok(Self { starts })
    }

    fn number(&self, shard: u32, row: u32) -> Option<usize> {
        let (&start, &end) = self
            .starts
            .get(shard as usize)
            .zip(self.starts.get(shard as usize + 1))?;
        let number = start + u64::from(row);
        (number < end).then_some(number as usize)
    }

    fn place(&self, number: usize) -> (u32, u32) {
        let shard = self.starts.partition_point(|&start| start <= number as u64) - 1;
        (shard as u32, (number as u64 - self.starts[shard]) as u32)
    }
}

/// Joins the links of all parts and writes the documents to drop, shard by shard.
///
/// Memory: 8 bytes a document, and 32 bytes a cluster if they are kept at random.
///
/// # Errors
/// `Io`; `Format` if a file is damaged or names a document that is not there; `Argument`.
pub fn cluster(
    edges: &[PathBuf],
    n_rows: &[u64],
    target: &Path,
    keep: Keep,
    progress: &mut Progress,
) -> Result<ClusterTotals> {
    let numbering = Numbering::new(n_rows)?;
    let n_documents = numbering.starts[n_rows.len()];
    let mut linked = UnionFind::new(n_documents as usize);
    for path in edges {
        read_edges(path, &numbering, &mut linked, progress)?;
    }
    let kept = match keep {
        Keep::First => FxHashMap::default(),
        Keep::Random(seed) => choose_at_random(&mut linked, &numbering, seed),
    };
    let mut totals = ClusterTotals {
        n_documents,
        ..ClusterTotals::default()
    };
    let mut largest = BinaryHeap::new();
    let mut writer = Writer::create(target)?;
    for shard in 0..n_rows.len() {
        progress("write clusters", shard as u64, n_rows.len() as u64)?;
        writer.begin(4);
        let (start, end) = (numbering.starts[shard], numbering.starts[shard + 1]);
        for number in start as usize..end as usize {
            let root = linked.find(number);
            let size = linked.size(root);
            if number == root && size > 1 {
                *totals.sizes.entry(size).or_default() += 1;
                largest.push((Reverse(size), root));
                if largest.len() > N_EXAMPLES {
                    largest.pop();
                }
            }
            if size > 1
                && number
                    != kept
                        .get(&root)
                        .map_or(root, |chosen: &Chosen| chosen.number)
            {
                totals.n_dropped += 1;
                writer.push(&((number as u64 - start) as u32).to_le_bytes())?;
            }
        }
        writer.end();
    }
    writer.finish(Kind::Clusters, &[n_documents, totals.n_dropped])?;
    let roots: Vec<usize> = largest
        .into_sorted_vec()
        .into_iter()
        .map(|(_, root)| root)
        .collect();
    totals.examples = examples_of(&roots, &mut linked, &numbering, &kept);
    Ok(totals)
}

fn read_edges(
    path: &Path,
    numbering: &Numbering,
    linked: &mut UnionFind,
    progress: &mut Progress,
) -> Result<()> {
    let contents = Contents::open(path, Kind::Edges, 0)?;
    let section = contents.section(0, EDGE_BYTES)?;
    let mut stream = SectionStream::open(&contents, &section)?;
    let mut bytes = [0; EDGE_BYTES];
    let mut n = 0;
    while stream.left > 0 {
        stream.read(&mut bytes)?;
        let end = |at: usize| numbering.number(u32_at(&bytes, at), u32_at(&bytes, at + 4));
        let (Some(left), Some(right)) = (end(0), end(8)) else {
            let offset = stream.place().1 - EDGE_BYTES as u64;
            return Err(contents.damaged(offset, "documents of the shards and rows given"));
        };
        linked.union(left, right);
        n += 1;
        if u64::is_multiple_of(n, TICK) {
            progress("cluster", 0, 1)?;
        }
    }
    Ok(())
}

/// The member kept of a cluster, with the head of its hash.
struct Chosen {
    hash: [u8; 16],
    number: usize,
}

fn choose_at_random(
    linked: &mut UnionFind,
    numbering: &Numbering,
    seed: u64,
) -> FxHashMap<usize, Chosen> {
    let mut chosen: FxHashMap<usize, Chosen> = FxHashMap::default();
    for number in 0..linked.len() {
        let root = linked.find(number);
        if linked.size(root) < 2 {
            continue;
        }
        let (shard, row) = numbering.place(number);
        let digest = Sha256::digest(format!("{seed}:{shard}:{row}").as_bytes());
        let mut hash = [0; 16];
        hash.copy_from_slice(&digest[..16]);
        match chosen.get_mut(&root) {
            Some(known) if known.hash <= hash => {}
            Some(known) => *known = Chosen { hash, number },
            None => {
                chosen.insert(root, Chosen { hash, number });
            }
        }
    }
    chosen
}

fn examples_of(
    roots: &[usize],
    linked: &mut UnionFind,
    numbering: &Numbering,
    kept: &FxHashMap<usize, Chosen>,
) -> Vec<Example> {
    let mut members: FxHashMap<usize, Vec<(u32, u32)>> =
        roots.iter().map(|&root| (root, Vec::new())).collect();
    if !roots.is_empty() {
        for number in 0..linked.len() {
            let found = members.get_mut(&linked.find(number));
            if let Some(found) = found.filter(|found| found.len() < N_EXAMPLE_MEMBERS) {
                found.push(numbering.place(number));
            }
        }
    }
    let example = |&root: &usize| {
        let kept = kept.get(&root).map_or(root, |chosen| chosen.number);
        let members = members.remove(&root).unwrap_or_default();
        (numbering.place(kept), linked.size(root), members)
    };
    roots.iter().map(example).collect()
}

/// The rows to drop of a shard, ascending.
///
/// # Errors
/// `Io`; `Format` if the file is damaged; `Argument` if it has no such shard.
pub fn dropped_rows(path: &Path, shard: u32) -> Result<Vec<u32>> {
    let contents = Contents::open(path, Kind::Clusters, 2)?;
    let n_shards = contents.sections.len();
    if shard as usize >= n_shards {
        return Err(Error::Argument(format!(
            "shard must be below {n_shards}, the number that was clustered, got {shard}"
        )));
    }
    let section = contents.section(shard as usize, 4)?;
    let mut stream = SectionStream::open(&contents, &section)?;
    let mut bytes = vec![0; section.n_bytes as usize];
    if !bytes.is_empty() {
        stream.read(&mut bytes)?;
    }
    Ok(bytes.chunks_exact(4).map(|row| u32_at(row, 0)).collect())
}
