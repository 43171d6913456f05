"""How far `rslm data run` is: a line a stage on a terminal, next to nothing in a pipe."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rslm.terminal import note

if TYPE_CHECKING:
    from rslm.data.pipeline import Progress

Show = Callable[["Progress"], None]
# What takes less is not worth a line in a log.
EVERY_SECONDS = 60.0


@contextmanager
def shown_progress() -> Iterator[Show]:
    """What to call with the progress of a run."""
    if not sys.stderr.isatty():
        yield log_lines()
        return
    # Imported here: a program that shows no bar should not pay for it.
    from rich import progress as rich
    from rich.console import Console

    columns = [
        rich.TextColumn("{task.description}"),
        rich.BarColumn(bar_width=12),
        *(rich.TextColumn(f"{{task.fields[{name}]}}", justify="right") for name in FIELDS),
        _of_time()(),
    ]
    with rich.Progress(*columns, console=Console(stderr=True)) as bars:
        yield _bars(bars)


FIELDS = ("tasks", "documents", "speed")


def log_lines() -> Show:
    """A line now and then, however many tasks there are."""
    last = time.monotonic()

    def tell(progress: "Progress") -> None:
        nonlocal last
        if time.monotonic() - last >= EVERY_SECONDS:
            last = time.monotonic()
            found = f", {progress.n_found} of them before" if progress.n_found else ""
            note(f"{progress.stage}: {progress.n_done} of {progress.n_tasks} tasks{found}")

    return tell


def _bars(bars: Any) -> Show:
    """Draws a bar of each stage, by the bytes of inputs that its tasks stand for."""
    from rslm.data.pipeline.plan import PASSES

    tasks: dict[str, Any] = {}

    def draw(progress: "Progress") -> None:
        if progress.stage not in tasks:
            empty = dict.fromkeys(FIELDS, "")
            total = max(progress.n_bytes, 1)
            tasks[progress.stage] = bars.add_task(progress.stage, total=total, ends=None, **empty)
        number = tasks[progress.stage]
        (task,) = [each for each in bars.tasks if each.id == number]
        n_new = progress.n_bytes_done - progress.n_bytes_found
        seconds = max(task.elapsed or 0.0, 1e-3)
        is_done = progress.n_done == progress.n_tasks
        left = progress.n_bytes - progress.n_bytes_done
        bars.update(
            number,
            completed=task.total if is_done else progress.n_bytes_done,
            tasks=f"{progress.n_done:,}/{progress.n_tasks:,} tasks",
            **(_of_pass(progress, n_new / seconds) if progress.stage in PASSES else {}),
            ends=seconds + left * seconds / n_new if n_new else None,
        )

    return draw


def _of_pass(progress: "Progress", bytes_per_second: float) -> dict[str, str]:
    """What a stage that writes documents has left so far, and its speed in bytes of inputs."""
    if not progress.n_done:
        return {}
    speed = f"{bytes_per_second / 1e6:,.1f} MB/s" if bytes_per_second else ""
    return {"documents": f"{progress.n_documents:,} kept", "speed": speed}


def _of_time() -> Any:
    from rich.progress import ProgressColumn, Task
    from rich.text import Text

    from rslm.series import duration

    class Times(ProgressColumn):
        """What a stage took; while it is under way, what is left as far as its tasks tell."""

        def render(self, task: Task) -> Text:
            elapsed = task.elapsed or 0.0
            if task.finished:
                return Text(duration(task.finished_time or 0.0))
            if task.fields["ends"] is None:
                return Text(duration(elapsed))
            return Text(f"{duration(max(task.fields['ends'] - elapsed, 0))} left")

    return Times
