"""Keys and values of what a model has read, so that a new token costs a pass over itself alone."""

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from rslm.architecture import TransformerConfig

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Attention of queries over keys and values, with the layer's window and scale in it."""


@runtime_checkable
class AttentionCache(Protocol):
    """What an attention layer asks of the cache of its keys and values."""

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        attend: Attend,
        window: int | None,
        scale: float | None,
    ) -> Tensor:
        """Adds the keys and values; what the queries see of all, as `attend` would average it."""
        ...


@runtime_checkable
class ModelCache(Protocol):
    """What a model asks of a cache: one for each layer, and where the new tokens stand."""

    @property
    def layers(self) -> Sequence[AttentionCache]:
        """Of each layer its own."""
        ...

    def length_after(self, n_tokens: int) -> int:
        """Positions of the longest sequence once so many tokens are added."""
        ...

    def next_positions(self, n_tokens: int, device: torch.device) -> Tensor:
        """The positions of the tokens that are added."""
        ...


class LayerCache:
    """The keys and values of one layer, in room for `capacity` positions.

    The room is made at the first `append`, in the shape, dtype and place of what comes.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def append(self, k: Tensor, v: Tensor, *, window: int | None = None) -> tuple[Tensor, Tensor]:
        """Adds (..., heads, new, d_head) keys and values; returns those the new queries see.

        These are all, or with `window` those from the first that the first new query sees. They
        are views, valid until the next call.

        Raises:
            ValueError: there is no room for them.
        """
        before, length = self.length, self.length + k.shape[-2]
        if length > self.capacity:
            raise ValueError(f"a cache must hold at most {self.capacity} positions, got {length}")
        if self._keys is None or self._values is None:
            self._keys = k.new_empty(*k.shape[:-2], self.capacity, k.shape[-1])
            self._values = v.new_empty(*v.shape[:-2], self.capacity, v.shape[-1])
        self._keys[..., before:length, :] = k
        self._values[..., before:length, :] = v
        self.length = length
        first = 0 if window is None else max(0, before + 1 - window)
        return self._keys[..., first:length, :], self._values[..., first:length, :]

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        attend: Attend,
        window: int | None,
        scale: float | None,
    ) -> Tensor:
        """Adds the keys and values; what the queries see, as `attend` averages it."""
        k, v = self.append(k, v, window=window)
        return attend(q, k, v)


class KeyValueCache:
    """One `LayerCache` for each layer of a model.

    Given to `Transformer.forward`, it makes the token ids the continuation of those of the calls
    before: their positions go on counting, and their queries see all the earlier keys. Use it
    without gradients; the batch must keep its shape. Heads of keys and values are stored once
    however many heads of queries share them.

    Memory: 2 · n_layers · context_length · n_kv_heads · d_head numbers for each sequence.

    Source: Shazeer 2019, Fast Transformer Decoding, section 2.4 (arXiv:1911.02150).
    """

    def __init__(self, config: TransformerConfig) -> None:
        self.layers = [LayerCache(config.context_length) for _ in range(config.n_layers)]

    @property
    def length(self) -> int:
        """Positions read so far."""
        return self.layers[0].length

    def length_after(self, n_tokens: int) -> int:
        """Positions read once `n_tokens` more are."""
        return self.length + n_tokens

    def next_positions(self, n_tokens: int, device: torch.device) -> Tensor:
        """The positions of the next `n_tokens`."""
        return torch.arange(self.length, self.length + n_tokens, device=device)
