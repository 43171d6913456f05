//! Numbers joined pair by pair: twin of `rslm.data.dedup.union_find`.

/// A partition of 0..n, at first into single numbers; 8 bytes a number.
///
/// The root of a set is its least number, and knows how many are in it.
pub(super) struct UnionFind {
    /// The number above; of a root the size of its set with the highest bit.
    above: Vec<u64>,
}

const IS_ROOT: u64 = 1 << 63;

impl UnionFind {
    pub(super) fn new(n: usize) -> Self {
        Self {
            above: vec![IS_ROOT | 1; n],
        }
    }

    /// The least number of a set. Every other step of the way is shortened to the step after
    /// the next.
    pub(super) fn find(&mut self, mut number: usize) -> usize {
        loop {
            let above = self.above[number];
            if above & IS_ROOT != 0 {
                return number;
            }
            let beyond = self.above[above as usize];
            if beyond & IS_ROOT != 0 {
                return above as usize;
            }
            self.above[number] = beyond;
            number = beyond as usize;
        }
    }

    pub(super) fn union(&mut self, left: usize, right: usize) {
        let (left, right) = (self.find(left), self.find(right));
        if left != right {
            let (root, other) = (left.min(right), left.max(right));
            self.above[root] += self.above[other] & !IS_ROOT;
            self.above[other] = root as u64;
        }
    }

    /// Members of the set of a root.
    pub(super) fn size(&self, root: usize) -> u64 {
        self.above[root] & !IS_ROOT
    }

    pub(super) fn len(&self) -> usize {
        self.above.len()
    }
}
