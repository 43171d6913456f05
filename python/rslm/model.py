"""The Transformer language model, from parameters and tensor operations.

Each part can be used alone. Matrices have no biases. Names of parameters
(`token_embeddings.weight`, `layers.{i}.attn.{q,k,v,output}_proj.weight`,
`layers.{i}.ln1.weight`, `layers.{i}.ln2.weight`, `layers.{i}.ffn.{w1,w2,w3}.weight`,
`ln_final.weight`, `lm_head.weight`) are a public format: checkpoints, exports and
optimizer groups key on them.

Every module takes `generator` (drawn from in the order of construction, so that one seed
fixes all weights whatever the device), `device` and `dtype`.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import Module, ModuleList, Parameter

from rslm.architecture import TransformerConfig
from rslm.attention import Implementation, attention


def silu(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """x · sigmoid(x), elementwise.

    Source: Elfwing et al. 2017 (arXiv:1702.03118), where it is SiL; also called Swish.
    """
    return x * torch.sigmoid(x)


class Linear(Module):
    """y = x Wᵀ with W of shape (d_out, d_in), from N(0, 2/(d_in + d_out)) cut at 3σ.

    Source of the variance: Glorot & Bengio 2010, equation 12.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        std = (2 / (d_in + d_out)) ** 0.5
        self.weight = _normal_parameter((d_out, d_in), std, generator, device, dtype)

    def forward(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_out"]:
        """The product, over all leading dimensions at once."""
        return x @ self.weight.T


class Embedding(Module):
    """A row of W, of shape (vocab_size, d_model) from N(0, 1) cut at 3σ, for each id."""

    def __init__(
        self,
        vocab_size: int,
        d_model: int,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.weight = _normal_parameter((vocab_size, d_model), 1.0, generator, device, dtype)

    def forward(self, token_ids: Int[Tensor, "..."]) -> Float[Tensor, "... d_model"]:
        """The rows that `token_ids` name."""
        # index_select's backward pass (index_add) is five times as fast on a CPU as that
        # of weight[token_ids] (index_put with accumulation).
        rows = self.weight.index_select(0, token_ids.flatten())
        return rows.view(*token_ids.shape, -1)


class RMSNorm(Module):
    """x over its root mean square, times a gain of shape (d_model,) that starts at 1.

    Computed in float32 (float64 stays) and returned in the dtype of `x`.

    Source: Zhang & Sennrich 2019, equation 4 (arXiv:1910.07467); ε under the root as in
    LLaMA.
    """

    def __init__(
        self,
        d_model: int,
        *,
        epsilon: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.weight = Parameter(torch.ones(d_model, device=device, dtype=dtype))

    def forward(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """Each vector along the last dimension, normalised by itself."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        inverse_rms = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.epsilon)
        return (wide * inverse_rms * self.weight).to(x.dtype)


class RotaryEmbedding(Module):
    """Turns each pair (x[2k], x[2k+1]) by the angle position · theta^(-2k/d_head).

    (a, b) becomes (a cos - b sin, a sin + b cos), so the product of a rotated query and a
    rotated key depends on their distance alone. The tables of cosines and sines, of shape
    (context_length, d_head / 2), are float32 whatever the model's dtype, and are not
    saved. Hugging Face's Llama pairs dimension j with j + d_head/2 instead.

    Source: Su et al. 2021, RoFormer, equation 34 (arXiv:2104.09864).
    """

    cos: Tensor
    sin: Tensor

    def __init__(
        self,
        d_head: int,
        context_length: int,
        *,
        theta: float = 10_000.0,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if d_head % 2:
            raise ValueError(f"d_head must be even (its dimensions turn in pairs), got {d_head}")
        self.d_head, self.context_length, self.theta = d_head, context_length, theta
        self._make_tables(
            torch.device(device) if device is not None else torch.get_default_device()
        )

    def forward(
        self,
        x: Float[Tensor, "... sequence d_head"],
        token_positions: Int[Tensor, "... sequence"] | None = None,
    ) -> Float[Tensor, "... sequence d_head"]:
        """`x` turned, in its own dtype; positions are 0, 1, ... where none are given.

        Args:
            x: queries or keys.
            token_positions: position of each vector, below `context_length`; leading
                dimensions broadcast against those of `x`.
        """
        if token_positions is None:
            cos, sin = self.cos[: x.shape[-2]], self.sin[: x.shape[-2]]
        else:
            cos, sin = self.cos[token_positions], self.sin[token_positions]
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        # The eager CPU multiplies complex numbers four times as fast as it builds the pairs;
        # the compiler fuses the pairs and has no complex numbers. Equal to the last bit.
        by_pairs = torch.compiler.is_compiling() or not _is_complex_viewable(wide)
        turned = (_turn_pairs if by_pairs else _turn_complex)(wide, cos, sin)
        return turned.to(x.dtype)

    def _make_tables(self, device: torch.device) -> None:
        """Angles in float64, as float32 loses digits at long positions; not all devices can."""
        exponents = torch.arange(0, self.d_head, 2, dtype=torch.float64, device="cpu")
        positions = torch.arange(self.context_length, dtype=torch.float64, device="cpu")
        angles = torch.outer(positions, self.theta ** (-exponents / self.d_head))
        self.register_buffer("cos", angles.cos().float().to(device), persistent=False)
        self.register_buffer("sin", angles.sin().float().to(device), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "RotaryEmbedding":
        """Module.to and its kin: follow the device, but make the tables anew.

        Moving them would round them to the model's dtype, and `to_empty` would leave
        them without values.
        """
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._make_tables(self.cos.device)
        return self


class SwiGLU(Module):
    """W2(SiLU(W1 x) ⊙ W3 x).

    Source: Shazeer 2020, GLU Variants Improve Transformer, equation 6 (arXiv:2002.05202).
    """

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        options: Any = {"generator": generator, "device": device, "dtype": dtype}
        self.w1 = Linear(d_model, d_ff, **options)
        self.w2 = Linear(d_ff, d_model, **options)
        self.w3 = Linear(d_model, d_ff, **options)

    def forward(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """The gated product, projected back."""
        gated: Tensor = silu(self.w1(x)) * self.w3(x)
        output: Tensor = self.w2(gated)
        return output


class CausalSelfAttention(Module):
    """Multi-head attention in which a position sees itself and what came before.

    Heads are contiguous slices of the projections' outputs.

    Args:
        d_model: width of input and output.
        n_heads: number of heads; divides d_model.
        rotary_embedding: turns queries and keys; None leaves them without positions.
        implementation: how the attention is computed, see `rslm.attention.attention`.

    Source: Vaswani et al. 2017, section 3.2.2 (arXiv:1706.03762).
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        *,
        rotary_embedding: RotaryEmbedding | None = None,
        implementation: Implementation = "auto",
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"n_heads must divide d_model, got {n_heads} and {d_model}")
        self.n_heads = n_heads
        self.implementation: Implementation = implementation
        self.rotary_embedding = rotary_embedding
        options: Any = {"generator": generator, "device": device, "dtype": dtype}
        self.q_proj = Linear(d_model, d_model, **options)
        self.k_proj = Linear(d_model, d_model, **options)
        self.v_proj = Linear(d_model, d_model, **options)
        self.output_proj = Linear(d_model, d_model, **options)

    def forward(
        self,
        x: Float[Tensor, "... sequence d_model"],
        token_positions: Int[Tensor, "... sequence"] | None = None,
    ) -> Float[Tensor, "... sequence d_model"]:
        """The heads' outputs side by side, projected."""
        q, k, v = (
            projection(x).unflatten(-1, (self.n_heads, -1)).transpose(-3, -2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.rotary_embedding is not None:
            if token_positions is not None:
                token_positions = token_positions.unsqueeze(-2)  # the same for every head
            q = self.rotary_embedding(q, token_positions)
            k = self.rotary_embedding(k, token_positions)
        heads = attention(q, k, v, causal=True, implementation=self.implementation)
        output: Tensor = self.output_proj(heads.transpose(-3, -2).flatten(-2))
        return output


class TransformerBlock(Module):
    """x + attn(ln1 x), then that + ffn(ln2 of it).

    Source of norms before the layers: Xiong et al. 2020, Figure 1b (arXiv:2002.04745).
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        d_ff: int,
        *,
        rotary_embedding: RotaryEmbedding | None = None,
        implementation: Implementation = "auto",
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        placed: Any = {"device": device, "dtype": dtype}
        self.ln1 = RMSNorm(d_model, **placed)
        self.attn = CausalSelfAttention(
            d_model,
            n_heads,
            rotary_embedding=rotary_embedding,
            implementation=implementation,
            generator=generator,
            **placed,
        )
        self.ln2 = RMSNorm(d_model, **placed)
        self.ffn = SwiGLU(d_model, d_ff, generator=generator, **placed)

    def forward(
        self,
        x: Float[Tensor, "... sequence d_model"],
        token_positions: Int[Tensor, "... sequence"] | None = None,
    ) -> Float[Tensor, "... sequence d_model"]:
        """The residual stream after this block."""
        x = x + self.attn(self.ln1(x), token_positions)
        x = x + self.ffn(self.ln2(x))
        return x


class Transformer(Module):
    """Token ids to logits: embedding, blocks, a last norm, an untied head.

    With `torch.autocast` in bfloat16 the residual stream, norms and softmax statistics
    stay float32 and matrix products (the logits' too) are bfloat16.

    Raises:
        ValueError: `config.vocab_size` is None.

    Source: Radford et al. 2019 (GPT-2) for the shape, Touvron et al. 2023, LLaMA, section
    2.2 (arXiv:2302.13971) for norms, SwiGLU and rotary embedding.
    """

    def __init__(
        self,
        config: TransformerConfig,
        *,
        implementation: Implementation = "auto",
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        vocab_size, d_model = config.resolved_vocab_size, config.d_model
        options: Any = {"generator": generator, "device": device, "dtype": dtype}
        rotary_embedding = RotaryEmbedding(
            config.d_head, config.context_length, theta=config.rope_theta, device=device
        )
        self.token_embeddings = Embedding(vocab_size, d_model, **options)
        self.layers = ModuleList(
            TransformerBlock(
                d_model,
                config.n_heads,
                config.resolved_d_ff,
                rotary_embedding=rotary_embedding,
                implementation=implementation,
                **options,
            )
            for _ in range(config.n_layers)
        )
        self.ln_final = RMSNorm(d_model, device=device, dtype=dtype)
        self.lm_head = Linear(d_model, vocab_size, **options)

    def forward(
        self,
        token_ids: Int[Tensor, "... sequence"],
        token_positions: Int[Tensor, "... sequence"] | None = None,
    ) -> Float[Tensor, "... sequence vocab_size"]:
        """Logits of the token after each position; raises as `hidden_states` does."""
        logits: Tensor = self.lm_head(self.hidden_states(token_ids, token_positions))
        return logits

    def hidden_states(
        self,
        token_ids: Int[Tensor, "... sequence"],
        token_positions: Int[Tensor, "... sequence"] | None = None,
    ) -> Float[Tensor, "... sequence d_model"]:
        """What the head reads: the residual stream after the last norm.

        Raises:
            ValueError: the sequence is longer than `config.context_length`.
        """
        if token_ids.shape[-1] > self.config.context_length:
            raise ValueError(
                f"a sequence must hold at most {self.config.context_length} tokens "
                f"(context_length), got {token_ids.shape[-1]}"
            )
        x = self.token_embeddings(token_ids)
        for layer in self.layers:
            x = layer(x, token_positions)
        hidden: Tensor = self.ln_final(x)
        return hidden


def _is_complex_viewable(x: Tensor) -> bool:
    """Whether each pair of `x` lies in memory as a complex number does."""
    *strides, last = x.stride()
    return last == 1 and not any(n % 2 for n in (*strides, x.storage_offset()))


def _turn_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(a, b) to (a cos - b sin, a sin + b cos) for each pair along the last dimension."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


def _turn_complex(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The same with the pair as the complex number a + ib, times cos + i sin."""
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * torch.complex(cos, sin)).flatten(-2)


def _normal_parameter(
    shape: tuple[int, int],
    std: float,
    generator: torch.Generator | None,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> Parameter:
    """A matrix from N(0, std²) cut at 3 std.

    Drawn in float32 where the generator lives (else on the CPU) and then moved, so that a
    seed gives the same weights on every device.
    """
    if device is not None and torch.device(device).type == "meta":
        return Parameter(torch.empty(shape, device=device, dtype=dtype))
    source = generator.device if generator is not None else "cpu"
    weight = torch.empty(shape, device=source, dtype=torch.float32)
    torch.nn.init.trunc_normal_(weight, std=std, a=-3 * std, b=3 * std, generator=generator)
    return Parameter(weight.to(device=device, dtype=dtype or torch.get_default_dtype()))
