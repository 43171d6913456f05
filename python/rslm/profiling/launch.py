"""Processes of this machine that measure together, where torchrun has not started any."""

import os
import pickle
import signal
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.spawn import spawn

from rslm.distributed.processes import start_processes


def in_processes(n: int, device: torch.device, work: Callable[..., Any], *args: Any) -> Any:
    """What `work(processes, *args)` returns in process 0 of `n` new ones that have joined.

    Each takes its share of the CPU's threads, or the GPU of its number. `work` and `args` must
    be such that they can be pickled; the others' results are dropped.

    Raises:
        ValueError: there are fewer GPUs than processes.
        torch.multiprocessing.ProcessRaisedException: a process failed; the others are ended.
    """
    if device.type == "cuda" and n > torch.cuda.device_count():
        raise ValueError(f"processes must be at most the {torch.cuda.device_count()} GPUs, got {n}")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result"
        spawn(_child, args=(n, _free_port(), device.type, out, work, args), nprocs=n)
        return pickle.loads(out.read_bytes())


def _child(
    rank: int,
    n: int,
    port: int,
    device_type: str,
    out: Path,
    work: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    # Ctrl-C reaches every process of the terminal; the first says that it did.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    torch.set_num_threads(max(1, torch.get_num_threads() // n))
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(n),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    with start_processes(torch.device(device_type)) as processes:
        result = work(processes, *args)
    if rank == 0:
        out.write_bytes(pickle.dumps(result))


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
