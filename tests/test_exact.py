"""The exact operations against PyTorch's, their gradients, and their independence of the batch."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rslm import _rslm, exact
from rslm.attention import attention
from rslm.layers import RMSNorm, RotaryEmbedding


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.hypothesis
@given(
    rows=st.integers(0, 70),
    d_in=st.integers(1, 70),
    d_out=st.integers(1, 20),
    seed=st.integers(0, 99),
    has_bias=st.booleans(),
)
def test_linear_is_near_torch_and_each_row_is_computed_alone(
    rows: int, d_in: int, d_out: int, seed: int, has_bias: bool
):
    x, weight = drawn(rows, d_in, seed=seed), drawn(d_out, d_in, seed=seed + 1)
    bias = drawn(d_out) if has_bias else None
    whole = exact.linear(x, weight, bias)
    expected = torch.nn.functional.linear(x, weight, bias)
    torch.testing.assert_close(whole, expected, rtol=1e-5, atol=1e-5)
    for row in range(rows):
        assert torch.equal(exact.linear(x[row], weight, bias), whole[row])
    assert torch.equal(exact.linear(x.T.contiguous().T, weight, bias), whole)


@pytest.mark.hypothesis
@given(rows=st.integers(1, 9), width=st.integers(1, 70), has_gain=st.booleans())
def test_rms_norm_is_near_the_layer_and_each_row_is_computed_alone(
    rows: int, width: int, has_gain: bool
):
    layer = RMSNorm(width, gain=has_gain)
    if layer.weight is not None:
        layer.weight.data = drawn(width)
    x = 3 * drawn(rows, width, seed=1)
    with torch.no_grad():
        whole = exact.rms_norm(x, layer.weight, layer.epsilon)
        torch.testing.assert_close(whole, layer(x), rtol=1e-5, atol=1e-6)
        for row in range(rows):
            assert torch.equal(exact.rms_norm(x[row], layer.weight, layer.epsilon), whole[row])


@pytest.mark.parametrize("half", [False, True])
def test_rotate_is_near_the_layer(half: bool):
    layer = RotaryEmbedding(12, 20, half=half)
    x, positions = drawn(7, 3, 12), torch.tensor([0, 19, 3, 3, 7, 1, 2])
    turned = exact.rotate(x, positions, layer.cos, layer.sin)
    expected = layer(x.transpose(0, 1), positions).transpose(0, 1)
    torch.testing.assert_close(turned, expected, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match=r"positions must lie in \[0, 20\), got 20"):
        exact.rotate(x, positions + 1, layer.cos, layer.sin)


@pytest.mark.parametrize("name", ["silu", "gelu", "tanh"])
def test_activations_are_near_torch_and_do_not_depend_on_the_place(name: Any):
    x = torch.cat((torch.linspace(-30, 30, 1001), torch.tensor([0.0, -0.0, 1e-30, 88.5, -104.0])))
    whole = exact.activate(name, x)
    expected = {"silu": torch.nn.functional.silu, "gelu": torch.nn.functional.gelu}
    torch.testing.assert_close(whole, expected.get(name, torch.tanh)(x), rtol=2e-6, atol=2e-6)
    for n in (1, 15, 17, 40):
        assert torch.equal(exact.activate(name, x[:n]), whole[:n])
        assert torch.equal(exact.activate(name, x[-n:]), whole[-n:])
    assert torch.equal(exact.activate(name, x, whole), whole * whole)


@pytest.mark.hypothesis
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 70)),
    heads=st.tuples(st.integers(1, 3), st.integers(1, 6)),
    window=st.none() | st.integers(1, 50),
    seed=st.integers(0, 99),
)
def test_attention_is_near_the_reference(
    shape: tuple[int, int, int], heads: tuple[int, int], window: int | None, seed: int
):
    (batch, length, d_head), (n_kv_heads, n_sharing) = shape, heads
    q = drawn(batch, n_kv_heads * n_sharing, length, d_head, seed=seed)
    k = drawn(batch, n_kv_heads, length, d_head, seed=seed + 1)
    v = drawn(batch, n_kv_heads, length, d_head, seed=seed + 2)
    found = exact.attend_sequences(q, k, v, window=window, scale=None)
    expected = attention(q, k, v, causal=True, window=window, implementation="reference")
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_the_ordinary_operations():
    x, weight, bias = (drawn(*s).requires_grad_() for s in ((3, 5), (4, 5), (4,)))
    exact.linear(x, weight, bias).square().sum().backward()
    copies = [tensor.detach().requires_grad_() for tensor in (x, weight, bias)]
    torch.nn.functional.linear(*copies).square().sum().backward()
    for tensor, copy in zip((x, weight, bias), copies, strict=True):
        torch.testing.assert_close(tensor.grad, copy.grad)


def test_quantized_products_are_those_of_the_integers():
    weight, x = drawn(6, 33), drawn(4, 33, seed=1)
    integers, scales = _rslm.quantize_rows(weight.numpy())
    back = torch.from_numpy(integers).view(6, 33).float() * torch.from_numpy(scales)[:, None]
    assert (back - weight).abs().max() <= 0.501 * scales.max()
    out = torch.empty(4, 6)
    _rslm.linear_int8(x.numpy(), integers.reshape(6, 33), scales, None, out.numpy(), 1)
    torch.testing.assert_close(out, x @ back.T, rtol=1e-5, atol=1e-5)


def test_arrays_that_do_not_fit_are_refused():
    x, out = drawn(2, 3).numpy(), torch.empty(2, 4).numpy()
    with pytest.raises(ValueError, match="must be rows of 5 numbers, got 6 and 20"):
        _rslm.linear(x, drawn(4, 5).numpy(), None, out, 1)
    with pytest.raises(ValueError, match="must have 3 numbers and the output 2 rows of as many"):
        _rslm.linear(x, drawn(3, 3).numpy(), None, out, 1)
    with pytest.raises(ValueError, match='name must be silu, gelu or tanh, got "relu"'):
        _rslm.activate("relu", x, None, x.copy())
    with pytest.raises(TypeError, match="contiguous"):
        _rslm.rms_norm(x[:, ::2], None, 1e-5, out)
    with pytest.raises(TypeError):
        _rslm.linear(x.astype("float64"), drawn(4, 3).numpy(), None, out, 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"float32 on a CPU, got torch\.bfloat16"):
        exact.check_exact(torch.zeros(1, dtype=torch.bfloat16))
