"""Attention timed beside its peers: TFLOP/s forward, backward and both, and memory."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rslm.gpu_check.budget import Budget
from rslm.gpu_check.cases import Case
from rslm.gpu_check.contenders import Attend, contenders
from rslm.profiling.tables import Record, Table, column, mebibytes, percent
from rslm.profiling.timing import Announce, Marks, quiet

SAMPLE_SECONDS = 0.03
"""Device seconds of one sample: many calls in a row, so that starting them costs nothing."""
N_SAMPLES = 5


def time_speed(
    cases: Sequence[Case],
    device: torch.device,
    budget: Budget,
    *,
    share: float,
    peak_flops: float | None,
    announce: Announce = quiet,
) -> list[Record]:
    """A record for each case and implementation, best of some samples.

    `forward_seconds` is of calls without gradients, `both_seconds` of forward and backward
    passes, `backward_seconds` their difference, as flash-attention's own benchmark has it.
    `peak_bytes` is what a forward and backward pass held beside the tensors given. The status
    says why an implementation could not run.

    Args:
        cases: what to time, the most telling first.
        device: where.
        budget: of the whole check.
        share: of it that may be over when the last case begins.
        peak_flops: the device's FLOP/s in 16 bits; None where it is not known.
        announce: is told what comes.
    """
    records = []
    makers = contenders(device)
    for case in cases:
        heads = case.draw(device)
        for name, make in makers.items():
            if not budget.allows(f"speed of {name}, {case.label}", share):
                continue
            announce(f"speed: {name}, {case.label}")
            record = case.record() | {"implementation": name, "forward_flops": case.forward_flops}
            try:
                record |= {"status": "measured"} | _time(case, make(case), heads, device)
                record |= rates(case, record, peak_flops)
            # A peer may fail in any way; that is a line of the table, and no end of the check.
            except Exception as error:
                if name == "rslm triton":
                    raise
                record["status"] = f"cannot run: {' '.join(str(error).split())[:100]}"
            records.append(record)
    return records


def _time(case: Case, attend: Attend, heads: Sequence[Tensor], device: torch.device) -> Record:
    q, k, v, gradient = heads
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]

    def forward() -> None:
        with torch.no_grad():
            attend(q, k, v)

    def both() -> None:
        torch.autograd.grad(attend(*leaves), leaves, gradient)

    record: Record = {"forward_seconds": seconds_per_call(forward, device)}
    record["both_seconds"] = seconds_per_call(both, device)
    record["backward_seconds"] = record["both_seconds"] - record["forward_seconds"]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        both()
        record["peak_bytes"] = torch.cuda.max_memory_allocated(device) - before
    return record


def seconds_per_call(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call, the least of some samples of many calls in a row, after a warm-up."""
    work()
    once = sample(work, 1, device)
    n_calls = min(200, max(1, round(SAMPLE_SECONDS / once))) if device.type == "cuda" else 1
    n_samples = N_SAMPLES if device.type == "cuda" else 1
    return min(sample(work, n_calls, device) for _ in range(n_samples))


def sample(work: Callable[[], Any], n_calls: int, device: torch.device) -> float:
    """Seconds of a call, of so many in a row."""
    marks = Marks(device)
    for _ in range(n_calls):
        work()
    marks.mark()
    return marks.seconds()[0] / n_calls


def rates(case: Case, record: Record, peak: float | None) -> Record:
    """FLOP/s of each part, and their share of the device's peak where it is known."""
    flops = {"forward": 1.0, "backward": 2.5, "both": 3.5}
    found: Record = {}
    for part, factor in flops.items():
        # Noise can make a difference of two times nothing at all.
        seconds = max(record[f"{part}_seconds"], 1e-9)
        found[f"{part}_flops_per_second"] = factor * case.forward_flops / seconds
        if peak is not None:
            found[f"{part}_share_of_peak"] = found[f"{part}_flops_per_second"] / peak
    return found


def speed_table(records: list[Record]) -> Table:
    """The table of `time_speed`."""

    def tera(number: float) -> str:
        return f"{number / 1e12:,.1f}"

    parts = ("forward", "backward", "both")
    return Table(
        name="speed",
        title="Attention: TFLOP/s (4 B H N² D, half with causal; backward 2.5 times), % of peak",
        columns=(
            column("implementation", "implementation"),
            column("dtype", "dtype"),
            column("d_head", "d_head"),
            column("tokens", "n_queries"),
            column("causal", "causal", lambda causal: "yes" if causal else "no"),
            *(column(part, f"{part}_flops_per_second", tera) for part in parts),
            *(column(f"{part} of peak", f"{part}_share_of_peak", percent) for part in parts),
            column("MiB", "peak_bytes", mebibytes),
            column("status", "status"),
        ),
        records=records,
    )
