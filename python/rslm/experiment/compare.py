"""Two groups of runs: how far apart a metric is, and whether that is more than noise.

A run becomes one number in several ways, each a view: its last value, the mean of its last tenth,
and its value where all runs had spent the same FLOPs or the same seconds. A curve is a straight
line between two rows; that of the training loss is smoothed first.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rslm.experiment.statistics import (
    MIN_BOOTSTRAP,
    Difference,
    bootstrap_interval,
    paired_test,
    welch_test,
)
from rslm.run_folder import flatten
from rslm.runs import Run
from rslm.series import smooth

METRICS = ("val_bits_per_byte", "val_loss", "loss")
"""What to compare by where nobody says: the first that all runs have."""
KNOWN_METRICS = (*METRICS, "grad_norm", "tokens_per_second", "mfu", "memory_bytes")
"""What a run can be asked to be compared by before it is made."""
HIGHER_IS_BETTER = frozenset({"tokens_per_second", "mfu"})
BUDGETS = ("train_flops", "elapsed_seconds")

_LAST_SHARE = 0.1


@dataclass(frozen=True, kw_only=True)
class View:
    """One number for each run, and what the two groups' differ by.

    Attributes:
        name: "final", "last tenth", "equal train_flops" or "equal elapsed_seconds".
        at: where curves were read, in FLOPs or seconds; None for the first two.
        a: values of the first group, sorted by seed.
        b: of the second.
        welch: test of independent runs.
        paired: test of pairs of one seed, where the runs are such.
        bootstrap: interval of the difference, paired where the runs are; from 8 runs on.
    """

    name: str
    at: float | None = None
    a: list[float]
    b: list[float]
    welch: Difference
    paired: Difference | None = None
    bootstrap: tuple[float, float] | None = None

    @property
    def test(self) -> Difference:
        """The test to go by: of the pairs where there are pairs, which share some noise."""
        return self.paired or self.welch


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two groups of runs under one metric.

    Attributes:
        metric: key of `metrics.jsonl`.
        a: names of the first group's run folders.
        b: of the second.
        options: what the groups differ in, by dotted option, as (values of a, values of b).
        views: by way of making a number of a run.
    """

    metric: str
    a: list[str]
    b: list[str]
    options: dict[str, tuple[list[Any], list[Any]]]
    views: list[View]

    def record(self) -> dict[str, Any]:
        """All of it, for JSON, with the verdicts."""
        record = asdict(self)
        for view, shown in zip(self.views, record["views"], strict=True):
            shown |= {
                "minimal_effect": view.test.minimal_effect(),
                "n_needed": view.test.n_needed(),
                "verdict": verdict(view.test, self.metric),
            }
        return record


def compare(
    a: Sequence[Run], b: Sequence[Run], metric: str, *, confidence: float = 0.95
) -> Comparison:
    """Compares a second group of runs with a first, by `b - a`.

    Raises:
        ValueError: a group has fewer than 2 runs, a run is given twice, diverged, is not finished
            or lacks the metric, or a run had its first value after another had ended.
    """
    require_comparable([*a, *b], metric)
    a, b = sorted(a, key=_seed), sorted(b, key=_seed)
    paired = are_pairs(a, b)

    def view(name: str, read: Callable[[Run], float], at: float | None = None) -> View:
        values = [read(run) for run in a], [read(run) for run in b]
        return _view(name, *values, paired=paired, confidence=confidence, at=at)

    views = [
        view("final", lambda run: final_value(run, metric)),
        view("last tenth", lambda run: last_mean(run, metric)),
    ]
    for over in BUDGETS:
        place = shared_place([*a, *b], metric, over)
        read = lambda run, over=over, place=place: value_at(run, metric, over, place)  # noqa: E731
        views.append(view(f"equal {over}", read, place))
    return Comparison(
        metric=metric,
        a=[run.path.name for run in a],
        b=[run.path.name for run in b],
        options=differing_options(a, b),
        views=views,
    )


def _view(
    name: str, a: list[float], b: list[float], *, paired: bool, confidence: float, at: float | None
) -> View:
    bootstrap = None
    if min(len(a), len(b)) >= MIN_BOOTSTRAP:
        kind: Any = "paired" if paired else "welch"
        bootstrap = bootstrap_interval(a, b, kind=kind, confidence=confidence)
    return View(
        name=name,
        at=at,
        a=a,
        b=b,
        welch=welch_test(a, b, confidence=confidence),
        paired=paired_test(a, b, confidence=confidence) if paired else None,
        bootstrap=bootstrap,
    )


def _seed(run: Run) -> int:
    seed = run.config.get("seed", 0)
    return seed if isinstance(seed, int) else 0


def require_comparable(runs: Sequence[Run], metric: str) -> None:
    """Refuses runs that a metric cannot be compared by.

    Raises:
        ValueError: one is there twice, diverged, has not made all its steps, or has no finite
            value of the metric.
    """
    folders = [run.path.resolve() for run in runs]
    for run, folder in zip(runs, folders, strict=True):
        if folders.count(folder) > 1:
            raise ValueError(f"runs must be given once each, got {run.path} twice")
        if has_diverged(run):
            raise ValueError(
                f"runs must have finite losses, {run.path} diverged at step {run.step}"
            )
        if run.status != "finished":
            raise ValueError(
                f"runs must be finished, {run.path} is at step {run.step} of {run.n_steps}"
            )
        if not run.curve(metric, "step")[1]:
            known = sorted({key for row in run.rows for key in row if row[key] is not None})
            raise ValueError(
                f"metric must be one that every run has, got {metric!r}\n"
                f"{run.path} has: {', '.join(known) or 'none'}"
            )


def has_diverged(run: Run) -> bool:
    """Whether a run's last update had a loss that was not finite, which its row holds as null."""
    return next((row["loss"] is None for row in reversed(run.rows) if "loss" in row), False)


def common_metric(runs: Sequence[Run]) -> str:
    """The first of `METRICS` that every run has.

    Raises:
        ValueError: there is none.
    """
    for metric in METRICS:
        if all(run.last(metric) is not None for run in runs):
            return metric
    raise ValueError(f"runs must share one of {', '.join(METRICS)}; name another with --metric")


def final_value(run: Run, metric: str) -> float:
    """The last value."""
    return float(run.last(metric))


def last_mean(run: Run, metric: str) -> float:
    """The mean over the last tenth of the run's steps; the last value where it has but one."""
    steps, values = run.curve(metric, "step")
    begin = (1 - _LAST_SHARE) * run.step
    inside = [value for step, value in zip(steps, values, strict=True) if step > begin]
    return float(np.mean(inside or values[-1:]))


def value_of(run: Run, metric: str) -> float:
    """What a finished run is judged by: the last value, of the training loss the last tenth's mean.

    The training loss of one step is that of one batch.

    Raises:
        ValueError: the run has no value of the metric.
    """
    if run.last(metric) is None:
        keys = {key for row in run.rows for key, value in row.items() if value is not None}
        known = ", ".join(sorted(keys))
        raise ValueError(f"metric must be one that runs have ({known}), got {metric!r}")
    return last_mean(run, metric) if metric == "loss" else final_value(run, metric)


def value_at(run: Run, metric: str, over: str, place: float) -> float:
    """The curve's value at a place within it."""
    places, values = curve_of(run, metric, over)
    return float(np.interp(place, places, values))


def curve_of(run: Run, metric: str, over: str) -> tuple[list[float], list[float]]:
    """A metric's curve; that of the training loss smoothed, as a batch's says little."""
    places, values = run.curve(metric, over)
    return places, smooth(values) if metric == "loss" else values


def shared_place(runs: Sequence[Run], metric: str, over: str) -> float:
    """The largest place that the curves of all runs reach.

    Raises:
        ValueError: a curve begins after that.
    """
    curves = {run.path: run.curve(metric, over)[0] for run in runs}
    if not all(curves.values()):
        raise ValueError(f"runs must have {metric} over {over}")
    place = float(min(max(places) for places in curves.values()))
    for path, places in curves.items():
        if min(places) > place:
            raise ValueError(f"{path} has its first {metric} beyond {over} {place:g} of another")
    return place


def are_pairs(a: Sequence[Run], b: Sequence[Run]) -> bool:
    """Whether runs pair by seed: within a group nothing else differs, and the seeds are equal."""
    seeds = [sorted(map(_seed, group)) for group in (a, b)]
    are_distinct = len(set(seeds[0])) == len(a)
    return are_distinct and seeds[0] == seeds[1] and all(len(group_runs(g)) == 1 for g in (a, b))


def group_runs(runs: Sequence[Run]) -> list[list[Run]]:
    """The runs by their options but for seed and folder, groups in order of their first run."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        options = {k: v for k, v in _options(run).items() if k != "seed"}
        groups.setdefault(repr(sorted(options.items())), []).append(run)
    return list(groups.values())


def _options(run: Run) -> Mapping[str, Any]:
    return {name: value for name, value in flatten(run.config).items() if name != "out"}


def differing_options(a: Sequence[Run], b: Sequence[Run]) -> dict[str, tuple[list[Any], list[Any]]]:
    """The options whose values differ between the groups, as the values in each."""
    sides = [[_options(run) for run in group] for group in (a, b)]
    names = sorted({name for side in sides for options in side for name in options})
    values = {
        name: tuple(sorted({repr(options.get(name)) for options in side}) for side in sides)
        for name in names
    }
    found: dict[str, tuple[list[Any], list[Any]]] = {}
    for name, (of_a, of_b) in values.items():
        if of_a != of_b:
            found[name] = _distinct(sides[0], name), _distinct(sides[1], name)
    return found


def _distinct(side: Sequence[Mapping[str, Any]], name: str) -> list[Any]:
    return list({repr(options.get(name)): options.get(name) for options in side}.values())


def verdict(
    test: Difference, metric: str, *, p_value: float | None = None, alpha: float | None = None
) -> str:
    """What a test says, in words.

    Args:
        test: of the difference.
        metric: decides what is better.
        p_value: corrected for other tests beside this one; the test's own unless given.
        alpha: level at which the runs needed are counted; what the confidence leaves unless given.
    """
    p_value = test.p_value if p_value is None else p_value
    if p_value < 1 - test.confidence:
        return "better" if is_better(test.effect, metric) else "worse"
    if test.effect == 0:
        return f"no difference at n = {shown_n(test)}"
    n = test.n_needed(alpha=alpha)
    needed = "more than 10,000" if n is None else f"{n:,}"
    return f"not significant at n = {shown_n(test)}; n needed = {needed}"


def shown_n(test: Difference) -> str:
    """The runs of each arm, or the pairs: 3, or 3 and 5."""
    a, b = test.n
    return str(a) if a == b else f"{a} and {b}"


def is_better(effect: float, metric: str) -> bool:
    """Whether a metric that changed so improved."""
    return (effect > 0) == (metric in HIGHER_IS_BETTER)
