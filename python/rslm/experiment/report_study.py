"""The sections of a report on what an ablation and a sweep found, from the files they wrote."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rslm.config import Record
from rslm.errors import FormatError
from rslm.experiment.compare import is_better
from rslm.experiment.report_cells import MISSING, flops, four_digits, number_cell, text_cell
from rslm.experiment.study import shown
from rslm.html_report.blocks import Cell, Effect, Forest, Plot, Section, Table, Tone, Trace
from rslm.series import duration

ABLATION_FILE = "ablation.json"
SWEEP_FILE = "sweep.json"

MIN_PLACES = 3
"""Values of an option from which on a curve over it says something."""


_DAMAGES = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
_NUMBER = int | float
_MAYBE = int | float | None
_ARM = {
    "axis": str,
    "name": str,
    "labels": dict,
    "values": dict,
    "verdict": str,
    "test": dict | None,
    "p_value_corrected": _MAYBE,
    "n_diverged": int,
    "train_flops": _MAYBE,
    "seconds": _MAYBE,
}
_TEST = {"effect": _NUMBER, "low": _NUMBER, "high": _NUMBER, "confidence": _NUMBER}
_RUN = {"labels": dict, "value": _MAYBE, "status": str, "train_flops": _MAYBE}
_EDGE = {"option": str, "choice": dict}


def study_sections(folder: Path) -> list[Section]:
    """What the files in a study's folder say, as far as there are any.

    Raises:
        FormatError: one is damaged.
    """
    sections = []
    for name, make in ((ABLATION_FILE, ablation), (SWEEP_FILE, sweep)):
        path = folder / name
        if path.is_file():
            try:
                sections.append(make(json.loads(path.read_bytes())))
            except _DAMAGES as error:
                message = f"{path} must hold results as rslm writes them: {error!r:.200}"
                raise FormatError(message) from None
    return sections


def _require_types(record: Record, types: Mapping[str, Any]) -> None:
    """Refuses what would end in an error only where the page is written, far from the file."""
    for name, kind in types.items():
        value = record[name]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise TypeError(f"{name} must not be {value!r:.80}")
        for number in value.values() if isinstance(value, dict) else [value]:
            if isinstance(number, int):
                float(number)  # One that is too large for a picture is an OverflowError.


def ablation(record: Record) -> Section:
    """Effects of the arms of an ablation, as a forest plot and as a table."""
    _require_types(record, {"metric": str, "arms": list})
    metric, arms = record["metric"], record["arms"]
    for arm in arms:
        _require_types(arm, _ARM)
        if arm["test"] is not None:
            _require_types(arm["test"], _TEST)
    tested = [arm for arm in arms if arm["test"] is not None]
    baseline = _choice(arms[0]["labels"])
    lead = (
        f"Each change is made alone, against the baseline ({baseline}); effects are on the final "
        f"{_words(metric)}. Runs of one seed are compared with each other, and p-values are "
        f"corrected for there being {len(tested)} tests (Holm)."
    )
    forest = [_forest(tested, metric)] if tested else []
    return Section(title="Ablation", lead=lead, blocks=[*forest, _arms(arms, metric)])


def _choice(labels: Record) -> str:
    return ", ".join(f"{option} = {shown(value)}" for option, value in labels.items())


def _words(metric: str) -> str:
    """A metric's key as people say it."""
    return {"val_bits_per_byte": "bits per byte", "val_loss": "validation loss"}.get(metric, metric)


def _name(arm: Record) -> str:
    alone = arm["axis"] in ("", "grid")
    return str(arm["name"]) if alone else f"{arm['axis']} = {arm['name']}"


def _tone(arm: Record, metric: str) -> Tone:
    test = arm["test"]
    if arm["p_value_corrected"] >= 1 - test["confidence"]:
        return "muted"
    return "good" if is_better(test["effect"], metric) else "bad"


def _forest(tested: Sequence[Record], metric: str) -> Forest:
    effects = [
        Effect(
            name=_name(arm),
            estimate=arm["test"]["effect"],
            low=arm["test"]["low"],
            high=arm["test"]["high"],
            note=arm["verdict"],
            tone=_tone(arm, metric),
        )
        for arm in tested
    ]
    side = "right" if is_better(1.0, metric) else "left"
    confidence = f"{100 * tested[0]['test']['confidence']:g} %"
    return Forest(
        caption=f"What each change does to the final {_words(metric)}, with its {confidence} "
        f"interval: {side} of the dotted line is better. Grey is not significant.",
        x_title=f"change of {_words(metric)}",
        effects=effects,
    )


def _arms(arms: Sequence[Record], metric: str) -> Table:
    heads = [
        ("change", ""),
        ("runs", "finished"),
        ("mean", f"of the final {_words(metric)}"),
        ("effect", "mean difference from the baseline's run of the same seed"),
        ("interval", "of the effect, by Student's t"),
        ("p", "two-sided, corrected for the number of tests"),
        ("verdict", "and the seeds that an effect of this size would need"),
        ("diverged", "runs whose loss did not stay finite"),
        ("FLOPs", "mean of a run"),
        ("time", "mean of a run"),
    ]
    rows = [_arm(arm, metric) for arm in arms]
    return Table(caption="All arms, the baseline first.", columns=heads, rows=rows)


def _arm(arm: Record, metric: str) -> list[Cell]:
    values = list(arm["values"].values())
    tone: Tone = "bad" if arm["n_diverged"] else ""
    return [
        text_cell(_name(arm)),
        number_cell(len(values), str),
        number_cell(sum(values) / len(values) if values else None, four_digits),
        *_test(arm, metric),
        number_cell(arm["n_diverged"], str, tone),
        number_cell(arm["train_flops"], flops),
        number_cell(arm["seconds"], duration),
    ]


def _test(arm: Record, metric: str) -> list[Cell]:
    if (test := arm["test"]) is None:
        return [MISSING, MISSING, MISSING, text_cell(arm["verdict"], "muted")]
    tone = _tone(arm, metric)
    return [
        number_cell(test["effect"], lambda value: f"{value:+.4f}", tone),
        number_cell(test["low"], lambda low: f"{low:+.4f} … {test['high']:+.4f}"),
        number_cell(arm["p_value_corrected"], lambda p: "< 0.0001" if p < 1e-4 else f"{p:.4f}"),
        text_cell(arm["verdict"], tone),
    ]


def sweep(record: Record) -> Section:
    """The metric over each option that a sweep changed, and where rates stop being stable."""
    _require_types(record, {"metric": str, "best": dict, "edges": list, "runs": list})
    _require_types(record["best"], {"labels": dict, "value": _NUMBER})
    for edge in record["edges"]:
        _require_types(edge, _EDGE)
    for run in record["runs"]:
        _require_types(run, _RUN)
    metric, runs = record["metric"], record["runs"]
    options = list(dict.fromkeys(option for run in runs for option in run["labels"]))
    best = record["best"]
    where = _choice(best["labels"])
    lead = [f"The lowest {_words(metric)} is {best['value']:.4f}, at {where}."]
    lead += [_edge(edge) for edge in record["edges"]]
    plots = [plot for option in options if (plot := _over(option, runs, metric)) is not None]
    return Section(
        title="Sweep", lead=" ".join(lead), blocks=[*plots, _tried(runs, options, metric)]
    )


def _edge(edge: Record) -> str:
    choice = ", ".join(f"{name} = {shown(value)}" for name, value in edge["choice"].items())
    beyond = (
        "the largest tried" if edge["unstable"] is None else f"{shown(edge['unstable'])} is not"
    )
    where = f" with {choice}" if choice else ""
    return f"{edge['option']}{where} is stable up to {shown(edge['stable'])}; {beyond}."


def _over(option: str, runs: Sequence[Record], metric: str) -> Plot | None:
    """The metric over an option; None where that is no number, or has too few values."""
    places = {run["labels"].get(option) for run in runs}
    numbers = [p for p in places if isinstance(p, int | float) and not isinstance(p, bool)]
    if len(numbers) < max(MIN_PLACES, len(places)):
        return None
    finished = [run for run in runs if run["value"] is not None]
    diverged = [run for run in runs if run["status"] == "diverged"]
    traces = _curves(option, finished)
    if diverged and finished:
        # At the top: of a loss that is no number nobody knows how high it is.
        top = max(run["value"] for run in finished)
        traces.append(_trace("diverged", "points", option, diverged, [top] * len(diverged)))
    return Plot(
        caption=f"The final {_words(metric)} over {option}.",
        x_title=option,
        y_title=_words(metric),
        log_x=min(numbers) > 0 and max(numbers) / min(numbers) > 10,
        traces=traces,
    )


def _curves(option: str, runs: Sequence[Record]) -> list[Trace]:
    """A line for each choice of the other options, or points where no two runs share one."""
    choices: dict[str, list[Record]] = {}
    for run in sorted(runs, key=lambda run: run["labels"][option]):
        others = {name: value for name, value in run["labels"].items() if name != option}
        choices.setdefault(", ".join(f"{k} = {shown(v)}" for k, v in others.items()), []).append(
            run
        )
    if len(choices) > len(runs) / 2:
        return [_trace("run", "points", option, runs, [run["value"] for run in runs])]
    return [
        _trace(name or "run", "line", option, own, [run["value"] for run in own])
        for name, own in choices.items()
    ]


def _trace(
    name: str, kind: Any, option: str, runs: Sequence[Record], values: Sequence[float]
) -> Trace:
    labels = [_choice(run["labels"]) for run in runs]
    places = [run["labels"][option] for run in runs]
    return Trace(name=name, kind=kind, x=places, y=values, labels=labels)


def _tried(runs: Sequence[Record], options: Sequence[str], metric: str) -> Table:
    def value_cell(value: Any) -> Cell:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return Cell(value=value if is_number else shown(value), text=shown(value))

    rows = [
        [
            *(value_cell(run["labels"].get(option)) for option in options),
            number_cell(run["value"], four_digits),
            text_cell(run["status"], "bad" if run["status"] == "diverged" else ""),
            number_cell(run["train_flops"], flops),
        ]
        for run in runs
    ]
    heads = [*options, _words(metric), "status", "FLOPs"]
    columns: list[tuple[str, str]] = [(head, "") for head in heads]
    return Table(caption="All that was tried, the best first.", columns=columns, rows=rows)
