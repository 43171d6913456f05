"""The process that does tasks, one after the other, for the process that watches it."""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from rslm.data.pipeline.documents_pass import Ranges
from rslm.data.pipeline.marks import Mark, Task
from rslm.data.pipeline.plan import Plan, read_plan
from rslm.data.pipeline.pulse import Pulse
from rslm.data.pipeline.stages import run_task, scout_task


@dataclass(frozen=True, kw_only=True)
class Order:
    """A task to do, and how.

    Attributes:
        careful: documents to take one at a time.
        scout_from: only go through the documents from this number on, to find which end a worker.
    """

    task: Task
    attempt: str
    careful: Ranges = ()
    scout_from: int | None = None


@dataclass(frozen=True)
class Failure:
    """An exception that ended a task."""

    error: Exception
    trace: str


Answer = Mark | Failure | None
"""None where a task was only scouted."""


def main() -> None:
    """Does what orders come, until whoever sends them is gone."""
    orders, pulse_file, life_line = (int(number) for number in sys.argv[1:4])
    folder = Path(sys.argv[4])
    # A page that crashes its worker must not fill the disk with images of it.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Ctrl-C is for whoever sends orders; what Python does at SIGXCPU is what the kernel does.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_alone, args=(life_line,), daemon=True).start()
    connection: Connection[Answer, Order] = Connection(orders)
    plan = read_plan(folder)
    pulse = Pulse(pulse_file, plan.config.watchdog_seconds)
    while True:
        try:
            order = connection.recv()
        except EOFError:
            return
        connection.send(_answer(plan, order, pulse))


def _answer(plan: Plan, order: Order, pulse: Pulse) -> Answer:
    try:
        if order.scout_from is not None:
            first, careful = order.scout_from, order.careful
            scout_task(plan, order.task, first, pulse=pulse, careful=careful)
            return None
        return run_task(plan, order.task, order.attempt, pulse=pulse, careful=order.careful)
    except Exception as error:
        return Failure(_portable(error), traceback.format_exc())


def _portable(error: Exception) -> Exception:
    """The error as one that every process can unpickle."""
    if isinstance(error, OSError):
        return OSError(error.errno, error.strerror or str(error), error.filename)
    if isinstance(error, ValueError):
        return ValueError(str(error))
    if isinstance(error, ModuleNotFoundError):
        return ModuleNotFoundError(str(error), name=error.name)
    return MemoryError(str(error)) if isinstance(error, MemoryError) else RuntimeError(str(error))


def _leave_alone(life_line: int) -> None:
    """Ends this process and those that it started when the one that started it is gone.

    What holds the interpreter's lock for good is ended by the limit of processor time instead.
    """
    os.read(life_line, 1)
    os.killpg(0, signal.SIGKILL)
