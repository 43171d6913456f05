"""What a run will take: parameters, FLOPs, memory, hours, cost. No torch."""

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rslm.activation_memory import DeviceKind
from rslm.architecture import (
    forward_flops_by_part,
    n_body_parameters,
    n_non_embedding_parameters,
    n_parameters,
    n_parameters_by_group,
    parameter_shapes,
    train_flops_per_token,
)
from rslm.memory_estimate import (
    MemoryEstimate,
    estimate_memory,
    largest_micro_batch,
    optimizer_state_bytes,
    sequences_per_process,
)
from rslm.train_config import ParallelKind, TrainConfig

KINDS: tuple[ParallelKind, ...] = ("ddp", "sharded", "fsdp")
"""The ways to use several processes that a plan compares."""

FREE_SHARES: dict[DeviceKind, float] = {"gpu": 0.1, "cpu": 0.25}
"""Part of the memory that is left for what no estimate counts.

On a GPU blocks that the allocator cannot join, workspaces of kernels, and the context. glibc's
allocator on a CPU leaves larger holes: of steps of models of 6 and 12 million parameters 8 to 29
per cent more became resident than the estimate, and with MALLOC_MMAP_THRESHOLD_=65536 no more.
"""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """How fast the run is taken to be.

    Attributes:
        tokens_per_second: of all processes together.
        source: where the number comes from.
        peak_flops: FLOP/s of one device, where utilisation is against it.
        memory_bytes: peak that was measured on the way, on a GPU.
    """

    tokens_per_second: float
    source: str
    peak_flops: float | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run in numbers.

    Attributes:
        config: the run, its vocabulary known.
        n_processes: processes that train together.
        device: what each computes on.
        n_data_tokens: tokens of the files to train on; None where they are not known.
        memory: what each process needs.
        memory_by_kind: likewise for every way to use these processes, where there are several.
        memory_bytes: what each process has; None where that is not known.
        largest_micro_batch: most sequences of a forward pass that fit.
        best_micro_batch: likewise, of those that divide the process's part of a batch.
        speed: how fast it will be; None where nothing says so.
        price: of a device for an hour.
    """

    config: TrainConfig
    n_processes: int
    device: DeviceKind
    n_data_tokens: int | None
    memory: MemoryEstimate
    memory_by_kind: dict[str, MemoryEstimate]
    memory_bytes: int | None
    largest_micro_batch: int | None
    best_micro_batch: int | None
    speed: Speed | None
    price: float | None

    @property
    def tokens_per_step(self) -> int:
        """Tokens of an update."""
        return self.config.tokens_per_step

    @property
    def n_tokens(self) -> int:
        """Tokens of the run."""
        return self.config.n_tokens

    @property
    def train_flops(self) -> float:
        """FLOPs of the run."""
        return self.config.train_flops

    @property
    def data_passes(self) -> float | None:
        """Times that every token is read."""
        return None if self.n_data_tokens is None else self.n_tokens / self.n_data_tokens

    @property
    def n_micro_batches(self) -> int:
        """Forward passes of a process in a step."""
        share = sequences_per_process(self.config, self.n_processes)
        return share // (self.config.micro_batch_size or share)

    @property
    def free_share(self) -> float:
        """Part of the memory that should stay free."""
        return FREE_SHARES[self.device]

    @property
    def fits(self) -> bool | None:
        """Whether a process's peak leaves the free share of its memory free."""
        if self.memory_bytes is None:
            return None
        return self.memory.peak <= (1 - self.free_share) * self.memory_bytes

    @property
    def hours(self) -> float | None:
        """Of the steps alone, without validation, samples and checkpoints."""
        return None if self.speed is None else self.n_tokens / self.speed.tokens_per_second / 3600

    @property
    def utilisation(self) -> float | None:
        """Share of the devices' peak FLOP/s."""
        if self.speed is None or self.speed.peak_flops is None:
            return None
        flops = self.speed.tokens_per_second * train_flops_per_token(self.config.model)
        return flops / (self.speed.peak_flops * self.n_processes)

    @property
    def cost(self) -> float | None:
        """Price of all devices for these hours."""
        if self.hours is None or self.price is None:
            return None
        return self.hours * self.n_processes * self.price

    def record(self) -> dict[str, dict[str, Any]]:
        """Everything as nested plain values, in the order in which it is shown."""
        config, model = self.config, self.config.model
        length = model.context_length
        parts = forward_flops_by_part(model, length)
        memory = {
            name: asdict(memory)
            for name, memory in (self.memory_by_kind or {config.parallel: self.memory}).items()
        }
        for name, entry in memory.items():
            entry["sent_per_step"] = sent_bytes_per_step(config, name, self.n_processes)
        n_all = n_parameters(model)
        return {
            "parameters": n_parameters_by_group(model)
            | {
                "n_parameters": n_all,
                "n_non_embedding_parameters": n_non_embedding_parameters(model),
                "n_body_parameters": n_body_parameters(model),
            },
            "flops_per_token": {name: 3 * flops / length for name, flops in parts.items()}
            | {"all": train_flops_per_token(model), "6n": 6 * n_non_embedding_parameters(model)},
            "run": {
                "n_steps": config.n_steps,
                "tokens_per_step": self.tokens_per_step,
                "n_tokens": self.n_tokens,
                "tokens_per_parameter": self.n_tokens / n_all,
                "n_data_tokens": self.n_data_tokens,
                "data_passes": self.data_passes,
                "train_flops": self.train_flops,
                "n_processes": self.n_processes,
                "parallel": config.parallel,
                "precision": config.precision,
                "n_micro_batches": self.n_micro_batches,
            },
            "memory_bytes": memory,
            "fit": {
                "memory_bytes": self.memory_bytes,
                "fits": self.fits,
                "largest_micro_batch": self.largest_micro_batch,
                "best_micro_batch": self.best_micro_batch,
                "measured_peak_bytes": self.speed.memory_bytes if self.speed else None,
            },
            "time": {
                "tokens_per_second": self.speed.tokens_per_second if self.speed else None,
                "source": self.speed.source if self.speed else None,
                "utilisation": self.utilisation,
                "hours": self.hours,
                "price": self.price,
                "cost": self.cost,
            },
        }


def make_plan(
    config: TrainConfig,
    *,
    n_processes: int = 1,
    n_data_tokens: int | None = None,
    memory_bytes: int | None = None,
    speed: Speed | None = None,
    price: float | None = None,
    device: DeviceKind = "cpu",
) -> Plan:
    """The plan of a run.

    Args:
        config: the run; its model's vocabulary must be known.
        n_processes: processes that train together.
        n_data_tokens: tokens of the files to train on.
        memory_bytes: what each process has.
        speed: how fast the run is.
        price: of a device for an hour.
        device: what each process computes on.

    Raises:
        ValueError: the vocabulary is not known, several processes have no way to train together,
            or the batch cannot be divided by processes and micro-batches.
    """
    share = sequences_per_process(config, n_processes)
    if n_processes > 1 and config.parallel == "none":
        raise ValueError(
            f"parallel must be ddp, sharded, fsdp, torch-ddp or torch-fsdp2 for {n_processes} "
            "processes, got none"
        )
    if share % (config.micro_batch_size or share):
        raise ValueError(
            f"micro_batch_size must be a divisor of the {share} sequences of a process, "
            f"got {config.micro_batch_size}"
        )

    if n_processes > 1 and config.parallel == "fsdp" and config.compile:
        raise ValueError("compile must be off with parallel fsdp; torch-fsdp2 can compile")

    def estimate(of: TrainConfig, size: int | None = None) -> MemoryEstimate:
        return estimate_memory(of, micro_batch_size=size, n_processes=n_processes, device=device)

    largest = best = None
    if memory_bytes is not None:
        usable = int((1 - FREE_SHARES[device]) * memory_bytes)
        largest, best = largest_micro_batch(usable, share, lambda size: estimate(config, size).peak)
    by_kind: dict[str, MemoryEstimate] = {}
    if n_processes > 1:
        kinds = [kind for kind in KINDS if kind != config.parallel and _can_use(config, kind)]
        for kind in (config.parallel, *kinds):
            by_kind[kind] = estimate(replace(config, parallel=kind))
    return Plan(
        config=config,
        n_processes=n_processes,
        device=device,
        n_data_tokens=n_data_tokens,
        memory=estimate(config),
        memory_by_kind=by_kind,
        memory_bytes=memory_bytes,
        largest_micro_batch=largest,
        best_micro_batch=best,
        speed=speed,
        price=price,
    )


def _can_use(config: TrainConfig, kind: ParallelKind) -> bool:
    """Whether the run may be divided so: Muon needs whole matrices, our FSDP no compiler."""
    return kind != "fsdp" or not (config.optimizer.algorithm == "muon" or config.compile)


def sent_bytes_per_step(config: TrainConfig, kind: str, n_processes: int) -> float:
    """Bytes that a process sends in a step, with ring collectives.

    With P bytes of float32 parameters and f = (R - 1)/R: all-reduce 2fP once a step; for a
    divided optimizer, fP more for the new weights; fully sharded, each forward pass gathers
    twice, in the dtype of products, and reduces once.

    Source: Rajbhandari et al. 2020, ZeRO, section 7 (arXiv:1910.02054); there the sharded
    optimizer reduces to the owners only, here every process gets all gradients.
    """
    if n_processes == 1 or kind == "none":
        return 0.0
    n_bytes = 4 * sum(n_parameters_by_group(config.model).values())
    travelled = (n_processes - 1) / n_processes * n_bytes
    if kind in ("ddp", "torch-ddp"):
        return 2 * travelled
    if kind == "sharded":
        return 3 * travelled
    half = 2 if config.precision == "bfloat16" else 1
    share = sequences_per_process(config, n_processes)
    n_passes = share // min(config.micro_batch_size or share, share)
    return n_passes * (2 * travelled / half + travelled)


def checkpoint_bytes(config: TrainConfig) -> int:
    """Bytes of one checkpoint: weights and optimizer state, both float32."""
    shapes = parameter_shapes(config.model)
    state = sum(optimizer_state_bytes(config.optimizer, shapes).values())
    return 4 * n_parameters(config.model) + state


def machine_memory_bytes() -> int:
    """The memory of this machine, or less where a control group limits it."""
    n_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return min(n_bytes, int(text)) if text.isdecimal() else n_bytes
