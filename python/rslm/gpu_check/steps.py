"""The training step with the kernels and without them."""

from dataclasses import dataclass

import torch

from rslm.attention import Implementation
from rslm.gpu_check.budget import Budget
from rslm.profiling.cases import Precision, sized_model
from rslm.profiling.step import time_steps
from rslm.profiling.tables import Record, Table, column, mebibytes, percent
from rslm.profiling.timing import Announce, quiet
from rslm.profiling.workload import Case


@dataclass(frozen=True, kw_only=True)
class StepSize:
    """What is trained.

    Attributes:
        size: a model's name, see `rslm.profiling.cases`.
        vocab_size: token ids.
        sequence_length: tokens of a sequence.
        batch_size: sequences of a step.
        precision: of matrix products.
        compiles: eager alone, or through `torch.compile` as well.
    """

    size: str = "small"
    vocab_size: int = 50_304
    sequence_length: int = 1024
    batch_size: int = 16
    precision: Precision = "bfloat16"
    compiles: tuple[bool, ...] = (True, False)

    def case(self, implementation: Implementation, *, compiles: bool) -> Case:
        """One line of the table."""
        return Case(
            size=self.size,
            model=sized_model(
                self.size, vocab_size=self.vocab_size, context_length=self.sequence_length
            ),
            batch_size=self.batch_size,
            precision=self.precision,
            compiles=compiles,
            implementation=implementation,
        )


def compare_steps(
    size: StepSize,
    device: torch.device,
    budget: Budget,
    *,
    share: float,
    n_timed: int,
    announce: Announce = quiet,
) -> list[Record]:
    """A record for PyTorch's attention and for ours, compiled and eager."""
    records = []
    for compiles in size.compiles:
        for implementation in ("torch", "triton"):
            case = size.case(implementation, compiles=compiles)
            if not budget.allows(f"training step, {implementation}, {case.label}", share):
                continue
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            found = time_steps([case], device, n_warmup=2, n_timed=n_timed, announce=announce)
            records.append(found[0] | {"attention": implementation})
            if device.type == "cuda":
                records[-1]["peak_bytes"] = torch.cuda.max_memory_allocated(device)
    return records


def steps_table(records: list[Record]) -> Table:
    """The table of `compare_steps`."""
    return Table(
        name="steps",
        title="Training step by attention: milliseconds, tokens/s, utilisation",
        columns=(
            column("size", "size"),
            column("tokens", "sequence_length"),
            column("precision", "precision"),
            column("mode", "mode"),
            column("attention", "attention"),
            column("ms", "step_seconds_median", lambda seconds: f"{1e3 * seconds:,.2f}"),
            column("tokens/s", "tokens_per_second", lambda speed: f"{speed:,.0f}"),
            column("utilisation", "utilisation", percent),
            column("MiB", "peak_bytes", mebibytes),
        ),
        records=records,
    )
