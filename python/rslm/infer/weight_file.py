"""Safetensors files written and read one tensor at a time, so a model is never twice in memory.

The format: the length of a JSON header in eight little-endian bytes, the header with dtype, shape
and place of each tensor, then the tensors. Reading is left to the `safetensors` package, which
holds every place against the size of the file before anything is allocated.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rslm.checkpoint import check_tensor_names, is_finite, model_tensors
from rslm.errors import FormatError

Shapes = Mapping[str, tuple[int, ...]]
NamedTensors = Iterable[tuple[str, Tensor]]

DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_READ_DTYPES = {*DTYPES, torch.float64}


def write_weights(
    path: Path, shapes: Shapes, tensors: NamedTensors, *, dtype: torch.dtype = torch.float32
) -> None:
    """Writes tensors, converted to `dtype`, as they come; `shapes` says which, in what order.

    Raises:
        ValueError: a number is too large for the dtype.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in shapes.items():
        end = at + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": DTYPES[dtype], "shape": shape, "data_offsets": (at, end)}
        at = end
    data = json.dumps(header, separators=(",", ":")).encode()
    data += b" " * (-len(data) % 8)
    with path.open("wb") as file:
        file.write(len(data).to_bytes(8, "little") + data)
        for (name, shape), (given, tensor) in zip(shapes.items(), tensors, strict=True):
            assert (name, shape) == (given, tuple(tensor.shape)), f"{name} must come, got {given}"
            flat = converted(tensor, dtype, name).contiguous().flatten()
            file.write(flat.view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())


def converted(tensor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """The tensor on the CPU in another dtype.

    Raises:
        ValueError: a number is too large for it.
    """
    result = tensor.detach().to("cpu", dtype)
    if dtype == torch.float16 and not result.isfinite().all():
        raise ValueError(
            f"{name} must hold numbers below 65520 to be float16; choose another dtype"
        )
    return result


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a file, from its header alone.

    Raises:
        FormatError: it is not a safetensors file.
        FileNotFoundError: there is no such file.
    """
    try:
        with safe_open(path, "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in sorted(file.keys())}
    except SafetensorError as error:
        raise FormatError(f"{path} is not a safetensors file: {error!s:.200}") from None


def copy_weights(path: Path, model: torch.nn.Module) -> None:
    """Copies a file into a model with the same names and shapes, whatever the floating dtype.

    Raises:
        FormatError: names, shapes or kinds differ, or a number is not finite.
    """
    own, stored = model_tensors(model), tensor_shapes(path)
    check_tensor_names(own, stored, str(path))
    for name, tensor in own.items():
        if stored[name] != tuple(tensor.shape):
            raise FormatError(
                f"{path}: tensor {name} must have the shape {tuple(tensor.shape)}, "
                f"got {stored[name]}"
            )
    with safe_open(path, "pt") as file, torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(finite(file.get_tensor(name), f"{path}: tensor {name}"))


def finite(tensor: Tensor, name: str) -> Tensor:
    """The tensor, once it is known to hold numbers that are finite in float32.

    Raises:
        FormatError: it does not.
    """
    if tensor.dtype not in _READ_DTYPES:
        raise FormatError(
            f"{name} must hold floating-point numbers of 16 bits or more, got {tensor.dtype}"
        )
    # What float64 holds may be too large for a model.
    tensor = tensor.float() if tensor.dtype == torch.float64 else tensor
    if not is_finite(tensor):
        raise FormatError(f"{name} must hold finite numbers only")
    return tensor
