//! Near-duplicates among the documents of one file of signatures, in an order of their own: what
//! `find_near_duplicates` gives, pair by pair.

use std::path::{Path, PathBuf};

use super::documents::Documents;
use super::join::{Cap, Signatures};
use super::records::BandRecord;
use super::runs::merge_sections;
use super::union_find::UnionFind;
use crate::{Error, Progress, Result};

/// Clusters and what they were found by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// For each rank the least rank of its cluster.
    pub roots: Vec<u32>,
    /// Different pairs that share a bucket.
    pub n_candidate_pairs: u64,
    /// Those that are duplicates.
    pub n_duplicate_pairs: u64,
    /// Buckets that were not compared in full.
    pub n_capped_buckets: u64,
}

/// Joins a file of one range by the ranks of its documents.
///
/// Memory: 24 bytes a document, 8 bytes a candidate pair, and sets up to the limit.
///
/// # Errors
/// `Io`, `Format`, `Argument`, `Interrupted`.
pub fn find_among(
    path: &Path,
    ranks: &[u32],
    cap: Cap,
    limit_bytes: u64,
    progress: &mut Progress,
) -> Result<Found> {
    let signatures = Signatures::open(&[PathBuf::from(path)])?;
    let file = &signatures.files[0];
    let n = ranks.len();
    if file.numbers[2] != n as u64 || ranks.iter().any(|&rank| rank as usize >= n) {
        return Err(Error::Argument(format!(
            "ranks must be those of {} rows",
            file.numbers[2]
        )));
    }
    // A text has the least rank of its copies.
    let mut rank_of = ranks.to_vec();
    let mut is_copy = vec![false; n];
    let mut linked = UnionFind::new(n);
    signatures.each_copy(|_, first, row| {
        let (first, row) = (first as usize, row as usize);
        if first.max(row) >= n {
            return Err(file.damaged(0, "copies of its rows"));
        }
        linked.union(ranks[first] as usize, ranks[row] as usize);
        rank_of[first] = rank_of[first].min(ranks[row]);
        is_copy[row] = true;
        Ok(())
    })?;
    let mut found = Found::default();
    let pairs = candidates(&signatures, path, &rank_of, cap, &mut found, progress)?;
    found.n_candidate_pairs = pairs.len() as u64;
    let mut row_of = vec![0; n];
    for (row, &rank) in rank_of.iter().enumerate().filter(|&(row, _)| !is_copy[row]) {
        row_of[rank as usize] = row as u32;
    }
    let mut documents = Documents::new(vec![file], limit_bytes);
    for (number, &(first, second)) in pairs.iter().enumerate() {
        if number.is_multiple_of(1024) {
            progress("compare", number as u64, pairs.len() as u64)?;
        }
        let (a, b) = ((0, row_of[first as usize]), (0, row_of[second as usize]));
        let is_duplicate = match signatures.threshold {
            Some(threshold) => documents.are_similar(a, b, threshold)?,
            None => true,
        };
        if is_duplicate {
            found.n_duplicate_pairs += 1;
            linked.union(first as usize, second as usize);
        }
    }
    found.roots = (0..n).map(|rank| linked.find(rank) as u32).collect();
    Ok(found)
}

/// The pairs to compare, ascending, each once.
fn candidates(
    signatures: &Signatures,
    path: &Path,
    rank_of: &[u32],
    cap: Cap,
    found: &mut Found,
    progress: &mut Progress,
) -> Result<Vec<(u32, u32)>> {
    let mut pairs = Vec::new();
    let mut bucket: Vec<u32> = Vec::new();
    for band in 0..signatures.n_bands {
        progress("join", band, signatures.n_bands)?;
        let mut key = 0;
        let mut close = |bucket: &mut Vec<u32>| {
            bucket.sort_unstable();
            let is_capped = bucket.len() > cap.max_bucket && signatures.threshold.is_some();
            found.n_capped_buckets += u64::from(is_capped);
            if signatures.threshold.is_none() {
                pairs.extend(bucket.windows(2).map(|pair| (pair[0], pair[1])));
            } else {
                let n_first = if is_capped {
                    cap.n_representatives
                } else {
                    bucket.len()
                };
                for (place, &first) in bucket.iter().take(n_first).enumerate() {
                    pairs.extend(bucket[place + 1..].iter().map(|&second| (first, second)));
                }
            }
            bucket.clear();
        };
        let mut each = |record: &BandRecord| {
            if record.key != key {
                close(&mut bucket);
                key = record.key;
            }
            let rank = rank_of.get(record.row as usize).copied();
            bucket.push(rank.ok_or_else(|| signatures.files[0].damaged(0, "its own rows"))?);
            Ok(())
        };
        let sections = signatures.sections(band as usize)?;
        merge_sections(&sections, path, &mut each, &mut || Ok(()))?;
        close(&mut bucket);
        pairs.sort_unstable();
        pairs.dedup();
    }
    Ok(pairs)
}
