"""Ablation: options changed one at a time against a baseline, or all together, seed by seed.

The baseline has on each axis the base's own value where the axis names it, else the axis's first.
Runs of one seed begin with the same draws and read the same data in the same order, so arms are
compared by pairs of runs of one seed.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rslm.config import Record, merge_records
from rslm.experiment.axes import (
    Axis,
    Complete,
    nested,
    planned_run,
    require_data,
    require_different,
    value_in,
)
from rslm.experiment.queue import Outcome, PlannedRun, run_all
from rslm.experiment.study import MAX_RUNS, run_name, shown

BASELINE = "base"
GRID = "grid"


@dataclass(frozen=True, kw_only=True)
class Arm:
    """The runs of one choice of values, one for each seed.

    Attributes:
        axis: the option that differs from the baseline; "grid" for a product, "" for the baseline.
        name: the value, or the values of a product; "base" for the baseline.
        labels: the values on all axes, by option.
        runs: by seed.
    """

    axis: str
    name: str
    labels: dict[str, Any]
    runs: dict[int, PlannedRun]


@dataclass(frozen=True, kw_only=True)
class AblationPlan:
    """All arms, the baseline first.

    Attributes:
        axes: as given, the value of the baseline first.
        arms: none twice.
        seeds: of each arm's runs.
    """

    axes: list[Axis]
    arms: list[Arm]
    seeds: list[int]

    @property
    def planned(self) -> list[PlannedRun]:
        """All runs: of one seed side by side, so that a study cut short compares all arms."""
        return [arm.runs[seed] for seed in self.seeds for arm in self.arms]


def plan_ablation(
    base: Record,
    axes: Sequence[Axis],
    *,
    n_seeds: int,
    complete: Complete,
    grid: bool = False,
) -> AblationPlan:
    """Plans the runs of an ablation; nothing is written.

    Args:
        base: record of `TrainConfig`, which need not be complete.
        axes: options to change.
        n_seeds: runs of each arm, from the base's own seed on.
        complete: fills in what follows from other options.
        grid: make all combinations of values instead of changing one option at a time.

    Raises:
        ValueError: there is no axis or no seed, an option is on two axes, the values of an arm do
            not go together, or two runs or too many come of them.
    """
    options = [axis.option for axis in axes]
    if not axes or len(set(options)) < len(options):
        raise ValueError(f"axes must be at least one, of different options, got {options}")
    if n_seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {n_seeds}")
    sizes = [len(axis.values) for axis in axes]
    n_arms = math.prod(sizes) if grid else sum(sizes) - len(sizes) + 1
    if n_arms * n_seeds > MAX_RUNS:
        raise ValueError(f"runs must be at most {MAX_RUNS}, got {n_arms} arms of {n_seeds} seeds")
    own = planned_run(BASELINE, base, {}, complete).options
    axes = [_baseline_first(axis, own) for axis in axes]
    seeds = [own["seed"] + index for index in range(n_seeds)]
    start = {axis.option: axis.values[0] for axis in axes}
    choices = [("", BASELINE, start)]
    if grid:
        product = itertools.product(*(axis.values for axis in axes))
        labels = [dict(zip(options, values, strict=True)) for values in product][1:]
        choices += [(GRID, run_name(chosen), chosen) for chosen in labels]
    else:
        for axis in axes:
            for value in axis.values[1:]:
                choices.append((axis.option, shown(value), start | {axis.option: value}))
    arms = [_arm(base, *choice, start, seeds, complete) for choice in choices]
    plan = AblationPlan(axes=axes, arms=arms, seeds=seeds)
    require_different(plan.planned)
    return plan


def _baseline_first(axis: Axis, own: Record) -> Axis:
    mine = [value for value in axis.values if _same(value, value_in(own, axis.option))]
    others = [value for value in axis.values if value not in mine]
    return Axis(option=axis.option, values=(*mine, *others))


def _same(value: Any, own: Any) -> bool:
    return value == own if isinstance(value, int | float) else str(value) == str(own)


def _arm(
    base: Record,
    axis: str,
    name: str,
    labels: dict[str, Any],
    start: dict[str, Any],
    seeds: Sequence[int],
    complete: Complete,
) -> Arm:
    record = base
    for option, value in labels.items():
        record = merge_records(record, nested(option, value))
    changed = {option: value for option, value in labels.items() if value != start[option]}
    runs = {}
    for seed in seeds:
        run = run_name(changed, labels) + "," if changed else f"{BASELINE},"
        runs[seed] = planned_run(
            f"{run}seed={seed}", record | {"seed": seed}, labels | {"seed": seed}, complete
        )
    return Arm(axis=axis, name=name, labels=labels, runs=runs)


def run_ablation(
    plan: AblationPlan,
    folder: Path,
    *,
    n_processes: int = 1,
    on_change: Callable[[Outcome], None] | None = None,
) -> list[Outcome]:
    """Makes the runs of a plan, or goes on with them.

    Raises:
        ValueError: two runs are alike, as of values that come to the same.
        OSError: a token file is missing.
        FormatError: a token file is damaged.
    """
    require_data(plan.planned)
    study = {
        "kind": "ablate",
        "axes": [{"option": axis.option, "values": _plain_values(axis)} for axis in plan.axes],
        "arms": [
            {"axis": arm.axis, "name": arm.name, "hashes": [run.hash for run in arm.runs.values()]}
            for arm in plan.arms
        ],
        "seeds": plan.seeds,
    }
    return run_all(plan.planned, folder, n_processes=n_processes, on_change=on_change, study=study)


def _plain_values(axis: Axis) -> list[Any]:
    return [str(value) if isinstance(value, Path) else value for value in axis.values]
