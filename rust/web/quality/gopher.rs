//! Gopher's quality rules, in the five versions that bear the name.

use memchr::memmem;

use super::page::Page;
use super::ratio;
use crate::web::segment::{Word, split_lines, strip};

const MIN_WORDS: usize = 50;
const MAX_WORDS: usize = 100_000;
const MIN_WORD_LENGTH: f64 = 3.0;
const MAX_WORD_LENGTH: f64 = 10.0;
const MAX_SYMBOLS_PER_WORD: f64 = 0.1;
const MAX_BULLET_LINES: f64 = 0.9;
const MAX_ELLIPSIS_LINES: f64 = 0.3;
const MIN_ALPHABETIC_WORDS: f64 = 0.8;
const MIN_STOP_WORDS: usize = 2;
const STOP_WORDS: [&[u8]; 8] = [
    b"the", b"be", b"to", b"of", b"and", b"that", b"have", b"with",
];

/// Which words are counted and measured; and how their lengths are put together.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Counted {
    /// All, by the mean.
    All,
    /// All, by the median.
    Median,
    /// Those with a character that is no symbol, by the mean.
    NoSymbols,
    /// Counted: fastText's words whose first character is a letter or a number. Measured: all.
    Alphanumeric,
}

/// How a rule looks at the lines.
#[derive(Clone, Copy)]
enum Lines {
    /// Those of `str.splitlines`, stripped.
    Stripped,
    /// What stands between newlines.
    AsIs,
    /// What stands between newlines, stripped, without the empty ones.
    Filled,
}

/// One version of the rules; what is empty leaves its rule out.
pub struct Rules {
    unicode_words: bool,
    counted: Counted,
    symbols: &'static [&'static [&'static str]],
    symbols_in_words: bool,
    lines: Lines,
    bullets: &'static [&'static str],
    ellipses: &'static [&'static str],
    stop_words: Option<StopWords>,
}

#[derive(Clone, Copy)]
struct StopWords {
    distinct: bool,
    any_case: bool,
}

pub const PAPER: Rules = Rules {
    unicode_words: false,
    counted: Counted::All,
    symbols: &[&["#"], &["...", "…"]],
    symbols_in_words: false,
    lines: Lines::Stripped,
    bullets: &["•", "●", "*", "-"],
    ellipses: &["...", "…"],
    stop_words: Some(StopWords {
        distinct: true,
        any_case: true,
    }),
};
pub const COURSE: Rules = Rules {
    unicode_words: false,
    counted: Counted::All,
    symbols: &[],
    symbols_in_words: false,
    lines: Lines::Stripped,
    bullets: &[],
    ellipses: &["..."],
    stop_words: None,
};
pub const FINEWEB: Rules = Rules {
    unicode_words: true,
    counted: Counted::NoSymbols,
    symbols: &[&["#"], &["...", "…"]],
    symbols_in_words: false,
    lines: Lines::Stripped,
    bullets: &["•", "-"],
    ellipses: &["...", "…"],
    stop_words: Some(StopWords {
        distinct: true,
        any_case: false,
    }),
};
pub const DOLMA: Rules = Rules {
    unicode_words: false,
    counted: Counted::Median,
    symbols: &[&["#", "…"]],
    symbols_in_words: true,
    lines: Lines::AsIs,
    bullets: &["*", "-"],
    ellipses: &["…"],
    stop_words: Some(StopWords {
        distinct: false,
        any_case: false,
    }),
};
pub const DCLM: Rules = Rules {
    unicode_words: false,
    counted: Counted::Alphanumeric,
    symbols: &[&["#", "...", ". . .", "…"]],
    symbols_in_words: false,
    lines: Lines::Filled,
    bullets: &["●", "•", "*", "-"],
    ellipses: &["...", ". . .", "…"],
    stop_words: Some(StopWords {
        distinct: false,
        any_case: true,
    }),
};

/// The first rule that the page breaks, in the order of the paper.
pub fn check(page: &Page, rules: &Rules) -> Option<&'static str> {
    let words = if rules.unicode_words {
        page.unicode_words()
    } else {
        page.split_words()
    };
    if let Some(reason) = check_lengths(page, words, rules.counted) {
        return Some(reason);
    }
    if has_too_many_symbols(page, words, rules) {
        return Some("gopher_too_many_symbols");
    }
    let lines = LineCounts::of(page.text(), rules);
    if ratio(lines.bullets, lines.all) > MAX_BULLET_LINES {
        return Some("gopher_bullet_lines");
    }
    if ratio(lines.ellipses, lines.all) > MAX_ELLIPSIS_LINES {
        return Some("gopher_ellipsis_lines");
    }
    let n_alphabetic = words.iter().filter(|word| word.has_letter()).count();
    if ratio(n_alphabetic, words.len()) < MIN_ALPHABETIC_WORDS {
        return Some("gopher_few_alphabetic_words");
    }
    let few = rules
        .stop_words
        .is_some_and(|how| !has_stop_words(page.text(), words, how));
    few.then_some("gopher_few_stop_words")
}

fn check_lengths(page: &Page, words: &[Word], counted: Counted) -> Option<&'static str> {
    let is_measured = |word: &&Word| counted != Counted::NoSymbols || !word.is_symbols_only();
    let (mut n_measured, mut total) = (0, 0);
    for word in words.iter().filter(is_measured) {
        n_measured += 1;
        total += word.n_characters();
    }
    let n_counted = if counted == Counted::Alphanumeric {
        n_alphanumeric_words(page.text())
    } else {
        n_measured
    };
    if n_counted < MIN_WORDS {
        return Some("gopher_too_few_words");
    }
    if n_counted > MAX_WORDS {
        return Some("gopher_too_many_words");
    }
    let length = if counted == Counted::Median {
        median(words)
    } else {
        ratio(total, n_measured)
    };
    if length < MIN_WORD_LENGTH {
        Some("gopher_short_words")
    } else {
        (length > MAX_WORD_LENGTH).then_some("gopher_long_words")
    }
}

fn median(words: &[Word]) -> f64 {
    let mut lengths: Vec<usize> = words.iter().map(Word::n_characters).collect();
    let middle = lengths.len() / 2;
    if lengths.is_empty() {
        return 0.0;
    }
    let (below, &mut upper, _) = lengths.select_nth_unstable(middle);
    match below.iter().max() {
        Some(&lower) if words.len().is_multiple_of(2) => (lower + upper) as f64 / 2.0,
        _ => upper as f64,
    }
}

/// Words of fastText's tokenizer, whose blanks are fewer than Unicode's and hold NUL, that begin
/// with a letter or a number.
pub fn n_alphanumeric_words(text: &str) -> usize {
    use crate::web::segment::unicode::properties_of;
    let is_blank = |character: char| matches!(character, ' ' | '\n'..='\r' | '\t' | '\0');
    let mut after_blank = true;
    let mut n_words = 0;
    for character in text.chars() {
        let blank = is_blank(character);
        if after_blank && !blank {
            n_words += usize::from(properties_of(character).is_alphanumeric());
        }
        after_blank = blank;
    }
    n_words
}

fn has_too_many_symbols(page: &Page, words: &[Word], rules: &Rules) -> bool {
    let text = page.text();
    rules.symbols.iter().any(|group| {
        let n_symbols: usize = if rules.symbols_in_words {
            let holds = |word: &&Word| {
                let bytes = word.bytes(text);
                group
                    .iter()
                    .any(|mark| memmem::find(bytes, mark.as_bytes()).is_some())
            };
            words.iter().filter(holds).count()
        } else {
            group.iter().map(|mark| occurrences(text, mark)).sum()
        };
        ratio(n_symbols, words.len()) > MAX_SYMBOLS_PER_WORD
    })
}

/// How often a mark stands in the text, without overlaps.
fn occurrences(text: &str, mark: &str) -> usize {
    match mark.as_bytes() {
        [byte] => memchr::memchr_iter(*byte, text.as_bytes()).count(),
        bytes => memmem::find_iter(text.as_bytes(), bytes).count(),
    }
}

#[derive(Default)]
struct LineCounts {
    all: usize,
    bullets: usize,
    ellipses: usize,
}

impl LineCounts {
    fn of(text: &str, rules: &Rules) -> Self {
        let mut counts = Self::default();
        match rules.lines {
            Lines::Stripped => {
                split_lines(text).for_each(|line| counts.add(strip(line), rules));
            }
            Lines::AsIs => text.split('\n').for_each(|line| counts.add(line, rules)),
            Lines::Filled => text
                .split('\n')
                .map(strip)
                .filter(|line| !line.is_empty())
                .for_each(|line| counts.add(line, rules)),
        }
        counts
    }

    fn add(&mut self, line: &str, rules: &Rules) {
        let begins = rules.bullets.iter().any(|bullet| line.starts_with(bullet));
        let ends = rules.ellipses.iter().any(|mark| line.ends_with(mark));
        self.all += 1;
        self.bullets += usize::from(begins);
        self.ellipses += usize::from(ends);
    }
}

fn has_stop_words(text: &str, words: &[Word], how: StopWords) -> bool {
    let mut seen = [0; STOP_WORDS.len()];
    let mut n_found = 0;
    for word in words {
        let bytes = word.bytes(text);
        if !(2..=4).contains(&bytes.len()) {
            continue;
        }
        let is_same = |stop: &&[u8]| {
            if how.any_case {
                bytes.eq_ignore_ascii_case(stop)
            } else {
                bytes == *stop
            }
        };
        if let Some(which) = STOP_WORDS.iter().position(is_same) {
            n_found += usize::from(!how.distinct || seen[which] == 0);
            seen[which] += 1;
            if n_found >= MIN_STOP_WORDS {
                return true;
            }
        }
    }
    false
}
