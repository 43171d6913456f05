"""The bar that long calls of the Rust core show while somebody watches."""

import contextlib
import sys
from collections.abc import Callable, Iterator

ProgressCallback = Callable[[int, int, str], object]
"""Called with (done, total, phase) a few times a second; total is 0 where it is unknown."""


@contextlib.contextmanager
def progress_callback(
    progress: bool | ProgressCallback | None,
) -> Iterator[ProgressCallback | None]:
    """What the core calls: nothing, the user's function, or a bar if somebody watches."""
    if not isinstance(progress, bool):
        yield progress
    elif not progress or not sys.stderr.isatty():
        yield None
    else:
        # Imported here: a program that shows no bar should not pay for it.
        from rich import progress as rich
        from rich.console import Console

        columns = [
            rich.TextColumn("{task.description}"),
            rich.BarColumn(),
            rich.TaskProgressColumn(),
            rich.TextColumn("{task.fields[rate]}"),
            rich.TimeRemainingColumn(),
        ]
        tasks: dict[str, rich.TaskID] = {}
        with rich.Progress(*columns, console=Console(stderr=True)) as bar:

            def show(done: int, total: int, phase: str) -> None:
                if phase not in tasks:
                    tasks[phase] = bar.add_task(phase, rate="", total=total or None)
                speed = bar.tasks[tasks[phase]].speed
                # Merges are counted one by one, everything else in bytes.
                rate = (
                    f"{speed or 0:,.0f}/s"
                    if phase == "merge"
                    else f"{(speed or 0) / 1e6:,.0f} MB/s"
                )
                bar.update(tasks[phase], completed=done, rate=rate if speed else "")

            yield show
