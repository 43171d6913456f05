import math

import pytest
import torch
from torch import nn
from torch.nn import Parameter

from rslm.architecture import TransformerConfig
from rslm.group_rules import GroupRule
from rslm.model import Transformer
from rslm.optim import (
    AdamW,
    clip_grad_norm,
    optimizer_step,
    parameter_groups,
    parameter_groups_by_rule,
)

IMPLEMENTATIONS = ["reference", "fused"]


def random_parameters(seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Parameter]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(7, 5), (5,), (3, 2, 2)]
    return [Parameter(torch.randn(s, generator=generator, dtype=dtype)) for s in shapes]


def set_gradients(parameters: list[Parameter], seed: int, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        drawn = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        parameter.grad = scale * drawn


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.9, 0.95), (0.0, 0.0)])
# 1e-8 as usual; with 0.1 and small gradients the place of epsilon decides the result.
@pytest.mark.parametrize(("eps", "scale"), [(1e-8, 1.0), (0.1, 0.01)])
def test_adamw_equals_torch_at_its_epsilon(
    implementation: str, betas: tuple[float, float], eps: float, scale: float
):
    ours, theirs = random_parameters(), random_parameters()
    optimizer = AdamW(ours, 1e-2, betas, eps, 0.1, implementation=implementation)
    oracle = torch.optim.AdamW(theirs, 1e-2, betas, weight_decay=0.1)
    for step in range(1, 51):
        set_gradients(ours, step, scale)
        set_gradients(theirs, step, scale)
        oracle.param_groups[0]["eps"] = eps / math.sqrt(1 - betas[1] ** step)
        optimizer.step()
        oracle.step()
    for parameter, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(parameter, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_adamw_first_step_is_decay_then_a_step_of_the_learning_rate(implementation: str):
    parameter = Parameter(torch.tensor([2.0, -3.0], dtype=torch.float64))
    parameter.grad = torch.tensor([0.5, -40.0], dtype=torch.float64)
    AdamW([parameter], 0.1, eps=0.0, weight_decay=0.5, implementation=implementation).step()
    # Whatever its size, the first gradient moves a parameter by lr; 0.95 = 1 - 0.1 · 0.5.
    expected = torch.tensor([2 * 0.95 - 0.1, -3 * 0.95 + 0.1], dtype=torch.float64)
    torch.testing.assert_close(parameter.data, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adamw_implementations_may_be_exchanged_at_a_checkpoint(dtype: torch.dtype):
    fast, readable = random_parameters(dtype=dtype), random_parameters(dtype=dtype)
    first = AdamW(fast, 1e-2, implementation="fused")
    second = AdamW(readable, 1e-2, implementation="reference")
    for step in range(6):
        if step == 3:
            states = first.state_dict(), second.state_dict()
            first = AdamW(fast, 1e-2, implementation="reference")
            second = AdamW(readable, 1e-2, implementation="fused")
            first.load_state_dict(states[0])
            second.load_state_dict(states[1])
        set_gradients(fast, step)
        set_gradients(readable, step)
        first.step()
        second.step()
    for a, b in zip(fast, readable, strict=True):
        # Six roundings to bfloat16 (spacing 2^-8) of six steps of 1e-2.
        tolerance = 1e-6 if dtype == torch.float32 else 6 * 2**-8
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_adamw_counts_steps_per_parameter_and_skips_missing_gradients(implementation: str):
    parameters = random_parameters()
    before = parameters[1].detach().clone()
    optimizer = AdamW(parameters, implementation=implementation)
    for step in range(3):
        set_gradients(parameters, step)
        parameters[1].grad = None
        optimizer.step()
    assert torch.equal(parameters[1], before)
    set_gradients(parameters, 9)
    optimizer.step()
    assert [optimizer.state[p]["step"].item() for p in parameters] == [4, 1, 4]
    # The late one takes a first step: lr in the direction of each gradient's sign.
    moved = before * (1 - 1e-5) - parameters[1].detach()
    torch.testing.assert_close(moved, 1e-3 * parameters[1].grad.sign(), rtol=1e-5, atol=0)


def test_adamw_groups_have_their_own_options_and_torch_schedulers_work():
    first, second, _ = random_parameters()
    groups = [{"params": [first], "lr": 0.5, "weight_decay": 0.0}, {"params": [second]}]
    optimizer = AdamW(groups, 1e-2)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.1**step)
    set_gradients([first, second], 0)
    assert optimizer.step(lambda: 3.0) == 3.0
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.05, 1e-3])
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.01]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, r"lr must be at least 0, got -1\.0"),
        ({"eps": math.nan}, "eps must be at least 0, got nan"),
        ({"weight_decay": -0.1}, r"weight_decay must be at least 0, got -0\.1"),
        ({"betas": (0.9, 1.0)}, r"betas must lie in \[0, 1\), got \(0\.9, 1\.0\)"),
    ],
)
def test_adamw_refuses_options_out_of_range(options: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        AdamW(random_parameters(), **options)


def test_parameter_groups_hold_every_parameter_once():
    config = TransformerConfig(vocab_size=31, d_model=16, n_heads=2, n_layers=2)
    model = Transformer(config)
    names = {id(p): name for name, p in model.named_parameters()}
    decayed, kept = parameter_groups(model, 0.1)
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
    kept_names = [names.pop(id(p)) for p in kept["params"]]
    assert kept_names == [
        "token_embeddings.weight",
        *[f"layers.{i}.ln{j}.weight" for i in (0, 1) for j in (1, 2)],
        "ln_final.weight",
    ]
    assert [names.pop(id(p)) for p in decayed["params"]][-1] == "lm_head.weight"
    assert names == {}


def test_parameter_groups_leave_out_frozen_parameters_and_empty_groups():
    model = nn.ParameterDict({"a": Parameter(torch.ones(2)), "b": Parameter(torch.ones(2, 2))})
    model["b"].requires_grad_(False)
    (group,) = parameter_groups(model, 0.1)
    assert group == {"params": [model["a"]], "weight_decay": 0.0}


@pytest.mark.parametrize("max_norm", [0.0, 1e-2, 1.0, 5.0, 100.0, math.inf])
def test_clip_grad_norm_equals_torch(max_norm: float):
    ours, theirs = random_parameters(), random_parameters()
    set_gradients(ours, 1)
    set_gradients(theirs, 1)
    norm = clip_grad_norm(ours, max_norm)
    torch.testing.assert_close(norm, torch.nn.utils.clip_grad_norm_(theirs, max_norm))
    for parameter, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad)


def test_clip_grad_norm_keeps_the_bits_of_small_gradients():
    parameters = random_parameters(dtype=torch.float32)
    set_gradients(parameters, 1)
    before = [p.grad.clone() for p in parameters]
    norm = clip_grad_norm(parameters, 100.0)
    # torch's rule would scale here, by 1 - 1e-6 / norm.
    clip_grad_norm(parameters, norm.item())
    assert all(torch.equal(p.grad, g) for p, g in zip(parameters, before, strict=True))


def test_clip_grad_norm_sums_half_precision_in_float32():
    parameter = Parameter(torch.zeros(1 << 16, dtype=torch.float16))
    parameter.grad = torch.full_like(parameter, 10.0)
    norm = clip_grad_norm([parameter], 2.56)
    assert norm.item() == 2560.0
    torch.testing.assert_close(parameter.grad, torch.full_like(parameter.grad, 0.01))


def test_clip_grad_norm_of_no_gradients_is_zero():
    assert clip_grad_norm(random_parameters(), 1.0).item() == 0
    with pytest.raises(ValueError, match="max_norm must be at least 0, got nan"):
        clip_grad_norm([], math.nan)


def test_optimizer_step_clips_steps_and_clears():
    parameters, expected = random_parameters(), random_parameters()
    set_gradients(parameters, 1)
    set_gradients(expected, 1)
    optimizer, oracle = AdamW(parameters, 1.0), AdamW(expected, 0.25)
    norm = optimizer_step(optimizer, learning_rate=0.25, max_grad_norm=1.0)
    torch.testing.assert_close(norm, clip_grad_norm(expected, 1.0))
    oracle.step()
    assert all(torch.equal(a, b) for a, b in zip(parameters, expected, strict=True))
    assert all(p.grad is None for p in parameters)


def test_optimizer_step_scales_the_rate_of_a_group():
    first, second, _ = random_parameters()
    groups = [{"params": [first]}, {"params": [second], "learning_rate_scale": 0.5}]
    set_gradients([first, second], 1)
    optimizer = AdamW(groups, weight_decay=0.0, eps=0.0)
    before = [p.detach().clone() for p in (first, second)]
    optimizer_step(optimizer, learning_rate=0.25, max_grad_norm=math.inf)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.125]
    # A first step of Adam is the rate, whatever the gradient.
    for parameter, old, rate in zip((first, second), before, (0.25, 0.125), strict=True):
        torch.testing.assert_close((parameter - old).abs(), torch.full_like(old, rate))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("max_grad_norm", [1.0, math.inf])
def test_optimizer_step_skips_gradients_that_are_not_finite(bad: float, max_grad_norm: float):
    parameters, expected = random_parameters(), random_parameters()
    optimizer, oracle = AdamW(parameters), AdamW(expected)
    options = {"learning_rate": 0.1, "max_grad_norm": max_grad_norm}
    for step in range(4):
        set_gradients(parameters, step)
        if step == 2:
            parameters[0].grad[1, 1] = bad
        norm = optimizer_step(optimizer, **options)
        assert math.isfinite(norm) == (step != 2)
        assert all(p.grad is None for p in parameters)
        if step != 2:
            set_gradients(expected, step)
            optimizer_step(oracle, **options)
    # As if the step had never been: weights, moments and the count of steps.
    assert all(torch.equal(a, b) for a, b in zip(parameters, expected, strict=True))
    for a, b in zip(parameters, expected, strict=True):
        assert optimizer.state[a]["step"] == 3
        for key, value in oracle.state[b].items():
            assert torch.equal(optimizer.state[a][key], value)


def test_groups_by_rule_take_their_options_from_rule_and_algorithm():
    model = Transformer(TransformerConfig(vocab_size=31, d_model=16, n_heads=2, n_layers=1))
    rules = [
        GroupRule(pattern="_proj|ffn", algorithm="muon", learning_rate_scale=3.0),
        GroupRule(pattern="^lm_head", beta2=0.8, epsilon=1e-10, learning_rate_scale=0.5),
        GroupRule(pattern=r"embed|\bln", weight_decay=0.0),
    ]
    adamw = {"betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    options = {"adamw": adamw, "muon": {"momentum": 0.9, "learning_rate_scale": 2.0}}
    muon, head, rest = parameter_groups_by_rule(model, rules, options=options)
    assert [len(group.pop("params")) for group in (muon, head, rest)] == [7, 1, 4]
    assert muon == {"algorithm": "muon", "momentum": 0.9, "learning_rate_scale": 6.0}
    assert head == adamw | {
        "algorithm": "adamw",
        "betas": (0.9, 0.8),
        "eps": 1e-10,
        "learning_rate_scale": 0.5,
    }
    assert rest == adamw | {"algorithm": "adamw", "weight_decay": 0.0, "learning_rate_scale": 1.0}
    assert options["muon"]["learning_rate_scale"] == 2.0


def test_groups_by_rule_leave_out_frozen_parameters_and_refuse_forgotten_ones():
    model = nn.ParameterDict({"a": Parameter(torch.ones(2)), "b": Parameter(torch.ones(2, 2))})
    rule, options = GroupRule(pattern="a"), {"adamw": {"betas": (0.9, 0.95)}}
    with pytest.raises(ValueError, match="exactly one group: b is matched by none"):
        parameter_groups_by_rule(model, [rule], options=options)
    model["b"].requires_grad_(False)
    (group,) = parameter_groups_by_rule(model, [rule], options=options)
    assert group["params"] == [model["a"]]
