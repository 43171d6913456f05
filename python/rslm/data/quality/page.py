"""A page under judgement: its text, its pieces, and the verdict on it."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from rslm.data.quality.segment import unicode_words


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What becomes of a page: kept as it is, kept with an edited text, or dropped.

    Args:
        decision: "edit" only where the text changed.
        text: the text to go on with; empty where the page is dropped.
        reason: why the page is dropped: the first rule that hit, in the preset's order.
        lines_removed: reason -> lines that an edit removed, also where the page is then dropped.
    """

    decision: Literal["keep", "drop", "edit"]
    text: str
    reason: str = ""
    lines_removed: dict[str, int] = field(default_factory=dict)


class Page:
    """A text and its pieces, each made once and only if a rule asks for it.

    Args:
        tokenize: what cuts the words of FineWeb's and DCLM's rules; UAX #29 unless given.
    """

    def __init__(self, text: str, tokenize: Callable[[str], list[str]] = unicode_words) -> None:
        self.text = text
        self.tokenize = tokenize

    @functools.cached_property
    def split_words(self) -> list[str]:
        """Pieces between white space, as `str.split` sees it (U+001C to U+001F included)."""
        return self.text.split()

    @functools.cached_property
    def unicode_words(self) -> list[str]:
        """Words and punctuation marks, of UAX #29 or of the given tokenizer."""
        return self.tokenize(self.text)

    @functools.cached_property
    def lines(self) -> list[str]:
        r"""Lines of `str.splitlines`, which breaks at VT, FF, NEL, U+2028 and others too."""
        return self.text.splitlines()


def edited(before: str, after: str, lines_removed: Mapping[str, int]) -> Verdict:
    """Edit if the text changed, else keep; reasons that removed nothing are left out."""
    return Verdict(
        decision="keep" if after == before else "edit",
        text=after,
        lines_removed={reason: n for reason, n in lines_removed.items() if n},
    )


def dropped(reason: str, lines_removed: Mapping[str, int]) -> Verdict:
    """The page goes, for this reason."""
    return Verdict(decision="drop", text="", reason=reason, lines_removed=dict(lines_removed))


def ratio(part: float, whole: float) -> float:
    """`part / whole`, and 0 where there is nothing to take a part of.

    Division rounds correctly, so a share equal to a decimal limit compares equal to it.
    """
    return part / whole if whole else 0.0
