//! Copies taken out of a corpus.
