use super::*;
use crate::random::random_from;

fn counted(words: &[(&str, u64)]) -> PretokenCounts {
    let mut pretokens = PretokenCounts::new();
    for (word, count) in words {
        pretokens.add(word.as_bytes(), *count);
    }
    pretokens
}

fn trained(pretokens: &PretokenCounts, options: &TrainOptions) -> Trained {
    train(pretokens.clone(), options, &mut |_, _, _| Ok(())).expect("valid options")
}

fn options(vocab_size: usize, tie_break: TieBreak) -> TrainOptions {
    TrainOptions {
        vocab_size,
        tie_break,
        ..TrainOptions::default()
    }
}

fn merges_of(trained: &Trained) -> Vec<String> {
    let text = |id| String::from_utf8_lossy(trained.vocab.bytes(id)).into_owned();
    let merges = trained.merges.iter();
    merges
        .map(|m| format!("{}+{}", text(m.left), text(m.right)))
        .collect()
}

fn merges(words: &[(&str, u64)], vocab_size: usize, tie_break: TieBreak) -> Vec<String> {
    merges_of(&trained(&counted(words), &options(vocab_size, tie_break)))
}

const SENNRICH: [(&str, u64); 4] = [("low", 5), ("lower", 2), ("widest", 3), ("newest", 6)];

#[test]
fn tie_rules_give_the_published_merges() {
    let bytes = merges(&SENNRICH, 256 + 6, TieBreak::Bytes);
    assert_eq!(bytes, ["s+t", "e+st", "o+w", "l+ow", "w+est", "n+e"]);
    let hf = merges(&SENNRICH, 256 + 6, TieBreak::Hf);
    assert_eq!(hf, ["e+s", "es+t", "l+o", "lo+w", "e+w", "n+ew"]);
}

#[test]
fn overlapping_occurrences_merge_left_to_right() {
    assert_eq!(
        merges(&[("aaaa", 2), ("aaa", 1)], 300, TieBreak::Bytes),
        ["a+a", "aa+aa", "aa+a"]
    );
    assert_eq!(
        merges(&[("abababab", 1)], 300, TieBreak::Bytes),
        ["a+b", "ab+ab", "abab+abab"]
    );
}

#[test]
fn a_vocabulary_too_small_is_refused() {
    let too_few = TrainOptions {
        special_tokens: vec!["<|endoftext|>".into()],
        ..options(256, TieBreak::Bytes)
    };
    let error = too_few.check().expect_err("257 is the least").to_string();
    assert!(error.starts_with("vocab_size must be at least 257 (256 bytes + 1"));
    let too_many = options((1 << 21) + 1, TieBreak::Bytes);
    let error = too_many.check().expect_err("ids are limited").to_string();
    assert!(
        error.ends_with("and at most 2097152, got 2097153"),
        "{error}"
    );
}

/// Words over few letters, with repeats, short and long; counts on both sides of where the
/// queue changes its kind.
fn random_words(random: &mut impl FnMut(u64) -> u64) -> Vec<(Vec<u8>, u64)> {
    let n_letters = 1 + random(4);
    let mut words = Vec::new();
    for _ in 0..=random(30) {
        let period = 1 + random(3);
        let repeats = random(3) == 0;
        let mut word: Vec<u8> = Vec::new();
        let longest = if random(8) == 0 { 90 } else { 12 };
        for i in 0..=random(longest) {
            match word.get((i.wrapping_sub(period)) as usize) {
                Some(&letter) if repeats => word.push(letter),
                _ => word.push(b'a' + random(n_letters) as u8),
            }
        }
        let count = match random(4) {
            0 => 1 + random(3),
            1 => 1 + random(40),
            2 => 60_000 + random(12_000),
            _ => 1 << random(40),
        };
        words.push((word, count));
    }
    words
}

#[test]
fn merges_equal_those_of_the_hash_map_on_random_words() {
    let mut random = random_from(11);
    for round in 0..3_000 {
        let words = random_words(&mut random);
        let mut pretokens = PretokenCounts::new();
        for (word, count) in &words {
            pretokens.add(word, *count);
        }
        for tie_break in [TieBreak::Bytes, TieBreak::Hf, TieBreak::FirstId] {
            let options = TrainOptions {
                // Both widths of symbols.
                vocab_size: if round % 2 == 0 { 300 } else { 70_000 },
                min_frequency: [0, 1, 2, 20, 60_000][random(5) as usize],
                max_token_length: [None, Some(1 + random(9) as usize)][random(2) as usize],
                ..options(0, tie_break)
            };
            let start = Start::new(&options).expect("valid options");
            let mut held = Vec::new();
            let packed = start.words::<u32>(&pretokens).expect("few words");
            packed.for_each(|_, count, symbols| held.push((symbols.to_vec(), count)));
            let limit = options.vocab_size - 256;
            let expected = oracle::merges(&held, start.vocab, &options, limit);
            let found = trained(&pretokens, &options).merges;
            assert_eq!(found, expected, "{tie_break:?} {words:?}");
        }
    }
}

#[test]
fn extending_equals_training_at_once() {
    let mut random = random_from(3);
    for round in 0..400 {
        let mut pretokens = PretokenCounts::new();
        for (word, count) in random_words(&mut random) {
            pretokens.add(&word, count);
        }
        let tie_break = [TieBreak::Bytes, TieBreak::Hf, TieBreak::FirstId][round % 3];
        let specials = match tie_break {
            // Ids after those of the merges do not stay the last ones.
            TieBreak::FirstId => Vec::new(),
            TieBreak::Bytes | TieBreak::Hf => vec!["<|x|>".to_owned()],
        };
        let mut options = TrainOptions {
            special_tokens: specials,
            ..options(257 + random(20) as usize, tie_break)
        };
        let finish = |options: &TrainOptions| {
            let trained = trained(&pretokens, options);
            trained
                .into_tokenizer(options, "gpt2".into())
                .expect("valid")
        };
        let base = finish(&options);
        options.vocab_size += random(20) as usize;
        let at_once = finish(&options);
        options.extend = Some(Arc::new(base));
        let extended = finish(&options);
        assert_eq!(extended.merges(), at_once.merges());
        assert!(extended.vocab().iter().eq(at_once.vocab().iter()));
        assert!(extended.special_tokens().eq(at_once.special_tokens()));
    }
}

#[test]
fn a_token_that_no_merge_made_keeps_its_id() {
    let bytes = (0..=255).map(|byte| (u32::from(byte), vec![byte]));
    let base = Tokenizer::new(Parts {
        vocab: bytes.chain([(256, b"abc".to_vec())]).collect(),
        merges: Vec::new(),
        special_tokens: vec![("d".into(), Some(100)), ("ef".into(), None)],
        pattern: "gpt2".into(),
        merge_by: MergeBy::Merges,
    });
    let options = TrainOptions {
        extend: Some(Arc::new(base.expect("valid"))),
        ..options(300, TieBreak::Bytes)
    };
    let trained = trained(&counted(&[("abc", 5), ("ef", 1)]), &options);
    assert_eq!(merges_of(&trained), ["b+c", "a+bc", "e+f"]);
    let made: Vec<u32> = trained.merges.iter().map(|merge| merge.new).collect();
    // A special token is not text: the same bytes as text are another token.
    assert_eq!(made, [258, 256, 259]);
    let tokenizer = trained
        .into_tokenizer(&options, "gpt2".into())
        .expect("valid");
    let mut ids: Vec<u32> = Vec::new();
    tokenizer
        .encode_ordinary_into(b"abc", &mut ids)
        .expect("a named pattern");
    assert_eq!(ids, [256]);
}

#[test]
fn what_is_extended_must_fit() {
    let base = trained(&counted(&SENNRICH), &options(260, TieBreak::Bytes));
    let base = base.into_tokenizer(&options(260, TieBreak::Bytes), "gpt2".into());
    let too_small = TrainOptions {
        special_tokens: vec!["<|x|>".into()],
        extend: Some(Arc::new(base.expect("valid"))),
        ..options(260, TieBreak::Bytes)
    };
    let error = too_small.check().expect_err("261 is the least").to_string();
    let expected = "vocab_size must be at least 261 (260 ids of the tokenizer to extend + \
                    1 new special token) and at most 2097152, got 260";
    assert_eq!(error, expected);
    let taken = TrainOptions {
        special_tokens: vec!["est".into()],
        vocab_size: 300,
        ..too_small
    };
    let error = taken.check().expect_err("a token already").to_string();
    assert!(error.ends_with("got \"est\""), "{error}");
}
