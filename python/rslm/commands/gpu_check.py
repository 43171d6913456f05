"""`rslm gpu-check`, also `python -m rslm.gpu_check`."""

import os
from dataclasses import dataclass
from pathlib import Path

from rslm.commands.profile import setting
from rslm.terminal import Switch, note

EXIT_FAILED = 1


@dataclass(frozen=True, kw_only=True)
class GpuCheckOptions:
    """Check and time the attention kernels on this GPU, in one go.

    Results against float64, the same inputs again and again, attention over block tables,
    TFLOP/s beside PyTorch's kernels, FlexAttention and flash-attn (where installed), launch
    configurations, and training steps.
    The exit code is 1 where a result is wrong.
    """

    out: Path
    """Folder for the report: Markdown, CSV, JSON and a picture."""
    minutes: float = 8.0
    """Time that it may take; what does not fit is left out, and named."""
    device: str = "cuda"
    """cuda, or cuda:1."""
    dry_run: Switch = False
    """Go through all of it on a CPU, with tiny shapes and Triton's interpreter."""

    def __post_init__(self) -> None:
        """Refuse what leaves no time."""
        if not self.device.startswith("cuda"):
            raise ValueError(f"device must be cuda or cuda:N, got {self.device}")
        if not 0 < self.minutes <= 1440:
            raise ValueError(f"minutes must be above 0 and at most 1440, got {self.minutes}")


def gpu_check(options: GpuCheckOptions) -> int:
    """Prints the tables and writes the report; 1 if a result is wrong."""
    if options.dry_run:
        # Triton reads it when it is imported, which nothing has done yet.
        os.environ["TRITON_INTERPRET"] = "1"
    from rslm.gpu_check.budget import Budget
    from rslm.gpu_check.check import DRY, FULL, measure
    from rslm.gpu_check.report import Report
    from rslm.infer.load import choose_device
    from rslm.profiling.tables import print_tables

    device = choose_device("cpu" if options.dry_run else options.device)
    # Before minutes of measuring, not after them.
    options.out.mkdir(parents=True, exist_ok=True)
    budget = Budget(60 * options.minutes)
    scope = DRY if options.dry_run else FULL
    report = Report(out=options.out, setting=setting(device), budget=budget)
    for table in measure(scope, device, budget, announce=note):
        # An interrupt keeps the sections that are over.
        report.tables.append(table)
        report.write()
    print_tables([table for table in report.tables if table.records])
    for line in report.patch:
        print(f"for the launch table: {line}")
    for what in budget.left_out:
        note(f"left out, as the time was over: {what}")
    note(f"wrote {options.out}")
    return 0 if report.passed else EXIT_FAILED
