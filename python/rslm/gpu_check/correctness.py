"""Whether the kernels' numbers are right on this device, every time."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from rslm.attention import Implementation, attention
from rslm.gpu_check.budget import Budget
from rslm.gpu_check.cases import Case, Dtype
from rslm.profiling.tables import Record, Table, column
from rslm.profiling.timing import Announce, quiet

ALLOWED = {"output": 2.0, "q gradient": 3.0, "k gradient": 3.0, "v gradient": 3.0}
"""Times the error of the formula in the same dtype that a kernel's may be."""
SLACK = 1e-5
"""Is allowed on top, for errors of the formula that happen to be zero."""


def check_correctness(
    cases: Sequence[Case],
    dtypes: Sequence[Dtype],
    device: torch.device,
    budget: Budget,
    *,
    share: float,
    announce: Announce = quiet,
) -> list[Record]:
    """A record for each case and dtype: errors against float64, by the rule of flash-attention.

    `worst` is the largest error as a share of the allowed one, which is twice that of the
    formula in the same dtype for the output, three times for gradients, and 1e-5 on top.

    Source of the rule: the tests of Dao-AILab/flash-attention.
    """
    records = []
    for dtype in dtypes:
        for case in (replace(case, dtype=dtype) for case in cases):
            if budget.allows(f"correctness of {case.label}", share):
                announce(f"correctness: {case.label}")
                records.append(_check(case, device))
    return records


def _check(case: Case, device: torch.device) -> Record:
    heads = case.draw(device)
    exact = run(case, "reference", *(x.double() for x in heads))
    plain = run(case, "reference", *heads)
    ours = run(case, "triton", *heads)
    record, worst = case.record(), 0.0
    for name, expected, ordinary, found in zip(ALLOWED, exact, plain, ours, strict=True):
        error, ordinary_error = _largest(found - expected), _largest(ordinary - expected)
        record[f"{name} error"] = error
        record[f"{name} error of the formula"] = ordinary_error
        used = error / (ALLOWED[name] * ordinary_error + SLACK)
        worst = max(worst, math.inf if math.isnan(used) else used)
    return record | {"worst": worst, "passed": worst <= 1.0}


def run(case: Case, implementation: Implementation, *heads: Tensor) -> list[Tensor]:
    """Output and gradients of an implementation."""
    q, k, v = (x.detach().requires_grad_() for x in heads[:3])
    output = attention(
        *(q, k, v),
        causal=case.causal,
        window=case.window,
        softcap=case.softcap,
        start=case.start(q.device),
        implementation=implementation,
    )
    return [output.detach(), *torch.autograd.grad(output, (q, k, v), heads[3])]


def _largest(difference: Tensor) -> float:
    return float(difference.abs().max())


def hunt_races(
    cases: Sequence[Case],
    device: torch.device,
    budget: Budget,
    *,
    share: float,
    n_repetitions: int,
    announce: Announce = quiet,
) -> list[Record]:
    """A record for each case: how many repetitions gave other bits than the first.

    The kernels use no atomics, so equal inputs give equal bits. On a GPU a second stream keeps
    the memory busy with products of a changing size meanwhile, so that programs meet in another
    order each time.
    """
    records = []
    for case in cases:
        if not budget.allows(f"repetitions of {case.label}", share):
            continue
        announce(f"repetitions: {case.label}")
        heads = case.draw(device)
        first = run(case, "triton", *heads)
        n_done = n_different = 0
        while n_done < n_repetitions and budget.until(share) > 0:
            _disturb(device, n_done)
            again = run(case, "triton", *heads)
            n_different += not all(map(torch.equal, first, again))
            n_done += 1
        records.append(
            case.record()
            | {"n_repetitions": n_done, "n_different": n_different, "passed": n_different == 0}
        )
    return records


def _disturb(device: torch.device, turn: int) -> None:
    if device.type != "cuda":
        return
    with torch.cuda.stream(torch.cuda.Stream(device)):
        side = 512 + 256 * (turn % 7)
        noise = torch.ones(side, side, device=device)
        torch.mm(noise, noise)


_VERDICT = column("verdict", "passed", lambda passed: "passed" if passed else "FAILED")


def correctness_table(records: list[Record]) -> Table:
    """The table of `check_correctness`."""
    return Table(
        name="correctness",
        title="Largest errors against float64; share of what is allowed (2x, 3x the formula's)",
        columns=(
            column("case", "case"),
            *(column(name, f"{name} error", lambda error: f"{error:.1e}") for name in ALLOWED),
            column("worst share", "worst", lambda share: f"{share:.2f}"),
            _VERDICT,
        ),
        records=records,
    )


def races_table(records: list[Record]) -> Table:
    """The table of `hunt_races`."""
    return Table(
        name="races",
        title="The same inputs again and again: results that differ in a bit",
        columns=(
            column("case", "case"),
            column("repetitions", "n_repetitions"),
            column("different", "n_different"),
            _VERDICT,
        ),
        records=records,
    )
