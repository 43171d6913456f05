"""The reference against worked examples, golden files and the tokenizers of others."""

import itertools
import json
from collections import Counter
from collections.abc import Callable

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st
from strategies import CORPORA, SPECIAL_TOKENS, TEXTS, texts_with_special

from rslm import reference

PATTERNS = list(reference.PATTERNS)
END_OF_TEXT = "<|endoftext|>"
SENNRICH = "low low low low low lower lower widest widest widest" + " newest" * 6


def merges_as_text(merges: list[tuple[bytes, bytes]]) -> str:
    return " ".join(f"{left.decode()}+{right.decode()}" for left, right in merges)


def recounting_merges(text: str, n_merges: int) -> list[tuple[bytes, bytes]]:
    """Merges by Algorithm 1 to the letter: every pair of every word counted anew each time."""
    words = Counter(reference.pretokenize(text, "gpt2"))
    symbols = {word: [bytes([byte]) for byte in word.encode()] for word in words}
    merges: list[tuple[bytes, bytes]] = []
    while len(merges) < n_merges:
        counts: Counter[tuple[bytes, bytes]] = Counter()
        for word, count in words.items():
            for pair in zip(symbols[word], symbols[word][1:], strict=False):
                counts[pair] += count
        if not counts:
            break
        best = max(counts, key=lambda pair: (counts[pair], pair))
        merges.append(best)
        symbols = {word: reference.merge_pair(parts, best) for word, parts in symbols.items()}
    return merges


@pytest.mark.parametrize(
    ("tie_break", "merges"),
    [
        ("bytes", "s+t e+st o+w l+ow w+est n+e"),
        ("hf", "e+s es+t l+o lo+w e+w n+ew"),
        ("first_id", "e+s es+t l+o lo+w e+w n+ew"),
    ],
)
def test_train_bpe_gives_known_merges_of_sennrichs_words(tie_break: str, merges: str) -> None:
    words = SENNRICH.split()
    _, learnt = reference.train_bpe(words, 256 + 6, tie_break=tie_break)
    assert merges_as_text(learnt) == merges


def test_train_bpe_compares_tuples_not_joined_bytes() -> None:
    # "ab" + "c" and "a" + "zz" are equally frequent; joined, "azz" would be the greater.
    pretokens = {b"ab": 9, b"zz": 8, b"abc": 1, b"azz": 1}
    symbol_ids = {bytes([byte]): byte for byte in range(256)}
    merges = reference.learn_merges(pretokens, 4, symbol_ids, "bytes")
    assert merges_as_text(merges) == "a+b z+z ab+c a+zz"


def test_train_bpe_counts_overlapping_pairs_but_merges_left_to_right() -> None:
    _, merges = reference.train_bpe("aaa bcbc", 256 + 2)
    # (a, a) counts 2 in "aaa", as (b, c) does in " bcbc": the greater one goes first.
    assert merges_as_text(merges) == "b+c a+a"
    assert reference.merge_pair([b"a"] * 5, (b"a", b"a")) == [b"aa", b"aa", b"a"]


def test_train_bpe_ends_when_no_pair_is_left() -> None:
    vocab, merges = reference.train_bpe("abc", 1000)
    assert merges_as_text(merges) == "b+c a+bc"
    assert list(vocab) == list(range(258))


def test_train_bpe_needs_room_for_bytes_and_special_tokens() -> None:
    with pytest.raises(ValueError, match=r"at least 257 \(.*\), got 256"):
        reference.train_bpe("abc", 256, [END_OF_TEXT])


@pytest.mark.parametrize(
    ("tie_break", "first_tokens"),
    [
        ("bytes", [b"<s>", b"\x00", b"\x01", b"\x02"]),
        ("hf", [b"<s>", b"!", b'"', b"#"]),
        ("first_id", [b"\x00", b"\x01", b"\x02", b"\x03"]),
    ],
)
def test_vocab_order_follows_the_tie_rule(tie_break: str, first_tokens: list[bytes]) -> None:
    vocab, _ = reference.train_bpe("abab", 258, ["<s>"], tie_break=tie_break)
    assert [vocab[i] for i in range(4)] == first_tokens
    assert vocab[257] == (b"<s>" if tie_break == "first_id" else b"ab")


def test_special_tokens_are_walls_in_training() -> None:
    # Without the wall the second "a" would join the space, and the lookahead would see "b".
    counts = reference.count_pretokens(["a  <s>b<s>a <s>"], ["<s>"], "gpt2", "document")
    assert counts == {b"a": 2, b"  ": 1, b"b": 1, b" ": 1}


def test_unit_line_keeps_the_newline_and_sees_no_further() -> None:
    counts = reference.count_pretokens(["a\n\n\r\nb"], [], "gpt2", "line")
    assert counts == {b"a": 1, b"\n": 2, b"\r\n": 1, b"b": 1}
    assert reference.count_pretokens(["a\n\n\r\nb"], [], "gpt2", "document") == {
        b"a": 1,
        b"\n\n\r": 1,
        b"\n": 1,
        b"b": 1,
    }


@pytest.mark.parametrize(
    ("pattern", "text", "pretokens"),
    [
        ("gpt2", "it's IT'S  two", ["it", "'s", " IT", "'", "S", " ", " two"]),
        ("gpt2", "a\tb \n c12345", ["a", "\t", "b", " \n", " c", "12345"]),
        ("cl100k", "it'ſ\tword 12345", ["it", "'ſ", "\tword", " ", "123", "45"]),
        ("cl100k", "a!\n\nb", ["a", "!\n\n", "b"]),
        ("cl100k", "a  \n  ", ["a", "  \n  "]),
        ("cl100k_2023", "a  \n  ", ["a", "  \n", "  "]),
        ("o200k", "camelCase HTTPServer's", ["camel", "Case", " HTTPServer's"]),
        ("o200k", "a//\nb é\u0301", ["a", "//\n", "b", " é\u0301"]),
        (r"\w+", "a, b", ["a", ", ", "b"]),
        (r"x*", "axb", ["a", "x", "b"]),
    ],
)
def test_pretokenize_known_cases(pattern: str, text: str, pretokens: list[str]) -> None:
    assert reference.pretokenize(text, pattern) == pretokens


@given(TEXTS, st.sampled_from([*PATTERNS, r"\w+", "a|(b)|"]))
def test_pretokens_joined_are_the_text(text: str, pattern: str) -> None:
    assert "".join(reference.pretokenize(text, pattern)) == text


@pytest.mark.parametrize(
    ("text", "replaced"),
    [
        ("a\ud83db", "a\ufffdb"),
        ("\ude00", "\ufffd"),
        ("\ud83d\ude00", "😀"),
        ("\ufeffa", "\ufeffa"),
    ],
)
def test_lone_surrogates_become_replacement_characters(text: str, replaced: str) -> None:
    assert reference.replace_surrogates(text) == replaced


@given(st.data())
def test_split_special_takes_leftmost_then_longest(data: st.DataObject) -> None:
    special_tokens = data.draw(SPECIAL_TOKENS)
    text = data.draw(texts_with_special(special_tokens))
    pieces, plain, i = [], "", 0
    while i < len(text):
        token = max((t for t in special_tokens if text.startswith(t, i)), key=len, default="")
        if token:
            pieces += [plain, token]
            plain, i = "", i + len(token)
        else:
            plain, i = plain + text[i], i + 1
    assert reference.split_special(text, special_tokens) == [*pieces, plain]


@given(CORPORA)
def test_incremental_counts_equal_counting_anew(corpus: list[str]) -> None:
    text = " ".join(corpus)
    _, merges = reference.train_bpe(text, 256 + 30)
    assert merges == recounting_merges(text, 30)


@given(st.data())
def test_decode_inverts_encode(data: st.DataObject) -> None:
    special_tokens = data.draw(SPECIAL_TOKENS)
    corpus = data.draw(CORPORA)
    vocab, merges = reference.train_bpe(corpus, 256 + len(special_tokens) + 20, special_tokens)
    pattern = data.draw(st.sampled_from(PATTERNS))
    tokenizer = reference.Tokenizer(vocab, merges, special_tokens, pattern=pattern)
    text = data.draw(texts_with_special(special_tokens))
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(tokenizer.encode_ordinary(text)) == text
    assert list(tokenizer.encode_iterable(text)) == tokenizer.encode(text)


def test_special_tokens_get_the_next_ids() -> None:
    vocab, merges = reference.train_bpe("", 257, ["<s>"])
    tokenizer = reference.Tokenizer(vocab, merges, ["<s>", "<t>"])
    assert tokenizer.special_tokens == {"<s>": 0, "<t>": 257}
    assert tokenizer.encode("a<t>") == [ord("a") + 1, 257]
    assert tokenizer.decode([257, 256]) == "<t>\ufffd"


def golden_record(corpus: str, pattern: str, tie_break: str, unit: str) -> dict[str, object]:
    vocab, merges = reference.train_bpe(
        corpus, 257 + 120, [END_OF_TEXT], pattern=pattern, tie_break=tie_break, unit=unit
    )
    tokenizer = reference.Tokenizer(vocab, merges, [END_OF_TEXT], pattern=pattern)
    return {
        "pattern": pattern,
        "tie_break": tie_break,
        "unit": unit,
        "merges": [f"{left.hex()} {right.hex()}" for left, right in merges],
        "token_ids": tokenizer.encode(corpus),
    }


def test_golden_merges_and_ids(bpe_corpus: str, check_golden: Callable[[str, bytes], None]) -> None:
    cases = [(pattern, "bytes", "document") for pattern in PATTERNS]
    cases += [("gpt2", "hf", "document"), ("gpt2", "hf", "line"), ("gpt2", "first_id", "document")]
    records = [json.dumps(golden_record(bpe_corpus, *case)) for case in cases]
    check_golden("bpe/golden.jsonl", "\n".join(records).encode() + b"\n")


# Others' tokenizers.


def hf_tokenizer(corpus: list[str], vocab_size: int, special_tokens: list[str], pattern: str):
    """Hugging Face's trainer over the documents; gives its tokenizer."""
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(
                tokenizers.Regex(reference.PATTERNS[pattern]), "isolated"
            ),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special_tokens,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


def hf_byte_of_character() -> dict[str, int]:
    """GPT-2's printable characters, built from is_printable alone."""
    printable = [byte for byte in range(256) if reference.is_printable(byte)]
    others = [byte for byte in range(256) if not reference.is_printable(byte)]
    characters = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]
    return dict(zip(characters, printable + others, strict=True))


def assert_equals_hf(corpus: list[str], vocab_size: int, special_tokens: list[str], pattern: str):
    vocab, merges = reference.train_bpe(
        corpus, vocab_size, special_tokens, pattern=pattern, tie_break="hf"
    )
    tokenizer = hf_tokenizer(corpus, vocab_size, special_tokens, pattern)
    byte_of = hf_byte_of_character()

    def to_bytes(token: str) -> bytes:
        return bytes(byte_of[character] for character in token)

    hf_merges = json.loads(tokenizer.to_str())["model"]["merges"]
    assert merges == [(to_bytes(left), to_bytes(right)) for left, right in hf_merges]
    for token, token_id in tokenizer.get_vocab().items():
        assert vocab[token_id] == (token.encode() if token in special_tokens else to_bytes(token))
    assert len(vocab) == tokenizer.get_vocab_size()


@given(CORPORA, st.integers(0, 40))
def test_train_bpe_hf_equals_hugging_face_on_ties(corpus: list[str], n_merges: int) -> None:
    # They train on special tokens as on text; the corpora here hold none.
    assert_equals_hf(corpus, 258 + n_merges, ["<|endoftext|>", "<|pad|>"], "gpt2")


@pytest.mark.parametrize("pattern", ["gpt2", "o200k"])
def test_train_bpe_hf_equals_hugging_face_on_source_code(pattern: str, stdlib_text: str) -> None:
    assert_equals_hf([stdlib_text[:300_000]], 1200, [END_OF_TEXT], pattern)


def test_train_bpe_hf_by_line_equals_hugging_face_on_files(bpe_corpus: str, tmp_path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    text = bpe_corpus.replace(END_OF_TEXT, "")
    (tmp_path / "corpus.txt").write_bytes(text.encode())
    tokenizer = tokenizers.ByteLevelBPETokenizer()
    tokenizer.train(
        str(tmp_path / "corpus.txt"), vocab_size=600, min_frequency=0, show_progress=False
    )
    _, merges = reference.train_bpe(text, 600, tie_break="hf", unit="line")
    byte_of = hf_byte_of_character()
    assert json.loads(tokenizer.to_str())["model"]["merges"] == [
        ["".join(c for b in part for c in byte_of if byte_of[c] == b) for part in pair]
        for pair in merges
    ]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_encode_equals_tiktoken_on_source_code(
    pattern: str, stdlib_text: str, bpe_corpus: str, build_tiktoken
) -> None:
    train = stdlib_text[:300_000]
    vocab, merges = reference.train_bpe(train, 1200, [END_OF_TEXT], pattern=pattern)
    tokenizer = reference.Tokenizer(vocab, merges, [END_OF_TEXT], pattern=pattern)
    tiktoken = build_tiktoken(tokenizer)
    for text in (stdlib_text[300_000:900_000], bpe_corpus, train):
        assert tokenizer.encode(text) == tiktoken.encode(text, allowed_special="all")


@pytest.mark.parametrize("pattern", PATTERNS)
@given(text=TEXTS)
def test_encode_equals_tiktoken_on_random_text(
    pattern: str, text: str, reference_tokenizer, build_tiktoken
) -> None:
    tokenizer = reference_tokenizer(pattern)
    assert tokenizer.encode(text) == build_tiktoken(tokenizer).encode(text, allowed_special="all")


def test_gpt2_pattern_cuts_every_short_string_as_tiktokens_spelling_does() -> None:
    published = pytest.importorskip("tiktoken_ext.openai_public")
    for length in range(6):
        for characters in itertools.product(" \na1'ſ!s", repeat=length):
            text = "".join(characters)
            matches = [match[0] for match in regex.finditer(published.r50k_pat_str, text)]
            assert matches == reference.pretokenize(text, "gpt2")
