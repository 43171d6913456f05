//! The main text of a page.
