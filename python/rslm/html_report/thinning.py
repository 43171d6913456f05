"""Curves of any length in few points, without losing a peak.

Of each stretch of a long curve its lowest and its highest value stay, at their places, and its
mean for a smoothed line; the first and the last value stay in any case.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]

MAX_POINTS = 60_000
"""Points of one metric on a page, all curves together."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """A thinned series of numbers, over each of several axes.

    Attributes:
        x: for each axis the place of each value, or how many times that on the first axis.
        y: the values; NaN where there is none.
        mean_x: the same as `x` for `mean_y`.
        mean_y: means of the stretches; None where nothing was left out.
    """

    x: Mapping[str, Values | float]
    y: Values
    mean_x: Mapping[str, Values | float]
    mean_y: Values | None


def points_per_curve(n_curves: int) -> int:
    """Points to keep of each of so many curves: 2,000 up to 30 of them, 400 from 150 on."""
    return max(400, min(2000, MAX_POINTS // max(n_curves, 1)))


def thin(x: Mapping[str, Values], y: Values, n_points: int) -> Series:
    """A series of at most `n_points` of the values, and half as many means.

    Args:
        x: places of the values by axis; of the same length.
        y: values; those that are not finite are gaps.
        n_points: at least 4.
    """
    values = np.where(np.isfinite(y), y, np.nan)
    factors = _factors(x)
    kept = _kept(values, n_points)
    if len(kept) == len(values):
        return Series(x=_at(x, factors, kept), y=values, mean_x={}, mean_y=None)
    edges = _edges(len(values), n_points)
    middles = (edges[:-1] + edges[1:]) // 2
    return Series(
        x=_at(x, factors, kept),
        y=values[kept],
        mean_x=_at(x, factors, middles),
        mean_y=_means(values, edges),
    )


def _edges(n_values: int, n_points: int) -> npt.NDArray[np.int64]:
    """Where stretches of about the same length begin, and the end of the last."""
    # The first and the last value may come on top of two for each stretch.
    n_stretches = n_points // 2 - 1
    return np.arange(n_stretches + 1, dtype=np.int64) * n_values // n_stretches


def _kept(values: Values, n_points: int) -> npt.NDArray[np.int64]:
    """Places of the values that stay, ascending."""
    if len(values) <= n_points:
        return np.arange(len(values), dtype=np.int64)
    edges = _edges(len(values), n_points)
    places = {0, len(values) - 1}
    low, high = np.where(np.isnan(values), np.inf, values), np.nan_to_num(values, nan=-np.inf)
    for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        places.add(start + int(np.argmin(low[start:stop])))
        places.add(start + int(np.argmax(high[start:stop])))
    return np.array(sorted(places), dtype=np.int64)


def _means(values: Values, edges: npt.NDArray[np.int64]) -> Values:
    """The mean of each stretch; gaps do not count."""
    counts = np.add.reduceat(~np.isnan(values), edges[:-1])
    sums = np.add.reduceat(np.nan_to_num(values), edges[:-1])
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _factors(x: Mapping[str, Values]) -> dict[str, float]:
    """The axes that are multiples of the first: tokens and FLOPs often are of steps."""
    first, *others = x
    factors = {}
    for name in others:
        if len(x[first]) and x[first][-1] > 0:
            factor = float(x[name][-1] / x[first][-1])
            if np.allclose(x[name], factor * x[first], rtol=1e-9, atol=0):
                factors[name] = factor
    return factors


def _at(
    x: Mapping[str, Values], factors: Mapping[str, float], places: npt.NDArray[np.int64]
) -> dict[str, Values | float]:
    return {name: factors.get(name, values[places]) for name, values in x.items()}
