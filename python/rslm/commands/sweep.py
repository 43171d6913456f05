"""`rslm sweep`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rslm.commands.ablate import (
    EXIT_FAILED,
    Repeated,
    base_record,
    complete,
    none_finished,
    print_plan,
)
from rslm.commands.tokenizer import File
from rslm.config import Record
from rslm.terminal import Switch, note, print_json, print_table

if TYPE_CHECKING:
    from rslm.experiment.sweep_results import SweepResult


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """Try many values of options, and say which are best and where training stops being stable.

    Runs are made side by side, each in a folder of its own under --out, beside a table (sweep.md,
    sweep.json) and a picture (sweep.png). The same command goes on with what was stopped.
    """

    base: File
    """TOML file of options as `rslm train --config` reads it."""
    over: Repeated
    """OPTION=log:LOW..HIGH, OPTION=linear:LOW..HIGH:POINTS or OPTION=VALUE,VALUE; again for each
    option that changes (required)."""
    out: Path
    """Folder of the sweep."""
    method: Literal["grid", "random", "tpe"] = "grid"
    """Equal distances, evenly drawn, or by a model of what was good so far (needs optuna)."""
    n_runs: int = 20
    """Runs in all; a grid may have fewer."""
    prune: Switch = False
    """Stop runs that are not among the best third after a ninth or a third of their steps."""
    set: Repeated = ()
    """OPTION=VALUE that wins over the base's, for all runs."""
    metric: str | None = None
    """val_bits_per_byte, val_loss or loss; val_loss where the base has data.valid, else loss."""
    seed: int = 0
    """Seed of points drawn; runs have the base's."""
    processes: int = 1
    """Runs at once; they share the CPU's threads evenly."""
    preset_out: Path | None = None
    """TOML file to write the best run's options into, for `rslm train --config`."""
    dry_run: Switch = False
    """Check everything, list the runs and what they cost, and do nothing else."""
    json: Switch = False
    """Print JSON."""

    def __post_init__(self) -> None:
        """Refuse numbers that cannot be."""
        for name in ("n_runs", "processes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")


def sweep(options: SweepOptions) -> int:
    """Makes the runs, writes table and picture, prints the table."""
    from rslm.experiment.space import parse_dimension
    from rslm.experiment.sweep import Sweep, planned_runs, run_sweep
    from rslm.experiment.sweep_results import analyse
    from rslm.files import require_place

    if options.preset_out is not None:
        require_place(options.preset_out)
    base = base_record(options.base, options.set)
    swept = Sweep(
        base=base,
        space=[parse_dimension(text) for text in options.over],
        method=options.method,
        n_runs=options.n_runs,
        metric=options.metric or metric_of(base),
        complete=complete,
        prune=options.prune,
        seed=options.seed,
    )
    if options.dry_run:
        print_plan([(run.name, run.options) for run in planned_runs(swept, options.out)])
        return 0
    outcomes = run_sweep(swept, options.out, n_processes=options.processes)
    if none_finished(outcomes, as_json=options.json):
        return EXIT_FAILED
    for outcome in outcomes:
        if outcome.status == "failed":
            note(f"{outcome.run.name} failed: {outcome.message}")
    write(analyse(swept, outcomes), options)
    return int(any(outcome.status == "failed" for outcome in outcomes))


def metric_of(base: Record) -> str:
    """What runs of these options are judged by."""
    return "loss" if base["data"].get("valid") is None else "val_loss"


def write(result: "SweepResult", options: SweepOptions) -> None:
    """Writes table, picture and preset, and prints the table."""
    from rslm.experiment.sweep_picture import draw_sweep
    from rslm.experiment.sweep_results import (
        edge_lines,
        to_markdown,
        to_preset,
        to_record,
        to_rows,
    )
    from rslm.files import write_atomically

    record = to_record(result)
    write_atomically(options.out / "sweep.json", json.dumps(record, indent=1).encode())
    write_atomically(options.out / "sweep.md", to_markdown(result).encode())
    draw_sweep(result, options.out / "sweep.png")
    if options.preset_out is not None:
        write_atomically(options.preset_out, to_preset(result).encode())
    if options.json:
        print_json(record)
    else:
        print_table(*to_rows(result))
        for line in edge_lines(result):
            print(line)
    preset = "" if options.preset_out is None else f"; the best into {options.preset_out}"
    note(f"wrote {options.out}/sweep.md, sweep.json, sweep.png{preset}")
