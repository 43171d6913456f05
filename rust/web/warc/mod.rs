//! Members of packed crawl files, unpacked whole.
//!
//! Only what is in order is unpacked here; of whatever is not, the readable twin
//! (`python/rslm/data/members.py`) says what is wrong and what can be had of it.

use flate2::{Decompress, FlushDecompress, Status};

/// What of a member is unpacked between two looks at its ratio.
const PIECE_BYTES: usize = 1 << 16;
/// A member may inflate to this much whatever the ratio.
const HARMLESS_BYTES: usize = 1 << 20;

/// What a look at the start of a gzip member gave.
pub enum Member {
    /// Its bytes, and how many packed ones they took.
    Whole(Vec<u8>, usize),
    /// It goes on behind the bytes that were given.
    Cut,
    /// It is damaged, too large, or inflates too much.
    Refused,
}

/// Unpacks the gzip member at the start of `packed`, if it is whole and no more than `max_bytes`.
pub fn inflate_member(packed: &[u8], max_bytes: usize, max_inflation: usize) -> Member {
    let mut inflater = Decompress::new_gzip(15);
    let mut bytes = Vec::with_capacity(PIECE_BYTES);
    loop {
        if bytes.len() == bytes.capacity() {
            bytes.reserve(bytes.len());
        }
        let n_read = inflater.total_in() as usize;
        let n_before = bytes.len();
        let Ok(status) =
            inflater.decompress_vec(&packed[n_read..], &mut bytes, FlushDecompress::None)
        else {
            return Member::Refused;
        };
        let n_read = inflater.total_in() as usize;
        let most = HARMLESS_BYTES.max(max_inflation.saturating_mul(n_read));
        if bytes.len() > most.min(max_bytes) {
            return Member::Refused;
        }
        match status {
            Status::StreamEnd => return Member::Whole(bytes, n_read),
            _ if n_read == packed.len() && bytes.len() < bytes.capacity() => return Member::Cut,
            _ if bytes.len() == n_before && bytes.len() < bytes.capacity() => {
                return Member::Refused;
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn pack(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder
            .write_all(bytes)
            .expect("memory takes what is written");
        encoder.finish().expect("memory takes what is written")
    }

    fn text(n_bytes: usize) -> Vec<u8> {
        (0..n_bytes as u32 / 4)
            .flat_map(|i| (i.wrapping_mul(2654435761) >> 7).to_le_bytes())
            .collect()
    }

    #[test]
    fn whole_members_are_unpacked_one_by_one() {
        for n_bytes in [0, 4, 65536, 300_000] {
            let bytes = text(n_bytes);
            let mut packed = pack(&bytes);
            let length = packed.len();
            packed.extend(pack(b"next"));
            match inflate_member(&packed, 1 << 22, 200) {
                Member::Whole(found, n_read) => assert!(found == bytes && n_read == length),
                _ => panic!("a whole member of {n_bytes} bytes is refused"),
            }
        }
    }

    #[test]
    fn cut_damaged_and_bombs_are_not() {
        let packed = pack(&text(300_000));
        assert!(matches!(
            inflate_member(&packed[..packed.len() - 3], 1 << 22, 200),
            Member::Cut
        ));
        assert!(matches!(
            inflate_member(&packed, 100_000, 200),
            Member::Refused
        ));
        let mut damaged = packed.clone();
        let end = damaged.len() - 6;
        damaged[end] ^= 1;
        assert!(matches!(
            inflate_member(&damaged, 1 << 22, 200),
            Member::Refused
        ));
        let bomb = pack(&vec![0; 3_000_000]);
        assert!(matches!(
            inflate_member(&bomb, 1 << 22, 200),
            Member::Refused
        ));
    }
}
