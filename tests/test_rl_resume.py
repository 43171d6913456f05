"""A run of reinforcement learning that is stopped, killed or damaged equals the unbroken one."""

import multiprocessing
import os
import random
import re
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import kill_points
import pytest
from rl_runs import make_base, make_task, outcome, rl_config

from rslm import checkpoint
from rslm.config import read_config, to_toml
from rslm.post import rl, rl_replay, rl_update
from rslm.post.rl_config import RlConfig
from rslm.post.rl_rollouts import rollouts_file

N_PLACES = 106
"""Places at which `kill_at` can kill the run of `make`."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rl")
    make_base(folder / "base", n_steps=0)
    make_task(folder / "task.jsonl")
    return folder


@pytest.fixture
def make(folder: Path, tmp_path: Path) -> Callable[..., RlConfig]:
    options: dict[str, Any] = {
        "n_steps": 6,
        "checkpoint_every": 2,
        "evaluate_every": 3,
        "n_evaluation_prompts": 2,
        "n_evaluation_samples": 2,
        "rewards": ("random",),
        "minibatches_per_rollout": 2,
        "epochs_per_rollout": 2,
    }
    return lambda **changes: rl_config(folder, **(options | {"out": tmp_path / "run"} | changes))


def make_quick() -> None:
    rl_update_module = __import__("rslm.post.update", fromlist=["_"])
    setup_module = __import__("rslm.post.setup", fromlist=["_"])
    rl_update_module.write_curve = lambda *_: None
    setup_module.peak_flops = lambda *_: 1e12


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rslm.post.setup.peak_flops", lambda *_: 1e12)
    monkeypatch.setattr("rslm.post.update.write_curve", lambda *_: None)


@pytest.fixture(scope="module")
def processes() -> Any:
    """Starts processes by forking one that has loaded torch and done nothing else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["rslm.post.rl", "torch._dynamo"])
    return context


def kill_at(point: int) -> None:
    """Makes the process kill itself before its `point`-th rename, sync, sampling or update."""
    parts = ((checkpoint, "save_file"), (rl_update, "update_on"), (rl, "collect_rollouts"))
    kill_points.kill_at(point, [*kill_points.FILE_CALLS, *parts])


def child(config_file: Path, point: int | None, pause: float) -> None:
    """A run in a process of its own."""
    make_quick()
    update = rl_update.update_on

    def slow_update(*args: Any, **options: Any) -> Any:
        time.sleep(pause)
        return update(*args, **options)

    rl_update.update_on = slow_update
    if point is not None:
        os.fsync = lambda _: None
        kill_at(point)
    rl.train(read_config(RlConfig, config_file), resume=True)


def start(processes: Any, config: RlConfig, *, point: int | None = None, pause: float = 0.0) -> Any:
    file = config.out.with_suffix(".toml")
    file.write_text(to_toml(config))
    process = processes.Process(target=child, args=(file, point, pause))
    process.start()
    return process


def die_at(processes: Any, config: RlConfig, point: int) -> None:
    process = start(processes, config, point=point)
    process.join()
    assert process.exitcode == -signal.SIGKILL


@pytest.fixture
def unbroken(make: Callable[..., RlConfig], tmp_path: Path) -> tuple[Any, ...]:
    config = make(out=tmp_path / "unbroken")
    rl.train(config)
    return outcome(config.out)


def test_run_killed_in_its_updates_resumes_to_the_same_bits(
    processes: Any, make: Callable[..., RlConfig], unbroken: tuple[Any, ...]
) -> None:
    config = make()
    for point in (30, 37):
        die_at(processes, config, point)
    rl.train(config, resume=True)
    assert outcome(config.out) == unbroken


@pytest.mark.slow
def test_run_killed_anywhere_resumes_to_the_same_bits(
    processes: Any, make: Callable[..., RlConfig], tmp_path: Path, unbroken: tuple[Any, ...]
) -> None:
    points = random.Random(5).sample(range(1, N_PLACES + 1), 20)
    for point in points:
        config = make(out=tmp_path / f"at_{point}")
        die_at(processes, config, point)
        rl.train(config, resume=True)
        assert outcome(config.out) == unbroken, f"killed at {point}"


@pytest.mark.slow
def test_run_killed_at_random_times_again_and_again(
    processes: Any, make: Callable[..., RlConfig], tmp_path: Path
) -> None:
    longer = {"n_steps": 60, "evaluate_every": 20}
    whole = make(out=tmp_path / "unbroken", **longer)
    rl.train(whole)
    config = make(**longer)
    delays = random.Random(7)
    n_killed = 0
    for _ in range(20):
        process = start(processes, config, pause=0.02)
        process.join(delays.uniform(0.5, 2.0))
        if process.exitcode is not None:
            break
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        n_killed += 1
    # 240 pauses are 4.8 seconds, so two processes cannot have finished.
    assert n_killed >= 2
    rl.train(config, resume=True)
    assert outcome(config.out) == outcome(whole.out)


@pytest.mark.parametrize(
    ("number", "reason"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")]
)
@pytest.mark.parametrize("place", ["collect_rollouts", "make_updates"])
def test_signal_ends_a_run_that_can_go_on(
    make: Callable[..., RlConfig],
    unbroken: tuple[Any, ...],
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    reason: str,
    place: str,
) -> None:
    done, n_calls = getattr(rl, place), 0

    def signalled(*args: Any) -> Any:
        nonlocal n_calls
        n_calls += 1
        if n_calls == 4:
            os.kill(os.getpid(), number)
        return done(*args)

    with monkeypatch.context() as patch:
        patch.setattr(rl, place, signalled)
        result = rl.train(make())
    # Sampling is kept for the resumption; updates that were begun are finished.
    made = 3 if place == "collect_rollouts" else 4
    assert (result.reason, result.step) == (reason, made)
    assert rl.train(make(), resume=True).reason == "finished"
    assert outcome(make().out) == unbroken


def test_rollouts_that_are_there_are_not_drawn_again(
    make: Callable[..., RlConfig], monkeypatch: pytest.MonkeyPatch, unbroken: tuple[Any, ...]
) -> None:
    config = make()
    rl.train(config, stop_at=4)
    rl.train(config, resume=True, stop_at=5)
    # As if the run had been killed in the updates of step 5.
    for name in ("step_00000005", "best"):
        checkpoint.set_aside(config.out / "checkpoints" / name, "tmp_old")
    monkeypatch.setattr(rl, "collect_rollouts", None)
    rl.train(config, resume=True, stop_at=5)
    monkeypatch.undo()
    make_quick()
    rl.train(config, resume=True)
    assert outcome(config.out) == unbroken


STRANGE = ["cut", "empty", "of another step", "of other weights"]
STRANGE += ["unknown id", "too long", "groups mixed up"]


@pytest.mark.parametrize("damage", STRANGE)
def test_rollouts_that_are_damaged_or_strange_are_drawn_again(
    make: Callable[..., RlConfig], tmp_path: Path, unbroken: tuple[Any, ...], damage: str
) -> None:
    config = make()
    rl.train(config, stop_at=4)
    right = rollouts_file(tmp_path / "unbroken", 5).read_bytes()
    lines = right.splitlines(keepends=True)
    strange = {
        "unknown id": re.sub(rb'"token_ids": \[[0-9]+', b'"token_ids": [262', right, count=1),
        "too long": right.replace(b'"prompt_ids": [', b'"prompt_ids": [' + 32 * b"0, ", 1),
        "groups mixed up": b"".join([*lines[::2], *lines[1::2]]),
        "cut": right[:-9],
        "empty": b"",
        "of another step": rollouts_file(config.out, 4).read_bytes(),
        "of other weights": re.sub(
            rb'"weights_hash": "[0-9a-f]+"',
            b'"weights_hash": "00"',
            right.replace(b'"reward": 0.0', b'"reward": 1.0'),
        ),
    }
    rollouts_file(config.out, 5).write_bytes(strange[damage])
    rl.train(config, resume=True)
    assert outcome(config.out) == unbroken


def test_options_of_the_algorithm_stay_when_a_run_goes_on(make: Callable[..., RlConfig]) -> None:
    rl.train(make(), stop_at=2)
    for changes in ({"group_size": 2}, {"kl_coefficient": 0.1}, {"ratio": "none"}, {"n_steps": 9}):
        with pytest.raises(ValueError, match=f"^{next(iter(changes))} must stay"):
            rl.train(make(**changes), resume=True)
    rl.train(make(checkpoint_every=1, max_mismatch=0.2), resume=True, stop_at=3)


@pytest.mark.parametrize("step", [1, 4])
def test_replay_makes_the_same_weights_without_sampling(
    make: Callable[..., RlConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    config = make(checkpoint_every=1, keep_checkpoints=9)
    rl.train(config)
    monkeypatch.setattr(rl, "collect_rollouts", None)
    again = replace(config, out=tmp_path / "again")
    replayed = rl_replay.replay(again, rollouts_file(config.out, step))
    assert replayed.is_same is True
    assert replayed.result.step == step
    other = replace(config, out=tmp_path / "other", ratio="none", epochs_per_rollout=1)
    assert rl_replay.replay(other, rollouts_file(config.out, step)).is_same is False


def test_replay_refuses_what_it_cannot_repeat(
    make: Callable[..., RlConfig], tmp_path: Path
) -> None:
    config = make()
    rl.train(config)
    again = replace(config, out=tmp_path / "again")
    with pytest.raises(FileNotFoundError, match="must have a checkpoint of step 1 to replay"):
        rl_replay.replay(again, rollouts_file(config.out, 2))
    with pytest.raises(ValueError, match=r"replay must be given RUN/rollouts/step_N\.jsonl"):
        rl_replay.replay(again, config.out / "metrics.jsonl")
    rollouts_file(config.out, 1).write_bytes(rollouts_file(config.out, 5).read_bytes())
    with pytest.raises(ValueError, match="rollouts to replay must be of this run's step 1"):
        rl_replay.replay(again, rollouts_file(config.out, 1))
    assert not again.out.exists()
