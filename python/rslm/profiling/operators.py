"""Where the time of a step goes: the operators that take most of it, by kind."""

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from rslm.profiling.step import CASE_COLUMNS
from rslm.profiling.tables import Record, Table, column, percent
from rslm.profiling.timing import out_of_memory_noted, synchronize
from rslm.profiling.workload import Case, Workload, matmul_precision

N_LARGEST = 6

# In this order: the first that fits.
KINDS = {
    "attention": r"scaled_dot_product|flash|efficient_attention|fmha",
    "matrix products": r"::(mm|bmm|addmm|baddbmm|linear|matmul)$|gemm|cutlass|cublas|nvjet",
    "softmax and loss": r"softmax|::(exp_?|amax|logsumexp|log)$|_TokenLosses",
    "optimizer": r"adam|foreach|multi_tensor|vector_norm|linalg_norm",
    "communication": r"c10d|nccl|gloo",
    "copies and casts": r"::(copy_|(_)?to(_copy)?|clone|fill_|zero_|cat|stack)$|copy_kernel|^Mem",
}
OTHER = "elementwise and other"


def kind_of(operator: str) -> str:
    """What an operator, or a GPU's kernel, is for, by its name."""
    found = (kind for kind, pattern in KINDS.items() if re.search(pattern, operator, re.IGNORECASE))
    return next(found, OTHER)


def share_operators(
    cases: Sequence[Case], device: torch.device
) -> tuple[list[Record], list[Record]]:
    """Seconds of each kind of operator, and of the largest ones, in inference and in training.

    Each from one pass (the loss without gradients; a whole step) after one that warms up, under
    torch's profiler, which costs small operators more than they cost themselves: shares tell,
    not sums. On CUDA the time is the GPU's own in kernels, elsewhere that of the operators
    without those that they call.
    """
    kinds: list[Record] = []
    largest: list[Record] = []
    for case in cases:
        record = case.record()
        with matmul_precision(case.precision, device), out_of_memory_noted(record, device):
            work = Workload(case, device)
            for name, run in (("inference", _infer), ("training", _train)):
                run(work)
                seconds, calls = _profile(run, work, device)
                kinds += _kind_records(record | {"work": name}, seconds, calls)
                total = sum(seconds.values())
                most = sorted(seconds, key=lambda operator: -seconds[operator])[:N_LARGEST]
                largest += [
                    record
                    | {"work": name, "operator": operator, "kind": kind_of(operator)}
                    | {"seconds": seconds[operator], "share": seconds[operator] / total}
                    | {"n_calls": calls[operator]}
                    for operator in most
                ]
            del work
    return kinds, largest


def _infer(work: Workload) -> None:
    with torch.no_grad():
        work.loss()


def _train(work: Workload) -> None:
    work.backward(work.loss())
    work.update()


def _profile(run: Any, work: Workload, device: torch.device) -> tuple[dict[str, float], Any]:
    """Self seconds and calls of each operator of one run."""
    activities = [ProfilerActivity.CPU]
    is_cuda = device.type == "cuda"
    if is_cuda:
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        run(work)
        synchronize(device)
    seconds: dict[str, float] = defaultdict(float)
    calls: dict[str, int] = defaultdict(int)
    for event in profiler.key_averages():
        microseconds = event.self_device_time_total if is_cuda else event.self_cpu_time_total
        # On CUDA the kernels carry the time, and so do what launches them and what spans them.
        is_span = event.is_user_annotation or event.device_type.name == "CPU"
        if microseconds <= 0 or (is_cuda and is_span):
            continue
        seconds[event.key] += microseconds / 1e6
        calls[event.key] += event.count
    return seconds, calls


def _kind_records(identity: Record, seconds: dict[str, float], calls: Any) -> list[Record]:
    total = sum(seconds.values())
    sums = dict.fromkeys((*KINDS, OTHER), 0.0)
    counts = dict.fromkeys((*KINDS, OTHER), 0)
    for operator, own in seconds.items():
        sums[kind_of(operator)] += own
        counts[kind_of(operator)] += calls[operator]
    return [
        identity
        | {"kind": kind, "seconds": own, "share": own / total if total else 0.0}
        | {"n_calls": counts[kind]}
        for kind, own in sums.items()
        if counts[kind]
    ]


def operator_tables(kinds: list[Record], largest: list[Record]) -> list[Table]:
    """The tables of `share_operators`."""
    where = (*CASE_COLUMNS, column("mode", "mode"), column("work", "work"))
    measures = (
        column("ms", "seconds", lambda seconds: f"{1e3 * seconds:,.2f}"),
        column("share", "share", percent),
        column("calls", "n_calls"),
    )
    return [
        Table(
            name="step-kinds",
            title="Operators by kind, under the profiler",
            columns=(*where, column("kind", "kind"), *measures),
            records=kinds,
        ),
        Table(
            name="step-operators",
            title="The largest operators, under the profiler",
            columns=(*where, column("operator", "operator", lambda name: name[:60]), *measures),
            records=largest,
        ),
    ]
