"""The report of the convergence study and its picture, from the results so far."""

import math
import platform
import statistics
from collections.abc import Callable, Sequence
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

from convergence_plan import N_SEEDS, Outcomes, Plan, Run, Search, Study, make_plan
from peer_table import cpu_model, row_of

from rslm.architecture import TransformerConfig, n_non_embedding_parameters, n_parameters

COLORS = {"AdamW": "#1f6fb4", "Muon": "#d1495b", "Muon, equal time": "#e0a030"}
WIDTH_COLORS = ("#9ecae1", "#4292c6", "#08306b")
NEAR = 0.01
"""Losses so close to the best of a grid are no worse: half of the spread between seeds."""


def write_report(study: Study, outcomes: Outcomes, out: Path) -> None:
    """Writes the report to `out` and the picture beside it."""
    plan = make_plan(study, outcomes)
    parts = [
        introduction(study, outcomes, out),
        tuning(plan, outcomes),
        comparison(study, plan, outcomes),
        parametrisations(study, plan, outcomes),
    ]
    out.write_text("\n".join(line for part in parts for line in part) + "\n")
    draw(study, plan, outcomes, out.with_suffix(".png"))


def introduction(study: Study, outcomes: Outcomes, out: Path) -> list[str]:
    tokens_per_step = study.batch_size * study.context_length
    commits = sorted({outcome.commit for outcome in outcomes.values()})
    seconds = [outcome.cpu_seconds for outcome in outcomes.values()]
    return [
        "# Convergence on books",
        "",
        f"![Losses over tokens, seconds and learning rates]({out.with_suffix('.png').name})",
        "",
        "Command: `make bench-convergence` (`python benches/convergence.py`); the runs and their",
        f"curves are in [{out.with_suffix('.jsonl').name}]({out.with_suffix('.jsonl').name}).",
        f"Machine: {cpu_model()}, {platform.system()}, Python {platform.python_version()}, "
        f"torch {metadata.version('torch')}; {', '.join(commits)}.",
        f"{len(outcomes)} runs of one thread, two at a time: {sum(seconds) / 60:.0f} CPU minutes "
        f"of updates in all, {max(seconds, default=0):.0f} s in the longest run.",
        "",
        f"English books, a vocabulary of {study.vocab_size:,} trained on them, {study.n_layers} "
        f"layers, context {study.context_length}, heads of {study.d_head}; {study.n_steps} steps "
        f"of {tokens_per_step:,} tokens ({study.n_steps * tokens_per_step:,}, no text twice).",
        "All else is the default recipe of `rslm train`: AdamW with β (0.9, 0.95), decay 0.1",
        "where nothing else is said, clipping at 1, cosine to a tenth, float32; the warm-up is a",
        "tenth of the steps. Losses are nats per token on the same "
        f"{study.n_validation_tokens:,} tokens of other books.",
        "CPU seconds are those of updates, without validation and checkpoints.",
        "",
        "| width | parameters | without the embedding |",
        "| --: | --: | --: |",
        *(sizes_row(study, width) for width in study.widths),
        "",
    ]


def sizes_row(study: Study, width: int) -> str:
    config = TransformerConfig(
        vocab_size=study.vocab_size,
        context_length=study.context_length,
        d_model=width,
        n_layers=study.n_layers,
        n_heads=width // study.d_head,
    )
    counts = n_parameters(config), n_non_embedding_parameters(config)
    return row_of([str(width), *(f"{count:,}" for count in counts)])


def tuning(plan: Plan, outcomes: Outcomes) -> list[str]:
    """The grids of the main width."""
    main, *_ = plan.widths.values()
    lines = ["## Tuning", "", *grid_table("AdamW", main, "learning_rate", outcomes)]
    if main.best is not None and all(run in outcomes for run in plan.decays):
        runs = sorted((main.best, *plan.decays), key=lambda run: run.weight_decay)
        lines += [
            row_of(
                [
                    f"AdamW, decay at rate {main.best.learning_rate:g}",
                    *(f"{run.weight_decay:g}" for run in runs),
                ]
            ),
            row_of(["---", *["--:"] * len(runs)]),
            row_of(["loss", *(loss(outcomes[run].val_loss) for run in runs)]),
            "",
        ]
    if plan.muon_search is not None:
        title = "Muon's matrices, the rest at AdamW's rate"
        lines += grid_table(title, plan.muon_search, "muon_learning_rate", outcomes)
    return lines


def grid_table(title: str, found: Search, name: str, outcomes: Outcomes) -> list[str]:
    losses = [outcomes[run].val_loss for run in found.runs]
    best = min(losses, default=math.inf)
    return [
        row_of([f"{title}: learning rate", *(f"{getattr(run, name):g}" for run in found.runs)]),
        row_of(["---", *["--:"] * len(losses)]),
        row_of(["loss", *(f"**{loss(x)}**" if x == best else loss(x) for x in losses)]),
        "",
    ]


def loss(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else "diverged"


def comparison(study: Study, plan: Plan, outcomes: Outcomes) -> list[str]:
    """Muon beside tuned AdamW: equal tokens, and equal time."""
    arms = arms_of(plan, outcomes)
    lines = ["## Muon beside tuned AdamW", ""]
    if "Muon" not in arms:
        return [*lines, "Not there yet.", ""]
    columns = ("", "steps", "CPU s", "loss (mean ± sd)", "bits per byte", "each seed", "to AdamW")
    lines += [row_of(columns), row_of(["---", *["--:"] * 6])]
    base = arms["AdamW"]
    for name, runs in arms.items():
        found = [outcomes[run] for run in runs]
        losses = [outcome.val_loss for outcome in found]
        gaps = [x - outcomes[run].val_loss for x, run in zip(losses, base, strict=True)]
        lines.append(
            row_of(
                [
                    name,
                    str(runs[0].n_steps),
                    f"{statistics.mean(o.cpu_seconds for o in found):.1f}",
                    f"{statistics.mean(losses):.4f} ± {statistics.stdev(losses):.4f}",
                    f"{statistics.mean(o.val_bits_per_byte for o in found):.4f}",
                    ", ".join(f"{x:.4f}" for x in losses),
                    "" if name == "AdamW" else interval(gaps),
                ]
            )
        )
    same_loss = tokens_to_reach(base, arms["Muon"], outcomes)
    tuned, muon = base[0], arms["Muon"][0]
    lines += [
        "",
        f"Both with decay {tuned.weight_decay:g} and AdamW's rate {tuned.learning_rate:g}, Muon's",
        f"matrices with rate {muon.muon_learning_rate:g}: the best of the grids above.",
        f"{N_SEEDS} seeds of weights and order of the text each, differences by seed with their",
        "95 % interval (t). Muon in equal time has a schedule of its own over the steps that take",
        "AdamW's CPU seconds.",
        f"A step of Muon took {step_ratio(base, arms['Muon'], outcomes):.2f} times AdamW's CPU.",
        f"Muon's mean curve passes AdamW's last loss {same_loss}.",
        "",
    ]
    return lines


def arms_of(plan: Plan, outcomes: Outcomes) -> dict[str, tuple[Run, ...]]:
    """The arms of the comparison that are complete."""
    arms = {
        "AdamW": plan.adamw_seeds,
        "Muon": plan.muon_seeds,
        "Muon, equal time": plan.muon_equal_time,
    }
    return {name: runs for name, runs in arms.items() if runs and set(runs) <= set(outcomes)}


def interval(gaps: Sequence[float]) -> str:
    from scipy.stats import t

    half = t.ppf(0.975, len(gaps) - 1) * statistics.stdev(gaps) / math.sqrt(len(gaps))
    return f"{statistics.mean(gaps):+.4f} ± {half:.4f}"


def step_ratio(base: Sequence[Run], others: Sequence[Run], outcomes: Outcomes) -> float:
    seconds = [
        statistics.median(outcomes[run].seconds_per_step for run in runs) for runs in (base, others)
    ]
    return seconds[1] / seconds[0]


def tokens_to_reach(base: Sequence[Run], others: Sequence[Run], outcomes: Outcomes) -> str:
    """Where the mean curve of `others` passes the last loss of `base`, by straight lines."""
    target = mean_curve(base, outcomes, "n_tokens")[-1]
    curve = mean_curve(others, outcomes, "n_tokens")
    for (x0, y0), (x1, y1) in pairwise(curve):
        if y1 <= target[1] < y0:
            share = (x0 + (y0 - target[1]) / (y0 - y1) * (x1 - x0)) / target[0]
            return f"after {share:.0%} of the tokens"
    return "at no point"


def mean_curve(runs: Sequence[Run], outcomes: Outcomes, key: str) -> list[tuple[float, float]]:
    """Means over the seeds of `key` and of the loss at each validation."""
    rows = zip(*(outcomes[run].curve for run in runs), strict=True)
    return [
        (
            statistics.mean(row[key] for row in same),
            statistics.mean(row["val_loss"] for row in same),
        )
        for same in rows
    ]


def parametrisations(study: Study, plan: Plan, outcomes: Outcomes) -> list[str]:
    """Best rates by width, and what one rate for all widths costs."""
    lines = ["## Standard parametrisation and muP", ""]
    for kind in ("standard", "mup"):
        grids = {width: grid_losses(plan.widths[kind, width], outcomes) for width in study.widths}
        rates = sorted({rate for losses in grids.values() for rate in losses})
        columns = [f"{kind}: width", *(f"{rate:g}" for rate in rates), "fit", f"within {NEAR:g}"]
        lines += [row_of(columns), row_of(["---", *["--:"] * (len(rates) + 2)])]
        for width, losses in grids.items():
            best = min(losses.values(), default=math.inf)
            marked = [
                "" if rate not in losses else "**" * (losses[rate] == best) + loss(losses[rate])
                + "**" * (losses[rate] == best)
                for rate in rates
            ]  # fmt: skip
            near = [f"{rate:g}" for rate, value in losses.items() if value <= best + NEAR]
            fitted = best_rate(plan.widths[kind, width], outcomes)
            fit = "" if fitted is None else f"{fitted:.2g}"
            lines.append(row_of([str(width), *marked, fit, ", ".join(near)]))
        lines += ["", *transfer(kind, grids, plan, outcomes), ""]
    return [
        *lines,
        f"muP's base is width {study.widths[0]}; one seed. The fit is the vertex of the parabola",
        "through the best point of a grid and its neighbours, over the logarithm of the rate; the",
        f"last column has the rates that come within {NEAR:g} of the best.",
    ]


def grid_losses(found: Search, outcomes: Outcomes) -> dict[float, float]:
    """Losses by rate."""
    return {run.learning_rate: outcomes[run].val_loss for run in found.runs}


def transfer(
    kind: str, grids: dict[int, dict[float, float]], plan: Plan, outcomes: Outcomes
) -> list[str]:
    """How far the best rate moves, and the least that one rate costs the width it fits worst."""
    if not all(grids.values()):
        return ["Not there yet."]
    widths = list(grids)
    ends = [best_rate(plan.widths[kind, width], outcomes) or math.nan for width in widths]
    shared = set.intersection(*(set(losses) for losses in grids.values()))
    costs = {
        rate: max(losses[rate] - min(losses.values()) for losses in grids.values())
        for rate in shared
    }
    rate = min(costs, key=lambda rate: costs[rate])
    return [
        f"From width {widths[0]} to {widths[-1]} the fitted rate goes by a factor of "
        f"{ends[-1] / ends[0]:.2f}, from {widths[1]} to {widths[-1]} of {ends[-1] / ends[1]:.2f}. "
        f"One rate for all widths, {rate:g}, costs each at most {costs[rate]:.4f} nats beside its "
        "own best."
    ]


def best_rate(found: Search, outcomes: Outcomes) -> float | None:
    """The vertex of the parabola through the best point and its neighbours; the best at an edge."""
    if not found.runs:
        return None
    losses = [outcomes[run].val_loss for run in found.runs]
    i = losses.index(min(losses))
    rate = found.runs[i].learning_rate
    if not 0 < i < len(losses) - 1:
        return rate
    before, here, after = losses[i - 1 : i + 2]
    curvature = before - 2 * here + after
    if not math.isfinite(curvature) or curvature <= 0:
        return rate
    return float(rate * 2 ** ((before - after) / (2 * curvature)))


def draw(study: Study, plan: Plan, outcomes: Outcomes, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 8), dpi=120, layout="constrained")
    axes = figure.subplot_mosaic("aabbcc;dddeee")
    arms = arms_of(plan, outcomes)
    draw_curves(axes["a"], arms, outcomes, "n_tokens", "tokens (thousands)", 1e3)
    draw_curves(axes["b"], arms, outcomes, "cpu_seconds", "CPU seconds of updates", 1)
    draw_tuning(axes["c"], study, plan, outcomes)
    for key, kind, name in (("d", "standard", "standard parametrisation"), ("e", "mup", "muP")):
        draw_widths(axes[key], study, plan, outcomes, kind, f"{name}, by width")
    low, high = loss_range([axes["d"], axes["e"]])
    for key in "cde":
        show_grid(axes[key])
    for axis in axes.values():
        axis.grid(color="#e8e8e8", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_ylabel("validation loss (nats per token)")
        if axis.get_legend_handles_labels()[0]:
            axis.legend(frameon=False, fontsize=9)
    for key in ("d", "e"):
        axes[key].set_ylim(low, high)
    figure.savefig(path)


def loss_range(axes: Sequence[Any]) -> tuple[float, float]:
    """The same limits for all, a little beyond the losses of their grids."""
    found = [y for axis in axes for line in grid_lines(axis) for y in line.get_ydata()]
    low, high = min(found, default=0.0), max(found, default=1.0)
    margin = 0.04 * (high - low)
    return low - margin, high + margin


def grid_lines(axis: Any) -> list[Any]:
    return [line for line in axis.get_lines() if line.get_marker() == "o"]


def draw_curves(
    axis: Any,
    arms: dict[str, tuple[Run, ...]],
    outcomes: Outcomes,
    key: str,
    label: str,
    unit: float,
) -> None:
    """Mean curves with the range of the seeds, from the second validation on."""
    axis.set(xlabel=label)
    axis.set_title(f"Muon and tuned AdamW, {N_SEEDS} seeds", loc="left", fontsize=10)
    for name, runs in arms.items():
        points = mean_curve(runs, outcomes, key)[1:]
        x, y = [point[0] / unit for point in points], [point[1] for point in points]
        curves = list(zip(*(outcomes[run].curve for run in runs), strict=True))[1:]
        low, high = (
            [pick(row["val_loss"] for row in same) for same in curves]
            for pick in (min, max)
        )  # fmt: skip
        axis.fill_between(x, low, high, color=COLORS[name], alpha=0.2, linewidth=0)
        axis.plot(x, y, color=COLORS[name], marker="o", markersize=3.5, label=name)


def draw_tuning(axis: Any, study: Study, plan: Plan, outcomes: Outcomes) -> None:
    axis.set(xlabel="learning rate (of Muon's matrices)", xscale="log")
    axis.set_title(f"Grids at width {study.main_width}", loc="left", fontsize=10)
    main, *_ = plan.widths.values()
    draw_grid(axis, main, outcomes, lambda r: r.learning_rate, COLORS["AdamW"], "AdamW")
    if plan.muon_search is not None:
        draw_grid(
            axis,
            plan.muon_search,
            outcomes,
            lambda run: run.muon_learning_rate or 0.0,
            COLORS["Muon"],
            "Muon",
        )
    for run in plan.decays:
        if run in outcomes and math.isfinite(outcomes[run].val_loss):
            label = f"AdamW, decay {run.weight_decay:g}"
            marker = "v" if run.weight_decay == 0 else "^"
            point = [run.learning_rate], [outcomes[run].val_loss]
            axis.plot(*point, marker, color="#6b9bc3", markersize=5, label=label)


def draw_widths(
    axis: Any, study: Study, plan: Plan, outcomes: Outcomes, kind: str, title: str
) -> None:
    axis.set(xlabel="learning rate", xscale="log")
    axis.set_title(title, loc="left", fontsize=10)
    for width, color in zip(study.widths, WIDTH_COLORS, strict=True):
        found = plan.widths[kind, width]
        draw_grid(axis, found, outcomes, lambda run: run.learning_rate, color, str(width))
        if (rate := best_rate(found, outcomes)) is not None:
            axis.axvline(rate, color=color, linewidth=1, linestyle=":")


def draw_grid(
    axis: Any,
    found: Search,
    outcomes: Outcomes,
    rate: Callable[[Run], float],
    color: str,
    label: str,
) -> None:
    finite = [run for run in found.runs if math.isfinite(outcomes[run].val_loss)]
    losses = [outcomes[run].val_loss for run in finite]
    axis.plot(list(map(rate, finite)), losses, color=color, marker="o", markersize=4, label=label)


def show_grid(axis: Any) -> None:
    """The points of the grids as the ticks of an axis of rates."""
    ticks = sorted({float(x) for line in grid_lines(axis) for x in line.get_xdata()})
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks], rotation=45, fontsize=8)
    axis.minorticks_off()
