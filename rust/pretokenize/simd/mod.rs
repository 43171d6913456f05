//! Pretokens as mask algebra on blocks of 64 bytes.
//!
//! A block becomes one bit per byte for each class (letter, digit, whitespace, ...): from a
//! compare of all 64 bytes at once where they are ASCII ([`Backend`]) and from class tables
//! where they are not ([`classify`]). Each byte of a character has the class of the
//! character, and no character straddles two blocks: a block ends before one that would.
//! Where pretokens begin follows from shifts of those words; a [`Scheme`] says how, and
//! holds what one block leaves to the next.
//!
//! A scheme may decline a block. Then the scalar scanner, which is also the oracle of the
//! tests, goes on from the last pretoken that is known to past the block, and the blocks
//! begin anew where it stops: no pattern looks behind where a pretoken begins.
//!
//! Source of the idea: Langdale and Lemire 2019, simdjson, section 3.1 (arXiv:1902.08318).

mod bits;
mod cl100k;
mod classify;
mod gpt2;
mod masks;
mod o200k;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod x86;

use super::scalar::char_at;
use super::unicode::Class;
use crate::memory::prefetch_at;
use classify::Tables;
use masks::{Backend, Masks, Portable};

pub(super) use cl100k::{Cl100k, Cl100k2023, Qwen2};
pub(super) use gpt2::Gpt2;
pub(super) use o200k::O200k;

/// Bytes of a block: one bit each in a word.
pub(super) const BLOCK: usize = 64;

/// Bytes that are looked at for a block: a character that begins in it may end after it.
const WINDOW: usize = BLOCK + 4;

/// A block, seen in its segment.
#[derive(Clone, Copy)]
pub(super) struct Block<'t> {
    text: &'t [u8],
    at: usize,
    /// Bytes of the block that are text and belong to its own characters.
    n: usize,
}

impl Block<'_> {
    /// The last bit of a mask, as the first bit.
    #[inline(always)]
    fn last(&self, mask: u64) -> u64 {
        mask >> (self.n - 1) & 1
    }

    fn is_white_or_end(&self, offset: usize) -> bool {
        char_at(self.text, self.at + offset).is_none_or(|c| c.class == Class::Space)
    }
}

/// The algebra of one pattern, with what a block leaves to the next; the default is the
/// beginning of a segment.
pub(super) trait Scheme: Copy + Default {
    /// End of the pretoken that starts at a position, one character at a time.
    fn scalar_end(text: &[u8], at: usize) -> usize;

    /// Where pretokens begin in a block, bits past its end left open; nothing where only
    /// the scalar scanner can tell.
    fn starts(&mut self, masks: &Masks, block: Block<'_>) -> Option<u64>;
}

/// Scans one segment block by block.
pub(super) struct BlockScanner<'t, S> {
    text: &'t [u8],
    at: usize,
    scheme: S,
    /// Where the last known pretoken begins.
    last_start: usize,
    tables: &'static Tables,
}

impl<'t, S: Scheme> BlockScanner<'t, S> {
    pub(super) fn new(text: &'t [u8]) -> Self {
        Self {
            text,
            at: 0,
            scheme: S::default(),
            last_start: 0,
            tables: classify::tables(),
        }
    }

    /// Appends where pretokens begin in the next blocks, the segment's start left out, until
    /// there are `enough` or no text is left; whether any text is left. Never appends more
    /// than `enough + BLOCK`.
    pub(super) fn next_starts(&mut self, enough: usize, starts: &mut Vec<u32>) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            if let Some(backend) = x86::Avx512::detect() {
                // SAFETY: the back end exists, so the processor has the instructions.
                return unsafe { self.next_avx512(backend, enough, starts) };
            }
            if let Some(backend) = x86::Avx2::detect() {
                // SAFETY: as above.
                return unsafe { self.next_avx2(backend, enough, starts) };
            }
        }
        self.next_by(Portable, enough, starts)
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi2,bmi1,bmi2,popcnt,lzcnt")]
    fn next_avx512(&mut self, backend: x86::Avx512, enough: usize, starts: &mut Vec<u32>) -> bool {
        self.next_by(backend, enough, starts)
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,bmi1,bmi2,popcnt,lzcnt")]
    fn next_avx2(&mut self, backend: x86::Avx2, enough: usize, starts: &mut Vec<u32>) -> bool {
        self.next_by(backend, enough, starts)
    }

    /// Compiled once for each back end, which works only where all of it is inlined.
    #[inline(always)]
    fn next_by<B: Backend>(&mut self, backend: B, enough: usize, starts: &mut Vec<u32>) -> bool {
        starts.reserve(enough + 2 * BLOCK);
        // A long word must not keep the caller waiting until the text has left the cache.
        let stop = self.at.saturating_add(MAX_BATCH_BYTES).min(self.text.len());
        while self.at < stop && starts.len() < enough {
            // What the batches before touched in between hides from the processor that the
            // text is read in order.
            prefetch_at(self.text.as_ptr().wrapping_add(self.at + PREFETCH_BYTES));
            let bits = match self.text[self.at..].first_chunk() {
                Some(window) => self.block_starts(backend, window, BLOCK),
                None => self.last_block_starts(backend),
            };
            match bits {
                // SAFETY: room for `enough + 2 * BLOCK` more was reserved, less than `enough`
                // were there, and a block adds at most `BLOCK`.
                Some((bits, n)) => unsafe {
                    backend.push_positions(bits, self.at as u32, starts);
                    self.at += n;
                },
                None => self.scalar_zone(starts),
            }
        }
        self.last_start = starts.last().map_or(self.last_start, |&at| at as usize);
        self.at < self.text.len()
    }

    /// Where pretokens begin in the block at `self.at`, and its length.
    #[inline(always)]
    fn block_starts<B: Backend>(
        &mut self,
        backend: B,
        window: &[u8; WINDOW],
        n_text: usize,
    ) -> Option<(u64, usize)> {
        let block: &[u8; BLOCK] = window.first_chunk().expect("a window is longer");
        let mut masks = backend.masks(block);
        let mut n = n_text;
        if masks.high != 0 {
            let high = backend.classify(self.tables, window, n_text);
            high.add_to(&mut masks);
            n = high.n;
        }
        let block = Block {
            text: self.text,
            at: self.at,
            n,
        };
        let starts = self.scheme.starts(&masks, block)? & bits::low(n);
        // The segment's own start ends no pretoken.
        Some((starts & !u64::from(self.at == 0), n))
    }

    /// The same near the end of the segment, which blanks pad: so the last run of whitespace
    /// has no last character.
    #[cold]
    #[inline(never)]
    fn last_block_starts<B: Backend>(&mut self, backend: B) -> Option<(u64, usize)> {
        let rest = &self.text[self.at..];
        let mut window = [b' '; WINDOW];
        window[..rest.len()].copy_from_slice(rest);
        let n = rest.len().min(BLOCK);
        self.block_starts(backend, &window, n)
    }

    /// The starts of one block and more by the scalar scanner.
    #[cold]
    #[inline(never)]
    fn scalar_zone(&mut self, starts: &mut Vec<u32>) {
        let mut at = starts.last().map_or(self.last_start, |&at| at as usize);
        let stop = (self.at + BLOCK).min(self.text.len());
        loop {
            at = S::scalar_end(self.text, at);
            if at >= stop {
                break;
            }
            starts.push(at as u32);
        }
        self.at = at;
        self.scheme = S::default();
    }
}

/// How far ahead of a block the memory is asked for text; 1.05-1.1 times as fast as a whole
/// (160 MB of books, Zen 4).
const PREFETCH_BYTES: usize = 2048;

/// Bytes after which a batch ends.
const MAX_BATCH_BYTES: usize = 1 << 14;
