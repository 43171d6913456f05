"""The process of one run: started, told to stop, and asked how it ended."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from rslm.experiment.study import PlannedRun, Status
from rslm.run_folder import is_in_use

_DIVERGED = re.compile(r"error: step \d+: loss ")


class Child:
    """The process of a run; none where that of an earlier call still holds its folder.

    Attributes:
        run: what was planned.
        path: its run folder.
        process: once it is started.
        pruned: why it was told to stop, if it was.
        device: which of CUDA's it may use; None for any.
    """

    def __init__(self, run: PlannedRun, path: Path, options: Path, log: Path) -> None:
        self.run, self.path, self._options, self._log = run, path, options, log
        self.process: subprocess.Popen[bytes] | None = None
        self.pruned: str | None = None
        self.device: str | None = None
        self._log_start = log.stat().st_size if log.exists() else 0

    @property
    def pid(self) -> int | None:
        """Number of the process; None where it is not ours."""
        return None if self.process is None else self.process.pid

    def start(self, environment: Mapping[str, str]) -> None:
        """Starts it; what it prints goes to the log."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                train_command(self._options),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                # Of its own, so that Ctrl-C at the terminal reaches it once, through the queue.
                process_group=0,
            )

    def has_ended(self) -> bool:
        """Whether the process, or that of an earlier call, is gone."""
        if self.process is None:
            return not is_held(self.path)
        return self.process.poll() is not None

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to it and what it started."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, number)

    def wait(self) -> None:
        """Waits for its end."""
        if self.process is not None:
            self.process.wait()

    def outcome(self) -> tuple[Status, str]:
        """How the process ended, once it has."""
        assert self.process is not None
        code = self.process.returncode
        if code == 0:
            return "finished", ""
        if self.pruned is not None:
            return "pruned", self.pruned
        with self._log.open("rb") as log:
            log.seek(self._log_start)
            lines = log.read().decode(errors="replace").splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        if code == 1 and errors and _DIVERGED.match(errors[-1]):
            return "diverged", errors[-1].removeprefix("error: ")
        last = (errors or lines or [""])[-1].removeprefix("error: ")
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return "failed", f"{last} ({how}, see {self._log})".lstrip()


def train_command(options: Path) -> list[str]:
    """What makes a run of a file of options, or goes on with it."""
    return [sys.executable, "-m", "rslm", "train", "--resume", "--config", str(options)]


def is_held(path: Path) -> bool:
    """Whether a process holds a run folder, which need not exist."""
    return path.is_dir() and is_in_use(path)
