"""Memory of a training step: what stays, what is saved for the backward pass, and the peaks."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from rslm.architecture import n_parameters
from rslm.model import Transformer
from rslm.profiling.memory_trace import MemoryTrace, Phase, SavedTensors, saved_tensors
from rslm.profiling.step import CASE_COLUMNS
from rslm.profiling.tables import Column, Record, Table, column, mebibytes
from rslm.profiling.timing import Announce, out_of_memory_noted, quiet
from rslm.profiling.workload import (
    Case,
    Workload,
    distinct_bytes,
    matmul_precision,
    optimizer_tensors,
)

N_LARGEST = 8


def weigh_steps(
    cases: Sequence[Case],
    device: torch.device,
    *,
    snapshots: Path | None = None,
    announce: Announce = quiet,
) -> tuple[list[Record], list[Record], dict[str, list[Phase]]]:
    """Bytes of each case, its largest saved tensors, and its second step over time by case.

    `weights_bytes`, `gradients_bytes` and `optimizer_bytes` stay; `saved_bytes` is what the
    forward pass leaves for the backward pass without weights and buffers, `saved_block_bytes`
    that of the first block alone; with autocast the weights' copies in half precision are in
    them. `peak_forward_bytes` and `peak_step_bytes` are the most that tensors held in a forward
    pass without gradients and in a training step after the first, all of the above included.
    On CUDA `allocator_peak_bytes` and `reserved_peak_bytes` are the allocator's own account of
    that step.

    Args:
        cases: what to weigh.
        device: where.
        snapshots: on CUDA, folder for the allocator's history of each case's step, for
            pytorch.org/memory_viz.
        announce: is told what comes.
    """
    records, largest, traces = [], [], {}
    for case in cases:
        announce(case.label)
        record = case.record() | {"recompute_blocks": case.recompute_blocks or "none"}
        record["n_parameters"] = n_parameters(case.model)
        with matmul_precision(case.precision, device), out_of_memory_noted(record, device):
            saved, block = _count_saved(case, device)
            record |= {"saved_bytes": saved.n_bytes, "saved_block_bytes": block.n_bytes}
            largest += _largest(case, saved)
            held, phases = _trace(case, device, snapshots)
            record |= held
            traces[case.label] = phases
        records.append(record)
    return records, largest, traces


def _count_saved(case: Case, device: torch.device) -> tuple[SavedTensors, SavedTensors]:
    """What the whole model saves, and what its first block does."""
    work = Workload(case, device)
    there = [*work.model.parameters(), *work.model.buffers()]
    with saved_tensors(*there) as whole:
        loss = work.loss()
    work.backward(loss)
    return whole, saved_by_block(work.model, case, device)


def saved_by_block(model: Transformer, case: Case, device: torch.device) -> SavedTensors:
    """What the first block alone saves of the residual stream of a batch, its input included."""
    block = model.layers[0]
    shape = (case.batch_size, case.model.context_length, case.model.d_model)
    x = torch.ones(shape, device=device, requires_grad=True)
    dtype = torch.bfloat16 if case.precision == "bfloat16" else None
    with (
        saved_tensors(*block.parameters(), *block.buffers()) as saved,
        torch.autocast(device.type, dtype, enabled=dtype is not None),
    ):
        output = block(x)
    del output
    return saved


def _largest(case: Case, saved: SavedTensors) -> list[Record]:
    """The shapes that take most of what is saved."""
    return [
        case.record()
        | {
            "recompute_blocks": case.recompute_blocks or "none",
            "shape": " x ".join(map(str, shape)) or "1",
            "dtype": str(dtype).removeprefix("torch."),
            "n_tensors": saved.counts[shape, dtype],
            "saved_bytes": n_bytes,
        }
        for (shape, dtype), n_bytes in saved.by_shape.most_common(N_LARGEST)
    ]


def _trace(case: Case, device: torch.device, snapshots: Path | None) -> tuple[Record, list[Phase]]:
    """Runs two steps from the model's making on; what is held, and the second step's phases."""
    record: Record = {}
    with MemoryTrace(device) as trace:
        with trace.phase("making"):
            work = Workload(case, device)
        with trace.phase("inference"), torch.no_grad():
            work.loss()
        for _ in range(2):
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            with _snapshot(case, device, snapshots):
                with trace.phase("forward"):
                    loss = work.loss()
                with trace.phase("backward"):
                    work.backward(loss)
                    del loss
                gradients = [p.grad for p in work.model.parameters() if p.grad is not None]
                record["weights_bytes"] = distinct_bytes(work.model.parameters())
                record["gradients_bytes"] = distinct_bytes(gradients)
                del gradients
                with trace.phase("optimizer"):
                    work.update()
        record["optimizer_bytes"] = distinct_bytes(optimizer_tensors(work.optimizer))
        if device.type == "cuda":
            record["allocator_peak_bytes"] = torch.cuda.max_memory_allocated(device)
            record["reserved_peak_bytes"] = torch.cuda.max_memory_reserved(device)
    _, inference, *steps = trace.phases
    last = steps[-3:]
    record["peak_forward_bytes"] = inference.peak_bytes
    for phase in last:
        record[f"peak_{phase.name}_phase_bytes"] = phase.peak_bytes
    record["peak_step_bytes"] = max(phase.peak_bytes for phase in last)
    return record, last


@contextmanager
def _snapshot(case: Case, device: torch.device, folder: Path | None) -> Iterator[None]:
    """Writes the CUDA allocator's history of the block, with stacks, to a file of the case."""
    if device.type != "cuda" or folder is None:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    torch.cuda.memory._record_memory_history(max_entries=1_000_000)
    try:
        yield
        name = case.label.replace(", ", "-").replace(" ", "_")
        torch.cuda.memory._dump_snapshot(str(folder / f"memory-{name}.pickle"))
    finally:
        torch.cuda.memory._record_memory_history(enabled=None)


def memory_tables(records: list[Record], largest: list[Record]) -> list[Table]:
    """The tables of `weigh_steps`."""
    keys = {
        "weights": "weights_bytes",
        "gradients": "gradients_bytes",
        "optimizer": "optimizer_bytes",
        "saved": "saved_bytes",
        "saved, 1 block": "saved_block_bytes",
        "peak forward": "peak_forward_bytes",
        "peak step": "peak_step_bytes",
    }
    if any("allocator_peak_bytes" in record for record in records):
        keys |= {"allocator": "allocator_peak_bytes", "reserved": "reserved_peak_bytes"}
    which: tuple[Column, ...] = (
        *CASE_COLUMNS,
        column("mode", "mode"),
        column("recompute", "recompute_blocks", str),
    )
    weights = Table(
        name="memory",
        title="Memory of a training step: MiB (2^20 bytes)",
        columns=(*which, *(column(name, key, mebibytes) for name, key in keys.items())),
        records=records,
    )
    shapes = Table(
        name="memory-saved",
        title="Largest tensors saved for the backward pass: MiB of all of a shape",
        columns=(
            *which,
            column("shape", "shape"),
            column("dtype", "dtype"),
            column("tensors", "n_tensors"),
            column("MiB", "saved_bytes", mebibytes),
        ),
        records=largest,
    )
    return [weights, shapes]


def timeline(phases: Sequence[Phase]) -> tuple[list[float], list[int], list[float]]:
    """Phases one after the other: moments, bytes held, and where each phase ends."""
    start = phases[0].seconds[0]
    moments = [s - start for s in itertools.chain(*(phase.seconds for phase in phases))]
    levels = list(itertools.chain(*(phase.n_bytes for phase in phases)))
    return moments, levels, [phase.seconds[-1] - start for phase in phases]
