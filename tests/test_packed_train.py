"""`train` on packed and masked documents: resumed, divided and accumulated, it is the same run."""

import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import run_each

from rslm import _rslm
from rslm import train as loop
from rslm.batches import Packed, sample_batch
from rslm.checkpoint import MODEL, OPTIM, newest_checkpoint, read_state
from rslm.cli import main
from rslm.config import read_config, to_toml
from rslm.errors import FormatError
from rslm.packing import plan_path
from rslm.run_data import open_data, pack_data
from rslm.run_folder import read_metrics
from rslm.run_log import CLOCK_KEYS
from rslm.token_file import TokenFile
from rslm.train import train
from rslm.train_config import DataConfig, TrainConfig

pytestmark = pytest.mark.timeout(60)

MakeConfig = Callable[..., TrainConfig]
MASKED = {"mask_documents": True, "restart_positions": True}
OPTIONS = [
    {"packing": "chunk", **MASKED},
    {"packing": "bos-bestfit"},
    {"packing": "bos-bestfit", "mask_documents": True},
    {"packing": "obfd"},
    {"packing": "obfd", **MASKED},
]


def skip_slow_parts() -> None:
    loop.peak_flops = lambda *_: 1e12
    loop.write_loss_curve = lambda *_: None
    os.fsync = lambda _: None


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("peak_flops", "write_loss_curve"):
        monkeypatch.setattr(loop, name, lambda *_: 1e12)
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def packed_config(tiny_config: MakeConfig, token_files: Any, tmp_path: Path) -> MakeConfig:
    """`packed_config(options of DataConfig, **changes)`: on token files of its own."""
    own = [shutil.copytree(folder, tmp_path / folder.name) for folder in token_files]

    def make(options: dict[str, Any], **changes: Any) -> TrainConfig:
        data = {"train": own[0], "valid": own[1]} | options
        return tiny_config(data=DataConfig(**data), **changes)

    return make


def outcome(run: Path) -> tuple[Any, ...]:
    """Weights, optimizer state, metrics but for clocks, and samples."""
    newest, rejected = newest_checkpoint(run / "checkpoints")
    assert newest is not None
    assert not rejected
    tensors = [(newest / name).read_bytes() for name in (MODEL, OPTIM)]
    rows = read_metrics(run / "metrics.jsonl")
    timeless = [{k: v for k, v in row.items() if k not in CLOCK_KEYS} for row in rows]
    return tensors, timeless, (run / "samples.md").read_text()


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    take = loop.sample_batch

    def sample_batch(*args: Any, **options: Any) -> Any:
        if options["step"] + 1 == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return take(*args, **options)

    monkeypatch.setattr(loop, "sample_batch", sample_batch)


@pytest.mark.parametrize("options", OPTIONS)
def test_stopped_and_resumed_run_has_the_same_bits(
    packed_config: MakeConfig,
    options: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    whole = packed_config(options, out=tmp_path / "whole")
    train(whole)
    config = packed_config(options, out=tmp_path / "stopped")
    with monkeypatch.context() as patch:
        stop_at(patch, 7)
        assert train(config).step == 7
    # The plan was kept: nothing is planned again.
    monkeypatch.setattr(_rslm, "plan_packing", None)
    assert train(config, resume=True).reason == "finished"
    assert outcome(config.out) == outcome(whole.out)


def test_policies_and_masks_train_on_different_batches(packed_config: MakeConfig, tmp_path: Path):
    losses = {}
    for options in ({}, *OPTIONS):
        config = packed_config(options, out=tmp_path / str(len(losses)), n_steps=4)
        train(config)
        rows = read_metrics(config.out / "metrics.jsonl")
        losses[tuple(row["loss"] for row in rows if "loss" in row)] = options
    assert len(losses) == 1 + len(OPTIONS)
    assert all(np.isfinite(row).all() for row in losses)


def write_documents(folder: Path, tokenizer: Any, length: int, n_documents: int) -> Path:
    """A token file of documents of so many characters and the token that ends them."""
    text = folder.with_suffix(".txt")
    text.write_text("<|endoftext|>".join([*(f"{i:0{length}d}" for i in range(n_documents)), ""]))
    tokenizer.encode_files([text], folder)
    return folder


@pytest.fixture
def short_documents(byte_tokenizer: Any, tmp_path: Path) -> Path:
    """Documents of 9 targets, of which a row of 16 places holds one."""
    return write_documents(tmp_path / "short", byte_tokenizer, 8, 240)


@pytest.mark.parametrize("policy", ["bos-bestfit", "obfd"])
def test_rows_tell_how_many_targets_they_had(
    packed_config: MakeConfig, short_documents: Path, policy: str
):
    config = packed_config({"train": short_documents, "packing": policy})
    train(config)
    places = config.batch_size * config.model.context_length
    n_targets = 0
    source = pack_data(open_data(config), config).source
    for row in read_metrics(config.out / "metrics.jsonl"):
        if "loss" in row:
            options = {"step": row["step"] - 1, "batch_size": config.batch_size}
            batch = sample_batch(source, seed=config.seed, context_length=16, **options)
            n_targets += int((batch.rows.targets >= 0).sum())
        assert (row["n_tokens"], row["n_targets"]) == (places * row["step"], n_targets)
    assert (n_targets < 20 * places) == (policy == "obfd")
    newest, _ = newest_checkpoint(config.out / "checkpoints")
    assert newest is not None
    assert read_state(newest)["n_targets"] == n_targets


def test_rows_without_packing_count_tokens_alone(packed_config: MakeConfig):
    config = packed_config({"packing": "chunk", **MASKED}, n_steps=4)
    train(config)
    assert all("n_targets" not in row for row in read_metrics(config.out / "metrics.jsonl"))


def test_weights_of_packed_files_are_shares_of_targets(
    packed_config: MakeConfig, byte_tokenizer: Any, short_documents: Path, tmp_path: Path
):
    # Rows of 16 places: those of one file hold 15 targets, those of the other 9, so that equal
    # shares of the targets take 9 rows of the first to 15 of the second.
    long_documents = write_documents(tmp_path / "long", byte_tokenizer, 14, 80)
    files = {"train": long_documents, "mixed_in": (short_documents,), "valid": None}

    def shares(weights: tuple[float, ...], policy: str = "obfd") -> list[int]:
        config = packed_config(files | {"packing": policy, "weights": weights})
        source = pack_data(open_data(config), config).source
        mixture = source.source if isinstance(source, Packed) else source
        return np.bincount(mixture.slots).tolist()

    assert shares((1.0, 1.0)) == pytest.approx([1000 * 9 / 24, 1000 * 15 / 24], abs=1)
    # Unless given they are the targets there are, so that all are seen equally often.
    assert shares(()) == [250, 750]
    assert shares((1.0, 1.0), "chunk") == [500, 500]


def test_a_long_run_learns_over_several_epochs(packed_config: MakeConfig):
    config = packed_config({"packing": "obfd", **MASKED}, n_steps=300, batch_size=32)
    train(config)
    rows = [row for row in read_metrics(config.out / "metrics.jsonl") if "loss" in row]
    assert rows[-1]["loss"] < rows[0]["loss"] / 2


@pytest.mark.parametrize("options", OPTIONS[3:])
def test_accumulation_does_not_change_a_run(
    packed_config: MakeConfig, tmp_path: Path, options: dict[str, Any]
):
    runs = []
    for size in (4, 2, 1):
        config = packed_config(options, out=tmp_path / str(size), micro_batch_size=size)
        train(config)
        rows = read_metrics(config.out / "metrics.jsonl")
        runs.append([row["loss"] for row in rows if "loss" in row])
    assert runs[1] == pytest.approx(runs[0], abs=1e-5)
    assert runs[2] == pytest.approx(runs[0], abs=1e-5)


def train_here(file: Path) -> tuple[str, int]:
    skip_slow_parts()
    result = train(read_config(TrainConfig, file))
    return result.reason, result.step


@pytest.mark.parametrize("options", [OPTIONS[4], {**OPTIONS[2], "mixes": True}])
def test_two_processes_train_what_one_does(
    packed_config: MakeConfig, tmp_path: Path, options: dict[str, Any]
):
    options = dict(options)
    if options.pop("mixes", False):
        options |= {"mixed_in": (tmp_path / "valid",), "valid": None}
        options["weights"] = (2.0, 1.0)
    alone = packed_config(options, out=tmp_path / "alone", micro_batch_size=2)
    config = replace(alone, out=tmp_path / "two", micro_batch_size=None, parallel="ddp")
    file = tmp_path / "two.toml"
    file.write_text(to_toml(config))
    # They plan, too: the first one, and the other reads what it wrote.
    assert run_each(train_here, file) == [("finished", 20)] * 2
    train(alone)
    rows, others = (
        [row["loss"] for row in read_metrics(run.out / "metrics.jsonl") if "loss" in row]
        for run in (config, alone)
    )
    assert rows == pytest.approx(others, abs=1e-5)


def test_start_tells_what_the_rows_hold(
    packed_config: MakeConfig, capsys: pytest.CaptureFixture[str]
):
    config = packed_config({"packing": "bos-bestfit"}, n_steps=4)
    train(config)
    said = " ".join(capsys.readouterr().err.split())
    assert f"packing bos-bestfit: {config.data.train}:" in said
    assert "documents cut" in said
    assert "tokens dropped (" in said


def test_options_that_do_not_fit_are_refused(packed_config: MakeConfig, tmp_path: Path):
    with pytest.raises(ValueError, match="restart_positions must be off without mask_documents"):
        packed_config({"restart_positions": True})
    unknown = TokenFile.open(packed_config({}).data.train).shards[0].path
    plain = tmp_path / "plain.bin"
    data = bytearray(unknown.read_bytes())
    data[12:1024] = bytes(1012)
    plain.write_bytes(data)
    for options, name in (
        ({"packing": "obfd"}, "data.packing obfd"),
        ({"packing": "bos-bestfit"}, "data.packing bos-bestfit"),
        ({"mask_documents": True}, "data.mask_documents"),
    ):
        config = packed_config(options)
        config = replace(
            config,
            data=replace(config.data, train=plain, valid=None),
            model=replace(config.model, vocab_size=257),
        )
        message = f"{name} needs to know the documents, and .*plain.bin has no index of them"
        with (
            pytest.warns(UserWarning, match=r"a plain llm\.c file"),
            pytest.raises(ValueError, match=message),
        ):
            train(config)
        assert not config.out.exists()


def test_packing_may_not_change_at_a_resumption(packed_config: MakeConfig):
    train(packed_config({}, n_steps=20))
    with pytest.raises(ValueError, match=r"data\.packing"):
        train(packed_config({"packing": "obfd"}), resume=True)


def test_damaged_plan_stops_the_run_before_it_begins(
    packed_config: MakeConfig, capsys: pytest.CaptureFixture[str]
):
    config = packed_config({"packing": "obfd"})
    path = plan_path(TokenFile.open(config.data.train), config.model.context_length, "obfd")
    path.write_bytes(b"RSLMPACK")
    with pytest.raises(FormatError, match="at byte 8: a plan must have 128 bytes of header"):
        train(config)
    assert not config.out.exists()
    file = config.out.with_suffix(".toml")
    file.write_text(to_toml(config))
    assert main(["train", "--config", str(file)]) == 2
    assert str(path) in capsys.readouterr().err


def test_skipped_batch_is_written_with_its_targets(
    packed_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
):
    import json

    accumulate = loop.accumulate_gradients

    def poisoned(model: Any, batch: Any, *args: Any, **options: Any) -> Any:
        loss = accumulate(model, batch, *args, **options)
        next(model.parameters()).grad[:] = float("nan")
        return loss

    def at_step_two(model: Any, batch: Any, *args: Any, **options: Any) -> Any:
        taken.append(batch)
        return (poisoned if len(taken) == 2 else accumulate)(model, batch, *args, **options)

    taken: list[Any] = []
    monkeypatch.setattr(loop, "accumulate_gradients", at_step_two)
    config = packed_config({"packing": "obfd", **MASKED}, n_steps=4)
    train(config)
    report = json.loads((config.out / "nonfinite_step_00000002.json").read_text())
    assert report["token_ids"] == taken[1].rows.inputs.tolist()
    assert report["targets"] == taken[1].rows.targets.tolist()
    assert len(report["samples"]) == 4
