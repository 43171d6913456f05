"""Whether a difference between runs is more than noise.

Every test here is of means of one number per run; differences are `b - a`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from rslm.experiment.power import Kind, n_needed, noncentrality_of

MIN_BOOTSTRAP = 8
"""Runs from which on a bootstrap interval is given: below, it covers far less than it says."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A difference of means with its t-test.

    Attributes:
        kind: "welch" for independent runs of any variances, "paired" for pairs of runs.
        n: runs of each arm, or twice the number of pairs.
        effect: mean of `b` less mean of `a`.
        low: lower end of the confidence interval.
        high: upper end.
        confidence: of the interval.
        p_value: two-sided, of no difference.
        standard_error: of the effect.
        degrees_of_freedom: of the t distribution; Welch's are no whole number.
        deviation: of one run (the root mean square of both arms'), or of a pair's difference.
    """

    kind: Kind
    n: tuple[int, int]
    effect: float
    low: float
    high: float
    confidence: float
    p_value: float
    standard_error: float
    degrees_of_freedom: float
    deviation: float

    def minimal_effect(self, *, power: float = 0.8, alpha: float | None = None) -> float:
        """The smallest effect that so many of such experiments would find significant."""
        alpha = 1 - self.confidence if alpha is None else alpha
        return self.standard_error * noncentrality_of(
            self.degrees_of_freedom, alpha=alpha, power=power
        )

    def n_needed(self, *, power: float = 0.8, alpha: float | None = None) -> int | None:
        """Runs of each arm, or pairs, with which an effect of this size would be found."""
        alpha = 1 - self.confidence if alpha is None else alpha
        return n_needed(self.effect, self.deviation, kind=self.kind, alpha=alpha, power=power)


def welch_test(a: Sequence[float], b: Sequence[float], *, confidence: float = 0.95) -> Difference:
    """Welch's t-test: independent runs, variances need not be equal.

    Raises:
        ValueError: an arm has fewer than 2 runs, or a value is not finite.

    Source: Welch 1947, The generalization of Student's problem, Biometrika 34.
    """
    _require_values(a, b)
    variances = [float(np.var(values, ddof=1)) / len(values) for values in (a, b)]
    error = math.sqrt(sum(variances))
    freedom = float(len(a) + len(b) - 2)
    if error > 0:
        shares = (
            (variance / error**2) ** 2 / (len(values) - 1)
            for variance, values in zip(variances, (a, b), strict=True)
        )
        freedom = 1 / sum(shares)
    deviation = math.sqrt(np.mean([np.var(values, ddof=1) for values in (a, b)]))
    return _difference("welch", a, b, error, freedom, deviation, confidence)


def paired_test(a: Sequence[float], b: Sequence[float], *, confidence: float = 0.95) -> Difference:
    """Student's t-test on the differences of pairs: runs that share seed and data order.

    Raises:
        ValueError: the arms differ in length, there are fewer than 2 pairs, or a value is not
            finite.
    """
    if len(a) != len(b):
        raise ValueError(f"pairs need as many runs in both arms, got {len(a)} and {len(b)}")
    _require_values(a, b)
    deviation = float(np.std(np.subtract(b, a), ddof=1))
    error = deviation / math.sqrt(len(a))
    return _difference("paired", a, b, error, len(a) - 1.0, deviation, confidence)


def _require_values(*arms: Sequence[float]) -> None:
    for values in arms:
        if len(values) < 2:
            raise ValueError(
                f"each arm needs at least 2 runs to know their noise, got {len(values)}"
            )
        if not np.isfinite(values).all():
            raise ValueError(f"values must be finite, got {list(values)}")


def _difference(
    kind: Kind,
    a: Sequence[float],
    b: Sequence[float],
    error: float,
    freedom: float,
    deviation: float,
    confidence: float,
) -> Difference:
    effect = float(np.mean(b) - np.mean(a))
    reach = error * float(stats.t.ppf((1 + confidence) / 2, freedom))
    # Without any noise, as of an option that changes nothing, every difference is certain.
    p_value = float(effect == 0)
    if error > 0:
        p_value = 2 * float(stats.t.sf(abs(effect) / error, freedom))
    return Difference(
        kind=kind,
        n=(len(a), len(b)),
        effect=effect,
        low=effect - reach,
        high=effect + reach,
        confidence=confidence,
        p_value=p_value,
        standard_error=error,
        degrees_of_freedom=freedom,
        deviation=deviation,
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for there being several, in the order given.

    Whoever calls significant what is below alpha errs in any of them with probability alpha at
    most, however the tests depend on each other.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]

    Source: Holm 1979, A simple sequentially rejective multiple test procedure.
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def bootstrap_interval(
    a: Sequence[float],
    b: Sequence[float],
    *,
    kind: Kind = "welch",
    confidence: float = 0.95,
    n_resamples: int = 9999,
    seed: int = 0,
) -> tuple[float, float]:
    """The bias-corrected and accelerated bootstrap interval of the difference of means.

    Raises:
        ValueError: there are fewer than `MIN_BOOTSTRAP` runs in an arm, or pairs.

    Source: Efron 1987, Better bootstrap confidence intervals, JASA 82, section 3.
    """
    if min(len(a), len(b)) < MIN_BOOTSTRAP:
        raise ValueError(
            f"a bootstrap interval needs at least {MIN_BOOTSTRAP} runs in each arm, "
            f"got {len(a)} and {len(b)}"
        )
    if np.ptp(np.subtract(b, a) if kind == "paired" else [np.ptp(a), np.ptp(b), 0.0]) == 0:
        effect = float(np.mean(b) - np.mean(a))
        return effect, effect
    low, high = _bca(np.asarray(a), np.asarray(b), kind, confidence, n_resamples, seed)
    return float(low), float(high)


def _bca(a: Any, b: Any, kind: Kind, confidence: float, n_resamples: int, seed: int) -> Any:
    """Intervals along the last axis."""

    def mean_difference(x: Any, y: Any, axis: int = -1) -> Any:
        return np.mean(y, axis=axis) - np.mean(x, axis=axis)

    data = (a, b) if kind == "welch" else (b - a,)
    return stats.bootstrap(
        data,
        mean_difference if kind == "welch" else np.mean,
        n_resamples=n_resamples,
        confidence_level=confidence,
        method="BCa",
        axis=-1,
        rng=np.random.default_rng(seed),
    ).confidence_interval


def bootstrap_coverage(
    n: int,
    *,
    kind: Kind = "welch",
    confidence: float = 0.95,
    n_sets: int = 1000,
    n_resamples: int = 999,
    seed: int = 0,
) -> float:
    """How often the bootstrap interval of n normal runs per arm, or pairs, holds the truth.

    Measured on so many simulated experiments; about half a second.
    """
    a, b = np.random.default_rng(seed).normal(size=(2, n_sets, n))
    low, high = _bca(a, b, kind, confidence, n_resamples, seed)
    return float(np.mean((low <= 0) & (high >= 0)))


def p_of_target(values: Sequence[float], target: float) -> float:
    """The p-value of a mean above `target`: of runs that only seem to have reached it.

    The rule of speedruns asks for less than 0.01, where a lower value is better.

    Raises:
        ValueError: there are fewer than 2 runs, or a value is not finite.
    """
    _require_values(values)
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    distance = float(np.mean(values)) - target
    if error == 0:
        return float(distance > 0)
    return float(stats.t.cdf(distance / error, len(values) - 1))
