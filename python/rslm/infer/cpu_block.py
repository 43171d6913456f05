"""One block of a model as one call of the compiled extension.

A step of a small model takes less time than the two dozen calls a block that its parts take one
by one. The bits are those of the parts: the block itself computes whatever is not a step over a
`PagedCache`, which is what the tests compare with.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from rslm import _rslm, exact
from rslm.infer.paged_cache import ExactPagedLayer
from rslm.kv_cache import AttentionCache
from rslm.model import TransformerBlock

Matrices = tuple[tuple[Any, Any], ...]
"""Each as the extension reads it, and its scales where it is of integers."""


class CpuBlock(Module):
    """`TransformerBlock` of exact parts.

    Args:
        block: for which `is_fusible` is true.
        tables: of cosines and sines; None where nothing is turned.
    """

    def __init__(self, block: TransformerBlock, tables: tuple[Tensor, Tensor] | None) -> None:
        super().__init__()
        self.block, self._tables = block, tables
        self._read: _rslm.Block | None = None

    def refresh(self) -> None:
        """Reads the weights anew when they are needed."""
        self._read = None

    def forward(
        self,
        x: Tensor,
        token_positions: Tensor | None = None,
        *,
        value_embedding: Tensor | None = None,
        cache: AttentionCache | None = None,
        start: Tensor | None = None,
    ) -> Tensor:
        """The residual stream after this block."""
        is_step = isinstance(cache, ExactPagedLayer) and not torch.is_grad_enabled()
        if is_step and value_embedding is None:
            assert isinstance(cache, ExactPagedLayer)
            if self._read is None:
                self._read = self._made()
            return cache.run_block(self._read, x)
        out: Tensor = self.block(
            x, token_positions, value_embedding=value_embedding, cache=cache, start=start
        )
        return out

    def _made(self) -> _rslm.Block:
        block: Any = self.block
        attn, ffn = block.attn, block.ffn
        linears = (attn.q_proj, attn.k_proj, attn.v_proj, attn.output_proj, ffn.w1, ffn.w3, ffn.w2)
        matrices: Matrices = tuple(linear.matrix for linear in linears)
        d_head = attn.q_proj.weight.shape[0] // attn.n_heads
        return _rslm.Block(
            (exact.array(block.ln1.weight), exact.array(block.ln2.weight)),
            matrices,
            None if self._tables is None else tuple(map(exact.array, self._tables)),
            block.ln1.epsilon,
            (attn.n_heads, attn.n_kv_heads, d_head),
            attn.window,
            d_head**-0.5 if attn.scale is None else attn.scale,
        )
