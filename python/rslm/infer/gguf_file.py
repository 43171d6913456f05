"""The header of a GGUF file, read as what a stranger wrote.

A count or a length is believed only where that many bytes are left in the file, so a forged one
costs neither memory nor time; values are kept where they are small, and lists are skipped. (The
`gguf` package's own reader loops as often as the header says.)

Source: the GGUF specification of ggml, versions 2 and 3, little-endian.
"""

import math
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from rslm.errors import FormatError

_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9
_MAX_DEPTH = 4
_MAX_STRING_BYTES = 1 << 20
_MAX_DIMENSIONS = 4
_MAX_HEADER_BYTES = 1 << 26
"""A header that is longer is no model's: 256k tokens with merges take 20 MB."""


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in the file, and in what form."""

    shape: tuple[int, ...]
    """Rows first; the file has them last."""
    kind: int
    """The number of ggml's type."""
    at: int
    n_bytes: int


@dataclass(frozen=True)
class GGUFFile:
    """What the header says.

    Attributes:
        metadata: numbers, flags and strings by key; a list that is not kept is a `ListOf`.
        tensors: by name, each known to lie inside the file.
    """

    metadata: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]


@dataclass(frozen=True)
class ListOf:
    """A list in the metadata, which is not kept."""

    length: int


def read_gguf(path: Path, *, keep: Collection[str] = ()) -> GGUFFile:
    """The metadata and the places of the tensors of a file; lists only under the keys `keep`.

    Raises:
        FormatError: it is no GGUF file, is cut off, or a length in it lies.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return _Reader(path, file, keep).read()


class _Reader:
    """A file and how far it has been read."""

    def __init__(self, path: Path, file: IO[bytes], keep: Collection[str]) -> None:
        self.path, self.file, self.keep = path, file, keep
        self.size = path.stat().st_size
        self.at, self.end = 0, min(self.size, _MAX_HEADER_BYTES)

    def read(self) -> GGUFFile:
        if self.take(4) != b"GGUF":
            raise FormatError(f"{self.path}: a GGUF file must begin with GGUF")
        version = self.number("I")
        if version not in (2, 3):
            raise self.error(f"the version must be 2 or 3, little-endian; got {version}")
        n_tensors, n_keys = self.number("Q"), self.number("Q")
        metadata: dict[str, Any] = {}
        for _ in range(n_keys):
            key = self.string()
            if key in metadata:
                raise self.error(f"keys must differ, got {key:.80} twice")
            metadata[key] = self.value(self.number("I"), 0, keep=key in self.keep)
        heads = [self.tensor_head() for _ in range(n_tensors)]
        return GGUFFile(metadata, self.placed(heads, metadata))

    def placed(
        self, heads: list[tuple[str, tuple[int, ...], int, int]], metadata: Mapping[str, Any]
    ) -> dict[str, StoredTensor]:
        """The tensors, once each is known to lie inside the file."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 8 <= alignment <= 1 << 20 or alignment % 8:
            raise self.error(f"general.alignment must be a small multiple of 8, got {alignment}")
        start = self.at + -self.at % alignment
        tensors: dict[str, StoredTensor] = {}
        for name, shape, kind, offset in heads:
            try:
                block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
            except (ValueError, KeyError):
                raise self.error(f"tensor {name:.80} has the unknown type {kind}") from None
            n_elements, at = math.prod(shape), start + offset
            if not shape or shape[-1] % block:
                raise self.error(f"rows of {name:.80} must be multiples of {block}, got {shape}")
            n_bytes = n_elements // block * block_bytes
            if at + n_bytes > self.size or offset % alignment:
                raise self.error(
                    f"tensor {name:.80} must lie inside the file of {self.size} bytes, "
                    f"got {n_bytes} bytes at {at}"
                )
            if name in tensors:
                raise self.error(f"tensors must differ, got {name:.80} twice")
            tensors[name] = StoredTensor(shape, kind, at, n_bytes)
        return tensors

    def tensor_head(self) -> tuple[str, tuple[int, ...], int, int]:
        name, n_dimensions = self.string(), self.number("I")
        if not 1 <= n_dimensions <= _MAX_DIMENSIONS:
            raise self.error(f"tensor {name:.80} must have 1 to 4 dimensions, got {n_dimensions}")
        shape = tuple(self.number("Q") for _ in range(n_dimensions))
        return name, shape[::-1], self.number("I"), self.number("Q")

    def value(self, kind: int, depth: int, *, keep: bool = False) -> Any:
        """A value of the metadata; a list of strings or whole numbers where it is kept."""
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            raise self.error(f"the type of a value must be 0 to 12, got {kind}")
        if depth == _MAX_DEPTH:
            raise self.error(f"lists must nest at most {_MAX_DEPTH} deep")
        inner, length = self.number("I"), self.number("Q")
        if keep:
            return self.kept(inner, length)
        if inner in _SCALARS:
            self.skip(length * struct.calcsize(f"<{_SCALARS[inner]}"))
        else:
            # A string takes eight bytes at least, a list twelve.
            self.require(length * 8)
            for _ in range(length):
                if inner == _STRING:
                    self.skip(self.number("Q"))
                else:
                    self.value(inner, depth + 1)
        return ListOf(length)

    def kept(self, kind: int, length: int) -> list[Any]:
        """A list of strings or numbers."""
        if kind == _STRING:
            self.require(length * 8)
            return [self.string() for _ in range(length)]
        code = _SCALARS.get(kind)
        if code is None:
            raise self.error(f"a list of numbers must have a type of numbers, got {kind}")
        data = self.take(length * struct.calcsize(f"<{code}"))
        return [number for (number,) in struct.iter_unpack(f"<{code}", data)]

    def string(self) -> str:
        length = self.number("Q")
        if length > _MAX_STRING_BYTES:
            raise self.error(f"a string must have at most {_MAX_STRING_BYTES} bytes, got {length}")
        try:
            return self.take(length).decode()
        except UnicodeDecodeError:
            raise self.error("a string must be UTF-8") from None

    def number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def take(self, n_bytes: int) -> bytes:
        self.require(n_bytes)
        data = self.file.read(n_bytes)
        self.at += len(data)
        if len(data) != n_bytes:
            raise self.error("the file has become shorter")
        return data

    def skip(self, n_bytes: int) -> None:
        self.require(n_bytes)
        self.at += n_bytes
        self.file.seek(self.at)

    def require(self, n_bytes: int) -> None:
        if n_bytes > self.end - self.at:
            raise self.error(
                f"{n_bytes} bytes must follow (a header has at most {_MAX_HEADER_BYTES}), "
                f"{self.end - self.at} do"
            )

    def error(self, reason: str) -> FormatError:
        return FormatError(f"{self.path}: at byte {self.at}: {reason}")
