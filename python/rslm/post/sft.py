"""Supervised fine-tuning: `sft(config)`, which reads from top to bottom.

What is minimised is the sum over the trained tokens of a batch of weight times loss, the weights
those of the whole batch (`rslm.post.losses.token_weights`), so that neither micro-batches nor
packing nor processes move it. Only the places that are trained on go through the head. A z-loss
of the model's pre-training is not part of it.
"""

import shutil
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from torch import Tensor

from rslm.batches import counter_seed
from rslm.infer.load import end_ids
from rslm.infer.sampler import generate
from rslm.model import Transformer
from rslm.post.setup import PostResult, Run, Start, count_in, open_run, open_start
from rslm.post.sft_batches import (
    RowPlan,
    SftBatch,
    SftPart,
    parts_of,
    plan_rows,
    read_batch,
    rows_of_step,
    steps_of,
)
from rslm.post.sft_config import SFT_RESUMABLE, SftConfig
from rslm.post.sft_data import COUNTS, ChatFile, read_chats, write_chats
from rslm.post.update import (
    close_run,
    is_due,
    is_saved,
    note_update,
    note_validation,
    save_run,
    weighted_update,
)


@dataclass(frozen=True, kw_only=True)
class SftData:
    """The conversations of a run, stored in its folder."""

    train: ChatFile
    plan: RowPlan
    valid: ChatFile | None
    valid_plan: RowPlan | None

    @property
    def fingerprints(self) -> dict[str, str | None]:
        """What identifies the conversations as they were rendered."""
        valid = None if self.valid is None else self.valid.fingerprint
        return {"train": self.train.fingerprint, "valid": valid}


def sft(config: SftConfig, *, resume: bool = False, console: Console | None = None) -> PostResult:
    """Trains a model to answer as its conversations do; everything is in `config.out`.

    Equal configs, bases and conversations give equal weights and metrics (but for those of the
    clock) on a CPU with the same number of threads, whether or not the run was stopped, killed
    and resumed between. SIGINT and SIGTERM finish the micro-batch, save and return.

    Args:
        config: the run.
        resume: continue the run in `config.out` instead of refusing an existing folder.
        console: where the display goes; standard error unless given.

    Raises:
        FileExistsError: the run folder exists and `resume` was not asked for.
        FileNotFoundError: base or data are missing.
        ValueError: a conversation is none, or the config does not fit the base or the run.
        FormatError: base, stored conversations or checkpoint are damaged.
        FloatingPointError: loss or gradients stayed infinite or not a number.

    Source: Ouyang et al. 2022, section 3.5 (arXiv:2203.02155), there over whole texts; the
    normaliser over the whole optimizer batch as in `rslm.post.losses`.
    """
    with open_start(config, resume=resume, resumable=SFT_RESUMABLE, console=console) as start:
        data = start.processes.in_turn(partial(open_data, start))
        start, n_steps = resolve(start, data)
        config = start.config
        due = {"sample": config.sample_every}
        due |= {} if data.valid is None else {"validation": config.validate_every}
        with open_run(start, n_steps=n_steps, fingerprints=data.fingerprints, due=due) as run:
            announce(run, data)
            n_trained = count_in(run.state, "n_trained_tokens")
            validate_every = None if data.valid is None else config.validate_every
            stopping = finished = False
            while True:
                if stopping or is_saved(run, validate_every, config.sample_every):
                    save_run(run, n_trained_tokens=n_trained)
                if stopping:
                    break
                if data.valid is not None and is_due(run, validate_every):
                    with run.clock.away(), run.display.doing("validating"):
                        val_loss = validate(run, data)
                    if val_loss is None:
                        break
                    note_validation(run, val_loss)
                if is_due(run, config.sample_every):
                    with run.clock.away(), run.display.doing("sampling"):
                        run.samples.write(sample_answers(run, data))
                if run.step == n_steps:
                    finished = True
                    break
                batch = next_batch(run, data)
                parts = list(parts_of(batch, config.micro_batch_size, run.device))
                update = weighted_update(run, parts, partial(weighted_loss, run.model))
                if update is not None:
                    n_trained += batch.n_trained_tokens
                    note_update(run, update, batch.n_tokens, n_trained_tokens=n_trained)
                stopping = run.stop.requested()
                run.writer.check()
            return close_run(run, finished=finished)


def open_data(start: Start[SftConfig]) -> SftData:
    """The conversations of the run folder, rendered and stored where they are missing."""
    config, chat_format = start.config, start.base.chat_format
    length = start.base.config.context_length
    for leftover in config.out.glob("chats/*.tmp-*"):
        shutil.rmtree(leftover)
    files: list[ChatFile | None] = []
    for name, paths in (("train", config.data), ("valid", config.valid)):
        folder = config.out / "chats" / name
        if paths and not (folder / COUNTS).exists():
            # Of the last id nothing is predicted, so one more than the context fits.
            write_chats(
                folder,
                read_chats(paths),
                chat_format,
                max_length=length + 1,
                too_long=config.too_long,
            )
        files.append(ChatFile(folder, chat_format.tokenizer) if paths else None)
    train, valid = files
    assert train is not None
    return SftData(
        train=train,
        plan=plan_rows(train, length, config.packing),
        valid=valid,
        valid_plan=None if valid is None else plan_rows(valid, length, config.packing),
    )


def resolve(start: Start[SftConfig], data: SftData) -> tuple[Start[SftConfig], int]:
    """The start with the number of updates in its config, and that number."""
    config = start.config
    n_steps = config.n_steps or steps_of(len(data.plan), config.batch_size, config.n_epochs)
    return replace(start, config=replace(config, n_steps=n_steps)), n_steps


def announce(run: Run[SftConfig], data: SftData) -> None:
    """Says what became of the conversations."""
    length = run.model.config.context_length
    for name, chats, plan in (
        ("to train on", data.train, data.plan),
        ("held out", data.valid, data.valid_plan),
    ):
        if chats is not None and plan is not None:
            run.display.note(f"{chats.counts.sentence(name, length + 1)}; {len(plan):,} rows")


def next_batch(run: Run[SftConfig], data: SftData) -> SftBatch:
    """The batch of the next update, as far as it is this process's."""
    config, length = run.config, run.model.config.context_length
    rows = rows_of_step(
        len(data.plan),
        seed=config.seed,
        step=run.step,
        batch_size=config.batch_size,
        n_steps=run.n_steps,
        n_epochs=config.n_epochs,
    )
    return read_batch(
        data.train,
        data.plan,
        rows,
        aggregation=config.aggregation,
        max_length=length if config.aggregation == "constant" else None,
        share=run.processes.part_of(len(rows)),
    )


def weighted_loss(model: Transformer, part: SftPart) -> Tensor:
    """Σ weight · loss over the trained tokens of a micro-batch."""
    hidden = model.hidden_states(part.inputs, **part.options)
    trained = hidden.flatten(0, 1).index_select(0, part.places)
    return model.losses(trained, part.targets, weights=part.weights)[0]


@torch.no_grad()
def validate(run: Run[SftConfig], data: SftData) -> float | None:
    """The mean loss of the trained tokens that are held out; None if told to stop meanwhile."""
    chats, plan = data.valid, data.valid_plan
    assert chats is not None
    assert plan is not None
    own, size = run.processes.part_of(len(plan)), run.config.micro_batch_size
    size = size or run.config.batch_size
    dtype = run.parallel.autocast_dtype
    sums = [torch.zeros((), dtype=torch.float64, device=run.device)]
    for first in range(own.start, own.stop, size):
        # Processes have different numbers of rows, and cannot ask each other in between.
        if run.processes.world_size == 1 and run.stop.requested():
            return None
        rows = np.arange(first, min(first + size, own.stop))
        batch = read_batch(chats, plan, rows, aggregation="token")
        for part in parts_of(batch, None, run.device):
            with torch.autocast(run.device.type, dtype, enabled=dtype is not None):
                sums.append(weighted_loss(run.model, part).double() * batch.n_trained_tokens)
    total = run.processes.total(torch.stack(sums).sum())
    return total.item() / chats.counts.n_trained_tokens


def sample_answers(run: Run[SftConfig], data: SftData) -> str:
    """A section of `samples.md`: answers to the first conversations, drawn after this step.

    They are those that are held out, where there are any. What is drawn is a function of seed,
    step and the conversation's place.
    """
    chats = data.train if data.valid is None else data.valid
    model, tokenizer = run.model, run.tokenizer
    parts = [f"## Step {run.step:,}\n"]
    for number in range(min(run.config.n_samples, len(chats))):
        prompt_ids = last_prompt(chats.token_ids(number), chats.mask(number))
        drawn = generate(
            model,
            prompt_ids,
            max_new_tokens=run.config.n_sample_tokens,
            temperature=0.8,
            stop_token_ids=end_ids(model, tokenizer),
            seed=counter_seed(run.config.seed, f"answer {number}", run.step),
        )
        text = tokenizer.decode(prompt_ids) + tokenizer.decode(list(drawn))
        parts.append("".join(f"    {line}\n" for line in text.splitlines()))
    return "\n".join(parts) + "\n"


def last_prompt(token_ids: npt.NDArray[np.int64], mask: npt.NDArray[np.bool_]) -> list[int]:
    """The ids before the last answer of a conversation, its header among them."""
    begins = np.flatnonzero(mask & ~np.append(False, mask[:-1]))
    prompt: list[int] = token_ids[: begins[-1]].tolist()
    return prompt
