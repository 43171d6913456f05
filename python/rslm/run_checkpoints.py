"""The checkpoints of a run: going on from the newest, saving beside training, keeping the best."""

import math
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from torch import nn
from torch.optim import Optimizer

from rslm import checkpoint
from rslm.batches import BatchSizes, first_sample
from rslm.config import to_record
from rslm.distributed.parallel import Unsharded
from rslm.environment import versions
from rslm.errors import FormatError
from rslm.run_folder import Background, Row, read_metrics, require_run_state
from rslm.train_config import RunOptions, TrainConfig


def restore(
    config: RunOptions,
    fingerprints: Row,
    model: nn.Module,
    optimizer: Optimizer,
    console: Console,
    *,
    n_steps: int,
    init_from: Path | None = None,
) -> Row:
    """Loads the newest good checkpoint, or the weights of `init_from`; returns the run's state.

    Raises:
        FormatError: no checkpoint is good, or it does not fit the config.
        ValueError: the data is not what the run began with.
    """
    folder = config.out / "checkpoints"
    newest, rejected = checkpoint.newest_checkpoint(folder)
    if rejected and newest is None:
        faults = "\n".join(rejected.values())
        raise FormatError(f"no checkpoint in {folder} is good; remove it to begin anew\n{faults}")
    for path, fault in rejected.items():
        console.print(f"rejected a checkpoint: {fault}", soft_wrap=True, markup=False)
        checkpoint.set_aside(path, "rejected")
    if newest is None:
        if init_from is not None:
            checkpoint.load_weights(checkpoint.weights_path(init_from), model)
        begun = {"step": 0, "batch_sizes": [], "elapsed_seconds": 0.0}
        return begun | {"metrics_bytes": 0, "samples_bytes": 0}
    source = newest / checkpoint.STATE
    require_run_state(checkpoint.read_state(newest), source, n_steps)
    state = checkpoint.load_run_checkpoint(newest, model, optimizer)
    if state["data"] != fingerprints:
        raise ValueError(
            f"the data must be what the run began with, {state['data']}, got {fingerprints}"
        )
    console.print(f"resuming from {newest}", soft_wrap=True, markup=False)
    return state


def save(
    config: RunOptions,
    model: nn.Module,
    whole: Unsharded,
    state: Row,
    best_step: int | None,
    writer: Background,
) -> None:
    """Copies the state, and has the copy written and the oldest checkpoint removed."""
    folder = config.out / "checkpoints"
    snapshot = checkpoint.take_snapshot(model, whole.optimizer, whole.copies)

    def write() -> None:
        checkpoint.write_snapshot(folder, snapshot, state)
        checkpoint.prune_checkpoints(folder, config.keep_checkpoints, best_step)

    writer.start(write)


class Best(NamedTuple):
    """The lowest validation loss so far, and the step it was reached at."""

    step: int | None
    val_loss: float


NO_BEST = Best(None, math.inf)


def best_validation(config: RunOptions) -> Best:
    """The best of the validations in the metrics whose checkpoint still exists."""
    folder = config.out / "checkpoints"
    validated = [
        Best(row["step"], row["val_loss"])
        for row in read_metrics(config.out / "metrics.jsonl")
        if row.get("val_loss") is not None and checkpoint.step_folder(folder, row["step"]).exists()
    ]
    lowest = min(validated, key=lambda best: best.val_loss, default=NO_BEST)
    return lowest if config.keep_best else NO_BEST


def mark_best(config: RunOptions, step: int) -> None:
    """Marks the checkpoint of a step as the best; the one before may go."""
    folder = config.out / "checkpoints"
    checkpoint.mark_best(folder, step)
    checkpoint.prune_checkpoints(folder, config.keep_checkpoints, step)


def run_state(
    config: TrainConfig,
    step: int,
    *,
    batch_sizes: BatchSizes,
    fingerprints: Row,
    n_targets: int | None = None,
    skipped: dict[str, int],
    elapsed_seconds: float,
    metrics_bytes: int,
    samples_bytes: int,
) -> Row:
    """What a checkpoint says beside the tensors; it counts on files of these sizes.

    `n_tokens` and `n_targets` are those of the metrics; see `Meter`.
    """
    counted = {} if n_targets is None else {"n_targets": n_targets}
    return counted | {
        "format": 2,
        "step": step,
        "n_tokens": first_sample(batch_sizes, step) * config.model.context_length,
        "batch_sizes": batch_sizes,
        "elapsed_seconds": elapsed_seconds,
        "metrics_bytes": metrics_bytes,
        "samples_bytes": samples_bytes,
        # Batches, weights and samples are drawn by seed and step; there is no other generator.
        "random": {"seed": config.seed, "step": step},
        "skipped": skipped,
        "data": fingerprints,
        "config": to_record(config),
        "versions": versions(),
    }
