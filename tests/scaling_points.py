"""Points on the surface of a known law, for the tests of scaling."""

from dataclasses import replace

import numpy as np

from rslm.scaling.laws import LossLaw
from rslm.scaling.points import ScalingPoints

# The rounded law of Hoffmann et al. 2022, on which the golden values were computed.
LAW = LossLaw(
    irreducible_loss=1.69,
    parameter_factor=406.4,
    parameter_exponent=0.34,
    token_factor=410.7,
    token_exponent=0.28,
)
BUDGETS = tuple(n * 1e17 for n in (1, 3, 10, 30, 100, 300, 1000))


def isoflop_points(
    width: float = 4,
    drift: float = 1,
    *,
    n_sizes: int = 7,
    budgets: tuple[float, ...] = BUDGETS,
    law: LossLaw = LAW,
) -> ScalingPoints:
    """Every budget spent on sizes up to a factor `width` around the best one.

    The middle of the sizes drifts from `drift` times the best in the first budget to the
    `drift`-th part of it in the last.
    """
    sizes = []
    for place, budget in zip(np.linspace(1, -1, len(budgets)), budgets, strict=True):
        middle = law.optimum(budget).n_parameters * drift**place
        sizes.append(middle * np.geomspace(1 / width, width, n_sizes))
    n_parameters = np.concatenate(sizes)
    n_tokens = np.repeat(budgets, n_sizes) / (6 * n_parameters)
    return ScalingPoints.of_allocations(n_parameters, n_tokens, law.loss(n_parameters, n_tokens))


def with_noise(points: ScalingPoints, size: float, seed: int = 0) -> ScalingPoints:
    """The points with losses off by factors of about 1 + `size`."""
    noise = np.random.default_rng(seed).standard_normal(len(points))
    return replace(points, loss=points.loss * np.exp(size * noise))


def training_curves(n_sizes: int = 20, n_steps: int = 60) -> ScalingPoints:
    """Each size all along the tokens, as if every step were the end of its schedule."""
    n_parameters = np.repeat(np.geomspace(1e7, 3e9, n_sizes), n_steps)
    n_tokens = np.tile(np.geomspace(1e8, 3e11, n_steps), n_sizes)
    return ScalingPoints.of_allocations(n_parameters, n_tokens, LAW.loss(n_parameters, n_tokens))
