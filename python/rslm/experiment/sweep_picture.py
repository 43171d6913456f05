"""The picture of a sweep: the metric over each option, and the edge of stability."""

from pathlib import Path
from typing import Any

from rslm.experiment.ablation_pictures import COLOURS, plain_text
from rslm.experiment.space import Dimension
from rslm.experiment.study import shown
from rslm.experiment.sweep_results import SweepResult, Tried, choice_of

_CLIP = 3.0


def draw_sweep(result: SweepResult, out: Path) -> None:
    """Draws a panel for each range, or one for each choice where there is none.

    Runs that diverged are crosses at the upper edge, pruned ones hollow at the lower: their place
    is all that is known. Runs of one choice are joined where the range is the only one.
    """
    from matplotlib.figure import Figure

    ranges = [d for d in result.sweep.space if d.scale != "choice"]
    dimensions = ranges or list(result.sweep.space)
    size = (6.4 * min(len(dimensions), 2), 4.2 * -(-len(dimensions) // 2))
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    n_columns = min(len(dimensions), 2)
    panels = figure.subplots(-(-len(dimensions) // 2), n_columns, squeeze=False).ravel()
    for axes, dimension in zip(panels, dimensions, strict=False):
        _draw_panel(axes, result, dimension, joined=len(ranges) == 1)
    for axes in panels[len(dimensions) :]:
        axes.set_visible(False)
    figure.savefig(out)


def _draw_panel(axes: Any, result: SweepResult, dimension: Dimension, *, joined: bool) -> None:
    if dimension.scale == "log":
        axes.set_xscale("log")
    groups: dict[str, list[Tried]] = {}
    for tried in result.tried:
        choice = choice_of(tried, dimension) if joined else {}
        name = ", ".join(f"{o.rpartition('.')[2]} = {shown(v)}" for o, v in choice.items())
        groups.setdefault(name, []).append(tried)
    _set_limits(axes, result)
    for index, (name, mine) in enumerate(sorted(groups.items())):
        _draw_group(axes, mine, dimension, COLOURS[index % len(COLOURS)], name, joined=joined)
    if joined and len(result.edges) == 1:
        _draw_edge(axes, result)
    axes.set(xlabel=dimension.option, ylabel=result.sweep.metric)
    axes.grid(color="#e2e2e2", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)


def _set_limits(axes: Any, result: SweepResult) -> None:
    """Leaves out what is far above the middle: it would flatten the rest."""
    values = [tried.value for tried in result.tried if tried.value is not None]
    low, middle, high = values[0], values[len(values) // 2], values[-1]
    if middle > low:
        high = min(high, low + _CLIP * (middle - low))
    room = 0.08 * (high - low) or 0.01
    axes.set_ylim(low - room, high + room)


def _draw_group(
    axes: Any, mine: list[Tried], dimension: Dimension, colour: str, name: str, *, joined: bool
) -> None:
    def place(tried: Tried) -> Any:
        value = tried.labels[dimension.option]
        return shown(value) if dimension.scale == "choice" else value

    by_status = {
        status: sorted((t for t in mine if t.outcome.status == status), key=place)
        for status in ("finished", "diverged", "pruned")
    }
    at = {status: list(map(place, tried)) for status, tried in by_status.items()}
    values = [tried.value for tried in by_status["finished"]]
    style, label = "o-" if joined else "o", plain_text(name)
    axes.plot(at["finished"], values, style, color=colour, markersize=5, label=label)
    edge: dict[str, Any] = {"color": colour, "clip_on": False, "linestyle": ""}
    ends = zip(("pruned", "diverged"), axes.get_ylim(), ("o", "x"), strict=True)
    for status, end, marker in ends:
        label = _named(status, at[status])
        height = [end] * len(at[status])
        axes.plot(at[status], height, marker=marker, fillstyle="none", label=label, **edge)


def _named(word: str, places: list[Any]) -> str:
    # A name that begins so is left out of the legend.
    return f"{word} ({len(places)})" if places else f"_{word}"


def _draw_edge(axes: Any, result: SweepResult) -> None:
    (edge,) = result.edges
    if edge.unstable is None:
        return
    left, right = axes.get_xlim()
    axes.set_xlim(left, right)
    axes.axvspan(edge.unstable, right, color="#d1495b", alpha=0.08, linewidth=0)
    axes.axvspan(edge.stable, edge.unstable, color="#e08e0b", alpha=0.12, linewidth=0)
    axes.axvline(edge.stable, color="#4d4d4d", linewidth=1, linestyle="--")
    axes.annotate(
        f"stable up to {shown(edge.stable)}",
        (edge.stable, 0.97),
        xycoords=("data", "axes fraction"),
        xytext=(-4, 0),
        textcoords="offset points",
        ha="right",
        va="top",
        fontsize=8,
    )
