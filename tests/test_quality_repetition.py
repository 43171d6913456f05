"""Gopher's repetition rules in four readings: measures by hand, limits at, below and above."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rslm.data.quality import Page, repetition
from rslm.data.quality.repetition import (
    MAX_DUPLICATE_NGRAM_CHARACTERS,
    check_repetition_dclm,
    check_repetition_dolma,
    check_repetition_fineweb,
    check_repetition_paper,
)

READINGS = {
    "paper": check_repetition_paper,
    "fineweb": check_repetition_fineweb,
    "dolma": check_repetition_dolma,
    "dclm": check_repetition_dclm,
}


def reason(text: str, reading: str) -> str:
    """Why the page goes, without the family's name; "" if it stays."""
    return (READINGS[reading](Page(text)) or "").removeprefix("repetition_")


def unique(i: int, length: int) -> str:
    """A word of at least five letters and digits that no other `i` gives."""
    return f"q{i:04}".ljust(length, "z")


def filler(n_characters: int, gap: int = 0) -> list[str]:
    """Different words of this many characters, with `gap` more to each border between two."""
    n = (n_characters + gap) // (8 + gap)
    last = n_characters - (n - 1) * (8 + gap)
    return [unique(i, 8) for i in range(n - 1)] + [unique(n, last)]


SEGMENTS = ["ab", "c", "ab", "ab", "c", "d"]
WORDS = ["a", "b", "c", "a", "b", "c", "dd", "ee", "dd", "ee"]


def test_duplicates_by_hand():
    later, members = repetition.later_copies(SEGMENTS), repetition.repeated_members(SEGMENTS)
    assert (later.n_segments, later.n_characters) == (3, 2 + 2 + 1)
    assert (members.n_segments, members.n_characters) == (5, 3 * 2 + 2)


def test_top_ngrams_by_hand():
    # "a b", "b c" and "dd ee" stand twice each; "a b" is the first, "dd ee" the longest.
    assert repetition.top_ngram_characters_fineweb(WORDS, 2) == 2 * len("a b")
    assert repetition.top_ngram_characters_dolma(WORDS, 2) == 2 * len("ab")
    assert repetition.top_ngram_characters_dclm(WORDS, 2) == 2 * len("ddee")


def test_top_ngrams_where_nothing_repeats():
    assert repetition.top_ngram_characters_fineweb(["ab", "c", "d"], 2) == len("ab c")
    assert repetition.top_ngram_characters_dolma(["ab", "c", "d"], 2) == len("abc")
    assert repetition.top_ngram_characters_dclm(["ab", "c", "d"], 2) == 0


def test_duplicate_ngrams_by_hand():
    words = ["x", "a", "b", "c", "d", "e", "y", "a", "b", "c", "d", "e", "f"]  # "a b c d e" twice
    assert repetition.duplicate_ngram_characters_fineweb(words, 5) == 5
    assert repetition.duplicate_ngram_characters_dclm(words, 5) == 10
    assert repetition.duplicate_ngram_share_dolma(words, 5) == 2 * 5 / (9 * 5)
    assert repetition.duplicate_ngram_characters_fineweb(words, 2) == 4, "ab, cd; e starts anew"
    assert repetition.duplicate_ngram_characters_fineweb(["ab", "c", "a", "bc"], 2) == 3


@given(st.lists(st.sampled_from(["a", "bb", "c"]), max_size=30), st.integers(2, 5))
def test_covered_characters_are_those_of_a_set_of_places(words: list[str], n: int):
    counts = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    covered = {
        place
        for i in range(len(words) - n + 1)
        if counts[tuple(words[i : i + n])] > 1
        for place in range(i, i + n)
    }
    expected = sum(len(words[place]) for place in covered)
    assert repetition.duplicate_ngram_characters_dclm(words, n) == expected


@pytest.mark.parametrize("n", [2, 5])
def test_measures_of_too_few_words_are_zero(n: int):
    for words in ([], ["a"]):
        assert repetition.top_ngram_characters_fineweb(words, n) == 0
        assert repetition.top_ngram_characters_dolma(words, n) == 0
        assert repetition.top_ngram_characters_dclm(words, n) == 0
        assert repetition.duplicate_ngram_characters_fineweb(words, n) == 0
        assert repetition.duplicate_ngram_share_dolma(words, n) == 0
        assert repetition.duplicate_ngram_characters_dclm(words, n) == 0


@pytest.mark.parametrize(
    ("reading", "n_at_limit"), [("paper", 31), ("fineweb", 31), ("dolma", 30), ("dclm", 30)]
)
def test_lines(reading: str, n_at_limit: int):
    def page(n_same: int) -> str:
        return "\n".join(["x"] * n_same + [unique(i, 90) for i in range(100 - n_same)])

    assert reason(page(n_at_limit), reading) == ""
    assert reason(page(n_at_limit + 1), reading) == "lines"


@pytest.mark.parametrize(("reading", "n_at_limit"), [("paper", 31), ("fineweb", 31), ("dclm", 30)])
def test_paragraphs(reading: str, n_at_limit: int):
    def page(n_same: int) -> str:
        blocks = ("\n".join(unique(10 * i + k, 30) for k in range(10)) for i in range(100 - n_same))
        return "\n\n".join(["x"] * n_same + [*blocks])

    assert reason(page(n_at_limit), reading) == ""
    assert reason(page(n_at_limit + 1), reading) == "paragraphs"


def test_paragraphs_do_not_count_for_dolma():
    text = "\n\n".join(["x y z"] * 4 + [unique(i, 90) for i in range(20)])
    assert reason(text, "dolma") == "lines", "empty lines are lines there"


@pytest.mark.parametrize(
    ("reading", "length", "total"),
    [
        ("paper", 200, 1000),
        ("fineweb", 200, 1000),
        ("dolma", 150, 1000),  # both members count, to .30
        ("dclm", 100, 1000),
    ],
)
def test_line_characters(reading: str, length: int, total: int):
    def page(length: int) -> str:
        gap = 1 if reading == "fineweb" else 0  # FineWeb counts the newlines too
        rest = filler(total - 2 * (length + gap), gap)
        return "\n".join(["y" * length, *rest, "y" * length])

    assert reason(page(length), reading) != "line_characters"
    assert reason(page(length + 1), reading) == "line_characters"


@pytest.mark.parametrize(("reading", "n_lines", "n_rest"), [("paper", 14, 87), ("dclm", 47, 232)])
def test_paragraph_characters(reading: str, n_lines: int, n_rest: int):
    # Newlines inside a paragraph are its characters and no line's, so lines pass before it.
    block = "\n".join(f"a{i}" for i in range(10))

    def page(n_rest: int) -> str:
        short = n_rest // n_lines
        rest = [f"{i:0{short}}" for i in range(n_lines - 1)]
        return "\n\n".join([block, *rest, "9".ljust(n_rest - short * (n_lines - 1), "x"), block])

    assert reason(page(n_rest), reading) != "paragraph_characters"
    assert reason(page(n_rest - 1), reading) == "paragraph_characters"


def test_paragraph_characters_of_fineweb():
    def page(length: int) -> str:
        return "\n\n".join(["y" * length, *filler(1000 - 2 * (length + 2), 2), "y" * length])

    assert reason(page(200), "fineweb") != "paragraph_characters"
    assert reason(page(201), "fineweb") == "paragraph_characters"


def repeated(lengths: list[int]) -> list[str]:
    return [unique(9000 + i, length) for i, length in enumerate(lengths)]


@pytest.mark.parametrize("reading", ["paper", "dolma", "dclm"])
@pytest.mark.parametrize(
    ("lengths", "total"), [([7, 8], 150), ([9, 9, 9], 300), ([10, 10, 10, 10], 500)]
)
def test_top_ngrams(reading: str, lengths: list[int], total: int):
    run = repeated(lengths)

    def page(total: int) -> str:
        return " ".join([*run, *filler(total - 2 * sum(lengths)), *run])

    name = f"top_{len(run)}_gram"
    assert reason(page(total), reading) != name
    assert reason(page(total - 1), reading) == name


@pytest.mark.parametrize(
    ("lengths", "total"), [([7, 7], 150), ([8, 8, 9], 300), ([9, 9, 9, 10], 500)]
)
def test_top_ngrams_of_fineweb_hold_their_blanks(lengths: list[int], total: int):
    run = repeated(lengths)

    def page(total: int) -> str:
        n_rest = total - 2 * (len(" ".join(run)) + 1)
        return " ".join([*run, *filler(n_rest, 1), *run])

    name = f"top_{len(run)}_gram"
    assert reason(page(total), "fineweb") != name
    assert reason(page(total - 1), "fineweb") == name


# n -> a word length at which 2 · n · length / limit is a whole number.
LENGTHS = {5: 6, 6: 7, 7: 13, 8: 6, 9: 11, 10: 7}


@pytest.mark.parametrize("reading", ["paper", "dclm"])
@pytest.mark.parametrize(("n", "limit"), MAX_DUPLICATE_NGRAM_CHARACTERS.items())
def test_duplicate_ngrams(reading: str, n: int, limit: float):
    run = repeated([LENGTHS[n]] * n)
    total = round(2 * n * LENGTHS[n] / limit)

    def page(total: int) -> str:
        return " ".join([*run, *filler(total - 2 * n * LENGTHS[n]), *run])

    assert reason(page(total), reading) == ""
    assert reason(page(total - 1), reading) == f"duplicate_{n}_grams"


@pytest.mark.parametrize("n", MAX_DUPLICATE_NGRAM_CHARACTERS)
def test_duplicate_ngrams_of_dolma(n: int):
    # 19 words twice: 2 (20 - n) of all n-grams repeat, and the limits are (20 - n) / 100.
    run = repeated([8] * 19)

    def page(n_ngrams: int) -> str:
        n_rest = n_ngrams + n - 1 - 2 * len(run)
        return " ".join([*run, *filler(8 * n_rest), *run])

    assert reason(page(200), "dolma") != f"duplicate_{n}_grams"
    assert reason(page(199), "dolma") == f"duplicate_{n}_grams"


@pytest.mark.parametrize(("n", "limit"), MAX_DUPLICATE_NGRAM_CHARACTERS.items())
def test_duplicate_ngrams_of_fineweb(n: int, limit: float):
    length = {5: 9, 6: 7, 7: 13, 8: 9, 9: 11, 10: 9}[n]
    run = repeated([length] * 10 * n)
    total = round(10 * n * length / limit)

    def page(total: int) -> str:
        n_rest = total - 2 * (len(" ".join(run)) + 1)
        return " ".join([*run, *filler(n_rest, 1), *run])

    assert len(page(total)) == total
    assert reason(page(total), "fineweb") != f"duplicate_{n}_grams"
    assert reason(page(total - 1), "fineweb") == f"duplicate_{n}_grams"


def test_short_pages_can_lose_themselves_to_an_ngram_seen_once():
    text = "abcdef ghijkl mnopqr stuvwx"
    dropped = {reading: reason(text, reading) for reading in READINGS}
    assert dropped == {"paper": "", "fineweb": "top_2_gram", "dolma": "top_2_gram", "dclm": ""}


@pytest.mark.parametrize(
    ("text", "dropped"),
    [
        ("", {"dclm": "empty"}),
        (" \n\n ", {"fineweb": "lines", "dolma": "lines", "dclm": "empty"}),
        ("x", {}),
    ],
)
def test_pages_of_nothing(text: str, dropped: dict[str, str]):
    found = {reading: reason(text, reading) for reading in READINGS}
    assert {reading: why for reading, why in found.items() if why} == dropped


def test_stripped_lines_are_the_same_to_paper_and_dclm_only():
    text = "\n".join(["abc"] * 2 + ["abc "] * 2 + ["abc  "] * 2 + [unique(i, 60) for i in range(4)])
    assert reason(text, "paper") == reason(text, "dclm") == "lines"
    assert reason(text, "fineweb") not in {"lines", "line_characters"}, "3 of 10 are later copies"
    assert reason(text, "dolma") == "lines", "6 of 10 are members of a set"


def test_empty_lines_are_lines_to_dolma_only():
    text = "\n\n\n".join(unique(i, 60) for i in range(40))
    assert {reading: reason(text, reading) for reading in READINGS} == {
        **dict.fromkeys(READINGS, ""),
        "dolma": "lines",
    }
