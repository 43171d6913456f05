"""Steps whose gradients are infinite: skipped, counted, and their batches kept."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rslm import checkpoint
from rslm import train as loop
from rslm.batches import sample_batch, sample_indices
from rslm.checkpoint import read_state
from rslm.errors import FormatError
from rslm.nonfinite import SkippedSteps
from rslm.run_folder import read_metrics
from rslm.token_file import TokenFile
from rslm.train import train
from rslm.train_config import OptimizerConfig, TrainConfig

pytestmark = pytest.mark.usefixtures("quick")

MakeConfig = Callable[..., TrainConfig]
LAST = Path("checkpoints", "step_00000020")


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`poison(step, ...)`: one entry of the gradients after those many updates is infinite."""
    accumulate, take = loop.accumulate_gradients, loop.sample_batch
    bad: set[int] = set()
    current = -1

    def sample(*args: Any, step: int, **options: Any) -> Any:
        nonlocal current
        current = step
        return take(*args, step=step, **options)

    def accumulate_poisoned(model: torch.nn.Module, *args: Any, **options: Any) -> Any:
        loss = accumulate(model, *args, **options)
        if current in bad:
            gradient = next(model.parameters()).grad
            assert gradient is not None
            gradient[0, 0] = torch.inf
        return loss

    monkeypatch.setattr(loop, "sample_batch", sample)
    monkeypatch.setattr(loop, "accumulate_gradients", accumulate_poisoned)
    return lambda *steps: bad.update(steps)


def test_bad_step_is_skipped_counted_and_its_batch_kept(
    tiny_config: MakeConfig,
    token_files: tuple[Path, Path],
    poison: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    poison(6, 9)
    config = tiny_config()
    assert train(config).reason == "finished"
    rows = [r for r in read_metrics(config.out / "metrics.jsonl") if "loss" in r]
    assert [row["step"] for row in rows if row["grad_norm"] is None] == [7, 10]
    assert read_state(config.out / LAST)["skipped"] == {"n_skipped": 2, "n_in_a_row": 0}
    files = sorted(path.name for path in config.out.glob("nonfinite_*"))
    assert files == ["nonfinite_step_00000007.json", "nonfinite_step_00000010.json"]
    report = json.loads((config.out / files[0]).read_text())
    data = TokenFile.open(token_files[0])
    options = {"seed": 0, "batch_size": 4, "context_length": 16}
    assert report["token_ids"] == sample_batch(data, step=6, **options).tolist()
    assert report["samples"] == sample_indices((len(data) - 1) // 16, 0, 24, 4).tolist()
    assert report["grad_norm"] == "inf"
    # AdamW took 18 steps, and the checkpoint tells.
    tensors, _ = checkpoint.read_safetensors(config.out / LAST / "optim.safetensors")
    assert tensors["lm_head.weight/step"].item() == 18
    shown = capsys.readouterr().err
    assert "skipped an update (1 so far): step 7: loss" in shown
    assert "skipped an update (2 so far): step 10: loss" in shown


def test_too_many_bad_steps_in_a_row_end_the_run(
    tiny_config: MakeConfig, poison: Callable[..., None]
) -> None:
    poison(2, 3, 4, 6, 7, 8, 9)
    config = tiny_config()
    with pytest.raises(FloatingPointError, match=r"step 10: loss .*, grad_norm inf, .* are in"):
        train(config)
    assert len(list(config.out.glob("nonfinite_*"))) == 7


def test_no_skipped_step_allowed_ends_the_run_at_the_first(
    tiny_config: MakeConfig, poison: Callable[..., None]
) -> None:
    poison(2)
    optimizer = OptimizerConfig(learning_rate=1e-2, warmup_steps=4, max_skipped_steps=0)
    with pytest.raises(FloatingPointError, match="step 3: loss"):
        train(tiny_config(optimizer=optimizer))


def test_run_that_ended_goes_on_when_more_may_be_skipped(
    tiny_config: MakeConfig, poison: Callable[..., None]
) -> None:
    poison(8, 9)
    options = {"learning_rate": 1e-2, "warmup_steps": 4}
    config = tiny_config(optimizer=OptimizerConfig(**options, max_skipped_steps=1))
    with pytest.raises(FloatingPointError, match="step 10: loss"):
        train(config)
    lenient = replace(config, optimizer=OptimizerConfig(**options, max_skipped_steps=2))
    assert train(lenient, resume=True).step == 20
    assert read_state(config.out / LAST)["skipped"] == {"n_skipped": 2, "n_in_a_row": 0}


def test_counts_go_on_when_the_run_is_resumed(
    tiny_config: MakeConfig, poison: Callable[..., None], tmp_path: Path
) -> None:
    poison(4, 16, 17, 18)
    config = tiny_config()
    train(config)
    assert read_state(config.out / LAST)["skipped"] == {"n_skipped": 4, "n_in_a_row": 0}
    saved = config.out / "checkpoints" / "step_00000018"
    assert read_state(saved)["skipped"] == {"n_skipped": 3, "n_in_a_row": 2}
    part = replace(config, out=tmp_path / "part")
    shutil.copytree(config.out, part.out)
    shutil.rmtree(part.out / LAST)
    train(part, resume=True)
    assert read_state(part.out / LAST)["skipped"] == {"n_skipped": 4, "n_in_a_row": 0}
    for name in ("model.safetensors", "optim.safetensors"):
        assert (part.out / LAST / name).read_bytes() == (config.out / LAST / name).read_bytes()
    # Two in a row were saved, and two more make one too many: only the saved count knows.
    shutil.rmtree(part.out / LAST)
    poison(19)
    with pytest.raises(FloatingPointError, match="step 20: loss"):
        train(part, resume=True)


def test_infinite_loss_with_finite_gradients_ends_the_run(
    tiny_config: MakeConfig, token_files: tuple[Path, Path]
) -> None:
    config = tiny_config()
    config.out.mkdir()
    row = {"step": 1, "loss": float("inf"), "grad_norm": 1.0, "learning_rate": 0.1}
    with pytest.raises(FloatingPointError, match=r"step 1: loss inf, grad_norm 1\.0"):
        SkippedSteps(config, TokenFile.open(token_files[0]), [(0, 4)]).check(row)


@pytest.mark.parametrize("record", [[], {}, {"n_skipped": 1}, {"n_skipped": -1, "n_in_a_row": 0}])
def test_forged_counts_are_refused(
    tiny_config: MakeConfig, token_files: tuple[Path, Path], record: Any
) -> None:
    with pytest.raises(FormatError, match="skipped must hold the counts of skipped steps, got"):
        SkippedSteps(tiny_config(), TokenFile.open(token_files[0]), [(0, 4)], record)
