"""Updates that were skipped because their gradients were infinite or not a number."""

import json
import math
from pathlib import Path
from typing import Any

from rslm.batches import (
    BatchSizes,
    PackedBatch,
    Source,
    draw_samples,
    first_sample,
    sample_batch,
    token_files_of,
)
from rslm.errors import FormatError
from rslm.files import write_atomically
from rslm.run_folder import Row
from rslm.train_config import TrainConfig


class SkippedSteps:
    """Counts them, and leaves each one's samples and token ids in the run folder.

    `rslm.optim.optimizer_step` skips; the rows of the metrics tell. The counts belong to the
    run's state, so that a resumed run ends where an unbroken one does.

    Args:
        config: the run.
        source: what its batches are drawn from.
        batch_sizes: the run's so far, the last of them that of the steps to come.
        record: what `record` gave when the run was saved; None for a new run.
        writes: whether to write files, as the first of several processes does.

    Attributes:
        n_skipped: steps skipped in the whole run.
        n_in_a_row: those since the last update.

    Raises:
        FormatError: the record is not one.
    """

    def __init__(
        self,
        config: TrainConfig,
        source: Source,
        batch_sizes: BatchSizes,
        record: Any = None,
        *,
        writes: bool = True,
    ) -> None:
        self._config, self._source, self._batch_sizes = config, source, batch_sizes
        self._writes = writes
        self.n_skipped = self.n_in_a_row = 0
        if record is not None:
            self.n_skipped, self.n_in_a_row = _counts(record)

    def record(self) -> dict[str, int]:
        """The counts, for the run's state."""
        return {"n_skipped": self.n_skipped, "n_in_a_row": self.n_in_a_row}

    def check(self, row: Row) -> str | None:
        """A sentence about the step of a row of the metrics, if it was skipped.

        Raises:
            FloatingPointError: more steps in a row were skipped than the options allow, or
                the loss is not finite though its gradients are.
        """
        if math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"]):
            self.n_in_a_row = 0
            return None
        self.n_skipped += 1
        self.n_in_a_row += 1
        path = self._write_batch(row)
        message = (
            f"step {row['step']}: loss {row['loss']}, grad_norm {row['grad_norm']}, learning_rate "
            f"{row['learning_rate']:.3g}; the samples and token ids of its batch are in {path}"
        )
        was_skipped = not math.isfinite(row["grad_norm"])
        if not was_skipped or self.n_in_a_row > self._config.optimizer.max_skipped_steps:
            raise FloatingPointError(message)
        return f"skipped an update ({self.n_skipped} so far): {message}"

    def _write_batch(self, row: Row) -> Path:
        config, length = self._config, self._config.model.context_length
        path = config.out / f"nonfinite_step_{row['step']:08d}.json"
        if not self._writes:
            return path
        place = first_sample(self._batch_sizes, row["step"] - 1)
        files, indices = draw_samples(
            self._source,
            seed=config.seed,
            first=place,
            count=config.batch_size,
            context_length=length,
        )
        whole = sample_batch(
            self._source,
            seed=config.seed,
            step=row["step"] - 1,
            batch_size=config.batch_size,
            context_length=length,
            first=place,
        )
        batch = {"samples": indices.tolist()}
        if isinstance(whole, PackedBatch):
            batch |= {"token_ids": whole.rows.inputs.tolist()}
            batch |= {"targets": whole.rows.targets.tolist()}
        else:
            batch |= {"token_ids": whole.tolist()}
        if len(token_files_of(self._source)) > 1:
            batch = {"sources": files.tolist()} | batch
        report = {key: repr(value) for key, value in row.items()} | batch
        write_atomically(path, json.dumps(report).encode())
        return path


def _counts(record: Any) -> list[int]:
    keys = ("n_skipped", "n_in_a_row")
    counts: list[Any] = [record.get(k) for k in keys] if isinstance(record, dict) else [None]
    if any(type(count) is not int or count < 0 for count in counts):
        raise FormatError(f"skipped must hold the counts of skipped steps, got {record!r}")
    return counts
