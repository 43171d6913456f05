//! The binding of [`crate::web`], one file per area.

pub mod dedup;
pub mod extract;
pub mod pages;
pub mod pii;
pub mod quality;
