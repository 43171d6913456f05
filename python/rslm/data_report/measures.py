"""The numbers that quality rules look at, each with its limit: why a page is kept or dropped.

They are those of `rslm.data.quality`, computed all, where a recipe stops at the first that is
outside its limit. Page and limits are its own.
"""

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from rslm.data.quality import PRESETS, Page, Preset, Verdict, c4, fineweb, gopher
from rslm.data.quality import repetition as rep
from rslm.data.quality.page import ratio
from rslm.data.quality.segment import unicode_sentences

Relation = Literal["at least", "at most", "above", "below"]


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A number of a page, and what it must be.

    Attributes:
        reason: why the page is dropped where it is not.
        name: what is measured, in words.
    """

    reason: str
    name: str
    value: float
    relation: Relation
    limit: float

    @property
    def holds(self) -> bool:
        """Whether the number is within its limit."""
        match self.relation:
            case "at least":
                return self.value >= self.limit
            case "at most":
                return self.value <= self.limit
            case "above":
                return self.value > self.limit
            case "below":
                return self.value < self.limit


@dataclass(frozen=True, kw_only=True)
class QualityStep:
    """A family of rules at work on a page.

    Attributes:
        measures: all numbers of its rules; none where it takes out lines first.
        verdict: what becomes of the page.
        before: the text that it was given.
    """

    measures: Sequence[Measure]
    verdict: Verdict
    before: str


@dataclass(kw_only=True)
class _Rules:
    """Collects measures; most are shares that must stay within a limit."""

    measures: list[Measure] = field(default_factory=list)

    def add(self, reason: str, name: str, value: float, relation: Relation, limit: float) -> None:
        self.measures.append(
            Measure(reason=reason, name=name, value=value, relation=relation, limit=limit)
        )

    def share(self, reason: str, name: str, part: float, whole: float, limit: float) -> None:
        self.add(reason, name, ratio(part, whole), "at most", limit)


def quality_steps(text: str, preset: Preset) -> list[QualityStep]:
    """What each family of a recipe's rules finds and does, up to the one that drops the page."""
    page, steps = Page(text), []
    for step, measure in zip(PRESETS[preset], MEASURES[preset], strict=True):
        verdict = step(page)
        steps.append(QualityStep(measures=measure(page), verdict=verdict, before=page.text))
        if verdict.decision == "drop":
            break
        page = page if verdict.decision == "keep" else Page(verdict.text)
    return steps


def _gopher(page: Page, rules: gopher.GopherRules) -> list[Measure]:
    found = _Rules()
    words = rules.words(page)
    n_counted = len(rules.counted_words(page))
    found.add("gopher_too_few_words", "words", n_counted, "at least", gopher.MIN_WORDS)
    found.add("gopher_too_many_words", "words", n_counted, "at most", gopher.MAX_WORDS)
    length = gopher.word_length(page, rules)
    middle = "median" if rules is gopher.DOLMA else "mean"
    name = f"{middle} length of a word"
    found.add("gopher_short_words", name, length, "at least", gopher.MIN_WORD_LENGTH)
    found.add("gopher_long_words", name, length, "at most", gopher.MAX_WORD_LENGTH)
    for group in rules.symbols or ():
        if rules.symbols_in_words:
            n = sum(any(mark in word for mark in group) for word in words)
        else:
            n = sum(page.text.count(mark) for mark in group)
        limit = gopher.MAX_SYMBOLS_PER_WORD
        name = f"{' '.join(group)} per word"
        found.share("gopher_too_many_symbols", name, n, len(words), limit)
    if rules.bullets is not None:
        lines = rules.bullet_lines(page)
        n = sum(line.startswith(rules.bullets) for line in lines)
        name = "lines that begin with a bullet"
        found.share("gopher_bullet_lines", name, n, len(lines), gopher.MAX_BULLET_LINES)
    lines = rules.ellipsis_lines(page)
    n = sum(line.endswith(rules.ellipses) for line in lines)
    name = "lines that end in an ellipsis"
    found.share("gopher_ellipsis_lines", name, n, len(lines), gopher.MAX_ELLIPSIS_LINES)
    n = sum(any(character.isalpha() for character in word) for word in words)
    value, limit = ratio(n, len(words)), gopher.MIN_ALPHABETIC_WORDS
    found.add("gopher_few_alphabetic_words", "words with a letter", value, "at least", limit)
    if rules.stop_words is not None:
        n = _n_stop_words(words, rules.stop_words, rules)
        name = "stop words" if not rules.distinct_stop_words else "different stop words"
        found.add("gopher_few_stop_words", name, n, "at least", gopher.MIN_STOP_WORDS)
    return found.measures


def _n_stop_words(
    words: Sequence[str], stop_words: frozenset[str], rules: gopher.GopherRules
) -> int:
    lowered = (word.lower() if rules.lower_stop_words else word for word in words)
    hits = [word for word in lowered if word in stop_words]
    return len(set(hits) if rules.distinct_stop_words else hits)


def _copies(
    found: _Rules, kind: str, copies: rep.Duplicates, n_segments: int, n_characters: int,
    limits: tuple[float, float],
) -> None:  # fmt: skip
    """Both shares of segments that come again."""
    found.share(
        f"repetition_{kind}s", f"repeated {kind}s", copies.n_segments, n_segments, limits[0]
    )
    name = f"characters of repeated {kind}s"
    found.share(f"repetition_{kind}_characters", name, copies.n_characters, n_characters, limits[1])


_LINES = rep.MAX_DUPLICATE_LINES, rep.MAX_DUPLICATE_LINE_CHARACTERS
_LINES_DOLMA = rep.MAX_DUPLICATE_LINES, rep.MAX_DUPLICATE_LINE_CHARACTERS_DOLMA
_PARAGRAPHS = rep.MAX_DUPLICATE_PARAGRAPHS, rep.MAX_DUPLICATE_PARAGRAPH_CHARACTERS


def _ngrams(
    found: _Rules, top: Callable[[int], float], duplicate: Callable[[int], float], total: int
) -> None:
    """Characters under the commonest n-gram, and under all that come again."""
    for n, limit in rep.MAX_TOP_NGRAM_CHARACTERS.items():
        name = f"characters of the commonest {n} words in a row"
        found.share(f"repetition_top_{n}_gram", name, top(n), total, limit)
    for n, limit in rep.MAX_DUPLICATE_NGRAM_CHARACTERS.items():
        name = f"characters of repeated {n} words in a row"
        found.share(f"repetition_duplicate_{n}_grams", name, duplicate(n), total, limit)


def _repetition_fineweb(page: Page) -> list[Measure]:
    found, text, words = _Rules(), page.text, page.unicode_words
    parts = re.split(r"\n{2,}", text.strip())
    lines = re.split(r"\n+", text)
    _copies(found, "paragraph", rep.later_copies(parts), len(parts), len(text), _PARAGRAPHS)
    _copies(found, "line", rep.later_copies(lines), len(lines), len(text), _LINES)
    _ngrams(
        found,
        lambda n: rep.top_ngram_characters_fineweb(words, n),
        lambda n: rep.duplicate_ngram_characters_fineweb(words, n),
        len(text),
    )
    return found.measures


def _repetition_dolma(page: Page) -> list[Measure]:
    found, words = _Rules(), page.split_words
    lines, total = page.text.split("\n"), rep.n_characters(words)
    _copies(found, "line", rep.repeated_members(lines), len(lines), total, _LINES_DOLMA)
    for n, limit in rep.MAX_TOP_NGRAM_CHARACTERS.items():
        name = f"characters of the commonest {n} words in a row"
        n_top = rep.top_ngram_characters_dolma(words, n)
        found.share(f"repetition_top_{n}_gram", name, n_top, total, limit)
    for n, limit in rep.MAX_DUPLICATE_NGRAM_CHARACTERS.items():
        name = f"characters of repeated {n} words in a row"
        value = rep.duplicate_ngram_share_dolma(words, n)
        found.add(f"repetition_duplicate_{n}_grams", name, value, "at most", limit)
    return found.measures


def _segments(
    page: Page, words: Sequence[str], find: Callable[[Sequence[str]], rep.Duplicates]
) -> _Rules:
    """Repetition as the paper and DCLM read it."""
    found = _Rules()
    lines = rep.filled_segments(page.text, "\n")
    parts = rep.filled_segments(page.text, "\n\n")
    _copies(found, "line", find(lines), len(lines), rep.n_characters(lines), _LINES)
    _copies(found, "paragraph", find(parts), len(parts), rep.n_characters(parts), _PARAGRAPHS)
    # Both shares of segments stand before both shares of characters.
    found.measures[1], found.measures[2] = found.measures[2], found.measures[1]
    _ngrams(
        found,
        lambda n: rep.top_ngram_characters_dclm(words, n),
        lambda n: rep.duplicate_ngram_characters_dclm(words, n),
        rep.n_characters(words),
    )
    return found


def _repetition_paper(page: Page) -> list[Measure]:
    return _segments(page, page.split_words, rep.later_copies).measures


def _repetition_dclm(page: Page) -> list[Measure]:
    found = _Rules()
    n_lines = len(rep.filled_segments(page.text, "\n"))
    found.add("repetition_empty", "lines that are not empty", n_lines, "at least", 1)
    words = [word for word in page.unicode_words if word[0].isalnum()]
    return found.measures + _segments(page, words, rep.repeated_members).measures


def _c4(page: Page, *, terminal_punctuation: bool) -> list[Measure]:
    judged = [
        c4.judge_line(line.strip(), terminal_punctuation=terminal_punctuation)
        for line in page.lines
    ]
    found = _Rules()
    for reason in ("c4_lorem_ipsum", "c4_curly_bracket"):
        n = sum(why == reason for _, why in judged)
        name = {"c4_lorem_ipsum": '"lorem ipsum"', "c4_curly_bracket": '"{"'}[reason]
        found.add(reason, f"lines with {name}", n, "at most", 0)
    n = sum(len(unicode_sentences(line)) for line, why in judged if not why)
    found.add("c4_too_few_sentences", "sentences in kept lines", n, "at least", c4.MIN_SENTENCES)
    return found.measures


def _fineweb(page: Page) -> list[Measure]:
    found, lines = _Rules(), fineweb.filled_lines(page.text)
    found.add("fineweb_empty", "lines that are not empty", len(lines), "at least", 1)
    value = fineweb.punctuated_share(lines)
    name = "lines that end in punctuation"
    limit = fineweb.MIN_PUNCTUATED_LINES
    found.add("fineweb_line_punctuation", name, value, "at least", limit)
    value = fineweb.short_share(lines)
    found.add("fineweb_short_lines", _SHORT_LINES, value, "at most", fineweb.MAX_SHORT_LINES)
    _fineweb_rest(found, page, "at most")
    return found.measures


def _fineweb_2024(page: Page) -> list[Measure]:
    found, lines = _Rules(), page.text.split("\n")
    n = sum(line.endswith(fineweb.TERMINAL_PUNCTUATION_2024) for line in lines)
    name = "lines that end in punctuation"
    value, limit = ratio(n, len(lines)), fineweb.MIN_PUNCTUATED_LINES
    found.add("fineweb_line_punctuation", name, value, "above", limit)
    value = fineweb.short_share(lines)
    found.add("fineweb_short_lines", _SHORT_LINES, value, "below", fineweb.MAX_SHORT_LINES)
    _fineweb_rest(found, page, "below")
    return found.measures


_SHORT_LINES = f"lines of at most {fineweb.SHORT_LINE} characters"


def _fineweb_rest(found: _Rules, page: Page, relation: Relation) -> None:
    value = fineweb.duplicate_character_share(page.text)
    limit = fineweb.MAX_DUPLICATE_CHARACTERS
    found.add(
        "fineweb_duplicate_characters", "characters of repeated lines", value, relation, limit
    )
    n, limit = page.text.count("\n"), fineweb.MAX_NEWLINES_PER_WORD
    found.share("fineweb_newlines", "newlines per word", n, len(page.unicode_words), limit)


def _nothing(page: Page) -> list[Measure]:
    return []


Measures = Callable[[Page], list[Measure]]


def _with(rules: gopher.GopherRules) -> Measures:
    return functools.partial(_gopher, rules=rules)


_FINEWEB_BASE: tuple[Measures, ...] = (
    _repetition_fineweb,
    _with(gopher.FINEWEB),
    functools.partial(_c4, terminal_punctuation=False),
)
MEASURES: dict[Preset, tuple[Measures, ...]] = {
    "course": (_with(gopher.COURSE),),
    "gopher": (_with(gopher.PAPER), _repetition_paper),
    "c4": (functools.partial(_c4, terminal_punctuation=True),),
    "fineweb": (*_FINEWEB_BASE, _fineweb),
    "fineweb_2024": (*_FINEWEB_BASE, _fineweb_2024),
    "dolma": (_nothing, _with(gopher.DOLMA), _repetition_dolma),
    "dclm": (_nothing, _with(gopher.DCLM), _repetition_dclm, _nothing),
}
"""For each family of a preset's rules, in their order, what it measures."""
