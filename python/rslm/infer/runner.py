"""One step of a model over many sequences at once: the model's side of inference."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from rslm.architecture import TransformerConfig
from rslm.infer.paged_cache import PagedCache, StepBatch, bytes_per_block
from rslm.model import Transformer

__all__ = ["Quantization", "Runner", "StepBatch"]

Quantization = Literal["int8"]


class Runner:
    """Runs the model's own forward pass over ragged steps, with keys and values in a pool.

    Args:
        model: whose weights are read, never written.
        n_blocks: blocks of the pool, see `PagedCache`.
        block_size: positions in a block.
    """

    def __init__(
        self,
        model: Transformer,
        *,
        n_blocks: int,
        block_size: int,
        exact: bool = False,
        quantize: Quantization | None = None,
        compile: bool = False,
    ) -> None:
        weight = model.token_embeddings.weight
        self.network, self.device = model, weight.device
        self.cache = PagedCache(
            model.config,
            n_blocks=n_blocks,
            block_size=block_size,
            device=weight.device,
            dtype=weight.dtype,
        )

    @torch.inference_mode()
    def forward(self, batch: StepBatch) -> Float[Tensor, "rows vocab_size"]:
        """Float32 logits after the tokens that `batch.rows` names; all tokens enter the pool."""
        self.cache.begin(batch)
        token_ids = torch.tensor(batch.token_ids, device=self.device)
        positions = torch.tensor(batch.positions, device=self.device)
        hidden = self.network.hidden_states(token_ids, positions, cache=self.cache)
        if len(batch.rows) != len(batch.token_ids):
            rows = torch.tensor(batch.rows, dtype=torch.int64, device=self.device)
            hidden = hidden[rows]
        return self.network.logits(hidden).float()

    @staticmethod
    def bytes_per_block(
        config: TransformerConfig, block_size: int, dtype: torch.dtype = torch.float32
    ) -> int:
        """Memory of one block of the pool, all layers together."""
        return bytes_per_block(config, block_size, dtype)
