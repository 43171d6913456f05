"""What each attention kernel is launched with, and so compiled with: one home for both."""

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from rslm.kernels.flash_backward import (
    key_gradients_kernel,
    query_gradients_kernel,
    row_terms_kernel,
)
from rslm.kernels.flash_forward import forward_kernel
from rslm.kernels.launch_configs import FlashConfig, LaunchConfig, flash_config, padded_width

_LOG2E = 1.0 / math.log(2.0)


class Problem(NamedTuple):
    """What stays the same from the forward kernel to the last of the backward ones.

    Attributes:
        start: the first key that a query sees, (batch or 1, queries), or None for key 0.
        offset: with `causal`, query i sees no key behind i + offset.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    start: Tensor | None
    causal: bool
    offset: int
    scale: float
    softcap: float | None

    def sizes(self) -> dict[str, Any]:
        """Kernel arguments that follow from shapes, and the two factors of the scores."""
        multiplier, cap = self.scale * _LOG2E, 0.0
        if self.softcap is not None:
            multiplier, cap = 2 * multiplier / self.softcap, self.softcap * _LOG2E
        return {
            "n_heads": self.q.shape[1],
            "group": self.q.shape[1] // self.k.shape[1],
            "n_queries": self.q.shape[2],
            "n_keys": self.k.shape[2],
            "offset": self.offset,
            "multiplier": multiplier,
            "cap": cap,
        }

    def switches(self, config: LaunchConfig, use_descriptors: bool) -> dict[str, Any]:
        """Constants that the kernels with a loop are compiled for."""
        return {
            "Br": config.tile_queries,
            "Bc": config.tile_keys,
            "D": self.q.shape[3],
            "D_PAD": padded_width(self.q.shape[3]),
            "CAUSAL": self.causal,
            "HAS_START": self.start is not None,
            "SOFTCAP": self.softcap is not None,
            "DESCRIPTORS": use_descriptors,
            # TF32, the default for float32, would leave three digits.
            "PRECISION": "ieee",
        }


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A kernel with its arguments, ready to run."""

    kernel: Any
    n_programs: int
    arguments: dict[str, Any]
    n_warps: int
    n_stages: int

    @property
    def options(self) -> dict[str, Any]:
        """Options of the compiler. Triton 3.10 stops fusing multiply and add by itself."""
        return {"num_warps": self.n_warps, "num_stages": self.n_stages, "enable_fp_fusion": True}

    def run(self, device: torch.device) -> None:
        """Starts the kernel on the device's current stream."""
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            self.kernel[(self.n_programs,)](**self.arguments, **self.options)


@dataclass(frozen=True, kw_only=True)
class Compilation:
    """What `triton.compile` needs to make the binary that a launch would use.

    Attributes:
        kernel: the jitted function.
        signature: type of each argument by name, "constexpr" for constants.
        constants: values of those.
        attributes: what is known of arguments by their place, as Triton's `ASTSource` takes it.
        options: of the compiler.
    """

    kernel: Any
    signature: dict[str, Any]
    constants: dict[tuple[int, ...], Any]
    attributes: dict[tuple[int, ...], list[list[Any]]]
    options: dict[str, Any]


def compilation(launch: Launch) -> Compilation:
    """The specialisation that Triton chooses for a launch, worked out without a GPU."""
    signature, constants, attributes = {}, {}, {}

    def visit(value: Any, place: tuple[int, ...], parameter: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(visit(x, (*place, i), parameter) for i, x in enumerate(value))
        is_one = type(value) is int and value == 1 and not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or is_one:
            constants[place] = value
            return "constexpr"
        kind, is_aligned = _type_of(value)
        if is_aligned and not parameter.do_not_specialize:
            attributes[place] = [["tt.divisibility", 16]]
        return kind

    for place, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        signature[parameter.name] = visit(value, (place,), parameter)
    return Compilation(
        kernel=launch.kernel,
        signature=signature,
        constants=constants,
        attributes=attributes,
        options=launch.options,
    )


def _type_of(value: Any) -> tuple[str, bool]:
    """Triton's name for the type of an argument, and whether it is a multiple of 16."""
    if isinstance(value, TensorDescriptor):
        return f"tensordesc<{_dtype_name(value.base)}{list(value.block_shape)}>", False
    if isinstance(value, Tensor):
        return f"*{_dtype_name(value)}", value.data_ptr() % 16 == 0
    if isinstance(value, float):
        return "fp32", False
    return ("i32" if -(2**31) <= value < 2**31 else "i64"), value % 16 == 0


def _dtype_name(x: Tensor) -> str:
    return {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "int32": "i32"}[
        str(x.dtype).removeprefix("torch.")
    ]


def compilations(
    arch: str,
    d_head: int,
    dtype: torch.dtype,
    *,
    causal: bool = True,
    has_start: bool = False,
    softcap: float | None = None,
    group: int = 1,
    config: FlashConfig | None = None,
) -> dict[str, Compilation]:
    """Every kernel as it is compiled on an architecture for (4, 8, 4096, d_head), by name.

    Args:
        arch: as `launch_configs.architecture` names it.
        group: query heads to a key-value head, a divisor of 8.
        config: in place of the table's.
    """
    config = config or flash_config(
        arch, d_head, dtype, has_start=has_start, has_softcap=softcap is not None
    )
    q, out, d_out = torch.empty(3, 4, 8, 4096, d_head, dtype=dtype, device="meta")
    k, v = torch.empty(2, 4, 8 // group, 4096, d_head, dtype=dtype, device="meta")
    lse = torch.empty(q.shape[:3], device="meta")
    start = torch.empty(4, 4096, dtype=torch.int32, device="meta") if has_start else None
    problem = Problem(q, k, v, start, causal, 0, d_head**-0.5, softcap)
    launches = [
        forward_launch(problem, out, lse, config.forward),
        *backward_launches(problem, start, out, lse, d_out, lse, (q, k, v), config),
    ]
    return {launch.kernel.__name__: compilation(launch) for launch in launches}


def forward_launch(problem: Problem, out: Tensor, lse: Tensor, config: LaunchConfig) -> Launch:
    """The launch that fills `out` and `lse`."""
    q, k, v = problem.q, problem.k, problem.v
    tiles = {"Q": (q, config.tile_queries), "K": (k, config.tile_keys), "V": (v, config.tile_keys)}
    inputs, use_descriptors = _inputs(tiles, config)
    arguments = {
        **inputs,
        **_output("Out", out),
        "Lse": lse,
        **_bound("Start", problem.start),
        **problem.sizes(),
        **problem.switches(config, use_descriptors),
    }
    return _launch(forward_kernel, q.shape[2], config.tile_queries, q, arguments, config)


def backward_launches(
    problem: Problem,
    end: Tensor | None,
    out: Tensor,
    lse: Tensor,
    d_out: Tensor,
    d_lse: Tensor,
    gradients: tuple[Tensor, Tensor, Tensor],
    config: FlashConfig,
) -> list[Launch]:
    """The launches that fill the gradients of q, k and v, in their order."""
    q, k, v = problem.q, problem.k, problem.v
    of_keys, of_queries = config.key_gradients, config.query_gradients
    # A loop over queries may begin anywhere, and its last tile reach this far behind the end.
    reach = q.shape[2] + max(of_keys.tile_queries, of_queries.tile_queries)
    n_padded = triton.cdiv(reach, 16) * 16
    row, delta = lse.new_empty(2, q.shape[0], q.shape[1], n_padded).unbind()
    dq, dk, dv = gradients
    rows = {"Row": row, "Delta": delta, "n_padded": n_padded}
    both = {**rows, **problem.sizes(), "scale": problem.scale}
    names = ("Q", "K", "V", "dOut")
    launches = [_row_terms(problem, out, lse, d_out, d_lse, rows)]
    for part, kernel, tile, n_rows in (
        (of_keys, key_gradients_kernel, of_keys.tile_keys, k),
        (of_queries, query_gradients_kernel, of_queries.tile_queries, q),
    ):
        heights = (part.tile_queries, part.tile_keys, part.tile_keys, part.tile_queries)
        tiles = dict(zip(names, zip((q, k, v, d_out), heights, strict=True), strict=True))
        inputs, use_descriptors = _inputs(tiles, part)
        if kernel is key_gradients_kernel:
            results = {**_output("dK", dk), **_output("dV", dv), **_bound("End", end)}
        else:
            results = {**_output("dQ", dq), **_bound("Start", problem.start)}
        arguments = {**inputs, **results, **both, **problem.switches(part, use_descriptors)}
        launches.append(_launch(kernel, n_rows.shape[2], tile, n_rows, arguments, part))
    return launches


def _row_terms(
    problem: Problem,
    out: Tensor,
    lse: Tensor,
    d_out: Tensor,
    d_lse: Tensor,
    rows: dict[str, Any],
) -> Launch:
    width = padded_width(problem.q.shape[3])
    config = LaunchConfig(8192 // width, 0, 4, 1)
    arguments = {
        **_output("Out", out),
        **_output("dOut", d_out),
        "Lse": lse,
        "dLse": d_lse,
        **rows,
        "n_heads": out.shape[1],
        "n_queries": out.shape[2],
        "Br": config.tile_queries,
        "D": out.shape[3],
        "D_PAD": width,
    }
    n_rows: int = rows["n_padded"]
    return _launch(row_terms_kernel, n_rows, config.tile_queries, out, arguments, config)


def _launch(
    kernel: Any, n_rows: int, tile: int, x: Tensor, arguments: dict[str, Any], config: LaunchConfig
) -> Launch:
    """One program for each tile of each head of x."""
    return Launch(
        kernel=kernel,
        n_programs=triton.cdiv(n_rows, tile) * x.shape[0] * x.shape[1],
        arguments=arguments,
        n_warps=config.n_warps,
        n_stages=config.n_stages,
    )


def _inputs(
    tiles: dict[str, tuple[Tensor, int]], config: LaunchConfig
) -> tuple[dict[str, Any], bool]:
    """Matrices that are read tile by tile, as descriptors if all of them can be."""
    use = config.use_descriptors and all(_has_descriptor(x) for x, _ in tiles.values())
    arguments: dict[str, Any] = {}
    for name, (x, n_rows) in tiles.items():
        arguments[name] = _descriptor(x, n_rows) if use else x
        # Strides that nobody reads must not be a reason to compile anew.
        arguments[_strides_of(name)] = (0, 0, 0) if use else x.stride()[:3]
    return arguments, use


def _output(name: str, x: Tensor) -> dict[str, Any]:
    return {name: x, _strides_of(name): x.stride()[:3]}


def _strides_of(name: str) -> str:
    return f"{name.lower()}_strides"


def _bound(name: str, bound: Tensor | None) -> dict[str, Any]:
    stride = 0 if bound is None or bound.shape[0] == 1 else bound.stride(0)
    return {name: bound, f"{name.lower()}_stride": stride}


def _has_descriptor(x: Tensor) -> bool:
    """Whether base and strides are multiples of 16 bytes, and no dimension is a broadcast."""
    outer = zip(x.stride()[:3], x.shape[:3], strict=True)
    strides = [stride for stride, size in outer if size > 1]
    aligned = all(stride > 0 and stride * x.itemsize % 16 == 0 for stride in strides)
    return aligned and x.stride(-1) == 1 and x.data_ptr() % 16 == 0


def _descriptor(x: Tensor, n_rows: int) -> TensorDescriptor:
    # A dimension of one element may have any stride, and a descriptor takes multiples of 16 bytes.
    unit = 16 // x.itemsize
    strides = [
        stride if size > 1 else unit for stride, size in zip(x.stride(), x.shape, strict=True)
    ]
    block = [1, 1, n_rows, padded_width(x.shape[3])]
    return TensorDescriptor(x, list(x.shape), [*strides[:3], 1], block)
