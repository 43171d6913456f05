"""A queue of training runs: each a process, a few at once, to be gone on with after any end.

A study is a folder. Each of its runs is a plain run folder `<name>-<hash>` in it, `study.json`
says how each ended, and `queue/` holds what each was started with and what it printed. Ctrl-C and
SIGTERM are passed on, so that every run saves where it stands. When this process is killed the
runs live on; the next call finds them by the lock on their folders and waits for them.
"""

import contextlib
import json
import math
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rslm.config import Record, from_record, to_toml
from rslm.experiment.child import Child, is_held
from rslm.experiment.queue_display import QueueDisplay
from rslm.experiment.study import (
    SETTLED,
    STUDY_FILE,
    Outcome,
    PlannedRun,
    Status,
    read_study,
    run_name,
)
from rslm.files import locked, write_atomically
from rslm.process import EXIT_TERMINATED, StopSignals, n_cpus
from rslm.runs import read_run
from rslm.train_config import TrainConfig

__all__ = ["Outcome", "PlannedRun", "Queue", "run_all", "run_name"]

_POLL_SECONDS = 0.1
_DEVICES = "CUDA_VISIBLE_DEVICES"


def run_all(
    planned: Sequence[PlannedRun],
    folder: Path,
    *,
    n_processes: int = 1,
    on_change: Callable[[Outcome], None] | None = None,
    study: Mapping[str, Any] | None = None,
) -> list[Outcome]:
    """Makes all runs, `n_processes` at once, and returns how each ended, in the order given.

    What an earlier call finished is not done again, what it began is gone on with, and a run
    that diverged stays so.

    Args:
        planned: the runs; no two of one hash or one name.
        folder: the study's.
        n_processes: runs at once; they share the CPU's threads evenly, and the devices that
            CUDA_VISIBLE_DEVICES lists.
        on_change: called with each outcome as soon as it is known, earlier ones first.
        study: what `study.json` says besides its `runs`, `kind` among it; as before unless given.

    Raises:
        ValueError: two runs are alike, or `n_processes` is below 1.
        BlockingIOError: another process works on the study.
        KeyboardInterrupt: Ctrl-C; all runs have saved where they stood.
        SystemExit: SIGTERM, likewise, with code 75.
    """
    outcomes: dict[str, Outcome] = {}
    with Queue(folder, planned, n_processes=n_processes, study=study) as queue:
        while queue.has_work:
            for outcome in queue.wait():
                outcomes[outcome.run.hash] = outcome
                if on_change is not None:
                    on_change(outcome)
    return [outcomes[run.hash] for run in planned]


class Queue:
    """The runs of a study, worked on inside the block; the study's folder is locked meanwhile.

    Args:
        folder: made where it is missing.
        planned: the runs to begin with.
        n_processes: runs at once.
        study: what `study.json` says besides its `runs`; as before unless given.

    Raises:
        ValueError: two runs are alike, `n_processes` is below 1, or the folder is that of a run or
            of a study of another kind.
        FormatError: the `study.json` that is there is damaged.
        BlockingIOError: another process works on the study.
    """

    def __init__(
        self,
        folder: Path,
        planned: Sequence[PlannedRun] = (),
        *,
        n_processes: int = 1,
        study: Mapping[str, Any] | None = None,
    ) -> None:
        if n_processes < 1:
            raise ValueError(f"n_processes must be at least 1, got {n_processes}")
        self.folder, self.n_processes = folder, n_processes
        if (folder / "config.toml").exists():
            raise ValueError(f"folder of a study must not be that of a run, got {folder}")
        before = read_study(folder)
        kind = (study or before).get("kind")
        if before.get("kind", kind) != kind:
            raise ValueError(
                f"{folder} holds a study of kind {before['kind']}, not {kind}; name another folder"
            )
        self._before = before.get("runs", [])
        self._known = {entry.get("hash"): entry for entry in self._before}
        rest = before if study is None else study
        self._study = {key: value for key, value in rest.items() if key != "runs"}
        self._entries: dict[str, Record] = {}
        self._ended: list[Outcome] = []
        self._waiting: list[PlannedRun] = []
        self._running: dict[str, Child] = {}
        self._stack = contextlib.ExitStack()
        for run in planned:
            self._add(run)

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            stack.enter_context(locked(self.folder, "folder of a study"))
            (self.folder / "queue").mkdir(exist_ok=True)
            self._stop = stack.enter_context(StopSignals())
            self._display = stack.enter_context(QueueDisplay(self.folder))
            self._stack = stack.pop_all()
        self._write()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._stack:
            self._stop_all()
            self._display.show(list(self._entries.values()), is_last=True)

    @property
    def has_work(self) -> bool:
        """Whether an outcome is still to come."""
        return bool(self._ended or self._waiting or self._running)

    def add(self, run: PlannedRun) -> None:
        """Queues one more run.

        Raises:
            ValueError: there is one of the same name or options.
        """
        self._add(run)
        self._write()

    def _add(self, run: PlannedRun) -> None:
        for entry in self._entries.values():
            if run.hash == entry["hash"] or run.name == entry["name"]:
                raise ValueError(f"runs must differ, got {run.name} and {entry['name']}")
        known = self._known.get(run.hash, {})
        self._entries[run.hash] = {
            "name": run.name,
            "hash": run.hash,
            "folder": run.folder,
            "labels": run.labels,
            "status": "waiting",
            "seconds": known.get("seconds", 0.0),
        }
        settled = known.get("status") in SETTLED and known.get("folder") == run.folder
        # A folder that was taken away is a run to be made anew.
        if settled and (self.folder / run.folder / "config.toml").exists():
            self._end(run, known["status"], known.get("message", ""))
        else:
            self._waiting.append(run)

    @property
    def n_open(self) -> int:
        """Runs that are under way or wait for their turn."""
        return len(self._waiting) + len(self._running)

    def wait(self, seconds: float = math.inf) -> list[Outcome]:
        """Works until a further run has ended, or for so long; returns those that have.

        Nothing is waited for where no work is left.
        """
        deadline = time.monotonic() + seconds
        while not self._ended and self.has_work:
            self.work()
            if self._ended or time.monotonic() > deadline:
                break
            time.sleep(_POLL_SECONDS)
        ended, self._ended = self._ended, []
        return ended

    def work(self) -> None:
        """Looks after the processes once: notes which have ended, and starts the next."""
        if self._stop.requested():
            raise (
                KeyboardInterrupt
                if self._stop.reason == "interrupted"
                else SystemExit(EXIT_TERMINATED)
            )
        changed = self._collect()
        while self._waiting and len(self._running) < self.n_processes:
            self._start(self._waiting.pop(0))
            changed = True
        if changed:
            self._write()
        self._display.show(list(self._entries.values()))

    def running(self) -> list[PlannedRun]:
        """The runs that are under way."""
        return [child.run for child in self._running.values()]

    def prune(self, run: PlannedRun, message: str) -> None:
        """Tells a run that is under way to stop; it ends as "pruned", where it does not finish."""
        child = self._running[run.hash]
        if child.pruned is None:
            child.pruned = message
            child.send(signal.SIGTERM)

    def _start(self, run: PlannedRun) -> None:
        path = self.folder / run.folder
        options = self.folder / "queue" / f"{run.folder}.toml"
        config = from_record(TrainConfig, run.options | {"out": str(path)})
        write_atomically(options, to_toml(config).encode())
        child = Child(run, path, options, options.with_suffix(".log"))
        self._display.expect(run.folder, config)
        if not is_held(path):
            environment = self._environment()
            child.device = environment.get(_DEVICES)
            child.start(environment)
        self._running[run.hash] = child
        self._entries[run.hash] |= {"status": "running", "pid": child.pid}

    def _environment(self) -> dict[str, str]:
        """Threads for a share of the CPUs, and one of the devices, where several would take all."""
        environment = dict(os.environ)
        if self.n_processes > 1:
            n_threads = max(1, n_cpus() // self.n_processes)
            environment.setdefault("OMP_NUM_THREADS", str(n_threads))
            if "," in (devices := environment.get(_DEVICES, "")):
                taken = Counter(child.device for child in self._running.values())
                environment[_DEVICES] = min(devices.split(","), key=taken.__getitem__)
        return environment

    def _collect(self) -> bool:
        """Takes out the runs that have ended; whether there were any."""
        ended = [child for child in self._running.values() if child.has_ended()]
        for child in ended:
            del self._running[child.run.hash]
            if child.process is None or (child.process.returncode and is_held(child.path)):
                # The process of an earlier call held the folder. How it ended is not known; the
                # next start finds out, at once where the run is finished.
                self._waiting.insert(0, child.run)
            else:
                self._end(child.run, *child.outcome())
        return bool(ended)

    def _end(self, run: PlannedRun, status: Status, message: str) -> None:
        path = self.folder / run.folder
        begun = (path / "config.toml").exists()
        seconds = float((read_run(path).last("elapsed_seconds") if begun else None) or 0.0)
        entry = self._entries[run.hash] | {"status": status, "seconds": seconds}
        self._entries[run.hash] = entry | ({"message": message} if message else {})
        self._entries[run.hash].pop("pid", None)
        self._ended.append(
            Outcome(run=run, path=path, status=status, seconds=seconds, message=message)
        )

    def _stop_all(self) -> None:
        """Has what still runs save and end, at once when a second signal comes."""
        children = list(self._running.values())
        for child in children:
            child.send(signal.SIGTERM)
        try:
            for child in children:
                child.wait()
        except BaseException:
            for child in children:
                child.send(signal.SIGKILL)
            raise
        finally:
            for child in children:
                self._entries[child.run.hash] |= {"status": "stopped"}
                self._entries[child.run.hash].pop("pid", None)
            self._write()

    def _write(self) -> None:
        # What was made by another plan is still there, and a report is to show it.
        others = [entry for entry in self._before if entry.get("hash") not in self._entries]
        study = self._study | {"runs": others + list(self._entries.values())}
        write_atomically(self.folder / STUDY_FILE, json.dumps(study, indent=1).encode())
