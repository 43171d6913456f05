"""What a run measures: rows of metrics, utilisation, the loss curve."""

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from rslm.hardware import reported_accelerator
from rslm.matmul_peak import measure_matmul_flops
from rslm.run_folder import Row, read_metrics
from rslm.series import smooth

CLOCK_KEYS = (
    *("elapsed_seconds", "tokens_per_second", "mfu", "memory_bytes"),
    *("generate_tokens_per_second", "generate_seconds", "grade_seconds", "train_seconds"),
)
"""Metrics that say how fast the machine was; all others are a function of the config."""


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
    """Makes rows of metrics; numbers stay on the device until they are asked for together.

    `n_tokens` counts the places of the rows that went through the model, padding among them, as
    `train_flops`, `tokens_per_second` and `mfu` do, since a place with padding takes the same
    work. Where rows are packed `n_targets` counts the tokens among them that were predicted.

    Attributes:
        clock: of the run.
        n_targets: tokens predicted so far; None where each place has one, or nobody counted.
    """

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
        n_targets: int | None = None,
    ) -> None:
        self.clock = clock
        self.n_targets = n_targets
        self._device = device
        self._tokens_per_step = tokens_per_step
        self._flops_per_token = flops_per_token
        self._peak_flops = peak_flops
        # Where the batch size changed last: tokens are counted on from there.
        self._first_step = first_step
        self._first_token = first_token
        self._pending: list[tuple[Row, float, Tensor, Tensor]] = []
        self._last_seconds: float | None = None

    def add(
        self,
        step: int,
        *,
        learning_rate: float,
        loss: Tensor,
        grad_norm: Tensor,
        n_targets: int = 0,
    ) -> None:
        """Notes an update, on so many targets where they count; nothing waits for the device."""
        if self.n_targets is not None:
            self.n_targets += n_targets
        self._pending.append((self._counts(step), learning_rate, loss, grad_norm))

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
            counts
            | {"elapsed_seconds": self.clock.elapsed_seconds}
            | {"loss": loss, "learning_rate": learning_rate, "grad_norm": norm}
            | shared
            for (counts, learning_rate, _, _), (loss, norm) in zip(
                self._pending, values, strict=True
            )
        ]
        self._pending.clear()
        return rows

    def validation_row(self, step: int, loss: float, bits_per_byte: float | None) -> Row:
        """The row of a validation after `step` updates."""
        position = self._counts(step) | {"elapsed_seconds": self.clock.elapsed_seconds}
        return position | {"val_loss": loss, "val_bits_per_byte": bits_per_byte}

    def _counts(self, step: int) -> Row:
        n_tokens = self._first_token + (step - self._first_step) * self._tokens_per_step
        counts: Row = {"step": step, "n_tokens": n_tokens}
        if self.n_targets is not None:
            counts["n_targets"] = self.n_targets
        return counts | {"train_flops": n_tokens * self._flops_per_token}


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Dense FLOP/s that utilisation is measured against.

    The data sheet's number where the device is known, else the best of some matrix products,
    which take about a third of a second.
    """
    if device.type == "cuda":
        known = reported_accelerator(torch.cuda.get_device_name(device))
        if known is not None:
            return known.peak_flops("bfloat16" if dtype == torch.bfloat16 else "float32")
    return measure_matmul_flops(device, dtype)


def memory_bytes(device: torch.device) -> int:
    """The most memory the run has held: of the device, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def write_loss_curve(run: Path, title: str) -> None:
    """Draws `loss_curve.png` of a run folder from its metrics."""
    write_curve(run, title, "loss", "loss (nats per token)")


def write_curve(run: Path, title: str, metric: str, label: str) -> None:
    """Draws a metric of training and, as `val_...`, of validation: `METRIC_curve.png`."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    rows = read_metrics(run / "metrics.jsonl")
    trained = [row for row in rows if row.get(metric) is not None]
    validated = [row for row in rows if row.get(f"val_{metric}") is not None]
    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    steps = [row["step"] for row in trained]
    values = [row[metric] for row in trained]
    axes.plot(steps, values, color="#a9cbe8", linewidth=0.7)
    axes.plot(steps, smooth(values), color="#1f6fb4", linewidth=1.8, label="training (smoothed)")
    if validated:
        axes.plot(
            [row["step"] for row in validated],
            [row[f"val_{metric}"] for row in validated],
            color="#d1495b",
            linewidth=1.5,
            marker="o",
            markersize=4,
            label=f"validation: {_score(validated[-1], metric)}",
        )
    axes.set(xlabel="step", ylabel=label)
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    axes.set_title(title, loc="left")
    axes.grid(color="#e2e2e2", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(run / f"{metric}_curve.png")


def _score(row: Row, metric: str) -> str:
    bits = row.get("val_bits_per_byte") if metric == "loss" else None
    tail = "" if bits is None else f", {bits:.3f} bits per byte"
    return f"{row[f'val_{metric}']:.3f} at the end{tail}"
