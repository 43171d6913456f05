"""One of the ways to train with several processes, put around a model and its optimizer."""

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from rslm.distributed.ddp import DDP
from rslm.distributed.fsdp import FSDP
from rslm.distributed.processes import Processes
from rslm.distributed.sharded_optimizer import ShardedOptimizer
from rslm.optim import clip_grad_norm
from rslm.train_config import ParallelKind

T = TypeVar("T")


class Unsharded(NamedTuple):
    """What is whole on process 0.

    Attributes:
        optimizer: the plain optimizer.
        copies: tensors of it and of the model that nothing else holds, so that a checkpoint
            need not copy them again.
    """

    optimizer: Optimizer
    copies: Sequence[Tensor] = ()


@dataclass(frozen=True, kw_only=True)
class Parallel:
    """What a training loop uses in place of its model and optimizer.

    Attributes:
        forward: the model to train with. The bare model, whose parameters it shares, gives the
            same in evaluation; where it is sharded every process must run it.
        optimizer: the optimizer to step.
        autocast_dtype: dtype for `torch.autocast`; None where matrices come in it already.
        no_sync: block in which backward passes only accumulate.
        finish_gradient_synchronization: to be called after backward, before clipping.
        clip_grad_norm: `rslm.optim.clip_grad_norm` over the whole gradients.
        unsharded: block in which, on process 0, the model is whole, and so is the optimizer
            that it gives; every process must enter.
    """

    forward: Callable[..., Any]
    optimizer: Optimizer
    autocast_dtype: torch.dtype | None
    no_sync: Callable[[], AbstractContextManager[Any]]
    finish_gradient_synchronization: Callable[[], None]
    clip_grad_norm: Callable[[Iterable[Tensor], float], Tensor]
    unsharded: Callable[[], AbstractContextManager[Unsharded]]


def parallelize(
    kind: ParallelKind,
    model: nn.Module,
    optimizer: Optimizer,
    processes: Processes,
    *,
    autocast_dtype: torch.dtype | None = None,
    compiles: bool = False,
) -> Parallel:
    """Divides the training of a model, made and restored whole, over the processes.

    The model is changed in place; the optimizer is used up.

    Args:
        kind: "ddp", averaged gradients; "sharded", that and a divided optimizer; "fsdp",
            divided matrices; "torch-ddp" and "torch-fsdp2", PyTorch's own. A process that is
            alone without a group trains plainly whatever it says.
        model: the model, on the device of the process.
        optimizer: its optimizer, over the model's parameters.
        processes: the processes.
        autocast_dtype: dtype of matrix products.
        compiles: compile the forward pass.

    Raises:
        ValueError: several processes without a way to train together, or "fsdp" compiled.
    """
    if not dist.is_initialized():
        return _replicated(_compiled(model, compiles), optimizer, autocast_dtype)
    if kind == "none":
        if processes.world_size > 1:
            raise ValueError(
                f"parallel must be ddp, sharded, fsdp, torch-ddp or torch-fsdp2 for "
                f"{processes.world_size} processes, got none"
            )
        return _replicated(_compiled(model, compiles), optimizer, autocast_dtype)
    if kind == "fsdp":
        if compiles:
            raise ValueError("compile must be off with parallel fsdp; torch-fsdp2 can compile")
        return _own_fsdp(model, optimizer, autocast_dtype)
    if kind == "torch-fsdp2":
        from rslm.distributed.torch_fsdp import shard_with_torch

        whole = shard_with_torch(model, optimizer, processes, autocast_dtype)
        return Parallel(
            forward=_compiled(model, compiles),
            optimizer=optimizer,
            autocast_dtype=None,
            no_sync=contextlib.nullcontext,
            finish_gradient_synchronization=whole.take_gradients,
            clip_grad_norm=whole.clip_grad_norm,
            unsharded=_given(whole.unsharded, lambda copies: Unsharded(optimizer, copies)),
        )
    if kind == "torch-ddp":
        theirs = _torch_ddp(model)
        return _replicated(
            _compiled(theirs, compiles), optimizer, autocast_dtype, no_sync=theirs.no_sync
        )
    ours = DDP(model)
    # Compiled beneath the wrapper, whose hooks hang on the parameters.
    ours.module = _compiled(model, compiles)
    sharded = ShardedOptimizer.adopt(optimizer) if kind == "sharded" else None
    return _replicated(
        ours,
        sharded or optimizer,
        autocast_dtype,
        no_sync=ours.no_sync,
        finish=ours.finish_gradient_synchronization,
        unsharded=None if sharded is None else _given(sharded.consolidated, Unsharded),
    )


def _torch_ddp(model: nn.Module) -> nn.parallel.DistributedDataParallel:
    """PyTorch's own wrapper; buffers are equal from the start, and no forward pass sends them."""
    wrapper = nn.parallel.DistributedDataParallel
    # Newer releases warn about the second name, older ones know no other.
    names = ("forward_sync_buffers", "broadcast_buffers")
    known = inspect.signature(wrapper).parameters
    options: dict[str, Any] = {next(name for name in names if name in known): False}
    return wrapper(model, **options)


def _compiled(model: nn.Module, compiles: bool) -> Any:
    return torch.compile(model) if compiles else model


def _replicated(
    forward: Any,
    optimizer: Optimizer,
    autocast_dtype: torch.dtype | None,
    *,
    no_sync: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
    finish: Callable[[], None] = lambda: None,
    unsharded: Callable[[], AbstractContextManager[Unsharded]] | None = None,
) -> Parallel:
    """The ways in which every process holds the whole model."""
    return Parallel(
        forward=forward,
        optimizer=optimizer,
        autocast_dtype=autocast_dtype,
        no_sync=no_sync,
        finish_gradient_synchronization=finish,
        clip_grad_norm=clip_grad_norm,
        unsharded=unsharded or (lambda: contextlib.nullcontext(Unsharded(optimizer))),
    )


def _given(
    block: Callable[[], AbstractContextManager[T]], give: Callable[[T], Unsharded]
) -> Callable[[], AbstractContextManager[Unsharded]]:
    """The same block, giving what `give` makes of what it gives."""

    @contextlib.contextmanager
    def unsharded() -> Iterator[Unsharded]:
        with block() as given:
            yield give(given)

    return unsharded


def _own_fsdp(
    model: nn.Module, optimizer: Optimizer, autocast_dtype: torch.dtype | None
) -> Parallel:
    wrapped = FSDP(model, compute_dtype=autocast_dtype)
    wrapped.shard_optimizer(optimizer)

    return Parallel(
        forward=wrapped,
        optimizer=optimizer,
        # Autocast would keep a second copy of each matrix from forward to backward.
        autocast_dtype=None,
        no_sync=wrapped.no_sync,
        finish_gradient_synchronization=wrapped.finish_gradient_synchronization,
        clip_grad_norm=wrapped.clip_grad_norm,
        unsharded=_given(
            lambda: wrapped.unsharded(optimizer), lambda copies: Unsharded(optimizer, copies)
        ),
    )
