"""Verdicts as people read them: a table per architecture, estimates of speed, what fails."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from rslm.hardware import find_accelerator
from rslm.kernels.offline.gate import Verdict
from rslm.kernels.offline.targets import Target, find_target

HEADER = (
    *("kernel", "d_head", "tiles", "warps", "stages", "registers", "spilled", "in loop", "shared"),
    *("per SM", "occupied", "products", "TMA", "loop", "EX2/score", "of peak", "bound", "gate"),
)
LOOPS = ("forward", "key_gradients", "query_gradients")
"""Kernels whose speed can be estimated."""
LEGEND = (
    "spilled: bytes stored; in loop: loads and stores of local memory in a turn of the hot loop; "
    "loop: its instructions; of peak: without any overlap - upper bound."
)


def print_verdicts(verdicts: Sequence[Verdict], console: Console) -> None:
    """Prints tables on a terminal, aligned columns in a pipe, and below them what fails."""
    for arch in dict.fromkeys(verdict.subject.arch for verdict in verdicts):
        target = find_target(arch)
        own = [verdict for verdict in verdicts if verdict.subject.arch == arch]
        _print_table(f"{_name(target)}", [cells(verdict) for verdict in own], console)
        for line in estimates(own, target):
            console.print(line, highlight=False, soft_wrap=True)
        console.print()
    console.print(LEGEND, style="dim", highlight=False, soft_wrap=True)
    for verdict in verdicts:
        for failure in verdict.failures:
            line = f"fails: {label(verdict)}: {failure}"
            console.print(line, style="red", highlight=False, soft_wrap=True)


def label(verdict: Verdict) -> str:
    """Architecture, head width, kernel and configuration in a few words."""
    subject = verdict.subject
    words = [f"{_name(find_target(subject.arch))}, d_head {subject.d_head}, {subject.kernel}"]
    if verdict.binary is not None:
        words.append(f"{_tiles(verdict)} w{verdict.binary.n_warps} s{verdict.binary.n_stages}")
    return " ".join(words)


def _name(target: Target) -> str:
    return target.arch if target.is_amd else f"sm_{target.arch}"


def _tiles(verdict: Verdict) -> str:
    queries, keys = verdict.tiles
    return f"{queries}x{keys}" if keys else str(queries)


def _print_table(title: str, rows: list[list[str]], console: Console) -> None:
    is_watched = console.is_terminal
    console.print(title, style="bold", highlight=False)
    table = Table(
        box=box.SIMPLE_HEAD if is_watched else None,
        pad_edge=is_watched,
        padding=(0, 1) if is_watched else (0, 2, 0, 0),
    )
    for name in HEADER:
        table.add_column(name, justify="left" if name == "kernel" else "right")
    for row in rows:
        table.add_row(*row, style=None if row[-1] == "passes" else "red")
    console.print(table)


def cells(verdict: Verdict) -> list[str]:
    """A row of the table."""
    subject, binary = verdict.subject, verdict.binary
    gate = "FAILS" if verdict.failures else "passes"
    if binary is None:
        return [subject.kernel, str(subject.d_head), *["-"] * (len(HEADER) - 3), gate]
    has_loop = binary.loop_instructions > 0
    bounds = verdict.roofline
    return [
        subject.kernel,
        str(subject.d_head),
        _tiles(verdict),
        str(binary.n_warps),
        str(binary.n_stages),
        str(binary.n_registers),
        str(binary.spill_bytes),
        str(binary.loop_spills) if has_loop else "-",
        f"{binary.shared_bytes / 1024:.0f} KB",
        str(verdict.programs),
        f"{verdict.occupancy:.0%}",
        binary.product,
        "yes" if binary.uses_tma else "no",
        str(binary.loop_instructions) if has_loop else "-",
        f"{verdict.exp2_per_score:.2f}" if has_loop else "-",
        f"{bounds.serial_share:.0%} - {bounds.share:.0%}" if bounds else "-",
        bounds.bound if bounds else "-",
        gate,
    ]


def estimates(verdicts: Sequence[Verdict], target: Target) -> list[str]:
    """TFLOP/s of forward and backward by head width, where a width has one verdict of each."""
    if target.accelerator is None or target.peak_flops is None:
        return []
    lines = []
    for d_head in dict.fromkeys(verdict.subject.d_head for verdict in verdicts):
        own = [v for v in verdicts if v.subject.d_head == d_head and v.roofline]
        if sorted(v.subject.kernel for v in own) != sorted(LOOPS):
            continue
        speeds = [
            f"{part} {_speed(own, part, target.peak_flops)}" for part in ("forward", "backward")
        ]
        lines.append(f"d_head {d_head}: at most {', '.join(speeds)} TFLOP/s")
    if lines:
        accelerator = find_accelerator(target.accelerator)
        lines.append(
            f"of {target.peak_flops / 1e12:,.0f} ({accelerator.name}: {accelerator.source}); in "
            "brackets without any overlap; the backward does 7 products, of which 5 are counted"
        )
    return lines


def _speed(verdicts: Sequence[Verdict], part: str, peak_flops: float) -> str:
    """Upper bound, and that without overlap, of products counted as papers do."""
    speeds = []
    for serial in (False, True):
        clocks, products = 0.0, 0.0
        for verdict in verdicts:
            bounds, (queries, keys) = verdict.roofline, verdict.tiles
            if bounds is None or (verdict.subject.kernel == "forward") != (part == "forward"):
                continue
            # Per pair of query and key: tiles of the two backward kernels differ.
            clocks += (bounds.serial_clocks if serial else bounds.clocks) / (queries * keys)
            products += bounds.products / (queries * keys)
        counted = 1 if part == "forward" else 5 / 7
        speeds.append(counted * products / clocks * peak_flops / 1e12)
    return f"{speeds[0]:.0f} ({speeds[1]:.0f})"
