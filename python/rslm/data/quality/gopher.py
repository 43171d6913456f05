"""Gopher's quality rules, in the five versions that bear the name.

All limits are those of Rae et al. 2021, section A.1.1 (arXiv:2112.11446), which leaves open what
a word, a symbol and a line are. The versions fill that in differently, and disagree on real pages:

| | paper | course | fineweb | dolma | dclm |
|---|---|---|---|---|---|
| words | blank-separated | same | UAX #29 | blank-separated | blank-separated |
| 50 to 100,000 words | all | all | without symbols | all | first character alphanumeric |
| word length 3 to 10 | mean | mean | mean, without symbols | **median** | mean |
| symbols / words <= .1 | `#`; `...` `…` | no | as paper | words with `#` `…` | all, `. . .` too |
| bullet lines <= .9 | `•●*-`, stripped | no | `•-`, stripped | `*-`, as is | as paper, no empty |
| ellipsis lines <= .3 | `...` `…` | `...` | as paper | `…`, as is | `. . .` too, no empty |
| words with a letter >= .8 | yes | yes | yes | yes | yes |
| 2 stop words | distinct, any case | no | distinct, as is | any, as is | any, any case |

The paper's symbols have a share each, `#` and the ellipses together; DCLM's have one. The paper's
open points are ours to fill: its column says how. FineWeb's own words are spaCy's. UAX #29 makes
more marks of some texts (each full stop of `...`, each slash of an address), and shares of words
differ a little: give `check_quality` spaCy's tokenizer for FineWeb's own verdicts.

Sources: Rae et al. 2021, section A.1.1; the CS336 assignment on data (course); Penedo et al. 2024,
arXiv:2406.17557, and its datatrove (fineweb); Soldaini et al. 2024, arXiv:2402.00159, tagger
gopher_v1 (dolma); Li et al. 2024, arXiv:2406.11794, mapper filters (dclm).
"""

import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rslm.data.quality.characters import is_alphanumeric, is_letter, is_symbols_only
from rslm.data.quality.page import Page, ratio

MIN_WORDS = 50
MAX_WORDS = 100_000
MIN_WORD_LENGTH = 3
MAX_WORD_LENGTH = 10
MAX_SYMBOLS_PER_WORD = 0.1
MAX_BULLET_LINES = 0.9
MAX_ELLIPSIS_LINES = 0.3
MIN_ALPHABETIC_WORDS = 0.8
MIN_STOP_WORDS = 2
STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})

# fastText's blanks: fewer than Unicode's, and NUL is one of them.
_FASTTEXT_WORD = re.compile("[^ \n\r\t\v\f\0]+")

Words = Callable[[Page], Sequence[str]]
Lines = Callable[[Page], Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class GopherRules:
    """One version of the rules; a None leaves the rule out.

    Args:
        counted_words: the words that must be neither too few nor too many.
        measured_words: the words whose length counts.
        words: the words of every other rule.
        symbols: groups of symbols; each group's share must stay within the limit.
        symbols_in_words: count words that hold a symbol instead of its occurrences.
        bullet_lines, ellipsis_lines: the lines as each rule looks at them.
        distinct_stop_words: repeated stop words count once.
        lower_stop_words: words are lower-cased before they are looked up.
    """

    words: Words
    counted_words: Words
    measured_words: Words
    middle: Callable[[list[int]], float]
    symbols: tuple[tuple[str, ...], ...] | None = None
    symbols_in_words: bool = False
    bullets: tuple[str, ...] | None = None
    bullet_lines: Lines
    ellipses: tuple[str, ...]
    ellipsis_lines: Lines
    stop_words: frozenset[str] | None = None
    distinct_stop_words: bool = False
    lower_stop_words: bool = False


def check_gopher(page: Page, rules: GopherRules) -> str | None:
    """The name of the first rule that the page breaks, in the order of the paper."""
    hit = (reason for reason, breaks in GOPHER_RULES.items() if breaks(page, rules))
    return next(hit, None)


def too_few_words(page: Page, rules: GopherRules) -> bool:
    """Fewer than 50 words."""
    return len(rules.counted_words(page)) < MIN_WORDS


def too_many_words(page: Page, rules: GopherRules) -> bool:
    """More than 100,000 words."""
    return len(rules.counted_words(page)) > MAX_WORDS


def short_words(page: Page, rules: GopherRules) -> bool:
    """Words of fewer than 3 code points in the mean (or median)."""
    return word_length(page, rules) < MIN_WORD_LENGTH


def long_words(page: Page, rules: GopherRules) -> bool:
    """Words of more than 10 code points in the mean (or median)."""
    return word_length(page, rules) > MAX_WORD_LENGTH


def word_length(page: Page, rules: GopherRules) -> float:
    """Mean or median length of the measured words in code points; 0 without words."""
    lengths = [len(word) for word in rules.measured_words(page)]
    return rules.middle(lengths) if lengths else 0.0


def too_many_symbols(page: Page, rules: GopherRules) -> bool:
    """More than one hash or ellipsis to ten words.

    `...` is counted without overlaps: six full stops are two.
    """
    if rules.symbols is None:
        return False
    n_words = len(rules.words(page))
    for group in rules.symbols:
        if rules.symbols_in_words:
            n_symbols = sum(any(mark in word for mark in group) for word in rules.words(page))
        else:
            n_symbols = sum(page.text.count(mark) for mark in group)
        if ratio(n_symbols, n_words) > MAX_SYMBOLS_PER_WORD:
            return True
    return False


def too_many_bullet_lines(page: Page, rules: GopherRules) -> bool:
    """More than 90 % of the lines begin with a bullet."""
    if rules.bullets is None:
        return False
    lines = rules.bullet_lines(page)
    return ratio(sum(line.startswith(rules.bullets) for line in lines), len(lines)) > (
        MAX_BULLET_LINES
    )


def too_many_ellipsis_lines(page: Page, rules: GopherRules) -> bool:
    """More than 30 % of the lines end in an ellipsis."""
    lines = rules.ellipsis_lines(page)
    return ratio(sum(line.endswith(rules.ellipses) for line in lines), len(lines)) > (
        MAX_ELLIPSIS_LINES
    )


def too_few_alphabetic_words(page: Page, rules: GopherRules) -> bool:
    """Fewer than 80 % of the words hold a letter (categories L*, as `str.isalpha` has it)."""
    words = rules.words(page)
    n_alphabetic = sum(any(map(is_letter, word)) for word in words)
    return ratio(n_alphabetic, len(words)) < MIN_ALPHABETIC_WORDS


def too_few_stop_words(page: Page, rules: GopherRules) -> bool:
    """Fewer than two of the, be, to, of, and, that, have, with."""
    if rules.stop_words is None:
        return False
    words = (word.lower() if rules.lower_stop_words else word for word in rules.words(page))
    found = [word for word in words if word in rules.stop_words]
    return len(set(found) if rules.distinct_stop_words else found) < MIN_STOP_WORDS


GOPHER_RULES: dict[str, Callable[[Page, GopherRules], bool]] = {
    "gopher_too_few_words": too_few_words,
    "gopher_too_many_words": too_many_words,
    "gopher_short_words": short_words,
    "gopher_long_words": long_words,
    "gopher_too_many_symbols": too_many_symbols,
    "gopher_bullet_lines": too_many_bullet_lines,
    "gopher_ellipsis_lines": too_many_ellipsis_lines,
    "gopher_few_alphabetic_words": too_few_alphabetic_words,
    "gopher_few_stop_words": too_few_stop_words,
}


def split_words(page: Page) -> Sequence[str]:
    """Pieces between white space."""
    return page.split_words


def unicode_words(page: Page) -> Sequence[str]:
    """Words and punctuation marks of UAX #29."""
    return page.unicode_words


def words_without_symbols(page: Page) -> Sequence[str]:
    """UAX #29 words with a character outside datatrove's set of symbols."""
    return [word for word in page.unicode_words if not is_symbols_only(word)]


def alphanumeric_words(page: Page) -> Sequence[str]:
    """Words of fastText's tokenizer whose first character is a letter or a number."""
    return [word for word in _FASTTEXT_WORD.findall(page.text) if is_alphanumeric(word[0])]


def lines(page: Page) -> Sequence[str]:
    """Lines as `str.splitlines` has them, without the blanks at both ends."""
    return [line.strip() for line in page.lines]


def newline_lines(page: Page) -> Sequence[str]:
    r"""What stands between `\n`, untouched; one more than there are of them."""
    return page.text.split("\n")


def filled_lines(page: Page) -> Sequence[str]:
    r"""What stands between `\n`, stripped, without the empty ones."""
    return [line for piece in page.text.split("\n") if (line := piece.strip())]


PAPER = GopherRules(
    words=split_words,
    counted_words=split_words,
    measured_words=split_words,
    middle=statistics.fmean,
    symbols=(("#",), ("...", "…")),
    bullets=("•", "●", "*", "-"),
    bullet_lines=lines,
    ellipses=("...", "…"),
    ellipsis_lines=lines,
    stop_words=STOP_WORDS,
    distinct_stop_words=True,
    lower_stop_words=True,
)
COURSE = GopherRules(
    words=split_words,
    counted_words=split_words,
    measured_words=split_words,
    middle=statistics.fmean,
    bullet_lines=lines,
    ellipses=("...",),
    ellipsis_lines=lines,
)
FINEWEB = GopherRules(
    words=unicode_words,
    counted_words=words_without_symbols,
    measured_words=words_without_symbols,
    middle=statistics.fmean,
    symbols=(("#",), ("...", "…")),
    bullets=("•", "-"),
    bullet_lines=lines,
    ellipses=("...", "…"),
    ellipsis_lines=lines,
    stop_words=STOP_WORDS,
    distinct_stop_words=True,
)
DOLMA = GopherRules(
    words=split_words,
    counted_words=split_words,
    measured_words=split_words,
    middle=statistics.median,
    symbols=(("#", "…"),),
    symbols_in_words=True,
    bullets=("*", "-"),
    bullet_lines=newline_lines,
    ellipses=("…",),
    ellipsis_lines=newline_lines,
    stop_words=STOP_WORDS,
)
DCLM = GopherRules(
    words=split_words,
    counted_words=alphanumeric_words,
    measured_words=split_words,
    middle=statistics.fmean,
    symbols=(("#", "...", ". . .", "…"),),
    bullets=("●", "•", "*", "-"),
    bullet_lines=filled_lines,
    ellipses=("...", ". . .", "…"),
    ellipsis_lines=filled_lines,
    stop_words=STOP_WORDS,
    lower_stop_words=True,
)
