"""The machine: versions, device, matrix products, memory, disk."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from rslm import _rslm
from rslm.doctor.check import Check
from rslm.environment import versions
from rslm.hardware import reported_accelerator
from rslm.matmul_peak import measure_matmul_flops
from rslm.memory_estimate import estimate_memory
from rslm.plan import FREE_SHARES, checkpoint_bytes, machine_memory_bytes
from rslm.terminal import with_prefix
from rslm.train_config import TrainConfig

_PROBE_BYTES = 1 << 23
_SLOW_SYNC_SECONDS = 1.0


def check_versions() -> Iterator[Check]:
    """Versions of what decides the numbers, and whether the extension is a fast one."""
    shown = ", ".join(f"{name} {number}" for name, number in versions().items() if number)
    if _rslm.BUILD_PROFILE == "debug":
        advice = "build it in release mode: make setup"
        yield Check(name="versions", status="warn", found=f"{shown}, debug build", advice=advice)
    else:
        yield Check(name="versions", status="ok", found=shown)


def check_device(config: TrainConfig, device: torch.device) -> Iterator[Check]:
    """What the run computes on, and in how many threads."""
    if device.type == "cuda":
        found = f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
        yield Check(name="device", status="ok", found=found)
        return
    # A process may be allowed on fewer processors than there are.
    allowed = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0)
    n_threads = config.n_threads or torch.get_num_threads()
    found = f"{device.type}, {n_threads} threads on {len(allowed)} processors"
    if n_threads > len(allowed):
        advice = f"--n-threads {len(allowed)}: more threads wait for each other"
        yield Check(name="device", status="warn", found=found, advice=advice)
    else:
        yield Check(name="device", status="ok", found=found)


def check_matmul(config: TrainConfig, device: torch.device) -> Iterator[Check]:
    """The speed of matrix products, against the data sheet where there is one."""
    plain = measure_matmul_flops(device, torch.float32)
    found = f"{with_prefix(plain, 'FLOP/s')} float32"
    speed, dtype = plain, "float32"
    if config.precision == "bfloat16":
        speed, dtype = measure_matmul_flops(device, torch.bfloat16), "bfloat16"
        found += f", {with_prefix(speed, 'FLOP/s')} bfloat16"
    known = None
    if device.type == "cuda":
        known = reported_accelerator(torch.cuda.get_device_name(device))
    if known is not None:
        peak = known.peak_flops("bfloat16" if dtype == "bfloat16" else "float32")
        found += f", {speed / peak:.0%} of the data sheet"
        if speed < 0.5 * peak:
            advice = "see in nvidia-smi whether it is shared, hot or limited in power"
            yield Check(name="matmul", status="warn", found=found, advice=advice)
            return
    if dtype == "bfloat16" and speed < plain:
        advice = "--precision float32 is faster on this machine"
        yield Check(name="matmul", status="warn", found=found, advice=advice)
        return
    yield Check(name="matmul", status="ok", found=found)


def check_memory(
    config: TrainConfig, device: torch.device, n_processes: int, n_local: int
) -> Iterator[Check]:
    """Whether the estimate of `rslm plan` fits into what there is."""
    on_gpu = device.type == "cuda"
    memory = estimate_memory(config, n_processes=n_processes, device="gpu" if on_gpu else "cpu")
    there = machine_memory_bytes() // n_local
    if on_gpu:
        there = torch.cuda.get_device_properties(device).total_memory
    found = f"{with_prefix(memory.peak, 'B')} of {with_prefix(there, 'B')}"
    advice = "lower --micro-batch-size or set --recompute-blocks 1; rslm plan says what fits"
    if memory.peak > there:
        yield Check(name="memory", status="fail", found=found, advice=advice)
    elif memory.peak > (1 - FREE_SHARES["gpu" if on_gpu else "cpu"]) * there:
        yield Check(name="memory", status="warn", found=found, advice=advice)
    else:
        yield Check(name="memory", status="ok", found=found)


def check_disk(config: TrainConfig) -> Iterator[Check]:
    """Whether the run folder takes files, keeps them, and has room for the checkpoints."""
    folder = config.out
    while not folder.exists():
        folder = folder.parent
    seconds = write_and_sync(folder)
    n_kept = config.keep_checkpoints + 1 + int(config.keep_best)
    size = checkpoint_bytes(config)
    needed, free = n_kept * size, shutil.disk_usage(folder).free
    rate = with_prefix(_PROBE_BYTES / seconds, "B/s")
    found = f"{with_prefix(free, 'B')} free, {n_kept} checkpoints of {with_prefix(size, 'B')}, "
    found += f"written and synced at {rate}"
    if free < needed:
        advice = f"free {with_prefix(needed - free, 'B')}, or lower --keep-checkpoints"
        yield Check(name="disk", status="fail", found=found, advice=advice)
    elif seconds > _SLOW_SYNC_SECONDS:
        advice = "keep the run folder on a local disk, or save less often: --checkpoint-every"
        yield Check(name="disk", status="warn", found=found, advice=advice)
    else:
        yield Check(name="disk", status="ok", found=found)


def write_and_sync(folder: Path) -> float:
    """Seconds to write 8 MiB there and to have them on the disk; nothing is left.

    Raises:
        OSError: the folder does not take a file.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        start = time.perf_counter()
        file.write(os.urandom(_PROBE_BYTES))
        file.flush()
        os.fsync(file.fileno())
        return time.perf_counter() - start
