"""What commands print: data on stdout, progress on stderr, bars only for people."""

import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import tyro

from rslm.process import printable

Switch = Annotated[bool, tyro.conf.FlagCreatePairsOff]
"""A flag that is only ever turned on: no `--no-...` beside it."""


def note(message: str) -> None:
    """Prints one line for the person at the terminal, on stderr."""
    lines = map(printable, message.split("\n"))
    print("\n".join(lines), file=sys.stderr, flush=True)


def progress_bar() -> bool | None:
    """The `progress` argument of long calls: a bar on a terminal, silence in a pipe."""
    return True if sys.stderr.isatty() else None


def print_json(record: object) -> None:
    """Prints one JSON document on stdout."""
    text = json.dumps(record, ensure_ascii=False, indent=2)
    # JSON itself escapes no control characters but those of ASCII below the blank.
    print(
        re.sub(
            "[\x7f-\x9f\u202a-\u202e\u2066-\u2069]", lambda match: f"\\u{ord(match[0]):04x}", text
        )
    )


def print_fields(fields: dict[str, Any]) -> None:
    """Prints names and values in two columns; whole numbers get thousands separators."""
    shown = {printable(name): value for name, value in fields.items()}
    width = max(map(len, shown), default=0)
    for name, value in shown.items():
        print(f"{name:<{width}}  {readable(value)}")


def print_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Prints aligned columns: the first to the left, the others to the right."""
    cells = [list(map(printable, header)), *([readable(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    for row in cells:
        first = f"{row[0]:<{widths[0]}}"
        print("  ".join([first, *(f"{c:>{w}}" for c, w in zip(row[1:], widths[1:], strict=True))]))


def readable(value: object) -> str:
    """A value as people read it: 1,234,567 and 4.321."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return printable(str(value))


def with_prefix(value: float, unit: str) -> str:
    """Three digits, a prefix and a unit: 1.64 GB, 855 MFLOP."""
    prefixes = ["", "k", "M", "G", "T", "P", "E", "Z", "Y"]
    order = 0
    while order < len(prefixes) - 1 and abs(value) >= 999.5 * 1000.0**order:
        order += 1
    scaled = value / 1000.0**order
    n_digits = 0 if order == 0 and scaled == int(scaled) else max(0, 3 - len(str(int(abs(scaled)))))
    return f"{scaled:.{n_digits}f} {prefixes[order]}{unit}"


@contextmanager
def download_bar() -> Iterator[Callable[[int, int, str], None] | None]:
    """A bar of bytes, speed and time left on a terminal; nothing in a pipe."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich import progress
    from rich.console import Console

    columns = [
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
    ]
    with progress.Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, progress.TaskID] = {}

        def show(done: int, total: int, name: str) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name)
            bars.update(tasks[name], completed=done, total=total)

        yield show
