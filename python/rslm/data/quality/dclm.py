r"""The edits of DCLM-Baseline's heuristics (RefinedWeb's, reproduced): newlines and lines.

After Gopher's rules and repetition, lines of capitals, digits and counters and lines of one word
go, and with them some calls of the page's furniture; a page that loses more than 5 % of its words
to that is dropped. DCLM also cuts web addresses out of the text before all rules. That is left out:
what it takes for one depends on a list of the top-level domains of the day, which the recipe
downloads and does not date, so that no version of it could be named. Addresses stay in the text.

Source: Li et al. 2024 (arXiv:2406.11794), its dclm_baseline_refinedweb configuration and mappers;
Penedo et al. 2023 (arXiv:2306.01116), section G.2, for the line-wise rules.
"""

import re
from collections import Counter
from collections.abc import Callable

from rslm.data.quality import characters
from rslm.data.quality.characters import DECIMAL, NOT_WORD
from rslm.data.quality.gopher import alphanumeric_words
from rslm.data.quality.page import Page, Verdict, dropped, edited, ratio

MAX_CONSECUTIVE_NEWLINES = 2
MAX_UPPERCASE = 0.5
MAX_DIGITS = 0.999999
MIN_WORDS_PER_LINE = 2
MAX_WORDS_OF_FURNITURE_LINE = 10
MAX_REMOVED_WORDS = 0.05

_COUNTER = re.compile(
    rf"{NOT_WORD}*+{DECIMAL}[,.{DECIMAL[1:]}*+[kmb]?\s++"
    r"(?:likes|shares|comments|retweets|reposts|quotes|bookmarks|upvotes|downvotes|downloads"
    r"|views|followers)" + NOT_WORD + "*+"
)
# One after the other, in this order. The dots of the second are wildcards, as in DCLM, which
# never escaped them: `read more >>` at the end of a line goes too, with one more character.
_FURNITURE = (
    re.compile(r"\s?items in cart", re.IGNORECASE),
    re.compile(r"\s?read more...$", re.IGNORECASE),
    re.compile(r"^sign-in\s?", re.IGNORECASE),
)


def limit_newlines(text: str) -> str:
    r"""At most two `\n` in a row."""
    return re.sub(r"\n{3,}", "\n" * MAX_CONSECUTIVE_NEWLINES, text)


def edit_lines(page: Page) -> Verdict:
    """Removes lines and furniture; drops the page if more than 5 % of its words went.

    The lines between newlines go through each rule in turn, and the text is stripped in between
    as DCLM does it. Words are counted as by `alphanumeric_words`.
    """
    removed: Counter[str] = Counter()
    text = page.text
    for reason, goes in LINE_RULES.items():
        kept = [line for line in text.split("\n") if not goes(line)]
        removed[reason] = text.count("\n") + 1 - len(kept)
        text = "\n".join(kept).strip()
    for pattern in _FURNITURE:
        lines = [(line, without(line, pattern)) for line in text.split("\n")]
        kept = [after for before, after in lines if not before or after.strip()]
        removed["dclm_furniture"] += len(lines) - len(kept)
        text = "\n".join(kept).strip()
    n_before, n_after = len(alphanumeric_words(page)), len(alphanumeric_words(Page(text)))
    if not text or ratio(n_before - n_after, n_before) > MAX_REMOVED_WORDS:
        return dropped("dclm_removed_words", +removed)
    return edited(page.text, text, removed)


def is_uppercase(line: str) -> bool:
    """More than half of the code points are capitals (`str.isupper`)."""
    return (
        ratio(sum(characters.is_uppercase(character) for character in line), len(line))
        > MAX_UPPERCASE
    )


def is_digits(line: str) -> bool:
    """All code points are digits (`str.isdigit`), for lines short of a million."""
    return ratio(sum(characters.is_digit(character) for character in line), len(line)) > MAX_DIGITS


def is_counter(line: str) -> bool:
    """A number and what it counts, alone: `3 likes`, `1.2K followers`."""
    return _COUNTER.fullmatch(line.lower()) is not None


def is_short(line: str) -> bool:
    """One word or only blanks; the empty line stays."""
    return bool(line) and len(line.split()) < MIN_WORDS_PER_LINE


def without(line: str, pattern: re.Pattern[str]) -> str:
    """A line of at most ten words without what the pattern finds; longer ones untouched."""
    return pattern.sub("", line) if len(line.split()) <= MAX_WORDS_OF_FURNITURE_LINE else line


LINE_RULES: dict[str, Callable[[str], bool]] = {
    "dclm_uppercase_line": is_uppercase,
    "dclm_digits_line": is_digits,
    "dclm_counter_line": is_counter,
    "dclm_short_line": is_short,
}
