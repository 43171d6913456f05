"""Small non-linear fits, thousands at once: the grid of starts, or all resamples of a bootstrap.

A row is one fit. Everything runs over all rows in NumPy, so a thousand refits of five
numbers to 35 points take a second where one after the other they would take a minute.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from rslm.scaling.points import Array

Rows = npt.NDArray[np.intp]

_CHUNK_NUMBERS = 1 << 21
_MAX_DAMPING = 1e12


class Expansion(NamedTuple):
    """The cost of rows of parameters, and what a step needs: gradient and curvature."""

    cost: Array
    gradient: Array
    curvature: Array


Model = Callable[[Array, Rows], Expansion]
"""Parameters (rows, p) of the fits numbered by the second argument -> their expansion."""


def minimise(
    model: Model, start: Array, *, n_iterations: int = 200, tolerance: float = 1e-15
) -> tuple[Array, Array]:
    """Parameters and costs of all rows after damped Gauss-Newton steps.

    A step that would raise the cost is not taken and more damped the next time. A row is done
    when an accepted step lowers its cost by less than `tolerance` of it, or none helps.

    Source: Levenberg 1944; Marquardt 1963, with his scaling by the diagonal.
    """
    parameters = start.copy()
    rows = np.arange(len(start))
    now = model(parameters, rows)
    cost = now.cost.copy()
    damping = np.full(len(start), 1e-3)
    for _ in range(n_iterations):
        diagonal = np.einsum("rii->ri", now.curvature)
        # A parameter that nothing depends on has no curvature; it stays where it is.
        floor = 1e-12 * diagonal.max(axis=1, keepdims=True) + 1e-300
        damped = now.curvature.copy()
        added = damping[rows, None] * np.maximum(diagonal, floor) + floor
        np.einsum("rii->ri", damped)[...] += added
        step = np.linalg.solve(damped, now.gradient[..., None])[..., 0]
        tried = parameters[rows] - step
        then = model(tried, rows)
        better = then.cost <= cost[rows]
        gained = cost[rows] - then.cost
        done = better & (gained <= tolerance * cost[rows])
        parameters[rows[better]] = tried[better]
        cost[rows[better]] = then.cost[better]
        damping[rows] = np.where(better, damping[rows] / 10, damping[rows] * 10)
        left = ~(done | (damping[rows] > _MAX_DAMPING))
        if not left.any():
            break
        now = Expansion(
            *(
                np.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old)[left]
                for new, old in zip(then, now, strict=True)
            )
        )
        rows = rows[left]
    return parameters, cost


def chunks(n_rows: int, n_numbers: int) -> Iterator[slice]:
    """Rows in parts, so that at `n_numbers` for each no part needs much memory."""
    size = max(1, _CHUNK_NUMBERS // max(1, n_numbers))
    return (slice(first, first + size) for first in range(0, n_rows, size))


SUPPORTS = [[0, 1, 2], [0, 1], [0, 2], [1, 2], [0], [1], [2]]


def nonnegative_least_squares(columns: Array, targets: Array, weights: Array) -> Array:
    """The best factors >= 0 of three columns, by row: minimises Σ w (columns · factors - y)².

    At the optimum the positive factors are the plain solution for their own columns, so that
    the best of the plain solutions without a negative factor is the optimum; most rows have
    one with all three. `scipy.optimize.nnls` finds the same for one row.

    Args:
        columns: (rows, points, 3).
        targets: (points,).
        weights: (rows, points), not negative.
    """
    weighted = columns * weights[..., None]
    products = np.einsum("rpi,rpj->rij", weighted, columns)
    sides = weighted.transpose(0, 2, 1) @ targets
    factors = _solve(products, sides)
    rows = np.flatnonzero((factors < 0).any(axis=1))
    if not len(rows):
        return factors
    products, sides = products[rows], sides[rows]
    best = np.zeros((len(rows), 3))
    lowest = np.zeros(len(rows))  # Of all factors 0; costs without the constant Σ w y².
    for support in SUPPORTS[1:]:
        tried = np.zeros_like(best)
        tried[:, support] = _solve(products[:, support][:, :, support], sides[:, support])
        cost = np.einsum("ri,rij,rj->r", tried, products, tried) - 2 * (tried * sides).sum(axis=1)
        wins = (tried >= 0).all(axis=1) & (cost < lowest)
        best[wins], lowest[wins] = tried[wins], cost[wins]
    factors[rows] = best
    return factors


def _solve(products: Array, sides: Array) -> Array:
    """Solves symmetric systems, the shortest solution where columns say the same."""
    scale = np.sqrt(np.maximum(np.einsum("rii->ri", products), 1e-300))
    scaled = products / (scale[:, :, None] * scale[:, None, :])
    inverse = np.linalg.pinv(scaled, rcond=1e-13, hermitian=True)
    solved: Array = (inverse @ (sides / scale)[..., None])[..., 0] / scale
    return solved
