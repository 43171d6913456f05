"""FlashAttention-2 in plain PyTorch: attention tile by tile, forward and backward, to be read.

The matrix of scores is never whole in memory: a tile of queries meets one tile of keys after
the other, and what the softmax needs to know of the keys seen so far is its running maximum and
sum. The backward pass makes each tile's scores again from q, k and one number a query.

Letters are the paper's: Q, K, V, S = scale · Q Kᵀ, P = softmax(S), and dX for the derivative of the
loss by X; its O and L are `output` and `lse`, the logsumexp of S. They carry any dimensions before
the last two, and those of K and V are broadcast against those of Q: heads of queries that share a
head of keys are such a dimension.

Source: Dao 2023, FlashAttention-2, Algorithm 1 and Algorithm 2 (arXiv:2307.08691). Differences:
the gradient also goes through lse, and through a cap on the scores; invisible tiles are left out.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

TILE_QUERIES = 64
TILE_KEYS = 64


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What is computed: which keys a query sees, how scores are made, and in which tiles.

    Attributes:
        scale: factor of the scores.
        softcap: bound of the scores; None: none.
        start: the first key that a query sees, (..., queries), not decreasing; None: key 0.
        shift: query i sees keys up to i + shift; None: all.
        tile_queries: queries of a tile.
        tile_keys: keys of a tile.
    """

    scale: float
    softcap: float | None = None
    start: Tensor | None = None
    shift: int | None = None
    tile_queries: int = TILE_QUERIES
    tile_keys: int = TILE_KEYS

    def tiles(self, n_queries: int, n_keys: int) -> Iterator[tuple[slice, slice, bool]]:
        """Tiles of which something is seen, one of queries after the other, and if all of it is."""
        lowest, highest = self._bounds_of_start(n_queries)
        for i in range(0, n_queries, self.tile_queries):
            rows = slice(i, min(i + self.tile_queries, n_queries))
            for j in range(0, n_keys, self.tile_keys):
                columns = slice(j, min(j + self.tile_keys, n_keys))
                # As start does not decrease, a tile's first query sees the earliest keys, and as
                # the last visible key increases, its last query sees the latest.
                is_seen = lowest[rows.start] < columns.stop
                is_whole = highest[rows.stop - 1] <= columns.start
                if self.shift is not None:
                    is_seen = is_seen and columns.start <= rows.stop - 1 + self.shift
                    is_whole = is_whole and columns.stop - 1 <= rows.start + self.shift
                if is_seen:
                    yield rows, columns, is_whole

    def _bounds_of_start(self, n_queries: int) -> tuple[list[int], list[int]]:
        """The lowest and the highest start of each query, over all sequences."""
        if self.start is None:
            return [0] * n_queries, [0] * n_queries
        flat = self.start.reshape(-1, n_queries)
        return flat.amin(0).tolist(), flat.amax(0).tolist()

    def hide(self, S: Tensor, rows: slice, columns: slice) -> Tensor:
        """The scores of a tile, -inf where the query does not see the key."""
        keys = torch.arange(columns.start, columns.stop, device=S.device)
        if self.shift is not None:
            last = torch.arange(rows.start, rows.stop, device=S.device) + self.shift
            S = S.masked_fill(keys > last[:, None], float("-inf"))
        if self.start is not None:
            S = S.masked_fill(keys < self.start[..., rows, None], float("-inf"))
        return S

    def scores(self, Q: Tensor, K: Tensor) -> Tensor:
        """S of a tile, before anything is hidden."""
        S = Q @ K.mT * self.scale
        return S if self.softcap is None else self.softcap * torch.tanh(S / self.softcap)

    def scores_gradient(self, dS: Tensor, S: Tensor) -> Tensor:
        """The derivative by Q Kᵀ, from the one by S: tanh' = 1 - tanh²."""
        if self.softcap is not None:
            dS = dS * (1 - (S / self.softcap).square())
        return dS * self.scale


def _forward(Q: Tensor, K: Tensor, V: Tensor, plan: _Plan) -> tuple[Tensor, Tensor]:
    """Output, in the dtype of Q, and lse, in float32 at least: Algorithm 1."""
    wide = torch.promote_types(Q.dtype, torch.float32)
    Q, K, V, dtype = Q.to(wide), K.to(wide), V.to(wide), Q.dtype
    # The three that travel along the keys: sum of P V and of P, both times exp(maximum).
    output = torch.zeros_like(Q)
    total = Q.new_zeros(Q.shape[:-1])
    maximum = Q.new_full(Q.shape[:-1], float("-inf"))
    for rows, columns, is_whole in plan.tiles(Q.shape[-2], K.shape[-2]):
        S = plan.scores(Q[..., rows, :], K[..., columns, :])
        if not is_whole:
            S = plan.hide(S, rows, columns)
        before = maximum[..., rows]
        after = torch.maximum(before, S.amax(-1))
        # Where nothing was seen yet, -inf - -inf would be no number; exp(-inf - 0) is 0.
        finite = after.masked_fill(after == float("-inf"), 0.0)
        P = torch.exp(S - finite[..., None])
        correction = torch.exp(before - finite)
        total[..., rows] = total[..., rows] * correction + P.sum(-1)
        average = output[..., rows, :] * correction[..., None]
        output[..., rows, :] = average + P @ V[..., columns, :]
        maximum[..., rows] = after
    # Divided once at the end, not for each tile; a query that saw nothing has 0/1 and log 0.
    output /= total.masked_fill(total == 0, 1.0)[..., None]
    return output.to(dtype), maximum + total.log()


def _backward(
    saved: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    d_output: Tensor,
    d_lse: Tensor | None,
    plan: _Plan,
) -> tuple[Tensor, Tensor, Tensor]:
    """dQ, dK and dV: Algorithm 2, its two loops exchanged."""
    dtypes = [x.dtype for x in saved[:3]]
    wide = saved[4].dtype
    Q, K, V, output, lse = (x.to(wide) for x in saved)
    dO = d_output.to(wide)
    dQ, dK, dV = torch.zeros_like(Q), torch.zeros_like(K), torch.zeros_like(V)
    # dS = P · (dP - D) by the softmax, and + P · d_lse, as the derivative of lse is P as well.
    D = (dO * output).sum(-1)
    if d_lse is not None:
        D = D - d_lse.to(wide)
    # A query that sees nothing: P = exp(-inf - inf) = 0.
    lse = lse.masked_fill(lse == float("-inf"), float("inf"))
    for rows, columns, is_whole in plan.tiles(Q.shape[-2], K.shape[-2]):
        Qi, dOi = Q[..., rows, :], dO[..., rows, :]
        Kj, Vj = K[..., columns, :], V[..., columns, :]
        S = plan.scores(Qi, Kj)
        hidden = S if is_whole else plan.hide(S, rows, columns)
        P = torch.exp(hidden - lse[..., rows, None])
        dV[..., columns, :] += (P.mT @ dOi).sum_to_size(Vj.shape)
        dS = P * (dOi @ Vj.mT - D[..., rows, None])
        dS = plan.scores_gradient(dS, S)
        dQ[..., rows, :] += dS @ Kj
        dK[..., columns, :] += (dS.mT @ Qi).sum_to_size(Kj.shape)
    dQ, dK, dV = (x.to(dtype) for x, dtype in zip((dQ, dK, dV), dtypes, strict=True))
    return dQ, dK, dV


class _TiledAttention(torch.autograd.Function):
    """Output and lse as one node of the graph, so that no tile is kept for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, Q: Tensor, K: Tensor, V: Tensor, start: Tensor | None, plan: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        with torch.autocast(Q.device.type, enabled=False):
            output, lse = _forward(Q, K, V, _Plan(start=start, **plan))
        ctx.save_for_backward(Q, K, V, output, lse, start)
        ctx.plan = plan
        return output, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_output: Tensor, d_lse: Tensor) -> tuple[Tensor | None, ...]:
        *saved, start = ctx.saved_tensors
        with torch.autocast(d_output.device.type, enabled=False):
            gradients = _backward(tuple(saved), d_output, d_lse, _Plan(start=start, **ctx.plan))
        return (*gradients, None, None)


def tiled_attention(
    q: Float[Tensor, "batch n_heads queries d_head"],
    k: Float[Tensor, "batch n_kv_heads keys d_head"],
    v: Float[Tensor, "batch n_kv_heads keys d_head"],
    start: Int[Tensor, "_ queries"] | None,
    *,
    causal: bool,
    scale: float,
    softcap: float | None,
    tile_queries: int = TILE_QUERIES,
    tile_keys: int = TILE_KEYS,
) -> tuple[Float[Tensor, "batch n_heads queries d_head"], Float[Tensor, "batch n_heads queries"]]:
    """Output of attention, and the logarithms of the softmax's sums, both differentiable.

    Takes what `rslm.attention.attention` describes, once the window is in `start`. Everything is
    computed in float32, or in float64 where the inputs are.
    """
    n_kv_heads = k.shape[1]
    plan = {
        "scale": scale,
        "softcap": softcap,
        "shift": k.shape[-2] - q.shape[-2] if causal else None,
        "tile_queries": tile_queries,
        "tile_keys": tile_keys,
    }
    shared = q.unflatten(1, (n_kv_heads, -1))
    start = None if start is None else start[:, None, None]
    output, lse = _TiledAttention.apply(shared, k.unsqueeze(2), v.unsqueeze(2), start, plan)
    return output.flatten(1, 2), lse.flatten(1, 2)


class FlashAttentionTorch(torch.autograd.Function):
    """`apply(q, k, v, is_causal=False)` on (batch, sequence, width), heads folded into the batch.

    The face of Stanford's course CS336. Its causal mask is aligned at the top left: query i sees
    keys 0..i, however many there are. Saved are q, k, v, the output, and the logsumexp of each
    query's scores, (batch, queries).
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, is_causal: bool = False) -> Tensor:
        """The output."""
        ctx.plan = _Plan(scale=q.shape[-1] ** -0.5, shift=0 if is_causal else None)
        with torch.autocast(q.device.type, enabled=False):
            output, lse = _forward(q, k, v, ctx.plan)
        ctx.save_for_backward(q, k, v, output, lse)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of q, k and v."""
        with torch.autocast(gradient.device.type, enabled=False):
            return (*_backward(ctx.saved_tensors, gradient, None, ctx.plan), None)
