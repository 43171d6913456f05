"""The lowest loss at every number of FLOPs over all training curves: approach 1.

Each model's loss while it trains is a curve over FLOPs. Along 1,500 numbers of FLOPs, evenly
spaced in their logarithm, the model with the lowest curve is taken as the best for that budget,
its size as N* and what it has read by then as D*; both are powers of the budget.

Where the lowest curve is of the smallest or the largest model that has one there, nobody knows
whether a smaller or larger one would be lower still: those stretches are left out where at least
three sizes remain. A curve is only as good as its learning rate lets it be before its schedule has
ended, so that this approach favours other sizes than the others do.

Source: Hoffmann et al. 2022, section 3.1 (arXiv:2203.15556).
"""

import numpy as np

from rslm.scaling.frontier import Optima
from rslm.scaling.points import Array, ScalingPoints

N_BUDGETS = 1500
MIN_CURVES = 2


def split_curves(points: ScalingPoints) -> list[ScalingPoints]:
    """The training curves of points in order; single points are left out.

    A curve goes on while the size stays the same and tokens and FLOPs rise.
    """
    rises = (np.diff(points.n_tokens) > 0) & (np.diff(points.train_flops) > 0)
    begins = ~((np.diff(points.n_parameters) == 0) & rises)
    parts = np.split(np.arange(len(points)), np.flatnonzero(begins) + 1)
    return [points.take(part) for part in parts if len(part) > 1]


def find_envelope(curves: list[ScalingPoints]) -> Optima:
    """The lowest of the curves, where at least one of them runs.

    Between its points a curve is a line over ln C.

    Raises:
        ValueError: there are fewer than two curves, or one size is the lowest everywhere.
    """
    if len(curves) < MIN_CURVES:
        raise ValueError(
            f"at least {MIN_CURVES} training curves of different sizes are needed, "
            f"got {len(curves)}"
        )
    ends = [(curve.train_flops[0], curve.train_flops[-1]) for curve in curves]
    grid = np.geomspace(min(e[0] for e in ends), max(e[1] for e in ends), N_BUDGETS)
    losses = np.stack([_along(curve, grid, curve.loss) for curve in curves])
    tokens = np.stack([np.exp(_along(curve, grid, np.log(curve.n_tokens))) for curve in curves])
    runs = ~np.isnan(losses)
    lowest = np.argmin(np.where(runs, losses, np.inf), axis=0)
    every = np.arange(N_BUDGETS)
    of_curves = np.array([curve.n_parameters[0] for curve in curves])
    sizes = of_curves[lowest]
    known = runs.any(axis=0)
    has_smaller = (runs & (of_curves[:, None] < sizes)).any(axis=0)
    has_larger = (runs & (of_curves[:, None] > sizes)).any(axis=0)
    inside = known & has_smaller & has_larger
    kept = inside if len(np.unique(sizes[inside])) > 2 else known
    if len(np.unique(sizes[kept])) < 2:
        raise ValueError("training curves must cross, and one size is the lowest at every budget")
    return Optima(grid[kept], sizes[kept], *(x[lowest, every][kept] for x in (tokens, losses)))


def _along(curve: ScalingPoints, grid: Array, values: Array) -> Array:
    """What a curve has at the FLOPs of the grid; NaN where it does not run."""
    logs = np.log(curve.train_flops)
    found: Array = np.interp(np.log(grid), logs, values, left=np.nan, right=np.nan)
    return found
