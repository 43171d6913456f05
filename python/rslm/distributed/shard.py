"""One matrix divided by rows over the processes, and the buffer where it comes together."""

import math
from collections import deque
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter

MAX_IN_FLIGHT = 2


def is_in_backward() -> bool:
    """Whether autograd is running a backward pass in this thread."""
    return bool(torch._C._current_graph_task_id() != -1)


class Shard:
    """The rows of one parameter that this process owns; made, it has cut the parameter.

    Each process has the same number of rows but for the last ones, which may have fewer or
    none; messages are padded. The buffer's memory is taken when gathering starts and given
    back by `free`, behind the tensors that autograd keeps: they see the rows once more after
    the next gathering.
    """

    def __init__(
        self, parameter: Parameter, compute_dtype: torch.dtype | None, in_flight: deque["Shard"]
    ) -> None:
        self.parameter = parameter
        self._in_flight = in_flight
        self.shape = parameter.shape
        world_size, rank = dist.get_world_size(), dist.get_rank()
        self._n_rows = math.ceil(parameter.shape[0] / world_size)
        first = min(rank * self._n_rows, parameter.shape[0])
        self._own = slice(first, min(first + self._n_rows, parameter.shape[0]))
        parameter.data = parameter.data[self._own].clone()
        self._dtype = compute_dtype or parameter.dtype
        self._storage = torch.UntypedStorage(0, device=parameter.device)
        self._gathering: tuple[Any, Tensor, Tensor] | None = None
        self._is_whole = False
        self._reducing: deque[tuple[Any, Tensor, Tensor]] = deque()

    def rows_of(self, whole: Tensor) -> Tensor:
        """The rows of a whole tensor that are this process's."""
        return whole[self._own]

    def _padded_shape(self, n_parts: int) -> torch.Size:
        return torch.Size((self._n_rows * n_parts, *self.shape[1:]))

    def _padded(self, rows: Tensor, dtype: torch.dtype, n_parts: int = 1) -> Tensor:
        shape = self._padded_shape(n_parts)
        if rows.shape == shape:
            return rows.to(dtype).contiguous()
        padded = torch.zeros(shape, dtype=dtype, device=rows.device)
        padded[: len(rows)] = rows
        return padded

    @torch.no_grad()
    def start(self) -> None:
        """Begins to gather the matrix, unless that is done or under way."""
        if self._is_whole or self._gathering is not None:
            return
        shape = self._padded_shape(dist.get_world_size())
        self._storage.resize_(shape.numel() * self._dtype.itemsize)
        whole = self._over_storage(shape)
        rows = self._padded(self.parameter.detach(), self._dtype)
        work = dist.all_gather_into_tensor(whole, rows, async_op=True)
        self._gathering = (work, whole, rows)

    def wait(self) -> None:
        """Returns when the matrix is there."""
        self.start()
        if self._gathering is not None:
            self._gathering[0].wait()
            self._gathering = None
            self._is_whole = True

    def alias(self) -> Tensor:
        """A tensor over the gathered matrix.

        It has a version counter of its own: what autograd saved of it stays valid when the
        buffer is filled again, with the same rows.
        """
        assert self._is_whole
        return self._over_storage(self.shape)

    def _over_storage(self, shape: torch.Size) -> Tensor:
        tensor = torch.empty(0, dtype=self._dtype, device=self.parameter.device)
        return tensor.set_(self._storage, 0, shape, torch.empty(shape, device="meta").stride())

    def free(self) -> None:
        """Gives the memory of the gathered matrix back."""
        if self._gathering is not None:
            self.wait()
        self._is_whole = False
        self._storage.resize_(0)

    @torch.no_grad()
    def reduce(self, gradient: Tensor) -> None:
        """Begins to sum a whole gradient over the processes, each to get its own rows."""
        # Whole gradients stay in memory until they are sent: two on their way are enough.
        while len(self._in_flight) >= MAX_IN_FLIGHT:
            self._in_flight.popleft()._add_mean()
        self._in_flight.append(self)
        dtype = self.parameter.dtype
        work: Any
        if gradient.device.type == "cpu":
            # Gloo lacks reduce-scatter in some versions; the sums are the same.
            message = gradient.to(dtype, copy=True).contiguous()
            work = dist.all_reduce(message, async_op=True)
            self._reducing.append((work, message, message[self._own]))
            return
        message = self._padded(gradient, dtype, dist.get_world_size())
        rows = torch.empty(self._padded_shape(1), dtype=dtype, device=gradient.device)
        work = dist.reduce_scatter_tensor(rows, message, async_op=True)
        n_own = self._own.stop - self._own.start
        self._reducing.append((work, message, rows[:n_own]))

    @torch.no_grad()
    def _add_mean(self) -> None:
        """Adds the mean of the gradient that was sent first to the parameter's."""
        work, _, rows = self._reducing.popleft()
        work.wait()
        mean = rows / dist.get_world_size()
        if self.parameter.grad is None:
            self.parameter.grad = mean
        else:
            self.parameter.grad += mean

    def finish(self) -> None:
        """Leaves no gradient on its way and no matrix gathered."""
        while self._reducing:
            self._add_mean()
        self.free()

    @torch.no_grad()
    def gather(self, rows: Tensor, *, only_first: bool = False) -> Tensor:
        """The whole of a tensor that is cut like the parameter, in its own dtype.

        With `only_first`, process 0 has it on the CPU and the others have nothing of it.
        """
        padded = self._padded(rows.detach(), rows.dtype)
        shape = self._padded_shape(dist.get_world_size())
        whole = torch.empty(shape, dtype=rows.dtype, device=rows.device)
        dist.all_gather_into_tensor(whole, padded)
        whole = whole[: self.shape[0]]
        if only_first and dist.get_rank() != 0:
            return whole[:0]
        # A copy: a view would keep the padding, and a saved view writes its whole storage.
        return whole.to("cpu", copy=True) if only_first else whole.clone()
