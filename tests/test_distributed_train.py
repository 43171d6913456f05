"""`train` with several gloo processes equals `train` with one."""

import json
import os
import re
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import (
    assert_same_run,
    free_port,
    run_each,
    run_processes,
    skip_slow_parts,
    train_here,
    write,
)
from torch import nn

from rslm import model
from rslm import train as loop
from rslm.config import read_config
from rslm.distributed import Processes, parallel, parallelize
from rslm.train import train
from rslm.train_config import TrainConfig

# Processes that wait for each other must not wait for ever.
pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("quick")]

MakeConfig = Callable[..., TrainConfig]


@pytest.fixture
def alone(tiny_config: MakeConfig, tmp_path: Path) -> Path:
    """The run of one process that accumulates two parts, as two processes sum two gradients."""
    config = tiny_config(out=tmp_path / "alone", micro_batch_size=2)
    train(config)
    return config.out


@pytest.mark.parametrize(
    ("kind", "tolerance"),
    [("ddp", 0), ("sharded", 0), ("torch-ddp", 0), ("fsdp", 1e-5), ("torch-fsdp2", 1e-5)],
)
def test_two_processes_train_what_one_does(
    tiny_config: MakeConfig, tmp_path: Path, alone: Path, kind: str, tolerance: float
):
    config = tiny_config(out=tmp_path / kind, parallel=kind)
    assert run_each(train_here, write(config), False) == [("finished", 20)] * 2
    assert_same_run(config.out, alone, tolerance)
    assert len(json.loads((config.out / "env.json").read_text())) == 1
    if tolerance == 0:
        samples = [(run / "samples.md").read_text() for run in (config.out, alone)]
        assert samples[0] == samples[1]


def wrap_strictly(processes: Processes) -> bool:
    warnings.simplefilter("error")
    model = nn.Linear(2, 2)
    wrapped = parallelize("torch-ddp", model, torch.optim.SGD(model.parameters()), processes)
    return bool(wrapped.forward.broadcast_buffers)


def train_in_chunks(config: Path) -> tuple[str, int]:
    """`train_here` where head and loss read 12 tokens at a time."""
    model.chunk_tokens = lambda *_: 12  # A process of its own, so nothing needs it back.
    return train_here(config, False)


@pytest.mark.parametrize(
    ("kind", "tolerance"),
    [("ddp", 0), ("torch-ddp", 0), ("fsdp", 1e-5), ("torch-fsdp2", 1e-5)],
)
def test_several_chunks_of_the_head_train_the_same_in_two_processes(
    tiny_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    tolerance: float,
):
    monkeypatch.setattr(model, "chunk_tokens", lambda *_: 12)
    alone = tiny_config(out=tmp_path / "alone", micro_batch_size=2)
    train(alone)
    config = tiny_config(out=tmp_path / kind, parallel=kind)
    assert run_each(train_in_chunks, write(config)) == [("finished", 20)] * 2
    assert_same_run(config.out, alone.out, tolerance)


def test_torch_ddp_does_not_warn_and_sends_no_buffers():
    assert run_processes(wrap_strictly) == [False, False]


class OldWrapper:
    """The arguments of PyTorch 2.8's."""

    def __init__(self, module: object, *, broadcast_buffers: bool = True) -> None:
        self.broadcast_buffers = broadcast_buffers


def test_torch_ddp_of_older_releases_sends_no_buffers(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(nn.parallel, "DistributedDataParallel", OldWrapper)
    assert not parallel._torch_ddp(nn.Linear(2, 2)).broadcast_buffers


def test_one_by_four_is_two_by_two_is_four_by_one(tiny_config: MakeConfig, tmp_path: Path):
    runs = {}
    for n in (1, 2, 4):
        config = tiny_config(out=tmp_path / str(n), micro_batch_size=1, parallel="ddp")
        runs[n] = config.out
        if n == 1:
            train(config)
        else:
            run_each(train_here, write(config), False, n=n)
    for n in (2, 4):
        assert_same_run(runs[n], runs[1], 1e-5)


@pytest.mark.parametrize("kinds", [("sharded", "none"), ("none", "sharded"), ("fsdp", "ddp")])
@pytest.mark.parametrize("micro_batch_size", [1, 2])
def test_any_number_of_processes_resumes(
    tiny_config: MakeConfig,
    tmp_path: Path,
    kinds: tuple[str, str],
    micro_batch_size: int,
):
    """Micro-batches of one make four parts of the batch: a signal comes between two of them."""
    alone = tiny_config(out=tmp_path / "alone", micro_batch_size=2)
    train(alone)
    out = tmp_path / "run"
    for kind, work, argument in zip(kinds, (stop_after, train_here), (7, True), strict=True):
        file = write(tiny_config(out=out, micro_batch_size=micro_batch_size, parallel=kind))
        if kind == "none":
            work(file, argument)
        else:
            run_each(work, file, argument)
    is_exact = micro_batch_size == 2 and "fsdp" not in kinds
    assert_same_run(out, alone.out, 0 if is_exact else 1e-5)


def stop_after(file: Path, n_steps: int) -> None:
    """Goes on with a run until SIGTERM comes in the last of so many updates.

    A process with several micro-batches drops that one.
    """
    skip_slow_parts()
    take = loop.sample_batch

    def sample_batch(*args: Any, **options: Any) -> Any:
        if options["step"] == n_steps - 1 and os.environ.get("RANK", "0") == "0":
            os.kill(os.getpid(), signal.SIGTERM)
        return take(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "sample_batch", sample_batch)
        result = train(read_config(TrainConfig, file), resume=True)
    assert result.step in (n_steps - 1, n_steps)


def refused(file: Path) -> str:
    try:
        train_here(file, False)
    except (ValueError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def test_what_processes_cannot_do_is_refused(tiny_config: MakeConfig, tmp_path: Path):
    for changes, message in [
        ({"parallel": "none"}, "ValueError: parallel must be ddp, .* for 2 processes, got none"),
        ({"parallel": "fsdp", "compile": True}, "ValueError: compile must be off"),
        ({"batch_size": 5}, "ValueError: batch_size must be a multiple of the 2 processes, got 5"),
        ({"micro_batch_size": 4}, "micro_batch_size must be a divisor of the 2 sequences"),
    ]:
        config = replace(tiny_config(out=tmp_path / "refused"), **{"parallel": "ddp"} | changes)
        for said in run_each(refused, write(config)):
            assert re.search(message, said), said
    config = tiny_config(out=tmp_path / "taken", parallel="ddp")
    config.out.mkdir()
    (config.out / "something").touch()
    first, second = run_each(refused, write(config))
    assert first.startswith("FileExistsError: the run folder")
    assert second.startswith("ConnectionError: process 1 lost another one")


def torchrun(*args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-port", str(free_port()), "-m", "rslm", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_rslm_train_under_torchrun(tiny_config: MakeConfig, tmp_path: Path, alone: Path):
    config = tiny_config(out=tmp_path / "run", parallel="sharded")
    done = torchrun("train", "--config", write(config))
    assert done.returncode == 0, done.stderr
    assert_same_run(config.out, alone, 0)
    assert done.stderr.count("finished at step 20") == 1
    assert done.stderr.count("step=20/20") >= 1
