"""All sections of the check in turn, within its time."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from rslm.gpu_check import correctness, paged, speed, steps, sweep
from rslm.gpu_check.budget import Budget
from rslm.gpu_check.cases import CORRECTNESS_CASES, DRY_CASES, Case, Dtype, speed_cases
from rslm.hardware import reported_accelerator
from rslm.profiling.tables import Table
from rslm.profiling.timing import Announce, quiet

SHARES = {
    "correctness": 0.2,
    "races": 0.3,
    "paged": 0.36,
    "paged_speed": 0.45,
    "speed": 0.7,
    "sweep": 0.87,
    "steps": 1.0,
}
"""Part of the time that is over when the last piece of a section may begin."""


@dataclass(frozen=True, kw_only=True)
class Scope:
    """How much is measured.

    Attributes:
        checked: cases whose results are held against float64.
        dtypes: in which.
        n_repetitions: of each case, in the hunt for races.
        timed: cases of the comparison, the most telling first.
        swept: cases whose launch configurations are timed.
        paged_checked: steps over block tables whose results are held against float64.
        paged_timed: such steps that are timed.
        step: what is trained.
        n_timed_steps: timed steps of it.
    """

    checked: tuple[Case, ...]
    dtypes: tuple[Dtype, ...]
    n_repetitions: int
    timed: tuple[Case, ...]
    swept: tuple[Case, ...]
    paged_checked: tuple[paged.PagedCase, ...]
    paged_timed: tuple[paged.PagedCase, ...]
    step: steps.StepSize
    n_timed_steps: int


_LENGTHS = (4096, 1024, 16_384, 512, 2048, 8192)
_TIMED = speed_cases(_LENGTHS, n_tokens=16_384, width=2048)
FULL = Scope(
    checked=CORRECTNESS_CASES,
    dtypes=("bfloat16", "float16", "float32"),
    n_repetitions=200,
    timed=_TIMED,
    swept=tuple(case for case in _TIMED if case.causal and case.n_queries == _LENGTHS[0]),
    paged_checked=paged.CHECKED,
    paged_timed=paged.TIMED,
    step=steps.StepSize(),
    n_timed_steps=10,
)
_SMALL = Case(n_queries=64, n_keys=64, d_head=16)
DRY = Scope(
    checked=DRY_CASES,
    dtypes=("float32",),
    n_repetitions=2,
    timed=(replace(_SMALL, dtype="float32"),),
    swept=(replace(_SMALL, dtype="float32"),),
    paged_checked=(paged.DRY,),
    paged_timed=(replace(paged.DRY, sequences=((20, 1), (20, 1))),),
    step=steps.StepSize(
        size="32x1x2",
        vocab_size=64,
        sequence_length=16,
        batch_size=1,
        precision="float32",
        compiles=(False,),
    ),
    n_timed_steps=1,
)
"""Each section once, for Triton's interpreter on a CPU, which multiplies bfloat16 wrongly."""


def measure(
    scope: Scope, device: torch.device, budget: Budget, *, announce: Announce = quiet
) -> Iterator[Table]:
    """The tables of all sections, each as soon as its section ends."""
    errors = correctness.check_correctness(
        scope.checked,
        scope.dtypes,
        device,
        budget,
        share=SHARES["correctness"],
        announce=announce,
    )
    yield correctness.correctness_table(errors)
    races = correctness.hunt_races(
        [replace(case, dtype=scope.dtypes[0]) for case in scope.checked],
        device,
        budget,
        share=SHARES["races"],
        n_repetitions=scope.n_repetitions,
        announce=announce,
    )
    yield correctness.races_table(races)
    yield from _paged(scope, device, budget, announce)
    rates = speed.time_speed(
        scope.timed,
        device,
        budget,
        share=SHARES["speed"],
        peak_flops=peak_flops(device),
        announce=announce,
    )
    yield speed.speed_table(rates)
    swept = sweep.sweep(scope.swept, device, budget, share=SHARES["sweep"], announce=announce)
    yield sweep.sweep_table(swept)
    trained = steps.compare_steps(
        scope.step,
        device,
        budget,
        share=SHARES["steps"],
        n_timed=scope.n_timed_steps,
        announce=announce,
    )
    yield steps.steps_table(trained)


def _paged(
    scope: Scope, device: torch.device, budget: Budget, announce: Announce
) -> Iterator[Table]:
    errors = paged.check_paged(
        scope.paged_checked, scope.dtypes, device, budget, share=SHARES["paged"], announce=announce
    )
    yield paged.paged_table(errors)
    seconds = paged.time_paged(
        scope.paged_timed, device, budget, share=SHARES["paged_speed"], announce=announce
    )
    yield paged.paged_speed_table(seconds)


def peak_flops(device: torch.device) -> float | None:
    """Dense bfloat16 FLOP/s of a GPU by its data sheet; None where it is not known."""
    if device.type != "cuda":
        return None
    known = reported_accelerator(torch.cuda.get_device_name(device))
    return None if known is None else known.peak_flops("bfloat16")
