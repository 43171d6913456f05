"""`rslm scaling plan | run`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from rslm.commands.plan import NOT_GIVEN, with_places
from rslm.commands.train import defaults as train_defaults
from rslm.config import Record
from rslm.terminal import Switch, note, print_json, print_table, with_prefix
from rslm.train_config import TrainConfig

if TYPE_CHECKING:
    from rslm.experiment.isoflop import IsoflopRun

Counting = Literal["all", "non-embedding", "body"]

EXIT_FAILED = 1


@dataclass(frozen=True, kw_only=True)
class StudyConfig(TrainConfig):
    """The options of a run, with other words for where runs are made."""

    out: Path
    """Folder of the study; rslm scaling run makes the runs in it and needs it."""


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """Plan runs that spend several budgets on several sizes each.

    Takes the options of `rslm train`: those of a run whose batch and rates are tuned, from which
    those of the others follow (rslm.experiment.isoflop). Sizes are decided by the plan.
    """

    budgets: str
    """FLOPs to spend, as 1e16,3e16,1e17."""
    sizes: int = 6
    """Sizes for each budget; with --wsd-s of the whole plan."""
    width: float = 4.0
    """Smallest and largest size are this factor away from the guess of the best."""
    tokens_per_parameter: float = 20.0
    """The guess of the best."""
    counting: Counting = "non-embedding"
    """Which parameters are N: all, those without the input embedding, those of the blocks."""
    wsd_s: Switch = False
    """One run for each size, whose rate decays at every budget (schedule wsd-s)."""
    flops_per_second: float | None = None
    """Speed of this machine in training FLOPs, for the time it will take."""
    measure: Switch = False
    """Time a few real steps of every size on this machine instead."""
    measured_steps: int = 3
    """With --measure: steps to time, after two to warm up."""
    price: float | None = None
    """Price of the machine for an hour, in any currency."""
    processes: int = 1
    """Runs at once."""
    preset: str | None = None
    """Options that ship, as for rslm train."""
    config: Path | None = None
    """TOML file of options; it wins over the preset, flags win over both."""
    json: Switch = False
    """Print JSON."""
    run: Annotated[StudyConfig, tyro.conf.arg(name="")] = field()

    def __post_init__(self) -> None:
        """Refuse numbers that cannot be, and two sources of one number."""
        for name in ("processes", "measured_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        speed = self.flops_per_second
        if speed is not None and not 1 <= speed < math.inf:
            raise ValueError(f"flops_per_second must be at least 1, got {speed}")
        if self.price is not None and not 0 <= self.price < math.inf:
            raise ValueError(f"price must be at least 0, got {self.price}")
        if self.measure and speed is not None:
            raise ValueError("give measure or flops_per_second, not both")


@dataclass(frozen=True, kw_only=True)
class RunOptions(PlanOptions):
    """Make the runs of a plan; the same command goes on where it was stopped.

    The options are those of `rslm scaling plan`; --out is the folder of the study.
    """


def defaults(arguments: Sequence[str]) -> Record:
    """What stands in for flags that are not given; nothing has to be."""
    return with_places(train_defaults(arguments))


def plan(options: PlanOptions) -> None:
    """Prints the runs, what they take and cost."""
    runs, n_data_tokens = planned_runs(options)
    seconds = seconds_of(options, runs)
    rows = [run_record(run, time) for run, time in zip(runs, seconds, strict=True)]
    total = total_record(options, runs, seconds)
    if options.json:
        print_json({"runs": rows, "total": total})
    else:
        print_plan(rows, total, options.price)
    warn_of(runs, n_data_tokens)


def planned_runs(options: PlanOptions) -> tuple[list["IsoflopRun"], int | None]:
    """The runs, and how many tokens the data has.

    Raises:
        ValueError: the vocabulary is not known, or no plan can be made of the options.
    """
    from rslm.experiment.isoflop import plan_isoflop

    config, n_data_tokens = with_vocabulary(options.run)
    runs = plan_isoflop(
        config,
        numbers(options.budgets),
        n_sizes=options.sizes,
        width=options.width,
        tokens_per_parameter=options.tokens_per_parameter,
        counting=options.counting,
        wsd_s=options.wsd_s,
    )
    return runs, n_data_tokens


def with_vocabulary(config: TrainConfig) -> tuple[TrainConfig, int | None]:
    """The options with the vocabulary's size, and how many tokens the data has.

    Raises:
        ValueError: neither options nor data say how large the vocabulary is.
    """
    from rslm.token_file import TokenFile

    n_data_tokens = None
    if config.data.train != NOT_GIVEN:
        files = [TokenFile.open(path) for path in (config.data.train, *config.data.mixed_in)]
        n_data_tokens = sum(map(len, files))
        if config.model.vocab_size is None:
            size = files[0].vocab_size
            config = replace(config, model=replace(config.model, vocab_size=size))
    if config.model.vocab_size is None:
        raise ValueError(
            "model.vocab_size must be given, or a token file that states it with --data.train"
        )
    return config, n_data_tokens


def require_places(config: TrainConfig) -> None:
    """Refuses options without a folder for the runs, or data.

    Raises:
        ValueError: one is missing.
    """
    for name, path in (("out", config.out), ("data.train", config.data.train)):
        if path == NOT_GIVEN:
            raise ValueError(f"{name} must be given to make runs")


def numbers(text: str) -> list[float]:
    """The numbers of a list with commas.

    Raises:
        ValueError: one is none.
    """
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"budgets must be numbers with commas between, got {text!r}") from None


def seconds_of(options: PlanOptions, runs: Sequence["IsoflopRun"]) -> list[float | None]:
    """How long each run takes, where anything says so."""
    if options.flops_per_second is not None:
        return [run.train_flops / options.flops_per_second for run in runs]
    if not options.measure:
        return [None] * len(runs)
    from rslm.step_speed import measure_step

    seconds: list[float | None] = []
    for run in runs:
        config = run.config
        micro = config.micro_batch_size or config.batch_size
        speed = measure_step(config, micro, options.measured_steps)
        seconds.append(config.n_steps * speed.step_seconds(config.batch_size // micro))
    return seconds


def run_record(run: "IsoflopRun", seconds: float | None) -> dict[str, Any]:
    """A run of a plan in plain values."""
    from rslm.experiment.shapes import count_parameters

    config, model = run.config, run.config.model
    return {
        "name": run.planned().name,
        "flop_budgets": list(run.flop_budgets),
        "d_model": model.d_model,
        "n_layers": model.n_layers,
        "n_heads": model.n_heads,
        "n_parameters": count_parameters(model, "all"),
        "n_non_embedding_parameters": count_parameters(model, "non-embedding"),
        "n_body_parameters": count_parameters(model, "body"),
        "n_tokens": run.n_tokens,
        "tokens_per_parameter": run.n_tokens / run.n_parameters,
        "train_flops": run.train_flops,
        "n_steps": config.n_steps,
        "ends": list(run.ends),
        "batch_size": config.batch_size,
        "learning_rate": config.optimizer.learning_rate,
        "warmup_steps": config.optimizer.warmup_steps,
        "seconds": seconds,
    }


def total_record(
    options: PlanOptions, runs: Sequence["IsoflopRun"], seconds: Sequence[float | None]
) -> dict[str, Any]:
    """What all runs take together."""
    known = [time for time in seconds if time is not None]
    hours = sum(known) / options.processes / 3600 if len(known) == len(runs) else None
    cost = None if hours is None or options.price is None else hours * options.price
    return {
        "n_runs": len(runs),
        "train_flops": sum(run.train_flops for run in runs),
        "hours": hours,
        "cost": cost,
    }


def print_plan(rows: Sequence[dict[str, Any]], total: dict[str, Any], price: float | None) -> None:
    """Prints a row for each run, and the sum below."""
    from rslm.series import duration

    header = ["FLOPs", "width", "layers", "N all", "N+head", "N body", "tokens", "tokens/N"]
    header += ["steps", "batch", "rate", "time"]
    cells = [
        [
            ",".join(f"{budget:.4g}" for budget in row["flop_budgets"]),
            *(row["d_model"], row["n_layers"], row["n_parameters"]),
            *(row["n_non_embedding_parameters"], row["n_body_parameters"], row["n_tokens"]),
            *(row["tokens_per_parameter"], row["n_steps"], row["batch_size"]),
            f"{row['learning_rate']:.2e}",
            "-" if row["seconds"] is None else duration(row["seconds"]),
        ]
        for row in rows
    ]
    print_table(header, cells)
    parts = [f"{total['n_runs']} runs", with_prefix(total["train_flops"], "FLOP")]
    if total["hours"] is None:
        parts.append("time not known: --measure or --flops-per-second tells")
    else:
        parts.append(duration(3600 * total["hours"]))
    if total["cost"] is not None:
        parts.append(f"cost {total['cost']:,.2f} at {price:g} an hour")
    print(", ".join(parts))


def warn_of(runs: Sequence["IsoflopRun"], n_data_tokens: int | None) -> None:
    """Says on stderr what would make the laws doubtful."""
    from rslm.experiment.isoflop import plan_pitfalls

    for sentence in plan_pitfalls(runs, n_data_tokens):
        note(f"warning: {sentence}")


def run(options: RunOptions) -> int:
    """Makes the runs that are not finished yet, and says how they ended."""
    from rslm.config import to_record
    from rslm.experiment.queue import run_all

    require_places(options.run)
    runs, n_data_tokens = planned_runs(options)
    warn_of(runs, n_data_tokens)
    base = to_record(options.run)
    del base["out"]
    names = ("budgets", "sizes", "width", "tokens_per_parameter", "counting", "wsd_s")
    study = {"kind": "scaling", "plan": {n: getattr(options, n) for n in names}, "base": base}
    planned = [run.planned() for run in runs]
    outcomes = run_all(planned, options.run.out, n_processes=options.processes, study=study)
    rows = [
        {"run": o.path.name, "status": o.status, "seconds": o.seconds, "message": o.message}
        for o in outcomes
    ]
    if options.json:
        print_json(rows)
    else:
        print_table(["run", "status", "seconds"], [list(row.values())[:3] for row in rows])
    for row in rows:
        if row["message"]:
            note(f"{row['run']}: {row['message']}")
    note(f"next: rslm scaling fit {options.run.out}")
    return EXIT_FAILED if any(o.status == "failed" for o in outcomes) else 0
