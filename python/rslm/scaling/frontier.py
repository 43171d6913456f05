"""The best size and length by budget as lines, and the laws that go through them."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np

from rslm.scaling.laws import LossLaw, Optimum
from rslm.scaling.points import Array


@dataclass(frozen=True, kw_only=True)
class FrontierLaw:
    """N*, D* and the loss there as powers of the budget; no law away from the optimum.

    Attributes:
        log_parameters: logarithm of N* at C = 1.
        parameter_share: a: N* grows as C^a.
        log_tokens: logarithm of D* at C = 1.
        token_share: b: D* grows as C^b.
        irreducible_loss: E of the loss at the optimum, E + K C^-g.
        loss_factor: K.
        loss_exponent: g.
    """

    log_parameters: float
    parameter_share: float
    log_tokens: float
    token_share: float
    irreducible_loss: float
    loss_factor: float
    loss_exponent: float

    def optimum(self, flop_budget: float) -> Optimum:
        """The lines at this budget.

        Raises:
            ValueError: the budget is not positive, or the lines leave all numbers there.
        """
        if not 0 < flop_budget < math.inf:
            raise ValueError(f"flop_budget must be positive, got {flop_budget}")
        log_budget = math.log(flop_budget)
        try:
            return Optimum(
                flop_budget=flop_budget,
                n_parameters=math.exp(self.log_parameters + self.parameter_share * log_budget),
                n_tokens=math.exp(self.log_tokens + self.token_share * log_budget),
                loss=self.irreducible_loss
                + self.loss_factor * math.exp(-self.loss_exponent * log_budget),
            )
        except OverflowError:
            raise ValueError(
                f"flop_budget must be near what was fitted, got {flop_budget:g}"
            ) from None

    def values(self) -> list[float]:
        """The attributes in their order, as `of_values` takes them."""
        return [
            *(self.log_parameters, self.parameter_share, self.log_tokens, self.token_share),
            *(self.irreducible_loss, self.loss_factor, self.loss_exponent),
        ]

    @classmethod
    def of_values(cls, values: Any) -> Self:
        """The law of seven numbers in the order of its attributes."""
        log_n, a, log_d, b, e, k, g = map(float, values)
        return cls(
            log_parameters=log_n,
            parameter_share=a,
            log_tokens=log_d,
            token_share=b,
            irreducible_loss=e,
            loss_factor=k,
            loss_exponent=g,
        )


Law = LossLaw | FrontierLaw


class Optima(NamedTuple):
    """The best use of several budgets as points show it, before a law goes through them."""

    flop_budgets: Array
    n_parameters: Array
    n_tokens: Array
    loss: Array


def fit_line(x: Array, y: Array) -> tuple[float, float]:
    """Intercept and slope of the least-squares line.

    Raises:
        ValueError: all x are the same.
    """
    middle = x.mean()
    spread = float(((x - middle) ** 2).sum())
    if spread == 0:
        raise ValueError("at least two different budgets are needed for a line, got one")
    slope = float(((x - middle) * y).sum() / spread)
    return float(y.mean() - slope * middle), slope


def fit_frontier(optima: Optima) -> FrontierLaw:
    """The lines of ln N* and ln D* over ln C, and E + K C^-g of the loss.

    Raises:
        ValueError: there are fewer than two budgets.
    """
    logs = np.log(optima.flop_budgets)
    log_n, a = fit_line(logs, np.log(optima.n_parameters))
    log_d, b = fit_line(logs, np.log(optima.n_tokens))
    e, k, g = fit_decay(optima.flop_budgets, optima.loss)
    return FrontierLaw(
        log_parameters=log_n,
        parameter_share=a,
        log_tokens=log_d,
        token_share=b,
        irreducible_loss=e,
        loss_factor=k,
        loss_exponent=g,
    )


def fit_decay(x: Array, y: Array) -> tuple[float, float, float]:
    """E, K and g of y = E + K x^-g by least squares, none negative.

    With two points, or where E does not help, E is 0 and the law a plain power. For each g the
    rest is linear; g is searched in (0, 3].
    """
    from scipy.optimize import minimize_scalar

    unit = math.exp(float(np.log(x).mean()))

    def linear(g: Any) -> tuple[Array, Array, Array]:
        """The best E >= 0 and K >= 0 for each g, with x in its unit, and the errors."""
        power = (x / unit) ** -np.atleast_1d(g)[:, None]
        centred = power - power.mean(axis=1, keepdims=True)
        slope = centred @ y / (centred**2).sum(axis=1)
        e = y.mean() - slope * power.mean(axis=1)
        through_zero = (e < 0) | (len(x) < 3)
        e = np.where(through_zero, 0, np.where(slope < 0, y.mean(), e))
        k = np.where(through_zero, power @ y / (power**2).sum(axis=1), np.maximum(slope, 0))
        return e, k, ((e[:, None] + k[:, None] * power - y) ** 2).sum(axis=1)

    grid = np.geomspace(1e-3, 3, 64)
    best = int(np.argmin(linear(grid)[2]))
    low, high = grid[max(0, best - 1)], grid[min(len(grid) - 1, best + 1)]
    found = minimize_scalar(
        lambda g: linear(g)[2][0], bounds=(low, high), method="bounded", options={"xatol": 1e-10}
    )
    g = float(found.x)
    e, k, _ = (float(value[0]) for value in linear(g))
    return e, k * unit**g, g
