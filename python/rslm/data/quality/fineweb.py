r"""FineWeb's own rules, as released in April 2024 and as datatrove has them since December 2024.

| | fineweb_2024 (released data) | fineweb (datatrove since its change 285) |
|---|---|---|
| lines of the first two rules | all, empty ones too | those with more than blanks |
| lines ending in punctuation | `. ' " ! ?`; drop at **<=** .12 | terminals; drop at < .12 |
| lines of 30 characters or fewer | drop at >= .67 | drop at > .67 |
| characters of duplicate lines | drop at >= .01 | drop at > .01 |
| newlines / words | drop at > .3 | the same |

The paper writes .1 for the duplicate characters where the code that made the data had .01, and the
code is what shipped. Words are UAX #29 in place of NLTK's and spaCy's.

Source: Penedo et al. 2024, section 3.6 (arXiv:2406.17557), and datatrove's FineWebQualityFilter.
"""

from rslm.data.quality.characters import is_sentence_terminal
from rslm.data.quality.page import Page, ratio
from rslm.data.quality.repetition import later_copies

MIN_PUNCTUATED_LINES = 0.12
MAX_SHORT_LINES = 0.67
SHORT_LINE = 30
MAX_DUPLICATE_CHARACTERS = 0.01
MAX_NEWLINES_PER_WORD = 0.3
TERMINAL_PUNCTUATION_2024 = (".", "'", '"', "!", "?")


def check_fineweb(page: Page) -> str | None:
    """The first rule of the present datatrove that the page breaks."""
    lines = filled_lines(page.text)
    if not lines:
        return "fineweb_empty"
    if punctuated_share(lines) < MIN_PUNCTUATED_LINES:
        return "fineweb_line_punctuation"
    if short_share(lines) > MAX_SHORT_LINES:
        return "fineweb_short_lines"
    if duplicate_character_share(page.text) > MAX_DUPLICATE_CHARACTERS:
        return "fineweb_duplicate_characters"
    return check_newlines(page)


def check_fineweb_2024(page: Page) -> str | None:
    """The first rule of the released FineWeb that the page breaks."""
    lines = page.text.split("\n")
    n_punctuated = sum(line.endswith(TERMINAL_PUNCTUATION_2024) for line in lines)
    if ratio(n_punctuated, len(lines)) <= MIN_PUNCTUATED_LINES:
        return "fineweb_line_punctuation"
    if short_share(lines) >= MAX_SHORT_LINES:
        return "fineweb_short_lines"
    if duplicate_character_share(page.text) >= MAX_DUPLICATE_CHARACTERS:
        return "fineweb_duplicate_characters"
    return check_newlines(page)


def check_newlines(page: Page) -> str | None:
    """More than three newlines to ten words: a list."""
    newlines_per_word = ratio(page.text.count("\n"), len(page.unicode_words))
    return "fineweb_newlines" if newlines_per_word > MAX_NEWLINES_PER_WORD else None


def filled_lines(text: str) -> list[str]:
    r"""What stands between `\n`, untouched, if it holds more than blanks."""
    return [line for line in text.split("\n") if line.strip()]


def punctuated_share(lines: list[str]) -> float:
    """Share of the lines whose last character is a sentence terminal; a blank there is none."""
    return ratio(sum(is_sentence_terminal(line[-1]) for line in lines), len(lines))


def short_share(lines: list[str]) -> float:
    """Share of the lines of at most 30 code points."""
    return ratio(sum(len(line) <= SHORT_LINE for line in lines), len(lines))


def duplicate_character_share(text: str) -> float:
    """Code points in second and later copies of filled lines, out of all but newlines."""
    n_duplicate = later_copies(filled_lines(text)).n_characters
    return ratio(n_duplicate, len(text) - text.count("\n"))
