"""The Transformer language model, from parts and tensor operations.

Names of parameters (`token_embeddings.weight`, `layers.{i}.attn.{q,k,v,output}_proj.weight`,
`layers.{i}.ln1.weight`, `layers.{i}.ln2.weight`, `layers.{i}.ffn.{w1,w2,w3}.weight`,
`ln_final.weight`, `lm_head.weight`) are a public format: checkpoints, exports and optimizer
groups key on them. `rslm.architecture.parameter_shapes` lists those that switches add:
`*.bias` beside a weight, `layers.{i}.attn.{q,k}_norm.weight`, `layers.{i}.ln{1,2}_after.weight`,
`ln_embedding.weight`, `value_embeddings.{i}.weight`, `residual_scalars`, `x0_scalars`.

Every module takes `generator` (drawn from in the order of construction, so that one seed
fixes all weights whatever the device), `device` and `dtype`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import Identity, Module, ModuleDict, ModuleList, Parameter
from torch.utils.checkpoint import checkpoint

from rslm import parametrisation
from rslm.architecture import QKNorm, TransformerConfig, has_final_norm
from rslm.attention import Implementation, attention, document_starts
from rslm.head_chunks import chunk_tokens
from rslm.kv_cache import AttentionCache, ModelCache
from rslm.layers import (
    Embedding,
    FeedForward,
    Linear,
    Losses,
    RMSNorm,
    RotaryEmbedding,
    SwiGLU,
    silu,
    softcap,
)
from rslm.losses import linear_cross_entropy, token_losses, training_loss

__all__ = [
    "CausalSelfAttention",
    "Embedding",
    "FeedForward",
    "Linear",
    "RMSNorm",
    "RotaryEmbedding",
    "SwiGLU",
    "Transformer",
    "TransformerBlock",
    "silu",
]


class CausalSelfAttention(Module):
    """Multi-head attention in which a position sees itself and what came before.

    Heads are contiguous slices of the projections' outputs; n_heads / n_kv_heads heads of
    queries in a row share one of keys and values.

    Args:
        d_model: width of input and output.
        n_heads: number of heads; divides d_model, unless `d_head` is given.
        n_kv_heads: heads of keys and values; None stands for n_heads.
        d_head: width of one head; None stands for d_model / n_heads.
        window: tokens that a query sees, itself among them; None lets it see all before it.
        scale: factor of the scores; None stands for 1/sqrt(d_head).
        qk_norm: norm of queries and keys, head by head, before they are turned.
        norm_epsilon: that of this norm, see `RMSNorm`.
        bias: biases in all four projections.
        output_std: spread of the output projection's initial weights, see `Linear`.
        rotary_embedding: turns queries and keys; None leaves them without positions.
        implementation: how the attention is computed, see `rslm.attention.attention`.

    Source: Vaswani et al. 2017, section 3.2.2 (arXiv:1706.03762); Ainslie et al. 2023 for
    shared heads (arXiv:2305.13245); Henry et al. 2020 for the norm (arXiv:2010.04245), here
    RMS and without their learned scale.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        *,
        n_kv_heads: int | None = None,
        d_head: int | None = None,
        window: int | None = None,
        scale: float | None = None,
        qk_norm: QKNorm = "none",
        norm_epsilon: float = 1e-5,
        bias: bool = False,
        output_std: float | None = None,
        rotary_embedding: RotaryEmbedding | None = None,
        implementation: Implementation = "auto",
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if d_head is None and d_model % n_heads:
            raise ValueError(f"n_heads must divide d_model, got {n_heads} and {d_model}")
        self.n_heads, self.n_kv_heads = n_heads, n_kv_heads or n_heads
        if n_heads % self.n_kv_heads:
            raise ValueError(f"n_kv_heads must divide n_heads, got {n_kv_heads} and {n_heads}")
        self.window, self.scale = window, scale
        self.implementation: Implementation = implementation
        self.rotary_embedding = rotary_embedding
        d_head = d_head or d_model // n_heads
        d_q, d_kv = n_heads * d_head, self.n_kv_heads * d_head
        placed: Any = {"device": device, "dtype": dtype}
        options: Any = {"bias": bias, "generator": generator, **placed}
        self.q_proj = Linear(d_model, d_q, **options)
        self.k_proj = Linear(d_model, d_kv, **options)
        self.v_proj = Linear(d_model, d_kv, **options)
        self.output_proj = Linear(d_q, d_model, std=output_std, **options)
        self.q_norm = self.k_norm = None
        if qk_norm != "none":
            norms: Any = {"gain": qk_norm == "rms-gain", "epsilon": norm_epsilon, **placed}
            self.q_norm, self.k_norm = RMSNorm(d_head, **norms), RMSNorm(d_head, **norms)

    def forward(
        self,
        x: Float[Tensor, "... sequence d_model"],
        token_positions: Int[Tensor, "... sequence"] | None = None,
        *,
        value_embedding: Float[Tensor, "... sequence d_kv"] | None = None,
        cache: AttentionCache | None = None,
        start: Int[Tensor, "... sequence"] | None = None,
    ) -> Float[Tensor, "... sequence d_model"]:
        """The heads' outputs side by side, projected.

        Args:
            x: the input.
            token_positions: position of each vector, for the rotary embedding.
            value_embedding: added to the values.
            cache: keys and values of what came before, to which these are added.
            start: the first position that each one sees, not decreasing; None: the very first.
        """
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        if value_embedding is not None:
            v = v + value_embedding.to(v.dtype)
        q = self._split(q, self.n_heads)
        k, v = self._split(k, self.n_kv_heads), self._split(v, self.n_kv_heads)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.rotary_embedding is not None:
            if token_positions is not None:
                token_positions = token_positions.unsqueeze(-2)  # the same for every head
            q = self.rotary_embedding(q, token_positions)
            k = self.rotary_embedding(k, token_positions)
        attend = partial(
            attention,
            causal=True,
            window=self.window,
            scale=self.scale,
            start=start,
            implementation=self.implementation,
        )
        if cache is None:
            heads = attend(q, k, v)
        else:
            heads = cache.attend(q, k, v, attend=attend, window=self.window, scale=self.scale)
        output: Tensor = self.output_proj(heads.transpose(-3, -2).flatten(-2))
        return output

    @staticmethod
    def _split(x: Tensor, n_heads: int) -> Tensor:
        """(..., sequence, width) as (..., heads, sequence, d_head)."""
        heads: Tensor = x.unflatten(-1, (n_heads, -1))
        return heads.transpose(-3, -2)


class TransformerBlock(Module):
    """x + attn(ln1 x), then that + ffn(ln2 of it), with the defaults of `config`.

    With norms "post" it is ln1(x + attn(x)), then ln2(that + ffn(that)); with "peri" it is
    x + ln1_after(attn(ln1 x)) and likewise. CompleteP multiplies what is added to x.

    Args:
        config: sizes and switches; those of the whole model are not read.
        layer: which block it is, counted from 0; chooses its window.
        rotary_embedding: turns queries and keys; None leaves them without positions.
        implementation: how the attention is computed.

    Source of norms before the layers: Xiong et al. 2020, Figure 1b (arXiv:2002.04745), after
    the sums: Figure 1a; before and after the layers: Kim et al. 2025 (arXiv:2502.02732).
    """

    def __init__(
        self,
        config: TransformerConfig,
        *,
        layer: int = 0,
        rotary_embedding: RotaryEmbedding | None = None,
        implementation: Implementation = "auto",
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        placed: Any = {"device": device, "dtype": dtype}
        options: Any = {
            "bias": config.biases,
            "output_std": 0.0 if config.zero_init_projections else None,
            "generator": generator,
            **placed,
        }
        d_model, d_ff = config.d_model, config.resolved_d_ff
        own_scale = config.attention_scale is not None or config.parametrisation != "standard"
        self.norm_position = config.norm_position
        self.residual_multiplier = parametrisation.residual_multiplier(config)

        def norm() -> Module:
            if config.norm == "none":
                return Identity()
            return RMSNorm(d_model, epsilon=config.norm_epsilon, **placed)

        is_peri = config.norm_position == "peri"
        self.ln1 = norm()
        self.attn = CausalSelfAttention(
            d_model,
            config.n_heads,
            n_kv_heads=config.n_kv_heads,
            d_head=config.d_head,
            window=config.windows[layer],
            scale=parametrisation.attention_scale(config) if own_scale else None,
            qk_norm=config.qk_norm,
            norm_epsilon=config.norm_epsilon,
            rotary_embedding=rotary_embedding,
            implementation=implementation,
            **options,
        )
        self.ln1_after = norm() if is_peri else None
        self.ln2 = norm()
        self.ffn: Module
        if config.ffn == "swiglu":
            self.ffn = SwiGLU(d_model, d_ff, **options)
        else:
            self.ffn = FeedForward(d_model, d_ff, activation=config.ffn, **options)
        self.ln2_after = norm() if is_peri else None

    def forward(
        self,
        x: Float[Tensor, "... sequence d_model"],
        token_positions: Int[Tensor, "... sequence"] | None = None,
        *,
        value_embedding: Float[Tensor, "... sequence d_kv"] | None = None,
        cache: AttentionCache | None = None,
        start: Int[Tensor, "... sequence"] | None = None,
    ) -> Float[Tensor, "... sequence d_model"]:
        """The residual stream after this block."""

        def attend(x: Tensor) -> Tensor:
            heads: Tensor = self.attn(
                x,
                token_positions,
                value_embedding=value_embedding,
                cache=cache,
                start=start,
            )
            return heads

        x = self._add(x, attend, self.ln1, self.ln1_after)
        return self._add(x, self.ffn, self.ln2, self.ln2_after)

    def _add(
        self, x: Tensor, branch: Callable[[Tensor], Tensor], norm: Module, after: Module | None
    ) -> Tensor:
        """`x` and what `branch` makes of it, with the norms where they belong."""
        is_post = self.norm_position == "post"
        added = branch(x if is_post else norm(x))
        if after is not None:
            added = after(added)
        if self.residual_multiplier != 1:
            added = self.residual_multiplier * added
        total: Tensor = norm(x + added) if is_post else x + added
        return total


class Transformer(Module):
    """Token ids to logits: embedding, blocks, a last norm, an untied head.

    That is the default; every switch of `TransformerConfig` changes what its name says. With
    `torch.autocast` in bfloat16 the residual stream, norms and softmax statistics stay float32
    and matrix products (the logits' too) are bfloat16; softcapped logits are float32.

    Args:
        config: sizes and switches.
        implementation: how the attention is computed.
        recompute_blocks: in training, keep for the backward pass only what enters every
            so many blocks, and compute the blocks again from there (Chen et al. 2016, section 4,
            arXiv:1604.06174). The same numbers for a third more work; None keeps everything.

    Raises:
        ValueError: `config.vocab_size` is None, or `recompute_blocks` is below 1.

    Source: Radford et al. 2019 (GPT-2) for the shape, Touvron et al. 2023, LLaMA, section
    2.2 (arXiv:2302.13971) for norms, SwiGLU and rotary embedding; Zhou et al. 2024
    (arXiv:2410.17897) and modded-nanogpt (github.com/KellerJordan/modded-nanogpt) for value
    embeddings and scalars.
    """

    residual_scalars: Parameter | None
    x0_scalars: Parameter | None

    def __init__(
        self,
        config: TransformerConfig,
        *,
        implementation: Implementation = "auto",
        recompute_blocks: int | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if recompute_blocks is not None and recompute_blocks < 1:
            raise ValueError(f"recompute_blocks must be at least 1, got {recompute_blocks}")
        self.config, self.recompute_blocks = config, recompute_blocks
        self.output_multiplier = parametrisation.output_multiplier(config)
        self.softcap: Callable[[Tensor], Tensor] | None = None
        if config.softcap is not None:
            self.softcap = partial(softcap, cap=config.softcap, form=config.softcap_form)
        vocab_size, d_model, n_layers = config.resolved_vocab_size, config.d_model, config.n_layers
        placed: Any = {"device": device, "dtype": dtype}
        options: Any = {"generator": generator, **placed}

        def scalars(value: float, *, wanted: bool) -> Parameter | None:
            return Parameter(torch.full((n_layers,), value, **placed)) if wanted else None

        self.register_parameter("residual_scalars", scalars(1.0, wanted=config.residual_scalars))
        self.register_parameter("x0_scalars", scalars(0.0, wanted=config.x0_scalars))
        rotary_embedding = _rotary_embedding(config, device)
        self.token_embeddings = Embedding(
            vocab_size, d_model, std=parametrisation.embedding_std(config), **options
        )
        norms: Any = {"epsilon": config.norm_epsilon, **placed}
        self.ln_embedding = RMSNorm(d_model, **norms) if config.embedding_norm else Identity()
        self.layers = ModuleList(
            TransformerBlock(
                config,
                layer=layer,
                rotary_embedding=rotary_embedding,
                implementation=implementation,
                **options,
            )
            for layer in range(n_layers)
        )
        self.ln_final = RMSNorm(d_model, **norms) if has_final_norm(config) else Identity()
        head_std = 0.0 if config.zero_init_head else parametrisation.head_std(config)
        self.lm_head = (
            None if config.tied_head else Linear(d_model, vocab_size, std=head_std, **options)
        )
        # Last, so that with and without them the other weights of a seed are the same.
        d_kv = config.resolved_n_kv_heads * config.resolved_d_head
        self.value_embeddings = ModuleDict(
            {
                str(layer): Embedding(vocab_size, d_kv, std=0.0, **options)
                for layer in config.value_embedding_layers
            }
        )

    def forward(
        self,
        token_ids: Int[Tensor, "... sequence"],
        token_positions: Int[Tensor, "... sequence"] | None = None,
        *,
        documents: Int[Tensor, "... sequence"] | None = None,
        cache: ModelCache | None = None,
        last_only: bool = False,
        targets: Int[Tensor, "... sequence"] | None = None,
        has_padding: bool = False,
    ) -> Float[Tensor, "... positions vocab_size"] | Losses:
        """Logits of the token after each position, or after the last one alone.

        With `targets` it is what training minimises and the cross-entropy, see `losses`. Takes
        and raises what `hidden_states` does. Where the model is sharded, this is the method to
        call: wrappers gather weights around it.
        """
        hidden = self.hidden_states(token_ids, token_positions, documents=documents, cache=cache)
        if targets is not None:
            return self.losses(hidden, targets, has_padding=has_padding)
        return self.logits(hidden[..., -1:, :] if last_only else hidden)

    def losses(
        self,
        hidden: Float[Tensor, "... d_model"],
        targets: Int[Tensor, "..."],
        *,
        has_padding: bool = False,
        weights: Float[Tensor, "..."] | None = None,
    ) -> Losses:
        """`training_loss` of the logits of `hidden_states`, with the config's z-loss.

        With `weights` it is the sum of weight times loss, twice, without a z-loss. Where the
        logits are large they are never whole in memory, see `linear_cross_entropy`.
        """
        config, n_tokens = self.config, targets.numel()
        options: Any = {"z_loss": config.z_loss, "has_padding": has_padding}
        if weights is not None:
            options = {"weights": weights}
        chunk = chunk_tokens(n_tokens, config.resolved_vocab_size, hidden.device.type)
        if chunk >= n_tokens:
            if weights is not None:
                loss = (token_losses(self.logits(hidden), targets) * weights).sum()
                return loss, loss
            return training_loss(self.logits(hidden), targets, **options)
        options |= {"softcap": config.softcap, "softcap_form": config.softcap_form}
        head_loss = partial(linear_cross_entropy, targets=targets, chunk=chunk, **options)
        # Through the module that has the weight: hooks may have to gather it.
        if self.lm_head is None:
            losses: Losses = self.token_embeddings(hidden, as_head=True, loss=head_loss)
        else:
            losses = self.lm_head(hidden, loss=head_loss)
        return losses

    def logits(self, hidden: Float[Tensor, "... d_model"]) -> Float[Tensor, "... vocab_size"]:
        """What the head makes of `hidden_states`."""
        if self.lm_head is None:
            raw: Tensor = self.token_embeddings(hidden, as_head=True)
        else:
            raw = self.lm_head(hidden)
        return raw if self.softcap is None else self.softcap(raw)

    def hidden_states(
        self,
        token_ids: Int[Tensor, "... sequence"],
        token_positions: Int[Tensor, "... sequence"] | None = None,
        *,
        documents: Int[Tensor, "... sequence"] | None = None,
        cache: ModelCache | None = None,
    ) -> Float[Tensor, "... sequence d_model"]:
        """What the head reads: the residual stream after the last norm.

        Args:
            token_ids: the tokens.
            token_positions: their positions; where none are given they count from 0, and with
                a cache from its length.
            documents: numbers; attention does not cross from a run of tokens with one to the
                next run. None makes the sequence one document.
            cache: what was read before; these tokens are added to it.

        Raises:
            ValueError: the sequence, with what the cache holds, is longer than
                `config.context_length`, or there are documents and a cache.
        """
        if cache is not None and documents is not None:
            raise ValueError("documents must not be given with a cache, which holds one document")
        length = token_ids.shape[-1]
        total = length if cache is None else cache.length_after(length)
        if total > self.config.context_length:
            raise ValueError(
                f"a sequence must hold at most {self.config.context_length} tokens "
                f"(context_length), got {total}"
            )
        if cache is not None and token_positions is None:
            token_positions = cache.next_positions(length, token_ids.device)
        start = None if documents is None else document_starts(documents)
        x = x0 = self.ln_embedding(self.token_embeddings(token_ids))
        n_layers, n_kept = self.config.n_layers, self.recompute_blocks
        if n_kept is None or cache is not None or not torch.is_grad_enabled():
            x = self._blocks(x, x0, token_ids, token_positions, start, cache, 0, n_layers)
        else:
            for first in range(0, n_layers, n_kept):
                last = min(first + n_kept, n_layers)
                # There is no dropout, so no generator has to be put back.
                x = checkpoint(
                    self._blocks,
                    *(x, x0, token_ids, token_positions, start, None, first, last),
                    use_reentrant=False,
                    preserve_rng_state=False,
                )
        hidden: Tensor = self.ln_final(x)
        return hidden if self.output_multiplier == 1 else self.output_multiplier * hidden

    def _blocks(
        self,
        x: Tensor,
        x0: Tensor,
        token_ids: Tensor,
        token_positions: Tensor | None,
        start: Tensor | None,
        cache: ModelCache | None,
        first: int,
        last: int,
    ) -> Tensor:
        """The residual stream after blocks `first` to `last` (exclusive)."""
        for i in range(first, last):
            if self.residual_scalars is not None:
                x = self.residual_scalars[i] * x
            if self.x0_scalars is not None:
                x = x + self.x0_scalars[i] * x0
            value_embedding = None
            if i in self.config.value_embedding_layers:
                value_embedding = self.value_embeddings[str(i)](token_ids)
            x = self.layers[i](
                x,
                token_positions,
                value_embedding=value_embedding,
                cache=None if cache is None else cache.layers[i],
                start=start,
            )
        return x


def _rotary_embedding(
    config: TransformerConfig, device: torch.device | str | None
) -> RotaryEmbedding | None:
    """The tables that all layers share; None where positions are not encoded."""
    if config.position_encoding == "none":
        return None
    return RotaryEmbedding(
        config.resolved_d_head,
        config.context_length,
        theta=config.rope_theta,
        half=config.position_encoding == "half-rope",
        device=device,
    )
