"""A run that is stopped, killed or damaged and resumed equals the unbroken one, bit for bit."""

import hashlib
import itertools
import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rslm import checkpoint
from rslm import train as loop
from rslm.checkpoint import list_checkpoints, newest_checkpoint
from rslm.config import read_config, to_toml
from rslm.errors import FormatError
from rslm.run_folder import read_metrics
from rslm.run_log import CLOCK_KEYS
from rslm.train import train
from rslm.train_config import OptimizerConfig, TrainConfig

MakeConfig = Callable[..., TrainConfig]
SLOW_PARTS = {"peak_flops": lambda *_: 1e12, "write_loss_curve": lambda *_: None}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, stand_in in SLOW_PARTS.items():
        monkeypatch.setattr(loop, name, stand_in)
    # Killing a process, unlike a power cut, loses nothing that was written.
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture(scope="module")
def processes() -> Any:
    """Starts processes by forking one that has loaded torch and done nothing else."""
    context = multiprocessing.get_context("forkserver")
    # The first optimizer step would load dynamo, which takes longer than a whole run here.
    context.set_forkserver_preload(["rslm.train", "torch._dynamo"])
    return context


def kill_at(point: int) -> None:
    """Makes the process kill itself before its `point`-th rename, sync or tensor file."""
    calls = 0

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == point:
                if function is save_file:
                    Path(args[1]).write_bytes(b"half a file")
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **options)

        return call

    save_file = checkpoint.save_file
    checkpoint.save_file = counted(save_file)
    for name in ("fsync", "rename", "replace"):
        setattr(os, name, counted(getattr(os, name)))


def pause_at_each_step(seconds: float) -> None:
    """Makes sure that a run lasts as long as it takes to kill it."""
    take = loop.sample_batch

    def sample_batch(*args: Any, **options: Any) -> Any:
        time.sleep(seconds)
        return take(*args, **options)

    loop.sample_batch = sample_batch


def child(config_file: Path, point: int | None, pause: float) -> None:
    """A run in a process of its own."""
    for name, stand_in in SLOW_PARTS.items():
        setattr(loop, name, stand_in)
    os.fsync = lambda _: None
    pause_at_each_step(pause)
    if point is not None:
        kill_at(point)
    train(read_config(TrainConfig, config_file), resume=True)


def start(
    processes: Any, config: TrainConfig, *, point: int | None = None, pause: float = 0.0
) -> Any:
    file = config.out.with_suffix(".toml")
    file.write_text(to_toml(config))
    process = processes.Process(target=child, args=(file, point, pause))
    process.start()
    return process


def outcome(run: Path) -> tuple[Any, ...]:
    """What must not depend on interruptions: all but clocks, and checkpoints of other steps."""
    newest, rejected = newest_checkpoint(run / "checkpoints")
    assert newest is not None
    assert not rejected
    tensors = [(newest / name).read_bytes() for name in (checkpoint.MODEL, checkpoint.OPTIM)]
    rows = read_metrics(run / "metrics.jsonl")
    timeless = [{k: v for k, v in row.items() if k not in CLOCK_KEYS} for row in rows]
    return newest.name, tensors, timeless, (run / "samples.md").read_text()


@pytest.fixture
def unbroken(tiny_config: MakeConfig, tmp_path: Path) -> tuple[Any, ...]:
    train(tiny_config(out=tmp_path / "unbroken"))
    return outcome(tmp_path / "unbroken")


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, number: signal.Signals) -> None:
    """Sends a signal during the update `step`."""
    take = loop.sample_batch

    def sample_batch(*args: Any, **options: Any) -> Any:
        if options["step"] + 1 == step:
            os.kill(os.getpid(), number)
        return take(*args, **options)

    monkeypatch.setattr(loop, "sample_batch", sample_batch)


def test_run_killed_anywhere_in_its_writing_resumes_to_the_same_bits(
    processes: Any, tiny_config: MakeConfig, tmp_path: Path, unbroken: tuple[Any, ...]
) -> None:
    # Of 55 places, all those of the third checkpoint, which removes the first, and some others.
    third = range(32, 44)
    others = random.Random(3).sample(sorted(set(range(1, 56)) - set(third)), 5)
    for point in (*third, *others):
        config = tiny_config(out=tmp_path / f"at_{point}")
        process = start(processes, config, point=point)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        train(config, resume=True)
        assert outcome(config.out) == unbroken, f"killed at {point}"


def test_run_killed_at_random_times_again_and_again(
    processes: Any, tiny_config: MakeConfig, tmp_path: Path
) -> None:
    longer = {"n_steps": 120, "checkpoint_every": 3, "validate_every": 20}
    whole = tiny_config(out=tmp_path / "unbroken", **longer)
    train(whole)
    config = tiny_config(**longer)
    delays = random.Random(7)
    n_killed = 0
    for _ in range(12):
        process = start(processes, config, pause=0.01)
        process.join(delays.uniform(0.05, 0.5))
        if process.exitcode is not None:
            break
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        n_killed += 1
    # 120 pauses are 1.2 seconds, so two processes cannot have finished.
    assert n_killed >= 2
    train(config, resume=True)
    assert outcome(config.out) == outcome(whole.out)


@pytest.mark.parametrize(
    ("number", "reason"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")]
)
def test_signal_finishes_the_step_saves_and_says_so(
    tiny_config: MakeConfig,
    unbroken: tuple[Any, ...],
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    reason: str,
) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, 7, number)
        result = train(tiny_config())
    assert (result.reason, result.step) == (reason, 7)
    assert list_checkpoints(tiny_config().out / "checkpoints")[-1].name == "step_00000007"
    assert train(tiny_config(), resume=True).reason == "finished"
    assert outcome(tiny_config().out) == unbroken


def test_signal_where_validation_is_due_puts_it_off(
    tiny_config: MakeConfig, unbroken: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, 10, signal.SIGTERM)
        train(tiny_config())
    train(tiny_config(), resume=True)
    assert outcome(tiny_config().out) == unbroken


@pytest.mark.parametrize("step", [5, 20])
def test_signal_during_validation_saves_and_repeats_it(
    tiny_config: MakeConfig,
    unbroken: tuple[Any, ...],
    monkeypatch: pytest.MonkeyPatch,
    step: int,
) -> None:
    evaluate, n_calls = loop.evaluate_loss, 0

    def evaluate_loss(*args: Any, **options: Any) -> Any:
        nonlocal n_calls
        n_calls += 1
        if n_calls * 5 == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "evaluate_loss", evaluate_loss)
        result = train(tiny_config())
    assert (result.reason, result.step) == ("terminated", step)
    train(tiny_config(), resume=True)
    assert outcome(tiny_config().out) == unbroken


def test_resuming_twice_and_over_an_epoch(
    tiny_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 20 steps of 160 windows go through the 2,000 or so windows of the data more than once.
    large = {"batch_size": 160}
    train(tiny_config(out=tmp_path / "unbroken", **large))
    for step in (7, 15):
        with monkeypatch.context() as patch:
            stop_at(patch, step, signal.SIGTERM)
            result = train(tiny_config(**large), resume=True)
        assert result.step == step
    train(tiny_config(**large), resume=True)
    assert outcome(tiny_config().out) == outcome(tmp_path / "unbroken")


def test_elapsed_seconds_go_on(tiny_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, 7, signal.SIGTERM)
        train(tiny_config())
    time.sleep(0.2)
    train(tiny_config(), resume=True)
    times = [row["elapsed_seconds"] for row in read_metrics(tiny_config().out / "metrics.jsonl")]
    assert times == sorted(times)
    # The pause between is not the run's.
    assert max(b - a for a, b in itertools.pairwise(times)) < 0.2


def damage(path: Path) -> None:
    data = bytearray((path / checkpoint.MODEL).read_bytes())
    data[-5] ^= 4
    (path / checkpoint.MODEL).write_bytes(data)


def test_damaged_newest_checkpoint_is_named_and_put_aside(
    tiny_config: MakeConfig, unbroken: tuple[Any, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config()
    train(config)
    folder = config.out / "checkpoints"
    damage(list_checkpoints(folder)[-1])
    capsys.readouterr()
    train(config, resume=True)
    said = capsys.readouterr().err
    assert "rejected a checkpoint" in said
    assert "step_00000020/model.safetensors is damaged" in said
    assert "resuming from" in said
    assert "step_00000018" in said
    assert (folder / "rejected_step_00000020").exists()
    assert outcome(config.out) == unbroken


def test_no_good_checkpoint_left_is_an_error_that_touches_nothing(tiny_config: MakeConfig) -> None:
    config = tiny_config()
    train(config)
    for path in list_checkpoints(config.out / "checkpoints"):
        damage(path)
    before = (config.out / "metrics.jsonl").read_bytes()
    with pytest.raises(FormatError, match=r"no checkpoint in .* is good") as error:
        train(config, resume=True)
    assert "step_00000018" in str(error.value)
    assert (config.out / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((key, value) for key in ("metrics_bytes", "samples_bytes") for value in (-1, 1.5, None)),
        *[("step", -1), ("step", 21), ("step", "20")],
        *[("elapsed_seconds", -1), ("elapsed_seconds", float("nan")), ("elapsed_seconds", [])],
        *[("data", None), ("data", [])],
    ],
)
def test_a_state_edited_together_with_its_hash_is_a_format_error(
    key: str, value: object, tiny_config: MakeConfig
) -> None:
    config = tiny_config()
    train(config)
    newest = list_checkpoints(config.out / "checkpoints")[-1]
    state = json.loads((newest / checkpoint.STATE).read_text()) | {key: value}
    (newest / checkpoint.STATE).write_text(json.dumps(state))
    manifest = newest / checkpoint.MANIFEST
    digest = hashlib.sha256((newest / checkpoint.STATE).read_bytes()).hexdigest()
    lines = manifest.read_text().splitlines()
    edited = [
        f"{digest}  {checkpoint.STATE}" if checkpoint.STATE in line else line for line in lines
    ]
    manifest.write_text("\n".join(edited) + "\n")
    before = (config.out / "metrics.jsonl").read_bytes()
    with pytest.raises(FormatError, match=rf"state\.json.*{key}"):
        train(config, resume=True)
    assert (config.out / "metrics.jsonl").read_bytes() == before


def test_finished_run_resumed_stays_as_it_is(
    tiny_config: MakeConfig, unbroken: tuple[Any, ...]
) -> None:
    train(tiny_config())
    assert train(tiny_config(), resume=True).reason == "finished"
    assert outcome(tiny_config().out) == unbroken


def test_resume_refuses_other_options_and_other_data(
    tiny_config: MakeConfig, tmp_path: Path, byte_tokenizer: Any
) -> None:
    config = tiny_config()
    train(config)
    with pytest.raises(ValueError, match="n_steps must stay 20 when a run is resumed, got 30"):
        train(replace(config, n_steps=30), resume=True)
    hotter = replace(config, optimizer=OptimizerConfig(learning_rate=2e-2, warmup_steps=4))
    with pytest.raises(ValueError, match=r"optimizer.learning_rate must stay 0.01"):
        train(hotter, resume=True)
    (tmp_path / "other.txt").write_text("another text " * 100)
    byte_tokenizer.encode_files([tmp_path / "other.txt"], tmp_path / "other")
    data = replace(config.data, train=tmp_path / "other")
    with pytest.raises(ValueError, match="the data must be what the run began with"):
        train(replace(config, data=data), resume=True)
    assert read_config(TrainConfig, config.out / "config.toml").data == config.data


def test_resume_takes_moved_data_and_smaller_micro_batches(
    tiny_config: MakeConfig, tmp_path: Path, token_files: tuple[Path, Path]
) -> None:
    config = tiny_config()
    train(config)
    (tmp_path / "moved").symlink_to(token_files[0])
    moved = replace(config, data=replace(config.data, train=tmp_path / "moved"))
    result = train(replace(moved, micro_batch_size=2, log_every=3), resume=True)
    assert result.reason == "finished"
    assert read_config(TrainConfig, config.out / "config.toml").micro_batch_size == 2


def test_full_disk_during_a_checkpoint_loses_nothing(
    tiny_config: MakeConfig, unbroken: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file, n_calls = checkpoint.save_file, 0

    def fail(*args: Any) -> None:
        nonlocal n_calls
        n_calls += 1
        if n_calls == 4:
            raise checkpoint.SafetensorError("No space left on device")
        save_file(*args)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", fail)
        with pytest.raises(OSError, match="No space left on device"):
            train(tiny_config())
    assert [p.name for p in (tiny_config().out / "checkpoints").iterdir()] == ["step_00000006"]
    train(tiny_config(), resume=True)
    assert outcome(tiny_config().out) == unbroken
