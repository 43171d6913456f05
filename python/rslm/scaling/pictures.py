"""Pictures of points and laws: IsoFLOP curves, optima against FLOPs, fitted against measured."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from rslm.scaling.fit import optima_of
from rslm.scaling.fitted import Fit, Interval, Prediction
from rslm.scaling.laws import LossLaw
from rslm.scaling.parabolas import find_valleys
from rslm.scaling.points import Array, ScalingPoints

COLOURS = {
    "vpnls": "#1f6fb4",
    "huber": "#e08e2b",
    "parabolas": "#3c9d6b",
    "min-runs": "#d1495b",
    "envelope": "#7a5ca8",
}
_SUBJECT = "#444444"
_N_LINE = 60


def draw_fits(
    points: ScalingPoints,
    fits: Sequence[Fit],
    path: Path,
    *,
    flop_budget: float,
    curves: ScalingPoints | None = None,
) -> None:
    """Six panels: the points by budget, N*, D* and loss by budget, fitted and residual losses.

    Args:
        points: what was fitted.
        fits: the fits, each with a colour of its own.
        path: of the picture, whose ending says the format.
        flop_budget: as far as the lines go.
        curves: training curves, where the envelope of them was fitted.
    """
    figure = Figure(figsize=(13, 8), dpi=130, layout="constrained")
    axes = figure.subplots(2, 3)
    _draw_isoflops(axes[0, 0], points, fits)
    budgets = np.geomspace(min(fit.flop_range[0] for fit in fits), flop_budget, _N_LINE)
    _draw_against_flops(axes[0, 1], fits, budgets, lambda p: p.n_parameters, "N*, parameters")
    _draw_against_flops(axes[0, 2], fits, budgets, lambda p: p.n_tokens, "D*, tokens")
    _draw_optima(axes[0, 1], axes[0, 2], points, fits, curves)
    _draw_against_flops(
        axes[1, 0], fits, budgets, lambda p: p.loss, "Loss at the optimum, and of all runs"
    )
    largest = max(fit.flop_range[1] for fit in fits)
    for panel in (axes[0, 1], axes[0, 2], axes[1, 0]):
        panel.axvline(largest, color="#bbbbbb", linewidth=0.8, linestyle=":")
    axes[1, 0].set_yscale("linear")
    axes[1, 0].scatter(
        points.train_flops, points.loss, s=8, color=_SUBJECT, alpha=0.35, linewidths=0, zorder=1
    )
    _draw_fitted(axes[1, 1], axes[1, 2], points, fits)
    axes[0, 1].legend(frameon=False, fontsize=8)
    figure.savefig(path)


def _titled(axes: Axes, title: str, xlabel: str) -> None:
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel(xlabel, fontsize=9)
    axes.tick_params(which="both", labelsize=8)
    axes.grid(color="#e2e2e2", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _log_sizes(axes: Axes) -> None:
    """A logarithmic axis of sizes whose labels do not run into each other."""
    axes.set_xscale("log")
    low, high = np.log10(axes.get_xlim())
    if high - low < 2:
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0e}".replace("e+0", "e"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _budget_colours(n: int) -> Array:
    from matplotlib import colormaps

    colours: Array = np.asarray(colormaps["viridis"](np.linspace(0.05, 0.85, n)))
    return colours


def _draw_isoflops(axes: Axes, points: ScalingPoints, fits: Sequence[Fit]) -> None:
    """Loss over size, a colour for each budget; the parabolas, or the first law's curves."""
    groups = points.by_budget()
    has_parabolas = any(fit.method == "parabolas" for fit in fits)
    law = next((fit.law for fit in fits if isinstance(fit.law, LossLaw)), None)
    valleys = find_valleys(points) if has_parabolas else []
    for number, (budget, own) in enumerate(groups.items()):
        colour = tuple(_budget_colours(len(groups))[number])
        axes.scatter(own.n_parameters, own.loss, s=14, color=colour, label=f"{budget:.3g}")
        sizes = np.geomspace(own.n_parameters.min() / 1.15, own.n_parameters.max() * 1.15, _N_LINE)
        if has_parabolas:
            valley = valleys[number]
            heights = np.log(sizes)[:, None] ** np.arange(3) @ np.array(valley.coefficients)
            axes.plot(sizes, heights, color=colour, linewidth=1)
            axes.scatter(
                [valley.n_parameters], [valley.loss], marker="x", s=36, color="black", zorder=3
            )
        elif law is not None and len(own) > 1:
            order = np.argsort(own.n_parameters)
            tokens = np.exp(
                np.interp(
                    np.log(sizes), np.log(own.n_parameters[order]), np.log(own.n_tokens[order])
                )
            )
            inside = (sizes >= own.n_parameters.min()) & (sizes <= own.n_parameters.max())
            axes.plot(sizes[inside], law.loss(sizes, tokens)[inside], color=colour, linewidth=1)
    _log_sizes(axes)
    what = "parabolas, x: lowest place" if has_parabolas else "lines: the law"
    _titled(axes, f"Loss of each budget ({what})", "N, parameters")
    if len(groups) <= 12:
        axes.legend(frameon=False, fontsize=6, title="FLOPs", title_fontsize=7)


def _draw_against_flops(
    axes: Axes,
    fits: Sequence[Fit],
    budgets: Array,
    choose: Callable[[Prediction], Interval],
    title: str,
) -> None:
    """A line with its interval for each fit."""
    for fit in fits:
        found = [choose(fit.predict(float(budget))) for budget in budgets]
        colour = COLOURS[fit.method]
        axes.plot(budgets, [i.value for i in found], color=colour, linewidth=1.4, label=fit.method)
        bounds = [(i.low, i.high) for i in found if i.low is not None and i.high is not None]
        if len(bounds) == len(found):
            low, high = np.array(bounds).T
            axes.fill_between(budgets, low, high, color=colour, alpha=0.13, linewidth=0)
    axes.set_xscale("log")
    axes.set_yscale("log")
    _titled(axes, title, "C, FLOPs (dotted: the largest fitted)")


def _draw_optima(
    sizes: Axes,
    tokens: Axes,
    points: ScalingPoints,
    fits: Sequence[Fit],
    curves: ScalingPoints | None,
) -> None:
    """The optima through which lines were laid, as marks."""
    for fit in fits:
        if isinstance(fit.law, LossLaw) or (fit.method == "envelope" and curves is None):
            continue
        source = curves if fit.method == "envelope" and curves is not None else points
        optima = optima_of(source, fit.method)
        # An envelope has hundreds of places in a few steps.
        every = slice(None, None, max(1, len(optima.loss) // 60))
        for axes, values in ((sizes, optima.n_parameters), (tokens, optima.n_tokens)):
            axes.scatter(
                optima.flop_budgets[every], values[every], s=12, color=COLOURS[fit.method], zorder=3
            )


def _draw_fitted(fitted: Axes, residual: Axes, points: ScalingPoints, fits: Sequence[Fit]) -> None:
    """Fitted against measured losses, and what is left in per cent, of laws of N and D."""
    laws = [(fit.method, fit.law) for fit in fits if isinstance(fit.law, LossLaw)]
    for method, law in laws:
        expected = law.loss(points.n_parameters, points.n_tokens)
        style: dict[str, Any] = {"s": 12, "color": COLOURS[method], "label": method, "alpha": 0.8}
        fitted.scatter(points.loss, expected, **style)
        residual.scatter(points.n_parameters, 100 * (points.loss / expected - 1), **style)
    ends = [float(points.loss.min()), float(points.loss.max())]
    fitted.plot(ends, ends, color="#bbbbbb", linewidth=0.8)
    residual.axhline(0, color="#bbbbbb", linewidth=0.8)
    _log_sizes(residual)
    _titled(fitted, "Fitted loss over measured loss", "measured loss, nats per token")
    _titled(residual, "Measured less fitted loss, %", "N, parameters")
    if not laws:
        for axes in (fitted, residual):
            axes.text(0.5, 0.5, "vpnls and huber only", transform=axes.transAxes, ha="center")
    elif len(laws) > 1:
        fitted.legend(frameon=False, fontsize=8)
