"""The space of a sweep: ranges and choices of options, and places in it.

A range is `log:LOW..HIGH` or `linear:LOW..HIGH`, with `:N` behind for so many points of a grid; a
choice is `VALUE,VALUE,...` as an axis of an ablation has.
"""

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from rslm.experiment.axes import parse_axis, parse_value, require_option
from rslm.experiment.study import MAX_RUNS

Point = dict[str, Any]
"""A value for each option of a space."""

_RANGE = re.compile(r"(log|linear):(.+?)\.\.([^:]+)(?::(\d+))?")


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """An option and where it may lie.

    Attributes:
        option: dotted.
        scale: "log" or "linear" for a range, "choice" for named values.
        low: lower end of a range.
        high: upper end.
        values: of a choice.
        n_points: of a range in a grid; None for what the number of runs allows.
        is_whole: whether the option is a whole number, to which places are rounded.
    """

    option: str
    scale: Literal["log", "linear", "choice"]
    low: float = math.nan
    high: float = math.nan
    values: tuple[Any, ...] = ()
    n_points: int | None = None
    is_whole: bool = False

    def at(self, share: float) -> Any:
        """The value at a share of the way, from 0 to 1; four digits, which are easily read."""
        if self.scale == "choice":
            return self.values[min(int(share * len(self.values)), len(self.values) - 1)]
        if self.scale == "log":
            # The ratio of the ends may be beyond all floats.
            value = self.low ** (1 - share) * self.high**share
        else:
            value = self.low + share * (self.high - self.low)
        return self.rounded(value)

    def rounded(self, value: float) -> Any:
        """The value as a run has it; rounding does not lead out of the range."""
        if self.is_whole:
            return round(value)
        return float(min(max(float(f"{value:.4g}"), self.low), self.high))

    def grid(self, n_points: int) -> list[Any]:
        """Values at equal distances, both ends among them; a choice's are all."""
        if self.scale == "choice":
            return list(self.values)
        shares = [i / (n_points - 1) for i in range(n_points)] if n_points > 1 else [0.5]
        return list(dict.fromkeys(self.at(share) for share in shares))


def parse_dimension(text: str) -> Dimension:
    """Reads OPTION=log:LOW..HIGH, OPTION=linear:LOW..HIGH:N or OPTION=VALUE,VALUE.

    Raises:
        ValueError: it is none of them, the option is unknown or no number, or the ends of the
            range are not in order.
    """
    option, _, given = text.partition("=")
    if not given.startswith(("log:", "linear:")):
        axis = parse_axis(text)
        return Dimension(option=axis.option, scale="choice", values=axis.values)
    match = _RANGE.fullmatch(given)
    if match is None:
        raise ValueError(f"range must be log:LOW..HIGH or linear:LOW..HIGH, got {given!r}")
    require_option(option)
    ends = [parse_value(option, end) for end in match.group(2, 3)]
    if not all(type(end) in (int, float) and math.isfinite(end) for end in ends):
        raise ValueError(f"range must be of an option that is a number, got {text!r}")
    low, high = ends
    if not low < high or (match[1] == "log" and low <= 0):
        rule = "0 < LOW < HIGH" if match[1] == "log" else "LOW < HIGH"
        raise ValueError(f"range must have {rule}, got {text!r}")
    # More digits than Python would read are too many anyway.
    n_points = None if match[4] is None else int(match[4][:9])
    if n_points is not None and not 1 <= n_points <= MAX_RUNS:
        raise ValueError(f"range must have 1 to {MAX_RUNS} points, got {text!r:.200}")
    return Dimension(
        option=option,
        scale="log" if match[1] == "log" else "linear",
        low=low,
        high=high,
        n_points=n_points,
        is_whole=type(low) is int,
    )


def grid_points(space: Sequence[Dimension], n_runs: int) -> list[Point]:
    """All combinations of grids: each range has the points it asks for, or as many as fit.

    Raises:
        ValueError: they are more than `n_runs`.
    """
    open_ranges = [d for d in space if d.scale != "choice" and d.n_points is None]
    fixed = math.prod(
        len(d.values) if d.scale == "choice" else d.n_points or 1
        for d in space
        if d not in open_ranges
    )
    n_open = 1
    while open_ranges and fixed * (n_open + 1) ** len(open_ranges) <= n_runs:
        n_open += 1
    grids = [d.grid(d.n_points or n_open) for d in space]
    # Counted before they are made: they may be more than memory holds.
    n_points = math.prod(map(len, grids))
    if n_points > n_runs:
        raise ValueError(f"n_runs must be at least the grid's {n_points} points, got {n_runs}")
    return [
        dict(zip((d.option for d in space), values, strict=True))
        for values in itertools.product(*grids)
    ]


def random_points(space: Sequence[Dimension], n_runs: int, seed: int) -> list[Point]:
    """Points drawn evenly; the first ones stay the same where more are asked for."""
    points = []
    for number in range(n_runs):
        shares = np.random.default_rng([seed, number]).random(len(space))
        points.append({d.option: d.at(share) for d, share in zip(space, shares, strict=True)})
    return points
