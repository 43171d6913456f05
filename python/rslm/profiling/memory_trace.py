"""Every allocation of a device's memory while a piece of work runs, and what autograd keeps."""

import contextlib
import gc
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

_PHASE = "rslm phase: "


@dataclass(frozen=True, kw_only=True)
class Phase:
    """What was allocated in one phase of the work.

    Attributes:
        name: of the phase.
        seconds: since the trace began, of each allocation and each release; what stands first
            is the phase's beginning.
        n_bytes: held by tensors of the device then.
    """

    name: str
    seconds: list[float]
    n_bytes: list[int]

    @property
    def peak_bytes(self) -> int:
        """The most that was held at a time."""
        return max(self.n_bytes)


class MemoryTrace:
    """The bytes that tensors of a device hold, after each allocation and release in the block.

    Counted by the allocator, to the byte: temporaries inside of kernels and threads count.
    Memory from before the block does not. On CUDA bytes are those of the allocator's blocks,
    which are multiples of 512. Work takes several times as long, so nothing may be timed here.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._profile: Any = None
        self.phases: list[Phase] = []

    def __enter__(self) -> Self:
        # Released inside the block, memory from before would count as less than none.
        gc.collect()
        activities = [ProfilerActivity.CPU]
        if self._device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(activities=activities, profile_memory=True)
        self._profile.__enter__()
        return self

    def phase(self, name: str) -> Any:
        """A block inside; what happens between two phases belongs to none."""
        return record_function(_PHASE + name)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._profile.__exit__(kind, error, trace)
        if error is None:
            roots = self._profile.profiler.kineto_results.experimental_event_tree()
            self.phases = _read_phases(roots, self._device.type)
        self._profile = None

    @property
    def peak_bytes(self) -> int:
        """The most that was held in any phase."""
        return max(phase.peak_bytes for phase in self.phases)


def _read_phases(roots: list[Any], device_type: str) -> list[Phase]:
    allocations: list[tuple[int, int, int]] = []
    spans: list[tuple[int, int, str]] = []
    stack, base = list(roots), None
    while stack:
        event = stack.pop()
        stack.extend(event.children)
        fields = event.extra_fields
        if hasattr(fields, "alloc_size"):
            if fields.device.type == device_type:
                total, size = fields.total_allocated, fields.alloc_size
                allocations.append((event.start_time_ns, total, size))
        elif event.name.startswith(_PHASE):
            spans.append((event.start_time_ns, event.end_time_ns, event.name[len(_PHASE) :]))
        base = event.start_time_ns if base is None else min(base, event.start_time_ns)
    allocations.sort()
    # The CPU's counter goes on from trace to trace, and misses what is released between them.
    before = allocations[0][1] - allocations[0][2] if allocations else 0
    phases, held, position = [], 0, 0
    for start, stop, name in sorted(spans):
        while position < len(allocations) and allocations[position][0] < start:
            held = allocations[position][1] - before
            position += 1
        moments, levels = [start], [held]
        while position < len(allocations) and allocations[position][0] <= stop:
            moment, total, _ = allocations[position]
            held = total - before
            moments.append(moment)
            levels.append(held)
            position += 1
        seconds = [(moment - (base or 0)) / 1e9 for moment in moments]
        phases.append(Phase(name=name, seconds=seconds, n_bytes=levels))
    return phases


class SavedTensors:
    """The memory that autograd keeps for a backward pass, each piece once.

    Attributes:
        n_bytes: of all of it, but for what `leave_out` holds.
        by_shape: bytes by (shape, dtype) of the first tensor that was saved of a piece.
        counts: pieces, likewise.
    """

    def __init__(self) -> None:
        self.n_bytes = 0
        self.by_shape: Counter[tuple[tuple[int, ...], torch.dtype]] = Counter()
        self.counts: Counter[tuple[tuple[int, ...], torch.dtype]] = Counter()


@contextlib.contextmanager
def saved_tensors(*leave_out: Tensor) -> Iterator[SavedTensors]:
    """Counts what forward passes in the block save for their backward passes.

    A piece of memory that several operations save, or views of which they save, counts once,
    with all its bytes: all of it stays alive. The graph must still be alive at the end of the
    block. Weights and buffers are there anyhow: leave them out. What
    `torch.utils.checkpoint` does not keep does not count.

    Args:
        leave_out: tensors whose memory is not counted.
    """
    saved = SavedTensors()
    seen = {_key(tensor) for tensor in leave_out}

    def pack(tensor: Tensor) -> Tensor:
        # The graph holds what is returned here, so no address comes twice.
        if (key := _key(tensor)) not in seen:
            seen.add(key)
            n_bytes = tensor.untyped_storage().nbytes()
            shape = (tuple(tensor.shape), tensor.dtype)
            saved.n_bytes += n_bytes
            saved.by_shape[shape] += n_bytes
            saved.counts[shape] += 1
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
