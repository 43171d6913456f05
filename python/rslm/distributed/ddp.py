"""Data parallel training: every process holds the whole model and averages its gradients."""

import contextlib
import zlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from rslm.distributed.gradients import GradientAverager, Mode


class DDP(nn.Module):
    """A module whose replicas, one in each process, stay equal while each sees its own data.

    Parameters and buffers are those of process 0 from the start. After backward,
    `finish_gradient_synchronization` leaves in each `.grad` the mean over the processes, so
    equal optimizers make equal steps. With s bytes of gradients, bandwidth w and o seconds a
    call, what is left over after backward takes about b/w + s·o/b for buckets of b bytes: the
    best b is sqrt(s·w·o).

    Args:
        module: the model; wrapped, not copied.
        mode: "naive" reduces each tensor after backward; "flat" all of them in one call;
            "overlap" each as soon as backward has made it; "bucketed" likewise in buckets, in
            reverse order of registration.
        bucket_mb: megabytes of a bucket.

    Raises:
        ValueError: no process group was started, an argument lies outside its range, or the
            processes hold different models.

    Source: Li et al. 2020, PyTorch Distributed, sections 3.1-3.2 (arXiv:2006.15704). There
    unused parameters are found by walking the graph; here they are zeros in a fixed order.
    """

    def __init__(self, module: nn.Module, mode: Mode = "bucketed", bucket_mb: float = 25.0) -> None:
        super().__init__()
        require_same_model(module)
        broadcast_from_first(module)
        self.module = module
        self._averager = GradientAverager(module.parameters(), mode, bucket_mb)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module returns."""
        return self.module(*args, **kwargs)

    @contextlib.contextmanager
    def no_sync(self) -> Iterator[None]:
        """Backward passes in the block only accumulate; the first after it sends the sums."""
        before, self._averager.is_enabled = self._averager.is_enabled, False
        try:
            yield
        finally:
            self._averager.is_enabled = before

    def finish_gradient_synchronization(self) -> None:
        """Averages the gradients; to be called after backward, before clipping and the step."""
        self._averager.finish()


@torch.no_grad()
def broadcast_from_first(module: nn.Module) -> None:
    """Copies the parameters and buffers of process 0 into every other process's."""
    for tensor in (*module.parameters(), *module.buffers()):
        # Detached: sending counts as writing, and a leaf that requires a gradient forbids that.
        dense = tensor.detach().contiguous()
        dist.broadcast(dense, src=0)
        if dense.data_ptr() != tensor.data_ptr():
            tensor.copy_(dense)


def require_same_model(module: nn.Module) -> None:
    """Refuses models that differ in names, shapes or dtypes, which would wait for ever.

    Raises:
        ValueError: they do, on every process; or no process group was started.
    """
    if not dist.is_initialized():
        raise ValueError("a process group must be started first, see start_processes")
    lines = [f"{n} {tuple(p.shape)} {p.dtype} {p.requires_grad}" for n, p in named_tensors(module)]
    mark = zlib.crc32("\n".join(lines).encode())
    marks = torch.tensor([mark, -mark], device=_any_device(module))
    dist.all_reduce(marks, dist.ReduceOp.MAX)
    if int(marks[0]) != -int(marks[1]):
        raise ValueError("every process must hold the same model, got different parameters")


def named_tensors(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Parameters and buffers with their names, tied ones once."""
    return [*module.named_parameters(), *module.named_buffers()]


def _any_device(module: nn.Module) -> torch.device:
    return next((tensor.device for _, tensor in named_tensors(module)), torch.device("cpu"))
