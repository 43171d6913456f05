"""What processes send each other: bytes by collective, counted, and what they should be."""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rslm.architecture import TransformerConfig, parameter_shapes
from rslm.train_config import ParallelKind

# The operators beneath `torch.distributed`; C++ callers (torch's own DDP) go through them, too.
COLLECTIVES = {
    "allreduce_": "all-reduce",
    "allreduce_coalesced_": "all-reduce",
    "broadcast_": "broadcast",
    "allgather_": "all-gather",
    "_allgather_base_": "all-gather",
    "allgather_into_tensor_coalesced_": "all-gather",
    "reduce_scatter_": "reduce-scatter",
    "_reduce_scatter_base_": "reduce-scatter",
    "reduce_scatter_tensor_coalesced_": "reduce-scatter",
}


class Traffic(TorchDispatchMode):
    """Counts the collectives that this process enters in the block, backward passes included.

    Attributes:
        n_bytes: by collective, of the whole tensor that it is about: what is reduced, sent to
            all, gathered from all, or reduced before it is scattered.
        n_calls: by collective.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.n_bytes: Counter[str] = Counter()
        self.n_calls: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.namespace == "c10d":
            name = COLLECTIVES.get(func.__name__.partition(".")[0])
            if name is not None:
                self.n_calls[name] += 1
                # The whole is the larger of what goes in and what comes out.
                self.n_bytes[name] += max(_bytes(argument) for argument in args[:2])
        return func(*args, **(kwargs or {}))


def _bytes(argument: Any) -> int:
    if isinstance(argument, Tensor):
        return argument.numel() * argument.element_size()
    if isinstance(argument, list | tuple):
        return sum(_bytes(part) for part in argument)
    return 0


def sent_bytes(collective: str, n_bytes: int, world_size: int) -> float:
    """Bytes that each process of a ring sends for a collective over `n_bytes`.

    With R processes, S bytes and f = (R-1)/R: 2fS for an all-reduce, fS for an all-gather, a
    reduce-scatter and, on average over the processes, a broadcast.

    Source: Patarasuk & Yuan 2009, Bandwidth optimal all-reduce algorithms, section 3.
    """
    factor = 2 if collective == "all-reduce" else 1
    return factor * (world_size - 1) / world_size * n_bytes


@dataclass(frozen=True, kw_only=True)
class ParameterBytes:
    """Bytes of a model's parameters, by how sharding treats them.

    Attributes:
        lookups: tables of which rows are read and no products made.
        matrices: all else with two dimensions.
        others: the rest.
    """

    lookups: int
    matrices: int
    others: int

    @property
    def whole(self) -> int:
        """All of them."""
        return self.lookups + self.matrices + self.others


def parameter_bytes(config: TransformerConfig) -> ParameterBytes:
    """The bytes of a model in float32."""
    sizes = dict.fromkeys(("lookups", "matrices", "others"), 0)
    for name, shape in parameter_shapes(config).items():
        is_table = "embeddings" in name and not (config.tied_head and name.startswith("token_"))
        kind = "others" if len(shape) < 2 else "lookups" if is_table else "matrices"
        sizes[kind] += 4 * math.prod(shape)
    return ParameterBytes(**sizes)


def expected_sent_bytes(
    kind: ParallelKind,
    size: ParameterBytes,
    world_size: int,
    *,
    device_type: str,
    gathered_width: int = 4,
) -> float:
    """Bytes that each process sends in a training step by the ring's formulas.

    With P bytes of parameters and f = (R-1)/R: 2fP for "ddp" and "torch-ddp"; 3fP for "sharded",
    the gradients' all-reduce and each owner's broadcast; 3fP for "torch-fsdp2", two gathers and
    a reduce-scatter. So is "fsdp" but that tables are gathered once, vectors stay whole (2f),
    and on a CPU gradients are reduced whole (4f for a matrix). Rows that pad, and the few bytes
    by which processes agree on unused parameters and the norm, come on top.

    Args:
        kind: how the processes train together.
        size: of the parameters.
        world_size: R.
        device_type: cpu or cuda.
        gathered_width: bytes of a gathered number, 2 for bfloat16.

    Source: Rajbhandari et al. 2020, ZeRO, section 7 (arXiv:1910.02054).
    """
    share = (world_size - 1) / world_size
    if kind == "none":
        return 0.0
    if kind in ("ddp", "torch-ddp"):
        return 2 * share * size.whole
    if kind == "sharded":
        return 3 * share * size.whole
    gathered = gathered_width / 4
    if kind == "torch-fsdp2":
        return share * (2 * gathered + 1) * size.whole
    reduced = 2 if device_type == "cpu" else 1
    divided = size.matrices * (2 * gathered + reduced) + size.lookups * (gathered + reduced)
    return share * (divided + 2 * size.others)


def expected_held_bytes(kind: ParallelKind, size: ParameterBytes, world_size: int) -> float:
    """Bytes of weights, gradients and AdamW's state that each process holds, all float32.

    With P bytes of parameters: 4P whole; 2P + 2P/R where the state is divided; 4P/R where all
    is ("fsdp" keeps vectors whole).

    Source: Rajbhandari et al. 2020, ZeRO, section 5 and Figure 1 (arXiv:1910.02054), there
    with half-precision weights and gradients.
    """
    if kind in ("none", "ddp", "torch-ddp"):
        return 4 * size.whole
    if kind == "sharded":
        return 2 * size.whole + 2 * size.whole / world_size
    if kind == "torch-fsdp2":
        return 4 * size.whole / world_size
    return 4 * (size.lookups + size.matrices) / world_size + 4 * size.others
