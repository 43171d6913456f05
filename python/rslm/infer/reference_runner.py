"""The plain way to run a step, which the paged one must equal."""

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from rslm.infer.paged_cache import StepBatch
from rslm.model import Transformer


class ReferenceRunner:
    """Runs whole sequences anew for each row of logits, and keeps ids in place of keys.

    An id lies where its keys and values would: what two sequences that share a block must not
    do to each other shows in the ids that are read back. Every row is the last of a forward pass
    over exactly what comes before it, so it depends on nothing else, bit for bit.
    """

    def __init__(self, model: Transformer, *, n_blocks: int, block_size: int) -> None:
        self.device = model.token_embeddings.weight.device
        self._model, self._block_size = model, block_size
        # Where nothing was written stands an id that no model has.
        self._slots = [-1] * (n_blocks * block_size)

    @torch.inference_mode()
    def forward(self, batch: StepBatch) -> Float[Tensor, "rows vocab_size"]:
        """Float32 logits after the tokens that `batch.rows` names."""
        ends = [0]
        for length in batch.lengths:
            ends.append(ends[-1] + length)
        owners: list[list[int]] = []
        for (first, end), table in zip(pairwise(ends), batch.block_tables, strict=True):
            for token_id, position in zip(
                batch.token_ids[first:end], batch.positions[first:end], strict=True
            ):
                self._slots[self._slot(table, position)] = token_id
            owners += [table] * (end - first)
        rows = [self._last_logits(owners[row], batch.positions[row] + 1) for row in batch.rows]
        vocab_size = self._model.config.resolved_vocab_size
        return torch.stack(rows) if rows else torch.empty(0, vocab_size)

    def update_weights(self) -> None:
        """Nothing is kept of the weights."""

    def _last_logits(self, table: list[int], length: int) -> Tensor:
        token_ids = [self._slots[self._slot(table, position)] for position in range(length)]
        assert min(token_ids) >= 0, "a block must be written before it is read"
        batch = torch.tensor([token_ids], device=self.device)
        logits: Tensor = self._model(batch, last_only=True)
        return logits[0, -1].float()

    def _slot(self, table: list[int], position: int) -> int:
        return table[position // self._block_size] * self._block_size + position % self._block_size
