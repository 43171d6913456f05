"""The folder of a run: its files, who uses it, writing beside training.

`config.toml` (resolved), `env.json` (an entry for each start), `metrics.jsonl` and `samples.md`
(append-only), `checkpoints/`. Two processes cannot use it at once.
"""

import contextlib
import fcntl
import itertools
import json
import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rslm.config import read_config, to_record, to_toml
from rslm.errors import FormatError
from rslm.files import locked, removed_if_refused, write_atomically

Row = dict[str, Any]

# Above what any run reaches, and small enough that whatever is computed from them can be.
_MAX_COUNT = 2**63 - 1
_MAX_BATCH_SIZE = 2**31 - 1
_MAX_SECONDS = 1e10


@contextlib.contextmanager
def open_run_folder(
    out: Path, config: object, *, resume: bool, resumable: Collection[str]
) -> Iterator[None]:
    """Makes the run folder, or checks that `config` goes on with it; locked inside the block.

    Args:
        out: the folder.
        config: the resolved config; a new folder's `config.toml` holds it.
        resume: go on with an existing folder; one that is missing or empty is begun.
        resumable: dotted names of the options that may differ from those of the folder.

    Raises:
        FileExistsError: the folder holds something and `resume` is false.
        ValueError: it is no run folder, or another option differs.
        BlockingIOError: another process uses it.
    """
    with removed_if_refused(out, unless="metrics.jsonl"):
        out.mkdir(parents=True, exist_ok=True)
        with locked(out, "run folder"):
            _check_folder(out, config, resume=resume, resumable=resumable)
            if not (out / "config.toml").exists():
                write_config(out, config)
            yield


def is_in_use(out: Path) -> bool:
    """Whether a process holds the lock on a run folder."""
    descriptor = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def write_config(out: Path, config: object) -> None:
    """Makes `config.toml` hold this config, as it does once a run goes on with changed options."""
    write_atomically(out / "config.toml", to_toml(config).encode())


def _check_folder(out: Path, config: object, *, resume: bool, resumable: Collection[str]) -> None:
    # A process killed while it wrote its first file leaves a folder with that file's beginnings.
    found = [path.name for path in out.iterdir() if not path.name.startswith("config.toml.tmp-")]
    if found and not resume:
        raise FileExistsError(
            f"the run folder {out} already exists\nadd --resume to go on with it, or name another"
        )
    if found and "config.toml" not in found:
        raise ValueError(f"{out} is not a run folder: it has no config.toml")
    if found:
        before = flatten(to_record(read_config(type(config), out / "config.toml")))
        now = flatten(to_record(config))
        for name in sorted(before.keys() - set(resumable)):
            if before[name] != now[name]:
                raise ValueError(
                    f"{name} must stay {before[name]} when a run is resumed, got {now[name]}\n"
                    f"may change: {', '.join(sorted(resumable))}"
                )


def flatten(record: Mapping[str, Any], prefix: str = "") -> Row:
    """Nested dicts as one, with dotted keys."""
    flat: Row = {}
    for key, value in record.items():
        inside = isinstance(value, Mapping)
        flat |= flatten(value, f"{prefix}{key}.") if inside else {f"{prefix}{key}": value}
    return flat


def require_run_state(state: Row, source: Path, n_steps: int) -> None:
    """Refuses the state of a checkpoint with values that no run of so many steps writes.

    Its hashes show damage; this is for a file that was edited together with its hash.

    Raises:
        FormatError: a value is missing, or not what it must be.
    """
    for key in ("step", "metrics_bytes", "samples_bytes"):
        value = state.get(key)
        if type(value) is not int or not 0 <= value <= _MAX_COUNT:
            raise FormatError(
                f"{source}: {key} must be a whole number from 0 to 2^63 - 1, got {value!r:.80}"
            )
    if state["step"] != int(source.parent.name.removeprefix("step_")):
        raise FormatError(f"{source}: step must be that of the folder, got {state['step']}")
    if state["step"] > n_steps:
        raise FormatError(f"{source}: step must be at most n_steps {n_steps}, got {state['step']}")
    seconds: Any = state.get("elapsed_seconds")
    if type(seconds) not in (int, float) or not 0 <= seconds <= _MAX_SECONDS:
        raise FormatError(
            f"{source}: elapsed_seconds must be a number from 0 to {_MAX_SECONDS:g}, "
            f"got {seconds!r:.80}"
        )
    if not isinstance(state.get("data"), dict):
        raise FormatError(f"{source}: data must be an object, got {state.get('data')!r:.80}")
    n_targets = state.get("n_targets", 0)
    if type(n_targets) is not int or not 0 <= n_targets <= _MAX_COUNT:
        raise FormatError(
            f"{source}: n_targets must be a whole number from 0 to 2^63 - 1, got {n_targets!r:.80}"
        )
    sizes = state.get("batch_sizes")
    if not _are_batch_sizes(sizes, state["step"]):
        raise FormatError(
            f"{source}: batch_sizes must be pairs of a step and a size up to {_MAX_BATCH_SIZE}, "
            f"from step 0, got {sizes!r:.80}"
        )


def _are_batch_sizes(value: object, step: int) -> bool:
    """Whether a value read from a file is the list of a run that has made `step` updates."""
    if not isinstance(value, list) or not all(
        isinstance(entry, list) and list(map(type, entry)) == [int, int] for entry in value
    ):
        return False
    starts, sizes = [entry[0] for entry in value], [entry[1] for entry in value]
    ascending = all(a < b for a, b in itertools.pairwise(starts))
    possible = all(1 <= size <= _MAX_BATCH_SIZE for size in sizes)
    return starts[:1] == [0] and ascending and starts[-1] <= step and possible


class AppendedFile:
    """A text file that only grows, and can be cut back to where it once ended."""

    def __init__(self, path: Path, n_bytes: int = 0) -> None:
        """Opens the file and drops what lies beyond `n_bytes`.

        Raises:
            ValueError: it is shorter than that.
        """
        path.touch()
        if path.stat().st_size < n_bytes:
            raise ValueError(
                f"{path} must hold the {n_bytes} bytes that the checkpoint counts on, "
                f"got {path.stat().st_size}"
            )
        os.truncate(path, n_bytes)
        self.n_bytes = n_bytes
        self._file = path.open("ab", buffering=0)

    def write(self, text: str) -> None:
        """Appends in one system call, so that a killed process leaves at most a cut line."""
        rest = memoryview(text.encode())
        while rest:
            # A disk that fills up takes a part, and says so at the next call only.
            n_written = self._file.write(rest)
            self.n_bytes += n_written
            rest = rest[n_written:]

    def write_row(self, row: Row) -> None:
        """Appends one line of JSON; a number that JSON cannot hold becomes null."""
        finite = {
            k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()
        }
        self.write(json.dumps(finite) + "\n")

    def sync(self) -> int:
        """Flushes to the disk and returns the size.

        A checkpoint counts on these bytes, so a power cut must not take them.
        """
        os.fsync(self._file.fileno())
        return self.n_bytes

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()


class NoFile(AppendedFile):
    """Drops what is written: only the first of several processes writes files."""

    def __init__(self) -> None:
        self.n_bytes = 0

    def write(self, text: str) -> None:
        """Does nothing."""

    def sync(self) -> int:
        """Does nothing; 0."""
        return 0

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass


def read_metrics(path: str | os.PathLike[str]) -> list[Row]:
    """The rows of a `metrics.jsonl`; a last line that is still being written is left out."""
    text = Path(path).read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def append_start(out: Path, entry: Row) -> None:
    """Adds an entry to `env.json`, the list of the run's starts."""
    path = out / "env.json"
    starts = json.loads(path.read_text()) if path.exists() else []
    write_atomically(path, json.dumps([*starts, entry], indent=1).encode())


class Background:
    """Does jobs one after the other in a thread of its own, while the caller goes on.

    The error of a job is raised by the call that comes next, `check` included, or at the end of
    the block; jobs that wait behind one that failed are dropped. The end of the block waits for
    all jobs, also where it is left by an exception: no thread outlives the lock on the folder.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="background")
        self._jobs: list[Future[None]] = []
        self._has_failed = False

    def start(self, job: Callable[[], None]) -> None:
        """Has a job done after those before it."""
        self.check()
        self._jobs.append(self._pool.submit(self._do, job))

    def _do(self, job: Callable[[], None]) -> None:
        # Decided here, in the thread: a job builds on those before it, and the caller may learn
        # of an error much later.
        if not self._has_failed:
            try:
                job()
            except BaseException:
                self._has_failed = True
                raise

    def check(self) -> None:
        """Raises the error of a job that failed; waits for nothing."""
        while self._jobs and self._jobs[0].done():
            self._take_first()

    def wait(self) -> None:
        """Waits until all jobs are done."""
        while self._jobs:
            self._take_first()

    def _take_first(self) -> None:
        self._jobs[0].exception()  # Waits; an interrupt meanwhile leaves the job in the list.
        job = self._jobs.pop(0)
        try:
            job.result()
        except BaseException:
            wait(self._jobs)  # They do nothing more.
            self._jobs.clear()
            self._has_failed = False
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self.wait()
        finally:
            self._pool.shutdown()
