//! The three tables as one, asked for a batch of pretokens at a time.
//!
//! Two passes over a batch. The first makes a key of each pretoken and asks the memory for
//! its line, so that the second waits for none. In neither does the length of a pretoken
//! decide a branch: answers of the middle table are put into spare lines of the short one,
//! where the second pass finds them like any other. Some 45 instructions per pretoken.

use std::hint::select_unpredictable;

use super::short::{Line, SHORT_BYTES, ShortTable};
use super::{LongTable, MAX_KEY_BYTES, MiddleTable, PackedIds, key_at};
use crate::TokenId;
use crate::pretokenize::Batch;

/// Pretokens that are looked up together.
pub const BATCH: usize = ShortTable::N_SPARE;

/// The key of a pretoken that has none; its length byte is no length.
const TOO_LONG: u128 = u128::MAX;

/// What pretokens become, as far as it is remembered.
pub struct WordCache {
    short: ShortTable,
    middle: MiddleTable,
    long: LongTable,
    /// Key and line of each pretoken of the batch, once [`WordCache::find_lines`] has run.
    keys: [u64; BATCH],
    lines: [u32; BATCH],
    /// Which pretokens of the batch are not for the short table, and their keys.
    others: [u16; BATCH],
    other_keys: [u128; BATCH],
}

/// Which of the four keys of a line is the one.
pub trait Find: Fn(&Line, u64) -> Option<usize> + Copy {}

impl<F: Fn(&Line, u64) -> Option<usize> + Copy> Find for F {}

impl WordCache {
    pub fn new() -> Self {
        Self {
            short: ShortTable::new(),
            middle: MiddleTable::new(),
            long: LongTable::new(),
            keys: [0; BATCH],
            lines: [0; BATCH],
            others: [0; BATCH],
            other_keys: [0; BATCH],
        }
    }

    /// Appends the ids of a batch; what it does not know, `encode` tells and it remembers.
    ///
    /// Inlined into a function for each set of instructions.
    #[inline(always)]
    pub fn encode_batch<I: TokenId>(
        &mut self,
        batch: Batch<'_>,
        out: &mut Vec<I>,
        find: impl Find,
        mut encode: impl FnMut(&[u8], &mut dyn FnMut(&[u32])),
    ) {
        assert!(batch.ends.len() <= BATCH);
        self.find_lines(batch);
        // A pretoken has at most as many ids as bytes, and four places are written at once.
        let n_bytes = batch.ends.last().map_or(batch.start, |&end| end as usize) - batch.start;
        let mut n = out.len();
        out.resize(n + n_bytes + 4, I::default());
        let mut i = 0;
        while i < batch.ends.len() {
            (i, n) = self.copy_found(i, batch.ends.len(), find, &mut out[..], n);
            if i < batch.ends.len() {
                let (start, end) = batch.pretoken(i);
                self.encode_missed(
                    &batch.segment[start..end],
                    &mut out[..],
                    &mut n,
                    &mut encode,
                );
                i += 1;
            }
        }
        out.truncate(n);
    }

    /// First pass.
    #[inline(always)]
    fn find_lines(&mut self, batch: Batch<'_>) {
        let text = batch.segment;
        let end = batch.ends.last().map_or(batch.start, |&end| end as usize);
        // Zero padding would make a pretoken that ends with NUL the key of a shorter one.
        let has_nul = memchr::memchr(0, &text[batch.start..end]).is_some();
        let longest = if has_nul { 0 } else { SHORT_BYTES };
        // Eight bytes can be read where a pretoken starts up to here.
        let last_word = text.len().wrapping_sub(8);
        let n_words = if text.len() < 8 { 0 } else { batch.ends.len() };
        let lines = self.short.lines().as_ptr();
        let mut n_others = 0;
        let (mut i, mut start) = (0, batch.start);
        while i < n_words && start <= last_word {
            // SAFETY: `start` is at least eight bytes before the end of the text.
            let word = unsafe { text.as_ptr().add(start).cast::<u64>().read_unaligned() };
            let end = batch.ends[i] as usize;
            self.find_line(
                i,
                u64::from_le(word),
                end - start,
                longest,
                &mut n_others,
                lines,
            );
            (i, start) = (i + 1, end);
        }
        for &end in &batch.ends[i..] {
            let word = word_at(text, start);
            self.find_line(i, word, end as usize - start, longest, &mut n_others, lines);
            (i, start) = (i + 1, end as usize);
        }
        if n_others > 0 {
            self.answer_others(batch, n_others);
        }
    }

    /// Key and line of pretoken `i` of the batch.
    #[inline(always)]
    fn find_line(
        &mut self,
        i: usize,
        word: u64,
        len: usize,
        longest: usize,
        n_others: &mut usize,
        lines: *const Line,
    ) {
        // The bits of what follows the pretoken leave at the top; shifts are modulo 64.
        let key = word << ((8 * len).wrapping_neg() % 64);
        let is_other = len > longest;
        // Which it is cannot be foretold, so nothing branches on it.
        let line = select_unpredictable(is_other, ShortTable::spare(i), ShortTable::line_of(key));
        super::prefetch_at(lines.wrapping_add(line as usize));
        debug_assert!(i < BATCH && *n_others <= i);
        // SAFETY: a batch holds at most `BATCH` pretokens, and at most as many are noted.
        unsafe {
            *self.keys.get_unchecked_mut(i) = key;
            *self.lines.get_unchecked_mut(i) = line;
            *self.others.get_unchecked_mut(*n_others) = i as u16;
        }
        *n_others += usize::from(is_other);
    }

    /// Puts what the middle table knows into the spare lines.
    #[inline(always)]
    fn answer_others(&mut self, batch: Batch<'_>, n_others: usize) {
        let others = &self.others[..n_others];
        for (&i, other_key) in others.iter().zip(&mut self.other_keys) {
            let (start, end) = batch.pretoken(usize::from(i));
            *other_key = key_at(batch.segment, start, end).unwrap_or(TOO_LONG);
            self.middle.prefetch(*other_key);
        }
        for (&i, &other_key) in others.iter().zip(&self.other_keys) {
            let i = usize::from(i);
            let known = self.middle.get(other_key).map(|(ids, _)| ids);
            let known = known.filter(|ids| ids.len() <= PackedIds::MAX_IDS);
            self.short.set_spare(i, self.keys[i], known);
        }
    }

    /// Second pass, from pretoken `i` of `n_words` up to one that is not found, writing
    /// from place `n` on; where it stopped, and the place behind what it wrote.
    #[inline(always)]
    fn copy_found<I: TokenId>(
        &self,
        mut i: usize,
        n_words: usize,
        find: impl Find,
        out: &mut [I],
        mut n: usize,
    ) -> (usize, usize) {
        let lines = self.short.lines();
        while i < n_words {
            debug_assert!(i < BATCH && n + 4 <= out.len());
            // SAFETY: a batch holds at most `BATCH` pretokens. `find_lines` wrote the number
            // of a line or of a spare line for each. There are as many places behind `n` as
            // bytes to come and four more, and a pretoken has at most as many ids as bytes.
            unsafe {
                let line = lines.get_unchecked(*self.lines.get_unchecked(i) as usize);
                let Some(place) = find(line, *self.keys.get_unchecked(i)) else {
                    break;
                };
                let ids = PackedIds(*line.get_unchecked(4 + place % 4));
                n += ids.unpack_to(out.as_mut_ptr().add(n));
            }
            i += 1;
        }
        (i, n)
    }

    /// Writes the ids of a pretoken that the second pass did not find. The next batch will,
    /// if there is a place for it.
    #[inline(never)]
    fn encode_missed<I: TokenId>(
        &mut self,
        pretoken: &[u8],
        out: &mut [I],
        n: &mut usize,
        encode: &mut impl FnMut(&[u8], &mut dyn FnMut(&[u32])),
    ) {
        let mut write = |ids: &[u32]| {
            for (place, &id) in out[*n..].iter_mut().zip(ids) {
                *place = I::from_id(id);
            }
            *n += ids.len();
        };
        let is_short = pretoken.len() <= SHORT_BYTES && !pretoken.contains(&0);
        let is_long = (MAX_KEY_BYTES + 1..=LongTable::MAX_BYTES).contains(&pretoken.len());
        let key = key_at(pretoken, 0, pretoken.len());
        if let Some((first, rest)) = key.and_then(|key| self.middle.get(key)) {
            write(&first.wide()[..first.len().min(PackedIds::MAX_IDS)]);
            return write(&rest.wide()[..rest.len()]);
        }
        if is_long && self.long.get(pretoken, &mut write) {
            return;
        }
        encode(pretoken, &mut |ids| {
            write(ids);
            match PackedIds::new(ids).filter(|_| is_short && ids.len() <= PackedIds::MAX_IDS) {
                Some(packed) => {
                    let key = word_at(pretoken, 0) << ((8 * pretoken.len()).wrapping_neg() % 64);
                    if let Some((key, ids)) = self.short.insert(key, packed) {
                        self.middle.insert_packed(key, ids, PackedIds::default());
                    }
                }
                None if is_long => self.long.insert(pretoken, ids),
                None => key.into_iter().for_each(|key| self.middle.insert(key, ids)),
            }
        });
    }
}

/// Eight bytes of the text, zeros behind its end.
#[inline(always)]
fn word_at(text: &[u8], start: usize) -> u64 {
    if let Some(bytes) = text.get(start..start + 8) {
        u64::from_le_bytes(bytes.try_into().expect("eight bytes"))
    } else {
        let mut padded = [0; 8];
        let rest = &text[start..];
        padded[..rest.len()].copy_from_slice(rest);
        u64::from_le_bytes(padded)
    }
}
