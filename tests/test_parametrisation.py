import math
from dataclasses import replace

import pytest
import torch

from rslm.architecture import Parametrisation, TransformerConfig, parameter_shapes
from rslm.model import Transformer
from rslm.optim import AdamW, optimizer_step, parameter_groups
from rslm.parametrisation import (
    OptimizerScales,
    attention_scale,
    depth_ratio,
    init_std,
    optimizer_scales,
    output_multiplier,
    residual_multiplier,
    scaled_groups,
    width_ratio,
)

BASE = TransformerConfig(
    vocab_size=256, context_length=8, d_model=64, n_layers=2, n_heads=4, d_ff=128
)


def grown(parametrisation: Parametrisation, factor: int = 4, depth: int = 2) -> TransformerConfig:
    """A model `factor` times as wide with heads as wide as before, `depth` times as deep."""
    sizes = {
        "d_model": 64 * factor,
        "n_heads": 4 * factor,
        "d_ff": 128 * factor,
        "n_layers": 2 * depth,
        "parametrisation": parametrisation,
    }
    if parametrisation != "standard":
        sizes["base_d_model"] = 64
    if parametrisation == "completep":
        sizes["base_n_layers"] = 2
    return replace(BASE, **sizes)


def test_multipliers_are_those_of_the_papers_tables():
    standard, mup, completep = (grown(kind) for kind in ("standard", "mup", "completep"))
    assert [width_ratio(c) for c in (standard, mup, completep)] == [1, 4, 4]
    assert [depth_ratio(c) for c in (standard, mup, completep)] == [1, 1, 2]
    assert [output_multiplier(c) for c in (standard, mup, completep)] == [1, 1 / 4, 1 / 4]
    assert [residual_multiplier(c) for c in (standard, mup, completep)] == [1, 1, 1 / 2]
    assert [attention_scale(c) for c in (standard, mup, completep)] == [1 / 4, 1 / 16, 1 / 16]
    assert attention_scale(replace(mup, attention_scale=0.3)) == 0.3


@pytest.mark.parametrize(
    ("name", "mup", "completep"),
    [
        ("token_embeddings.weight", (1, 1, 1), (1, 1, 1 / 4)),
        ("lm_head.weight", (1, 1, 1), (1, 1, 1 / 4)),
        ("layers.3.attn.q_proj.weight", (1 / 4, 1, 1), (1 / 4, 4, 1 / 8)),
        ("layers.0.attn.output_proj.weight", (1 / 4, 1, 1), (1 / 4, 4, 1 / 8)),
        ("layers.0.ffn.w2.weight", (1 / 4, 1, 1), (1 / 4, 4, 1 / 8)),
        ("layers.0.ffn.w2.bias", (1, 1, 1), (1, 1, 1 / 8)),
        ("layers.0.ln1.weight", (1, 1, 1), (1, 1, 1 / 8)),
        ("layers.0.attn.q_norm.weight", (1, 1, 1), (1, 1, 1 / 8)),
        ("ln_final.weight", (1, 1, 1), (1, 1, 1 / 4)),
        ("value_embeddings.1.weight", (1, 1, 1), (1, 1, 1 / 4)),
        ("residual_scalars", (1, 1, 1), (1, 1, 1 / 4)),
    ],
)
def test_optimizer_scales_are_those_of_the_papers_tables(
    name: str, mup: tuple[float, ...], completep: tuple[float, ...]
):
    assert optimizer_scales(grown("standard"), name) == (1, 1, 1)
    assert optimizer_scales(grown("mup"), name) == mup
    assert optimizer_scales(grown("completep"), name) == completep


@pytest.mark.parametrize("kind", ["standard", "mup", "completep"])
def test_a_model_of_the_base_sizes_has_no_scales(kind: Parametrisation):
    config = grown(kind, factor=1, depth=1)
    assert output_multiplier(config) == residual_multiplier(config) == 1
    for name in parameter_shapes(config):
        assert optimizer_scales(config, name) == OptimizerScales(1, 1, 1)


@pytest.mark.parametrize("kind", ["mup", "completep"])
def test_variances_follow_the_width_as_in_the_papers_tables(kind: Parametrisation):
    base, wide = grown(kind, factor=1), grown(kind, factor=4)
    for name, shape in parameter_shapes(wide).items():
        if len(shape) == 2:
            ratio = (init_std(wide, name) / init_std(base, name)) ** 2
            assert ratio == pytest.approx(1 / 4 if name.startswith("layers.") else 1), name


@pytest.mark.parametrize(
    "switches",
    [
        {},
        {"tied_head": True},
        {"zero_init_head": True, "zero_init_projections": True},
        {"value_embeddings": True, "n_kv_heads": 4, "ffn": "relu2"},
    ],
)
@pytest.mark.parametrize("kind", ["standard", "mup"])
def test_init_std_is_the_spread_of_the_model_s_weights(
    kind: Parametrisation, switches: dict[str, object]
):
    config = replace(grown(kind), **switches)
    model = Transformer(config, generator=torch.Generator().manual_seed(0))
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            with pytest.raises(ValueError, match="name must be that of a matrix"):
                init_std(config, name)
        else:
            # Cutting a normal distribution at 3σ leaves 0.98658 of its standard deviation.
            expected = 0.98658 * init_std(config, name)
            assert parameter.std().item() == pytest.approx(expected, rel=0.03), name


def test_scaled_groups_change_nothing_in_the_standard_parametrisation():
    model = Transformer(BASE)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = parameter_groups(model, 0.1)
    assert scaled_groups(groups, names, BASE, epsilon=1e-8) == groups


def test_scaled_groups_hold_every_parameter_once_with_its_scales():
    config = grown("completep", factor=2)
    model = Transformer(config)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = parameter_groups(model, 0.1)
    groups[1] |= {"learning_rate_scale": 3.0, "eps": 1e-10}
    scaled = scaled_groups(groups, names, config, epsilon=1e-8)
    seen = [names[id(p)] for group in scaled for p in group["params"]]
    assert sorted(seen) == sorted(names.values())
    for group in scaled:
        for parameter in group["params"]:
            name = names[id(parameter)]
            rate, decay, epsilon = optimizer_scales(config, name)
            is_first = parameter.ndim == 2 and "embeddings" not in name
            assert group["learning_rate_scale"] == rate * (1 if is_first else 3)
            assert group["weight_decay"] == (0.1 * decay if is_first else 0)
            assert group["eps"] == epsilon * (1e-8 if is_first else 1e-10)


def test_scaled_groups_leave_muon_s_alone():
    config = grown("mup")
    model = Transformer(config)
    group = {"params": list(model.layers.parameters()), "algorithm": "muon"}
    assert scaled_groups([group], {}, config, epsilon=1e-8) == [group]


def test_an_update_moves_hidden_matrices_by_the_scaled_rate():
    config = grown("mup")
    model = Transformer(config, generator=torch.Generator().manual_seed(0))
    names = {id(p): name for name, p in model.named_parameters()}
    groups = [{"params": list(model.parameters()), "weight_decay": 0.0}]
    optimizer = AdamW(scaled_groups(groups, names, config, epsilon=1e-30), lr=1.0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer_step(optimizer, learning_rate=0.01, max_grad_norm=math.inf)
    # Adam's first update is the sign of the gradient times the rate.
    for name, parameter in model.named_parameters():
        is_hidden = name.startswith("layers.") and parameter.ndim == 2
        expected = torch.full_like(parameter, -0.01 / 4 if is_hidden else -0.01)
        torch.testing.assert_close(parameter - before[name], expected, rtol=1e-3, atol=1e-6)
