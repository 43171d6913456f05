//! Remembers what short pretokens become: nine pretokens of ten repeat earlier ones.
//!
//! Exact: the key is the pretoken itself, never a hash of it. Bounded: a fixed number of
//! slots in buckets of two; a newcomer takes the second place of its bucket and what is
//! used again moves to the first. So memory does not grow with the text, and text made to
//! fill the cache only makes it useless.

/// Longest pretoken that is kept; its length takes the sixteenth byte of the key.
pub(super) const MAX_KEY_BYTES: usize = 15;
const MAX_IDS: usize = 3;
/// 64 Ki buckets of 64 bytes: 4 MiB.
const BUCKET_BITS: u32 = 16;

#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Slot {
    key: u128,
    n_ids: u32,
    ids: [u32; MAX_IDS],
}

#[derive(Clone, Copy, Default)]
#[repr(C, align(64))]
struct Bucket([Slot; 2]);

/// A bounded map from pretokens of at most 15 bytes to at most three ids.
pub(super) struct WordCache {
    buckets: Vec<Bucket>,
}

/// A pretoken as a key; `None` where it is too long to be kept.
#[inline]
pub(super) fn key_of(pretoken: &[u8]) -> Option<u128> {
    let len = pretoken.len();
    if len > MAX_KEY_BYTES {
        return None;
    }
    // The length in the top byte tells apart what zero padding would not, and makes no
    // key zero, which marks an empty slot.
    let mut padded = [0; 16];
    padded[..len].copy_from_slice(pretoken);
    padded[15] = len as u8;
    Some(u128::from_le_bytes(padded))
}

#[inline]
fn bucket_of(key: u128) -> usize {
    let folded = (key as u64) ^ ((key >> 64) as u64).rotate_left(29);
    let product = u128::from(folded) * 0x9E37_79B9_7F4A_7C15;
    (((product as u64) ^ (product >> 64) as u64) >> (64 - BUCKET_BITS)) as usize
}

impl WordCache {
    pub(super) fn new() -> Self {
        Self {
            buckets: vec![Bucket::default(); 1 << BUCKET_BITS],
        }
    }

    /// The ids of a key, if they are remembered.
    #[inline]
    pub(super) fn get(&mut self, key: u128) -> Option<&[u32]> {
        let Bucket(slots) = &mut self.buckets[bucket_of(key)];
        if slots[0].key != key {
            if slots[1].key != key {
                return None;
            }
            slots.swap(0, 1);
        }
        Some(&slots[0].ids[..slots[0].n_ids as usize])
    }

    /// Remembers the ids of a key, unless they are too many.
    #[inline]
    pub(super) fn insert(&mut self, key: u128, token_ids: &[u32]) {
        if token_ids.len() > MAX_IDS {
            return;
        }
        let mut slot = Slot {
            key,
            n_ids: token_ids.len() as u32,
            ids: [0; MAX_IDS],
        };
        slot.ids[..token_ids.len()].copy_from_slice(token_ids);
        let Bucket(slots) = &mut self.buckets[bucket_of(key)];
        let place = usize::from(slots[0].key != 0);
        slots[place] = slot;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_found_is_what_was_put_there() {
        let mut cache = WordCache::new();
        let key = |i: u32| key_of(&i.to_le_bytes()).expect("short");
        let mut found = 0;
        for i in 0..400_000 {
            cache.insert(key(i), &[i, i + 1]);
            if let Some(ids) = cache.get(key(i / 2)) {
                assert_eq!(ids, [i / 2, i / 2 + 1]);
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
        assert_ne!(key_of(b"a"), key_of(b"a\0"));
        assert_ne!(key_of(b"\0"), key_of(b"\0\0"));
        assert!(key_of(&[1; 15]).is_some() && key_of(&[1; 16]).is_none());
        let mut cache = WordCache::new();
        cache.insert(7, &[1, 2, 3, 4]);
        assert!(cache.get(7).is_none());
    }
}
