"""What scaling laws are fitted to: parameters, tokens, FLOPs and loss of runs, and reading them.

A CSV file has a header; a JSON file is a list of objects. Columns, or keys, in any order, read
without regard to case, and with blanks and dashes as underscores:

| quantity | accepted |
|---|---|
| N | n_parameters, parameters, params, model_size, n |
| D | n_tokens, tokens, training_tokens, d |
| C | train_flops, flops, flop, training_flops, training_flop, compute, c |
| loss in nats per token | loss, final_loss, val_loss |
| the budget that the run belongs to | flop_budget, compute_budget, budget |

Others are left alone. Loss and two of N, D and C must be there; the third is then that of
C = 6ND. A budget stands for C where there is no C.

Source: C = 6ND: Kaplan et al. 2020, section 2.1 (arXiv:2001.08361).
"""

import csv
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from rslm.errors import FormatError

Array = npt.NDArray[np.float64]

FLOPS_FACTOR = 6.0
"""FLOPs for each parameter and token: 2 forward, 4 backward."""

MAX_POINTS = 100_000
_LARGEST = 1e60
_SMALLEST = 1e-12
_SAME_BUDGET = math.log(1.25)

COLUMNS: dict[str, tuple[str, ...]] = {
    "n_parameters": ("n_parameters", "parameters", "params", "model_size", "n"),
    "n_tokens": ("n_tokens", "tokens", "training_tokens", "d"),
    "train_flops": (
        *("train_flops", "flops", "flop", "training_flops", "training_flop"),
        *("compute", "c"),
    ),
    "loss": ("loss", "final_loss", "val_loss"),
    "flop_budget": ("flop_budget", "compute_budget", "budget"),
}
"""What each quantity may be called."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ScalingPoints:
    """Runs as numbers, one entry each.

    Attributes:
        n_parameters: N.
        n_tokens: D, tokens trained on.
        train_flops: C.
        loss: nats per token.
        flop_budget: the budget that each run was planned for; None where nothing says so.

    Raises:
        ValueError: the arrays differ in length, are empty, or hold what is not positive and finite.
    """

    n_parameters: Array
    n_tokens: Array
    train_flops: Array
    loss: Array
    flop_budget: Array | None = None

    def __post_init__(self) -> None:
        """Makes float64 of what was given, and refuses what no run can be."""
        for name in COLUMNS:
            if getattr(self, name) is not None:
                values = np.asarray(getattr(self, name), dtype=np.float64)
                object.__setattr__(self, name, values)
                _require_positive(name, values)
                if values.shape != self.n_parameters.shape:
                    given = f"{values.shape} and {self.n_parameters.shape}"
                    raise ValueError(f"{name} must be as long as n_parameters, got {given}")

    @classmethod
    def of_allocations(cls, n_parameters: Array, n_tokens: Array, loss: Array) -> Self:
        """Points whose FLOPs are 6ND."""
        n_parameters, n_tokens = np.asarray(n_parameters), np.asarray(n_tokens)
        return cls(
            n_parameters=n_parameters,
            n_tokens=n_tokens,
            train_flops=FLOPS_FACTOR * n_parameters * n_tokens,
            loss=loss,
        )

    def __len__(self) -> int:
        return len(self.loss)

    def take(self, places: npt.NDArray[Any]) -> Self:
        """The points at these places, or where a mask is true."""
        budget = None if self.flop_budget is None else self.flop_budget[places]
        return type(self)(
            n_parameters=self.n_parameters[places],
            n_tokens=self.n_tokens[places],
            train_flops=self.train_flops[places],
            loss=self.loss[places],
            flop_budget=budget,
        )

    @property
    def flops_factor(self) -> float:
        """C/(ND), the geometric mean; 6 but for what exact counts add or leave out."""
        return float(np.exp(np.mean(np.log(self._flops_factors))))

    @property
    def flops_factor_spread(self) -> float:
        """The largest C/(ND) over the smallest."""
        factors = self._flops_factors
        return float(factors.max() / factors.min())

    @property
    def _flops_factors(self) -> Array:
        factors: Array = self.train_flops / (self.n_parameters * self.n_tokens)
        return factors

    @property
    def budgets(self) -> Array:
        """The budget of each point: as planned, or the mean FLOPs of points within 25 %.

        Points in rising order of FLOPs belong together while each is less than 25 % above the
        one before.
        """
        if self.flop_budget is not None:
            return self.flop_budget
        logs = np.log(self.train_flops)
        order = np.argsort(logs, kind="stable")
        group = np.concatenate([[0], np.cumsum(np.diff(logs[order]) > _SAME_BUDGET)])
        means = np.bincount(group, logs[order]) / np.bincount(group)
        budgets = np.empty_like(logs)
        budgets[order] = np.exp(means[group])
        return budgets

    def by_budget(self) -> dict[float, Self]:
        """The points of each budget, the smallest first."""
        budgets = self.budgets
        return {float(b): self.take(budgets == b) for b in np.unique(budgets)}


def _require_positive(name: str, values: Array) -> None:
    if values.ndim != 1 or not len(values):
        raise ValueError(f"{name} must be a row of at least one number, got shape {values.shape}")
    bad = np.flatnonzero(~((values >= _SMALLEST) & (values <= _LARGEST)))
    if len(bad):
        raise ValueError(
            f"{name} must be finite and positive ({_SMALLEST:g} to {_LARGEST:g}), "
            f"got {values[bad[0]]} at place {bad[0]}"
        )


def read_points(path: str | os.PathLike[str]) -> ScalingPoints:
    """Reads a CSV or JSON file, told apart by the name's ending .json.

    Raises:
        FormatError: the file is neither, lacks a quantity, or a value is not a positive number.
        OSError: it cannot be read.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise FormatError(f"{path} must be a regular file of points")
    rows = _json_rows(path) if path.suffix == ".json" else _csv_rows(path)
    return _points_of_rows(path, rows)


def _csv_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The place of each row, as messages call it, and the texts by header."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file)
        try:
            header = next(reader, [])
            for cells in reader:
                place = f"line {reader.line_num}"
                if not any(cell.strip() for cell in cells):
                    continue
                if len(cells) != len(header):
                    raise FormatError(
                        f"{path}, {place} must have {len(header)} cells as the header, "
                        f"got {len(cells)}"
                    )
                # As a list, so that a name that stands twice is not lost.
                yield place, _renamed(path, zip(header, cells, strict=True))
        except UnicodeDecodeError as error:
            raise FormatError(f"{path} must be UTF-8: {error.reason}") from None
        except csv.Error as error:
            raise FormatError(f"{path}, line {reader.line_num} is not CSV: {error}") from None


def _json_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        entries = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is not JSON: {error}") from None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise FormatError(f"{path} must be a list of objects, one for each run")
    for number, entry in enumerate(entries):
        yield f"entry {number}", _renamed(path, entry.items())


def _renamed(path: Path, cells: Iterable[tuple[str, Any]]) -> Mapping[str, Any]:
    """The cells that mean something, by the quantity."""
    found: dict[str, Any] = {}
    for name, value in cells:
        plain = "_".join(name.strip().lower().replace("-", " ").split())
        quantity = next((q for q, names in COLUMNS.items() if plain in names), None)
        if quantity in found:
            raise FormatError(f"{path} must have one column for {quantity}, got two: {name!r}")
        if quantity is not None:
            found[quantity] = value
    return found


def _points_of_rows(path: Path, rows: Iterable[tuple[str, Mapping[str, Any]]]) -> ScalingPoints:
    columns: dict[str, list[float]] = {}
    n_rows = 0
    for n_rows, (place, cells) in enumerate(rows, 1):
        numbers = {name: _number(path, place, name, cell) for name, cell in cells.items()}
        if n_rows > MAX_POINTS:
            raise FormatError(f"{path} must hold at most {MAX_POINTS:,} points")
        _require_quantities(path, place, numbers)
        if n_rows > 1 and numbers.keys() != columns.keys():
            missing = sorted(columns.keys() ^ numbers.keys())[0]
            raise FormatError(f"{path}, {place}: {missing} must be in every entry or in none")
        for name, number in numbers.items():
            columns.setdefault(name, []).append(number)
    if not n_rows:
        raise FormatError(f"{path} must hold at least one point below a header, got none")
    try:
        return complete({name: np.array(values) for name, values in columns.items()})
    except ValueError as error:
        raise FormatError(f"{path}: {error}") from None


def _number(path: Path, place: str, name: str, cell: Any) -> float:
    """A cell as a number that a run can have."""
    try:
        number = math.nan if isinstance(cell, bool) else float(cell)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not _SMALLEST <= number <= _LARGEST:
        raise FormatError(f"{path}, {place}: {name} must be a positive number, got {cell!r:.80}")
    return number


def _require_quantities(path: Path, place: str, known: Mapping[str, Any]) -> None:
    sizes = {"n_parameters", "n_tokens", "train_flops"} & known.keys()
    has_flops = "train_flops" in sizes or "flop_budget" in known
    if "loss" in known and len(sizes - {"train_flops"}) + has_flops >= 2:
        return
    raise FormatError(
        f"{path}, {place} must have a loss and two of parameters, tokens and flops, "
        f"got {', '.join(known) or 'none of them'}\n"
        f"names: {'; '.join(', '.join(names) for names in COLUMNS.values())}"
    )


def complete(columns: Mapping[str, Array]) -> ScalingPoints:
    """The points of columns in which one of N, D and C may be missing: C = 6ND.

    Raises:
        ValueError: what comes out is not positive and finite.
    """
    known = dict(columns)
    if "train_flops" not in known and "flop_budget" in known:
        known["train_flops"] = known["flop_budget"]
    if "train_flops" not in known:
        known["train_flops"] = FLOPS_FACTOR * known["n_parameters"] * known["n_tokens"]
    for name, other in (("n_tokens", "n_parameters"), ("n_parameters", "n_tokens")):
        if name not in known:
            known[name] = known["train_flops"] / (FLOPS_FACTOR * known[other])
    return ScalingPoints(**known)


def join(parts: Sequence[ScalingPoints]) -> ScalingPoints:
    """The points of all parts in order; their budgets only where all have them."""
    names = [name for name in COLUMNS if all(getattr(p, name) is not None for p in parts)]
    return ScalingPoints(
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    )
