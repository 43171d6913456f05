"""The lowest loss at every number of FLOPs over all training curves: approach 1.

Each model's loss while it trains is a curve over FLOPs. Along 1,500 numbers of FLOPs, evenly
spaced in their logarithm, the model with the lowest curve is taken as the best for that budget,
its size as N* and what it has read by then as D*; both are powers of the budget.

Where the smallest or the largest model is lowest nobody knows whether a smaller or larger one
would be lower still: those stretches are left out where at least three sizes remain. A curve is
only as good as its learning rate lets it be before its schedule has ended, so that this
approach favours other sizes than the others do unless rates decay several times in a run.

Source: Hoffmann et al. 2022, section 3.1 (arXiv:2203.15556).
"""

import numpy as np

from rslm.scaling.frontier import Optima
from rslm.scaling.points import Array, ScalingPoints

N_BUDGETS = 1500
MIN_CURVES = 2


def split_curves(points: ScalingPoints) -> list[ScalingPoints]:
    """The training curve of each size, by rising FLOPs; sizes with one point have none."""
    curves = []
    for size in np.unique(points.n_parameters):
        own = points.take(points.n_parameters == size)
        own = own.take(np.argsort(own.train_flops, kind="stable"))
        if len(own) > 1 and own.train_flops[0] < own.train_flops[-1]:
            curves.append(own)
    return curves


def find_envelope(curves: list[ScalingPoints]) -> Optima:
    """The lowest of the curves, where at least one of them runs.

    Between its points a curve is a line over ln C.

    Raises:
        ValueError: there are fewer than two curves, or one is the lowest everywhere.
    """
    if len(curves) < MIN_CURVES:
        raise ValueError(
            f"at least {MIN_CURVES} training curves of different sizes are needed, "
            f"got {len(curves)}"
        )
    curves = sorted(curves, key=lambda curve: float(curve.n_parameters[0]))
    ends = [(curve.train_flops[0], curve.train_flops[-1]) for curve in curves]
    grid = np.geomspace(min(e[0] for e in ends), max(e[1] for e in ends), N_BUDGETS)
    losses = np.stack([_along(curve, grid, curve.loss) for curve in curves])
    lowest = np.nanargmin(np.where(np.isnan(losses), np.inf, losses), axis=0)
    known = ~np.isnan(losses).all(axis=0)
    inside = known & (lowest > 0) & (lowest < len(curves) - 1)
    kept = inside if len(np.unique(lowest[inside])) > 2 else known
    if len(np.unique(lowest[kept])) < 2:
        raise ValueError("training curves must cross, and one is the lowest at every budget")
    tokens = np.stack([np.exp(_along(curve, grid, np.log(curve.n_tokens))) for curve in curves])
    places = np.flatnonzero(kept)
    sizes = np.array([curve.n_parameters[0] for curve in curves])
    return Optima(
        grid[places],
        sizes[lowest[places]],
        tokens[lowest[places], places],
        losses[lowest[places], places],
    )


def _along(curve: ScalingPoints, grid: Array, values: Array) -> Array:
    """What a curve has at the FLOPs of the grid; NaN where it does not run."""
    logs = np.log(curve.train_flops)
    found: Array = np.interp(np.log(grid), logs, values, left=np.nan, right=np.nan)
    return found
