"""Processes that compare formulas, each killed where it does not answer in time.

The deadline is the parent's, by the wall clock, and no signal is used: it holds on any thread,
and in whatever loop the worker hangs. What a worker may have of memory is limited there.
"""

import contextlib
import importlib.util
import os
import queue
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Iterator
from typing import Any

from rslm.evaluate.arithmetic import Node
from rslm.evaluate.equality import Outcome
from rslm.evaluate.symbolic import receive, send, to_json

# -P: no module of the folder that the program happens to run in is taken for one of ours.
COMMAND = [sys.executable, "-P", "-m", "rslm.evaluate.symbolic"]
MEMORY_BYTES = 1 << 30
_START_SECONDS = 120.0
_ANSWERS: dict[Any, Outcome] = {True: "right", False: "wrong"}


class Workers:
    """Workers that are started when they are first needed, and started anew after a kill.

    May be used by several threads at once; each waits for a worker that is idle.

    Attributes:
        counts: of "timeout" and "crash", and of "retry", a crash that was tried once more.

    Args:
        n_workers: processes at most.
        deadline_seconds: for one comparison, of the wall clock.
        memory_bytes: of address space for each.

    Raises:
        ValueError: SymPy is not installed, or there would be no worker.
    """

    def __init__(
        self,
        n_workers: int = 1,
        *,
        deadline_seconds: float = 5.0,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        if importlib.util.find_spec("sympy") is None:
            raise ValueError(
                "equality course needs sympy, which is not installed: pip install 'rslm[post]'"
            )
        if n_workers < 1:
            raise ValueError(f"n_workers must be at least 1, got {n_workers}")
        self.counts: Counter[str] = Counter()
        self._deadline, self._counting = deadline_seconds, threading.Lock()
        arguments = [f"{memory_bytes}", f"{int(deadline_seconds) + 1}"]
        self._workers = [_Worker(arguments) for _ in range(n_workers)]
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)
        # Also at the end of the program, and where nobody closes it.
        self._finalizer = weakref.finalize(self, _stop_all, self._workers)

    def close(self) -> None:
        """Ends the processes; a later comparison starts them again."""
        _stop_all(self._workers)

    def equal(self, left: Node, right: Node) -> Outcome:
        """Whether two formulas are equal for all real values of their names.

        A worker that dies is no answer: the comparison is tried once more, by a new one.
        """
        request = {"left": to_json(left), "right": to_json(right)}
        with self._worker() as worker:
            outcome = worker.ask(request, self._deadline)
            if outcome == "crash":
                self._count("retry")
                outcome = worker.ask(request, self._deadline)
        if outcome in ("timeout", "crash"):
            self._count(outcome)
        return outcome

    @contextlib.contextmanager
    def _worker(self) -> Iterator["_Worker"]:
        worker = self._idle.get()
        try:
            yield worker
        except BaseException:  # Its answer may still be on the way.
            worker.stop()
            raise
        finally:
            self._idle.put(worker)

    def _count(self, what: str) -> None:
        with self._counting:
            self.counts[what] += 1


class _Worker:
    """One process and the socket to it; there is none before the first question."""

    def __init__(self, arguments: list[str]) -> None:
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None

    def ask(self, request: Any, seconds: float) -> Outcome:
        """The outcome; the process is gone after one that is no answer."""
        try:
            connection = self._connection or self._start()
            reply = _exchange(connection, request, seconds)
            return _ANSWERS[reply["equal"]]
        except TimeoutError:
            outcome: Outcome = "timeout"
        except (EOFError, OSError, ValueError, TypeError, KeyError):
            outcome = "crash"
        self.stop()
        return outcome

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        # Threads of a linear algebra library would take address space, and have nothing to do.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        with theirs:
            self._connection = ours
            self._process = subprocess.Popen(
                [*COMMAND, *self._arguments],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=environment,
                # Ctrl-C is the parent's affair.
                start_new_session=True,
            )
        # Loading SymPy takes longer than most answers: no question's time is spent on it.
        if _exchange(ours, None, _START_SECONDS) != {"ready": True}:
            raise ValueError("a worker must begin by saying that it is ready")
        return ours

    def stop(self) -> None:
        """Kills the process, if there is one, and waits for its end."""
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._connection = self._process = None


def _exchange(connection: socket.socket, request: Any, seconds: float) -> Any:
    """Sends a message, if there is one, and reads one, both before the deadline.

    Raises:
        TimeoutError: it has passed.
    """
    deadline = time.monotonic() + seconds
    if request is not None:
        send(connection, request, deadline)
    return receive(connection, deadline)


def _stop_all(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.stop()
