"""What makes a fit say something else than it seems to, in sentences with numbers."""

from dataclasses import replace
from itertools import pairwise

import numpy as np

from rslm.scaling.envelope import find_envelope, split_curves
from rslm.scaling.fitted import Fit
from rslm.scaling.frontier import fit_frontier
from rslm.scaling.laws import LossLaw
from rslm.scaling.parabolas import find_valleys, parabola_optima
from rslm.scaling.points import ScalingPoints
from rslm.scaling.vpnls import EXPONENTS, MIN_POINTS

MAX_DECADES = 2.0
"""Powers of ten beyond the largest budget up to which nothing is said."""

_FEW_POINTS = 2 * MIN_POINTS
_LARGE_BIAS = 0.02
_LARGE_SPREAD = 1.1
_FAR_FACTOR = 10.0


def find_pitfalls(points: ScalingPoints, fit: Fit, reference: LossLaw | None = None) -> list[str]:
    """What there is to be wary of in a fit, most often nothing.

    Args:
        points: what was fitted.
        fit: the fit.
        reference: a law of N and D for the same runs, to measure by it how far the sizes lead
            parabolas astray.
    """
    found = _of_resamples(fit)
    if isinstance(fit.law, LossLaw):
        found += _of_law(points, fit.law)
    elif fit.method == "parabolas":
        found += _of_parabolas(points, reference)
    elif fit.method == "min-runs":
        found += _of_sizes(points)
    else:
        found += _of_envelope(points)
    if fit.method in ("parabolas", "min-runs") and len(np.unique(points.budgets)) < 3:
        found.append("two budgets do not tell E: the loss is taken to fall to 0")
    return found


def _of_resamples(fit: Fit) -> list[str]:
    missing = fit.n_resamples - len(fit.resamples)
    if missing <= fit.n_resamples // 20:
        return []
    return [
        f"{missing:,} of {fit.n_resamples:,} resamples gave no law: "
        "the intervals are narrower than they should be, or missing"
    ]


def _of_law(points: ScalingPoints, law: LossLaw) -> list[str]:
    found = []
    if len(points) < _FEW_POINTS:
        found.append(f"{len(points)} points for 5 unknowns: the law follows their noise")
    for name in ("parameter_exponent", "token_exponent"):
        value = getattr(law, name)
        if any(abs(np.log(value / limit)) < 1e-3 for limit in EXPONENTS):
            found.append(f"{name} ends at the border {value:.3g}: the points do not determine it")
    for name in ("irreducible_loss", "parameter_factor", "token_factor"):
        if getattr(law, name) < 1e-9:
            found.append(f"{name} is 0: the points do not determine it")
    spread = points.flops_factor_spread
    if spread > _LARGE_SPREAD:
        found.append(
            f"FLOPs per parameter and token differ by a factor of {spread:.2f} between runs, and "
            f"N* and D* are for their mean, {law.flops_factor:.2f}"
        )
    return found


def parabola_bias(
    points: ScalingPoints, law: LossLaw, flop_budget: float
) -> tuple[float, float] | None:
    """How far parabolas through these sizes would be off where the law held without noise.

    Returns:
        a of the parabolas less a of the law, and their N* over that of the law at the budget;
        None where the law has no valleys there.
    """
    surface = replace(
        points,
        loss=law.loss(points.n_parameters, points.n_tokens),
        flop_budget=points.budgets,
    )
    try:
        lines = fit_frontier(parabola_optima(surface))
        ratio = lines.optimum(flop_budget).n_parameters / law.optimum(flop_budget).n_parameters
    except ValueError:
        return None
    return lines.parameter_share - law.parameter_share, ratio


def _of_parabolas(points: ScalingPoints, reference: LossLaw | None) -> list[str]:
    valleys = find_valleys(points)
    found = [
        f"at {v.flop_budget:.3g} FLOPs the lowest place, {v.n_parameters:.3g} parameters, is "
        f"outside of the sizes {v.smallest:.3g} to {v.largest:.3g}"
        for v in valleys
        if not v.is_inside
    ]
    far = _FAR_FACTOR * valleys[-1].flop_budget
    bias = None if reference is None else parabola_bias(points, reference, far)
    if bias is None or reference is None or abs(bias[1] - 1) < _LARGE_BIAS:
        return found
    widths = [np.sqrt(v.largest / v.smallest) for v in valleys]
    centres = [v.n_parameters / np.sqrt(v.largest * v.smallest) for v in valleys]
    found.append(
        f"the sizes bias parabolas: on the surface of the law that vpnls fits they put N* "
        f"{bias[1] - 1:+.1%} off at {far:.3g} FLOPs, and a {bias[0]:+.4f}; α "
        f"{reference.parameter_exponent:.3f} is not β {reference.token_exponent:.3f}, the sizes "
        f"reach up to a factor {max(widths):.1f} to either side, and the lowest place is at "
        f"{centres[0]:.2f} of their middle in the smallest budget and at {centres[-1]:.2f} in the "
        "largest"
    )
    return found


def _of_sizes(points: ScalingPoints) -> list[str]:
    steps = [
        float(np.max(np.diff(np.log(np.unique(own.n_parameters)))))
        for own in points.by_budget().values()
        if len(np.unique(own.n_parameters)) > 1
    ]
    if not steps:
        return ["each budget has one size: it says nothing of the best one"]
    return [
        f"sizes are up to a factor of {np.exp(max(steps)):.2f} apart, and the best run's is as "
        "rough as that"
    ]


def _of_envelope(points: ScalingPoints) -> list[str]:
    sizes = find_envelope(split_curves(points)).n_parameters
    n_sizes = 1 + sum(a != b for a, b in pairwise(sizes))
    found = ["before its schedule ends a run's loss is higher than that of a run of that length"]
    if n_sizes < 5:
        found.append(
            f"only {n_sizes} sizes are lowest anywhere: the line goes through so many steps"
        )
    return found


def extrapolation_warning(fit: Fit, flop_budget: float) -> str | None:
    """A sentence where a budget is over two decades beyond those that were fitted."""
    decades = np.log10(flop_budget / fit.flop_range[1])
    if decades <= MAX_DECADES:
        return None
    return (
        f"{flop_budget:.3g} FLOPs are {decades:.1f} decades beyond the largest fitted budget, "
        f"{fit.flop_range[1]:.3g}: over more than {MAX_DECADES:.0f} the form of the law is a "
        "guess, which no interval shows"
    )
