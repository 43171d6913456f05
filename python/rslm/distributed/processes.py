"""The processes of a run as torchrun starts them, and the small things they agree on."""

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
TIMEOUT = timedelta(hours=1)
"""How long a process waits for the others: longer than a checkpoint of the largest model takes."""

# What the backends say when a process at the other end is gone.
_LOST = re.compile(
    r"Connection (closed|reset|refused)|Broken pipe|closed by peer|remote process exited"
    r"|Socket (Timeout|closed)|failed to recv|Timed out|unhandled system error",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True)
class Processes:
    """One process among those that train one model: the one that runs this.

    Attributes:
        rank: number of this process, from 0.
        world_size: number of processes.
        device: where this process computes.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this is the one process that writes files and speaks."""
        return self.rank == 0

    def share_of(self, n: int) -> slice:
        """The contiguous part of n items that is this process's.

        Raises:
            ValueError: the processes would get different numbers of items.
        """
        if n % self.world_size:
            raise ValueError(
                f"batch_size must be a multiple of the {self.world_size} processes, got {n}"
            )
        count = n // self.world_size
        return slice(self.rank * count, (self.rank + 1) * count)

    def part_of(self, n: int) -> slice:
        """The contiguous part of n items that is this process's; parts differ by one at most."""
        bounds = [n * rank // self.world_size for rank in (self.rank, self.rank + 1)]
        return slice(*bounds)

    def mean(self, x: Tensor) -> Tensor:
        """The mean of a tensor over the processes; the tensor itself where there is one."""
        return x if self.world_size == 1 else self.total(x).div_(self.world_size)

    def total(self, x: Tensor) -> Tensor:
        """The sum of a tensor over the processes; the tensor itself where there is one."""
        if self.world_size == 1:
            return x
        total = x.clone()
        dist.all_reduce(total)
        return total

    def gather(self, x: Tensor) -> Tensor:
        """The tensors of all processes, of one shape, stacked in order of rank."""
        if self.world_size == 1:
            return x[None]
        gathered = x.new_empty((self.world_size, *x.shape))
        # One after the other along the first dimension is the form that all backends know.
        dist.all_gather_into_tensor(gathered.flatten(), x.flatten())
        return gathered

    def gather_bytes(self, data: bytes) -> list[bytes]:
        """The bytes of all processes, in order of rank; through the CPU."""
        if self.world_size == 1:
            return [data]
        sizes = self.gather(torch.tensor([len(data)])).flatten().tolist()
        padded = torch.zeros(max(sizes), dtype=torch.uint8)
        if data:  # A buffer of nothing is refused.
            padded[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        gathered = self.gather(padded)
        return [bytes(row[:size].numpy()) for row, size in zip(gathered, sizes, strict=True)]

    def largest(self, number: int) -> int:
        """The largest of the processes' numbers; on the CPU, so no device is waited for."""
        if self.world_size == 1:
            return number
        largest = torch.tensor(number, dtype=torch.int64)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def in_turn(self, function: Callable[[], T]) -> T:
        """Calls it in the first process, and when that is done in all others; its result."""
        if self.is_first:
            result = function()
            self.largest(0)
            return result
        self.largest(0)
        return function()


@contextlib.contextmanager
def start_processes(device: torch.device) -> Iterator[Processes]:
    """Joins the processes that torchrun started, for the block; alone where it started none.

    The backend is gloo for tensors on the CPU and NCCL for those on a GPU, of which each
    process takes the one with its local rank. A group that the caller made is used as it is
    and not ended.

    Raises:
        ValueError: torchrun's environment is not whole, or there are fewer GPUs than local
            processes.
        ConnectionError: another process went away inside the block.
    """
    if dist.is_initialized():
        yield Processes(rank=dist.get_rank(), world_size=dist.get_world_size(), device=device)
        return
    numbers = read_environment()
    if numbers is None:
        yield Processes(device=device)
        return
    rank, world_size, local_rank = numbers
    device = local_device(device, local_rank)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    placed = device if device.type == "cuda" else None
    with _lost_process_named(rank):
        dist.init_process_group(backend, timeout=TIMEOUT, device_id=placed)
        try:
            yield Processes(rank=rank, world_size=world_size, device=device)
        finally:
            dist.destroy_process_group()


@contextlib.contextmanager
def _lost_process_named(rank: int) -> Iterator[None]:
    """Makes one line of what a backend says when a process at the other end is gone."""
    try:
        yield
    except RuntimeError as error:
        if not _LOST.search(str(error)):
            raise
        # Without the place in the backend's sources, and the advice after the first sentence.
        reason = re.sub(r"^\[\S+:\d+\] ", "", str(error).splitlines()[0]).partition(". ")[0]
        raise ConnectionError(
            f"process {rank} lost another one, whose own message says why ({reason})"
        ) from error


def read_environment() -> tuple[int, int, int] | None:
    """Rank, world size and local rank as torchrun sets them; None where it started nothing.

    Raises:
        ValueError: some of its variables are missing, or they cannot be.
    """
    missing = [name for name in VARIABLES if name not in os.environ]
    # Schedulers set some of these alone; WORLD_SIZE and RANK together are torchrun's.
    if "RANK" in missing or "WORLD_SIZE" in missing:
        return None
    if missing:
        raise ValueError(
            f"several processes need {', '.join(VARIABLES)}, and {', '.join(missing)} is missing\n"
            "start them with torchrun"
        )
    rank, world_size, local_rank = (_read_count(name) for name in VARIABLES[:3])
    if not rank < world_size:
        raise ValueError(f"RANK must be below WORLD_SIZE {world_size}, got {rank}")
    return rank, world_size, local_rank


def _read_count(name: str) -> int:
    text = os.environ[name]
    if not text.isdecimal():
        raise ValueError(f"{name} must be a whole number from 0 up, got {text!r}")
    return int(text)


def local_device(device: torch.device, local_rank: int) -> torch.device:
    """The device of a process: the GPU with its local rank, or the CPU that all share.

    Raises:
        ValueError: there is no such GPU, or the device cannot be shared by processes.
    """
    if device.type == "cpu":
        return device
    if device.type != "cuda":
        raise ValueError(f"several processes need device cpu or cuda, got {device.type}")
    if local_rank >= torch.cuda.device_count():
        raise ValueError(
            f"local processes must have a GPU each: number {local_rank} has none, "
            f"got {torch.cuda.device_count()} GPUs"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)
