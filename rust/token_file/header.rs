//! The 1024 bytes in front of a shard's payload, and the NPY header of its index.
//!
//! The first three words are llm.c's, so its readers see a file of their own.

use super::CRC_BLOCK_LOG2;

/// The payload begins here.
pub(super) const HEADER_BYTES: usize = 1024;
/// Size of the NPY header that [`npy_header`] makes, whatever the length of the array.
pub(super) const NPY_HEADER_BYTES: usize = 128;
/// Room for the tokenizer's name and for the dataset's.
pub(super) const NAME_BYTES: usize = 64;

const EXTENSION_TAG: [u8; 8] = *b"RSLMTOK\x01";
const FLAG_ENDS_WITH_END_OF_TEXT: u16 = 2;
const FLAG_INDEX: u16 = 4;
const FLAG_SOURCE_ORDER: u16 = 32;

/// Offset and name of every field, in order; the last one ends at [`HEADER_BYTES`].
const FIELDS: [(usize, &str); 29] = [
    (0, "magic"),
    (4, "version"),
    (8, "n_tokens (i32)"),
    (12, "reserved"),
    (16, "extension tag"),
    (24, "extension version"),
    (26, "flags"),
    (28, "itemsize"),
    (29, "reserved"),
    (30, "header_bytes"),
    (32, "n_tokens"),
    (40, "n_documents"),
    (48, "n_utf8_bytes"),
    (56, "vocab_size"),
    (60, "beginning_of_text"),
    (64, "end_of_text"),
    (68, "padding"),
    (72, "shard_index"),
    (76, "shard_count"),
    (80, "first_token"),
    (88, "first_document"),
    (96, "tokenizer_sha256"),
    (128, "payload_sha256"),
    (160, "index_sha256"),
    (192, "crc_block_log2"),
    (196, "n_crc_blocks"),
    (200, "tokenizer_name"),
    (264, "dataset"),
    (328, "reserved"),
];

/// The fields of a shard's header that differ from shard to shard or file to file.
#[derive(Clone, Debug)]
pub(super) struct ShardHeader<'a> {
    pub itemsize: u8,
    pub n_tokens: u64,
    pub n_documents: u64,
    pub n_utf8_bytes: u64,
    pub vocab_size: u32,
    pub end_of_text: Option<u32>,
    pub shard_index: u32,
    pub first_token: u64,
    pub first_document: u64,
    pub tokenizer_sha256: [u8; 32],
    pub payload_sha256: [u8; 32],
    pub index_sha256: [u8; 32],
    pub n_crc_blocks: u32,
    pub tokenizer_name: &'a str,
    pub dataset: &'a str,
}

impl ShardHeader<'_> {
    /// The header as it stands in the file, little-endian, with its CRC-32.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let (magic, version): (i32, i32) = if self.itemsize == 2 {
            (20_240_520, 1)
        } else {
            (20_240_801, 7)
        };
        let ends = if self.end_of_text.is_some() {
            FLAG_ENDS_WITH_END_OF_TEXT
        } else {
            0
        };
        let id = |token: Option<u32>| token.map_or(-1, u32::cast_signed);

        let mut bytes = [0; HEADER_BYTES];
        let mut put = |offset: usize, field: &[u8]| {
            bytes[offset..offset + field.len()].copy_from_slice(field);
        };
        put(0, &magic.to_le_bytes());
        put(4, &version.to_le_bytes());
        put(8, &(self.n_tokens as u32).to_le_bytes());
        put(16, &EXTENSION_TAG);
        put(24, &1u16.to_le_bytes());
        put(26, &(FLAG_INDEX | FLAG_SOURCE_ORDER | ends).to_le_bytes());
        put(28, &[self.itemsize]);
        put(30, &(HEADER_BYTES as u16).to_le_bytes());
        put(32, &self.n_tokens.to_le_bytes());
        put(40, &self.n_documents.to_le_bytes());
        put(48, &self.n_utf8_bytes.to_le_bytes());
        put(56, &self.vocab_size.to_le_bytes());
        put(60, &id(None).to_le_bytes());
        put(64, &id(self.end_of_text).to_le_bytes());
        put(68, &id(None).to_le_bytes());
        put(72, &self.shard_index.to_le_bytes());
        put(80, &self.first_token.to_le_bytes());
        put(88, &self.first_document.to_le_bytes());
        put(96, &self.tokenizer_sha256);
        put(128, &self.payload_sha256);
        put(160, &self.index_sha256);
        put(192, &CRC_BLOCK_LOG2.to_le_bytes());
        put(196, &self.n_crc_blocks.to_le_bytes());
        put(200, self.tokenizer_name.as_bytes());
        put(264, self.dataset.as_bytes());
        let crc = crc32fast::hash(&bytes[..1020]);
        bytes[1020..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }
}

/// Offset and name of the first field in which two headers differ.
pub(super) fn first_difference(expected: &[u8], found: &[u8]) -> Option<(usize, &'static str)> {
    let at = expected.iter().zip(found).position(|(a, b)| a != b)?;
    if at >= 1020 {
        return Some((1020, "header_crc32"));
    }
    FIELDS
        .iter()
        .rev()
        .find(|(offset, _)| *offset <= at)
        .copied()
}

/// The header `numpy.save` writes for a vector of `length` little-endian u32.
///
/// It leaves room for a length of 21 digits, which makes it 128 bytes for every length.
pub(super) fn npy_header(length: u64) -> [u8; NPY_HEADER_BYTES] {
    let text = format!("{{'descr': '<u4', 'fortran_order': False, 'shape': ({length},), }}");
    let mut bytes = [b' '; NPY_HEADER_BYTES];
    bytes[..8].copy_from_slice(b"\x93NUMPY\x01\x00");
    bytes[8..10].copy_from_slice(&(NPY_HEADER_BYTES as u16 - 10).to_le_bytes());
    bytes[10..10 + text.len()].copy_from_slice(text.as_bytes());
    bytes[NPY_HEADER_BYTES - 1] = b'\n';
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(itemsize: u8) -> ShardHeader<'static> {
        ShardHeader {
            itemsize,
            n_tokens: 5,
            n_documents: 2,
            n_utf8_bytes: 11,
            vocab_size: 300,
            end_of_text: Some(7),
            shard_index: 3,
            first_token: 1 << 40,
            first_document: 9,
            tokenizer_sha256: [1; 32],
            payload_sha256: [2; 32],
            index_sha256: [3; 32],
            n_crc_blocks: 1,
            tokenizer_name: "näme",
            dataset: "books/train",
        }
    }

    #[test]
    fn encode_puts_every_field_at_its_offset() {
        let bytes = header(2).encode();
        assert_eq!(
            bytes[..12],
            [0x88, 0xd8, 0x34, 0x01, 1, 0, 0, 0, 5, 0, 0, 0]
        );
        assert_eq!(&bytes[16..24], b"RSLMTOK\x01");
        assert_eq!(bytes[24..32], [1, 0, 38, 0, 2, 0, 0, 4]);
        assert_eq!(
            bytes[60..72],
            [255, 255, 255, 255, 7, 0, 0, 0, 255, 255, 255, 255]
        );
        assert_eq!(bytes[80..88], (1u64 << 40).to_le_bytes());
        assert_eq!(&bytes[200..206], "näme\0".as_bytes());
        assert_eq!(&bytes[264..276], b"books/train\0");
        assert_eq!(bytes[1020..], crc32fast::hash(&bytes[..1020]).to_le_bytes());
    }

    #[test]
    fn encode_marks_the_wide_payload_as_llm_c_does() {
        let bytes = header(4).encode();
        assert_eq!(bytes[..8], [0xa1, 0xd9, 0x34, 0x01, 7, 0, 0, 0]);
        assert_eq!(bytes[28], 4);
    }

    #[test]
    fn first_difference_names_the_field() {
        let good = header(2).encode();
        for (at, expected) in [
            (3, (0, "magic")),
            (33, (32, "n_tokens")),
            (1023, (1020, "header_crc32")),
        ] {
            let mut bad = good;
            bad[at] ^= 1;
            assert_eq!(first_difference(&good, &bad), Some(expected));
        }
        assert_eq!(first_difference(&good, &good), None);
    }

    #[test]
    fn npy_header_is_what_numpy_writes() {
        let bytes = npy_header(1234);
        let text =
            b"\x93NUMPY\x01\x00v\x00{'descr': '<u4', 'fortran_order': False, 'shape': (1234,), }";
        assert_eq!(&bytes[..text.len()], text);
        assert!(bytes[text.len()..127].iter().all(|byte| *byte == b' '));
        assert_eq!(bytes[127], b'\n');
    }
}
