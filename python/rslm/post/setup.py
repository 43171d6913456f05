"""What the loops of post-training share: their run folder and its parts.

A run folder holds `config.toml` (resolved, with the model's sizes and the chat format),
`env.json`, `tokenizer.json`, `metrics.jsonl`, `samples.md` and `checkpoints/`; whatever takes a
pre-training run's folder takes it too. `open_start` opens the folder and the model, `open_run`
the rest once the data is known; what a loop then does is in `rslm.post.update`.
Whatever is random must be a function of (seed, purpose, step), so that a run which was killed
anywhere goes on as if it had not been. A checkpoint of step s is the state right after update s.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Generic, TypeVar

import torch
from rich.console import Console
from torch import Tensor

from rslm.allocator import keep_freed_memory
from rslm.architecture import TransformerConfig, n_parameters, train_flops_per_token
from rslm.chat import ChatFormat
from rslm.config import read_config
from rslm.distributed import Parallel, Processes, parallelize, start_processes
from rslm.environment import describe_environment, torch_threads
from rslm.errors import FormatError
from rslm.infer.load import choose_device, require_config
from rslm.model import Transformer
from rslm.optimizer_setup import build_optimizer, learning_rate_at
from rslm.post.base_model import Base, open_base
from rslm.post.post_config import PostConfig
from rslm.process import StopReason, StopSignals
from rslm.run_checkpoints import NO_BEST, Best, best_validation, restore
from rslm.run_display import RunDisplay, open_console
from rslm.run_folder import (
    AppendedFile,
    Background,
    NoFile,
    Row,
    append_start,
    open_run_folder,
    write_config,
)
from rslm.run_log import Clock, peak_flops
from rslm.tokenizer import Tokenizer
from rslm.trackers import Trackers, require_trackers, rows_beyond
from rslm.train_config import OptimizerConfig

Config = TypeVar("Config", bound=PostConfig)


@dataclass(frozen=True, kw_only=True)
class PostResult:
    """How a run ended.

    Attributes:
        out: the run folder.
        reason: "finished"; "interrupted" by SIGINT, or "terminated" by SIGTERM, SIGUSR1 or
            SIGUSR2, after which a checkpoint of the step was saved.
        step: updates made.
        loss: of the last one; None if this call made none.
        val_loss: of the last validation of this call, if there was one.
        val_reward: the same of a run on rewards.
        elapsed_seconds: of all parts of the run.
    """

    out: Path
    reason: StopReason
    step: int
    loss: float | None
    val_loss: float | None
    elapsed_seconds: float
    val_reward: float | None = None


@dataclass(frozen=True, kw_only=True)
class Start(Generic[Config]):
    """A run folder that this process may write to, and the model to begin with.

    Attributes:
        config: with the sizes, format and system message of the model.
        base: the model; at a resumption the run's own.
        processes: those that train together.
        console: where to show the run; nowhere but in the first process.
    """

    config: Config
    base: Base
    processes: Processes
    console: Console


@contextlib.contextmanager
def open_start(
    config: Config, *, resume: bool, resumable: frozenset[str], console: Console | None = None
) -> Iterator[Start[Config]]:
    """Makes the run folder, or goes on with it, and opens the model; locked inside the block.

    A run that has a checkpoint goes on with its own model: its base may be gone by then.

    Raises:
        FileExistsError: the run folder exists and `resume` was not asked for.
        FileNotFoundError: the base is no run or model folder.
        ValueError: an option is not what the run began with, or does not fit the base.
        FormatError: the base or every checkpoint is damaged.
    """
    console = console or open_console()
    require_trackers(config.trackers)
    if config.base.resolve() == config.out.resolve():
        raise ValueError(f"out must be another folder than base, got {config.out} for both")
    config = remembered(config) if resume else config
    if not has_checkpoint(config.out):
        require_config(config.base, "base")
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch_threads(config.n_threads))
        processes = stack.enter_context(start_processes(choose_device(config.device)))
        if processes.device.type == "cpu":
            stack.enter_context(keep_freed_memory())
        if processes.is_first:
            stack.enter_context(
                open_run_folder(config.out, config, resume=resume, resumable=resumable)
            )
        else:
            console = Console(file=stack.enter_context(open(os.devnull, "w")))
        base = processes.in_turn(lambda: open_own_base(config, processes.device))
        if config.model not in (TransformerConfig(), base.config):
            raise ValueError("model must be left out: its sizes are those of the base")
        config = replace(
            config,
            model=base.config,
            chat_format=base.chat_format.name,
            default_system=base.chat_format.default_system,
        )
        yield Start(config=config, base=base, processes=processes, console=console)


def remembered(config: Config) -> Config:
    """The config with what the run folder's own says where it says nothing itself."""
    path = config.out / "config.toml"
    if not path.exists():
        return config
    before = read_config(type(config), path)
    silent = [f.name for f in fields(config) if getattr(config, f.name) is None]
    found = {name: getattr(before, name) for name in silent}
    return replace(config, model=before.model, **found)


def has_checkpoint(out: Path) -> bool:
    """Whether a run goes on with a model of its own, sound or not."""
    return any((out / "checkpoints").glob("step_*"))


def open_own_base(config: PostConfig, device: torch.device) -> Base:
    """The model that a run begins or goes on with."""
    source = config.out if has_checkpoint(config.out) else config.base
    return open_for(config, source, device)


def open_for(config: PostConfig, source: Path, device: torch.device) -> Base:
    """The model of a folder, made to be what the options of a run ask for."""
    return open_base(
        source,
        device=device,
        chat_format=config.chat_format,
        default_system=config.default_system,
        wants_chat=True,
        context_length=config.context_length,
    )


@dataclass(kw_only=True)
class Run(Generic[Config]):
    """All that a loop works with; `step`, `n_tokens` and `best` change as it does.

    Attributes:
        config: the run, resolved.
        n_steps: updates of the whole run.
        model: what is trained.
        parallel: what trains it, with the optimizer.
        compiled: its `hidden_states`, compiled, where that was asked for.
        state: that of the checkpoint the run went on from.
        step: updates made.
        n_tokens: tokens that went through the model so far.
        n_skipped: updates skipped for gradients that were not finite.
        n_skipped_in_a_row: those since the last update.
        best: of the validations.
    """

    config: Config
    n_steps: int
    model: Transformer
    tokenizer: Tokenizer
    chat_format: ChatFormat
    processes: Processes
    parallel: Parallel
    optimizer_config: OptimizerConfig
    fingerprints: Row
    state: Row
    clock: Clock
    metrics: AppendedFile
    samples: AppendedFile
    trackers: Trackers
    display: RunDisplay
    stop: StopSignals
    writer: Background
    step: int
    n_tokens: int
    n_skipped: int
    n_skipped_in_a_row: int
    best: Best
    flops_per_token: float
    peak_flops: float
    compiled: Callable[..., Tensor] | None = None
    row: Row = field(default_factory=dict)
    validation: Row = field(default_factory=dict)
    saved_at: float = 0.0
    last_seconds: float | None = None

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return self.processes.device

    @property
    def learning_rate(self) -> float:
        """The rate of the next update."""
        return learning_rate_at(self.optimizer_config, self.step, self.n_steps)


@contextlib.contextmanager
def open_run(
    start: Start[Config],
    *,
    n_steps: int,
    fingerprints: Row,
    shown: Mapping[str, str] | None = None,
    due: Mapping[str, int | None] | None = None,
    drawn: str = "loss",
) -> Iterator[Run[Config]]:
    """The parts of a run that is begun, or that goes on from its newest good checkpoint.

    Args:
        start: what `open_start` gave, its config resolved.
        n_steps: updates of the whole run.
        fingerprints: what identifies the data; a resumed run must have the same.
        shown: further metrics that the display shows, with their formats.
        due: what else than checkpoints happens every so many steps, by its name.
        drawn: the metric whose course the display draws.

    Raises:
        ValueError: the data or the options are not what the run began with.
        FormatError: no checkpoint is good.
    """
    config, base, processes = start.config, start.base, start.processes
    model, is_first, out = base.model, processes.is_first, config.out
    optimizer_config = resolved_optimizer(config, n_steps)
    parallel, state = restored(start, optimizer_config, n_steps, fingerprints)
    step, skipped = state["step"], state.get("skipped", {})
    skipped = skipped if isinstance(skipped, dict) else {"n_skipped": skipped}
    with contextlib.ExitStack() as stack:
        display = open_display(start, step, n_steps, shown or {}, due or {}, drawn)
        written = rows_beyond(out / "metrics.jsonl", state["metrics_bytes"])
        trackers = Trackers(
            config,
            n_steps=n_steps,
            first_step=step,
            written=written,
            warn=display.warn,
            is_first=is_first,
        )
        stack.enter_context(trackers)
        metrics, samples = (
            stack.enter_context(AppendedFile(out / name, state[size]) if is_first else NoFile())
            for name, size in (("metrics.jsonl", "metrics_bytes"), ("samples.md", "samples_bytes"))
        )
        if is_first:
            record_start(start, fingerprints, step)
        dtype = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
        run = Run(
            config=config,
            n_steps=n_steps,
            model=model,
            tokenizer=base.tokenizer,
            chat_format=base.chat_format,
            processes=processes,
            parallel=parallel,
            # Without the head, which reads trained places alone: another number each step.
            compiled=torch.compile(model.hidden_states) if config.compile else None,
            optimizer_config=optimizer_config,
            fingerprints=fingerprints,
            state=state,
            clock=Clock(state["elapsed_seconds"]),
            metrics=metrics,
            samples=samples,
            trackers=trackers,
            display=display,
            stop=stack.enter_context(StopSignals(processes.largest)),
            writer=stack.enter_context(Background()),
            step=step,
            n_tokens=count_in(state, "n_tokens"),
            n_skipped=count_in(skipped, "n_skipped"),
            n_skipped_in_a_row=count_in(skipped, "n_in_a_row"),
            best=best_validation(config) if is_first else NO_BEST,
            flops_per_token=train_flops_per_token(base.config),
            peak_flops=peak_flops(processes.device, dtype) * processes.world_size,
        )
        run.saved_at = run.clock.elapsed_seconds
        stack.enter_context(display)
        if base.note is not None:
            display.note(base.note)
        yield run


def restored(
    start: Start[Config], optimizer_config: OptimizerConfig, n_steps: int, fingerprints: Row
) -> tuple[Parallel, Row]:
    """What trains the model, as the newest good checkpoint left both, and the run's state."""
    config, model, processes = start.config, start.base.model, start.processes
    model.recompute_blocks = config.recompute_blocks
    optimizer = build_optimizer(model, optimizer_config, start.base.config)
    state: Row = processes.in_turn(
        lambda: restore(config, fingerprints, model, optimizer, start.console, n_steps=n_steps)
    )
    parallel = parallelize(
        config.parallel,
        model,
        optimizer,
        processes,
        autocast_dtype=torch.bfloat16 if config.precision == "bfloat16" else None,
    )
    return parallel, state


def resolved_optimizer(config: PostConfig, n_steps: int) -> OptimizerConfig:
    """The optimizer's options with the warm-up in steps.

    Raises:
        ValueError: the warm-up or a stretch of the schedule is longer than the run.
    """
    optimizer = config.optimizer
    warmup_steps = optimizer.resolved_warmup_steps(n_steps)
    optimizer = replace(optimizer, warmup_steps=warmup_steps, warmup_fraction=None)
    if warmup_steps > n_steps:
        raise ValueError(f"warmup_steps must be at most n_steps {n_steps}, got {warmup_steps}")
    learning_rate_at(optimizer, 0, n_steps)  # Refuses stretches that do not fit.
    return optimizer


def open_display(
    start: Start[Config],
    step: int,
    n_steps: int,
    shown: Mapping[str, str],
    due: Mapping[str, int | None],
    drawn: str,
) -> RunDisplay:
    """The display of a run that goes on from `step`."""
    config, sizes = start.config, start.base.config
    summary = f"{n_parameters(sizes):,} parameters, {sizes.n_layers} layers of {sizes.d_model}"
    display = RunDisplay(
        start.console,
        title=summary,
        n_steps=n_steps,
        first_step=step,
        log_every=config.log_every,
        due={"checkpoint": config.checkpoint_every, **due},
        compiles=config.compile,
        shown=shown,
        drawn=drawn,
    )
    display.note(f"training {config.base} ({summary}) in {config.out}")
    return display


def record_start(start: Start[Config], fingerprints: Row, step: int) -> None:
    """Leaves config, tokenizer and a description of this start in the run folder."""
    config = start.config
    write_config(config.out, config)
    start.base.tokenizer.save(config.out / "tokenizer.json")
    entry: Row = {"first_step": step, "seed": config.seed, "device": str(start.processes.device)}
    append_start(config.out, entry | {"data": fingerprints} | describe_environment())


def count_in(record: Row, name: str) -> int:
    """A count that a run's state holds, 0 where it holds none.

    Raises:
        FormatError: what it holds is no count.
    """
    count = record.get(name, 0)
    if type(count) is not int or not 0 <= count < 2**63:
        raise FormatError(f"{name} of a checkpoint must be a count, got {count!r:.80}")
    return count
