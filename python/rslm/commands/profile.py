"""`rslm profile step | memory | attention | collectives`."""

import itertools
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rslm.profiling.cases import Kind, Precision, sized_model
from rslm.profiling.tables import Table, print_tables, write_tables
from rslm.terminal import Switch, note, print_json

if TYPE_CHECKING:
    from rslm.profiling.workload import Case

Mode = Literal["eager", "compiled"]


@dataclass(frozen=True, kw_only=True)
class ProfileFlags:
    """What all of these commands are asked."""

    device: str = "auto"
    """cpu, cuda, cuda:1, mps; auto takes a GPU when there is one."""
    n_threads: int | None = None
    """CPU threads; torch's own choice unless given."""
    out: Path | None = None
    """Folder for the tables as Markdown and CSV, and a picture."""
    json: Switch = False
    """Print the records as JSON."""

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        _require_positive("n_threads", (self.n_threads or 1,))


@dataclass(frozen=True, kw_only=True)
class TimingFlags(ProfileFlags):
    """Of the commands that time."""

    n_warmup: int = 2
    """Repetitions before the timed ones."""
    n_timed: int = 10
    """Timed repetitions."""

    def __post_init__(self) -> None:
        """Refuse what cannot be timed."""
        super().__post_init__()
        _require_positive("n_timed", (self.n_timed,))
        if self.n_warmup < 0:
            raise ValueError(f"n_warmup must be at least 0, got {self.n_warmup}")


def _require_positive(name: str, values: Sequence[float]) -> None:
    if not values or any(not value > 0 for value in values):
        raise ValueError(f"{name} must be positive, and one at least, got {values}")


@dataclass(frozen=True, kw_only=True)
class StepOptions(TimingFlags):
    """Time forward pass, backward pass and optimizer of training steps.

    Every size at every length, precision and mode, on random tokens. Tokens/s, FLOP/s and how
    much of the matrix products that this machine was just measured to do that is.
    """

    sizes: tuple[str, ...] = ("tinystories",)
    """tinystories, small, medium, large, xl, 10b, or WIDTHxLAYERSxHEADS."""
    sequence_lengths: tuple[int, ...] = (128, 256, 512)
    """Tokens of a sequence."""
    precisions: tuple[Precision, ...] = ("float32", "bfloat16")
    """Of matrix products."""
    modes: tuple[Mode, ...] = ("eager",)
    """With torch.compile or without."""
    batch_size: int = 4
    """Sequences of a step."""
    vocab_size: int = 10_000
    """Token ids."""
    operators: Switch = False
    """Say as well which operators take the time, and which dtypes tensors have."""

    def __post_init__(self) -> None:
        """Refuse what cannot be timed."""
        super().__post_init__()
        _require_positive("sequence_lengths", self.sequence_lengths)
        _require_positive("batch_size", (self.batch_size,))


def step(options: StepOptions) -> None:
    """Prints the tables, and writes them where asked to."""
    device = _begin(options)
    from rslm.profiling import operators, precision
    from rslm.profiling.pictures import draw_steps
    from rslm.profiling.step import step_table, time_steps

    cases = _cases(options, modes=options.modes)
    records = time_steps(
        cases, device, n_warmup=options.n_warmup, n_timed=options.n_timed, announce=note
    )
    tables = [step_table(records)]
    if options.operators:
        tables += operators.operator_tables(*operators.share_operators(cases, device))
        tables += precision.precision_tables(
            precision.list_dtypes(cases, device), precision.accumulate()
        )
    _show(options, "step", tables, device, lambda path: draw_steps(records, path))


@dataclass(frozen=True, kw_only=True)
class MemoryOptions(ProfileFlags):
    """Weigh training steps: what stays, what is saved for the backward pass, the peaks.

    Counted to the byte by the allocator and by autograd, weights and shared tensors once. With
    --out on CUDA the allocator's history of each step is written, too.
    """

    sizes: tuple[str, ...] = ("tinystories",)
    """tinystories, small, medium, large, xl, 10b, or WIDTHxLAYERSxHEADS."""
    sequence_lengths: tuple[int, ...] = (128, 256, 512)
    """Tokens of a sequence."""
    precisions: tuple[Precision, ...] = ("float32", "bfloat16")
    """Of matrix products."""
    modes: tuple[Mode, ...] = ("eager",)
    """With torch.compile or without."""
    recompute_blocks: tuple[int, ...] = (0, 1)
    """Keep what enters every so many blocks and compute the rest again; 0 keeps everything."""
    batch_size: int = 4
    """Sequences of a step."""
    vocab_size: int = 10_000
    """Token ids."""

    def __post_init__(self) -> None:
        """Refuse what cannot be weighed."""
        super().__post_init__()
        _require_positive("sequence_lengths", self.sequence_lengths)
        _require_positive("batch_size", (self.batch_size,))
        if not self.recompute_blocks or min(self.recompute_blocks) < 0:
            raise ValueError(
                f"recompute_blocks must be at least 0, and one at least, got "
                f"{self.recompute_blocks}"
            )


def memory(options: MemoryOptions) -> None:
    """Prints the tables, and writes them where asked to."""
    device = _begin(options)
    from rslm.profiling.memory import memory_tables, weigh_steps
    from rslm.profiling.pictures import draw_memory

    kept = tuple(n or None for n in options.recompute_blocks)
    cases = _cases(options, modes=options.modes, recompute_blocks=kept)
    records, largest, traces = weigh_steps(cases, device, snapshots=options.out, announce=note)
    _show(
        *(options, "memory", memory_tables(records, largest), device),
        lambda path: draw_memory(records, traces, path),
    )


@dataclass(frozen=True, kw_only=True)
class AttentionOptions(TimingFlags):
    """Time causal attention, and weigh what it saves, by length and by width of a head."""

    paths: tuple[str, ...] = ()
    """Implementations, of those that rslm has; all unless given."""
    sequence_lengths: tuple[int, ...] = (256, 512, 1024, 2048)
    """Queries, and as many keys."""
    d_heads: tuple[int, ...] = (16, 32, 64, 128)
    """Widths of a head."""
    precisions: tuple[Precision, ...] = ("float32", "bfloat16")
    """Of all tensors."""
    modes: tuple[Mode, ...] = ("eager",)
    """With torch.compile or without."""
    batch_size: int = 8
    """Sequences."""
    n_heads: int = 1
    """Heads of each."""

    def __post_init__(self) -> None:
        """Refuse what cannot be timed."""
        super().__post_init__()
        for name in ("sequence_lengths", "d_heads"):
            _require_positive(name, getattr(self, name))
        for name in ("batch_size", "n_heads"):
            _require_positive(name, (getattr(self, name),))


def attention(options: AttentionOptions) -> None:
    """Prints the tables, and writes them where asked to."""
    device = _begin(options)
    from dataclasses import replace

    from rslm.attention import implementations_on
    from rslm.profiling import attention as paths
    from rslm.profiling.pictures import draw_attention

    known = implementations_on(device)
    named = options.paths or known
    if unknown := set(named) - set(known):
        raise ValueError(f"paths must be of {', '.join(known)}, got {', '.join(sorted(unknown))}")
    cases = [
        paths.AttentionCase(
            implementation=implementation,
            batch_size=options.batch_size,
            n_heads=options.n_heads,
            sequence_length=length,
            d_head=d_head,
            precision=precision,
            compiles=mode == "compiled",
        )
        for implementation in known
        if implementation in named
        for precision in options.precisions
        for mode in options.modes
        for d_head in options.d_heads
        for length in options.sequence_lengths
    ]
    counts = {"n_warmup": options.n_warmup, "n_timed": options.n_timed}
    records = paths.time_attention(cases, device, **counts, announce=note)
    alike = {replace(case, implementation="reference", compiles=False): None for case in cases}
    parts = [part for case in alike for part in paths.time_parts(case, device, **counts)]
    _show(
        *(options, "attention", paths.attention_tables(records, parts), device),
        lambda path: draw_attention(records, path),
    )


@dataclass(frozen=True, kw_only=True)
class CollectivesOptions(TimingFlags):
    """Time all-reduce and the ways to train with several processes; count what they send.

    Starts its own processes, as many as each of --processes says: gloo on the CPU, NCCL where
    each has a GPU. Under torchrun it measures with the processes that are there.
    """

    processes: tuple[int, ...] = (2,)
    """Numbers of processes to compare."""
    sizes_mb: tuple[float, ...] = (1.0, 10.0, 100.0)
    """Megabytes of float32 to all-reduce."""
    kinds: tuple[Kind, ...] = (
        *("none", "ddp-naive", "ddp-flat", "ddp-overlap", "ddp-bucketed"),
        *("torch-ddp", "sharded", "fsdp", "torch-fsdp2"),
    )
    """Ways to train; none, each process by itself, is what exposed communication is against."""
    bucket_mbs: tuple[float, ...] = (1.0, 10.0, 100.0)
    """Megabytes of a bucket of ddp-bucketed."""
    sizes: tuple[str, ...] = ("tinystories",)
    """tinystories, small, medium, large, xl, 10b, or WIDTHxLAYERSxHEADS."""
    sequence_lengths: tuple[int, ...] = (128,)
    """Tokens of a sequence."""
    precisions: tuple[Precision, ...] = ("float32",)
    """Of matrix products."""
    batch_size: int = 2
    """Sequences of each process."""
    vocab_size: int = 10_000
    """Token ids."""

    def __post_init__(self) -> None:
        """Refuse what cannot be timed."""
        super().__post_init__()
        for name in ("processes", "sizes_mb", "bucket_mbs", "sequence_lengths"):
            _require_positive(name, getattr(self, name))
        _require_positive("batch_size", (self.batch_size,))


def collectives(options: CollectivesOptions) -> None:
    """Prints the tables, and writes them where asked to; under torchrun process 0 does."""
    device = _begin(options)
    from rslm.distributed.processes import read_environment, start_processes
    from rslm.profiling.collectives import all_reduce_table
    from rslm.profiling.launch import in_processes
    from rslm.profiling.parallel import ParallelCase, measure_together, parallel_tables
    from rslm.profiling.pictures import draw_collectives

    cases = [
        ParallelCase(kind=kind, bucket_mb=bucket_mb, case=case)
        for case in _cases(options)
        for kind in options.kinds
        for bucket_mb in (options.bucket_mbs if kind == "ddp-bucketed" else (None,))
    ]
    task = (options.sizes_mb, cases, options.n_warmup, options.n_timed, note)
    if read_environment() is not None:
        with start_processes(device) as processes:
            results = [measure_together(processes, *task)]
        if not processes.is_first:
            return
    else:
        results = [in_processes(n, device, measure_together, *task) for n in options.processes]
    reduced, trained = (list(itertools.chain(*part)) for part in zip(*results, strict=True))
    _show(
        *(options, "collectives", [all_reduce_table(reduced), *parallel_tables(trained)], device),
        lambda path: draw_collectives(reduced, trained, path),
    )


def _begin(options: ProfileFlags) -> Any:
    """The torch device to measure on, once torch is as the options say."""
    # Read by the profiler's library when torch loads it; it writes its own affairs to stderr.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    import torch

    from rslm.infer.load import choose_device

    if options.n_threads is not None:
        torch.set_num_threads(options.n_threads)
    return choose_device(options.device)


def _cases(
    options: StepOptions | MemoryOptions | CollectivesOptions,
    *,
    modes: Sequence[Mode] = ("eager",),
    recompute_blocks: Sequence[int | None] = (None,),
) -> "list[Case]":
    """Every combination of what the options list, the last of them fastest."""
    from rslm.profiling.workload import Case

    return [
        Case(
            size=size,
            model=sized_model(size, vocab_size=options.vocab_size, context_length=length),
            batch_size=options.batch_size,
            precision=precision,
            compiles=mode == "compiled",
            recompute_blocks=n_kept,
        )
        for size in options.sizes
        for length in options.sequence_lengths
        for precision in options.precisions
        for mode in modes
        for n_kept in recompute_blocks
    ]


def _show(
    options: ProfileFlags,
    name: str,
    tables: list[Table],
    device: Any,
    draw: Callable[[Path], None],
) -> None:
    """Prints tables, or their records, and writes tables and picture to the folder asked for."""
    if options.json:
        print_json({table.name: table.records for table in tables})
    else:
        print_tables(tables)
    if options.out is not None:
        write_tables(options.out, name, tables, setting(device))
        draw(options.out / f"{name}.png")
        note(f"wrote {options.out}")


def setting(device: Any) -> dict[str, Any]:
    """What numbers measured on a device depend on."""
    from rslm.environment import describe_environment

    environment = describe_environment()
    is_cuda = device.type == "cuda"
    return {
        "command": f"rslm {shlex.join(sys.argv[1:])}",
        "device": environment["cuda"] if is_cuda else f"{device.type}, {environment['cpu']}",
        "CPU threads": environment["n_threads"],
        "versions": ", ".join(f"{k} {v}" for k, v in environment["versions"].items()),
        "started": environment["started"],
    }
