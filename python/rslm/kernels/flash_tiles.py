# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# Triton's compiler, not Python, types the arguments of device functions.
"""What the attention kernels share on the device: tiles in and out, and the scores' map.

Legend, here and in `flash_forward` and `flash_backward`: Q, K, V, Out are the paper's matrices
of one head, dQ, ... their gradients; Br and Bc the queries and keys of a tile; D the width of a
head and D_PAD the power of two it is padded to; x scores in units of log2, so that exp2 serves.
"""

import triton
import triton.language as tl

UNSPECIALIZED = [
    "n_heads",
    "n_queries",
    "n_keys",
    "n_padded",
    "offset",
    "start_stride",
    "end_stride",
]
"""Arguments whose being 1 or a multiple of 16 is no reason to compile a kernel anew."""


@triton.jit
def load_tile(
    X,
    strides,
    batch,
    head,
    first,
    n_rows,
    ROWS: tl.constexpr,
    D: tl.constexpr,
    D_PAD: tl.constexpr,
    CHECK_ROWS: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):
    """Rows first, ..., first + ROWS - 1 of X[batch, head]; zeros where X has none.

    A descriptor knows the bounds of X. Without CHECK_ROWS all rows must lie in X.
    """
    if DESCRIPTORS:
        tile = X.load([batch, head, first, 0]).reshape(ROWS, D_PAD)
    else:
        rows = tl.arange(0, ROWS)
        columns = tl.arange(0, D_PAD)
        X += batch.to(tl.int64) * strides[0] + head.to(tl.int64) * strides[1]
        X += tl.cast(first, tl.int64) * strides[2]
        pointers = X + rows[:, None] * strides[2] + columns[None, :]
        if CHECK_ROWS and D < D_PAD:
            inside = (first + rows < n_rows)[:, None] & (columns < D)[None, :]
            tile = tl.load(pointers, mask=inside, other=0.0)
        elif CHECK_ROWS:
            tile = tl.load(pointers, mask=(first + rows < n_rows)[:, None], other=0.0)
        elif D < D_PAD:
            tile = tl.load(pointers, mask=(columns < D)[None, :], other=0.0)
        else:
            tile = tl.load(pointers)
    return tile


@triton.jit
def store_tile(
    X,
    strides,
    batch,
    head,
    first,
    n_rows,
    tile,
    ROWS: tl.constexpr,
    D: tl.constexpr,
    D_PAD: tl.constexpr,
):
    """Writes the rows of `tile` that X[batch, head] has, from row first on."""
    rows = tl.arange(0, ROWS)
    columns = tl.arange(0, D_PAD)
    start = X + (batch.to(tl.int64) * strides[0] + head.to(tl.int64) * strides[1])
    start += tl.cast(first, tl.int64) * strides[2]
    inside = (first + rows < n_rows)[:, None]
    if D < D_PAD:
        inside = inside & (columns < D)[None, :]
    pointers = start + rows[:, None] * strides[2] + columns[None, :]
    tl.store(pointers, tile.to(X.dtype.element_ty), mask=inside)


@triton.jit
def capped_tanh(scores, multiplier):
    """tanh(scale * score / softcap), with 2 * log2(e) * scale / softcap as the multiplier.

    Neither the interpreter nor every GPU has a tanh of its own. An infinite power gives 1.
    """
    return 1.0 - 2.0 / (tl.exp2(scores * multiplier) + 1.0)
