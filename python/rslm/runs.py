"""What run folders say: their state, their numbers, how two differ, their curves in one picture.

Reads folders only, of runs that are under way as well: nothing is written but a picture where
one is asked for. A run of another version, with options unknown here, is read as well.
"""

import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rslm.config import read_toml
from rslm.errors import FormatError
from rslm.process import printable
from rslm.run_folder import Row, flatten, is_in_use
from rslm.series import smooth

Status = Literal["running", "finished", "stopped"]

_TABLES = ("model", "optimizer")
_COUNTS = ("n_tokens", "train_flops", "elapsed_seconds")


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run folder, as it was when it was read.

    Attributes:
        path: the folder.
        config: its options, nested as in `config.toml`.
        rows: all rows of its metrics.
        status: "running" where a process holds the folder, else whether all steps were made.
    """

    path: Path
    config: Row
    rows: list[Row]
    status: Status

    @property
    def n_steps(self) -> int:
        """Updates the run is to make."""
        n_steps: int = self.config.get("n_steps", 0)
        return n_steps

    @property
    def step(self) -> int:
        """Updates made so far."""
        return int(self.rows[-1]["step"]) if self.rows else 0

    @property
    def best(self) -> tuple[int, float] | None:
        """Step and loss of the best validation."""
        rows = [row for row in self.rows if _has(row, "val_loss")]
        # Nothing is less than NaN, nor is it less than anything.
        validated = [(r["val_loss"], r["step"]) for r in rows if not math.isnan(r["val_loss"])]
        return min(validated)[::-1] if validated else None

    def last(self, key: str) -> Any:
        """The last value of a metric; None where there is none."""
        return next((row[key] for row in reversed(self.rows) if _has(row, key)), None)

    def curve(self, key: str, over: str) -> tuple[list[Any], list[Any]]:
        """Where a metric was taken, by step or another metric, and its values."""
        rows = [row for row in self.rows if _has(row, key) and _has(row, over)]
        return [row[over] for row in rows], [row[key] for row in rows]


def _has(row: Row, key: str) -> bool:
    return row.get(key) is not None


def read_run(path: Path) -> Run:
    """Reads a run folder.

    Raises:
        FileNotFoundError: it is none: it has no `config.toml`.
        FormatError: its metrics are damaged.
        ValueError: its config is no TOML, or `n_steps` no number of steps, or a table is none.
    """
    config = read_toml(path / "config.toml")
    if type(config.get("n_steps", 0)) is not int:
        given = config["n_steps"]
        raise ValueError(f"n_steps must be a whole number in {path}/config.toml, got {given!r}")
    for name in _TABLES:
        if not isinstance(config.get(name, {}), dict):
            given = config[name]
            raise ValueError(f"{name} must be a table in {path}/config.toml, got {given!r:.80}")
    rows = _read_rows(path / "metrics.jsonl")
    step = rows[-1]["step"] if rows else 0
    status: Status = "finished" if step == config.get("n_steps") else "stopped"
    return Run(path=path, config=config, rows=rows, status="running" if is_in_use(path) else status)


def _read_rows(path: Path) -> list[Row]:
    """The rows of a metrics file, none where there is no file yet."""
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
    except UnicodeDecodeError as error:
        place = f"an invalid byte at offset {error.start}"
        raise FormatError(f"{path} must be UTF-8, got {place}") from None
    rows: list[Row] = []
    # A line that is still being written has no end.
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        if line.endswith("\n"):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise FormatError(f"{path}, line {number} is not JSON: {error}") from None
            if not isinstance(row, dict) or type(row.get("step")) is not int:
                raise FormatError(f"{path}, line {number} must be an object with a step")
            for key, value in row.items():
                if not _is_metric(value):
                    raise FormatError(f"{path}, line {number}: {key} must be a number")
                if key in _COUNTS and value is not None and not math.isfinite(value):
                    raise FormatError(f"{path}, line {number}: {key} must be finite, got {value}")
            rows.append(row)
    return rows


def _is_metric(value: Any) -> bool:
    """Whether a value of a row can be counted with; NaN and infinities of a bad step can."""
    if isinstance(value, int):
        return abs(value) <= sys.float_info.max
    return value is None or isinstance(value, float)


def read_starts(run: Path) -> list[Row]:
    """The starts of a run, from its `env.json`; none where there is no such file yet.

    Raises:
        FormatError: the file is damaged.
    """
    path = run / "env.json"
    try:
        starts = json.loads(path.read_bytes()) if path.exists() else []
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is not JSON: {error}") from None
    if not isinstance(starts, list) or not all(isinstance(start, dict) for start in starts):
        raise FormatError(f"{path} must be a list of objects")
    return starts


def find_runs(folder: Path) -> list[Path]:
    """The run folders in a folder, by name; the folder alone where it is one itself.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} must be a folder of runs, and does not exist")
    if (folder / "config.toml").is_file():
        return [folder]
    return sorted(path.parent for path in folder.glob("*/config.toml"))


def summarise(run: Run) -> Row:
    """A run in one row of a table."""
    best = run.best
    return {
        "run": run.path.name,
        "status": run.status,
        "step": run.step,
        "n_steps": run.n_steps,
        "n_tokens": run.last("n_tokens"),
        "loss": run.last("loss"),
        "val_loss": run.last("val_loss"),
        "val_reward": run.last("val_reward"),
        "val_bits_per_byte": run.last("val_bits_per_byte"),
        "best_step": None if best is None else best[0],
        "best_val_loss": None if best is None else best[1],
        "tokens_per_second": run.last("tokens_per_second"),
        "elapsed_seconds": run.last("elapsed_seconds"),
    }


def describe(run: Run) -> Row:
    """All that is known of a run: its row, its starts, its checkpoints, its options."""
    # Whoever reads nothing but metrics should not have to load torch.
    from rslm import checkpoint

    folder = run.path / "checkpoints"
    return summarise(run) | {
        "n_starts": len(read_starts(run.path)),
        "checkpoints": [path.name for path in checkpoint.list_checkpoints(folder)],
        "best_checkpoint": os.readlink(folder / checkpoint.BEST)
        if (folder / checkpoint.BEST).is_symlink()
        else None,
        "config": flatten(run.config),
    }


def differences(one: Run, other: Run) -> dict[str, tuple[Any, Any]]:
    """The options in which two runs differ, and then how far each came; the folder is left out."""
    options = [flatten(run.config) for run in (one, other)]
    names = [name for name in options[0] | options[1] if name != "out"]
    pairs = {name: (options[0].get(name), options[1].get(name)) for name in names}
    numbers = [summarise(run) for run in (one, other)]
    pairs |= {name: (numbers[0][name], numbers[1][name]) for name in numbers[0] if name != "run"}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def plot_runs(runs: Sequence[Run], out: Path, *, metric: str, over: str) -> None:
    """Draws one metric of several runs over another, as a picture in the format of `out`'s name.

    Raises:
        ValueError: no run has the metric, or the format is unknown.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for run in runs:
        places, values = run.curve(metric, over)
        # A training loss of every step is too rough to compare by eye.
        drawn = smooth(values) if metric == "loss" else values
        if values:
            # To Matplotlib what stands between dollars is a formula.
            label = printable(run.path.name).replace("$", r"\$")
            axes.plot(places, drawn, label=label, linewidth=1.5)
    if not axes.lines:
        known = sorted({key for run in runs for row in run.rows for key in row})
        raise ValueError(
            f"metric must be one that a run has over {over} ({', '.join(known)}), got {metric!r}"
        )
    axes.set(xlabel=over, ylabel=metric)
    axes.grid(color="#e2e2e2", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(out)
