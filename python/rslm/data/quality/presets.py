"""The named recipes: which families of rules a page goes through, in which order.

| preset | steps |
|---|---|
| `course` | Gopher's quality rules, of CS336 |
| `gopher` | Gopher's quality rules, then repetition, of the paper |
| `c4` | C4's lines and page rules |
| `fineweb` | repetition, quality, C4 without its punctuation rule, own rules of December 2024 |
| `fineweb_2024` | the same with the own rules of April 2024, which made the released data |
| `dolma` | C4's lines without punctuation go, then quality and repetition |
| `dclm` | newlines limited, quality, repetition, line edits |

What stands before and after in those recipes (addresses, language, duplicates, classifiers) is not
here. A rule after an edit sees the edited page.

Dolma's C4 tagger also marks pages with "lorem ipsum", "javascript", curly brackets or bad words.
The published recipe does not filter by these marks (Soldaini et al. 2024, section 3.1.2: all of
Gopher, of C4 only the rule on punctuation), and neither does the preset.
"""

import functools
from collections.abc import Callable
from typing import Literal, get_args

from rslm.data.quality import gopher
from rslm.data.quality.c4 import check_c4, remove_unpunctuated_lines
from rslm.data.quality.dclm import edit_lines, limit_newlines
from rslm.data.quality.fineweb import check_fineweb, check_fineweb_2024
from rslm.data.quality.page import Page, Verdict, dropped, edited
from rslm.data.quality.repetition import (
    check_repetition_dclm,
    check_repetition_dolma,
    check_repetition_fineweb,
    check_repetition_paper,
)
from rslm.data.quality.segment import unicode_words

Preset = Literal["course", "gopher", "c4", "fineweb", "fineweb_2024", "dolma", "dclm"]
Step = Callable[[Page], Verdict]


def judge(check: Callable[[Page], str | None]) -> Step:
    """A step that drops the page for the check's reason, or keeps it as it is."""

    def step(page: Page) -> Verdict:
        reason = check(page)
        return dropped(reason, {}) if reason else edited(page.text, page.text, {})

    return step


def edit(change: Callable[[str], str]) -> Step:
    """A step that keeps the page with its text changed."""
    return lambda page: edited(page.text, change(page.text), {})


def _gopher(rules: gopher.GopherRules) -> Step:
    return judge(functools.partial(gopher.check_gopher, rules=rules))


_FINEWEB_BASE: tuple[Step, ...] = (
    judge(check_repetition_fineweb),
    _gopher(gopher.FINEWEB),
    functools.partial(check_c4, terminal_punctuation=False),
)
PRESETS: dict[Preset, tuple[Step, ...]] = {
    "course": (_gopher(gopher.COURSE),),
    "gopher": (_gopher(gopher.PAPER), judge(check_repetition_paper)),
    "c4": (check_c4,),
    "fineweb": (*_FINEWEB_BASE, judge(check_fineweb)),
    "fineweb_2024": (*_FINEWEB_BASE, judge(check_fineweb_2024)),
    "dolma": (remove_unpunctuated_lines, _gopher(gopher.DOLMA), judge(check_repetition_dolma)),
    "dclm": (edit(limit_newlines), _gopher(gopher.DCLM), judge(check_repetition_dclm), edit_lines),
}


def check_quality_reference(
    text: str, preset: Preset, *, tokenize: Callable[[str], list[str]] = unicode_words
) -> Verdict:
    """What `check_quality` gives, by the plain rules: the specification, some 0.2 MB a second.

    Raises:
        ValueError: `preset` is not one of the names.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(get_args(Preset))}, got {preset!r}")
    page = Page(text, tokenize)
    lines_removed: dict[str, int] = {}
    for step in PRESETS[preset]:
        verdict = step(page)
        lines_removed |= verdict.lines_removed
        if verdict.decision == "drop":
            return dropped(verdict.reason, lines_removed)
        page = page if verdict.decision == "keep" else Page(verdict.text, tokenize)
    return edited(text, page.text, lines_removed)
