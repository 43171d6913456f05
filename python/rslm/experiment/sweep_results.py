"""What came of a sweep: the best run, the edge of stability, as JSON, as a table, as a preset."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rslm.config import from_record, to_toml
from rslm.experiment.compare import value_of
from rslm.experiment.queue import Outcome
from rslm.experiment.space import Dimension
from rslm.experiment.study import shown
from rslm.experiment.sweep import Sweep
from rslm.runs import read_run
from rslm.series import duration
from rslm.terminal import with_prefix
from rslm.train_config import TrainConfig

STABLE_MARGIN = 0.1
"""How much worse than the best a run at a larger rate may be, as a share, and count as stable."""


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A run of a sweep.

    Attributes:
        outcome: how it ended.
        value: of the metric at its end; None unless it finished.
        train_flops: that it spent.
    """

    outcome: Outcome
    value: float | None
    train_flops: float

    @property
    def labels(self) -> dict[str, Any]:
        """Its place in the space."""
        return self.outcome.run.labels


@dataclass(frozen=True, kw_only=True)
class Edge:
    """The edge of stability along a learning rate.

    From the best rate upwards, rates are stable up to the first whose run diverged or ended more
    than `STABLE_MARGIN` above the best. Pruned runs say nothing and are passed over.

    Attributes:
        option: the learning rate's, dotted.
        choice: the values of the other options.
        stable: the largest stable rate.
        unstable: the next rate that was tried; None where all were stable.
    """

    option: str
    choice: dict[str, Any]
    stable: float
    unstable: float | None


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """The results of a sweep.

    Attributes:
        sweep: what was swept.
        tried: best first, then those without a value.
        edges: of each learning rate that is the only range of the space, by choice.
    """

    sweep: Sweep
    tried: list[Tried]
    edges: list[Edge]

    @property
    def best(self) -> Tried:
        """The finished run with the lowest metric."""
        return self.tried[0]


def analyse(sweep: Sweep, outcomes: Sequence[Outcome]) -> SweepResult:
    """Orders what was tried, and looks for the edge of stability.

    Raises:
        ValueError: no run finished, or finished runs lack the metric.
    """
    tried = sorted((_tried(outcome, sweep.metric) for outcome in outcomes), key=_rank)
    if not tried or tried[0].value is None:
        raise ValueError("no run finished: there is no best one")
    ranges = [dimension for dimension in sweep.space if dimension.scale != "choice"]
    is_rate = len(ranges) == 1 and ranges[0].option.endswith("learning_rate")
    return SweepResult(sweep=sweep, tried=tried, edges=_edges(tried, ranges[0]) if is_rate else [])


def _tried(outcome: Outcome, metric: str) -> Tried:
    begun = (outcome.path / "config.toml").exists()
    run = read_run(outcome.path) if begun else None
    value = value_of(run, metric) if run and outcome.status == "finished" else None
    flops = float((run.last("train_flops") if run else None) or 0.0)
    return Tried(outcome=outcome, value=value, train_flops=flops)


def _rank(tried: Tried) -> tuple[float, str]:
    return (math.inf if tried.value is None else tried.value, tried.outcome.run.name)


def choice_of(tried: Tried, dimension: Dimension) -> dict[str, Any]:
    """The values of all options but one."""
    return {name: value for name, value in tried.labels.items() if name != dimension.option}


def _edges(tried: Sequence[Tried], dimension: Dimension) -> list[Edge]:
    choices = {repr(choice_of(t, dimension)): choice_of(t, dimension) for t in tried}
    edges = []
    for key, choice in choices.items():
        mine = [t for t in tried if repr(choice_of(t, dimension)) == key]
        found = stability_edge([(t.labels[dimension.option], t.value) for t in mine if known(t)])
        if found is not None:
            stable, unstable = found
            edge = Edge(option=dimension.option, choice=choice, stable=stable, unstable=unstable)
            edges.append(edge)
    return edges


def known(tried: Tried) -> bool:
    """Whether a run says something about its place: it finished or diverged."""
    return tried.outcome.status in ("finished", "diverged")


def stability_edge(
    curve: Sequence[tuple[float, float | None]],
) -> tuple[float, float | None] | None:
    """The largest stable rate and the next one tried, of rates and values; None is diverged.

    >>> stability_edge([(0.1, 3.0), (1.0, 2.5), (10.0, 2.6), (100.0, None)])
    (10.0, 100.0)
    """
    values = [value for _, value in curve if value is not None]
    if not values:
        return None
    best = min(values)
    beyond_best = False
    stable = math.nan
    for rate, value in sorted(curve, key=lambda pair: pair[0]):
        beyond_best |= value == best
        if beyond_best:
            if value is None or value > (1 + STABLE_MARGIN) * best:
                return stable, rate
            stable = rate
    return stable, None


def to_record(result: SweepResult) -> dict[str, Any]:
    """The results for JSON."""
    return {
        "method": result.sweep.method,
        "metric": result.sweep.metric,
        "best": _tried_record(result.best),
        "edges": [vars(edge) for edge in result.edges],
        "stable_margin": STABLE_MARGIN,
        "runs": [_tried_record(tried) for tried in result.tried],
    }


def _tried_record(tried: Tried) -> dict[str, Any]:
    outcome = tried.outcome
    return {
        "labels": outcome.run.labels,
        "value": tried.value,
        "status": outcome.status,
        "message": outcome.message,
        "folder": outcome.path.name,
        "train_flops": tried.train_flops,
        "seconds": outcome.seconds,
    }


def to_rows(result: SweepResult) -> tuple[list[str], list[list[str]]]:
    """The table: its header, and a row for each run, best first."""
    options = [dimension.option for dimension in result.sweep.space]
    header = [*options, result.sweep.metric, "status", "FLOPs", "time"]
    rows = [
        [
            *(shown(tried.labels[option]) for option in options),
            "" if tried.value is None else f"{tried.value:.4f}",
            tried.outcome.status,
            with_prefix(tried.train_flops, "").strip(),
            duration(tried.outcome.seconds),
        ]
        for tried in result.tried
    ]
    return header, rows


def to_markdown(result: SweepResult) -> str:
    """The table, and the edges of stability in words."""
    header, rows = to_rows(result)
    lines = [f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *rows]]
    title = f"# Sweep ({result.sweep.method}) by {result.sweep.metric}"
    return "\n".join([title, "", *lines, "", *edge_lines(result), ""])


def edge_lines(result: SweepResult) -> list[str]:
    """A sentence about each edge."""
    lines = []
    for edge in result.edges:
        which = ", ".join(f"{option} = {shown(value)}" for option, value in edge.choice.items())
        beyond = "no larger one that was tried to its end is unstable"
        if edge.unstable is not None:
            beyond = f"{shown(edge.unstable)} is not (diverged, or more than {STABLE_MARGIN:.0%} "
            beyond = f"{beyond}above the best)".replace("%", " %")
        where = f" with {which}" if which else ""
        lines.append(f"{edge.option}{where}: stable up to {shown(edge.stable)}; {beyond}")
    return lines


def to_preset(result: SweepResult) -> str:
    """The best run's options as a TOML file for `rslm train --config`, but for the run folder."""
    best = result.best
    config = from_record(TrainConfig, best.outcome.run.options | {"out": "out"})
    first, _, rest = to_toml(config).partition("\n")
    assert first == 'out = "out"', "the folder is the first option"
    n_finished = sum(tried.value is not None for tried in result.tried)
    head = f"# Best of {n_finished} finished runs: {result.sweep.metric} {best.value:.4f}"
    return f"{head}\n{rest}"
