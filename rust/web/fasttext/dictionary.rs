//! From a text to the rows of its words, of the n-grams of their characters and of n-grams of
//! words.
//!
//! Source: `dictionary.cc` of fastText 0.9.2.

use super::Arguments;

const BASIS: u32 = 2166136261;
const PRIME: u32 = 16777619;
const END: &[u8] = b"</s>";
const LABEL: &[u8] = b"__label__";
/// Words in a row whose hashes share a place. More are no accident, and would make each word of
/// a text cost as much.
const MAX_PROBES: usize = 1000;
/// A bit for each bucket of a pruned model: 32 MB.
const MAX_BITS: u32 = 1 << 28;

/// Words and buckets with their rows.
pub struct Dictionary {
    word_ngrams: usize,
    minn: usize,
    maxn: usize,
    bucket: Divisor,
    words: Words,
    /// Rows of each word that the model knows, one word's behind the other's.
    rows: Vec<u32>,
    ends: Vec<usize>,
    n_words: u32,
    buckets: Buckets,
}

/// Which buckets have rows.
enum Buckets {
    All,
    None,
    Pruned(Pruned),
}

impl Dictionary {
    /// Of words and labels, each in the order of their rows; an error is why not.
    pub fn new(
        arguments: &Arguments,
        words: &[Vec<u8>],
        labels: &[&[u8]],
        pruned: Option<&[(i32, u32)]>,
    ) -> Result<Self, &'static str> {
        let buckets = match pruned {
            None => Buckets::All,
            Some([]) => Buckets::None,
            Some(_) if arguments.bucket > MAX_BITS => {
                return Err("a pruned model has too many buckets");
            }
            Some(pairs) => Buckets::Pruned(Pruned::new(arguments.bucket, words.len(), pairs)),
        };
        let entries: Vec<&[u8]> = words
            .iter()
            .map(Vec::as_slice)
            .chain(labels.iter().copied())
            .collect();
        let mut dictionary = Self {
            word_ngrams: arguments.word_ngrams,
            minn: arguments.minn,
            maxn: arguments.maxn,
            bucket: Divisor::new(arguments.bucket.max(1)),
            words: Words::new(&entries)?,
            rows: Vec::new(),
            ends: Vec::with_capacity(words.len()),
            n_words: words.len() as u32,
            buckets,
        };
        let mut marked = Vec::new();
        for (row, word) in words.iter().enumerate() {
            let mut rows = std::mem::take(&mut dictionary.rows);
            rows.push(row as u32);
            if word != END {
                dictionary.push_ngrams(word, &mut marked, &mut rows);
            }
            dictionary.ends.push(rows.len());
            dictionary.rows = rows;
        }
        Ok(dictionary)
    }

    /// Gives `take` all rows of a text, in fastText's order, some thousands at a time.
    ///
    /// A line end is a blank like others. What fastText takes for a mark is to be made text of
    /// before, by [`super::one_line`].
    pub fn for_rows(&self, text: &[u8], mut take: impl FnMut(&[u32])) {
        const GROUP: usize = 4096;
        let (mut rows, mut marked, mut hashes) = (Vec::new(), Vec::new(), Vec::new());
        let tokens = Tokens { text, at: 0 };
        for (token, hash) in tokens.chain(std::iter::once((END, hash_of(END)))) {
            let is_word = match self.words.find(token, hash) {
                Some(word) if word < self.n_words => {
                    let word = word as usize;
                    let start = if word == 0 { 0 } else { self.ends[word - 1] };
                    rows.extend_from_slice(&self.rows[start..self.ends[word]]);
                    true
                }
                Some(_) => false,
                None => {
                    let is_label = token.starts_with(LABEL);
                    if !is_label && token != END {
                        self.push_ngrams(token, &mut marked, &mut rows);
                    }
                    !is_label
                }
            };
            if is_word && self.word_ngrams > 1 {
                hashes.push(hash as i32);
            }
            if rows.len() >= GROUP {
                take(&rows);
                rows.clear();
            }
        }
        for (at, &first) in hashes.iter().enumerate() {
            // Both are widened with their signs.
            let mut hash = i64::from(first) as u64;
            for &next in hashes[at + 1..].iter().take(self.word_ngrams - 1) {
                hash = hash
                    .wrapping_mul(116049371)
                    .wrapping_add(i64::from(next) as u64);
                let bucket = (hash % u64::from(self.bucket.divisor)) as u32;
                self.push_bucket(bucket, &mut rows);
            }
            if rows.len() >= GROUP {
                take(&rows);
                rows.clear();
            }
        }
        take(&rows);
    }

    fn push_bucket(&self, bucket: u32, rows: &mut Vec<u32>) {
        match &self.buckets {
            Buckets::All => rows.push(self.n_words + bucket),
            Buckets::None => {}
            Buckets::Pruned(pruned) => rows.extend(pruned.row(bucket)),
        }
    }

    /// Rows of the n-grams of a word's characters, with a mark at both ends.
    fn push_ngrams(&self, word: &[u8], marked: &mut Vec<u8>, rows: &mut Vec<u32>) {
        if self.maxn == 0 || matches!(self.buckets, Buckets::None) {
            return;
        }
        marked.clear();
        marked.push(b'<');
        marked.extend_from_slice(word);
        marked.push(b'>');
        for_ngrams(marked, self.minn, self.maxn, |hash| {
            self.push_bucket(self.bucket.rest(hash), rows);
        });
    }
}

/// Gives `take` the hashes of n-grams of characters; of single ones, not the first and last.
fn for_ngrams(word: &[u8], minn: usize, maxn: usize, mut take: impl FnMut(u32)) {
    for start in 0..word.len() {
        if is_inside(word[start]) {
            continue;
        }
        let (mut hash, mut at) = (BASIS, start);
        for n in 1..=maxn {
            if at >= word.len() {
                break;
            }
            hash = step(hash, word[at]);
            at += 1;
            while at < word.len() && is_inside(word[at]) {
                hash = step(hash, word[at]);
                at += 1;
            }
            if n >= minn && !(n == 1 && (start == 0 || at == word.len())) {
                take(hash);
            }
        }
    }
}

/// Whether a byte goes on with a character of UTF-8.
fn is_inside(byte: u8) -> bool {
    byte & 0xC0 == 0x80
}

/// FNV-1a, to which a byte is a signed number.
fn step(hash: u32, byte: u8) -> u32 {
    (hash ^ byte.cast_signed() as u32).wrapping_mul(PRIME)
}

fn hash_of(word: &[u8]) -> u32 {
    word.iter().fold(BASIS, |hash, &byte| step(hash, byte))
}

pub fn is_blank(byte: u8) -> bool {
    byte <= b' ' && (1_u64 << byte) & BLANKS != 0
}

/// Blank, line end, carriage return, tab, vertical tab, form feed and NUL.
const BLANKS: u64 = 1 << 32 | 1 << 10 | 1 << 13 | 1 << 9 | 1 << 11 | 1 << 12 | 1;

/// Words between blanks, each with its hash.
struct Tokens<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Iterator for Tokens<'a> {
    type Item = (&'a [u8], u32);

    fn next(&mut self) -> Option<Self::Item> {
        while is_blank(*self.text.get(self.at)?) {
            self.at += 1;
        }
        let (start, mut hash) = (self.at, BASIS);
        while let Some(&byte) = self.text.get(self.at)
            && !is_blank(byte)
        {
            hash = step(hash, byte);
            self.at += 1;
        }
        Some((&self.text[start..self.at], hash))
    }
}

/// Words by their hashes: open addressing, the last of equal words.
struct Words {
    bytes: Vec<u8>,
    ends: Vec<usize>,
    /// (hash, number + 1).
    places: Vec<(u32, u32)>,
}

impl Words {
    fn new(entries: &[&[u8]]) -> Result<Self, &'static str> {
        let mut words = Self {
            bytes: entries.concat(),
            ends: Vec::with_capacity(entries.len()),
            places: vec![(0, 0); (2 * entries.len()).next_power_of_two()],
        };
        let mut end = 0;
        for (number, word) in entries.iter().enumerate() {
            end += word.len();
            words.ends.push(end);
            let hash = hash_of(word);
            let place = words.place_of(word, hash);
            let place = place.ok_or("too many words have one hash")?;
            words.places[place] = (hash, number as u32 + 1);
        }
        Ok(words)
    }

    fn find(&self, word: &[u8], hash: u32) -> Option<u32> {
        self.places[self.place_of(word, hash)?].1.checked_sub(1)
    }

    /// Where the word is or would be.
    fn place_of(&self, word: &[u8], hash: u32) -> Option<usize> {
        let mask = self.places.len() - 1;
        let mut place = hash as usize & mask;
        for _ in 0..MAX_PROBES {
            let (own, number) = self.places[place];
            if number == 0 || (own == hash && self.word(number as usize - 1) == word) {
                return Some(place);
            }
            place = (place + 1) & mask;
        }
        None
    }

    fn word(&self, number: usize) -> &[u8] {
        let start = if number == 0 { 0 } else { self.ends[number - 1] };
        &self.bytes[start..self.ends[number]]
    }
}

/// A bit for each bucket that is left, and the rows of these in order.
struct Pruned {
    bits: Vec<u64>,
    /// How many bits are set before each word of bits.
    before: Vec<u32>,
    rows: Vec<u32>,
}

impl Pruned {
    fn new(bucket: u32, n_words: usize, pairs: &[(i32, u32)]) -> Self {
        let mut left: Vec<(u32, u32)> = pairs
            .iter()
            .filter_map(|&(own, row)| Some((u32::try_from(own).ok()?, row)))
            .filter(|&(own, _)| own < bucket)
            .collect();
        // The last of equal ones counts: the sort keeps their order.
        left.sort_by_key(|&(own, _)| own);
        left.reverse();
        left.dedup_by_key(|&mut (own, _)| own);
        left.reverse();
        let mut bits = vec![0_u64; bucket.div_ceil(64) as usize];
        for &(own, _) in &left {
            bits[own as usize / 64] |= 1 << (own % 64);
        }
        let mut n_before = 0;
        let before = bits
            .iter()
            .map(|word| {
                let before = n_before;
                n_before += word.count_ones();
                before
            })
            .collect();
        let rows = left.iter().map(|&(_, row)| n_words as u32 + row).collect();
        Self { bits, before, rows }
    }

    fn row(&self, bucket: u32) -> Option<u32> {
        let (at, bit) = (bucket as usize / 64, bucket % 64);
        let bits = self.bits[at] >> bit;
        if bits & 1 == 0 {
            return None;
        }
        let below = (self.bits[at] & ((1 << bit) - 1)).count_ones();
        Some(self.rows[(self.before[at] + below) as usize])
    }
}

/// The rest of a division by a number that is only known when a model is loaded, by two
/// multiplications.
///
/// Source: Lemire et al. 2019, faster remainder by direct computation (arXiv:1902.01961).
struct Divisor {
    divisor: u32,
    inverse: u64,
}

impl Divisor {
    fn new(divisor: u32) -> Self {
        Self {
            divisor,
            inverse: (u64::MAX / u64::from(divisor)).wrapping_add(1),
        }
    }

    fn rest(&self, number: u32) -> u32 {
        let fraction = self.inverse.wrapping_mul(u64::from(number));
        ((u128::from(fraction) * u128::from(self.divisor)) >> 64) as u32
    }
}
