"""Processes that add up a tensor, and whether those of torchrun agree."""

import contextlib
import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist

from rslm.architecture import parameter_shapes
from rslm.distributed import Processes, start_processes
from rslm.doctor.check import Check
from rslm.environment import versions
from rslm.errors import FormatError
from rslm.token_file import TokenFile
from rslm.train_config import TrainConfig

_SECONDS = 120


def check_two_processes(device: torch.device) -> Iterator[Check]:
    """Starts two processes that add up a tensor, as training with several does."""
    kind = "cuda" if device.type == "cuda" and torch.cuda.device_count() > 1 else "cpu"
    name = f"processes ({'NCCL' if kind == 'cuda' else 'gloo'})"
    start = time.perf_counter()
    outputs = _run_two(kind)
    expected = "3.0"
    if outputs != [expected] * 2:
        said = " ".join(next(text for text in outputs if text != expected).split())[-200:]
        advice = (
            "let processes of this machine reach each other; GLOO_SOCKET_IFNAME=lo "
            "(NCCL_SOCKET_IFNAME) names the network to use"
        )
        yield Check(name=name, status="fail", found=f"no sum: {said}", advice=advice)
        return
    seconds = time.perf_counter() - start
    yield Check(name=name, status="ok", found=f"two added up a tensor, {seconds:.1f} s with start")


def _run_two(kind: str) -> list[str]:
    """What each of two processes printed; or the reason that it did not."""
    with contextlib.closing(_free_port()) as free:
        port = free.getsockname()[1]
    package = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), package]))
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    program = f"from rslm.doctor.processes import add_ranks; add_ranks({kind!r})"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env=os.environ
            | common
            | {"RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    deadline = time.monotonic() + _SECONDS
    outputs = []
    try:
        for process in started:
            try:
                out, err = process.communicate(timeout=max(0.1, deadline - time.monotonic()))
                outputs.append(out.strip() if process.returncode == 0 else err or out)
            except subprocess.TimeoutExpired:
                outputs.append(f"no answer in {_SECONDS} seconds")
    finally:
        for process in started:
            process.kill()
            process.wait()
    return outputs


def _free_port() -> socket.socket:
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    return listening


def add_ranks(kind: str) -> None:
    """Prints the sum of rank + 1 over the processes, added up on their devices."""
    with start_processes(torch.device(kind)) as processes:
        total = torch.tensor([processes.rank + 1.0], device=processes.device)
        dist.all_reduce(total)
        print(float(total))


def check_agreement(config: TrainConfig, processes: Processes, own: list[Check]) -> Iterator[Check]:
    """Whether all processes of torchrun add up, have the same software, model and data.

    Every process must call it, with what it found alone; the failures of others are passed on.
    """
    total = torch.tensor([processes.rank + 1.0], device=processes.device)
    dist.all_reduce(total)
    mark = _mark(config)
    gathered: list[tuple[str, list[Check]]] = [("", [])] * processes.world_size
    dist.all_gather_object(gathered, (mark, own))
    name, n = f"processes ({processes.world_size} ranks)", processes.world_size
    different = [rank for rank, (theirs, _) in enumerate(gathered) if theirs != gathered[0][0]]
    if float(total) != n * (n + 1) / 2:
        advice = "the network changes what it carries; do not train on it"
        yield Check(name=name, status="fail", found=f"a wrong sum, {total}", advice=advice)
    elif different:
        found = f"versions, options or data of ranks {different} differ from those of rank 0"
        yield Check(name=name, status="fail", found=found, advice="start all from one environment")
    else:
        found = "all agree on a sum, versions, options and data"
        yield Check(name=name, status="ok", found=found)
    for rank, (_, theirs) in enumerate(gathered[1:], 1):
        for check in theirs:
            if check.status != "ok":
                yield Check(
                    name=f"rank {rank}: {check.name}",
                    status=check.status,
                    found=check.found,
                    advice=check.advice,
                )


def _mark(config: TrainConfig) -> str:
    """A hash of what must be the same everywhere."""
    fingerprints = []
    for path in (config.data.train, *config.data.mixed_in):
        with contextlib.suppress(OSError, FormatError):
            fingerprints.append(TokenFile.open(path).fingerprint)
    model = {name: list(shape) for name, shape in parameter_shapes(config.model).items()}
    facts = json.dumps([versions(), model, config.seed, fingerprints], sort_keys=True)
    return hashlib.sha256(facts.encode()).hexdigest()
