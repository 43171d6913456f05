//! Both tables as one, asked for a batch of pretokens at a time.
//!
//! Two passes over a batch. The first makes the keys ([`Requests`]) and asks the memory for
//! their lines, so that the second waits for none. In neither does the length of a pretoken
//! decide a branch: answers of the middle table of up to three ids are put into spare lines
//! of the short one, where the second pass finds them like any other. Some 35 instructions
//! per pretoken; on 160 MB of books (Zen 4) the second pass waits for the memory a third of
//! its time.

use std::mem::MaybeUninit;

use super::middle::Answer;
use super::requests::{BATCH, Requests};
use super::short::{Line, ShortTable, find_portable, middle_key};
use super::store::STEP;
use super::{MiddleTable, PackedIds};
use crate::TokenId;
use crate::pretokenize::Batch;

/// What pretokens become, as far as it is remembered.
pub struct WordCache {
    short: ShortTable,
    middle: MiddleTable,
    requests: Requests,
    /// Keys of those pretokens of the batch that are not for the short table, and what the
    /// middle table knows of them.
    other_keys: [u128; BATCH],
    answers: [Option<Answer>; BATCH],
}

/// The instructions that the inner loops are made of.
pub trait Instructions: Copy {
    /// Which of the four keys of a line is the one.
    fn find(self, line: &Line, key: u64) -> Option<usize>;

    /// Finds key and line of each pretoken of a batch.
    #[inline(always)]
    fn request(self, requests: &mut Requests, batch: Batch<'_>) {
        requests.find(batch);
    }
}

#[derive(Clone, Copy)]
pub struct Portable;

impl Instructions for Portable {
    #[inline(always)]
    fn find(self, line: &Line, key: u64) -> Option<usize> {
        find_portable(line, key)
    }
}

/// A value exists only where the processor has AVX2, BMI1 and BMI2.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub struct Avx2(());

#[cfg(target_arch = "x86_64")]
impl Avx2 {
    pub fn detect() -> Option<Self> {
        let detected = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("bmi1")
            && is_x86_feature_detected!("bmi2");
        detected.then_some(Self(()))
    }
}

#[cfg(target_arch = "x86_64")]
impl Instructions for Avx2 {
    #[inline(always)]
    fn find(self, line: &Line, key: u64) -> Option<usize> {
        // SAFETY: a value exists, so the processor has the instructions.
        unsafe { super::short::find_avx2(line, key) }
    }
}

/// As [`Avx2`], and AVX-512 with the extensions named here.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub struct Avx512(Avx2);

#[cfg(target_arch = "x86_64")]
impl Avx512 {
    pub fn detect() -> Option<Self> {
        let detected = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("popcnt");
        Avx2::detect().filter(|_| detected).map(Self)
    }
}

#[cfg(target_arch = "x86_64")]
impl Instructions for Avx512 {
    #[inline(always)]
    fn find(self, line: &Line, key: u64) -> Option<usize> {
        self.0.find(line, key)
    }

    #[inline(always)]
    fn request(self, requests: &mut Requests, batch: Batch<'_>) {
        // SAFETY: a value exists, so the processor has the instructions.
        unsafe { requests.find_avx512(batch) };
    }
}

impl WordCache {
    pub fn new() -> Self {
        Self {
            short: ShortTable::new(),
            middle: MiddleTable::new(),
            requests: Requests::new(),
            other_keys: [0; BATCH],
            answers: [None; BATCH],
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
        instructions: impl Instructions,
        mut encode: impl FnMut(&[u8], &mut dyn FnMut(&[u32])),
    ) {
        assert!(batch.ends.len() <= BATCH);
        instructions.request(&mut self.requests, batch);
        self.request_others(batch);
        let lines = self.short.lines().as_ptr();
        self.requests.prefetch(batch.ends.len(), lines);
        self.answer_others();
        // A pretoken has at most as many ids as bytes, and `STEP` places are written at once.
        let n_bytes = batch.ends.last().map_or(batch.start, |&end| end as usize) - batch.start;
        let n_before = out.len();
        out.reserve(n_bytes + STEP);
        let room = out.spare_capacity_mut();
        let (mut i, mut n) = (0, 0);
        while i < batch.ends.len() {
            (i, n) = self.copy_found(i, batch.ends.len(), instructions, room, n);
            if i < batch.ends.len() {
                let (start, end) = batch.pretoken(i);
                let pretoken = &batch.segment[start..end];
                n += match self.copy_answer(i, pretoken, &mut room[n..]) {
                    Some(n_ids) => n_ids,
                    None => self.encode_missed(i, pretoken, &mut room[n..], &mut encode),
                };
                i += 1;
            }
        }
        assert!(n <= n_bytes);
        // SAFETY: the `n` places from there on were written, one after the other.
        unsafe { out.set_len(n_before + n) };
    }

    /// Finds the keys for the middle table, and asks the memory for their lines.
    #[inline(always)]
    fn request_others(&mut self, batch: Batch<'_>) {
        let others = self.requests.others();
        for (&i, key) in others.iter().zip(&mut self.other_keys) {
            let (start, end) = batch.pretoken(i as usize);
            *key = MiddleTable::key_at(batch.segment, start, end);
            self.middle.prefetch(*key);
        }
    }

    /// Asks the middle table, and puts up to three ids into the spare lines.
    #[inline(always)]
    fn answer_others(&mut self) {
        for number in 0..self.requests.others().len() {
            let i = self.requests.others()[number] as usize;
            let answer = self.middle.get(self.other_keys[number]);
            let few = answer.and_then(Answer::few);
            self.short.set_spare(number, few.unwrap_or_default());
            self.requests.keys[i] = match few {
                Some(_) => ShortTable::SPARE_KEY,
                None => ShortTable::NO_KEY,
            };
            self.answers[number] = answer;
            if let (None, Some(answer)) = (few, answer) {
                self.middle.prefetch_stored(answer);
            }
        }
    }

    /// Writes the ids of pretoken `i` of the batch if the middle table had an answer that was
    /// too large for a spare line; their number.
    #[inline(always)]
    fn copy_answer<I: TokenId>(
        &self,
        i: usize,
        pretoken: &[u8],
        out: &mut [MaybeUninit<I>],
    ) -> Option<usize> {
        let number = ShortTable::spare_number(self.requests.lines[i])?;
        let answer = self.answers[number]?;
        self.middle.copy_to(answer, pretoken, out)
    }

    /// Second pass, from pretoken `i` of `n_words` up to one that is not found, writing
    /// from place `n` on; where it stopped, and the place behind what it wrote.
    #[inline(always)]
    fn copy_found<I: TokenId>(
        &self,
        mut i: usize,
        n_words: usize,
        instructions: impl Instructions,
        out: &mut [MaybeUninit<I>],
        mut n: usize,
    ) -> (usize, usize) {
        let lines = self.short.lines();
        while i < n_words {
            debug_assert!(i < BATCH && n + 4 <= out.len());
            // SAFETY: a batch holds at most `BATCH` pretokens. `request` wrote the number
            // of a line or of a spare line for each. There are as many places behind `n` as
            // bytes to come and four more, and a pretoken has at most as many ids as bytes.
            unsafe {
                let line = lines.get_unchecked(*self.requests.lines.get_unchecked(i) as usize);
                let key = *self.requests.keys.get_unchecked(i);
                let Some(place) = instructions.find(line, key) else {
                    break;
                };
                let ids = PackedIds(*line.get_unchecked(4 + place % 4));
                n += ids.unpack_to(out.as_mut_ptr().add(n).cast::<I>());
            }
            i += 1;
        }
        (i, n)
    }

    /// Writes the ids of pretoken `i` of the batch, which the passes did not find; their
    /// number. The next batch will find it, if there is a place for it.
    #[inline(never)]
    fn encode_missed<I: TokenId>(
        &mut self,
        i: usize,
        pretoken: &[u8],
        out: &mut [MaybeUninit<I>],
        encode: &mut impl FnMut(&[u8], &mut dyn FnMut(&[u32])),
    ) -> usize {
        let (key, short_key) = match ShortTable::spare_number(self.requests.lines[i]) {
            Some(number) => (self.other_keys[number], None),
            None => (
                middle_key(self.requests.keys[i]),
                Some(self.requests.keys[i]),
            ),
        };
        // Short ones with many ids are there, and what came earlier in this batch.
        if short_key.is_none_or(|key| self.short.may_be_elsewhere(key)) {
            let answer = self.middle.get_anywhere(key);
            let n_ids = answer.and_then(|answer| self.middle.copy_to(answer, pretoken, out));
            if let Some(n_ids) = n_ids {
                return n_ids;
            }
        }
        let mut n_ids = 0;
        encode(pretoken, &mut |ids| {
            n_ids = ids.len();
            for (place, &id) in out.iter_mut().zip(ids) {
                place.write(I::from_id(id));
            }
            self.remember(pretoken, short_key, ids);
        });
        n_ids
    }

    fn remember(&mut self, pretoken: &[u8], short_key: Option<u64>, token_ids: &[u32]) {
        if let Some(key) = short_key {
            let is_few = token_ids.len() <= PackedIds::MAX_IDS;
            if let Some(ids) = PackedIds::new(token_ids).filter(|_| is_few) {
                if let Some((key, ids)) = self.short.insert(key, ids) {
                    self.middle.insert_packed(middle_key(key), ids);
                }
                return;
            }
            self.short.note_elsewhere(key);
        }
        self.middle.insert(pretoken, token_ids);
    }
}
