"""Training with several processes, built from collectives.

`processes` starts the group from torchrun's environment; `gradients` averages gradients; `ddp`,
`sharded_optimizer` and `fsdp` are the wrappers, each usable alone; `parallel` puts one of them,
or one of torch's own, around a model and its optimizer for a training loop.
"""

from rslm.distributed.ddp import DDP
from rslm.distributed.fsdp import FSDP
from rslm.distributed.parallel import Parallel, parallelize
from rslm.distributed.processes import Processes, start_processes
from rslm.distributed.sharded_optimizer import ShardedOptimizer

__all__ = [
    "DDP",
    "FSDP",
    "Parallel",
    "Processes",
    "ShardedOptimizer",
    "parallelize",
    "start_processes",
]
