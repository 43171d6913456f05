"""Gopher's quality rules in five versions: at every limit, just below it and just above it."""

from collections.abc import Callable

import pytest

from rslm.data.quality import Page
from rslm.data.quality.gopher import COURSE, DCLM, DOLMA, FINEWEB, PAPER, check_gopher

GOPHERS = {"paper": PAPER, "course": COURSE, "fineweb": FINEWEB, "dolma": DOLMA, "dclm": DCLM}
ALL = tuple(GOPHERS)


def hits(text: str, version: str) -> str:
    """Gopher's reason without its prefix, "" if the page stands."""
    return (check_gopher(Page(text), GOPHERS[version]) or "").removeprefix("gopher_")


def words(n: int, *first: str) -> str:
    """The first words given, two stop words and fillers: n words of prose in one line."""
    return " ".join([*first, "the", "and", *(f"wo{i % 7}rd" for i in range(n - len(first) - 2))])


def lines(n: int, n_special: int, special: Callable[[str], str]) -> str:
    """n lines of ten words, the first of them changed by `special`."""
    line = "the river and seven old words that nobody counts twice"
    return "\n".join(special(line) if i < n_special else line for i in range(n))


@pytest.mark.parametrize("version", ALL)
@pytest.mark.parametrize(
    ("n", "reason"),
    [(49, "too_few_words"), (50, ""), (51, ""), (100_000, ""), (100_001, "too_many_words")],
)
def test_gopher_counts_words(version: str, n: int, reason: str):
    assert hits(words(n), version) == reason


@pytest.mark.parametrize(
    ("extra", "falls_short"),
    [
        ("! ? -", {"fineweb", "dclm"}),  # marks alone are no words there
        ("“word «word (word", {"dclm"}),  # its words begin with a letter or a number
        ("٣word ⅷ² ½x", set()),
    ],
)
def test_gopher_versions_disagree_what_a_word_is(extra: str, falls_short: set[str]):
    text = words(47) + " " + extra
    assert {version for version in ALL if hits(text, version)} == falls_short


@pytest.mark.parametrize("version", sorted(set(ALL) - {"dolma"}))
@pytest.mark.parametrize(
    ("lengths", "reason"),
    [
        ([3] * 60, ""),
        ([3] * 59 + [2], "short_words"),
        ([10] * 60, ""),
        ([10] * 59 + [11], "long_words"),
    ],
)
def test_gopher_means_word_lengths(version: str, lengths: list[int], reason: str):
    text = " ".join("x" * length for length in lengths)
    assert hits(text, version) == (reason or ("" if version == "course" else "few_stop_words"))


@pytest.mark.parametrize(
    ("lengths", "reason"),
    [
        ([2] * 29 + [3] * 31, ""),
        ([2] * 30 + [3] * 30, "short_words"),  # the median is 2.5
        ([10] * 31 + [11] * 29, ""),
        ([10] * 30 + [11] * 30, "long_words"),
        ([5] * 31 + [90] * 29, ""),  # a mean of 46
    ],
)
def test_gopher_of_dolma_takes_the_median(lengths: list[int], reason: str):
    text = " ".join("x" * length for length in lengths)
    assert hits(text, "dolma") == (reason or "few_stop_words")


@pytest.mark.parametrize(
    ("symbols", "over"),
    [
        (["#"] * 10, {}),  # 10 of 100 words
        (["#"] * 11, {"paper", "dclm", "dolma", "fineweb"}),
        (["##"] * 6, {"paper", "dclm", "fineweb"}),  # 12 occurrences in 6 words
        (["..."] * 11, {"paper", "dclm"}),
        (["…"] * 11, {"paper", "dclm", "dolma", "fineweb"}),
        (["#"] * 6 + ["…"] * 6, {"dolma", "dclm"}),  # 6 each, 12 together
        (["..."] * 6 + ["…"] * 6, {"paper", "dclm", "fineweb"}),
        ([". . ."] * 4, {}),
    ],
)
def test_gopher_symbols(symbols: list[str], over: set[str]):
    text = words(100 - len(symbols)) + " " + " ".join(symbols)
    assert {version for version in ALL if hits(text, version) == "too_many_symbols"} == set(over)


def test_gopher_of_dclm_counts_spaced_ellipses():
    text = " ".join(["the and word . . ."] * 10 + [words(40)])  # 10 in 100 words
    assert hits(text, "dclm") == "few_alphabetic_words", "a later rule"
    assert hits(text + " . . .", "dclm") == "too_many_symbols"  # 11 in 103


BULLETS = {
    "•": {"paper", "fineweb", "dclm"},
    "-": {"paper", "fineweb", "dolma", "dclm"},
    "*": {"paper", "dolma", "dclm"},
    "●": {"paper", "dclm"},
    "  -": {"paper", "fineweb", "dclm"},
    "–": set(),
}


@pytest.mark.parametrize(("bullet", "versions"), BULLETS.items())
def test_gopher_bullet_lines(bullet: str, versions: set[str]):
    def over(text: str) -> set[str]:
        return {version for version in ALL if hits(text, version) == "bullet_lines"}

    assert over(lines(100, 90, lambda line: f"{bullet} {line}")) == set()
    assert over(lines(100, 91, lambda line: f"{bullet} {line}")) == versions


ELLIPSES = {
    "...": {"paper", "course", "fineweb", "dclm"},
    "…": {"paper", "fineweb", "dolma", "dclm"},
    ". . .": {"dclm"},
    "...  ": {"paper", "course", "fineweb", "dclm"},
    "… ": {"paper", "fineweb", "dclm"},
}


@pytest.mark.parametrize(("ellipsis", "versions"), ELLIPSES.items())
def test_gopher_ellipsis_lines(ellipsis: str, versions: set[str]):
    def over(text: str) -> set[str]:
        return {version for version in ALL if hits(text, version) == "ellipsis_lines"}

    assert over(lines(100, 30, lambda line: line + ellipsis)) == set()
    assert over(lines(100, 31, lambda line: line + ellipsis)) == versions


def test_gopher_lines_count_empty_ones_but_in_dclm():
    text = lines(20, 8, lambda line: line + "…").replace("\n", "\n\n")  # 8 of 39 lines, or of 20
    assert {version for version in ALL if hits(text, version)} == {"dclm"}


@pytest.mark.parametrize("version", ALL)
def test_gopher_alphabetic_words(version: str):
    assert hits(words(80) + " 12345" * 20, version) == ""
    assert hits(words(79) + " 12345" * 21, version) == "few_alphabetic_words"
    # Marks and letter-numbers hold no letter, though Rust's `is_alphabetic` takes both.
    assert hits(words(79) + " \u0903\u0903\u0903\u0903" * 21, version) == "few_alphabetic_words"
    assert hits(words(79) + " ⅠⅡⅢⅣ" * 21, version) == "few_alphabetic_words"
    assert hits(words(79) + " 1я" * 21, version) == ""


@pytest.mark.parametrize(
    ("stop_words", "too_few"),
    [
        ("the and", set()),
        ("the the", {"paper", "fineweb"}),
        ("The And", {"fineweb", "dolma"}),
        ("the of", set()),
        ("the then", {"paper", "fineweb", "dolma", "dclm"}),
        ("the and, ", {"paper", "dolma", "dclm"}),  # only UAX #29 cuts the comma off
    ],
)
def test_gopher_stop_words(stop_words: str, too_few: set[str]):
    text = f"{stop_words} " + "filler " * 60
    assert {version for version in ALL if hits(text, version) == "few_stop_words"} == too_few


@pytest.mark.parametrize("version", ALL)
def test_gopher_says_the_first_reason(version: str):
    assert hits("# ...", version) == "too_few_words"
    assert hits("", version) == "too_few_words"
