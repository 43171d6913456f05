//! Members of packed crawl files, unpacked whole.
//!
//! Only what is in order is unpacked here; of whatever is not, the readable twin
//! (`python/rslm/data/members.py`) says what is wrong and what can be had of it.
//!
//! Source: RFC 1952, section 2.3 (gzip).

use flate2::{Decompress, FlushDecompress, Status};
use memchr::memchr;

/// What of a member is unpacked between two looks at its ratio.
const PIECE_BYTES: usize = 1 << 16;
/// A member may inflate to this much whatever the ratio.
const HARMLESS_BYTES: usize = 1 << 20;

const MAGIC: &[u8] = b"\x1f\x8b\x08";
const HEADER_BYTES: usize = 10;
const TRAILER_BYTES: usize = 8;
const IS_TEXT: u8 = 1;
const HAS_EXTRA: u8 = 4;
const HAS_NAME: u8 = 8;
const HAS_COMMENT: u8 = 16;

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
///
/// The deflate stream is unpacked by itself and its checksum computed apart: that of zlib-rs
/// takes a fifth of the time of both.
pub fn inflate_member(packed: &[u8], max_bytes: usize, max_inflation: usize) -> Member {
    let Some(start) = header_end(packed) else {
        return Member::Refused;
    };
    if start > packed.len() {
        return Member::Cut;
    }
    let member = inflate(&packed[start..], max_bytes, |bytes, n_read| {
        bytes > HARMLESS_BYTES.max(max_inflation.saturating_mul(start + n_read))
    });
    let Member::Whole(bytes, n_read) = member else {
        return member;
    };
    let end = start + n_read + TRAILER_BYTES;
    let Some(trailer) = packed.get(start + n_read..end) else {
        return Member::Cut;
    };
    let mut expected = crc32fast::hash(&bytes).to_le_bytes().to_vec();
    expected.extend((bytes.len() as u32).to_le_bytes());
    if trailer != expected {
        return Member::Refused;
    }
    Member::Whole(bytes, end)
}

/// The bytes of the deflate stream at the start of `packed`, and how many of it they took.
fn inflate(packed: &[u8], max_bytes: usize, is_bomb: impl Fn(usize, usize) -> bool) -> Member {
    let mut inflater = Decompress::new(false);
    let mut bytes = Vec::with_capacity(PIECE_BYTES);
    loop {
        if bytes.len() == bytes.capacity() {
            bytes.reserve(bytes.len());
        }
        let rest = &packed[inflater.total_in() as usize..];
        let Ok(status) = inflater.decompress_vec(rest, &mut bytes, FlushDecompress::None) else {
            return Member::Refused;
        };
        let n_read = inflater.total_in() as usize;
        if bytes.len() > max_bytes || is_bomb(bytes.len(), n_read) {
            return Member::Refused;
        }
        if status == Status::StreamEnd {
            return Member::Whole(bytes, n_read);
        }
        // With room left in both nothing more would come of another call.
        if bytes.len() < bytes.capacity() {
            let is_cut = n_read == packed.len();
            return if is_cut { Member::Cut } else { Member::Refused };
        }
    }
}

/// Where the header of a member ends, which may be behind `packed`; none if it is damaged or
/// has a checksum of its own.
fn header_end(packed: &[u8]) -> Option<usize> {
    let flags = *packed.get(3).unwrap_or(&0);
    let is_gzip = MAGIC.starts_with(packed) || packed.starts_with(MAGIC);
    if !is_gzip || flags & !(HAS_EXTRA | HAS_NAME | HAS_COMMENT | IS_TEXT) != 0 {
        return None;
    }
    let mut end = HEADER_BYTES;
    if flags & HAS_EXTRA != 0 {
        let length = packed.get(end..end + 2).unwrap_or(&[0xff; 2]);
        end += 2 + usize::from(u16::from_le_bytes([length[0], length[1]]));
    }
    for flag in [HAS_NAME, HAS_COMMENT] {
        if flags & flag != 0 {
            let text = packed.get(end..).unwrap_or_default();
            end += memchr(0, text).map_or(text.len() + 1, |at| at + 1);
        }
    }
    Some(end)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn pack(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
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
        for n_bytes in 0..40 {
            assert!(matches!(
                inflate_member(&packed[..n_bytes], 1 << 22, 200),
                Member::Cut
            ));
        }
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
