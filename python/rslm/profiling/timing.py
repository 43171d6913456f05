"""Seconds on a device, and what is said of several of them."""

import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from rslm.profiling.tables import OUT_OF_MEMORY, Record

Announce = Callable[[str], None]
"""Is told what is measured next."""


def quiet(message: str) -> None:
    """Tells nobody."""


def synchronize(device: torch.device) -> None:
    """Returns when the device has done what it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


class Marks:
    """Moments between the phases of a piece of work.

    On CUDA they are events in the stream, so nothing is waited for between two; elsewhere each
    waits for the device.
    """

    def __init__(self, device: torch.device) -> None:
        synchronize(device)
        self._device = device
        self._moments: list[Any] = []
        self.mark()

    def mark(self) -> None:
        """Ends a phase and begins the next."""
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self._device))
            self._moments.append(event)
        else:
            synchronize(self._device)
            self._moments.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """The seconds of each phase; waits for the device."""
        synchronize(self._device)
        pairs = zip(self._moments, self._moments[1:], strict=False)
        if self._device.type == "cuda":
            return [first.elapsed_time(second) / 1e3 for first, second in pairs]
        return [second - first for first, second in pairs]


def repeat(work: Callable[[], list[float]], *, n_warmup: int, n_timed: int) -> list[list[float]]:
    """What `work` returned in each of the last `n_timed` calls, after `n_warmup` others."""
    for _ in range(n_warmup):
        work()
    return [work() for _ in range(n_timed)]


def summarise(name: str, seconds: Sequence[float]) -> Record:
    """Mean, median and sample standard deviation, as `name`_mean, `name`_median, `name`_std."""
    return {
        f"{name}_mean": statistics.fmean(seconds),
        f"{name}_median": statistics.median(seconds),
        f"{name}_std": statistics.stdev(seconds) if len(seconds) > 1 else 0.0,
    }


def require_memory(n_bytes: float, device: torch.device) -> None:
    """Refuses work that needs more memory than there is, where the system would end the process.

    That is on a CPU, whose memory is promised before it is there; other devices may try.

    Raises:
        MemoryError: the memory that is free now does not suffice.
    """
    if device.type != "cpu" or not hasattr(os, "sysconf"):
        return
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if n_bytes > free:
        raise MemoryError(f"out of memory: needs {n_bytes:.0f} bytes, and {free} are free")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory did not suffice."""
    text = str(error)
    return isinstance(error, MemoryError) or "out of memory" in text or "allocate memory" in text


@contextmanager
def out_of_memory_noted(record: Record, device: torch.device) -> Iterator[None]:
    """Makes the `status` of a record of memory that did not suffice, which ends the block."""
    record["status"] = "measured"
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        record["status"] = OUT_OF_MEMORY
    # The next measurement has the memory of this one; graphs hold cycles.
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
