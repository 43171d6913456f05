"""Tile sizes, warps and stages of the attention kernels, per architecture: a table, no tuning.

The first column of figures is what PyTorch's attention templates were tuned to on hardware; where
a configuration spills registers in our kernels, the nearest one that does not stands in its place.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace

import torch


@dataclass(frozen=True)
class LaunchConfig:
    """How one kernel is cut into programs.

    Attributes:
        tile_queries: queries that a program has at hand at a time; a power of two, 16 or more.
        tile_keys: keys, likewise.
        n_warps: warps of a program.
        n_stages: tiles on their way at a time, in the loop.
        use_descriptors: read tiles through tensor descriptors where layouts allow.
    """

    tile_queries: int
    tile_keys: int
    n_warps: int
    n_stages: int
    use_descriptors: bool = False


@dataclass(frozen=True)
class FlashConfig:
    """The three kernels with a loop: output, gradients of keys and values, of queries."""

    forward: LaunchConfig
    key_gradients: LaunchConfig
    query_gradients: LaunchConfig

    def numbers(self) -> list[int]:
        """All fields in a row, the form in which an operator of PyTorch takes them."""
        parts = (self.forward, self.key_gradients, self.query_gradients)
        return [int(number) for part in parts for number in astuple(part)]

    @classmethod
    def from_numbers(cls, numbers: Sequence[int]) -> "FlashConfig":
        """The inverse of `numbers`."""
        parts = [numbers[i : i + 5] for i in (0, 5, 10)]
        return cls(*(LaunchConfig(a, b, c, d, bool(e)) for a, b, c, d, e in parts))


def _table(
    forward: tuple[int, int, int, int],
    key_gradients: tuple[int, int, int, int],
    query_gradients: tuple[int, int, int, int],
    *,
    use_descriptors: bool = False,
) -> FlashConfig:
    rows = (forward, key_gradients, query_gradients)
    return FlashConfig(*(LaunchConfig(*row, use_descriptors) for row in rows))


# (tile_queries, tile_keys, n_warps, n_stages), by architecture and padded head width.
_HALF: dict[str, dict[int, FlashConfig]] = {
    "80": {
        64: _table((128, 64, 4, 2), (64, 128, 8, 2), (64, 64, 4, 3)),
        128: _table((128, 64, 8, 3), (64, 64, 8, 2), (64, 64, 4, 2)),
        256: _table((64, 32, 4, 2), (32, 32, 8, 2), (32, 32, 4, 2)),
    },
    "90": {
        64: _table((128, 64, 4, 3), (64, 128, 8, 2), (64, 64, 4, 3), use_descriptors=True),
        128: _table((128, 128, 8, 2), (64, 128, 8, 2), (128, 64, 8, 2), use_descriptors=True),
        256: _table((64, 32, 4, 2), (32, 64, 8, 2), (64, 32, 8, 2), use_descriptors=True),
    },
    "100": {
        64: _table((128, 64, 4, 3), (64, 128, 8, 2), (128, 64, 8, 2), use_descriptors=True),
        128: _table((128, 128, 8, 2), (64, 128, 8, 2), (128, 64, 8, 2), use_descriptors=True),
        256: _table((64, 32, 4, 2), (32, 64, 8, 2), (64, 32, 8, 2), use_descriptors=True),
    },
    # Of consumers' cards: 99 KiB of shared memory for a program, and no wgmma or tcgen05. Read
    # through descriptors the gradients' kernels spill 20 to 355 times in a turn of their loops.
    "120": {
        64: FlashConfig(
            LaunchConfig(128, 64, 4, 2, True),
            LaunchConfig(64, 128, 8, 2),
            LaunchConfig(64, 64, 4, 2),
        ),
        128: FlashConfig(
            LaunchConfig(128, 64, 8, 2, True),
            LaunchConfig(64, 64, 8, 2),
            LaunchConfig(64, 64, 4, 2),
        ),
        256: _table((64, 32, 4, 2), (32, 32, 8, 2), (32, 32, 4, 2)),
    },
    # Products are of 32 rows: what has fewer for each warp is computed twice.
    "gfx942": {
        64: _table((128, 64, 4, 2), (32, 128, 4, 1), (128, 32, 4, 1)),
        128: _table((128, 32, 4, 1), (32, 128, 4, 1), (128, 16, 4, 1)),
        256: _table((64, 32, 8, 1), (32, 32, 8, 1), (32, 32, 8, 1)),
    },
}
# In place of a row's kernels where these would spill in their loops: 10 loads and stores in a turn
# with first keys on sm_80, one to five with capped scores.
_WITH_START = {("80", 128): {"forward": LaunchConfig(128, 32, 8, 3)}}
_WITH_SOFTCAP = {
    ("80", 64): {
        "forward": LaunchConfig(128, 128, 8, 2),
        "query_gradients": LaunchConfig(64, 32, 4, 3),
    },
    ("90", 128): {"key_gradients": LaunchConfig(32, 128, 8, 2, True)},
}
# Float32 without TF32 runs on the plain cores: small tiles, and nothing to overlap with.
_SINGLE = {
    64: _table((32, 32, 4, 1), (32, 32, 4, 1), (32, 32, 4, 1)),
    128: _table((32, 32, 8, 1), (16, 32, 8, 1), (32, 16, 8, 1)),
    256: _table((16, 16, 8, 1), (16, 16, 8, 1), (16, 16, 8, 1)),
}
# Of decoding from a paged cache, by padded head width. Its tiles have query-head pairs for queries.
# It reads each key once for sixteen rows and waits for memory, so the architecture hardly matters.
_PAGED = {
    64: LaunchConfig(16, 64, 4, 3),
    128: LaunchConfig(16, 64, 4, 3),
    256: LaunchConfig(16, 32, 4, 3),
}
_PAGED_SINGLE = {
    64: LaunchConfig(16, 32, 4, 2),
    128: LaunchConfig(16, 32, 4, 2),
    256: LaunchConfig(16, 16, 4, 2),
}
# Under the interpreter an operation takes a millisecond whatever the size of its tile.
_INTERPRETED = _table((64, 64, 4, 1), (64, 64, 4, 1), (64, 64, 4, 1))


def architecture(device: torch.device) -> str:
    """Name of what the device runs: "80", "90", "gfx942", ... for a GPU, "cpu" otherwise."""
    if device.type != "cuda":
        return "cpu"
    if torch.version.hip:
        name: str = torch.cuda.get_device_properties(device).gcnArchName
        return name.partition(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return str(10 * major + minor)


def padded_width(d_head: int) -> int:
    """The power of two, at least 16, that a head's width is padded to."""
    return max(16, 1 << (d_head - 1).bit_length())


def flash_config(
    arch: str,
    d_head: int,
    dtype: torch.dtype,
    *,
    has_start: bool = False,
    has_softcap: bool = False,
) -> FlashConfig:
    """The configuration for heads of this width.

    An architecture without a row takes that of the newest one before it.

    Args:
        arch: see `architecture`.
        d_head: width of a head.
        dtype: of the tensors.
        has_start: queries have a first key that they see.
        has_softcap: scores are capped.
    """
    if arch == "cpu":
        return _INTERPRETED
    width = max(64, padded_width(d_head))
    if dtype.itemsize == 4:
        return _SINGLE[width]
    if arch.startswith("gfx"):
        return _HALF["gfx942"][width]
    known = [name for name in _HALF if name.isdigit() and int(name) <= int(arch)]
    row = max(known, key=int, default="80")
    changes = _WITH_START.get((row, width), {}) if has_start else {}
    changes |= _WITH_SOFTCAP.get((row, width), {}) if has_softcap else {}
    return replace(_HALF[row][width], **changes)


def paged_config(d_head: int, dtype: torch.dtype, group: int) -> LaunchConfig:
    """The configuration of paged attention, for decoding and chunks of prompts alike.

    It depends on the model alone. One that followed lengths or the size of the batch would let
    these into the last bits of the result.

    Args:
        d_head: width of a head.
        dtype: of the queries.
        group: query heads to a key-value head.
    """
    table = _PAGED_SINGLE if dtype.itemsize == 4 else _PAGED
    config = table[max(64, padded_width(d_head))]
    return replace(config, tile_queries=max(16, 1 << (group - 1).bit_length()))
