"""Pre-training: `TrainConfig`, and `train(config)`, which reads from top to bottom.

A run folder holds `config.toml` (resolved), `env.json` (one entry per start), `tokenizer.json`,
`metrics.jsonl`, `samples.md`, `loss_curve.png` and `checkpoints/`. A checkpoint of step s is the
state right after update s, before what else is due at s. Validation and samples are always made
from a state that was saved first, so a run that is stopped or killed in them loses nothing and
makes them again. A thread writes the checkpoint; the loop waits only while the state is copied.
Whatever is random is a function of (seed, purpose, step), so there is no generator to restore.
"""

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from rslm.allocator import keep_freed_memory
from rslm.architecture import n_parameters, train_flops_per_token
from rslm.attention import check_implementation
from rslm.batches import (
    Batch,
    BatchSizes,
    Packed,
    continue_batch_sizes,
    count_targets,
    counter_seed,
    first_sample,
    micro_batch,
    sample_batch,
)
from rslm.distributed import parallelize, start_processes
from rslm.environment import describe_environment, torch_threads
from rslm.evaluate.loss import evaluate_loss
from rslm.files import write_atomically
from rslm.infer.load import choose_device, end_ids
from rslm.infer.sampler import generate
from rslm.model import Transformer
from rslm.nonfinite import SkippedSteps
from rslm.optim import optimizer_step
from rslm.optimizer_setup import build_optimizer, scheduled_learning_rate
from rslm.process import StopReason, StopSignals
from rslm.reference_curve import BandWatch, find_curve
from rslm.run_checkpoints import (
    NO_BEST,
    Best,
    best_validation,
    mark_best,
    restore,
    run_state,
    save,
)
from rslm.run_data import Data, open_data, pack_data, packing_notes, resolve_model
from rslm.run_display import RunDisplay, open_console
from rslm.run_folder import (
    AppendedFile,
    Background,
    NoFile,
    Row,
    append_start,
    open_run_folder,
    read_metrics,
    write_config,
)
from rslm.run_log import Clock, Meter, peak_flops, write_loss_curve
from rslm.tokenizer import Tokenizer
from rslm.trackers import Trackers, require_trackers, rows_beyond
from rslm.train_config import RESUMABLE, DataConfig, OptimizerConfig, TrainConfig

__all__ = ["DataConfig", "OptimizerConfig", "TrainConfig", "TrainResult", "train"]


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
    console = console or open_console()
    require_trackers(config.trackers)
    data = open_data(config)
    config = replace(config, model=resolve_model(config.model, data))
    curve = find_curve(config, data.fingerprints)
    out = config.out

    with contextlib.ExitStack() as stack:
        stack.enter_context(torch_threads(config.n_threads))
        processes = stack.enter_context(start_processes(choose_device(config.device)))
        device, is_first = processes.device, processes.is_first
        check_implementation(config.attention_implementation, device)
        if device.type == "cpu":
            stack.enter_context(keep_freed_memory())
        # One process plans, and the others read what it wrote.
        data = processes.in_turn(partial(pack_data, data, config))
        share = processes.share_of(config.batch_size)
        micro_batch_size = process_micro_batch_size(config, share)
        if is_first:
            stack.enter_context(open_run_folder(out, config, resume=resume, resumable=RESUMABLE))
        else:
            console = Console(file=stack.enter_context(open(os.devnull, "w")))
        model = build_model(config, device)
        optimizer = build_optimizer(model, config.optimizer, config.model)
        state = processes.in_turn(
            lambda: restore(
                config,
                data.fingerprints,
                model,
                optimizer,
                console,
                n_steps=config.n_steps,
                init_from=config.init_from,
            )
        )
        parallel = parallelize(
            config.parallel,
            model,
            optimizer,
            processes,
            autocast_dtype=torch.bfloat16 if config.precision == "bfloat16" else None,
            compiles=config.compile,
        )

        step = state["step"]
        run_display = open_display(config, step, console)
        # Before what was written beyond the checkpoint is cut away; before a panel is drawn, into
        # which a tracker may ask for a password.
        written = rows_beyond(out / "metrics.jsonl", state["metrics_bytes"])
        trackers = stack.enter_context(
            Trackers(
                config,
                n_steps=config.n_steps,
                first_step=step,
                written=written,
                warn=run_display.warn,
                is_first=is_first,
            )
        )
        metrics, samples = (
            stack.enter_context(AppendedFile(out / name, state[size]) if is_first else NoFile())
            for name, size in (("metrics.jsonl", "metrics_bytes"), ("samples.md", "samples_bytes"))
        )
        best = best_validation(config) if is_first else NO_BEST
        batch_sizes = continue_batch_sizes(state["batch_sizes"], step, config.batch_size)
        # Once the batch size has changed the run is another than was measured.
        rows = read_metrics(out / "metrics.jsonl") if curve is not None and is_first else []
        band = BandWatch(curve if is_first and len(batch_sizes) == 1 else None, rows)
        clock = Clock(state["elapsed_seconds"])
        n_targets = None
        if isinstance(data.source, Packed) and data.source.plans:
            # A checkpoint of before targets were counted has no number to go on from.
            n_targets = state.get("n_targets", 0 if step == 0 else None)
        meter = make_meter(config, device, clock, batch_sizes, n_targets, processes.world_size)
        if is_first:
            record_start(config, data, device, step)
        stop = stack.enter_context(StopSignals(processes.largest))
        writer = stack.enter_context(Background())
        display = stack.enter_context(run_display)
        for packed in packing_notes(data):
            display.note(packed)
        skipped = SkippedSteps(
            config, data.source, batch_sizes, state.get("skipped"), writes=is_first
        )
        stopping = saving = finished = False
        saved_at = clock.elapsed_seconds
        row, validation = Row(), Row()

        while True:
            # `step` updates are made, and their rows written.
            if saving:
                with clock.away(), display.doing("saving"):
                    trackers.flush()
                    # Two checkpoints in memory would be one too many.
                    writer.wait()
                    state = run_state(
                        config,
                        step,
                        batch_sizes=batch_sizes,
                        fingerprints=data.fingerprints,
                        n_targets=meter.n_targets,
                        skipped=skipped.record(),
                        elapsed_seconds=clock.elapsed_seconds,
                        metrics_bytes=metrics.sync(),
                        samples_bytes=samples.sync(),
                    )
                    with parallel.unsharded() as whole:
                        if is_first:
                            save(config, model, whole, state, best.step, writer)
                saving, saved_at = False, clock.elapsed_seconds
            if stopping:
                break
            if data.valid is not None and is_due(step, config.validate_every, config):
                with clock.away(), display.doing("validating"):
                    evaluation = evaluate_loss(
                        model,
                        data.valid,
                        batch_size=micro_batch_size,
                        n_tokens=config.n_validation_tokens,
                        token_byte_lengths=data.token_byte_lengths,
                        mask_documents=config.data.mask_documents,
                        restart_positions=config.data.restart_positions,
                        autocast_dtype=parallel.autocast_dtype,
                        should_stop=stop.requested,
                        processes=processes,
                    )
                if evaluation is None:
                    break
                validation = meter.validation_row(step, evaluation.loss, evaluation.bits_per_byte)
                metrics.write_row(validation)
                trackers.write_row(validation)
                display.show(validation)
                if is_first and config.keep_best and evaluation.loss < best.val_loss:
                    best = Best(step, evaluation.loss)
                    writer.start(partial(mark_best, config, step))
            if data.tokenizer is not None and is_due(step, config.sample_every, config):
                with clock.away(), display.doing("sampling"):
                    samples.write(sample_text(model, data.tokenizer, config, step))
            if step == config.n_steps:
                finished = True
                break

            batch = sample_batch(
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
                batch,
                micro_batch_size,
                device,
                parallel.autocast_dtype,
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
                meter.add(
                    step,
                    learning_rate=learning_rate,
                    loss=loss,
                    grad_norm=grad_norm,
                    n_targets=count_targets(batch, config.batch_size),
                )

            stopping = stop.requested()
            is_late = clock.elapsed_seconds - saved_at >= 60 * config.checkpoint_minutes
            # Clocks differ by a little, and all processes must save at one step.
            is_late = bool(processes.largest(is_late))
            saving = step > state["step"] and (stopping or is_late or is_saved(step, config))
            if stopping or saving or is_fetched(step, config, device):
                for row in meter.take_rows():
                    if (warning := skipped.check(row)) is not None:
                        display.warn(warning)
                    if (warning := band.check(row)) is not None:
                        display.warn(warning)
                    metrics.write_row(row)
                    trackers.write_row(row)
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
        implementation=config.attention_implementation,
        recompute_blocks=config.recompute_blocks,
        generator=generator,
        device=device,
        dtype=torch.float32,
    )


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
    n_targets: int | None = None,
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
        n_targets=n_targets,
    )


def open_display(config: TrainConfig, step: int, console: Console) -> RunDisplay:
    """The display of a run that goes on from `step`."""
    display = RunDisplay(
        console,
        title=model_summary(config),
        n_steps=config.n_steps,
        first_step=step,
        log_every=config.log_every,
        due=due_every(config),
        compiles=config.compile,
    )
    display.note(f"training {model_summary(config)} in {config.out}")
    if config.compile:
        display.note("compiling: the first step takes longer, and is left out of the speed")
    return display


def due_every(config: TrainConfig) -> dict[str, int | None]:
    """What is due every so many steps, None: only at the end."""
    every: dict[str, int | None] = {"checkpoint": config.checkpoint_every}
    if config.data.valid is not None:
        every["validation"] = config.validate_every
    if config.sample_every is not None:
        every["sample"] = config.sample_every
    return every


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
    model: Callable[..., tuple[Tensor, Tensor]],
    batch: Batch,
    micro_batch_size: int,
    device: torch.device,
    autocast_dtype: torch.dtype | None,
    *,
    no_sync: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
    should_stop: Callable[[], bool] = lambda: False,
) -> Tensor | None:
    """Adds the gradients of the mean loss over all targets; returns that loss, on the device.

    What is returned is the cross-entropy alone, what is differentiated has the z-loss in it.

    Each micro-batch is weighted by its share of the target tokens, so the sum does not depend
    on how the batch is cut, up to rounding. All but the last run inside `no_sync`. Returns None,
    with gradients of a part of the batch, when `should_stop` became true between two.
    """
    total = torch.zeros((), device=device)
    for first in range(0, len(batch), micro_batch_size):
        if first > 0 and should_stop():
            return None
        part = micro_batch(batch, first, micro_batch_size, device)
        is_last = first + micro_batch_size >= len(batch)
        with contextlib.nullcontext() if is_last else no_sync():
            with torch.autocast(device.type, autocast_dtype, enabled=autocast_dtype is not None):
                minimised, loss = model(
                    part.inputs,
                    targets=part.targets,
                    has_padding=part.has_padding,
                    **part.options,
                )
                minimised = minimised * part.share
            torch.autograd.backward(minimised)
        total += loss.detach() * part.share
    return total


def sample_text(model: Transformer, tokenizer: Tokenizer, config: TrainConfig, step: int) -> str:
    """A section of `samples.md`: how the model continues each prompt after `step` updates.

    What is drawn is a function of the seed, the step and the prompt's place.
    """
    end = tokenizer.end_of_text
    parts = [f"## Step {step:,}\n"]
    for number, prompt in enumerate(config.sample_prompts):
        token_ids = generate(
            model,
            tokenizer.encode(prompt) or [0 if end is None else end],
            max_new_tokens=config.n_sample_tokens,
            temperature=0.8,
            stop_token_ids=end_ids(model, tokenizer),
            seed=counter_seed(config.seed, f"sample {number}" if number else "sample", step),
        )
        text = prompt + tokenizer.decode(list(token_ids))
        parts.append("".join(f"    {line}\n" for line in text.splitlines()))
    return "\n".join(parts) + "\n"
