"""A sweep: runs over a space of options, by grid, at random or by TPE, cut short if asked to."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rslm.config import Record, merge_records
from rslm.experiment.axes import (
    Complete,
    nested,
    planned_run,
    require_data,
    require_different,
    require_metric,
)
from rslm.experiment.compare import METRICS, value_of
from rslm.experiment.halving import Halving
from rslm.experiment.queue import Outcome, PlannedRun, Queue
from rslm.experiment.space import Dimension, Point, grid_points, random_points
from rslm.experiment.study import MAX_RUNS, SETTLED, read_study, run_name
from rslm.experiment.tpe import Tpe
from rslm.runs import read_run

Method = Literal["grid", "random", "tpe"]

_LOOK_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What is swept.

    Attributes:
        base: record of `TrainConfig`, which need not be complete.
        space: the options that change.
        method: how points are chosen.
        n_runs: points in all.
        metric: what is to be low at the end of a run.
        complete: fills in what follows from other options.
        prune: stop runs that are behind.
        seed: of random points and of TPE; runs have that of the base.
    """

    base: Record
    space: Sequence[Dimension]
    method: Method
    n_runs: int
    metric: str
    complete: Complete
    prune: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        options = [dimension.option for dimension in self.space]
        if not options or len(set(options)) < len(options):
            raise ValueError(f"over must name at least one option, none twice, got {options}")
        if not 1 <= self.n_runs <= MAX_RUNS:
            raise ValueError(f"n_runs must be at least 1, at most {MAX_RUNS}, got {self.n_runs}")

    def plan(self, point: Point) -> PlannedRun:
        """The run of a point.

        Raises:
            ValueError: its options do not go together.
        """
        record = self.base
        for option, value in point.items():
            record = merge_records(record, nested(option, value))
        return planned_run(run_name(point), record, point, self.complete)

    def points(self) -> list[Point] | None:
        """All points, where they are known beforehand.

        Raises:
            ValueError: a grid has more than `n_runs`.
        """
        if self.method == "grid":
            return grid_points(self.space, self.n_runs)
        if self.method == "random":
            return random_points(self.space, self.n_runs, self.seed)
        return None

    def corners(self) -> list[Point]:
        """Points that show whether the space makes configs at all: both ends of all options."""
        return [{d.option: d.grid(2)[place] for d in self.space} for place in (0, -1)]


def planned_runs(sweep: Sweep, folder: Path) -> list[PlannedRun]:
    """The runs that are known before any is made; each once, though several points come to it.

    Raises:
        ValueError: options do not go together, a grid has more than `n_runs` points, or the folder
            holds a sweep by TPE of other options.
        OSError: a token file is missing.
        FormatError: a token file is damaged.
    """
    points = sweep.points()
    planned = [sweep.plan(point) for point in (sweep.corners() if points is None else points)]
    require_metric(sweep.metric, METRICS, planned)
    require_data(planned)
    if points is None:
        planned = _earlier_runs(sweep, folder)
    planned = list({run.hash: run for run in planned}.values())
    require_different(planned)
    return planned


def _earlier_runs(sweep: Sweep, folder: Path) -> list[PlannedRun]:
    """The runs of TPE's points so far, which a failed one is not: it chose another in its place."""
    planned = []
    study = read_study(folder)
    if "space" in study and study["space"] != _space_records(sweep):
        raise ValueError(f"{folder} holds a sweep of another space, name another folder")
    options = {dimension.option for dimension in sweep.space}
    for entry in study.get("runs", []):
        labels = entry.get("labels", {})
        run = sweep.plan(labels) if labels.keys() == options else None
        if run is None or run.hash != entry.get("hash"):
            raise ValueError(f"{folder} holds a sweep of other options, name another folder")
        if entry.get("status") != "failed":
            planned.append(run)
    return planned


def run_sweep(
    sweep: Sweep,
    folder: Path,
    *,
    n_processes: int = 1,
    on_change: Callable[[Outcome], None] | None = None,
) -> list[Outcome]:
    """Makes the runs of a sweep, or goes on with them; returns them in the order they ended.

    Raises:
        ValueError: options do not go together, or the folder holds another sweep by TPE.
        OSError: a token file is missing.
        FormatError: a token file, or what TPE noted, is damaged.
        ModuleNotFoundError: TPE needs optuna.
        KeyboardInterrupt: Ctrl-C; all runs have saved where they stood.
        SystemExit: SIGTERM, likewise, with code 75.
    """
    planned = planned_runs(sweep, folder)
    if sweep.method == "tpe":
        import optuna  # noqa: F401 - missed before a folder is made
    study = {
        "kind": "sweep",
        "method": sweep.method,
        "metric": sweep.metric,
        "space": _space_records(sweep),
    }
    with Queue(folder, planned, n_processes=n_processes, study=study) as queue:
        tpe = None
        if sweep.method == "tpe":
            tpe = Tpe(sweep.space, sweep.n_runs, folder, sweep.seed)
        loop = _Loop(sweep, queue, tpe, on_change)
        loop.work({run.hash for run in planned})
    return list(loop.outcomes.values())


def _space_records(sweep: Sweep) -> list[Record]:
    return [_space_record(dimension) for dimension in sweep.space]


def _space_record(dimension: Dimension) -> Record:
    record: Record = {"option": dimension.option, "scale": dimension.scale}
    if dimension.scale == "choice":
        return record | {"values": [_plain(value) for value in dimension.values]}
    return record | {"low": dimension.low, "high": dimension.high}


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | float | str | None) else str(value)


class _Loop:
    """Points asked for while there is room, values told as runs end, stragglers stopped."""

    def __init__(
        self,
        sweep: Sweep,
        queue: Queue,
        tpe: Tpe | None,
        on_change: Callable[[Outcome], None] | None,
    ) -> None:
        self._sweep, self._queue, self._tpe, self._on_change = sweep, queue, tpe, on_change
        self._halving = Halving(metric=sweep.metric) if sweep.prune else None
        self._numbers: dict[str, list[int]] = {}
        self.outcomes: dict[str, Outcome] = {}

    def work(self, queued: set[str]) -> None:
        """Works until no point is left to ask for and no run under way.

        Args:
            queued: hashes of the runs that the queue has been given.
        """
        while True:
            self._fill(queued)
            if not self._queue.has_work:
                return
            for outcome in self._queue.wait(_LOOK_SECONDS):
                self._note(outcome)
            self._prune()

    def _fill(self, queued: set[str]) -> None:
        """Asks for points while processes are free."""
        while self._tpe is not None and self._queue.n_open < self._queue.n_processes:
            asked = self._tpe.next()
            if asked is None:
                return
            number, point = asked
            run = self._sweep.plan(point)
            self._numbers.setdefault(run.hash, []).append(number)
            if run.hash in self.outcomes:
                self._tell(number, self.outcomes[run.hash])
            elif run.hash not in queued:
                queued.add(run.hash)
                self._queue.add(run)

    def _note(self, outcome: Outcome) -> None:
        self.outcomes[outcome.run.hash] = outcome
        for number in self._numbers.get(outcome.run.hash, []):
            self._tell(number, outcome)
        if self._halving is not None and outcome.status in SETTLED:
            # Runs may end between two looks, or have ended in an earlier call.
            self._halving.judge(outcome.run, outcome.path)
        if self._on_change is not None:
            self._on_change(outcome)

    def _tell(self, number: int, outcome: Outcome) -> None:
        assert self._tpe is not None
        value = None
        if outcome.status in ("finished", "pruned"):
            # A pruned run counts with what it had when it was stopped: more than at its end, and
            # less than what is worse.
            run = read_run(outcome.path)
            has_value = run.last(self._sweep.metric) is not None
            value = value_of(run, self._sweep.metric) if has_value else None
        self._tpe.tell(number, outcome, value)

    def _prune(self) -> None:
        if self._halving is None:
            return
        for run in self._queue.running():
            reason = self._halving.judge(run, self._queue.folder / run.folder)
            if reason is not None:
                self._queue.prune(run, reason)
