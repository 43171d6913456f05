"""What several processes save, and how a run of theirs ends when one of them cannot go on."""

from typing import Any

import pytest
import torch
from processes import run_processes

from rslm.architecture import TransformerConfig
from rslm.checkpoint import take_snapshot
from rslm.distributed import Processes, parallelize
from rslm.losses import cross_entropy
from rslm.model import Transformer
from rslm.optim import AdamW
from rslm.train_config import ParallelKind

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
