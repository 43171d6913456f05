"""Training on preferences: `train(config)`, from top to bottom.

A pair is a prompt and two answers of which one is preferred; the losses are those of
`rslm.post.preferences`, DPO among them. What the reference, the model that the run began with,
thinks of all answers is computed once and kept in the run folder as `reference.safetensors`;
the rest of the folder is that of `rslm.post.setup`. The order of the pairs is a function of seed,
epoch and position.

Source: Rafailov et al. 2023, Algorithm of section 4 (arXiv:2305.18290).
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from rslm.batches import counter_seed
from rslm.checkpoint import step_folder
from rslm.post.dpo_config import REFERENCE_FREE, RESUMABLE, DpoConfig
from rslm.post.dpo_scores import (
    MEASURES,
    Scores,
    open_reference,
    pair_losses,
    pair_measures,
    pair_parts,
    score_pairs,
)
from rslm.post.pairs import Pair, Pairs, pairs_hash, read_pairs, split_pairs
from rslm.post.preferences import PreferenceLoss
from rslm.post.setup import PostResult, Run, Start, open_run, open_start
from rslm.post.sft_batches import rows_of_step, steps_of
from rslm.post.update import (
    Update,
    close_run,
    is_due,
    is_saved,
    note_update,
    note_validation,
    save_run,
    weighted_update,
)
from rslm.run_checkpoints import NO_BEST, Best
from rslm.run_folder import Row, read_metrics

SHOWN = {
    "margin": ".4f",
    "accuracy": ".3f",
    "val_margin": ".4f",
    "val_accuracy": ".3f",
}
CURVES = {"loss": "loss (nats per pair)", "margin": "margin of the chosen answer's reward"}


@dataclass(frozen=True)
class Data:
    """The pairs of a run, and what the reference thinks of them.

    Attributes:
        pairs: those that are trained, then those that are held out.
        n_train: trained ones.
        reference: log-probs of all, chosen and rejected; None for losses without a reference.
    """

    pairs: Sequence[Pair]
    n_train: int
    reference: Tensor | None

    @property
    def n_valid(self) -> int:
        """Pairs that are held out."""
        return len(self.pairs) - self.n_train


def train(
    config: DpoConfig,
    *,
    resume: bool = False,
    console: Console | None = None,
) -> PostResult:
    """Trains a model on preferences, leaving everything in the run folder `config.out`.

    Equal configs, models and pairs give equal weights and metrics (but for `CLOCK_KEYS`) on a CPU
    with the same number of threads, whether or not the run was stopped, killed and resumed
    between. SIGINT and SIGTERM end the step; a second one acts at once.

    Args:
        config: the run.
        resume: continue the run in `config.out` instead of refusing an existing folder.
        console: where the display goes; standard error unless given.

    Raises:
        FileExistsError: the run folder exists and `resume` was not asked for.
        FileNotFoundError: the pairs or the base are missing.
        ValueError: a pair is none or too long, or the config does not fit the base or not the
            run that is resumed.
        FormatError: the base or a checkpoint is damaged.
        FloatingPointError: the loss is not finite, or gradients of too many steps in a row.
        OSError: the disk is full; the checkpoints before still stand.
    """
    for path in (config.pairs, config.valid_pairs):
        if path is not None and not path.exists():
            raise FileNotFoundError(f"{path} must be a file of pairs or a folder, and is missing")
    with contextlib.ExitStack() as stack:
        start = stack.enter_context(
            open_start(config, resume=resume, resumable=RESUMABLE, console=console)
        )
        data, fingerprints, note = open_data(start)
        config = start.config
        n_steps = config.n_steps or steps_of(data.n_train, config.batch_size, config.n_epochs)
        config = replace(config, n_steps=n_steps)
        validate_every = config.validate_every if data.n_valid else None
        run = stack.enter_context(
            open_run(
                replace(start, config=config),
                n_steps=n_steps,
                fingerprints=fingerprints,
                shown=SHOWN,
                drawn="margin",
                due={"validation": validate_every} if data.n_valid else {},
            )
        )
        run.display.note(note)
        best = best_so_far(run)
        finished = False

        while True:
            # `run.step` updates are made, and their rows written.
            stopping = run.stop.requested()
            if stopping or is_saved(run, validate_every):
                save_run(run)
            if stopping:
                break
            if data.n_valid and (run.step == 0 or is_due(run, validate_every)):
                with run.clock.away(), run.display.doing("validating"):
                    val_loss, measured = validate(run, data)
                score = score_of({**measured, "val_loss": val_loss})
                is_best = run.step > 0 and score > best
                note_validation(run, val_loss, is_best=is_best, **measured)
                best = max(best, score)
            if run.step == n_steps:
                finished = True
                break

            indices = rows_of_step(
                data.n_train,
                seed=counter_seed(config.seed, "pairs"),
                step=run.step,
                batch_size=config.batch_size,
                n_steps=n_steps,
                n_epochs=config.n_epochs,
            ).tolist()
            update, measured = update_on(run, data, indices)
            if update is None:
                continue  # Told to stop between two micro-batches.
            note_update(run, update, sum(data.pairs[i].n_tokens for i in indices), **measured)
            run.writer.check()
        return close_run(run, finished=finished, curves=CURVES)


def open_data(start: Start[DpoConfig]) -> tuple[Data, Row, str]:
    """The pairs with the reference's scores, what identifies them, and a sentence on them.

    Raises:
        ValueError: there is a bad pair, or none to train on.
        FormatError: a line is no rollout, or the reference's scores are damaged.
    """
    config = start.config
    found = pairs_of(start, config.pairs)
    if config.valid_pairs is not None:
        held_out = pairs_of(start, config.valid_pairs)
        train, valid = found.pairs, held_out.pairs
        n_left_out = found.n_left_out + held_out.n_left_out
        n_truncated = found.n_truncated + held_out.n_truncated
    else:
        n = config.n_valid_pairs
        n = min(200, len(found.pairs) // 10) if n is None else n
        train, valid = split_pairs(found.pairs, n, seed=counter_seed(config.seed, "held out"))
        n_left_out, n_truncated = found.n_left_out, found.n_truncated
    if not train:
        raise ValueError(
            f"{config.pairs} must hold pairs to train on, and has none beside {len(valid):,} that "
            f"are held out and {n_left_out:,} without a difference"
        )
    pairs = [*train, *valid]
    fingerprints: Row = {"pairs": pairs_hash(pairs), "n_pairs": [len(train), len(valid)]}
    reference = None
    if config.loss not in REFERENCE_FREE:
        found_reference = open_reference(start, pairs)
        reference = found_reference.log_probs
        fingerprints["reference"] = found_reference.weights_hash
    note = f"{len(train):,} pairs, and {len(valid):,} held out"
    if n_left_out:
        note += f"; {n_left_out:,} without a difference left out"
    if n_truncated:
        note += f"; {n_truncated:,} prompts cut"
    return Data(pairs, len(train), reference), fingerprints, note


def pairs_of(start: Start[DpoConfig], path: Path) -> Pairs:
    """The pairs of a file for the run's model."""
    config, base = start.config, start.base
    return read_pairs(
        path,
        base.chat_format,
        context_length=base.config.context_length,
        vocab_size=base.config.resolved_vocab_size,
        truncate_prompts=config.truncate_prompts,
        pairs_per_prompt=config.pairs_per_prompt,
    )


def update_on(run: Run[DpoConfig], data: Data, indices: Sequence[int]) -> tuple[Update | None, Row]:
    """One update on these pairs, each weighing the same, and what is measured of them.

    Every process adds its share of the pairs.
    """
    sums = torch.zeros(len(MEASURES), device=run.device)

    def loss_of(part: Sequence[int]) -> Tensor:
        scores, found = losses_of(run, data, part)
        sums.add_(pair_measures(scores, found))
        return found.per_pair.sum() / len(indices)

    mine = indices[run.processes.part_of(len(indices))]
    parts = pair_parts(mine, data.pairs, run.config.micro_batch_size)
    update = weighted_update(run, parts, loss_of)
    return update, {} if update is None else means(run, sums, len(indices))


@torch.no_grad()
def validate(run: Run[DpoConfig], data: Data) -> tuple[float, Row]:
    """The mean loss of the pairs that are held out, and what is measured of them."""
    config = run.config
    sums = torch.zeros(1 + len(MEASURES), device=run.device)
    indices = range(data.n_train, len(data.pairs))
    mine = indices[run.processes.part_of(len(indices))]
    for part in pair_parts(mine, data.pairs, config.micro_batch_size or 2 * config.batch_size):
        scores, found = losses_of(run, data, part)
        sums += torch.cat([found.per_pair.sum()[None], pair_measures(scores, found)])
    measured = means(run, sums, len(indices), names=("val_loss", *(f"val_{m}" for m in MEASURES)))
    return measured.pop("val_loss"), measured


def losses_of(
    run: Run[DpoConfig], data: Data, part: Sequence[int]
) -> tuple[Scores, PreferenceLoss]:
    """What the model thinks of some pairs, and their losses."""
    scores = score_pairs(
        run.model,
        [data.pairs[index] for index in part],
        device=run.device,
        autocast_dtype=run.parallel.autocast_dtype,
    )
    reference = None
    if data.reference is not None:
        reference = data.reference[:, list(part)].to(run.device)
    return scores, pair_losses(scores, reference, run.config)


def means(run: Run[DpoConfig], sums: Tensor, n: int, *, names: Sequence[str] = MEASURES) -> Row:
    """Sums of this process's pairs as means over the pairs of all."""
    return dict(zip(names, (run.processes.total(sums) / n).tolist(), strict=True))


def best_so_far(run: Run[DpoConfig]) -> tuple[float, float]:
    """Accuracy and negative loss of the best validation so far, that of the base among them.

    Its checkpoint is the run's best one, if it is still there; another may have a lower loss.
    """
    out = run.config.out
    rows = read_metrics(out / "metrics.jsonl") if run.processes.is_first else []
    scored = [row for row in rows if None not in map(row.get, ("val_accuracy", "val_loss"))]
    run.best = NO_BEST
    if not scored:
        return -1.0, 0.0
    best = max(scored, key=score_of)
    if run.config.keep_best and step_folder(out / "checkpoints", best["step"]).exists():
        run.best = Best(best["step"], best["val_loss"])
    return score_of(best)


def score_of(row: Row) -> tuple[float, float]:
    """What the validations of a run are compared by."""
    return row["val_accuracy"], -row["val_loss"]
