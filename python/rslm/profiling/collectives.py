"""All-reduce by size and number of processes."""

from collections.abc import Sequence

import torch
import torch.distributed as dist

from rslm.distributed.processes import Processes
from rslm.profiling.tables import Record, Table, column, time_column
from rslm.profiling.timing import Marks, repeat, summarise
from rslm.profiling.traffic import sent_bytes


def time_all_reduce(
    processes: Processes, sizes_mb: Sequence[float], *, n_warmup: int, n_timed: int
) -> list[Record]:
    """A record for each size in megabytes (10^6 bytes) of a float32 tensor; all must call.

    A call counts as long as the process that took longest. `bytes_per_second` is the tensor's
    size over that time; `bus_bytes_per_second` is what each process of a ring would have sent,
    2(R-1)/R of it, which is comparable between numbers of processes.

    Raises:
        RuntimeError: a sum came out wrong.

    Source of the bus bandwidth: NVIDIA's nccl-tests, doc/PERFORMANCE.md.
    """
    records = []
    for size_mb in sizes_mb:
        tensor = torch.full((max(1, round(size_mb * 1e6 / 4)),), 1.0 + processes.rank)
        tensor = tensor.to(processes.device)
        dist.all_reduce(tensor)
        expected = processes.world_size * (processes.world_size + 1) / 2
        if not bool((tensor == expected).all()):
            raise RuntimeError(f"all-reduce must give {expected}, got {tensor[0].item()}")
        # Sums of sums would overflow; zeros stay.
        tensor.zero_()
        own = repeat(lambda t=tensor: _one_call(t), n_warmup=n_warmup, n_timed=n_timed)  # type: ignore[misc]
        seconds = processes.gather(torch.tensor(own, dtype=torch.float64, device=processes.device))
        slowest = seconds.flatten(1).amax(0).tolist()
        n_bytes = tensor.numel() * tensor.element_size()
        record: Record = {
            "backend": "nccl" if processes.device.type == "cuda" else "gloo",
            "n_processes": processes.world_size,
            "n_bytes": n_bytes,
        }
        record |= summarise("seconds", slowest)
        sent = sent_bytes("all-reduce", n_bytes, processes.world_size)
        record["bytes_per_second"] = n_bytes / record["seconds_mean"]
        record["bus_bytes_per_second"] = sent / record["seconds_mean"]
        records.append(record)
    return records


def _one_call(tensor: torch.Tensor) -> list[float]:
    dist.barrier()
    marks = Marks(tensor.device)
    dist.all_reduce(tensor)
    marks.mark()
    return marks.seconds()


def all_reduce_table(records: list[Record]) -> Table:
    """The table of `time_all_reduce`."""
    return Table(
        name="collectives",
        title="All-reduce: milliseconds, mean ± standard deviation; GB are 10^9 bytes",
        columns=(
            column("backend", "backend"),
            column("processes", "n_processes"),
            column("MB", "n_bytes", lambda n_bytes: f"{n_bytes / 1e6:,.3g}"),
            time_column("time", "seconds"),
            column("GB/s", "bytes_per_second", lambda speed: f"{speed / 1e9:,.3f}"),
            column("bus GB/s", "bus_bytes_per_second", lambda speed: f"{speed / 1e9:,.3f}"),
        ),
        records=records,
    )
