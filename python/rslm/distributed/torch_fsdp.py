"""PyTorch's own sharding (FSDP2) with an optimizer that sees plain tensors."""

import contextlib
import math
from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import Parameter
from torch.optim import Optimizer

from rslm.distributed.ddp import broadcast_from_first, require_same_model
from rslm.distributed.fsdp import clip_sharded_grad_norm
from rslm.distributed.processes import Processes


class TorchSharded:
    """A model sharded by `fully_shard`, beside the plain rows that its optimizer updates.

    FSDP2's parameters are DTensors, which share no operation with plain tensors. The rows lie
    in the same memory, so any element-wise optimizer works on them as they are.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, rows: dict[str, Parameter]) -> None:
        self._model = model
        self._optimizer = optimizer
        self._rows = rows

    def _pairs(self) -> list[tuple[DTensor, Parameter]]:
        named = dict(self._model.named_parameters())
        pairs: list[tuple[DTensor, Parameter]] = []
        for name, rows in self._rows.items():
            parameter = named[name]
            assert isinstance(parameter, DTensor)
            pairs.append((parameter, rows))
        return pairs

    @torch.no_grad()
    def take_gradients(self) -> None:
        """Hands the gradients over to the optimizer's rows."""
        for parameter, rows in self._pairs():
            gradient = parameter.grad
            rows.grad = gradient.to_local() if isinstance(gradient, DTensor) else None
            parameter.grad = None

    def clip_grad_norm(self, parameters: Iterable[Tensor], max_norm: float) -> Tensor:
        """`rslm.optim.clip_grad_norm` with the norm of the whole gradients; all must call."""
        return clip_sharded_grad_norm(parameters, max_norm, self._rows.values())

    @contextlib.contextmanager
    def unsharded(self) -> Iterator[list[Tensor]]:
        """Inside the block, on process 0, model and optimizer hold whole tensors on the CPU.

        It gives the gathered ones: nothing else holds them, so they may be kept.
        """
        copies: list[Tensor] = []
        is_first = dist.get_rank() == 0
        state = self._optimizer.state
        wholes: dict[Parameter, Parameter] = {}
        kept: list[tuple[dict[str, Parameter | None], str, Parameter | None]] = []
        for parameter, rows in self._pairs():
            whole = Parameter(_gather(parameter), requires_grad=rows.requires_grad)
            gathered = {}
            for key, value in state.get(rows, {}).items():
                is_cut = isinstance(value, Tensor) and value.ndim > 0
                gathered[key] = _gather(_like(value, parameter)) if is_cut else value
                copies += [gathered[key]] if is_cut else []
            copies.append(whole)
            if is_first:
                for module in self._model.modules():
                    for leaf, own in list(module._parameters.items()):
                        if id(own) == id(parameter):
                            kept.append((module._parameters, leaf, own))
                            module._parameters[leaf] = whole
                wholes[rows] = whole
                if gathered:
                    state[whole] = gathered
        groups = self._optimizer.param_groups
        before = [group["params"] for group in groups]
        if is_first:
            for group in groups:
                group["params"] = [wholes[rows] for rows in group["params"]]
        try:
            yield copies
        finally:
            for group, params in zip(groups, before, strict=True):
                group["params"] = params
            for place, leaf, sharded in kept:
                place[leaf] = sharded
            for whole in wholes.values():
                state.pop(whole, None)


def shard_with_torch(
    model: nn.Module,
    optimizer: Optimizer,
    processes: Processes,
    compute_dtype: torch.dtype | None,
) -> TorchSharded:
    """Applies `fully_shard` to each layer and to the model, and cuts the optimizer with it.

    Raises:
        ValueError: the processes hold different models.
    """
    require_same_model(model)
    broadcast_from_first(model)
    names = {parameter: name for name, parameter in model.named_parameters()}
    mesh = init_device_mesh(processes.device.type, (processes.world_size,))
    policy = MixedPrecisionPolicy(
        param_dtype=compute_dtype, reduce_dtype=torch.float32 if compute_dtype else None
    )
    for module in list(model.modules()):
        if isinstance(module, nn.ModuleList):
            for layer in module:
                fully_shard(layer, mesh=mesh, mp_policy=policy)
    # The root, too, gives its matrices back: a checkpoint may follow an evaluation.
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    sharded = dict(model.named_parameters())
    rows: dict[str, Parameter] = {}
    with torch.no_grad():
        for group in optimizer.param_groups:
            cut = []
            for parameter in group["params"]:
                name = names[parameter]
                dtensor = sharded[name]
                assert isinstance(dtensor, DTensor)
                rows[name] = Parameter(dtensor.to_local())
                cut.append(rows[name])
                state = optimizer.state.pop(parameter, None)
                if state:
                    optimizer.state[rows[name]] = {
                        key: _cut(value, processes) if isinstance(value, Tensor) else value
                        for key, value in state.items()
                    }
            group["params"] = cut
    return TorchSharded(model, optimizer, rows)


def _cut(value: Tensor, processes: Processes) -> Tensor:
    """A state's rows as `fully_shard` cuts them; a single number stays."""
    if not value.ndim:
        return value
    n_rows = math.ceil(value.shape[0] / processes.world_size)
    return value[processes.rank * n_rows :][:n_rows].clone()


def _like(rows: Tensor, parameter: DTensor) -> DTensor:
    """Rows of a state as a DTensor that is laid out as its parameter."""
    return DTensor.from_local(
        rows,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def _gather(parameter: DTensor) -> Tensor:
    whole: Tensor = parameter.full_tensor().detach()
    if dist.get_rank() != 0:
        return whole[:0]
    return whole.to("cpu", copy=True, memory_format=torch.contiguous_format)
