"""The ways to fit a scaling law under one roof: the law, its intervals, its held-out error.

| method | what it is | source |
|---|---|---|
| vpnls | the law of N and D by variable projection, squared error | arXiv:2603.22339 |
| huber | the law of N and D, Huber loss of logarithms | Hoffmann et al. 2022, approach 3 |
| parabolas | the lowest place of a parabola for each budget | approach 2 |
| min-runs | the best run of each budget | approach 2 without the parabola |
| envelope | the lowest of all training curves | approach 1 |
"""

import math
from collections.abc import Sequence

import numpy as np

from rslm.scaling.bootstrap import resample_law, resample_optima
from rslm.scaling.envelope import find_envelope, split_curves
from rslm.scaling.fitted import Fit, HeldOut, Method
from rslm.scaling.frontier import Law, Optima, fit_frontier
from rslm.scaling.huber import fit_huber, huber_objective, refit_huber
from rslm.scaling.laws import LossLaw
from rslm.scaling.parabolas import lowest_runs, parabola_optima, parabola_residuals
from rslm.scaling.points import Array, ScalingPoints
from rslm.scaling.vpnls import fit_vpnls, refit_vpnls


def optima_of(points: ScalingPoints, method: Method) -> Optima:
    """The optima through which approaches 1 and 2 lay their lines.

    Raises:
        ValueError: the points have none, or the method is another one.
    """
    if method == "envelope":
        return find_envelope(split_curves(points))
    if method == "parabolas":
        return parabola_optima(points)
    if method == "min-runs":
        return lowest_runs(points)
    raise ValueError(f"method must be envelope, parabolas or min-runs, got {method}")


def fit_law(points: ScalingPoints, method: Method) -> Law:
    """The law of the points alone.

    Raises:
        ValueError: the points do not determine it.
    """
    if method == "vpnls":
        return fit_vpnls(points)
    if method == "huber":
        return fit_huber(points)
    return fit_frontier(optima_of(points, method))


def fit(
    points: ScalingPoints, method: Method = "vpnls", *, n_resamples: int = 1000, seed: int = 0
) -> Fit:
    """The law with its resamples and its error on held-out budgets.

    Args:
        points: runs, or for "envelope" the points of training curves.
        method: how.
        n_resamples: of the bootstrap.
        seed: of its draws.

    Raises:
        ValueError: the points do not determine the law.
    """
    law = fit_law(points, method)
    budgets = points.budgets if method != "envelope" else points.train_flops
    return Fit(
        method=method,
        law=law,
        n_points=len(points),
        flop_range=(float(budgets.min()), float(budgets.max())),
        objective=_objective(points, method, law),
        scatter=_scatter(points, method, law),
        resamples=tuple(resample(points, law, method, n_resamples, seed)),
        n_resamples=n_resamples,
        held_out=hold_out(points, method),
    )


def resample(
    points: ScalingPoints, law: Law, method: Method, n_resamples: int, seed: int
) -> Sequence[Law]:
    """The laws of resampled points; those that give none are missing.

    Args:
        points: all of them.
        law: their law, from which each fit begins.
        method: how it was fitted.
        n_resamples: how many to draw.
        seed: of the draws.
    """
    if isinstance(law, LossLaw):
        refit = refit_vpnls if method == "vpnls" else refit_huber
        return resample_law(points, law, refit, n_resamples=n_resamples, seed=seed)
    return resample_optima(
        points,
        lambda resample: optima_of(resample, method),
        by_curve=method == "envelope",
        n_resamples=n_resamples,
        seed=seed,
    )


def _objective(points: ScalingPoints, method: Method, law: Law) -> float | None:
    if not isinstance(law, LossLaw):
        return None
    if method == "huber":
        return huber_objective(points, law)
    return float(((law.loss(points.n_parameters, points.n_tokens) - points.loss) ** 2).sum())


def _scatter(points: ScalingPoints, method: Method, law: Law) -> float | None:
    """Standard deviation of the ln loss of single runs about what was fitted to them."""
    if isinstance(law, LossLaw):
        expected = law.loss(points.n_parameters, points.n_tokens)
        residuals: Array = np.log(points.loss / expected)
        n_free = len(points) - 5
    elif method == "parabolas":
        differences, n_free = parabola_residuals(points)
        residuals = differences / points.loss
    elif method == "min-runs":
        optima = lowest_runs(points)
        lines = [law.optimum(float(budget)).loss for budget in optima.flop_budgets]
        residuals, n_free = np.log(optima.loss / lines), len(lines) - 3
    else:
        return None  # An envelope is of a few curves, whose points do not scatter on their own.
    return float(math.sqrt((residuals**2).sum() / n_free)) if n_free > 0 else None


def hold_out(points: ScalingPoints, method: Method) -> HeldOut | None:
    """Fits the smaller budgets and predicts the largest quarter of them; None where none fit.

    Laws of N and D need no budgets: where there are fewer than three, the runs of the most FLOPs
    are held out. Of training curves it is what lies in the last factor of 4.
    """
    own = points.budgets
    budgets = np.unique(own)
    if method == "envelope":
        own = points.train_flops
        budgets = own.max() / 4.0 ** np.arange(3, -1, -1)
    elif len(budgets) < 3 and method in ("vpnls", "huber"):
        own = points.train_flops
        budgets = np.unique(own)
    n_held = max(1, len(budgets) // 4)
    if len(budgets) <= n_held:
        return None
    border = budgets[-n_held - 1] * (1 + 1e-9)
    try:
        law = fit_law(points.take(own <= border), method)
        if isinstance(law, LossLaw):
            held = points.take(own > border)
            expected, measured = law.loss(held.n_parameters, held.n_tokens), held.loss
        else:
            optima = optima_of(points, method)
            above = optima.flop_budgets > border
            measured = optima.loss[above]
            expected = [law.optimum(float(b)).loss for b in optima.flop_budgets[above]]
    except ValueError:
        return None
    errors = np.asarray(expected) - measured
    if not len(errors):
        return None
    return HeldOut(
        n_budgets=n_held,
        n_points=len(errors),
        flops_ratio=float(budgets[-1] / budgets[-n_held - 1]),
        mean_error=float(errors.mean()),
        rms_error=float(np.sqrt((errors**2).mean())),
    )
