"""The matrix products a device can do in a second, measured, and the dtype that suits them."""

import math
import time

import torch


@torch.no_grad()
def measure_matmul_flops(
    device: torch.device, dtype: torch.dtype, *, seconds: float = 0.3
) -> float:
    """FLOP/s of the fastest of many square matrix products, in `dtype`.

    On a CPU with torch's threads as they are. Takes about `seconds`, and as much again on the
    device for the first products, which warm up. The numbers are random: products of equal ones
    take a GPU less power, and so less time, than those of a model.
    """
    size, n_products = (1024, 1) if device.type == "cpu" else (8192, 4)
    # A generator of its own: a run that asks for its utilisation draws the same numbers after.
    generator = torch.Generator().manual_seed(0)
    a, b = (
        torch.randn(size, size, generator=generator).to(device=device, dtype=dtype)
        for _ in range(2)
    )
    out = torch.empty_like(a)
    best = math.inf
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or best == math.inf:
        start = time.perf_counter()
        for _ in range(n_products):
            torch.matmul(a, b, out=out)
        # Reading one entry waits for the products on every kind of device.
        out[0, 0].item()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 * n_products / best


def has_bfloat16_units(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 matrices in hardware.

    A CPU without such units works them out entry by entry: 2.6 ms for two of 128 x 128 on a Zen 3
    core, whose float32 product takes 0.09 ms.
    """
    if device.type != "cpu":
        return True
    # PyTorch before 2.9 does not say; its float32 products are fast everywhere.
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(bool(found) for name, found in capabilities.items() if "bf16" in name)
