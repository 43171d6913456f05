"""The section of a report on scaling laws: the runs by budget, the laws, what these foretell."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rslm.config import Record
from rslm.errors import FormatError
from rslm.experiment.isoflop_runs import read_scaling_runs
from rslm.experiment.report_cells import amount, number_cell, text_cell
from rslm.html_report.blocks import Block, Cell, Notes, Plot, Section, Table, Trace
from rslm.scaling.fitted import Fit, Interval, Prediction
from rslm.scaling.laws import LossLaw
from rslm.scaling.points import ScalingPoints
from rslm.scaling.report import read_fits

FIT_FILE = "fit.json"

_N_PLACES = 25
_MAX_BUDGETS = 12
_LEVEL = 0.9
# A grey among the colours of lines, for runs beside the laws.
_GREY = 8


def scaling_section(fits_in: Sequence[Path], studies: Sequence[Path]) -> Section | None:
    """What laws say of the runs they were fitted to; None where there are neither.

    Args:
        fits_in: folders that may hold a `fit.json`; the first that does is read.
        studies: folders of scaling studies.

    Raises:
        FormatError: the `fit.json` is damaged.
    """
    points = _points(studies)
    path = next((folder / FIT_FILE for folder in fits_in if (folder / FIT_FILE).is_file()), None)
    if path is None:
        return None if points is None else _without_laws(points)
    fits = read_fits(path)
    record = json.loads(path.read_bytes())
    level, flops, warnings = _rest(record, fits, path)
    low, high = min(f.flop_range[0] for f in fits), max(f.flop_range[1] for f in fits)
    lead = (
        f"Fitted to {max(fit.n_points for fit in fits)} points of {low:.3g} to {high:.3g} FLOPs. "
        f"N is parameters, D tokens, C FLOPs; intervals hold {100 * level:g} % of the resamples."
    )
    blocks: list[Block] = [] if points is None else [_isoflops(points, fits)]
    blocks += _foretold(fits, points, (low, max(high, flops)), level)
    blocks += [_laws(fits, level), _predictions(fits, flops, level)]
    blocks += [Notes(title="Warnings", notes=warnings)] if warnings else []
    return Section(title="Scaling laws", lead=lead, blocks=blocks)


def _points(studies: Sequence[Path]) -> ScalingPoints | None:
    if not studies:
        return None
    try:
        return read_scaling_runs(studies).points
    except ValueError:  # No run is finished yet.
        return None


def _without_laws(points: ScalingPoints) -> Section:
    lead = (
        "No law was fitted yet: rslm scaling fit STUDY --out STUDY makes fit.json beside the runs."
    )
    return Section(title="Scaling laws", lead=lead, blocks=[_isoflops(points, [])])


def _rest(record: Record, fits: Sequence[Fit], path: Path) -> tuple[float, float, list[str]]:
    """Level of the intervals, the budget asked about, and warnings."""
    match record:
        case {
            "level": int() | float() as level,
            "flop_budget": int() | float() as flops,
            "warnings": list(warnings),
        } if 0 < level < 1 and flops > 0:
            return level, flops, list(map(str, warnings))
        case {"fits": _, **rest} if not rest:
            return _LEVEL, 10 * max(fit.flop_range[1] for fit in fits), []
    raise FormatError(f"{path} must hold level, flop_budget and warnings of rslm scaling fit")


def _isoflops(points: ScalingPoints, fits: Sequence[Fit]) -> Plot:
    """The loss over size, a colour for each budget, and what the first law expects there."""
    law = next((fit.law for fit in fits if isinstance(fit.law, LossLaw)), None)
    traces = []
    groups = list(points.by_budget().items())
    # Of many budgets some stand for all.
    kept = np.unique(np.linspace(0, len(groups) - 1, _MAX_BUDGETS).astype(int))
    for colour, (budget, own) in enumerate(groups[place] for place in kept):
        sizes, losses = own.n_parameters, own.loss
        labels = [f"{amount(d)} tokens" for d in own.n_tokens]
        name = f"{budget:.3g} FLOPs"
        traces.append(_trace(name, "points", sizes, losses, colour, labels=labels))
        if law is not None:
            places = np.geomspace(sizes.min() / 1.1, sizes.max() * 1.1, _N_PLACES)
            expected = law.loss(places, budget / (law.flops_factor * places))
            traces.append(_trace("", "line", places, expected, colour))
    lines = "" if law is None else " Lines are the first law."
    return Plot(
        caption=f"Loss of each budget over the size of the model.{lines}",
        x_title="N, parameters",
        y_title="loss (nats per token)",
        log_x=True,
        traces=traces,
    )


def _trace(name: str, kind: Any, x: Any, y: Any, colour: int, **more: Any) -> Trace:
    return Trace(name=name, kind=kind, x=list(x), y=list(y), colour=colour, **more)


def _foretold(
    fits: Sequence[Fit],
    points: ScalingPoints | None,
    flop_range: tuple[float, float],
    level: float,
) -> list[Block]:
    """Loss and size of the best model over FLOPs, of every law that has an optimum."""
    budgets = np.geomspace(*flop_range, _N_PLACES)
    found = [(fit.method, _predict_all(fit, budgets, level)) for fit in fits]
    runs = []
    if points is not None:
        runs = [_trace("runs", "points", points.train_flops, points.loss, _GREY)]
    axes: dict[str, Any] = {"x_title": "C, FLOPs", "log_x": True, "log_y": True}
    return [
        Plot(
            caption="Loss of the best model of each budget by every law, and the runs.",
            y_title="loss (nats per token)",
            traces=[*runs, *_bands(found, lambda prediction: prediction.loss)],
            **axes,
        ),
        Plot(
            caption="Size of the best model of each budget.",
            y_title="N*, parameters",
            traces=_bands(found, lambda prediction: prediction.n_parameters),
            **axes,
        ),
    ]


def _predict_all(fit: Fit, budgets: Any, level: float) -> list[Prediction]:
    try:
        return [fit.predict(float(budget), level=level) for budget in budgets]
    except ValueError:  # A law that does not fall with size, or with data, has no best size.
        return []


def _bands(
    found: Sequence[tuple[str, Sequence[Prediction]]], choose: Callable[[Prediction], Interval]
) -> list[Trace]:
    """A line for each law, and its interval behind."""
    traces = []
    for colour, (method, predictions) in enumerate(found):
        intervals = [choose(prediction) for prediction in predictions]
        budgets = [prediction.flop_budget for prediction in predictions]
        ends = [(i.low, i.high) for i in intervals if i.low is not None and i.high is not None]
        if intervals and len(ends) == len(intervals):
            low, high = zip(*ends, strict=True)
            traces.append(_trace("", "band", budgets, low, colour, high=high))
        traces.append(_trace(method, "line", budgets, [i.value for i in intervals], colour))
    return traces


def _laws(fits: Sequence[Fit], level: float) -> Table:
    heads = [
        ("method", ""),
        ("E", "loss that no size and no data goes below, nats per token"),
        ("α", "exponent of N in the loss"),
        ("β", "exponent of D in the loss"),
        ("a", "N* grows as this power of C"),
        ("b", "D* grows as this power of C"),
        ("points", "fitted to"),
        ("held-out error", "root mean square, nats, of the largest budgets told from the smaller"),
    ]
    return Table(
        caption="The laws: L = E + A N^-α + B D^-β, or of the optima alone.",
        columns=heads,
        rows=[_law_row(fit, level) for fit in fits],
    )


def _law_row(fit: Fit, level: float) -> list[Cell]:
    exponents = fit.exponents(level=level)
    names = ("irreducible_loss", "parameter_exponent", "token_exponent")
    held_out = None if fit.held_out is None else fit.held_out.rms_error
    return [
        text_cell(fit.method),
        *(_interval_cell(exponents.get(name), _digits) for name in names),
        *(_interval_cell(share, _digits) for share in fit.shares(level=level)),
        number_cell(fit.n_points, str),
        number_cell(held_out, _digits),
    ]


def _digits(value: float) -> str:
    return f"{value:.4g}"


def _interval_cell(interval: Interval | None, shown: Callable[[float], str]) -> Cell:
    if interval is None:
        return number_cell(None, shown)
    if interval.low is None or interval.high is None:
        return number_cell(interval.value, shown)
    low, high = shown(interval.low), shown(interval.high)
    return number_cell(interval.value, lambda value: f"{shown(value)} ({low} … {high})")


def _predictions(fits: Sequence[Fit], flop_budget: float, level: float) -> Table:
    rows = []
    for fit in fits:
        for found in _predict_all(fit, [flop_budget], level):
            rows.append(
                [
                    text_cell(fit.method),
                    _interval_cell(found.n_parameters, amount),
                    _interval_cell(found.n_tokens, amount),
                    number_cell(found.tokens_per_parameter, _digits),
                    _interval_cell(found.loss, _digits),
                    _interval_cell(found.run_loss, _digits),
                ]
            )
    heads = [
        ("method", ""),
        ("N*", "parameters of the best model"),
        ("D*", "tokens to train it on"),
        ("D*/N*", ""),
        ("loss", "of the law, nats per token"),
        ("loss of a run", "with the scatter of single runs"),
    ]
    caption = f"What the laws say of {flop_budget:.3g} FLOPs."
    return Table(caption=caption, columns=heads, rows=rows)
