"""A worker process under watch: what a page does to it costs the page, not the task.

A worker that dies at several documents does them again one at a time; one that dies at a single
document leaves it out from then on, which `skip.json` beside the task's files keeps. Then the task
begins anew. That of the first stage does so only once all such documents in it are known, for which
the rest is judged, from one to the next, and nothing written: so it takes no more than twice its
time, however many they are, but for reading.

A document is blamed at once for what only it can have done: a crash, or more time or memory than is
allowed. SIGKILL may come from anybody, and is blamed on it the third time.

Reading is limited by the clock alone: so long without a document and without a byte of input it
may take. What stands still, or crashes, at the same document the third time costs the rest of its
file, for nothing behind can be found without it.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

from rslm.data.pipeline.documents_pass import read_skip
from rslm.data.pipeline.marks import Mark, Task
from rslm.data.pipeline.plan import SKIP, Plan
from rslm.data.pipeline.pulse import N_BYTES, READ, RESTING, Beat, begin_resting, read_beat
from rslm.data.pipeline.worker import Answer, Failure, Order
from rslm.files import write_atomically

MAX_DEATHS = 3
"""Deaths of workers at the same place that are taken for chance, less one."""
_POLL_SECONDS = 0.1
# By the clock, for what waits without taking processor time; as a multiple of the watchdog's.
_SILENCE = 10
_PROGRAM = "from rslm.data.pipeline.worker import main; main()"
_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class StoppedError(Exception):
    """The pipeline is to stop."""


@dataclass(frozen=True)
class Death:
    """How a worker ended: at which documents, why, and whether nobody else can have done it."""

    beat: Beat
    cause: str
    is_certain: bool
    code: int


class Worker:
    """A worker process, started when it is first needed and again when it has died.

    Args:
        folder: of the pipeline.
        cwd: where relative paths of the config begin.
    """

    def __init__(self, folder: Path, cwd: str) -> None:
        self._folder, self._cwd = folder, cwd
        self._process: subprocess.Popen[bytes] | None = None
        self._stack = contextlib.ExitStack()

    def close(self) -> None:
        """Ends the process at once; what it was writing is beside its place, and not in it."""
        if self._process is not None:
            _kill(self._process)
            self._process = None
        self._stack.close()

    def do(
        self, order: Order, *, silence: float, max_bytes: int, is_stopped: Callable[[], bool]
    ) -> Answer | Death:
        """Has the process do a task, and watches it until it answers or dies.

        Raises:
            StoppedError: `is_stopped` says so; the process is ended.
        """
        if self._process is None:
            self._start()
        assert self._process is not None
        with contextlib.suppress(BrokenPipeError):
            self._orders.send(order)
        cause, last_seen, since = "", (-1, 0), time.monotonic()
        while True:
            if is_stopped():
                self.close()
                raise StoppedError
            with contextlib.suppress(EOFError, ConnectionResetError):
                if self._orders.poll(_POLL_SECONDS):
                    answer: Answer = self._orders.recv()
                    return answer
            if (code := self._process.poll()) is not None:
                return self._autopsy(code, cause)
            beat = read_beat(self._pulse)
            seen = beat.count, _bytes_read(self._process.pid) if beat.step == READ else 0
            if seen != last_seen:
                last_seen, since = seen, time.monotonic()
            if beat.first != RESTING and time.monotonic() - since > silence:
                cause = "timeout"
            elif _resident_bytes(self._process.pid) > max_bytes:
                cause = "memory"
            if cause:
                _kill(self._process)

    def _start(self) -> None:
        ours, theirs = Pipe()
        with contextlib.ExitStack() as stack:
            stack.callback(ours.close)
            pulse = stack.enter_context(tempfile.TemporaryFile())
            pulse.truncate(N_BYTES)
            self._pulse = stack.enter_context(mmap.mmap(pulse.fileno(), N_BYTES))
            begin_resting(self._pulse)
            # Nothing is ever written: it is read to its end when this process is gone.
            life_line, held = os.pipe()
            stack.callback(os.close, held)
            log = stack.enter_context((self._folder / "workers.log").open("ab"))
            handed = (theirs.fileno(), pulse.fileno(), life_line)
            command = [sys.executable, "-c", _PROGRAM]
            self._process = subprocess.Popen(
                [*command, *map(str, handed), str(self._folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._cwd,
                pass_fds=handed,
                # Of its own, so that Ctrl-C at the terminal reaches it through us alone.
                process_group=0,
            )
            theirs.close()
            os.close(life_line)
            self._stack = stack.pop_all()
        self._orders: Connection[Order, Any] = ours

    def _autopsy(self, code: int, cause: str) -> Death:
        beat = read_beat(self._pulse)
        self.close()
        if code == -signal.SIGXCPU:
            cause = "timeout"
        return Death(beat, cause or "crash", bool(cause) or -code not in _OUTSIDE, code)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Ends a worker and what it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _bytes_read(pid: int) -> int:
    """What a process has read so far; where the system does not say, a new number each time."""
    try:
        line = Path(f"/proc/{pid}/io").read_text().partition("\n")[0]
        return int(line.removeprefix("rchar:"))
    except (OSError, ValueError):
        return time.monotonic_ns()


def _resident_bytes(pid: int) -> int:
    """Memory of a process, pages of mapped files included; 0 where the system does not say."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def do_task(
    plan: Plan, task: Task, worker: Worker, is_stopped: Callable[[], bool] = lambda: False
) -> Mark:
    """Has a worker do a task, past the documents that it dies of.

    Raises:
        StoppedError: `is_stopped` says so.
        ConnectionError: the worker dies again and again, and it is not for a document.
        OSError, ValueError: as `run_task`.
    """
    config = plan.config
    careful: list[tuple[int, int]] = []
    deaths: Counter[tuple[int, int, bool]] = Counter()
    scout_from: int | None = None
    while True:
        attempt = uuid.uuid4().hex[:12]
        try:
            outcome = worker.do(
                Order(task=task, attempt=attempt, careful=tuple(careful), scout_from=scout_from),
                silence=_SILENCE * config.watchdog_seconds,
                max_bytes=config.max_worker_bytes,
                is_stopped=is_stopped,
            )
        finally:
            remove_beside(plan, task.stage, attempt)
        if isinstance(outcome, Mark):
            return outcome
        if isinstance(outcome, Failure):
            raise outcome.error from RuntimeError(outcome.trace)
        if outcome is None:
            scout_from = None
            continue
        first, last, is_reading = outcome.beat.first, outcome.beat.last, outcome.beat.step == READ
        deaths[first, last, is_reading] += 1
        is_last = deaths[first, last, is_reading] >= MAX_DEATHS
        if is_last and (first == RESTING or is_reading) and not _is_of_reading(outcome):
            raise ConnectionError(_why(plan, task, outcome))
        if first < last:
            careful.append((first, last))
        elif first != RESTING and (is_last or (outcome.is_certain and not is_reading)):
            step = outcome.beat.step.partition(".")[0]
            _add_skip(plan, task, first, f"{step}_{outcome.cause}")
        if task.stage == "filter" and first != RESTING:
            scout_from = first


def _is_of_reading(death: Death) -> bool:
    """Whether reading a file ended the worker: memory is that of models and all else, too."""
    return death.beat.step == READ and death.is_certain and death.cause != "memory"


def _add_skip(plan: Plan, task: Task, number: int, reason: str) -> None:
    path = plan.path(task.stage, task.index, SKIP)
    hash = plan.task_hash(task.stage, task.index)
    skip = read_skip(path, hash) | {number: reason}
    record = {"hash": hash, "skip": {str(key): skip[key] for key in sorted(skip)}}
    write_atomically(path, json.dumps(record, indent=1).encode())


def remove_beside(plan: Plan, stage: str, attempt: str = "") -> None:
    """Removes what an attempt that did not end has left; by default what all have."""
    for path in (plan.folder / stage).glob(f"*.tmp.{attempt}*"):
        path.unlink(missing_ok=True)


def _why(plan: Plan, task: Task, death: Death) -> str:
    what = f"task {task.index} of {task.stage} ended its worker {MAX_DEATHS} times"
    if death.cause == "memory":
        limit = plan.config.max_worker_bytes
        return f"{what}: it takes more than max_worker_bytes, {limit}"
    how = f"signal {-death.code}" if death.code < 0 else f"exit code {death.code}"
    return f"{what} ({how}, see {plan.folder / 'workers.log'})"
