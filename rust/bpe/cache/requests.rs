//! What is asked of the tables for each pretoken of a batch: a key, and a line.

use std::hint::select_unpredictable;

use super::short::{Line, SHORT_BYTES, ShortTable};
use crate::memory::prefetch_at;
use crate::pretokenize::Batch;

/// Pretokens that are looked up together.
pub const BATCH: usize = ShortTable::N_SPARE;

/// Pretokens that one vector holds.
const LANES: usize = 8;

/// Key and line of each pretoken of a batch; aligned so that no vector straddles two lines.
#[repr(align(64))]
pub struct Requests {
    pub keys: [u64; BATCH],
    pub lines: [u32; BATCH],
    /// Which pretokens are not for the short table.
    others: [u32; BATCH + LANES],
    n_others: usize,
}

impl Requests {
    pub fn new() -> Self {
        Self {
            keys: [0; BATCH],
            lines: [0; BATCH],
            others: [0; BATCH + LANES],
            n_others: 0,
        }
    }

    /// The numbers of the pretokens that are not for the short table; each has the spare line
    /// of its place here.
    #[inline(always)]
    pub fn others(&self) -> &[u32] {
        &self.others[..self.n_others]
    }

    /// The eight bytes from the start of each pretoken on, in place of the keys.
    #[inline(always)]
    fn load_words(&mut self, batch: Batch<'_>) {
        let text = batch.segment;
        let start_of = |i: usize| match i.checked_sub(1) {
            Some(before) => batch.ends[before] as usize,
            None => batch.start,
        };
        let mut n = batch.ends.len().min(BATCH);
        while n > 0 && start_of(n - 1) + 8 > text.len() {
            n -= 1;
            self.keys[n] = word_at(text, start_of(n));
        }
        if n == 0 {
            return;
        }
        self.keys[0] = word_at(text, batch.start);
        for (word, &start) in self.keys[1..n].iter_mut().zip(batch.ends) {
            // SAFETY: starts ascend, and that of `n - 1` is eight bytes before the end.
            let bytes = unsafe { text.as_ptr().add(start as usize).cast::<[u8; 8]>().read() };
            *word = u64::from_le_bytes(bytes);
        }
    }

    /// Longest pretoken for the short table in a batch: zero padding would make one that ends
    /// with NUL the key of a shorter one.
    #[inline(always)]
    fn longest(batch: Batch<'_>) -> u32 {
        let end = batch.ends.last().map_or(batch.start, |&end| end as usize);
        match memchr::memchr(0, &batch.segment[batch.start..end]) {
            Some(_) => 0,
            None => SHORT_BYTES as u32,
        }
    }

    /// Finds key and line of each pretoken of a batch.
    #[inline(always)]
    pub fn find(&mut self, batch: Batch<'_>) {
        self.load_words(batch);
        let longest = Self::longest(batch);
        let (mut n_others, mut start) = (0, batch.start as u32);
        let requests = self.keys.iter_mut().zip(&mut self.lines);
        for (i, ((key, line), &end)) in (0..).zip(requests.zip(batch.ends)) {
            let len = end - start;
            // The bits of what follows the pretoken leave at the top; shifts are modulo 64.
            *key <<= (8 * len).wrapping_neg() % 64;
            let is_other = len > longest;
            let (spare, line_of_key) = (ShortTable::spare(n_others), ShortTable::line_of(*key));
            // Which it is cannot be foretold, so nothing branches on it.
            *line = select_unpredictable(is_other, spare, line_of_key);
            self.others[n_others % BATCH] = i;
            n_others += usize::from(is_other);
            start = end;
        }
        self.n_others = n_others;
    }

    /// As [`Requests::find`], eight at a time.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512dq,avx512vl,bmi1,bmi2,popcnt")]
    #[inline]
    pub fn find_avx512(&mut self, batch: Batch<'_>) {
        #[allow(clippy::wildcard_imports)]
        // Two dozen intrinsics, each named where it is used.
        use std::arch::x86_64::*;

        self.load_words(batch);
        let longest = _mm256_set1_epi32(Self::longest(batch).cast_signed());
        let counting = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        let from = |first: usize| {
            _mm256_add_epi32(_mm256_set1_epi32((first as u32).cast_signed()), counting)
        };
        let mut n_others = 0;
        let mut last_ends = _mm256_set1_epi32((batch.start as u32).cast_signed());
        let keys = self.keys.as_chunks_mut::<LANES>().0;
        let lines = self.lines.as_chunks_mut::<LANES>().0;
        for ((first, ends), (keys, lines)) in (0..)
            .step_by(LANES)
            .zip(batch.ends.chunks(LANES))
            .zip(keys.iter_mut().zip(lines))
        {
            let mask = 0xFF >> (LANES - ends.len());
            // SAFETY: as many are loaded as there are ends.
            let ends = unsafe { _mm256_maskz_loadu_epi32(mask, ends.as_ptr().cast()) };
            let starts = _mm256_alignr_epi32::<7>(ends, last_ends);
            last_ends = ends;
            let lens = _mm256_sub_epi32(ends, starts);
            let are_others = _mm256_mask_cmpgt_epu32_mask(mask, lens, longest);
            // The bits of what follows the pretoken leave at the top.
            let shifts = _mm256_slli_epi32::<3>(_mm256_sub_epi32(_mm256_setzero_si256(), lens));
            let shifts = _mm256_and_si256(shifts, _mm256_set1_epi32(63));
            // SAFETY: the reference is to eight words.
            let words = unsafe { _mm512_loadu_si512(keys.as_ptr().cast()) };
            let shifted = _mm512_sllv_epi64(words, _mm512_cvtepu32_epi64(shifts));
            let factor = _mm512_set1_epi64(ShortTable::FACTOR.cast_signed());
            let products = _mm512_mullo_epi64(shifted, factor);
            let found = _mm512_srli_epi64::<{ 64 - ShortTable::LINE_BITS }>(products);
            let found = _mm512_cvtepi64_epi32(found);
            let spare = from(ShortTable::spare(n_others) as usize);
            let found = _mm256_mask_expand_epi32(found, are_others, spare);
            let others = _mm256_maskz_compress_epi32(are_others, from(first));
            // SAFETY: the references are to eight words each, and eight numbers are written
            // from a place on that is not beyond the last of the batch.
            unsafe {
                _mm512_storeu_si512(keys.as_mut_ptr().cast(), shifted);
                _mm256_storeu_si256(lines.as_mut_ptr().cast(), found);
                let others_from = self.others.as_mut_ptr().add(n_others.min(BATCH));
                _mm256_storeu_si256(others_from.cast(), others);
            }
            n_others += are_others.count_ones() as usize;
        }
        self.n_others = n_others;
    }

    /// Asks the memory for the lines of the first `n` pretokens.
    #[inline(always)]
    pub fn prefetch(&self, n: usize, lines: *const Line) {
        for &line in &self.lines[..n] {
            prefetch_at(lines.wrapping_add(line as usize));
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Key, line and spare line as their definitions say.
    fn expected(batch: Batch<'_>) -> Vec<(Option<u64>, u32)> {
        let has_nul = batch
            .pretokens()
            .any(|(a, b)| batch.segment[a..b].contains(&0));
        let mut n_others = 0;
        let requests = batch.pretokens().map(|(start, end)| {
            if end - start > 8 || has_nul {
                n_others += 1;
                return (None, ShortTable::spare(n_others - 1));
            }
            let mut bytes = [0; 8];
            bytes[8 - (end - start)..].copy_from_slice(&batch.segment[start..end]);
            let key = u64::from_le_bytes(bytes);
            (Some(key), ShortTable::line_of(key))
        });
        requests.collect()
    }

    fn check(requests: &Requests, batch: Batch<'_>) {
        let expected = expected(batch);
        let mut others = Vec::new();
        for (i, &(key, line)) in (0u32..).zip(&expected) {
            let at = i as usize;
            assert_eq!(requests.lines[at], line, "{i} of {:?}", batch.ends);
            assert!(key.is_none_or(|key| requests.keys[at] == key), "{i}");
            if key.is_none() {
                others.push(i);
            }
        }
        assert_eq!(requests.others(), others);
    }

    #[test]
    fn every_way_finds_what_the_definition_says() {
        let mut random = crate::random::random_from(1);
        let mut requests = Requests::new();
        for case in 0..3_000 {
            let longest = 1 + random(20);
            let n = random(1 + BATCH as u64);
            let start = random(30) as usize;
            let mut ends = Vec::new();
            let mut at = start as u32;
            for _ in 0..n {
                at += 1 + random(longest) as u32;
                ends.push(at);
            }
            let mut text: Vec<u8> = (0..at + random(10) as u32)
                .map(|_| 1 + random(255) as u8)
                .collect();
            if case % 5 == 0 && at > 0 {
                text[random(u64::from(at)) as usize] = 0;
            }
            let batch = Batch {
                segment: &text,
                start,
                ends: &ends,
            };
            requests.find(batch);
            check(&requests, batch);
            #[cfg(target_arch = "x86_64")]
            if super::super::Avx512::detect().is_some() {
                // SAFETY: the processor has the instructions.
                unsafe { requests.find_avx512(batch) };
                check(&requests, batch);
            }
        }
    }
}
