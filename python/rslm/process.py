"""The process of a command: standard streams that are closed or full, Ctrl-C, being told to stop.

A command that begins here always has three streams. Reading a stdin that was closed is an
error, and so is writing to a stdout that was closed or is full: output would be lost. What
stderr cannot take is dropped, for there is nowhere to say so.
"""

import contextlib
import io
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any, Literal, NoReturn, Self, TypeGuard

StopReason = Literal["finished", "interrupted", "terminated"]
"""How a loop ended that `StopSignals` may stop."""
EXIT_INTERRUPTED = 128 + signal.SIGINT
STDOUT = "<stdout>"
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""Ctrl-C, a scheduler's notice to leave, and what it can be told to send some time before that."""
_CONTROL = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028-\\u202e\\u2066-\\u2069]")


def begin() -> None:
    """Opens what is closed; from here on Ctrl-C ends the process quietly, at once."""
    leave_at_interrupt()
    # The next file that is opened would get the number of a closed stream, and what is printed
    # would end up in it. The wrong direction makes every use an error.
    for number, flags in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        if not _is_open(number):
            _put_null_at(number, flags)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - for good
    unbuffered = sys.stdout is not None and isinstance(sys.stdout.buffer, io.RawIOBase)
    stdout = _Telling(1, "w", closefd=False)
    sys.stdout = io.TextIOWrapper(
        stdout if unbuffered else io.BufferedWriter(stdout),
        encoding=getattr(sys.stdout, "encoding", "utf-8"),
        errors=getattr(sys.stdout, "errors", "strict"),
        line_buffering=stdout.isatty(),
        write_through=unbuffered,
    )
    sys.stderr = io.TextIOWrapper(
        _Dropping(2, "w", closefd=False),
        encoding=getattr(sys.stderr, "encoding", "utf-8"),
        errors="backslashreplace",
        line_buffering=True,
        write_through=True,
    )


def leave_at_interrupt() -> None:
    """Makes Ctrl-C end the process: there is nothing yet to clean up, or nothing more."""
    # A background job of a shell ignores the signal, and goes on doing so.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


def raise_at_interrupt() -> None:
    """Makes Ctrl-C a `KeyboardInterrupt` again: there is something to clean up now."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def exits_at_sigterm() -> Iterator[None]:
    """Makes SIGTERM an exit inside the block, so that what is half made can be removed.

    Where something else than the end of the process awaits the signal, it goes on doing so.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


EXIT_TERMINATED = 75
"""EX_TEMPFAIL, "try again": what batch systems read as "put the job back into the queue"."""


class StopSignals:
    """Takes `STOP_SIGNALS` as requests, from which the loop makes an orderly stop.

    A second signal acts at once. Outside the main thread signals are left as they are.

    Args:
        agree: makes of a number the one that all processes go by; the signal of one of them
            stops all at the same step.
    """

    def __init__(self, agree: Callable[[int], int] = int) -> None:
        self._agree = agree
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()

    def requested(self) -> bool:
        """Whether a signal has come; all processes must ask together."""
        if number := self._agree(self.received or 0):
            self.received = signal.Signals(number)
        return self.received is not None

    @property
    def reason(self) -> Literal["interrupted", "terminated"]:
        """The signal in a word; only once one has come."""
        assert self.received is not None
        return "interrupted" if self.received == signal.SIGINT else "terminated"

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()


def n_cpus() -> int:
    """The cores that this process may use."""
    # Not on every system can a process be kept to some of them.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def flush_output() -> OSError | None:
    """Writes what stdout still holds; the error where that fails."""
    try:
        sys.stdout.flush()
    except OSError as error:
        return error
    return None


def drop_output() -> None:
    """Drops what stdout did not take: the interpreter would try once more at its exit."""
    _put_null_at(1, os.O_WRONLY)
    sys.stdout.flush()


def is_of_stdout(error: Exception) -> TypeGuard[OSError]:
    """Whether it was stdout that could not be written to."""
    return isinstance(error, OSError) and error.filename == STDOUT


def harmless(text: str) -> str:
    r"""The text as a terminal may show it: control characters but tab and line feed as escapes.

    What a model writes could otherwise move the cursor, or worse.

    >>> harmless("a\tb\nc\x1b[2J")
    'a\tb\nc\\x1b[2J'
    """
    return "\n".join("\t".join(map(printable, line.split("\t"))) for line in text.split("\n"))


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    """Ends the process while modules load: an exception would surface in any of them."""
    with contextlib.suppress(OSError):
        os.write(2, b"interrupted\n")
    os._exit(EXIT_INTERRUPTED)


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _put_null_at(number: int, flags: int) -> None:
    null = os.open(os.devnull, flags)
    if null != number:
        os.dup2(null, number)
        os.close(null)


class _Telling(io.FileIO):
    """Standard output; its errors say so, as nothing else tells them from those of files."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except OSError as error:
            error.filename = STDOUT
            raise


class _Dropping(io.FileIO):
    """Takes everything; what the system refuses is gone."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except OSError:
            return len(memoryview(data).cast("B"))


def printable(text: str) -> str:
    r"""The text with control characters as escapes, that a name read from a file steers nothing.

    Those that end lines or turn the direction of text count among them.

    >>> printable("red \x1b[31m")
    'red \\x1b[31m'
    """
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
