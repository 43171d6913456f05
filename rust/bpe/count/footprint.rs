//! What the merge loop will need of memory, told before it begins.

/// Words and symbols that the merge loop begins with.
#[derive(Clone, Copy, Debug, Default)]
pub struct Footprint {
    n_words: u64,
    n_symbols: u64,
}

impl Footprint {
    /// Takes another different pretoken in; those of one byte hold no pair and are dropped.
    #[inline]
    pub fn add(&mut self, pretoken: &[u8]) {
        if pretoken.len() > 1 {
            self.n_words += 1;
            self.n_symbols += pretoken.len() as u64;
        }
    }

    /// The most bytes that packed counts and the merge loop over them take together.
    pub fn training_bytes(&self) -> u64 {
        // Packed: the bytes, a length of mostly one and a count of mostly one or two.
        self.merge_loop_bytes() + self.n_symbols + 4 * self.n_words
    }

    /// The most bytes that the merge loop takes, by measurement and rounded up.
    pub fn merge_loop_bytes(&self) -> u64 {
        let crowded = BYTES_PER_CROWDED_SYMBOL * self.n_symbols.min(CROWDED_SYMBOLS);
        let symbols = BYTES_PER_SYMBOL * self.n_symbols + crowded;
        BYTES_AT_LEAST + BYTES_PER_WORD * self.n_words + symbols
    }
}

// Fitted from above to the resident memory of training over that of packed counts, with words
// and symbols in millions: 72 MB at 0.28 and 2.3 (random letters, which make the most pairs), 344
// at 1.88 and 18.6, 477 at 3.11 and 31.2 (text of many kinds). The arrays of the start are 20
// bytes a word and 8 a symbol; the rest is what their growth leaves over, and the pairs, whose
// number grows less than the text's; the least is what the allocator kept of counting. A change of the merge loop's memory changes these.
const BYTES_AT_LEAST: u64 = 16 << 20;
const BYTES_PER_WORD: u64 = 24;
const BYTES_PER_SYMBOL: u64 = 13;
const BYTES_PER_CROWDED_SYMBOL: u64 = 14;
const CROWDED_SYMBOLS: u64 = 4_000_000;
