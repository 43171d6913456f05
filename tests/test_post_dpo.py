"""Training on preferences: what it learns, keeps and refuses, cut as it may be."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import assert_same_run, join_all, rows_of, run_each, start_each, tensors_of
from test_post_pairs import rollout
from tiny_models import write_tiny_model

from rslm import cli
from rslm.chat import ChatFormat
from rslm.checkpoint import newest_checkpoint, read_safetensors
from rslm.infer.load import load_run
from rslm.post import dpo, dpo_scores, setup, update
from rslm.post.base_model import open_base
from rslm.post.dpo_config import DpoConfig, DpoOptimizerConfig
from rslm.post.dpo_scores import REFERENCE_FILE, pair_parts
from rslm.post.pairs import Answer, Pair
from rslm.post.rollout import write_rollouts

Make = Callable[..., DpoConfig]
DIGITS = {str(n): word for n, word in enumerate(["zero", "one", "two", "three", "four", "five"])}
ROWS = [
    {"prompt": digit, "chosen": word, "rejected": word[::-1]}
    for digit, word in DIGITS.items()
    for _ in range(3)
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("dpo") / "base", has_chat=True)


@pytest.fixture
def make(base: Path, tmp_path: Path) -> Make:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    # With so large an epsilon AdamW does not turn rounding of small gradients into signs.
    optimizer = DpoOptimizerConfig(learning_rate=1e-2, epsilon=1e-2, schedule="cosine")

    def made(**options: Any) -> DpoConfig:
        settings: dict[str, Any] = {
            "base": base,
            "out": tmp_path / "run",
            "pairs": pairs,
            "optimizer": optimizer,
            "batch_size": 6,
            "n_epochs": 2,
            "n_valid_pairs": 3,
            "validate_every": 2,
            "checkpoint_every": 2,
            "device": "cpu",
            "n_threads": 1,
        }
        return DpoConfig(**(settings | options))

    return made


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "peak_flops", lambda *_: 1e12)
    monkeypatch.setattr(update, "write_curve", lambda *_: None)


def stop_after(step: int, config: DpoConfig, *, resume: bool = False) -> None:
    """Trains until a signal comes after some updates."""
    note = dpo.note_update

    def note_update(run: Any, *args: Any, **measured: Any) -> None:
        note(run, *args, **measured)
        if run.step == step:
            signal.raise_signal(signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dpo, "note_update", note_update)
        result = dpo.train(config, resume=resume)
    assert (result.reason, result.step) == ("terminated", step)


def train(config: DpoConfig) -> list[dict[str, Any]]:
    """Rows of the updates."""
    dpo.train(config)
    return [row for row in rows_of(config.out) if "loss" in row]


def test_pictures_are_of_loss_and_margin(make: Make, monkeypatch: pytest.MonkeyPatch):
    drawn: list[str] = []
    monkeypatch.setattr(update, "write_curve", lambda *given: drawn.append(given[2]))
    train(make(n_epochs=1, n_valid_pairs=0))
    assert drawn == ["loss", "margin"]


def test_pairs_are_learned(make: Make):
    optimizer = DpoOptimizerConfig(learning_rate=3e-3)
    config = make(n_epochs=30, n_valid_pairs=0, batch_size=18, optimizer=optimizer)
    rows = train(config)
    assert len(rows) == 30
    first, last = rows[0], rows[-1]
    assert first["loss"] == pytest.approx(0.6931472, abs=1e-6)
    assert first["margin"] == pytest.approx(0, abs=1e-6)
    assert last["loss"] < 0.6
    assert last["accuracy"] == 1
    assert last["margin"] > 0.2
    assert last["margin"] == pytest.approx(last["chosen_rewards"] - last["rejected_rewards"])
    model, tokenizer = load_run(config.out)
    assert tokenizer.encode("two") == [ord(character) for character in "two"]
    assert model.config.vocab_size == 262


def plain_scores(base_folder: Path, name: str) -> list[tuple[float, int]]:
    """Log-prob and number of ids of each answer, its end included, one by one and unpadded."""
    base = open_base(base_folder, device="cpu")
    found = []
    for pair in ROWS:
        messages: list[Any] = [{"role": "user", "content": pair["prompt"]}]
        n_prompt = len(base.chat_format.prompt(messages))
        said = [*messages, {"role": "assistant", "content": pair[name]}]
        ids = torch.tensor(base.chat_format.render(said).token_ids)
        with torch.no_grad():
            log_probs = base.model(ids[None, :-1])[0].double().log_softmax(-1)
        of_answer = log_probs.gather(-1, ids[1:, None])[n_prompt - 1 :]
        found.append((of_answer.sum().item(), len(of_answer)))
    return found


def test_numbers_are_those_of_plain_log_probs(make: Make):
    config = make(n_epochs=1, batch_size=18, n_valid_pairs=0)
    (row,) = train(config)
    log_probs = read_safetensors(config.out / REFERENCE_FILE)[0]["log_probs"]
    for name, of_file in zip(("chosen", "rejected"), log_probs, strict=True):
        sums = [score for score, _ in plain_scores(config.base, name)]
        assert row[f"{name}_log_probs"] == pytest.approx(sum(sums) / len(sums), rel=1e-5)
        assert row[f"{name}_rewards"] == pytest.approx(0, abs=1e-6)
        assert sorted(of_file.tolist()) == pytest.approx(sorted(sums), rel=1e-5)
    assert row["n_tokens"] == sum(
        2 * (3 + len(pair["prompt"]) + len(pair["chosen"]) + 1) for pair in ROWS
    )


def test_means_are_over_the_ids_of_an_answer(make: Make):
    config = make(n_epochs=1, batch_size=18, n_valid_pairs=0, loss="simpo", beta=2.0)
    (row,) = train(config)
    for name in ("chosen", "rejected"):
        means = [score / n for score, n in plain_scores(config.base, name)]
        assert row[f"{name}_rewards"] == pytest.approx(2 * sum(means) / len(means), rel=1e-5)


LOSSES = ["robust", "ipo", "hinge", "length_normalized", "nca", "apo_zero", "apo_down"]


@pytest.mark.parametrize("loss", [*LOSSES, "simpo", "orpo"])
def test_every_loss_trains(make: Make, loss: Any):
    rows = train(make(n_steps=8, batch_size=18, n_valid_pairs=0, loss=loss, beta=0.5))
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert all(0 < row["grad_norm"] < 100 for row in rows)
    has_reference = (make().out / REFERENCE_FILE).exists()
    assert has_reference == (loss not in ("simpo", "orpo"))


@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_micro_batches_change_nothing(make: Make, tmp_path: Path, size: int):
    whole = make(out=tmp_path / "whole")
    dpo.train(whole)
    config = make(micro_batch_size=size)
    dpo.train(config)
    assert_close(config.out, whole.out)


def assert_close(run: Path, other: Path) -> None:
    """Metrics and weights are equal to within 1e-6 relative, and rewards that are near 0 so."""
    rows, wanted = rows_of(run), rows_of(other)
    assert [list(row) for row in rows] == [list(row) for row in wanted]
    for row, of_other in zip(rows, wanted, strict=True):
        assert row == pytest.approx(of_other, rel=1e-6, abs=2e-6)
    tensors = tensors_of(other)
    for name, tensor in tensors_of(run).items():
        assert (tensor - tensors[name]).norm() <= 2e-6 * tensors[name].norm() + 1e-9, name


def test_micro_batches_are_of_sequences_and_of_like_length():
    pairs = [
        Pair((1,), Answer((2,) * n, (True,) * n), Answer((3,), (True,))) for n in (5, 1, 4, 2, 3)
    ]
    assert pair_parts(range(5), pairs, 4) == [[1, 3], [4, 2], [0]]
    assert pair_parts([4, 0], pairs, 1) == [[4], [0]]
    assert pair_parts(range(5), pairs, None) == [[1, 3, 4, 2, 0]]
    assert pair_parts([], pairs, None) == []


def test_last_batch_is_what_the_epochs_leave(make: Make):
    config = make(batch_size=10, n_epochs=1, n_valid_pairs=0)
    rows = train(config)
    assert len(rows) == 2
    assert rows[0]["loss"] == pytest.approx(0.6931472, abs=1e-6)
    assert rows[1]["n_tokens"] - rows[0]["n_tokens"] < rows[0]["n_tokens"]


def train_here(options: dict[str, Any], **changes: Any) -> str:
    setup.peak_flops = lambda *_: 1e12
    update.write_curve = lambda *_: None
    os.fsync = lambda _: None
    return dpo.train(DpoConfig(**options), **changes).reason


def options_of(config: DpoConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in config.__dataclass_fields__}


def test_two_processes_are_one(make: Make, tmp_path: Path):
    alone = make(out=tmp_path / "alone", batch_size=5)
    dpo.train(alone)
    config = make(parallel="ddp", batch_size=5)
    assert run_each(train_here, options_of(config)) == ["finished"] * 2
    assert_close(config.out, alone.out)


def killed_at(options: dict[str, Any], place: str, step: int) -> None:
    """Goes on with a run, and is killed where it calls a function for the second time or later."""
    module = {"note_update": dpo, "save": update, "write_atomically": dpo_scores}[place]
    call = getattr(module, place)
    n_calls = 0

    def dies(*args: Any, **changes: Any) -> Any:
        nonlocal n_calls
        n_calls += 1
        if n_calls > step:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **changes)

    setattr(module, place, dies)
    train_here(options, resume=True)


def test_killed_run_goes_on_bit_for_bit(make: Make, tmp_path: Path):
    alone = make(out=tmp_path / "alone")
    dpo.train(alone)
    config = make()
    for place, step in (("write_atomically", 0), ("note_update", 3), ("save", 1)):
        killed = start_each(killed_at, options_of(config), place, step, n=1, folder=tmp_path)
        assert join_all(killed) == [-signal.SIGKILL]
    dpo.train(config, resume=True)
    assert_same_run(config.out, alone.out, 0)
    for name in (REFERENCE_FILE, "tokenizer.json"):
        assert (config.out / name).read_bytes() == (alone.out / name).read_bytes()


def test_stopped_run_goes_on_without_its_base(make: Make, base: Path, tmp_path: Path):
    alone = make(out=tmp_path / "alone")
    dpo.train(alone)
    copied = shutil.copytree(base, tmp_path / "copy")
    config = make(base=copied)
    stop_after(3, config)
    shutil.rmtree(copied)
    moved = config.pairs.rename(tmp_path / "moved.jsonl")
    result = dpo.train(replace(config, pairs=moved), resume=True)
    assert (result.reason, result.step) == ("finished", 5)
    assert_same_run(config.out, alone.out, 0)


def test_reference_that_was_removed_is_computed_again(make: Make):
    config = make()
    stop_after(3, config)
    data = (config.out / REFERENCE_FILE).read_bytes()
    (config.out / REFERENCE_FILE).unlink()
    dpo.train(config, resume=True)
    assert (config.out / REFERENCE_FILE).read_bytes() == data


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"beta": 0.2}, "beta"),
        ({"loss": "hinge"}, "loss"),
        ({"n_valid_pairs": 6}, "n_valid_pairs"),
        ({"pairs_per_prompt": 3}, "pairs_per_prompt"),
    ],
)
def test_other_options_are_refused_at_a_resumption(
    make: Make, change: dict[str, Any], sentence: str
):
    config = make()
    stop_after(2, config)
    with pytest.raises(ValueError, match=sentence):
        dpo.train(replace(config, **change), resume=True)


def test_other_pairs_and_a_damaged_reference_are_refused(make: Make):
    config = make()
    stop_after(2, config)
    good = config.pairs.read_text()
    config.pairs.write_text(good.replace("eno", "one "))
    with pytest.raises(ValueError, match="must be the pairs that the run began with"):
        dpo.train(config, resume=True)
    config.pairs.write_text(good)
    (config.out / REFERENCE_FILE).write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match=f"{REFERENCE_FILE} is not a safetensors file"):
        dpo.train(config, resume=True)


def test_checkpoint_of_the_best_accuracy_is_kept(make: Make, monkeypatch: pytest.MonkeyPatch):
    scores = {0: 0.5, 2: 0.9, 4: 0.7, 5: 0.8}
    losses = {0: 0.7, 2: 0.5, 4: 0.6, 5: 0.4}

    def validate(run: Any, data: Any) -> Any:
        return losses[run.step], {"val_accuracy": scores[run.step], "val_margin": 0.0}

    monkeypatch.setattr(dpo, "validate", validate)
    config = make(keep_checkpoints=1)
    stop_after(3, config)
    dpo.train(config, resume=True)
    best = config.out / "checkpoints" / "best"
    assert best.resolve().name == "step_00000002"
    newest, _ = newest_checkpoint(config.out / "checkpoints")
    assert newest is not None
    assert newest.name == "step_00000005"


def test_checkpoint_of_the_best_accuracy_outlives_a_resumption(
    make: Make, monkeypatch: pytest.MonkeyPatch
):
    # The loss is lowest elsewhere, and once not a number.
    scores = {0: 0.5, 2: 0.9, 4: 0.7, 6: 0.8, 8: 0.6, 10: 0.6}
    losses = {0: 0.7, 2: 0.5, 4: 0.4, 6: float("nan"), 8: 0.4, 10: 0.4}

    def validate(run: Any, data: Any) -> Any:
        return losses[run.step], {"val_accuracy": scores[run.step], "val_margin": 0.0}

    monkeypatch.setattr(dpo, "validate", validate)
    config = make(keep_checkpoints=2, n_steps=10, n_epochs=4)
    stop_after(5, config)
    stop_after(7, config, resume=True)
    dpo.train(config, resume=True)
    best = config.out / "checkpoints" / "best"
    assert best.resolve().name == "step_00000002"
    assert (best / "model.safetensors").is_file()


def test_rollouts_are_pairs(make: Make, tmp_path: Path):
    folder = tmp_path / "rollouts"
    folder.mkdir()
    for step in (1, 2):
        group = [rollout(step, 0, 1.0, "right"), rollout(step, 1, 0.0, "wrong")]
        write_rollouts(folder / f"step_{step}.jsonl", group)
    rows = train(make(pairs=folder, n_valid_pairs=0, n_steps=20, batch_size=2))
    assert rows[-1]["accuracy"] == 1


def test_pairs_to_validate_on_may_be_given(make: Make, tmp_path: Path):
    valid = tmp_path / "valid.jsonl"
    valid.write_text(json.dumps(ROWS[0]) + "\n")
    config = make(valid_pairs=valid, n_valid_pairs=None)
    dpo.train(config)
    validations = [row for row in rows_of(config.out) if "val_loss" in row]
    assert [row["step"] for row in validations] == [0, 2, 4, 6]
    assert validations[0]["val_loss"] == pytest.approx(0.6931472, abs=1e-6)
    assert validations[0]["val_accuracy"] == 0.5


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"beta": 0.0}, "beta must be above 0, got 0.0"),
        ({"label_smoothing": 0.5}, "label_smoothing must be at least 0 and below 0.5"),
        ({"label_smoothing": 0.1, "loss": "ipo"}, "label_smoothing must be 0 but with"),
        ({"margin": 1.0}, "margin must be left out but with the loss simpo"),
        ({"ipo_average": False}, "ipo_average must be left on but with the loss ipo"),
        ({"n_epochs": 0.0}, "n_epochs must be above 0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"valid_pairs": Path("x")}, "n_valid_pairs must be left out with valid_pairs"),
    ],
)
def test_config_refuses(make: Make, options: dict[str, Any], sentence: str):
    with pytest.raises(ValueError, match=sentence):
        make(**options)


def test_run_without_pairs_is_refused_and_leaves_no_folder(make: Make, tmp_path: Path):
    with pytest.raises(ValueError, match="must hold pairs to train on, and has none beside 18"):
        dpo.train(make(n_valid_pairs=18))
    with pytest.raises(FileNotFoundError, match="nothing must be a file of pairs"):
        dpo.train(make(pairs=tmp_path / "nothing"))
    with pytest.raises(ValueError, match=r"line 1: .* context_length 5"):
        dpo.train(make(context_length=5))
    assert not make().out.exists()


def test_command(make: Make, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    config = make()
    arguments = ["dpo", str(config.base), "--pairs", str(config.pairs), "--out", str(config.out)]
    assert cli.main([*arguments, "--batch-size", "9", "--n-steps", "2", "--print-config"]) == 0
    printed = capsys.readouterr().out
    assert "n_steps = 2\n" in printed
    assert 'schedule = "linear"\n' in printed
    assert "learning_rate = 5e-06\n" in printed
    assert cli.main([*arguments, "--batch-size", "9", "--n-steps", "2", "--device", "cpu"]) == 0
    assert "finished at step 2" in capsys.readouterr().err
    model, tokenizer = load_run(config.out, device="cpu")
    assert ChatFormat.of(tokenizer).name == "rslm"
    assert model.config.context_length == 64
    assert cli.main(arguments) == 2
    assert "already exists" in capsys.readouterr().err
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a"}\n')
    other = tmp_path / "other"
    arguments = ["dpo", str(config.base), "--pairs", str(bad), "--out", str(other)]
    assert cli.main([*arguments, "--n-steps", "2", "--n-epochs", "2"]) == 2
    assert cli.main([*arguments, "--n-steps", "2"]) == 2
    assert "bad.jsonl, line 1: it must be an object" in capsys.readouterr().err
    assert not other.exists()
