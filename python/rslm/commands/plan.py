"""`rslm plan`."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rslm.activation_memory import DeviceKind
from rslm.commands.tokenizer import parse_bytes
from rslm.commands.train import TrainOptions, check, resolved
from rslm.commands.train import defaults as train_defaults
from rslm.config import Record, merge_records, to_toml
from rslm.terminal import Switch, print_json, with_prefix
from rslm.train_config import TrainConfig

if TYPE_CHECKING:
    from rslm.plan import Plan, Speed

NOT_GIVEN = Path("not-given")
"""Stands for the run folder and the token file, which neither plan nor doctor has to be told."""


@dataclass(frozen=True, kw_only=True)
class PlanOptions(TrainOptions):
    """Say what a run will take before it starts: memory, FLOPs, hours, cost.

    Takes the options of `rslm train`, of which none must be given here but what says how large
    the vocabulary is: --data.train, a preset, or --model.vocab-size.
    """

    processes: int | None = None
    """Processes that train together; torchrun's number, or 1."""
    hardware: str | None = None
    """Kind of device, as H100, A100-80GB or RTX-4090, in place of this machine."""
    memory: str | None = None
    """Memory of a process, as 24GB; that of the hardware or of this machine unless given."""
    tokens_per_second: float | None = None
    """Known speed, of all processes together."""
    measure: Switch = False
    """Time a few real steps of one process on this machine."""
    measured_steps: int = 5
    """With --measure: steps to time, after two to warm up."""
    utilisation: float = 0.4
    """Share of the hardware's peak FLOP/s that is reached, where the speed is not known."""
    price: float | None = None
    """Price of one device for an hour, in any currency."""
    json: Switch = False
    """Print JSON."""

    def __post_init__(self) -> None:
        """Refuse numbers that cannot be, and two sources of one number."""
        for name in ("processes", "measured_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name in ("tokens_per_second", "utilisation"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name} must be positive, got {value}")
        if self.utilisation > 1:
            raise ValueError(f"utilisation must be at most 1, got {self.utilisation}")
        if self.price is not None and not 0 <= self.price < float("inf"):
            raise ValueError(f"price must be at least 0, got {self.price}")
        if self.measure and (self.tokens_per_second is not None or self.hardware is not None):
            raise ValueError("measure is of this machine: leave out tokens_per_second and hardware")


def defaults(arguments: Sequence[str]) -> Record:
    """What stands in for flags that are not given; nothing has to be."""
    return with_places(train_defaults(arguments))


def with_places(record: Record) -> Record:
    """The record with a run folder and a token file where it names none."""
    places = {"run": {"out": NOT_GIVEN, "data": {"train": NOT_GIVEN}}}
    return merge_records(places, record)


def plan(options: PlanOptions) -> int:
    """Prints the plan: tables on a terminal, `name=value` lines in a pipe."""
    check(options)
    config = resolved(options)
    is_first = os.environ.get("RANK", "0") == "0"
    if options.print_config:
        if is_first:
            print(to_toml(config), end="")
        return 0
    made = make(options, config)
    if not is_first:
        return 0
    if options.json:
        print_json(made.record())
    else:
        from rich.console import Console

        from rslm.plan_tables import print_plan

        print_plan(made, Console())
    return 0


def make(options: PlanOptions, config: TrainConfig) -> "Plan":
    """The plan, from options, data and machine."""
    from rslm.plan import make_plan

    n_data_tokens = None
    if not options.text and config.data.train != NOT_GIVEN:
        from rslm.run_data import open_data, resolve_model

        data = open_data(config)
        config = replace(config, model=resolve_model(config.model, data))
        n_data_tokens = sum(map(len, data.train_files))
    if config.model.vocab_size is None:
        raise ValueError(
            "model.vocab_size must be given, or a token file that states it with --data.train"
        )
    n_processes = options.processes or int(os.environ.get("WORLD_SIZE", "1"))
    facts: dict[str, Any] = {
        "n_processes": n_processes,
        "n_data_tokens": n_data_tokens,
        "memory_bytes": memory_of(options, config, n_processes),
        "price": options.price,
        "device": device_kind(options, config),
    }
    # First without the speed: options that cannot be are refused before anything is measured.
    unmeasured = make_plan(config, **facts)
    return replace(unmeasured, speed=speed_of(options, unmeasured))


def device_kind(options: PlanOptions, config: TrainConfig) -> DeviceKind:
    """What the processes compute on, without loading torch where the options say it."""
    if options.hardware is not None:
        return "gpu"
    if config.device != "auto":
        return "cpu" if config.device == "cpu" else "gpu"
    from rslm.infer.load import choose_device

    return "cpu" if choose_device("auto").type == "cpu" else "gpu"


def memory_of(options: PlanOptions, config: TrainConfig, n_processes: int) -> int:
    """Bytes that a process has: as given, of the hardware, or of this machine."""
    given = parse_bytes(options.memory, "memory")
    if given is not None:
        return given
    if options.hardware is not None:
        from rslm.hardware import find_accelerator

        return find_accelerator(options.hardware).memory_bytes
    if device_kind(options, config) == "gpu":
        import torch

        from rslm.infer.load import choose_device

        device = choose_device(config.device)
        if device.type == "cuda":
            return torch.cuda.get_device_properties(device).total_memory
    from rslm.plan import machine_memory_bytes

    # Processes on one machine's CPU, or its one memory, share it.
    return machine_memory_bytes() // n_processes


def speed_of(options: PlanOptions, unmeasured: "Plan") -> "Speed":
    """How fast the run will be: as given, measured, or a share of the peak."""
    from rslm.architecture import train_flops_per_token
    from rslm.plan import Speed

    config, n_processes = unmeasured.config, unmeasured.n_processes
    if options.tokens_per_second is not None:
        return Speed(tokens_per_second=options.tokens_per_second, source="given")
    if options.hardware is not None:
        from rslm.hardware import find_accelerator

        hardware = find_accelerator(options.hardware)
        peak, name = hardware.peak_flops(config.precision), hardware.name
    else:
        import torch

        from rslm.infer.load import choose_device
        from rslm.run_log import peak_flops

        device = choose_device(config.device)
        dtype = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
        peak, name = peak_flops(device, dtype), f"this machine's {device.type}"
    if options.measure:
        return measured(options, unmeasured, peak)
    rate = options.utilisation * peak * n_processes / train_flops_per_token(config.model)
    shown = with_prefix(peak, "FLOP/s")
    source = f"{options.utilisation:.0%} of the peak of {name}, {shown} in {config.precision}"
    return Speed(tokens_per_second=rate, source=source, peak_flops=peak)


def measured(options: PlanOptions, unmeasured: "Plan", peak: float) -> "Speed":
    """The speed of a few real steps.

    Raises:
        ValueError: they would not find the memory.
    """
    from rslm.memory_estimate import sequences_per_process
    from rslm.plan import Speed
    from rslm.step_speed import measure_step

    config, n_processes = unmeasured.config, unmeasured.n_processes
    if not unmeasured.fits:
        raise ValueError(
            f"micro_batch_size must be at most {unmeasured.best_micro_batch} to be measured in "
            f"{unmeasured.memory_bytes} bytes of memory: a step needs {unmeasured.memory.peak}"
        )
    share = sequences_per_process(config, n_processes)
    step = measure_step(config, config.micro_batch_size or share, options.measured_steps)
    rate = unmeasured.tokens_per_step / step.step_seconds(unmeasured.n_micro_batches)
    source = f"{options.measured_steps} steps measured here"
    if n_processes > 1:
        source += f" in one process, times {n_processes}"
    return Speed(
        tokens_per_second=rate, source=source, peak_flops=peak, memory_bytes=step.memory_bytes
    )
