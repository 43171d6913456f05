"""The books of a budgeted training service: what was asked for, reserved, spent and predicted.

A run reserves the FLOPs of all its steps before it may begin, and is charged those of the steps
that it made once it has ended: a run that diverges costs what it took. What is reserved or charged
is never more than the budget. Everything is in `ledger.json` before an answer is given, so that a
service that was killed goes on where it stood.
"""

import json
import math
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rslm.architecture import train_flops_per_token
from rslm.config import Record, from_record, merge_records, to_record
from rslm.errors import FormatError
from rslm.experiment.study import Outcome, PlannedRun, is_number
from rslm.files import write_atomically
from rslm.memory_estimate import estimate_memory
from rslm.plan import FREE_SHARES, machine_memory_bytes
from rslm.run_folder import Row, flatten
from rslm.runs import read_run
from rslm.train_config import TrainConfig

LEDGER_FILE = "ledger.json"
OPTIONS = ("model", "optimizer", "n_steps", "batch_size", "micro_batch_size", "seed")
"""What a run may ask for; all else is the service's."""

_FIXED = ("model.vocab_size", "model.context_length")
_MAX_LAYERS = 1024
_MAX_RUNS = 10_000
_MAX_TOKENS = 2**63
_N_LOSSES = 256
_PREDICTION = ("flop_budget", "n_parameters", "n_tokens", "loss")


class RepeatedError(ValueError):
    """What was sent is there already; `id` is that of the run, or "prediction"."""

    def __init__(self, message: str, id: str) -> None:
        super().__init__(message)
        self.id = id


class Ledger:
    """The books in a folder; may be used from several threads.

    Args:
        folder: made where it is missing.
        base: options that requests are laid over; the vocabulary is known.
        flop_budget: FLOPs of all runs together; that of the books unless given.

    Raises:
        ValueError: there is no budget, or the books are of another budget or base.
        FormatError: the books are damaged.
    """

    def __init__(self, folder: Path, base: TrainConfig, flop_budget: float | None = None) -> None:
        self._path, self._base = folder / LEDGER_FILE, to_record(base)
        del self._base["out"]
        self._lock = threading.Lock()
        self._new: list[PlannedRun] = []
        books = self._read()
        budget = books.get("flop_budget") if flop_budget is None else flop_budget
        if not isinstance(budget, int | float) or not 0 < budget < math.inf:
            raise ValueError(f"budget must be a positive number of FLOPs, got {budget}")
        if books and (books["flop_budget"], books["base"]) != (budget, self._base):
            what = "budget" if books["flop_budget"] != budget else "options"
            raise ValueError(f"{what} must stay those with which {self._path} was begun")
        self.flop_budget = float(budget)
        self._runs: dict[str, Row] = {run["id"]: run for run in books.get("runs", [])}
        self._prediction: Row | None = books.get("prediction")
        self._new = [self._planned(run) for run in self._runs.values() if _is_open(run)]
        folder.mkdir(parents=True, exist_ok=True)
        self._write()

    def _read(self) -> Record:
        try:
            books = json.loads(self._path.read_bytes()) if self._path.exists() else {}
            runs = books.get("runs", [])
            for run in runs:
                self._check(run)
            if len({run["id"] for run in runs}) < len(runs):
                raise ValueError("ids must differ")
            if books and not (is_number(books["flop_budget"]) and isinstance(books["base"], dict)):
                raise ValueError("flop_budget must be a number, and base a table")
            if (prediction := books.get("prediction")) is not None:
                _check_prediction(prediction)
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise FormatError(f"{self._path} must be the books of a service: {error!r}") from None
        return dict(books)

    def _check(self, run: Row) -> None:
        for key in ("reserved_flops", "charged_flops"):
            if not is_number(run[key]) or run[key] < 0:
                raise ValueError(f"{key} must be a number of FLOPs, got {run[key]!r:.80}")
        if run["status"] not in ("waiting", "finished", "diverged", "failed", "pruned"):
            raise ValueError(f"status must be one of a run, got {run['status']!r:.80}")
        if not isinstance(run["options"], dict) or not isinstance(run["labels"], dict):
            raise ValueError("options and labels must be tables")
        planned = self._planned(run)
        if (run["id"], run["folder"]) != (planned.hash, planned.folder):
            raise ValueError(f"id and folder must be {planned.hash} and {planned.folder}")
        # Else no answer could hold it.
        json.dumps(_shown(run), allow_nan=False)

    def _write(self) -> None:
        books = {
            "flop_budget": self.flop_budget,
            "base": self._base,
            "runs": list(self._runs.values()),
            "prediction": self._prediction,
        }
        write_atomically(self._path, json.dumps(books, indent=1).encode())

    def _planned(self, run: Row) -> PlannedRun:
        return PlannedRun(name=run["name"], options=run["options"], labels=run["labels"])

    def take_new(self) -> list[PlannedRun]:
        """Runs that have been asked for since the last call; at first those still to be ended."""
        with self._lock:
            taken, self._new = self._new, []
        return taken

    def submit(self, options: Mapping[str, Any]) -> Row:
        """Reserves the FLOPs of a run and queues it.

        Args:
            options: nested, of those in `OPTIONS`; for the rest the base holds.

        Raises:
            RepeatedError: a run has the same options.
            ValueError: an option is unknown, fixed or wrong, or the budget or the memory does not
                allow the run.
        """
        config, record = self._config_of(options)
        n_tokens = config.n_steps * config.batch_size * config.model.context_length
        reserved = min(n_tokens, _MAX_TOKENS) * train_flops_per_token(config.model)
        with self._lock:
            name = f"run{len(self._runs) + 1:04d}"
            planned = PlannedRun(name=name, options=record, labels=flatten(options))
            if planned.hash in self._runs:
                raise RepeatedError(f"run {planned.hash} has the same options", planned.hash)
            left = self.flop_budget - self._taken()
            if reserved > left or len(self._runs) >= _MAX_RUNS:
                raise ValueError(
                    f"a run must be within what is left of the budget, {left:.6g} FLOPs, "
                    f"got {reserved:.6g}"
                )
            run: Row = {
                "id": planned.hash,
                "name": planned.name,
                "folder": planned.folder,
                "labels": planned.labels,
                "options": record,
                "reserved_flops": reserved,
                "charged_flops": 0.0,
                "status": "waiting",
            }
            self._runs[planned.hash] = run
            self._write()
            self._new.append(planned)
            return dict(run)

    def _config_of(self, options: Mapping[str, Any]) -> tuple[TrainConfig, Record]:
        """The run's config, and the record of it without a folder."""
        for name in flatten(options):
            if name.partition(".")[0] not in OPTIONS or name in _FIXED:
                raise ValueError(
                    f"options must be of {', '.join(OPTIONS)} (not {', '.join(_FIXED)}), got {name}"
                )
        # Before anything is counted, which takes time for each layer.
        n_layers = flatten(options).get("model.n_layers")
        if isinstance(n_layers, int) and n_layers > _MAX_LAYERS:
            raise ValueError(f"model.n_layers must be at most {_MAX_LAYERS}, got {n_layers}")
        merged = merge_records(self._base, options) | {"out": str(self._path.parent)}
        config = from_record(TrainConfig, merged)
        peak = estimate_memory(config, device="cpu").peak
        usable = (1 - FREE_SHARES["cpu"]) * machine_memory_bytes()
        if peak > usable:
            raise ValueError(f"a run must fit into {usable:.3g} bytes of memory, got {peak:.3g}")
        record = to_record(config)
        del record["out"]
        return config, record

    def _taken(self) -> float:
        return math.fsum(
            run["reserved_flops"] if _is_open(run) else run["charged_flops"]
            for run in self._runs.values()
        )

    def settle(self, outcome: Outcome) -> None:
        """Charges a run that has ended with what it took, and frees the rest."""
        begun = (outcome.path / "config.toml").exists()
        done = read_run(outcome.path) if begun else None
        spent = float((done.last("train_flops") if done else None) or 0.0)
        with self._lock:
            run = self._runs[outcome.run.hash]
            run["status"], run["message"] = outcome.status, outcome.message
            run["charged_flops"] = min(spent, run["reserved_flops"])
            for name in ("loss", "val_loss", "val_bits_per_byte"):
                run[name] = done.last(name) if done else None
            self._write()

    def budget(self) -> Row:
        """FLOPs in all, charged, reserved by runs that have not ended, and left."""
        with self._lock:
            charged = math.fsum(r["charged_flops"] for r in self._runs.values() if not _is_open(r))
            taken = self._taken()
        return {
            "flop_budget": self.flop_budget,
            "charged_flops": charged,
            "reserved_flops": taken - charged,
            "left_flops": self.flop_budget - taken,
        }

    def runs(self) -> list[Row]:
        """All runs in the order in which they were asked for, without their curves."""
        with self._lock:
            return [_shown(run) for run in self._runs.values()]

    def run(self, id: str) -> Row:
        """A run with its losses so far.

        Raises:
            KeyError: there is none of this id.
        """
        with self._lock:
            found = _shown(self._runs[id])
            folder = self._path.parent / self._runs[id]["folder"]
        if not (folder / "config.toml").exists():
            return found | {"step": 0, "losses": [], "validations": []}
        read = read_run(folder)
        losses = [(r["n_tokens"], r["loss"]) for r in read.rows if r.get("loss") is not None]
        every = max(1, len(losses) // _N_LOSSES)
        validated = [(r["n_tokens"], r["val_loss"]) for r in read.rows if r.get("val_loss")]
        return found | {"step": read.step, "losses": losses[::every], "validations": validated}

    def predict(self, prediction: Mapping[str, Any]) -> Row:
        """Takes the one prediction: how a larger budget is best spent, and the loss it gives.

        Raises:
            RepeatedError: there is one already.
            ValueError: a number is missing, or none.
        """
        _check_prediction(prediction)
        with self._lock:
            if self._prediction is not None:
                raise RepeatedError("the prediction has been made", "prediction")
            self._prediction = {name: float(prediction[name]) for name in _PREDICTION}
            self._write()
            return dict(self._prediction)


def _check_prediction(prediction: Mapping[str, Any]) -> None:
    if set(prediction) != set(_PREDICTION):
        raise ValueError(f"a prediction must be {', '.join(_PREDICTION)}, got {[*prediction]}")
    for name, value in prediction.items():
        if not is_number(value) or not 0 < value <= 1e60:
            raise ValueError(f"{name} must be a positive number, got {value!r:.80}")


def _is_open(run: Row) -> bool:
    return bool(run["status"] == "waiting")


def _shown(run: Row) -> Row:
    """A run without what only the service needs."""
    return {name: value for name, value in run.items() if name not in ("options", "folder")}
