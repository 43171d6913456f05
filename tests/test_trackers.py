"""What TensorBoard and W&B are told of a run, also when it is killed, resumed, or they fail."""

import os
import shlex
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rslm import train as loop
from rslm.cli import main
from rslm.run_folder import read_metrics
from rslm.trackers import Trackers, rows_beyond
from rslm.train import train
from rslm.train_config import TrainConfig

MakeConfig = Callable[..., TrainConfig]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "peak_flops", lambda *_: 1e12)
    monkeypatch.setattr(loop, "write_loss_curve", lambda *_: None)
    monkeypatch.setattr(os, "fsync", lambda _: None)


class FakeRun:
    """What rslm calls of `wandb.Run`; a run of the same id goes on."""

    def __init__(self, wandb: "FakeWandb", options: dict[str, Any]) -> None:
        self.options = options
        self.history = wandb.histories.setdefault(options["id"], [])
        self.metrics: dict[str, str | None] = {}
        self.exit_code: int | None = None
        self.faults = wandb.faults

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.metrics[name] = step_metric

    def log(self, data: dict[str, Any]) -> None:
        assert self.exit_code is None
        if data["step"] in self.faults:
            raise ConnectionError("no way\nmany more lines")
        self.history.append(data)

    def finish(self, exit_code: int | None = None) -> None:
        self.exit_code = exit_code


class FakeWandb(types.ModuleType):
    """The module `wandb`, as far as rslm uses it."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.runs: list[FakeRun] = []
        self.histories: dict[str, list[dict[str, Any]]] = {}
        self.faults: tuple[int, ...] = ()

    def init(self, **options: Any) -> FakeRun:
        assert options["resume"] == "allow"
        self.runs.append(FakeRun(self, options))
        return self.runs[-1]


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def logged_rows(config: TrainConfig) -> list[dict[str, Any]]:
    """The rows of the metrics that the log shows, without what is null."""
    return [
        {key: value for key, value in row.items() if value is not None}
        for row in read_metrics(config.out / "metrics.jsonl")
        if "val_loss" in row or row["step"] in (1, 20) or row["step"] % config.log_every == 0
    ]


def train_until(config: TrainConfig, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trains and fails after `step` updates, beyond the last checkpoint."""
    update, n_updates = loop.optimizer_step, iter(range(1000))

    def optimizer_step(*args: Any, **options: Any) -> Any:
        if next(n_updates) == step:
            raise RuntimeError("killed")
        return update(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "optimizer_step", optimizer_step)
        with pytest.raises(RuntimeError, match="killed"):
            train(config)


def test_wandb_gets_the_rows_that_the_log_shows(tiny_config: MakeConfig, wandb: FakeWandb) -> None:
    config = tiny_config(trackers=("wandb",), wandb_project="mine", log_every=4)
    train(config)
    (run,) = wandb.runs
    assert run.history == logged_rows(config)
    assert [row["step"] for row in run.history] == [1, 4, 5, 8, 10, 12, 15, 16, 20, 20]
    assert run.exit_code == 0
    assert run.metrics == {"step": None, "*": "step"}
    options = run.options
    assert (options["project"], options["name"]) == ("mine", "run")
    assert options["config"]["optimizer"]["learning_rate"] == 1e-2
    assert options["dir"] == str(config.out)


def test_resumed_run_goes_on_in_wandb_and_sends_no_row_twice(
    tiny_config: MakeConfig, wandb: FakeWandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(trackers=("wandb",), log_every=1)
    train_until(config, 9, monkeypatch)
    assert [row["step"] for row in wandb.runs[0].history] == [1, 2, 3, 4, 5, 5, 6, 7, 8, 9]
    assert wandb.runs[0].exit_code == 1
    train(config, resume=True)
    assert [run.options["id"] for run in wandb.runs] == [(config.out / "wandb_id").read_text()] * 2
    (history,) = wandb.histories.values()
    assert [row["step"] for row in history] == [row["step"] for row in logged_rows(config)]
    same = ("step", "loss", "val_loss", "n_tokens")
    cut = [[{k: row.get(k) for k in same} for row in h] for h in (history, logged_rows(config))]
    assert cut[0] == cut[1]


def test_validation_that_was_cut_short_is_sent_after_the_resumption(
    tiny_config: MakeConfig, wandb: FakeWandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(trackers=("wandb",), log_every=1)

    def evaluate_loss(*args: Any, **options: Any) -> Any:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(loop, "evaluate_loss", evaluate_loss)
        with pytest.raises(RuntimeError, match="killed"):
            train(config)
    train(config, resume=True)
    (history,) = wandb.histories.values()
    assert [row["step"] for row in history[:7]] == [1, 2, 3, 4, 5, 5, 6]
    assert "val_loss" in history[5]


@pytest.mark.parametrize("moment", ["init", "log", "finish"])
def test_tracker_that_fails_is_warned_of_once_and_the_run_goes_on(
    tiny_config: MakeConfig,
    wandb: FakeWandb,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    moment: str,
) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise ConnectionError("no way\nmany more lines")

    if moment == "init":
        monkeypatch.setattr(FakeWandb, "init", fail)
    elif moment == "log":
        wandb.faults = (8, 12, 16)
    else:
        monkeypatch.setattr(FakeRun, "finish", fail)
    config = tiny_config(trackers=("wandb",), log_every=4)
    assert train(config).reason == "finished"
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "wandb" in line]
    assert line == (
        "wandb failed and is left out from here on; metrics.jsonl has everything: "
        "ConnectionError: no way"
    )
    n_rows = {"init": 0, "log": 3, "finish": 10}[moment]
    assert sum(len(run.history) for run in wandb.runs) == n_rows
    assert len(read_metrics(config.out / "metrics.jsonl")) == 24


def test_trackers_do_not_change_what_is_trained(
    tiny_config: MakeConfig, wandb: FakeWandb, tmp_path: Path
) -> None:
    weights = []
    for name, trackers in (("plain", ()), ("tracked", ("wandb",))):
        config = tiny_config(out=tmp_path / name, trackers=trackers)
        train(config)
        weights.append((config.out / "checkpoints/step_00000020/model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_only_the_first_process_tracks(tiny_config: MakeConfig, wandb: FakeWandb) -> None:
    config = tiny_config(trackers=("wandb",))
    options: Any = {"n_steps": 20, "first_step": 0, "written": (), "warn": pytest.fail}
    with Trackers(config, **options, is_first=False) as trackers:
        trackers.write_row({"step": 1, "loss": 1.0})
    assert wandb.runs == []


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_missing_package_is_one_sentence_before_anything_is_written(
    tiny_config: MakeConfig,
    token_files: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    config = tiny_config(trackers=(name,))
    out, data = shlex.quote(str(config.out)), shlex.quote(str(token_files[0]))
    for command in ("train", "train --dry-run"):
        assert (
            main(shlex.split(f"{command} --out {out} --data.train {data} --trackers {name}")) == 2
        )
        assert capsys.readouterr().err == (
            f"error: this command needs {name}, which is not installed: pip install 'rslm[track]'\n"
        )
    with pytest.raises(ModuleNotFoundError):
        train(config)
    assert not config.out.exists()


def test_trackers_must_differ(tiny_config: MakeConfig) -> None:
    with pytest.raises(ValueError, match="trackers must be different from each other, got wandb"):
        tiny_config(trackers=("wandb", "wandb"))


def test_trackers_may_change_when_a_run_is_resumed(
    tiny_config: MakeConfig, wandb: FakeWandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(log_every=1)
    train_until(config, 9, monkeypatch)
    train(replace(config, trackers=("wandb",)), resume=True)
    (run,) = wandb.runs
    assert [row["step"] for row in run.history][:3] == [10, 10, 11]


def test_rows_beyond_a_place_are_read_as_far_as_they_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert rows_beyond(path, 0) == set()
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n{"step": 2, "val_loss": 1}\n\0\0\n[]\n{"step')
    assert rows_beyond(path, 12) == {(2, False), (2, True)}


def read_events(config: TrainConfig) -> dict[str, list[tuple[int, float]]]:
    """All scalars that TensorBoard shows, by name."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(config.out / "tb"), {"scalars": 0})
    events.Reload()
    return {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


def curve(rows: list[dict[str, Any]], name: str) -> list[tuple[int, float]]:
    return [(row["step"], pytest.approx(row[name], rel=1e-6)) for row in rows if name in row]


def test_tensorboard_shows_the_rows_that_the_log_shows(tiny_config: MakeConfig) -> None:
    pytest.importorskip("tensorboard")
    config = tiny_config(trackers=("tensorboard",), log_every=4)
    train(config)
    events, rows = read_events(config), logged_rows(config)
    assert events.keys() == {name for row in rows for name in row if name != "step"}
    for name in events:
        assert events[name] == curve(rows, name), name


@pytest.mark.parametrize("step", [5, 9])
def test_resumed_run_goes_on_in_tensorboard_with_every_step_once(
    tiny_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    pytest.importorskip("tensorboard")
    config = tiny_config(trackers=("tensorboard",), log_every=1)
    train_until(config, step, monkeypatch)
    train(config, resume=True)
    assert len(list((config.out / "tb").iterdir())) == 2
    events, rows = read_events(config), logged_rows(config)
    for name in ("loss", "val_loss", "learning_rate", "val_bits_per_byte"):
        assert events[name] == curve(rows, name), name


def test_wandb_itself_works_without_a_network(
    tiny_config: MakeConfig,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = tiny_config(trackers=("wandb",))
    train_until(config, 9, monkeypatch)
    train(config, resume=True)
    assert "failed and is left out" not in capsys.readouterr().err
    run_id = (config.out / "wandb_id").read_text()
    files = list((config.out / "wandb").glob("offline-run-*/*.wandb"))
    assert [file.name for file in files] == [f"run-{run_id}.wandb"] * 2
