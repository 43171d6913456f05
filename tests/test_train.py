import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rslm import checkpoint
from rslm import train as loop
from rslm.batches import read_windows, sample_batch
from rslm.config import read_config, to_toml
from rslm.errors import FormatError
from rslm.evaluate.loss import evaluate_loss
from rslm.infer.load import choose_device, load_run
from rslm.optimizer_setup import build_optimizer, scheduled_learning_rate
from rslm.run_folder import read_metrics
from rslm.run_log import CLOCK_KEYS
from rslm.token_file import TokenFile
from rslm.tokenizer import Tokenizer
from rslm.train import accumulate_gradients, build_model, train
from rslm.train_config import OptimizerConfig, TrainConfig

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("quick")

MakeConfig = Callable[..., TrainConfig]


def rows_of(config: TrainConfig) -> list[dict[str, Any]]:
    rows = read_metrics(config.out / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k not in CLOCK_KEYS} for row in rows]


def test_run_folder_holds_what_it_promises(
    tiny_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.undo()
    config = tiny_config()
    result = train(config)
    assert sorted(path.name for path in config.out.iterdir()) == [
        "checkpoints",
        "config.toml",
        "env.json",
        "loss_curve.png",
        "metrics.jsonl",
        "samples.md",
        "tokenizer.json",
    ]
    resolved = read_config(TrainConfig, config.out / "config.toml")
    assert resolved == replace(config, model=replace(config.model, vocab_size=257))
    [start] = json.loads((config.out / "env.json").read_text())
    assert start["versions"]["torch"] == version("torch")
    assert start["n_threads"] == 1
    rows = read_metrics(config.out / "metrics.jsonl")
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 21))
    assert [row["step"] for row in rows if "val_loss" in row] == [5, 10, 15, 20]
    assert re.findall("^## Step .*", (config.out / "samples.md").read_text(), re.MULTILINE) == [
        "## Step 10",
        "## Step 20",
    ]
    assert sorted(path.name for path in (config.out / "checkpoints").iterdir()) == [
        "best",
        "step_00000018",
        "step_00000020",
    ]
    assert (result.step, result.reason, result.out) == (20, "finished", config.out)
    last, validation = rows[-2], rows[-1]
    assert (result.loss, result.val_loss) == (last["loss"], validation["val_loss"])
    assert result.val_bits_per_byte == validation["val_bits_per_byte"]
    assert "step=20/20" in capsys.readouterr().err


def test_first_loss_is_near_that_of_a_guess_and_falls(tiny_config: MakeConfig) -> None:
    config = tiny_config(n_steps=150, optimizer=OptimizerConfig(learning_rate=2e-2))
    train(config)
    losses = [row["loss"] for row in rows_of(config) if "loss" in row]
    assert losses[0] == pytest.approx(math.log(257), abs=1.0)
    assert np.mean(losses[-10:]) < losses[0] / 2


def test_defaults_give_the_losses_that_they_always_gave(tiny_config: MakeConfig) -> None:
    # Bit for bit on the machine that they were written down on; elsewhere sums are ordered
    # otherwise. A new option must leave them as they are while it is off.
    train(tiny_config())
    rows = rows_of(tiny_config())
    losses = [row["loss"] for row in rows if "loss" in row][::5]
    assert losses == pytest.approx([5.5441556, 5.1379743, 4.3483782, 3.8927298], rel=1e-5)
    losses = [row["val_loss"] for row in rows if "val_loss" in row]
    assert losses == pytest.approx([5.1255117, 4.3494018, 3.8640572, 3.7092990], rel=1e-5)


def test_equal_configs_give_equal_metrics_and_seeds_differ(
    tiny_config: MakeConfig, tmp_path: Path
) -> None:
    configs = [tiny_config(out=tmp_path / n, seed=s) for n, s in (("a", 1), ("b", 1), ("c", 2))]
    torch.manual_seed(123)
    before = torch.get_rng_state()
    for config in configs:
        train(config)
    first, second, other = map(rows_of, configs)
    assert first == second
    assert first != other
    # All randomness is the run's own: the caller's generator was not touched.
    assert torch.equal(torch.get_rng_state(), before)


def test_samples_checkpoints_and_logging_do_not_disturb_training(
    tiny_config: MakeConfig, tmp_path: Path
) -> None:
    plain = tiny_config(out=tmp_path / "plain", sample_every=None, checkpoint_every=20)
    busy = tiny_config(out=tmp_path / "busy", sample_every=3, checkpoint_every=2, log_every=1)
    train(plain)
    train(busy)
    assert rows_of(plain) == rows_of(busy)


def test_rows_are_fetched_late_on_a_device_and_are_the_same(
    tiny_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    eager, late = tiny_config(out=tmp_path / "eager"), tiny_config(out=tmp_path / "late")
    train(eager)
    fetched = loop.is_fetched
    gpu = torch.device("cuda")
    monkeypatch.setattr(loop, "is_fetched", lambda step, config, _: fetched(step, config, gpu))
    train(late)
    assert rows_of(eager) == rows_of(late)


def test_is_fetched_wherever_something_is_shown_or_saved(tiny_config: MakeConfig) -> None:
    config = tiny_config(log_every=8)
    due = [step for step in range(1, 21) if loop.is_fetched(step, config, torch.device("cuda"))]
    assert due == [5, 6, 8, 10, 12, 15, 16, 18, 20]
    assert loop.is_fetched(1, config, CPU)


@pytest.mark.parametrize("micro_batch_size", [1, 2])
def test_micro_batches_give_the_gradient_of_the_batch(
    tiny_config: MakeConfig, token_files: tuple[Path, Path], micro_batch_size: int
) -> None:
    config = tiny_config(model=replace(tiny_config().model, vocab_size=257))
    options = {"seed": 0, "step": 0, "batch_size": 4, "context_length": 16}
    windows = sample_batch(TokenFile.open(token_files[0]), **options)
    whole, parts = build_model(config, CPU), build_model(config, CPU)
    loss = accumulate_gradients(whole, windows, 4, CPU, None)
    assert accumulate_gradients(parts, windows, micro_batch_size, CPU, None).item() == (
        pytest.approx(loss.item(), rel=1e-6)
    )
    for one, two in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-5, atol=1e-7)


def test_bfloat16_trains_with_float32_weights(tiny_config: MakeConfig, tmp_path: Path) -> None:
    exact, half = (
        tiny_config(out=tmp_path / "a"),
        tiny_config(out=tmp_path / "b", precision="bfloat16"),
    )
    results = train(exact), train(half)
    assert results[0].val_loss != results[1].val_loss
    assert results[0].val_loss == pytest.approx(results[1].val_loss, rel=0.01)
    model, _ = load_run(half.out, device="cpu")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.slow  # Compiling takes half a minute.
def test_compiled_training_is_close_to_eager(tiny_config: MakeConfig, tmp_path: Path) -> None:
    eager, compiled = tiny_config(out=tmp_path / "a"), tiny_config(out=tmp_path / "b", compile=True)
    train(eager)
    (tmp_path / "b.toml").write_text(to_toml(compiled))
    # A process of its own: the compiler cannot look through the checks of shapes.
    script = (
        "import sys; from rslm.config import read_config, to_toml; from rslm.train import *; "
        "train(read_config(TrainConfig, sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path / "b.toml"], check=True)
    losses = [[row["loss"] for row in rows_of(c) if "loss" in row] for c in (eager, compiled)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_learning_rate_counts_updates_from_one(tiny_config: MakeConfig) -> None:
    config = tiny_config(
        optimizer=OptimizerConfig(learning_rate=0.4, min_learning_rate=0.1, warmup_steps=4)
    )
    rates = [scheduled_learning_rate(config, step) for step in range(20)]
    assert rates[:4] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert rates[-1] == 0.1
    unset = tiny_config(optimizer=OptimizerConfig(learning_rate=0.4, warmup_steps=4))
    assert scheduled_learning_rate(unset, 19) == pytest.approx(0.04)


def test_run_starts_from_the_weights_of_another(tiny_config: MakeConfig, tmp_path: Path) -> None:
    first = tiny_config(out=tmp_path / "first")
    train(first)
    model, _ = load_run(first.out, device="cpu")
    frozen = OptimizerConfig(learning_rate=0.0, warmup_steps=0)
    file = first.out / "checkpoints" / "step_00000018" / "model.safetensors"
    for name, source in (("run", first.out), ("file", file)):
        config = tiny_config(out=tmp_path / name, init_from=source, optimizer=frozen, n_steps=1)
        train(config)
        started, _ = load_run(config.out, device="cpu")
        same = torch.equal(started.lm_head.weight, model.lm_head.weight)
        assert same == (name == "run")


def test_loaded_run_is_the_trained_model_with_its_tokenizer(
    tiny_config: MakeConfig, token_files: tuple[Path, Path], byte_tokenizer: Any
) -> None:
    config = tiny_config()
    result = train(config)
    model, tokenizer = load_run(config.out, device="cpu")
    assert not model.training
    assert tokenizer.sha256 == byte_tokenizer.sha256
    scored = evaluate_loss(model, TokenFile.open(token_files[1]), batch_size=4, n_tokens=200)
    assert scored is not None
    assert scored.loss == result.val_loss


def test_forged_config_does_not_get_memory(tiny_config: MakeConfig) -> None:
    config = tiny_config()
    train(config)
    text = (config.out / "config.toml").read_text()
    (config.out / "config.toml").write_text(text.replace("d_ff = 32", "d_ff = 32000000000"))
    with pytest.raises(FormatError, match=r"model.safetensors must hold \d+ numbers .*, got 10"):
        load_run(config.out, device="cpu")


def test_infinite_loss_stops_the_run_and_leaves_the_batch(
    tiny_config: MakeConfig, token_files: tuple[Path, Path]
) -> None:
    config = tiny_config(optimizer=OptimizerConfig(learning_rate=1e38, warmup_steps=0))
    with pytest.raises(FloatingPointError, match=r"step \d+: loss .* token ids .* are in") as error:
        train(config)
    path = Path(str(error.value).rpartition(" ")[2])
    report = json.loads(path.read_text())
    step = int(report["step"])
    assert f"step {step}:" in str(error.value)
    token_file = TokenFile.open(token_files[0])
    windows = read_windows(token_file, np.array(report["samples"]), 16)
    assert windows.tolist() == report["token_ids"]
    options = {"seed": 0, "step": step - 1, "batch_size": 4, "context_length": 16}
    assert np.array_equal(windows, sample_batch(token_file, **options))
    assert not any("nan" in json.dumps(row).lower() for row in rows_of(config))


def test_run_without_validation_file(tiny_config: MakeConfig) -> None:
    config = tiny_config()
    result = train(replace(config, data=replace(config.data, valid=None)))
    assert result.val_loss is result.val_bits_per_byte is None


def test_vocabulary_may_be_padded(tiny_config: MakeConfig) -> None:
    # Nearly all ids that an untrained model draws are ones that the tokenizer does not have.
    config = tiny_config(model=replace(tiny_config().model, vocab_size=9000), n_steps=4)
    train(config)
    assert "## Step 4" in (config.out / "samples.md").read_text()


def test_plain_token_file_trains_without_text(tiny_config: MakeConfig, tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 50, 400).astype("<u2")
    header = np.zeros(256, "<i4")
    header[:3] = 20240520, 1, len(ids)
    (tmp_path / "plain.bin").write_bytes(header.tobytes() + ids.tobytes())
    config = tiny_config(data=replace(tiny_config().data, train=tmp_path / "plain.bin", valid=None))
    with (
        pytest.warns(UserWarning, match="plain llm.c file"),
        pytest.raises(ValueError, match="vocab_size must be given"),
    ):
        train(config)
    with pytest.warns(UserWarning, match="plain llm.c file"):
        train(replace(config, model=replace(config.model, vocab_size=50)))
    assert (config.out / "samples.md").read_bytes() == b""


BAD_CONFIGS: list[tuple[dict[str, Any], str]] = [
    ({"n_steps": 0}, "n_steps must be at least 1, got 0"),
    ({"micro_batch_size": 3}, "micro_batch_size must be a divisor of batch_size, got 3"),
    ({"n_steps": 3}, "warmup_steps must be at most n_steps 3, got 4"),
    ({"seed": -1}, "seed must be in [0, 2^64), got -1"),
    ({"n_threads": 0}, "n_threads must be at least 1, got 0"),
    ({"checkpoint_minutes": -1.0}, "checkpoint_minutes must be at least 0, got -1.0"),
    ({"checkpoint_minutes": math.nan}, "checkpoint_minutes must be at least 0, got nan"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_CONFIGS)
def test_config_that_cannot_be_is_refused(
    tiny_config: MakeConfig, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        tiny_config(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": -1.0}, "learning_rate must be at least 0, got -1.0"),
        ({"beta1": 1.0}, "beta1 must be in [0, 1), got 1.0"),
        ({"max_grad_norm": 0.0}, "max_grad_norm must be positive, got 0.0"),
        ({"min_learning_rate": 1.0}, "min_learning_rate must be between 0 and learning_rate"),
    ],
)
def test_optimizer_that_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        OptimizerConfig(**changes)


def test_config_that_does_not_fit_the_data_is_refused(tiny_config: MakeConfig) -> None:
    model = tiny_config().model
    with pytest.raises(ValueError, match=r"vocab_size must be at least 257, .*, got 100"):
        train(tiny_config(model=replace(model, vocab_size=100)))
    with pytest.raises(ValueError, match=r"at least context_length \+ 1 = 100001 tokens"):
        train(tiny_config(model=replace(model, context_length=100_000)))
    with pytest.raises(FileNotFoundError):
        train(tiny_config(data=replace(tiny_config().data, train=Path("/nowhere"))))
    assert not tiny_config().out.exists()


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 1.0, 1.0)])
def test_weights_must_be_one_for_each_file(
    tiny_config: MakeConfig, weights: tuple[float, ...]
) -> None:
    data, message = tiny_config().data, "weights must be one number for train and each of mixed_in"
    with pytest.raises(ValueError, match=message):
        replace(data, mixed_in=(data.train,), weights=weights)
    with pytest.raises(ValueError, match=message):
        replace(data, weights=weights)


def test_mixed_files_must_share_a_tokenizer(tiny_config: MakeConfig, tmp_path: Path) -> None:
    vocab = {i: bytes([i]) for i in range(256)} | {256: b"ab"}
    other = Tokenizer(vocab, [(b"a", b"b")], ["<|endoftext|>"])
    (tmp_path / "other.txt").write_text("ab " * 100)
    other.encode_files([tmp_path / "other.txt"], tmp_path / "other")
    data = replace(tiny_config().data, mixed_in=(tmp_path / "other",))
    with pytest.raises(FormatError, match="other was made by another tokenizer"):
        train(tiny_config(data=data))


def test_the_same_tokens_twice_are_refused(
    tiny_config: MakeConfig, token_files: tuple[Path, Path], tmp_path: Path
) -> None:
    train_file, valid_file = token_files
    (tmp_path / "link").symlink_to(train_file)
    twice = [
        {"mixed_in": (tmp_path / "link",), "valid": None},
        {"valid": tmp_path / "link"},
        {"mixed_in": (valid_file,)},
    ]
    for changes in twice:
        data = replace(tiny_config().data, **changes)
        with pytest.raises(ValueError, match=r"must hold different tokens, and .* holds what"):
            train(tiny_config(data=data))


def test_ids_of_every_plain_file_are_compared_with_the_vocabulary(
    tiny_config: MakeConfig, tmp_path: Path
) -> None:
    for name, n_ids in (("low", 50), ("also_low", 49), ("high", 60)):
        ids = np.arange(400, dtype="<u2") % n_ids
        header = np.zeros(256, "<i4")
        header[:3] = 20240520, 1, len(ids)
        (tmp_path / f"{name}.bin").write_bytes(header.tobytes() + ids.tobytes())
    low, also_low, high = (tmp_path / f"{name}.bin" for name in ("low", "also_low", "high"))
    model = replace(tiny_config().model, vocab_size=50)
    for changes in ({"mixed_in": (high,), "valid": also_low}, {"valid": high}):
        data = replace(tiny_config().data, train=low, **changes)
        message = r"below model\.vocab_size 50, got 59 in .*high\.bin"
        with (
            pytest.warns(UserWarning, match="plain llm.c file"),
            pytest.raises(ValueError, match=message),
        ):
            train(tiny_config(data=data, model=model))


def test_infinite_loss_of_a_mixture_names_the_sources(
    tiny_config: MakeConfig, token_files: tuple[Path, Path]
) -> None:
    changes = {"mixed_in": (token_files[1],), "weights": (1.0, 1.0), "valid": None}
    data = replace(tiny_config().data, **changes)
    hot = OptimizerConfig(learning_rate=1e38, warmup_steps=0)
    with pytest.raises(FloatingPointError) as error:
        train(tiny_config(data=data, optimizer=hot))
    report = json.loads(Path(str(error.value).rpartition(" ")[2]).read_text())
    files = [TokenFile.open(path) for path in token_files]
    places = zip(report["sources"], report["samples"], report["token_ids"], strict=True)
    for source, sample, token_ids in places:
        assert read_windows(files[source], np.array([sample]), 16)[0].tolist() == token_ids


def test_device_must_exist() -> None:
    for name in ("cuda:99", "toaster"):
        with pytest.raises(ValueError, match=f"device must be one of this machine, got '{name}'"):
            choose_device(name)
    assert choose_device("cpu") == CPU


def test_existing_run_is_refused(tiny_config: MakeConfig) -> None:
    config = tiny_config(n_steps=4)
    train(config)
    before = rows_of(config)
    with pytest.raises(FileExistsError, match="already exists"):
        train(config)
    assert rows_of(config) == before


def test_z_loss_is_trained_on_and_not_reported(
    tiny_config: MakeConfig, token_files: tuple[Path, Path]
):
    config = tiny_config()
    windows = sample_batch(
        TokenFile.open(token_files[0]), seed=0, step=0, batch_size=4, context_length=16
    )
    config = replace(config, model=replace(config.model, vocab_size=257))
    own = replace(config, model=replace(config.model, z_loss=0.5))
    plain, with_z_loss = build_model(config, CPU), build_model(own, CPU)
    loss = accumulate_gradients(plain, windows, 2, CPU, None)
    assert accumulate_gradients(with_z_loss, windows, 2, CPU, None).item() == loss
    head, head_with_z_loss = plain.lm_head.weight.grad, with_z_loss.lm_head.weight.grad
    assert (head - head_with_z_loss).norm() > 0.1 * head.norm()


def test_attention_of_any_implementation_trains_to_the_same_losses(
    tiny_config: MakeConfig, tmp_path: Path
) -> None:
    losses = {}
    for name in ("torch", "tiled"):
        out = tmp_path / name
        few = {"validate_every": 30, "sample_every": None, "n_sample_tokens": 1}
        config = tiny_config(out=out, n_steps=30, attention_implementation=name, **few)
        train(replace(config, model=replace(config.model, n_kv_heads=1)))
        losses[name] = [row["loss"] for row in rows_of(config) if "loss" in row]
    assert len(losses["torch"]) == 30
    assert losses["tiled"] == pytest.approx(losses["torch"], rel=0, abs=1e-4)
    assert losses["tiled"] != losses["torch"]  # The option does choose.


def test_an_implementation_that_cannot_run_is_refused_before_the_run_begins(
    tiny_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    config = tiny_config(attention_implementation="triton")
    with pytest.raises(ValueError, match='"triton" needs a CUDA device'):
        train(config)
    assert not config.out.exists()


def test_recomputed_blocks_train_to_the_same_bytes(tiny_config: MakeConfig, tmp_path: Path):
    weights = []
    for n_blocks in (None, 1):
        config = tiny_config(out=tmp_path / f"run-{n_blocks}", recompute_blocks=n_blocks)
        train(config)
        weights.append(checkpoint.weights_path(config.out).read_bytes())
    assert weights[0] == weights[1]


def test_a_run_in_another_parametrisation_scales_its_groups(tiny_config: MakeConfig):
    config = tiny_config()
    sizes = replace(config.model, vocab_size=257, parametrisation="completep", base_d_model=8)
    model = build_model(replace(config, model=sizes), CPU)
    optimizer = build_optimizer(model, config.optimizer, sizes)
    scales = {group["learning_rate_scale"] for group in optimizer.param_groups}
    assert scales == {0.5, 1.0}
    n_members = sum(len(group["params"]) for group in optimizer.param_groups)
    assert n_members == len(list(model.parameters()))
