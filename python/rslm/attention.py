"""Softmax attention, and the one place that chooses how it is computed."""

import importlib.util
import math
import os
from typing import Any, Literal, get_args, overload

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rslm.architecture import AttentionImplementation
from rslm.kernels.tiled_attention import tiled_attention

Implementation = AttentionImplementation

_PLAIN_ON_CUDA: dict[tuple[int, int], Implementation] = {(8, 0): "triton"}
"""By compute capability, what "auto" takes where there is no mask but the causal one.

"torch" where nothing stands: on 9.0 and newer PyTorch has kernels for those chips, and ours is
not yet measured beside them.
"""

_HAS_TRITON = importlib.util.find_spec("triton") is not None
_TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_TRITON_D_HEAD = 256


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
    return _average(_scores(q, k, scale, None), v, mask)


def document_starts(documents: Int[Tensor, "... sequence"]) -> Int[Tensor, "... sequence"]:
    """For each position the first one of its run of equal numbers, as int32.

    This is the `start` that keeps `attention` within documents:

    >>> document_starts(torch.tensor([4, 4, 7, 7, 7, 4]))
    tensor([0, 0, 2, 2, 2, 5], dtype=torch.int32)
    """
    positions = torch.arange(documents.shape[-1], dtype=torch.int32, device=documents.device)
    goes_on = torch.zeros_like(documents, dtype=torch.bool)
    goes_on[..., 1:] = documents[..., 1:] == documents[..., :-1]
    return positions.expand_as(documents).masked_fill(goes_on, 0).cummax(-1).values


def implementations_on(device: torch.device) -> list[Implementation]:
    """The implementations that run on a device, "auto" aside."""
    return [
        name
        for name in get_args(Implementation)
        if name != "auto" and (name != "triton" or _why_no_triton(device) is None)
    ]


def check_implementation(implementation: Implementation, device: torch.device) -> None:
    """Refuses an implementation that does not run on a device.

    Raises:
        ValueError: it is "triton", and Triton or a device for it is missing.
    """
    reason = _why_no_triton(device) if implementation == "triton" else None
    if reason is not None:
        raise ValueError(reason)


@overload
def attention(
    q: Float[Tensor, "... n_heads queries d_head"],
    k: Float[Tensor, "... n_kv_heads keys d_head"],
    v: Float[Tensor, "... n_kv_heads keys d_head"],
    *,
    causal: bool,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    start: Int[Tensor, "... queries"] | None = None,
    return_lse: Literal[False] = False,
    implementation: Implementation = "auto",
) -> Float[Tensor, "... n_heads queries d_head"]: ...


@overload
def attention(
    q: Float[Tensor, "... n_heads queries d_head"],
    k: Float[Tensor, "... n_kv_heads keys d_head"],
    v: Float[Tensor, "... n_kv_heads keys d_head"],
    *,
    causal: bool,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    start: Int[Tensor, "... queries"] | None = None,
    return_lse: Literal[True],
    implementation: Implementation = "auto",
) -> tuple[Float[Tensor, "... n_heads queries d_head"], Float[Tensor, "... n_heads queries"]]: ...


def attention(
    q: Float[Tensor, "... n_heads queries d_head"],
    k: Float[Tensor, "... n_kv_heads keys d_head"],
    v: Float[Tensor, "... n_kv_heads keys d_head"],
    *,
    causal: bool,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    start: Int[Tensor, "... queries"] | None = None,
    return_lse: bool = False,
    implementation: Implementation = "auto",
) -> (
    Float[Tensor, "... n_heads queries d_head"]
    | tuple[Float[Tensor, "... n_heads queries d_head"], Float[Tensor, "... n_heads queries"]]
):
    """Softmax attention, scaled by 1/sqrt(d_head) or by `scale`.

    Statistics are accumulated in float32 whatever the input dtype; the result has the dtype of
    `q`. Heads of queries in a row share one of keys and values where there are fewer of those.

    With `causal`, query i sees keys up to i + (keys - queries), so a single query against a
    cache sees every key. A query that sees no key gets zeros.

    Args:
        q: queries.
        k: keys.
        v: values.
        causal: hide keys that come after the query.
        scale: stands in place of 1/sqrt(d_head).
        window: with `causal`, keys that a query sees at most, its own among them.
        softcap: scores s become softcap · tanh(s / softcap).
        start: with `causal`, the first key that each query sees, the same for every head. It must
            not decrease from a query to the next; see `document_starts`.
        return_lse: also return the logarithm of the sum of the exponentials of each query's
            scores, float32 (float64 for float64), -inf where it sees no key.
        implementation: "reference", the formula; "tiled", the algorithm of the kernels in plain
            PyTorch; "torch", PyTorch's kernels, without softcap and lse; "triton", ours. Extra
            memory is O(queries · keys) for "reference", and for "torch" where it needs a mask;
            otherwise O(queries). "auto" takes "torch" on a CPU, and on CUDA "triton" where
            "torch" needs a mask or by a table; where "torch" cannot, the "reference".

    Raises:
        ValueError: an argument breaks what is said above, heads cannot be shared evenly,
            dtypes or devices differ, or `implementation` is unknown or cannot do what is asked.

    Source: Dao 2023, FlashAttention-2 (arXiv:2307.08691), for "tiled" and "triton"; Ainslie et
    al. 2023 for shared heads (arXiv:2305.13245). Of the window: Child et al. 2019, section 4.2
    (arXiv:1904.10509); Beltagy et al. 2020, Longformer, section 3.1 (arXiv:2004.05150). Of the
    cap: Gemma Team 2024, Gemma 2, section 2 (arXiv:2408.00118).
    """
    _check(q, k, v, causal=causal, window=window, softcap=softcap, start=start)
    start = _fold_window(start, window, q.shape[-2], k.shape[-2], q.device)
    if implementation == "auto":
        needs_more = softcap is not None or return_lse
        implementation = _choose(q, k, start, causal=causal, needs_more=needs_more)
    if implementation == "torch":
        if softcap is not None or return_lse:
            raise ValueError('softcap and return_lse must be off with implementation "torch"')
        return _torch_attention(q, k, v, start, causal=causal, scale=scale)
    if implementation == "reference":
        output, lse = _reference_attention(
            *(q, k, v, start), causal=causal, scale=scale, softcap=softcap, return_lse=return_lse
        )
    elif implementation in ("tiled", "triton"):
        output, lse = _kernel_attention(
            *(q, k, v, start, implementation), causal=causal, scale=scale, softcap=softcap
        )
    else:
        names = ", ".join(get_args(Implementation))
        raise ValueError(f"implementation must be one of {names}, got {implementation!r}")
    if not return_lse:
        return output
    assert lse is not None
    return output, lse


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool,
    window: int | None,
    softcap: float | None,
    start: Tensor | None,
) -> None:
    if q.ndim < 3 or q.shape[-3] % k.shape[-3]:
        raise ValueError(
            "heads of queries must be a multiple of the heads of keys and values, got shapes "
            f"{tuple(q.shape)} and {tuple(k.shape)}"
        )
    # Autocast makes the dtypes equal.
    is_mixed = not q.dtype == k.dtype == v.dtype and not torch.is_autocast_enabled(q.device.type)
    if is_mixed or not q.device == k.device == v.device:
        found = ", ".join(f"{x.dtype} on {x.device}" for x in (q, k, v))
        raise ValueError(f"q, k and v must have one dtype and device, got {found}")
    if window is not None and (window < 1 or not causal):
        raise ValueError(f"window must be at least 1, and causal True, got {window} and {causal}")
    if softcap is not None and softcap <= 0:
        raise ValueError(f"softcap must be positive, got {softcap}")
    if start is not None and not causal:
        raise ValueError("start must be given with causal True only, got causal False")


def _fold_window(
    start: Tensor | None, window: int | None, n_queries: int, n_keys: int, device: torch.device
) -> Tensor | None:
    """The first key of each query that both let it see; None where neither cuts anything."""
    if start is not None:
        start = start.to(torch.int32)
    if window is None or window >= n_keys:
        return start
    first = n_keys - n_queries - window + 1
    firsts = torch.arange(first, first + n_queries, dtype=torch.int32, device=device)
    firsts = firsts.clamp_(min=0)
    return firsts if start is None else torch.maximum(start, firsts)


def _choose(
    q: Tensor, k: Tensor, start: Tensor | None, *, causal: bool, needs_more: bool
) -> Implementation:
    """What "auto" stands for; `needs_more` is asked of it than "torch" can."""
    n_queries, n_keys = q.shape[-2], k.shape[-2]
    fallback: Implementation = "reference" if needs_more else "torch"
    if not _triton_takes(q.device, q.dtype, q.shape[-1]):
        return fallback
    if needs_more or start is not None or (causal and 1 < n_queries != n_keys):
        return "triton"
    # A single query is one tile, on which our kernel leaves most of the device idle.
    if n_queries == 1:
        return "torch"
    return _PLAIN_ON_CUDA.get(torch.cuda.get_device_capability(q.device), "torch")


def reads_blocks(device: torch.device, dtype: torch.dtype, d_head: int) -> bool:
    """Whether keys and values in blocks are read there by `kernels.paged_attention`.

    Otherwise they are gathered for `attention`, which needs neither CUDA nor Triton.
    """
    return _triton_takes(device, dtype, d_head)


def _triton_takes(device: torch.device, dtype: torch.dtype, d_head: int) -> bool:
    is_known = dtype in _TRITON_DTYPES and d_head <= _TRITON_D_HEAD
    return _HAS_TRITON and device.type == "cuda" and is_known


def _why_no_triton(device: torch.device) -> str | None:
    """Why Triton cannot run on a device; None where it can."""
    if not _HAS_TRITON:
        return 'implementation "triton" needs the package triton\n  pip install triton'
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return (
            'implementation "triton" needs a CUDA device, or TRITON_INTERPRET=1 in the '
            f"environment, got {device.type}"
        )
    return None


def _visible(n_queries: int, n_keys: int, start: Tensor | None, device: torch.device) -> Tensor:
    """True where query i may see key j: start[i] <= j <= i + (keys - queries)."""
    keys = torch.arange(n_keys, device=device)
    last = torch.arange(n_keys - n_queries, n_keys, device=device)
    seen = keys <= last[:, None]
    if start is None:
        return seen
    seen = seen & (start[..., None] <= keys)
    # One mask for all heads: (..., 1, queries, keys).
    return seen if start.ndim == 1 else seen.unsqueeze(-3)


def _scores(q: Tensor, k: Tensor, scale: float | None, softcap: float | None) -> Tensor:
    scores = q @ k.transpose(-2, -1) * (q.shape[-1] ** -0.5 if scale is None else scale)
    return scores if softcap is None else softcap * torch.tanh(scores / softcap)


def _average(scores: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Values weighted with the softmax of the scores."""
    if mask is None:
        return softmax(scores, dim=-1) @ v
    weights = softmax(scores.masked_fill(~mask, float("-inf")), dim=-1)
    # A row without any True is 0/0 above; filling again makes it, and its gradient, zero.
    return weights.masked_fill(~mask, 0.0) @ v


def _log_sum_exp(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Logarithms of the sums of the exponentials; -inf, without gradient, for an empty row."""
    wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if mask is None:
        return wide.logsumexp(-1)
    is_empty = ~mask.any(-1, keepdim=True)
    # An empty row keeps its scores until the end: the derivative of log 0 is no number.
    lse = wide.masked_fill(~(mask | is_empty), float("-inf")).logsumexp(-1)
    return lse.masked_fill(is_empty.squeeze(-1), float("-inf"))


def _share_heads(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values once for each head of queries."""
    n_sharing = q.shape[-3] // k.shape[-3]
    if n_sharing == 1:
        return k, v
    return k.repeat_interleave(n_sharing, dim=-3), v.repeat_interleave(n_sharing, dim=-3)


def _reference_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    start: Tensor | None,
    *,
    causal: bool,
    scale: float | None,
    softcap: float | None,
    return_lse: bool,
) -> tuple[Tensor, Tensor | None]:
    k, v = _share_heads(q, k, v)
    mask = _visible(q.shape[-2], k.shape[-2], start, q.device) if causal else None
    scores = _scores(q, k, scale, softcap)
    return _average(scores, v, mask), _log_sum_exp(scores, mask) if return_lse else None


def _torch_attention(
    q: Tensor, k: Tensor, v: Tensor, start: Tensor | None, *, causal: bool, scale: float | None
) -> Tensor:
    """PyTorch's fused attention, with our meaning of causal for keys other than queries."""
    n_queries, n_keys = q.shape[-2], k.shape[-2]
    # PyTorch aligns its causal mask at the top left: query i sees keys 0..i however many
    # keys there are, so only the square case may use it. One query sees every key.
    plain = causal and n_queries == n_keys and start is None
    mask = None
    if causal and not plain and (n_queries > 1 or start is not None):
        mask = _visible(n_queries, n_keys, start, q.device)
    shares = q.shape[-3] != k.shape[-3]
    if shares and q.device.type != "cpu":
        # With shared heads and a mask, or in float32, CUDA has no kernel that makes no scores.
        k, v = _share_heads(q, k, v)
        shares = False
    # On a CPU, shared heads save a tenth to a fifth of forward and backward: 51 and 43 ms for 8
    # heads that share 2, 256 keys, float32, one core; 216 and 194 for 12 that share 4, 512 keys.
    options: Any = {"attn_mask": mask, "is_causal": plain, "scale": scale, "enable_gqa": shares}
    fused = torch.nn.functional.scaled_dot_product_attention
    if q.device.type == "cpu" and q.dtype.itemsize == 2:
        # In 16 bits PyTorch's CPU kernel is slower, forward and backward, one core, milliseconds
        # in 16 bits and by way of float32: 1,400 and 288 for 1,024 keys without bfloat16 units;
        # with them 22 and 10 for 128 keys, 53 and 54 for 512, and only then 65 and 78 for 1,024.
        with torch.autocast("cpu", enabled=False):
            wide = (q.float(), k.float(), v.float())
            return fused(*wide, **options).to(q.dtype)
    return fused(q, k, v, **options)


def _kernel_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    start: Tensor | None,
    implementation: Implementation,
    *,
    causal: bool,
    scale: float | None,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    """Output and lse of the kernels, which take one dimension before that of the heads."""
    kernel: Any = tiled_attention
    if implementation == "triton":
        check_implementation(implementation, q.device)
        from rslm.kernels.flash_attention import flash_attention as kernel
    before = q.shape[:-3]
    if start is not None:
        if start.numel() != q.shape[-2]:
            start = start.expand(*before, -1)
        start = start.reshape(-1, q.shape[-2])
    q, k, v = (_as_autocast(x).reshape(math.prod(before), *x.shape[-3:]) for x in (q, k, v))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    output, lse = kernel(q, k, v, start, causal=causal, scale=scale, softcap=softcap)
    return output.reshape(*before, *output.shape[1:]), lse.reshape(*before, *lse.shape[1:])


def _as_autocast(x: Tensor) -> Tensor:
    """`x` in the dtype in which autocast computes products."""
    kind = x.device.type
    if x.dtype == torch.float64 or not torch.is_autocast_enabled(kind):
        return x
    return x.to(torch.get_autocast_dtype(kind))
