//! Lines or paragraphs of a page that stand more than once.

use super::table::Table;
use crate::web::segment::n_characters;

/// How many of some segments are duplicates, and how many code points these hold, in two
/// readings: second and later copies, or all members of a set that repeats.
#[derive(Default, Debug, PartialEq, Eq)]
pub struct Duplicates {
    pub n_segments: usize,
    pub n_later: usize,
    pub later_characters: usize,
    pub n_members: usize,
    pub member_characters: usize,
}

/// Counts the duplicates among these.
pub fn find_duplicates<'t>(segments: impl Iterator<Item = &'t str>) -> Duplicates {
    let mut found = Duplicates::default();
    let mut table = Table::new(64);
    let mut different: Vec<(&str, bool)> = Vec::new();
    for segment in segments {
        found.n_segments += 1;
        let key = xxhash_rust::xxh3::xxh3_64(segment.as_bytes());
        let next = different.len() as u32;
        let is_same = |other: u32| different[other as usize].0 == segment;
        let (known, repeats) = table.find_or_insert(key, next, is_same);
        if repeats {
            let length = n_characters(segment.as_bytes());
            let is_second = !std::mem::replace(&mut different[known as usize].1, true);
            found.n_later += 1;
            found.later_characters += length;
            found.n_members += 1 + usize::from(is_second);
            found.member_characters += length * (1 + usize::from(is_second));
        } else {
            different.push((segment, false));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_readings_by_hand() {
        let found = find_duplicates(["ab", "c", "ab", "ab", "c", "d"].into_iter());
        assert_eq!(
            (found.n_segments, found.n_later, found.later_characters),
            (6, 3, 5)
        );
        assert_eq!((found.n_members, found.member_characters), (5, 8));
    }
}
