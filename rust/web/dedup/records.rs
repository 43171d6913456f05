//! The records of files of signatures, and how they are grouped.

use super::container::{u32_at, u64_at};
use super::runs::{Record, Sorter};
use super::writer::Writer;
use crate::Result;

/// Which of `n_ranges` equal ranges of 64-bit hashes one is in.
#[inline]
pub(super) fn range_of(hash: u64, n_ranges: u32) -> u32 {
    ((u128::from(hash) * u128::from(n_ranges)) >> 64) as u32
}

/// Writes a section for each group of what a sorter holds, whose order is that of the groups.
pub(super) fn write_groups<R: Record, W: Record>(
    writer: &mut Writer,
    n_groups: u32,
    sorter: Sorter<R>,
    group_of: impl Fn(&R) -> u32,
    written: impl Fn(&R) -> W,
    tick: &mut dyn FnMut() -> Result<()>,
) -> Result<()> {
    writer.begin(W::BYTES);
    let mut group = 0;
    let mut each = |record: &R| {
        while group < group_of(record) {
            writer.end();
            writer.begin(W::BYTES);
            group += 1;
        }
        let mut bytes = [0; 64];
        written(record).put(&mut bytes[..W::BYTES]);
        writer.push(&bytes[..W::BYTES])
    };
    sorter.finish(&mut each, tick)?;
    for _ in group + 1..n_groups {
        writer.end();
        writer.begin(W::BYTES);
    }
    writer.end();
    Ok(())
}

/// A document's key, and its place: ordered so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ExactRecord {
    pub key: [u64; 2],
    pub shard: u32,
    pub row: u32,
}

impl Record for ExactRecord {
    const BYTES: usize = 24;

    fn put(&self, bytes: &mut [u8]) {
        bytes[..8].copy_from_slice(&self.key[0].to_le_bytes());
        bytes[8..16].copy_from_slice(&self.key[1].to_le_bytes());
        bytes[16..20].copy_from_slice(&self.shard.to_le_bytes());
        bytes[20..].copy_from_slice(&self.row.to_le_bytes());
    }

    fn get(bytes: &[u8]) -> Self {
        Self {
            key: [u64_at(bytes, 0), u64_at(bytes, 8)],
            shard: u32_at(bytes, 16),
            row: u32_at(bytes, 20),
        }
    }
}

/// A hash of the rows of a document's band, and its place: ordered so.
///
/// Of n documents two different bands share 64 bits with a chance of n^2 / 2^65: .03 of 10^9.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct BandRecord {
    pub key: u64,
    pub shard: u32,
    pub row: u32,
}

impl Record for BandRecord {
    const BYTES: usize = 16;

    fn put(&self, bytes: &mut [u8]) {
        bytes[..8].copy_from_slice(&self.key.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.shard.to_le_bytes());
        bytes[12..].copy_from_slice(&self.row.to_le_bytes());
    }

    fn get(bytes: &[u8]) -> Self {
        Self {
            key: u64_at(bytes, 0),
            shard: u32_at(bytes, 8),
            row: u32_at(bytes, 12),
        }
    }
}

/// As a shard is sorted: band by band.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ShardRecord {
    pub band: u32,
    pub key: u64,
    pub row: u32,
}

impl Record for ShardRecord {
    const BYTES: usize = 16;

    fn put(&self, bytes: &mut [u8]) {
        bytes[..8].copy_from_slice(&self.key.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.band.to_le_bytes());
        bytes[12..].copy_from_slice(&self.row.to_le_bytes());
    }

    fn get(bytes: &[u8]) -> Self {
        Self {
            key: u64_at(bytes, 0),
            band: u32_at(bytes, 8),
            row: u32_at(bytes, 12),
        }
    }
}
