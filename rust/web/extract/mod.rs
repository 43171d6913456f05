//! The main text of a page: bounds, the Readability algorithm, clean text.
//!
//! A page is measured before it is parsed (`nesting`), since parsing and what follows take more
//! than time in proportion to its size on pages made for that.

mod asides;
mod elements;
mod nesting;
mod open_elements;
mod readability;
mod tags;
mod workers;

pub use workers::extract_batch;

use dom_smoothie::{Config, Readability, TextMode};

use super::decode::clean;

/// What extraction of one page may cost.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Of a page, as UTF-8.
    pub max_page_bytes: usize,
    /// Open elements.
    pub max_depth: usize,
    /// Elements, texts and comments.
    pub max_nodes: usize,
    /// Of its text.
    pub max_text_bytes: usize,
}

/// Why a page has no text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// The page or its text has more bytes or nodes than the limits.
    TooLarge,
    /// It nests deeper, or keeps many elements open over many tags.
    TooDeep,
    /// The extractor panicked.
    Error,
    /// No text, or white space.
    Empty,
}

impl Problem {
    /// The word that is counted.
    pub fn name(self) -> &'static str {
        match self {
            Self::TooLarge => "too_large",
            Self::TooDeep => "too_deep",
            Self::Error => "extract_error",
            Self::Empty => "empty",
        }
    }
}

/// The text of a page, or why it has none.
pub type Extracted = std::result::Result<String, Problem>;

/// Whether a page may be parsed within these limits.
pub fn check(page: &str, limits: &Limits) -> std::result::Result<(), Problem> {
    if page.len() > limits.max_page_bytes {
        return Err(Problem::TooLarge);
    }
    nesting::check(page.as_bytes(), limits)
}

/// Which implementation of the Readability algorithm reads a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// Ours.
    Fast,
    /// `dom_smoothie`: the same texts, slower.
    Reference,
}

/// The main text of a page, by the Readability algorithm.
///
/// # Panics
/// Where `dom_smoothie` does, which some pages with unusual characters make it do.
fn readable_text(page: &str, limits: &Limits, reader: Reader) -> Extracted {
    check(page, limits)?;
    let page = clean(page);
    let page = asides::without_asides(&page);
    let found = match reader {
        Reader::Fast => readability::main_text(&page),
        Reader::Reference => None,
    };
    let text = found.unwrap_or_else(|| reference_text(&page));
    let text = clean(&text).trim().to_owned();
    match text.len() {
        0 => Err(Problem::Empty),
        length if length > limits.max_text_bytes => Err(Problem::TooLarge),
        _ => Ok(text),
    }
}

fn reference_text(page: &str) -> String {
    let config = Config {
        text_mode: TextMode::Formatted,
        disable_json_ld: true,
        ..Config::default()
    };
    let article = Readability::new(page, None, Some(config)).and_then(|mut page| page.parse());
    article.map_or_else(
        |_| String::new(),
        |article| article.text_content.to_string(),
    )
}
