"""An optimizer whose state is divided over the processes, parameter by parameter."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer


class ShardedOptimizer(Optimizer):
    """Each process updates the parameters it owns, and sends them to the others.

    A parameter has one owner, which alone holds its state: an optimizer that needs whole
    matrices can be sharded like one that works element by element, and equal gradients give
    what the plain optimizer gives, to the last bit. Owners follow from the order and sizes of
    the parameters alone: the largest first, each to the process that has least so far.
    `param_groups` are those of the plain optimizer, all parameters in them, and what is set
    there (a scheduler's `lr`) holds for the next step.

    Args:
        params: parameters, or groups of them, in the same order on every process.
        cls: the optimizer to shard.
        kwargs: its arguments.

    Source: Rajbhandari et al. 2020, ZeRO, section 5.1, stage 1 (arXiv:1910.02054). There
    state is cut at equal sizes through the tensors; here between them.
    """

    def __init__(
        self,
        params: Iterable[Parameter] | Iterable[dict[str, Any]],
        cls: Callable[..., Optimizer],
        **kwargs: Any,
    ) -> None:
        self._adopt(cls(params, **kwargs))

    @classmethod
    def adopt(cls, optimizer: Optimizer) -> Self:
        """A plain optimizer's sharded twin, with its groups and state; it takes that one over."""
        self = cls.__new__(cls)
        self._adopt(optimizer)
        return self

    def _adopt(self, plain: Optimizer) -> None:
        self.plain = plain
        self._owners: dict[Parameter, int] = {}
        self._n_owned = [0] * dist.get_world_size()
        groups = [dict(group) for group in plain.param_groups]
        plain.param_groups.clear()
        # Together, not group by group, which would give one process the largest of each.
        self._assign([parameter for group in groups for parameter in group["params"]])
        Optimizer.__init__(self, groups, plain.defaults)
        for parameter, owner in self._owners.items():
            if owner != dist.get_rank():
                plain.state.pop(parameter, None)
        # What asks for a parameter's state shall find what this process has.
        self.state = plain.state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds parameters; those that are there keep their owners."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        self._assign([p for p in group["params"] if p not in self._owners])
        self.plain.add_param_group({**group, "params": self._owned(group)})

    def _assign(self, parameters: list[Parameter]) -> None:
        # Sorting is stable: equal sizes stay in order.
        for parameter in sorted(parameters, key=torch.numel, reverse=True):
            owner = min(range(len(self._n_owned)), key=self._n_owned.__getitem__)
            self._owners[parameter] = owner
            self._n_owned[owner] += parameter.numel()

    def owner(self, parameter: Parameter) -> int:
        """The rank of the process that updates a parameter."""
        return self._owners[parameter]

    def _owned(self, group: dict[str, Any]) -> list[Parameter]:
        return [p for p in group["params"] if self._owners[p] == dist.get_rank()]

    def _push_options(self) -> None:
        """Makes the plain optimizer's groups say what the outer ones do."""
        for group, inner in zip(self.param_groups, self.plain.param_groups, strict=True):
            inner.update({key: value for key, value in group.items() if key != "params"})

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Updates what this process owns, then gives every process every parameter."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._push_options()
        self.plain.step()
        self._synchronize()
        return loss

    @torch.no_grad()
    def _synchronize(self) -> None:
        """Sends each parameter from its owner: one message per owner, dtype and device."""
        messages: dict[tuple[int, torch.dtype, torch.device], list[Parameter]] = {}
        for parameter, owner in self._owners.items():
            key = (owner, parameter.dtype, parameter.device)
            messages.setdefault(key, []).append(parameter)
        sent = []
        for (owner, _, _), parameters in messages.items():
            flat = torch.cat([parameter.detach().flatten() for parameter in parameters])
            sent.append((dist.broadcast(flat, src=owner, async_op=True), flat, owner, parameters))
        for work, flat, owner, parameters in sent:
            assert work is not None
            work.wait()
            if owner != dist.get_rank():
                parts = flat.split([parameter.numel() for parameter in parameters])
                for parameter, part in zip(parameters, parts, strict=True):
                    parameter.copy_(part.view_as(parameter))

    @contextlib.contextmanager
    def consolidated(self) -> Iterator[Optimizer]:
        """Inside the block, process 0's plain optimizer has all parameters and all state.

        Every process must enter it. State from other processes comes to the CPU and goes
        again at the end; so only process 0 needs memory for the whole.
        """
        rank, own = dist.get_rank(), dict(self.plain.state)
        self._push_options()
        for parameter, owner in self._owners.items():
            state = _send_state(own.get(parameter, {}), owner)
            if rank == 0 and owner != 0 and state:
                self.plain.state[parameter] = state
        inner = self.plain.param_groups
        if rank == 0:
            for group, whole in zip(inner, self.param_groups, strict=True):
                group["params"] = whole["params"]
        try:
            yield self.plain
        finally:
            for group, whole in zip(inner, self.param_groups, strict=True):
                group["params"] = self._owned(whole)
            if rank == 0:
                for parameter in [p for p, owner in self._owners.items() if owner != 0]:
                    self.plain.state.pop(parameter, None)

    def consolidated_state_dict(self) -> dict[str, Any] | None:
        """The plain optimizer's `state_dict` on process 0, None on the others; all must call."""
        with self.consolidated() as plain:
            return plain.state_dict() if dist.get_rank() == 0 else None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes a plain optimizer's `state_dict`; each process keeps what it owns."""
        inner = self.plain.param_groups
        for group, whole in zip(inner, self.param_groups, strict=True):
            group["params"] = whole["params"]
        self.plain.load_state_dict(state_dict)
        # Loading makes new groups and a new state.
        for group, whole in zip(self.plain.param_groups, self.param_groups, strict=True):
            whole.update({key: value for key, value in group.items() if key != "params"})
            group["params"] = self._owned(whole)
        for parameter, owner in self._owners.items():
            if owner != dist.get_rank():
                self.plain.state.pop(parameter, None)
        self.state = self.plain.state


def _send_state(state: dict[str, Any], owner: int) -> dict[str, Any]:
    """A parameter's state on process 0, which its owner sends; elsewhere what was given."""
    if owner == 0 or dist.get_rank() not in (0, owner):
        return state
    if dist.get_rank() == owner:
        described = {
            key: (value.shape, value.dtype, value.device.type)
            if isinstance(value, Tensor)
            else value
            for key, value in state.items()
        }
        dist.send_object_list([described], dst=0)
        for value in state.values():
            if isinstance(value, Tensor):
                dist.send(value.contiguous(), dst=0)
        return state
    received: list[Any] = [None]
    dist.recv_object_list(received, src=owner)
    gathered: dict[str, Any] = {}
    for key, value in received[0].items():
        gathered[key] = value
        if isinstance(value, tuple) and len(value) == 3 and isinstance(value[1], torch.dtype):
            shape, dtype, device_type = value
            buffer = torch.empty(shape, dtype=dtype, device=device_type)
            dist.recv(buffer, src=owner)
            gathered[key] = buffer.cpu()
    return gathered
