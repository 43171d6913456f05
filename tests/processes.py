"""Starts a few processes that train together, for the tests, and compares what they leave."""

import multiprocessing
import os
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rslm import train as loop
from rslm.checkpoint import MODEL, OPTIM, newest_checkpoint, read_safetensors
from rslm.config import read_config, to_toml
from rslm.distributed import start_processes
from rslm.run_folder import read_metrics
from rslm.run_log import CLOCK_KEYS
from rslm.train_config import TrainConfig

# Forking one process that has loaded torch is far quicker than loading it in each.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["rslm.train", "torch._dynamo", "torch.distributed.tensor"])


def set_environment(rank: int, world_size: int, port: int) -> None:
    """What torchrun sets."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def joined(work: Callable[..., Any], *args: Any) -> Any:
    """Calls `work(processes, *args)` once this process has joined the others."""
    with start_processes(torch.device("cpu")) as processes:
        return work(processes, *args)


def child(rank: int, n: int, port: int, out: Path, work: Callable[..., Any], args: Any) -> None:
    torch.set_num_threads(1)
    set_environment(rank, n, port)
    torch.save(work(*args), out)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def start_each(work: Callable[..., Any], *args: Any, n: int, folder: Path) -> list[Any]:
    """Starts n processes that call `work(*args)` in torchrun's environment."""
    port = free_port()
    started = [
        CONTEXT.Process(target=child, args=(rank, n, port, folder / str(rank), work, args))
        for rank in range(n)
    ]
    for process in started:
        process.start()
    return started


def join_all(processes: list[Any]) -> list[int]:
    """Exit codes; those that hang are killed."""
    for process in processes:
        process.join(60)
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode for process in processes]


def run_each(work: Callable[..., Any], *args: Any, n: int = 2) -> list[Any]:
    """What `work(*args)` returned in each of n processes."""
    with tempfile.TemporaryDirectory() as name:
        started = start_each(work, *args, n=n, folder=Path(name))
        assert join_all(started) == [0] * n
        return [torch.load(Path(name) / str(rank)) for rank in range(n)]


def run_processes(work: Callable[..., Any], *args: Any, n: int = 2) -> list[Any]:
    """What `work(processes, *args)` returned in each of n processes that have joined."""
    return run_each(joined, work, *args, n=n)


def skip_slow_parts() -> None:
    loop.peak_flops = lambda *_: 1e12
    loop.write_loss_curve = lambda *_: None
    os.fsync = lambda _: None


def train_here(file: Path, resume: bool, pause: float = 0.0) -> tuple[str, int]:
    skip_slow_parts()
    take = loop.sample_batch

    def sample_batch(*args: Any, **options: Any) -> Any:
        time.sleep(pause)
        return take(*args, **options)

    loop.sample_batch = sample_batch
    result = loop.train(read_config(TrainConfig, file), resume=resume)
    return result.reason, result.step


def write(config: TrainConfig) -> Path:
    file = config.out.with_suffix(".toml")
    file.write_text(to_toml(config))
    return file


def rows_of(run: Path) -> list[dict[str, Any]]:
    rows = read_metrics(run / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k not in CLOCK_KEYS} for row in rows]


def tensors_of(run: Path) -> dict[str, torch.Tensor]:
    newest, rejected = newest_checkpoint(run / "checkpoints")
    assert newest is not None
    assert not rejected
    return read_safetensors(newest / MODEL)[0] | read_safetensors(newest / OPTIM)[0]


def assert_same_run(run: Path, expected: Path, tolerance: float) -> None:
    """Rows, weights and optimizer state are equal, bit for bit where the tolerance is 0."""
    rows, others = rows_of(run), rows_of(expected)
    assert [list(row) for row in rows] == [list(row) for row in others]
    for row, other in zip(rows, others, strict=True):
        assert row == (other if tolerance == 0 else pytest.approx(other, abs=tolerance))
    tensors, wanted = tensors_of(run), tensors_of(expected)
    assert tensors.keys() == wanted.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor, wanted[name], rtol=0, atol=tolerance)
