//! The keys of texts: half of the SHA-256 of each, several texts at a time.
//!
//! A hash is a chain of instructions, each of which waits for the one before: two texts at a
//! time take little longer than one. Where the processor lacks the instructions, the crate
//! hashes one after the other.

use sha2::{Digest, Sha256};

use super::container::u64_at;
#[cfg(target_arch = "x86_64")]
use super::sha256_x86 as x86;

/// Half of a text's SHA-256, as the two little-endian numbers that files have.
pub type ExactKey = [u64; 2];

/// Texts that are hashed at a time. A third gains nothing, and four 16 % of what two do.
#[cfg(target_arch = "x86_64")]
const LANES: usize = 2;

/// The keys of texts, in their order: nobody can make two texts that share one.
pub fn exact_keys<T: AsRef<[u8]>>(texts: &[T]) -> Vec<ExactKey> {
    #[cfg(target_arch = "x86_64")]
    if x86::can_sha256() {
        // SAFETY: the processor has the instructions.
        return unsafe { keys_in_lanes(texts) };
    }
    one_by_one(texts)
}

/// What must come out, by the crate.
fn one_by_one<T: AsRef<[u8]>>(texts: &[T]) -> Vec<ExactKey> {
    let key = |text: &T| {
        let digest = Sha256::digest(text.as_ref());
        [u64_at(&digest, 0), u64_at(&digest, 8)]
    };
    texts.iter().map(key).collect()
}

/// A text under way: what of it is not hashed yet.
#[cfg(target_arch = "x86_64")]
struct Lane<'t> {
    number: usize,
    whole: &'t [[u8; 64]],
    /// The last block or two: the rest of the text, a bit and its length.
    last: [[u8; 64]; 2],
    n_last: usize,
    state: x86::State,
}

#[cfg(target_arch = "x86_64")]
impl<'t> Lane<'t> {
    #[target_feature(enable = "sse2")]
    fn new(number: usize, text: &'t [u8]) -> Self {
        let (whole, rest) = text.as_chunks::<64>();
        let mut last = [[0; 64]; 2];
        // One block where the bit and the length fit behind the rest, then the second.
        let n_last = if rest.len() < 56 { 1 } else { 2 };
        let padded = &mut last.as_flattened_mut()[64 * (2 - n_last)..];
        padded[..rest.len()].copy_from_slice(rest);
        padded[rest.len()] = 0x80;
        last[1][56..].copy_from_slice(&(8 * text.len() as u64).to_be_bytes());
        Self {
            number,
            whole,
            last,
            n_last,
            state: x86::State::new(),
        }
    }

    /// Blocks that can be hashed without a look at what comes next; none at the end.
    fn blocks(&self) -> &[[u8; 64]] {
        if self.whole.is_empty() {
            &self.last[2 - self.n_last..]
        } else {
            self.whole
        }
    }

    fn pass(&mut self, n_blocks: usize) {
        if self.whole.is_empty() {
            self.n_last -= n_blocks;
        } else {
            self.whole = &self.whole[n_blocks..];
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
fn keys_in_lanes<T: AsRef<[u8]>>(texts: &[T]) -> Vec<ExactKey> {
    let mut keys = vec![[0; 2]; texts.len()];
    let mut queue = texts.iter().enumerate();
    let mut next = || {
        let (number, text) = queue.next()?;
        Some(Lane::new(number, text.as_ref()))
    };
    let mut lanes: Vec<Lane> = Vec::with_capacity(LANES);
    loop {
        while lanes.len() < LANES
            && let Some(lane) = next()
        {
            lanes.push(lane);
        }
        if let [one, two] = &mut lanes[..] {
            hash_together([one, two]);
        } else if let [one] = &mut lanes[..] {
            hash_together([one]);
        } else {
            return keys;
        }
        lanes.retain(|lane| {
            let is_done = lane.blocks().is_empty();
            if is_done {
                keys[lane.number] = lane.state.head();
            }
            !is_done
        });
    }
}

/// Hashes so many blocks of each lane as none has less.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
fn hash_together<const N: usize>(mut lanes: [&mut Lane; N]) {
    let n = lanes.iter().map(|lane| lane.blocks().len()).min();
    let n = n.unwrap_or_default();
    let mut states = lanes.each_ref().map(|lane| lane.state);
    x86::compress(
        &mut states,
        lanes.each_ref().map(|lane| &lane.blocks()[..n]),
    );
    for (lane, state) in lanes.iter_mut().zip(states) {
        lane.state = state;
        lane.pass(n);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(n: usize) -> Vec<u8> {
        (0..n).map(|at| (at * at + n) as u8).collect()
    }

    #[test]
    fn keys_are_those_of_the_crate_for_all_lengths_in_any_company() {
        let texts: Vec<Vec<u8>> = (0..300).map(text).collect();
        let expected = one_by_one(&texts);
        assert_eq!(exact_keys(&texts), expected);
        for n in 0..texts.len() {
            assert_eq!(exact_keys(&texts[n..=n]), expected[n..=n]);
        }
        // A long text beside many short ones, first, last and between.
        let mut texts: Vec<Vec<u8>> = [70_000, 3, 0, 64, 9_999, 55, 56, 63, 119, 120, 5000]
            .into_iter()
            .map(text)
            .collect();
        for _ in 0..texts.len() {
            texts.rotate_left(1);
            assert_eq!(exact_keys(&texts), one_by_one(&texts));
        }
        assert!(exact_keys::<Vec<u8>>(&[]).is_empty());
    }

    #[test]
    fn a_key_is_the_published_digest() {
        // FIPS 180-4's example: SHA-256 of "abc" begins ba7816bf 8f01cfea 414140de 5dae2223.
        let key = [0xEACF_018F_BF16_78BA, 0x2322_AE5D_DE40_4141];
        assert_eq!(exact_keys(&["abc"]), [key]);
    }
}
