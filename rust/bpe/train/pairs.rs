//! Pairs of symbols and the words that hold them.

use super::words::Place;

/// Two adjacent symbols. Its words are complete, and some may not hold it any more.
#[derive(Clone, Copy)]
pub(super) struct Pair {
    pub left: u32,
    pub right: u32,
    /// Its words in [`Pairs::places`], ascending; one that holds it twice may stand twice.
    pub first_place: usize,
    pub n_places: u32,
    /// The pair filed before it under the same count.
    pub next: u32,
    /// How often it stands in the text. It may be filed under what this was before.
    pub count: u64,
}

/// All pairs that may yet merge.
#[derive(Default)]
pub(super) struct Pairs {
    pub all: Vec<Pair>,
    pub places: Vec<Place>,
}

/// What stands on one side of a new symbol.
pub(super) struct Side {
    /// By id of the neighbour.
    sums: Vec<Sum>,
    /// The neighbours met, each once.
    touched: Vec<u32>,
    /// Neighbours and words, in the order of the words.
    met: Vec<(u32, Place)>,
}

#[derive(Clone, Copy, Default)]
struct Sum {
    count: u64,
    n_places: u32,
    /// Where the next word goes, from the first place of this merge.
    cursor: u32,
}

/// The cursor of a neighbour with which the new symbol never merges.
const NOWHERE: u32 = u32::MAX;

impl Side {
    /// For ids below `n_ids`.
    pub fn new(n_ids: usize) -> Self {
        Self {
            sums: vec![Sum::default(); n_ids],
            touched: Vec::new(),
            met: Vec::new(),
        }
    }

    /// A neighbour stands beside the new symbol in a word of that count.
    #[inline(always)]
    pub fn meet(&mut self, neighbour: u32, place: Place, count: u64) {
        let sum = &mut self.sums[neighbour as usize];
        if sum.n_places == 0 {
            self.touched.push(neighbour);
        }
        sum.count += count;
        sum.n_places += 1;
        self.met.push((neighbour, place));
    }

    /// The neighbours, and how often each was met.
    pub fn counts(&self) -> impl Iterator<Item = (u32, u64)> {
        let count_of = |&neighbour: &u32| (neighbour, self.sums[neighbour as usize].count);
        self.touched.iter().map(count_of)
    }

    /// Makes a pair of each neighbour that `pair_of` accepts with its count, and forgets
    /// them all. `pair_of` says left, right and whether they are to be a pair.
    pub fn drain(
        &mut self,
        pairs: &mut Pairs,
        mut pair_of: impl FnMut(u32, u64) -> Option<(u32, u32)>,
        mut file: impl FnMut(&mut Pairs, u32, u64),
    ) {
        let base = pairs.places.len();
        let mut n_places = 0;
        for &neighbour in &self.touched {
            let sum = &mut self.sums[neighbour as usize];
            let Some((left, right)) = pair_of(neighbour, sum.count) else {
                sum.cursor = NOWHERE;
                continue;
            };
            sum.cursor = n_places;
            pairs.all.push(Pair {
                left,
                right,
                first_place: base + n_places as usize,
                n_places: sum.n_places,
                next: 0,
                count: sum.count,
            });
            n_places += sum.n_places;
            file(pairs, pairs.all.len() as u32 - 1, sum.count);
        }
        pairs.places.resize(base + n_places as usize, 0);
        let places = &mut pairs.places[base..];
        for &(neighbour, place) in &self.met {
            let cursor = &mut self.sums[neighbour as usize].cursor;
            if *cursor != NOWHERE {
                places[*cursor as usize] = place;
                *cursor += 1;
            }
        }
        for &neighbour in &self.touched {
            self.sums[neighbour as usize] = Sum::default();
        }
        self.touched.clear();
        self.met.clear();
    }
}
