"""Every way to compute attention, run once and compared with the formula."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from rslm.attention import attention, implementations_on, scaled_dot_product_attention
from rslm.doctor.check import Check
from rslm.train_config import TrainConfig

TILE = 65
"""Queries and keys of the tile that attention is tried on: one more than a round number."""
_KERNELS = {
    "torch/flash": SDPBackend.FLASH_ATTENTION,
    "torch/efficient": SDPBackend.EFFICIENT_ATTENTION,
    "torch/cudnn": SDPBackend.CUDNN_ATTENTION,
    "torch/math": SDPBackend.MATH,
}
_KERNELS_OF = {
    "cpu": ["torch/flash", "torch/math"],
    "cuda": list(_KERNELS),
}


def check_attention(config: TrainConfig, device: torch.device) -> Iterator[Check]:
    """Every way to compute attention on one tile, forward and backward, against float64."""
    dtypes = [torch.float32]
    if config.precision == "bfloat16":
        dtypes.append(torch.bfloat16)
    windows = sorted({w for w in config.model.windows if w is not None and w < TILE})[:1]
    d_head = config.model.resolved_d_head
    for path in _attention_paths(device):
        for dtype in dtypes:
            name = f"attention {path} {str(dtype).removeprefix('torch.')}"
            # Few of PyTorch's kernels take a mask, which `attention` knows.
            tried = [None, *([] if path in _KERNELS else windows)]
            yield _try_attention(name, path, dtype, device, d_head, tried)


def _attention_paths(device: torch.device) -> list[str]:
    """Our implementations, and the kernels that PyTorch's may choose."""
    return [*implementations_on(device), *_KERNELS_OF.get(device.type, [])]


def _try_attention(
    name: str,
    path: str,
    dtype: torch.dtype,
    device: torch.device,
    d_head: int,
    windows: list[int | None],
) -> Check:
    largest, allowed = 0.0, 0.0
    try:
        for window in windows:
            error, limit = attention_error(path, dtype, device, d_head, window)
            largest, allowed = max(largest, error), max(allowed, limit)
            if not error <= limit:
                advice = "do not train with it: compare its versions with those of a good machine"
                found = f"error {error:.2g}, must be at most {limit:.2g}"
                return Check(name=name, status="fail", found=found, advice=advice)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:120]
        if "/" in path:
            # PyTorch takes another kernel then; that is slower, not wrong.
            advice = "nothing has to be done: PyTorch takes another kernel"
            return Check(name=name, status="warn", found=f"cannot run: {reason}", advice=advice)
        return Check(name=name, status="fail", found=reason, advice="install PyTorch anew")
    return Check(name=name, status="ok", found=f"error {largest:.2g} of {allowed:.2g}")


def attention_error(
    path: str, dtype: torch.dtype, device: torch.device, d_head: int, window: int | None
) -> tuple[float, float]:
    """The largest relative error of output and gradients on a tile, and the largest allowed one.

    Allowed is twice the error of the formula in the same dtype, and a few roundings.

    Raises:
        RuntimeError: there is no such kernel for this device and dtype.
    """
    draw = torch.Generator().manual_seed(0)
    tile = torch.randn(4, 1, 2, TILE, d_head, generator=draw, dtype=torch.float64)
    exact = _run_tile("formula", tile, torch.float64, torch.device("cpu"), window)
    plain = _run_tile("formula", tile, dtype, device, window)
    tried = _run_tile(path, tile, dtype, device, window)
    roundings = 2 * torch.finfo(dtype).eps
    return _distance(tried, exact), 2 * _distance(plain, exact) + roundings


def _run_tile(
    path: str, tile: Tensor, dtype: torch.dtype, device: torch.device, window: int | None
) -> list[Tensor]:
    """Output and gradients of causal attention, in float64 on the CPU."""
    q, k, v, direction = (part.to(device, dtype) for part in tile)
    q, k, v = (part.clone().requires_grad_() for part in (q, k, v))
    mask = None if window is None else _window_mask(window, device)
    if path in _KERNELS:
        # Asked for directly: `attention` goes around kernels that are slow in 16 bits.
        with sdpa_kernel(_KERNELS[path]):
            fused = torch.nn.functional.scaled_dot_product_attention
            output = fused(q, k, v, attn_mask=mask, is_causal=mask is None)
            output.backward(direction)
    elif path == "formula":
        mask = _window_mask(TILE, device) if mask is None else mask
        output = scaled_dot_product_attention(q, k, v, mask)
        output.backward(direction)
    else:
        implementation: Any = path
        output = attention(q, k, v, causal=True, window=window, implementation=implementation)
        output.backward(direction)
    results = [output, *(part.grad for part in (q, k, v) if part.grad is not None)]
    return [part.detach().to("cpu", torch.float64) for part in results]


def _window_mask(window: int, device: torch.device) -> Tensor:
    seen = torch.ones(TILE, TILE, dtype=torch.bool, device=device).tril()
    return seen.triu(1 - window)


def _distance(found: list[Tensor], exact: list[Tensor]) -> float:
    """The largest difference relative to the largest entry; infinite where one is no number."""
    distances = [
        float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, exact, strict=True)
    ]
    return max(math.inf if math.isnan(distance) else distance for distance in distances)
