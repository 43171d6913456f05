"""TensorBoard and Weights & Biases, which get a copy of what the log shows of a run.

`metrics.jsonl` is the record and stays, whatever a tracker does: one that fails is left out
from there on, with one warning, and the run goes on. A resumed run goes on in the tracker's run
it began. What a killed run had written beyond the checkpoint that it goes on from is made again:
TensorBoard drops its earlier copy; W&B, which cannot, keeps it and is not sent it twice.
"""

import contextlib
import json
import secrets
from collections.abc import Callable, Collection, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from rslm.config import to_record
from rslm.files import write_atomically
from rslm.train_config import RunOptions

Row = Mapping[str, Any]
Written = Collection[tuple[int, bool]]
"""Rows that were written before, by their step and whether they are of a validation."""


class Tracker(Protocol):
    """Shows numbers of a run somewhere."""

    def write(self, step: int, values: dict[str, float]) -> None:
        """Takes the numbers of a step, the steps in ascending order."""

    def flush(self) -> None:
        """Keeps what was written, should the process be killed now."""

    def close(self, *, failed: bool) -> None:
        """Ends the run's part, after which nothing is written."""


class TensorBoardTracker:
    """Event files in the folder `tb` of the run folder, for `tensorboard --logdir`."""

    def __init__(self, config: RunOptions, first_step: int) -> None:
        """Goes on after `first_step`; events of later steps are dropped when they are read."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(config.out / "tb"), purge_step=first_step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Adds a scalar for each number."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """Writes what waits in memory."""
        self._writer.flush()

    def close(self, *, failed: bool) -> None:
        """Ends the event file."""
        self._writer.close()


class WandbTracker:
    """A run at W&B; `WANDB_MODE=offline` keeps it in the run folder, for `wandb sync`.

    Numbers are drawn over their own `step`: W&B's counter never goes back, and the validation
    of a step may come after a resumption.
    """

    def __init__(self, config: RunOptions, first_step: int) -> None:
        """Goes on with the run whose id lies in the run folder, or begins one."""
        import wandb

        file = config.out / "wandb_id"
        if not file.exists():
            write_atomically(file, secrets.token_hex(4).encode())
        self._run = wandb.init(
            project=config.wandb_project,
            name=config.out.name,
            id=file.read_text(),
            resume="allow",
            dir=str(config.out),
            config=to_record(config),
            # A batch size may change when a run goes on.
            allow_val_change=True,
            # Standard error belongs to the display.
            settings={"console": "off"},
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, values: dict[str, float]) -> None:
        """Logs the numbers together."""
        self._run.log({"step": step, **values})

    def flush(self) -> None:
        """Does nothing: a process of W&B's own has it all."""

    def close(self, *, failed: bool) -> None:
        """Waits until all is sent."""
        self._run.finish(exit_code=int(failed))


TRACKERS: dict[str, Callable[[RunOptions, int], Tracker]] = {
    "tensorboard": TensorBoardTracker,
    "wandb": WandbTracker,
}


def require_trackers(names: Collection[str]) -> None:
    """Refuses trackers whose packages are not installed, before a run begins.

    Raises:
        ModuleNotFoundError: one is missing; it bears the name.
    """
    for name in names:
        try:
            import_module(name)
        except ModuleNotFoundError as error:
            if error.name == name:
                raise
        except Exception:
            continue  # A package that is there and fails is warned of when it is opened.


class Trackers:
    """The trackers of a run, none of which can end it; also the context they are open in.

    Args:
        config: the run.
        n_steps: updates of the whole run.
        first_step: updates made before.
        written: rows that an earlier part of the run wrote and that will be made again.
        warn: told once of each tracker that failed.
        is_first: whether this is the first of several processes, which alone tracks.
    """

    def __init__(
        self,
        config: RunOptions,
        *,
        n_steps: int,
        first_step: int,
        written: Written,
        warn: Callable[[str], None],
        is_first: bool = True,
    ) -> None:
        self._names = config.trackers if is_first else ()
        self._config, self._first_step, self._n_steps = config, first_step, n_steps
        self._written = frozenset(written)
        self._warn = warn
        self._open: dict[str, Tracker] = {}

    def __enter__(self) -> Self:
        for name in self._names:
            self._try(name, partial(self._begin, name))
        return self

    def _begin(self, name: str) -> None:
        self._open[name] = TRACKERS[name](self._config, self._first_step)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for name, tracker in list(self._open.items()):
            self._try(name, partial(tracker.close, failed=error is not None))

    def write_row(self, row: Row) -> None:
        """Passes on a row of the metrics if the log shows it: what is None is left out."""
        step, is_validation = int(row["step"]), "val_loss" in row
        is_logged = step % self._config.log_every == 0 or step in (1, self._n_steps)
        if not (is_validation or is_logged):
            return
        values = {k: float(v) for k, v in row.items() if k != "step" and v is not None}
        for name, tracker in list(self._open.items()):
            # TensorBoard keeps of the earlier part what is not above its first step.
            is_kept = name == "wandb" or step <= self._first_step
            if not (is_kept and (step, is_validation) in self._written):
                self._try(name, partial(tracker.write, step, values))
        if is_validation:
            self.flush()

    def flush(self) -> None:
        """Keeps what was written, as a checkpoint is saved that a run may go on from."""
        for name, tracker in list(self._open.items()):
            self._try(name, tracker.flush)

    def _try(self, name: str, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:
            self._open.pop(name, None)
            first_line = (str(error).splitlines() or [""])[0]
            self._warn(
                f"{name} failed and is left out from here on; metrics.jsonl has everything: "
                f"{type(error).__name__}: {first_line}"
            )


def rows_beyond(path: Path, n_bytes: int) -> set[tuple[int, bool]]:
    """The rows of a metrics file that lie beyond `n_bytes`, as `Trackers` knows them."""
    if not path.exists():
        return set()
    with path.open("rb") as file:
        file.seek(n_bytes)
        lines = file.read().splitlines()
    found = set()
    for line in lines:
        # What a power cut left of the end is about to be cut away; it need not be JSON.
        with contextlib.suppress(ValueError, KeyError, TypeError):
            row = json.loads(line)
            found.add((int(row["step"]), "val_loss" in row))
    return found
