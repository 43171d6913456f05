"""What a study is made of: runs that are planned, how they ended, and the file that says so."""

import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from rslm.config import Record
from rslm.errors import FormatError

Status = Literal["finished", "diverged", "failed", "pruned"]

STUDY_FILE = "study.json"
SETTLED = ("finished", "diverged", "pruned")
"""Ends that another call does not try to change; a run that failed is begun again."""

MAX_RUNS = 10_000
"""Runs that a study may have."""

_MAX_NAME_BYTES = 200
_KINDS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("name", "hash", "folder", "status", "message"), str),
    "labels": dict,
    "seconds": (int, float),
}


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """A run to be made.

    Attributes:
        name: readable, different from that of all others in the study, fit for a folder.
        options: a record of `TrainConfig`, complete but for `out`.
        labels: what the run differs in from others, by dotted option.
    """

    name: str
    options: Record
    labels: dict[str, Any]

    def __post_init__(self) -> None:
        fits = re.fullmatch(r"[^./\\\s\x00-\x1f][^/\\\x00-\x1f]*", self.name)
        if not fits or len(self.name.encode()) > _MAX_NAME_BYTES:
            raise ValueError(
                f"name must be fit for a folder's, of at most {_MAX_NAME_BYTES} bytes, "
                f"got {self.name!r}"
            )

    @cached_property
    def hash(self) -> str:
        """First 12 hex digits of the SHA-256 of the options as canonical JSON."""
        text = json.dumps(self.options, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def folder(self) -> str:
        """Name of its run folder."""
        return f"{self.name}-{self.hash}"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended.

    Attributes:
        run: what was planned.
        path: its run folder.
        status: "finished"; "diverged" where the loss did not stay finite; "pruned" where it was
            stopped on purpose; "failed" for anything else, which another call tries again.
        seconds: the run's own clock over all its parts.
        message: what it said of its end; empty where it finished.
    """

    run: PlannedRun
    path: Path
    status: Status
    seconds: float
    message: str = ""


def run_name(labels: Mapping[str, Any], among: Iterable[str] = ()) -> str:
    """A name for a run that differs in these options: the last parts of their names, and values.

    An option whose last part is that of another, in the labels or `among` others, is written out.

    >>> run_name({"model.ffn": "relu2", "seed": 1})
    'ffn=relu2,seed=1'
    """
    lasts = Counter(option.rpartition(".")[2] for option in {*labels, *among})
    parts = []
    for option, value in labels.items():
        last = option.rpartition(".")[2]
        parts.append(f"{last if lasts[last] == 1 else option}={shown(value)}")
    # What a file's name cannot hold, and what a shell would have to be told.
    return re.sub(r"[^\w.,=+-]+", "_", ",".join(parts))


def shown(value: Any) -> str:
    """A value of an option as text; six digits tell the values of a study apart."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def read_study(folder: Path) -> Record:
    """What `study.json` of a folder says; nothing where there is none.

    Raises:
        FormatError: it is damaged.
    """
    path = folder / STUDY_FILE
    try:
        study = json.loads(path.read_bytes()) if path.exists() else {}
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is not JSON: {error}") from None
    runs = study.get("runs", []) if isinstance(study, dict) else None
    if not isinstance(runs, list) or not all(isinstance(run, dict) for run in runs):
        raise FormatError(f"{path} must be an object with a list of runs")
    for run in runs:
        for key, kinds in _KINDS.items():
            if key in run and not (isinstance(run[key], kinds) and _is_finite(run[key])):
                raise FormatError(f"{path}: {key} of a run cannot be {run[key]!r:.80}")
        budgets = run.get("labels", {}).get("flop_budgets", [])
        if not isinstance(budgets, list) or not all(map(is_number, budgets)):
            raise FormatError(f"{path}: flop_budgets must be numbers, got {budgets!r:.80}")
    return dict(study)


def is_number(value: Any) -> bool:
    """Whether a value of a file is a finite number, neither true nor false."""
    return isinstance(value, int | float) and not isinstance(value, bool) and _is_finite(value)


def _is_finite(value: Any) -> bool:
    """Whether a value can be counted with, if it is a number at all."""
    # A whole number of JSON may be larger than any float.
    return not isinstance(value, int | float) or abs(value) <= sys.float_info.max
