"""The tables of `rslm profile` as pictures."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from rslm.profiling.memory import timeline
from rslm.profiling.memory_trace import Phase
from rslm.profiling.tables import OUT_OF_MEMORY, Record

COLOURS = ("#1f6fb4", "#e08e2b", "#3c9d6b", "#d1495b", "#7a5ca8", "#8a6d4b", "#4f8f9e", "#888888")
MARKERS = "osD^v<>P"
BAR_INCHES = 0.3
MIB = 2**20


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches."""
    return Figure(figsize=(width, height), dpi=120, layout="constrained")


def _stacked(figure: Figure | SubFigure, heights: Sequence[float]) -> list[SubFigure]:
    """Parts of a figure, one below the other."""
    places = figure.add_gridspec(len(heights), 1, height_ratios=heights)
    return [figure.add_subfigure(places[row, 0]) for row in range(len(heights))]


def plain_axes(axes: Axes, title: str, xlabel: str) -> None:
    """Titles axes and gives them a grid."""
    axes.set_title(title, loc="left", fontsize=9)
    axes.set_xlabel(xlabel, fontsize=8)
    axes.tick_params(which="both", labelsize=7)
    axes.grid(color="#e2e2e2", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _bars(
    axes: Axes,
    records: Sequence[Record],
    parts: dict[str, str],
    unit: float,
    label: Callable[[Record], str],
) -> None:
    """Horizontal bars from top to bottom, stacked of keys by their names; OOM marks gaps."""
    left = [0.0] * len(records)
    for (name, key), colour in zip(parts.items(), COLOURS, strict=False):
        widths = [unit * record.get(key, 0.0) for record in records]
        axes.barh(range(len(records)), widths, left=left, color=colour, label=name, height=0.7)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    for row, record in enumerate(records):
        if record["status"] == OUT_OF_MEMORY:
            axes.text(0, row, " OOM", va="center", fontsize=7, color="#d1495b")
    axes.set_yticks(range(len(records)), [label(record) for record in records])
    axes.set_ylim(len(records) - 0.4, -0.6)


def _legend(axes: Axes, **options: Any) -> None:
    axes.legend(frameon=False, fontsize=7, **options)


def _groups(records: Sequence[Record], key: str) -> dict[Any, list[Record]]:
    groups: dict[Any, list[Record]] = {}
    for record in records:
        groups.setdefault(record[key], []).append(record)
    return groups


def draw_steps(records: Sequence[Record], path: Path) -> None:
    """Bars of the phases of each step, and its utilisation; a row of axes for each size."""
    sizes = _groups(records, "size")
    heights = [len(own) + 3 for own in sizes.values()]
    figure = new_figure(10, BAR_INCHES * sum(heights) + 0.5)
    grid = figure.subplots(
        len(sizes), 2, squeeze=False, gridspec_kw={"height_ratios": heights}, sharex="col"
    )
    for row, (size, own) in zip(grid, sizes.items(), strict=True):
        phases = {name: f"{name}_seconds_mean" for name in ("forward", "backward", "optimizer")}
        _bars(row[0], own, phases, 1e3, _step_label)
        for y, record in enumerate(own):
            if record["status"] != OUT_OF_MEMORY:
                mean, std = record["step_seconds_mean"], record["step_seconds_std"]
                row[0].errorbar(1e3 * mean, y, xerr=1e3 * std, color="#333333", linewidth=1)
        plain_axes(row[0], f"{size}: {own[0]['n_parameters']:,} parameters", "ms per step")
        _bars(row[1], own, {"": "utilisation"}, 100, lambda _: "")
        plain_axes(row[1], "utilisation of the measured matmul peak", "%")
    _legend(grid[0][0], loc="lower left", bbox_to_anchor=(0, 1.12), ncols=3)
    figure.savefig(path)


def _step_label(record: Record) -> str:
    return f"{record['sequence_length']} tokens, {record['precision']}, {record['mode']}"


def draw_memory(records: Sequence[Record], traces: dict[str, list[Phase]], path: Path) -> None:
    """Bars of what each step holds, with its peak, and what it holds over time."""
    height = BAR_INCHES * (len(records) + 4)
    groups: dict[str, dict[str, list[Phase]]] = {}
    for name, phases in traces.items():
        group, _, kept = name.partition(", recompute ")
        groups.setdefault(group, {})[f"recompute {kept}" if kept else "keep everything"] = phases
    n_rows = (len(groups) + 1) // 2
    figure = new_figure(10, height + 2.6 * n_rows)
    top, bottom = _stacked(figure, [height, 2.6 * max(1, n_rows)])
    axes = top.subplots()
    parts = ("weights", "optimizer", "saved")
    named = {name: f"{name}_bytes" for name in parts}
    _bars(axes, records, named, 1 / MIB, _memory_label)
    done = [(y, r) for y, r in enumerate(records) if r["status"] != OUT_OF_MEMORY]
    axes.scatter(
        [record["peak_step_bytes"] / MIB for _, record in done],
        [y for y, _ in done],
        marker="|",
        color="#000000",
        label="peak of the step",
    )
    after = [f"{name}_bytes" for name in ("weights", "optimizer", "gradients")]
    axes.scatter(
        [sum(record[key] for key in after) / MIB for _, record in done],
        [y for y, _ in done],
        marker="D",
        s=14,
        facecolors="none",
        edgecolors="#000000",
        label="with gradients, after backward",
    )
    plain_axes(axes, "held between forward and backward pass", "MiB")
    _legend(axes, loc="lower left", bbox_to_anchor=(0, 1.06), ncols=5)
    grid = bottom.subplots(max(1, n_rows), 2, squeeze=False).flatten()
    for axes, (group, lines) in zip(grid, groups.items(), strict=False):
        for (name, phases), colour in zip(lines.items(), COLOURS, strict=False):
            moments, levels = _aligned(phases)
            axes.plot(moments, levels, linewidth=1, color=colour, label=name)
        for edge, phase in enumerate(("forward", "backward", "optimizer")):
            axes.axvline(edge, color="#bbbbbb", linewidth=0.8)
            axes.text(edge + 0.02, 0.02, phase, transform=axes.get_xaxis_transform(), fontsize=7)
        axes.set_ylim(bottom=0)
        axes.set_xlim(0, 3)
        axes.set_xticks([])
        plain_axes(axes, group, "")
        axes.set_ylabel("MiB", fontsize=8)
        _legend(axes, loc=(0.7, 0.1))
    for axes in grid[len(groups) :]:
        axes.set_visible(False)
    figure.savefig(path)


def _memory_label(record: Record) -> str:
    kept = record["recompute_blocks"]
    tail = "" if kept == "none" else f", recompute {kept}"
    return f"{record['size']}, {_step_label(record)}{tail}"


def _aligned(phases: Sequence[Phase]) -> tuple[list[float], list[float]]:
    """MiB over the step, with every phase one unit long."""
    moments: list[float] = []
    levels: list[float] = []
    for number, phase in enumerate(phases):
        seconds, n_bytes, _ = timeline([phase])
        length = seconds[-1] or 1.0
        moments += [number + second / length for second in seconds]
        levels += [level / MIB for level in n_bytes]
    return moments, levels


def draw_attention(records: Sequence[Record], path: Path) -> None:
    """Milliseconds forward and backward, and MiB saved, over the length; a row per d_head."""
    widths = _groups(records, "d_head")
    figure = new_figure(11, 2.9 * len(widths) + 0.4)
    grid = figure.subplots(len(widths), 3, squeeze=False, sharex=True, sharey="col")
    values: tuple[tuple[str, str, float], ...] = (
        ("forward (ms)", "forward_seconds_median", 1e3),
        ("backward (ms)", "backward_seconds_median", 1e3),
        ("saved for backward (MiB)", "saved_bytes", 1 / MIB),
    )
    for row, (d_head, own) in zip(grid, widths.items(), strict=True):
        for axes, (title, key, unit) in zip(row, values, strict=True):
            for number, (name, line) in enumerate(_paths(own).items()):
                style: Any = {
                    "color": COLOURS[number % len(COLOURS)],
                    "marker": MARKERS[number % len(MARKERS)],
                    "markersize": 3.5,
                }
                done = [record for record in line if key in record]
                x = [record["sequence_length"] for record in done]
                axes.plot(x, [unit * r[key] for r in done], linewidth=1.2, label=name, **style)
                gone = [r["sequence_length"] for r in line if r["status"] == OUT_OF_MEMORY]
                for length in gone:
                    axes.text(
                        *(length, 0.98 - 0.07 * number, "OOM"),
                        transform=axes.get_xaxis_transform(),
                        color=style["color"],
                        fontsize=6,
                        ha="center",
                        va="top",
                    )
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            lengths = sorted({record["sequence_length"] for record in own})
            axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
            plain_axes(axes, f"{title}, d_head {d_head}", "tokens")
    _legend(grid[0][0], loc="upper left")
    figure.savefig(path)


def _paths(records: Sequence[Record]) -> dict[str, list[Record]]:
    paths: dict[str, list[Record]] = {}
    for record in records:
        mode = "" if record["mode"] == "eager" else ", compiled"
        name = f"{record['implementation']}, {record['precision']}{mode}"
        paths.setdefault(name, []).append(record)
    return paths


def draw_collectives(all_reduce: Sequence[Record], parallel: Sequence[Record], path: Path) -> None:
    """All-reduce by size, and the kinds of training: step, memory and bytes sent."""
    height = BAR_INCHES * (len(parallel) + 4)
    figure = new_figure(11, 3.2 + (2 * height if parallel else 0))
    parts = _stacked(figure, [3.2, 2 * height] if parallel else [3.2])
    time, bandwidth = parts[0].subplots(1, 2)
    for number, (n, own) in enumerate(_groups(all_reduce, "n_processes").items()):
        megabytes = [record["n_bytes"] / 1e6 for record in own]
        style: Any = {
            "color": COLOURS[number % len(COLOURS)],
            "marker": MARKERS[number % len(MARKERS)],
            "markersize": 3.5,
            "label": f"{n} processes, {own[0]['backend']}",
        }
        spread = [1e3 * record["seconds_std"] for record in own]
        means = [1e3 * record["seconds_mean"] for record in own]
        time.errorbar(megabytes, means, yerr=spread, linewidth=1.2, **style)
        speeds = [record["bus_bytes_per_second"] / 1e9 for record in own]
        bandwidth.plot(megabytes, speeds, linewidth=1.2, **style)
    for axes, title in ((time, "all-reduce (ms)"), (bandwidth, "bus bandwidth (GB/s)")):
        axes.set_xscale("log")
        axes.set_yscale("log")
        plain_axes(axes, title, "MB of float32")
    _legend(time, loc="upper left")
    if parallel:
        _draw_parallel(parts[1], parallel)
    figure.savefig(path)


def _draw_parallel(figure: SubFigure, records: Sequence[Record]) -> None:
    steps, costs = _stacked(figure, [1, 1])
    axes = steps.subplots()
    phases = ("forward", "backward", "synchronization", "optimizer")
    named = {name: f"{name}_seconds_mean" for name in phases}
    _bars(axes, records, named, 1e3, _parallel_label)
    plain_axes(axes, "", "ms per step, of the slowest process")
    _legend(axes, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=4)
    held, sent = costs.subplots(1, 2, width_ratios=[1.35, 1])
    named = {name: f"{name}_bytes" for name in ("weights", "gradients", "optimizer")}
    _bars(held, records, named, 1 / MIB, _parallel_label)
    _bars(sent, records, {"counted": "sent_bytes"}, 1 / MIB, lambda _: "")
    for axes, key in ((held, "expected_held_bytes"), (sent, "expected_sent_bytes")):
        done = [(y, r) for y, r in enumerate(records) if r["status"] != OUT_OF_MEMORY]
        axes.scatter(
            [record[key] / MIB for _, record in done],
            [y for y, _ in done],
            marker="|",
            color="#000000",
            label="formula",
        )
    plain_axes(held, "", "MiB that stay with each process")
    plain_axes(sent, "", "MiB that each process sends in a step")
    _legend(held, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=4)
    _legend(sent, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2)


def _parallel_label(record: Record) -> str:
    size = record["bucket_mb"]
    bucket = f", {size:g} MB" if size != "" else ""
    n = record["n_processes"]
    return f"{record['kind']}{bucket}, {record['precision']}, {n} processes"
