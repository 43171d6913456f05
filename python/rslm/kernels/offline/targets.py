"""What is compiled here and for what: kernels, and what a multiprocessor has and can do."""

from dataclasses import dataclass

from rslm.hardware import find_accelerator

KERNELS = {
    "forward": "forward_kernel",
    "row_terms": "row_terms_kernel",
    "key_gradients": "key_gradients_kernel",
    "query_gradients": "query_gradients_kernel",
    "paged": "paged_kernel",
}
"""What kernels are called in a launch configuration, and in the code."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """An architecture; a multiprocessor is NVIDIA's SM or AMD's CU.

    Attributes:
        arch: as `launch_configs.architecture` names it.
        product: of matrices, the instruction that is the fast one.
        needs_tma: whether products are only kept busy by the tensor memory accelerator.
        program_shared_bytes: of shared memory that a program may have.
        shared_bytes: of shared memory that a multiprocessor has.
        n_warps: that are at home on a multiprocessor at most.
        flops_per_clock: dense, bfloat16, of a multiprocessor.
        accelerator: one of `rslm.hardware` with this architecture.
    """

    arch: str
    product: str
    needs_tma: bool
    program_shared_bytes: int
    shared_bytes: int
    n_warps: int
    flops_per_clock: int
    accelerator: str | None

    @property
    def is_amd(self) -> bool:
        """Whether warps have 64 lanes and the binary comes from LLVM."""
        return self.arch.startswith("gfx")

    @property
    def peak_flops(self) -> float | None:
        """Dense bfloat16 FLOP/s of the accelerator, from its maker's data sheet."""
        return (
            find_accelerator(self.accelerator).peak_flops("bfloat16") if self.accelerator else None
        )


def _target(
    arch: str,
    product: str,
    kilobytes: tuple[int, int],
    n_warps: int,
    flops_per_clock: int,
    accelerator: str | None,
) -> Target:
    return Target(
        arch=arch,
        product=product,
        needs_tma=product in ("wgmma", "tcgen05"),
        program_shared_bytes=kilobytes[0] * 1024,
        shared_bytes=kilobytes[1] * 1024,
        n_warps=n_warps,
        flops_per_clock=flops_per_clock,
        accelerator=accelerator,
    )


# Sizes: CUDA C++ Programming Guide 13.0, "Compute Capabilities", table of technical specifications.
# FLOPs per clock: the peak of the accelerator's data sheet by its multiprocessors and clock (A100
# 108 at 1.41 GHz, H100 132 at 1.83, B200 148 at 1.85, RTX 3090 82 at 1.695, RTX 4090 128 at 2.52,
# RTX 5090 170 at 2.407), a power of two each. CDNA 3: AMD's white paper of 2023 and ISA guide.
TARGETS = {
    target.arch: target
    for target in (
        _target("80", "mma.sync", (163, 164), 64, 2048, "A100-80GB"),
        _target("86", "mma.sync", (99, 100), 48, 512, "RTX-3090"),
        _target("89", "mma.sync", (99, 100), 48, 512, "RTX-4090"),
        _target("90", "wgmma", (227, 228), 64, 4096, "H100"),
        _target("100", "tcgen05", (227, 228), 64, 8192, "B200"),
        _target("120", "mma.sync", (99, 100), 48, 512, "RTX-5090"),
        _target("gfx942", "v_mfma", (64, 64), 32, 2048, None),
    )
}


def find_target(arch: str) -> Target:
    """The architecture of this name.

    Raises:
        ValueError: it is none of those known.
    """
    if arch not in TARGETS:
        raise ValueError(f"arch must be one of {', '.join(TARGETS)}, got {arch!r}")
    return TARGETS[arch]
