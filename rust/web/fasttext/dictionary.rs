//! From a text to the rows of its words, of the n-grams of their characters and of n-grams of
//! words.
//!
//! Source: `dictionary.cc` of fastText 0.9.2.

use super::Arguments;
use super::buckets::{Divisor, Pruned};
use super::short_words::{LONG, ShortWords, Word, Words};

const BASIS: u32 = 2166136261;
const PRIME: u32 = 16777619;
const END: &[u8] = b"</s>";
const LABEL: &[u8] = b"__label__";
/// Words in a row whose hashes share a place. More are no accident, and would make each word of
/// a text cost as much.
const MAX_PROBES: usize = 1000;
/// A bit for each bucket of a pruned model: 32 MB.
const MAX_BITS: u32 = 1 << 28;
/// Rows that are added at a time.
const GROUP: usize = 256;
/// Words that are found before the first of them is looked up.
const N_AHEAD: usize = 16;

/// Words and buckets with their rows.
pub struct Dictionary {
    word_ngrams: usize,
    minn: usize,
    maxn: usize,
    bucket: Divisor,
    words: Vocabulary,
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
            words: Vocabulary::new(&entries)?,
            rows: Vec::new(),
            ends: Vec::with_capacity(words.len()),
            n_words: words.len() as u32,
            buckets,
        };
        let mut scratch = Scratch::default();
        for (row, word) in words.iter().enumerate() {
            let mut rows = std::mem::take(&mut dictionary.rows);
            rows.push(row as u32);
            if word != END {
                dictionary.push_ngrams(word, &mut scratch, &mut rows);
            }
            dictionary.ends.push(rows.len());
            dictionary.rows = rows;
        }
        Ok(dictionary)
    }

    /// Gives `take` all rows of a text, in fastText's order, some hundreds at a time, and tells
    /// `near` some of them before.
    ///
    /// A line end is a blank like others. What fastText takes for a mark is to be made text of
    /// before, by [`super::one_line`].
    pub fn for_rows(
        &self,
        text: &[u8],
        scratch: &mut Scratch,
        near: impl Fn(&[u32]),
        mut take: impl FnMut(&[u32]),
    ) {
        let mut rows = std::mem::take(&mut scratch.rows);
        let mut hashes = std::mem::take(&mut scratch.hashes);
        let mut flush = |rows: &mut Vec<u32>, at_least: usize| {
            if rows.len() >= at_least {
                take(rows);
                rows.clear();
            }
        };
        let mut ahead = [Word::default(); N_AHEAD];
        let mut words = Words::of(text);
        loop {
            // Their places are on the way while others are looked at.
            let mut n_ahead = 0;
            for (place, word) in ahead.iter_mut().zip(&mut words) {
                scratch.short_words.prefetch(word.key);
                *place = word;
                n_ahead += 1;
            }
            let n_before = rows.len();
            for word in &ahead[..n_ahead] {
                let hash = self.push_known(text, word, scratch, &mut rows);
                hashes.extend(hash.filter(|_| self.word_ngrams > 1));
            }
            near(&rows[n_before..]);
            flush(&mut rows, GROUP);
            if n_ahead < N_AHEAD {
                break;
            }
        }
        let hash = self.push_word(END, scratch, &mut rows);
        hashes.extend(hash.filter(|_| self.word_ngrams > 1));
        for (at, &first) in hashes.iter().enumerate() {
            // Widened with their signs.
            let mut hash = widened(first);
            for &next in hashes[at + 1..].iter().take(self.word_ngrams - 1) {
                hash = hash.wrapping_mul(116049371).wrapping_add(widened(next));
                let bucket = (hash % u64::from(self.bucket.divisor)) as u32;
                self.push_bucket(bucket, &mut rows);
            }
            flush(&mut rows, GROUP);
        }
        flush(&mut rows, 0);
        hashes.clear();
        (scratch.rows, scratch.hashes) = (rows, hashes);
    }

    /// Rows of a word of a text, perhaps from its place; its hash, if it is no label.
    fn push_known(
        &self,
        text: &[u8],
        word: &Word,
        scratch: &mut Scratch,
        rows: &mut Vec<u32>,
    ) -> Option<u32> {
        let bytes = &text[word.start..word.end];
        if word.key == LONG {
            return self.push_word(bytes, scratch, rows);
        }
        let place = scratch.short_words.place_of(word.key);
        if place.holds(word.key) {
            place.push_rows(rows);
            return Some(place.hash);
        }
        let n_before = rows.len();
        let hash = self.push_word(bytes, scratch, rows)?;
        let place = scratch.short_words.place_of(word.key);
        place.fill(word.key, hash, &rows[n_before..]);
        Some(hash)
    }

    /// Rows of a word; its hash, if it is no label.
    fn push_word(&self, word: &[u8], scratch: &mut Scratch, rows: &mut Vec<u32>) -> Option<u32> {
        let hash = hash_of(word);
        match self.words.find(word, hash) {
            Some(number) if number < self.n_words => {
                let number = number as usize;
                let start = if number == 0 {
                    0
                } else {
                    self.ends[number - 1]
                };
                rows.extend_from_slice(&self.rows[start..self.ends[number]]);
            }
            Some(_) => return None,
            None if word.starts_with(LABEL) => return None,
            None if word == END => {}
            None => self.push_ngrams(word, scratch, rows),
        }
        Some(hash)
    }

    fn push_bucket(&self, bucket: u32, rows: &mut Vec<u32>) {
        match &self.buckets {
            Buckets::All => rows.push(self.n_words + bucket),
            Buckets::None => {}
            Buckets::Pruned(pruned) => pruned.push_rows(&[bucket], rows),
        }
    }

    /// Rows of the n-grams of a word's characters, with a mark at both ends.
    fn push_ngrams(&self, word: &[u8], scratch: &mut Scratch, rows: &mut Vec<u32>) {
        if self.maxn == 0 || matches!(self.buckets, Buckets::None) {
            return;
        }
        let Scratch {
            marked, buckets, ..
        } = scratch;
        marked.clear();
        marked.push(b'<');
        marked.extend_from_slice(word);
        marked.push(b'>');
        // Hashes of a whole word first: none waits for whether another has a row.
        buckets.clear();
        let take = |hash| buckets.push(self.bucket.rest(hash));
        if word.is_ascii() {
            for_ascii_ngrams(marked, self.minn, self.maxn, take);
        } else {
            for_ngrams(marked, self.minn, self.maxn, take);
        }
        match &self.buckets {
            Buckets::All => rows.extend(buckets.iter().map(|bucket| self.n_words + bucket)),
            Buckets::None => {}
            Buckets::Pruned(pruned) => pruned.push_rows(buckets, rows),
        }
    }
}

/// What is used again from text to text.
#[derive(Default)]
pub struct Scratch {
    short_words: ShortWords,
    marked: Vec<u8>,
    buckets: Vec<u32>,
    rows: Vec<u32>,
    hashes: Vec<u32>,
}

fn widened(hash: u32) -> u64 {
    i64::from(hash.cast_signed()).cast_unsigned()
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

/// The same for a word whose characters are bytes, faster.
fn for_ascii_ngrams(word: &[u8], minn: usize, maxn: usize, mut take: impl FnMut(u32)) {
    for start in 0..word.len() {
        let mut bytes = word[start..].iter().take(maxn);
        let Some(&first) = bytes.next() else { continue };
        let mut hash = step(BASIS, first);
        if minn <= 1 && start > 0 && start + 1 < word.len() {
            take(hash);
        }
        for (n, &byte) in (2..).zip(bytes) {
            hash = step(hash, byte);
            if n >= minn {
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
    let signed = i32::from(byte.cast_signed());
    (hash ^ signed.cast_unsigned()).wrapping_mul(PRIME)
}

fn hash_of(word: &[u8]) -> u32 {
    word.iter().fold(BASIS, |hash, &byte| step(hash, byte))
}

/// Words by their hashes: open addressing, the last of equal words.
struct Vocabulary {
    bytes: Vec<u8>,
    ends: Vec<usize>,
    /// (hash, number + 1).
    places: Vec<(u32, u32)>,
}

impl Vocabulary {
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
        let start = if number == 0 {
            0
        } else {
            self.ends[number - 1]
        };
        &self.bytes[start..self.ends[number]]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_signed_to_the_hash() {
        assert_eq!(hash_of(b""), BASIS);
        assert_eq!(hash_of(b"a"), 0xE40C_292C);
        assert_eq!(hash_of("é".as_bytes()), {
            let first = (BASIS ^ 0xFFFF_FFC3).wrapping_mul(PRIME);
            (first ^ 0xFFFF_FFA9).wrapping_mul(PRIME)
        });
    }

    #[test]
    fn ngrams_of_bytes_are_those_of_characters() {
        for word in ["<>", "<a>", "<word>", "<of-16-or-more-characters>"] {
            for (minn, maxn) in [(0, 0), (0, 1), (1, 1), (1, 3), (2, 4), (5, 2), (3, 64)] {
                let (mut quick, mut plain) = (Vec::new(), Vec::new());
                for_ascii_ngrams(word.as_bytes(), minn, maxn, |hash| quick.push(hash));
                for_ngrams(word.as_bytes(), minn, maxn, |hash| plain.push(hash));
                assert_eq!(quick, plain, "{word} {minn} {maxn}");
            }
        }
    }

    #[test]
    fn words_with_one_hash_are_told_apart() {
        let words: [&[u8]; 4] = [b"a", b"b", b"a", b""];
        let vocabulary = Vocabulary::new(&words).expect("four words");
        for (word, number) in [("a", Some(2)), ("b", Some(1)), ("", Some(3)), ("c", None)] {
            let found = vocabulary.find(word.as_bytes(), hash_of(word.as_bytes()));
            assert_eq!(found, number);
        }
    }
}
