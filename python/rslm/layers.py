"""The parts that a Transformer's blocks are made of; each can be used alone.

Every module takes `generator` (drawn from in the order of construction, so that one seed
fixes all weights whatever the device), `device` and `dtype`.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import Module, Parameter

from rslm.architecture import SoftcapForm
from rslm.parametrisation import glorot_std

Activation = Literal["silu", "gelu", "relu2"]
Losses = tuple[Float[Tensor, ""], Float[Tensor, ""]]
HeadLoss = Callable[..., Losses]
"""`rslm.losses.linear_cross_entropy` with all but input, weight and bias given."""


def silu(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """x · sigmoid(x), elementwise.

    Source: Elfwing et al. 2017 (arXiv:1702.03118), where it is SiL; also called Swish.
    """
    return x * torch.sigmoid(x)


def gelu(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """x · Φ(x), with the normal distribution's Φ itself, not its approximation by tanh.

    Source: Hendrycks & Gimpel 2016, section 2 (arXiv:1606.08415).
    """
    return torch.nn.functional.gelu(x)


def relu2(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """max(x, 0)², elementwise.

    Source: So et al. 2021, Primer, section 3 (arXiv:2109.08668).
    """
    return torch.relu(x).square()


ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "silu": silu,
    "gelu": gelu,
    "relu2": relu2,
}


def softcap(x: Float[Tensor, "..."], cap: float, form: SoftcapForm) -> Float[Tensor, "..."]:
    """`x` bent so that its size stays below `cap`; small values stay as they are.

    "tanh" is cap · tanh(x/cap), "sqrt" is cap · x/sqrt(x² + cap²). Computed, and returned, in
    float32 at least: near the cap half precision has few values left.

    Source: Bello et al. 2016, section 5.1 (arXiv:1611.09940), for tanh; Gemma Team 2024, Gemma
    2, section 2 (arXiv:2408.00118), for logits.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    if form == "tanh":
        return cap * torch.tanh(wide / cap)
    return cap * wide * torch.rsqrt(wide.square() + cap**2)


class Linear(Module):
    """y = x Wᵀ with W of shape (d_out, d_in), from N(0, 2/(d_in + d_out)) cut at 3σ.

    Args:
        d_in: width of the input.
        d_out: width of the output.
        bias: adds a vector of shape (d_out,) that starts at zero.
        std: σ in place of that of the formula. 0 draws as well and then clears, so that
            the weights that follow are the same with and without.

    Source of the variance: Glorot & Bengio 2010, equation 12.
    """

    bias: Parameter | None

    def __init__(
        self,
        d_in: int,
        d_out: int,
        *,
        bias: bool = False,
        std: float | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        std = glorot_std(d_out, d_in) if std is None else std
        self.weight = _normal_parameter((d_out, d_in), std, generator, device, dtype)
        zeros = Parameter(torch.zeros(d_out, device=device, dtype=dtype)) if bias else None
        self.register_parameter("bias", zeros)

    def forward(
        self, x: Float[Tensor, "... d_in"], *, loss: HeadLoss | None = None
    ) -> Float[Tensor, "... d_out"] | Losses:
        """The product, over all leading dimensions at once; or the losses made of it."""
        if loss is not None:
            return loss(x, self.weight, bias=self.bias)
        if self.bias is None:
            return x @ self.weight.T
        return torch.nn.functional.linear(x, self.weight, self.bias)


class Embedding(Module):
    """A row of W, of shape (vocab_size, d_model) from N(0, std²) cut at 3σ, for each id."""

    def __init__(
        self,
        vocab_size: int,
        d_model: int,
        *,
        std: float = 1.0,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.weight = _normal_parameter((vocab_size, d_model), std, generator, device, dtype)

    def forward(
        self,
        x: Int[Tensor, "..."] | Float[Tensor, "... d_model"],
        *,
        as_head: bool = False,
        loss: HeadLoss | None = None,
    ) -> Float[Tensor, "... width"] | Losses:
        """The rows that the token ids `x` name; as a tied head, logits or losses of vectors `x`.

        One method for both uses, so that hooks of the module (which may have to gather
        its weight first) see both.

        Source of the tied head: Press & Wolf 2017 (arXiv:1608.05859).
        """
        if as_head:
            return x @ self.weight.T if loss is None else loss(x, self.weight)
        # index_select's backward pass (index_add) is five times as fast on a CPU as that
        # of weight[token_ids] (index_put with accumulation).
        rows = self.weight.index_select(0, x.flatten())
        return rows.view(*x.shape, -1)


class RMSNorm(Module):
    """x over its root mean square, times a gain of shape (d_model,) that starts at 1.

    Computed in float32 (float64 stays) and returned in the dtype of `x`. Without `gain` it
    has no parameter.

    Source: Zhang & Sennrich 2019, equation 4 (arXiv:1910.07467); ε under the root as in
    LLaMA.
    """

    weight: Parameter | None

    def __init__(
        self,
        d_model: int,
        *,
        epsilon: float = 1e-5,
        gain: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.epsilon = epsilon
        ones = Parameter(torch.ones(d_model, device=device, dtype=dtype)) if gain else None
        self.register_parameter("weight", ones)

    def forward(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """Each vector along the last dimension, normalised by itself."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        inverse_rms = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.epsilon)
        normalised = wide * inverse_rms
        if self.weight is not None:
            normalised = normalised * self.weight
        return normalised.to(x.dtype)


class RotaryEmbedding(Module):
    """Turns each pair (x[2k], x[2k+1]) by the angle position · theta^(-2k/d_head).

    (a, b) becomes (a cos - b sin, a sin + b cos), so the product of a rotated query and a
    rotated key depends on their distance alone. The tables of cosines and sines, of shape
    (context_length, d_head / 2), are float32 whatever the model's dtype, and are not
    saved. Hugging Face's Llama pairs dimension j with j + d_head/2 instead.

    With `half`, n = d_head/4 pairs turn, by position · theta^(-k/(n-1)), and the rest stands.

    Source: Su et al. 2021, RoFormer, equation 34 (arXiv:2104.09864); the half as in
    modded-nanogpt (github.com/KellerJordan/modded-nanogpt), with its frequencies.
    """

    cos: Tensor
    sin: Tensor

    def __init__(
        self,
        d_head: int,
        context_length: int,
        *,
        theta: float = 10_000.0,
        half: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if d_head % 2:
            raise ValueError(f"d_head must be even (its dimensions turn in pairs), got {d_head}")
        if half and d_head % 4:
            raise ValueError(f"d_head must be a multiple of 4 (half the pairs turn), got {d_head}")
        self.d_head, self.context_length, self.theta = d_head, context_length, theta
        self.turns_half = half
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
        frequencies = self.theta ** (-exponents / self.d_head)
        if self.turns_half:
            n_turned = self.d_head // 4
            order = torch.arange(n_turned, dtype=torch.float64, device="cpu")
            frequencies = torch.zeros_like(frequencies)
            frequencies[:n_turned] = self.theta ** (-order / max(1, n_turned - 1))
        angles = torch.outer(positions, frequencies)
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
        bias: bool = False,
        output_std: float | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        options: Any = {"bias": bias, "generator": generator, "device": device, "dtype": dtype}
        self.w1 = Linear(d_model, d_ff, **options)
        self.w2 = Linear(d_ff, d_model, std=output_std, **options)
        self.w3 = Linear(d_model, d_ff, **options)

    def forward(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """The gated product, projected back."""
        gated: Tensor = silu(self.w1(x)) * self.w3(x)
        output: Tensor = self.w2(gated)
        return output


class FeedForward(Module):
    """W2 activation(W1 x), without a gate.

    Source: Vaswani et al. 2017, equation 2 (arXiv:1706.03762), there with ReLU and biases.
    """

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        *,
        activation: Activation,
        bias: bool = False,
        output_std: float | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        options: Any = {"bias": bias, "generator": generator, "device": device, "dtype": dtype}
        self.activation = ACTIVATIONS[activation]
        self.w1 = Linear(d_model, d_ff, **options)
        self.w2 = Linear(d_ff, d_model, std=output_std, **options)

    def forward(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """The activated product, projected back."""
        output: Tensor = self.w2(self.activation(self.w1(x)))
        return output


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
    """A matrix from N(0, std²) cut at 3 std; 0 draws all the same.

    Drawn in float32 where the generator lives (else on the CPU) and then moved, so that a
    seed gives the same weights on every device.
    """
    if device is not None and torch.device(device).type == "meta":
        return Parameter(torch.empty(shape, device=device, dtype=dtype))
    source = generator.device if generator is not None else "cpu"
    weight = torch.empty(shape, device=source, dtype=torch.float32)
    spread = std or 1.0
    torch.nn.init.trunc_normal_(
        weight, std=spread, a=-3 * spread, b=3 * spread, generator=generator
    )
    if std == 0:
        weight.zero_()
    return Parameter(weight.to(device=device, dtype=dtype or torch.get_default_dtype()))
