//! Where n-grams may end: a filter of bits over hashes of words in a row.

const BASE: u64 = 0x9E37_79B9_7F4A_7C15;
/// Bits of a gate for each n-gram, at least.
const GATE_BITS: usize = 16;

/// Lets by the places in a text where n-grams of some lengths may end: three bits in one place
/// for the hash of each n-gram's last words, as many as the shortest of these lengths has. Of
/// other hashes one in some hundred finds all three set, and looks into the table. Tried and
/// dropped: one bit of as many (the table cost more than all else), and a gate for each length
/// (54 MB/s with six lengths, of which five were for few items).
pub(super) struct Gate {
    pub n_words: usize,
    /// What takes the words before the last `n_words` out of the polynomial.
    pub power: u64,
    shift: u32,
    places: Vec<u64>,
    /// The lengths, descending, and their powers.
    pub lengths: Vec<(usize, u64)>,
}

impl Gate {
    pub fn new(lengths: Vec<usize>, n_ngrams: usize) -> Self {
        let n_places = (n_ngrams * GATE_BITS / 64).next_power_of_two().max(2);
        let n_words = lengths.last().copied().unwrap_or_default();
        Self {
            n_words,
            power: power(n_words),
            // The upper bits: the lower ones of a polynomial depend on fewer bits of the words.
            shift: 64 - n_places.trailing_zeros(),
            places: vec![0; n_places],
            lengths: lengths.into_iter().map(|n| (n, power(n))).collect(),
        }
    }

    #[inline]
    fn place_of(&self, hash: u64) -> (usize, u64) {
        let mixed = hash.wrapping_mul(BASE);
        let bits = mixed >> 12;
        let mask = 1 << (bits & 63) | 1 << (bits >> 6 & 63) | 1 << (bits >> 12 & 63);
        ((mixed >> self.shift) as usize, mask)
    }

    pub fn open_for(&mut self, hash: u64) {
        let (place, mask) = self.place_of(hash);
        self.places[place] |= mask;
    }

    #[inline]
    pub fn is_open(&self, hash: u64) -> bool {
        let (place, mask) = self.place_of(hash);
        self.places[place] & mask == mask
    }
}

/// The polynomial of a sequence of word hashes with one more word.
pub(super) fn extend(sum: u64, word: u64) -> u64 {
    sum.wrapping_mul(BASE).wrapping_add(word)
}

/// What takes all words but the last n out of a polynomial.
fn power(n: usize) -> u64 {
    (0..n).fold(1, |product: u64, _| product.wrapping_mul(BASE))
}
