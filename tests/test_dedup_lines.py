"""Lines that come more than once in a corpus: what counts as one, and what is kept."""

import random
from collections import Counter
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rslm.data.dedup.lines import (
    KeepLines,
    LineCount,
    count_lines,
    drop_repeated,
    merge_line_counts,
    repeated_lines,
    split_lines,
)

# Few contents, so that nearly every corpus repeats some; with what else might part lines.
CONTENTS = st.sampled_from(
    [b"", b"a", b"b", b"a\r", b"\x0b", b"a\x0cb", b"\x85", b"\xff\xfe", b" a", b"\x00"]
)
TEXTS = st.lists(CONTENTS, max_size=8).map(b"\n".join)
CORPORA = st.lists(TEXTS, max_size=5).map(
    lambda texts: {f"{number:02}": text for number, text in enumerate(texts)}
)


def deduplicate(corpus: dict[str, bytes], keep: KeepLines = "none") -> dict[str, bytes]:
    counts = merge_line_counts(
        count_lines(name, split_lines(text)) for name, text in corpus.items()
    )
    repeated = repeated_lines(counts)
    return {
        name: b"".join(drop_repeated(name, split_lines(text), repeated, keep=keep))
        for name, text in corpus.items()
    }


def test_every_copy_of_a_repeated_line_goes_the_first_too() -> None:
    corpus = {"x": b"menu\nfirst story\nfooter\n", "y": b"menu\nsecond story\nfooter\n"}
    assert deduplicate(corpus) == {"x": b"first story\n", "y": b"second story\n"}


def test_a_line_repeated_within_one_document_goes_as_well() -> None:
    assert deduplicate({"x": b"a\nb\na\n"}) == {"x": b"b\n"}


def test_first_keeps_the_copy_in_the_least_id_whatever_is_read_first() -> None:
    corpus = {"y": b"menu\nsecond\n", "x": b"first\nmenu\nmenu\n"}
    assert deduplicate(corpus, "first") == {"y": b"second\n", "x": b"first\nmenu\n"}


@pytest.mark.parametrize(
    ("corpus", "kept"),
    [
        # A blank line is a line: two of them are repeated, one is not.
        ({"x": b"a\n\nb\n\nc\n"}, {"x": b"a\nb\nc\n"}),
        ({"x": b"a\n\nb\n"}, {"x": b"a\n\nb\n"}),
        # The last line needs no newline to equal one that has it, and gets none.
        ({"x": b"a\nb", "y": b"b\nc"}, {"x": b"a\n", "y": b"c"}),
        # A carriage return and a blank belong to their line.
        ({"x": b"a\r\na\n a\na "}, {"x": b"a\r\na\n a\na "}),
        # Only 0x0A parts lines.
        ({"x": b"a\x0bb\na\n", "y": b"b\n"}, {"x": b"a\x0bb\na\n", "y": b"b\n"}),
        ({"x": b"\xff\n\xff\n\xfe\n"}, {"x": b"\xfe\n"}),
        ({"x": b"", "y": b""}, {"x": b"", "y": b""}),
        ({"x": b"\n", "y": b"\n"}, {"x": b"", "y": b""}),
        ({"x": b"same", "y": b"same"}, {"x": b"", "y": b""}),
    ],
)
def test_what_a_line_is(corpus: dict[str, bytes], kept: dict[str, bytes]) -> None:
    assert deduplicate(corpus) == kept


def test_counts_say_how_often_and_where_first() -> None:
    one, two = count_lines("x", [b"a\n", b"b\n", b"a"]), count_lines("w", [b"c\n", b"a\n"])
    assert merge_line_counts([one, two]) == {
        b"a": LineCount(n=3, first=("w", 1)),
        b"b": LineCount(n=1, first=("x", 1)),
        b"c": LineCount(n=1, first=("w", 0)),
    }


@given(TEXTS)
def test_lines_joined_are_the_text(text: bytes) -> None:
    assert b"".join(split_lines(text)) == text
    assert all(line.count(b"\n") == line.endswith(b"\n") for line in split_lines(text))


@given(CORPORA)
def test_none_keeps_exactly_the_lines_of_count_one(corpus: dict[str, bytes]) -> None:
    counts = Counter(line for text in corpus.values() for line in contents(text))
    for name, text in deduplicate(corpus).items():
        assert contents(text) == [line for line in contents(corpus[name]) if counts[line] == 1]


@given(CORPORA)
def test_first_keeps_each_different_line_once(corpus: dict[str, bytes]) -> None:
    seen: set[bytes] = set()
    kept = deduplicate(corpus, "first")
    for name in sorted(corpus):
        fresh = []
        for line in contents(corpus[name]):
            fresh += [line] if line not in seen else []
            seen.add(line)
        assert contents(kept[name]) == fresh
    assert deduplicate(kept, "first") == kept


@given(CORPORA, st.integers(0, 2**32))
def test_counts_do_not_depend_on_order_or_parts(corpus: dict[str, bytes], seed: int) -> None:
    parts = [count_lines(name, split_lines(text)) for name, text in corpus.items()]
    whole = merge_line_counts(parts)
    draw = random.Random(seed)
    draw.shuffle(parts)
    cut = draw.randint(0, len(parts))
    again = merge_line_counts(merge_line_counts(half) for half in (parts[cut:], parts[:cut]))
    assert again == whole


@pytest.mark.parametrize("keep", ["none", "first"])
def test_every_order_of_documents_keeps_the_same(keep: KeepLines) -> None:
    corpus = {"b": b"m\nx\nm\n", "a": b"y\nm\nz", "d": b"z\n\n", "c": b"\nx\nq\n"}
    results = [deduplicate(dict(order), keep) for order in permutations(corpus.items())]
    assert len(results) == 24
    assert all(result == results[0] for result in results)


def contents(text: bytes) -> list[bytes]:
    """The lines of a text without newlines, by cutting alone."""
    lines = text.split(b"\n")
    return lines if lines[-1] else lines[:-1]
