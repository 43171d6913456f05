//! The arithmetic of running a model on a CPU, each number computed by itself.
//!
//! An output of a matrix product, a norm or an attention is reduced in one order that its own
//! row alone fixes: [`lanes::LANES`] partial sums along the row, fused multiply-adds from the
//! front to the back, the partial sums added up as a tree. Tiles, threads, the batch and the
//! instruction set decide when it is computed, never how, so a token's numbers are the same
//! bits whether it is decoded alone, in a batch, or as a part of its whole sequence.
//!
//! `PyTorch`'s products choose their order by the shape, and its elementwise loops compute the
//! last few numbers of an array by other functions than the rest: neither can promise this.
//! The weights are read where `PyTorch` has them, row by row; nothing is packed or kept twice.
//!
//! `unsafe` is in `x86` (loads and stores), in the dispatch of [`lanes`] (calls for an instruction
//! set that was detected), in [`linear`] (threads write columns of one output) and in [`threads`]
//! (a job outlives no call).

mod attention;
mod block;
mod lanes;
mod linear;
mod rows;
mod scratch;
mod threads;
#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(test)]
mod tests;

pub use attention::{Heads, Plan, append, attend};
pub use block::{Block, run_block};
pub use lanes::InstructionSet;
pub use linear::{Weights, linear, quantize_rows};
pub use rows::{Activation, activate, rms_norm, rotate};
