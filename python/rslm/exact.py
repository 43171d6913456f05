"""The model's operations on a CPU in float32, whose bits only a token's own row fixes.

Each is the operation of `layers` or `attention` of its name, computed by the compiled extension
in an order that neither the batch nor the shape nor the number of threads changes. So decoding
with a cache gives the bits of the pass over the whole sequence. With gradients asked for, the
value is the exact one and the backward pass is that of the ordinary operation.

Source of the trouble and of the cure, reductions in one order whatever the batch: He et al. 2025,
Defeating Nondeterminism in LLM Inference (thinkingmachines.ai/blog).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor

from rslm import _rslm
from rslm.attention import attention

ExactActivation = Literal["silu", "gelu", "tanh"]
_Array = npt.NDArray[np.float32]
_SMALL = 1 << 13
"""Numbers up to which NumPy makes an array in a fifth of PyTorch's time: 0.6 and 3.5 us. Larger
ones are PyTorch's, which begin on a cache line."""
_ORDINARY: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "tanh": torch.tanh,
}


def check_exact(tensor: Tensor) -> None:
    """Refuses a tensor that the exact operations cannot take.

    Raises:
        ValueError: it is not float32 on a CPU.
    """
    if tensor.device.type != "cpu" or tensor.dtype != torch.float32:
        raise ValueError(
            f"exact arithmetic needs weights in float32 on a CPU, got {tensor.dtype} on "
            f"{tensor.device}"
        )


def linear(
    x: Float[Tensor, "... d_in"],
    weight: Float[Tensor, "d_out d_in"],
    bias: Float[Tensor, " d_out"] | None = None,
) -> Float[Tensor, "... d_out"]:
    """X Wᵀ + bias."""

    def exact(x: Tensor, weight: Tensor, *bias: Tensor) -> Tensor:
        out, written = empty((*x.shape[:-1], weight.shape[0]))
        of = array(weight), array(bias[0]) if bias else None
        _rslm.linear(array(x), *of, written, torch.get_num_threads())
        return out

    tensors = (x, weight) if bias is None else (x, weight, bias)
    return _with_gradients(exact, torch.nn.functional.linear, *tensors)


def rms_norm(
    x: Float[Tensor, "... width"], gain: Float[Tensor, " width"] | None, epsilon: float
) -> Float[Tensor, "... width"]:
    """Each vector over its root mean square, times the gain."""

    def exact(x: Tensor, *gain: Tensor) -> Tensor:
        out, written = empty(x.shape)
        _rslm.rms_norm(array(x), array(gain[0]) if gain else None, epsilon, written)
        return out

    def ordinary(x: Tensor, *gain: Tensor) -> Tensor:
        y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon)
        return y * gain[0] if gain else y

    return _with_gradients(exact, ordinary, x.contiguous(), *(() if gain is None else (gain,)))


def rotate(
    x: Float[Tensor, "tokens heads d_head"],
    positions: Int[Tensor, " tokens"],
    cos: Float[Tensor, "context_length pairs"],
    sin: Float[Tensor, "context_length pairs"],
) -> Float[Tensor, "tokens heads d_head"]:
    """Each pair of each head turned by the angle of its position."""

    def exact(x: Tensor) -> Tensor:
        out, written = empty(x.shape)
        _rslm.rotate(array(x), array(positions), array(cos), array(sin), written)
        return out

    def ordinary(x: Tensor) -> Tensor:
        a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
        c, s = cos[positions].unsqueeze(1), sin[positions].unsqueeze(1)
        return torch.stack((a * c - b * s, a * s + b * c), -1).flatten(-2)

    return _with_gradients(exact, ordinary, x.contiguous())


def activate(
    name: ExactActivation, x: Float[Tensor, "..."], gate: Float[Tensor, "..."] | None = None
) -> Float[Tensor, "..."]:
    """The function of each number, times the same of `gate` where there is one."""

    def exact(x: Tensor, *gate: Tensor) -> Tensor:
        out, written = empty(x.shape)
        _rslm.activate(name, array(x), array(gate[0]) if gate else None, written)
        return out

    def ordinary(x: Tensor, *gate: Tensor) -> Tensor:
        y = _ORDINARY[name](x)
        return y * gate[0] if gate else y

    tensors = (x,) if gate is None else (x, gate.contiguous())
    return _with_gradients(exact, ordinary, tensors[0].contiguous(), *tensors[1:])


def attend_sequences(
    q: Float[Tensor, "batch heads sequence d_head"],
    k: Float[Tensor, "batch kv_heads sequence d_head"],
    v: Float[Tensor, "batch kv_heads sequence d_head"],
    *,
    window: int | None,
    scale: float | None,
) -> Float[Tensor, "batch heads sequence d_head"]:
    """Causal attention of whole sequences, the bits of decoding them token by token."""
    batch, _, length, _ = q.shape
    plan = _rslm.StepPlan(
        list(range(length)) * batch, [length] * batch, [[i] for i in range(batch)], length, batch
    )

    def exact(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        flat = [x.transpose(1, 2).contiguous().flatten(0, 1) for x in (q, k, v)]
        out = run_attend(plan, *map(array, flat), window=window, scale=scale)
        return out.view(batch, length, *out.shape[1:]).transpose(1, 2)

    def ordinary(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k, v, causal=True, window=window, scale=scale)

    return _with_gradients(exact, ordinary, q, k, v)


def run_attend(
    plan: "_rslm.StepPlan",
    q: _Array,
    keys: _Array,
    values: _Array,
    *,
    window: int | None,
    scale: float | None,
) -> Tensor:
    """What the queries (tokens, heads, d_head) of a plan see of stored keys and values."""
    out, written = empty(q.shape)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    plan.attend(q, keys, values, window, scale, written, torch.get_num_threads())
    return out


def array(x: Tensor) -> Any:
    """The numbers of a tensor as NumPy sees them, in the same memory where they lie in order."""
    if x.requires_grad:
        x = x.detach()
    return (x if x.is_contiguous() else x.contiguous()).numpy()


def empty(shape: Sequence[int]) -> tuple[Tensor, _Array]:
    """A tensor to be written, and the same memory for the extension."""
    if math.prod(shape) <= _SMALL:
        written = np.empty(shape, dtype=np.float32)
        return torch.from_numpy(written), written
    out = torch.empty(tuple(shape), dtype=torch.float32)
    return out, out.numpy()


def _with_gradients(
    exact: Callable[..., Tensor], ordinary: Callable[..., Tensor], *tensors: Tensor
) -> Tensor:
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        out: Tensor = _ExactForward.apply(exact, ordinary, *tensors)
        return out
    return exact(*tensors)


class _ExactForward(torch.autograd.Function):
    """The value of one function with the gradients of another."""

    @staticmethod
    def forward(
        ctx: Any, exact: Callable[..., Tensor], ordinary: Callable[..., Tensor], *tensors: Tensor
    ) -> Tensor:
        ctx.ordinary = ordinary
        ctx.save_for_backward(*tensors)
        return exact(*tensors)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Those of the ordinary function, computed again from the same inputs."""
        wanted = ctx.needs_input_grad[2:]
        with torch.enable_grad():
            tensors = [
                tensor.detach().requires_grad_(needs)
                for tensor, needs in zip(ctx.saved_tensors, wanted, strict=True)
            ]
            out = ctx.ordinary(*tensors)
        asked = [tensor for tensor, needs in zip(tensors, wanted, strict=True) if needs]
        found = iter(torch.autograd.grad(out, asked, gradient))
        return (None, None, *(next(found) if needs else None for needs in wanted))
