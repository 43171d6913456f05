"""Every switch of the model against a formula written without the package's code."""

import hashlib
import math
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from rslm.architecture import (
    TransformerConfig,
    forward_flops,
    n_body_parameters,
    n_non_embedding_parameters,
    n_parameters,
    n_parameters_by_group,
    parameter_shapes,
)
from rslm.kv_cache import KeyValueCache
from rslm.losses import cross_entropy
from rslm.model import Transformer

PLAIN = TransformerConfig(
    vocab_size=37, context_length=12, d_model=16, n_layers=3, n_heads=4, d_ff=24
)
SWITCHES: dict[str, dict[str, Any]] = {
    "plain": {},
    "silu": {"ffn": "silu", "d_ff": None},
    "gelu": {"ffn": "gelu"},
    "relu2": {"ffn": "relu2"},
    "no-norm": {"norm": "none"},
    "post-norm": {"norm_position": "post"},
    "peri-norm": {"norm_position": "peri"},
    "embedding-norm": {"embedding_norm": True},
    "norm-epsilon": {"norm_epsilon": 0.3, "embedding_norm": True, "qk_norm": "rms"},
    "half-rope": {"position_encoding": "half-rope"},
    "no-positions": {"position_encoding": "none"},
    "qk-norm": {"qk_norm": "rms"},
    "qk-norm-gain": {"qk_norm": "rms-gain"},
    "softcap-tanh": {"softcap": 0.7},
    "softcap-sqrt": {"softcap": 0.7, "softcap_form": "sqrt"},
    "tied-head": {"tied_head": True},
    "biases": {"biases": True},
    "biases-ungated": {"biases": True, "ffn": "relu2"},
    "grouped-heads": {"n_kv_heads": 2},
    "one-kv-head": {"n_kv_heads": 1},
    "wide-heads": {"d_head": 6},
    "attention-scale": {"attention_scale": 0.12},
    "windows": {"window_pattern": "SSL", "window_size": 3},
    "default-window": {"window_pattern": "S"},
    "value-embeddings": {"value_embeddings": True, "n_kv_heads": 2},
    "residual-scalars": {"residual_scalars": True},
    "x0-scalars": {"x0_scalars": True},
    "zero-projections": {"zero_init_projections": True},
    "zero-head": {"zero_init_head": True},
    "mup": {"parametrisation": "mup", "base_d_model": 8},
    "completep": {"parametrisation": "completep", "base_d_model": 8, "base_n_layers": 1},
    "everything": {
        "ffn": "relu2",
        "norm_position": "peri",
        "embedding_norm": True,
        "position_encoding": "half-rope",
        "qk_norm": "rms-gain",
        "softcap": 1.5,
        "softcap_form": "sqrt",
        "biases": True,
        "n_kv_heads": 2,
        "d_head": 8,
        "window_pattern": "SL",
        "window_size": 4,
        "value_embeddings": True,
        "residual_scalars": True,
        "x0_scalars": True,
        "parametrisation": "completep",
        "base_d_model": 4,
        "base_n_layers": 2,
    },
}
# SHA-256 over the bytes of the plain model's weights, in order, before there were switches.
PLAIN_WEIGHTS_SHA256 = "aced03af5e5547dbcedd6976a3d956f737b250c4a89bdd26139225cf8f950639"


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_ids(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(0, 37, shape, generator=seeded(seed))


def config_of(name: str) -> TransformerConfig:
    return replace(PLAIN, **SWITCHES[name])


def moved(config: TransformerConfig, **options: Any) -> Transformer:
    """A model whose every weight is off its start, so that gains, zeros and biases count."""
    model = Transformer(config, generator=seeded(), dtype=torch.float64, **options)
    noise = seeded(9)
    # Without norms larger ones make scores so large that the rotary tables' float32 shows.
    size = 0.3 if config.norm == "rms" else 0.03
    for parameter in model.parameters():
        parameter.data += size * torch.randn(parameter.shape, generator=noise, dtype=torch.float64)
    return model


def naive_logits(w: dict[str, Tensor], c: TransformerConfig, ids: Tensor) -> Tensor:
    """The logits, one position and one head at a time where that is clearer."""
    d_head = c.d_head or c.d_model // c.n_heads
    n_kv = c.n_kv_heads or c.n_heads
    length = ids.shape[1]
    m_d = c.d_model / (c.base_d_model or c.d_model)
    m_l = c.n_layers / (c.base_n_layers or c.n_layers)

    def rms(x: Tensor) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + c.norm_epsilon).sqrt()

    def norm(x: Tensor, name: str) -> Tensor:
        return x if c.norm == "none" else rms(x) * w[f"{name}.weight"]

    def linear(x: Tensor, name: str) -> Tensor:
        y = torch.einsum("btd,ed->bte", x, w[f"{name}.weight"])
        return y + w[f"{name}.bias"] if c.biases else y

    def turn(x: Tensor) -> Tensor:
        n_pairs = d_head // 2
        if c.position_encoding == "none":
            return x
        if c.position_encoding == "rope":
            frequencies = [c.rope_theta ** (-2 * k / d_head) for k in range(n_pairs)]
        else:
            n = d_head // 4
            turning = torch.linspace(0, 1, n, dtype=torch.float64).tolist()
            frequencies = [(1 / c.rope_theta) ** t for t in turning] + [0.0] * (n_pairs - n)
        angles = torch.outer(
            torch.arange(length, dtype=torch.float64),
            torch.tensor(frequencies, dtype=torch.float64),
        )
        turned = torch.complex(x[..., 0::2], x[..., 1::2]) * torch.exp(1j * angles)
        return torch.stack((turned.real, turned.imag), -1).flatten(-2)

    def attention(x: Tensor, layer: int) -> Tensor:
        name = f"layers.{layer}.attn"
        q, k, v = (linear(x, f"{name}.{part}_proj") for part in "qkv")
        if c.value_embeddings and layer % 2 == (c.n_layers - 1) % 2:
            v = v + w[f"value_embeddings.{layer}.weight"][ids]
        scale = 1 / d_head if c.parametrisation != "standard" else d_head**-0.5
        scale = c.attention_scale or scale
        letter = (c.window_pattern or "L")[layer % len(c.window_pattern or "L")]
        is_short = letter == "S" and layer != c.n_layers - 1
        reach = (c.window_size or c.context_length // 4) if is_short else length
        outputs = []
        for h in range(c.n_heads):
            g = h // (c.n_heads // n_kv)
            qh = q[..., h * d_head : (h + 1) * d_head]
            kh, vh = (z[..., g * d_head : (g + 1) * d_head] for z in (k, v))
            if c.qk_norm != "none":
                qh, kh = rms(qh), rms(kh)
            if c.qk_norm == "rms-gain":
                qh, kh = qh * w[f"{name}.q_norm.weight"], kh * w[f"{name}.k_norm.weight"]
            qh, kh = turn(qh), turn(kh)
            rows = []
            for t in range(length):
                seen = slice(max(0, t - reach + 1), t + 1)
                scores = torch.einsum("bd,bkd->bk", qh[:, t], kh[:, seen]) * scale
                rows.append(torch.einsum("bk,bkd->bd", scores.softmax(-1), vh[:, seen]))
            outputs.append(torch.stack(rows, 1))
        return linear(torch.cat(outputs, -1), f"{name}.output_proj")

    def feed_forward(x: Tensor, layer: int) -> Tensor:
        name = f"layers.{layer}.ffn"
        up = linear(x, f"{name}.w1")
        if c.ffn == "swiglu":
            return linear(up / (1 + (-up).exp()) * linear(x, f"{name}.w3"), f"{name}.w2")
        active = {
            "silu": lambda y: y / (1 + (-y).exp()),
            "gelu": lambda y: y * (1 + torch.erf(y / math.sqrt(2))) / 2,
            "relu2": lambda y: torch.where(y > 0, y * y, 0.0),
        }[c.ffn](up)
        return linear(active, f"{name}.w2")

    x = w["token_embeddings.weight"][ids]
    if c.embedding_norm:
        x = norm(x, "ln_embedding")
    x0 = x
    for i in range(c.n_layers):
        if c.residual_scalars:
            x = w["residual_scalars"][i] * x
        if c.x0_scalars:
            x = x + w["x0_scalars"][i] * x0
        for branch, ln in ((attention, f"layers.{i}.ln1"), (feed_forward, f"layers.{i}.ln2")):
            if c.norm_position == "post":
                x = norm(x + branch(x, i) / m_l, ln)
                continue
            added = branch(norm(x, ln), i)
            if c.norm_position == "peri":
                added = norm(added, f"{ln}_after")
            x = x + added / m_l
    if c.norm_position != "post":
        x = norm(x, "ln_final")
    head = w["token_embeddings.weight" if c.tied_head else "lm_head.weight"]
    logits = torch.einsum("btd,vd->btv", x / m_d, head)
    if c.softcap is None:
        return logits
    if c.softcap_form == "tanh":
        return c.softcap * torch.tanh(logits / c.softcap)
    return c.softcap * logits / torch.sqrt(logits**2 + c.softcap**2)


@pytest.mark.parametrize("implementation", ["reference", "torch"])
@pytest.mark.parametrize("name", SWITCHES)
def test_logits_equal_the_plain_formula(name: str, implementation: Any):
    config = config_of(name)
    model = moved(config, implementation=implementation)
    ids = random_ids(2, 12)
    expected = naive_logits(model.state_dict(), config, ids)
    # The rotary tables are float32, the rest float64.
    torch.testing.assert_close(model(ids), expected, rtol=1e-6, atol=2e-6)


def has_plain_weights(name: str) -> bool:
    """Whether the plain model can be run with the weights of this one."""
    return parameter_shapes(PLAIN).items() <= parameter_shapes(config_of(name)).items()


# These choose the first weights and leave the function of moved ones alone.
STARTS = ("plain", "zero-projections", "zero-head")


@pytest.mark.parametrize("name", [n for n in SWITCHES if has_plain_weights(n) and n not in STARTS])
def test_switch_changes_the_logits_of_the_same_weights(name: str):
    model, ids = moved(config_of(name)), random_ids(2, 12)
    plain = naive_logits(model.state_dict(), PLAIN, ids)
    assert (model(ids) - plain).abs().max() > 1e-3


@pytest.mark.parametrize("name", SWITCHES)
def test_names_shapes_and_counts_are_those_of_the_model(name: str):
    config = config_of(name)
    model = Transformer(config, device="meta")
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert list(shapes.items()) == list(parameter_shapes(config).items())
    assert list(model.state_dict()) == list(shapes)
    groups = n_parameters_by_group(config)
    assert n_parameters(config) == sum(groups.values()) == sum(map(math.prod, shapes.values()))
    table = 37 * 16
    value_tables = sum(math.prod(s) for n, s in shapes.items() if n.startswith("value_embeddings"))
    n_tables = 1 if config.tied_head else 2
    assert n_body_parameters(config) == n_parameters(config) - n_tables * table - value_tables
    assert n_non_embedding_parameters(config) == n_body_parameters(config) + table


@pytest.mark.parametrize("name", [n for n in SWITCHES if "window" not in n and n != "everything"])
def test_flops_equal_torch_s_count(name: str):
    config = config_of(name)
    # Fused attention on the CPU has no entry in torch's table of FLOPs.
    model = Transformer(config, implementation="reference", generator=seeded())
    ids = random_ids(2, 12)
    with FlopCounterMode(display=False) as counter:
        loss = cross_entropy(model(ids), ids)
    assert counter.get_total_flops() == 2 * forward_flops(config, 12)
    with FlopCounterMode(display=False) as counter:
        loss.backward()
    assert counter.get_total_flops() == 2 * 2 * forward_flops(config, 12)


@pytest.mark.parametrize("name", ["windows", "default-window", "everything", "plain"])
def test_window_aware_flops_equal_those_of_the_last_query(name: str):
    config = config_of(name)
    model = Transformer(config, implementation="reference", generator=seeded())
    ids, cache = random_ids(1, 12), KeyValueCache(config)
    with torch.no_grad():
        model(ids[:, :11], cache=cache)
        # The last token sees what the formula gives to every token, and multiplies no more.
        with FlopCounterMode(display=False) as counter:
            model(ids[:, 11:], cache=cache)
    assert counter.get_total_flops() * 12 == forward_flops(config, 12)


@pytest.mark.parametrize("name", SWITCHES)
def test_every_parameter_gets_a_gradient(name: str):
    model = moved(config_of(name))
    ids = random_ids(4, 13)
    cross_entropy(model(ids[:, :-1]), ids[:, 1:]).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.abs().max() > 1e-9, parameter_name


@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize("cuts", [(12,), (1, *range(2, 13)), (5, 6, 10, 12)])
def test_cached_forward_equals_the_full_one(name: str, cuts: tuple[int, ...]):
    model = moved(config_of(name))
    ids, cache = random_ids(2, 12), KeyValueCache(model.config)
    pieces = []
    with torch.no_grad():
        for first, last in zip((0, *cuts), cuts, strict=False):
            assert cache.length == first
            pieces.append(model(ids[:, first:last], cache=cache))
        torch.testing.assert_close(torch.cat(pieces, 1), model(ids), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("n_blocks", [1, 2, 3, 5])
@pytest.mark.parametrize("name", ["plain", "everything", "post-norm", "windows"])
def test_recomputed_blocks_give_the_same_bits(name: str, n_blocks: int):
    ids = random_ids(2, 12)
    results = []
    for recompute_blocks in (None, n_blocks):
        model = Transformer(config_of(name), recompute_blocks=recompute_blocks, generator=seeded())
        loss = cross_entropy(model(ids), ids)
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in model.parameters())])
    for kept, again in zip(*results, strict=True):
        assert torch.equal(kept, again)


def test_recomputed_blocks_keep_less_for_the_backward_pass():
    ids = random_ids(2, 12)
    config = replace(PLAIN, n_layers=6)
    kept = {}
    for n_blocks in (None, 1, 3):
        model = Transformer(config, recompute_blocks=n_blocks, generator=seeded())
        sizes: list[int] = []

        def keep(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = cross_entropy(model(ids), ids)
        kept[n_blocks] = sum(sizes)
        loss.backward()
    # Inside the checkpoint torch's own hooks hide what is dropped; outside only inputs remain.
    assert kept[1] < kept[None] / 5
    assert kept[3] < kept[None] / 5
    with pytest.raises(ValueError, match="recompute_blocks must be at least 1, got 0"):
        Transformer(config, recompute_blocks=0)


def test_default_weights_are_bit_for_bit_those_before_the_switches():
    digest = hashlib.sha256()
    for name, weight in Transformer(PLAIN, generator=seeded(7)).state_dict().items():
        digest.update(name.encode() + weight.numpy().tobytes())
    assert digest.hexdigest() == PLAIN_WEIGHTS_SHA256


def logits_before_the_switches(model: Transformer, ids: Tensor) -> Tensor:
    """The operations of the plain model, in the order they had before there were switches."""
    x = model.token_embeddings(ids)
    for layer in model.layers:
        attn, ffn, normed = layer.attn, layer.ffn, layer.ln1(x)
        q, k, v = (
            projection(normed).unflatten(-1, (4, -1)).transpose(-3, -2)
            for projection in (attn.q_proj, attn.k_proj, attn.v_proj)
        )
        q, k = attn.rotary_embedding(q), attn.rotary_embedding(k)
        heads = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + attn.output_proj(heads.transpose(-3, -2).flatten(-2))
        normed = layer.ln2(x)
        gate = ffn.w1(normed)
        x = x + ffn.w2(gate * torch.sigmoid(gate) * ffn.w3(normed))
    return model.ln_final(x) @ model.lm_head.weight.T


def test_default_logits_and_gradients_are_bit_for_bit_those_before_the_switches():
    ids = random_ids(3, 13)
    results = []
    for function in (lambda model, x: model(x), logits_before_the_switches):
        model = Transformer(PLAIN, generator=seeded())
        logits = function(model, ids[:, :-1])
        cross_entropy(logits, ids[:, 1:]).backward()
        results.append([logits.detach(), *(p.grad for p in model.parameters())])
    for ours, before in zip(*results, strict=True):
        assert torch.equal(ours, before)


@pytest.mark.parametrize("name", ["residual-scalars", "x0-scalars", "value-embeddings"])
def test_learned_additions_begin_as_the_model_without_them(name: str):
    config = config_of(name)
    without = replace(config, residual_scalars=False, x0_scalars=False, value_embeddings=False)
    ids = random_ids(2, 12)
    with_addition = Transformer(config, generator=seeded())
    assert torch.equal(with_addition(ids), Transformer(without, generator=seeded())(ids))
    cross_entropy(with_addition(ids), ids).backward()
    added = [p for n, p in with_addition.named_parameters() if "scalars" in n or "value_" in n]
    assert added
    assert all(p.grad.abs().max() > 0 for p in added)


@pytest.mark.parametrize("vocab_size", [37, 50304])
def test_first_loss_with_a_zero_head_is_the_logarithm_of_the_vocabulary(vocab_size: int):
    config = replace(PLAIN, vocab_size=vocab_size, zero_init_head=True, softcap=15.0)
    ids = random_ids(2, 12)
    loss = cross_entropy(Transformer(config, generator=seeded())(ids), ids)
    assert loss.item() == pytest.approx(math.log(vocab_size), rel=1e-6)
    if vocab_size == 50304:
        assert loss.item() == pytest.approx(10.82584, abs=1e-5)


def test_zero_projections_leave_the_other_weights_and_the_residual_stream_alone():
    plain = Transformer(PLAIN, generator=seeded()).state_dict()
    model = Transformer(config_of("zero-projections"), generator=seeded())
    zeros = [name for name, weight in model.state_dict().items() if not weight.any()]
    assert zeros == [
        f"layers.{i}.{name}.weight" for i in range(3) for name in ("attn.output_proj", "ffn.w2")
    ]
    for name, weight in model.state_dict().items():
        assert name in zeros or torch.equal(weight, plain[name])
    ids = random_ids(2, 12)
    embedded = model.ln_final(model.token_embeddings(ids))
    assert torch.equal(model.hidden_states(ids), embedded)


def test_qk_norm_without_gain_commutes_with_the_rotary_embedding():
    model = Transformer(config_of("qk-norm"), generator=seeded(), dtype=torch.float64)
    rope = model.layers[0].attn.rotary_embedding
    norm = model.layers[0].attn.q_norm
    x = torch.randn(2, 12, 4, generator=seeded(), dtype=torch.float64)
    torch.testing.assert_close(norm(rope(x)), rope(norm(x)), rtol=1e-6, atol=1e-6)


def test_windows_reach_through_layers_and_the_last_sees_everything():
    config = replace(PLAIN, window_pattern="S", window_size=3)
    assert config.windows == (3, 3, None)
    assert replace(config, window_pattern="SL", n_layers=6).windows == (3, None, 3, None, 3, None)
    assert replace(config, window_pattern="SSSL", n_layers=6).windows[-1] is None
    assert config_of("default-window").windows == (3, 3, None)
    # With every layer short, only n_layers (window - 1) positions back would be seen.
    model = moved(config)
    first = random_ids(1, 12)
    second = first.clone()
    second[0, 0] = (first[0, 0] + 1) % 37
    difference = (model(first) - model(second)).abs().amax(-1)[0]
    assert (difference > 1e-9).all()


def test_half_rope_turns_half_of_the_pairs_in_every_dtype():
    config = replace(PLAIN, position_encoding="half-rope", d_head=16, rope_theta=1024.0)
    model = Transformer(config, generator=seeded())
    rope = model.layers[0].attn.rotary_embedding
    frequencies = [1024.0 ** (-k / 3) for k in range(4)] + [0.0] * 4
    angles = torch.outer(
        torch.arange(12.0).double(), torch.tensor(frequencies, dtype=torch.float64)
    )
    torch.testing.assert_close(rope.sin, angles.sin().float())
    x = torch.randn(12, 16, generator=seeded())
    assert torch.equal(rope(x)[:, 8:], x[:, 8:])
    model.half()
    assert torch.equal(rope.cos, angles.cos().float())


def test_grouped_heads_equal_repeated_ones():
    config = config_of("grouped-heads")
    grouped, full = moved(config), moved(PLAIN)
    weights = dict(grouped.state_dict())
    for layer in range(3):
        for part in "kv":
            name = f"layers.{layer}.attn.{part}_proj.weight"
            heads = weights[name].unflatten(0, (2, 4))
            weights[name] = heads.repeat_interleave(2, dim=0).flatten(0, 1)
    full.load_state_dict(weights)
    ids = random_ids(2, 12)
    torch.testing.assert_close(grouped(ids), full(ids))


def test_autocast_of_every_switch_stays_close_to_float32():
    model = Transformer(config_of("everything"), generator=seeded())
    ids = random_ids(2, 12)
    with torch.autocast("cpu", torch.bfloat16):
        hidden, logits = model.hidden_states(ids), model(ids)
    assert hidden.dtype == logits.dtype == torch.float32  # Softcapped logits are.
    loss = cross_entropy(logits, ids)
    loss.backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())
    assert loss.item() == pytest.approx(cross_entropy(model(ids), ids).item(), rel=2**-7)


COMPILED_EQUALS_EAGER = """
import sys

import torch

from rslm.architecture import TransformerConfig
from rslm.losses import training_loss
from rslm.model import Transformer

torch.manual_seed(0)
config = TransformerConfig(
    vocab_size=37, context_length=12, d_model=16, n_layers=3, n_heads=4, d_ff=24, z_loss=1e-3,
    ffn="relu2", norm_position="peri", embedding_norm=True, position_encoding="half-rope",
    qk_norm="rms-gain", softcap=1.5, biases=True, n_kv_heads=2, window_pattern="SL",
    window_size=4, value_embeddings=True, residual_scalars=True, x0_scalars=True,
)
ids = torch.randint(0, 37, (2, 12))
for recompute_blocks in (None, 2):
    model = Transformer(config, recompute_blocks=recompute_blocks)

    def loss_of(ids):
        return training_loss(model(ids), ids, z_loss=config.z_loss)[0]

    compiled = torch.compile(loss_of, fullgraph=True, backend=sys.argv[1])
    results = []
    for function in (loss_of, compiled):
        loss = function(ids)
        results.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    for eager, fused in zip(*results):
        assert (eager - fused).norm() <= 1e-5 * eager.norm() + 1e-9
"""


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_switches_have_no_graph_breaks_and_equal_eager(backend: str):
    command = [sys.executable, "-c", COMPILED_EQUALS_EAGER, backend]
    subprocess.run(command, check=True, timeout=280)
