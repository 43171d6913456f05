"""The law by a Huber loss of the logarithms: approach 3 of Hoffmann et al.

Minimised is Σ Huber_δ(ln L - LSE(a - α ln N, b - β ln D, e)) with δ = 1e-3, A = exp(a), B = exp(b)
and E = exp(e). It is the sum, not the mean: with the mean the solver of the original work
stopped too early (Besiroglu et al. 2024, section 3.1, arXiv:2404.10102).

All 4,500 starts of the published grid are led downhill together, with reweighted least squares,
the lowest of them further, and the lowest of these by L-BFGS with the analytic gradient. What the
solvers see are the logarithms less their means, which leaves the optimum where it is and spares
them a valley in which a and α move together.

Source: Hoffmann et al. 2022, section 3.3 and appendix D.3 (arXiv:2203.15556).
"""

import itertools
import math

import numpy as np

from rslm.scaling.laws import LossLaw
from rslm.scaling.least_squares import Expansion, Rows, chunks, minimise
from rslm.scaling.points import Array, ScalingPoints
from rslm.scaling.vpnls import require_enough

DELTA = 1e-3
GRID: dict[str, tuple[float, ...]] = {
    "a": (0, 5, 10, 15, 20, 25),
    "b": (0, 5, 10, 15, 20, 25),
    "e": (-1, -0.5, 0, 0.5, 1),
    "alpha": (0, 0.5, 1, 1.5, 2),
    "beta": (0, 0.5, 1, 1.5, 2),
}
"""Starts: every combination."""

_ROUNDS = ((512, 10), (8, 40))
"""How many of the starts go on after how many steps."""

_N_SCREENED = 256
"""Points on which starts are compared; the law is that of all."""

_EXPONENT_RANGE = (1e-6, 20.0)


class _Logarithms:
    """The objective for rows of (a, b, e, α, β), with logarithms less their means."""

    def __init__(self, points: ScalingPoints, weights: Array) -> None:
        logs = np.log(points.n_parameters), np.log(points.n_tokens)
        self.centres = tuple(float(log.mean()) for log in logs)
        self.log_n, self.log_d = (log - log.mean() for log in logs)
        self.log_loss = np.log(points.loss)
        self.weights = weights

    def terms(self, theta: Array) -> tuple[Array, Array]:
        """Predicted ln L, and the shares of the three terms in L: (rows, points), (…, 3)."""
        a, b, e, alpha, beta = (column[:, None] for column in theta.T)
        exponents = np.stack(
            [a - alpha * self.log_n, b - beta * self.log_d, np.broadcast_to(e, self.shape(theta))],
            axis=2,
        )
        highest = exponents.max(axis=2, keepdims=True)
        powers = np.exp(exponents - highest)
        total = powers.sum(axis=2, keepdims=True)
        return (highest + np.log(total))[..., 0], powers / total

    def shape(self, theta: Array) -> tuple[int, int]:
        return len(theta), len(self.log_loss)

    def expand(self, theta: Array, rows: Rows) -> Expansion:
        """The objective with the curvature of the least squares that it is close to.

        A residual r beyond δ counts as a square of weight δ/|r|, which lies above Huber's
        loss and touches it at r.
        """
        predicted, shares = self.terms(theta)
        residuals = predicted - self.log_loss
        size = np.abs(residuals)
        of_points = self.weights[rows]
        squares = np.where(size <= DELTA, residuals**2 / 2, DELTA * (size - DELTA / 2))
        weights = of_points * np.minimum(1, DELTA / np.maximum(size, DELTA))
        slopes = np.stack(
            [
                *(shares[..., 0], shares[..., 1], shares[..., 2]),
                *(-shares[..., 0] * self.log_n, -shares[..., 1] * self.log_d),
            ],
            axis=2,
        )
        weighted = slopes * weights[..., None]
        return Expansion(
            (of_points * squares).sum(axis=1),
            np.einsum("rpi,rp->ri", weighted, residuals),
            weighted.transpose(0, 2, 1) @ slopes,
        )

    def law(self, theta: Array, flops_factor: float) -> LossLaw:
        """The law of one row."""
        a, b, e, alpha, beta = map(float, theta)
        alpha, beta = (float(np.clip(x, *_EXPONENT_RANGE)) for x in (alpha, beta))
        return LossLaw(
            irreducible_loss=math.exp(e),
            parameter_factor=math.exp(min(a + alpha * self.centres[0], 700)),
            parameter_exponent=alpha,
            token_factor=math.exp(min(b + beta * self.centres[1], 700)),
            token_exponent=beta,
            flops_factor=flops_factor,
        )

    def theta(self, law: LossLaw) -> Array:
        """The row of a law; a factor of 0 becomes a very small one."""
        factors = (law.parameter_factor, law.token_factor, law.irreducible_loss)
        a, b, e = (math.log(max(factor, 1e-12)) for factor in factors)
        alpha, beta = law.parameter_exponent, law.token_exponent
        n, d = self.centres
        return np.array([a - alpha * n, b - beta * d, e, alpha, beta])


def huber_objective(points: ScalingPoints, law: LossLaw) -> float:
    """The sum that `fit_huber` minimises, at any law."""
    logs = _Logarithms(points, np.ones((1, len(points))))
    return float(logs.expand(logs.theta(law)[None], np.array([0])).cost[0])


def fit_huber(points: ScalingPoints) -> LossLaw:
    """The law with the least sum of Huber losses.

    Raises:
        ValueError: there are fewer than five points, or they have one N or one D only.
    """
    require_enough(points)
    logs = _Logarithms(points, np.ones((1, len(points))))
    some = points.take(np.unique(np.linspace(0, len(points) - 1, _N_SCREENED).astype(int)))
    polished = [_polish(logs, logs.theta(law)) for law in _screened(some)]
    return logs.law(min(polished, key=lambda pair: pair[1])[0], points.flops_factor)


def _screened(points: ScalingPoints) -> list[LossLaw]:
    """The laws to which the best starts of the grid lead."""
    found = np.array(list(itertools.product(*GRID.values())))
    logs = _Logarithms(points, np.broadcast_to(1.0, (len(found), len(points))))
    n, d = logs.centres
    found[:, 0] -= found[:, 3] * n
    found[:, 1] -= found[:, 4] * d
    for n_kept, n_iterations in _ROUNDS:
        led = [
            minimise(logs.expand, found[part], n_iterations=n_iterations, tolerance=1e-6)
            for part in chunks(len(found), 16 * len(points))
        ]
        found, costs = (np.concatenate(parts) for parts in zip(*led, strict=True))
        found = found[np.argsort(costs, kind="stable")[:n_kept]]
    return [logs.law(theta, points.flops_factor) for theta in found]


def _polish(logs: _Logarithms, theta: Array) -> tuple[Array, float]:
    """L-BFGS to where rounding stops it, and the objective there."""
    from scipy.optimize import minimize

    row = np.array([0])
    # SciPy's tolerance is relative to 1 or to the objective, whichever is larger.
    unit = 1 / max(float(logs.expand(theta[None], row).cost[0]), 1e-300)

    def scaled(theta: Array) -> tuple[float, Array]:
        expansion = logs.expand(theta[None], row)
        return unit * float(expansion.cost[0]), unit * expansion.gradient[0]

    options = {"ftol": 1e-15, "gtol": 1e-10, "maxiter": 2000, "maxcor": 20}
    for _ in range(3):  # A fresh start forgets curvature from the other side of a kink.
        found = minimize(scaled, theta, jac=True, method="L-BFGS-B", options=options)
        theta = found.x
    return theta, float(found.fun) / unit


def refit_huber(points: ScalingPoints, law: LossLaw, weights: Array) -> list[LossLaw]:
    """The laws of the points under each row of weights, all begun from one law.

    Args:
        points: the points.
        law: where each fit begins.
        weights: (refits, points); how often a resample has each point, say.
    """
    laws: list[LossLaw] = []
    for part in chunks(len(weights), 16 * len(points)):
        logs = _Logarithms(points, weights[part])
        starts = np.tile(logs.theta(law), (len(weights[part]), 1))
        found, _ = minimise(logs.expand, starts, n_iterations=200, tolerance=1e-7)
        laws += [logs.law(theta, law.flops_factor) for theta in found]
    return laws
