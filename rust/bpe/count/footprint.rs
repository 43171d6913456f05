//! What the merge loop will need of memory, told before it begins.
//!
//! Fitted from above to the peak of resident memory on English books, text in many languages,
//! source code, text in Chinese characters, and random words over 2 to 52 letters, each with
//! vocabularies of 300 to 200,000. The estimate was never too low. On corpora of megabytes it
//! was too high by a fiftieth to two thirds, the more the smaller the peak, and by up to all for
//! Chinese and Japanese with 32,000 ids, and where most words are different random ones and there
//! is a merge for every 80 of their branches or more: nothing tells then whether training comes
//! down to pairs that occur once. It is also higher, up to threefold, where a tokenizer is
//! extended, whose merges shorten the words before training begins. A change of the merge
//! loop's memory changes the constants.

/// Numbers of the different pretokens on which the memory of the merge loop depends.
pub struct Footprint {
    vocab_size: u64,
    /// Pretokens of one byte hold no pair and are no words.
    n_words: u64,
    n_symbols: u64,
    /// Symbols behind what a word shares with the word before: the size of the tree of their
    /// beginnings, where they come in order, and more where they do not.
    n_branches: u64,
    /// Words that occur more than once.
    n_repeated: u64,
    /// Symbols of the others.
    n_single_symbols: u64,
    /// How often two bytes stand side by side in the words.
    pair_places: Vec<u64>,
    last: Vec<u8>,
}

impl Footprint {
    /// Of no words yet, from which a vocabulary of that size will be trained.
    pub fn new(vocab_size: usize) -> Self {
        Self {
            vocab_size: vocab_size as u64,
            n_words: 0,
            n_symbols: 0,
            n_branches: 0,
            n_repeated: 0,
            n_single_symbols: 0,
            pair_places: vec![0; 1 << 16],
            last: Vec::new(),
        }
    }

    /// Takes another different pretoken in. The estimate is closest where they ascend.
    pub fn add(&mut self, pretoken: &[u8], count: u64) {
        if pretoken.len() < 2 {
            return;
        }
        let n_symbols = pretoken.len() as u64;
        let both = self.last.iter().zip(pretoken);
        let shared = both.take_while(|(a, b)| a == b).count();
        self.n_words += 1;
        self.n_symbols += n_symbols;
        self.n_branches += n_symbols - shared as u64;
        if count > 1 {
            self.n_repeated += 1;
        } else {
            self.n_single_symbols += n_symbols;
        }
        for pair in pretoken.windows(2) {
            self.pair_places[usize::from(pair[0]) << 8 | usize::from(pair[1])] += 1;
        }
        self.last.truncate(shared);
        self.last.extend_from_slice(&pretoken[shared..]);
    }

    /// The most bytes that packed counts and the merge loop over them take.
    pub fn training_bytes(&self) -> u64 {
        self.training_bytes_from(self.packed_bytes())
    }

    /// The most bytes that training takes on counts that take so many bytes; they are gone when
    /// the words are made of them, before pairs are.
    pub fn training_bytes_from(&self, n_count_bytes: u64) -> u64 {
        let start = LEAST_BYTES + n_count_bytes + self.word_bytes();
        self.merge_loop_bytes().max(start)
    }

    /// The bytes of packed counts: the text, a length of mostly one and a count of mostly one
    /// or two.
    pub fn packed_bytes(&self) -> u64 {
        self.n_symbols + 3 * self.n_words
    }

    /// The most bytes that the merge loop takes.
    // None of the addends is negative.
    #[allow(clippy::cast_sign_loss)]
    fn merge_loop_bytes(&self) -> u64 {
        let n_pair_bytes = self.pair_bytes();
        let rest = self.place_bytes() + n_pair_bytes + self.heap_bytes(n_pair_bytes);
        let all = BYTES_PER_ID * self.vocab_size + self.word_bytes() + rest as u64;
        LEAST_BYTES + all / 20 * 19
    }

    fn n_merges(&self) -> f64 {
        self.vocab_size.saturating_sub(256).max(1) as f64
    }

    /// A header and the symbols of each word, rounded up to four bytes.
    fn word_bytes(&self) -> u64 {
        if self.vocab_size <= 1 << 16 {
            13 * self.n_words + 2 * self.n_symbols
        } else {
            12 * self.n_words + 4 * self.n_symbols
        }
    }

    /// The places of pairs: those of the start, those that merges add, at most two for each
    /// symbol but the last ones of a word, and what the merge that adds most notes by the way.
    fn place_bytes(&self) -> f64 {
        let first = self.n_symbols - self.n_words;
        let added = (2 * self.n_symbols).saturating_sub(5 * self.n_words);
        let largest = self.pair_places.iter().max().copied().unwrap_or_default();
        4.0 * (first as f64 + self.share_added() * added as f64) + 24.0 * largest as f64
    }

    /// The share of the places that all possible merges would add: the fewer pairs of bytes there
    /// are in effect, the sooner they have merged.
    fn share_added(&self) -> f64 {
        let n_places = (self.n_symbols - self.n_words).max(1) as f64;
        let shares = self.pair_places.iter().map(|&n| n as f64 / n_places);
        let entropy: f64 = shares.filter(|&p| p > 0.0).map(|p| -p * p.log2()).sum();
        interpolated(&SHARE_ADDED, self.n_merges().log2() - entropy)
    }

    /// The pairs themselves, and the table that finds them. In words that occur once there are
    /// more of them.
    fn pair_bytes(&self) -> f64 {
        let n_branches = self.n_branches.max(1) as f64;
        let single = self.n_single_symbols as f64 / self.n_symbols.max(1) as f64;
        let per_branch = 2.85 * (8_100.0 * self.n_merges() / n_branches).ln_1p() / 2f64.ln();
        (1.0 + SLOTS_PER_PAIR / 8.0) * (0.6 + 0.4 * single) * n_branches * per_branch.min(32.0)
    }

    /// The queue of pairs that occur once, which all stand in it together. It begins after each
    /// word that occurs more often has become a token, and in random words, by measurement,
    /// after a merge for every 50 to 20 branches.
    fn heap_bytes(&self, n_pair_bytes: f64) -> f64 {
        let n_merges = self.n_merges();
        if n_merges < (self.n_repeated as f64).max(self.n_branches as f64 / 80.0) {
            return 0.0;
        }
        n_pair_bytes / (1.0 + SLOTS_PER_PAIR / 8.0) * self.n_single_symbols as f64
            / self.n_symbols.max(1) as f64
    }
}

/// Tables of the start, and what the allocator keeps of counting. The constants below were fitted
/// when growing tables left holes; since they lie apart, all of it is a twentieth less at least.
const LEAST_BYTES: u64 = 2 << 20;
/// Sums of two sides, a token with its place and its head.
const BYTES_PER_ID: u64 = 64;

/// Of four bytes, for a pair of 32 bytes: two to four, as their number is a power of two.
const SLOTS_PER_PAIR: f64 = 4.0;

/// By the binary logarithm of merges over the pairs of bytes that there are in effect.
const SHARE_ADDED: [(f64, f64); 8] = [
    (-8.0, 0.0),
    (-4.0, 0.21),
    (0.0, 0.58),
    (0.6, 0.66),
    (5.0, 0.765),
    (8.0, 0.81),
    (11.0, 0.845),
    (16.0, 0.9),
];

/// The value at `x` of the line through the points, level beyond both ends.
fn interpolated(points: &[(f64, f64)], x: f64) -> f64 {
    let after = points.partition_point(|point| point.0 < x);
    if after == 0 || after == points.len() {
        return points[after.saturating_sub(1)].1;
    }
    let ((x0, y0), (x1, y1)) = (points[after - 1], points[after]);
    y0 + (y1 - y0) * (x - x0) / (x1 - x0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(words: &[&[u8]], count: u64, vocab_size: usize) -> Footprint {
        let mut footprint = Footprint::new(vocab_size);
        for word in words {
            footprint.add(word, count);
        }
        footprint
    }

    #[test]
    fn lines_go_through_their_points_and_end_level() {
        let points = [(0.0, 1.0), (2.0, 5.0)];
        let values = [-1.0, 0.0, 1.0, 2.0, 3.0].map(|x| interpolated(&points, x));
        assert!(
            values
                .iter()
                .zip([1.0, 1.0, 3.0, 5.0, 5.0])
                .all(|(a, b)| (a - b).abs() < 1e-9),
            "{values:?}"
        );
    }

    #[test]
    fn words_of_one_byte_count_for_nothing() {
        let nothing = of(&[], 1, 300).training_bytes();
        assert_eq!(of(&[b"a", b"b"], 1, 300).training_bytes(), nothing);
        assert!(of(&[b"ab"], 1, 300).training_bytes() > nothing);
    }

    #[test]
    fn words_in_any_order_need_no_less_than_in_order() {
        let sorted: [&[u8]; 4] = [b"abab", b"abac", b"bcbc", b"bcbd"];
        let mixed: [&[u8]; 4] = [b"bcbc", b"abab", b"bcbd", b"abac"];
        let (sorted, mixed) = (of(&sorted, 2, 400), of(&mixed, 2, 400));
        assert_eq!((sorted.n_branches, mixed.n_branches), (10, 16));
        assert!(mixed.training_bytes() >= sorted.training_bytes());
    }

    #[test]
    fn words_that_occur_once_fill_the_queue_only_when_all_others_are_tokens() {
        let words: [&[u8]; 2] = [b"abcd", b"efgh"];
        assert!(of(&words, 1, 300).heap_bytes(1e3) > 0.0);
        assert!(of(&words, 2, 300).heap_bytes(1e3) < 1e-9);
        let mut footprint = of(&words, 1, 300);
        for i in 0..100u8 {
            footprint.add(&[b'x', i], 2);
        }
        assert!(
            footprint.heap_bytes(1e3) < 1e-9,
            "44 merges make no 100 tokens"
        );
    }
}
