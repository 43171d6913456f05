"""A run that is stopped, killed or damaged and resumed equals the unbroken one, bit for bit."""

import errno
import itertools
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import kill_points
import numpy as np
import pytest

from rslm import checkpoint
from rslm import train as loop
from rslm.batches import count_samples, sample_batch
from rslm.checkpoint import list_checkpoints, newest_checkpoint
from rslm.cli import main
from rslm.config import read_config, to_toml
from rslm.errors import FormatError
from rslm.run_folder import read_metrics
from rslm.run_log import CLOCK_KEYS
from rslm.token_file import TokenFile
from rslm.train import train
from rslm.train_config import OptimizerConfig, TrainConfig

pytestmark = pytest.mark.usefixtures("quick")

MakeConfig = Callable[..., TrainConfig]
SLOW_PARTS = {"peak_flops": lambda *_: 1e12, "write_loss_curve": lambda *_: None}


@pytest.fixture(scope="module")
def processes() -> Any:
    """Starts processes by forking one that has loaded torch and done nothing else."""
    context = multiprocessing.get_context("forkserver")
    # The first optimizer step would load dynamo, which takes longer than a whole run here.
    context.set_forkserver_preload(["rslm.train", "torch._dynamo"])
    return context


def kill_at(point: int) -> None:
    """Makes the process kill itself before its `point`-th rename, sync or tensor file."""

    def leave_half(name: str, args: tuple[Any, ...]) -> None:
        if name == "save_file":
            Path(args[1]).write_bytes(b"half a file")

    places = [(checkpoint, "save_file"), *kill_points.FILE_CALLS]
    kill_points.kill_at(point, places, last_act=leave_half)


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
    # Of 98 places, all those of the third checkpoint, which becomes the best and so removes the
    # first, and some others.
    third = range(36, 49)
    others = random.Random(3).sample(sorted(set(range(1, 99)) - set(third)), 5)
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


def damage(path: Path, name: str = checkpoint.MODEL) -> None:
    data = bytearray((path / name).read_bytes())
    data[-5] ^= 4
    (path / name).write_bytes(data)


def truncate(path: Path, name: str) -> None:
    os.truncate(path / name, (path / name).stat().st_size // 2)


def remove(path: Path, name: str) -> None:
    (path / name).unlink()


@pytest.mark.parametrize(
    "name", [checkpoint.MODEL, checkpoint.OPTIM, checkpoint.STATE, checkpoint.MANIFEST]
)
@pytest.mark.parametrize("harm", [damage, truncate, remove])
def test_damaged_newest_checkpoint_is_named_and_put_aside(
    tiny_config: MakeConfig,
    unbroken: tuple[Any, ...],
    capsys: pytest.CaptureFixture[str],
    name: str,
    harm: Callable[[Path, str], None],
) -> None:
    config = tiny_config()
    train(config)
    folder = config.out / "checkpoints"
    harm(list_checkpoints(folder)[-1], name)
    capsys.readouterr()
    train(config, resume=True)
    said = capsys.readouterr().err
    assert said.count("rejected a checkpoint") == 1
    assert f"step_00000020/{name}" in said
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
    folder = tiny_config().out / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["best", "step_00000005"]
    train(tiny_config(), resume=True)
    assert outcome(tiny_config().out) == unbroken


def limited_child(config_file: Path, n_bytes: int) -> None:
    """A run that may write no file larger than `n_bytes`; its exit code is the command's."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))
    sys.exit(main(["train", "--resume", "--config", str(config_file)]))


def test_disk_that_refuses_a_checkpoint_ends_the_command_with_1(
    processes: Any, tiny_config: MakeConfig, unbroken: tuple[Any, ...], monkeypatch: Any
) -> None:
    config = tiny_config()
    with monkeypatch.context() as patch:
        stop_at(patch, 7, signal.SIGTERM)
        train(config)
    folder = config.out / "checkpoints"
    before = sorted(path.name for path in folder.iterdir())
    newest = list_checkpoints(folder)[-1]
    sizes = [(newest / name).stat().st_size for name in (checkpoint.MODEL, checkpoint.OPTIM)]
    file = config.out.with_suffix(".toml")
    file.write_text(to_toml(config))
    # The weights go through, the optimizer's state does not.
    process = processes.Process(target=limited_child, args=(file, sum(sizes) // 2))
    process.start()
    process.join()
    assert process.exitcode == 1
    assert sorted(path.name for path in folder.iterdir()) == before
    train(config, resume=True)
    assert outcome(config.out) == unbroken


def test_twenty_steps_are_seven_and_a_kill_and_thirteen(
    processes: Any, tiny_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = {"checkpoint_every": 7, "validate_every": 20, "sample_every": 20}
    whole, config = tiny_config(out=tmp_path / "unbroken", **every), tiny_config(**every)
    train(whole)
    file = config.out.with_suffix(".toml")
    file.write_text(to_toml(config))
    process = processes.Process(target=killed_child, args=(file, 7))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    steps = steps_made(monkeypatch)
    train(config, resume=True)
    assert steps == list(range(7, 20))
    assert outcome(config.out) == outcome(whole.out)


def killed_child(config_file: Path, step: int) -> None:
    """A run that kills itself when the checkpoint of a step is whole, within the next step."""
    take, config = loop.sample_batch, read_config(TrainConfig, config_file)

    def sample_batch(*args: Any, **options: Any) -> Any:
        while options["step"] == step:
            if checkpoint.step_folder(config.out / "checkpoints", step).exists():
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(0.001)
        return take(*args, **options)

    loop.sample_batch = sample_batch
    for name, stand_in in SLOW_PARTS.items():
        setattr(loop, name, stand_in)
    train(config)


def steps_made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the number of each step, counted from 0, whose batch is read from now on."""
    take, steps = loop.sample_batch, []

    def sample_batch(*args: Any, **options: Any) -> Any:
        steps.append(options["step"])
        return take(*args, **options)

    monkeypatch.setattr(loop, "sample_batch", sample_batch)
    return steps


@pytest.mark.parametrize("step", [6, 7, 8, 14])
def test_resuming_on_the_border_of_an_epoch_and_beside_it(
    tiny_config: MakeConfig,
    tmp_path: Path,
    byte_tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
) -> None:
    # 28 windows of 16 tokens are 7 batches of 4.
    text = "".join(random.Random(1).choices("abc de.", k=452))
    (tmp_path / "small.txt").write_text(text)
    byte_tokenizer.encode_files([tmp_path / "small.txt"], tmp_path / "small")
    assert count_samples(len(TokenFile.open(tmp_path / "small")), 16) == 28
    data = replace(tiny_config().data, train=tmp_path / "small")
    whole, config = tiny_config(out=tmp_path / "unbroken", data=data), tiny_config(data=data)
    train(whole)
    with monkeypatch.context() as patch:
        stop_at(patch, step, signal.SIGTERM)
        assert train(config).step == step
    train(config, resume=True)
    assert outcome(config.out) == outcome(whole.out)


def windows_read(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Grows by each batch that is read from now on."""
    take, windows = loop.sample_batch, []

    def sample_batch(*args: Any, **options: Any) -> Any:
        windows.append(take(*args, **options))
        return windows[-1]

    monkeypatch.setattr(loop, "sample_batch", sample_batch)
    return windows


def test_batch_size_changed_at_a_resumption_goes_on_in_order(
    tiny_config: MakeConfig,
    token_files: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stopped(config: TrainConfig, step: int) -> None:
        with monkeypatch.context() as patch:
            stop_at(patch, step, signal.SIGTERM)
            assert train(config, resume=True).step == step

    small, large = tiny_config(), tiny_config(batch_size=6)
    straight = tiny_config(out=tmp_path / "straight")
    with monkeypatch.context() as patch:
        windows = windows_read(patch)
        stopped(straight, 7)
        train(replace(straight, batch_size=6), resume=True)
    # No sample twice, none left out: 7 batches of 4 and 13 of 6 are one of 106.
    one = {"seed": 0, "step": 0, "batch_size": 106, "context_length": 16}
    assert (np.concatenate(windows) == sample_batch(TokenFile.open(token_files[0]), **one)).all()
    rows = [row for row in read_metrics(straight.out / "metrics.jsonl") if "loss" in row]
    assert [row["n_tokens"] for row in rows] == [
        16 * (4 * min(step, 7) + 6 * max(step - 7, 0)) for step in range(1, 21)
    ]
    state = checkpoint.read_state(list_checkpoints(straight.out / "checkpoints")[-1])
    assert state["batch_sizes"] == [[0, 4], [7, 6]]
    assert state["n_tokens"] == rows[-1]["n_tokens"]
    assert read_config(TrainConfig, straight.out / "config.toml").batch_size == 6
    # With further stops, with the same batch size and at the same place, nothing changes.
    stopped(small, 3)
    stopped(small, 7)
    stopped(large, 9)
    stopped(large, 15)
    train(large, resume=True)
    assert outcome(large.out) == outcome(straight.out)


@pytest.mark.parametrize("n_updates", [6, 7])  # Where a checkpoint is due, and where none is.
def test_signal_within_a_batch_drops_it_and_reads_it_again(
    tiny_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_updates: int
) -> None:
    whole, config = (
        tiny_config(out=tmp_path / name, micro_batch_size=1) for name in ("unbroken", "run")
    )
    train(whole)
    cut, n_calls = loop.micro_batch, 0

    def micro_batch(*args: Any) -> Any:
        nonlocal n_calls
        n_calls += 1
        if n_calls == 4 * n_updates + 3:  # The third of 4 micro-batches.
            os.kill(os.getpid(), signal.SIGTERM)
        return cut(*args)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "micro_batch", micro_batch)
        result = train(config)
    assert (result.reason, result.step) == ("terminated", n_updates)
    assert n_calls == 4 * n_updates + 3
    train(config, resume=True)
    assert outcome(config.out) == outcome(whole.out)


def test_mixed_sources_are_resumed_exactly(
    tiny_config: MakeConfig,
    token_files: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    changes = {"mixed_in": (token_files[1],), "weights": (3.0, 1.0), "valid": None}
    data = replace(tiny_config().data, **changes)
    whole, config = tiny_config(out=tmp_path / "unbroken", data=data), tiny_config(data=data)
    train(whole)
    alone = tiny_config(out=tmp_path / "alone")
    train(alone)
    assert outcome(alone.out) != outcome(whole.out)
    with monkeypatch.context() as patch:
        stop_at(patch, 7, signal.SIGTERM)
        train(config)
    (tmp_path / "moved").symlink_to(token_files[1])
    moved = replace(data, mixed_in=(tmp_path / "moved",))
    train(replace(config, data=moved), resume=True)
    assert outcome(config.out) == outcome(whole.out)
    other = replace(data, train=token_files[1], mixed_in=(token_files[0],))
    with pytest.raises(ValueError, match="the data must be what the run began with"):
        train(replace(config, data=other), resume=True)
    with pytest.raises(ValueError, match=r"data.weights must stay"):
        train(replace(config, data=replace(data, weights=(1.0, 1.0))), resume=True)


def test_signal_within_the_first_batch_leaves_a_run_that_can_begin(
    tiny_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(micro_batch_size=1)
    with monkeypatch.context() as patch:
        stop_at(patch, 1, signal.SIGTERM)
        assert train(config).step == 0
    assert not list_checkpoints(config.out / "checkpoints")
    whole = tiny_config(out=tmp_path / "unbroken", micro_batch_size=1)
    train(whole)
    train(config, resume=True)
    assert outcome(config.out) == outcome(whole.out)


def test_training_goes_on_while_a_checkpoint_is_written(
    tiny_config: MakeConfig, unbroken: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    write, take = checkpoint.write_snapshot, loop.sample_batch
    made: list[int] = []
    seen: list[int] = []

    def sample_batch(*args: Any, **options: Any) -> Any:
        made.append(options["step"])
        return take(*args, **options)

    def write_snapshot(folder: Path, snapshot: Any, state: Any) -> Path:
        # Checkpoints are due at 6 and 10, so until step 9 nothing waits for this one.
        deadline = time.monotonic() + 30
        while state["step"] == 6 and made[-1] < 9 and time.monotonic() < deadline:
            time.sleep(0.001)
        seen.append(made[-1])
        return write(folder, snapshot, state)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_snapshot", write_snapshot)
        patch.setattr(loop, "sample_batch", sample_batch)
        train(tiny_config())
    # The second checkpoint is that of step 6; what it holds is step 6, as the outcome shows.
    assert seen[1] >= 9
    assert outcome(tiny_config().out) == unbroken


def test_one_copy_of_the_state_is_held_at_a_time(
    tiny_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, take = checkpoint.write_snapshot, checkpoint.take_snapshot
    written: list[int] = []
    taken: list[int] = []

    def write_snapshot(folder: Path, snapshot: Any, state: Any) -> Path:
        time.sleep(0.05)  # Longer than the step until the next checkpoint.
        path = write(folder, snapshot, state)
        written.append(state["step"])
        return path

    def take_snapshot(*args: Any) -> Any:
        taken.append(len(written))
        return take(*args)

    monkeypatch.setattr(checkpoint, "write_snapshot", write_snapshot)
    monkeypatch.setattr(checkpoint, "take_snapshot", take_snapshot)
    train(tiny_config(checkpoint_every=1, n_steps=8))
    assert taken == list(range(8))
    assert written == list(range(1, 9))


def test_checkpoint_written_beside_training_is_of_its_step(
    tiny_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = {"keep_checkpoints": 20}
    write = checkpoint.write_snapshot

    def late(*args: Any) -> Path:
        time.sleep(0.02)
        return write(*args)

    train(tiny_config(out=tmp_path / "prompt", **kept))
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_snapshot", late)
        train(tiny_config(**kept))
    for path in list_checkpoints(tmp_path / "prompt" / "checkpoints"):
        for name in (checkpoint.MODEL, checkpoint.OPTIM):
            twin = tiny_config().out / "checkpoints" / path.name / name
            assert twin.read_bytes() == (path / name).read_bytes()


def test_checkpoints_come_before_all_else_that_is_due(tiny_config: MakeConfig) -> None:
    config = tiny_config(keep_checkpoints=20)
    train(config)
    steps = [checkpoint.step_of(path) for path in list_checkpoints(config.out / "checkpoints")]
    assert steps == [5, 6, 10, 12, 15, 18, 20]
    data, out = replace(config.data, valid=None), config.out.with_name("unvalidated")
    unvalidated = replace(config, out=out, data=data)
    train(unvalidated)
    steps = [checkpoint.step_of(p) for p in list_checkpoints(unvalidated.out / "checkpoints")]
    assert steps == [6, 10, 12, 18, 20]


def test_checkpoints_come_by_the_minute_too(
    tiny_config: MakeConfig, unbroken: tuple[Any, ...], tmp_path: Path
) -> None:
    seldom = {"checkpoint_every": 100, "validate_every": 100, "sample_every": None}
    config = tiny_config(checkpoint_minutes=0.0, keep_checkpoints=20, **seldom)
    train(config)
    assert len(list_checkpoints(config.out / "checkpoints")) == 20
    never = replace(config, out=tmp_path / "never", checkpoint_minutes=float("inf"))
    train(never)
    assert len(list_checkpoints(never.out / "checkpoints")) == 1
    assert outcome(config.out) == outcome(never.out)


def test_sigterm_in_validation_is_exit_code_75_and_leaves_a_checkpoint(
    processes: Any, tiny_config: MakeConfig, unbroken: tuple[Any, ...]
) -> None:
    config = tiny_config()
    file = config.out.with_suffix(".toml")
    file.write_text(to_toml(config))
    process = processes.Process(target=child_told_to_stop_in_validation, args=(file,))
    process.start()
    process.join()
    assert process.exitcode == 75
    assert list_checkpoints(config.out / "checkpoints")[-1].name == "step_00000005"
    train(config, resume=True)
    assert outcome(config.out) == unbroken


def child_told_to_stop_in_validation(config_file: Path) -> None:
    """The command, whose first validation sends SIGTERM; its exit code is the process's."""
    evaluate = loop.evaluate_loss

    def evaluate_loss(*args: Any, **options: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*args, **options)

    loop.evaluate_loss = evaluate_loss
    sys.exit(main(["train", "--config", str(config_file)]))


def test_best_checkpoint_is_kept_over_stops(
    tiny_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = loop.evaluate_loss
    losses = iter([3.0, 1.0, 1.0, 2.0, 4.0, 5.0, 0.5])

    def evaluate_loss(*args: Any, **options: Any) -> Any:
        return replace(evaluate(*args, **options), loss=next(losses))

    monkeypatch.setattr(loop, "evaluate_loss", evaluate_loss)
    folder = tiny_config().out / "checkpoints"
    config = tiny_config(n_steps=30, keep_checkpoints=1)
    for step, best in ((6, 5), (13, 10), (18, 10), (23, 10)):
        with monkeypatch.context() as patch:
            stop_at(patch, step, signal.SIGTERM)
            train(config, resume=True)
        assert os.readlink(folder / "best") == f"step_{best:08d}"
        kept = [checkpoint.step_of(path) for path in list_checkpoints(folder)]
        assert kept == [best, step]
    train(config, resume=True)
    kept = [checkpoint.step_of(path) for path in list_checkpoints(folder)]
    assert kept == [10, 30]
    assert next(losses) == 0.5


def test_best_checkpoint_stays_where_a_better_one_cannot_be_written(
    tiny_config: MakeConfig, unbroken: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    write = checkpoint.write_snapshot

    def write_snapshot(folder: Path, snapshot: Any, state: Any) -> Path:
        if state["step"] == 10:
            time.sleep(0.3)  # So the validation of step 10, a better one, is over.
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(folder, snapshot, state)

    config = tiny_config(keep_checkpoints=1)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_snapshot", write_snapshot)
        with pytest.raises(OSError, match="No space left on device"):
            train(config)
    assert [row["step"] for row in read_metrics(config.out / "metrics.jsonl")].count(10) == 2
    folder = config.out / "checkpoints"
    assert [checkpoint.step_of(path) for path in list_checkpoints(folder)] == [5, 6]
    assert (folder / "best").resolve().name == "step_00000005"
    train(config, resume=True)
    assert outcome(config.out) == unbroken


def test_best_checkpoint_is_not_kept_where_that_is_not_wanted(tiny_config: MakeConfig) -> None:
    config = tiny_config(keep_best=False)
    train(config)
    names = sorted(path.name for path in (config.out / "checkpoints").iterdir())
    assert names == ["step_00000018", "step_00000020"]
