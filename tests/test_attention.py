import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from rslm.attention import attention, scaled_dot_product_attention, softmax

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
