//! Gopher's repetition rules, in four readings of Table A1.

use super::duplicates::{Duplicates, find_duplicates};
use super::ngrams::Names;
use super::page::Page;
use super::ratio;
use super::run_together::RunTogether;
use crate::web::segment::{Word, collapsed_newlines, n_characters, strip};

const MAX_DUPLICATE_LINES: f64 = 0.30;
const MAX_DUPLICATE_PARAGRAPHS: f64 = 0.30;
const MAX_DUPLICATE_LINE_CHARACTERS: f64 = 0.20;
const MAX_DUPLICATE_PARAGRAPH_CHARACTERS: f64 = 0.20;
const MAX_DUPLICATE_LINE_CHARACTERS_DOLMA: f64 = 0.30;
const MAX_TOP_NGRAM_CHARACTERS: [(usize, f64, &str); 3] = [
    (2, 0.20, "repetition_top_2_gram"),
    (3, 0.18, "repetition_top_3_gram"),
    (4, 0.16, "repetition_top_4_gram"),
];
const MAX_DUPLICATE_NGRAM_CHARACTERS: [(usize, f64, &str); 6] = [
    (5, 0.15, "repetition_duplicate_5_grams"),
    (6, 0.14, "repetition_duplicate_6_grams"),
    (7, 0.13, "repetition_duplicate_7_grams"),
    (8, 0.12, "repetition_duplicate_8_grams"),
    (9, 0.11, "repetition_duplicate_9_grams"),
    (10, 0.10, "repetition_duplicate_10_grams"),
];

/// Whose reading; the Python twin has the table of their differences.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reading {
    Paper,
    Fineweb,
    Dolma,
    Dclm,
}

/// The first rule that hits, in the reading's order.
pub fn check(page: &Page, reading: Reading) -> Option<&'static str> {
    match reading {
        Reading::Paper => check_segments(page, |found| (found.n_later, found.later_characters))
            .or_else(|| check_words(page, page.split_words())),
        Reading::Fineweb => check_fineweb(page),
        Reading::Dolma => check_dolma(page),
        Reading::Dclm => check_dclm(page),
    }
}

fn check_fineweb(page: &Page) -> Option<&'static str> {
    let (text, n_characters) = (page.text(), page.n_characters());
    let copies = find_duplicates(collapsed_newlines(strip(text), 2));
    if ratio(copies.n_later, copies.n_segments) > MAX_DUPLICATE_PARAGRAPHS {
        return Some("repetition_paragraphs");
    }
    if ratio(copies.later_characters, n_characters) > MAX_DUPLICATE_PARAGRAPH_CHARACTERS {
        return Some("repetition_paragraph_characters");
    }
    let copies = find_duplicates(collapsed_newlines(text, 1));
    if ratio(copies.n_later, copies.n_segments) > MAX_DUPLICATE_LINES {
        return Some("repetition_lines");
    }
    if ratio(copies.later_characters, n_characters) > MAX_DUPLICATE_LINE_CHARACTERS {
        return Some("repetition_line_characters");
    }
    let words = page.unicode_words();
    let mut names = page.names_of(words);
    for (n, limit, reason) in MAX_TOP_NGRAM_CHARACTERS {
        names.lengthen_to(n);
        if ratio(first_top_characters(&names, words, n, n - 1), n_characters) > limit {
            return Some(reason);
        }
    }
    let run = RunTogether::new(text, words);
    let mut limits = MAX_DUPLICATE_NGRAM_CHARACTERS.into_iter();
    let hit =
        limits.find(|&(n, limit, _)| ratio(run.duplicate_characters(n), n_characters) > limit);
    hit.map(|(_, _, reason)| reason)
}

/// Code points of the first of the commonest n-grams, with what joins its words, × its count.
fn first_top_characters(names: &Names, words: &[Word], n: usize, n_joints: usize) -> usize {
    if words.len() < n {
        return 0;
    }
    let (count, place) = match names.commonest() {
        Some((count, mut places)) => (count, places.next().unwrap_or(0)),
        None => (1, 0),
    };
    (length(&words[place..place + n]) + n_joints) * count
}

fn check_dolma(page: &Page) -> Option<&'static str> {
    let words = page.split_words();
    let total = length(words);
    let repeated = find_duplicates(page.text().split('\n'));
    if ratio(repeated.n_members, repeated.n_segments) > MAX_DUPLICATE_LINES {
        return Some("repetition_lines");
    }
    if ratio(repeated.member_characters, total) > MAX_DUPLICATE_LINE_CHARACTERS_DOLMA {
        return Some("repetition_line_characters");
    }
    let mut names = page.names_of(words);
    for (n, limit, reason) in MAX_TOP_NGRAM_CHARACTERS {
        names.lengthen_to(n);
        if ratio(first_top_characters(&names, words, n, 0), total) > limit {
            return Some(reason);
        }
    }
    for (n, limit, reason) in MAX_DUPLICATE_NGRAM_CHARACTERS {
        names.lengthen_to(n);
        let places = names.repeated_places();
        let repeated: usize = places.map(|place| length(&words[place..place + n])).sum();
        // Every word stands in n n-grams, those at either end in fewer.
        let all: usize = if words.len() < n {
            0
        } else {
            let ends =
                |i: usize| words[i].n_characters() + words[words.len() - 1 - i].n_characters();
            let missing: usize = (0..n - 1).map(|i| (n - 1 - i) * ends(i)).sum();
            n * total - missing
        };
        if ratio(repeated, all) > limit {
            return Some(reason);
        }
    }
    None
}

fn check_dclm(page: &Page) -> Option<&'static str> {
    if strip(page.text()).is_empty() {
        return Some("repetition_empty");
    }
    if let Some(reason) = check_segments(page, |found| (found.n_members, found.member_characters)) {
        return Some(reason);
    }
    let words = page.unicode_words().iter();
    let words: Vec<Word> = words
        .filter(|word| word.begins_alphanumeric())
        .copied()
        .collect();
    check_words(page, &words)
}

/// Lines, paragraphs, then the characters of either; a single segment repeats nothing.
fn check_segments(page: &Page, of: impl Fn(&Duplicates) -> (usize, usize)) -> Option<&'static str> {
    let segments = |border| {
        let pieces = page.text().split(border).map(strip);
        pieces.filter(|piece: &&str| !piece.is_empty())
    };
    let lines = find_duplicates(segments("\n"));
    let (n_lines, line_characters) = of(&lines);
    if ratio(n_lines, lines.n_segments) > MAX_DUPLICATE_LINES {
        return Some("repetition_lines");
    }
    let paragraphs = find_duplicates(segments("\n\n"));
    let (n_paragraphs, paragraph_characters) = of(&paragraphs);
    if ratio(n_paragraphs, paragraphs.n_segments) > MAX_DUPLICATE_PARAGRAPHS {
        return Some("repetition_paragraphs");
    }
    let characters = |border| -> usize {
        segments(border)
            .map(|segment| n_characters(segment.as_bytes()))
            .sum()
    };
    if line_characters > 0
        && ratio(line_characters, characters("\n")) > MAX_DUPLICATE_LINE_CHARACTERS
    {
        return Some("repetition_line_characters");
    }
    if paragraph_characters > 0
        && ratio(paragraph_characters, characters("\n\n")) > MAX_DUPLICATE_PARAGRAPH_CHARACTERS
    {
        return Some("repetition_paragraph_characters");
    }
    None
}

/// Top and duplicate n-grams, out of the characters of the words.
fn check_words(page: &Page, words: &[Word]) -> Option<&'static str> {
    let total = length(words);
    let mut names = page.names_of(words);
    for (n, limit, reason) in MAX_TOP_NGRAM_CHARACTERS {
        names.lengthen_to(n);
        let Some((count, places)) = names.commonest() else {
            continue;
        };
        let longest = places.map(|place| length(&words[place..place + n])).max();
        if ratio(longest.unwrap_or(0) * count, total) > limit {
            return Some(reason);
        }
    }
    for (n, limit, reason) in MAX_DUPLICATE_NGRAM_CHARACTERS {
        names.lengthen_to(n);
        if ratio(covered_characters(&names, words, n), total) > limit {
            return Some(reason);
        }
    }
    None
}

/// Code points of the words that lie under any n-gram that repeats, each word once.
fn covered_characters(names: &Names, words: &[Word], n: usize) -> usize {
    let (mut total, mut reached) = (0, 0);
    for place in names.repeated_places() {
        total += length(&words[place.max(reached)..place + n]);
        reached = place + n;
    }
    total
}

/// Code points of the words without what stands between them.
fn length(words: &[Word]) -> usize {
    words.iter().map(Word::n_characters).sum()
}
