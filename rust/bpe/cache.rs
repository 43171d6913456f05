//! Remembers what short pretokens become: nine pretokens of ten repeat earlier ones.
//!
//! Exact: the key is the pretoken itself, never a hash of it. Bounded: a fixed number of
//! slots in buckets of two. So memory does not grow with the text, and text made to fill
//! the cache only makes it useless.

use super::count::prefetch;

/// Longest pretoken that is kept; its length takes the sixteenth byte of the key.
pub(super) const MAX_KEY_BYTES: usize = 15;
const MAX_IDS: usize = 3;
/// 128 Ki buckets of 64 bytes: 8 MiB. Half as many cost 5 % on books, twice as many gain nothing.
const BUCKET_BITS: u32 = 17;

#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Slot {
    key: u128,
    value: [u32; MAX_IDS + 1],
}

#[derive(Clone, Copy, Default)]
#[repr(C, align(64))]
struct Bucket([Slot; 2]);

/// A bounded map from pretokens of at most 15 bytes to at most three ids.
pub(super) struct WordCache {
    buckets: Vec<Bucket>,
}

/// The pretoken `text[start..end]` as a key; `None` where it is too long to be kept.
#[inline]
pub(super) fn key_at(text: &[u8], start: usize, end: usize) -> Option<u128> {
    let len = end - start;
    if len > MAX_KEY_BYTES {
        return None;
    }
    // The length in the top byte tells apart what zero padding would not, and makes no
    // key zero, which marks an empty slot.
    let bytes = if let Some(bytes) = text[start..].first_chunk::<16>() {
        u128::from_le_bytes(*bytes) & ((1 << (8 * len)) - 1)
    } else {
        let mut padded = [0; 16];
        padded[..len].copy_from_slice(&text[start..end]);
        u128::from_le_bytes(padded)
    };
    Some(bytes | (len as u128) << 120)
}

/// A hash of a key: one multiplication, folded.
#[inline]
pub(super) fn hash_of(key: u128) -> u64 {
    let folded = (key as u64) ^ ((key >> 64) as u64).rotate_left(29);
    let product = u128::from(folded) * 0x9E37_79B9_7F4A_7C15;
    (product as u64) ^ (product >> 64) as u64
}

#[inline]
fn bucket_of(key: u128) -> usize {
    hash_of(key) as usize & ((1 << BUCKET_BITS) - 1)
}

impl WordCache {
    pub(super) fn new() -> Self {
        Self {
            buckets: vec![Bucket::default(); 1 << BUCKET_BITS],
        }
    }

    /// Asks the memory for the line of a key that is looked up soon.
    #[inline]
    pub(super) fn prefetch(&self, key: u128) {
        prefetch(&self.buckets[bucket_of(key)]);
    }

    /// Three ids, of which the first n count, and n; n is 0 where the key is unknown.
    ///
    /// Both slots are read and one is chosen without a branch: which of two it is cannot
    /// be foretold.
    #[inline]
    pub(super) fn get(&self, key: u128) -> [u32; MAX_IDS + 1] {
        let Bucket([first, second]) = &self.buckets[bucket_of(key)];
        let value = if first.key == key {
            first.value
        } else {
            second.value
        };
        let known = first.key == key || second.key == key;
        let [a, b, c, n] = value;
        [a, b, c, if known { n } else { 0 }]
    }

    /// Remembers the ids of a key, unless they are too many.
    ///
    /// Who comes first to a bucket keeps its first place, and mostly is a frequent word;
    /// the others take turns in the second. Moving the newest to the front instead lets
    /// two rare words put out a frequent one.
    #[inline]
    pub(super) fn insert(&mut self, key: u128, token_ids: &[u32]) {
        if token_ids.len() > MAX_IDS {
            return;
        }
        let mut value = [0; MAX_IDS + 1];
        value[..token_ids.len()].copy_from_slice(token_ids);
        value[MAX_IDS] = token_ids.len() as u32;
        let Bucket(slots) = &mut self.buckets[bucket_of(key)];
        let place = usize::from(slots[0].key != 0);
        slots[place] = Slot { key, value };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_found_is_what_was_put_there() {
        let mut cache = WordCache::new();
        let key = |i: u32| key_at(&i.to_le_bytes(), 0, 4).expect("short");
        let mut found = 0;
        for i in 0..400_000 {
            cache.insert(key(i), &[i, i + 1]);
            let [a, b, _, n] = cache.get(key(i / 2));
            if n > 0 {
                assert_eq!([a, b, n], [i / 2, i / 2 + 1, 2]);
                found += 1;
            }
        }
        assert!(
            found > 10_000,
            "a cache that forgets everything is none: {found}"
        );
    }

    #[test]
    fn padding_is_told_apart_and_long_words_are_left_out() {
        assert_ne!(key_at(b"a\0", 0, 1), key_at(b"a\0", 0, 2));
        assert_ne!(key_at(b"\0\0", 0, 1), key_at(b"\0\0", 0, 2));
        assert!(key_at(&[1; 30], 3, 18).is_some() && key_at(&[1; 30], 3, 19).is_none());
        let long = [7; 40];
        for len in 0..16 {
            assert_eq!(key_at(&long, 0, len), key_at(&long[..len], 0, len), "{len}");
        }
        let mut cache = WordCache::new();
        cache.insert(7, &[1, 2, 3, 4]);
        assert_eq!(cache.get(7)[3], 0);
    }
}
