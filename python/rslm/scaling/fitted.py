"""A fitted law: what it says of a budget, with intervals, and its record in a file."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, Self, get_args

import numpy as np

from rslm.errors import FormatError
from rslm.scaling.frontier import FrontierLaw, Law
from rslm.scaling.laws import LossLaw

Method = Literal["vpnls", "huber", "parabolas", "min-runs", "envelope"]
METHODS: tuple[Method, ...] = get_args(Method)
DEFAULT_LEVEL = 0.9


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A number of a fit with the quantiles of its resamples.

    Attributes:
        value: of the fit itself.
        low: None where too few resamples gave a law.
        high: likewise.
    """

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a fit says of a budget.

    Attributes:
        flop_budget: FLOPs to spend.
        n_parameters: N*.
        n_tokens: D*.
        loss: of the best model; the interval is that of the law.
        run_loss: the same with the scatter of single runs, for a run that is made.
    """

    flop_budget: float
    n_parameters: Interval
    n_tokens: Interval
    loss: Interval
    run_loss: Interval

    @property
    def tokens_per_parameter(self) -> float:
        """D*/N*."""
        return self.n_tokens.value / self.n_parameters.value


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """How well the law of the smaller budgets tells the losses of the largest ones.

    Attributes:
        n_budgets: budgets held out.
        n_points: points compared: the runs of these budgets, or their optima where the law
            speaks of optima only.
        flops_ratio: the largest budget over the largest one that was fitted.
        mean_error: predicted less measured loss, nats.
        rms_error: root of the mean square, nats.
    """

    n_budgets: int
    n_points: int
    flops_ratio: float
    mean_error: float
    rms_error: float


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A law and what is known of it.

    Attributes:
        method: how it was fitted.
        law: the result.
        n_points: what it was fitted to.
        flop_range: smallest and largest budget among them.
        objective: what the method minimises, there: Σ of squares for vpnls, of Huber's losses for
            huber; None elsewhere.
        scatter: standard deviation of ln loss about the law; None where too few points are left
            to tell.
        resamples: the laws of the resampled points.
        n_resamples: how many were drawn; those that gave no law are missing above.
        held_out: None where the smaller budgets alone give no law.
    """

    method: Method
    law: Law
    n_points: int
    flop_range: tuple[float, float]
    objective: float | None
    scatter: float | None
    resamples: tuple[Law, ...]
    n_resamples: int
    held_out: HeldOut | None

    def predict(self, flop_budget: float, *, level: float = DEFAULT_LEVEL) -> Prediction:
        """The optimum at a budget, with intervals that hold `level` of the resamples.

        Raises:
            ValueError: the law has no optimum, or `level` is no share.
        """
        best = self.law.optimum(flop_budget)
        found = [_optimum_or_none(law, flop_budget) for law in self.resamples]
        optima = [o for o in found if o is not None]
        losses = np.array([o.loss for o in optima])
        # The same draws for the same fit, so that a prediction can be made again.
        noise = np.random.default_rng(len(losses)).standard_normal(len(losses))
        of_runs = losses * np.exp((self.scatter or 0.0) * noise)
        has_scatter = self.scatter is not None
        return Prediction(
            flop_budget=flop_budget,
            n_parameters=_interval(best.n_parameters, [o.n_parameters for o in optima], level),
            n_tokens=_interval(best.n_tokens, [o.n_tokens for o in optima], level),
            loss=_interval(best.loss, losses, level),
            run_loss=_interval(best.loss, of_runs if has_scatter else [], level),
        )

    def predict_run(
        self, n_parameters: float, n_tokens: float, *, level: float = DEFAULT_LEVEL
    ) -> Interval:
        """The loss of a run of this size and length, with the scatter of single runs.

        Raises:
            ValueError: the method tells optima only, or `level` is no share.
        """
        laws = [law for law in (self.law, *self.resamples) if isinstance(law, LossLaw)]
        if not laws:
            raise ValueError(f"{self.method} tells only optima; vpnls and huber tell any run")
        losses = np.array([float(law.loss(n_parameters, n_tokens)) for law in laws])
        noise = np.random.default_rng(len(laws)).standard_normal(len(laws) - 1)
        of_runs = losses[1:] * np.exp((self.scatter or 0.0) * noise)
        return _interval(losses[0], of_runs, level)

    def shares(self, *, level: float = DEFAULT_LEVEL) -> tuple[Interval, Interval]:
        """The exponents a of N* and b of D*."""
        return (
            self._interval_of("parameter_share", level),
            self._interval_of("token_share", level),
        )

    def exponents(self, *, level: float = DEFAULT_LEVEL) -> dict[str, Interval]:
        """E and the law's own exponents: α and β, or g of the loss at the optimum."""
        names = ["irreducible_loss", "loss_exponent"]
        if isinstance(self.law, LossLaw):
            names = ["irreducible_loss", "parameter_exponent", "token_exponent"]
        return {name: self._interval_of(name, level) for name in names}

    def _interval_of(self, name: str, level: float) -> Interval:
        values = [getattr(law, name) for law in self.resamples]
        return _interval(getattr(self.law, name), values, level)

    def record(self) -> dict[str, Any]:
        """Everything as plain values, from which `of_record` makes the fit again."""
        held_out = None if self.held_out is None else vars(self.held_out)
        return {
            "method": self.method,
            "law": dict(vars(self.law)),
            "n_points": self.n_points,
            "flop_range": list(self.flop_range),
            "objective": self.objective,
            "scatter": self.scatter,
            "n_resamples": self.n_resamples,
            "held_out": None if held_out is None else dict(held_out),
            "resamples": [law.values() for law in self.resamples],
        }

    @classmethod
    def of_record(cls, record: Mapping[str, Any], source: str) -> Self:
        """The fit that a record is of; `source` is the file that messages name.

        Raises:
            FormatError: the record is none of a fit.
        """
        try:
            method = record["method"]
            kind = LossLaw if method in ("vpnls", "huber") else FrontierLaw
            low, high = map(_finite, record["flop_range"])
            if method not in METHODS or not 0 < low <= high:
                raise ValueError(f"method {method!r} and flop_range {low}, {high}")
            held_out = record["held_out"]
            return cls(
                method=method,
                law=_law(kind, record["law"]),
                n_points=_count(record["n_points"]),
                flop_range=(low, high),
                objective=_finite_or_none(record["objective"]),
                scatter=_scatter(record["scatter"]),
                resamples=tuple(kind.of_values(map(_finite, row)) for row in record["resamples"]),
                n_resamples=_count(record["n_resamples"]),
                held_out=None if held_out is None else _held_out(held_out),
            )
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise FormatError(f"{source} must hold fits of rslm scaling fit: {error!r}") from None


def _law(kind: type[LossLaw] | type[FrontierLaw], record: Mapping[str, Any]) -> Law:
    """The law of a record, by name: whoever writes JSON may sort its keys."""
    names = [field.name for field in fields(kind)]
    if sorted(record) != sorted(names):
        raise ValueError(f"law must have {', '.join(names)}, got {', '.join(record)}")
    return kind(**{name: _finite(record[name]) for name in names})


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 53:
        raise ValueError(f"counts must be whole numbers below 2^53, got {value!r:.80}")
    return value


def _scatter(value: Any) -> float | None:
    if value is not None and value < 0:
        raise ValueError(f"scatter must be at least 0, got {value}")
    return _finite_or_none(value)


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number) or abs(number) > 1e300:
        raise ValueError(f"numbers must be finite, got {value}")
    return number


def _finite_or_none(value: Any) -> float | None:
    return None if value is None else _finite(value)


def _held_out(record: Mapping[str, Any]) -> HeldOut:
    return HeldOut(
        n_budgets=_count(record["n_budgets"]),
        n_points=_count(record["n_points"]),
        flops_ratio=_finite(record["flops_ratio"]),
        mean_error=_finite(record["mean_error"]),
        rms_error=_finite(record["rms_error"]),
    )


def _optimum_or_none(law: Law, flop_budget: float) -> Any:
    try:
        return law.optimum(flop_budget)
    except ValueError:
        return None


def _interval(value: float, resampled: Any, level: float) -> Interval:
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    # Of fewer the outer quantiles are those of the extremes.
    if len(resampled) < round(2 / (1 - level), 6):
        return Interval(value=float(value), low=None, high=None)
    low, high = np.quantile(np.asarray(resampled), [(1 - level) / 2, (1 + level) / 2])
    return Interval(value=float(value), low=float(low), high=float(high))
