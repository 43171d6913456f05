"""Batches of token ids, without loader state: a batch is a function of where it stands.

`sample_batch` depends on (data, seed, step, batch size, context length) alone, so a resumed run
reads what the unbroken one would have read, and micro-batches or processes may take any slice.
Where the batch size changed at a resumption the order goes on all the same, each sample in its
turn: what a run has to remember is at which steps its batch size changed. A `Mixture` of token
files gives each a fixed share of the slots of a period, so its order has no state either.
`get_batch` is the simple sampler: windows at uniform random places of one array.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Int
from torch import Tensor

from rslm.packing import (
    PackingPlan,
    Rows,
    positions_in,
    read_packed_rows,
    window_documents,
)
from rslm.permutation import permute
from rslm.token_file import TokenFile

SampleIndices = npt.NDArray[np.int64]
BatchSizes = Sequence[tuple[int, int]]
"""The batch sizes of a run: (first step, sequences per batch) of each stretch, from step 0 on."""

N_SLOTS = 1000
"""Slots of the period in which a mixture's sources take turns; it defines what a run reads."""


def get_batch(
    token_ids: npt.NDArray[Any],
    batch_size: int,
    context_length: int,
    device: str | torch.device,
    *,
    generator: torch.Generator | None = None,
) -> tuple[Int[Tensor, "batch sequence"], Int[Tensor, "batch sequence"]]:
    """Inputs and targets at uniform random starts; targets lie one token ahead.

    Starts lie in [0, len - context_length). The array may be memory-mapped: only the batch is
    read. Without a (CPU) `generator` the starts come from torch's global one.

    Raises:
        ValueError: the array holds fewer than context_length + 1 tokens.
    """
    n_starts = len(token_ids) - context_length
    if n_starts < 1:
        raise ValueError(too_short(len(token_ids), context_length))
    starts = torch.randint(n_starts, (batch_size,), generator=generator).tolist()
    windows = np.stack([token_ids[start : start + context_length + 1] for start in starts])
    return split_windows(windows, device)


def too_short(n_tokens: int, context_length: int, name: object = "the data") -> str:
    """The message for data that does not hold one window; `name` is that of its file."""
    return (
        f"{name} must hold at least context_length + 1 = {context_length + 1} tokens, "
        f"got {n_tokens}"
    )


def split_windows(
    windows: npt.NDArray[Any], device: str | torch.device
) -> tuple[Int[Tensor, "batch sequence"], Int[Tensor, "batch sequence"]]:
    """Inputs and targets, int64 on the device, of windows one token longer than either."""
    ids = to_device(windows, device)
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


def to_device(array: npt.NDArray[Any], device: str | torch.device) -> Tensor:
    """An array of integers as int64 on the device."""
    ids = torch.from_numpy(array.astype(np.int64))
    if torch.device(device).type == "cuda":
        # From pinned memory the copy does not wait for the kernels queued before it.
        ids = ids.pin_memory()
    return ids.to(device, non_blocking=True)


def count_samples(n_tokens: int, context_length: int, name: object = "the data") -> int:
    """The windows of one epoch: sample i reads tokens i * T, ..., (i + 1) * T inclusive.

    Raises:
        ValueError: there is none; `name` is that of the file.
    """
    n_samples = (n_tokens - 1) // context_length
    if n_samples < 1:
        raise ValueError(too_short(n_tokens, context_length, name))
    return n_samples


def sample_indices(n_samples: int, seed: int, first: int, count: int) -> SampleIndices:
    """The windows at places first, ..., first + count - 1 of an endless shuffled order.

    Each epoch is a permutation of its own; a batch may straddle two.
    """
    places = np.arange(first, first + count, dtype=np.int64)
    indices = np.empty(count, dtype=np.int64)
    for epoch in range(first // n_samples, (first + count - 1) // n_samples + 1):
        inside = places // n_samples == epoch
        indices[inside] = permute(n_samples, seed, epoch, places[inside] % n_samples)
    return indices


def read_windows(
    token_file: TokenFile, indices: SampleIndices, context_length: int
) -> npt.NDArray[np.int64]:
    """The windows of the given samples, each context_length + 1 tokens long."""
    windows = np.empty((len(indices), context_length + 1), dtype=np.int64)
    for row, index in enumerate(indices.tolist()):
        windows[row] = token_file.read(index * context_length, context_length + 1)
    return windows


def first_sample(batch_sizes: BatchSizes, step: int) -> int:
    """The place in the shuffled order of the first sample of a step's batch.

    >>> first_sample([(0, 4), (7, 8)], 9)
    44
    """
    starts = [start for start, _ in batch_sizes]
    stretches = zip(batch_sizes, [*starts[1:], step], strict=True)
    return sum(max(0, min(end, step) - start) * size for (start, size), end in stretches)


def continue_batch_sizes(batch_sizes: BatchSizes, step: int, batch_size: int) -> BatchSizes:
    """The batch sizes of a run that goes on from `step` with this one."""
    before = [entry for entry in batch_sizes if entry[0] < step]
    is_same = bool(before) and before[-1][1] == batch_size
    return before if is_same else [*before, (step, batch_size)]


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Several token files as one source of samples.

    Attributes:
        token_files: the files.
        slots: which of them each slot of the period belongs to, as `mixing_slots` gives it.
    """

    token_files: tuple[TokenFile, ...]
    slots: SampleIndices


def mixing_slots(
    weights: Sequence[float], seed: int, names: Sequence[object] = ()
) -> SampleIndices:
    """The source of each of the `N_SLOTS` slots of a period: shares by weight, in seeded order.

    A source gets its share of the slots rounded down; those left over go to the largest
    remainders. So after every whole period the shares are the same, exact to a slot.

    Args:
        weights: of the sources.
        seed: of the order.
        names: of the sources, for messages.

    Raises:
        ValueError: a weight is not a positive number, or too small for one slot.
    """
    of = [f" for {name}" for name in names] or [""] * len(weights)
    given = ", ".join(f"{weight}{name}" for weight, name in zip(weights, of, strict=True))
    if not all(0 < weight < float("inf") for weight in weights):
        raise ValueError(f"weights must be positive numbers, got {given}")
    # By a power of two, so that no sum overflows and no share changes by a bit.
    scaled = np.ldexp(weights, -np.frexp(max(weights))[1]).tolist()
    shares = np.array(scaled) / sum(scaled) * N_SLOTS
    counts = np.floor(shares).astype(np.int64)
    largest = np.argsort(counts - shares, kind="stable")
    counts[largest[: N_SLOTS - counts.sum()]] += 1
    if counts.min() < 1:
        raise ValueError(f"each weight must be at least 1/{N_SLOTS} of their sum, got {given}")
    slots = np.repeat(np.arange(len(counts)), counts)
    return slots[permute(N_SLOTS, counter_seed(seed, "slots"), 0, np.arange(N_SLOTS))]


def mixed_samples(
    n_samples: Sequence[int], slots: SampleIndices, seed: int, first: int, count: int
) -> tuple[SampleIndices, SampleIndices]:
    """Sources, and windows in them, at places first, ..., first + count - 1 of a mixed order.

    Each source has a shuffled order of its own, endless over its epochs, and goes on in it
    whenever a slot is its turn. Any place costs the same.
    """
    places = np.arange(first, first + count, dtype=np.int64)
    sources = slots[places % N_SLOTS]
    indices = np.empty(count, dtype=np.int64)
    for source, n in enumerate(n_samples):
        turns = np.flatnonzero(sources == source)
        if turns.size:
            periods, slot = divmod(int(places[turns[0]]), N_SLOTS)
            is_own = slots == source
            before = periods * int(is_own.sum()) + int(is_own[:slot].sum())
            order = counter_seed(seed, "source", source)
            indices[turns] = sample_indices(n, order, before, turns.size)
    return sources, indices


@dataclass(frozen=True, kw_only=True)
class Packed:
    """Token files whose documents are packed into rows, told apart inside them, or both.

    Attributes:
        source: the files.
        plans: the plan of each; empty for windows that are cut wherever they end.
        mask_documents: batches say which document each token belongs to.
        restart_positions: batches count positions from the begin of the document.
    """

    source: TokenFile | Mixture
    plans: tuple[PackingPlan, ...] = ()
    mask_documents: bool = False
    restart_positions: bool = False


Source = TokenFile | Mixture | Packed
"""What batches are drawn from."""


@dataclass(frozen=True, kw_only=True)
class PackedBatch:
    """Rows of a batch, or of a process's part of it.

    Attributes:
        rows: what they hold.
        targets_per_row: mean over the whole batch, to weigh the losses of its parts by.
        mask_documents: the documents of the rows are told apart.
        restart_positions: the positions of the rows are the model's.
    """

    rows: Rows
    targets_per_row: float
    mask_documents: bool
    restart_positions: bool

    def __len__(self) -> int:
        return len(self.rows.inputs)


Batch = npt.NDArray[np.int64] | PackedBatch
"""Windows, or rows of packed or told-apart documents."""


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """What a forward pass takes, on the device.

    Attributes:
        inputs: token ids.
        targets: the tokens after them; `IGNORE_INDEX` where there is none, if `has_padding`.
        options: further arguments of the model's forward pass.
        share: of the loss of the batch, as the mean over these targets counts in it.
        has_padding: whether there may be places without a target.
    """

    inputs: Int[Tensor, "batch sequence"]
    targets: Int[Tensor, "batch sequence"]
    options: dict[str, Tensor]
    share: float
    has_padding: bool


def count_targets(batch: Batch, batch_size: int) -> int:
    """Targets of the whole batch of so many rows, of which this may be a process's part."""
    if isinstance(batch, PackedBatch):
        return round(batch.targets_per_row * batch_size)
    return batch_size * int(batch.shape[1] - 1)


def micro_batch(batch: Batch, first: int, count: int, device: str | torch.device) -> MicroBatch:
    """Rows first, ..., first + count - 1 of a batch, on the device.

    The shares of all the parts of a batch sum to one, for a process's part of a batch of padded
    rows on the mean over the processes: the sum of share times loss is the mean over the targets
    of the whole batch, however it is cut.
    """
    if not isinstance(batch, PackedBatch):
        inputs, targets = split_windows(batch[first : first + count], device)
        share = len(inputs) / len(batch)
        options: dict[str, Tensor] = {}
        return MicroBatch(
            inputs=inputs, targets=targets, options=options, share=share, has_padding=False
        )
    rows = Rows(*(array[first : first + count] for array in batch.rows))
    n_targets = int((rows.targets >= 0).sum())
    options = {}
    if batch.mask_documents:
        options["documents"] = to_device(rows.documents, device)
    if batch.restart_positions:
        options["token_positions"] = to_device(rows.positions, device)
    return MicroBatch(
        inputs=to_device(rows.inputs, device),
        targets=to_device(rows.targets, device),
        options=options,
        share=n_targets / (batch.targets_per_row * len(batch)),
        has_padding=n_targets < rows.targets.size,
    )


def token_files_of(source: Source) -> tuple[TokenFile, ...]:
    """The files that batches are drawn from."""
    if isinstance(source, Packed):
        return token_files_of(source.source)
    return source.token_files if isinstance(source, Mixture) else (source,)


def draw_samples(
    source: Source, *, seed: int, first: int, count: int, context_length: int
) -> tuple[SampleIndices, SampleIndices]:
    """Files, and windows or rows in them, at places first, ..., first + count - 1 of the order.

    Raises:
        ValueError: a file is shorter than one window.
    """
    if isinstance(source, Packed) and source.plans:
        n_samples = [plan.n_rows for plan in source.plans]
    else:
        n_samples = [
            count_samples(len(file), context_length, file.path) for file in token_files_of(source)
        ]
    files = source.source if isinstance(source, Packed) else source
    if isinstance(files, Mixture):
        return mixed_samples(n_samples, files.slots, seed, first, count)
    indices = sample_indices(n_samples[0], seed, first, count)
    return np.zeros_like(indices), indices


def read_samples(
    source: TokenFile | Mixture, files: SampleIndices, indices: SampleIndices, context_length: int
) -> npt.NDArray[np.int64]:
    """The windows that `draw_samples` named, each context_length + 1 tokens long."""
    token_files = source.token_files if isinstance(source, Mixture) else (source,)
    windows = np.empty((len(indices), context_length + 1), dtype=np.int64)
    for number, token_file in enumerate(token_files):
        own = files == number
        windows[own] = read_windows(token_file, indices[own], context_length)
    return windows


def read_rows(
    source: Packed, files: SampleIndices, indices: SampleIndices, context_length: int
) -> Rows:
    """The rows that `draw_samples` named."""
    shape = (len(indices), context_length)
    rows = Rows(*(np.empty(shape, np.int64) for _ in Rows._fields))
    for number, token_file in enumerate(token_files_of(source)):
        own = files == number
        if not own.any():
            continue
        if source.plans:
            read = read_packed_rows(token_file, source.plans[number], indices[own])
        else:
            windows = read_windows(token_file, indices[own], context_length)
            starts, first_tokens = token_file.document_starts, indices[own] * context_length
            documents = window_documents(starts, first_tokens, context_length)
            read = Rows(windows[:, :-1], windows[:, 1:], documents, positions_in(documents))
        for array, part in zip(rows, read, strict=True):
            array[own] = part
    return rows


def targets_per_row(source: Packed, files: SampleIndices, indices: SampleIndices) -> float:
    """Mean over the rows that `draw_samples` named, from their plans; no token is read."""
    counts = [
        plan.n_targets(indices[files == number]).sum() for number, plan in enumerate(source.plans)
    ]
    return float(sum(counts)) / len(indices)


def sample_batch(
    source: Source,
    *,
    seed: int,
    step: int,
    batch_size: int,
    context_length: int,
    first: int | None = None,
    share: slice = slice(None),
) -> Batch:
    """The windows of a step (counted from 0): `(batch_size, context_length + 1)` token ids.

    `split_windows` makes inputs and targets of them, or of any slice of their rows. Only the
    windows of `share`, a process's part of the batch, are read and returned. A `Packed` source
    gives a `PackedBatch` of rows instead; `micro_batch` makes of either what a model takes.

    Args:
        source: the data.
        seed: of the order.
        step: updates made before.
        batch_size: windows.
        context_length: tokens of a window, less one.
        first: place of the first window in the order, where the batch size has changed;
            step * batch_size unless given.

    Raises:
        ValueError: the data is shorter than one window.
    """
    place = step * batch_size if first is None else first
    files, indices = draw_samples(
        source, seed=seed, first=place, count=batch_size, context_length=context_length
    )
    if not isinstance(source, Packed):
        return read_samples(source, files[share], indices[share], context_length)
    return PackedBatch(
        rows=read_rows(source, files[share], indices[share], context_length),
        targets_per_row=(
            targets_per_row(source, files, indices) if source.plans else float(context_length)
        ),
        mask_documents=source.mask_documents,
        restart_positions=source.restart_positions,
    )


def counter_seed(seed: int, stream: str, step: int = 0) -> int:
    """A 63-bit seed for the generator of one purpose at one step.

    Randomness that is a function of (seed, stream, step) has no state to save or to disturb:
    sampling text between two steps leaves training as it was.
    """
    digest = hashlib.sha256(f"{seed} {stream} {step}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
