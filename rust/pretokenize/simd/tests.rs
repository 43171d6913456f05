//! Block scanners against the scalar ones, on every back end that this machine has.

use super::super::scalar::{self, Cl100kEnd};
use super::*;

/// Appends all starts but the first.
type Scan = fn(&[u8], &mut Vec<u32>);

fn by<S: Scheme>(
    mut next: impl FnMut(&mut BlockScanner<'_, S>, &mut Vec<u32>) -> bool,
) -> impl FnMut(&[u8], &mut Vec<u32>) {
    move |text, starts| {
        let mut scanner = BlockScanner::<S>::new(text);
        let mut batch = Vec::new();
        while next(&mut scanner, &mut batch) {
            starts.append(&mut batch);
        }
        starts.append(&mut batch);
    }
}

fn portable<S: Scheme>(text: &[u8], starts: &mut Vec<u32>) {
    by::<S>(|scanner, batch| scanner.next_by(Portable, 100, batch))(text, starts);
}

fn dispatched<S: Scheme>(text: &[u8], starts: &mut Vec<u32>) {
    by::<S>(|scanner, batch| scanner.next_starts(1, batch))(text, starts);
}

#[cfg(target_arch = "x86_64")]
fn avx2<S: Scheme>(text: &[u8], starts: &mut Vec<u32>) {
    let backend = x86::Avx2::detect().expect("listed only where it is there");
    by::<S>(|scanner, batch| {
        // SAFETY: the back end exists, so the processor has the instructions.
        unsafe { scanner.next_avx2(backend, 100, batch) }
    })(text, starts);
}

fn back_ends<S: Scheme>() -> Vec<(&'static str, Scan)> {
    let mut out: Vec<(&'static str, Scan)> =
        vec![("portable", portable::<S>), ("dispatched", dispatched::<S>)];
    #[cfg(target_arch = "x86_64")]
    if x86::Avx2::detect().is_some() {
        out.push(("avx2", avx2::<S>));
    }
    out
}

fn check_scheme<S: Scheme>(name: &str, text: &[u8]) {
    let mut expected = Vec::new();
    let mut at = 0;
    while at < text.len() {
        at = S::scalar_end(text, at);
        expected.push(at as u32);
    }
    expected.pop();
    for (back_end, scan) in back_ends::<S>() {
        let mut starts = Vec::new();
        scan(text, &mut starts);
        assert!(
            starts == expected,
            "{name} by {back_end} on {:?}: {starts:?}, not {expected:?}",
            text.escape_ascii().to_string()
        );
    }
}

fn check(text: &[u8]) {
    check_scheme::<Gpt2>("gpt2", text);
    check_scheme::<Cl100k>("cl100k", text);
    check_scheme::<Cl100k2023>("cl100k_2023", text);
    check_scheme::<Qwen2>("qwen2", text);
    check_scheme::<O200k>("o200k", text);
}

const PIECES: [&[u8]; 42] = [
    b" ",
    b" ",
    b"\n",
    b"\r",
    b"\t",
    b"a",
    b"B",
    b"s",
    b"S",
    b"re",
    b"lL",
    b"1",
    b"23",
    b"4567",
    b"!",
    b"/",
    b"'",
    b"'",
    b"'s",
    b"'S",
    "'ſ".as_bytes(),
    b"\n/",
    b"!\n",
    b"\n  ",
    "\u{a0}".as_bytes(),
    "\u{2003}".as_bytes(),
    "\u{3000}".as_bytes(),
    "é".as_bytes(),
    "É".as_bytes(),
    "世".as_bytes(),
    "䷀".as_bytes(),
    "䶀".as_bytes(),
    "한".as_bytes(),
    "か".as_bytes(),
    "😀".as_bytes(),
    "𝐀".as_bytes(),
    "\u{301}".as_bytes(),
    "٣".as_bytes(),
    b"\xE4\xB8",
    b"\xED\xA0\x80",
    b"\x80",
    b"\0",
];

/// A fixed sequence of numbers.
fn random_numbers(seed: u64) -> impl FnMut(usize) -> usize {
    let mut state = seed;
    move |below| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    }
}

#[test]
fn blocks_equal_the_scalar_scanners_on_random_mixtures() {
    let mut random = random_numbers(11);
    for round in 0..30_000 {
        let n = random(if round % 10 == 0 { 200 } else { 90 });
        let palette: Vec<_> = (0..=random(12))
            .map(|_| PIECES[random(PIECES.len())])
            .collect();
        let mut text = Vec::new();
        for _ in 0..n {
            text.extend_from_slice(palette[random(palette.len())]);
        }
        check(&text);
    }
}

#[test]
fn blocks_equal_the_scalar_scanners_on_random_bytes() {
    let mut random = random_numbers(5);
    let started = std::time::Instant::now();
    while started.elapsed().as_secs_f32() < 2.0 {
        let lowest = [0, 0x20, 0x80, 0xC0, 0xE0][random(5)];
        let text: Vec<u8> = (0..random(300))
            .map(|_| match random(3) {
                0 => random(256) as u8,
                1 => (lowest + random(256 - lowest)) as u8,
                _ => (0x80 + random(64)) as u8,
            })
            .collect();
        check(&text);
    }
}

/// Every character class that a pattern tells apart, and what has tripped scanners.
const ALPHABET: [&str; 18] = [
    " ", "\n", "\r", "\t", "a", "A", "1", "!", "'", "s", "ſ", "é", "世", "\u{301}", "\u{A0}", "\0",
    "/", "\u{3000}",
];

/// All strings of `len` characters, between other texts so that they come to lie on every
/// side of the edge of a block.
fn check_all_strings(len: u32, before: &[usize]) {
    let n = ALPHABET.len();
    for number in 0..n.pow(len) {
        let chars = (0..len).map(|i| ALPHABET[number / n.pow(i) % n]);
        let string: String = chars.collect();
        check(string.as_bytes());
        for &before in before {
            for filler in ["x", "!", " ", "1", "\n", "X", "世"] {
                let filler = filler.repeat(3);
                let text = format!("{}{filler}", " a".repeat(40));
                let text = &text[text.len() - before - filler.len()..];
                check(format!("{text}{string}").as_bytes());
                check(format!("{text}{string} b").as_bytes());
            }
        }
    }
}

#[test]
fn blocks_equal_the_scalar_scanners_on_all_short_strings() {
    for len in 1..=2 {
        check_all_strings(len, &[58, 59, 60, 61]);
    }
    check_all_strings(3, &[]);
}

#[test]
#[ignore = "minutes: all strings of three characters at every side of an edge, all of four"]
fn blocks_equal_the_scalar_scanners_on_all_strings() {
    check_all_strings(3, &[57, 58, 59, 60, 61]);
    check_all_strings(4, &[]);
}

#[test]
fn blocks_equal_the_scalar_scanners_from_every_offset() {
    let text = "Y'all'd've it's ''s x's '\u{a0}\u{2003}a \u{2003}\u{2003} 'tis 12's—don't！ 日本語。\u{a0} z \
        if x:\n\n    return\u{3000}12345678 // ABCdeFG 日本ABC \n  \n\t}\r\n!\n/\nКто там? ❤️ สวัสดีชาวโลก it'S世Bc ";
    let text = text.repeat(3);
    for start in 0..250 {
        check(&text.as_bytes()[start..]);
        check(&text.as_bytes()[..text.len() - start]);
    }
}

#[test]
fn contractions_lie_on_every_side_of_an_edge() {
    for contraction in [
        "'s", "'S", "'ll", "'LL", "'ſ", "'x", "'s's", "''s", "'sA", "'s世Bc",
    ] {
        for before in 50..70 {
            for (filler, after) in [("x", "x"), ("X", " x"), (" ", "1"), ("!", "!"), ("世", "")] {
                check(format!("{}{filler}{contraction}{after}", "y".repeat(before)).as_bytes());
            }
        }
    }
}

/// Where an unmapped page follows the text, a scanner that reads past its end is killed.
#[cfg(unix)]
#[test]
fn nothing_past_the_text_is_read() {
    let page = 1 << 16;
    // SAFETY: a fresh private mapping; its second half becomes unreadable, and only the first
    // is written and read.
    let memory = unsafe {
        let memory = libc::mmap(
            std::ptr::null_mut(),
            2 * page,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        assert!(memory != libc::MAP_FAILED);
        let guard = memory.cast::<u8>().add(page);
        assert_eq!(libc::mprotect(guard.cast(), page, libc::PROT_NONE), 0);
        std::slice::from_raw_parts_mut(memory.cast::<u8>(), page)
    };
    for end in ["世", "\u{3000}", "😀", "'s", "é", " ", "1", "!"] {
        for cut in 0..4 {
            let text = format!("{}{end}", "日本 abc 12 d's ".repeat(9));
            let text = &text.as_bytes()[..text.len() - cut];
            let start = page - text.len();
            memory[start..].copy_from_slice(text);
            for from in start..page {
                check(&memory[from..]);
            }
        }
    }
    // SAFETY: nothing refers to the mapping any more.
    unsafe { libc::munmap(memory.as_mut_ptr().cast(), 2 * page) };
}

/// All runs of whitespace and punctuation matter only by what stands around them, so real
/// text is cut at every offset of a block.
#[test]
fn blocks_equal_the_scalar_scanners_on_real_text() {
    let Ok(folder) = std::env::var("RSLM_TEST_DATA") else {
        return;
    };
    for file in std::fs::read_dir(folder).expect("a folder").flatten() {
        let path = file.path();
        if path.extension().is_some_and(|e| e == "txt") {
            let text = std::fs::read(&path).expect("readable");
            for offset in 0..70 {
                let part = &text[text.len().min(offset)..];
                check(&part[..part.len().min(1 << 16)]);
            }
        }
    }
}

#[test]
fn schemes_are_the_patterns_of_their_names() {
    let text = b"  \n ";
    assert_eq!(Cl100k::scalar_end(text, 0), 4);
    assert_eq!(Cl100k2023::scalar_end(text, 0), 3);
    assert_eq!(scalar::cl100k(b"123", 0, Cl100kEnd::Shipped, 1), 1);
    assert_eq!(Qwen2::scalar_end(b"123", 0), 1);
}
