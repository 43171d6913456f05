//! Room for numbers between two operations.

use std::ops::{Deref, DerefMut};

/// Numbers that begin on a cache line.
///
/// A vector of sixteen that lies across two lines is loaded twice as slowly.
pub struct Scratch {
    room: Vec<f32>,
    first: usize,
    n: usize,
}

impl Scratch {
    /// `n` zeros.
    pub fn new(n: usize) -> Self {
        const LINE: usize = 64;
        let room = vec![0.0; n + LINE / size_of::<f32>()];
        // At worst it stays where it is, which costs time alone.
        let first = room.as_ptr().align_offset(LINE);
        let first = first.min(room.len() - n);
        Self { room, first, n }
    }
}

impl Deref for Scratch {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.room[self.first..self.first + self.n]
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.room[self.first..self.first + self.n]
    }
}
