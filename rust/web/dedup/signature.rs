//! Shingles and MinHash signatures: twin of `rslm.data.dedup.shingles` and `.minhash`, equal to
//! them bit for bit.
//!
//! Tried and dropped: leaving the reduction modulo 2^61 - 1 to the end (the least of unreduced
//! values is not the unreduced least).

use sha1::block_api::compress;

const MERSENNE_PRIME: u64 = (1 << 61) - 1;
/// Functions whose least values are held in registers: two of AVX-512's, four of AVX2's.
const LANES: usize = 16;
/// Hashes that stay in the first cache while all functions pass over them.
const BLOCK_HASHES: usize = 1024;
const SHA1_INITIAL: [u32; 5] = [0x6745_2301, 0xEFCD_AB89, 0x98BA_DCFE, 0x1032_5476, 0xC3D2_E1F0];

/// Appends the hash of each shingle of words with one blank between, in their order: so a
/// shingle that comes twice is there twice. A text of fewer words is one shingle if `whole`.
pub fn hash_shingles(words: &[u8], ngram_words: usize, whole: bool, out: &mut Vec<u64>) {
    let mut starts = std::collections::VecDeque::from([0]);
    let is_empty = words.is_empty();
    let ends = memchr::memchr_iter(b' ', words).chain((!is_empty).then_some(words.len()));
    let n_before = out.len();
    let mut hasher = ShingleHasher::new();
    for end in ends {
        if starts.len() == ngram_words {
            let first = starts.pop_front().unwrap_or(0);
            out.push(hasher.hash(&words[first..end]));
        }
        starts.push_back(end + 1);
    }
    if out.len() == n_before && whole {
        out.push(hasher.hash(words));
    }
}

/// The first 8 bytes of a shingle's SHA-1, little-endian.
struct ShingleHasher {
    block: [u8; 64],
}

impl ShingleHasher {
    fn new() -> Self {
        Self { block: [0; 64] }
    }

    /// Nearly all shingles fit one block with their padding, which is then written here: the
    /// crate's own buffering takes as long as the hash.
    fn hash(&mut self, shingle: &[u8]) -> u64 {
        let n = shingle.len();
        let whole_blocks = shingle.chunks_exact(64);
        let rest = whole_blocks.remainder();
        let mut state = SHA1_INITIAL;
        if n >= 64 {
            let (blocks, _) = shingle.as_chunks::<64>();
            compress(&mut state, blocks);
        }
        let block = &mut self.block;
        *block = [0; 64];
        block[..rest.len()].copy_from_slice(rest);
        block[rest.len()] = 0x80;
        if rest.len() >= 56 {
            compress(&mut state, std::slice::from_ref(block));
            *block = [0; 64];
        }
        block[56..].copy_from_slice(&(8 * n as u64).to_be_bytes());
        compress(&mut state, std::slice::from_ref(block));
        u64::from(state[0].swap_bytes()) | u64::from(state[1].swap_bytes()) << 32
    }
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
                    let value = hash.wrapping_mul(factors[lane]).wrapping_add(summands[lane]);
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
    use sha1::{Digest, Sha1};

    #[test]
    fn hash_is_the_head_of_sha1_at_every_length() {
        let text: Vec<u8> = (0..300).map(|n| b'a' + (n % 26) as u8).collect();
        for n in 0..text.len() {
            let digest = Sha1::digest(&text[..n]);
            let mut head = [0; 8];
            head.copy_from_slice(&digest[..8]);
            let hash = ShingleHasher::new().hash(&text[..n]);
            assert_eq!(hash, u64::from_le_bytes(head), "{n} bytes");
        }
    }

    #[test]
    fn least_values_are_the_same_by_any_instructions() {
        let numbers: Vec<u64> = (1..=37_u64).map(|n| n.wrapping_mul(0x9E37_79B9_7F4A_7C15)).collect();
        let functions = HashFunctions::new(&numbers, &numbers);
        for n in [1, 2, 1023, 1024, 1025, 2500_usize] {
            let hashes: Vec<u64> = (0..n as u64).map(|n| n.wrapping_mul(0xD134_2543_DE82_EF95)).collect();
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
