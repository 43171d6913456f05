"""The updates of one rollout: scores, the agreement of sampler and trainer, losses, steps."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rslm.model import Transformer
from rslm.post.log_probs import label_log_probs
from rslm.post.losses import (
    batch_loss,
    importance_weights,
    kl_estimate,
    policy_loss,
    token_weights,
)
from rslm.post.rl_batch import (
    Part,
    Scores,
    micro_batches,
    minibatches,
    rollout_advantages,
    rollout_rows,
    row_lengths,
    sampler_log_probs,
)
from rslm.post.rl_config import RlConfig
from rslm.post.rollout import Mismatch, Rollout, measure_mismatch
from rslm.post.rows import Rows
from rslm.post.setup import Run
from rslm.post.update import Update, weighted_update
from rslm.run_folder import Row


@dataclass(frozen=True)
class Experience:
    """The rollouts of a step as tensors, aligned with the labels; the same in every process.

    Attributes:
        rows: the ids.
        lengths: inputs of each row that are no padding.
        scores: what the models think of them.
        advantages: of each row or token.
        corrections: factors of the losses, for a sampler that is not the trainer; None: 1.
    """

    rows: Rows
    lengths: list[int]
    scores: Scores
    advantages: Tensor
    corrections: Tensor | None


def make_experience(
    run: Run[RlConfig], rollouts: Sequence[Rollout], reference: Transformer | None
) -> Experience:
    """Scores the rollouts by the model as it is before the step's updates.

    Raises:
        FloatingPointError: a reward is not finite.
    """
    config = run.config
    rows, lengths = rollout_rows(rollouts, run.device), row_lengths(rollouts)
    scores = score_rollouts(run, rollouts, rows, lengths, reference)
    corrections = None
    # In exact mode they would be 1.
    if config.importance_cap > 0 and not config.exact:
        cap = config.importance_cap if config.importance_cap < math.inf else None
        corrections = importance_weights(scores.old, scores.sampler, cap=cap)
    advantages = rollout_advantages(rollouts, rows, scores, config)
    return Experience(rows, lengths, scores, advantages, corrections)


@torch.no_grad()
def score_rollouts(
    run: Run[RlConfig],
    rollouts: Sequence[Rollout],
    rows: Rows,
    lengths: Sequence[int],
    reference: Transformer | None,
) -> Scores:
    """What trainer and base model think of the rollouts, each process of its share of them."""
    config, processes = run.config, run.processes
    models = [run.model] if reference is None else [run.model, reference]
    # Log-probabilities of each model, and the entropy under the first.
    found = torch.zeros(len(models) + 1, *rows.mask.shape, device=run.device)
    mine = range(len(rollouts))[processes.rank :: processes.world_size]
    for part in micro_batches(mine, lengths, config.micro_batch_size):
        for number, model in enumerate(models):
            scored = label_log_probs(
                model,
                part.of(rows.input_ids),
                part.of(rows.labels),
                mask=part.of(rows.mask),
                exact=bool(config.exact) and number == 0,
                temperature=config.temperature,
                with_entropy=number == 0,
                autocast_dtype=run.parallel.autocast_dtype,
            )
            found[number, part.indices, : part.width] = scored.values
            if scored.entropy is not None:
                found[-1, part.indices, : part.width] = scored.entropy
    # What the others add are zeros, which change no bit.
    found = processes.total(found)
    return Scores(
        sampler=sampler_log_probs(rollouts, rows.mask),
        old=found[0],
        entropy=found[-1],
        reference=None if reference is None else found[1],
    )


def check_agreement(experience: Experience, config: RlConfig, step: int) -> Mismatch:
    """Holds the sampler's log-probabilities against the trainer's.

    Raises:
        FloatingPointError: they differ in exact mode, or elsewhere by more than is allowed.
    """
    scores = experience.scores
    found = measure_mismatch(scores.sampler, scores.old, experience.rows.mask)
    if config.exact and found.n_different:
        raise FloatingPointError(
            f"in exact mode sampler and trainer must agree bit for bit, and at step {step} "
            f"{found.n_different} of {found.n_tokens} log-probabilities differ, by up to "
            f"{found.largest:.3g}"
        )
    # Also where it is not a number.
    if not found.mean_k3 <= config.max_mismatch:
        raise FloatingPointError(
            f"sampler and trainer must agree to within max_mismatch {config.max_mismatch:g} nats "
            f"(mean k3), and at step {step} are {found.mean_k3:.3g} apart, by up to "
            f"{found.largest:.3g} in one log-probability\n"
            "the sampler may have older weights, another temperature or another precision"
        )
    return found


def make_updates(run: Run[RlConfig], experience: Experience, step: int) -> tuple[Update, Row]:
    """Trains on each minibatch of a rollout; the mean of its updates, and what they clipped.

    Advantages are of the whole rollout, weights of tokens of a whole minibatch: every process
    adds its rows. A minibatch in which no row has an advantage makes no update, so that neither
    momentum nor decay moves a weight; a step of such minibatches alone has the loss 0.
    """
    updates: list[Update] = []
    n_clipped = torch.zeros(2, device=run.device)
    n_tokens = n_empty = 0
    for indices in minibatches(len(experience.lengths), run.config, step):
        n_tokens += sum(experience.rows.n_trained[index] for index in indices)
        # Before the first update old and new probabilities are the same, without rounding.
        update = update_on(run, experience, indices, n_clipped, is_first=not updates)
        if update is None:
            n_empty += 1
        else:
            updates.append(update)
    n_low, n_high = (run.processes.total(n_clipped) / max(1, n_tokens)).tolist()
    n = max(1, len(updates))
    mean = Update(
        loss=sum(update.loss for update in updates) / n,
        grad_norm=sum(update.grad_norm for update in updates) / n,
    )
    clipped = {"clip_fraction_low": n_low, "clip_fraction_high": n_high}
    return mean, {"n_updates": len(updates), "n_empty_updates": n_empty, **clipped}


def update_on(
    run: Run[RlConfig],
    experience: Experience,
    indices: Sequence[int],
    n_clipped: Tensor,
    *,
    is_first: bool,
) -> Update | None:
    """One update on these rows, to whose clipped tokens it adds; None if they teach nothing.

    Rows without an advantage are left out after they were counted in the weights.
    """
    config, rows, processes = run.config, experience.rows, run.processes
    weights = minibatch_weights(rows, indices, config)
    has_advantage = (experience.advantages[indices] != 0).any(1).tolist()
    trained = [index for index, has in zip(indices, has_advantage, strict=True) if has]
    if not trained:
        return None

    def loss_of(part: Part) -> Tensor:
        mask = part.of(rows.mask)
        found = label_log_probs(
            run.model,
            part.of(rows.input_ids),
            part.of(rows.labels),
            mask=mask,
            temperature=config.temperature,
        )
        losses = policy_loss(
            part.of(experience.advantages),
            found.values,
            ratio=config.ratio,
            mask=mask,
            old_log_probs=None if is_first else part.of(experience.scores.old),
            clip_range=config.clip_range,
            dual_clip=config.dual_clip,
        )
        n_clipped.add_(torch.stack([losses.n_clipped_low, losses.n_clipped_high]))
        per_token = losses.per_token
        if experience.corrections is not None:
            per_token = per_token * part.of(experience.corrections)
        return batch_loss(per_token, [weights[index] for index in part.indices], mask)

    mine = trained[processes.rank :: processes.world_size]
    parts = micro_batches(mine, experience.lengths, config.micro_batch_size)
    return weighted_update(run, parts, loss_of, may_stop=False)


def minibatch_weights(rows: Rows, indices: Sequence[int], config: RlConfig) -> dict[int, float]:
    """The weight of a trained token of each row of a minibatch.

    Raises:
        ValueError: none of them has a trained token.
    """
    counts = [rows.n_trained[index] for index in indices]
    constant = config.max_new_tokens if config.aggregation == "constant" else None
    weights = token_weights(counts, config.aggregation, max_length=constant)
    return dict(zip(indices, weights, strict=True))


def experience_measures(experience: Experience, mismatch: Mismatch) -> Row:
    """How sure the model is, and how far from the sampler and from the base model."""
    scores, mask = experience.scores, experience.rows.mask
    measured: Row = {
        "entropy": scores.entropy[mask].double().mean().item(),
        "mismatch_max": mismatch.largest,
        "mismatch_mean_k3": mismatch.mean_k3,
        "zero_advantage_fraction": 1 - (experience.advantages != 0).any(1).double().mean().item(),
    }
    if scores.reference is not None:
        kl = kl_estimate(scores.old[mask].double(), scores.reference[mask].double(), "k3")
        measured["reference_kl"] = kl.mean().item()
    return measured
