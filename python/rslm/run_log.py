"""What a run measures and shows: rows of metrics, the live display, the loss curve."""

import contextlib
import itertools
import math
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from torch import Tensor

from rslm.run_folder import Row, read_metrics

CLOCK_KEYS = ("elapsed_seconds", "tokens_per_second", "mfu", "memory_bytes")
"""Metrics that say how fast the machine was; all others are a function of the config."""

DENSE_FLOPS = {
    "NVIDIA A100": {torch.bfloat16: 312e12, torch.float32: 19.5e12},
    "NVIDIA H100 80GB HBM3": {torch.bfloat16: 989.4e12, torch.float32: 66.9e12},
    "NVIDIA H200": {torch.bfloat16: 989.4e12, torch.float32: 66.9e12},
    "NVIDIA B200": {torch.bfloat16: 2250e12, torch.float32: 80e12},
}
"""Dense peak FLOP/s by the start of the device's name, from the makers' data sheets."""

SPARKS = "▁▂▃▄▅▆▇█"


class Clock:
    """Seconds of a run over all its parts, and those of them spent in training steps."""

    def __init__(self, elapsed_seconds: float = 0.0) -> None:
        self._start = time.perf_counter() - elapsed_seconds
        self._away = 0.0

    @property
    def elapsed_seconds(self) -> float:
        """Seconds since the run began, without those between a stop and a resumption."""
        return time.perf_counter() - self._start

    @property
    def training_seconds(self) -> float:
        """Elapsed seconds less those spent away from training."""
        return self.elapsed_seconds - self._away

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """Marks time spent on validation, samples and checkpoints."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._away += time.perf_counter() - start


class Meter:
    """Makes rows of metrics; numbers stay on the device until they are asked for together."""

    def __init__(
        self,
        clock: Clock,
        device: torch.device,
        *,
        tokens_per_step: int,
        flops_per_token: float,
        peak_flops: float,
        first_step: int = 0,
        first_token: int = 0,
    ) -> None:
        self.clock = clock
        self._device = device
        self._tokens_per_step = tokens_per_step
        self._flops_per_token = flops_per_token
        self._peak_flops = peak_flops
        # Where the batch size changed last: tokens are counted on from there.
        self._first_step = first_step
        self._first_token = first_token
        self._pending: list[tuple[int, float, Tensor, Tensor]] = []
        self._last_seconds: float | None = None

    def add(self, step: int, *, learning_rate: float, loss: Tensor, grad_norm: Tensor) -> None:
        """Notes an update; nothing waits for the device."""
        self._pending.append((step, learning_rate, loss, grad_norm))

    def take_rows(self) -> list[Row]:
        """The rows of the updates since the last call; waits for the device once.

        Speed is the mean since the last call, without time away from training. The first call
        gives none: its steps warm up, and compile.
        """
        if not self._pending:
            return []
        scalars = [torch.stack([loss, norm]) for _, _, loss, norm in self._pending]
        values = torch.stack(scalars).tolist()
        now, n_steps = self.clock.training_seconds, len(self._pending)
        speed = None
        if self._last_seconds is not None:
            speed = n_steps * self._tokens_per_step / (now - self._last_seconds)
        self._last_seconds = now
        shared = {
            "tokens_per_second": speed,
            "mfu": None if speed is None else speed * self._flops_per_token / self._peak_flops,
            "memory_bytes": memory_bytes(self._device),
        }
        rows = [
            self._position(step)
            | {"loss": loss, "learning_rate": learning_rate, "grad_norm": norm}
            | shared
            for (step, learning_rate, _, _), (loss, norm) in zip(self._pending, values, strict=True)
        ]
        self._pending.clear()
        return rows

    def validation_row(self, step: int, loss: float, bits_per_byte: float | None) -> Row:
        """The row of a validation after `step` updates."""
        return self._position(step) | {"val_loss": loss, "val_bits_per_byte": bits_per_byte}

    def _position(self, step: int) -> Row:
        n_tokens = self._first_token + (step - self._first_step) * self._tokens_per_step
        return {
            "step": step,
            "n_tokens": n_tokens,
            "train_flops": n_tokens * self._flops_per_token,
            "elapsed_seconds": self.clock.elapsed_seconds,
        }


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Dense FLOP/s that utilisation is measured against.

    The data sheet's number where the device is known, else the best of some matrix products,
    which take about a third of a second.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for start, peaks in DENSE_FLOPS.items():
            if name.startswith(start):
                return peaks[dtype]
    return _measure_matmul_flops(device, dtype)


def _measure_matmul_flops(device: torch.device, dtype: torch.dtype, seconds: float = 0.3) -> float:
    size = 1024 if device.type == "cpu" else 4096
    a = torch.ones(size, size, device=device, dtype=dtype)
    best = math.inf
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or best == math.inf:
        start = time.perf_counter()
        # Reading one entry waits for the product on every kind of device.
        (a @ a)[0, 0].item()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def memory_bytes(device: torch.device) -> int:
    """The most memory the run has held: of the device, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def sparkline(values: Sequence[float], width: int) -> str:
    """The values as one line of bars: means of `width` stretches, lowest to highest."""
    finite = [value for value in values if math.isfinite(value)]
    n_bars = min(width, len(finite))
    edges = [len(finite) * i // n_bars for i in range(n_bars + 1)] if n_bars else []
    stretches = itertools.pairwise(edges)
    means = [sum(finite[start:stop]) / (stop - start) for start, stop in stretches]
    low, high = min(means, default=0.0), max(means, default=0.0)
    scale = (len(SPARKS) - 1) / (high - low) if high > low else 0.0
    return "".join(SPARKS[round((mean - low) * scale)] for mean in means)


def duration(seconds: float) -> str:
    """Seconds as people read them: 42s, 3m 05s, 2h 10m."""
    if seconds < 60:
        return f"{seconds:.0f}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m {rest:02d}s"
    return f"{minutes // 60}h {minutes % 60:02d}m"


class RunDisplay:
    """Shows a run: a live panel on a terminal, else a line of `key=value` per logged step."""

    def __init__(
        self, console: Console, *, title: str, n_steps: int, first_step: int, log_every: int
    ) -> None:
        self._console = console
        self._title = title
        self._n_steps = n_steps
        self._first_step = first_step
        self._log_every = log_every
        self._losses: deque[float] = deque(maxlen=2000)
        self._row: Row = {"step": first_step}
        self._validation: Row = {}
        self._warm: tuple[int, float] | None = None
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            # Two pictures a second: the thread that draws them shares the interpreter with
            # the training step.
            self._live = Live(
                console=self._console, get_renderable=self._panel, refresh_per_second=2
            )
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def note(self, message: str) -> None:
        """Prints one sentence above the panel, or as a line of its own."""
        self._console.print(Text(message), soft_wrap=True)

    def show(self, row: Row) -> None:
        """Takes in a row of the metrics."""
        if "val_loss" in row:
            self._validation = row
        else:
            self._row = row
            self._losses.append(row["loss"])
            # Time left is counted from the end of the first step, which may have compiled.
            self._warm = self._warm or (row["step"], row["elapsed_seconds"])
        due = row["step"] % self._log_every == 0 or row["step"] in (1, self._n_steps)
        if self._live is None and (due or "val_loss" in row):
            self._console.print(Text(self._line(row)), soft_wrap=True)

    @property
    def seconds_left(self) -> float | None:
        """At the mean pace since the first step, validation and checkpoints included."""
        if self._warm is None or self._row["step"] == self._warm[0]:
            return None
        n_steps = int(self._row["step"]) - self._warm[0]
        seconds = float(self._row["elapsed_seconds"]) - self._warm[1]
        return (self._n_steps - int(self._row["step"])) * seconds / n_steps

    def _line(self, row: Row) -> str:
        shown = {"step": f"{row['step']}/{self._n_steps}"}
        formats = {
            "loss": ".4f",
            "val_loss": ".4f",
            "val_bits_per_byte": ".4f",
            "learning_rate": ".3g",
            "grad_norm": ".3g",
            "tokens_per_second": ".0f",
        }
        for key, form in formats.items():
            if row.get(key) is not None:
                shown[key] = format(row[key], form)
        if self.seconds_left is not None:
            shown["seconds_left"] = f"{self.seconds_left:.0f}"
        return " ".join(f"{key}={value}" for key, value in shown.items())

    def _panel(self) -> Panel:
        row, step = self._row, self._row["step"]
        table = Table.grid(padding=(0, 2))
        for _ in range(5):
            table.add_column(justify="right")
        left = self.seconds_left
        cells = {
            "step": f"{step:,}/{self._n_steps:,}",
            "loss": _shown(row.get("loss"), ".4f"),
            "val bits/byte": _shown(self._validation.get("val_bits_per_byte"), ".4f"),
            "tokens/s": _shown(row.get("tokens_per_second"), ",.0f"),
            "time left": "…" if left is None else duration(left),
        }
        table.add_row(*(Text(name, style="dim") for name in cells))
        table.add_row(*(Text(value, style="bold") for value in cells.values()))
        lines = Table.grid()
        lines.add_row(table)
        lines.add_row(ProgressBar(total=self._n_steps, completed=step, width=60))
        lines.add_row(Text(sparkline(self._losses, 60), style="cyan"))
        return Panel(lines, title=self._title, title_align="left", expand=False)


def _shown(value: float | None, form: str) -> str:
    return "…" if value is None else format(value, form)


def write_loss_curve(run: Path, title: str) -> None:
    """Draws `loss_curve.png` of a run folder from its metrics."""
    from matplotlib.figure import Figure

    rows = read_metrics(run / "metrics.jsonl")
    trained = [row for row in rows if row.get("loss") is not None]
    validated = [row for row in rows if row.get("val_loss") is not None]
    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    steps = [row["step"] for row in trained]
    losses = [row["loss"] for row in trained]
    axes.plot(steps, losses, color="#a9cbe8", linewidth=0.7)
    axes.plot(steps, smooth(losses), color="#1f6fb4", linewidth=1.8, label="training (smoothed)")
    if validated:
        axes.plot(
            [row["step"] for row in validated],
            [row["val_loss"] for row in validated],
            color="#d1495b",
            linewidth=1.5,
            marker="o",
            markersize=4,
            label=f"validation: {_score(validated[-1])}",
        )
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    axes.set_title(title, loc="left")
    axes.grid(color="#e2e2e2", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(run / "loss_curve.png")


def _score(row: Row) -> str:
    bits = row.get("val_bits_per_byte")
    tail = "" if bits is None else f", {bits:.3f} bits per byte"
    return f"{row['val_loss']:.3f} at the end{tail}"


def smooth(values: Sequence[float]) -> list[float]:
    """Mean over the nearest fiftieth of the values around each of them."""
    reach = len(values) // 100
    sums = [0.0, *itertools.accumulate(values)]
    spans = ((max(0, i - reach), min(len(values), i + reach + 1)) for i in range(len(values)))
    return [(sums[stop] - sums[start]) / (stop - start) for start, stop in spans]
