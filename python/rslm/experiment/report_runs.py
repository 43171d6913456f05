"""What a report shows of one run: its numbers, its thinned curves, its samples.

A run of 100,000 steps is read into memory whole, and only what the page holds is kept of it.
"""

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from rslm.architecture import TransformerConfig, n_parameters
from rslm.config import from_record
from rslm.html_report.thinning import Series, Values, thin
from rslm.run_folder import Row, flatten
from rslm.runs import Run, read_run, read_starts, summarise

AXES = {
    "step": "step",
    "n_tokens": "tokens",
    "train_flops": "FLOPs",
    "elapsed_seconds": "seconds",
}
"""Over what curves are drawn."""

METRICS = ("loss", "val_loss", "val_bits_per_byte")
DETAILS = ("learning_rate", "grad_norm", "tokens_per_second")
"""Metrics that get a quarter of the points."""

MAX_MOMENTS = 8
MAX_CHARACTERS = 2000
"""Samples kept of a run, and of each of them."""

_SECTION = re.compile(r"^## Step ([\d,]+)$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class RunView:
    """A run as the page shows it.

    Attributes:
        name: different from that of all others.
        group: what it shares with runs that differ in the seed alone.
        status: that of the run, or "diverged", or what a study says of it.
        message: what it said of its end.
        numbers: `rslm.runs.summarise` and more.
        options: dotted; without the folder.
        machine: device and versions of its last start, in a line.
        samples: texts by step.
        series: thinned curves by metric.
    """

    name: str
    path: Path
    group: str
    status: str
    message: str
    numbers: Row
    options: Row
    machine: str
    samples: Mapping[int, str]
    series: Mapping[str, Series]


def read_view(
    path: Path, *, name: str, n_points: int, group: str = "", status: str = "", message: str = ""
) -> RunView:
    """Reads a run folder; the `status` that is given stands above what the folder says.

    Raises:
        FileNotFoundError: it is no run folder.
        FormatError: its files are damaged.
    """
    run = read_run(path)
    return RunView(
        name=name,
        path=path,
        group=group,
        status=status or run_status(run),
        message=message,
        numbers=numbers_of(run),
        options={k: v for k, v in flatten(run.config).items() if k != "out"},
        machine=machine_of(path),
        samples=read_samples(path / "samples.md"),
        series=series_of(run.rows, n_points),
    )


def run_status(run: Run) -> str:
    """Its status, or "diverged" where it stopped at a loss or gradients that are not finite."""
    has_diverged = run.status == "stopped" and any(map(_is_nonfinite, run.rows[-1:]))
    return "diverged" if has_diverged else run.status


def _is_nonfinite(row: Row) -> bool:
    """Whether a row is of a step without an update; JSON has null for what is not finite."""
    return any(key in row and not _is_finite(row[key]) for key in ("loss", "grad_norm"))


def _is_finite(value: Any) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def numbers_of(run: Run) -> Row:
    """A run's row of a table, with size, compute, best bits per byte, speed, skipped steps."""
    bits = [row.get("val_bits_per_byte") for row in run.rows]
    speeds = [row.get("tokens_per_second") for row in run.rows]
    return summarise(run) | {
        "n_parameters": parameters_of(run.config),
        "train_flops": run.last("train_flops"),
        "best_bits_per_byte": min(filter(_is_finite, bits), default=None),
        "tokens_per_second": _median([speed for speed in speeds if _is_finite(speed)]),
        "n_nonfinite": sum(map(_is_nonfinite, run.rows)),
    }


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def parameters_of(config: Mapping[str, Any]) -> int | None:
    """Parameters of a run's model; None where its options are not those of this version."""
    model = config.get("model")
    try:
        return n_parameters(from_record(TransformerConfig, model)) if model else None
    except ValueError:
        return None


def machine_of(run: Path) -> str:
    """Device and versions of a run's last start, in a line; "" where nothing says so."""
    starts = read_starts(run)
    if not starts:
        return ""
    start = starts[-1]
    versions = start.get("versions")
    named = versions if isinstance(versions, dict) else {}
    parts = [start.get("cuda") or start.get("cpu")]
    parts += [f"{name} {named[name]}" for name in ("rslm", "torch") if named.get(name)]
    return ", ".join(str(part) for part in parts if part)


def series_of(rows: Sequence[Row], n_points: int) -> dict[str, Series]:
    """The thinned curve of each metric that the rows have."""
    series = {}
    for metric in (*METRICS, *DETAILS):
        taken = [row for row in rows if metric in row]
        if any(_is_finite(row[metric]) for row in taken):
            x = {axis: _array(taken, axis) for axis in AXES}
            points = n_points // 4 if metric in DETAILS else n_points
            series[metric] = thin(x, _array(taken, metric), points)
    return series


def _array(rows: Sequence[Row], key: str) -> Values:
    values = (row.get(key) for row in rows)
    return np.array([math.nan if value is None else value for value in values], np.float64)


def read_samples(path: Path) -> dict[int, str]:
    """Samples of a run by step, from its `samples.md`: the first, the last and some between."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    _, *parts = _SECTION.split(text)
    found = {
        int(step.replace(",", "")): _unindent(body)
        for step, body in zip(parts[::2], parts[1::2], strict=True)
    }
    steps = sorted(found)
    n_kept = min(MAX_MOMENTS, len(steps))
    kept = {steps[(len(steps) - 1) * i // max(n_kept - 1, 1)] for i in range(n_kept)}
    return {step: found[step] for step in sorted(kept)}


def _unindent(body: str) -> str:
    """The texts of a section, a line between two, cut where they are long."""
    # A blank line of a text has four blanks as well; only between texts there is one without.
    texts = [
        "\n".join(line[4:] for line in part.split("\n") if line.startswith("    "))
        for part in body.strip("\n").split("\n\n")
    ]
    text = "\n――――――\n".join(texts)
    return text if len(text) <= MAX_CHARACTERS else text[:MAX_CHARACTERS] + " …"
