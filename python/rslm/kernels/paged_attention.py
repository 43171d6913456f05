# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# Triton's compiler, not Python, types the arguments of device functions.
"""Attention of a ragged step over keys and values that lie in blocks, read through block tables.

A program has the queries of a few tokens of one sequence, all heads that share a key-value head:
GROUP rows a token. It walks the sequence's keys from the first that a query may see, in tiles that
begin at multiples of Bc, whatever else is in the step. A tile that hides all its keys from a row
leaves the row's numbers as they are, to the bit. So the order of every sum is given by the
position of its token: results depend neither on the batch nor on the chunks a prompt is read in.
Splitting the keys of a long sequence over programs, by how many of these there are, would be
faster for few sequences and lose this.

Legend: as in `flash_tiles`, with Br rows of query-head pairs.

Source: Kwon et al. 2023, PagedAttention, section 4.3 (arXiv:2309.06180), and Dao 2023,
FlashAttention-2, Algorithm 1 (arXiv:2307.08691), for the running maximum.
"""

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int32
from torch import Tensor

from rslm.kernels.flash_launch import Compilation, Launch, compilation
from rslm.kernels.launch_configs import LaunchConfig, padded_width, paged_config

_LOG2E = 1.0 / math.log(2.0)
_UNSPECIALIZED = ["table_stride", "n_kv_heads", "window"]


@triton.jit(do_not_specialize=_UNSPECIALIZED)
def paged_kernel(
    Q, K, V, Out, Tiles, Tables, q_strides, k_strides, v_strides, out_strides, table_stride,
    n_kv_heads, window, multiplier, GROUP: tl.constexpr, BLOCK: tl.constexpr, Br: tl.constexpr,
    Bc: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, HAS_WINDOW: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Out for the queries of one tile and the heads that share a key-value head."""
    kv_head = tl.program_id(0) % n_kv_heads
    Tiles += tl.program_id(0) // n_kv_heads * 4
    Tables += tl.load(Tiles).to(tl.int64) * table_stride
    first_token = tl.load(Tiles + 1)
    n_queries = tl.load(Tiles + 2)
    position = tl.load(Tiles + 3)

    rows = tl.arange(0, Br)
    columns = tl.arange(0, D_PAD)
    queries = rows // GROUP
    heads = kv_head * GROUP + rows % GROUP
    inside = (queries < n_queries)[:, None] & (columns < D)[None, :]
    tokens = (first_token + queries).to(tl.int64)
    of_row = tokens * q_strides[0] + heads * q_strides[1]
    q = tl.load(Q + of_row[:, None] + columns[None, :], mask=inside, other=0.0)
    own = (position + queries)[:, None]
    stop = position + n_queries
    begin = position * 0
    if HAS_WINDOW:
        begin = tl.maximum(position - window + 1, 0) // Bc * Bc

    m = tl.full([Br], -float("inf"), tl.float32)
    total = tl.zeros([Br], tl.float32)
    acc = tl.zeros([Br, D_PAD], tl.float32)
    K += kv_head.to(tl.int64) * k_strides[1]
    V += kv_head.to(tl.int64) * v_strides[1]
    for first in tl.range(begin, stop, Bc):
        keys = first + tl.arange(0, Bc)
        exists = keys < stop
        blocks = tl.load(Tables + keys // BLOCK, mask=exists, other=0)
        slots = blocks.to(tl.int64) * BLOCK + keys % BLOCK
        # What lies behind the last key may belong to nobody and be no number.
        there = exists[:, None] & (columns < D)[None, :]
        k_places = K + (slots * k_strides[0])[:, None] + columns[None, :]
        k = tl.load(k_places, mask=there, other=0.0).to(q.dtype)
        x = tl.dot(q, k.T, input_precision=PRECISION) * multiplier
        seen = keys[None, :] <= own
        if HAS_WINDOW:
            seen = seen & (keys[None, :] > own - window)
        x = tl.where(seen, x, -float("inf"))
        m_old = m
        m = tl.maximum(m, tl.max(x, 1))
        # A row that has seen nothing yet has m = -inf, and inf - inf is not a number.
        shift = tl.where(m == -float("inf"), 0.0, m)
        p = tl.exp2(x - shift[:, None])
        decay = tl.exp2(m_old - shift)
        total = total * decay + tl.sum(p, 1)
        v_places = V + (slots * v_strides[0])[:, None] + columns[None, :]
        v = tl.load(v_places, mask=there, other=0.0).to(q.dtype)
        acc = tl.dot(p.to(q.dtype), v, acc * decay[:, None], input_precision=PRECISION)

    acc = acc / tl.where(total > 0.0, total, 1.0)[:, None]
    of_row = tokens * out_strides[0] + heads * out_strides[1]
    out = Out + of_row[:, None] + columns[None, :]
    tl.store(out, acc.to(Out.dtype.element_ty), mask=inside)


IS_INTERPRETED = not isinstance(paged_kernel, triton.JITFunction)
"""Whether TRITON_INTERPRET=1 was set when Triton was loaded: the kernel runs on a CPU."""


class BlockTables(NamedTuple):
    """A ragged step as the kernel reads it; the same for all layers.

    Attributes:
        tiles: of a program each: sequence, first token, number of queries, position of the first.
        tables: blocks of each sequence, zeros behind its last.
        tile_queries: queries of a tile, at most.
    """

    tiles: Int32[Tensor, "tiles 4"]
    tables: Int32[Tensor, "sequences blocks"]
    tile_queries: int


def block_tables(
    positions: Sequence[int],
    lengths: Sequence[int],
    tables: Sequence[Sequence[int]],
    *,
    block_size: int,
    tile_queries: int,
    device: torch.device,
) -> BlockTables:
    """The tables of a step, and its queries cut into tiles.

    All must be right: the kernel reads where the tables point to. Both tensors have two rows or
    more, and two columns, so that a compiler that tells one from many sees many: a tile without
    queries reads and writes nothing.

    Args:
        positions: of each token; those of a sequence follow one another.
        lengths: how many of the tokens belong to each sequence.
        tables: the blocks of each sequence.
        block_size: positions in a block.
        tile_queries: queries of a tile, at most; see `tile_queries`.
        device: where the tensors shall lie.
    """
    tiles, used = [], []
    ends = list(accumulate(lengths))
    for sequence, (end, length, table) in enumerate(zip(ends, lengths, tables, strict=True)):
        for first in range(end - length, end, tile_queries):
            tiles.append([sequence, first, min(tile_queries, end - first), positions[first]])
        n_keys = positions[end - 1] + 1 if length else 0
        used.append(table[: -(-n_keys // block_size)])
    tiles += [[0, 0, 0, 0]] * (2 - len(tiles))
    used += [[]] * (2 - len(used))
    width = max(2, *map(len, used))
    padded = [[*table, *[0] * (width - len(table))] for table in used]
    as_tensor = torch.tensor
    return BlockTables(
        as_tensor(tiles, dtype=torch.int32, device=device),
        as_tensor(padded, dtype=torch.int32, device=device),
        tile_queries,
    )


def tile_queries(d_head: int, dtype: torch.dtype, group: int) -> int:
    """Queries of a tile that `paged_attention` expects, if it is given no configuration."""
    return paged_config(d_head, dtype, group).tile_queries // group


@torch.library.custom_op("rslm::paged_attention", mutates_args=())
def _paged_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    tiles: Tensor,
    tables: Tensor,
    window: int | None,
    scale: float,
    config: Sequence[int],
) -> Tensor:
    out = _empty_output(q)
    tile_queries, tile_keys, n_warps, n_stages = config
    made = LaunchConfig(tile_queries, tile_keys, n_warps, n_stages)
    paged_launch(q, keys, values, out, tiles, tables, window, scale, made).run(q.device)
    return out


@_paged_attention.register_fake
def _(q: Tensor, *_: Any) -> Tensor:
    return _empty_output(q)


def _empty_output(q: Tensor) -> Tensor:
    """Room in which the heads of a token lie side by side, as the projection reads them."""
    n_heads, n_tokens, d_head = q.shape
    return q.new_empty(n_tokens, n_heads, d_head).transpose(0, 1)


def paged_attention(
    q: Float[Tensor, "n_heads tokens d_head"],
    keys: Float[Tensor, "blocks block_size n_kv_heads d_head"],
    values: Float[Tensor, "blocks block_size n_kv_heads d_head"],
    step: BlockTables,
    *,
    window: int | None = None,
    scale: float | None = None,
    config: LaunchConfig | None = None,
) -> Float[Tensor, "n_heads tokens d_head"]:
    """Softmax attention of every token over the keys of its sequence, up to its own.

    Scaled by 1/sqrt(d_head) or by `scale`. Products are of the dtype of `q`, to which keys and
    values are rounded, sums are float32. Query head h uses key-value head
    h // (n_heads // n_kv_heads). The keys of the step's own tokens must lie in their blocks
    already. For a model, its dtype and a device the bits of a token's result are a function of
    its sequence and position: see the module. There is no gradient.

    Args:
        q: queries, those of one sequence after those of another.
        keys: the pool.
        values: the pool.
        step: what `block_tables` makes of these sequences.
        window: keys that a query sees at most, its own among them.
        scale: stands in place of 1/sqrt(d_head).
        config: in place of the table's row for the head width and dtype.

    Raises:
        ValueError: Triton cannot run where the tensors are, or the tensors do not fit each
            other, have more than 256 columns or an unknown dtype; the step was cut into tiles
            of another size.
    """
    _check(q, keys, values)
    group = q.shape[0] // keys.shape[2]
    config = config or paged_config(q.shape[2], q.dtype, group)
    if step.tile_queries != config.tile_queries // group:
        raise ValueError(
            f"a step must be cut into tiles of {config.tile_queries // group} queries, "
            f"got {step.tile_queries}"
        )
    scale = q.shape[2] ** -0.5 if scale is None else scale
    numbers = [config.tile_queries, config.tile_keys, config.n_warps, config.n_stages]
    out: Tensor = _paged_attention(
        _row_major(q), keys, values, step.tiles, step.tables, window, scale, numbers
    )
    return out


def _check(q: Tensor, keys: Tensor, values: Tensor) -> None:
    fits = keys.shape == values.shape and q.ndim == 3 and keys.ndim == 4
    if not fits or q.shape[2] != keys.shape[3] or q.shape[0] % keys.shape[2]:
        raise ValueError(
            "q must be (n_heads, tokens, d_head), keys and values (blocks, block_size, "
            "n_kv_heads, d_head) with n_kv_heads a divisor of n_heads, got "
            f"{tuple(q.shape)}, {tuple(keys.shape)} and {tuple(values.shape)}"
        )
    known = (torch.float32, torch.float16, torch.bfloat16)
    for name, x in (("q", q), ("keys", keys), ("values", values)):
        if x.dtype not in known:
            raise ValueError(f"{name} must be float32, float16 or bfloat16, got {x.dtype}")
        if x.device != q.device:
            raise ValueError(f"all must be on one device, got {q.device} and {x.device}")
    if not 1 <= q.shape[2] <= 256:
        raise ValueError(f"d_head must be in 1..256, got {q.shape[2]}")
    if q.device.type == "cpu" and not IS_INTERPRETED:
        raise ValueError(
            "Triton needs a GPU, and q is on the CPU\n"
            "TRITON_INTERPRET=1 in the environment runs its kernels there, slowly"
        )


def _row_major(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def paged_launch(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    out: Tensor,
    tiles: Tensor,
    tables: Tensor,
    window: int | None,
    scale: float,
    config: LaunchConfig,
) -> Launch:
    """The launch that fills `out`, (n_heads, tokens, d_head) as `q`."""
    block_size, n_kv_heads, d_head = keys.shape[1:]
    arguments = {
        "Q": q,
        "K": keys,
        "V": values,
        "Out": out,
        "Tiles": tiles,
        "Tables": tables,
        "q_strides": (q.stride(1), q.stride(0)),
        # Blocks lie one after another, so a slot's number is all that its address takes.
        "k_strides": keys.stride()[1:3],
        "v_strides": values.stride()[1:3],
        "out_strides": (out.stride(1), out.stride(0)),
        "table_stride": tables.stride(0),
        "n_kv_heads": n_kv_heads,
        "window": window or 0,
        "multiplier": scale * _LOG2E,
        "GROUP": q.shape[0] // n_kv_heads,
        "BLOCK": block_size,
        "Br": config.tile_queries,
        "Bc": config.tile_keys,
        "D": d_head,
        "D_PAD": padded_width(d_head),
        "HAS_WINDOW": window is not None,
        # TF32, the default for float32, would leave three digits.
        "PRECISION": "ieee",
    }
    return Launch(
        kernel=paged_kernel,
        n_programs=tiles.shape[0] * n_kv_heads,
        arguments=arguments,
        n_warps=config.n_warps,
        n_stages=config.n_stages,
    )


def paged_compilation(
    d_head: int,
    dtype: torch.dtype,
    *,
    group: int = 1,
    block_size: int = 16,
    window: int | None = None,
    config: LaunchConfig | None = None,
) -> Compilation:
    """The kernel as it is compiled for 64 tokens of 8 query heads, for all architectures."""
    n_heads = 8
    q = torch.empty(64, n_heads, d_head, dtype=dtype, device="meta").transpose(0, 1)
    pool = (256, block_size, n_heads // group, d_head)
    keys = torch.empty(pool, dtype=dtype, device="meta")
    tiles = torch.empty(64, 4, dtype=torch.int32, device="meta")
    tables = torch.empty(64, 8, dtype=torch.int32, device="meta")
    config = config or paged_config(d_head, dtype, group)
    return compilation(paged_launch(q, keys, keys, q, tiles, tables, window, d_head**-0.5, config))
