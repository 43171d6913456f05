"""Starts a few processes that train together, for the tests."""

import multiprocessing
import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from rslm.distributed import start_processes

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
