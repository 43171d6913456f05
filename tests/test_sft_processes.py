"""Fine-tuning in processes of its own: killed and resumed, and two that do what one does."""

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import kill_points
import pytest
import torch
from processes import CONTEXT, join_all, run_each, start_each
from sft_chats import outcome, skip_slow_parts, tiny_sft

from rslm import checkpoint
from rslm.checkpoint import newest_checkpoint, read_safetensors
from rslm.config import read_config, to_toml
from rslm.post import sft as loop
from rslm.post.sft import sft
from rslm.post.sft_config import SftConfig
from rslm.run_folder import read_metrics

# Processes that wait for each other must not wait for ever.
pytestmark = pytest.mark.timeout(120)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    skip_slow_parts(monkeypatch.setattr)


def kill_at(point: int) -> None:
    """Makes the process kill itself before its `point`-th rename, sync, file or update."""
    parts = ((loop, name) for name in ("weighted_loss", "write_chats", "generate"))
    kill_points.kill_at(point, [(checkpoint, "save_file"), *kill_points.FILE_CALLS, *parts])


def child(config_file: Path, point: int | None, pause: float) -> None:
    torch.set_num_threads(1)
    skip_slow_parts()
    if point is not None:
        kill_at(point)
    real = loop.next_batch

    def next_batch(run: Any, data: Any) -> Any:
        time.sleep(pause)
        return real(run, data)

    loop.next_batch = next_batch
    sft(read_config(SftConfig, config_file), resume=True)


def start(config: SftConfig, *, point: int | None = None, pause: float = 0.0) -> Any:
    file = config.out.with_suffix(".toml")
    file.write_text(to_toml(config))
    process = CONTEXT.Process(target=child, args=(file, point, pause))
    process.start()
    return process


def test_killed_anywhere_goes_on_to_the_same_bits(tmp_path: Path):
    unbroken = tiny_sft(tmp_path, out=tmp_path / "unbroken")
    sft(unbroken)
    expected = outcome(unbroken.out)
    # There are about 120 places; early ones lie before the first checkpoint.
    for point in [3, 12, 25, *random.Random(0).sample(range(30, 110), 5)]:
        config = tiny_sft(tmp_path, out=tmp_path / f"at_{point}")
        process = start(config, point=point)
        process.join()
        assert process.exitcode == -signal.SIGKILL, point
        sft(config, resume=True)
        assert outcome(config.out) == expected, f"killed at {point}"


@pytest.mark.slow  # Dozens of kills of a run that is held up.
def test_killed_at_random_times_again_and_again(tmp_path: Path):
    options: dict[str, Any] = {"n_steps": 40, "checkpoint_every": 3, "validate_every": 7}
    unbroken = tiny_sft(tmp_path, out=tmp_path / "unbroken", **options)
    sft(unbroken)
    config = tiny_sft(tmp_path, **options)
    draw, n_kills = random.Random(1), 0
    while n_kills < 40:
        # A life of the run is far shorter than its pauses together, on any machine.
        process = start(config, pause=0.1)
        process.join(draw.uniform(0.2, 0.9))
        if process.exitcode is not None:
            break
        process.kill()
        process.join()
        n_kills += 1
    process.join()
    assert n_kills > 2
    sft(config, resume=True)
    assert outcome(config.out) == outcome(unbroken.out)


def sft_here(file: Path) -> tuple[str, int]:
    skip_slow_parts()
    result = sft(read_config(SftConfig, file))
    return result.reason, result.step


@pytest.mark.parametrize("packing", ["best-fit", "none"])
@pytest.mark.parametrize("aggregation", ["token", "sequence"])
def test_two_processes_do_what_one_does(tmp_path: Path, packing: Any, aggregation: Any):
    options: dict[str, Any] = {
        "packing": packing,
        "aggregation": aggregation,
        # Of the last batch of an epoch one process gets a row more, or one gets none.
        "batch_size": 3,
        "n_epochs": 1.0,
        "micro_batch_size": 1 if packing == "none" else None,
        "validate_every": 4,
    }
    alone = tiny_sft(tmp_path, out=tmp_path / "alone", **options)
    result = sft(alone)
    together = tiny_sft(tmp_path, parallel="ddp", **options)
    file = tmp_path / "config.toml"
    file.write_text(to_toml(together))
    assert run_each(sft_here, file) == [("finished", result.step)] * 2
    rows, wanted = (read_metrics(run / "metrics.jsonl") for run in (together.out, alone.out))
    assert len(rows) == len(wanted)
    for row, other in zip(rows, wanted, strict=True):
        for key in ("loss", "val_loss", "grad_norm", "n_trained_tokens", "n_tokens"):
            assert row.get(key) == (other.get(key) and pytest.approx(other[key], rel=1e-6)), key
    for found, expected in zip(weights(together.out), weights(alone.out), strict=True):
        # AdamW turns rounding of gradients near zero into steps of the rate's size.
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def weights(run: Path) -> list[torch.Tensor]:
    newest, _ = newest_checkpoint(run / "checkpoints")
    assert newest is not None
    return list(read_safetensors(newest / checkpoint.MODEL)[0].values())


def sft_with_signal(file: Path, number: signal.Signals, step: int) -> str:
    """Trains until a signal comes to the second process; how that ended."""
    skip_slow_parts()
    real = loop.next_batch

    def next_batch(run: Any, data: Any) -> Any:
        if run.step + 1 == step and run.processes.rank == 1:
            os.kill(os.getpid(), number)
        return real(run, data)

    loop.next_batch = next_batch
    try:
        result = sft(read_config(SftConfig, file), resume=True)
    except ConnectionError as error:
        return str(error)
    return f"{result.reason} at {result.step}"


def test_end_of_one_process_ends_the_other_and_nothing_is_lost(tmp_path: Path):
    unbroken = tiny_sft(tmp_path, out=tmp_path / "unbroken", parallel="ddp")
    config = tiny_sft(tmp_path, parallel="ddp")
    files = [tmp_path / f"{each.out.name}.toml" for each in (unbroken, config)]
    for file, each in zip(files, (unbroken, config), strict=True):
        file.write_text(to_toml(each))
    run_each(sft_here, files[0])
    assert run_each(sft_with_signal, files[1], signal.SIGTERM, 3) == ["terminated at 3"] * 2
    started = start_each(sft_with_signal, files[1], signal.SIGKILL, 7, n=2, folder=tmp_path)
    assert join_all(started) == [0, -signal.SIGKILL]
    assert torch.load(tmp_path / "0").startswith("process 0 lost another one")
    assert run_each(sft_with_signal, files[1], signal.SIGTERM, 99) == ["finished at 11"] * 2
    assert outcome(config.out) == outcome(unbroken.out)
