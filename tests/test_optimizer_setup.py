"""From options to optimizer and rates; Muon and AdamW behind one step, saved by name."""

import io
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import Parameter

from rslm import checkpoint
from rslm.architecture import TransformerConfig
from rslm.batches import sample_batch
from rslm.checkpoint import load_checkpoint, save_checkpoint
from rslm.config import read_config, to_toml
from rslm.model import Transformer
from rslm.muon import Muon
from rslm.optim import AdamW, clip_grad_norm, optimizer_step, parameter_groups
from rslm.optimizer_setup import MuonAdamW, build_optimizer, scheduled_learning_rate
from rslm.run_folder import read_metrics
from rslm.schedules import cosine_schedule
from rslm.token_file import TokenFile
from rslm.train import accumulate_gradients, build_model, train
from rslm.train_config import MuonConfig, OptimizerConfig, TrainConfig

pytestmark = pytest.mark.usefixtures("quick")

MakeConfig = Callable[..., TrainConfig]
CPU = torch.device("cpu")
MUON = OptimizerConfig(algorithm="muon", learning_rate=1e-2, warmup_steps=4)
EVERYTHING = replace(
    MUON,
    muon=MuonConfig(normuon_beta2=0.9, cautious_decay=True, equilibrate_rows=True),
)


SIZES = TransformerConfig(vocab_size=31, context_length=8, d_model=16, n_heads=2, n_layers=2)


def tiny_model(sizes: TransformerConfig = SIZES) -> Transformer:
    return Transformer(sizes, generator=torch.Generator().manual_seed(0))


def names_of(model: torch.nn.Module, group: dict[str, Any]) -> list[str]:
    names = {id(p): name for name, p in model.named_parameters()}
    return [names[id(p)] for p in group["params"]]


def step_once(model: Transformer, optimizer: torch.optim.Optimizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer_step(optimizer, learning_rate=1e-2, max_grad_norm=1.0)


def test_default_run_is_adamw_with_cosine_bit_for_bit(
    tiny_config: MakeConfig, token_files: tuple[Path, Path]
) -> None:
    config = tiny_config()
    train(config)
    config = replace(config, model=replace(config.model, vocab_size=257))
    model = build_model(config, CPU)
    options = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8}
    optimizer = AdamW(parameter_groups(model, 0.1), **options)
    data = TokenFile.open(token_files[0])
    rates = {"learning_rate": 1e-2, "min_learning_rate": 1e-3}
    for step in range(20):
        windows = sample_batch(data, seed=0, step=step, batch_size=4, context_length=16)
        accumulate_gradients(model, windows, 4, CPU, None)
        rate = cosine_schedule(step + 1, **rates, warmup_steps=4, decay_steps=20)
        optimizer_step(optimizer, learning_rate=rate, max_grad_norm=1.0)
    trained = Transformer(config.model)
    saved = config.out / "checkpoints" / "step_00000020" / "model.safetensors"
    checkpoint.load_weights(saved, trained)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, trained.get_parameter(name)), name


def test_default_optimizer_is_plain_adamw_of_two_groups() -> None:
    optimizer = build_optimizer(tiny_model(), OptimizerConfig(), SIZES)
    assert type(optimizer) is AdamW
    assert [set(group) for group in optimizer.param_groups] == [
        {"params", "weight_decay", "lr", "betas", "eps"}
    ] * 2


def test_muon_takes_the_matrices_inside_and_adamw_the_rest() -> None:
    model = tiny_model()
    optimizer = build_optimizer(model, MUON, SIZES)
    muon, head, rest = optimizer.param_groups
    projections = [f"attn.{x}_proj" for x in ("q", "k", "v", "output")]
    inside = [*projections, "ffn.w1", "ffn.w2", "ffn.w3"]
    assert names_of(model, muon) == [f"layers.{i}.{x}.weight" for i in (0, 1) for x in inside]
    assert names_of(model, head) == ["lm_head.weight"]
    assert names_of(model, rest)[0] == "token_embeddings.weight"
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    assert sum(sizes) == len(list(model.parameters()))
    found = [(g["algorithm"], g["weight_decay"]) for g in optimizer.param_groups]
    assert found == [("muon", 0.1), ("adamw", 0.1), ("adamw", 0.0)]


def test_muon_options_reach_its_groups_and_no_other() -> None:
    muon = MuonConfig(
        learning_rate=0.02,
        convention="original",
        weight_decay=0.01,
        momentum=0.9,
        nesterov=False,
        polynomials="convergent",
        orthogonalization_dtype="float32",
        normuon_beta2=0.95,
        cautious_decay=True,
        equilibrate_rows=True,
        renormalize=True,
    )
    config = OptimizerConfig(algorithm="muon", learning_rate=4e-3, muon=muon)
    group, head, _ = build_optimizer(tiny_model(), config, SIZES).param_groups
    for name in (f for f in vars(muon) if f != "learning_rate"):
        assert group[name] == getattr(muon, name), name
    # Both rates follow one schedule: Muon's at its peak is 0.02 when AdamW's is 4e-3.
    assert group["learning_rate_scale"] == pytest.approx(5.0)
    assert group["lr"] == pytest.approx(0.02)
    assert (head["learning_rate_scale"], head["lr"]) == (1.0, 4e-3)
    assert "momentum" not in head


def test_groups_by_name_decide_everything() -> None:
    config = OptimizerConfig(
        groups=(
            "^token_embeddings: learning_rate_scale=0.3 weight_decay=0.001 beta1=0.8",
            "^lm_head: learning_rate_scale=0.1",
            "ln: weight_decay=0",
            "attn|ffn:",
        )
    )
    model = tiny_model()
    groups = build_optimizer(model, config, SIZES).param_groups
    assert [g["learning_rate_scale"] for g in groups] == [0.3, 0.1, 1.0, 1.0]
    assert [g["weight_decay"] for g in groups] == [0.001, 0.1, 0.0, 0.1]
    assert [g["betas"] for g in groups] == [(0.8, 0.95), *[(0.9, 0.95)] * 3]
    with pytest.raises(ValueError, match=r"layers\.0\.ln1\.weight is matched by 'ln' and 'layers'"):
        build_optimizer(model, replace(config, groups=(*config.groups[:3], "layers:")), SIZES)
    with pytest.raises(ValueError, match=r"token_embeddings\.weight is matched by none"):
        build_optimizer(model, replace(config, groups=("layers|ln|lm_head:",)), SIZES)


def test_recipe_of_track_3_can_be_written() -> None:
    config = OptimizerConfig(
        algorithm="muon",
        learning_rate=0.004,
        beta1=0.8,
        epsilon=1e-10,
        weight_decay=0.001,
        warmup_steps=0,
        schedule="wsd",
        cooldown_fraction=0.7,
        max_grad_norm=float("inf"),
        groups=(
            "^token_embeddings: learning_rate_scale=175",
            "^lm_head:",
            r"\bln: learning_rate_scale=3.75",
            "_proj|ffn: algorithm=muon",
        ),
        muon=MuonConfig(
            learning_rate=0.025,
            weight_decay=0.05,
            convention="original",
            polynomials="convergent",
        ),
    )
    optimizer = build_optimizer(tiny_model(), config, SIZES)
    optimizer_step(optimizer, learning_rate=config.learning_rate, max_grad_norm=float("inf"))
    rates = [group["lr"] for group in optimizer.param_groups]
    assert rates == pytest.approx([0.7, 0.004, 0.015, 0.025])
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.001, 0.001, 0.001, 0.05]


def test_groups_without_a_difference_train_as_the_default_does() -> None:
    plain, grouped = tiny_model(), tiny_model()
    groups = (r"_proj|ffn|lm_head:", r"embed|\bln: weight_decay=0")
    optimizers = [
        build_optimizer(plain, OptimizerConfig(), SIZES),
        build_optimizer(grouped, OptimizerConfig(groups=groups), SIZES),
    ]
    for seed in range(3):
        for model, optimizer in zip((plain, grouped), optimizers, strict=True):
            step_once(model, optimizer, seed)
    for a, b in zip(plain.parameters(), grouped.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("implementation", ["fused", "reference"])
def test_pair_behind_one_step_equals_two_optimizers(implementation: Any) -> None:
    pair, apart = tiny_model(), tiny_model()
    config = replace(EVERYTHING, implementation=implementation)
    optimizer = build_optimizer(pair, config, SIZES)
    muon, head, rest = (
        {k: v for k, v in group.items() if k not in ("algorithm", "learning_rate_scale")}
        for group in build_optimizer(apart, config, SIZES).param_groups
    )
    both = [Muon([muon]), AdamW([head, rest], implementation=implementation)]
    for seed in range(3):
        step_once(pair, optimizer, seed)
        generator = torch.Generator().manual_seed(seed)
        for parameter in apart.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        clip_grad_norm(apart.parameters(), 1.0)
        for one in both:
            for group in one.param_groups:
                group["lr"] = 1e-2
            one.step()
    for a, b in zip(pair.parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("config", [MUON, EVERYTHING])
def test_state_saved_by_name_goes_on_bitwise(config: OptimizerConfig) -> None:
    model = tiny_model()
    optimizer = build_optimizer(model, config, SIZES)
    file = io.BytesIO()
    for seed in range(5):
        if seed == 2:
            save_checkpoint(model, optimizer, seed, file)
        step_once(model, optimizer, seed)
    resumed = tiny_model()
    again = build_optimizer(resumed, config, SIZES)
    file.seek(0)
    assert load_checkpoint(file, resumed, again) == 2
    for seed in range(2, 5):
        step_once(resumed, again, seed)
    for a, b in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
        assert optimizer.state[a].keys() == again.state[b].keys()
        for key, value in optimizer.state[a].items():
            assert torch.equal(value, again.state[b][key]), key


@pytest.mark.parametrize("optimizer", [MUON, EVERYTHING])
def test_run_with_muon_learns_and_resumes_bitwise(
    tiny_config: MakeConfig, tmp_path: Path, optimizer: OptimizerConfig
) -> None:
    whole = tiny_config(optimizer=optimizer)
    train(whole)
    losses = [r["loss"] for r in read_metrics(whole.out / "metrics.jsonl") if "loss" in r]
    assert losses[-1] < losses[0] - 0.5
    part = replace(whole, out=tmp_path / "part")
    shutil.copytree(whole.out, part.out)
    shutil.rmtree(part.out / "checkpoints" / "step_00000020")
    train(part, resume=True)
    for name in ("model.safetensors", "optim.safetensors"):
        file = Path("checkpoints", "step_00000020", name)
        assert (part.out / file).read_bytes() == (whole.out / file).read_bytes()


# Sums in another order differ in the last bits, which bfloat16 would make a hundredth.
@pytest.mark.parametrize(
    "optimizer",
    [
        OptimizerConfig(learning_rate=1e-2, warmup_steps=4),
        replace(MUON, muon=MuonConfig(orthogonalization_dtype="float32")),
    ],
)
@pytest.mark.parametrize("micro_batch_size", [1, 2])
def test_accumulated_run_equals_the_run_of_large_batches(
    tiny_config: MakeConfig,
    tmp_path: Path,
    optimizer: OptimizerConfig,
    micro_batch_size: int,
) -> None:
    losses = []
    for name, size in (("whole", 4), ("parts", micro_batch_size)):
        config = tiny_config(out=tmp_path / name, optimizer=optimizer, micro_batch_size=size)
        train(config)
        rows = read_metrics(config.out / "metrics.jsonl")
        losses.append([row["loss"] for row in rows if "loss" in row])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [0.5, 1.0, 0.1]),
        ({"schedule": "linear"}, [0.5, 1.0, 0.0]),
        ({"schedule": "wsd", "cooldown_fraction": 0.5}, [0.5, 1.0, 0.0]),
        ({"schedule": "wsd-s", "decay_ends": (8,)}, [0.5, 1.0, 0.0]),
        ({"schedule": "wsd", "min_learning_rate": 0.3}, [0.5, 1.0, 0.3]),
    ],
)
def test_scheduled_rate_is_half_then_peak_then_minimum(
    tiny_config: MakeConfig, changes: dict[str, Any], expected: list[float]
) -> None:
    optimizer = OptimizerConfig(learning_rate=1.0, warmup_steps=2, **changes)
    config = tiny_config(optimizer=optimizer)
    rates = [scheduled_learning_rate(config, step) for step in (0, 1, 19)]
    assert rates == pytest.approx(expected)


def test_wsd_s_rate_is_at_its_minimum_after_each_stretch(tiny_config: MakeConfig) -> None:
    options: dict[str, Any] = {"schedule": "wsd-s", "cooldown_fraction": 0.25}
    optimizer = OptimizerConfig(learning_rate=1.0, warmup_steps=2, decay_ends=(8,), **options)
    config = tiny_config(optimizer=optimizer)
    rates = [scheduled_learning_rate(config, step) for step in range(20)]
    assert rates[5:9] == pytest.approx([1.0, 0.5, 0.0, 1.0])
    assert rates[16:] == pytest.approx([1.0, 2 / 3, 1 / 3, 0.0])


def test_optimizer_options_survive_a_file(tiny_config: MakeConfig, tmp_path: Path) -> None:
    optimizer = replace(
        EVERYTHING,
        groups=("embed: weight_decay=0", r"a\.b: algorithm=muon"),
        schedule="wsd-s",
        decay_ends=(6, 9),
        cooldown_fraction=0.1,
    )
    config = tiny_config(optimizer=optimizer)
    (tmp_path / "run.toml").write_text(to_toml(config))
    assert read_config(TrainConfig, tmp_path / "run.toml") == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cooldown_fraction": 0.1}, "cooldown_fraction must be in [0, 1], with schedule wsd"),
        ({"schedule": "wsd", "cooldown_fraction": 1.1}, "cooldown_fraction must be in [0, 1]"),
        ({"schedule": "wsd", "decay_ends": (5,)}, "decay_ends must be left out but with schedule"),
        ({"muon": MuonConfig(momentum=0.9)}, "algorithm must be muon where Muon's options"),
        ({"groups": ("a: algorithm=muon",)}, "algorithm must be muon where Muon's options"),
        ({"groups": ("a",)}, "a group must be written as PATTERN: OPTION=VALUE"),
        ({"learning_rate": math.inf}, "learning_rate must be finite, got inf"),
        ({"epsilon": math.inf}, "epsilon must be finite, got inf"),
        ({"weight_decay": math.inf}, "weight_decay must be finite, got inf"),
        ({"max_skipped_steps": -1}, "max_skipped_steps must be at least 0, got -1"),
    ],
)
def test_options_without_effect_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        OptimizerConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"convention": "original"}, "muon.learning_rate must be given with the convention"),
        ({"momentum": 1.0}, "muon.momentum must be in [0, 1), got 1.0"),
        ({"learning_rate": math.inf}, "muon.learning_rate must be finite, got inf"),
        ({"weight_decay": math.inf}, "muon.weight_decay must be finite, got inf"),
        ({"weight_decay": -0.1}, "muon.weight_decay must be at least 0, got -0.1"),
    ],
)
def test_muon_options_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        MuonConfig(**changes)


def test_schedule_that_does_not_fit_the_run_is_refused(tiny_config: MakeConfig) -> None:
    optimizer = OptimizerConfig(schedule="wsd", cooldown_fraction=0.9, warmup_steps=4)
    with pytest.raises(ValueError, match="beginning of the cooldown, 2, got 4"):
        tiny_config(optimizer=optimizer)
    optimizer = OptimizerConfig(schedule="wsd-s", decay_ends=(30,), warmup_steps=4)
    with pytest.raises(ValueError, match=r"decay_ends must rise from above 0, got \(30, 20\)"):
        tiny_config(optimizer=optimizer)


def test_muon_adamw_refuses_unknown_algorithms_and_options() -> None:
    parameter = Parameter(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="algorithm must be muon or adamw, got None"):
        MuonAdamW([{"params": [parameter]}])
    with pytest.raises(TypeError, match="momentum"):
        MuonAdamW([{"params": [parameter], "algorithm": "adamw", "momentum": 0.9}])
    with pytest.raises(ValueError, match="Muon takes matrices only"):
        MuonAdamW([{"params": [Parameter(torch.zeros(2))], "algorithm": "muon"}])


@pytest.mark.parametrize("algorithm", ["adamw", "muon"])
def test_parametrisation_scales_adamw_s_groups_and_leaves_muon_s(algorithm: Any) -> None:
    sizes = replace(SIZES, parametrisation="completep", base_d_model=4, base_n_layers=1)
    model = tiny_model(sizes)
    config = replace(MUON, algorithm=algorithm, weight_decay=0.1)
    groups = build_optimizer(model, config, sizes).param_groups
    found = {
        name: (group.get("learning_rate_scale", 1.0), group["weight_decay"], group.get("eps"))
        for group in groups
        for name in names_of(model, group)
    }
    assert sorted(found) == sorted(name for name, _ in model.named_parameters())
    # Width 4 and depth 2 times the base's.
    hidden = (1.0, 0.1, None) if algorithm == "muon" else (0.25, 0.4, 1e-8 / 8)
    assert found["layers.1.ffn.w2.weight"] == pytest.approx(hidden)
    assert found["layers.1.ln2.weight"] == pytest.approx((1.0, 0.0, 1e-8 / 8))
    assert found["lm_head.weight"] == pytest.approx((1.0, 0.1, 1e-8 / 4))
    assert found["token_embeddings.weight"] == pytest.approx((1.0, 0.0, 1e-8 / 4))


def test_muon_leaves_embeddings_scalars_and_biases_to_adamw() -> None:
    switches: dict[str, Any] = {"tied_head": True, "value_embeddings": True, "biases": True}
    sizes = replace(SIZES, residual_scalars=True, x0_scalars=True, qk_norm="rms-gain", **switches)
    model = tiny_model(sizes)
    muon, rest = build_optimizer(model, MUON, sizes).param_groups
    for name in names_of(model, muon):
        assert name.startswith("layers."), name
        assert model.get_parameter(name).ndim == 2, name
    found = names_of(model, rest)
    assert {"token_embeddings.weight", "value_embeddings.1.weight", "x0_scalars"} < set(found)
    assert rest["weight_decay"] == 0.0
    assert len(found) + len(muon["params"]) == len(list(model.parameters()))


@pytest.mark.parametrize(("has_units", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_muon_multiplies_in_bfloat16_only_where_there_are_units_for_it(
    monkeypatch: pytest.MonkeyPatch, has_units: bool, dtype: str
) -> None:
    capabilities = {"avx2": True, "avx512_bf16": has_units, "amx_bf16": False}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    model = tiny_model()
    asked = replace(MUON, muon=MuonConfig(orthogonalization_dtype="bfloat16"))
    for config, expected in ((MUON, dtype), (asked, "bfloat16")):
        groups = build_optimizer(model, config, SIZES).param_groups
        found = {g["orthogonalization_dtype"] for g in groups if g["algorithm"] == "muon"}
        assert found == {expected}
