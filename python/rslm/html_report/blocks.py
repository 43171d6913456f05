"""What a page is made of: facts, tables, plots and texts, as data.

All of it is text and numbers, never markup.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rslm.html_report.thinning import Series

Tone = Literal["", "good", "bad", "muted"]


@dataclass(frozen=True, kw_only=True)
class Fact:
    """A number that the reader should see first, with what it is and a remark."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Facts side by side."""

    facts: Sequence[Fact]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A field of a table.

    Attributes:
        value: what it is sorted by; None: last.
        text: what it shows.
        tone: how it is meant.
        colour: number of the line in the plots that it stands for.
    """

    value: str | float | None
    text: str
    tone: Tone = ""
    colour: int | None = None


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table that is sorted by a click on a heading.

    Attributes:
        caption: what it shows, in a sentence.
        columns: headings, and for each what it means, or "".
        rows: one cell a column; the first names the row.
        is_sortable: not so where the order of rows means something.
    """

    caption: str
    columns: Sequence[tuple[str, str]]
    rows: Sequence[Sequence[Cell]]
    is_sortable: bool = True


@dataclass(frozen=True, kw_only=True)
class Line:
    """A run in `Curves`: its series by metric; lines of one group share colour and switch."""

    name: str
    group: str
    series: Mapping[str, Series]


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Lines over an axis that the reader chooses, with zoom, smoothing and logarithmic axes.

    Attributes:
        caption: what they show, in a sentence.
        axes: titles of the axes by key; the first is the one that others may be multiples of.
        metrics: keys of what is drawn together, by title.
        axis: key of the axis at first.
        rough: metrics that are smoothed.
        lines: the runs.
    """

    caption: str
    axes: Mapping[str, str]
    metrics: Mapping[str, Sequence[str]]
    axis: str
    rough: Sequence[str] = ()
    lines: Sequence[Line]


@dataclass(frozen=True, kw_only=True)
class Trace:
    """Points, a line, or the band between `y` and `high`."""

    name: str
    kind: Literal["points", "line", "band"]
    x: Sequence[float]
    y: Sequence[float]
    high: Sequence[float] = ()
    labels: Sequence[str] = ()
    colour: int | None = None
    is_dashed: bool = False


@dataclass(frozen=True, kw_only=True)
class Plot:
    """Traces over two axes."""

    caption: str
    x_title: str
    y_title: str
    traces: Sequence[Trace]
    log_x: bool = False
    log_y: bool = False


@dataclass(frozen=True, kw_only=True)
class Effect:
    """A row of a forest plot: an estimate with its interval, and what to make of it."""

    name: str
    estimate: float
    low: float
    high: float
    note: str = ""
    tone: Tone = ""


@dataclass(frozen=True, kw_only=True)
class Forest:
    """Effects with their intervals, one below the other, around no effect."""

    caption: str
    x_title: str
    effects: Sequence[Effect]


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Texts side by side, of a moment that the reader chooses.

    Attributes:
        caption: what they are, in a sentence.
        choice: what is chosen, in a word.
        columns: for each name its texts by moment; moments ascend.
    """

    caption: str
    choice: str
    columns: Mapping[str, Mapping[int, str]]


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A row of `Bars`.

    Attributes:
        name: what it stands for.
        parts: lengths that lie one behind the other; at least 0, on one scale in all rows.
        texts: the numbers beside it, one a column.
        note: what the name means.
    """

    name: str
    parts: Sequence[float]
    texts: Sequence[str]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Bars:
    """Lying bars in a table, whose numbers say the same to those who see none.

    Attributes:
        caption: what they show, in a sentence.
        name: heading of the rows' names.
        parts: what the parts of each bar are, the first the strongest.
        columns: headings of the numbers.
        bars: the rows.
    """

    caption: str
    name: str
    parts: Sequence[str]
    columns: Sequence[str]
    bars: Sequence[Bar]


@dataclass(frozen=True, kw_only=True)
class Passage:
    """A text from outside, with what it is and a line about it.

    Attributes:
        marks: stretches of the text that the reader should see first: start and end, ascending.
    """

    title: str
    note: str
    text: str
    marks: Sequence[tuple[int, int]] = ()


@dataclass(frozen=True, kw_only=True)
class PassageGroup:
    """Passages that are opened together."""

    title: str
    note: str = ""
    passages: Sequence[Passage]


@dataclass(frozen=True, kw_only=True)
class Passages:
    """Groups of texts side by side, each group shut until somebody wants to read it."""

    caption: str
    groups: Sequence[PassageGroup]


@dataclass(frozen=True, kw_only=True)
class Notes:
    """Sentences that stand apart, under a title."""

    title: str
    notes: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class ScoredToken:
    """A token of `Tokens`, and what a model thought of it.

    Attributes:
        token_id: key of its bytes in `Tokens.vocab`.
        log_prob: in nats; None where it was not predicted.
        rank: how many tokens were thought at least as likely, itself among them.
        top: the likeliest ids, with their log-probabilities, descending.
    """

    token_id: int
    log_prob: float | None = None
    rank: int | None = None
    top: Sequence[tuple[int, float]] = ()


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """A text token by token, shaded by probability; more about each on hover and focus.

    Attributes:
        caption: what it shows, in a sentence.
        vocab: bytes of every id that occurs.
        tokens: the text.
    """

    caption: str
    vocab: Mapping[int, bytes]
    tokens: Sequence[ScoredToken]


Block = Facts | Table | Curves | Plot | Forest | Texts | Bars | Passages | Notes | Tokens


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a page."""

    title: str
    lead: str = ""
    blocks: Sequence[Block] = ()


@dataclass(frozen=True, kw_only=True)
class Page:
    """A report: what it says in a sentence or two, its parts, where it comes from."""

    title: str
    lead: str
    sections: Sequence[Section]
    footer: str = ""
