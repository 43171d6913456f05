"""What can be profiled, by name. No torch: a command line needs only these."""

import re
from typing import Literal

from rslm.architecture import TransformerConfig

Precision = Literal["float32", "tfloat32", "bfloat16"]
"""Of matrix products: strict float32, TF32 (CUDA only), or bfloat16."""

Kind = Literal[
    "none",
    "ddp-naive",
    "ddp-flat",
    "ddp-overlap",
    "ddp-bucketed",
    "torch-ddp",
    "sharded",
    "fsdp",
    "torch-fsdp2",
]
"""How processes train: each by itself, with a mode of the package's DDP, or as `rslm train` may."""

SIZES = {
    "tinystories": (512, 1344, 4, 16),
    "small": (768, 3072, 12, 12),
    "medium": (1024, 4096, 24, 16),
    "large": (1280, 5120, 36, 20),
    "xl": (2560, 10240, 32, 32),
    "10b": (4608, 12288, 50, 36),
}
"""d_model, d_ff, n_layers and n_heads: from "small" on those of CS336 2026, assignment 2, Table 1.

With 10,000 token ids they have 22.7 M, 128.6 M, 423.2 M, 969.4 M, 3.407 B and, whatever its
name says, 12.83 B parameters.
"""

_OWN_SIZE = re.compile(r"(\d+)x(\d+)x(\d+)")


def sized_model(name: str, *, vocab_size: int, context_length: int) -> TransformerConfig:
    """The model of a name in `SIZES`, or of `WIDTHxLAYERSxHEADS`, such as 256x4x8.

    Raises:
        ValueError: it is neither, or such a model cannot be.
    """
    own = _OWN_SIZE.fullmatch(name)
    if name not in SIZES and own is None:
        known = ", ".join(SIZES)
        raise ValueError(f"a size must be {known} or like 256x4x8, got {name!r}")
    d_ff: int | None = None
    if own is not None:
        d_model, n_layers, n_heads = map(int, own.groups())
    else:
        d_model, d_ff, n_layers, n_heads = SIZES[name]
    return TransformerConfig(
        vocab_size=vocab_size,
        context_length=context_length,
        d_model=d_model,
        d_ff=d_ff,
        n_layers=n_layers,
        n_heads=n_heads,
    )
