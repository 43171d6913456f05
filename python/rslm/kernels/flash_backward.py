# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# Triton's compiler, not Python, types the arguments of device functions.
"""The backward kernels of FlashAttention-2; `flash_tiles` has the legend.

Three launches: a term per row, the gradients of keys and values, the gradient of queries. Each
program alone writes its tile, in one order: the same bits each time, without atomics, for seven
matrix products in place of five.

Source: Dao 2023, FlashAttention-2, Algorithm 2 (arXiv:2307.08691), its loop run twice.
"""

import triton
import triton.language as tl

from rslm.kernels.flash_forward import key_bounds
from rslm.kernels.flash_tiles import UNSPECIALIZED, capped_tanh, load_tile, store_tile

_LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def row_terms_kernel(
    Out, dOut, Lse, dLse, Row, Delta, out_strides, dout_strides, n_heads, n_queries, n_padded,
    Br: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr,
):  # fmt: skip
    """Row = Lse in units of log2, and Delta = sum(Out * dOut) - dLse.

    A row that sees nothing, or lies behind the last, gets Row = +inf: its weights
    exp2(x - Row) are zero, and the kernels that follow need no mask for it.
    """
    n_tiles = tl.cdiv(n_padded, Br)
    pid = tl.program_id(0)
    first = pid % n_tiles * Br
    line = (pid // n_tiles).to(tl.int64)
    head = pid // n_tiles % n_heads
    batch = pid // n_tiles // n_heads
    rows = first + tl.arange(0, Br)
    inside = rows < n_queries
    out = load_tile(Out, out_strides, batch, head, first, n_queries, Br, D, D_PAD, True, False)
    d_out = load_tile(dOut, dout_strides, batch, head, first, n_queries, Br, D, D_PAD, True, False)
    lse = tl.load(Lse + line * n_queries + rows, mask=inside, other=-float("inf"))
    d_lse = tl.load(dLse + line * n_queries + rows, mask=inside, other=0.0)
    some = lse > -float("inf")
    delta = tl.sum(out.to(tl.float32) * d_out.to(tl.float32), 1) - d_lse
    padded = rows < n_padded
    row = tl.where(some, lse * _LOG2E, float("inf"))
    tl.store(Row + line * n_padded + rows, row, mask=padded)
    tl.store(Delta + line * n_padded + rows, tl.where(some, delta, 0.0), mask=padded)


@triton.jit
def weights_of(scores, row, multiplier, cap, SOFTCAP: tl.constexpr):
    """Softmax weights from scores and the rows' log-sums, and d capped / d score."""
    if SOFTCAP:
        t = capped_tanh(scores, multiplier)
        return tl.exp2(cap * t - row), 1.0 - t * t
    else:  # Triton compiles what stands behind a return as well.
        return tl.exp2(scores * multiplier - row), 1.0


@triton.jit
def gather_keys(
    dk, dv, k, v, End, keys, Q, dOut, q_strides, dout_strides, Row, Delta, batch, head,
    begin, stop, n_queries, n_keys, offset, multiplier, cap,
    Br: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr,
    MASK_CAUSAL: tl.constexpr, MASK_END: tl.constexpr, SOFTCAP: tl.constexpr,
    DESCRIPTORS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds to dk and dv of one tile of keys what the queries begin..stop contribute.

    Scores are computed transposed, (Bc, Br): both sums then take them as a left factor, which
    stays in registers.
    """
    for first in tl.range(begin, stop, Br):
        queries = first + tl.arange(0, Br)
        q = load_tile(Q, q_strides, batch, head, first, n_queries, Br, D, D_PAD, True, DESCRIPTORS)
        scores = tl.dot(k, q.T, input_precision=PRECISION)
        row = tl.load(Row + queries)
        p, slope = weights_of(scores, row[None, :], multiplier, cap, SOFTCAP)
        if MASK_END:
            # Loaded anew for each tile, the vector takes no registers in other loops.
            ends = tl.load(End + keys, mask=keys < n_keys, other=-1)
        if MASK_CAUSAL:
            seen = keys[:, None] <= queries[None, :] + offset
            if MASK_END:
                seen = seen & (queries[None, :] <= ends[:, None])
            p = tl.where(seen, p, 0.0)
        elif MASK_END:
            p = tl.where(queries[None, :] <= ends[:, None], p, 0.0)
        d_out = load_tile(
            dOut, dout_strides, batch, head, first, n_queries, Br, D, D_PAD, True, DESCRIPTORS
        )
        dv = tl.dot(p.to(d_out.dtype), d_out, dv, input_precision=PRECISION)
        dp = tl.dot(v, d_out.T, input_precision=PRECISION)
        delta = tl.load(Delta + queries)
        ds = p * (dp - delta[None, :])
        if SOFTCAP:
            ds = ds * slope
        dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)
    return dk, dv


@triton.jit(do_not_specialize=UNSPECIALIZED)
def key_gradients_kernel(
    Q, K, V, dOut, Row, Delta, End, dK, dV,
    q_strides, k_strides, v_strides, dout_strides, dk_strides, dv_strides, end_stride,
    n_heads, group, n_queries, n_keys, n_padded, offset, multiplier, cap, scale,
    Br: tl.constexpr, Bc: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr,
    CAUSAL: tl.constexpr, HAS_START: tl.constexpr, SOFTCAP: tl.constexpr,
    DESCRIPTORS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dK and dV of one tile of keys, from every query head of its group."""
    n_tiles = tl.cdiv(n_keys, Bc)
    n_kv_heads = n_heads // group
    pid = tl.program_id(0)
    # With `causal` the first keys are seen by most queries.
    tile = pid % n_tiles * Bc
    kv_head = pid // n_tiles % n_kv_heads
    batch = pid // n_tiles // n_kv_heads
    keys = tile + tl.arange(0, Bc)
    last = tl.minimum(tile + Bc, n_keys) - 1
    begin = tile * 0
    middle = begin
    if CAUSAL:
        begin = tl.maximum(tile - offset, 0)
        middle = begin + tl.cdiv(tl.maximum(last - offset, 0) - begin, Br) * Br
    stop = n_queries
    full_end = n_queries
    if HAS_START:
        End += batch.to(tl.int64) * end_stride
        stop = tl.load(End + last) + 1
        full_end = middle + tl.maximum(tl.load(End + tile) + 1 - middle, 0) // Br * Br
    k = load_tile(K, k_strides, batch, kv_head, tile, n_keys, Bc, D, D_PAD, True, DESCRIPTORS)
    v = load_tile(V, v_strides, batch, kv_head, tile, n_keys, Bc, D, D_PAD, True, DESCRIPTORS)
    dk = tl.zeros([Bc, D_PAD], tl.float32)
    dv = tl.zeros([Bc, D_PAD], tl.float32)
    for member in range(group):
        head = kv_head * group + member
        line = (batch.to(tl.int64) * n_heads + head) * n_padded
        if CAUSAL:
            dk, dv = gather_keys(
                dk, dv, k, v, End, keys, Q, dOut, q_strides, dout_strides, Row + line,
                Delta + line, batch, head, begin, tl.minimum(middle, stop), n_queries, n_keys,
                offset, multiplier, cap, Br, D, D_PAD, True, HAS_START, SOFTCAP, DESCRIPTORS,
                PRECISION,
            )  # fmt: skip
        dk, dv = gather_keys(
            dk, dv, k, v, End, keys, Q, dOut, q_strides, dout_strides, Row + line,
            Delta + line, batch, head, middle, full_end, n_queries, n_keys, offset,
            multiplier, cap, Br, D, D_PAD, False, False, SOFTCAP, DESCRIPTORS, PRECISION,
        )  # fmt: skip
        if HAS_START:
            dk, dv = gather_keys(
                dk, dv, k, v, End, keys, Q, dOut, q_strides, dout_strides, Row + line,
                Delta + line, batch, head, full_end, stop, n_queries, n_keys, offset,
                multiplier, cap, Br, D, D_PAD, False, True, SOFTCAP, DESCRIPTORS, PRECISION,
            )  # fmt: skip
    store_tile(dK, dk_strides, batch, kv_head, tile, n_keys, dk * scale, Bc, D, D_PAD)
    store_tile(dV, dv_strides, batch, kv_head, tile, n_keys, dv, Bc, D, D_PAD)


@triton.jit
def gather_queries(
    dq, q, d_out, row, delta, Start, rows, K, V, k_strides, v_strides, batch, kv_head,
    begin, stop, n_queries, n_keys, offset, multiplier, cap,
    Bc: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr,
    CAUSAL: tl.constexpr, MASK_START: tl.constexpr, MASK_END: tl.constexpr,
    SOFTCAP: tl.constexpr, DESCRIPTORS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds to dq of one tile of queries what the keys begin..stop contribute."""
    for first in tl.range(begin, stop, Bc):
        k = load_tile(
            K, k_strides, batch, kv_head, first, n_keys, Bc, D, D_PAD, MASK_END, DESCRIPTORS
        )
        scores = tl.dot(q, k.T, input_precision=PRECISION)
        p, slope = weights_of(scores, row[:, None], multiplier, cap, SOFTCAP)
        if MASK_END:
            # Keys behind the last have score 0 and, where Row is very small, an infinite weight.
            keys = first + tl.arange(0, Bc)
            if CAUSAL:
                seen = keys[None, :] <= tl.minimum(rows + offset, n_keys - 1)[:, None]
            else:
                seen = (keys < n_keys)[None, :]
            if MASK_START:
                starts = tl.load(Start + rows, mask=rows < n_queries, other=0)
                seen = seen & (keys[None, :] >= starts[:, None])
            p = tl.where(seen, p, 0.0)
        v = load_tile(
            V, v_strides, batch, kv_head, first, n_keys, Bc, D, D_PAD, MASK_END, DESCRIPTORS
        )
        dp = tl.dot(d_out, v.T, input_precision=PRECISION)
        ds = p * (dp - delta[:, None])
        if SOFTCAP:
            ds = ds * slope
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)
    return dq


@triton.jit(do_not_specialize=UNSPECIALIZED)
def query_gradients_kernel(
    Q, K, V, dOut, Row, Delta, Start, dQ,
    q_strides, k_strides, v_strides, dout_strides, dq_strides, start_stride,
    n_heads, group, n_queries, n_keys, n_padded, offset, multiplier, cap, scale,
    Br: tl.constexpr, Bc: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr,
    CAUSAL: tl.constexpr, HAS_START: tl.constexpr, SOFTCAP: tl.constexpr,
    DESCRIPTORS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradient dQ of one tile of queries."""
    n_tiles = tl.cdiv(n_queries, Br)
    pid = tl.program_id(0)
    first = (n_tiles - 1 - pid % n_tiles) * Br
    head = pid // n_tiles % n_heads
    batch = pid // n_tiles // n_heads
    rows = first + tl.arange(0, Br)
    if HAS_START:
        Start += batch.to(tl.int64) * start_stride
    begin, middle, full_end, stop = key_bounds(
        Start, first, n_queries, n_keys, offset, Br, Bc, CAUSAL, HAS_START
    )
    line = (batch.to(tl.int64) * n_heads + head) * n_padded
    row = tl.load(Row + line + rows)
    delta = tl.load(Delta + line + rows)
    q = load_tile(Q, q_strides, batch, head, first, n_queries, Br, D, D_PAD, True, DESCRIPTORS)
    d_out = load_tile(
        dOut, dout_strides, batch, head, first, n_queries, Br, D, D_PAD, True, DESCRIPTORS
    )
    dq = tl.zeros([Br, D_PAD], tl.float32)
    kv_head = head // group
    if HAS_START:
        dq = gather_queries(
            dq, q, d_out, row, delta, Start, rows, K, V, k_strides, v_strides, batch, kv_head,
            begin, tl.minimum(middle, stop), n_queries, n_keys, offset, multiplier, cap,
            Bc, D, D_PAD, CAUSAL, True, True, SOFTCAP, DESCRIPTORS, PRECISION,
        )  # fmt: skip
    dq = gather_queries(
        dq, q, d_out, row, delta, Start, rows, K, V, k_strides, v_strides, batch, kv_head,
        middle, full_end, n_queries, n_keys, offset, multiplier, cap,
        Bc, D, D_PAD, CAUSAL, False, False, SOFTCAP, DESCRIPTORS, PRECISION,
    )  # fmt: skip
    dq = gather_queries(
        dq, q, d_out, row, delta, Start, rows, K, V, k_strides, v_strides, batch, kv_head,
        full_end, stop, n_queries, n_keys, offset, multiplier, cap,
        Bc, D, D_PAD, CAUSAL, False, True, SOFTCAP, DESCRIPTORS, PRECISION,
    )  # fmt: skip
    store_tile(dQ, dq_strides, batch, head, first, n_queries, dq * scale, Br, D, D_PAD)
