"""The sizes and switches of a Transformer, and what follows from them: shapes, parameters, FLOPs.

Nothing here imports torch, so plans and scaling studies can be made without it.

FLOPs are those of matrix products: a product of (a, b) with (b, c) costs 2abc. Norms,
softmax, rotary embedding, biases and the look-up in embeddings are left out, as in the
accounting of Hoffmann et al. 2022, Appendix F (arXiv:2203.15556); attention counts the whole
square of scores although half of it is masked, and with a window the whole band.
"""

import math
from dataclasses import dataclass
from typing import Literal

FeedForwardKind = Literal["swiglu", "silu", "gelu", "relu2"]
NormKind = Literal["rms", "none"]
NormPosition = Literal["pre", "post", "peri"]
PositionEncoding = Literal["rope", "half-rope", "none"]
QKNorm = Literal["none", "rms", "rms-gain"]
SoftcapForm = Literal["tanh", "sqrt"]
Parametrisation = Literal["standard", "mup", "completep"]
AttentionImplementation = Literal["auto", "reference", "tiled", "torch", "triton"]

MAX_SIZE = 2**63 - 1
"""The largest size that can be asked for: products of a few of them are still numbers."""

_D_FF_MULTIPLE = 64
"""Feed-forward widths are multiples of this, so that tiles of matrix units are full."""


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """The sizes of a decoder-only Transformer, and its switches; the defaults are Llama's.

    CS336 calls `n_layers` and `n_heads` `num_layers` and `num_heads`. Every switch may be
    turned alone, and what is off costs nothing: no parameter, no operation.

    Attributes:
        vocab_size: number of token ids; None stands for that of the token file trained on.
        context_length: longest sequence the model accepts, in tokens.
        d_model: width of the residual stream.
        n_layers: number of blocks.
        n_heads: attention heads per block; divides d_model into heads of even width.
        d_ff: feed-forward width; None stands for 8/3 d_model to the nearest multiple of 64,
            and for 4 d_model without a gate, which has as many parameters.
        rope_theta: base of the rotary embedding's wavelengths.
        n_kv_heads: heads of keys and values, each shared by n_heads / n_kv_heads heads of
            queries (Ainslie et al. 2023, arXiv:2305.13245); None stands for n_heads.
        d_head: width of one head; None stands for d_model / n_heads.
        attention_scale: factor of the scores; None stands for 1/sqrt(d_head), and for
            1/d_head in the parametrisations that transfer.
        qk_norm: RMS norm of each head's queries and keys, without or with a gain, before the
            rotary embedding (Henry et al. 2020, arXiv:2010.04245).
        window_pattern: letters that repeat over the layers, S for a layer that sees
            `window_size` tokens and L for one that sees all; the last layer sees all.
        window_size: tokens that a query sees in an S layer, itself among them; None stands
            for a quarter of context_length.
        ffn: feed-forward layer: gated SiLU, or the ungated SiLU, exact GELU or squared ReLU.
        norm: RMS norms, or none at all.
        norm_epsilon: what RMS norms add to the mean square under the root.
        norm_position: before attention and feed-forward layer with one more at the end, after
            the sum, or both before and after the layer (Kim et al. 2025, arXiv:2502.02732).
        embedding_norm: an RMS norm of the token embeddings.
        position_encoding: rotary; rotary in half of the pairs; none.
        softcap: bound of the logits' size; none unless given.
        softcap_form: c tanh(x/c), or c x/sqrt(x² + c²).
        tied_head: the output head is the transposed token embedding.
        biases: biases in attention and feed-forward layers, zero at first.
        value_embeddings: a second table of embeddings in every other layer, the last among
            them, added to the values; zero at first.
        residual_scalars: a learned factor of the residual stream before each block, 1 at first.
        x0_scalars: a learned multiple of the embedded tokens added there, 0 at first.
        zero_init_projections: the matrices that write to the residual stream start at zero.
        zero_init_head: the output head starts at zero, so the first loss is ln(vocab_size).
        z_loss: weight of the mean squared log of the softmax's denominator in what is trained.
        parametrisation: how initial weights, learning rates and multipliers follow the sizes;
            see `rslm.parametrisation`.
        base_d_model: width at which the hyperparameters were tuned; None stands for d_model.
        base_n_layers: likewise the depth.

    Raises:
        ValueError: a size is not positive, heads and widths do not fit, or a switch is set
            that another one makes meaningless.
    """

    vocab_size: int | None = None
    context_length: int = 256
    d_model: int = 512
    n_layers: int = 4
    n_heads: int = 16
    d_ff: int | None = None
    rope_theta: float = 10_000.0
    n_kv_heads: int | None = None
    d_head: int | None = None
    attention_scale: float | None = None
    qk_norm: QKNorm = "none"
    window_pattern: str | None = None
    window_size: int | None = None
    ffn: FeedForwardKind = "swiglu"
    norm: NormKind = "rms"
    norm_epsilon: float = 1e-5
    norm_position: NormPosition = "pre"
    embedding_norm: bool = False
    position_encoding: PositionEncoding = "rope"
    softcap: float | None = None
    softcap_form: SoftcapForm = "tanh"
    tied_head: bool = False
    biases: bool = False
    value_embeddings: bool = False
    residual_scalars: bool = False
    x0_scalars: bool = False
    zero_init_projections: bool = False
    zero_init_head: bool = False
    z_loss: float = 0.0
    parametrisation: Parametrisation = "standard"
    base_d_model: int | None = None
    base_n_layers: int | None = None

    def __post_init__(self) -> None:
        """Refuse sizes that no model can have, and switches that nothing would read."""
        sizes = "vocab_size context_length d_model n_layers n_heads d_ff n_kv_heads d_head"
        for name in (*sizes.split(), "window_size", "base_d_model", "base_n_layers"):
            size = getattr(self, name)
            if size is not None and size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
            if size is not None and size > MAX_SIZE:
                raise ValueError(f"{name} must be below 2^63, got {size}")
        for name in ("rope_theta", "attention_scale", "softcap", "norm_epsilon"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive, got {value}")
        if not 0 <= self.z_loss < math.inf:
            raise ValueError(f"z_loss must be at least 0 and finite, got {self.z_loss}")
        self._check_heads()
        self._check_switches()

    def _check_heads(self) -> None:
        """Refuse heads that do not divide what they share."""
        turned = {"rope": 2, "half-rope": 4, "none": 1}[self.position_encoding]
        reason = f" ({self.position_encoding} turns pairs within a head)" if turned > 1 else ""
        if self.d_head is None and self.d_model % (turned * self.n_heads):
            multiple = f"{turned} * n_heads" if turned > 1 else "n_heads"
            raise ValueError(
                f"d_model must be a multiple of {multiple}{reason}, "
                f"got d_model {self.d_model} and n_heads {self.n_heads}"
            )
        if self.d_head is not None and self.d_head % turned:
            raise ValueError(f"d_head must be a multiple of {turned}{reason}, got {self.d_head}")
        if self.n_heads % self.resolved_n_kv_heads:
            raise ValueError(
                f"n_kv_heads must divide n_heads {self.n_heads}, got {self.resolved_n_kv_heads}"
            )

    def _check_switches(self) -> None:
        """Refuse combinations in which a switch would do nothing."""
        pattern = self.window_pattern
        if pattern is not None and (not pattern or set(pattern) - set("SL")):
            raise ValueError(f"window_pattern must be letters S and L, got {pattern!r}")
        idle = {
            "window_size needs a window_pattern": self.window_size and not pattern,
            f"window_size must be below context_length {self.context_length}, got "
            f"{self.window_size}: no query would see less than all": (
                self.window_size is not None and self.window_size >= self.context_length
            ),
            f"window_pattern must give an S to a layer of {self.n_layers} that is not the last, "
            f"which sees all, got {pattern!r}": pattern is not None and not any(self.windows),
            "softcap_form needs a softcap": self.softcap_form != "tanh" and self.softcap is None,
            "norm_position needs norms": self.norm_position != "pre" and self.norm == "none",
            "embedding_norm needs norms": self.embedding_norm and self.norm == "none",
            "zero_init_head needs a head of its own, not tied_head": (
                self.zero_init_head and self.tied_head
            ),
            "base_d_model needs a parametrisation that reads it, not standard": (
                self.base_d_model is not None and self.parametrisation == "standard"
            ),
            "base_n_layers needs the parametrisation completep": (
                self.base_n_layers is not None and self.parametrisation != "completep"
            ),
        }
        for fault, is_so in idle.items():
            if is_so:
                raise ValueError(fault)

    @property
    def resolved_d_head(self) -> int:
        """Width of one attention head, with None resolved."""
        return self.d_model // self.n_heads if self.d_head is None else self.d_head

    @property
    def resolved_n_kv_heads(self) -> int:
        """Heads of keys and values, with None resolved."""
        return self.n_heads if self.n_kv_heads is None else self.n_kv_heads

    @property
    def resolved_d_ff(self) -> int:
        """Feed-forward width, with None resolved."""
        if self.d_ff is not None:
            return self.d_ff
        return default_d_ff(self.d_model) if self.ffn == "swiglu" else 4 * self.d_model

    @property
    def resolved_vocab_size(self) -> int:
        """Vocabulary size, known by now.

        Raises:
            ValueError: it is still None.
        """
        if self.vocab_size is None:
            raise ValueError("vocab_size must be set before the model can be built or counted")
        return self.vocab_size

    @property
    def windows(self) -> tuple[int | None, ...]:
        """Tokens that a query sees, by layer; None where it sees all before it."""
        if self.window_pattern is None:
            return (None,) * self.n_layers
        size = max(1, self.context_length // 4) if self.window_size is None else self.window_size
        letters = [self.window_pattern[i % len(self.window_pattern)] for i in range(self.n_layers)]
        letters[-1] = "L"
        return tuple(size if letter == "S" else None for letter in letters)

    @property
    def value_embedding_layers(self) -> tuple[int, ...]:
        """Layers that add value embeddings: every other one, the last among them."""
        if not self.value_embeddings:
            return ()
        return tuple(range((self.n_layers - 1) % 2, self.n_layers, 2))


def default_d_ff(d_model: int) -> int:
    """8/3 of `d_model` to the nearest multiple of 64, at least 64; halves go up.

    With three matrices instead of two, 8/3 keeps the parameters of an ungated
    feed-forward layer of width 4 d_model.

    Source: Shazeer 2020, GLU Variants Improve Transformer, section 3 (arXiv:2002.05202).
    """
    # 8/3 d_model / 64 = d_model / 24, rounded in integers.
    return max(1, (d_model + 12) // 24) * _D_FF_MULTIPLE


def parameter_shapes(config: TransformerConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter by its name in the state dict, in the model's order."""
    vocab_size, d_model, n_layers = config.resolved_vocab_size, config.d_model, config.n_layers
    d_kv = config.resolved_n_kv_heads * config.resolved_d_head
    shapes: dict[str, tuple[int, ...]] = {}
    if config.residual_scalars:
        shapes["residual_scalars"] = (n_layers,)
    if config.x0_scalars:
        shapes["x0_scalars"] = (n_layers,)
    shapes["token_embeddings.weight"] = (vocab_size, d_model)
    if config.embedding_norm:
        shapes["ln_embedding.weight"] = (d_model,)
    for layer in range(n_layers):
        for name, shape in _block_shapes(config).items():
            shapes[f"layers.{layer}.{name}"] = shape
    if has_final_norm(config):
        shapes["ln_final.weight"] = (d_model,)
    if not config.tied_head:
        shapes["lm_head.weight"] = (vocab_size, d_model)
    for layer in config.value_embedding_layers:
        shapes[f"value_embeddings.{layer}.weight"] = (vocab_size, d_kv)
    return shapes


def has_final_norm(config: TransformerConfig) -> bool:
    """Whether the head reads through a norm of its own.

    Where norms follow the sums the last block ends with one already (Xiong et al. 2020, Table
    1, arXiv:2002.04745).
    """
    return config.norm == "rms" and config.norm_position != "post"


def _block_shapes(config: TransformerConfig) -> dict[str, tuple[int, ...]]:
    """The shapes of one block's parameters, norms where they are registered."""
    d_model, d_ff, d_head = config.d_model, config.resolved_d_ff, config.resolved_d_head
    d_q, d_kv = config.n_heads * d_head, config.resolved_n_kv_heads * d_head
    attention = {"q": (d_q, d_model), "k": (d_kv, d_model), "v": (d_kv, d_model)}
    feed_forward = {"w1": (d_ff, d_model), "w2": (d_model, d_ff)}
    if config.ffn == "swiglu":
        feed_forward["w3"] = (d_ff, d_model)
    linears = {f"attn.{name}_proj": shape for name, shape in attention.items()}
    linears |= {"attn.output_proj": (d_model, d_q)}
    gain = {"weight": (d_model,)}
    norms = {} if config.norm == "none" else gain
    after = norms if config.norm_position == "peri" else {}

    shapes: dict[str, tuple[int, ...]] = {f"ln1.{name}": shape for name, shape in norms.items()}
    for name, shape in linears.items():
        shapes |= _linear_shapes(name, shape, biases=config.biases)
    if config.qk_norm == "rms-gain":
        shapes |= {f"attn.{name}_norm.weight": (d_head,) for name in ("q", "k")}
    shapes |= {f"ln1_after.{name}": shape for name, shape in after.items()}
    shapes |= {f"ln2.{name}": shape for name, shape in norms.items()}
    for name, shape in feed_forward.items():
        shapes |= _linear_shapes(f"ffn.{name}", shape, biases=config.biases)
    return shapes | {f"ln2_after.{name}": shape for name, shape in after.items()}


def _linear_shapes(
    name: str, shape: tuple[int, int], *, biases: bool
) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {f"{name}.weight": shape}
    return shapes | ({f"{name}.bias": shape[:1]} if biases else {})


def n_parameters_by_group(config: TransformerConfig) -> dict[str, int]:
    """Parameters by what they are for; empty groups count 0.

    "embedding", "value_embeddings", "attention" and "feed_forward" (biases and the gains of
    the QK-norm among them), "norms", "scalars" (of the residual stream), "head" (0 when tied).
    """
    names = [
        "embedding",
        "value_embeddings",
        "attention",
        "feed_forward",
        "norms",
        "scalars",
        "head",
    ]
    groups = dict.fromkeys(names, 0)
    for name, shape in parameter_shapes(config).items():
        groups[_group_of(name)] += math.prod(shape)
    return groups


def _group_of(name: str) -> str:
    if name.startswith("layers."):
        part = name.split(".")[2]
        return {"attn": "attention", "ffn": "feed_forward"}.get(part, "norms")
    first = name.split(".")[0]
    named = {"token_embeddings": "embedding", "value_embeddings": first, "lm_head": "head"}
    return named.get(first, "norms" if first.startswith("ln_") else "scalars")


def n_parameters(config: TransformerConfig) -> int:
    """Parameters, all of them; with the defaults 2Vd + L(4d² + 3d·ff + 2d) + d."""
    return sum(n_parameters_by_group(config).values())


def n_non_embedding_parameters(config: TransformerConfig) -> int:
    """Parameters of the body and the output head, which counts when it is tied, too."""
    return n_body_parameters(config) + config.resolved_vocab_size * config.d_model


def n_body_parameters(config: TransformerConfig) -> int:
    """Parameters without tables and output head; with the defaults L(4d² + 3d·ff + 2d) + d."""
    groups = n_parameters_by_group(config)
    return sum(groups.values()) - sum(
        groups[name] for name in ("embedding", "value_embeddings", "head")
    )


def forward_flops_by_part(config: TransformerConfig, sequence_length: int) -> dict[str, int]:
    """FLOPs of one sequence's forward pass, by the part of the model that spends them.

    With T = `sequence_length`, H and K heads of queries and of keys, each D wide:
    "projections" (q, k, v, output) 4TdD(H + K) per layer, "attention" (scores and weighted
    values) 4T·min(T, window)·HD, "feed_forward" 6Td·ff with a gate and 4Td·ff without, and
    "head" 2TdV once. With the defaults: 8Td²L, 4T²dL, 6Td·ff·L, 2TdV.
    """
    length, d_model, n_layers = sequence_length, config.d_model, config.n_layers
    d_q = config.n_heads * config.resolved_d_head
    d_kv = config.resolved_n_kv_heads * config.resolved_d_head
    n_seen = sum(length if window is None else min(length, window) for window in config.windows)
    n_matrices = 3 if config.ffn == "swiglu" else 2
    return {
        "projections": 4 * length * d_model * (d_q + d_kv) * n_layers,
        "attention": 4 * length * n_seen * d_q,
        "feed_forward": 2 * n_matrices * length * d_model * config.resolved_d_ff * n_layers,
        "head": 2 * length * d_model * config.resolved_vocab_size,
    }


def forward_flops(config: TransformerConfig, sequence_length: int) -> int:
    """FLOPs of one sequence's forward pass."""
    return sum(forward_flops_by_part(config, sequence_length).values())


def train_flops_per_token(config: TransformerConfig, sequence_length: int | None = None) -> float:
    """FLOPs per trained token, at the full context unless `sequence_length` is given.

    The backward pass multiplies twice where the forward pass multiplies once (gradients
    of inputs and of weights), hence 3 times the forward pass. What activation checkpointing
    computes again is not counted: it is no work of the model's.
    """
    length = config.context_length if sequence_length is None else sequence_length
    return 3 * forward_flops(config, length) / length
