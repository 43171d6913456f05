//! Words and sentences, as Unicode borders them.
