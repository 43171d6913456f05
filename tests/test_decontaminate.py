"""N-grams of evaluation sets, found in text."""

import gzip
import io
import json
import lzma
import tarfile
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rslm.data.decontaminate import EvaluationNgrams, Overlap, words_of
from rslm.errors import FormatError

QUESTION = "Natalia sold clips to 48 of her friends in April, and then she sold half as many"


def ngrams(*texts: str, **options) -> EvaluationNgrams:
    items = [(text, "set", row) for row, text in enumerate(texts)]
    return EvaluationNgrams(items, **options)


def test_thirteen_words_in_a_row_overlap_whatever_case_and_marks():
    evaluation = ngrams("too short", QUESTION)
    quoted = (
        "He read: NATALIA sold — clips to (48) of her\nfriends in april and then... He stopped."
    )
    twelve = "Natalia sold clips to 48 of her friends in April, and"
    expected = Overlap("set", 1, "natalia sold clips to 48 of her friends in april and then he")
    assert evaluation.find_batch([quoted, twelve, ""]) == [None, None, None]
    found = evaluation.find_batch([quoted.replace("He stopped", "she")])
    assert found == [expected._replace(ngram=expected.ngram.removesuffix("he") + "she")]
    assert evaluation.overlaps_batch([QUESTION.upper(), twelve]) == [True, False]


def test_items_shorter_than_an_ngram_are_sought_whole_down_to_the_least():
    evaluation = ngrams("one two three four five six seven eight", "which of these is true?", "...")
    assert (evaluation.n_items, evaluation.n_skipped, evaluation.n_ngrams) == (3, 2, 1)
    assert evaluation.overlaps_batch(["Is it one two three four five six seven eight nine"]) == [
        True
    ]
    assert evaluation.overlaps_batch(["which of these is true", ""]) == [False, False]
    assert ngrams("which of these is true?", min_words=5).overlaps_batch(["Which of these IS true"])


def test_lower_case_is_by_character():
    assert words_of("ΟΔΟΣ ΣΟΦΟΣ İstanbul x²_y") == ["οδοσ", "σοφοσ", "i̇stanbul", "x²", "y"]
    assert ngrams("ΟΔΟΣ ΣΟΦΟΣ", ngram_words=2, min_words=2).overlaps_batch(["οδοσ, σοφοσ"]) == [
        True
    ]


@pytest.mark.parametrize("implementation", ["rust", "reference"])
@pytest.mark.parametrize(("ngram_words", "min_words"), [(0, 0), (65, 8), (13, 14), (13, 0)])
def test_impossible_lengths_are_refused(implementation, ngram_words: int, min_words: int):
    with pytest.raises(ValueError, match="must be from 1 to"):
        ngrams("a", ngram_words=ngram_words, min_words=min_words, implementation=implementation)


# Few words, so that they meet; signs that part them, marks, and letters whose case is special.
PIECES = st.lists(
    st.sampled_from(
        ["a", "B", "b", "ab", " ", " ", "-", "\n", "é", "e\u0301", "Σ", "ς", "ǅ", "中"]
    ),
    max_size=30,
).map("".join)


@given(st.lists(PIECES, max_size=6), st.lists(PIECES, max_size=6), st.data())
def test_overlaps_equal_the_reference(items: list[str], texts: list[str], data: st.DataObject):
    n = data.draw(st.integers(1, 6))
    least = data.draw(st.integers(1, n))
    fast, plain = (
        ngrams(*items, ngram_words=n, min_words=least, implementation=implementation)
        for implementation in ("rust", "reference")
    )
    assert fast.find_batch(texts) == plain.find_batch(texts)
    assert (fast.n_ngrams, fast.n_skipped) == (plain.n_ngrams, plain.n_skipped)


@given(st.text(), st.integers(0, 20), st.integers(0, 20))
def test_any_text_overlaps_itself_as_in_the_reference(text: str, start: int, end: int):
    # What this Python's tables do not know yet, others may have made a letter of since.
    text = "".join(c for c in text if unicodedata.category(c) != "Cn")
    parts = [text, text[start:], text[:end]]
    fast, plain = (
        ngrams(text, ngram_words=2, min_words=1, implementation=implementation)
        for implementation in ("rust", "reference")
    )
    assert fast.find_batch(parts) == plain.find_batch(parts)


@pytest.mark.slow  # All of Unicode, twice.
def test_every_assigned_character_is_a_word_or_none_in_both():
    characters = [
        chr(point)
        for point in range(0x110000)
        if unicodedata.category(chr(point)) not in ("Cn", "Cs", "Co")
    ]
    # Of each character the reference's words must be found, and nothing else be indexed.
    items = [f"x{character}y {character}" for character in characters]
    indexes = [
        ngrams(*items, ngram_words=64, min_words=1, implementation=implementation)
        for implementation in ("rust", "reference")
    ]
    texts = [item.lower() for item in items]
    assert indexes[0].n_ngrams == indexes[1].n_ngrams
    assert indexes[0].find_batch(texts) == indexes[1].find_batch(texts)


def test_files_of_every_kind_are_read(tmp_path: Path):
    row = {"query": QUESTION, "choices": ["yes"], "context_options": [f"a {QUESTION}", "b"]}
    lines = json.dumps(row).encode() + b"\n\n" + json.dumps({"question": "x"}).encode()
    table = f'"{QUESTION}",yes,no,A\nWhat?,1,2,B\n'.encode()
    (tmp_path / "a.jsonl").write_bytes(lines)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "b.csv.xz").write_bytes(lzma.compress(table))
    (tmp_path / "c.txt").write_bytes(b"\xef\xbb\xbffirst\r\n" + QUESTION.encode())
    (tmp_path / "readme.md").write_text("nothing")
    with tarfile.open(tmp_path / "d.tar.xz", "w:xz") as archive:
        for name, data in [("s/x.csv", table), ("s/README", b"no"), ("s/y.jsonl", lines)]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    for name, source, row_number in [
        ("a.jsonl", "a.jsonl", 0),
        ("a.jsonl.gz", "a.jsonl.gz", 0),
        ("b.csv.xz", "b.csv.xz", 0),
        ("c.txt", "c.txt", 1),
        ("d.tar.xz", "d.tar.xz/s/x.csv", 0),
        (".", "a.jsonl", 0),
    ]:
        (found,) = EvaluationNgrams.read([tmp_path / name]).find_batch([f"so {QUESTION}"])
        assert found is not None
        assert (found.source, found.item) == (source, row_number), name
    choices = EvaluationNgrams.read([tmp_path / "a.jsonl"], fields=["choices", "question"])
    assert choices.n_items == 2
    assert EvaluationNgrams.read([tmp_path / "b.csv.xz"], column=3).n_items == 2


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", b'{"answer": "x"}', "row 0 must have one of the fields question"),
        ("a.jsonl", b'{"question": 7}', "row 0 must have strings"),
        ("a.jsonl", b"[1]", "row 0 must have one of the fields"),
        ("a.jsonl", b"{", "a.jsonl: "),
        ("a.jsonl", b"[" * 100_000, "a.jsonl: "),
        ("a.jsonl.gz", b"junk", "a.jsonl.gz: "),
        ("a.jsonl.gz", gzip.compress(b"{}" * 999, mtime=0)[:-9], "a.jsonl.gz: "),
        ("a.txt.xz", b"junk", "a.txt.xz: "),
        ("a.tar", b"junk" * 999, "a.tar: "),
        ("a.txt", b"\xff", "a.txt: "),
        ("a.csv", b"\n", "row 0 must have more than 0 columns"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, name: str, data: bytes, message: str):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(FormatError, match=message):
        EvaluationNgrams.read([tmp_path / name])


def test_files_of_unknown_names_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"must be \.jsonl, \.csv"):
        EvaluationNgrams.read([tmp_path / "a.zip"])
    with pytest.raises(ValueError, match="holds none"):
        EvaluationNgrams.read([tmp_path])
    with pytest.raises(FileNotFoundError):
        EvaluationNgrams.read([tmp_path / "a.txt"])


@pytest.mark.slow  # Megabytes of hostile text: seconds.
@pytest.mark.parametrize("piece", ["a", "a ", "\u0301", "Σ ", "中", "one two ", " "])
def test_hostile_text_is_linear(piece: str):
    evaluation = ngrams(QUESTION, "a " * 12 + "b", "one two " * 6 + "three")
    text = piece * (10_000_000 // len(piece))
    assert evaluation.overlaps_batch([text]) == [False]
    assert ngrams(text).overlaps_batch([text[: len(text) // 2]]) == [len(words_of(text)) > 13]


@pytest.mark.slow  # Indexes 1.7 million n-grams.
def test_evaluation_archives_are_read_and_books_do_not_hold_them(
    test_data: Path, read_test_text: Callable[[str, int], str]
):
    names = ("gsm8k", "mmlu", "core")
    evaluation = EvaluationNgrams.read([test_data / "eval" / f"{name}.tar.xz" for name in names])
    assert evaluation.n_ngrams > 1_000_000
    book = read_test_text("books-valid", 1_000_000)
    assert evaluation.overlaps_batch([book, book + QUESTION, QUESTION.upper()]) == [
        False,
        True,
        True,
    ]
