//! Supervised fastText models: read from their files, and asked about texts.
//!
//! Answers are those of fastText 0.9.2 to the bit: labels, and scores as f32. What makes it
//! faster than the library is that the rows of short words that were met before are remembered,
//! that nothing is allocated for another, that whether a bucket of a pruned model is left is one
//! bit, and that rows of quantised models are written out when the model is loaded.
//!
//! - `file`: a model file, held against its own length before anything is allocated,
//! - `dictionary`: a text -> rows, by words, n-grams of their characters, n-grams of words;
//!   `short_words`: the same for words that were met before; `buckets`: those of n-grams,
//! - `matrix`: rows -> their mean,
//! - `loss`: the mean -> scores of labels.

mod buckets;
mod dictionary;
mod file;
mod loss;
mod matrix;
mod short_words;

use std::borrow::Cow;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use dictionary::{Dictionary, Scratch};
use loss::Loss;
use matrix::Matrix;

use crate::{Error, Result};

/// What a model was trained with, as far as answers depend on it.
struct Arguments {
    dim: usize,
    word_ngrams: usize,
    loss: LossKind,
    bucket: u32,
    minn: usize,
    maxn: usize,
}

#[derive(Clone, Copy)]
enum LossKind {
    Tree,
    Logistic,
    Softmax,
}

/// A model, which any number of threads may ask.
pub struct FastText {
    dim: usize,
    labels: Vec<String>,
    dictionary: Dictionary,
    input: Matrix,
    output: Matrix,
    loss: Loss,
    /// As many as threads have asked at once.
    scratches: Mutex<Vec<Scratch>>,
}

impl FastText {
    /// The model of a file.
    ///
    /// # Errors
    /// The file is no supervised model, is cut or contradicts itself, or cannot be read.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let model = file::read_model(path)?;
        let (labels, counts): (Vec<String>, Vec<i64>) = model.labels.into_iter().unzip();
        let names: Vec<&[u8]> = labels.iter().map(String::as_bytes).collect();
        let dictionary = Dictionary::new(
            &model.arguments,
            &model.words,
            &names,
            model.pruned.as_deref(),
        )
        .map_err(|reason| Error::format(path, format!("not a usable fastText model: {reason}")))?;
        Ok(Self {
            dim: model.arguments.dim,
            dictionary,
            input: model.input.written_out(),
            output: model.output,
            loss: Loss::new(model.arguments.loss, &counts),
            labels,
            scratches: Mutex::default(),
        })
    }

    /// The labels, as the file has them.
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// The number of the likeliest label and its score; None where the model has none for it.
    ///
    /// Scores are sums of rounded numbers and may lie a little above 1. Time: linear in the text.
    pub fn predict(&self, text: &str) -> Option<(usize, f32)> {
        self.loss.best(&self.output, &self.hidden(text)?)
    }

    /// The score of each label; 0 where the model has none for it.
    pub fn scores(&self, text: &str) -> Vec<f32> {
        match self.hidden(text) {
            Some(hidden) => self.loss.all(&self.output, &hidden),
            None => vec![0.0; self.labels.len()],
        }
    }

    /// The mean of a text's rows; None of no rows.
    fn hidden(&self, text: &str) -> Option<Vec<f32>> {
        let mut sum = vec![0.0; self.dim];
        let mut n_rows = 0;
        let text = one_line(text);
        let scratches = || {
            self.scratches
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
        };
        let scratch = scratches().pop();
        let mut scratch = scratch.unwrap_or_default();
        let near = |rows: &[u32]| self.input.prefetch_rows(rows);
        self.dictionary
            .for_rows(text.as_bytes(), &mut scratch, near, |rows| {
                n_rows += rows.len();
                self.input.add_rows(rows, &mut sum);
            });
        scratches().push(scratch);
        if n_rows == 0 {
            return None;
        }
        let share = (1.0 / n_rows as f64) as f32;
        for number in &mut sum {
            *number *= share;
        }
        Some(sum)
    }
}

const END: &str = "</s>";
const LABEL: &str = "__label__";

/// The text without what is a mark to fastText, as `rslm.data.fasttext_package.one_line` makes it:
/// `</s>` anywhere becomes a blank, `__label__` at the beginning of a word "label ".
fn one_line(text: &str) -> Cow<'_, str> {
    let mut text = Cow::Borrowed(text);
    if memchr::memmem::find(text.as_bytes(), END.as_bytes()).is_some() {
        text = text.replace(END, " ").into();
    }
    if memchr::memmem::find(text.as_bytes(), LABEL.as_bytes()).is_some() {
        text = without_labels(&text).into();
    }
    text
}

fn without_labels(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut done = 0;
    for (at, _) in text.match_indices(LABEL) {
        let before = text.as_bytes()[..at].last();
        if before.is_none_or(|&byte| short_words::is_blank(byte)) {
            out.push_str(&text[done..at]);
            out.push_str("label ");
            done = at + LABEL.len();
        }
    }
    out.push_str(&text[done..]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_become_text() {
        for (text, plain) in [
            ("", ""),
            ("a </s> b", "a   b"),
            (
                "a</s>b __label__c x__label__d\n__label__e",
                "a b label c x__label__d\nlabel e",
            ),
            ("__label____label__x", "label __label__x"),
            ("</s>__label__", " label "),
        ] {
            assert_eq!(one_line(text), plain);
        }
        assert!(matches!(one_line("a b\n"), Cow::Borrowed(_)));
    }
}
