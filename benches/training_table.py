"""The table and the plot of the training comparison: medians over turns, and who is ahead."""

import platform
import shlex
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from peer_table import commit, cpu_model, rate, row_of, spread

from rslm.architecture import TransformerConfig, n_parameters, train_flops_per_token

COLUMNS = (
    "row",
    "who",
    "tokens/s (wall)",
    "tokens per CPU-s",
    "CPU of a turn (min-max)",
    "of the matmul peak",
    "peak MB",
    "of it above imports",
    "compared",
)


@dataclass
class Contender:
    """What the turns of one process measured, or why there are none."""

    who: str
    refusal: str
    turns: list[dict[str, float]]

    @property
    def is_timed(self) -> bool:
        return not self.refusal and bool(self.turns)

    def values(self, key: str) -> list[float]:
        return [turn[key] for turn in self.turns]


@dataclass
class Result:
    """One row: all contenders at one shape, precision and way to run."""

    shape: str
    row: str
    model: TransformerConfig
    n_tokens: int
    n_threads: int
    contenders: list[Contender]

    def named(self, who: str) -> Contender:
        return next(contender for contender in self.contenders if contender.who == who)

    @property
    def title(self) -> str:
        model = self.model
        return (
            f"{self.row}, {n_parameters(model):,} parameters (d {model.d_model}, "
            f"{model.n_layers} layers, context {model.context_length})"
        )

    @property
    def peak(self) -> float:
        """FLOP/s of the best matrix product in any turn."""
        return max(self.named("matmul").values("flops"))

    def ratios(self, ours: str, theirs: str, key: str) -> list[float]:
        """How many times faster `ours` was, turn by turn: a load on the machine is on both."""
        pairs = zip(self.named(ours).values(key), self.named(theirs).values(key), strict=True)
        return [other / mine for mine, other in pairs]

    def compared(self, who: str) -> str:
        """What is to be said of the loop: its lead over each peer, its cost over its own step."""
        if who != "rslm train" or not self.named(who).is_timed:
            return ""
        parts = []
        for contender in self.contenders:
            if contender.who.startswith("transformers") and contender.is_timed:
                cpu, wall = (
                    statistics.median(self.ratios(who, contender.who, key))
                    for key in ("cpu", "wall")
                )
                parts.append(f"CPU {cpu:.3f}x, wall {wall:.3f}x {contender.who}")
        if self.named("rslm step").is_timed:
            costs = [1 / ratio - 1 for ratio in self.ratios(who, "rslm step", "cpu")]
            step, loop = self.named("rslm step").values("cpu"), self.named(who).values("cpu")
            whole = sum(loop) / sum(step) - 1
            parts.append(
                f"{statistics.median(costs):+.1%} CPU over its step "
                f"(median of {len(costs)} pairs; {whole:+.1%} with the checkpoint)"
            )
        return "; ".join(parts)


def table(results: Sequence[Result]) -> list[str]:
    lines = [row_of(COLUMNS), row_of(["---"] * 2 + ["--:"] * 6 + ["---"])]
    for result in results:
        shown = [c for c in result.contenders if c.who != "matmul"]
        for i, contender in enumerate(shown):
            lines.append(row_of([result.title if i == 0 else "", *cells(result, contender)]))
        peak = f"{result.peak / 1e9:,.0f} GFLOP/s, the best square product"
        lines.append(row_of(["", "matmul peak", *[""] * 3, peak, *[""] * 3]))
    return lines


def cells(result: Result, contender: Contender) -> list[str]:
    is_ours = contender.who.startswith("rslm")
    name = f"**{contender.who}**" if is_ours else contender.who
    if not contender.is_timed:
        return [name, contender.refusal or "no turn", *[""] * 6]
    cpu = statistics.median(contender.values("cpu"))
    rates = {key: speed(result, contender, key) for key in ("wall", "cpu")}
    # CPU seconds of all threads: at full use as many of them as threads make a second.
    flops = rates["cpu"] * result.n_threads * train_flops_per_token(result.model)
    return [
        name,
        rate(rates["wall"]),
        rate(rates["cpu"]),
        spread(contender.values("cpu")) if cpu else "",
        f"{flops / result.peak:.0%}",
        f"{max(contender.values('peak')):,.0f}",
        f"{max(contender.values('added')):,.0f}",
        result.compared(contender.who),
    ]


def speed(result: Result, contender: Contender, key: str) -> float:
    return result.n_tokens / statistics.median(contender.values(key))


def header(n_turns: int, n_threads: int, elapsed: float) -> list[str]:
    """Machine, versions, commit and command, and how to read the table."""
    return [
        "# Training beside transformers",
        "",
        f"Command: `{shlex.join(['python', *sys.argv])}`, {elapsed / 60:.1f} minutes.",
        f"Machine: {cpu_model()}, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}, {commit()}.",
        f"Versions: {', '.join(versions())}; {n_threads} thread{'s' * (n_threads > 1)}.",
        "",
        "`rslm train` is the whole loop: batches from a token file, clipping, metrics, printed",
        "lines, and one checkpoint in the middle turn. `rslm step` is its model, loss and AdamW on",
        "batches at hand, without clipping; `transformers` is LlamaForCausalLM of the same",
        "shapes with PyTorch's fused AdamW, likewise. bfloat16 is autocast over float32 weights",
        "for all of them; `transformers-bf16-weights` has nothing but bfloat16, which is another",
        "computation. All begin with the same weights and batch; whose first loss differs is not",
        f"timed. Processes of their own took {n_turns} turns each, in turn, behind two turns of",
        "warming up. Speeds are medians over the turns, ratios medians of the turns' ratios; above",
        "1 rslm is faster. Peak is the highest resident memory of the process, compiling included.",
        "Part of the lead is that rslm's processes keep freed memory, which saves page faults;",
        "transformers is run as it comes.",
        "",
    ]


def versions() -> list[str]:
    found = []
    for name in ("rslm", "torch", "transformers", "numpy"):
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            found.append(f"{name} not installed")
    return found


def plot(results: Sequence[Result], path: Path) -> None:
    """One panel a row, one bar a contender: tokens per CPU second, rslm in colour."""
    from matplotlib.figure import Figure

    most = max(len(result.contenders) for result in results) - 1
    size = (8, (0.3 * most + 0.6) * len(results) + 0.6)
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    axes = figure.subplots(len(results), 1, squeeze=False)
    for axis, result in zip(axes[:, 0], results, strict=True):
        draw(axis, result, most)
    figure.suptitle("Training: tokens per CPU second (longer is faster)", fontsize=12)
    figure.savefig(path)


def draw(axis: Any, result: Result, most: int) -> None:
    timed = [c for c in result.contenders if c.is_timed and c.who != "matmul"]
    rates = [speed(result, contender, "cpu") for contender in timed]
    colors = ["tab:orange" if c.who.startswith("rslm") else "tab:gray" for c in timed]
    bars = axis.barh(range(len(timed)), rates, color=colors)
    axis.bar_label(bars, [f" {rate(value)}" for value in rates], fontsize=8)
    axis.set_yticks(range(len(timed)), [contender.who for contender in timed], fontsize=8)
    axis.set_ylim(most - 0.4, -0.6)  # bars of one thickness, from the top
    axis.set_xlim(0, max(rates, default=1) * 1.15)
    axis.xaxis.set_visible(False)
    axis.set_title(result.title, fontsize=9, loc="left")
    for side in ("top", "right", "bottom"):
        axis.spines[side].set_visible(False)
