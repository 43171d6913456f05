"""Loss and bits per byte of a model on a fixed slice of a token file."""

import contextlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from rslm.batches import split_windows, to_device
from rslm.distributed import Processes
from rslm.evaluate.results import ratio_and_error
from rslm.model import Transformer
from rslm.packing import positions_in, require_documents, window_documents
from rslm.token_file import TokenFile

Batch = TypeVar("Batch")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a model scores on a slice of text.

    Attributes:
        loss: mean over the target tokens, in nats.
        stderr: standard error of the loss, of the choice of text, as if each batch had been
            drawn by itself; infinite where there is one alone.
        bits_per_byte: sum of the losses / (ln 2 x bytes of the target tokens); special tokens
            have 0 bytes, but their loss counts. None when byte lengths were not given.
        n_tokens: target tokens.
        n_bytes: their bytes; None as above.
    """

    loss: float
    stderr: float
    bits_per_byte: float | None
    n_tokens: int
    n_bytes: int | None


def evaluate_loss(
    model: Transformer,
    token_file: TokenFile,
    *,
    batch_size: int,
    n_tokens: int | None = None,
    token_byte_lengths: npt.NDArray[np.integer[Any]] | None = None,
    mask_documents: bool = False,
    restart_positions: bool = False,
    autocast_dtype: torch.dtype | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    processes: Processes | None = None,
) -> Evaluation | None:
    """Scores the first `n_tokens` targets of a token file, or all of them.

    The slice is cut into windows of the model's context length, side by side, so every token
    but the file's very first is a target once, predicted from its own window alone. Losses are
    float32 and summed in float64. Returns None when `should_stop` became true between batches.

    Args:
        model: the model.
        token_file: the text.
        batch_size: windows per forward pass.
        n_tokens: targets to score.
        token_byte_lengths: bytes of each token, for bits per byte.
        mask_documents: attention does not cross from one document of a window to another.
        restart_positions: positions count from the begin of a document.
        autocast_dtype: dtype of matrix products.
        should_stop: asked before each batch.
        processes: those that score the batches in turns, all with the same result as one that
            is alone; each must call. A model that is sharded runs equally often on all.

    Raises:
        ValueError: there is no token to predict, or the file does not tell apart the documents
            that are to be masked.
    """
    if mask_documents:
        require_documents(token_file, "mask_documents")
    limit = len(token_file) - 1 if n_tokens is None else min(n_tokens, len(token_file) - 1)
    if limit < 1:
        raise ValueError(f"validation needs at least 2 tokens, got {len(token_file)}")
    device = next(model.parameters()).device
    processes = processes or Processes(device=device)
    length = model.config.context_length
    sizes = [n * length for n in _batch_sizes(limit // length, batch_size)]
    sizes += [limit % length] if limit % length else []
    sums: list[torch.Tensor] = []
    byte_counts: list[int] = []
    with _inference(model, autocast_dtype):
        batches = contiguous_windows(token_file, limit, length, batch_size)
        numbered = with_first_tokens(batches)
        for first, windows in every_nth(numbered, processes.rank, processes.world_size):
            if should_stop():
                return None
            inputs, targets = split_windows(windows, device)
            options: dict[str, torch.Tensor] = {}
            if mask_documents:
                n_inputs = windows.shape[1] - 1
                starts = first + n_inputs * np.arange(len(windows))
                documents = window_documents(token_file.document_starts, starts, n_inputs)
                options["documents"] = to_device(documents, device)
                if restart_positions:
                    options["token_positions"] = to_device(positions_in(documents), device)
            _, loss = model(inputs, targets=targets, **options)
            sums.append(loss * targets.numel())
            if token_byte_lengths is not None:
                byte_counts.append(int(token_byte_lengths[windows[:, 1:]].sum(dtype=np.int64)))
    # Fetched once: the device is not made to wait for each batch. In the order of the batches,
    # so that the sum has the same bits however many processes there are.
    gathered = processes.gather(torch.stack(sums)).T.flatten()[: len(sizes)].cpu().double()
    total = gathered.sum().item()
    n_bytes = 0
    if byte_counts:
        counts = processes.gather(torch.tensor(byte_counts, dtype=torch.int64))
        n_bytes = int(counts.T.flatten()[: len(sizes)].sum())
    return Evaluation(
        loss=total / limit,
        stderr=ratio_and_error(gathered.tolist(), sizes)[1],
        bits_per_byte=total / (math.log(2) * n_bytes) if n_bytes else None,
        n_tokens=limit,
        n_bytes=None if token_byte_lengths is None else n_bytes,
    )


@contextlib.contextmanager
def _inference(model: Transformer, autocast_dtype: torch.dtype | None) -> Iterator[None]:
    """Evaluation mode without gradients; the model's own mode comes back afterwards."""
    was_training = model.training
    device_type = next(model.parameters()).device.type
    autocast = torch.autocast(device_type, autocast_dtype, enabled=autocast_dtype is not None)
    model.eval()
    try:
        with torch.no_grad(), autocast:
            yield
    finally:
        model.train(was_training)


def every_nth(batches: Iterable[Batch], first: int, n: int) -> Iterator[Batch]:
    """Batches first, first + n, ...; as many for each `first` below n, the last ones repeated.

    Where their number is no multiple of n, some end with a batch that others have, too.
    """
    rest = iter(batches)
    while turn := list(itertools.islice(rest, n)):
        yield turn[min(first, len(turn) - 1)]


def with_first_tokens(
    batches: Iterable[npt.NDArray[Any]],
) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """Batches of windows side by side, each with the number of its first token."""
    first = 0
    for windows in batches:
        yield first, windows
        first += windows.shape[0] * (windows.shape[1] - 1)


def _batch_sizes(n_windows: int, batch_size: int) -> list[int]:
    return [min(batch_size, n_windows - first) for first in range(0, n_windows, batch_size)]


def contiguous_windows(
    token_file: TokenFile, n_targets: int, context_length: int, batch_size: int
) -> Iterator[npt.NDArray[Any]]:
    """Batches of windows side by side from the start; the last one may be shorter and alone."""
    n_full = n_targets // context_length
    first = 0
    for count in _batch_sizes(n_full, batch_size):
        tokens = token_file.read(first * context_length, count * context_length + 1)
        yield np.lib.stride_tricks.sliding_window_view(tokens, context_length + 1)[::context_length]
        first += count
    if rest := n_targets % context_length:
        yield token_file.read(n_full * context_length, rest + 1)[None, :]
