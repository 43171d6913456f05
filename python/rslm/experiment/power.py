"""How many runs it takes to find an effect, and how small an effect some runs can find.

Exact under normal noise, by the noncentral t distribution: the usual formula with the normal
distribution (15.7 sigma^2 / effect^2 runs per arm) is one or two runs short where runs are few.
"""

import math
from typing import Literal

import numpy as np
from scipy import integrate, optimize, stats

MAX_N = 10_000
"""The most runs that `n_needed` looks at."""

Kind = Literal["welch", "paired"]


def power_of(
    effect: float, deviation: float, n: int, *, kind: Kind = "welch", alpha: float = 0.05
) -> float:
    """Share of experiments with n runs per arm, or n pairs, that find an effect significant.

    Args:
        effect: true difference of means.
        deviation: standard deviation of a run in either arm, or of a pair's difference.
        n: runs of each arm, or pairs; at least 2.
        kind: "welch" counts as the t-test of two arms with equal variances, which it is nearly.
        alpha: of the two-sided test.
    """
    freedom, runs = (2 * (n - 1), n / 2) if kind == "welch" else (n - 1, n)
    return _power(abs(effect) / deviation * math.sqrt(runs), freedom, alpha)


def _power(noncentrality: float, freedom: float, alpha: float) -> float:
    """Chance that a noncentral t falls outside of the critical values.

    The chance given the estimate of the deviation, which is a normal one, averaged over the
    estimates. `scipy.stats.nct` is the same where it has a value: in SciPy 1.17 it has none at
    a third of the places that few runs need (1 degree of freedom, noncentrality 7.75).
    """
    critical = stats.t.ppf(1 - alpha / 2, freedom)
    # In the logarithm of the estimate the integrand dies off smoothly on both sides, where the
    # trapezoid rule converges faster than any power of the step.
    low, high = (math.log(stats.chi2.ppf(p, freedom) / freedom) / 2 for p in (1e-15, 1 - 1e-15))
    places = np.linspace(low, high, 1001)
    scale = np.exp(places)
    squares = freedom * scale**2
    density = 2 * squares * stats.chi2.pdf(squares, freedom)
    outside = stats.norm.cdf(noncentrality - critical * scale)
    outside += stats.norm.cdf(-noncentrality - critical * scale)
    return float(integrate.trapezoid(density * outside, places))


def noncentrality_of(freedom: float, *, alpha: float, power: float) -> float:
    """The effect in standard errors that is found with this power."""
    high = float(stats.t.ppf(1 - alpha / 2, freedom)) + 2.0
    while _power(high, freedom, alpha) < power:
        high *= 1.5
    return float(optimize.brentq(lambda x: _power(x, freedom, alpha) - power, 0.0, high))


def minimal_effect(
    deviation: float, n: int, *, kind: Kind = "welch", alpha: float = 0.05, power: float = 0.8
) -> float:
    """The smallest effect that n runs per arm, or n pairs, find with this power."""
    freedom, runs = (2 * (n - 1), n / 2) if kind == "welch" else (n - 1, n)
    return deviation / math.sqrt(runs) * noncentrality_of(freedom, alpha=alpha, power=power)


def n_needed(
    effect: float,
    deviation: float,
    *,
    kind: Kind = "welch",
    alpha: float = 0.05,
    power: float = 0.8,
) -> int | None:
    """The fewest runs per arm, or pairs, that find an effect; None above `MAX_N`.

    >>> n_needed(0.005, 1.34e-3), n_needed(0.002, 1.34e-3)
    (3, 9)
    """
    if deviation == 0:
        return None if effect == 0 else 2

    def finds(n: int) -> bool:
        return power_of(effect, deviation, n, kind=kind, alpha=alpha) >= power

    low, high = 1, 2
    while not finds(high):
        low, high = high, 2 * high
        if high > 2 * MAX_N:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if finds(middle) else (middle, high)
    return high if high <= MAX_N else None
