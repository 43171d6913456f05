"""The family of models that one number spans, against nanochat's published numbers; presets."""

import math
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rslm.architecture import TransformerConfig, n_parameters, n_parameters_by_group
from rslm.cli import main
from rslm.config import check_record, from_record, merge_records, read_preset
from rslm.depth_dial import depth_options
from rslm.model import Transformer
from rslm.optimizer_setup import build_optimizer, scheduled_learning_rate
from rslm.train_config import TrainConfig

NEEDED = {"out": "x", "data": {"train": "t"}}
# Parameters of matrices and head in millions, and tokens of a batch, as its notes list them.
NANOCHAT = [
    *[(8, 41.9, 2**18), (10, 70.1, 2**19), (12, 110.1, 2**19), (16, 234.9, 2**19)],
    *[(18, 324.4, 2**20), (24, 729.8, 2**20), (26, 918.4, 2**20), (30, 1390, 2**20)],
    *[(32, 1680, 2**21), (50, 6250, 2**21)],
]


def config_of(depth: int, **sizes: Any) -> TrainConfig:
    record = depth_options(depth, **sizes)
    record = merge_records({"model": {"vocab_size": sizes.get("vocab_size", 32_768)}}, record)
    return from_record(TrainConfig, merge_records(record, NEEDED))


@pytest.mark.parametrize(("depth", "millions", "batch"), NANOCHAT)
def test_sizes_and_batches_are_those_of_nanochat(depth: int, millions: float, batch: int) -> None:
    config = config_of(depth)
    model = config.model
    groups = n_parameters_by_group(model)
    counted = groups["attention"] + groups["feed_forward"] + groups["head"]
    assert counted / 1e6 == pytest.approx(millions, rel=0.005)
    assert config.batch_size * model.context_length == batch
    assert (model.d_model, model.n_layers, model.n_heads) == (64 * depth, depth, depth // 2)
    n_tokens = config.n_steps * batch
    assert 12 * counted - batch < n_tokens <= 12 * counted


def test_rates_follow_batch_and_width() -> None:
    base, large = config_of(12).optimizer, config_of(32).optimizer
    # Four times the batch.
    assert base.learning_rate == pytest.approx(0.02)
    assert large.learning_rate == pytest.approx(0.04)
    assert base.muon.weight_decay == pytest.approx(0.14)
    growth = (12 * 32 * 2048**2 + 2048 * 32768) / (12 * 12 * 768**2 + 768 * 32768)
    assert large.muon.weight_decay == pytest.approx(0.28 / growth)
    assert "^token_embeddings\\.: learning_rate_scale=15.0 " in base.groups[1]
    assert f"learning_rate_scale={15 * (2048 / 768) ** -0.5} " in large.groups[1]
    assert (base.warmup_steps, base.cooldown_fraction) == (40, 0.65)
    assert base.min_learning_rate == pytest.approx(0.001)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_small_depths_have_models_with_every_parameter_in_one_group(depth: int) -> None:
    config = config_of(depth, vocab_size=300, context_length=64)
    assert config.model.d_model == (128 if depth < 3 else 256)
    model = Transformer(config.model, device="meta", dtype=torch.float32)
    assert sum(p.numel() for p in model.parameters()) == n_parameters(config.model)
    optimizer = build_optimizer(model, config.optimizer, config.model)
    rates = {
        name: config.optimizer.learning_rate * group["learning_rate_scale"]
        for group in optimizer.param_groups
        for name, parameter in model.named_parameters()
        if any(parameter is member for member in group["params"])
    }
    assert len(rates) == len(list(model.parameters()))
    by_batch = config.optimizer.learning_rate / 0.02
    by_width = (config.model.d_model / 768) ** -0.5
    assert rates["lm_head.weight"] == pytest.approx(0.008 * by_batch * by_width)
    assert rates["token_embeddings.weight"] == pytest.approx(0.3 * by_batch * by_width)
    assert rates["layers.0.attn.q_proj.weight"] == pytest.approx(0.02 * by_batch)
    assert rates["x0_scalars"] == pytest.approx(0.5 * by_batch)
    assert rates["residual_scalars"] == pytest.approx(0.005 * by_batch)


def test_depth_must_be_positive() -> None:
    with pytest.raises(ValueError, match="depth must be at least 1, got 0"):
        depth_options(0)


@pytest.fixture
def print_config(capsys: pytest.CaptureFixture[str]) -> Callable[[str], dict[str, Any]]:
    def run(options: str) -> dict[str, Any]:
        assert main(shlex.split(f"train --out x --print-config {options}")) == 0
        return tomllib.loads(capsys.readouterr().out)

    return run


def test_flag_turns_the_dial_and_other_flags_win(
    print_config: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    config = print_config("--data.train t --depth 4 --n-steps 77")
    assert config["depth"] == 4
    assert (config["model"]["d_model"], config["model"]["n_layers"]) == (256, 4)
    assert config["n_steps"] == 77
    assert config["optimizer"]["warmup_steps"] == 7
    assert config["optimizer"]["algorithm"] == "muon"
    (tmp_path / "mine.toml").write_text("depth = 6\nbatch_size = 2\n")
    config = print_config(f"--data.train t --config {tmp_path / 'mine.toml'}")
    assert (config["depth"], config["model"]["n_layers"], config["batch_size"]) == (6, 6, 2)
    assert print_config(f"--data.train t --config {tmp_path / 'mine.toml'} --depth 2")["depth"] == 2


def test_dial_reads_context_and_vocabulary(
    print_config: Callable[[str], dict[str, Any]], token_files: tuple[Path, Path]
) -> None:
    usual = print_config("--data.train t --depth 4")
    short = print_config("--data.train t --depth 4 --model.context-length 512")
    assert short["batch_size"] == 4 * usual["batch_size"]
    assert short["n_steps"] == usual["n_steps"]
    assert short["model"]["window_size"] == 256
    # Where a window of whole tiles would be the context, or the one layer is the last: none.
    for flags in ("--depth 4 --model.context-length 128", "--depth 1"):
        assert "window_pattern" not in print_config(f"--data.train t {flags}")["model"]
    bytewise = print_config(f"--data.train {token_files[0]} --depth 4")
    stated = print_config("--data.train t --depth 4 --model.vocab-size 257")
    assert bytewise["n_steps"] == stated["n_steps"] < usual["n_steps"]
    assert "vocab_size" not in bytewise["model"]
    text = print_config(f"--text {__file__} --depth 4")
    assert (text["model"]["vocab_size"], text["n_steps"]) == (32_768, usual["n_steps"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--depth 4 --preset demo", "give --preset or --depth, not both"),
        ("--depth 0", "depth must be at least 1, got 0"),
        ("--depth=-2", "depth must be at least 1, got -2"),
        ("--depth deep", "deep"),
    ],
)
def test_wrong_depth_is_refused(
    options: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(shlex.split(f"train --out x --data.train t --print-config {options}")) == 2
    assert message in capsys.readouterr().err


def test_run_of_a_depth_trains_and_resumes(
    token_files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    small = "--model.context-length 16 --batch-size 2 --micro-batch-size 1 --n-threads 1"
    small += " --optimizer.warmup-steps 1 --precision float32 --n-sample-tokens 2"
    command = f"train --depth 1 --data.train {token_files[0]} --out {out} --n-steps 3 {small}"
    assert main(shlex.split(command)) == 0
    assert tomllib.loads((out / "config.toml").read_text())["depth"] == 1
    assert main(shlex.split(f"train --resume --depth 1 --out {out}")) == 0
    assert main(shlex.split(f"train --resume --depth 2 --out {out}")) == 2
    assert "depth must stay 1" in capsys.readouterr().err


def preset_config(name: str) -> TrainConfig:
    return from_record(TrainConfig, merge_records(read_preset(name), NEEDED))


def test_speedrun_is_the_baseline_of_its_source() -> None:
    config = preset_config("speedrun-124m")
    model = Transformer(config.model, device="meta", dtype=torch.float32)
    optimizer = build_optimizer(model, config.optimizer, config.model)
    rates = {
        name: config.optimizer.learning_rate * group["learning_rate_scale"]
        for group in optimizer.param_groups
        for name, parameter in model.named_parameters()
        if any(parameter is member for member in group["params"])
    }
    assert rates["token_embeddings.weight"] == pytest.approx(0.7)
    assert rates["lm_head.weight"] == pytest.approx(0.004)
    assert rates["layers.3.attn.q_proj.bias"] == pytest.approx(0.015)
    assert rates["ln_final.weight"] == rates["ln_embedding.weight"] == pytest.approx(0.015)
    assert rates["layers.11.ffn.w2.weight"] == pytest.approx(0.025)
    assert len(rates) == len(list(model.parameters()))
    assert config.batch_size * config.model.context_length == 524_288
    assert config.n_steps * 524_288 == pytest.approx(1.70e9, rel=0.003)
    assert config.optimizer.epsilon * 524_288 == 1e-10
    # Constant, then a line to 0 over the last 70 %, whose first step is 975.
    steps = [scheduled_learning_rate(config, step) for step in (0, 974, 975, 2111, 3249)]
    assert steps[:2] == [0.025, 0.025]
    assert steps[2] < 0.025
    assert steps[3] == pytest.approx(0.0125, rel=0.01)
    assert steps[4] == 0
    groups = n_parameters_by_group(config.model)
    assert groups["attention"] + groups["feed_forward"] == 12 * (12 * 768**2 + 9 * 768)


@pytest.mark.parametrize(
    ("name", "n_tokens"),
    [("tinystories", 327_680_000), ("tinystories-cpu", 40_960_000), ("openwebtext", 327_680_000)],
)
def test_course_presets_train_on_the_tokens_of_the_course(name: str, n_tokens: int) -> None:
    config = preset_config(name)
    assert config.n_steps * config.batch_size * config.model.context_length == n_tokens
    expected = {"tinystories": 22_696_448, "tinystories-cpu": 22_696_448, "openwebtext": 45_224_448}
    assert n_parameters(config.model) == expected[name]


def test_presets_and_dial_are_within_the_schema() -> None:
    for options in (depth_options(7), read_preset("speedrun-124m")):
        check_record(TrainConfig, options)
    assert math.isinf(config_of(7).optimizer.max_grad_norm)
    assert isinstance(config_of(7).model, TransformerConfig)
