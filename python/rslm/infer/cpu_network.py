"""The model with its parts computed by the compiled extension: same forward pass, same weights.

`cpu_network` returns a `Transformer` that shares every parameter and whose parts (linear layers,
norms, rotary embedding, feed-forward layers, head) are those below. The order in which they are
put together stays that of `rslm.model`.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from rslm import _rslm, exact
from rslm.infer.cpu_block import CpuBlock
from rslm.layers import (
    Embedding,
    FeedForward,
    HeadLoss,
    Linear,
    Losses,
    RMSNorm,
    RotaryEmbedding,
    SwiGLU,
    gelu,
    silu,
)
from rslm.model import Transformer, TransformerBlock

# The squared ReLU and the softcap by a root are the same bits however they are computed.
_ACTIVATIONS: dict[Callable[[Tensor], Tensor], exact.ExactActivation] = {
    silu: "silu",
    gelu: "gelu",
}


def cpu_network(model: Transformer, *, quantize: bool = False) -> Transformer:
    """A model of the same parameters, not copies of them, whose parts are exact.

    With `quantize` the matrices are kept once more, as integers of one byte; embeddings and
    norms are not.

    Raises:
        ValueError: the weights are not float32 on a CPU.
    """
    for parameter in model.parameters():
        exact.check_exact(parameter)
    shared: dict[int, Any] = {id(x): x for x in (*model.parameters(), *model.buffers())}
    network: Transformer = copy.deepcopy(model, shared)
    _replace(network, quantize=quantize)
    cap, form = network.config.softcap, network.config.softcap_form
    if cap is not None and form == "tanh":
        network.softcap = partial(_softcap, cap=cap)
    return network.requires_grad_(False) if quantize else network


def refresh(network: Transformer) -> None:
    """Takes over weights that have changed since `cpu_network`."""
    for module in network.modules():
        if isinstance(module, CpuBlock | CpuLinear | CpuEmbedding):
            module.refresh()


def _replace(parent: Module, *, quantize: bool) -> None:
    for name, module in parent.named_children():
        _replace(module, quantize=quantize)
        if isinstance(module, Linear):
            setattr(parent, name, CpuLinear(module, quantize=quantize))
        elif isinstance(module, Embedding):
            is_head = isinstance(parent, Transformer) and parent.lm_head is None
            is_head = is_head and name == "token_embeddings"
            setattr(parent, name, CpuEmbedding(module, is_head=is_head, quantize=quantize))
        elif isinstance(module, RMSNorm):
            setattr(parent, name, CpuNorm(module))
        elif isinstance(module, RotaryEmbedding):
            setattr(parent, name, CpuRotary(module))
        elif isinstance(module, SwiGLU):
            setattr(parent, name, CpuSwiGLU(module))
        elif isinstance(module, FeedForward) and module.activation in _ACTIVATIONS:
            module.activation = partial(exact.activate, _ACTIVATIONS[module.activation])
        elif isinstance(module, TransformerBlock) and _is_fusible(module):
            rotary: Any = module.attn.rotary_embedding
            tables = None if rotary is None else (rotary.cos, rotary.sin)
            setattr(parent, name, CpuBlock(module, tables))


def _is_fusible(block: TransformerBlock) -> bool:
    """Whether it is the block that the extension has as one call, whose parts are exact."""
    attn, ffn = block.attn, block.ffn
    return (
        block.norm_position == "pre"
        and block.residual_multiplier == 1
        and all(isinstance(x, CpuNorm) and x.weight is not None for x in (block.ln1, block.ln2))
        and attn.q_norm is None
        and isinstance(ffn, CpuSwiGLU)
        and all(linear.bias is None for linear in (attn.q_proj, attn.output_proj, ffn.w1, ffn.w2))
    )


class _Product:
    """A matrix as the extension reads it, whole or as integers with a scale for each output."""

    def __init__(self, weight: Tensor, bias: Tensor | None, *, quantize: bool) -> None:
        self.n_outputs = weight.shape[0]
        self.matrix, self._bias = exact.array(weight), None if bias is None else exact.array(bias)
        self.scales: Any = None
        if quantize:
            integers, self.scales = _rslm.quantize_rows(self.matrix)
            self.matrix = integers.reshape(self.matrix.shape)

    def __call__(self, x: Tensor) -> Tensor:
        out, written = exact.empty((*x.shape[:-1], self.n_outputs))
        given, n_threads = exact.array(x), torch.get_num_threads()
        if self.scales is None:
            _rslm.linear(given, self.matrix, self._bias, written, n_threads)
        else:
            of = (given, self.matrix, self.scales, self._bias)
            _rslm.linear_int8(*of, written, n_threads)
        return out


class CpuLinear(Module):
    """`Linear`, exact."""

    bias: Parameter | None

    def __init__(self, linear: Linear, *, quantize: bool) -> None:
        super().__init__()
        self.weight = linear.weight
        self.register_parameter("bias", linear.bias)
        self.quantize = quantize
        self.refresh()

    def refresh(self) -> None:
        """Reads the weights anew."""
        self._product = _Product(self.weight, self.bias, quantize=self.quantize)

    @property
    def matrix(self) -> tuple[Any, Any]:
        """The weights as the extension reads them, and their scales if they are integers."""
        return self._product.matrix, self._product.scales

    def forward(self, x: Tensor, *, loss: HeadLoss | None = None) -> Tensor | Losses:
        """The product."""
        assert loss is None
        if torch.is_grad_enabled():
            return exact.linear(x, self.weight, self.bias)
        return self._product(x)


class CpuEmbedding(Module):
    """`Embedding`, exact as a head."""

    def __init__(self, embedding: Embedding, *, is_head: bool, quantize: bool) -> None:
        super().__init__()
        self.weight = embedding.weight
        self.is_head, self.quantize = is_head, quantize
        self.refresh()

    def refresh(self) -> None:
        """Reads the weights anew."""
        if self.is_head:
            self._product = _Product(self.weight, None, quantize=self.quantize)

    def forward(self, x: Tensor, *, as_head: bool = False, loss: HeadLoss | None = None) -> Tensor:
        """Rows of the table, or the products with all of them."""
        assert loss is None
        if not as_head:
            return self.weight.index_select(0, x.flatten()).view(*x.shape, -1)
        return exact.linear(x, self.weight) if torch.is_grad_enabled() else self._product(x)


class CpuNorm(Module):
    """`RMSNorm`, exact."""

    weight: Parameter | None

    def __init__(self, norm: RMSNorm) -> None:
        super().__init__()
        self.register_parameter("weight", norm.weight)
        self.epsilon = norm.epsilon

    def forward(self, x: Tensor) -> Tensor:
        """Each vector normalised by itself."""
        return exact.rms_norm(x, self.weight, self.epsilon)


class CpuRotary(Module):
    """`RotaryEmbedding`, exact."""

    def __init__(self, rotary: RotaryEmbedding) -> None:
        super().__init__()
        self.cos, self.sin = rotary.cos, rotary.sin

    def forward(self, x: Tensor, token_positions: Tensor | None = None) -> Tensor:
        """(..., heads, tokens, d_head) queries or keys, turned."""
        by_token = x.transpose(-3, -2)
        if token_positions is None:
            token_positions = torch.arange(x.shape[-2])
        positions = token_positions.squeeze(-2) if token_positions.ndim > 1 else token_positions
        flat = by_token.reshape(-1, *by_token.shape[-2:])
        if positions.numel() != flat.shape[0]:
            positions = positions.expand(by_token.shape[:-2])
        turned = exact.rotate(flat, positions.flatten(), self.cos, self.sin)
        return turned.view(by_token.shape).transpose(-3, -2)


class CpuSwiGLU(Module):
    """`SwiGLU`, exact."""

    def __init__(self, ffn: SwiGLU) -> None:
        super().__init__()
        self.w1, self.w2, self.w3 = ffn.w1, ffn.w2, ffn.w3

    def forward(self, x: Tensor) -> Tensor:
        """The gated product, projected back."""
        output: Tensor = self.w2(exact.activate("silu", self.w1(x), self.w3(x)))
        return output


def _softcap(x: Tensor, cap: float) -> Tensor:
    return cap * exact.activate("tanh", x / cap)
