"""Compiles a kernel for an architecture without a GPU, and reads what came out."""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability
from triton.compiler import ASTSource

from rslm.kernels.flash_launch import Compilation
from rslm.kernels.offline.machine_code import (
    EXP2,
    FUSED,
    LOCAL_MEMORY,
    PRODUCT,
    count,
    hot_loop,
    parse,
)
from rslm.kernels.offline.targets import Target

_PRODUCTS = {
    "tcgen05": "tcgen05.mma",
    "wgmma": "wgmma.mma_async",
    "mma.sync": "mma.sync",
    "v_mfma": "v_mfma",
}
"""Names of matrix products, the fastest first, and how the assembly's text shows them."""


@dataclass(frozen=True, kw_only=True)
class Binary:
    """What a compiled kernel takes, and what its hot loop does in a turn.

    Attributes:
        n_registers: of a lane; with AMD, accumulation registers included.
        spill_bytes: of a lane, stored to local memory because registers did not suffice. The
            compilers count stores; everything stored is loaded once or more.
        shared_bytes: of a program.
        tensor_columns: of tensor memory, of a program (sm_100).
        amd_waves: that fit a SIMD by registers, as LLVM says; None with NVIDIA.
        product: instruction of matrix products, "none" where there is none.
        uses_tma: whether tiles come by the tensor memory accelerator.
        loop_instructions: of a warp, in a turn of the hot loop.
        loop_products: of these, products: of matrices, or of numbers where `product` is none.
        loop_exp2: of these, exponentials.
        loop_spills: of these, loads and stores of local memory.
    """

    n_warps: int
    n_stages: int
    n_registers: int
    spill_bytes: int
    shared_bytes: int
    tensor_columns: int
    amd_waves: int | None
    product: str
    uses_tma: bool
    loop_instructions: int
    loop_products: int
    loop_exp2: int
    loop_spills: int


def compile_kernel(compilation: Compilation, target: Target) -> Binary:
    """Compiles with Triton, from its cache where it can, and disassembles.

    Raises:
        RuntimeError: one of the compilers fails; the message is its own.
    """
    source = ASTSource(
        fn=compilation.kernel,
        signature=compilation.signature,
        constexprs=compilation.constants,
        attrs=compilation.attributes,
    )
    gpu = (
        GPUTarget("hip", target.arch, 64)
        if target.is_amd
        else GPUTarget("cuda", int(target.arch), 32)
    )
    compiled = triton.compile(source, target=gpu, options=compilation.options)
    usage, text = _amd(compiled) if target.is_amd else _nvidia(compiled, int(target.arch))
    assembly = compiled.asm["amdgcn" if target.is_amd else "ptx"]
    code = parse(text)
    kind = PRODUCT if count(code, PRODUCT) else FUSED
    loop = hot_loop(code, kind)
    return Binary(
        **usage,
        n_warps=compiled.metadata.num_warps,
        n_stages=compiled.metadata.num_stages,
        shared_bytes=compiled.metadata.shared,
        tensor_columns=getattr(compiled.metadata, "tmem_size", 0) or 0,
        product=next((name for name, sign in _PRODUCTS.items() if sign in assembly), "none"),
        uses_tma="cp.async.bulk.tensor" in assembly,
        loop_instructions=len(loop),
        loop_products=count(loop, kind),
        loop_exp2=count(loop, EXP2),
        loop_spills=count(loop, LOCAL_MEMORY),
    )


def _nvidia(compiled: Any, arch: int) -> tuple[dict[str, Any], str]:
    """Registers and spills, which only the log of ptxas tells, and the disassembly."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "kernel.ptx").write_text(compiled.asm["ptx"])
        (folder / "kernel.cubin").write_bytes(compiled.asm["cubin"])
        # With Triton's own flags, so that registers are given out as in its binary.
        log = _output(
            [
                *[get_ptxas(arch).path, "-v", f"--gpu-name={sm_arch_from_capability(arch)}"],
                *["--regAllocOptLevel=2", "kernel.ptx", "-o", "again.cubin"],
            ],
            folder,
        )
        text = _output([knobs.nvidia.nvdisasm.path, "-c", "kernel.cubin"], folder)
    usage = {
        "n_registers": _number(r"Used (\d+) registers", log),
        "spill_bytes": _number(r"(\d+) bytes spill stores", log),
        "amd_waves": None,
    }
    return usage, text


def _amd(compiled: Any) -> tuple[dict[str, Any], str]:
    """What LLVM notes at the end of its assembly, and the assembly."""
    text: str = compiled.asm["amdgcn"]
    usage = {
        "n_registers": _number(r"\.vgpr_count:\s+(\d+)", text),
        "spill_bytes": 4 * _number(r"\.vgpr_spill_count:\s+(\d+)", text),
        "amd_waves": _number(r"; Occupancy: (\d+)", text),
    }
    return usage, text


def _output(command: list[str], folder: Path) -> str:
    """What a program prints, on stdout and stderr."""
    done = subprocess.run(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{Path(command[0]).name} failed: {done.stdout.strip()}")
    return done.stdout


def _number(pattern: str, text: str) -> int:
    match = re.search(pattern, text)
    assert match, f"no {pattern} in what the compiler says"
    return int(match[1])
