"""Runs code that nobody trusts, such as what a model wrote, and says whether it passed.

Each run is a process of its own that walls itself in before it runs a byte of the code (Linux
alone; `rust/sandbox` has the walls): namespaces with an empty root, no network and no view of
other processes; Landlock, which lets it read the standard library and write `/tmp`, some
megabytes in memory; seccomp, which leaves it some hundred system calls, none of which makes a
thread, a process or a socket, or runs a program; limits of memory and time; no environment,
no input, no inherited descriptor. Where the kernel does not give one of these, nothing is run.

A test is a text of its own, and runs in another process than the code it tests (see
`sandbox_child`): never append asserts to code that is to be judged, for it can end the process
in front of them, replace what they call, or return objects that equal everything. What is left
to a program is to give right answers for a wrong reason. A program without a test is "passed"
when it says that it reached its end, and no more than that.

What these walls do not hold off: faults of the kernel that can be reached through the calls
that are left, and what one process learns of others from how long things take. The time, the
hardware's features and the names of files in the readable folders are no secrets.

Source: Chen et al. 2021, section 2.3 (arXiv:2107.03374), who run samples in gVisor; the public
`human-eval` runs them in a fork with functions taken away, which is no wall.
"""

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from rslm.evaluate.sandbox_messages import Pipe, Stopped, decode
from rslm.process import n_cpus

Status = Literal["passed", "failed", "timeout", "memory", "output", "killed"]
DIRECTORY_BYTES = 16 << 20
MIN_MEMORY_BYTES = 64 << 20
MAX_TIMEOUT_SECONDS = 86_400.0
# From the start of a process until the code's own time begins, on a machine that is busy; and
# how long the judge may take to end what it started.
_START_SECONDS, _END_SECONDS = 60.0, 2.0
_MAX_VERDICT_BYTES = 1 << 20
# The package's name without the package, which would take longer to import than most code runs.
_START = """
import sys
folder = sys.argv.pop(1)
for name, path in (("rslm", folder), ("rslm.evaluate", folder + "/evaluate")):
    sys.modules[name] = type(sys)(name)
    sys.modules[name].__path__ = [path]
from rslm.evaluate.sandbox_child import main
main()
"""


@dataclass(frozen=True)
class Program:
    """Code to run, and what decides whether it passes.

    In `test`, `program.f(...)` calls the code's function f; arguments and values are plain data
    (numbers, text, bytes, None, and tuples, lists, sets and dicts of these).
    """

    code: str
    test: str | None = None


@dataclass(frozen=True)
class SandboxResult:
    """What came of a run."""

    status: Status
    """ "passed"; "failed": an exception, or an end before the end; "timeout", "memory", "output":
    over the limit of that; "killed": by a signal, a crash of the interpreter among them."""
    stdout: str
    stderr: str
    """What the program wrote, then the test's traceback or a sentence."""
    seconds: float
    """Of the program and its test, without the start of the process."""
    missing: tuple[str, ...] = ()
    """Walls that the kernel did not give and an unsafe run did without."""


def run_untrusted(
    code: str,
    *,
    test: str | None = None,
    timeout_seconds: float = 10.0,
    memory_bytes: int = 512 << 20,
    output_bytes: int = 64 << 10,
    unsafe: bool = False,
) -> SandboxResult:
    """What came of running the code, and then the test upon it, behind walls.

    String hashes do not vary from run to run. May be called by many threads at once.

    Args:
        test: Python that calls the code's functions as `program.f(...)` and raises where an
            answer is wrong; it runs in another process, which is walled in too.
        memory_bytes: of address space, some 40 MiB of which are the interpreter's.
        output_bytes: of stdout and stderr together.
        unsafe: run even where the kernel gives only some of the walls, or none.

    Raises:
        ValueError: a limit is out of range.
        OSError: a wall cannot be raised here; the message says which. Nothing was run.
    """
    _require("timeout_seconds", timeout_seconds, 0.001, MAX_TIMEOUT_SECONDS)
    _require("memory_bytes", memory_bytes, MIN_MEMORY_BYTES, 1 << 50)
    _require("output_bytes", output_bytes, 0, 1 << 30)
    options = {
        "code": code,
        "name": "__main__" if test is None else "program",
        "timeout_seconds": float(timeout_seconds),
        "memory_bytes": memory_bytes,
        "directory_bytes": DIRECTORY_BYTES,
        "unsafe": unsafe,
        "without": _without,
    }
    return _run(options, test, output_bytes)


# Tests leave out walls here, to see that the others hold.
_without: tuple[str, ...] = ()


def check_sandbox(*, unsafe: bool = False) -> tuple[str, ...]:
    """The walls that are missing here: none, or with `unsafe` those that runs would do without.

    Raises:
        OSError: a wall cannot be raised here, and not `unsafe`.
    """
    return run_untrusted("", unsafe=unsafe).missing


def run_all(
    programs: Sequence[Program], *, n_workers: int | None = None, **limits: Any
) -> list[SandboxResult]:
    """`run_untrusted` of each, several at once, in their order.

    Args:
        n_workers: how many at once; by default as many as there are processors.
        limits: the keyword arguments of `run_untrusted`.
    """
    n_workers = n_workers or n_cpus()

    def run(program: Program) -> SandboxResult:
        return run_untrusted(program.code, test=program.test, **limits)

    with ThreadPoolExecutor(n_workers) as pool:
        return list(pool.map(run, programs))


def _require(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise ValueError(f"{name} must be in {least:g} .. {most:g}, got {value}")


def _run(options: dict[str, Any], test: str | None, output_bytes: int) -> SandboxResult:
    with contextlib.ExitStack() as stack:
        # Used where there is no root of its own to put it in.
        directory = stack.enter_context(_private_directory(unsafe=options["unsafe"]))
        messages, their_end = os.pipe()
        stack.callback(os.close, messages)
        try:
            process = stack.enter_context(_start(their_end))
        finally:
            os.close(their_end)
        run = _Run(process, messages, output_bytes)
        try:
            run.send({**options, "directory": directory})
            run.send(test)
            run.listen(time.monotonic() + _START_SECONDS, options["timeout_seconds"])
        finally:
            run.end()
        return run.result(options["timeout_seconds"])


@contextlib.contextmanager
def _private_directory(*, unsafe: bool) -> Iterator[str]:
    if not unsafe:
        yield "/tmp"
        return
    with tempfile.TemporaryDirectory(prefix="rslm-", ignore_cleanup_errors=True) as directory:
        yield directory


def _start(their_end: int) -> "subprocess.Popen[bytes]":
    if os.name != "posix" or not sys.executable:
        raise OSError("the sandbox needs Linux and a Python interpreter to start")
    folder = str(Path(__file__).parents[1])
    # No site, no user site, no current folder, no files of bytecode, output as it comes.
    flags = ["-s", "-S", "-P", "-B", "-u", "-X", "utf8"]
    return subprocess.Popen(
        [sys.executable, *flags, "-c", _START, folder, str(their_end)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=(their_end,),
        env=_environment(),
        cwd="/",
        start_new_session=True,
        bufsize=0,
    )


def _environment() -> dict[str, str]:
    """What the interpreter needs to start; the code sees none of it."""
    environment = {"PYTHONHASHSEED": "0"}
    # Where an interpreter on a cluster finds its own library.
    if libraries := os.environ.get("LD_LIBRARY_PATH"):
        environment["LD_LIBRARY_PATH"] = libraries
    return environment


class _Run:
    """A judge that was started: what it and the program say, until it ends or must be ended."""

    def __init__(
        self, process: "subprocess.Popen[bytes]", messages: int, output_bytes: int
    ) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        self._process, self._messages, self._output_bytes = process, messages, output_bytes
        self._stdin, self._stdout = process.stdin.fileno(), process.stdout.fileno()
        self._stderr = process.stderr.fileno()
        self._heard = {self._stdout: bytearray(), self._stderr: bytearray(), messages: bytearray()}
        self._over: Status | None = None

    def send(self, value: object) -> None:
        # One that refused reads no further.
        with contextlib.suppress(Stopped):
            Pipe(-1, self._stdin).send(value)

    def listen(self, deadline: float, timeout_seconds: float) -> None:
        """Until everything is closed; the deadline is for the start, the timeout from there on."""
        has_started = False
        with selectors.DefaultSelector() as selector:
            for number in self._heard:
                selector.register(number, selectors.EVENT_READ)
            while selector.get_map() and self._over is None:
                ready = selector.select(max(0.0, deadline - time.monotonic()))
                for key, _ in ready:
                    part = os.read(key.fd, 1 << 16)
                    self._heard[key.fd] += part
                    if not part:
                        selector.unregister(key.fd)
                if self._has_said_too_much():
                    self._over = "output"
                elif not ready and time.monotonic() >= deadline:
                    self._over = "timeout"
                if not has_started and self._decoded():
                    has_started = True
                    deadline = time.monotonic() + timeout_seconds + _END_SECONDS

    def end(self) -> None:
        """Ends the judge, which ends the program first, and after some time ends both itself."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        deadline = time.monotonic() + _END_SECONDS
        with selectors.DefaultSelector() as selector:
            selector.register(self._messages, selectors.EVENT_READ)
            while (left := deadline - time.monotonic()) > 0:
                if selector.select(left) and not os.read(self._messages, 1 << 16):
                    break
        # It is not waited for before, so the number is still that of its group.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def result(self, timeout_seconds: float) -> SandboxResult:
        messages = self._decoded()
        stdout, stderr = (self._text(number) for number in (self._stdout, self._stderr))
        if not messages or "refused" in messages[0]:
            raise OSError(_refusal(messages, stderr))
        status, reason, seconds = _read_verdict(messages[1:], timeout_seconds)
        if self._over is not None:
            status, reason = self._over, ""
        if reason:
            stderr += f"{reason}\n"
        return SandboxResult(status, stdout, stderr, seconds, tuple(messages[0]["missing"]))

    def _decoded(self) -> list[Any]:
        """The messages of the judge that are complete."""
        messages, data, at = [], self._heard[self._messages], 0
        while len(data) >= at + 8:
            end = at + 8 + int.from_bytes(data[at : at + 8], "big")
            if len(data) < end:
                break
            # The first is the judge's own; after it a test runs there, and could write as well.
            try:
                messages.append(decode(bytes(data[at + 8 : end])))
            except ValueError:
                break
            at = end
        return messages

    def _has_said_too_much(self) -> bool:
        n_bytes = len(self._heard[self._stdout]) + len(self._heard[self._stderr])
        return n_bytes > self._output_bytes or len(self._heard[self._messages]) > _MAX_VERDICT_BYTES

    def _text(self, number: int) -> str:
        return self._heard[number][: self._output_bytes].decode("utf-8", "replace")


def _read_verdict(messages: list[Any], timeout_seconds: float) -> tuple[Status, str, float]:
    match messages:
        case [{"status": str(status), "reason": str(reason), "seconds": float(seconds)}]:
            if status in get_args(Status):
                return cast(Status, status), reason, seconds
    return "killed", "the process of the test ended before its end", timeout_seconds


def _refusal(messages: list[Any], stderr: str) -> str:
    if messages:
        return f"no code is run, for the sandbox cannot be closed here: {messages[0]['refused']}"
    return f"the process of the sandbox did not start: {stderr.strip() or 'it said nothing'}"
