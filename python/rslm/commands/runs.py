"""`rslm runs ls | show | plot | diff | band`."""

from dataclasses import dataclass
from pathlib import Path

from rslm.commands.inputs import Files
from rslm.commands.tokenizer import File
from rslm.terminal import Switch, note, print_fields, print_json, print_table

COLUMNS = ("status", "step", "n_steps", "loss", "val_loss", "best_val_loss", "tokens_per_second")


@dataclass(frozen=True, kw_only=True)
class LsOptions:
    """List the runs in a folder."""

    folder: File = Path("runs")
    """Folder of run folders."""
    json: Switch = False
    """Print JSON."""


def ls(options: LsOptions) -> None:
    """Prints a row for each run, by name."""
    from rslm.runs import find_runs, read_run, summarise

    rows = [summarise(read_run(path)) for path in find_runs(options.folder)]
    if options.json:
        print_json(rows)
        return
    has_rewards = any(row["val_reward"] is not None for row in rows)
    columns = ["run", *COLUMNS, *(["val_reward"] if has_rewards else [])]
    print_table(columns, [[row[key] for key in columns] for row in rows])


@dataclass(frozen=True, kw_only=True)
class ShowOptions:
    """Describe a run."""

    run: File
    """Run folder."""
    json: Switch = False
    """Print JSON."""


def show(options: ShowOptions) -> None:
    """Prints how far the run came, its checkpoints, its losses as a line, its options."""
    from rslm.runs import describe, read_run
    from rslm.series import sparkline

    run = read_run(options.run)
    record = describe(run)
    if options.json:
        print_json(record)
        return
    config = record.pop("config")
    record["checkpoints"] = " ".join(record["checkpoints"])
    # The loss of a run on rewards says nothing.
    name, metric = ("losses", "loss") if run.last("reward") is None else ("rewards", "reward")
    print_fields(record | {name: sparkline(run.curve(metric, "step")[1], 60)})
    print()
    print_fields(config)


@dataclass(frozen=True, kw_only=True)
class PlotOptions:
    """Draw a metric of several runs in one picture."""

    runs: Files
    """Run folders."""
    out: Path = Path("runs.png")
    """Picture to write, in the format of its name."""
    metric: str | None = None
    """Key of metrics.jsonl to draw: val_reward or val_loss where all runs have it, else loss."""
    over: str = "n_tokens"
    """Key to draw it over: n_tokens, step, train_flops or elapsed_seconds."""


def plot(options: PlotOptions) -> None:
    """Writes the picture."""
    from rslm.runs import plot_runs, read_run

    if not options.runs:
        raise ValueError("runs must name at least one run folder")
    runs = [read_run(path) for path in options.runs]
    shared = [m for m in ("val_reward", "val_loss") if all(run.last(m) is not None for run in runs)]
    metric = options.metric or [*shared, "loss"][0]
    plot_runs(runs, options.out, metric=metric, over=options.over)
    note(f"wrote {options.out}")


@dataclass(frozen=True, kw_only=True)
class DiffOptions:
    """Compare the options and the results of two runs."""

    one: File
    """Run folder."""
    other: File
    """Run folder to compare it with."""
    json: Switch = False
    """Print JSON."""


def diff(options: DiffOptions) -> None:
    """Prints what differs, side by side."""
    from rslm.runs import differences, read_run

    pairs = differences(read_run(options.one), read_run(options.other))
    if options.json:
        print_json({name: list(pair) for name, pair in pairs.items()})
        return
    rows = [[name, *map(str, pair)] for name, pair in pairs.items()]
    print_table(["", str(options.one), str(options.other)], rows)


@dataclass(frozen=True, kw_only=True)
class BandOptions:
    """Make a reference curve of finished runs that differ in their seed alone."""

    runs: Files
    """Run folders, at least three."""
    name: str
    """What warnings call the curve."""
    out: Path
    """TOML file to write, for --reference-curve."""


def band(options: BandOptions) -> None:
    """Writes the median of the runs' losses, and how far a further run may be from it."""
    from rslm.checkpoint import newest_checkpoint, read_state
    from rslm.files import write_atomically
    from rslm.reference_curve import curve_to_toml, measure_curve, training_data
    from rslm.runs import read_run, read_starts

    runs = [read_run(path) for path in options.runs]
    fingerprints = []
    for run in runs:
        newest, _ = newest_checkpoint(run.path / "checkpoints")
        if newest is None or run.status != "finished":
            raise ValueError(f"runs must be finished and have a checkpoint, {run.path} is not")
        state = read_state(newest)
        if len(state["batch_sizes"]) != 1:
            raise ValueError(f"the batch size must be one all along, {run.path} changed it")
        fingerprints.append(training_data(state["data"]))
        if fingerprints[-1] != fingerprints[0]:
            raise ValueError(f"runs must have the same data, {run.path} has other")
    start = read_starts(runs[0].path)[-1]
    measured = (
        f"{len(runs)} runs on {start['cuda'] or start['cpu']}, rslm {start['versions']['rslm']}, "
        f"torch {start['versions']['torch']}, {start['started'][:10]}"
    )
    configs, rows = [run.config for run in runs], [run.rows for run in runs]
    curve = measure_curve(options.name, measured, configs, rows, fingerprints[0])
    write_atomically(options.out, curve_to_toml(curve).encode())
    note(f"wrote {options.out}")
