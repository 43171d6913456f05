"""The table and the plot: medians, spreads, and rslm beside the best peer of each row."""

import math
import os
import platform
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from peer_calls import PEERS
from peer_inputs import SHAPES, size
from peer_rows import Entry, Row

COLUMNS = (
    "row",
    "who",
    "answer",
    "wall (min-max)",
    "CPU (min-max)",
    "MB/s",
    "MB per CPU-s",
    "cold CPU",
    "peak MB",
    "rslm / best peer",
    "target",
)


@dataclass
class Outcome:
    """What one entry of a row gave: samples, or the reason why there are none."""

    entry: Entry
    refusal: str = ""
    sha256: str = ""
    samples: list[dict[str, Any]] = field(default_factory=list)

    def median(self, key: str) -> float:
        return statistics.median(sample[key] for sample in self.samples)

    @property
    def is_ours(self) -> bool:
        return self.entry.peer == "rslm"


@dataclass
class Result:
    row: Row
    outcomes: list[Outcome]
    n_bytes: int = 0

    @property
    def title(self) -> str:
        title = self.row.title
        if self.row.vocab_size:
            title += f", {self.row.vocab_size:,} ids"
        sized = self.row.piece_bytes is None and self.row.text not in SHAPES
        return f"{title}, {size(self.n_bytes)}" if sized else title

    def ours(self, group: str) -> Outcome:
        return next(o for o in self.outcomes if o.is_ours and o.entry.group == group)

    @property
    def peers(self) -> list[Outcome]:
        """Those to be ranked: timed, and with the same answers as ours."""
        return [o for o in self.outcomes if o.samples and not o.is_ours]

    def ratio(self, ours: Outcome, key: str) -> tuple[float, str] | None:
        """How many times faster than the fastest peer, and who that is.

        The median over the turns, so that a load on the machine is on both sides of each.
        """
        if not ours.samples or not self.peers:
            return None
        best = min(self.peers, key=lambda peer: peer.median(key))
        n_turns = len(best.samples)  # one, where the best peer runs only once
        ratios = [
            best.samples[min(turn, n_turns - 1)][key] / max(mine[key], 1e-9)
            for turn, mine in enumerate(ours.samples)
        ]
        note = f" ({best.entry.note})" if best.entry.note else ""
        return statistics.median(ratios), f"{best.entry.peer}{note}"

    @property
    def measures(self) -> dict[str, str]:
        """What the target's ratio holds for, and the words for it."""
        measures = {"wall": "wall", "cpu": "CPU"}
        return measures | {"cold_cpu": "cold CPU"} if self.has_cold else measures

    @property
    def has_cold(self) -> bool:
        return self.row.passes > 1 and self.row.piece_bytes is None

    def verdict(self, ours: Outcome) -> str:
        """Each target of the row with "met", "not met", or where it is met."""
        target, parts = self.row.target, []
        if not ours.samples:
            return ""
        if target.ratio is not None and self.peers:
            found = {word: self.ratio(ours, key) for key, word in self.measures.items()}
            met = {
                word: ratio is not None and ratio[0] >= target.ratio
                for word, ratio in found.items()
            }
            parts.append(f"{target.ratio:g}x: {yes(met)}")
        if target.seconds is not None:
            met = {word: ours.median(key) <= target.seconds for key, word in self.measures.items()}
            parts.append(f"{target.seconds:g} s: {yes(met)}")
        if target.peak is not None:
            parts.append(f"{target.peak:g} MB: {yes({'': ours.median('peak') <= target.peak})}")
        if target.peak_of is not None:
            factor, name = target.peak_of
            peer = next((o for o in self.peers if o.entry.peer == name), None)
            if peer is not None:
                is_met = ours.median("peak") <= factor * peer.median("peak")
                parts.append(f"memory {factor:g}x {name}: {yes({'': is_met})}")
        return "; ".join(parts)


def yes(met: dict[str, bool]) -> str:
    if len(set(met.values())) == 1:
        return "met" if next(iter(met.values())) else "not met"
    return f"met in {' and '.join(word for word in met if met[word])} only"


def table(results: Sequence[Result]) -> list[str]:
    lines = [row_of(COLUMNS), row_of(["---"] * 3 + ["--:"] * 6 + ["---"] * 2)]
    for result in results:
        for i, outcome in enumerate(result.outcomes):
            title = result.title if i == 0 else ""
            lines.append(row_of([title, *cells(result, outcome)]))
    return lines


def row_of(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


def cells(result: Result, outcome: Outcome) -> list[str]:
    name = f"**{outcome.entry.label}**" if outcome.is_ours else outcome.entry.label
    if not outcome.samples:
        return [name, outcome.refusal[:100] or "no sample", *[""] * 8]
    first = outcome.samples[0]
    calls = first.get("n_calls", 1)
    n_bytes = first.get("n_bytes", result.n_bytes)
    rates = [rate(n_bytes / 1e6 / max(outcome.median(key), 1e-9)) for key in ("wall", "cpu")]
    return [
        name,
        answer(result, outcome),
        *(spread([s[key] / calls for s in outcome.samples]) for key in ("wall", "cpu")),
        *rates,
        duration(outcome.median("cold_cpu")) if result.has_cold else "",
        f"{max(sample['peak'] for sample in outcome.samples):,.0f}",
        ratios(result, outcome) if outcome.is_ours else "",
        result.verdict(outcome) if outcome.is_ours else "",
    ]


def answer(result: Result, outcome: Outcome) -> str:
    kind = {"train": "merges", "decode_to_bytes": "bytes", "decode_to_text": "bytes"}
    n_items = outcome.samples[0]["n_items"]
    counted = f"{n_items:,} {kind.get(result.row.operation, 'ids')}"
    return counted if outcome.is_ours else f"same {counted}"


def ratios(result: Result, ours: Outcome) -> str:
    found = [(word, result.ratio(ours, key)) for key, word in result.measures.items()]
    return ", ".join(f"{word} {ratio[0]:.2f}x {ratio[1]}" for word, ratio in found if ratio)


def rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def spread(values: Sequence[float]) -> str:
    middle = duration(statistics.median(values))
    if len(values) == 1:
        return middle
    unit = middle.split()[1]
    scale = {"s": 1, "ms": 1e3, "µs": 1e6}[unit]
    low, high = (rate(value * scale) for value in (min(values), max(values)))
    return f"{middle} ({low}-{high})"


def duration(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} µs"


def header(n_samples: int, elapsed: float) -> list[str]:
    """Machine, versions, commit and command, and how to read the table."""
    return [
        "# rslm beside its peers",
        "",
        f"Command: `{shlex.join(['python', *sys.argv])}`, {elapsed / 60:.1f} minutes.",
        f"Machine: {cpu_model()}, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}, {commit()}.",
        f"Versions: {', '.join(versions())}.",
        "",
        f"Load average at the end: {os.getloadavg()[0]:.1f}; other work shows in wall times.",
        "",
        "Answers were compared first, by SHA-256 of all ids, merges or bytes; a peer that",
        f"differs is named, not timed. Then {n_samples} samples each (3 of the longest rows), each",
        "a process of its own, in turns: of each the best pass behind the first, cold one, then",
        "the median over samples. CPU is user and system time of the process and its children",
        "behind the preparation; peak is the highest resident memory up to the end of the first",
        "pass. Ratios are medians over the turns; above 1 rslm is faster.",
        "",
    ]


def cpu_model() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(models)} x {models[0]}" if models else platform.processor() or platform.machine()


def commit() -> str:
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        found = subprocess.run(git, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "no commit known"
    return f"commit {found.stdout.strip()}"


def versions() -> list[str]:
    distributions = metadata.packages_distributions()
    found = []
    for name in dict.fromkeys([*(peer.package for peer in PEERS.values()), "numpy"]):
        distribution = distributions.get(name, [name])[0]
        try:
            found.append(f"{distribution} {metadata.version(distribution)}")
        except metadata.PackageNotFoundError:
            found.append(f"{name} not installed")
    return found


def plot(results: Sequence[Result], path: Path) -> None:
    """One panel a row, one bar a peer: MB per CPU second, rslm in colour."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    shown = [result for result in results if any(o.samples for o in result.outcomes)]
    if not shown:
        return
    n_columns = min(3, len(shown))
    n_lines = math.ceil(len(shown) / n_columns)
    most = max(len(result.outcomes) for result in shown)
    size = (6 * n_columns, (0.28 * most + 0.7) * n_lines + 0.8)
    figure, axes = pyplot.subplots(n_lines, n_columns, figsize=size, squeeze=False)
    for axis, result in zip(axes.flat, shown, strict=False):
        draw(axis, result, most)
    for axis in axes.flat[len(shown) :]:
        axis.axis("off")
    figure.suptitle("MB per CPU second, same answers (longer is faster)", fontsize=12)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.5 / size[1]))
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def draw(axis: Any, result: Result, most: int) -> None:
    timed = [outcome for outcome in result.outcomes if outcome.samples]
    rates = []
    for outcome in timed:
        n_bytes = outcome.samples[0].get("n_bytes", result.n_bytes)
        rates.append(n_bytes / 1e6 / max(outcome.median("cpu"), 1e-9))
    colors = ["tab:orange" if outcome.is_ours else "tab:gray" for outcome in timed]
    names = [outcome.entry.label for outcome in timed]
    bars = axis.barh(range(len(timed)), rates, color=colors)
    axis.bar_label(bars, [f" {rate(value)}" for value in rates], fontsize=8)
    axis.set_yticks(range(len(timed)), names, fontsize=8)
    axis.set_ylim(most - 0.4, -0.6)  # bars of one thickness, from the top
    axis.set_xlim(0, max(rates) * 1.15)
    axis.xaxis.set_visible(False)
    axis.set_title(result.title, fontsize=9, loc="left")
    for side in ("top", "right", "bottom"):
        axis.spines[side].set_visible(False)
