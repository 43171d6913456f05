"""The losses that a run of certain options on certain data was measured to have, with a band.

A reference curve is a TOML file: what was measured (`options`, `data`), where and how often, and
`points`, each `[step, n_tokens, median, low, high]` in nats per token. A point is about the mean
training loss of the steps since the point before. Those in the package's `reference_curves` are
found by what they were measured on: the same data fingerprints, and the same value of every
option that decides the loss, but for the seed. Where nothing was measured nothing is compared.
"""

import dataclasses
import itertools
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from rslm.config import read_toml, to_record
from rslm.errors import FormatError
from rslm.run_folder import Row, flatten
from rslm.train_config import DataConfig, TrainConfig

N_POINTS = 100
WIDTH = 4.0
"""Half the width of a band in standard deviations between seeds."""

_NEUTRAL = frozenset(
    {
        *("out", "data.train", "data.valid", "data.mixed_in", "seed", "depth", "device", "compile"),
        *("n_threads", "parallel", "micro_batch_size", "recompute_blocks", "log_every"),
        *("validate_every", "n_validation_tokens", "checkpoint_every", "checkpoint_minutes"),
        *("keep_checkpoints", "keep_best", "sample_every", "sample_prompts", "n_sample_tokens"),
        *("trackers", "wandb_project", "reference_curve", "optimizer.max_skipped_steps"),
        "optimizer.implementation",
    }
)
"""Options that do not decide the loss; a new one decides it until it is named here."""


@dataclass(frozen=True)
class Point:
    """One stretch of a curve, which ends after `step` updates; losses in nats per token."""

    step: int
    n_tokens: int
    median: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class ReferenceCurve:
    """A measured curve.

    Attributes:
        name: what messages call it.
        measured: how often, where, with which versions.
        data: fingerprints of the training data, as in the state of a checkpoint.
        options: those that decide the loss, by dotted name, without what is None.
        points: by step.
    """

    name: str
    measured: str
    data: Row
    options: Row
    points: tuple[Point, ...]


def deciding_options(config: Mapping[str, Any]) -> Row:
    """The options of a nested record that decide the loss, with defaults for what it lacks."""
    defaults = to_record(TrainConfig(out=Path(), data=DataConfig(train=Path())))
    options = flatten(defaults) | flatten(config)
    return {k: v for k, v in options.items() if k not in _NEUTRAL and v is not None}


def training_data(fingerprints: Row) -> Row:
    """The fingerprints of what is trained on, without that of the validation file."""
    return {key: value for key, value in fingerprints.items() if key != "valid"}


def first_difference(curve: ReferenceCurve, config: TrainConfig, data: Row) -> str | None:
    """Why a run cannot be compared with the curve, in words; None where it can."""
    if training_data(data) != curve.data:
        return f"the data must be {curve.data}, got {training_data(data)}"
    known, own = deciding_options(curve.options), deciding_options(to_record(config))
    for name in sorted(known.keys() | own.keys()):
        if known.get(name) != own.get(name):
            return f"{name} must be {known.get(name)}, got {own.get(name)}"
    return None


def find_curve(config: TrainConfig, data: Row) -> ReferenceCurve | None:
    """The curve that the run names, else the shipped one that was measured on the same.

    Raises:
        ValueError: the named one was measured on something else.
        FormatError: a file is no reference curve.
        OSError: the named file cannot be read.
    """
    if config.reference_curve is not None:
        curve = read_curve(config.reference_curve)
        if (fault := first_difference(curve, config, data)) is not None:
            raise ValueError(f"{config.reference_curve} is of other runs: {fault}")
        return curve
    folder = resources.files("rslm").joinpath("reference_curves")
    files = sorted(folder.iterdir(), key=lambda file: file.name) if folder.is_dir() else []
    curves = (read_curve(Path(str(file))) for file in files if file.name.endswith(".toml"))
    return next((c for c in curves if first_difference(c, config, data) is None), None)


def read_curve(path: Path) -> ReferenceCurve:
    """Reads a curve's file.

    Raises:
        FormatError: it is none.
        OSError: it cannot be read.
    """
    record = read_toml(path)
    try:
        points = tuple(Point(*map(float, point)) for point in record["points"])  # type: ignore[arg-type]
        points = tuple(
            dataclasses.replace(p, step=int(p.step), n_tokens=int(p.n_tokens)) for p in points
        )
        curve = ReferenceCurve(
            name=str(record["name"]),
            measured=str(record["measured"]),
            data=dict(record["data"]),
            options=dict(record["options"]),
            points=points,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{path} must be a reference curve: {error!r}") from None
    steps = [0, *(point.step for point in points)]
    if len(steps) < 2 or any(a >= b for a, b in itertools.pairwise(steps)):
        raise FormatError(f"{path}: points must have ascending steps, got {steps[1:]}")
    return curve


def curve_to_toml(curve: ReferenceCurve) -> str:
    """The file of a curve; JSON's values are TOML's, but for infinity."""

    def value(item: Any) -> str:
        if isinstance(item, float) and math.isinf(item):
            return "inf"
        return json.dumps(item, ensure_ascii=False)

    def table(name: str, entries: Row) -> list[str]:
        return ["", f"[{name}]", *(f"{json.dumps(k)} = {value(v)}" for k, v in entries.items())]

    lines = [f"name = {value(curve.name)}", f"measured = {value(curve.measured)}"]
    lines += ["# step, n_tokens, median, low, high", "points = ["]
    lines += [
        f"    [{p.step}, {p.n_tokens}, {p.median:.5f}, {p.low:.5f}, {p.high:.5f}],"
        for p in curve.points
    ]
    lines += ["]", *table("data", curve.data), *table("options", curve.options)]
    return "\n".join(lines) + "\n"


def stretch_means(losses: Mapping[int, float], steps: Sequence[int]) -> list[float | None]:
    """The mean loss of the steps up to each of `steps` from the one before; None with a gap."""
    means: list[float | None] = []
    for before, step in zip([0, *steps], steps, strict=False):
        part = [losses.get(i, math.nan) for i in range(before + 1, step + 1)]
        mean = sum(part) / len(part)
        means.append(mean if math.isfinite(mean) else None)
    return means


def measure_curve(
    name: str, measured: str, configs: Sequence[Row], rows: Sequence[Sequence[Row]], data: Row
) -> ReferenceCurve:
    """The curve of finished runs that differ in their seed alone.

    A band reaches four standard deviations to either side of the median; the deviation is
    that between runs, pooled over the five points around, and grows by 1 + 1/n for the new run.

    Args:
        name: what messages call it.
        measured: how and where.
        configs: their options, nested.
        rows: their metrics.
        data: fingerprints of the data that all were trained on.

    Raises:
        ValueError: fewer than three runs, equal seeds, different options, or a gap in the losses.
    """
    if len(configs) < 3:
        raise ValueError(f"a band needs at least 3 finished runs, got {len(configs)}")
    seeds = [config.get("seed", 0) for config in configs]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"runs must differ in their seeds, got {seeds}")
    options = [deciding_options(config) for config in configs]
    for other in options[1:]:
        names = [k for k in options[0] | other if options[0].get(k) != other.get(k)]
        if names:
            raise ValueError(f"runs must differ in their seed alone, and do in {names[0]}")
    n_steps = int(options[0]["n_steps"])
    steps = sorted({max(1, n_steps * i // N_POINTS) for i in range(1, N_POINTS + 1)})
    trained = [{r["step"]: r for r in part if r.get("loss") is not None} for part in rows]
    curves = [stretch_means({s: r["loss"] for s, r in part.items()}, steps) for part in trained]
    values = [[v for v in at if v is not None] for at in zip(*curves, strict=True)]
    if any(len(at) < len(configs) for at in values):
        raise ValueError("runs must be finished, with a finite loss at every step")
    variances = [statistics.variance(at) for at in values]
    points = []
    for i, (step, at) in enumerate(zip(steps, values, strict=True)):
        pooled = statistics.fmean(variances[max(0, i - 2) : i + 3])
        reach = WIDTH * math.sqrt(pooled * (1 + 1 / len(at)))
        middle = statistics.median(at)
        n_tokens = int(trained[0][step]["n_tokens"])
        points.append(Point(step, n_tokens, middle, middle - reach, middle + reach))
    return ReferenceCurve(
        name=name,
        measured=measured,
        data=training_data(data),
        options=options[0],
        points=tuple(points),
    )


class BandWatch:
    """Says when the loss of a run leaves the band of a reference curve, once per excursion."""

    def __init__(self, curve: ReferenceCurve | None, rows: Sequence[Row] = ()) -> None:
        """Takes in the rows of an earlier part of the run without a word."""
        self._points = () if curve is None else curve.points
        self._curve = curve
        self._next = 0
        self._losses: list[float] = []
        self._is_outside = False
        for row in rows:
            self.check(row)

    def check(self, row: Row) -> str | None:
        """A sentence when the stretch that ends with this training row leaves the band."""
        if self._next >= len(self._points) or row.get("loss") is None:
            return None
        point, step = self._points[self._next], int(row["step"])
        start = self._points[self._next - 1].step if self._next else 0
        self._losses.append(float(row["loss"]))
        if step < point.step:
            return None
        losses, self._losses = self._losses, []
        self._next += 1
        mean = sum(losses) / len(losses)
        if len(losses) != step - start or not math.isfinite(mean):
            return None  # Of a stretch with a gap nothing can be said.
        was_outside, self._is_outside = self._is_outside, not point.low <= mean <= point.high
        if was_outside or not self._is_outside:
            return None
        assert self._curve is not None
        return (
            f"the loss of steps {start + 1:,} to {step:,}, {mean:.4f}, is "
            f"{'above' if mean > point.high else 'below'} the band {point.low:.4f} to "
            f"{point.high:.4f} of {self._curve.name} ({self._curve.measured})"
        )
