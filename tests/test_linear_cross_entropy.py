"""The loss whose logits are never whole, against the loss of whole logits in float64."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rslm import losses, model
from rslm.architecture import TransformerConfig
from rslm.head_chunks import chunk_tokens
from rslm.layers import softcap
from rslm.losses import linear_cross_entropy, token_losses, training_loss
from rslm.model import Transformer

VOCAB, WIDTH = 13, 6

OPTIONS: list[dict[str, Any]] = [
    {},
    {"has_bias": True},
    {"softcap": 2.0},
    {"softcap": 2.0, "softcap_form": "sqrt"},
    {"z_loss": 0.1},
    {"has_padding": True},
    {"has_bias": True, "softcap": 2.0, "softcap_form": "sqrt", "z_loss": 0.1, "has_padding": True},
]


def draw(n_tokens: int, *, has_bias: bool, has_padding: bool, scale: float = 1.0):
    """Input, weight and bias in float64, and targets of which the first five are padding."""
    generator = torch.Generator().manual_seed(n_tokens)
    shapes = [(n_tokens, WIDTH), (VOCAB, WIDTH), *[(VOCAB,)] * has_bias]
    tensors = [
        (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).requires_grad_()
        for shape in shapes
    ]
    targets = torch.randint(0, VOCAB, (n_tokens,), generator=generator)
    if has_padding:
        targets[:5] = -100
    return tensors, targets


def whole(tensors: list[Tensor], targets: Tensor, *, cap=None, form="tanh", **options: Any):
    hidden, weight, *bias = tensors
    logits = torch.nn.functional.linear(hidden, weight, *bias)
    if cap is not None:
        logits = softcap(logits, cap, form)
    return training_loss(logits, targets, **options)


def both(options: dict[str, Any], n_tokens: int, chunk: int, dtype: torch.dtype, **draws: Any):
    """(minimised, loss, gradients) in chunks with tensors of a dtype, and whole in float64."""
    options = dict(options)
    has_bias = options.pop("has_bias", False)
    tensors, targets = draw(
        n_tokens, has_bias=has_bias, has_padding=options.get("has_padding", False), **draws
    )
    cast = [x.detach().to(dtype).requires_grad_() for x in tensors]
    rounded = [x.detach().double().requires_grad_() for x in cast]
    hidden, weight, *bias = cast
    ours = linear_cross_entropy(
        hidden, weight, targets, bias=bias[0] if bias else None, chunk=chunk, **options
    )
    cap, form = options.pop("softcap", None), options.pop("softcap_form", "tanh")
    theirs = whole(rounded, targets, cap=cap, form=form, **options)
    results = []
    for (minimised, loss), inputs in ((ours, cast), (theirs, rounded)):
        # Not one: what comes from above must scale the gradients.
        gradients = torch.autograd.grad(0.5 * minimised, inputs)
        results.append([minimised.detach(), loss.detach(), *gradients])
    return results


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("chunk", [1, 5, 7, 16, 17, 100])
def test_chunks_equal_whole_logits_in_float64(options: dict[str, Any], chunk: int):
    for one, two in zip(*both(options, 17, chunk, torch.float64), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("chunk", [1, 5, 16, 17, 100])
@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_weights_make_sums_of_means(chunk: int, z_loss: float):
    tensors, targets = draw(17, has_bias=True, has_padding=False)
    weights = torch.rand(17, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights[3] = 0
    hidden, weight, bias = tensors
    minimised, loss = linear_cross_entropy(
        hidden, weight, targets, bias=bias, chunk=chunk, weights=weights, z_loss=z_loss
    )
    logits = hidden @ weight.T + bias
    expected = (token_losses(logits, targets) * weights).sum()
    with_z = expected + z_loss * (logits.logsumexp(-1).square() * weights).sum()
    torch.testing.assert_close(loss.detach(), expected.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(minimised, with_z, rtol=1e-12, atol=0)
    found = torch.autograd.grad(2 * minimised, tensors)
    for one, two in zip(found, torch.autograd.grad(2 * with_z, tensors), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_chunks_in_float32_err_by_its_rounding(options: dict[str, Any]):
    for one, two in zip(*both(options, 600, 64, torch.float32), strict=True):
        assert (one.double() - two).norm() < 2e-6 * two.norm()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("has_products", [False, True])
def test_chunks_in_bfloat16_err_at_most_twice_as_much_as_whole_logits(
    options: dict[str, Any], has_products: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(losses, "has_bfloat16_units", lambda _: has_products)
    ours, exact = both(options, 600, 64, torch.bfloat16)
    assert ours[0].dtype == ours[1].dtype == torch.float32
    options = dict(options)
    has_bias = options.pop("has_bias", False)
    drawn, targets = draw(600, has_bias=has_bias, has_padding=options.get("has_padding", False))
    plain = [x.detach().bfloat16().requires_grad_() for x in drawn]
    cap, form = options.pop("softcap", None), options.pop("softcap_form", "tanh")
    minimised, loss = whole(plain, targets, cap=cap, form=form, **options)
    theirs = [minimised, loss, *torch.autograd.grad(0.5 * minimised, plain)]
    for one, two, true in zip(ours, theirs, exact, strict=True):
        error, allowed = ((x.detach().double() - true).norm() for x in (one, two))
        assert error <= 2 * allowed + 1e-6 * true.norm()


def test_autocast_gives_float32_gradients_of_bfloat16_products(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(losses, "has_bfloat16_units", lambda _: True)
    (hidden, weight), targets = draw(40, has_bias=False, has_padding=False)
    cast = [x.detach().float().requires_grad_() for x in (hidden, weight)]
    results = []
    for loss_of in (partial(linear_cross_entropy, chunk=7), lambda x, w, t: whole([x, w], t)):
        with torch.autocast("cpu", torch.bfloat16):
            minimised, _ = loss_of(*cast, targets)
        results.append([minimised, *torch.autograd.grad(minimised, cast)])
        assert {x.dtype for x in results[-1]} == {torch.float32}
    for one, two in zip(*results, strict=True):
        assert (one - two).norm() < 0.01 * two.norm()


def test_huge_logits_are_safe():
    for one, two in zip(*both({}, 17, 4, torch.float32, scale=1e4), strict=True):
        assert one.isfinite().all()
        torch.testing.assert_close(one.double(), two, rtol=1e-5, atol=1e-5 * float(two.norm()))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_gradcheck(options: dict[str, Any]):
    options = dict(options)
    has_bias, has_padding = options.pop("has_bias", False), options.get("has_padding", False)
    tensors, targets = draw(8, has_bias=has_bias, has_padding=has_padding)

    def minimised(hidden: Tensor, weight: Tensor, *bias: Tensor) -> Tensor:
        return linear_cross_entropy(
            hidden, weight, targets, bias=bias[0] if bias else None, chunk=3, **options
        )[0]

    assert torch.autograd.gradcheck(minimised, tensors)


# The check itself looks at the gradient of what is no leaf.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("has_weights", [False, True])
@pytest.mark.parametrize("with_gradients", [False, True])
def test_opcheck(has_bias: bool, has_weights: bool, with_gradients: bool):
    tensors, targets = draw(8, has_bias=has_bias, has_padding=True)
    hidden, weight, *bias = (x.detach().float().requires_grad_(with_gradients) for x in tensors)
    weights = torch.rand(8) if has_weights else None
    options = (2.0, "sqrt", 0.1, True, weights, 3, torch.float32, with_gradients)
    inputs = (hidden, weight, bias[0] if bias else None, targets, *options)
    torch.library.opcheck(losses._linear_cross_entropy, inputs)


def test_without_gradients_the_losses_are_the_same():
    (hidden, weight), targets = draw(17, has_bias=False, has_padding=True)
    options = {"z_loss": 0.1, "has_padding": True, "chunk": 5}
    trained = linear_cross_entropy(hidden, weight, targets, **options)
    with torch.no_grad():
        scored = linear_cross_entropy(hidden, weight, targets, **options)
    for one, two in zip(trained, scored, strict=True):
        assert torch.equal(one, two)
        assert not two.requires_grad


def test_backward_twice_sums_the_gradient():
    (hidden, weight), targets = draw(17, has_bias=False, has_padding=False)
    minimised, _ = linear_cross_entropy(hidden, weight, targets, chunk=5)
    (once,) = torch.autograd.grad(minimised, weight, retain_graph=True)
    once = once.clone()
    minimised.backward(retain_graph=True)
    minimised.backward()
    assert torch.equal(weight.grad, 2 * once)


def test_a_chunk_of_no_token_is_refused():
    (hidden, weight), targets = draw(17, has_bias=False, has_padding=False)
    with pytest.raises(ValueError, match="chunk must be at least 1, got 0"):
        linear_cross_entropy(hidden, weight, targets, chunk=0)


@given(st.integers(0, 10**6), st.integers(1, 300_000), st.sampled_from(["cpu", "cuda"]))
def test_chunks_are_of_about_equal_size_and_bounded(n_tokens: int, vocab_size: int, kind: str):
    limit = 2**22 if kind == "cpu" else 2**28
    chunk = chunk_tokens(n_tokens, vocab_size, kind)
    if n_tokens * vocab_size <= limit:
        assert chunk == max(1, n_tokens)
    else:
        assert chunk * vocab_size <= limit or chunk <= 512
        n_chunks = -(-n_tokens // chunk)
        assert n_chunks * chunk - n_tokens < n_chunks


MODELS: list[dict[str, Any]] = [
    {},
    {"tied_head": True, "softcap": 2.0, "z_loss": 0.1},
    {"softcap": 2.0, "softcap_form": "sqrt", "biases": True},
    {"parametrisation": "mup", "base_d_model": 8},
]
SMALL = {"vocab_size": 37, "context_length": 12, "d_model": 16, "n_layers": 1, "n_heads": 2}


def losses_of(network: Transformer, ids: Tensor, targets: Tensor, chunk: int) -> list[Tensor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "chunk_tokens", lambda *_: chunk)
        minimised, loss = network(ids, targets=targets, has_padding=True)
    return [minimised, loss, *torch.autograd.grad(minimised, list(network.parameters()))]


@pytest.mark.parametrize("switches", MODELS, ids=str)
def test_model_gives_the_losses_of_its_logits(switches: dict[str, Any]):
    config = TransformerConfig(**SMALL, **switches)
    network = Transformer(config, dtype=torch.float64)
    ids = torch.randint(0, 37, (3, 12), generator=torch.Generator().manual_seed(0))
    targets = ids.roll(-1, 1)
    targets[0, 5:] = -1
    minimised, loss = training_loss(network(ids), targets, z_loss=config.z_loss, has_padding=True)
    plain = [minimised, loss, *torch.autograd.grad(minimised, list(network.parameters()))]
    for one, two in zip(losses_of(network, ids, targets, 36), plain, strict=True):
        assert torch.equal(one, two)
    for one, two in zip(losses_of(network, ids, targets, 7), plain, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-12)


COMPILED = """
import sys
import torch
from rslm.losses import linear_cross_entropy

draw = torch.Generator().manual_seed(0)
hidden = torch.randn(4, 17, 6, generator=draw).requires_grad_()
weight = torch.randn(13, 6, generator=draw).requires_grad_()
bias = torch.randn(13, generator=draw).requires_grad_()
targets = torch.randint(-1, 13, (4, 17), generator=draw)

def loss_of(hidden):
    return linear_cross_entropy(
        hidden * 2, weight, targets, bias=bias, softcap=2.0, z_loss=0.1, has_padding=True, chunk=7
    )

compiled = torch.compile(loss_of, fullgraph=True, backend=sys.argv[1])
results = []
for function in (loss_of, compiled):
    minimised, loss = function(hidden)
    gradients = torch.autograd.grad(0.5 * minimised, (hidden, weight, bias))
    results.append((minimised, loss, *gradients))
for one, two in zip(*results):
    torch.testing.assert_close(one, two)
"""


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_is_one_graph_and_equals_eager(backend: str):
    subprocess.run([sys.executable, "-c", COMPILED, backend], check=True, timeout=280)


PEAK = """
import json, re, sys
import torch
from rslm.losses import linear_cross_entropy, token_losses, training_loss

n_tokens, d_model, vocab_size, kind, precision = json.loads(sys.argv[1])

def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1]) / 1024

def step(n_tokens, vocab_size, chunk=None):
    hidden = torch.randn(n_tokens, d_model, requires_grad=True)
    weight = torch.randn(vocab_size, d_model).mul_(0.05).requires_grad_()
    targets = torch.randint(vocab_size, (n_tokens,))
    before = peak()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        if kind == "whole":
            loss, _ = training_loss(hidden @ weight.T, targets)
        else:
            loss, _ = linear_cross_entropy(hidden, weight, targets, chunk=chunk)
    loss.backward()
    return peak() - before

torch.set_num_threads(1)
step(64, 64, 16)
print(step(n_tokens, vocab_size))
"""


def extra_peak(kind: str, shape: tuple[int, int, int], precision: str) -> float:
    """MiB that become resident for head and loss, in a process of its own."""
    import os

    arguments = json.dumps([*shape, kind, precision])
    # By default glibc learns to put large blocks on its heap, where they leave holes.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-c", PEAK, arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=500,
        env=environment,
    )
    return float(done.stdout)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
@pytest.mark.parametrize(
    "shape",
    [(4096, 64, 32_000), pytest.param((4096, 512, 32_000), marks=pytest.mark.slow)],
    ids=str,
)
def test_extra_peak_is_at_most_a_quarter_of_the_whole_logits(shape: tuple[int, int, int]):
    chunks, plain = (extra_peak(kind, shape, "float32") for kind in ("chunks", "whole"))
    assert chunks < plain / 4
