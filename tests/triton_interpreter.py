"""What tests of Triton kernels on a CPU share: bfloat16 that works, guarded tensors, an oracle."""

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import TensorHandle

BUILDER = interpreter.InterpreterBuilder


def widened(bits: np.ndarray) -> np.ndarray:
    """The float32 values of bfloat16 bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def narrowed(values: np.ndarray) -> np.ndarray:
    """The bits of the bfloat16 values nearest to float32 values, ties to even."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


@pytest.fixture(autouse=True)
def exact_bfloat16(monkeypatch: pytest.MonkeyPatch):
    """Triton's interpreter keeps bfloat16 as bits, cuts where a GPU rounds, and multiplies bits."""
    cast, dot = BUILDER.cast_impl, BUILDER.create_dot

    def cast_rounded(self, source, dtype):
        kinds = (source.dtype.scalar, dtype.scalar)
        if kinds == (tl.float32, tl.bfloat16):
            return TensorHandle(narrowed(source.data), tl.bfloat16)
        if kinds == (tl.bfloat16, tl.float32):
            return TensorHandle(widened(source.data), tl.float32)
        return cast(self, source, dtype)

    def dot_widened(self, a, b, *rest):
        a, b = (
            TensorHandle(widened(x.data), tl.float32) if x.dtype.scalar == tl.bfloat16 else x
            for x in (a, b)
        )
        return dot(self, a, b, *rest)

    monkeypatch.setattr(BUILDER, "cast_impl", cast_rounded)
    monkeypatch.setattr(BUILDER, "create_dot", dot_widened)
    # An infinite power of two has its meaning in the kernels; a NaN that arises is an error.
    with np.errstate(over="ignore", under="ignore"):
        yield


def guarded(x: torch.Tensor, layout: str = "bnhd", fill: float = float("nan")) -> torch.Tensor:
    """A copy of (batch, heads, n, d), with `fill` around every row, head and batch of it.

    Args:
        layout: order in memory; "bnhd" is what a projection followed by a transposition gives.
    """
    order = ["bhnd".index(letter) for letter in layout]
    sizes = [x.shape[dim] + (8 if dim == 3 else 2) for dim in order]
    buffer = torch.full(sizes, fill, dtype=x.dtype)
    inside = tuple(slice(0, -8) if dim == 3 else slice(1, -1) for dim in order)
    view = buffer[inside].permute([order.index(dim) for dim in range(4)])
    return view.copy_(x)


def fill_around(view: torch.Tensor) -> torch.Tensor:
    """All that lies in the storage of a guarded tensor but not in the tensor."""
    storage = torch.empty(0, dtype=view.dtype).set_(view.untyped_storage())
    outside = torch.ones_like(storage, dtype=torch.bool)
    outside.as_strided(view.shape, view.stride(), view.storage_offset()).fill_(False)
    return storage[outside]


def visible(
    n_queries: int, n_keys: int, causal: bool, start: torch.Tensor | None, offset: int | None = None
) -> torch.Tensor:
    """True where a query sees a key, (batch or 1, 1, queries, keys)."""
    keys = torch.arange(n_keys)
    offset = n_keys - n_queries if offset is None else offset
    seen = torch.ones(1, 1, n_queries, n_keys, dtype=torch.bool)
    if causal:
        seen = seen & (keys <= torch.arange(n_queries)[:, None] + offset)
    return seen if start is None else seen & (keys >= start[:, None, :, None])


def formula(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    seen: torch.Tensor,
    scale: float,
    softcap: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention and log-sums as written in a textbook, in the dtype of the inputs."""
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, 1) for x in (k, v))
    scores = q @ k.transpose(-2, -1) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~seen, float("-inf"))
    weights = scores.masked_fill(~seen.any(-1, keepdim=True), 0.0).softmax(-1)
    lse = scores.masked_fill(~seen.any(-1, keepdim=True), 0.0).logsumexp(-1)
    lse = lse.masked_fill(~seen.any(-1), float("-inf"))
    return weights.masked_fill(~seen, 0.0) @ v, lse
