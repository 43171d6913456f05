//! Softmax attention of single queries over keys and values in blocks.

use std::ops::Range;

use super::lanes::{LANES, Lanes, dispatch};
use super::linear::dots;
use super::{InstructionSet, threads};
use crate::{Error, Result};

/// The sizes of a layer's heads.
#[derive(Clone, Copy)]
pub struct Heads {
    /// Heads of queries.
    pub n_heads: usize,
    /// Heads of keys and values, each shared by as many heads of queries in a row.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub d_head: usize,
}

/// Where the tokens of a ragged step stand, and where their sequences' keys are.
///
/// Checked once: every slot that a token of the plan asks for is within the pool.
pub struct Plan {
    block_size: usize,
    n_slots: usize,
    /// Of each token: its position, and where its sequence's table begins.
    tokens: Vec<(u32, u32)>,
    tables: Vec<u32>,
}

impl Plan {
    /// A plan of sequences with `lengths` new tokens at `positions`, whose blocks `tables` lists.
    pub fn new(
        positions: &[u32],
        lengths: &[usize],
        tables: &[Vec<u32>],
        block_size: usize,
        n_blocks: usize,
    ) -> Result<Self> {
        let fault = |what: String| Err(Error::Argument(what));
        let n_tokens = lengths
            .iter()
            .try_fold(0usize, |sum, &length| sum.checked_add(length));
        if lengths.len() != tables.len() || n_tokens != Some(positions.len()) {
            return fault(format!(
                "lengths must add up to {} positions of {} sequences, got {lengths:?}",
                positions.len(),
                tables.len()
            ));
        }
        if block_size == 0 {
            return fault("block_size must be at least 1, got 0".to_owned());
        }
        let (mut tokens, mut flat, mut rest) = (Vec::new(), Vec::new(), positions);
        for (&length, table) in lengths.iter().zip(tables) {
            let (own, others) = rest.split_at(length);
            rest = others;
            let room = table.len() * block_size;
            if let Some(position) = own.iter().find(|&&position| position as usize >= room) {
                return fault(format!(
                    "a block table must have room for position {position}, got {} blocks of \
                     {block_size}",
                    table.len()
                ));
            }
            if let Some(block) = table.iter().find(|&&block| block as usize >= n_blocks) {
                return fault(format!("a block must be below {n_blocks}, got {block}"));
            }
            let at = flat.len() as u32;
            tokens.extend(own.iter().map(|&position| (position, at)));
            flat.extend_from_slice(table);
        }
        Ok(Self {
            block_size,
            n_slots: n_blocks * block_size,
            tokens,
            tables: flat,
        })
    }

    /// New tokens of all sequences.
    pub fn n_tokens(&self) -> usize {
        self.tokens.len()
    }

    /// Where each token stands in its sequence.
    pub fn positions(&self) -> Vec<i64> {
        self.tokens.iter().map(|token| i64::from(token.0)).collect()
    }

    #[inline(always)]
    fn slot(&self, table: u32, position: usize) -> usize {
        let block = self.tables[table as usize + position / self.block_size];
        block as usize * self.block_size + position % self.block_size
    }

    /// The slots of a range of positions, as ranges that follow one another: a division for each
    /// block, where one for each position takes as long as what is computed with it.
    #[inline(always)]
    fn each_run(&self, table: u32, positions: Range<usize>, mut with: impl FnMut(Range<usize>)) {
        let (mut at, size) = (positions.start, self.block_size);
        while at < positions.end {
            let slot = self.slot(table, at);
            let n = (positions.end - at).min(size - slot % size);
            with(slot..slot + n);
            at += n;
        }
    }

    /// Keys that a token sees.
    fn n_seen(&self, token: usize, window: Option<usize>) -> usize {
        let n = self.tokens[token].0 as usize + 1;
        window.map_or(n, |window| n.min(window))
    }

    /// Keys that all tokens see together.
    pub fn n_keys(&self, window: Option<usize>) -> usize {
        (0..self.tokens.len())
            .map(|token| self.n_seen(token, window))
            .sum()
    }

    fn check(&self, width: usize, n_new: usize, n_stored: usize) -> Result<()> {
        let expected = (self.tokens.len() * width, self.n_slots * width);
        if (n_new, n_stored) == expected {
            return Ok(());
        }
        Err(Error::Argument(format!(
            "new and stored keys must have {expected:?} numbers, got {:?}",
            (n_new, n_stored)
        )))
    }
}

/// Puts the keys, or values, of the plan's tokens into their slots.
///
/// `width` is that of the heads of one token together.
pub fn append(plan: &Plan, width: usize, new: &[f32], stored: &mut [f32]) -> Result<()> {
    plan.check(width, new.len(), stored.len())?;
    for (&(position, table), new) in plan.tokens.iter().zip(new.chunks_exact(width.max(1))) {
        let slot = plan.slot(table, position as usize);
        stored[slot * width..(slot + 1) * width].copy_from_slice(new);
    }
    Ok(())
}

/// What each query of the plan sees: the keys up to its own position, at most `window` of them.
#[allow(clippy::too_many_arguments)] // Three matrices, their sizes, and where the tokens are.
pub fn attend(
    set: InstructionSet,
    plan: &Plan,
    heads: Heads,
    (q, keys, values): (&[f32], &[f32], &[f32]),
    window: Option<usize>,
    scale: f32,
    out: &mut [f32],
    n_threads: usize,
) -> Result<()> {
    let n_queries = plan.tokens.len() * heads.n_heads * heads.d_head;
    let Heads {
        n_heads,
        n_kv_heads,
        d_head,
    } = heads;
    if d_head == 0 || n_kv_heads == 0 || !n_heads.is_multiple_of(n_kv_heads) {
        return Err(Error::Argument(format!(
            "n_kv_heads must divide n_heads, got {n_kv_heads} and {n_heads}"
        )));
    }
    if window == Some(0) {
        return Err(Error::Argument(
            "window must be at least 1, got 0".to_owned(),
        ));
    }
    let width = n_kv_heads * d_head;
    plan.check(width, plan.tokens.len() * width, keys.len())?;
    if q.len() != n_queries || out.len() != n_queries || values.len() != keys.len() {
        return Err(Error::Argument(format!(
            "queries and output must have {n_queries} numbers, got {} and {}",
            q.len(),
            out.len()
        )));
    }
    let n_keys = plan.n_keys(window);
    // Softmax and reading count as much again as the products.
    let n_parts = threads::n_parts(n_threads, 4 * n_keys * n_heads * d_head);
    let items = divide(plan, n_kv_heads, window, n_keys, n_parts);
    let shared = &Shared {
        plan,
        heads,
        q,
        keys,
        values,
        window,
        scale,
    };
    let width = n_heads / n_kv_heads * d_head;
    let mut rest = out;
    let mut outputs = Vec::with_capacity(n_parts);
    for range in &items {
        let (own, others) = rest.split_at_mut(range.len() * width);
        outputs.push(std::sync::Mutex::new(Some(own)));
        rest = others;
    }
    threads::run(n_parts, &|part| {
        let own = outputs[part].lock().ok().and_then(|mut share| share.take());
        if let Some(out) = own {
            let first = items[part].start;
            dispatch!(set, attend_items(shared: &Shared<'_>, first: usize, out: &mut [f32]));
        }
    });
    Ok(())
}

/// Ranges of (token, head of keys), one for each part, with about as many keys each.
fn divide(
    plan: &Plan,
    n_kv_heads: usize,
    window: Option<usize>,
    n_keys: usize,
    n_parts: usize,
) -> Vec<Range<usize>> {
    let (n_items, total) = (plan.tokens.len() * n_kv_heads, n_keys * n_kv_heads);
    let (mut ranges, mut first, mut done) = (Vec::with_capacity(n_parts), 0, 0);
    for item in 0..n_items {
        done += plan.n_seen(item / n_kv_heads, window);
        if ranges.len() + 1 < n_parts && done * n_parts >= total * (ranges.len() + 1) {
            ranges.push(first..item + 1);
            first = item + 1;
        }
    }
    ranges.push(first..n_items);
    ranges.resize(n_parts, n_items..n_items);
    ranges
}

struct Shared<'a> {
    plan: &'a Plan,
    heads: Heads,
    q: &'a [f32],
    keys: &'a [f32],
    values: &'a [f32],
    window: Option<usize>,
    scale: f32,
}

#[inline(always)]
fn attend_items<L: Lanes>(shared: &Shared<'_>, first: usize, out: &mut [f32]) {
    let Heads {
        n_heads,
        n_kv_heads,
        d_head,
    } = shared.heads;
    let n_sharing = n_heads / n_kv_heads;
    let mut scores = Vec::new();
    let mut slots = Vec::new();
    for (item, out) in out.chunks_exact_mut(n_sharing * d_head).enumerate() {
        let (token, kv_head) = ((first + item) / n_kv_heads, (first + item) % n_kv_heads);
        let (position, table) = shared.plan.tokens[token];
        let end = position as usize + 1;
        let start = shared.window.map_or(0, |window| end.saturating_sub(window));
        slots.clear();
        shared.plan.each_run(table, start..end, |run| {
            slots.extend(run.map(|slot| (slot * n_kv_heads + kv_head) * d_head));
        });
        let at = (token * n_heads + kv_head * n_sharing) * d_head;
        let mut done = 0;
        while done < n_sharing {
            let n = (n_sharing - done).min(4);
            let part = done * d_head..(done + n) * d_head;
            let (q, out) = (&shared.q[at..][part.clone()], &mut out[part]);
            match n {
                4 => average::<L, 4>(shared, q, &slots, &mut scores, out),
                3 => average::<L, 3>(shared, q, &slots, &mut scores, out),
                2 => average::<L, 2>(shared, q, &slots, &mut scores, out),
                _ => average::<L, 1>(shared, q, &slots, &mut scores, out),
            }
            done += n;
        }
    }
}

/// Values averaged for R queries that share their keys, which begin at `slots`.
#[inline(always)]
fn average<L: Lanes, const R: usize>(
    shared: &Shared<'_>,
    q: &[f32],
    slots: &[usize],
    scores: &mut Vec<f32>,
    out: &mut [f32],
) {
    let d_head = shared.heads.d_head;
    let room = slots.len().next_multiple_of(LANES);
    scores.clear();
    scores.resize(R * room, f32::NEG_INFINITY);
    let mut queries: [&[f32]; R] = [&[]; R];
    for (query, q) in queries.iter_mut().zip(q.chunks_exact(d_head)) {
        *query = q;
    }
    let key = |slot: usize| &shared.keys[slot..slot + d_head];
    let mut j = 0;
    if R == 1 {
        let (chunks, _) = slots.as_chunks::<LANES>();
        for (chunk, scores) in chunks.iter().zip(scores.as_chunks_mut::<LANES>().0) {
            let mut sixteen: [&[f32]; LANES] = [&[]; LANES];
            for (one, slot) in sixteen.iter_mut().zip(chunk) {
                *one = key(*slot);
            }
            let [dots] = dots::<L, f32, 1, LANES>([queries[0]], sixteen);
            for (score, dot) in scores.iter_mut().zip(dots) {
                *score = dot * shared.scale;
            }
            j += LANES;
        }
    }
    while j + 4 <= slots.len() {
        let four = [
            key(slots[j]),
            key(slots[j + 1]),
            key(slots[j + 2]),
            key(slots[j + 3]),
        ];
        let dots = dots::<L, f32, R, 4>(queries, four);
        for (r, dots) in dots.iter().enumerate() {
            for (c, dot) in dots.iter().enumerate() {
                scores[r * room + j + c] = dot * shared.scale;
            }
        }
        j += 4;
    }
    while j < slots.len() {
        let dots = dots::<L, f32, R, 1>(queries, [key(slots[j])]);
        for (r, dots) in dots.iter().enumerate() {
            scores[r * room + j] = dots[0] * shared.scale;
        }
        j += 1;
    }
    let mut inverses = [0.0; R];
    for (inverse, scores) in inverses.iter_mut().zip(scores.chunks_exact_mut(room)) {
        *inverse = 1.0 / exponentials::<L>(scores, slots.len());
    }
    let mut d = 0;
    while d < d_head {
        let n = (d_head - d).min(4 * LANES);
        let begin = d;
        match n.div_ceil(LANES) {
            4 => weigh::<L, R, 4>(shared, slots, scores, inverses, begin, out),
            3 => weigh::<L, R, 3>(shared, slots, scores, inverses, begin, out),
            2 => weigh::<L, R, 2>(shared, slots, scores, inverses, begin, out),
            _ => weigh::<L, R, 1>(shared, slots, scores, inverses, begin, out),
        }
        d += n;
    }
}

/// The scores become their exponentials over the largest; returns the sum of the first `n`.
#[inline(always)]
fn exponentials<L: Lanes>(scores: &mut [f32], n: usize) -> f32 {
    let mut lanes = L::splat(f32::NEG_INFINITY);
    for chunk in scores.as_chunks::<LANES>().0 {
        // What is no number stays one: it compares false, and the sum below has it.
        lanes = L::load(chunk).max(lanes);
    }
    let (mut each, mut largest) = ([0.0; LANES], f32::NEG_INFINITY);
    lanes.store(&mut each);
    for score in each {
        largest = if score > largest { score } else { largest };
    }
    let shift = L::splat(-largest);
    let mut sums = L::splat(0.0);
    let (chunks, _) = scores.as_chunks_mut::<LANES>();
    let n_whole = n / LANES;
    for chunk in &mut chunks[..n_whole] {
        let e = L::load(chunk).add(shift).exp();
        e.store(chunk);
        sums = sums.add(e);
    }
    if !n.is_multiple_of(LANES) {
        let chunk = &mut chunks[n_whole];
        L::load(chunk).add(shift).exp().store(chunk);
        chunk[n % LANES..].fill(0.0);
        sums = sums.add(L::load(chunk));
    }
    sums.sum()
}

/// The dimensions from `d` on, C vectors of them, of the values weighted with the scores.
#[inline(always)]
fn weigh<L: Lanes, const R: usize, const C: usize>(
    shared: &Shared<'_>,
    slots: &[usize],
    scores: &[f32],
    inverses: [f32; R],
    d: usize,
    out: &mut [f32],
) {
    let d_head = shared.heads.d_head;
    let n = (d_head - d).min(C * LANES);
    let is_whole = n == C * LANES;
    let room = scores.len() / R;
    let mut sums = [[L::splat(0.0); C]; R];
    for (j, slot) in slots.iter().enumerate() {
        let value = &shared.values[slot + d..slot + d + n];
        let mut loaded = [L::splat(0.0); C];
        if is_whole {
            let (chunks, _) = value.as_chunks::<LANES>();
            for (loaded, chunk) in loaded.iter_mut().zip(chunks) {
                *loaded = L::load(chunk);
            }
        } else {
            for (loaded, chunk) in loaded.iter_mut().zip(value.chunks(LANES)) {
                *loaded = L::load_part(chunk);
            }
        }
        for (r, sums) in sums.iter_mut().enumerate() {
            let score = L::splat(scores[r * room + j]);
            for (sum, value) in sums.iter_mut().zip(loaded) {
                *sum = score.fma(value, *sum);
            }
        }
    }
    for ((sums, inverse), out) in sums.iter().zip(inverses).zip(out.chunks_exact_mut(d_head)) {
        for (sum, out) in sums.iter().zip(out[d..d + n].chunks_mut(LANES)) {
            sum.mul(L::splat(inverse)).store_part(out);
        }
    }
}
