"""The sizes of a Transformer, and what follows from them: parameters and FLOPs.

Nothing here imports torch, so plans and scaling studies can be made without it.

Counts are those of matrix products: a product of (a, b) with (b, c) costs 2abc. Norms,
softmax, rotary embedding and the embedding's look-up are left out, as in the accounting
of Hoffmann et al. 2022, Appendix F (arXiv:2203.15556); attention counts the whole square
of scores although half of it is masked.
"""

from dataclasses import dataclass

_D_FF_MULTIPLE = 64
"""Feed-forward widths are multiples of this, so that tiles of matrix units are full."""


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """The sizes of a decoder-only Transformer.

    CS336 calls `n_layers` and `n_heads` `num_layers` and `num_heads`.

    Attributes:
        vocab_size: number of token ids; None stands for that of the token file trained on.
        context_length: longest sequence the model accepts, in tokens.
        d_model: width of the residual stream.
        n_layers: number of blocks.
        n_heads: attention heads per block; divides d_model into heads of even width.
        d_ff: feed-forward width; None stands for 8/3 d_model to the nearest multiple of 64.
        rope_theta: base of the rotary embedding's wavelengths.

    Raises:
        ValueError: a size is not positive, or `n_heads` does not divide `d_model` evenly.
    """

    vocab_size: int | None = None
    context_length: int = 256
    d_model: int = 512
    n_layers: int = 4
    n_heads: int = 16
    d_ff: int | None = None
    rope_theta: float = 10_000.0

    def __post_init__(self) -> None:
        """Refuse sizes that no model can have."""
        for name in ("vocab_size", "context_length", "d_model", "n_layers", "n_heads", "d_ff"):
            size = getattr(self, name)
            if size is not None and size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        if self.rope_theta <= 0:
            raise ValueError(f"rope_theta must be positive, got {self.rope_theta}")
        if self.d_model % (2 * self.n_heads):
            raise ValueError(
                "d_model must be a multiple of 2 * n_heads (rotary embedding turns pairs within a "
                f"head), got d_model {self.d_model} and n_heads {self.n_heads}"
            )

    @property
    def d_head(self) -> int:
        """Width of one attention head."""
        return self.d_model // self.n_heads

    @property
    def resolved_d_ff(self) -> int:
        """Feed-forward width, with None resolved."""
        return default_d_ff(self.d_model) if self.d_ff is None else self.d_ff

    @property
    def resolved_vocab_size(self) -> int:
        """Vocabulary size, known by now.

        Raises:
            ValueError: it is still None.
        """
        if self.vocab_size is None:
            raise ValueError("vocab_size must be set before the model can be built or counted")
        return self.vocab_size


def default_d_ff(d_model: int) -> int:
    """8/3 of `d_model` to the nearest multiple of 64, at least 64; halves go up.

    With three matrices instead of two, 8/3 keeps the parameters of an ungated
    feed-forward layer of width 4 d_model.

    Source: Shazeer 2020, GLU Variants Improve Transformer, section 3 (arXiv:2002.05202).
    """
    # 8/3 d_model / 64 = d_model / 24, rounded in integers.
    return max(1, (d_model + 12) // 24) * _D_FF_MULTIPLE


def n_parameters(config: TransformerConfig) -> int:
    """Parameters, all of them: 2Vd + L(4d² + 3d·ff + 2d) + d."""
    return n_body_parameters(config) + 2 * config.resolved_vocab_size * config.d_model


def n_non_embedding_parameters(config: TransformerConfig) -> int:
    """Parameters without the input embedding (the output head counts)."""
    return n_parameters(config) - config.resolved_vocab_size * config.d_model


def n_body_parameters(config: TransformerConfig) -> int:
    """Parameters without input embedding and output head: L(4d² + 3d·ff + 2d) + d."""
    d_model, d_ff = config.d_model, config.resolved_d_ff
    return config.n_layers * (4 * d_model**2 + 3 * d_model * d_ff + 2 * d_model) + d_model


def forward_flops_by_part(config: TransformerConfig, sequence_length: int) -> dict[str, int]:
    """FLOPs of one sequence's forward pass, by the part of the model that spends them.

    With T = `sequence_length`: "projections" (q, k, v, output) 8Td²L, "attention" (scores
    and weighted values) 4T²dL, "feed_forward" 6Td·ff·L, "head" 2TdV.
    """
    length, d_model, n_layers = sequence_length, config.d_model, config.n_layers
    return {
        "projections": 8 * length * d_model**2 * n_layers,
        "attention": 4 * length**2 * d_model * n_layers,
        "feed_forward": 6 * length * d_model * config.resolved_d_ff * n_layers,
        "head": 2 * length * d_model * config.resolved_vocab_size,
    }


def forward_flops(config: TransformerConfig, sequence_length: int) -> int:
    """FLOPs of one sequence's forward pass."""
    return sum(forward_flops_by_part(config, sequence_length).values())


def train_flops_per_token(config: TransformerConfig, sequence_length: int | None = None) -> float:
    """FLOPs per trained token, at the full context unless `sequence_length` is given.

    The backward pass multiplies twice where the forward pass multiplies once (gradients
    of inputs and of weights), hence 3 times the forward pass.
    """
    length = config.context_length if sequence_length is None else sequence_length
    return 3 * forward_flops(config, length) / length
