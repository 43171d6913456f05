"""Forward pass, backward pass and optimizer of a training step, timed apart."""

from collections.abc import Sequence

import torch

from rslm.architecture import forward_flops, n_parameters
from rslm.matmul_peak import measure_matmul_flops
from rslm.profiling.cases import Precision
from rslm.profiling.tables import Record, Table, column, percent, tera, time_column
from rslm.profiling.timing import Announce, Marks, out_of_memory_noted, quiet, repeat, summarise
from rslm.profiling.workload import Case, Workload, compute_dtype, matmul_precision

PHASES = ("forward", "backward", "optimizer")


def time_steps(
    cases: Sequence[Case],
    device: torch.device,
    *,
    n_warmup: int,
    n_timed: int,
    announce: Announce = quiet,
) -> list[Record]:
    """A record for each case: seconds of each phase and of the step, and what follows.

    The phases are those of `rslm train`: the forward pass with the loss, the backward pass, and
    clipping with the optimizer's step; each step is waited for. `first_step_seconds` is the very
    first one's, with compilation in it. FLOPs are those of `rslm.architecture`: 3 forward passes
    for a step, 1 for its forward and 2 for its backward phase; what attention or recomputation
    does again is no work of the model's. Utilisation is against the matrix products measured on
    this device in the case's own precision.

    Args:
        cases: what to time.
        device: where.
        n_warmup: steps before the timed ones, the first among them.
        n_timed: timed steps.
        announce: is told what comes.
    """
    peaks: dict[Precision, float] = {}
    records = []
    for case in cases:
        announce(case.label)
        with matmul_precision(case.precision, device):
            if case.precision not in peaks:
                peaks[case.precision] = measure_matmul_flops(
                    device, compute_dtype(case.precision), seconds=1.0
                )
            record = case.record() | {"n_parameters": n_parameters(case.model)}
            with out_of_memory_noted(record, device):
                record |= _time_case(case, device, n_warmup, n_timed, peaks[case.precision])
        records.append(record)
    return records


def _time_case(
    case: Case, device: torch.device, n_warmup: int, n_timed: int, peak: float
) -> Record:
    work = Workload(case, device)

    def step() -> list[float]:
        marks = Marks(device)
        loss = work.loss()
        marks.mark()
        work.backward(loss)
        marks.mark()
        work.update()
        marks.mark()
        return marks.seconds()

    samples = repeat(step, n_warmup=0, n_timed=n_warmup + n_timed)
    timed = samples[n_warmup:]
    record: Record = {"first_step_seconds": sum(samples[0])}
    for number, phase in enumerate(PHASES):
        record |= summarise(f"{phase}_seconds", [sample[number] for sample in timed])
    record |= summarise("forward_backward_seconds", [sum(sample[:2]) for sample in timed])
    record |= summarise("step_seconds", [sum(sample) for sample in timed])
    return record | rates(case, record, peak)


def rates(case: Case, record: Record, peak: float) -> Record:
    """Tokens and FLOPs per second, from the mean seconds of a case."""
    forward = forward_flops(case.model, case.model.context_length) * case.batch_size
    speed = 3 * forward / record["step_seconds_mean"]
    return {
        "tokens_per_second": case.n_tokens / record["step_seconds_mean"],
        "train_flops": 3 * forward,
        "flops_per_second": speed,
        "forward_flops_per_second": forward / record["forward_seconds_mean"],
        "backward_flops_per_second": 2 * forward / record["backward_seconds_mean"],
        "peak_flops_per_second": peak,
        "utilisation": speed / peak,
    }


CASE_COLUMNS = (
    column("size", "size"),
    column("tokens", "sequence_length"),
    column("precision", "precision"),
)


def step_table(records: list[Record]) -> Table:
    """The table of `time_steps`."""
    return Table(
        name="step",
        title="Training step: milliseconds of each phase, mean ± standard deviation",
        columns=(
            *CASE_COLUMNS,
            column("mode", "mode"),
            *(time_column(phase, f"{phase}_seconds") for phase in (*PHASES, "step")),
            column("median", "step_seconds_median", lambda seconds: f"{1e3 * seconds:,.2f}"),
            column("tokens/s", "tokens_per_second", lambda speed: f"{speed:,.0f}"),
            column("TFLOP/s", "flops_per_second", tera),
            column("peak", "peak_flops_per_second", tera),
            column("utilisation", "utilisation", percent),
        ),
        records=records,
    )
