"""`rslm scaling fit | predict`."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rslm.commands.inputs import Files
from rslm.terminal import Switch, note, print_json, print_table, readable

if TYPE_CHECKING:
    from rslm.scaling.fitted import Fit, Method
    from rslm.scaling.points import ScalingPoints

Counting = Literal["all", "non-embedding", "body"]


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """Fit scaling laws to runs, by several methods side by side.

    A CSV or JSON file has parameters, tokens, FLOPs and loss of a run in each row; a folder is
    that of a study, of runs, or of one run.
    """

    inputs: Files
    """CSV or JSON files, or folders of runs."""
    method: str = "vpnls,parabolas"
    """Of vpnls, huber, parabolas, min-runs and envelope, with commas between."""
    out: Path | None = None
    """Folder for fit.json and scaling.png."""
    flops: float | None = None
    """Budget of which the methods are asked; ten times the largest one fitted unless given."""
    resamples: int = 1000
    """Resamples for the intervals."""
    level: float = 0.9
    """Share of the resamples that an interval holds."""
    seed: int = 0
    """Seed of the resamples."""
    counting: Counting = "non-embedding"
    """Which parameters of runs are N: all, without the input embedding, of the blocks."""
    drop_highest: int = 0
    """Leave out so many points of the highest loss."""
    published: Switch = False
    """Show what published laws of Chinchilla's points score on these."""
    json: Switch = False
    """Print JSON."""

    def __post_init__(self) -> None:
        """Refuse numbers that cannot be."""
        if not self.inputs:
            raise ValueError("inputs must name at least one file or folder")
        if not 20 <= self.resamples <= 1_000_000:
            raise ValueError(f"resamples must be 20 to 1,000,000, got {self.resamples}")
        if not 0 < self.level < 1:
            raise ValueError(f"level must lie between 0 and 1, got {self.level}")
        if self.flops is not None and not 0 < self.flops < math.inf:
            raise ValueError(f"flops must be positive, got {self.flops}")
        for name in ("drop_highest", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")


def fit(options: FitOptions) -> None:
    """Prints each method's law and what it says of a budget; writes the fits and a picture."""
    from rslm.scaling import report

    if options.out is not None:
        require_folder(options.out)
    methods = chosen_methods(options.method)
    points, curves = read_inputs(options)
    fits = report.fit_all(points, curves, methods, n_resamples=options.resamples, seed=options.seed)
    budget = options.flops or 10 * float(points.budgets.max())
    record = report.report_record(
        points, curves, fits, budget, level=options.level, published=options.published
    )
    if options.json:
        print_json({k: v for k, v in record.items() if k != "fits"})
    else:
        print_report(record)
    for sentence in record["warnings"]:
        note(f"warning: {sentence}")
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        write_fits(options.out, record, points, curves, fits, budget)


def require_folder(out: Path) -> None:
    """Refuses before the fits what cannot be made a folder after them.

    Raises:
        ValueError: it, or what it is to be in, is a file.
    """
    nearest = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise ValueError(f"out must be a folder or not exist yet, and {nearest} is a file")


def chosen_methods(text: str) -> list["Method"]:
    """The methods of a list with commas.

    Raises:
        ValueError: one is unknown, or comes twice.
    """
    from rslm.scaling.fitted import METHODS

    names = text.split(",")
    unknown = [name for name in names if name not in METHODS]
    if unknown or len(set(names)) < len(names):
        raise ValueError(f"method must be some of {','.join(METHODS)}, got {text!r}")
    return [method for method in METHODS if method in names]


def read_inputs(options: FitOptions) -> tuple["ScalingPoints", "ScalingPoints | None"]:
    """The points, and training curves where there are any.

    Raises:
        ValueError: files and folders are mixed, or there is more than one file.
    """
    import numpy as np

    from rslm.experiment.isoflop_runs import as_curves, read_scaling_runs
    from rslm.scaling.points import read_points

    folders = [path for path in options.inputs if path.is_dir()]
    if folders and len(folders) < len(options.inputs):
        raise ValueError("inputs must be one file, or folders of runs, not both")
    if not folders and len(options.inputs) > 1:
        raise ValueError(f"inputs must be one file, got {len(options.inputs)}")
    curves: ScalingPoints | None
    if folders:
        read = read_scaling_runs(folders, counting=options.counting)
        points, curves = read.points, read.curves
        if read.n_left_out:
            note(f"left out {read.n_left_out} runs that are not finished")
        if not read.is_validated:
            note("the losses are training losses: the runs have no validation")
    else:
        points = read_points(options.inputs[0])
        curves = as_curves(points)
    if options.drop_highest >= len(points):
        raise ValueError(f"drop_highest must be below {len(points)}, got {options.drop_highest}")
    kept = np.sort(np.argsort(points.loss, kind="stable")[: len(points) - options.drop_highest])
    return points.take(kept), curves


def print_report(record: dict[str, Any]) -> None:
    """Prints the tables of a report."""
    source = record["points"]
    note(
        f"{source['n_points']} points, {source['n_budgets']} budgets from "
        f"{source['flop_range'][0]:.3g} to {source['flop_range'][1]:.3g} FLOPs, "
        f"C/(ND) {source['flops_factor']:.3f}"
    )
    for table in ("laws", "predictions", "held_out", "published"):
        rows = record[table]
        if rows:
            print_table(list(rows[0]), [[shown(cell) for cell in row.values()] for row in rows])
            print()
    print(record["spread"])


def shown(cell: Any) -> Any:
    """A cell as a table has it: a number, or one with its interval."""
    if isinstance(cell, dict):
        if cell["low"] is None:
            return number(cell["value"])
        return f"{number(cell['value'])} [{number(cell['low'])}, {number(cell['high'])}]"
    return number(cell) if isinstance(cell, float) else cell


def number(value: float) -> str:
    """Four digits; sizes with a power of ten."""
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.3e}"
    return readable(float(value))


def write_fits(
    out: Path,
    record: dict[str, Any],
    points: "ScalingPoints",
    curves: "ScalingPoints | None",
    fits: Sequence["Fit"],
    budget: float,
) -> None:
    """Writes fit.json and scaling.png."""
    from rslm.files import write_atomically
    from rslm.scaling.pictures import draw_fits

    write_atomically(out / "fit.json", json.dumps(record).encode())
    draw_fits(points, fits, out / "scaling.png", flop_budget=budget, curves=curves)
    note(f"wrote {out / 'fit.json'} and {out / 'scaling.png'}")


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """Say from fitted laws how a budget would best be spent, and what loss that gives."""

    fit: Path
    """The fit.json that rslm scaling fit wrote."""
    flops: float | None = None
    """Budget."""
    parameters: float | None = None
    """Size of a run, with --tokens instead of a budget; counted as the fitted runs were."""
    tokens: float | None = None
    """Tokens of that run."""
    level: float = 0.9
    """Share of the resamples that an interval holds."""
    json: Switch = False
    """Print JSON."""

    def __post_init__(self) -> None:
        """Refuse numbers that cannot be, and a question that is none."""
        for name in ("flops", "parameters", "tokens"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive, got {value}")
        run = (self.parameters, self.tokens)
        if (self.flops is None) == (None in run) or (None in run) != (run == (None, None)):
            raise ValueError("give flops, or parameters and tokens")


def predict(options: PredictOptions) -> None:
    """Prints N*, D* and the loss, or the loss of a run, with intervals, for each fit."""
    from rslm.scaling.pitfalls import extrapolation_warning
    from rslm.scaling.report import prediction_row, read_fits

    rows: list[dict[str, Any]] = []
    for fitted in read_fits(options.fit):
        if options.flops is not None:
            rows.append(prediction_row(fitted, options.flops, level=options.level))
            warning = extrapolation_warning(fitted, options.flops)
            if warning is not None:
                note(f"warning: {fitted.method}: {warning}")
        elif fitted.method in ("vpnls", "huber"):
            assert options.parameters is not None
            assert options.tokens is not None
            found = fitted.predict_run(options.parameters, options.tokens, level=options.level)
            rows.append({"method": fitted.method, "loss of a run": vars(found)})
    if not rows:
        raise ValueError(f"{options.fit} must hold a fit by vpnls or huber to tell of any run")
    if options.json:
        print_json(rows)
    else:
        print_table(list(rows[0]), [[shown(cell) for cell in row.values()] for row in rows])
