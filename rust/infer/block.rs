//! One layer of a model over the tokens of a step, in one call.
//!
//! The parts are those of the other modules, one after the other, so the bits are those of
//! calling them one by one; what goes away is what a call from Python costs, twenty times a layer.

use super::rows::{Activation, activate, rms_norm, rotate};
use super::scratch::Scratch;
use super::{Heads, InstructionSet, Plan, Weights, append, attend, linear};
use crate::{Error, Result};

/// x + attention(norm x), then that + SwiGLU(norm of it).
#[derive(Clone, Copy)]
pub struct Block<'a> {
    /// Sizes of the heads.
    pub heads: Heads,
    /// Gains of the norm before the attention and of that before the feed-forward layer.
    pub gains: [&'a [f32]; 2],
    /// That of both norms, under the root.
    pub epsilon: f32,
    /// What makes queries, keys, values, and the output of the heads.
    pub attention: [Weights<'a>; 4],
    /// What makes the activated numbers, their gates, and the output.
    pub feed_forward: [Weights<'a>; 3],
    /// Cosines and sines (positions, pairs) that queries and keys are turned by.
    pub turns: Option<(&'a [f32], &'a [f32])>,
    /// Keys that a query sees, its own among them.
    pub window: Option<usize>,
    /// Factor of the scores.
    pub scale: f32,
}

/// The block's output for the plan's tokens, whose keys and values are put into the pool.
pub fn run_block(
    set: InstructionSet,
    plan: &Plan,
    block: &Block<'_>,
    x: &[f32],
    (keys, values): (&mut [f32], &mut [f32]),
    out: &mut [f32],
    n_threads: usize,
) -> Result<()> {
    let n_tokens = plan.n_tokens();
    if n_tokens == 0 || !x.len().is_multiple_of(n_tokens) || out.len() != x.len() {
        return Err(Error::Argument(format!(
            "input and output must have a row for each of {n_tokens} tokens, got {} and {} numbers",
            x.len(),
            out.len()
        )));
    }
    let d_model = x.len() / n_tokens;
    let times = |x: &[f32], weights: Weights<'_>, n_inputs: usize| {
        let mut out = Scratch::new(weights.len() / n_inputs.max(1) * n_tokens);
        linear(set, x, weights, None, n_inputs, &mut out, n_threads).map(|()| out)
    };
    let [w_q, w_k, w_v, w_out] = block.attention;
    let (heads, width) = (block.heads, block.heads.n_kv_heads * block.heads.d_head);
    let mut normed = Scratch::new(x.len());
    rms_norm(
        set,
        x,
        Some(block.gains[0]),
        d_model,
        block.epsilon,
        &mut normed,
    )?;
    let (mut queries, mut new) = (times(&normed, w_q, d_model)?, times(&normed, w_k, d_model)?);
    if let Some(turns) = block.turns {
        queries = turned(plan, heads, turns, &queries)?;
        new = turned(plan, heads, turns, &new)?;
    }
    append(plan, width, &new, keys)?;
    append(plan, width, &times(&normed, w_v, d_model)?, values)?;
    let mut seen = Scratch::new(queries.len());
    let inputs = (&*queries, &*keys, &*values);
    let (window, scale) = (block.window, block.scale);
    attend(
        set, plan, heads, inputs, window, scale, &mut seen, n_threads,
    )?;
    add(x, &times(&seen, w_out, heads.n_heads * heads.d_head)?, out)?;

    let [activated, gate, w2] = block.feed_forward;
    rms_norm(
        set,
        out,
        Some(block.gains[1]),
        d_model,
        block.epsilon,
        &mut normed,
    )?;
    let (raw, gate) = (
        times(&normed, activated, d_model)?,
        times(&normed, gate, d_model)?,
    );
    let mut hidden = Scratch::new(raw.len());
    activate(set, Activation::Silu, &raw, Some(&gate), &mut hidden)?;
    let added = times(&hidden, w2, hidden.len() / n_tokens)?;
    normed.copy_from_slice(out);
    add(&normed, &added, out)
}

/// Heads turned by the angles of their tokens.
fn turned(plan: &Plan, heads: Heads, turns: (&[f32], &[f32]), x: &[f32]) -> Result<Scratch> {
    let mut out = Scratch::new(x.len());
    rotate(x, &plan.positions(), turns, heads.d_head / 2, &mut out)?;
    Ok(out)
}

fn add(x: &[f32], y: &[f32], out: &mut [f32]) -> Result<()> {
    if y.len() != out.len() {
        return Err(Error::Argument(format!(
            "what is added must have {} numbers, got {}",
            out.len(),
            y.len()
        )));
    }
    for ((out, x), y) in out.iter_mut().zip(x).zip(y) {
        *out = x + y;
    }
    Ok(())
}
