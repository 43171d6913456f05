"""`rslm ablate`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from rslm.commands.tokenizer import File
from rslm.config import Record, check_record, merge_records, read_toml
from rslm.terminal import Switch, note, print_json, print_table
from rslm.train_config import TrainConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rslm.experiment.ablation_results import Ablation
    from rslm.experiment.queue import Outcome

EXIT_FAILED = 1

Repeated = Annotated[tuple[str, ...], tyro.conf.UseAppendAction]


@dataclass(frozen=True, kw_only=True)
class AblateOptions:
    """Change options one at a time against a baseline, over several seeds, and say what is real.

    On each axis the baseline has the base's own value where it is among those named, else the
    first. Runs are made side by side, each in a folder of its own under --out, beside a table
    (ablation.md, ablation.json) and pictures (curves.png, forest.png). The same command goes on
    with what was stopped.
    """

    base: File
    """TOML file of options as `rslm train --config` reads it."""
    axis: Repeated
    """OPTION=VALUE,VALUE,... as model.ffn=swiglu,relu2; once for each option (required)."""
    out: Path
    """Folder of the study."""
    seeds: int = 3
    """Runs of each choice, from the base's own seed on."""
    grid: Switch = False
    """Make all combinations of values instead of changing one option at a time."""
    set: Repeated = ()
    """OPTION=VALUE that wins over the base's, for all runs."""
    metric: str | None = None
    """Key of metrics.jsonl to compare by; val_bits_per_byte, val_loss or loss unless given."""
    processes: int = 1
    """Runs at once; they share the CPU's threads evenly."""
    confidence: float = 0.95
    """Confidence of the intervals."""
    dry_run: Switch = False
    """Check everything, list the runs and what they cost, and do nothing else."""
    json: Switch = False
    """Print JSON."""

    def __post_init__(self) -> None:
        """Refuse numbers that cannot be."""
        if not 0.5 <= self.confidence <= 0.9999:
            raise ValueError(f"confidence must be in [0.5, 0.9999], got {self.confidence}")
        if self.processes < 1:
            raise ValueError(f"processes must be at least 1, got {self.processes}")


def ablate(options: AblateOptions) -> int:
    """Makes the runs, writes table and pictures, prints the table."""
    from rslm.experiment.ablate import plan_ablation, run_ablation
    from rslm.experiment.ablation_results import analyse
    from rslm.experiment.axes import parse_axis, require_data, require_metric
    from rslm.experiment.compare import KNOWN_METRICS

    plan = plan_ablation(
        base_record(options.base, options.set),
        [parse_axis(text) for text in options.axis],
        n_seeds=options.seeds,
        complete=complete,
        grid=options.grid,
    )
    if options.metric is not None:
        require_metric(options.metric, KNOWN_METRICS, plan.planned)
    if options.dry_run:
        require_data(plan.planned)
        print_plan([(run.name, run.options) for run in plan.planned])
        return 0
    outcomes = run_ablation(plan, options.out, n_processes=options.processes)
    if none_finished(outcomes, as_json=options.json):
        return EXIT_FAILED
    for outcome in outcomes:
        if outcome.status == "failed":
            note(f"{outcome.run.name} failed: {outcome.message}")
    ablation = analyse(plan, outcomes, metric=options.metric, confidence=options.confidence)
    write(ablation, options.out, as_json=options.json)
    return int(any(outcome.status == "failed" for outcome in outcomes))


def none_finished(outcomes: "Sequence[Outcome]", *, as_json: bool) -> bool:
    """Whether no run finished; prints how each ended then, as there is nothing to compare."""
    if any(outcome.status == "finished" for outcome in outcomes):
        return False
    rows = [{"run": o.run.name, "status": o.status, "message": o.message} for o in outcomes]
    if as_json:
        print_json({"runs": rows})
    else:
        print_table(["run", "status", "message"], [list(row.values()) for row in rows])
    note("no run finished: there is nothing to compare")
    return True


def base_record(base: Path, settings: tuple[str, ...]) -> Record:
    """The options of the file, and those that win over them.

    Raises:
        ValueError: the file is no TOML, or an option does not fit.
        OSError: the file cannot be read.
    """
    from rslm.experiment.axes import parse_setting

    record = check_record(TrainConfig, read_toml(base), str(base))
    record.pop("out", None)
    if "train" not in record.get("data", {}):
        raise ValueError(f"{base} must name the token file to train on, as data.train")
    for text in settings:
        record = merge_records(record, parse_setting(text))
    return record


def complete(record: Record) -> Record:
    """Fills in what `depth` decides, as `rslm train` does."""
    from rslm.commands.train import turn_dial

    return turn_dial(record, ())


def print_plan(runs: "list[tuple[str, Record]]") -> None:
    """Lists runs with steps and FLOPs."""
    from rslm.config import from_record
    from rslm.experiment.queue_display import run_flops

    rows, total = [], 0.0
    for name, options in runs:
        config = from_record(TrainConfig, options | {"out": name})
        flops = run_flops(config)
        total += flops
        rows.append([name, config.n_steps, f"{flops:.3g}"])
    print_table(["run", "steps", "FLOPs"], [*rows, [f"{len(rows)} runs", "", f"{total:.3g}"]])


def write(ablation: "Ablation", out: Path, *, as_json: bool) -> None:
    """Writes table and pictures beside the runs, and prints the table."""
    from rslm.experiment.ablation_pictures import PICTURES
    from rslm.experiment.ablation_results import HEADER, to_markdown, to_record, to_rows
    from rslm.files import write_atomically

    record = to_record(ablation)
    write_atomically(out / "ablation.json", json.dumps(record, indent=1).encode())
    write_atomically(out / "ablation.md", to_markdown(ablation).encode())
    for name, draw in PICTURES:
        draw(ablation, out / name)
    if as_json:
        print_json(record)
    else:
        labels = ablation.plan.arms[0].labels.items()
        print("baseline:", ", ".join(f"{option} = {value}" for option, value in labels))
        print_table(HEADER, to_rows(ablation))
    note(f"wrote {out}/ablation.md, ablation.json, {', '.join(name for name, _ in PICTURES)}")
