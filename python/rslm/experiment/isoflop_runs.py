"""Finished runs as points and training curves of a scaling law.

A run gives a point at its end, and with WSD-S one at every cooldown. Its loss is that of the
validation there, or, for runs that are not validated, the mean training loss of the last
twentieth of the steps before.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rslm.architecture import TransformerConfig
from rslm.config import from_record
from rslm.errors import FormatError
from rslm.experiment.shapes import Counting, count_parameters
from rslm.experiment.study import read_study
from rslm.run_folder import Row
from rslm.runs import Run, find_runs, read_run
from rslm.scaling.envelope import split_curves
from rslm.scaling.points import ScalingPoints, complete, join

_N_CURVE_POINTS = 64
_MIN_VALIDATIONS = 8
_END_SHARE = 20
_SMOOTHED_SHARE = 25
_FIELDS = ("n_parameters", "n_tokens", "train_flops", "loss")


@dataclass(frozen=True, kw_only=True)
class ReadRuns:
    """Runs as what laws are fitted to.

    Attributes:
        points: of all finished runs.
        curves: their losses on the way, for the envelope.
        n_left_out: runs that are not finished.
        is_validated: whether all losses are those of validations.
    """

    points: ScalingPoints
    curves: ScalingPoints
    n_left_out: int
    is_validated: bool


def read_scaling_runs(paths: Sequence[Path], *, counting: Counting = "non-embedding") -> ReadRuns:
    """Reads run folders, folders of runs, and studies.

    Args:
        paths: the folders.
        counting: which parameters are N.

    Raises:
        ValueError: no run is finished, some are validated and others not, or one has no model.
        FormatError: a file is damaged.
        FileNotFoundError: there is no such folder.
    """
    found = [(run, labels) for path in paths for run, labels in _runs_of(path)]
    finished = [(run, labels) for run, labels in found if run.status == "finished"]
    if not finished:
        shown = ", ".join(map(str, paths))
        raise ValueError(f"at least one finished run is needed, got {len(found)} runs in {shown}")
    are_validated = {run.last("val_loss") is not None for run, _ in finished}
    if len(are_validated) > 1:
        raise ValueError(
            "all runs must be validated, or none: validation and training losses do not compare"
        )
    is_validated = are_validated.pop()
    sizes = [_size(run, counting) for run, _ in finished]
    pairs = list(zip(finished, sizes, strict=True))
    points = [_points(run, labels, size, is_validated) for (run, labels), size in pairs]
    curves = [_curve(run, size) for (run, _), size in pairs]
    return ReadRuns(
        points=join(points),
        curves=join([curve for curve in curves if curve is not None]),
        n_left_out=len(found) - len(finished),
        is_validated=is_validated,
    )


def _runs_of(path: Path) -> list[tuple[Run, Mapping[str, Any]]]:
    """The runs of a folder, with the labels that a study gives them."""
    entries = read_study(path).get("runs", [])
    labels = {entry.get("folder"): entry.get("labels") for entry in entries}
    runs = [read_run(folder) for folder in find_runs(path)]
    return [(run, labels.get(run.path.name) or {}) for run in runs]


def _size(run: Run, counting: Counting) -> int:
    record = run.config.get("model", {})
    try:
        return count_parameters(from_record(TransformerConfig, record), counting)
    except ValueError as error:
        raise ValueError(f"{run.path}/config.toml must name the model's sizes: {error}") from None


def _points(
    run: Run, labels: Mapping[str, Any], n_parameters: int, is_validated: bool
) -> ScalingPoints:
    """The points of a run: one for each end of its schedule."""
    given = run.config.get("optimizer", {}).get("decay_ends", [])
    if not isinstance(given, list):
        message = f"{run.path}/config.toml: decay_ends must be a list of steps, got {given!r:.80}"
        raise FormatError(message)
    ends = [*(end for end in given if isinstance(end, int)), run.step]
    rows = [_row_at(run, end, is_validated) for end in ends]
    columns = _columns(n_parameters, rows)
    budgets = labels.get("flop_budgets")
    if isinstance(budgets, list) and len(budgets) == len(ends):
        columns["flop_budget"] = np.array(budgets, dtype=np.float64)
    return complete(columns)


def _row_at(run: Run, step: int, is_validated: bool) -> Row:
    """Tokens, FLOPs and loss at a step."""
    rows = [row for row in run.rows if row["step"] == step]
    if is_validated:
        row = next((row for row in rows if row.get("val_loss") is not None), None)
        if row is None:
            raise FormatError(
                f"{run.path} must have a validation at step {step}, the end of a decay"
            )
        return row | {"loss": row["val_loss"]}
    first = step - max(1, step // _END_SHARE)
    losses = [
        row["loss"]
        for row in run.rows
        if first < row["step"] <= step and row.get("loss") is not None
    ]
    if not rows or not losses:
        raise FormatError(f"{run.path} must have losses before step {step}, the end of a decay")
    return rows[-1] | {"loss": math.fsum(losses) / len(losses)}


def _curve(run: Run, n_parameters: int) -> ScalingPoints | None:
    """A run's losses on the way: those of validations where they are many, else of training."""
    validated = [r | {"loss": r["val_loss"]} for r in run.rows if r.get("val_loss") is not None]
    if len(validated) >= _MIN_VALIDATIONS:
        return complete(_columns(n_parameters, validated))
    rows = [row for row in run.rows if row.get("loss") is not None and row["step"] > 0]
    if not rows or not all(math.isfinite(row["loss"]) for row in rows):
        return None
    losses = np.array([row["loss"] for row in rows])
    # While a rate warms up a loss tells nothing of the size.
    first = max(1, len(rows) // _END_SHARE)
    places = np.unique(np.geomspace(first, len(rows), _N_CURVE_POINTS).astype(int) - 1)
    # As wide as the curve is long by then, and to both sides alike: it is steep at the start.
    reaches = np.minimum(places // _SMOOTHED_SHARE, len(rows) - 1 - places)
    means = [losses[i - r : i + r + 1].mean() for i, r in zip(places, reaches, strict=True)]
    curve = [rows[i] | {"loss": mean} for i, mean in zip(places, means, strict=True)]
    return complete(_columns(n_parameters, curve))


def _columns(n_parameters: int, rows: Sequence[Row]) -> dict[str, Any]:
    values = [[n_parameters, *(row.get(name) for name in _FIELDS[1:])] for row in rows]
    table = np.array(values, dtype=np.float64)  # None becomes NaN, which no point may be.
    return dict(zip(_FIELDS, table.T, strict=True))


def as_curves(points: ScalingPoints) -> ScalingPoints | None:
    """The points of a file as training curves, where their order makes any; else None."""
    return points if len(split_curves(points)) > 1 else None
