"""Batches of token ids, without loader state: a batch is a function of where it stands.

`sample_batch` depends on (data, seed, step, batch size, context length) alone, so a resumed run
reads what the unbroken one would have read, and micro-batches or processes may take any slice.
`get_batch` is the simple sampler: windows at uniform random places of one array.
"""

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Int
from torch import Tensor

from rslm.permutation import permute
from rslm.token_file import TokenFile

SampleIndices = npt.NDArray[np.int64]


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


def too_short(n_tokens: int, context_length: int) -> str:
    """The message for data that does not hold one window."""
    return (
        f"the data must hold at least context_length + 1 = {context_length + 1} tokens, "
        f"got {n_tokens}"
    )


def split_windows(
    windows: npt.NDArray[Any], device: str | torch.device
) -> tuple[Int[Tensor, "batch sequence"], Int[Tensor, "batch sequence"]]:
    """Inputs and targets, int64 on the device, of windows one token longer than either."""
    ids = torch.from_numpy(windows.astype(np.int64))
    if torch.device(device).type == "cuda":
        # From pinned memory the copy does not wait for the kernels queued before it.
        ids = ids.pin_memory()
    ids = ids.to(device, non_blocking=True)
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


def count_samples(n_tokens: int, context_length: int) -> int:
    """The windows of one epoch: sample i reads tokens i * T, ..., (i + 1) * T inclusive.

    Raises:
        ValueError: there is none.
    """
    n_samples = (n_tokens - 1) // context_length
    if n_samples < 1:
        raise ValueError(too_short(n_tokens, context_length))
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


def sample_batch(
    token_file: TokenFile, *, seed: int, step: int, batch_size: int, context_length: int
) -> npt.NDArray[np.int64]:
    """The windows of a step (counted from 0): `(batch_size, context_length + 1)` token ids.

    `split_windows` makes inputs and targets of them, or of any slice of their rows.

    Raises:
        ValueError: the data is shorter than one window.
    """
    n_samples = count_samples(len(token_file), context_length)
    indices = sample_indices(n_samples, seed, step * batch_size, batch_size)
    return read_windows(token_file, indices, context_length)


def counter_seed(seed: int, stream: str, step: int = 0) -> int:
    """A 63-bit seed for the generator of one purpose at one step.

    Randomness that is a function of (seed, stream, step) has no state to save or to disturb:
    sampling text between two steps leaves training as it was.
    """
    digest = hashlib.sha256(f"{seed} {stream} {step}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
