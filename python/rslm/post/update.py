"""One step of a loop of post-training, and what follows it: its row, its checkpoint, the end."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from rslm.config import to_record
from rslm.environment import versions
from rslm.optim import optimizer_step
from rslm.post.setup import Config, PostResult, Run
from rslm.run_checkpoints import Best, mark_best, save
from rslm.run_folder import Row
from rslm.run_log import memory_bytes, write_curve

Part = TypeVar("Part")

LOSS_CURVE = {"loss": "loss (nats per token)"}


class Update(NamedTuple):
    """What one optimizer step did.

    Attributes:
        loss: Σ weight · loss over the whole batch, of all processes.
        grad_norm: before clipping; not finite: nothing was updated.
    """

    loss: float
    grad_norm: float


def weighted_update(
    run: Run[Config],
    parts: Sequence[Part],
    loss_of: Callable[[Part], Tensor],
    *,
    learning_rate: float | None = None,
    may_stop: bool = True,
) -> Update | None:
    """One optimizer step on the sum of the losses of all micro-batches of all processes.

    `loss_of` gives Σ weight · loss of its micro-batch, with weights that were computed for the
    whole batch (`rslm.post.losses.token_weights`). Nothing is divided afterwards, so neither
    the number of micro-batches nor that of processes moves the result, and a process may have
    none. The gradients of the sum are clipped and applied; where they are not finite, the
    update is skipped, which the norm tells and `note_update` counts.

    Args:
        run: the run.
        parts: micro-batches of this process, whatever `loss_of` takes.
        loss_of: called inside autocast, with gradients; runs the model itself, not a wrapper.
        learning_rate: that of the run's schedule unless given.
        may_stop: give up where the run is told to stop; not within the updates of one rollout.

    Returns:
        None, and no update, where the run was told to stop between two micro-batches.
    """
    parallel, processes = run.parallel, run.processes
    dtype = parallel.autocast_dtype
    total = torch.zeros((), device=run.device)
    is_stopped = False
    for number, part in enumerate(parts):
        # With several processes all must ask equally often: they agree after the last part.
        if may_stop and number > 0 and processes.world_size == 1 and run.stop.requested():
            is_stopped = True
            break
        is_last = number == len(parts) - 1
        with contextlib.nullcontext() if is_last else parallel.no_sync():
            autocast = torch.autocast(run.device.type, dtype, enabled=dtype is not None)
            with autocast, compiled_blocks(run):
                loss = loss_of(part)
            # Data parallel training averages over the processes what is to be summed.
            torch.autograd.backward(loss * processes.world_size)
        total += loss.detach()
    parallel.finish_gradient_synchronization()
    if is_stopped:
        parallel.optimizer.zero_grad(set_to_none=True)
        return None
    norm = optimizer_step(
        parallel.optimizer,
        learning_rate=run.learning_rate if learning_rate is None else learning_rate,
        max_grad_norm=run.optimizer_config.max_grad_norm,
        clip=parallel.clip_grad_norm,
    )
    return Update(loss=processes.total(total).item(), grad_norm=norm.item())


@contextlib.contextmanager
def compiled_blocks(run: Run[Config]) -> Iterator[None]:
    """Has the model compute its blocks compiled inside the block, where that was asked for.

    Outside it stays as it is: for samples, whose caches grow, it would be compiled again and again.
    """
    if run.compiled is None:
        yield
        return
    run.model.hidden_states = run.compiled  # type: ignore[method-assign]
    try:
        yield
    finally:
        del run.model.hidden_states


def note_update(run: Run[Config], update: Update, n_tokens: int, **measured: float | None) -> Row:
    """Counts an update that was made on so many tokens, and writes and shows its row.

    Raises:
        FloatingPointError: the loss, or the gradients of too many steps in a row, are not finite.
    """
    learning_rate = run.learning_rate
    seconds = run.clock.training_seconds
    run.step += 1
    run.n_tokens += n_tokens
    speed = None if run.last_seconds is None else n_tokens / (seconds - run.last_seconds)
    run.last_seconds = seconds
    run.row = {
        "step": run.step,
        "n_tokens": run.n_tokens,
        "train_flops": run.n_tokens * run.flops_per_token,
        "elapsed_seconds": run.clock.elapsed_seconds,
        "loss": update.loss,
        "learning_rate": learning_rate,
        "grad_norm": update.grad_norm,
        **measured,
        "tokens_per_second": speed,
        "mfu": None if speed is None else speed * run.flops_per_token / run.peak_flops,
        "memory_bytes": memory_bytes(run.device),
    }
    check_finite(run, run.row)
    write_row(run, run.row)
    return run.row


def check_finite(run: Run[Config], row: Row) -> None:
    """Counts a step that was skipped because its gradients were not finite, and warns of it.

    Raises:
        FloatingPointError: more in a row than the options allow, or the loss is not finite
            though its gradients are.
    """
    if math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"]):
        run.n_skipped_in_a_row = 0
        return
    run.n_skipped += 1
    run.n_skipped_in_a_row += 1
    message = f"step {row['step']}: loss {row['loss']}, grad_norm {row['grad_norm']}"
    too_many = run.n_skipped_in_a_row > run.optimizer_config.max_skipped_steps
    if math.isfinite(row["grad_norm"]) or too_many:
        raise FloatingPointError(message)
    run.display.warn(f"skipped an update ({run.n_skipped} so far): {message}")


def write_row(run: Run[Config], row: Row) -> None:
    """Writes a row of the metrics and shows it."""
    run.metrics.write_row(row)
    run.trackers.write_row(row)
    run.display.show(row)


def note_validation(
    run: Run[Config], val_loss: float, *, is_best: bool | None = None, **measured: float | None
) -> None:
    """Writes the row of a validation, and marks its checkpoint where it is the best so far.

    It is the best where it says so, and if it says nothing, where its loss is the lowest.
    """
    position: Row = {"step": run.step, "n_tokens": run.n_tokens}
    position["train_flops"] = run.n_tokens * run.flops_per_token
    run.validation = position | {"elapsed_seconds": run.clock.elapsed_seconds}
    run.validation |= {"val_loss": val_loss, **measured}
    write_row(run, run.validation)
    # Step 0 has no checkpoint to mark.
    is_marked = run.processes.is_first and run.config.keep_best and run.step > 0
    is_best = val_loss < run.best.val_loss if is_best is None else is_best
    if is_marked and is_best:
        run.best = Best(run.step, val_loss)
        run.writer.start(partial(mark_best, run.config, run.step))


def is_due(run: Run[Config], every: int | None) -> bool:
    """Whether something is due now: at multiples of `every`, and at the end."""
    step = run.step
    return step == run.n_steps or (every is not None and step > 0 and step % every == 0)


def is_saved(run: Run[Config], *others: int | None) -> bool:
    """Whether the state is to be saved now: where it is due, or before something else that is.

    All processes give the same answer.
    """
    config = run.config
    is_late = run.clock.elapsed_seconds - run.saved_at >= 60 * config.checkpoint_minutes
    # Clocks differ by a little, and all processes must save at one step.
    is_late = bool(run.processes.largest(is_late))
    every = (config.checkpoint_every, *others)
    return is_late or any(is_due(run, steps) for steps in every)


def save_run(run: Run[Config], **also: object) -> None:
    """Copies the state, which a thread then writes; does nothing where it was saved already.

    Args:
        run: the run.
        also: what else the loop needs to go on, found again in `run.state`; plain values.
    """
    if run.step == run.state["step"]:
        return
    with run.clock.away(), run.display.doing("saving"):
        run.trackers.flush()
        run.writer.wait()  # Two checkpoints in memory would be one too many.
        run.state = {
            **also,
            "format": 2,
            "step": run.step,
            "n_tokens": run.n_tokens,
            "batch_sizes": [[0, 1]],
            "elapsed_seconds": run.clock.elapsed_seconds,
            "metrics_bytes": run.metrics.sync(),
            "samples_bytes": run.samples.sync(),
            "random": {"seed": run.config.seed, "step": run.step},
            "skipped": {"n_skipped": run.n_skipped, "n_in_a_row": run.n_skipped_in_a_row},
            "data": run.fingerprints,
            "config": to_record(run.config),
            "versions": versions(),
        }
        with run.parallel.unsharded() as whole:
            if run.processes.is_first:
                save(run.config, run.model, whole, run.state, run.best.step, run.writer)
    run.saved_at = run.clock.elapsed_seconds


def close_run(
    run: Run[Config], *, finished: bool, curves: Mapping[str, str] = LOSS_CURVE
) -> PostResult:
    """Waits for what is still written, draws curves, and says how the run ended.

    Args:
        run: the run.
        finished: whether all that was to be done was.
        curves: metrics to draw, each a `METRIC_curve.png`, with the names of their axes.
    """
    run.writer.wait()
    for metric, label in curves.items() if run.processes.is_first else ():
        write_curve(run.config.out, run.config.out.name, metric, label)
    return PostResult(
        out=run.config.out,
        reason="finished" if finished else run.stop.reason,
        step=run.step,
        loss=run.row.get("loss"),
        val_loss=run.validation.get("val_loss"),
        val_reward=run.validation.get("val_reward"),
        elapsed_seconds=run.clock.elapsed_seconds,
    )
