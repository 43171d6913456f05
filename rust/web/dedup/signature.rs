//! Shingles and `MinHash` signatures: twin of `rslm.data.dedup.shingles` and `.minhash`, equal to
//! them bit for bit.
//!
//! Of books 10.4 ms a MB: 4.5 SHA-1, 3.0 the 112 functions, 1.3 normalisation.
//!
//! Tried and dropped: one message of SHA-1 at a time by the crate (14.3 ms a MB in all), two at a
//! time (11.6); leaving the reduction modulo 2^61 - 1 to the end (the least of the unreduced
//! values need not be that of the least).

use std::collections::VecDeque;

use sha1::block_api::compress;
use sha1::{Digest, Sha1};

use super::container::u64_at;
#[cfg(target_arch = "x86_64")]
use super::sha1_x86 as x86;

const MERSENNE_PRIME: u64 = (1 << 61) - 1;
/// Functions whose least values are held in registers: two of AVX-512's, four of AVX2's.
const LANES: usize = 16;
/// Hashes that stay in the first cache while all functions pass over them.
const BLOCK_HASHES: usize = 1024;
const SHA1_INITIAL: [u32; 5] = [
    0x6745_2301,
    0xEFCD_AB89,
    0x98BA_DCFE,
    0x1032_5476,
    0xC3D2_E1F0,
];

/// Appends the hash of each shingle of words with one blank between, in no order: a shingle that
/// comes twice is there twice. A text of fewer words is one shingle if `whole`.
pub fn hash_shingles(words: &[u8], ngram_words: usize, whole: bool, out: &mut Vec<u64>) {
    let mut starts = VecDeque::from([0]);
    let is_empty = words.is_empty();
    let ends = memchr::memchr_iter(b' ', words).chain((!is_empty).then_some(words.len()));
    let n_before = out.len();
    let mut hasher = ShingleHasher::new();
    for end in ends {
        if starts.len() == ngram_words {
            let first = starts.pop_front().unwrap_or(0);
            hasher.push(words, first, end, out);
        }
        starts.push_back(end + 1);
    }
    hasher.finish(out);
    if out.len() == n_before && whole {
        out.push(head_of_sha1(words));
    }
}

/// Messages that are hashed side by side.
const LANES_OF_SHA1: usize = 4;
/// The longest message that fits one block with its padding.
const MOST_BYTES: usize = 55;

/// The first 8 bytes of each shingle's SHA-1, little-endian.
///
/// Nearly all shingles fit one block, which is padded here: the crate's buffering would take as
/// long as the hash. A hash is a chain of 20 instructions, each of which waits for the one
/// before, so that several messages at a time take little longer than one.
struct ShingleHasher {
    blocks: [[u8; 64]; LANES_OF_SHA1],
    n_blocks: usize,
}

impl ShingleHasher {
    fn new() -> Self {
        Self {
            blocks: [[0; 64]; LANES_OF_SHA1],
            n_blocks: 0,
        }
    }

    #[inline]
    fn push(&mut self, words: &[u8], start: usize, end: usize, out: &mut Vec<u64>) {
        let n = end - start;
        if n > MOST_BYTES {
            return out.push(head_of_sha1(&words[start..end]));
        }
        let block = &mut self.blocks[self.n_blocks];
        // A copy of fixed length, of which what is behind the shingle is masked.
        if let Some(bytes) = words[start..].first_chunk::<64>() {
            let Some(mask) = MASK[64 - n..].first_chunk::<64>() else {
                return;
            };
            for at in 0..64 {
                block[at] = bytes[at] & mask[at];
            }
        } else {
            *block = [0; 64];
            block[..n].copy_from_slice(&words[start..end]);
        }
        block[n] = 0x80;
        block[62..].copy_from_slice(&(8 * n as u16).to_be_bytes());
        self.n_blocks += 1;
        if self.n_blocks == LANES_OF_SHA1 {
            self.finish(out);
        }
    }

    fn finish(&mut self, out: &mut Vec<u64>) {
        let n = std::mem::take(&mut self.n_blocks);
        #[cfg(target_arch = "x86_64")]
        if n == LANES_OF_SHA1 && x86::can_sha1() {
            // SAFETY: the processor has the instructions.
            out.extend_from_slice(&unsafe { x86::heads_of_blocks(&self.blocks) });
            return;
        }
        out.extend(self.blocks[..n].iter().map(|block| {
            let mut state = SHA1_INITIAL;
            compress(&mut state, std::slice::from_ref(block));
            head(state)
        }));
    }
}

static MASK: [u8; 128] = {
    let mut mask = [0; 128];
    let mut at = 0;
    while at < 64 {
        mask[at] = 0xFF;
        at += 1;
    }
    mask
};

fn head(state: [u32; 5]) -> u64 {
    u64::from(state[0].swap_bytes()) | u64::from(state[1].swap_bytes()) << 32
}

fn head_of_sha1(shingle: &[u8]) -> u64 {
    let digest = Sha1::digest(shingle);
    u64_at(&digest, 0)
}

/// Hash functions x -> ((x a + b) mod 2^64) mod (2^61 - 1).
pub struct HashFunctions {
    n: usize,
    /// Filled up to whole groups of lanes.
    factors: Vec<[u64; LANES]>,
    summands: Vec<[u64; LANES]>,
}

impl HashFunctions {
    /// Of factors and summands, as many of each.
    pub fn new(factors: &[u64], summands: &[u64]) -> Self {
        let grouped = |numbers: &[u64]| {
            let group = |chunk: &[u64]| {
                let mut lanes = [0; LANES];
                lanes[..chunk.len()].copy_from_slice(chunk);
                lanes
            };
            numbers.chunks(LANES).map(group).collect()
        };
        Self {
            n: factors.len().min(summands.len()),
            factors: grouped(factors),
            summands: grouped(summands),
        }
    }

    /// Writes each function's least value over the hashes to `signature`.
    pub fn sign(&self, hashes: &[u64], signature: &mut Vec<u64>) {
        signature.clear();
        signature.resize(self.factors.len() * LANES, u64::MAX);
        let (groups, _) = signature.as_chunks_mut::<LANES>();
        for block in hashes.chunks(BLOCK_HASHES) {
            self.least_dispatched(block, groups);
        }
        signature.truncate(self.n);
    }

    /// By the best instructions that the processor has: of AVX-512 three times as fast as
    /// without.
    fn least_dispatched(&self, hashes: &[u64], least: &mut [[u64; LANES]]) {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512dq") {
                // SAFETY: the processor has the instructions.
                return unsafe { self.least_avx512(hashes, least) };
            }
            if is_x86_feature_detected!("avx2") {
                // SAFETY: as above.
                return unsafe { self.least_avx2(hashes, least) };
            }
        }
        self.least(hashes, least);
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512dq")]
    fn least_avx512(&self, hashes: &[u64], least: &mut [[u64; LANES]]) {
        self.least(hashes, least);
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    fn least_avx2(&self, hashes: &[u64], least: &mut [[u64; LANES]]) {
        self.least(hashes, least);
    }

    #[inline(always)]
    fn least(&self, hashes: &[u64], least: &mut [[u64; LANES]]) {
        let functions = self.factors.iter().zip(&self.summands);
        for ((factors, summands), least) in functions.zip(least) {
            let mut lanes = *least;
            for &hash in hashes {
                for lane in 0..LANES {
                    let value = hash
                        .wrapping_mul(factors[lane])
                        .wrapping_add(summands[lane]);
                    // At most the prime and 7, so that one subtraction reduces it, which
                    // wraps to a larger number where it must not be done.
                    let value = (value & MERSENNE_PRIME) + (value >> 61);
                    let value = value.min(value.wrapping_sub(MERSENNE_PRIME));
                    lanes[lane] = lanes[lane].min(value);
                }
            }
            *least = lanes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_the_heads_of_sha1_at_every_length_and_place() {
        for n_words in [1, 2, 4, 5, 7, 8, 9, 31] {
            for n_letters in 1..70 {
                let words: Vec<String> = (0..n_words).map(|n| format!("{n:0n_letters$}")).collect();
                let mut expected: Vec<u64> = words
                    .windows(2.min(n_words))
                    .map(|pair| head_of_sha1(pair.join(" ").as_bytes()))
                    .collect();
                let mut hashes = Vec::new();
                hash_shingles(words.join(" ").as_bytes(), 2, true, &mut hashes);
                expected.sort_unstable();
                hashes.sort_unstable();
                assert_eq!(hashes, expected, "{n_words} words of {n_letters}");
            }
        }
        // FIPS 180-4: abc.
        assert_eq!(head_of_sha1(b"abc").to_be(), 0xA999_3E36_4706_816A);
    }

    #[test]
    fn least_values_are_the_same_by_any_instructions() {
        let numbers: Vec<u64> = (1..=37_u64)
            .map(|n| n.wrapping_mul(0x9E37_79B9_7F4A_7C15))
            .collect();
        let functions = HashFunctions::new(&numbers, &numbers);
        for n in [1, 2, 1023, 1024, 1025, 2500_usize] {
            let hashes: Vec<u64> = (0..n as u64)
                .map(|n| n.wrapping_mul(0xD134_2543_DE82_EF95))
                .collect();
            let mut signature = Vec::new();
            functions.sign(&hashes, &mut signature);
            let slow: Vec<u64> = numbers
                .iter()
                .map(|&a| {
                    let value = |&x: &u64| x.wrapping_mul(a).wrapping_add(a) % MERSENNE_PRIME;
                    hashes.iter().map(value).min().unwrap_or(u64::MAX)
                })
                .collect();
            assert_eq!(signature, slow);
        }
    }
}
