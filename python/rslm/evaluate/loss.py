"""Loss and bits per byte of a model on a fixed slice of a token file."""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from rslm.batches import split_windows
from rslm.losses import token_losses
from rslm.model import Transformer
from rslm.token_file import TokenFile


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a model scores on a slice of text.

    Attributes:
        loss: mean over the target tokens, in nats.
        bits_per_byte: sum of the losses / (ln 2 x bytes of the target tokens); special tokens
            have 0 bytes, but their loss counts. None when byte lengths were not given.
        n_tokens: target tokens.
        n_bytes: their bytes; None as above.
    """

    loss: float
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
    autocast_dtype: torch.dtype | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Evaluation | None:
    """Scores the first `n_tokens` targets of a token file, or all of them.

    The slice is cut into windows of the model's context length, side by side, so every token
    but the file's very first is a target once, predicted from its own window alone. Losses are
    float32 and summed in float64. Returns None when `should_stop` became true between batches.

    Raises:
        ValueError: there is no token to predict.
    """
    limit = len(token_file) - 1 if n_tokens is None else min(n_tokens, len(token_file) - 1)
    if limit < 1:
        raise ValueError(f"validation needs at least 2 tokens, got {len(token_file)}")
    device = next(model.parameters()).device
    sums: list[torch.Tensor] = []
    n_bytes = 0
    with _inference(model, autocast_dtype):
        for windows in contiguous_windows(
            token_file, limit, model.config.context_length, batch_size
        ):
            if should_stop():
                return None
            inputs, targets = split_windows(windows, device)
            sums.append(token_losses(model(inputs), targets).sum())
            if token_byte_lengths is not None:
                n_bytes += int(token_byte_lengths[windows[:, 1:]].sum(dtype=np.int64))
    # Fetched once: the device is not made to wait for each batch.
    total = torch.stack(sums).cpu().double().sum().item()
    return Evaluation(
        loss=total / limit,
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


def contiguous_windows(
    token_file: TokenFile, n_targets: int, context_length: int, batch_size: int
) -> Iterator[npt.NDArray[Any]]:
    """Batches of windows side by side from the start; the last one may be shorter and alone."""
    n_full = n_targets // context_length
    for first in range(0, n_full, batch_size):
        count = min(batch_size, n_full - first)
        tokens = token_file.read(first * context_length, count * context_length + 1)
        yield np.lib.stride_tricks.sliding_window_view(tokens, context_length + 1)[::context_length]
    if rest := n_targets % context_length:
        yield token_file.read(n_full * context_length, rest + 1)[None, :]
