"""FlashAttention-2 in Triton, forward and backward, as an operator of PyTorch.

`flash_attention` is `torch.ops.rslm.flash_attention` behind checks of its arguments. As an
operator it passes through torch.compile whole, and its gradient is an operator likewise.

Source: Dao 2023, FlashAttention-2, Algorithms 1-2 (arXiv:2307.08691); Milakov & Gimelshein 2018
for the running maximum (arXiv:1805.02867).
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
from jaxtyping import Float, Float32, Int32
from torch import Tensor

from rslm.kernels.flash_forward import forward_kernel
from rslm.kernels.flash_launch import Problem, backward_launches, forward_launch
from rslm.kernels.launch_configs import FlashConfig, architecture, flash_config

IS_INTERPRETED = not isinstance(forward_kernel, triton.JITFunction)
"""Whether TRITON_INTERPRET=1 was set when Triton was loaded: the kernels run on a CPU."""

_NAME = "rslm::flash_attention"


@torch.library.custom_op(_NAME, mutates_args=())
def _flash_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    start: Tensor | None,
    causal: bool,
    scale: float,
    softcap: float | None,
    config: Sequence[int] | None,
) -> tuple[Tensor, Tensor]:
    problem = Problem(q, k, v, start, causal, k.shape[2] - q.shape[2], scale, softcap)
    return forward(problem, _config(problem, config))


@_flash_attention.register_fake
def _(q: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _empty_outputs(q)


@torch.library.custom_op(f"{_NAME}_backward", mutates_args=())
def _flash_attention_backward(
    d_out: Tensor,
    d_lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    start: Tensor | None,
    out: Tensor,
    lse: Tensor,
    causal: bool,
    scale: float,
    softcap: float | None,
    config: Sequence[int] | None,
) -> tuple[Tensor, Tensor, Tensor]:
    problem = Problem(q, k, v, start, causal, k.shape[2] - q.shape[2], scale, softcap)
    return backward(problem, out, lse, d_out, d_lse, _config(problem, config))


@_flash_attention_backward.register_fake
def _(_d_out: Tensor, _d_lse: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> Any:
    return _empty_like(q), _empty_like(k), _empty_like(v)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, start, *ctx.rest = inputs
    ctx.save_for_backward(q, k, v, start, *output)


def _differentiate(ctx: Any, d_out: Tensor, d_lse: Tensor) -> tuple[Tensor | None, ...]:
    gradients = _flash_attention_backward(d_out, d_lse, *ctx.saved_tensors, *ctx.rest)
    return *gradients, None, None, None, None, None


_flash_attention.register_autograd(_differentiate, setup_context=_save)


def flash_attention(
    q: Float[Tensor, "batch n_heads queries d_head"],
    k: Float[Tensor, "batch n_kv_heads keys d_head"],
    v: Float[Tensor, "batch n_kv_heads keys d_head"],
    start: Int32[Tensor, "#batch queries"] | None,
    *,
    causal: bool,
    scale: float,
    softcap: float | None,
    config: FlashConfig | None = None,
) -> tuple[Float[Tensor, "batch n_heads queries d_head"], Float32[Tensor, "batch n_heads queries"]]:
    """Softmax attention and the logarithm of each row's sum of exponentials.

    Query head h uses key-value head h // (n_heads // n_kv_heads). With `causal`, query i sees
    keys start[i]..i + keys - queries; `start` must not decrease along the queries, which is
    not checked. Scores s become softcap * tanh(s / softcap). A row that sees nothing gets
    zeros, -inf and no gradient. Both results have gradients, the same bits on each run. The
    output has the dtype of q, sums are float32. Extra memory: 4 bytes per row, and 8 more in
    the backward pass.

    Args:
        config: in place of the table's row for the device, head width and dtype.

    Raises:
        ValueError: Triton cannot run where the tensors are, or the tensors do not fit each
            other, have more than 256 columns or an unknown dtype; `start` without `causal`; a
            scale or softcap that is not positive.
    """
    _check(q, k, v, start, causal, scale, softcap)
    numbers = None if config is None else config.numbers()
    out, lse = _flash_attention(q, k, v, start, causal, scale, softcap, numbers)
    return out, lse


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    start: Tensor | None,
    causal: bool,
    scale: float,
    softcap: float | None,
) -> None:
    for name, x in (("k", k), ("v", v)):
        if x.dtype != q.dtype or x.device != q.device:
            raise ValueError(
                "q, k and v must have one dtype and one device, got "
                f"q {q.dtype} on {q.device} and {name} {x.dtype} on {x.device}"
            )
    if q.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"q must be float32, float16 or bfloat16, got {q.dtype}")
    fits = k.shape == v.shape and q.shape[0] == k.shape[0] and q.shape[3] == k.shape[3]
    if not fits or q.shape[1] % k.shape[1]:
        raise ValueError(
            "q must be (batch, n_heads, queries, d_head), k and v (batch, n_kv_heads, keys, "
            f"d_head) with n_kv_heads a divisor of n_heads, got {tuple(q.shape)}, "
            f"{tuple(k.shape)} and {tuple(v.shape)}"
        )
    if not 1 <= q.shape[3] <= 256:
        raise ValueError(f"d_head must be in 1..256, got {q.shape[3]}")
    if start is not None and not causal:
        raise ValueError("start needs causal=True, got causal=False")
    if not scale > 0 or (softcap is not None and not softcap > 0):
        raise ValueError(f"scale and softcap must be positive, got {scale} and {softcap}")
    if q.device.type == "cpu" and not IS_INTERPRETED:
        raise ValueError(
            "Triton needs a GPU, and q is on the CPU\n"
            "TRITON_INTERPRET=1 in the environment runs its kernels there, slowly"
        )


def _config(problem: Problem, numbers: Sequence[int] | None = None) -> FlashConfig:
    if numbers is not None:
        return FlashConfig.from_numbers(numbers)
    q = problem.q
    return flash_config(
        architecture(q.device),
        q.shape[3],
        q.dtype,
        has_start=problem.start is not None,
        has_softcap=problem.softcap is not None,
    )


def _empty_outputs(q: Tensor) -> tuple[Tensor, Tensor]:
    return _empty_like(q), q.new_empty(q.shape[:3], dtype=torch.float32)


def _empty_like(x: Tensor) -> Tensor:
    """Room in the layout of x, but with neighbouring columns side by side."""
    room = torch.empty_like(x)
    if room.stride(-1) == 1:
        return room
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def forward(problem: Problem, config: FlashConfig) -> tuple[Tensor, Tensor]:
    """Output and log-sum of exponentials, without a gradient."""
    out, lse = _empty_outputs(problem.q)
    problem = _in_rows(problem)
    if problem.k.shape[2] == 0:
        return out.zero_(), lse.fill_(float("-inf"))
    if out.numel():
        forward_launch(problem, out, lse, config.forward).run(out.device)
    return out, lse


def backward(
    problem: Problem,
    out: Tensor,
    lse: Tensor,
    d_out: Tensor,
    d_lse: Tensor,
    config: FlashConfig,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v from those of the output and of the log-sums."""
    gradients = (_empty_like(problem.q), _empty_like(problem.k), _empty_like(problem.v))
    if problem.q.numel() == 0 or problem.k.numel() == 0:
        dq, dk, dv = (x.zero_() for x in gradients)
        return dq, dk, dv
    problem, d_out = _in_rows(problem), _row_major(d_out)
    end = None if problem.start is None else _last_queries(problem.start, problem.k.shape[2])
    launches = backward_launches(
        problem, end, out, lse, d_out, d_lse.contiguous(), gradients, config
    )
    for launch in launches:
        launch.run(out.device)
    return gradients


def _last_queries(start: Tensor, n_keys: int) -> Tensor:
    """The last query that begins to see at or before each key; -1 for none."""
    keys = torch.arange(n_keys, dtype=start.dtype, device=start.device)
    places = torch.searchsorted(
        start.contiguous(), keys.expand(start.shape[0], -1).contiguous(), right=True, out_int32=True
    )
    return places - 1


def _row_major(x: Tensor) -> Tensor:
    """X with neighbouring columns side by side, as the kernels read them."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _in_rows(problem: Problem) -> Problem:
    start = None if problem.start is None else _row_major(problem.start)
    q, k, v = (_row_major(x) for x in problem[:3])
    return problem._replace(q=q, k=k, v=v, start=start)


class FlashAttentionTriton(torch.autograd.Function):
    """The course's face: `apply(q, k, v, is_causal=False)` on (batch, queries or keys, d_head).

    Heads are folded into the batch. The causal mask is aligned at the top left: query i sees
    keys 0..i. Saved for the gradient are q, k, v, the output and the float32 log-sums
    (batch, queries), of which Algorithm 2 needs no more.

    Source: CS336, assignment 2; Dao 2023, FlashAttention-2, Algorithms 1-2 (arXiv:2307.08691).
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, is_causal: bool = False) -> Tensor:
        """Softmax attention, scaled by 1/sqrt(d_head)."""
        scale = q.shape[-1] ** -0.5
        _check(q[:, None], k[:, None], v[:, None], None, is_causal, scale, None)
        ctx.problem = (is_causal, scale)
        problem = _top_left(q, k, v, is_causal, scale)
        out, lse = forward(problem, _config(problem))
        ctx.save_for_backward(q, k, v, out[:, 0], lse[:, 0])
        return out[:, 0]

    @staticmethod
    def backward(ctx: Any, *d_outs: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of q, k and v."""
        q, k, v, out, lse = ctx.saved_tensors
        problem = _top_left(q, k, v, *ctx.problem)
        d_lse = torch.zeros_like(lse)[:, None]
        gradients = backward(
            problem, out[:, None], lse[:, None], d_outs[0][:, None], d_lse, _config(problem)
        )
        return *(x[:, 0] for x in gradients), None


def _top_left(q: Tensor, k: Tensor, v: Tensor, is_causal: bool, scale: float) -> Problem:
    return Problem(q[:, None], k[:, None], v[:, None], None, is_causal, 0, scale, None)
