"""The checkpoints of the run folder that the run would go on in: their hashes."""

from collections.abc import Iterator

from rslm.checkpoint import STATE, list_checkpoints, newest_checkpoint, read_state
from rslm.doctor.check import Check
from rslm.run_folder import require_run_state
from rslm.train_config import TrainConfig


def check_checkpoints(config: TrainConfig, *, reads_all: bool) -> Iterator[Check]:
    """Which checkpoint `--resume` would go on from, and why not from a newer one.

    Raises:
        FormatError: its state is not one that a run writes.
    """
    name, folder = "checkpoint", config.out / "checkpoints"
    there = list_checkpoints(folder)
    if not there:
        return
    if not reads_all:
        yield Check(name=name, status="ok", found=f"{there[-1]}, hashes not read")
        return
    newest, rejected = newest_checkpoint(folder)
    faults = "; ".join(rejected.values())
    if newest is None:
        advice = f"copy {folder} again, or remove it to begin anew"
        yield Check(name=name, status="fail", found=faults, advice=advice)
        return
    require_run_state(read_state(newest), newest / STATE, config.n_steps)
    if rejected:
        advice = f"copy it again, or rslm train --resume goes on from {newest}"
        yield Check(name=name, status="warn", found=faults, advice=advice)
        return
    yield Check(name=name, status="ok", found=f"{newest}, hashes hold")
