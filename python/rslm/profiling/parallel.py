"""The ways to train with several processes: step time, bytes sent, memory of each process."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from rslm.architecture import n_parameters
from rslm.distributed.ddp import DDP
from rslm.distributed.gradients import Mode
from rslm.distributed.parallel import parallelize
from rslm.distributed.processes import Processes
from rslm.profiling.cases import Kind
from rslm.profiling.collectives import time_all_reduce
from rslm.profiling.memory_trace import MemoryTrace
from rslm.profiling.tables import Column, Record, Table, column, mebibytes, percent, time_column
from rslm.profiling.timing import Announce, Marks, out_of_memory_noted, quiet, repeat, summarise
from rslm.profiling.traffic import (
    Traffic,
    expected_held_bytes,
    expected_sent_bytes,
    parameter_bytes,
    sent_bytes,
)
from rslm.profiling.workload import (
    Case,
    Workload,
    distinct_bytes,
    matmul_precision,
    optimizer_tensors,
)
from rslm.train_config import ParallelKind

OWN_DDP: dict[str, Mode] = {
    "ddp-naive": "naive",
    "ddp-flat": "flat",
    "ddp-overlap": "overlap",
    "ddp-bucketed": "bucketed",
}
PHASES = ("forward", "backward", "synchronization", "optimizer")


@dataclass(frozen=True, kw_only=True)
class ParallelCase:
    """One line of the table.

    Attributes:
        kind: "none", where each process trains by itself; a mode of the package's DDP; or one
            of the kinds of `rslm train`.
        case: the model; its batch is that of each process.
        bucket_mb: megabytes of a bucket, for "ddp-bucketed".
    """

    kind: Kind
    case: Case
    bucket_mb: float | None = None

    @property
    def label(self) -> str:
        """What identifies it, in a few words."""
        bucket = "" if self.bucket_mb is None else f" {self.bucket_mb:g} MB"
        return f"{self.kind}{bucket}, {self.case.label}"

    @property
    def parallel_kind(self) -> ParallelKind:
        """What `rslm train` calls it."""
        return "ddp" if self.kind in OWN_DDP else self.kind  # type: ignore[return-value]


def train_together(work: Workload, parallel: ParallelCase, processes: Processes) -> None:
    """Puts the kind's wrapper around a workload; all processes must call."""
    kind = parallel.kind
    if kind == "none":
        return
    if kind in OWN_DDP:
        ours = DDP(work.model, OWN_DDP[kind], parallel.bucket_mb or 25.0)
        work.forward, work.finish = ours, ours.finish_gradient_synchronization
        return
    made = parallelize(
        parallel.parallel_kind,
        work.model,
        work.optimizer,
        processes,
        autocast_dtype=work.autocast_dtype,
    )
    work.forward, work.optimizer = made.forward, made.optimizer
    work.autocast_dtype = made.autocast_dtype
    work.finish, work.clip = made.finish_gradient_synchronization, made.clip_grad_norm


def compare_parallel(
    cases: Sequence[ParallelCase],
    processes: Processes,
    *,
    n_warmup: int,
    n_timed: int,
    announce: Announce = quiet,
) -> list[Record]:
    """A record for each case; all processes must call, and all get the records.

    Times are those of the slowest process. Backward has the communication in it that runs
    meanwhile, synchronization what is waited for afterwards. `exposed_seconds` is what a step
    takes longer than one of the last case of kind "none" before it, which sends nothing.
    `sent_bytes` are those of a ring for the collectives of a step, which are counted; beside
    them stands what the formulas say. `weights_bytes`, `gradients_bytes` and `optimizer_bytes`
    are the largest of any process after backward of the second step, and the peaks those of
    making the model, of forward and backward, and of the optimizer's step.

    Args:
        cases: what to compare.
        processes: the processes.
        n_warmup: steps before the timed ones.
        n_timed: timed steps.
        announce: is told in process 0 what comes.
    """
    records: list[Record] = []
    alone: float | None = None
    for parallel in cases:
        if processes.is_first:
            announce(f"{parallel.label}, {processes.world_size} processes")
        record: Record = {
            "kind": parallel.kind,
            "bucket_mb": parallel.bucket_mb if parallel.bucket_mb is not None else "",
            "n_processes": processes.world_size,
        }
        record |= parallel.case.record() | {"n_parameters": n_parameters(parallel.case.model)}
        with (
            matmul_precision(parallel.case.precision, processes.device),
            out_of_memory_noted(record, processes.device),
        ):
            record |= _times(parallel, processes, n_warmup, n_timed)
            record |= _account(parallel, processes)
            if parallel.kind == "none":
                alone = record["step_seconds_mean"]
            if alone is not None:
                record["exposed_seconds"] = record["step_seconds_mean"] - alone
                record["exposed_share"] = record["exposed_seconds"] / record["step_seconds_mean"]
        records.append(record)
    return records


def _times(parallel: ParallelCase, processes: Processes, n_warmup: int, n_timed: int) -> Record:
    work = Workload(parallel.case, processes.device, rank=processes.rank)
    train_together(work, parallel, processes)

    def step() -> list[float]:
        dist.barrier()
        marks = Marks(processes.device)
        loss = work.loss()
        marks.mark()
        torch.autograd.backward(loss)
        marks.mark()
        work.finish()
        marks.mark()
        work.update()
        marks.mark()
        return marks.seconds()

    own = torch.tensor(repeat(step, n_warmup=n_warmup, n_timed=n_timed), dtype=torch.float64)
    every = processes.gather(own.to(processes.device)).cpu()
    # A step is as long as that of the process that takes longest; its phases are that one's.
    slowest = every.sum(-1).argmax(0)
    samples = [every[rank, i].tolist() for i, rank in enumerate(slowest.tolist())]
    record: Record = {}
    for number, phase in enumerate(PHASES):
        record |= summarise(f"{phase}_seconds", [sample[number] for sample in samples])
    record |= summarise("step_seconds", [sum(sample) for sample in samples])
    n_tokens = parallel.case.n_tokens * processes.world_size
    return record | {"tokens_per_second": n_tokens / record["step_seconds_mean"]}


def _account(parallel: ParallelCase, processes: Processes) -> Record:
    """Bytes sent and held in the second step, from the model's making on."""
    with MemoryTrace(processes.device) as trace:
        with trace.phase("making"):
            work = Workload(parallel.case, processes.device, rank=processes.rank)
            train_together(work, parallel, processes)
        for _ in range(2):
            with Traffic() as traffic:
                with trace.phase("backward"):
                    loss = work.loss()
                    work.backward(loss)
                    del loss
                held = _held(work)
                with trace.phase("optimizer"):
                    work.update()
        held["optimizer_bytes"] = distinct_bytes(optimizer_tensors(work.optimizer))
    making, *_, backward, optimizer = trace.phases
    held["peak_making_bytes"] = making.peak_bytes
    held["peak_backward_bytes"] = backward.peak_bytes
    held["peak_optimizer_bytes"] = optimizer.peak_bytes
    everyones: list[Any] = [None] * processes.world_size
    dist.all_gather_object(everyones, held)
    record: Record = {key: max(own[key] for own in everyones) for key in held}
    # Each part is the largest of any process; together they are no process's.
    keys = ("weights_bytes", "gradients_bytes", "optimizer_bytes")
    record["held_bytes"] = max(sum(own[key] for key in keys) for own in everyones)

    size, n = parameter_bytes(parallel.case.model), processes.world_size
    record["expected_held_bytes"] = expected_held_bytes(parallel.parallel_kind, size, n)
    for collective, n_bytes in sorted(traffic.n_bytes.items()):
        record[f"{collective.replace('-', '_')}_bytes"] = n_bytes
    record["n_calls"] = traffic.n_calls.total()
    record["sent_bytes"] = sum(sent_bytes(name, b, n) for name, b in traffic.n_bytes.items())
    record["expected_sent_bytes"] = expected_sent_bytes(
        parallel.parallel_kind,
        size,
        n,
        device_type=processes.device.type,
        gathered_width=2 if parallel.case.precision == "bfloat16" else 4,
    )
    return record


def _held(work: Workload) -> Record:
    """Bytes of the weights and gradients that this process has."""
    own = [p for group in work.optimizer.param_groups for p in group["params"]]
    gradients = [p.grad for p in [*own, *work.model.parameters()] if p.grad is not None]
    return {
        "weights_bytes": distinct_bytes(work.model.parameters()),
        "gradients_bytes": distinct_bytes(gradients),
    }


def measure_together(
    processes: Processes,
    sizes_mb: Sequence[float],
    cases: Sequence[ParallelCase],
    n_warmup: int,
    n_timed: int,
    announce: Announce = quiet,
) -> tuple[list[Record], list[Record]]:
    """What `time_all_reduce` and `compare_parallel` find; all processes must call."""
    if processes.is_first and sizes_mb:
        announce(f"all-reduce, {processes.world_size} processes")
    counts: dict[str, int] = {"n_warmup": n_warmup, "n_timed": n_timed}
    reduced = time_all_reduce(processes, sizes_mb, **counts)
    return reduced, compare_parallel(cases, processes, **counts, announce=announce)


def parallel_tables(records: list[Record]) -> list[Table]:
    """The tables of `compare_parallel`: time, and what it costs in messages and memory."""
    which: tuple[Column, ...] = (
        column("kind", "kind"),
        column("bucket MB", "bucket_mb", lambda size: str(size) or "-"),
        column("processes", "n_processes"),
        column("size", "size"),
        column("precision", "precision"),
    )
    times = Table(
        name="collectives-step",
        title="Training with several processes: milliseconds, mean ± standard deviation",
        columns=(
            *which,
            *(time_column(phase, f"{phase}_seconds") for phase in (*PHASES, "step")),
            column("exposed", "exposed_share", percent),
            column("tokens/s", "tokens_per_second", lambda speed: f"{speed:,.0f}"),
        ),
        records=records,
    )
    keys = {
        "weights": "weights_bytes",
        "gradients": "gradients_bytes",
        "optimizer": "optimizer_bytes",
        "held": "held_bytes",
        "formula": "expected_held_bytes",
        "peak making": "peak_making_bytes",
        "before step": "peak_backward_bytes",
        "in step": "peak_optimizer_bytes",
        "sent": "sent_bytes",
        "sent, formula": "expected_sent_bytes",
    }
    costs = Table(
        name="collectives-bytes",
        title="Each process in a step: MiB (2^20 bytes) held, at the peaks, and sent",
        columns=(
            *which,
            *(column(name, key, mebibytes) for name, key in keys.items()),
            column("calls", "n_calls"),
        ),
        records=records,
    )
    return [times, costs]
