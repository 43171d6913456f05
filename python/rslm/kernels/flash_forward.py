# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# Triton's compiler, not Python, types the arguments of device functions.
"""The forward kernel of FlashAttention-2; `flash_tiles` has the legend.

Source: Dao 2023, FlashAttention-2, Algorithm 1 (arXiv:2307.08691). Here a tile's keys are
bounded on both sides, and only the tiles that a bound cuts are masked.
"""

import triton
import triton.language as tl

from rslm.kernels.flash_tiles import UNSPECIALIZED, capped_tanh, load_tile, store_tile

_LN2: tl.constexpr = tl.constexpr(0.6931471805599453)


@triton.jit
def key_bounds(
    Start, first, n_queries, n_keys, offset, Br: tl.constexpr, Bc: tl.constexpr,
    CAUSAL: tl.constexpr, HAS_START: tl.constexpr,
):  # fmt: skip
    """Where the keys of a tile of queries begin, are seen by all, cease to be, and end.

    From `begin` to `middle` a query may start later, from `middle` to `full_end` every query
    sees every key, from `full_end` to `stop` a query may end earlier. `middle - begin` and
    `full_end - middle` are multiples of Bc, so no tile of keys lies in two of the ranges.
    """
    last = tl.minimum(first + Br, n_queries) - 1
    stop = n_keys
    full_stop = n_keys
    if CAUSAL:
        stop = tl.minimum(n_keys, last + offset + 1)
        full_stop = tl.minimum(n_keys, first + offset + 1)
    begin = first * 0
    middle = begin
    if HAS_START:
        # `Start` never decreases, so its ends bound what lies between.
        begin = tl.maximum(tl.load(Start + first), 0)
        latest = tl.load(Start + last)
        middle = begin + tl.cdiv(tl.maximum(latest - begin, 0), Bc) * Bc
    full_end = middle + tl.maximum(full_stop - middle, 0) // Bc * Bc
    return begin, middle, full_end, stop


@triton.jit
def attend(
    acc, m, total, q, Start, rows, K, V, k_strides, v_strides, batch, kv_head, begin, stop,
    n_queries, n_keys, offset, multiplier, cap, Bc: tl.constexpr, D: tl.constexpr,
    D_PAD: tl.constexpr, CAUSAL: tl.constexpr, MASK_START: tl.constexpr, MASK_END: tl.constexpr,
    SOFTCAP: tl.constexpr, DESCRIPTORS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Goes on with the running maximum m, sum and weighted values over keys begin..stop."""
    factor = 1.0 if SOFTCAP else multiplier
    for first in tl.range(begin, stop, Bc):
        k = load_tile(
            K, k_strides, batch, kv_head, first, n_keys, Bc, D, D_PAD, MASK_END, DESCRIPTORS
        )
        x = tl.dot(q, k.T, input_precision=PRECISION)
        if SOFTCAP:
            x = cap * capped_tanh(x, multiplier)
        if MASK_END:
            keys = first + tl.arange(0, Bc)
            if CAUSAL:
                seen = keys[None, :] <= tl.minimum(rows + offset, n_keys - 1)[:, None]
            else:
                seen = (keys < n_keys)[None, :]
            if MASK_START:
                # Loaded anew for each tile, the vector takes no registers in other loops.
                starts = tl.load(Start + rows, mask=rows < n_queries, other=0)
                seen = seen & (keys[None, :] >= starts[:, None])
            x = tl.where(seen, x, -float("inf"))
        m_old = m
        # The factor is positive: taken out of the maximum, it leaves one FFMA per score.
        m = tl.maximum(m, tl.max(x, 1) * factor)
        shift = m
        if MASK_END:
            # A row that has seen nothing yet has m = -inf, and inf - inf is not a number.
            shift = tl.where(m == -float("inf"), 0.0, m)
        p = tl.exp2(x * factor - shift[:, None])
        decay = tl.exp2(m_old - shift)
        total = total * decay + tl.sum(p, 1)
        v = load_tile(
            V, v_strides, batch, kv_head, first, n_keys, Bc, D, D_PAD, MASK_END, DESCRIPTORS
        )
        acc = tl.dot(p.to(v.dtype), v, acc * decay[:, None], input_precision=PRECISION)
    return acc, m, total


@triton.jit(do_not_specialize=UNSPECIALIZED)
def forward_kernel(
    Q, K, V, Out, Lse, Start, q_strides, k_strides, v_strides, out_strides, start_stride,
    n_heads, group, n_queries, n_keys, offset, multiplier, cap, Br: tl.constexpr, Bc: tl.constexpr,
    D: tl.constexpr, D_PAD: tl.constexpr, CAUSAL: tl.constexpr, HAS_START: tl.constexpr,
    SOFTCAP: tl.constexpr, DESCRIPTORS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Out and the natural logarithm of the sum of exponentials, for one tile of queries."""
    n_tiles = tl.cdiv(n_queries, Br)
    pid = tl.program_id(0)
    # With `causal` the last queries see most keys; whoever takes longest begins first.
    first = (n_tiles - 1 - pid % n_tiles) * Br
    head = pid // n_tiles % n_heads
    batch = pid // n_tiles // n_heads
    rows = first + tl.arange(0, Br)
    if HAS_START:
        Start += batch.to(tl.int64) * start_stride
    begin, middle, full_end, stop = key_bounds(
        Start, first, n_queries, n_keys, offset, Br, Bc, CAUSAL, HAS_START
    )
    q = load_tile(Q, q_strides, batch, head, first, n_queries, Br, D, D_PAD, True, DESCRIPTORS)
    m = tl.full([Br], -float("inf"), tl.float32)
    total = tl.zeros([Br], tl.float32)
    acc = tl.zeros([Br, D_PAD], tl.float32)
    kv_head = head // group
    if HAS_START:
        acc, m, total = attend(
            acc, m, total, q, Start, rows, K, V, k_strides, v_strides, batch, kv_head,
            begin, tl.minimum(middle, stop), n_queries, n_keys, offset, multiplier, cap,
            Bc, D, D_PAD, CAUSAL, True, True, SOFTCAP, DESCRIPTORS, PRECISION,
        )  # fmt: skip
    acc, m, total = attend(
        acc, m, total, q, Start, rows, K, V, k_strides, v_strides, batch, kv_head,
        middle, full_end, n_queries, n_keys, offset, multiplier, cap,
        Bc, D, D_PAD, CAUSAL, False, False, SOFTCAP, DESCRIPTORS, PRECISION,
    )  # fmt: skip
    acc, m, total = attend(
        acc, m, total, q, Start, rows, K, V, k_strides, v_strides, batch, kv_head,
        full_end, stop, n_queries, n_keys, offset, multiplier, cap,
        Bc, D, D_PAD, CAUSAL, False, True, SOFTCAP, DESCRIPTORS, PRECISION,
    )  # fmt: skip
    some = total > 0.0
    lse = tl.where(some, (m + tl.log2(tl.where(some, total, 1.0))) * _LN2, -float("inf"))
    acc = acc / tl.where(some, total, 1.0)[:, None]
    store_tile(Out, out_strides, batch, head, first, n_queries, acc, Br, D, D_PAD)
    line = Lse + (batch.to(tl.int64) * n_heads + head) * n_queries
    tl.store(line + rows, lse, mask=rows < n_queries)
