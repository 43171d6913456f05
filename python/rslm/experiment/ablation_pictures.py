"""Pictures of an ablation: curves laid over each other, and effects with their intervals."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rslm.experiment.ablation_results import Ablation, ArmResult, judge
from rslm.experiment.compare import curve_of, is_better
from rslm.experiment.study import shown
from rslm.process import printable

BASELINE_COLOUR = "#4d4d4d"
COLOURS = ("#1f6fb4", "#d1495b", "#2a9d63", "#e08e0b", "#7b5ea7", "#17a2b8", "#8c564b", "#c2185b")
BETTER, WORSE, UNSURE = "#2a9d63", "#d1495b", "#8a8a8a"

_MIN_POINTS = 3


def draw_curves(ablation: Ablation, out: Path) -> None:
    """Draws for each axis the mean curve of every value over tokens, and the range of its seeds.

    The curves are of the metric, or of the training loss where it was measured too seldom.
    """
    from matplotlib.figure import Figure

    baseline, *others = ablation.results
    axes_names = list(dict.fromkeys(result.arm.axis for result in others))
    n_columns = min(2, len(axes_names))
    n_rows = -(-len(axes_names) // n_columns)
    figure = Figure(figsize=(6 * n_columns, 3.8 * n_rows), dpi=150, layout="constrained")
    places = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    metric = _drawn_metric(ablation)
    for axes, name in zip(places, axes_names, strict=False):
        shown = [result for result in others if result.arm.axis == name]
        _draw_arm(axes, baseline, metric, BASELINE_COLOUR, _baseline_name(baseline, name))
        for index, result in enumerate(shown):
            _draw_arm(axes, result, metric, COLOURS[index % len(COLOURS)], result.arm.name)
        axes.set(xlabel="tokens", ylabel=metric)
        axes.set_title(plain_text(name), loc="left")
        _zoom(axes)
        axes.grid(color="#e2e2e2", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    for axes in places[len(axes_names) :]:
        axes.set_visible(False)
    figure.savefig(out)


def _drawn_metric(ablation: Ablation) -> str:
    runs = [run for result in ablation.results for run in result.runs.values()]
    often = all(len(run.curve(ablation.metric, "n_tokens")[0]) >= _MIN_POINTS for run in runs)
    return ablation.metric if often else "loss"


def _baseline_name(baseline: ArmResult, axis: str) -> str:
    value = baseline.arm.labels.get(axis)
    return "baseline" if value is None else f"{shown(value)} (baseline)"


def _draw_arm(axes: Any, result: ArmResult, metric: str, colour: str, name: str) -> None:
    note = f" ({result.n_diverged} diverged)" if result.n_diverged else ""
    curves = [curve_of(run, metric, "n_tokens") for run in result.runs.values()]
    curves = [curve for curve in curves if curve[0]]
    if not curves:
        axes.plot(
            [], [], color=colour, linestyle=":", label=f"{plain_text(name)}: none finished{note}"
        )
        return
    # Where runs end at different places, as with another batch size, the shorter decides.
    end = min(places[-1] for places, _ in curves)
    grid = [place for place in curves[0][0] if place <= end]
    values = np.array([np.interp(grid, places, drawn) for places, drawn in curves])
    axes.plot(grid, values.mean(0), color=colour, linewidth=1.5, label=plain_text(name) + note)
    axes.fill_between(grid, values.min(0), values.max(0), color=colour, alpha=0.2, linewidth=0)


def _zoom(axes: Any) -> None:
    """Shows what happens after the first tenth: the drop before it would flatten all else."""
    lines = [line.get_xydata() for line in axes.lines if len(line.get_xydata())]
    if lines:
        points = np.concatenate([line[len(line) // 10 :] for line in lines])
        low, high = points[:, 1].min(), points[:, 1].max()
        axes.set_ylim(low - 0.05 * (high - low) - 1e-9, high + 0.05 * (high - low) + 1e-9)


def draw_forest(ablation: Ablation, out: Path) -> None:
    """Draws the effect of every arm against the baseline, with its interval; 0 is no effect."""
    from matplotlib.figure import Figure

    results = [result for result in ablation.results if result.arm.axis]
    figure = Figure(figsize=(10, 1.4 + 0.42 * len(results)), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.axvline(0, color=BASELINE_COLOUR, linewidth=1)
    for place, result in enumerate(results):
        _draw_effect(axes, place, result, ablation)
    labels = [plain_text(_forest_name(result)) for result in results]
    axes.set_yticks(range(len(results)), labels)
    axes.set_ylim(len(results) - 0.5, -0.5)
    axes.set_xlabel(f"{ablation.metric}, difference from the baseline")
    axes.grid(axis="x", color="#e2e2e2", linewidth=0.6)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.savefig(out)


def _forest_name(result: ArmResult) -> str:
    is_product = result.arm.name.count("=") > 0
    return result.arm.name if is_product else f"{result.arm.axis} = {result.arm.name}"


def _draw_effect(axes: Any, place: int, result: ArmResult, ablation: Ablation) -> None:
    test = result.test
    is_sure = test is not None and (result.p_value or 0.0) < 1 - test.confidence
    colour = UNSURE
    if test is not None:
        if is_sure:
            colour = BETTER if is_better(test.effect, ablation.metric) else WORSE
        axes.plot([test.low, test.high], [place, place], color=colour, linewidth=2)
        axes.plot([test.effect], [place], "o", color=colour, markersize=6)
    axes.annotate(
        plain_text(judge(result, ablation)),
        (1.01, place),
        xycoords=("axes fraction", "data"),
        va="center",
        fontsize=8,
        color=colour,
        annotation_clip=False,
    )


def plain_text(text: str) -> str:
    """The text as Matplotlib shows it letter by letter."""
    # To Matplotlib what stands between dollars is a formula.
    return printable(text).replace("$", r"\$")


PICTURES: Sequence[tuple[str, Any]] = (("curves.png", draw_curves), ("forest.png", draw_forest))
