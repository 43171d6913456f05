//! The mixing of `SplitMix64`: whatever is random here follows from a seed.
//!
//! Source: Steele, Lea and Flood 2014, figure 17.

/// What the state of the generator grows by.
pub(crate) const GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;

/// The finaliser: each bit of the result depends on each bit of `x`.
pub(crate) fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// Numbers below a bound, the same ones each time, for tests.
#[cfg(test)]
pub(crate) fn random_from(mut state: u64) -> impl FnMut(u64) -> u64 {
    move |below| {
        state = state.wrapping_add(GAMMA);
        mix(state) % below
    }
}
