"""The best size of each budget, and a line through them: approach 2 of Hoffmann et al.

Where every budget was spent on several sizes, the losses of a budget over ln N are close to a
parabola. Its lowest place is N*, and D* the tokens that the budget's points have there; N* and D*
are powers of the budget. The plain variant takes the best run of each budget in the parabola's
place, which moves the answer by the distance between sizes.

The loss is no parabola but where α = β, so that the answer depends on how wide and how well
centred the sizes are (arXiv:2603.22339); `rslm.scaling.pitfalls` says by how much.

Source: Hoffmann et al. 2022, section 3.2 (arXiv:2203.15556).
"""

from dataclasses import dataclass

import numpy as np

from rslm.scaling.frontier import Optima, fit_line
from rslm.scaling.points import Array, ScalingPoints

MIN_SIZES = 3


@dataclass(frozen=True, kw_only=True)
class Valley:
    """The points of one budget, and the lowest place of their parabola.

    Attributes:
        flop_budget: the budget.
        n_parameters: N at the lowest place.
        n_tokens: D there.
        loss: nats per token there.
        coefficients: of the parabola in ln N, the constant first.
        smallest: the smallest N of the points.
        largest: the largest.
    """

    flop_budget: float
    n_parameters: float
    n_tokens: float
    loss: float
    coefficients: tuple[float, float, float]
    smallest: float
    largest: float

    @property
    def is_inside(self) -> bool:
        """Whether the points reach to both sides of the lowest place."""
        return self.smallest < self.n_parameters < self.largest


def find_valley(flop_budget: float, points: ScalingPoints, weights: Array | None = None) -> Valley:
    """The parabola of least squares through the points of one budget.

    Raises:
        ValueError: there are fewer than three sizes, or the parabola has no lowest place.
    """
    x = np.log(points.n_parameters)
    weights = np.ones_like(x) if weights is None else weights
    if len(np.unique(x[weights > 0])) < MIN_SIZES:
        raise ValueError(
            f"each budget must have at least {MIN_SIZES} sizes for a parabola, "
            f"got fewer at {flop_budget:.4g} FLOPs"
        )
    middle = float(x.mean())
    powers = (x - middle)[:, None] ** np.arange(3) * np.sqrt(weights)[:, None]
    c0, c1, c2 = map(float, np.linalg.lstsq(powers, points.loss * np.sqrt(weights), rcond=None)[0])
    if c2 <= 0 or abs(c1) > 100 * c2:
        raise ValueError(
            f"the losses of a budget must have a lowest place between small and large models, "
            f"and have none at {flop_budget:.4g} FLOPs\n--method vpnls does without"
        )
    place = -c1 / (2 * c2)
    intercept, slope = fit_line(x, np.log(points.n_tokens))
    return Valley(
        flop_budget=flop_budget,
        n_parameters=float(np.exp(middle + place)),
        n_tokens=float(np.exp(intercept + slope * (middle + place))),
        loss=c0 + c1 * place / 2,
        coefficients=(c0 - c1 * middle + c2 * middle**2, c1 - 2 * c2 * middle, c2),
        smallest=float(points.n_parameters.min()),
        largest=float(points.n_parameters.max()),
    )


def find_valleys(points: ScalingPoints) -> list[Valley]:
    """The parabola of every budget, the smallest first.

    Raises:
        ValueError: as `find_valley`.
    """
    return [find_valley(budget, own) for budget, own in points.by_budget().items()]


def parabola_optima(points: ScalingPoints) -> Optima:
    """The lowest place of every budget's parabola.

    Raises:
        ValueError: as `find_valley`.
    """
    valleys = find_valleys(points)
    rows = [(v.flop_budget, v.n_parameters, v.n_tokens, v.loss) for v in valleys]
    return Optima(*np.array(rows).T)


def lowest_runs(points: ScalingPoints) -> Optima:
    """The run of each budget with the lowest loss."""
    best = []
    for budget, own in points.by_budget().items():
        i = int(np.argmin(own.loss))
        best.append((budget, own.n_parameters[i], own.n_tokens[i], own.loss[i]))
    return Optima(*np.array(best).T)


def parabola_residuals(points: ScalingPoints) -> tuple[Array, int]:
    """Loss less each budget's parabola, and how many of them are free.

    Raises:
        ValueError: as `find_valley`.
    """
    budgets, residuals, n_unknowns = points.budgets, np.empty(len(points)), 0
    for budget in np.unique(budgets):
        own = budgets == budget
        valley = find_valley(float(budget), points.take(own))
        powers = np.log(points.n_parameters[own])[:, None] ** np.arange(3)
        residuals[own] = points.loss[own] - powers @ np.array(valley.coefficients)
        n_unknowns += 3
    return residuals, len(points) - n_unknowns
