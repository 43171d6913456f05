"""Fully sharded training: a process holds its rows of each matrix, and the whole when in use."""

import contextlib
import functools
import math
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import Parameter
from torch.optim import Optimizer

from rslm.distributed.ddp import broadcast_from_first, require_same_model
from rslm.distributed.gradients import GradientAverager
from rslm.distributed.shard import Shard, is_in_backward


class FSDP(nn.Module):
    """A module whose matrices are divided by rows over the processes.

    Every parameter with two dimensions or more (the weights of Linear and Embedding) becomes
    this process's rows of it, float32 if it was; all others stay whole everywhere. A matrix is
    gathered for its module's forward pass and again for its backward pass, the next one while
    this one is in use, and freed afterwards: two modules' weights are whole at a time. Its
    gradient is averaged over the processes and cut into rows as soon as it is complete. So an
    ordinary element-wise optimizer works on `parameters()`, made before or after; names stay.
    The pass must use the same modules on every process.

    Args:
        module: the model, changed in place; process 0's values hold.
        compute_dtype: dtype of gathered matrices, cast before they are sent, and of the
            inputs of their modules; gradients are summed in the dtype of the rows.

    Raises:
        ValueError: no process group was started, or the processes hold different models.

    Source: Rajbhandari et al. 2020, ZeRO, section 5.3, stage 3 (arXiv:1910.02054); Zhao et
    al. 2023, PyTorch FSDP, section 3 (arXiv:2304.11277). There a unit is a flattened block;
    here it is a single matrix.
    """

    def __init__(self, module: nn.Module, compute_dtype: torch.dtype | None = None) -> None:
        super().__init__()
        require_same_model(module)
        broadcast_from_first(module)
        self.module = module
        self._compute_dtype = compute_dtype
        self._shards: dict[Parameter, Shard] = {}
        self._in_flight: deque[Shard] = deque()
        for parameter in module.parameters():
            if parameter.ndim >= 2:
                self._shards[parameter] = Shard(parameter, compute_dtype, self._in_flight)
        whole = [p for p in module.parameters() if p not in self._shards]
        self._averager = GradientAverager(whole, "flat")
        # What follows a module in the last forward pass, and what came before it.
        self._following: dict[_Unit, _Unit] = {}
        self._preceding: dict[_Unit, _Unit] = {}
        self._last: _Unit | None = None
        self._units: list[_Unit] = []
        module.register_forward_pre_hook(self._begin_pass)
        for part in module.modules():
            own = {
                name: self._shards[parameter]
                for name, parameter in part.named_parameters(recurse=False, remove_duplicate=False)
                if parameter in self._shards
            }
            if own:
                unit = _Unit(part, own)
                self._units.append(unit)
                part.register_forward_pre_hook(
                    functools.partial(self._before_forward, unit), with_kwargs=True
                )
                part.register_forward_hook(
                    functools.partial(self._after_forward, unit), with_kwargs=True
                )

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module returns."""
        return self.module(*args, **kwargs)

    def no_sync(self) -> contextlib.AbstractContextManager[None]:
        """Nothing: matrices' gradients are reduced in each pass, as whole ones have no place."""
        return contextlib.nullcontext()

    def finish_gradient_synchronization(self) -> None:
        """Waits for the gradients; to be called after backward, before clipping and the step."""
        self._averager.finish()
        for shard in self._shards.values():
            shard.finish()
        for unit in self._units:
            unit.hide_whole()  # A recomputation stops inside the last module that it needs.
        self._in_flight.clear()

    def _begin_pass(self, module: nn.Module, args: Any) -> None:
        self._last = None

    def _before_forward(
        self, unit: "_Unit", module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        unit.show_whole()
        if not is_in_backward():
            if self._last is not None:
                self._following[self._last], self._preceding[unit] = unit, self._last
            self._last = unit
            if (following := self._following.get(unit)) is not None:
                following.start()
        dtype = self._compute_dtype
        return tuple(_cast(x, dtype) for x in args), {k: _cast(x, dtype) for k, x in kwargs.items()}

    def _after_forward(
        self,
        unit: "_Unit",
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Any,
    ) -> None:
        unit.hide_whole()
        # Inside backward this is a recomputation (activation checkpointing), and the gradient
        # that is about to be computed reads the matrix.
        if not is_in_backward():
            unit.free()
            # The gradient of a product reads the matrix, also where an embedding makes it.
            is_product = not unit.is_lookup or kwargs.get("as_head", False)
            # Losses of a head bring the matrix's gradient with them, so it is not read again.
            is_loss = isinstance(output, tuple)
            first = output[0] if is_loss else output
            if isinstance(first, Tensor) and first.requires_grad and is_product:
                hook = functools.partial(self._before_backward, unit, is_read=not is_loss)
                first.register_hook(hook)

    def _before_backward(self, unit: "_Unit", gradient: Tensor, *, is_read: bool) -> None:
        if is_read:
            unit.wait()
        preceding = self._preceding.get(unit)
        if preceding is not None and not preceding.is_lookup:
            preceding.start()

    def clip_grad_norm(self, parameters: Iterable[Tensor], max_norm: float) -> Tensor:
        """`rslm.optim.clip_grad_norm` with the norm of the whole gradients; all must call."""
        return clip_sharded_grad_norm(parameters, max_norm, self._shards)

    def gather_full_params(self) -> dict[str, Tensor]:
        """The whole parameters by name, on every process; all must call."""
        return {
            name: self._shards[p].gather(p) if p in self._shards else p.detach().clone()
            for name, p in self.module.named_parameters()
        }

    @torch.no_grad()
    def shard_optimizer(self, optimizer: Optimizer) -> None:
        """Cuts the state of an optimizer that was made, or restored, over the whole parameters.

        Raises:
            ValueError: a parameter's state has another shape than the parameter.
        """
        for parameter, shard in self._shards.items():
            state = optimizer.state.get(parameter, {})
            for key, value in state.items():
                if isinstance(value, Tensor) and value.ndim:
                    _require_elementwise(value.shape, shard.shape, key)
                    state[key] = shard.rows_of(value).clone()

    @contextlib.contextmanager
    def unsharded(self, optimizer: Optimizer) -> Iterator[list[Tensor]]:
        """Inside the block, on process 0, parameters and state are whole, on the CPU.

        Every process must enter it. It is for writing checkpoints: no step inside. It gives
        the gathered tensors: nothing else holds them, so they may be kept.
        """
        is_first = dist.get_rank() == 0
        copies: list[Tensor] = []
        kept: list[tuple[Parameter, Tensor, dict[str, Any]]] = []
        for parameter, shard in self._shards.items():
            whole = shard.gather(parameter, only_first=True)
            state = optimizer.state.get(parameter, {})
            gathered = {}
            for key, value in state.items():
                if isinstance(value, Tensor) and value.ndim:
                    _require_elementwise(value.shape, parameter.shape, key)
                    gathered[key] = shard.gather(value, only_first=True)
            if is_first:
                kept.append((parameter, parameter.data, dict(state)))
                parameter.data = whole
                state.update(gathered)
                copies += [whole, *gathered.values()]
        try:
            yield copies
        finally:
            for parameter, rows, before in kept:
                parameter.data = rows
                if before:
                    optimizer.state[parameter].update(before)


class _Unit:
    """A module that holds matrices itself."""

    def __init__(self, module: nn.Module, shards: dict[str, Shard]) -> None:
        self.module = module
        self.shards = shards
        # The gradient of a lookup needs the ids only; a tied head's is no lookup, see there.
        self.is_lookup = type(module).__name__ == "Embedding"

    def start(self) -> None:
        for shard in self.shards.values():
            shard.start()

    def wait(self) -> None:
        for shard in self.shards.values():
            shard.wait()

    def free(self) -> None:
        for shard in self.shards.values():
            shard.free()

    def show_whole(self) -> None:
        """Puts the gathered matrices before the parameters, where `module.weight` finds them."""
        self.wait()
        for name, shard in self.shards.items():
            self.module.__dict__[name] = _Gather.apply(shard.parameter, shard)

    def hide_whole(self) -> None:
        for name in self.shards:
            self.module.__dict__.pop(name, None)


class _Gather(torch.autograd.Function):
    """Rows to the gathered matrix; back, the matrix's gradient to the mean of its rows."""

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, shard: Shard) -> Tensor:
        ctx.shard = shard
        return shard.alias()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None]:
        # The parameter's gradient is put in its place when the message has arrived.
        ctx.shard.reduce(gradient)
        ctx.shard.free()
        return None, None


@torch.no_grad()
def clip_sharded_grad_norm(
    parameters: Iterable[Tensor], max_norm: float, sharded: Iterable[Tensor]
) -> Tensor:
    """`clip_grad_norm` where the gradients of `sharded` are each process's part of the whole.

    The squares of the parts are summed in float64 over the processes; all must call.
    """
    if not max_norm >= 0:
        raise ValueError(f"max_norm must be at least 0, got {max_norm}")
    parted = set(sharded)
    listed = [p for p in parameters if p.grad is not None or p in parted]
    if not listed:
        return torch.zeros(())
    squares = torch.zeros(2, dtype=torch.float64, device=listed[0].device)
    gradients: list[Tensor] = []
    for parameter in listed:
        if parameter.grad is not None:
            gradients.append(parameter.grad)
            norm = torch.linalg.vector_norm(parameter.grad, dtype=torch.float64)
            squares[int(parameter in parted)] += norm.square()
    dist.all_reduce(squares[1])
    kind = torch.promote_types(listed[0].dtype, torch.float32)
    norm = squares.sum().sqrt().to(kind)
    if max_norm < math.inf and gradients:
        torch._foreach_mul_(gradients, torch.where(norm > max_norm, max_norm / (norm + 1e-6), 1.0))
    return norm


def _cast(x: Any, dtype: torch.dtype | None) -> Any:
    return x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() and dtype else x


def _require_elementwise(state: torch.Size, parameter: torch.Size, key: str) -> None:
    if state != parameter:
        raise ValueError(
            f"FSDP needs an optimizer whose state has the parameter's shape {tuple(parameter)}, "
            f"got {key} of shape {tuple(state)}"
        )
