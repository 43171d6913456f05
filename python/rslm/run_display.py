"""What a run shows while it trains: a live panel for people, or lines that a program can read."""

import contextlib
import logging
import math
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console, Group, OverflowMethod, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rslm.run_folder import Row
from rslm.series import duration, sparkline

# A name over its value; the widest is 1,234,567,890 and two spaces.
CELL_WIDTH = 15
MAX_WIDTH = 96
# In less than this a panel says nothing that a line does not say better.
MIN_WIDTH = 2 * CELL_WIDTH + 4
ASCII_SPARKS = str.maketrans("▁▂▃▄▅▆▇█", "_.,-=+*#")


def open_console() -> Console:
    """The console of standard error, a terminal only where it really is one.

    `FORCE_COLOR` and the like, which CI systems set, would have a panel drawn into a log file,
    twice a second.
    """
    return Console(stderr=True, force_terminal=None if sys.stderr.isatty() else False)


@dataclass
class _State:
    """All that the panel shows; the thread that draws it takes a copy."""

    row: Row
    validation: Row = field(default_factory=dict)
    drawn: Sequence[float] = ()
    warnings: tuple[str, ...] = ()
    n_warnings: int = 0
    activity: str | None = None
    # When the last row came, and the activity began.
    row_time: float = 0.0
    activity_time: float = 0.0
    first_seconds: float | None = None


@contextlib.contextmanager
def redirected_logs(before: TextIO, after: TextIO) -> Iterator[None]:
    """Has log handlers that hold on to one stream write to another inside the block.

    PyTorch's, for one, took their stream when it was imported, and what they write would be
    painted over.
    """
    loggers = [logging.getLogger(), *logging.getLogger().manager.loggerDict.values()]
    handlers = [
        handler
        for logger in loggers
        if isinstance(logger, logging.Logger)
        for handler in logger.handlers
        if isinstance(handler, logging.StreamHandler) and handler.stream is before
    ]
    for handler in handlers:
        handler.setStream(after)
    try:
        yield
    finally:
        for handler in handlers:
            handler.setStream(before)


class RunDisplay:
    """Shows a run: a live panel on a terminal, else a line of `key=value` per logged step.

    Messages are printed above the panel and stay; so does what Python code meanwhile writes or
    logs to standard error. (A library in C that writes there by itself is not caught: its last
    words before a crash must not wait in a pipe.) The panel fits the terminal: fewer columns in
    a narrow one, a single line in a very small one. Colours follow `NO_COLOR`, signs the
    terminal's encoding.
    Methods are called by one thread; the panel is drawn by another, twice a second.

    Args:
        console: where to.
        title: the model in a few words.
        n_steps: updates of the whole run.
        first_step: those made before.
        log_every: steps between lines.
        due: what happens every so many steps, by its name; None: at the end only.
        compiles: the first step compiles, so its time is shown apart.
        shown: further metrics to show, with their formats.
        drawn: the metric whose course the panel draws.
    """

    def __init__(
        self,
        console: Console,
        *,
        title: str,
        n_steps: int,
        first_step: int,
        log_every: int,
        due: Mapping[str, int | None] | None = None,
        compiles: bool = False,
        shown: Mapping[str, str] | None = None,
        drawn: str = "loss",
    ) -> None:
        self._console = console
        self._title = title
        self._n_steps = n_steps
        self._log_every = log_every
        self._due = dict(due or {})
        self._compiles = compiles
        self._shown = dict(shown or {})
        self._drawn_metric = drawn
        self._drawn: deque[float] = deque(maxlen=2000)
        self._state = _State(row={"step": first_step})
        self._lock = threading.Lock()
        self._warm: tuple[int, float] | None = None
        self._started = time.perf_counter()
        self._live: Live | None = None
        self._log_streams = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._started = self._state.activity_time = time.perf_counter()
        self._state.activity = "compiling" if self._compiles else "first step"
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            # Two pictures a second: the thread that draws them shares the interpreter with
            # the training step.
            self._live = Live(
                console=self._console,
                get_renderable=self._picture,
                refresh_per_second=2,
                # What goes to a file or a pipe is none of the terminal's business.
                redirect_stdout=sys.stdout.isatty(),
            )
            before = sys.stderr
            self._live.start(refresh=True)
            self._log_streams.enter_context(redirected_logs(before, sys.stderr))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._change(activity=None if error is None else "stopped")
            # A line without its end waits in the stream that the panel put in the way.
            sys.stdout.flush()
            sys.stderr.flush()
            self._log_streams.close()
            self._live.stop()

    def note(self, message: str) -> None:
        """Prints one sentence above the panel, or as a line of its own."""
        self._console.print(Text(message), soft_wrap=True)

    def warn(self, message: str) -> None:
        """Prints one sentence as `note`, and keeps it in the panel."""
        before = self._state
        self._change(warnings=(*before.warnings, message)[-2:], n_warnings=before.n_warnings + 1)
        self._console.print(Text(message, style="yellow"), soft_wrap=True)

    @contextlib.contextmanager
    def doing(self, activity: str) -> Iterator[None]:
        """Says in the panel why no step is made inside the block."""
        self._change(activity=activity, activity_time=time.perf_counter())
        try:
            yield
        finally:
            self._change(activity=None)

    def show(self, row: Row) -> None:
        """Takes in a row of the metrics."""
        now = time.perf_counter()
        if "val_loss" in row:
            self._change(validation=row)
        else:
            with self._lock:
                self._drawn.append(row[self._drawn_metric])
            if self._state.first_seconds is None:
                self._change(first_seconds=now - self._started, activity=None)
            self._change(row=row, row_time=now)
            # Time left is counted from the end of the first step, which may have compiled.
            self._warm = self._warm or (row["step"], row["elapsed_seconds"])
        due = row["step"] % self._log_every == 0 or row["step"] in (1, self._n_steps)
        if self._live is None and (due or "val_loss" in row):
            self._console.print(Text(self._line(row)), soft_wrap=True)

    @property
    def seconds_left(self) -> float | None:
        """At the mean pace since the first step, validation and checkpoints included."""
        row = self._state.row
        if self._warm is None or row["step"] == self._warm[0]:
            return None
        n_steps = int(row["step"]) - self._warm[0]
        seconds = float(row["elapsed_seconds"]) - self._warm[1]
        return (self._n_steps - int(row["step"])) * seconds / n_steps

    def _change(self, **changes: object) -> None:
        # One at a time: a picture never shows half of a change.
        with self._lock:
            vars(self._state).update(changes)

    def _line(self, row: Row) -> str:
        shown = {"step": f"{row['step']}/{self._n_steps}"}
        formats = {
            "loss": ".4f",
            "val_loss": ".4f",
            "val_bits_per_byte": ".4f",
            "learning_rate": ".3g",
            "grad_norm": ".3g",
            "tokens_per_second": ".0f",
        } | self._shown
        for key, form in formats.items():
            if row.get(key) is not None:
                shown[key] = format(row[key], form)
        if self.seconds_left is not None:
            shown["seconds_left"] = f"{self.seconds_left:.0f}"
        return " ".join(f"{key}={value}" for key, value in shown.items())

    def _picture(self) -> RenderableType:
        """The panel, or a line where it has no room."""
        with self._lock:
            state = _State(**vars(self._state) | {"drawn": list(self._drawn)})
            left = self.seconds_left
        width, height = min(self._console.width, MAX_WIDTH), self._console.height
        cells, outlook = self._cells(state, left), self._outlook(state, left)
        inner = width - 4
        n_lines = 2 * math.ceil(len(cells) / max(1, inner // CELL_WIDTH)) + len(state.warnings)
        n_lines += 4 + len(outlook) // max(1, inner - 12) + 1
        if width < MIN_WIDTH or n_lines > height - 1:
            return self._cut(_small_line(state, cells))
        return self._panel(state, cells, outlook, inner)

    def _cut(self, text: str, style: str = "") -> Text:
        """A text of one line that is cut where the line ends."""
        # The sign of three dots has more than one column where the encoding lacks it.
        overflow: OverflowMethod = "crop" if self._console.options.ascii_only else "ellipsis"
        return Text(text, style=style, no_wrap=True, overflow=overflow)

    def _panel(self, state: _State, cells: Mapping[str, str], outlook: str, inner: int) -> Panel:
        sparks = sparkline(state.drawn, inner)
        if self._console.options.ascii_only:
            sparks = sparks.translate(ASCII_SPARKS)
        step = int(state.row["step"])
        lines: list[RenderableType] = [
            _grid(cells, inner // CELL_WIDTH),
            _line_of(ProgressBar(total=self._n_steps, completed=step, width=inner)),
            Text(sparks, style="cyan", no_wrap=True),
            Text(outlook, style="dim"),
        ]
        for number, message in enumerate(reversed(state.warnings)):
            head = f"warning {state.n_warnings - number}: "
            lines.append(self._cut(head + message, "yellow"))
        title = self._cut(self._title)
        return Panel(Group(*lines), title=title, title_align="left", width=inner + 4)

    def _cells(self, state: _State, left: float | None) -> dict[str, str]:
        """What the panel names, in its order; a value that is not there yet is `...`."""
        row, validation = state.row, state.validation
        since = time.perf_counter() - state.row_time if state.row_time else 0.0
        elapsed = row.get("elapsed_seconds")
        cells = {
            "step": f"{row['step']:,}/{self._n_steps:,}",
            "loss": _shown(row.get("loss"), ".4f"),
            "val loss": _shown(validation.get("val_loss"), ".4f"),
            "val bits/byte": _shown(validation.get("val_bits_per_byte"), ".4f"),
            "learning rate": _shown(row.get("learning_rate"), ".3g"),
            "gradient norm": _shown(row.get("grad_norm"), ".3g"),
            "tokens/s": _shown(row.get("tokens_per_second"), ",.0f"),
            "of peak FLOP/s": _shown(row.get("mfu"), ".1%"),
            "memory": _bytes(row.get("memory_bytes")),
            "elapsed": "..." if elapsed is None else duration(elapsed + since),
            "time left": "..." if left is None else duration(max(0.0, left - since)),
        }
        if validation and validation.get("val_bits_per_byte") is None:
            del cells["val bits/byte"]  # Nobody counts bytes here.
        cells |= {
            key.replace("_", " "): _shown(validation.get(key, row.get(key)), form)
            for key, form in self._shown.items()
        }
        if self._compiles:
            seconds = state.first_seconds
            cells["compiled in"] = "..." if seconds is None else duration(seconds)
        return cells

    def _outlook(self, state: _State, left: float | None) -> str:
        """What happens now, or what is due next and when."""
        if state.activity is not None:
            seconds = time.perf_counter() - state.activity_time
            return f"{state.activity}, for {duration(seconds)}"
        step = int(state.row["step"])
        if step >= self._n_steps:
            return "all steps made"
        pace = None if left is None else left / (self._n_steps - step)
        soonest: dict[int, list[str]] = {}
        for name, every in self._due.items():
            soonest.setdefault(next_due(step, every, self._n_steps), []).append(name)
        parts = []
        for at in sorted(soonest):
            wait = "" if pace is None else f" in {duration(pace * (at - step))}"
            parts.append(f"{', '.join(soonest[at])} at {at:,}{wait}")
        return f"next: {'; '.join(parts)}" if parts else ""


def next_due(step: int, every: int | None, n_steps: int) -> int:
    """The first step after `step` at which something is due: a multiple, or the end.

    >>> next_due(100, 40, 1000), next_due(100, None, 1000), next_due(990, 40, 1000)
    (120, 1000, 1000)
    """
    return n_steps if every is None else min(n_steps, (step // every + 1) * every)


def _grid(cells: Mapping[str, str], n_columns: int) -> Table:
    """Names over values, as many beside each other as fit."""
    table = Table.grid()
    for _ in range(n_columns):
        table.add_column(width=CELL_WIDTH, no_wrap=True)
    pairs = list(cells.items())
    for first in range(0, len(pairs), n_columns):
        part = pairs[first : first + n_columns]
        table.add_row(*(Text(name, style="dim") for name, _ in part))
        table.add_row(*(Text(value, style="bold") for _, value in part))
    return table


def _line_of(bar: ProgressBar) -> Table:
    """The bar with the line's end that it lacks."""
    table = Table.grid()
    table.add_row(bar)
    return table


def _small_line(state: _State, cells: Mapping[str, str]) -> str:
    known = [f"{name} {cells[name]}" for name in ("step", "loss", "time left")]
    return "  ".join(known if state.activity is None else [*known, state.activity])


def _shown(value: float | None, form: str) -> str:
    return "..." if value is None else format(value, form)


def _bytes(value: int | None) -> str:
    if value is None:
        return "..."
    return f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{value / 1e6:.0f} MB"
