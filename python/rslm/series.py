"""A series of numbers, smoothed or as a line of bars, and seconds as people read them."""

import itertools
import math
from collections.abc import Sequence

SPARKS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], width: int) -> str:
    """The values as one line of bars: means of `width` stretches, lowest to highest."""
    finite = [value for value in values if math.isfinite(value)]
    n_bars = min(width, len(finite))
    edges = [len(finite) * i // n_bars for i in range(n_bars + 1)] if n_bars else []
    stretches = itertools.pairwise(edges)
    means = [sum(finite[start:stop]) / (stop - start) for start, stop in stretches]
    low, high = min(means, default=0.0), max(means, default=0.0)
    scale = (len(SPARKS) - 1) / (high - low) if high > low else 0.0
    return "".join(SPARKS[round((mean - low) * scale)] for mean in means)


def duration(seconds: float) -> str:
    """Seconds as people read them: 42s, 3m 05s, 2h 10m."""
    if seconds < 60:
        return f"{seconds:.0f}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m {rest:02d}s"
    return f"{minutes // 60}h {minutes % 60:02d}m"


def smooth(values: Sequence[float]) -> list[float]:
    """Mean over the nearest fiftieth of the values around each of them."""
    reach = len(values) // 100
    sums = [0.0, *itertools.accumulate(values)]
    spans = ((max(0, i - reach), min(len(values), i + reach + 1)) for i in range(len(values)))
    return [(sums[stop] - sums[start]) / (stop - start) for start, stop in spans]
