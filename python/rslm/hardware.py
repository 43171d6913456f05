"""What accelerators can do at most, from their makers' data sheets. No torch."""

from dataclasses import dataclass
from typing import Literal

Dtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    """One kind of device.

    Attributes:
        name: what people call it.
        reported: how the name that CUDA reports begins.
        bfloat16_flops: dense FLOP/s of matrix products, summed in float32, without sparsity.
        float32_flops: likewise of float32 products that are not rounded to TF32.
        memory_bytes: of the device.
        source: the document.
    """

    name: str
    reported: str
    bfloat16_flops: float
    float32_flops: float
    memory_bytes: int
    source: str

    def peak_flops(self, dtype: Dtype) -> float:
        """Dense FLOP/s of products in `dtype`."""
        return self.bfloat16_flops if dtype == "bfloat16" else self.float32_flops


def _accelerator(
    name: str, reported: str, teraflops: tuple[float, float], gigabytes: int, source: str
) -> Accelerator:
    return Accelerator(
        name=name,
        reported=reported,
        bfloat16_flops=teraflops[0] * 1e12,
        float32_flops=teraflops[1] * 1e12,
        memory_bytes=gigabytes * 10**9,
        source=source,
    )


_ADA = "NVIDIA Ada GPU Architecture white paper 2.02 (2023), appendix A"
_H100 = "NVIDIA H100 Tensor Core GPU Architecture white paper 1.04 (2023), table 2"

# The documents named are where the numbers were taken from. They were held against tables by
# others on public pages, which agree but where a line says so:
#   A100, H100, H200: glennklockwood.com/garden/processors and a distributor's H100 page (hpctech).
#   B200: the same site for the HGX part at 1000 W; another table has 75 TFLOP/s of float32, counted
#       from clocks. The chip has 192 GB, of which systems show 179 to 180.
#   L4, L40S: a reseller's table (sourcecode.com) has twice these with sparsity; counted from
#       clocks (hmc-tech.com) an L4 has 125 and 31.3, and an L40 362.
#   RTX 4090: hmc-tech.com. RTX 5090: half of a half of 838 with sparsity summed in float16; others
#       measure up to 254, at clocks above the stated boost.
#   Unverified: bfloat16 of the RTX 3090 and both numbers of the A10, found in lists without a
#       source only.
ACCELERATORS = (
    _accelerator(
        "A100-40GB", "NVIDIA A100-SXM4-40GB", (312, 19.5), 40, "NVIDIA A100 data sheet (2021)"
    ),
    _accelerator("A100-80GB", "NVIDIA A100", (312, 19.5), 80, "NVIDIA A100 data sheet (2021)"),
    _accelerator("H100-PCIe", "NVIDIA H100 PCIe", (756, 51.2), 80, _H100),
    _accelerator("H100", "NVIDIA H100 80GB HBM3", (989.4, 66.9), 80, _H100),
    _accelerator("H200", "NVIDIA H200", (989.4, 66.9), 141, "NVIDIA H200 data sheet (2024)"),
    _accelerator("B200", "NVIDIA B200", (2250, 80), 180, "NVIDIA HGX B200 data sheet (2024)"),
    _accelerator("L40S", "NVIDIA L40S", (362.05, 91.6), 48, "NVIDIA L40S data sheet (2023)"),
    _accelerator("L4", "NVIDIA L4", (121, 30.3), 24, "NVIDIA L4 data sheet (2023)"),
    _accelerator("A10", "NVIDIA A10", (125, 31.2), 24, "NVIDIA A10 data sheet (2021)"),
    _accelerator(
        *("RTX-3090", "NVIDIA GeForce RTX 3090", (71, 35.6), 24),
        "NVIDIA Ampere GA102 GPU Architecture white paper 2.0 (2021), table 9",
    ),
    _accelerator("RTX-4090", "NVIDIA GeForce RTX 4090", (165.2, 82.6), 24, _ADA),
    _accelerator(
        *("RTX-5090", "NVIDIA GeForce RTX 5090", (209.5, 104.8), 32),
        "NVIDIA RTX Blackwell GPU Architecture white paper 1.1 (2025), appendix A",
    ),
)
"""Those known; where a reported name fits several, the first counts."""


def find_accelerator(name: str) -> Accelerator:
    """The accelerator that people call so, in letters of any size.

    Raises:
        ValueError: none is known by that name.
    """
    for accelerator in ACCELERATORS:
        if accelerator.name.lower() == name.lower():
            return accelerator
    known = ", ".join(accelerator.name for accelerator in ACCELERATORS)
    raise ValueError(f"hardware must be one of {known}, got {name!r}")


def reported_accelerator(reported: str) -> Accelerator | None:
    """The accelerator whose driver reports this name; None for one that is not listed.

    >>> reported_accelerator("NVIDIA A100-SXM4-80GB").name
    'A100-80GB'
    """
    for accelerator in ACCELERATORS:
        # Other cards share the beginning: an A10G, an H200 NVL, the 4090 of a laptop.
        rest = reported.removeprefix(accelerator.reported)
        is_same = not rest or rest.startswith("-") or rest == " 80GB PCIe"
        if reported.startswith(accelerator.reported) and is_same:
            return accelerator
    return None
