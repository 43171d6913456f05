"""The processes that run untrusted code; `rslm.evaluate.sandbox` starts them and says what for.

The judge, which is started, walls itself in and forks the runner, which gets walls of its own
and then runs the program. A test is read by the judge alone, after the fork, and runs in the
judge: it calls the program's functions through a pipe, on which only plain data travels. So a
program can answer a call with what it likes, but it can neither see the test nor reach the
process that decides, and an answer that claims to equal everything arrives as what it is.

This is a program of its own: it imports the extension and the messages without the package
around them, and of the standard library only what costs no time.
"""

from __future__ import annotations

import os
import sys
import time

from rslm import _rslm
from rslm.evaluate.sandbox_messages import Pipe, Stopped, encode

# Importing these takes longer than all else here; type checkers take the name for true.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

N_OPEN_FILES = 64
_SIGKILL, _SIGXCPU = 9, 24
# The new root has these; what is not there is left out.
_LIBRARIES = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache"]


class Refused(Exception):
    """A wall could not be raised; the argument is the sentence that says so."""


class Walls:
    """Raises walls; one that the kernel does not give ends it all, unless that was asked for."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.missing: list[str] = []
        self._options = options
        self._readable = [path for path in [*sys.path, *_LIBRARIES] if os.path.exists(path)]
        self._directory = options["directory"]

    def begin(self) -> None:
        """Moves this process, and those that it will make, into a place of their own."""
        size = self._options["directory_bytes"]
        if self._raise("namespaces", _rslm.enter_namespaces, self._readable, size):
            self._directory = "/tmp"

    def close(self, child: int | None) -> None:
        """Shuts this process in: the judge, who has a child, or the runner."""
        is_runner = child is None
        if is_runner:
            os.chdir(self._directory)
            os.environ.clear()
            os.environ.update(HOME=self._directory, TMPDIR=self._directory)
        options, writable = self._options, [self._directory]
        seconds = int(options["timeout_seconds"]) + 2
        limits = (options["memory_bytes"], seconds, options["directory_bytes"], N_OPEN_FILES)
        self._raise("limits", _rslm.limit_resources, *limits)
        self._raise("privileges", _rslm.give_up_privileges, is_runner)
        files = (self._readable, writable if is_runner else [], not is_runner)
        self._raise("landlock", _rslm.restrict_files, *files)
        self._raise("seccomp", _rslm.restrict_calls, child)
        self._verify()

    def _raise(self, name: str, wall: Callable[..., None], *arguments: object) -> bool:
        if name in self._options["without"]:
            self.missing.append(f"{name}: left out")
            return False
        try:
            wall(*arguments)
        except OSError as error:
            if not self._options["unsafe"]:
                raise Refused(str(error)) from None
            self.missing.append(f"{name}: {error}")
            return False
        return True

    def _verify(self) -> None:
        """Tries what must not work: a wall that only seems to stand is none."""
        if self.missing:
            return
        try:
            os.close(os.open("/", os.O_RDONLY))
        except PermissionError:
            pass
        else:
            raise Refused("the kernel said that files are restricted, and opened / all the same")
        try:
            os.kill(0, 0)
        except PermissionError:
            return
        raise Refused("the kernel said that calls are restricted, and did one all the same")


def main() -> NoReturn:
    """The judge, from its start: the parent's messages on 0, the verdict to another number."""
    verdict = Pipe(0, int(sys.argv[1]))
    options = verdict.receive()
    walls = Walls(options)
    try:
        walls.begin()
        runner, child = _fork_runner(walls, options)
        try:
            outcome, seconds = _judge(walls, options, runner, child, verdict)
        finally:
            ended = _end(child)
        status, reason = _explain(outcome, ended, options)
        verdict.send({"status": status, "reason": reason, "seconds": seconds})
    except Refused as error:
        verdict.send({"refused": str(error)})
    os._exit(0)


def _fork_runner(walls: Walls, options: dict[str, Any]) -> tuple[Pipe, int]:
    to_runner, to_judge = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        try:
            _run(walls, options, to_runner[0], to_judge[1])
        finally:
            # Whatever happens, the runner must not go on as a second judge.
            os._exit(1)
    os.close(to_runner[0])
    os.close(to_judge[1])
    return Pipe(to_judge[0], to_runner[1], lifeline=0), child


def _run(walls: Walls, options: dict[str, Any], incoming: int, outgoing: int) -> None:
    _leave_open(incoming, outgoing)
    judge = Pipe(incoming, outgoing)
    try:
        walls.close(None)
    except Refused as error:
        judge.send(str(error))
        return
    judge.send(walls.missing)
    # The judge answers once it stands behind walls too.
    judge.receive()
    module = type(sys)(options["name"])
    sys.modules[options["name"]] = module
    sys.argv[:] = ["program"]
    try:
        code = compile(options["code"], "<program>", "exec", dont_inherit=True)
        exec(code, module.__dict__)
    except BaseException as error:
        _show(error)
        judge.send(_name_of(error))
        return
    judge.send(None)
    while True:
        name, arguments, keywords = judge.receive()
        judge.send(_answer(module, name, arguments, keywords))


def _leave_open(*numbers: int) -> None:
    """Closes every descriptor above 2 but these, and makes stdin empty."""
    read, write = os.pipe()
    os.dup2(read, 0)
    os.close(read)
    os.close(write)
    first = 3
    for number in sorted(numbers):
        os.closerange(first, number)
        first = number + 1
    os.closerange(first, 1 << 30)


def _answer(module: Any, name: str, arguments: Any, keywords: Any) -> tuple[bool, Any]:
    try:
        answer = (True, getattr(module, name)(*arguments, **keywords))
        encode(answer)
    except BaseException as error:
        _show(error)
        try:
            reason = str.__str__(str(error))[:1000]
        except BaseException:
            reason = ""
        return False, (_name_of(error), reason)
    return answer


def _show(error: BaseException) -> None:
    """Writes the traceback, by the interpreter itself: the module for it is slow to import."""
    try:
        sys.__excepthook__(type(error), error, error.__traceback__)
    except BaseException:
        return


def _name_of(error: BaseException) -> str:
    return str.__str__(type(error).__name__)[:100]


class Program:
    """What a test calls: `program.f(1)` is f(1) in the runner, given and answering plain data.

    An exception of the program's is raised here as the built-in one of its name, or else as
    RuntimeError.
    """

    def __init__(self, runner: Pipe, stopped: list[str]) -> None:
        self.__call = _caller(runner, stopped)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *arguments, **keywords: self.__call(name, arguments, keywords)


def _caller(runner: Pipe, stopped: list[str]) -> Callable[..., Any]:
    import builtins

    def call(name: str, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        # A test that catches everything must not outlive the program it tests.
        try:
            runner.send((name, arguments, keywords))
            is_value, answer = runner.receive()
            if is_value is True:
                return answer
            kind, reason = answer
        except (Stopped, ValueError, TypeError) as error:
            stopped.append(_why(error))
            raise
        raised = getattr(builtins, str(kind), None)
        if not (isinstance(raised, type) and issubclass(raised, Exception)):
            raise RuntimeError(f"{kind}: {reason}")
        raise _exception(raised, reason)

    return call


def _exception(kind: type[Exception], reason: str) -> Exception:
    try:
        return kind(reason)
    except TypeError:
        # Some take more than a text.
        return RuntimeError(f"{kind.__name__}: {reason}")


def _judge(
    walls: Walls, options: dict[str, Any], runner: Pipe, child: int, parent: Pipe
) -> tuple[str, float]:
    """What came of the program, in a word that no text of its own can become, and its seconds."""
    walls.close(child)
    first = runner.receive()
    if isinstance(first, str):
        raise Refused(first)
    test = parent.receive()
    parent.send({"missing": first})
    start = time.monotonic()
    runner.deadline = start + options["timeout_seconds"]
    return _run_test(test, runner), time.monotonic() - start


def _run_test(test: str | None, runner: Pipe) -> str:
    try:
        runner.send(None)
        raised = runner.receive()
    except (Stopped, ValueError) as error:
        return _why(error)
    if raised is not None:
        return "memory" if raised == "MemoryError" else "raised"
    if test is None:
        return "passed"
    stopped: list[str] = []
    names = {"__name__": "test", "program": Program(runner, stopped)}
    try:
        exec(compile(test, "<test>", "exec", dont_inherit=True), names)
    except BaseException as error:
        if not stopped:
            _show(error)
            return "memory" if isinstance(error, MemoryError) else "raised"
    return stopped[0] if stopped else "passed"


def _why(error: Exception) -> str:
    return str(error) if isinstance(error, Stopped) else "malformed"


def _end(child: int) -> tuple[int, float]:
    """Kills the runner, and with it all that it made; its wait status and processor time."""
    os.kill(child, _SIGKILL)
    _, status, usage = os.wait4(child, 0)
    return status, usage.ru_utime + usage.ru_stime


def _explain(outcome: str, ended: tuple[int, float], options: dict[str, Any]) -> tuple[str, str]:
    """The status that the caller sees, and a sentence where the traceback does not say it."""
    status, seconds = ended
    if outcome in ("passed", "timeout", "memory"):
        return outcome, ""
    if outcome == "end" and os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number in (_SIGKILL, _SIGXCPU) and seconds >= options["timeout_seconds"]:
            return "timeout", ""
        return "killed", f"the program was ended by signal {number}"
    reasons = {
        "end": "the program ended its process before its end",
        "malformed": "the program broke into the pipe on which it is called",
    }
    return "failed", reasons.get(outcome, "")
