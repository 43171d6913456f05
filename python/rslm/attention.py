"""Softmax attention, and the one place that chooses how it is computed."""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Implementation = Literal["auto", "reference", "torch"]

_CPU_HALF_KEYS = 512
"""Keys from which PyTorch's CPU kernel is faster in 16 bits than in float32.

Forward and backward on an AVX-512 machine with bfloat16 units, one core, milliseconds in
16 bits and by way of float32: 22 and 10 for 128 keys (d_head 32), 32 and 28 for 256, 53
and 54 for 512, 65 and 78 for 1024 (d_head 64).
"""


def softmax(x: Float[Tensor, "..."], dim: int) -> Float[Tensor, "..."]:
    """Exponentials of `x` that sum to one along `dim`.

    The maximum is subtracted first, which changes nothing mathematically and keeps every
    exponential at most one. Half-precision inputs are summed in float32; the result has
    the dtype of `x`.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    exponentials = torch.exp(wide - wide.amax(dim, keepdim=True))
    return (exponentials / exponentials.sum(dim, keepdim=True)).to(x.dtype)


def scaled_dot_product_attention(
    q: Float[Tensor, "... queries d_head"],
    k: Float[Tensor, "... keys d_head"],
    v: Float[Tensor, "... keys d_value"],
    mask: Bool[Tensor, "... queries keys"] | None = None,
    *,
    scale: float | None = None,
) -> Float[Tensor, "... queries d_value"]:
    """Values averaged with weights softmax(q kᵀ / sqrt(d_head)), as the formula is written.

    Args:
        q: queries.
        k: keys.
        v: values.
        mask: True where the query may attend to the key; None lets every query attend to
            every key. A query that may attend to nothing gets zeros.
        scale: stands in place of 1/sqrt(d_head).

    Source: Vaswani et al. 2017, Attention Is All You Need, equation 1 (arXiv:1706.03762).
    """
    scores = q @ k.transpose(-2, -1) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if mask is None:
        return softmax(scores, dim=-1) @ v
    weights = softmax(scores.masked_fill(~mask, float("-inf")), dim=-1)
    # A row without any True is 0/0 above; filling again makes it, and its gradient, zero.
    return weights.masked_fill(~mask, 0.0) @ v


def attention(
    q: Float[Tensor, "... queries d_head"],
    k: Float[Tensor, "... keys d_head"],
    v: Float[Tensor, "... keys d_head"],
    *,
    causal: bool,
    window: int | None = None,
    scale: float | None = None,
    documents: Int[Tensor, "... queries"] | None = None,
    implementation: Implementation = "auto",
) -> Float[Tensor, "... queries d_head"]:
    """Softmax attention, scaled by 1/sqrt(d_head) or by `scale`.

    Statistics are accumulated in float32 whatever the input dtype; the result has the
    dtype of `q`. With `causal`, query i sees keys 0..i + (keys - queries), so a single
    query against a cache sees every key; with `window` it sees the last `window` of those,
    its own among them. With `documents`, numbers without the dimension of the heads, a query
    sees only keys of its own number: several documents in a row do not see each other.
    Extra memory: O(queries * keys) for "reference",
    O(queries) for "torch" where PyTorch has a fused kernel (with a window or documents, a mask
    of booleans on top). "auto" takes "torch".

    Raises:
        ValueError: `implementation` is unknown, `causal` with more queries than keys, a
            `window` below 1 or without `causal`, or `documents` with a cache's keys.

    Source of the window: Child et al. 2019, section 4.2 (arXiv:1904.10509); Beltagy et al.
    2020, Longformer, section 3.1 (arXiv:2004.05150).
    """
    n_queries, n_keys = q.shape[-2], k.shape[-2]
    if causal and n_queries > n_keys:
        raise ValueError(
            "causal attention needs at least as many keys as queries, "
            f"got {n_queries} queries and {n_keys} keys"
        )
    if window is not None and (window < 1 or not causal):
        raise ValueError(f"window must be at least 1, and causal True, got {window} and {causal}")
    same = None
    if documents is not None:
        if n_queries != n_keys:
            raise ValueError(
                f"documents need as many keys as queries, got {n_queries} queries and {n_keys} keys"
            )
        # One mask for all heads: (..., 1, queries, keys).
        same = (documents[..., :, None] == documents[..., None, :]).unsqueeze(-3)
    if implementation == "reference":
        mask = _causal_mask(n_queries, n_keys, q.device, window) if causal else None
        return scaled_dot_product_attention(q, k, v, _both(mask, same), scale=scale)
    if implementation in ("auto", "torch"):
        return _torch_attention(q, k, v, causal=causal, window=window, scale=scale, same=same)
    raise ValueError(
        f'implementation must be "auto", "reference" or "torch", got {implementation!r}'
    )


def _both(mask: Tensor | None, other: Tensor | None) -> Tensor | None:
    """True where both masks are, of which one or both may allow everything."""
    if mask is None or other is None:
        return other if mask is None else mask
    return mask & other


def _torch_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool,
    window: int | None,
    scale: float | None,
    same: Tensor | None,
) -> Tensor:
    """PyTorch's fused attention, with our meaning of causal for keys > queries."""
    n_queries, n_keys = q.shape[-2], k.shape[-2]
    # PyTorch aligns its causal mask at the top left: query i sees keys 0..i however many
    # keys there are, so only the square case may use it. One query sees every key.
    is_cut = window is not None and window < n_keys
    plain = causal and n_queries == n_keys and not is_cut and same is None
    mask = None
    if causal and not plain and (n_queries > 1 or is_cut):
        mask = _causal_mask(n_queries, n_keys, q.device, window)
    mask = _both(mask, same)
    fused = torch.nn.functional.scaled_dot_product_attention
    if q.device.type == "cpu" and q.dtype.itemsize == 2 and n_keys < _CPU_HALF_KEYS:
        with torch.autocast("cpu", enabled=False):
            wide = (q.float(), k.float(), v.float())
            return fused(*wide, attn_mask=mask, is_causal=plain, scale=scale).to(q.dtype)
    return fused(q, k, v, attn_mask=mask, is_causal=plain, scale=scale)


def _causal_mask(
    n_queries: int, n_keys: int, device: torch.device, window: int | None = None
) -> Tensor:
    """True where query i may see key j: 0 <= i + (keys - queries) - j < window."""
    everything = torch.ones(n_queries, n_keys, dtype=torch.bool, device=device)
    seen = everything.tril(n_keys - n_queries)
    return seen if window is None else seen.triu(n_keys - n_queries - window + 1)
