"""One step of a model over many sequences at once: the model's side of inference."""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rslm import exact as exact_operations
from rslm.architecture import TransformerConfig
from rslm.infer.cpu_network import cpu_network, refresh
from rslm.infer.paged_cache import PagedCache, StepBatch, bytes_per_block
from rslm.kv_cache import Attend
from rslm.model import Transformer

__all__ = ["Quantization", "Runner", "StepBatch", "score"]

Quantization = Literal["int8"]


class Runner:
    """Runs the model's own forward pass over ragged steps, with keys and values in a pool.

    Float32 weights on a CPU are read by the compiled extension, which is the fastest there and
    exact; others, and other devices, by PyTorch. There `rslm.attention` chooses how keys and values
    are read: by the kernel of `kernels.paged_attention` where they lie, or gathered for each step.

    Args:
        model: whose weights are read, never written.
        n_blocks: blocks of the pool, see `PagedCache`.
        block_size: positions in a block.
        exact: refuse what is not exact: a token's logits are the same bits whatever the batch,
            the chunks it is read in and the threads, and those of `score` with `exact`.
        quantize: "int8" multiplies by matrices of one byte a number, with a scale for each
            output; embeddings and norms stay. Its logits do not depend on the batch either.
        compile: compile the forward pass with `torch.compile`, on CUDA, where the kernel reads the
            blocks. Its shapes follow the step: one graph serves all numbers of tokens, one more a
            single token, and one the first step. No CUDA graphs.
        network: what `cpu_network` made of the model before, in place of a new one.

    Raises:
        ValueError: the options do not go together, or not with where the weights are.
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
        network: Transformer | None = None,
    ) -> None:
        weight = model.token_embeddings.weight
        has_kernels = weight.device.type == "cpu" and weight.dtype == torch.float32
        if exact or quantize is not None:
            exact_operations.check_exact(weight)
        if exact and quantize is not None:
            raise ValueError(f"exact must be off with quantize, got {quantize!r}")
        if compile and weight.device.type != "cuda":
            raise ValueError(f"compile needs weights on CUDA, got {weight.device}")
        self.device, self._has_kernels = weight.device, has_kernels
        self.network = model
        if has_kernels:
            self.network = network or cpu_network(model, quantize=quantize is not None)
        self._hidden_states = self.network.hidden_states
        self.cache = PagedCache(
            model.config,
            n_blocks=n_blocks,
            block_size=block_size,
            device=weight.device,
            dtype=weight.dtype,
            reading="exact" if has_kernels else None,
        )
        self._is_compiled = compile
        if compile:
            if self.cache.reading != "triton":
                raise ValueError(
                    "compile needs Triton, weights in float32, float16 or bfloat16 and heads of at "
                    f"most 256 columns, got {weight.dtype} and {model.config.resolved_d_head}"
                )
            self._hidden_states = torch.compile(self._hidden_states)

    @torch.inference_mode()
    def forward(self, batch: StepBatch) -> Float[Tensor, "rows vocab_size"]:
        """Float32 logits after the tokens that `batch.rows` names; all tokens enter the pool.

        Raises:
            ValueError: a position has no room in its block table, or lies beyond the context.
        """
        self.cache.begin(batch)
        token_ids = torch.tensor(batch.token_ids, device=self.device)
        positions = torch.tensor(batch.positions, device=self.device)
        if self._is_compiled:
            _mark_ragged(token_ids, positions)
        hidden = self._hidden_states(token_ids, positions, cache=self.cache)
        if len(batch.rows) != len(batch.token_ids):
            hidden = hidden[torch.tensor(batch.rows, dtype=torch.long, device=self.device)]
        return self.network.logits(hidden).float()

    def update_weights(self) -> None:
        """Takes over weights of the model that have changed; the pool's contents are void."""
        if self._has_kernels:
            refresh(self.network)

    @staticmethod
    def bytes_per_block(
        config: TransformerConfig, block_size: int, dtype: torch.dtype = torch.float32
    ) -> int:
        """Memory of one block of the pool, all layers together."""
        return bytes_per_block(config, block_size, dtype)


def _mark_ragged(*ragged: Tensor) -> None:
    """Tells `torch.compile` that the numbers of tokens change from step to step.

    With `dynamic=True` it would take all sizes for such, those of weights too, and tie those that
    happen to be equal, which makes slower graphs, and more of them.
    """
    for x in ragged:
        torch._dynamo.maybe_mark_dynamic(x, 0)


def score(
    model: Transformer, token_ids: Int[Tensor, "... sequence"], *, exact: bool
) -> Float[Tensor, "... sequence vocab_size"]:
    """Log-probs of every next token after each of `token_ids`, by a pass over whole sequences.

    With `exact` they are, bit for bit, what decoding with a `Runner` of the same weights gives;
    without, what `Transformer.forward` does. Gradients flow if they are enabled, in the exact
    mode those of the ordinary operations.

    Raises:
        ValueError: a sequence is longer than the context, or `exact` and the weights are not
            float32 on a CPU.
    """
    if not exact:
        ordinary: Tensor = model(token_ids)
        return ordinary.log_softmax(-1)
    network = cpu_network(model)
    batch = token_ids.reshape(-1, token_ids.shape[-1])
    hidden = network.hidden_states(batch, cache=_WholeSequences(model.config))
    log_probs: Tensor = network.logits(hidden).log_softmax(-1)
    return log_probs.view(*token_ids.shape, -1)


class _WholeSequences:
    """A cache that keeps nothing: all that the queries see is there at once."""

    def __init__(self, config: TransformerConfig) -> None:
        self.layers = [self] * config.n_layers

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
        """What each query sees of its own sequence."""
        return exact_operations.attend_sequences(q, k, v, window=window, scale=scale)

    def length_after(self, n_tokens: int) -> int:
        """That of the sequences."""
        return n_tokens

    def next_positions(self, n_tokens: int, device: torch.device) -> Tensor:
        """From 0 on."""
        return torch.arange(n_tokens, device=device)
