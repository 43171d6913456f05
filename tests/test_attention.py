"""Every way to compute attention, against its definition in float64."""

import inspect
import itertools
import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from rslm import attention as attention_module
from rslm.attention import (
    attention,
    document_starts,
    implementations_on,
    scaled_dot_product_attention,
    softmax,
)

FLOATS = st.floats(-100, 100, width=32)


def random_qkv(queries: int, keys: int, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(queries * 100 + keys)
    shapes = [(2, 3, queries, 8), (2, 3, keys, 8), (2, 3, keys, 8)]
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


def causal_mask(queries: int, keys: int) -> torch.Tensor:
    return torch.arange(keys) <= torch.arange(queries)[:, None] + keys - queries


@given(st.lists(FLOATS, min_size=1, max_size=8), FLOATS)
def test_softmax_ignores_a_constant_and_sums_to_one(values: list[float], constant: float):
    x = torch.tensor(values, dtype=torch.float64)
    result = softmax(x, dim=0)
    torch.testing.assert_close(result, softmax(x + constant, dim=0), rtol=1e-9, atol=1e-12)
    assert result.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_softmax_equals_torch(dim: int, dtype: torch.dtype):
    x = 5 * torch.randn(4, 5, 6, dtype=dtype)
    torch.testing.assert_close(softmax(x, dim), functional.softmax(x, dim))


def test_softmax_of_huge_values_is_finite():
    x = torch.tensor([1e30, -1e30, 1e30])
    assert softmax(x, dim=0).tolist() == [0.5, 0, 0.5]
    half = torch.full((1000,), 60_000.0, dtype=torch.float16)
    torch.testing.assert_close(softmax(half, dim=0), torch.full_like(half, 1e-3))


@pytest.mark.parametrize("queries", [1, 5, 7])
def test_scaled_dot_product_attention_equals_torch(queries: int):
    q, k, v = random_qkv(queries, 7)
    for mask in (None, causal_mask(queries, 7), torch.rand(2, 1, queries, 7) < 0.5):
        ours = scaled_dot_product_attention(q, k, v, mask)
        theirs = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        torch.testing.assert_close(ours, theirs)


def test_query_without_keys_gets_zeros_and_a_finite_gradient():
    q, k, v = (x.requires_grad_() for x in random_qkv(3, 4))
    mask = torch.ones(3, 4, dtype=torch.bool)
    mask[1] = False
    output = scaled_dot_product_attention(q, k, v, mask)
    output.sum().backward()
    assert (output[..., 1, :] == 0).all()
    assert (q.grad[..., 1, :] == 0).all()
    assert all(x.grad.isfinite().all() for x in (q, k, v))


@pytest.mark.parametrize("implementation", ["auto", "reference", "tiled", "torch"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 9), (4, 9), (9, 9), (64, 64)])
def test_attention_equals_formula(implementation: str, causal: bool, queries: int, keys: int):
    q, k, v = (x.requires_grad_() for x in random_qkv(queries, keys))
    scores = torch.einsum("bhqd,bhkd->bhqk", q, k) / math.sqrt(8)
    if causal:
        scores = scores + torch.where(causal_mask(queries, keys), 0.0, -math.inf)
    expected = torch.einsum("bhqk,bhkd->bhqd", scores.softmax(-1), v)
    output = attention(q, k, v, causal=causal, implementation=implementation)
    torch.testing.assert_close(output, expected)
    weights = torch.randn_like(output)
    for ours, theirs in zip(
        torch.autograd.grad((output * weights).sum(), (q, k, v)),
        torch.autograd.grad((expected * weights).sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("implementation", ["reference", "tiled", "torch"])
@pytest.mark.parametrize("length", [33, 515])  # On the CPU the longer one is computed otherwise.
def test_attention_in_bfloat16_errs_at_most_twice_as_much_as_plain(
    implementation: str, length: int
):
    q, k, v = (x.bfloat16() for x in random_qkv(length, length))
    truth = attention(q.double(), k.double(), v.double(), causal=True, implementation="reference")
    scores = (q @ k.mT / math.sqrt(8)).masked_fill(~causal_mask(length, length), -math.inf)
    plain = scores.softmax(-1) @ v
    with torch.autocast("cpu", torch.bfloat16):
        output = attention(q, k, v, causal=True, implementation=implementation)
    assert output.dtype == torch.bfloat16
    assert (output - truth).abs().max() <= 2 * (plain - truth).abs().max()


@pytest.mark.parametrize("implementation", ["auto", "reference", "tiled", "torch"])
@pytest.mark.parametrize("window", [1, 2, 5, 9, 100])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 9), (4, 9), (9, 9), (33, 33)])
def test_window_lets_a_query_see_that_many_keys(
    implementation: str, window: int, queries: int, keys: int
):
    q, k, v = (x.requires_grad_() for x in random_qkv(queries, keys))
    options = {"causal": True, "implementation": implementation}
    output = attention(q, k, v, window=window, scale=0.3, **options)
    rows = []
    for i in range(queries):
        last = i + keys - queries + 1
        seen = slice(max(0, last - window), last)
        weights = (0.3 * q[..., i : i + 1, :] @ k[..., seen, :].mT).softmax(-1)
        rows.append(weights @ v[..., seen, :])
    expected = torch.cat(rows, dim=-2)
    torch.testing.assert_close(output, expected)
    mixed = torch.randn_like(output)
    torch.testing.assert_close(
        torch.autograd.grad((output * mixed).sum(), (q, k, v)),
        torch.autograd.grad((expected * mixed).sum(), (q, k, v)),
    )


@pytest.mark.parametrize("window", [0, -1, None])
def test_attention_refuses_windows_that_mean_nothing(window: int | None):
    q, k, v = random_qkv(3, 3)
    with pytest.raises(ValueError, match="window must be at least 1, and causal True"):
        attention(q, k, v, causal=window is not None, window=3 if window is None else window)


# What every implementation must agree on: (queries, keys), (n_heads, n_kv_heads), and a mask.
SHAPES = [
    ((1, 1), (2, 2)),
    ((64, 64), (4, 2)),
    ((67, 67), (3, 1)),
    ((5, 70), (4, 4)),
    ((70, 5), (4, 2)),
]
MASKS: dict[str, dict[str, Any]] = {
    "full": {"causal": False},
    "causal": {"causal": True},
    "window": {"causal": True, "window": 7},
    "start": {"causal": True, "start": "shared"},
    "documents": {"causal": True, "start": "own"},
    "windowed documents": {"causal": True, "start": "own", "window": 9},
}


def draw_case(sizes: tuple[int, int], heads: tuple[int, int], mask: dict[str, Any]):
    """Leaves in float64 and options; a few queries' starts lie behind all that they may see."""
    draw = torch.Generator().manual_seed(sum(sizes) + sum(heads))
    (n_queries, n_keys), (n_heads, n_kv_heads) = sizes, heads
    shapes = [(2, n_heads, n_queries, 8), (2, n_kv_heads, n_keys, 8), (2, n_kv_heads, n_keys, 8)]
    leaves = [torch.randn(s, generator=draw, dtype=torch.float64).requires_grad_() for s in shapes]
    options = dict(mask)
    if kind := options.pop("start", None):
        n_rows = 1 if kind == "shared" else 2
        start = torch.randint(n_keys + 2, (n_rows, n_queries), generator=draw, dtype=torch.int32)
        options["start"] = start.sort(-1).values
    return leaves, options


def by_definition(q, k, v, *, causal, window=None, start=None, softcap=None):
    """Output and lse query by query, from the keys that it sees."""
    n_queries, n_keys, n_sharing = q.shape[-2], k.shape[-2], q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(n_sharing, dim=1) for x in (k, v))
    output = 0 * (q + k.sum() + v.sum())
    lse = output.sum(-1) - math.inf
    for b, i in itertools.product(range(len(q)), range(n_queries)):
        last = i + n_keys - n_queries if causal else n_keys - 1
        first = 0 if window is None else max(0, last - window + 1)
        if start is not None:
            first = max(first, int(start[b % len(start), i]))
        if first > last:
            continue
        seen = slice(first, last + 1)
        scores = torch.einsum("hd,hkd->hk", q[b, :, i], k[b, :, seen]) / math.sqrt(q.shape[-1])
        scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
        output[b, :, i] = torch.einsum("hk,hkd->hd", scores.softmax(-1), v[b, :, seen])
        lse[b, :, i] = torch.logsumexp(scores, -1)
    return output, lse


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("sizes", "heads"), SHAPES)
def test_all_implementations_give_what_the_definition_gives(
    sizes: tuple[int, int], heads: tuple[int, int], mask: str
):
    leaves, options = draw_case(sizes, heads, MASKS[mask])
    for softcap in (None, 0.7):
        expected, expected_lse = by_definition(*leaves, **options, softcap=softcap)
        sees = expected_lse.isfinite()
        mixed, mixed_lse = torch.randn_like(expected), torch.randn_like(expected_lse)
        loss = (expected * mixed).sum()
        both = loss + (expected_lse * mixed_lse)[sees].sum()
        gradients = torch.autograd.grad(loss, leaves, retain_graph=True)
        gradients_of_both = torch.autograd.grad(both, leaves)
        for implementation in ("reference", "tiled", "torch"):
            chosen = {**options, "softcap": softcap, "implementation": implementation}
            if implementation == "torch":
                if softcap is not None:
                    continue
                output = attention(*leaves, **chosen)
                found = torch.autograd.grad((output * mixed).sum(), leaves)
                torch.testing.assert_close(found, gradients)
            else:
                output, lse = attention(*leaves, **chosen, return_lse=True)
                torch.testing.assert_close(lse, expected_lse)
                both = (output * mixed).sum() + (lse * mixed_lse)[sees].sum()
                found = torch.autograd.grad(both, leaves)
                torch.testing.assert_close(found, gradients_of_both)
            torch.testing.assert_close(output, expected)
            assert (output[~sees] == 0).all()


@pytest.mark.parametrize("implementation", ["reference", "tiled"])
def test_lse_is_wide_and_its_gradient_passes_where_nothing_is_seen(implementation: Any):
    q, k, v = (x.bfloat16().requires_grad_() for x in random_qkv(6, 4))
    options = {"causal": True, "return_lse": True, "implementation": implementation}
    output, lse = attention(q, k, v, **options)
    assert (output.dtype, lse.dtype) == (torch.bfloat16, torch.float32)
    assert lse[..., :2].eq(-math.inf).all()
    assert lse[..., 2:].isfinite().all()
    (output.float().sum() + lse.sum()).backward()
    assert all(x.grad.isfinite().all() for x in (q, k, v))
    assert (q.grad[..., :2, :] == 0).all()


@pytest.mark.parametrize("implementation", ["reference", "tiled", "torch"])
def test_heads_stand_behind_any_dimensions(implementation: Any):
    q, k, v = random_qkv(5, 5)
    start = torch.tensor([0, 0, 1, 3, 3], dtype=torch.int32)
    options = {"causal": True, "implementation": implementation}
    expected = attention(q, k, v, start=start, **options)
    for row in range(2):
        torch.testing.assert_close(
            attention(q[row], k[row], v[row], start=start, **options), expected[row]
        )
    more = [x.unflatten(0, (2, 1)).expand(2, 3, *x.shape[1:]) for x in (q, k, v)]
    starts = start.expand(2, 3, 5)
    torch.testing.assert_close(attention(*more, start=starts, **options)[:, 1], expected)


def test_auto_on_a_cpu_is_torch_and_where_torch_cannot_the_formula():
    q, k, v = (x.float() for x in random_qkv(40, 40))
    assert torch.equal(
        attention(q, k, v, causal=True), attention(q, k, v, causal=True, implementation="torch")
    )
    for more in ({"softcap": 2.0}, {"return_lse": True}):
        found = attention(q, k, v, causal=True, **more)
        expected = attention(q, k, v, causal=True, implementation="reference", **more)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("implementation", ["reference", "tiled", "torch"])
def test_autocast_takes_any_dtypes(implementation: Any):
    q, k, v = random_qkv(9, 9)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = attention(
            q.float(), k.bfloat16(), v.float(), causal=True, implementation=implementation
        )
    assert mixed.dtype == torch.bfloat16
    torch.testing.assert_close(mixed.double(), attention(q, k, v, causal=True), rtol=0, atol=0.03)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=12))
def test_document_starts_are_the_first_of_each_run(numbers: list[int]):
    found = document_starts(torch.tensor([numbers, numbers[::-1]]))
    assert found.dtype == torch.int32
    for row, run in zip(found.tolist(), (numbers, numbers[::-1]), strict=True):
        for i, first in enumerate(row):
            assert len(set(run[first : i + 1])) == 1
            assert first == 0 or run[first - 1] != run[first]


def test_attention_without_triton_on_a_device_for_it_is_refused(monkeypatch: pytest.MonkeyPatch):
    q, k, v = (x.float() for x in random_qkv(3, 3))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="needs a CUDA device, or TRITON_INTERPRET=1"):
        attention(q, k, v, causal=True, implementation="triton")
    monkeypatch.setattr(attention_module, "_HAS_TRITON", False)
    assert "triton" not in implementations_on(torch.device("cuda"))
    with pytest.raises(ValueError, match="needs the package triton"):
        attention(q, k, v, causal=True, implementation="triton")


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, "triton"),
        ({"capability": (9, 0)}, "torch"),
        ({"capability": (9, 0), "has_start": True}, "triton"),
        ({"capability": (9, 0), "needs_more": True}, "triton"),
        ({"n_queries": 1}, "torch"),
        ({"n_queries": 3}, "triton"),
        ({"dtype": torch.float64}, "torch"),
        ({"dtype": torch.float64, "needs_more": True}, "reference"),
        ({"d_head": 288, "has_start": True}, "torch"),
        ({"has_triton": False, "has_start": True}, "torch"),
        ({"kind": "cpu", "has_start": True}, "torch"),
    ],
)
def test_auto_chooses_by_device_and_mask(
    more: dict[str, Any], expected: str, monkeypatch: pytest.MonkeyPatch
):
    case = {"n_queries": 8, "d_head": 64, "dtype": torch.bfloat16, "kind": "cuda", **more}
    capability = case.get("capability", (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(attention_module, "_HAS_TRITON", case.get("has_triton", True))

    with FakeTensorMode():  # No device is needed to have tensors there.
        placed = {"dtype": case["dtype"], "device": case["kind"]}
        q = torch.empty(1, 2, case["n_queries"], case["d_head"], **placed)
        k = torch.empty(1, 2, 8, case["d_head"], **placed)
    start = torch.zeros(1, 8, dtype=torch.int32) if case.get("has_start") else None
    needs_more = case.get("needs_more", False)
    chosen = attention_module._choose(q, k, start, causal=True, needs_more=needs_more)
    assert chosen == expected


def test_arguments_that_mean_nothing_are_refused():
    q, k, v = random_qkv(3, 3)
    start = torch.zeros(2, 3, dtype=torch.int32)
    cases: list[tuple[str, dict[str, Any]]] = [
        ("softcap must be positive, got 0", {"softcap": 0.0}),
        ("start must be given with causal True", {"start": start, "causal": False}),
        ("softcap and return_lse must be off", {"softcap": 1.0, "implementation": "torch"}),
        ("softcap and return_lse must be off", {"return_lse": True, "implementation": "torch"}),
    ]
    for message, options in cases:
        with pytest.raises(ValueError, match=message):
            attention(q, k, v, **{"causal": True, **options})
    unchecked = inspect.unwrap(attention)  # Tests check types as well.
    with pytest.raises(ValueError, match="auto, reference, tiled, torch, triton, got 'flash'"):
        unchecked(q, k, v, causal=True, implementation="flash")
    with pytest.raises(ValueError, match="must be a multiple of the heads of keys"):
        attention(q, k[:, :2], v[:, :2], causal=True)
    with pytest.raises(ValueError, match=r"must have one dtype and device, got torch\.float32"):
        attention(q.float(), k, v, causal=True)


def test_attention_loads_no_triton():
    code = "import sys, rslm.attention; sys.exit('triton' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
