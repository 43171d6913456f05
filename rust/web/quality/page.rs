//! A page under judgement: its text, and its pieces, each made once and only if a rule asks.

use std::borrow::Cow;
use std::cell::OnceCell;

use super::ngrams::Names;
use crate::web::segment::{Word, n_characters, split_words, unicode_words};

/// A text and what the rules count in it.
pub struct Page<'t> {
    text: Cow<'t, str>,
    n_characters: OnceCell<usize>,
    split_words: OnceCell<Vec<Word>>,
    unicode_words: OnceCell<Vec<Word>>,
}

impl<'t> Page<'t> {
    /// A page of this text.
    pub fn new(text: Cow<'t, str>) -> Self {
        Self {
            text,
            n_characters: OnceCell::new(),
            split_words: OnceCell::new(),
            unicode_words: OnceCell::new(),
        }
    }

    /// Its text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Its text, given away.
    pub fn into_text(self) -> Cow<'t, str> {
        self.text
    }

    /// Code points.
    pub fn n_characters(&self) -> usize {
        *self
            .n_characters
            .get_or_init(|| n_characters(self.text.as_bytes()))
    }

    /// Pieces between white space, as `str.split` sees it.
    pub fn split_words(&self) -> &[Word] {
        self.split_words.get_or_init(|| split_words(&self.text))
    }

    /// Words and punctuation marks of UAX #29.
    pub fn unicode_words(&self) -> &[Word] {
        self.unicode_words.get_or_init(|| unicode_words(&self.text))
    }

    /// The words' names, for the rules on n-grams.
    pub(super) fn names_of(&self, words: &[Word]) -> Names {
        Names::of(&self.text, words)
    }
}
