"""Pre-training: `TrainConfig`, and `train(config)`, which reads from top to bottom.

A run folder holds `config.toml` (resolved), `env.json` (one entry per start), `tokenizer.json`,
`metrics.jsonl`, `samples.md`, `loss_curve.png` and `checkpoints/`. A checkpoint of step s is the
state right after update s, before what else is due at s. Validation and samples are always made
from a state that was saved first, so a run that is stopped or killed in them loses nothing and
makes them again. A thread writes the checkpoint; the loop waits only while the state is copied.
Whatever is random is a function of (seed, purpose, step), so there is no generator to restore.
"""

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from torch import Tensor
from torch.optim import Optimizer

from rslm import checkpoint
from rslm.architecture import TransformerConfig, n_parameters, train_flops_per_token
from rslm.batches import (
    BatchSizes,
    Mixture,
    continue_batch_sizes,
    count_samples,
    counter_seed,
    first_sample,
    mixing_slots,
    sample_batch,
    split_windows,
)
from rslm.config import to_record
from rslm.distributed import parallelize, start_processes
from rslm.errors import FormatError
from rslm.evaluate.loss import evaluate_loss
from rslm.files import write_atomically
from rslm.infer.load import choose_device, end_ids
from rslm.infer.sampler import generate
from rslm.losses import training_loss
from rslm.model import Transformer
from rslm.nonfinite import SkippedSteps
from rslm.optim import optimizer_step
from rslm.optimizer_setup import build_optimizer, scheduled_learning_rate
from rslm.run_folder import (
    AppendedFile,
    Background,
    NoFile,
    Row,
    StopSignals,
    append_start,
    describe_environment,
    open_run_folder,
    read_metrics,
    require_run_state,
    versions,
    write_config,
)
from rslm.run_log import Clock, Meter, RunDisplay, peak_flops, write_loss_curve
from rslm.token_file import TokenFile
from rslm.tokenizer import Tokenizer
from rslm.train_config import RESUMABLE, DataConfig, OptimizerConfig, TrainConfig

__all__ = ["DataConfig", "OptimizerConfig", "TrainConfig", "TrainResult", "train"]

StopReason = Literal["finished", "interrupted", "terminated"]


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """How a run ended.

    Attributes:
        out: the run folder.
        reason: "finished"; "interrupted" by SIGINT, or "terminated" by SIGTERM, SIGUSR1 or
            SIGUSR2, after which a checkpoint of the step was saved.
        step: updates made.
        loss: training loss of the last one, in nats per token; None if this call made none.
        val_loss: likewise of the last validation.
        val_bits_per_byte: likewise.
        elapsed_seconds: of all parts of the run.
    """

    out: Path
    reason: StopReason
    step: int
    loss: float | None
    val_loss: float | None
    val_bits_per_byte: float | None
    elapsed_seconds: float


def train(
    config: TrainConfig, *, resume: bool = False, console: Console | None = None
) -> TrainResult:
    """Trains a Transformer on a token file, leaving everything in the run folder `config.out`.

    Equal configs and data give equal weights and metrics (but for `CLOCK_KEYS`) on a CPU with
    the same number of threads, whether or not the run was stopped, killed and resumed between.
    SIGINT and SIGTERM finish the micro-batch, save and return; a second one acts at once. With
    `resume` a run goes on from its newest good checkpoint, and one that was never begun begins.
    A changed batch size counts from there on: the order of the data goes on with the sample that
    would have been next.

    Args:
        config: the run.
        resume: continue the run in `config.out` instead of refusing an existing folder.
        console: where the display goes; standard error unless given.

    Raises:
        FileExistsError: the run folder exists and `resume` was not asked for.
        ValueError: the config does not fit the data, or not the run that is resumed.
        FormatError: a token file or checkpoint is damaged.
        FloatingPointError: loss or gradients stayed infinite or not a number, step after step;
            a few such steps are skipped, and their batches written to the run folder.
        OSError: the disk is full; the checkpoints before still stand.
    """
    console = console or Console(stderr=True)
    data = open_data(config)
    config = replace(config, model=resolve_model(config.model, data.train))
    out = config.out

    with contextlib.ExitStack() as stack:
        stack.enter_context(torch_threads(config.n_threads))
        processes = stack.enter_context(start_processes(choose_device(config.device)))
        device, is_first = processes.device, processes.is_first
        share = processes.share_of(config.batch_size)
        micro_batch_size = process_micro_batch_size(config, share)
        if is_first:
            stack.enter_context(open_run_folder(out, config, resume=resume, resumable=RESUMABLE))
        else:
            console = Console(file=stack.enter_context(open(os.devnull, "w")))
        model = build_model(config, device)
        optimizer = build_optimizer(model, config.optimizer, config.model)
        state = processes.in_turn(lambda: restore(config, data, model, optimizer, console))
        parallel = parallelize(
            config.parallel,
            model,
            optimizer,
            processes,
            autocast_dtype=torch.bfloat16 if config.precision == "bfloat16" else None,
            compiles=config.compile,
        )

        metrics, samples = (
            stack.enter_context(AppendedFile(out / name, state[size]) if is_first else NoFile())
            for name, size in (("metrics.jsonl", "metrics_bytes"), ("samples.md", "samples_bytes"))
        )
        step = state["step"]
        best = best_validation(config) if is_first else NO_BEST
        batch_sizes = continue_batch_sizes(state["batch_sizes"], step, config.batch_size)
        clock = Clock(state["elapsed_seconds"])
        meter = make_meter(config, device, clock, batch_sizes, processes.world_size)
        if is_first:
            record_start(config, data, device, step)
        stop = stack.enter_context(StopSignals(processes.largest))
        writer = stack.enter_context(Background())
        display = stack.enter_context(open_display(config, step, console))
        skipped = SkippedSteps(
            config, data.source, batch_sizes, state.get("skipped"), writes=is_first
        )
        stopping = saving = finished = False
        saved_at = clock.elapsed_seconds
        row, validation = Row(), Row()

        while True:
            # `step` updates are made, and their rows written.
            if saving:
                with clock.away():
                    # Two checkpoints in memory would be one too many.
                    writer.wait()
                    state = run_state(
                        config, data, batch_sizes, step, clock, metrics, samples, skipped
                    )
                    with parallel.unsharded() as whole_optimizer:
                        if is_first:
                            save(config, model, whole_optimizer, state, best.step, writer)
                saving, saved_at = False, clock.elapsed_seconds
            if stopping:
                break
            if data.valid is not None and is_due(step, config.validate_every, config):
                with clock.away():
                    evaluation = evaluate_loss(
                        model,
                        data.valid,
                        batch_size=micro_batch_size,
                        n_tokens=config.n_validation_tokens,
                        token_byte_lengths=data.token_byte_lengths,
                        autocast_dtype=parallel.autocast_dtype,
                        should_stop=stop.requested,
                        processes=processes,
                    )
                if evaluation is None:
                    break
                validation = meter.validation_row(step, evaluation.loss, evaluation.bits_per_byte)
                metrics.write_row(validation)
                display.show(validation)
                if is_first and config.keep_best and evaluation.loss < best.val_loss:
                    best = Best(step, evaluation.loss)
                    writer.start(partial(mark_best, config, step))
            if data.tokenizer is not None and is_due(step, config.sample_every, config):
                with clock.away():
                    samples.write(sample_text(model, data.tokenizer, config, step))
            if step == config.n_steps:
                finished = True
                break

            windows = sample_batch(
                data.source,
                seed=config.seed,
                step=step,
                batch_size=config.batch_size,
                context_length=config.model.context_length,
                first=first_sample(batch_sizes, step),
                share=share,
            )
            loss = accumulate_gradients(
                parallel.forward,
                windows,
                micro_batch_size,
                device,
                parallel.autocast_dtype,
                z_loss=config.model.z_loss,
                no_sync=parallel.no_sync,
                should_stop=stop.requested,
            )
            parallel.finish_gradient_synchronization()
            if loss is None:  # Told to stop within the batch: it is read again at the resumption.
                parallel.optimizer.zero_grad(set_to_none=True)
            else:
                loss = processes.mean(loss)
                learning_rate = scheduled_learning_rate(config, step)
                grad_norm = optimizer_step(
                    parallel.optimizer,
                    learning_rate=learning_rate,
                    max_grad_norm=config.optimizer.max_grad_norm,
                    clip=parallel.clip_grad_norm,
                )
                step += 1
                meter.add(step, learning_rate=learning_rate, loss=loss, grad_norm=grad_norm)

            stopping = stop.requested()
            is_late = clock.elapsed_seconds - saved_at >= 60 * config.checkpoint_minutes
            # Clocks differ by a little, and all processes must save at one step.
            is_late = bool(processes.largest(is_late))
            saving = step > state["step"] and (stopping or is_late or is_saved(step, config))
            if stopping or saving or is_fetched(step, config, device):
                for row in meter.take_rows():
                    if (note := skipped.check(row)) is not None:
                        display.note(note)
                    metrics.write_row(row)
                    display.show(row)
            writer.check()
        writer.wait()
    if is_first:
        write_loss_curve(out, f"{out.name} ({model_summary(config)})")
    return TrainResult(
        out=out,
        reason="finished" if finished else stop.reason,
        step=step,
        loss=row.get("loss"),
        val_loss=validation.get("val_loss"),
        val_bits_per_byte=validation.get("val_bits_per_byte"),
        elapsed_seconds=clock.elapsed_seconds,
    )


@dataclass(frozen=True, kw_only=True)
class Data:
    """The opened data of a run; the tokenizer is that of the training file, where it has one.

    `source` is what batches are drawn from: `train`, or a mixture of which it is the first file.
    """

    train: TokenFile
    source: TokenFile | Mixture
    valid: TokenFile | None
    tokenizer: Tokenizer | None

    @property
    def train_files(self) -> tuple[TokenFile, ...]:
        """All files to train on."""
        return self.source.token_files if isinstance(self.source, Mixture) else (self.train,)

    @property
    def token_byte_lengths(self) -> npt.NDArray[np.uint32] | None:
        """Bytes of each token, special ones 0."""
        return None if self.tokenizer is None else self.tokenizer.token_byte_lengths

    @property
    def fingerprints(self) -> Row:
        """What identifies the data, wherever it lies."""
        valid = None if self.valid is None else self.valid.fingerprint
        mixed_in = [token_file.fingerprint for token_file in self.train_files[1:]]
        known: Row = {"train": self.train.fingerprint, "valid": valid}
        return known | {"mixed_in": mixed_in} if mixed_in else known


def open_data(config: TrainConfig) -> Data:
    """Opens the token files and the tokenizer inside the first.

    Raises:
        FormatError: a file is damaged, or they were made by different tokenizers.
        ValueError: a training file is shorter than one window, or a weight is out of range.
    """
    train_files = tuple(map(TokenFile.open, (config.data.train, *config.data.mixed_in)))
    train_file = train_files[0]
    for token_file in train_files:
        count_samples(len(token_file), config.model.context_length)
        if token_file.tokenizer_sha256 != train_file.tokenizer_sha256:
            raise FormatError(
                f"{token_file.path} was made by another tokenizer than {config.data.train}"
            )
    source: TokenFile | Mixture = train_file
    if len(train_files) > 1:
        slots = mixing_slots(config.data.weights or list(map(len, train_files)), config.seed)
        source = Mixture(token_files=train_files, slots=slots)
    valid_file = None if config.data.valid is None else TokenFile.open(config.data.valid)
    if valid_file is not None and len(valid_file) < 2:
        raise ValueError(f"{config.data.valid} must hold at least 2 tokens, got {len(valid_file)}")
    if valid_file is not None and valid_file.tokenizer_sha256 != train_file.tokenizer_sha256:
        raise FormatError(
            f"{config.data.valid} was made by another tokenizer than {config.data.train}"
        )
    record = train_file.tokenizer_json
    tokenizer = None if record is None else Tokenizer.from_json(record)
    return Data(train=train_file, source=source, valid=valid_file, tokenizer=tokenizer)


def resolve_model(model: TransformerConfig, train_file: TokenFile) -> TransformerConfig:
    """The model's config with the vocabulary of the data.

    Raises:
        ValueError: the data has ids that the model would not have, or does not say how many.
    """
    stated = train_file.vocab_size
    if model.vocab_size is None and stated is None:
        raise ValueError("model.vocab_size must be given: the token file does not state its own")
    if model.vocab_size is not None and stated is not None and model.vocab_size < stated:
        raise ValueError(
            f"model.vocab_size must be at least {stated}, that of the token file, "
            f"got {model.vocab_size}"
        )
    if stated is None:
        # A plain llm.c file promises nothing about its ids.
        for start in range(0, len(train_file), 1 << 24):
            largest = int(train_file[start : start + (1 << 24)].max())
            if largest >= (model.vocab_size or 0):
                raise ValueError(
                    f"token ids must be below model.vocab_size {model.vocab_size}, got {largest}"
                )
    return replace(model, vocab_size=model.vocab_size or stated)


@contextlib.contextmanager
def torch_threads(n_threads: int | None) -> Iterator[None]:
    """Runs the block with this many CPU threads; None leaves torch's choice."""
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def process_micro_batch_size(config: TrainConfig, share: slice) -> int:
    """Sequences per forward pass of a process whose part of a batch is `share`.

    Raises:
        ValueError: `micro_batch_size` does not divide that part.
    """
    n_sequences: int = share.stop - share.start
    size = config.micro_batch_size or n_sequences
    if n_sequences % size:
        raise ValueError(
            f"micro_batch_size must be a divisor of the {n_sequences} sequences of a process, "
            f"got {size}"
        )
    return size


def build_model(config: TrainConfig, device: torch.device) -> Transformer:
    """A new model, the same for the same seed on every device; float32."""
    generator = torch.Generator().manual_seed(counter_seed(config.seed, "weights"))
    return Transformer(
        config.model,
        recompute_blocks=config.recompute_blocks,
        generator=generator,
        device=device,
        dtype=torch.float32,
    )


def restore(
    config: TrainConfig, data: Data, model: Transformer, optimizer: Optimizer, console: Console
) -> Row:
    """Loads the newest good checkpoint, or the weights to start from; returns the run's state.

    Raises:
        FormatError: no checkpoint is good, or it does not fit the config.
        ValueError: the data is not what the run began with.
    """
    folder = config.out / "checkpoints"
    newest, rejected = checkpoint.newest_checkpoint(folder)
    if rejected and newest is None:
        faults = "\n".join(rejected.values())
        raise FormatError(f"no checkpoint in {folder} is good; remove it to begin anew\n{faults}")
    for path, fault in rejected.items():
        console.print(f"rejected a checkpoint: {fault}", soft_wrap=True, markup=False)
        checkpoint.set_aside(path, "rejected")
    if newest is None:
        if config.init_from is not None:
            checkpoint.load_weights(checkpoint.weights_path(config.init_from), model)
        begun = {"step": 0, "batch_sizes": [], "elapsed_seconds": 0.0}
        return begun | {"metrics_bytes": 0, "samples_bytes": 0}
    require_run_state(checkpoint.read_state(newest), newest / checkpoint.STATE)
    state = checkpoint.load_run_checkpoint(newest, model, optimizer)
    if state["data"] != data.fingerprints:
        raise ValueError(
            f"the data must be what the run began with, {state['data']}, got {data.fingerprints}"
        )
    console.print(f"resuming from {newest}", soft_wrap=True, markup=False)
    return state


def save(
    config: TrainConfig,
    model: Transformer,
    optimizer: Optimizer,
    state: Row,
    best_step: int | None,
    writer: Background,
) -> None:
    """Copies the state, and has the copy written and the oldest checkpoint removed."""
    folder = config.out / "checkpoints"
    snapshot = checkpoint.take_snapshot(model, optimizer)

    def write() -> None:
        checkpoint.write_snapshot(folder, snapshot, state)
        checkpoint.prune_checkpoints(folder, config.keep_checkpoints, best_step)

    writer.start(write)


class Best(NamedTuple):
    """The lowest validation loss so far, and the step it was reached at."""

    step: int | None
    val_loss: float


NO_BEST = Best(None, math.inf)


def best_validation(config: TrainConfig) -> Best:
    """The best of the validations in the metrics whose checkpoint still exists."""
    folder = config.out / "checkpoints"
    validated = [
        Best(row["step"], row["val_loss"])
        for row in read_metrics(config.out / "metrics.jsonl")
        if row.get("val_loss") is not None and checkpoint.step_folder(folder, row["step"]).exists()
    ]
    lowest = min(validated, key=lambda best: best.val_loss, default=NO_BEST)
    return lowest if config.keep_best else NO_BEST


def mark_best(config: TrainConfig, step: int) -> None:
    """Marks the checkpoint of a step as the best; the one before may go."""
    folder = config.out / "checkpoints"
    checkpoint.mark_best(folder, step)
    checkpoint.prune_checkpoints(folder, config.keep_checkpoints, step)


def run_state(
    config: TrainConfig,
    data: Data,
    batch_sizes: BatchSizes,
    step: int,
    clock: Clock,
    metrics: AppendedFile,
    samples: AppendedFile,
    skipped: SkippedSteps,
) -> Row:
    """What a checkpoint says beside the tensors; it counts on the files as they are now."""
    return {
        "format": 2,
        "step": step,
        "n_tokens": first_sample(batch_sizes, step) * config.model.context_length,
        "batch_sizes": batch_sizes,
        "elapsed_seconds": clock.elapsed_seconds,
        "metrics_bytes": metrics.sync(),
        "samples_bytes": samples.sync(),
        # Batches, weights and samples are drawn by seed and step; there is no other generator.
        "random": {"seed": config.seed, "step": step},
        "skipped": skipped.record(),
        "data": data.fingerprints,
        "config": to_record(config),
        "versions": versions(),
    }


def record_start(config: TrainConfig, data: Data, device: torch.device, step: int) -> None:
    """Leaves config, tokenizer and a description of this start in the run folder."""
    write_config(config.out, config)
    if data.train.tokenizer_json is not None:
        write_atomically(config.out / "tokenizer.json", data.train.tokenizer_json)
    entry: Row = {"first_step": step, "seed": config.seed, "device": str(device)}
    entry["batch_size"] = config.batch_size
    append_start(config.out, entry | {"data": data.fingerprints} | describe_environment())


def make_meter(
    config: TrainConfig,
    device: torch.device,
    clock: Clock,
    batch_sizes: BatchSizes,
    n_processes: int = 1,
) -> Meter:
    """The meter of this model on the devices of all processes."""
    first_step = batch_sizes[-1][0]
    dtype = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
    return Meter(
        clock,
        device,
        tokens_per_step=config.batch_size * config.model.context_length,
        flops_per_token=train_flops_per_token(config.model),
        peak_flops=peak_flops(device, dtype) * n_processes,
        first_step=first_step,
        first_token=first_sample(batch_sizes, first_step) * config.model.context_length,
    )


def open_display(config: TrainConfig, step: int, console: Console) -> RunDisplay:
    """The display of a run that goes on from `step`."""
    display = RunDisplay(
        console,
        title=model_summary(config),
        n_steps=config.n_steps,
        first_step=step,
        log_every=config.log_every,
    )
    display.note(f"training {model_summary(config)} in {config.out}")
    if config.compile:
        display.note("compiling: the first step takes longer, and is left out of the speed")
    return display


def model_summary(config: TrainConfig) -> str:
    """The model in a few words."""
    model = config.model
    return f"{n_parameters(model):,} parameters, {model.n_layers} layers of {model.d_model}"


def is_due(step: int, every: int | None, config: TrainConfig) -> bool:
    """Whether something is due after `step` updates: at multiples of `every`, and at the end."""
    return step == config.n_steps or (every is not None and step > 0 and step % every == 0)


def is_saved(step: int, config: TrainConfig) -> bool:
    """Whether the state after `step` updates is saved: before anything else that is due then."""
    validated = config.validate_every if config.data.valid is not None else None
    every = (config.checkpoint_every, validated, config.sample_every)
    return any(is_due(step, steps, config) for steps in every)


def is_fetched(step: int, config: TrainConfig, device: torch.device) -> bool:
    """Whether the numbers of the updates so far are fetched from the device after `step`.

    On a CPU that costs nothing. Elsewhere it waits for the queue, so it happens as often as
    there is something to show or to save.
    """
    every = (config.log_every, config.checkpoint_every, config.validate_every, config.sample_every)
    return device.type == "cpu" or any(is_due(step, steps, config) for steps in every)


def accumulate_gradients(
    model: Callable[[Tensor], Tensor],
    windows: npt.NDArray[np.int64],
    micro_batch_size: int,
    device: torch.device,
    autocast_dtype: torch.dtype | None,
    *,
    z_loss: float = 0.0,
    no_sync: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
    should_stop: Callable[[], bool] = lambda: False,
) -> Tensor | None:
    """Adds the gradients of the mean loss over all windows; returns that loss, on the device.

    What is returned is the cross-entropy alone, what is differentiated has the z-loss in it.

    Each micro-batch is weighted by its share of the target tokens, so the sum does not depend
    on how the batch is cut, up to rounding. All but the last run inside `no_sync`. Returns None,
    with gradients of a part of the windows, when `should_stop` became true between two.
    """
    total = torch.zeros((), device=device)
    for first in range(0, len(windows), micro_batch_size):
        if first > 0 and should_stop():
            return None
        inputs, targets = split_windows(windows[first : first + micro_batch_size], device)
        share = len(inputs) / len(windows)
        is_last = first + micro_batch_size >= len(windows)
        with contextlib.nullcontext() if is_last else no_sync():
            with torch.autocast(device.type, autocast_dtype, enabled=autocast_dtype is not None):
                minimised, loss = training_loss(model(inputs), targets, z_loss=z_loss)
                minimised = minimised * share
            torch.autograd.backward(minimised)
        total += loss.detach() * share
    return total


def sample_text(model: Transformer, tokenizer: Tokenizer, config: TrainConfig, step: int) -> str:
    """A section of `samples.md`: what the model writes after `step` updates."""
    end = tokenizer.end_of_text
    prompt_ids = tokenizer.encode(config.sample_prompt)
    if not prompt_ids:
        prompt_ids = [0 if end is None else end]
    token_ids = generate(
        model,
        prompt_ids,
        max_new_tokens=config.n_sample_tokens,
        temperature=0.8,
        stop_token_ids=end_ids(model, tokenizer),
        seed=counter_seed(config.seed, "sample", step),
    )
    text = config.sample_prompt + tokenizer.decode(list(token_ids))
    return f"## Step {step:,}\n\n" + "".join(f"    {line}\n" for line in text.splitlines()) + "\n"
