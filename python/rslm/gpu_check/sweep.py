"""Launch configurations timed on the device: which row the launch table should have."""

from collections.abc import Sequence
from dataclasses import astuple, replace
from functools import partial

import torch

from rslm.gpu_check.budget import Budget
from rslm.gpu_check.cases import Case
from rslm.gpu_check.speed import seconds_per_call
from rslm.kernels.flash_attention import forward
from rslm.kernels.flash_launch import Launch, Problem, backward_launches, forward_launch
from rslm.kernels.launch_configs import (
    FlashConfig,
    LaunchConfig,
    architecture,
    flash_config,
    padded_width,
)
from rslm.kernels.offline.sweep import approved, candidates
from rslm.kernels.offline.targets import TARGETS
from rslm.profiling.tables import Record, Table, column
from rslm.profiling.timing import Announce, quiet

KERNELS = ("forward", "key_gradients", "query_gradients")


def sweep(
    cases: Sequence[Case],
    device: torch.device,
    budget: Budget,
    *,
    share: float,
    announce: Announce = quiet,
) -> list[Record]:
    """A record for each kernel, head width and configuration that passes the offline gate.

    Those of the launch table are among them, marked by `is_table`; `is_best` marks the fastest.
    On an architecture that the gate does not know none is taken out, and the interpreter, to
    which all are the same, tries two.
    """
    arch = architecture(device)
    records: list[Record] = []
    for case in cases:
        table = flash_config(arch, case.d_head, case.torch_dtype)
        tried = candidates(arch, case.d_head)
        for kernel in KERNELS:
            if not budget.allows(f"sweep of {kernel}, {case.label}", share):
                continue
            announce(f"sweep: {kernel}, {case.label}")
            own: LaunchConfig = getattr(table, kernel)
            found = tried[kernel] if arch != "cpu" else tried[kernel][:2]
            if arch in TARGETS:
                found = approved(kernel, found, arch, case.d_head, case.torch_dtype)
            configs = dict.fromkeys([own, *found])
            records += _time(case, device, kernel, list(configs), table, budget, share)
    return records


def _time(
    case: Case,
    device: torch.device,
    kernel: str,
    configs: list[LaunchConfig],
    table: FlashConfig,
    budget: Budget,
    share: float,
) -> list[Record]:
    records: list[Record] = []
    for config in configs:
        if not budget.allows(f"sweep of {kernel}, {case.label}, {astuple(config)}", share):
            break
        tried = replace(table, **{kernel: config})
        launch = launches(case, device, tried)[kernel]
        seconds = seconds_per_call(partial(launch.run, device), device)
        records.append(
            case.record()
            | {"kernel": kernel, "seconds": seconds, "is_table": config == getattr(table, kernel)}
            | vars(config)
        )
    best = min((record["seconds"] for record in records), default=0.0)
    return [record | {"is_best": record["seconds"] == best} for record in records]


def launches(case: Case, device: torch.device, config: FlashConfig) -> dict[str, Launch]:
    """The kernels with a loop, by name, ready to run on drawn tensors again and again."""
    q, k, v, gradient = case.draw(device)
    problem = Problem(q, k, v, None, case.causal, 0, case.d_head**-0.5, None)
    out, lse = forward(problem, config)
    gradients = (torch.empty_like(q), torch.empty_like(k), torch.empty_like(v))
    zeros = torch.zeros_like(lse)
    first = forward_launch(problem, out, lse, config.forward)
    terms, *rest = backward_launches(problem, None, out, lse, gradient, zeros, gradients, config)
    terms.run(device)  # The others read what it writes.
    return dict(zip(KERNELS, (first, *rest), strict=True))


def table_patch(records: list[Record]) -> list[str]:
    """Rows for the launch table, one for each head width whose kernels were all timed.

    A row that stands already is not given again.
    """
    lines = []
    for d_head in dict.fromkeys(record["d_head"] for record in records):
        own = [record for record in records if record["d_head"] == d_head]
        best = {record["kernel"]: record for record in own if record["is_best"]}
        if len(best) < len(KERNELS) or all(record["is_table"] for record in best.values()):
            continue
        fields = ("tile_queries", "tile_keys", "n_warps", "n_stages")
        rows = [tuple(best[kernel][field] for field in fields) for kernel in KERNELS]
        use = {best[kernel]["use_descriptors"] for kernel in KERNELS}
        tail = ", use_descriptors=True" if use == {True} else ""
        lines.append(f"{padded_width(d_head)}: _table({', '.join(map(str, rows))}{tail}),")
    return lines


def sweep_table(records: list[Record]) -> Table:
    """The table of `sweep`."""
    return Table(
        name="sweep",
        title="Launch configurations: milliseconds of one kernel",
        columns=(
            column("kernel", "kernel"),
            column("d_head", "d_head"),
            *(column(name, name) for name in ("tile_queries", "tile_keys", "n_warps", "n_stages")),
            column("descriptors", "use_descriptors"),
            column("ms", "seconds", lambda seconds: f"{1e3 * seconds:,.3f}"),
            column("best", "is_best"),
            column("in table", "is_table"),
        ),
        records=records,
    )
