"""Fine-tuning as a whole: the run folder, who reads it, stops and resumptions, bad options."""

import json
import os
import signal
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sft_chats import made_up, outcome, skip_slow_parts, tiny_sft, write_lines
from tiny_models import write_tiny_model

from rslm.chat import END
from rslm.checkpoint import list_checkpoints
from rslm.cli import main
from rslm.config import read_config
from rslm.errors import FormatError
from rslm.infer.load import find_models, load_chat_format, load_run
from rslm.infer.sampler import generate
from rslm.losses import token_losses
from rslm.post import sft as loop
from rslm.post.sft import sft
from rslm.post.sft_config import SftConfig
from rslm.post.sft_data import ChatFile
from rslm.run_folder import read_metrics


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    skip_slow_parts(monkeypatch.setattr)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never interrupted."""
    with pytest.MonkeyPatch.context() as patch:
        skip_slow_parts(patch.setattr)
        config = tiny_sft(tmp_path_factory.mktemp("sft"))
        result = sft(config)
    assert result.reason == "finished"
    return config.out


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, number: signal.Signals) -> None:
    """Sends a signal during the update `step`."""
    take = loop.next_batch

    def next_batch(run: Any, data: Any) -> Any:
        if run.step + 1 == step:
            os.kill(os.getpid(), number)
        return take(run, data)

    monkeypatch.setattr(loop, "next_batch", next_batch)


def test_run_folder_holds_what_a_run_folder_holds(finished: Path):
    names = {path.name for path in finished.iterdir()}
    assert names == {
        *("config.toml", "env.json", "tokenizer.json", "metrics.jsonl", "samples.md"),
        *("checkpoints", "chats"),
    }
    config = read_config(SftConfig, finished / "config.toml")
    assert (config.chat_format, config.model.vocab_size) == ("rslm", 262)
    rows = read_metrics(finished / "metrics.jsonl")
    trained = [row for row in rows if "loss" in row]
    assert [row["step"] for row in trained] == list(range(1, config.n_steps + 1))
    assert trained[-1]["loss"] < trained[0]["loss"] - 1
    n_trained = [row["n_trained_tokens"] for row in trained]
    assert n_trained == sorted(n_trained)
    assert n_trained[-1] < trained[-1]["n_tokens"]
    validated = [row["step"] for row in rows if "val_loss" in row]
    assert validated == [*range(5, config.n_steps, 5), config.n_steps]
    samples = (finished / "samples.md").read_text()
    assert samples.count("## Step") == 1 + (config.n_steps - 1) // 10
    assert samples.count("<|assistant|>") >= 4
    assert json.loads((finished / "env.json").read_text())[0]["first_step"] == 0


def test_validation_is_the_mean_over_the_trained_tokens_held_out(finished: Path):
    model, tokenizer = load_run(finished, device="cpu")
    chats = ChatFile(finished / "chats" / "valid", tokenizer)
    losses = []
    for number in range(len(chats)):
        ids, mask = torch.from_numpy(chats.token_ids(number)), chats.mask(number)
        with torch.no_grad():
            found = token_losses(model(ids[None, :-1])[0], ids[1:])
        losses.append(found[torch.from_numpy(mask[1:])])
    rows = read_metrics(finished / "metrics.jsonl")
    assert rows[-1]["val_loss"] == pytest.approx(float(torch.cat(losses).mean()), rel=1e-6)


def test_learning_rate_warms_up_by_a_share(finished: Path, tmp_path: Path):
    config = tiny_sft(tmp_path, n_steps=10)
    config = replace(config, optimizer=replace(config.optimizer, warmup_fraction=0.4))
    sft(config)
    rates = [r["learning_rate"] for r in read_metrics(config.out / "metrics.jsonl") if "loss" in r]
    assert rates[:4] == pytest.approx([2.5e-3, 5e-3, 7.5e-3, 1e-2])
    assert rates[-1] == pytest.approx(1e-3)


def test_a_tuned_model_ends_its_answers(tmp_path: Path):
    config = tiny_sft(tmp_path, n_steps=80, sample_every=None, valid=())
    write_lines(config.data[0], [{"prompt": f"{i}", "answer": "ab"} for i in range(10)] * 2)
    sft(config)
    model, tokenizer = load_run(config.out, device="cpu")
    chat_format = load_chat_format(config.out, tokenizer)
    prompt = chat_format.prompt([{"role": "user", "content": "3"}])
    drawn = list(generate(model, prompt, max_new_tokens=20, temperature=0))
    assert drawn[:3] == [ord("a"), ord("b"), tokenizer.special_tokens[END]]


def test_everything_that_takes_a_run_takes_this_one(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = str(finished)
    assert list(find_models(finished.parent)) == ["base", "run"]
    assert main(["sample", run, "--prompt", "a", "--max-new-tokens", "4", "--seed", "1"]) == 0
    assert main(["runs", "ls", str(finished.parent)]) == 0
    assert "finished" in capsys.readouterr().out
    assert main(["runs", "show", run]) == 0
    assert "chat_format" in capsys.readouterr().out
    assert main(["runs", "plot", run, "--out", str(tmp_path / "p.png")]) == 0
    assert main(["runs", "diff", run, run]) == 0
    text = tmp_path / "t.txt"
    text.write_text("abc de")
    assert (
        main(["viz", "logprobs", run, "--text", str(text), "--out", str(tmp_path / "v.html")]) == 0
    )
    assert main(["export", "hf", run, str(tmp_path / "hf")]) == 0
    assert main(["export", "gguf", run, str(tmp_path / "m.gguf")]) == 0
    imported = tmp_path / "back"
    assert main(["import", "hf", str(tmp_path / "hf"), str(imported)]) == 0
    assert load_chat_format(imported, load_run(imported)[1]).name == "rslm"


def test_a_tuned_model_is_a_base_again(finished: Path, tmp_path: Path):
    config = tiny_sft(tmp_path, base=finished, n_steps=2, valid=())
    sft(config)
    before, after = (read_config(SftConfig, run / "config.toml") for run in (finished, config.out))
    assert after.model == before.model
    assert after.chat_format == "rslm"


@pytest.mark.parametrize("step", [1, 6, 10])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_and_resumed_is_unbroken(
    finished: Path, tmp_path: Path, step: int, number: signal.Signals
):
    config = tiny_sft(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        skip_slow_parts(patch.setattr)
        stop_at(patch, step, number)
        result = sft(config)
    assert result.reason == ("interrupted" if number == signal.SIGINT else "terminated")
    assert result.step == step
    assert sft(config, resume=True).reason == "finished"
    assert outcome(config.out) == outcome(finished)


def test_stop_within_a_batch_makes_it_again(finished: Path, tmp_path: Path):
    config = tiny_sft(tmp_path, micro_batch_size=2)
    unbroken = tiny_sft(tmp_path, micro_batch_size=2, out=tmp_path / "unbroken")
    sft(unbroken)
    with pytest.MonkeyPatch.context() as patch:
        skip_slow_parts(patch.setattr)
        stop_at(patch, 7, signal.SIGTERM)
        assert sft(config).step == 6
    sft(config, resume=True)
    assert outcome(config.out) == outcome(unbroken.out)


def test_stop_in_validation_validates_again(finished: Path, tmp_path: Path):
    config = tiny_sft(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        skip_slow_parts(patch.setattr)
        validate = loop.validate

        def stopped(run: Any, data: Any) -> Any:
            os.kill(os.getpid(), signal.SIGTERM)
            return validate(run, data)

        patch.setattr(loop, "validate", stopped)
        assert sft(config).step == 5
    sft(config, resume=True)
    assert outcome(config.out) == outcome(finished)


def test_a_damaged_checkpoint_is_set_aside(finished: Path, tmp_path: Path):
    config = tiny_sft(tmp_path)
    sft(config)
    newest = list_checkpoints(config.out / "checkpoints")[-1]
    with (newest / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    sft(config, resume=True)
    assert (newest.parent / f"rejected_{newest.name}").is_dir()
    assert outcome(config.out) == outcome(finished)


def test_resumption_needs_neither_base_nor_data(finished: Path, tmp_path: Path):
    config = tiny_sft(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        skip_slow_parts(patch.setattr)
        stop_at(patch, 6, signal.SIGTERM)
        sft(config)
    moved = replace(config, base=tmp_path / "gone", data=(tmp_path / "gone.jsonl",))
    for file in ("c.jsonl", "v.jsonl"):
        (tmp_path / file).unlink()
    sft(moved, resume=True)
    assert outcome(config.out) == outcome(finished)


def test_a_kill_while_conversations_are_stored_leaves_nothing_in_the_way(
    finished: Path, tmp_path: Path
):
    config = tiny_sft(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        skip_slow_parts(patch.setattr)

        def full(*_: Any, **__: Any) -> None:
            raise OSError(28, "No space left on device")

        patch.setattr(loop, "write_chats", full)
        with pytest.raises(OSError, match="No space"):
            sft(config)
    # What a killed process leaves of a folder it was writing.
    (config.out / "chats" / "train.tmp-1").mkdir(parents=True)
    sft(config, resume=True)
    assert outcome(config.out) == outcome(finished)
    assert sorted(p.name for p in (config.out / "chats").iterdir()) == ["train", "valid"]


def test_changed_options_are_refused_and_others_may_change(finished: Path, tmp_path: Path):
    config = tiny_sft(tmp_path)
    sft(config)
    with pytest.raises(ValueError, match="packing must stay best-fit"):
        sft(replace(config, packing="none"), resume=True)
    slower = replace(config.optimizer, learning_rate=1e-3)
    with pytest.raises(ValueError, match=r"optimizer\.learning_rate must stay 0\.01"):
        sft(replace(config, optimizer=slower), resume=True)
    assert sft(replace(config, micro_batch_size=2, log_every=3), resume=True).reason == "finished"


def test_infinite_gradients_are_skipped_and_then_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    real = loop.weighted_loss
    calls = iter(range(10**6))

    def infinite_at(steps: range) -> None:
        def weighted_loss(model: Any, part: Any) -> Any:
            return real(model, part) * (float("inf") if next(calls) in steps else 1.0)

        monkeypatch.setattr(loop, "weighted_loss", weighted_loss)

    infinite_at(range(2, 4))
    config = tiny_sft(tmp_path, valid=(), n_steps=6)
    assert sft(config).step == 6
    losses = [r["loss"] for r in read_metrics(config.out / "metrics.jsonl") if "grad_norm" in r]
    assert [loss is None for loss in losses] == [False, False, True, True, False, False]
    infinite_at(range(10**6))
    with pytest.raises(FloatingPointError, match="step 4"):
        sft(replace(config, out=tmp_path / "two"))


def test_a_model_in_the_options_that_is_not_the_base_is_refused(finished: Path, tmp_path: Path):
    config = tiny_sft(tmp_path)
    other = replace(read_config(SftConfig, finished / "config.toml").model, n_layers=7)
    with pytest.raises(ValueError, match="model must be left out"):
        sft(replace(config, model=other))
    assert not config.out.exists()


def test_a_wrong_conversation_leaves_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_tiny_model(tmp_path / "base", has_chat=True)
    data = write_lines(tmp_path / "x.jsonl", [*made_up(3), {"messages": "hi"}])
    arguments = ["sft", str(tmp_path / "base"), "--data", str(data), "--device", "cpu"]
    assert main([*arguments, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "x.jsonl, line 4: messages must be a list" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data", "{}/none.jsonl"], "no such file: {}/none.jsonl"),
        (["--data", "{}/base"], "is a folder"),
        (["--data", "{}/c.jsonl", "--n-steps", "3", "--n-epochs", "1"], "not both"),
        (["--data", "{}/c.jsonl", "--n-epochs", "0"], "n_epochs must be above 0"),
        (["--data", "{}/c.jsonl", "--n-epochs", "nan"], "n_epochs must be above 0"),
        (["--data", "{}/c.jsonl", "--batch-size", "0"], "batch_size must be at least 1"),
        (["--data", "{}/c.jsonl", "--optimizer.warmup-fraction", "2"], "in [0, 1]"),
        (["--data", "{}/c.jsonl", "--optimizer.warmup-steps", "99999"], "at most n_steps"),
        (["--data", "{}/c.jsonl", "--context-length", "1"], "within 2 tokens"),
        ([], "missing --data"),
    ],
)
def test_wrong_options_are_one_sentence_and_leave_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
):
    write_tiny_model(tmp_path / "base", has_chat=True)
    write_lines(tmp_path / "c.jsonl", made_up(3))
    flags = [flag.format(tmp_path) for flag in flags]
    arguments = ["sft", str(tmp_path / "base"), *flags, "--device", "cpu"]
    assert main([*arguments, "--out", str(tmp_path / "run")]) == 2
    assert message.format(tmp_path) in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_base_is_no_place_for_its_own_run(tmp_path: Path):
    config = tiny_sft(tmp_path, n_steps=1, valid=())
    sft(config)
    before = (config.out / "config.toml").read_bytes()
    for resume in (False, True):
        with pytest.raises(ValueError, match="out must be another folder than base"):
            sft(replace(config, base=config.out), resume=resume)
    assert (config.out / "config.toml").read_bytes() == before


def test_a_base_that_is_none_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_lines(tmp_path / "c.jsonl", made_up(3))
    arguments = ["sft", str(tmp_path), "--data", str(tmp_path / "c.jsonl"), "--device", "cpu"]
    assert main([*arguments, "--out", str(tmp_path / "run")]) == 2
    assert "base must be a run or model folder" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_command_trains_resumes_and_prints_its_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config = tiny_sft(tmp_path)
    run = str(tmp_path / "run")
    arguments = ["sft", str(config.base), "--data", str(config.data[0]), "--out", run]
    arguments += ["--device", "cpu", "--n-steps", "3", "--batch-size", "2", "--n-threads", "1"]
    assert main([*arguments, "--print-config"]) == 0
    assert "n_steps = 3" in capsys.readouterr().out
    assert main(arguments) == 0
    assert "next: rslm chat" in capsys.readouterr().err
    assert main(arguments) == 2
    assert "already exists" in capsys.readouterr().err
    assert main(["sft", "--resume", "--out", run]) == 0
    assert main([*arguments, "--resume"]) == 0


def test_the_options_of_a_forged_state_are_refused(finished: Path, tmp_path: Path):
    config = tiny_sft(tmp_path, n_steps=2, valid=())
    sft(config)
    newest = list_checkpoints(config.out / "checkpoints")[-1]
    state = json.loads((newest / "state.json").read_text())
    bad: list[tuple[str, Any]] = [("n_tokens", -1), ("n_trained_tokens", "9"), ("skipped", [])]
    for key, value in [*bad, ("skipped", {"n_in_a_row": None})]:
        (newest / "state.json").write_text(json.dumps(state | {key: value}))
        digests = subprocess.run(
            ["sha256sum", "model.safetensors", "optim.safetensors", "state.json"],
            cwd=newest,
            check=True,
            capture_output=True,
        ).stdout
        (newest / "manifest.sha256").write_bytes(digests)
        with pytest.raises(FormatError, match="of a checkpoint must be a count"):
            sft(config, resume=True)


def test_bfloat16_trains(tmp_path: Path):
    config = tiny_sft(tmp_path, precision="bfloat16", n_steps=6, valid=())
    sft(config)
    losses = [r["loss"] for r in read_metrics(config.out / "metrics.jsonl") if "loss" in r]
    assert losses[-1] < losses[0]
    model, _ = load_run(config.out, device="cpu")
    assert model.token_embeddings.weight.dtype == torch.float32
