"""What several processes save, and how a run of theirs ends when one of them cannot go on."""

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from processes import join_all, run_each, run_processes, skip_slow_parts, start_each, write

from rslm import checkpoint
from rslm.architecture import TransformerConfig
from rslm.checkpoint import newest_checkpoint, take_snapshot
from rslm.config import read_config
from rslm.distributed import Processes, parallelize
from rslm.losses import cross_entropy
from rslm.model import Transformer
from rslm.optim import AdamW
from rslm.train import train
from rslm.train_config import ParallelKind, TrainConfig

# Processes that wait for each other must not wait for ever.
pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("quick")]

SIZES = TransformerConfig(
    vocab_size=33, context_length=8, d_model=8, n_layers=1, n_heads=2, d_ff=16
)


def save_and_train_on(processes: Processes, kind: ParallelKind) -> Any:
    """Snapshots of step 1 that keep what is a copy, and that copy all; seen after step 2."""
    model = Transformer(SIZES, generator=torch.Generator().manual_seed(0))
    optimizer = AdamW(model.parameters(), lr=1e-2)
    parallel = parallelize(kind, model, optimizer, processes)
    token_ids = torch.arange(18).view(2, 9) % 33
    seen: Any = None
    for step in range(2):
        cross_entropy(parallel.forward(token_ids[:, :-1]), token_ids[:, 1:]).backward()
        parallel.finish_gradient_synchronization()
        parallel.optimizer.step()
        parallel.optimizer.zero_grad()
        if step == 0:
            with parallel.unsharded() as whole:
                if processes.is_first:
                    snapshot = take_snapshot(model, whole.optimizer, whole.copies)
                    copied = take_snapshot(model, whole.optimizer)
                    given = {tensor.data_ptr() for tensor in whole.copies}
                    held = snapshot.model | snapshot.optimizer
                    kept = {name for name, x in held.items() if x.data_ptr() in given}
                    seen = held, copied.model | copied.optimizer, kept
    return seen


@pytest.mark.parametrize(
    ("kind", "least"), [("ddp", 9), ("sharded", 9), ("fsdp", 2), ("torch-fsdp2", 1)]
)
def test_snapshot_keeps_what_was_gathered_and_copies_the_rest(kind: ParallelKind, least: int):
    """What is cut is gathered: with FSDP tensors of 2 dimensions, with FSDP2 all but numbers."""
    (snapshot, copied, kept), _ = run_processes(save_and_train_on, kind)
    assert kept == {name for name, tensor in copied.items() if tensor.ndim >= least}
    assert snapshot.keys() == copied.keys()
    assert all(torch.equal(snapshot[name], tensor) for name, tensor in copied.items())


def full_disk(file: Path) -> tuple[str, float]:
    """How a process ends whose first one cannot write its second checkpoint, and when."""
    skip_slow_parts()
    save_file, n_calls = checkpoint.save_file, 0

    def fail(*args: Any) -> None:
        nonlocal n_calls
        n_calls += 1
        if n_calls == 3:
            raise checkpoint.SafetensorError("No space left on device (os error 28)")
        save_file(*args)

    checkpoint.save_file = fail
    return ending(file)


def ending(file: Path) -> tuple[str, float]:
    try:
        train(read_config(TrainConfig, file), resume=True)
    except OSError as error:
        return f"{type(error).__name__}: {error}", time.time()
    return "finished", time.time()


@pytest.mark.parametrize("kind", ["ddp", "torch-ddp", "fsdp", "torch-fsdp2"])
def test_full_disk_of_the_first_process_ends_all_at_once(
    tiny_config: Callable[..., TrainConfig], tmp_path: Path, kind: ParallelKind
):
    config = tiny_config(out=tmp_path / "run", parallel=kind, n_steps=2000, checkpoint_every=3)
    (first, at), (second, later) = run_each(full_disk, write(config))
    assert re.match(r"OSError: .*No space left on device", first)
    assert second.startswith("ConnectionError: process 1 lost another one")
    assert later - at < 10
    newest, rejected = newest_checkpoint(config.out / "checkpoints")
    assert newest == config.out / "checkpoints" / "step_00000003"
    assert not rejected


def killed_in_a_collective(file: Path, folder: Path) -> tuple[str, float]:
    """How the first process ends when the second is killed while it sums gradients."""
    skip_slow_parts()
    all_reduce, n_calls = dist.all_reduce, 0

    def killed(*args: Any, **options: Any) -> Any:
        nonlocal n_calls
        n_calls += 1
        work = all_reduce(*args, **options)
        if n_calls == 50 and os.environ["RANK"] == "1":
            (folder / "killed").write_text(str(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)
        return work

    dist.all_reduce = killed
    return ending(file)


def test_process_killed_in_a_collective_ends_the_other(
    tiny_config: Callable[..., TrainConfig], tmp_path: Path
):
    config = tiny_config(out=tmp_path / "run", parallel="ddp", n_steps=2000)
    started = start_each(killed_in_a_collective, write(config), tmp_path, n=2, folder=tmp_path)
    assert join_all(started) == [0, -signal.SIGKILL]
    message, at = torch.load(tmp_path / "0")
    assert message.startswith("ConnectionError: process 0 lost another one")
    assert at - float((tmp_path / "killed").read_text()) < 10
