"""Compiles the backward kernel of Triton's attention tutorial, to set beside ours.

    python benches/tutorial_backward.py --tutorial 06-fused-attention.py

The file is `python/tutorials/06-fused-attention.py` of Triton's repository; its kernel is compiled
with the tiles, warps and stages that it launches itself with. Prints a row per architecture and
head width; ours are those of `python -m rslm.kernels.offline`.
"""

import argparse
import ast
import importlib.util
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from rslm.kernels.flash_launch import Compilation
from rslm.kernels.offline.binaries import compile_kernel
from rslm.kernels.offline.roofline import programs_at_home
from rslm.kernels.offline.targets import find_target
from rslm.terminal import print_table

KERNEL = "_attn_bwd"
CONSTANTS = {"BLOCK_M1": 32, "BLOCK_N1": 128, "BLOCK_M2": 128, "BLOCK_N2": 32}
OPTIONS = {"num_warps": 4, "num_stages": 5, "enable_fp_fusion": True}


def load_kernels(path: Path, folder: Path) -> ModuleType:
    """The backward's device functions alone: the file as a whole wants a GPU when it loads."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith(KERNEL)
    ]
    if KERNEL not in {function.name for function in functions}:
        raise ValueError(f"--tutorial must define {KERNEL}, {path} does not")
    module = folder / "tutorial_kernels.py"
    imports = "import triton\nimport triton.language as tl\n\n"
    module.write_text(imports + "\n\n".join(map(ast.unparse, functions)), encoding="utf-8")
    spec = importlib.util.spec_from_file_location(module.stem, module)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def compilation(kernel: Any, d_head: int) -> Compilation:
    """As its launch specialises it for contiguous float16 tensors and 16 heads."""
    values = {**CONSTANTS, "BLK_SLICE_FACTOR": 2, "HEAD_DIM": d_head, "stride_d": 1}
    kinds = {"sm_scale": "fp32", "M": "*fp32", "D": "*fp32"}
    kinds |= dict.fromkeys(["stride_z", "stride_h", "stride_tok", "H", "N_CTX"], "i32")
    kinds |= dict.fromkeys(values, "constexpr")
    names = kernel.arg_names
    return Compilation(
        kernel=kernel,
        signature={name: kinds.get(name, "*fp16") for name in names},
        constants={(names.index(name),): value for name, value in values.items()},
        attributes={
            (place,): [["tt.divisibility", 16]]
            for place, name in enumerate(names)
            if name not in values and name != "sm_scale"
        },
        options=OPTIONS,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Compiles the tutorial's backward without a GPU.")
    parser.add_argument("--tutorial", type=Path, required=True, metavar="FILE")
    parser.add_argument("--arch", nargs="+", default=["80", "90"], metavar="ARCH")
    parser.add_argument("--d-head", nargs="+", type=int, default=[64, 128], metavar="N")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            kernel = getattr(load_kernels(options.tutorial, Path(folder)), KERNEL)
            targets = [find_target(arch) for arch in options.arch]
        except (OSError, ValueError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        for target in targets:
            for d_head in options.d_head:
                binary = compile_kernel(compilation(kernel, d_head), target)
                numbers = (binary.n_registers, binary.spill_bytes, binary.loop_spills)
                rows.append([target.arch, d_head, *numbers, programs_at_home(binary, target)])
    print_table(["arch", "d_head", "registers", "spilled", "in loop", "per SM"], rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
