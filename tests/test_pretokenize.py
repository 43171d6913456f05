"""The Rust scanners against `regex` (the reference), tiktoken's and Hugging Face's engines."""

import functools
import itertools
import sys
import unicodedata
import warnings
from collections.abc import Iterable

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st
from strategies import PIECES, TEXTS

from rslm import Tokenizer, _rslm, corpus, reference
from rslm._rslm import pretokenize

PATTERNS = list(reference.PATTERNS)
ALPHABET = [*" \n\r\ta", "A", "1", "!", "'", "s", "ſ", "é", "世", "\u0301", "\u00a0", "\0"]


def first_difference(texts: Iterable[str], pattern: str) -> str | None:
    """The first text that Rust and the reference cut differently, with both cuts."""
    split = functools.partial(regex.compile(reference.PATTERNS[pattern]).finditer)
    for text in texts:
        expected = [match[0] for match in split(text)]
        if (found := pretokenize(text, pattern)) != expected:
            return f"{text!r}: {found} instead of {expected}"
    return None


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("length", [0, 1, 2, 3, pytest.param(4, marks=pytest.mark.timeout(120))])
def test_every_short_string_is_cut_as_by_regex(length: int, pattern: str) -> None:
    texts = map("".join, itertools.product(ALPHABET, repeat=length))
    assert first_difference(texts, pattern) is None


@pytest.mark.slow
@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_string_of_five_characters_is_cut_as_by_regex(pattern: str) -> None:
    texts = map("".join, itertools.product(ALPHABET, repeat=5))
    assert first_difference(texts, pattern) is None


# Letters of every case class, marks, contractions and slashes: what only o200k tells apart.
@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_short_string_of_cases_and_marks_is_cut_as_by_regex(pattern: str) -> None:
    alphabet = ["A", "a", "ǅ", "ʰ", "ª", "世", "\u0301", "'", "s", "L", "/", "\n", " ", "1"]
    texts = map("".join, itertools.product(alphabet, repeat=4))
    assert first_difference(texts, pattern) is None


@pytest.mark.parametrize("pattern", PATTERNS)
@given(text=TEXTS)
def test_random_text_is_cut_as_by_regex(pattern: str, text: str) -> None:
    assert pretokenize(text, pattern) == reference.pretokenize(text, pattern)


@pytest.mark.parametrize("pattern", PATTERNS)
@given(pieces=st.lists(PIECES, min_size=60, max_size=300))
def test_long_random_text_is_cut_as_by_regex(pattern: str, pieces: list[str]) -> None:
    text = "".join(pieces)
    assert pretokenize(text, pattern) == reference.pretokenize(text, pattern)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_borders_do_not_depend_on_where_a_text_starts(pattern: str, bpe_corpus: str) -> None:
    # 64-byte blocks, and whatever else counts bytes, lie differently in each.
    starts = range(min(len(bpe_corpus), 300))
    assert first_difference((bpe_corpus[start:] for start in starts), pattern) is None
    contractions = "y'all'd've I'D'VE it'ſ " * 12
    assert first_difference((" " * n + contractions for n in range(70)), pattern) is None


@pytest.mark.parametrize("pattern", PATTERNS)
def test_source_code_is_cut_as_by_regex(pattern: str, stdlib_text: str) -> None:
    assert first_difference([stdlib_text[:1_500_000]], pattern) is None


@pytest.mark.parametrize("name", ["books-valid", "multilingual"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_real_text_is_cut_as_by_regex(pattern: str, name: str, read_test_text) -> None:
    assert first_difference([read_test_text(name, 1_500_000)], pattern) is None


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_assigned_code_point_has_the_class_that_regex_gives_it(pattern: str) -> None:
    # U+0295 is a lower-case letter until Unicode 17. Python's own tables may be the oldest here.
    known = [
        chr(code_point)
        for code_point in range(sys.maxunicode + 1)
        if code_point != 0x295 and unicodedata.category(chr(code_point)) not in ("Cn", "Cs", "Co")
    ]
    blocks = [known[start : start + 1000] for start in range(0, len(known), 1000)]
    texts = ("".join(f"a{c}A{c} {c}{c}1{c}!\n{c}'s" for c in block) for block in blocks)
    assert first_difference(texts, pattern) is None


@pytest.mark.parametrize("pattern", ["gpt2", "o200k"])
def test_unassigned_code_points_have_the_classes_of_unicode_16(pattern: str) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    splitter = tokenizers.pre_tokenizers.Split(
        tokenizers.Regex(reference.PATTERNS[pattern]), "isolated"
    )
    planes = [*range(0x40000), *range(0xE0000, 0xE2000)]
    unassigned = [chr(code) for code in planes if unicodedata.category(chr(code)) == "Cn"]
    for start in range(0, len(unassigned), 1000):
        text = "".join(f"a{c}A{c} {c}1{c}!" for c in unassigned[start : start + 1000])
        expected = [piece for piece, _ in splitter.pre_tokenize_str(text)]
        assert pretokenize(text, pattern) == expected


@pytest.mark.parametrize(
    "pattern",
    [
        r"\p{L}+|\p{N}{1,2}|\s+(?!\S)|\s+",
        r"(?i:'s|'t)|\w+",
        r"[^ ]+",
        r" ?(\p{Lu}\p{Ll}*)",
        r"(?:)",
        # Llama 3 and Qwen 2, as published.
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ],
)
@given(text=TEXTS)
def test_any_regular_expression_keeps_the_text_between_matches(pattern: str, text: str) -> None:
    assert pretokenize(text, pattern) == reference.pretokenize(text, pattern)


@pytest.mark.parametrize("name", PATTERNS)
@given(text=TEXTS)
def test_the_published_spelling_cuts_as_the_name(name: str, text: str) -> None:
    assert pretokenize(text, reference.PATTERNS[name]) == pretokenize(text, name)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("unit", [" ", "a", "A", "1", "!", "\n", "\u0301", "'s", "世", " \n", "aA"])
def test_a_megabyte_without_borders_is_no_trap(unit: str, pattern: str) -> None:
    # Linear time: the quadratic scanners of others need hours here (the timeout of a test is less).
    text = unit * (1_000_000 // len(unit.encode()))
    for ending in ("", "x", " ", "!"):
        assert "".join(pretokenize(text + ending, pattern)) == text + ending


@pytest.mark.parametrize("pattern", ["(", "[a", r"\p{Nothing}", "*"])
def test_a_bad_expression_is_a_value_error(pattern: str) -> None:
    with pytest.raises(ValueError, match="pattern must be"):
        pretokenize("a", pattern)


@pytest.mark.parametrize(
    ("pattern", "engine"),
    [
        *((name, "scanner") for name in PATTERNS),
        (r"\p{L}+|\s", "automaton"),
        (r" ?\w+|\S|\s+(?!\S)|\s+", "automaton"),
        (r" ?\w++|\S|\s+(?!\S)|\s+", "backtracking"),
        (r"(?<=a)b|.", "backtracking"),
    ],
)
def test_the_fastest_engine_that_can_runs_a_pattern(pattern: str, engine: str) -> None:
    assert _rslm.pattern_engine(pattern) == engine


@pytest.mark.parametrize(
    "pattern",
    [r" ?\w+|\S|\s+(?!\S)|\s+", r" ?\w++|\S|\s+(?!\S)|\s+", r"(?<=a)b|\w|\s+(?!\S)|\s"],
)
@given(text=TEXTS)
def test_the_rewritten_ending_cuts_as_the_whole_expression(pattern: str, text: str) -> None:
    assert pretokenize(text, pattern) == reference.pretokenize(text, pattern)


@pytest.mark.parametrize("pattern", [r"\w+|\s+(?!\S)|\s+", r"\w++|\s+(?!\S)|\s+"])
def test_megabytes_of_whitespace_are_no_limit_of_an_expression(pattern: str) -> None:
    text = " " * 3_000_000
    assert pretokenize(text, pattern) == [text]
    assert pretokenize(f"{text}x", pattern) == [text[1:], " ", "x"]


def test_a_slow_pattern_is_warned_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "_warned_of_slowness", False)
    vocab = {byte: bytes([byte]) for byte in range(256)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Tokenizer(vocab, [], pattern=r"\w+|\s+(?!\S)|\s+")
    with pytest.warns(UserWarning, match="backtracking engine"):
        Tokenizer(vocab, [], pattern=r"(?<=a)b|.")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Tokenizer(vocab, [], pattern=r"(?<=a)b|.")
