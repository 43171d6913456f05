import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from rslm.architecture import TransformerConfig, forward_flops, n_parameters
from rslm.layers import _turn_pairs
from rslm.losses import cross_entropy
from rslm.model import (
    CausalSelfAttention,
    Embedding,
    Linear,
    RMSNorm,
    RotaryEmbedding,
    SwiGLU,
    Transformer,
    TransformerBlock,
    silu,
)

CONFIG = TransformerConfig(
    vocab_size=53, context_length=24, d_model=32, n_layers=2, n_heads=4, d_ff=48
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_ids(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, CONFIG.vocab_size, shape, generator=seeded(seed))


@pytest.fixture(scope="module")
def model() -> Transformer:
    return Transformer(CONFIG, generator=seeded(), dtype=torch.float64)


def naive_llama(weights: dict[str, torch.Tensor], config: TransformerConfig, ids: torch.Tensor):
    """Logits by formulas alone: einsum, complex rotations, no code of the package's."""

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return torch.einsum(
            "btd,bt,d->btd", x, (x.pow(2).mean(-1) + 1e-5) ** -0.5, weights[f"{name}.weight"]
        )

    def project(x: torch.Tensor, name: str) -> torch.Tensor:
        return torch.einsum("btd,ed->bte", x, weights[f"{name}.weight"])

    length, n_heads, d_head = ids.shape[1], config.n_heads, config.d_model // config.n_heads
    angles = torch.tensor(
        [
            [t * config.rope_theta ** (-2 * k / d_head) for k in range(d_head // 2)]
            for t in range(length)
        ],
        dtype=torch.float64,
    )
    turns = torch.exp(1j * angles)

    def heads(x: torch.Tensor, *, turned: bool) -> torch.Tensor:
        x = x.reshape(*x.shape[:2], n_heads, d_head)
        if turned:
            pairs = torch.complex(x[..., 0::2], x[..., 1::2]) * turns[:, None]
            x = torch.stack((pairs.real, pairs.imag), -1).reshape(x.shape)
        return x

    x = weights["token_embeddings.weight"][ids]
    for i in range(config.n_layers):
        attn, ffn = f"layers.{i}.attn", f"layers.{i}.ffn"
        normed = norm(x, f"layers.{i}.ln1")
        q = heads(project(normed, f"{attn}.q_proj"), turned=True)
        k = heads(project(normed, f"{attn}.k_proj"), turned=True)
        v = heads(project(normed, f"{attn}.v_proj"), turned=False)
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(d_head)
        scores += torch.full((length, length), -math.inf).triu(1)
        mixed = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v).flatten(2)
        x = x + project(mixed, f"{attn}.output_proj")
        normed = norm(x, f"layers.{i}.ln2")
        gate = project(normed, f"{ffn}.w1")
        x = x + project(gate / (1 + (-gate).exp()) * project(normed, f"{ffn}.w3"), f"{ffn}.w2")
    return project(norm(x, "ln_final"), "lm_head")


def test_logits_equal_a_naive_llama():
    model = Transformer(CONFIG, generator=seeded(), dtype=torch.float64)
    for name, parameter in model.named_parameters():
        if "ln" in name:  # Gains of 1 would hide a norm that forgets them.
            parameter.data.uniform_(0.5, 1.5, generator=seeded(len(name)))
    ids = random_ids(3, 24)
    expected = naive_llama(model.state_dict(), CONFIG, ids)
    # The rotary tables are float32, the rest float64.
    torch.testing.assert_close(model(ids), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("implementation", ["reference", "torch"])
def test_attention_implementations_give_the_same_logits_and_gradients(implementation: str):
    ids = random_ids(2, 17)
    gradients = []
    for chosen in ("auto", implementation):
        model = Transformer(CONFIG, implementation=chosen, generator=seeded())
        cross_entropy(model(ids[:, :-1]), ids[:, 1:]).backward()
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


def test_state_dict_has_exactly_the_public_names_and_shapes():
    shapes = {name: tuple(t.shape) for name, t in Transformer(CONFIG).state_dict().items()}
    block = {
        "ln1.weight": (32,),
        "attn.q_proj.weight": (32, 32),
        "attn.k_proj.weight": (32, 32),
        "attn.v_proj.weight": (32, 32),
        "attn.output_proj.weight": (32, 32),
        "ln2.weight": (32,),
        "ffn.w1.weight": (48, 32),
        "ffn.w2.weight": (32, 48),
        "ffn.w3.weight": (48, 32),
    }
    assert shapes == {
        "token_embeddings.weight": (53, 32),
        **{f"layers.{i}.{name}": shape for i in (0, 1) for name, shape in block.items()},
        "ln_final.weight": (32,),
        "lm_head.weight": (53, 32),
    }


@settings(max_examples=15)
@given(st.data())
def test_future_tokens_do_not_change_logits(model: Transformer, data: st.DataObject):
    length = data.draw(st.integers(2, 24))
    seen = data.draw(st.integers(1, length - 1))
    first = random_ids(1, length)
    second = torch.cat((first[:, :seen], random_ids(1, length - seen, seed=2)), dim=1)
    ours, theirs = model(first), model(second)
    torch.testing.assert_close(ours[:, :seen], theirs[:, :seen], rtol=1e-12, atol=1e-12)
    # And a window alone gives what it gives inside a longer one.
    torch.testing.assert_close(model(first[:, :seen]), ours[:, :seen], rtol=1e-12, atol=1e-12)


def test_token_positions_default_to_counting_and_only_differences_matter(model: Transformer):
    ids = random_ids(2, 10)
    plain = model(ids)
    torch.testing.assert_close(model(ids, torch.arange(10)), plain)
    shifted = torch.stack((torch.arange(10), torch.arange(14, 24)))
    torch.testing.assert_close(model(ids, shifted), plain, rtol=1e-5, atol=1e-5)
    spread = model(ids, 2 * torch.arange(10))
    assert (spread - plain).abs().max() > 1e-2


def test_sequence_without_batch_equals_a_batch_of_one(model: Transformer):
    ids = random_ids(9)
    torch.testing.assert_close(model(ids), model(ids[None])[0])


def test_sequence_longer_than_the_context_is_refused(model: Transformer):
    with pytest.raises(ValueError, match=r"at most 24 tokens \(context_length\), got 25"):
        model(random_ids(1, 25))


def test_seed_fixes_weights_and_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    first, second, other = (Transformer(CONFIG, generator=seeded(s)) for s in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, second.state_dict()[name])
        assert "ln" in name or not torch.equal(weight, other.state_dict()[name])


def test_initial_weights_have_the_stated_spread():
    linear = Linear(300, 500, generator=seeded()).weight
    embedding = Embedding(1000, 200, generator=seeded()).weight
    # Cutting a normal distribution at 3σ leaves 0.98658 of its standard deviation.
    assert linear.std().item() == pytest.approx(0.98658 * math.sqrt(2 / 800), rel=0.01)
    assert embedding.std().item() == pytest.approx(0.98658, rel=0.01)
    assert linear.abs().max().item() <= 3 * math.sqrt(2 / 800)
    assert 2.9 < embedding.abs().max().item() <= 3
    assert (RMSNorm(5).weight == 1).all()


def test_model_on_meta_counts_like_the_formula_and_gets_tables_when_it_gets_memory():
    model = Transformer(CONFIG, device="meta")
    assert sum(p.numel() for p in model.parameters()) == n_parameters(CONFIG)
    expected = Transformer(CONFIG, generator=seeded())
    model.to_empty(device="cpu").load_state_dict(expected.state_dict())
    ids = random_ids(1, 24)
    assert torch.equal(model(ids), expected(ids))


def test_flops_equal_torch_s_count():
    # Fused attention on the CPU has no entry in torch's table of FLOPs.
    model = Transformer(CONFIG, implementation="reference", generator=seeded())
    ids = random_ids(3, 24)
    with FlopCounterMode(display=False) as counter:
        logits = model(ids)
    assert counter.get_total_flops() == 3 * forward_flops(CONFIG, 24)
    with FlopCounterMode(display=False) as counter:
        cross_entropy(logits, ids).backward()
    assert counter.get_total_flops() == 2 * 3 * forward_flops(CONFIG, 24)


def test_linear_and_embedding():
    linear = Linear(3, 2)
    x = torch.randn(4, 5, 3)
    torch.testing.assert_close(linear(x), torch.nn.functional.linear(x, linear.weight))
    embedding = Embedding(7, 3)
    ids = torch.tensor([[0, 6], [6, 2]])
    assert torch.equal(embedding(ids), embedding.weight[ids])
    embedding(ids).sum().backward()
    assert embedding.weight.grad[:, 0].tolist() == [1, 0, 1, 0, 0, 0, 2]


def test_silu_and_swiglu():
    x = torch.linspace(-100, 100, 401)
    torch.testing.assert_close(silu(x), torch.nn.functional.silu(x))
    layer = SwiGLU(6, 10, dtype=torch.float64)
    x = torch.randn(2, 6, dtype=torch.float64)
    w1, w2, w3 = layer.w1.weight, layer.w2.weight, layer.w3.weight
    expected = torch.nn.functional.silu(x @ w1.T) * (x @ w3.T) @ w2.T
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_rms_norm_equals_torch(dtype: torch.dtype):
    norm = RMSNorm(16, dtype=dtype)
    norm.weight.data.uniform_(0.5, 1.5)
    x = 10 * torch.randn(3, 16, dtype=dtype)
    expected = torch.nn.functional.rms_norm(x.double(), (16,), norm.weight.double(), 1e-5)
    assert norm(x).dtype == dtype
    # One rounding to the dtype, and a few in float32 before it.
    half_spacing = max(torch.finfo(dtype).eps / 2, 1e-15)
    torch.testing.assert_close(norm(x).double(), expected, rtol=1.01 * half_spacing + 1e-6, atol=0)


def test_rms_norm_of_large_half_precision_does_not_overflow():
    x = torch.full((1, 8), 60_000.0, dtype=torch.float16)
    torch.testing.assert_close(RMSNorm(8, dtype=torch.float16)(x), torch.ones_like(x))


@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 11))
def test_rotary_product_depends_on_distance_alone(i: int, j: int, shift: int):
    rope = RotaryEmbedding(8, 32)
    q, k = torch.randn(2, 1, 8, generator=seeded(), dtype=torch.float64)
    near = rope(q, torch.tensor([i])) @ rope(k, torch.tensor([j])).T
    far = rope(q, torch.tensor([i + shift])) @ rope(k, torch.tensor([j + shift])).T
    torch.testing.assert_close(near, far, rtol=1e-5, atol=1e-5)


def test_rotary_turns_interleaved_pairs_by_the_stated_angles():
    rope = RotaryEmbedding(4, 10, theta=100.0)
    x = torch.tensor([[1.0, 0.0, 0.0, 1.0]]).repeat(10, 1)
    angle = 3 * 100.0 ** (-2 / 4)
    expected = [math.cos(3), math.sin(3), -math.sin(angle), math.cos(angle)]
    assert rope(x)[3].tolist() == pytest.approx(expected, abs=1e-6)
    assert rope.cos.shape == rope.sin.shape == (10, 2)
    assert torch.equal(rope(x)[0], x[0])
    assert rope.state_dict() == {}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_rotary_by_pairs_equals_complex_for_any_layout(dtype: torch.dtype):
    wide = torch.randn(3, 5, 13, generator=seeded(), dtype=dtype)
    layouts = [
        wide[..., :12].contiguous(),
        wide[..., 1:7],
        wide[..., ::2][..., 1:],
        wide.mT[:, :5, :4],
    ]
    for x in layouts:
        rope = RotaryEmbedding(x.shape[-1], 5)
        exact = x.to(torch.promote_types(dtype, torch.float32))
        torch.testing.assert_close(rope(x), _turn_pairs(exact, rope.cos, rope.sin).to(dtype))


def test_rotary_tables_stay_float32_and_are_shared():
    model = Transformer(CONFIG).bfloat16()
    ropes = {layer.attn.rotary_embedding for layer in model.layers}
    (rope,) = ropes
    assert rope.cos.dtype == rope.sin.dtype == torch.float32
    assert torch.equal(rope.cos, RotaryEmbedding(8, 24).cos)
    assert model.layers[0].attn.q_proj.weight.dtype == torch.bfloat16
    with pytest.raises(ValueError, match=r"d_head must be even .* got 5"):
        RotaryEmbedding(5, 8)


def test_parts_work_alone():
    x = torch.randn(2, 7, 12)
    plain = CausalSelfAttention(12, 3)
    assert plain(x).shape == x.shape
    # Without positions a query's keys may be permuted as long as it is last.
    mixed = torch.cat((x[:, :-1].flip(1), x[:, -1:]), dim=1)
    torch.testing.assert_close(plain(x)[:, -1], plain(mixed)[:, -1])
    sizes = TransformerConfig(d_model=12, n_heads=3, d_ff=20)
    block = TransformerBlock(sizes, rotary_embedding=RotaryEmbedding(4, 8))
    expected = x + block.attn(block.ln1(x))
    torch.testing.assert_close(block(x), expected + block.ffn(block.ln2(expected)))
    with pytest.raises(ValueError, match="n_heads must divide d_model, got 5 and 12"):
        CausalSelfAttention(12, 5)


def test_autocast_keeps_residual_stream_and_loss_in_float32():
    model = Transformer(CONFIG, generator=seeded())
    ids = random_ids(2, 24)
    with torch.autocast("cpu", torch.bfloat16):
        hidden, logits = model.hidden_states(ids), model(ids)
    assert (hidden.dtype, logits.dtype) == (torch.float32, torch.bfloat16)
    loss = cross_entropy(logits, ids)
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())
    # A weight of bfloat16 is off by at most 2^-9 of itself, an average loss by much less.
    assert loss.item() == pytest.approx(cross_entropy(model(ids), ids).item(), rel=2**-9)


COMPILED_EQUALS_EAGER = """
import sys

import torch

from rslm.architecture import TransformerConfig
from rslm.losses import cross_entropy
from rslm.model import Transformer

torch.manual_seed(0)
config = TransformerConfig(vocab_size=53, context_length=24, d_model=32, n_layers=2, n_heads=4)
model = Transformer(config)
ids = torch.randint(0, 53, (2, 24))

def loss_of(ids, half):
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        logits = model(ids)
    return cross_entropy(logits, ids)

compiled = torch.compile(loss_of, fullgraph=True, backend=sys.argv[1])
for half in (False, True):
    results = []
    for function in (loss_of, compiled):
        loss = function(ids, half)
        results.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    # The compiler leaves out roundings to bfloat16 (spacing 2^-8) between fused operations.
    tolerance = 2**-6 if half else 1e-5
    for eager, fused in zip(*results):
        assert (eager - fused).norm() <= tolerance * eager.norm()
"""


@pytest.mark.parametrize(
    "backend",
    # "aot_eager" traces as the default compiler does and builds nothing.
    ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)],
)
def test_compiled_model_has_no_graph_breaks_and_equals_eager(backend: str):
    # In a process of its own: pytest's shape checks are not there to be compiled.
    command = [sys.executable, "-c", COMPILED_EQUALS_EAGER, backend]
    subprocess.run(command, check=True, timeout=280)


def test_a_tiny_model_learns_a_repeating_text():
    model = Transformer(CONFIG, generator=seeded())
    ids = (torch.arange(25) % 5).repeat(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    for _ in range(30):
        loss = cross_entropy(model(ids[:, :-1]), ids[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
