"""Rows of conversations to train on, and the weight of every token in them.

A row holds one conversation, or several packed best-fit, none of which is ever cut; inputs of a
conversation of n ids are its first n - 1, targets its last n - 1. Rows are visited in an order
that is a function of the seed, so a step's batch is a function of (data, seed, step) alone. The
weights are those of the whole batch, so it does not matter how it is cut into micro-batches,
which conversations share a row, or which process has which rows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor

from rslm import _rslm
from rslm.batches import sample_indices, to_device
from rslm.packing import positions_in
from rslm.post.losses import Aggregation, token_weights
from rslm.post.sft_data import ChatFile

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class RowPlan:
    """Which conversations each row has.

    Attributes:
        offsets: row r has the entries offsets[r], ..., offsets[r + 1] - 1 of `conversations`.
        conversations: numbers in the file.
    """

    offsets: Numbers
    conversations: Numbers

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, number: int) -> list[int]:
        """The conversations of a row, in order."""
        inside = slice(self.offsets[number], self.offsets[number + 1])
        found: list[int] = self.conversations[inside].tolist()
        return found


def plan_rows(
    chats: ChatFile, context_length: int, packing: Literal["best-fit", "none"]
) -> RowPlan:
    """The rows of a file: conversations packed best-fit decreasing, or each alone.

    Source: Ding et al. 2024, section 3 and algorithm 1 (arXiv:2404.10830); here nothing is
    longer than a row.
    """
    if packing == "none":
        numbers = np.arange(len(chats) + 1, dtype=np.int64)
        return RowPlan(offsets=numbers, conversations=numbers[:-1])
    offsets, conversations, *_ = _rslm.plan_packing(chats.n_targets, context_length, "obfd")
    return RowPlan(offsets=offsets.view(np.int64), conversations=conversations.astype(np.int64))


def steps_of(n_rows: int, batch_size: int, n_epochs: float) -> int:
    """Updates that so many passes over the rows take."""
    return -(-rows_of_epochs(n_rows, n_epochs) // batch_size)


def rows_of_epochs(n_rows: int, n_epochs: float) -> int:
    """Rows in so many passes, at least one."""
    return max(1, round(n_epochs * n_rows))


def rows_of_step(
    n_rows: int, *, seed: int, step: int, batch_size: int, n_steps: int, n_epochs: float
) -> Numbers:
    """The rows of a step's batch, counted from 0.

    The last batch of a run over whole epochs has what is left of them, and is weighed by its
    own counts; a run of a given number of steps goes on with the next epoch.
    """
    first, count = step * batch_size, batch_size
    if n_steps == steps_of(n_rows, batch_size, n_epochs):
        count = min(count, rows_of_epochs(n_rows, n_epochs) - first)
    return sample_indices(n_rows, seed, first, count)


@dataclass(frozen=True, kw_only=True, eq=False)
class Conversation:
    """Inputs and targets of a conversation, and what they weigh."""

    token_ids: Numbers
    mask: npt.NDArray[np.bool_]
    weight: float


@dataclass(frozen=True, kw_only=True)
class SftBatch:
    """A process's part of a batch.

    Attributes:
        rows: conversations of each row.
        n_tokens: inputs of the whole batch, without padding.
        n_trained_tokens: those of them whose target is trained on.
    """

    rows: list[list[Conversation]]
    n_tokens: int
    n_trained_tokens: int


def read_batch(
    chats: ChatFile,
    plan: RowPlan,
    rows: Numbers,
    *,
    aggregation: Aggregation,
    max_length: int | None = None,
    share: slice = slice(None),
) -> SftBatch:
    """The rows of a batch that are in `share`, the longest first, weighed as parts of it.

    Args:
        chats: the conversations.
        plan: the rows.
        rows: those of the whole batch.
        aggregation: see `rslm.post.losses.token_weights`, for which a conversation is a row.
        max_length: see there.
        share: this process's part of the rows.
    """
    members = [plan.row(row) for row in rows.tolist()]
    masks = {number: chats.mask(number) for row in members for number in row}
    # A conversation may come twice, at the end of one epoch and the begin of the next.
    counts = [int(masks[number].sum()) for row in members for number in row]
    weights = iter(token_weights(counts, aggregation, max_length=max_length))
    weighed = [[(number, next(weights)) for number in row] for row in members]
    own = [
        [
            Conversation(token_ids=chats.token_ids(number), mask=masks[number], weight=weight)
            for number, weight in row
        ]
        for row in weighed[share]
    ]
    own.sort(key=_n_places, reverse=True)
    n_tokens = sum(len(masks[number]) - 1 for row in members for number in row)
    return SftBatch(rows=own, n_tokens=n_tokens, n_trained_tokens=sum(counts))


def _n_places(row: Sequence[Conversation]) -> int:
    return sum(len(conversation.token_ids) - 1 for conversation in row)


@dataclass(frozen=True, kw_only=True)
class SftPart:
    """A micro-batch on the device.

    Attributes:
        inputs: token ids.
        options: what the model's `hidden_states` takes beside them, where rows are packed.
        places: the flat numbers of the places whose target is trained on.
        targets: the targets there.
        weights: and what they weigh.
    """

    inputs: Int[Tensor, "rows sequence"]
    options: dict[str, Any]
    places: Int[Tensor, " trained"]
    targets: Int[Tensor, " trained"]
    weights: Float[Tensor, " trained"]


def parts_of(
    batch: SftBatch, micro_batch_size: int | None, device: torch.device
) -> Iterator[SftPart]:
    """The micro-batches of a process's part of a batch."""
    size = micro_batch_size or max(1, len(batch.rows))
    for first in range(0, len(batch.rows), size):
        yield make_part(batch.rows[first : first + size], device)


def make_part(rows: Sequence[Sequence[Conversation]], device: torch.device) -> SftPart:
    """Rows as tensors, as wide as the longest; what is left over is a document of its own."""
    shape = (len(rows), max(map(_n_places, rows)))
    inputs, targets, documents = (np.zeros(shape, np.int64) for _ in range(3))
    weights = np.zeros(shape)
    mask = np.zeros(shape, np.bool_)
    for number, row in enumerate(rows):
        done = 0
        for i, conversation in enumerate(row):
            place = slice(done, done + len(conversation.token_ids) - 1)
            inputs[number, place] = conversation.token_ids[:-1]
            targets[number, place] = conversation.token_ids[1:]
            mask[number, place] = conversation.mask[1:]
            weights[number, place] = conversation.weight
            documents[number, place] = i
            done = place.stop
        documents[number, done:] = len(row)
    options: dict[str, Any] = {}
    # Causal attention never looks to the right, so a conversation that is alone needs no more.
    if any(len(row) > 1 for row in rows):
        options["documents"] = to_device(documents, device)
        options["token_positions"] = to_device(positions_in(documents), device)
    return SftPart(
        inputs=to_device(inputs, device),
        options=options,
        places=to_device(np.flatnonzero(mask), device),
        targets=to_device(targets[mask], device),
        weights=torch.from_numpy(weights[mask]).to(device, torch.float32),
    )
