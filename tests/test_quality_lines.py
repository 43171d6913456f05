"""C4's lines, FineWeb's own rules and DCLM's edits: at every limit, below and above it."""

import pytest

from rslm.data.quality import Page
from rslm.data.quality.c4 import check_c4, judge_line, remove_unpunctuated_lines
from rslm.data.quality.characters import is_sentence_terminal, is_symbols_only
from rslm.data.quality.dclm import edit_lines, is_counter, is_digits, is_uppercase, limit_newlines
from rslm.data.quality.fineweb import check_fineweb, check_fineweb_2024


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("three words here.", ""),
        ("two words.", "c4_few_words"),
        ("one two " + "x" * 1000 + ' "', ""),
        ("one two " + "x" * 1001 + ' "', "c4_long_word"),
        *((f"it ends in{mark}", "") for mark in ".?!\"'"),
        *((f"it ends in{mark}", "c4_no_terminal_punctuation") for mark in (*",:…”", "...", "")),
        ("so it is[12].", ""),
        ("so it is.[12]", ""),  # the mark is deleted first
        ("so it is. [12]", "c4_no_terminal_punctuation"),  # a blank remains
        ("[1] so be.", ""),  # three words before the deletion
        ("Lorem IPSUM dolor sit.", "c4_lorem_ipsum"),
        ("lorem ipsum", "c4_no_terminal_punctuation"),
        ("lorem ipsum.", "c4_few_words"),
        ("Enable JavaScript to see.", "c4_javascript"),
        ("a javascript { x }.", "c4_javascript"),
        ("what { is this.", "c4_curly_bracket"),
        ("Read our Privacy Policy now.", "c4_policy"),
        ("See the terms of use.", "c4_policy"),
        ("This site uses cookies.", "c4_policy"),
        ("This site eats cookies.", ""),
    ],
)
def test_c4_judges_lines_in_order(line: str, reason: str):
    assert judge_line(line)[1] == reason


@pytest.mark.parametrize("mark", ["[12]", "[]", "[edit]", "[citation needed]"])
def test_c4_deletes_citations(mark: str):
    text = f"One is{mark} here. Two is it. Three is it. Four is it. Five is it."
    assert check_c4(Page(text)).text == text.replace(mark, "")


@pytest.mark.parametrize("mark", ["[a]", "[Edit]", "[1, 2]", "(1)"])
def test_c4_leaves_other_brackets(mark: str):
    assert judge_line(f"so it is{mark}.")[0] == f"so it is{mark}."


def test_c4_wants_five_sentences_and_joins_the_lines():
    kept = "  First line is it. Second one is it.\n\nThird is on it!\nIs the fourth?  "
    assert check_c4(Page(kept)).reason == "c4_too_few_sentences"
    verdict = check_c4(Page(kept + "\x0bFifth is here.\nMenu"))
    edited = "First line is it. Second one is it.\nThird is on it!\nIs the fourth?\nFifth is here."
    assert (verdict.decision, verdict.text) == ("edit", edited)
    assert verdict.lines_removed == {"c4_no_terminal_punctuation": 2}
    assert check_c4(Page(edited)).decision == "keep"


def test_c4_drops_the_page_for_what_its_line_still_shows():
    page = "One two three. " * 5
    assert check_c4(Page(page + "\nwhat { is this.")).reason == "c4_curly_bracket"
    assert check_c4(Page(page + "\nwhat { is this")).decision == "edit", "the line went before"
    relaxed = check_c4(Page(page + "\nwhat { is this"), terminal_punctuation=False)
    assert relaxed.reason == "c4_curly_bracket"


def test_c4_of_dolma_removes_lines_with_their_newline():
    text = "A line.\nMenu\n\n\"Quoted\"  \nIt's 'so'\nMore...\nEnd"
    verdict = remove_unpunctuated_lines(Page(text))
    assert verdict.text == 'A line.\n"Quoted"  \nMore...\n'
    assert verdict.lines_removed == {"c4_no_terminal_punctuation": 4}


def long_lines(n: int, n_ended: int, end: str = ".") -> str:
    """n different lines of 45 characters or more, of which some end in `end`."""
    return "\n".join(
        f"line {i:03} has quite a few words so that it is long" + end * (i < n_ended)
        for i in range(n)
    )


def fineweb(text: str) -> tuple[str, str]:
    """The reasons of the present rules and of those of 2024, without prefix."""
    reasons = (check_fineweb(Page(text)), check_fineweb_2024(Page(text)))
    now, then = ((reason or "").removeprefix("fineweb_") for reason in reasons)
    return now, then


@pytest.mark.parametrize(
    ("n_ended", "expected"),
    [
        (11, ("line_punctuation", "line_punctuation")),
        (12, ("", "line_punctuation")),
        (13, ("", "")),
    ],
)
def test_fineweb_punctuated_lines(n_ended: int, expected: tuple[str, str]):
    assert fineweb(long_lines(100, n_ended)) == expected


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        *((end, ("", "")) for end in ".!?"),
        *((end, ("line_punctuation", "")) for end in "'\""),
        *((end, ("", "line_punctuation")) for end in "。！؟।"),
        *((end, ("line_punctuation", "line_punctuation")) for end in ("…", "”", ":", ". ")),
    ],
)
def test_fineweb_terminals(end: str, expected: tuple[str, str]):
    assert fineweb(long_lines(10, 5, end)) == expected


@pytest.mark.parametrize(
    ("n_short", "expected"),
    [(66, ("", "")), (67, ("", "short_lines")), (68, ("short_lines", "short_lines"))],
)
@pytest.mark.parametrize("length", [30, 31])
def test_fineweb_short_lines(n_short: int, length: int, expected: tuple[str, str]):
    short = [f"{i:03} so it is.".ljust(length, ".") for i in range(n_short)]
    text = "\n".join([*short, long_lines(100 - n_short, 100)])
    assert fineweb(text) == (expected if length == 30 else ("", ""))


@pytest.mark.parametrize(
    ("n_copied", "expected"),
    [
        (99, ("", "")),
        (100, ("", "duplicate_characters")),
        (101, ("duplicate_characters", "duplicate_characters")),
    ],
)
def test_fineweb_duplicate_characters(n_copied: int, expected: tuple[str, str]):
    copied = ("word " * 50)[: n_copied - 1] + "."
    filler = ("some " * 3000)[: 9999 - 2 * n_copied] + "."
    text = f"{copied}\n{filler}\n{copied}"
    assert len(text) - text.count("\n") == 10_000
    assert fineweb(text) == expected


def test_fineweb_empty_lines_count_in_2024_only():
    text = long_lines(10, 10).replace("\n", "\n" * 3)  # 10 of 28 lines are filled
    assert fineweb(text) == ("", "")
    assert fineweb(long_lines(10, 10).replace("\n", "\n" * 4)) == ("", "short_lines")


@pytest.mark.parametrize(("n_newlines", "reason"), [(30, ""), (31, "newlines")])
def test_fineweb_newlines(n_newlines: int, reason: str):
    line = " ".join(["wordwordword"] * 9) + "."  # ten words of UAX #29
    different = "\n".join(line.replace("word", f"wo{i}rd") for i in range(10))
    text = different + "\n" * (n_newlines - 9)
    assert fineweb(text)[0] == reason


def test_fineweb_of_blanks():
    assert fineweb(" \n ") == ("empty", "line_punctuation")


@pytest.mark.parametrize("word", ["-", "...", "»!", "\x00\x1f\x7f\x9f", "。？", "１", "؟"])
def test_symbols_of_fineweb(word: str):
    assert is_symbols_only(word)
    assert not is_symbols_only(word + "a")
    assert not is_symbols_only(word + "\t")


def test_sentence_terminals_are_no_quotes():
    assert [mark for mark in ".!?'\"…”。：" if is_sentence_terminal(mark)] == [*".!?。"]


@pytest.mark.parametrize(
    ("line", "goes"), [("ABcd", False), ("ABCde", True), ("ÀÉz", True), ("", False)]
)
def test_dclm_uppercase_lines(line: str, goes: bool):
    assert is_uppercase(line) == goes


@pytest.mark.parametrize(
    ("line", "goes"), [("123", True), ("12 3", False), ("٣²", True), ("½", False)]
)
def test_dclm_digit_lines(line: str, goes: bool):
    assert is_digits(line) == goes


@pytest.mark.parametrize(
    ("line", "goes"),
    [
        ("3 likes", True),
        ("- 1.2K Followers!", True),
        ("10,000 views", True),
        ("3likes", False),
        ("3 likes today", False),
        ("K likes", False),
        ("3 K likes", False),
        ("likes", False),
    ],
)
def test_dclm_counter_lines(line: str, goes: bool):
    assert is_counter(line) == goes


def test_dclm_limits_newlines():
    assert limit_newlines("a\n\nb\n\n\nc\n\n\n\n\nd") == "a\n\nb\n\nc\n\nd"


BODY = "the cat sat on the mat and saw that it was good enough for now\n" * 20  # 300 words


@pytest.mark.parametrize(
    ("tail", "left", "reason"),
    [
        ("SHOUT OUT LOUD", "", "dclm_uppercase_line"),
        ("2024", "", "dclm_digits_line"),
        ("12 comments", "", "dclm_counter_line"),
        ("word", "", "dclm_short_line"),
        ("3 items in cart", "3", ""),
        ("Items In Cart", "", "dclm_furniture"),
        ("see more here Read more...", "see more here", ""),
        ("see more here read more >>", "see more here", ""),  # dots match anything, three of it
        ("read more... or not", "read more... or not", ""),
        ("Sign-in now to go on", "now to go on", ""),
        ("go and sign-in", "go and sign-in", ""),
        (
            "one two three four five six seven items in cart",
            "one two three four five six seven",
            "",
        ),
        ("a b c d e f g h items in cart", "a b c d e f g h items in cart", ""),  # eleven words
    ],
)
def test_dclm_edits_lines(tail: str, left: str, reason: str):
    verdict = edit_lines(Page(BODY + tail))
    assert verdict.text == (BODY + left).strip()
    assert verdict.lines_removed == ({reason: 1} if reason else {})


@pytest.mark.parametrize(("n_lost", "decision"), [(49, "edit"), (50, "edit"), (51, "drop")])
def test_dclm_drops_a_page_that_loses_more_than_a_twentieth(n_lost: int, decision: str):
    filler = " ".join(["more"] * (1000 - 300 - n_lost))
    verdict = edit_lines(Page(f"{BODY}{filler}" + "\nword" * n_lost))
    assert (verdict.decision, verdict.lines_removed) == (decision, {"dclm_short_line": n_lost})
