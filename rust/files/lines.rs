//! Lines as texts of their own, many of them in one batch: a line is short, and what counts
//! or looks up pretokens wants hundreds at a time.

use memchr::memchr_iter;

use crate::error::Result;
use crate::pretokenize::{Batch, Pattern};

/// Pretokens of whole lines that are gathered before they are handed on.
const GATHER: usize = 512;

/// A line of at least this many bytes is handed on by itself.
const LONG_LINE: usize = 1 << 16;

/// Calls `each` with every pretoken of a segment whose lines, endings kept, are split each
/// by itself; `ends` is working memory.
pub(super) fn for_each_batch(
    pattern: &Pattern,
    segment: &[u8],
    ends: &mut Vec<u32>,
    each: &mut impl FnMut(Batch<'_>),
) -> Result<()> {
    match pattern {
        Pattern::Gpt2 => mend_at_line_ends(pattern, segment, ends, each),
        _ => gather_lines(pattern, segment, ends, each),
    }
}

fn gather_lines(
    pattern: &Pattern,
    segment: &[u8],
    ends: &mut Vec<u32>,
    each: &mut impl FnMut(Batch<'_>),
) -> Result<()> {
    let mut gathered: Vec<u32> = Vec::with_capacity(2 * GATHER);
    let (mut base, mut line_start) = (0, 0);
    let line_ends = memchr_iter(b'\n', segment).map(|at| at + 1);
    for line_end in line_ends.chain([segment.len()]) {
        let line = &segment[line_start..line_end];
        let is_long = line.len() >= LONG_LINE;
        if !is_long {
            let offset = (line_start - base) as u32;
            pattern.split_batches(line, ends, |batch| {
                gathered.extend(batch.ends.iter().map(|&end| offset + end));
            })?;
        }
        if is_long || gathered.len() >= GATHER || line_end == segment.len() {
            if !gathered.is_empty() {
                each(Batch {
                    segment: &segment[base..],
                    start: 0,
                    ends: &gathered,
                });
                gathered.clear();
            }
            base = line_end;
        }
        if is_long {
            pattern.split_batches(line, ends, &mut *each)?;
        }
        line_start = line_end;
    }
    Ok(())
}

/// GPT-2's pretokens of lines, from those of the whole segment: they differ only in runs of
/// whitespace that hold a line end. There every line end is followed by a border, and what
/// blanks stand before it are one pretoken with it.
fn mend_at_line_ends(
    pattern: &Pattern,
    segment: &[u8],
    ends: &mut Vec<u32>,
    each: &mut impl FnMut(Batch<'_>),
) -> Result<()> {
    let mut mended: Vec<u32> = Vec::new();
    // Where the pretoken began whose end was taken away at the end of a batch.
    let mut open = None;
    pattern.split_batches(segment, ends, |batch| {
        let text = batch.segment;
        let start = open.take().unwrap_or(batch.start);
        let last = batch.ends.last().map_or(batch.start, |&end| end as usize);
        let (mut rest, mut is_changed) = (batch.ends, false);
        mended.clear();
        let upto = text.len().min(last + 1);
        for at in memchr_iter(b'\n', &text[batch.start..upto]) {
            let at = batch.start + at;
            if stands_alone(text, at) {
                continue;
            }
            is_changed = true;
            let n_before = n_below(rest, at as u32);
            mended.extend_from_slice(&rest[..n_before]);
            rest = &rest[n_before..];
            if rest.first() == Some(&(at as u32)) {
                if !follows_blank(text, at) {
                    mended.push(at as u32);
                }
                rest = &rest[1..];
            }
            let after = at as u32 + 1;
            if at < last && rest.first() != Some(&after) {
                mended.push(after);
            }
        }
        if is_changed {
            mended.extend_from_slice(rest);
            rest = &mended;
        }
        let end = rest.last().map_or(start, |&end| end as usize);
        open = (end < last).then_some(end);
        if !rest.is_empty() {
            each(Batch {
                segment: text,
                start,
                ends: rest,
            });
        }
    })
}

/// How many of some ascending ends are below a position, which is mostly not far.
#[inline(always)]
fn n_below(ends: &[u32], at: u32) -> usize {
    let mut n = 0;
    while let Some(next) = ends[n..].first_chunk::<8>() {
        let n_below: usize = next.iter().map(|&end| usize::from(end < at)).sum();
        n += n_below;
        if n_below < 8 {
            return n;
        }
    }
    n + ends[n..].iter().take_while(|&&end| end < at).count()
}

/// Whether a line end surely is a pretoken by itself: no whitespace stands beside it, but for
/// another line end, where text follows the two.
#[inline(always)]
fn stands_alone(text: &[u8], at: usize) -> bool {
    let is_plain = |byte: &u8| !matches!(byte, b'\t'..=b'\r' | b' ' | 0x80..);
    let before = |n: usize| at.checked_sub(n).map(|before| &text[before]);
    let (last, next) = (before(1), text.get(at + 1));
    match (last.is_none_or(is_plain), next.is_none_or(is_plain)) {
        (true, true) => true,
        (true, false) => next == Some(&b'\n') && text.get(at + 2).is_some_and(is_plain),
        (false, true) => last == Some(&b'\n') && before(2).is_none_or(is_plain) && next.is_some(),
        (false, false) => false,
    }
}

/// Whether whitespace other than a line end stands before a position.
fn follows_blank(text: &[u8], at: usize) -> bool {
    let Some(last) = at.checked_sub(1) else {
        return false;
    };
    if text[last].is_ascii() {
        return matches!(text[last], b'\t' | b'\x0B'..=b'\r' | b' ');
    }
    let from = at.saturating_sub(4);
    let start = (from..at).rev().find(|&i| text[i] & 0xC0 != 0x80);
    let last = start.and_then(|start| std::str::from_utf8(&text[start..at]).ok());
    last.is_some_and(|last| last.chars().all(char::is_whitespace))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::random_from;

    fn pretokens(pattern: &Pattern, text: &[u8]) -> Vec<Vec<u8>> {
        let mut out = Vec::new();
        let mut each = |batch: Batch<'_>| {
            let pretokens = batch.pretokens();
            out.extend(pretokens.map(|(start, end)| batch.segment[start..end].to_vec()));
        };
        for_each_batch(pattern, text, &mut Vec::new(), &mut each).expect("a named pattern");
        out
    }

    fn pretokens_line_by_line(pattern: &Pattern, text: &[u8]) -> Vec<Vec<u8>> {
        let mut out = Vec::new();
        for line in text.split_inclusive(|&byte| byte == b'\n') {
            let each = |pretoken: &[u8]| out.push(pretoken.to_vec());
            pattern.split(line, each).expect("a named pattern");
        }
        out
    }

    fn check(pattern: &str, text: &[u8]) {
        let pattern = Pattern::new(pattern).expect("a named pattern");
        let (found, expected) = (
            pretokens(&pattern, text),
            pretokens_line_by_line(&pattern, text),
        );
        let at = found.iter().zip(&expected).position(|(a, b)| a != b);
        assert!(
            found == expected,
            "pretoken {at:?} of {:?}",
            text[..text.len().min(200)].escape_ascii().to_string()
        );
    }

    #[test]
    fn short_texts_equal_their_lines() {
        let pieces = ["\n", " ", "\t", "\r", "a", "!", "\u{A0}", "1"];
        let mut texts = vec![String::new()];
        for _ in 0..5 {
            texts = texts
                .iter()
                .flat_map(|text| pieces.iter().map(move |piece| format!("{text}{piece}")))
                .collect();
            for text in &texts {
                check("gpt2", text.as_bytes());
            }
        }
    }

    #[test]
    fn long_texts_equal_their_lines_wherever_batches_end() {
        let pieces: [&[u8]; 12] = [
            b"\n",
            b"\n",
            b" ",
            b"\r\n",
            b"word",
            b" it's",
            b"!?",
            b"\x0B",
            b"\xC2\xA0",
            b"\xE3\x80",
            b"\xE2\x80\xA8",
            b"12",
        ];
        let mut random = random_from(5);
        for round in 0..300 {
            let n_pieces = random(6_000);
            // Some texts are nearly all whitespace.
            let n_kinds = if round % 3 == 0 {
                4
            } else {
                pieces.len() as u64
            };
            let text: Vec<u8> = (0..n_pieces)
                .flat_map(|_| pieces[random(n_kinds) as usize].iter().copied())
                .collect();
            for pattern in ["gpt2", "cl100k", "o200k"] {
                check(pattern, &text);
            }
        }
    }

    #[test]
    fn a_long_line_stands_by_itself() {
        let long = "word ".repeat(LONG_LINE / 4);
        for text in [
            format!("a\n\n{long}\nb \n"),
            long.clone(),
            format!("{long}\n"),
        ] {
            for pattern in ["gpt2", "cl100k"] {
                check(pattern, text.as_bytes());
            }
        }
    }
}
