"""The ways to compute attention: time and memory by length and by width of a head."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rslm.attention import Implementation, attention, softmax
from rslm.profiling.cases import Precision
from rslm.profiling.memory_trace import MemoryTrace, saved_tensors
from rslm.profiling.tables import (
    OUT_OF_MEMORY,
    Record,
    Table,
    column,
    mebibytes,
    percent,
    tera,
    time_column,
)
from rslm.profiling.timing import (
    Announce,
    Marks,
    out_of_memory_noted,
    quiet,
    repeat,
    require_memory,
    summarise,
)
from rslm.profiling.workload import compute_dtype

N_SQUARES = {"reference": 8}
"""Float32 tensors of queries x keys that a path holds at a time, rounded up."""


@dataclass(frozen=True, kw_only=True)
class AttentionCase:
    """One line of the table: causal attention of a batch of heads.

    Attributes:
        implementation: as in `rslm.attention.attention`.
        batch_size: sequences.
        n_heads: heads.
        sequence_length: queries, and as many keys.
        d_head: width of a head.
        precision: float32, or all tensors bfloat16.
        compiles: through `torch.compile`.
    """

    implementation: Implementation
    batch_size: int = 8
    n_heads: int = 1
    sequence_length: int = 256
    d_head: int = 64
    precision: Precision = "float32"
    compiles: bool = False

    @property
    def forward_flops(self) -> int:
        """Two products over the whole square: 4 · batch · heads · T² · d_head.

        As in `rslm.architecture`, what is masked counts, so a path that leaves it out may be
        faster than the peak.
        """
        return 4 * self.batch_size * self.n_heads * self.sequence_length**2 * self.d_head

    @property
    def square_bytes(self) -> int:
        """Bytes of one float32 tensor of all scores."""
        return 4 * self.batch_size * self.n_heads * self.sequence_length**2

    @property
    def label(self) -> str:
        """What identifies it, in a few words."""
        mode = ", compiled" if self.compiles else ""
        shape = f"{self.sequence_length} tokens, d_head {self.d_head}"
        return f"{self.implementation}, {shape}, {self.precision}{mode}"

    def record(self) -> Record:
        """What identifies it."""
        return {
            "implementation": self.implementation,
            "mode": "compiled" if self.compiles else "eager",
            "precision": self.precision,
            "batch_size": self.batch_size,
            "n_heads": self.n_heads,
            "sequence_length": self.sequence_length,
            "d_head": self.d_head,
        }


def time_attention(
    cases: Sequence[AttentionCase],
    device: torch.device,
    *,
    n_warmup: int,
    n_timed: int,
    announce: Announce = quiet,
) -> list[Record]:
    """A record for each case: forward and backward seconds, memory, and the largest error.

    `saved_bytes` is what the forward pass keeps for the backward pass beside q, k and v;
    `peak_bytes` the most that both held beside q, k, v and their gradients. `largest_error` is
    the greatest difference of the output from the formula in float32 on the same inputs, over
    the greatest output; it is left out where that would not fit. Backward counts twice the
    FLOPs of forward. A case that needs more memory than there is gets the status "out of
    memory": on a CPU it is not tried, as the system would end the process.
    """
    records = []
    for case in cases:
        announce(case.label)
        record = case.record() | {"forward_flops": case.forward_flops}
        with out_of_memory_noted(record, device):
            _require_squares(case, case.implementation, device)
            record |= _time_case(case, device, n_warmup, n_timed)
        records.append(record)
    return records


def _require_squares(case: AttentionCase, implementation: str, device: torch.device) -> None:
    require_memory(N_SQUARES.get(implementation, 0) * case.square_bytes, device)


def draw_heads(case: AttentionCase, device: torch.device) -> list[Tensor]:
    """Queries, keys and values from N(0, 1), equal for equal shapes, as leaves."""
    shape = (case.batch_size, case.n_heads, case.sequence_length, case.d_head)
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(shape, generator=generator) for _ in range(3)]
    dtype = compute_dtype(case.precision)
    return [x.to(device=device, dtype=dtype).requires_grad_() for x in drawn]


def _path(case: AttentionCase) -> Callable[..., Tensor]:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        output: Tensor = attention(q, k, v, causal=True, implementation=case.implementation)
        return output

    if not case.compiles:
        return attend
    torch.compiler.reset()
    compiled: Callable[..., Tensor] = torch.compile(attend)
    return compiled


def _time_case(case: AttentionCase, device: torch.device, n_warmup: int, n_timed: int) -> Record:
    heads, attend = draw_heads(case, device), _path(case)
    with torch.no_grad():
        gradient = torch.ones_like(heads[0])

    def both() -> list[float]:
        for x in heads:
            x.grad = None
        marks = Marks(device)
        output = attend(*heads)
        marks.mark()
        output.backward(gradient)
        marks.mark()
        return marks.seconds()

    times = repeat(both, n_warmup=n_warmup, n_timed=n_timed)
    record = summarise("forward_seconds", [forward for forward, _ in times])
    record |= summarise("backward_seconds", [backward for _, backward in times])
    record |= summarise("both_seconds", [sum(pair) for pair in times])
    with saved_tensors(*heads) as saved:
        output = attend(*heads)
    record["saved_bytes"] = saved.n_bytes
    del output
    record["peak_bytes"] = _peak(attend, heads, gradient, device)
    record["flops_per_second"] = 3 * case.forward_flops / record["both_seconds_mean"]
    with out_of_memory_noted({}, device):
        _require_squares(case, "reference", device)
        record["largest_error"] = _largest_error(attend, heads)
    return record


def _peak(
    attend: Callable[..., Tensor], heads: list[Tensor], gradient: Tensor, device: torch.device
) -> int:
    """The most that one forward and backward pass holds, gradients of the heads aside."""
    for x in heads:
        x.grad = torch.zeros_like(x)
    with MemoryTrace(device) as trace, trace.phase("both"):
        attend(*heads).backward(gradient)
    return trace.peak_bytes


@torch.no_grad()
def _largest_error(attend: Callable[..., Tensor], heads: list[Tensor]) -> float:
    wide = [x.detach().float() for x in heads]
    exact = attention(*wide, causal=True, implementation="reference")
    difference = (attend(*heads).float() - exact).abs().max()
    return float(difference / exact.abs().max())


def time_parts(
    case: AttentionCase, device: torch.device, *, n_warmup: int, n_timed: int
) -> list[Record]:
    """The steps of the formula apart, forward only: scores, mask and softmax, weighted values.

    Nothing where memory does not suffice. A softmax is five operations a score (maximum,
    difference, exponential, sum, quotient) against the 2 d_head of each product, and yet takes
    as long: it is bound by memory.
    """
    q, k, v = (x.detach() for x in draw_heads(case, device))
    length = case.sequence_length

    def parts() -> list[float]:
        marks = Marks(device)
        scores = q @ k.transpose(-2, -1) * case.d_head**-0.5
        marks.mark()
        weights = softmax(scores.masked_fill(~mask, float("-inf")), dim=-1)
        marks.mark()
        weights @ v
        marks.mark()
        return marks.seconds()

    fits: Record = {}
    with out_of_memory_noted(fits, device):
        _require_squares(case, "reference", device)
        mask = torch.ones(length, length, dtype=torch.bool, device=device).tril()
        times = repeat(parts, n_warmup=n_warmup, n_timed=n_timed)
    if fits["status"] == OUT_OF_MEMORY:
        return []
    n_scores = case.batch_size * case.n_heads * length**2
    flops = {
        "scores": 2 * n_scores * case.d_head,
        "mask and softmax": 5 * n_scores,
        "weighted values": 2 * n_scores * case.d_head,
    }
    identity = replace(case, implementation="reference", compiles=False).record()
    total = sum(sum(sample) for sample in times) / len(times)
    records = []
    for number, (part, count) in enumerate(flops.items()):
        record = identity | {"part": part, "flops": count}
        record |= summarise("part_seconds", [sample[number] for sample in times])
        record["share"] = record["part_seconds_mean"] / total
        record["flops_per_second"] = count / record["part_seconds_mean"]
        records.append(record)
    return records


def attention_tables(records: list[Record], parts: list[Record]) -> list[Table]:
    """The tables of `time_attention` and `time_parts`."""
    shape = (column("tokens", "sequence_length"), column("d_head", "d_head"))
    paths = Table(
        name="attention",
        title="Causal attention: milliseconds, mean ± standard deviation; MiB (2^20 bytes)",
        columns=(
            column("path", "implementation"),
            column("mode", "mode"),
            column("precision", "precision"),
            *shape,
            time_column("forward", "forward_seconds"),
            time_column("backward", "backward_seconds"),
            column("saved", "saved_bytes", mebibytes),
            column("peak", "peak_bytes", mebibytes),
            column("TFLOP/s", "flops_per_second", tera),
            column("error", "largest_error", lambda error: f"{error:.1e}"),
        ),
        records=records,
    )
    steps = Table(
        name="attention-parts",
        title="The formula's steps, forward: milliseconds, mean ± standard deviation",
        columns=(
            column("part", "part"),
            column("precision", "precision"),
            *shape,
            time_column("time", "part_seconds"),
            column("share", "share", percent),
            column("GFLOP", "flops", lambda count: f"{count / 1e9:,.3f}"),
            column("TFLOP/s", "flops_per_second", tera),
        ),
        records=parts,
    )
    return [paths, steps]
