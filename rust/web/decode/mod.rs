//! Bytes of a page as text.
