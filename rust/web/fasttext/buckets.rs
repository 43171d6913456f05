//! Buckets of hashed n-grams, and which of them a pruned model has left.

/// A bit for each bucket that is left, and the rows of these in order.
pub struct Pruned {
    bits: Vec<u32>,
    /// How many bits are set before each word of bits.
    before: Vec<u32>,
    rows: Vec<u32>,
}

impl Pruned {
    pub fn new(bucket: u32, n_words: usize, pairs: &[(i32, u32)]) -> Self {
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
        let mut bits = vec![0_u32; bucket.div_ceil(32) as usize];
        for &(own, _) in &left {
            bits[own as usize / 32] |= 1 << (own % 32);
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

    /// Rows of those of the buckets that are left.
    pub fn push_rows(&self, buckets: &[u32], rows: &mut Vec<u32>) {
        const SHARE: usize = 32;
        for share in buckets.chunks(SHARE) {
            // Without a branch for each: one in ten is left, and nothing foretells which.
            let (mut left, mut n_left) = ([0; SHARE], 0);
            for &bucket in share {
                left[n_left % SHARE] = bucket;
                let bits = self.bits[bucket as usize / 32];
                n_left += (bits >> (bucket % 32) & 1) as usize;
            }
            rows.extend(left[..n_left].iter().map(|&bucket| self.row(bucket)));
        }
    }

    /// The row of a bucket that is left.
    fn row(&self, bucket: u32) -> u32 {
        let (at, bit) = (bucket as usize / 32, bucket % 32);
        let below = (self.bits[at] & ((1 << bit) - 1)).count_ones();
        self.rows[(self.before[at] + below) as usize]
    }
}

/// The rest of a division by a number that is only known when a model is loaded, by two
/// multiplications.
///
/// Source: Lemire et al. 2019, faster remainder by direct computation (arXiv:1902.01961).
pub struct Divisor {
    pub divisor: u32,
    inverse: u64,
}

impl Divisor {
    pub fn new(divisor: u32) -> Self {
        Self {
            divisor,
            inverse: (u64::MAX / u64::from(divisor)).wrapping_add(1),
        }
    }

    pub fn rest(&self, number: u32) -> u32 {
        let fraction = self.inverse.wrapping_mul(u64::from(number));
        ((u128::from(fraction) * u128::from(self.divisor)) >> 64) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rest_is_that_of_a_division() {
        for divisor in [1, 2, 3, 7, 300, 2_000_000, u32::MAX - 1, u32::MAX] {
            let own = Divisor::new(divisor);
            for number in [0, 1, 2, 299, 300, 12_345_678, u32::MAX - 1, u32::MAX] {
                assert_eq!(own.rest(number), number % divisor);
            }
        }
    }

    #[test]
    fn buckets_that_are_left_have_the_last_of_their_rows() {
        let pairs = [
            (70, 0),
            (3, 1),
            (-1, 9),
            (100, 9),
            (70, 2),
            (64, 3),
            (99, 4),
        ];
        let pruned = Pruned::new(100, 10, &pairs);
        let mut rows = Vec::new();
        pruned.push_rows(&[99, 5, 70, 64, 63, 65, 3, 3, 0], &mut rows);
        assert_eq!(rows, [14, 12, 13, 11, 11]);
    }
}
