"""Plots as data for the page's script, and the HTML around each: controls, place, caption."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from rslm.html_report import blocks
from rslm.html_report.escaping import clean, escape
from rslm.html_report.thinning import Series, Values

Figures = dict[str, dict[str, Any]]
"""What the script draws, by the id of the element that holds it."""

COLOURS = (
    *[("#1f66b0", "#6fb3f5"), ("#c8401f", "#ff9472"), ("#2c7d3f", "#74cf86")],
    *[("#7b47b8", "#bd9bff"), ("#a36a00", "#f0b84a"), ("#00788a", "#4fd0de")],
    *[("#b02a72", "#ff86c4"), ("#5d6b1e", "#c4d267"), ("#55657a", "#a8b8cc")],
    ("#8a5238", "#dba283"),
)
"""Colours of lines, on white and on dark: each has a contrast of 4 to its ground."""


def palette() -> str:
    """The colours in CSS: a property and a class for each."""
    names = [(f"c{number}", *pair) for number, pair in enumerate(COLOURS)]
    properties = "".join(f"--{name}:light-dark({light},{dark});" for name, light, dark in names)
    return f":root{{{properties}}}\n" + "".join(
        f".{name}{{color:var(--{name})}}" for name, _, _ in names
    )


def figure(block: blocks.Curves | blocks.Plot | blocks.Forest, figures: Figures) -> str:
    """The HTML of a plot; adds its data to `figures`."""
    name = f"figure-{len(figures)}"
    match block:
        case blocks.Curves():
            figures[name], controls = _curves(block), _controls(block, name)
        case blocks.Plot():
            figures[name], controls = _plot(block), ""
        case blocks.Forest():
            figures[name], controls = _forest(block), ""
    caption = escape(block.caption)
    return (
        f'<figure id="{name}">\n<figcaption>{caption}</figcaption>\n{controls}'
        f'<div class="plot" role="img" aria-label="{caption}"></div>\n'
        '<ul class="legend" aria-label="Lines of the plot"></ul>\n</figure>\n'
    )


def _controls(block: blocks.Curves, name: str) -> str:
    axes = "".join(
        f'<label><input type="radio" name="{name}-axis" value="{escape(key)}"'
        f"{' checked' * (key == block.axis)}><span>{escape(title)}</span></label>"
        for key, title in block.axes.items()
    )
    metrics = "".join(
        f'<option value="{number}">{escape(title)}</option>'
        for number, title in enumerate(block.metrics)
    )
    boxes = "".join(
        f'<label class="box" title="{meaning}"><input type="checkbox" name="{key}">{title}</label>'
        for key, title, meaning in (
            ("log-x", "log x", "logarithmic axis"),
            ("log-y", "log y", "logarithmic axis"),
            ("late", "skip start", "leave out the first tenth of each curve"),
        )
    )
    return (
        f'<div class="controls"><label>show <select name="metric">{metrics}</select></label>'
        f'<fieldset class="segments"><legend>over</legend>{axes}</fieldset>{boxes}'
        '<label class="smoothing">smoothing <input type="range" name="smoothing" min="0" max="20"'
        ' value="2"><output>2 %</output></label><button type="button" name="reset">Reset view'
        "</button></div>\n"
    )


def _curves(block: blocks.Curves) -> dict[str, Any]:
    groups = list(dict.fromkeys(line.group for line in block.lines))
    return {
        "kind": "curves",
        "axes": {key: clean(title) for key, title in block.axes.items()},
        "metrics": [{"title": clean(t), "keys": list(keys)} for t, keys in block.metrics.items()],
        "rough": list(block.rough),
        "groups": list(map(clean, groups)),
        "lines": [
            {
                "name": clean(line.name),
                "group": groups.index(line.group),
                "series": {key: _series(series) for key, series in line.series.items()},
            }
            for line in block.lines
        ],
    }


def _series(series: Series) -> dict[str, Any]:
    record: dict[str, Any] = {"x": _places(series.x), "y": _numbers(series.y)}
    if series.mean_y is not None:
        record |= {"meanX": _places(series.mean_x), "meanY": _numbers(series.mean_y)}
    return record


def _places(x: Mapping[str, Values | float]) -> dict[str, Any]:
    return {
        axis: places if isinstance(places, float) else _numbers(places)
        for axis, places in x.items()
    }


def _numbers(values: Iterable[float]) -> list[float | None]:
    """Six digits of each number, which no screen can show more of; None for a gap."""
    return [_number(float(value)) for value in values]


def _number(value: float) -> float | None:
    if not math.isfinite(value):
        return None
    # Steps are looked up by their number.
    rounded = value if value == int(value) and abs(value) < 1e9 else float(f"{value:.6g}")
    return int(rounded) if rounded == int(rounded) else rounded


def _plot(block: blocks.Plot) -> dict[str, Any]:
    return {
        "kind": "plot",
        "x": {"title": clean(block.x_title), "log": block.log_x},
        "y": {"title": clean(block.y_title), "log": block.log_y},
        "traces": [
            {
                "name": clean(trace.name),
                "kind": trace.kind,
                "x": _numbers(trace.x),
                "y": _numbers(trace.y),
                "high": _numbers(trace.high),
                "labels": list(map(clean, trace.labels)),
                "colour": number if trace.colour is None else trace.colour,
                "dashed": trace.is_dashed,
            }
            for number, trace in enumerate(block.traces)
        ],
    }


def _forest(block: blocks.Forest) -> dict[str, Any]:
    return {
        "kind": "forest",
        "x": {"title": clean(block.x_title)},
        "effects": [
            {
                "name": clean(effect.name),
                "estimate": _number(effect.estimate),
                "low": _number(effect.low),
                "high": _number(effect.high),
                "note": clean(effect.note),
                "tone": effect.tone,
            }
            for effect in block.effects
        ],
    }
