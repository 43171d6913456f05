"""What a worker is at, told to whoever watches it; and its end where a step takes too long.

The kernel itself ends the worker once it has taken the allowed processor time since its last
beat. That is the same on a busy machine and an idle one, needs nobody who watches, and stops code
that never returns to the interpreter.
"""

from __future__ import annotations

import math
import mmap
import resource
import struct
import time
from dataclasses import dataclass

_FORMAT = struct.Struct("<qqq32s")
N_BYTES = _FORMAT.size
RESTING = -1
READ = "read"
"""The step that makes the next document of the inputs."""


@dataclass(frozen=True)
class Beat:
    """The documents under way, by their numbers in the task, and the step that has them."""

    count: int
    first: int
    last: int
    step: str


class Pulse:
    """The worker's side: says what it is at.

    Args:
        descriptor: of a file of `N_BYTES`, which whoever watches has mapped, too; None where
            nobody watches, and nothing is limited.
        seconds: processor time that a step may take for the documents it is given.
    """

    def __init__(self, descriptor: int | None = None, seconds: float = math.inf) -> None:
        self._memory = None if descriptor is None else mmap.mmap(descriptor, N_BYTES)
        self._seconds, self._count = seconds, 0
        self._hard = resource.getrlimit(resource.RLIMIT_CPU)[1]

    def beat(self, first: int, last: int, step: str) -> None:
        """Begins a step of the documents from one to another."""
        if self._memory is not None:
            # The kernel counts whole seconds.
            self._set_limit(math.ceil(time.process_time() + self._seconds))
            self._write(self._memory, first, last, step)

    def read(self, number: int) -> None:
        """Begins reading the document of that number, while no step is under way."""
        if self._memory is not None:
            self._write(self._memory, number, number, READ)

    def rest(self) -> None:
        """Begins what may take any time, such as merging."""
        if self._memory is not None:
            self._set_limit(resource.RLIM_INFINITY)
            self._write(self._memory, RESTING, RESTING, "")

    def _set_limit(self, seconds: int) -> None:
        if self._hard != resource.RLIM_INFINITY:
            seconds = self._hard if seconds == resource.RLIM_INFINITY else min(seconds, self._hard)
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, self._hard))

    def _write(self, memory: mmap.mmap, first: int, last: int, step: str) -> None:
        self._count += 1
        memory[:] = _FORMAT.pack(self._count, first, last, step.encode()[:32])


def begin_resting(memory: mmap.mmap) -> None:
    """Writes what stands before a worker's first beat."""
    memory[:] = _FORMAT.pack(0, RESTING, RESTING, b"")


def read_beat(memory: mmap.mmap) -> Beat:
    """The last beat of a worker."""
    count, first, last, step = _FORMAT.unpack(memory[:])
    return Beat(count, first, last, step.rstrip(b"\0").decode(errors="replace"))
