"""The rates of `speed` as a picture."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path

from rslm.profiling.pictures import COLOURS, MARKERS, new_figure, plain_axes
from rslm.profiling.tables import Record


def draw_speed(records: Sequence[Record], path: Path) -> None:
    """TFLOP/s over the length: a row for each d_head and mask, forward and backward beside."""
    timed = [record for record in records if "forward_flops_per_second" in record]
    rows = list(dict.fromkeys((record["d_head"], record["causal"]) for record in timed))
    names = list(dict.fromkeys(record["implementation"] for record in timed))
    figure = new_figure(10, 2.8 * max(1, len(rows)) + 0.4)
    grid = figure.subplots(max(1, len(rows)), 2, squeeze=False, sharex=True)
    for (row, (d_head, causal)), (place, part) in product(
        enumerate(rows), enumerate(("forward", "backward"))
    ):
        axes = grid[row][place]
        for number, name in enumerate(names):
            line = [
                record
                for record in timed
                if (record["d_head"], record["causal"]) == (d_head, causal)
                and record["implementation"] == name
            ]
            axes.plot(
                [record["n_queries"] for record in line],
                [record[f"{part}_flops_per_second"] / 1e12 for record in line],
                color=COLOURS[number % len(COLOURS)],
                marker=MARKERS[number % len(MARKERS)],
                markersize=4,
                linewidth=1.2,
                label=name,
            )
        mask = "causal" if causal else "full"
        plain_axes(axes, f"{part}, d_head {d_head}, {mask}: TFLOP/s", "tokens of a sequence")
        axes.set_xscale("log", base=2)
        axes.set_ylim(bottom=0)
    if timed:
        grid[0][0].legend(frameon=False, fontsize=7)
    figure.savefig(path)
