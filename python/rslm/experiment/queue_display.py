"""What a person sees of a queue: runs done, steps done, time left; nothing in a pipe."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rslm.architecture import train_flops_per_token
from rslm.train_config import TrainConfig

_REFRESH_SECONDS = 1.0
_TAIL_BYTES = 4096
_VOCAB_SIZE = 4096


class QueueDisplay:
    """A bar on a terminal, by FLOPs, so that a large run counts for more than a small one.

    Args:
        folder: the study's.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._costs: dict[str, tuple[float, int]] = {}
        self._progress: Any = None
        self._shown_at = 0.0

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich import progress
            from rich.console import Console
            from rich.table import Column

            whole = Column(no_wrap=True)
            rest = Column(ratio=1, no_wrap=True, overflow="ellipsis")
            columns = [
                progress.TextColumn("{task.description}", table_column=whole),
                progress.BarColumn(bar_width=20),
                progress.TaskProgressColumn(table_column=whole),
                progress.TextColumn("left", table_column=whole),
                progress.TimeRemainingColumn(table_column=whole),
                progress.TextColumn("{task.fields[names]}", table_column=rest),
            ]
            # Without a thread that draws: processes are started beside it.
            self._progress = progress.Progress(
                *columns,
                console=Console(stderr=True),
                auto_refresh=False,
                expand=True,
                speed_estimate_period=600,
            )
            self._progress.start()
            self._task = self._progress.add_task("runs", total=None, names="")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def expect(self, name: str, config: TrainConfig) -> None:
        """Notes what a run will cost."""
        self._costs[name] = run_flops(config), config.n_steps

    def show(self, entries: Sequence[Mapping[str, Any]], *, is_last: bool = False) -> None:
        """Draws how far the runs of a study are, about once a second, and at the end."""
        now = time.monotonic()
        is_early = now - self._shown_at < _REFRESH_SECONDS and not is_last
        if self._progress is None or is_early:
            return
        self._shown_at = now
        waits = ("waiting", "running", "stopped")
        n_done = sum(entry["status"] not in waits for entry in entries)
        running = [entry["folder"] for entry in entries if entry["status"] == "running"]
        mean = sum(cost for cost, _ in self._costs.values()) / max(len(self._costs), 1)
        total = done = 0.0
        for entry in entries:
            cost, n_steps = self._costs.get(entry["folder"], (mean, 1))
            total += cost
            if entry["status"] not in waits:
                done += cost
            elif entry["status"] == "running":
                path = self._folder / entry["folder"] / "metrics.jsonl"
                done += cost * min(1.0, last_step(path) / n_steps)
        names = ", ".join(name.rpartition("-")[0] for name in running)
        self._progress.update(
            self._task,
            description=f"runs {n_done}/{len(entries)}",
            total=total,
            completed=done,
            names=names,
        )
        self._progress.refresh()


def run_flops(config: TrainConfig) -> float:
    """FLOPs of a run; with a vocabulary of usual size where the data is still to state it."""
    model = config.model
    if model.vocab_size is None:
        model = replace(model, vocab_size=_VOCAB_SIZE)
    n_tokens = config.n_steps * config.batch_size * model.context_length
    return n_tokens * train_flops_per_token(model)


def last_step(metrics: Path) -> int:
    """The step of the last whole row of a metrics file, from its end alone; 0 where is none."""
    with contextlib.suppress(OSError, ValueError, KeyError), metrics.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _TAIL_BYTES))
        rows = file.read().rpartition(b"\n")[0].splitlines()
        return int(json.loads(rows[-1])["step"]) if rows else 0
    return 0
