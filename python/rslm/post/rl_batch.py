"""From graded rollouts to the minibatches of their updates: all that needs no gradient."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rslm.batches import counter_seed
from rslm.permutation import permute
from rslm.post.losses import group_advantages, kl_returns
from rslm.post.rl_config import RlConfig
from rslm.post.rollout import Rollout
from rslm.post.rows import Rows, make_rows


def complete_groups(rollouts: Sequence[Rollout], group_size: int) -> list[list[Rollout]]:
    """The rollouts of each prompt, in the order they come in."""
    return [
        list(rollouts[first : first + group_size]) for first in range(0, len(rollouts), group_size)
    ]


def is_mixed(group: Sequence[Rollout]) -> bool:
    """Whether the rewards of a group differ, so that it teaches which completion is better."""
    return len({rollout.reward for rollout in group}) > 1


def select_rollouts(rollouts: Sequence[Rollout], config: RlConfig) -> list[Rollout]:
    """Those to train on, a function of what was sampled for the step.

    With `keep` "mixed" as many groups as a step has: first those whose rewards differ, in their
    order, and where there were too few of them others. With "right" the completions that have a
    positive reward and say something.
    """
    if config.keep == "right":
        return [each for each in rollouts if (each.reward or 0.0) > 0 and each.text.strip()]
    groups = complete_groups(rollouts, config.group_size)
    if config.keep == "mixed":
        # Sorting is stable.
        groups = sorted(groups, key=lambda group: not is_mixed(group))[: config.prompts_per_step]
    return [rollout for group in groups for rollout in group]


@dataclass(frozen=True)
class Scores:
    """What models think of the ids of a rollout, aligned with the labels; 0 outside the mask.

    Attributes:
        sampler: log-probabilities that the sampler gave as it drew the ids.
        old: by the trainer before the first update.
        entropy: of the distributions, by the trainer.
        reference: log-probabilities by the base model, where there is one.
    """

    sampler: Float[Tensor, "rows sequence"]
    old: Float[Tensor, "rows sequence"]
    entropy: Float[Tensor, "rows sequence"]
    reference: Float[Tensor, "rows sequence"] | None


def rollout_rows(rollouts: Sequence[Rollout], device: torch.device) -> Rows:
    """The rollouts as a rectangle of ids."""
    return make_rows(
        [each.prompt_ids for each in rollouts],
        [each.token_ids for each in rollouts],
        train_masks=[each.train_mask for each in rollouts],
        device=device,
    )


def sampler_log_probs(
    rollouts: Sequence[Rollout], mask: Bool[Tensor, "rows sequence"]
) -> Float[Tensor, "rows sequence"]:
    """The sampler's log-probabilities where they belong among the labels."""
    values = [
        log_prob
        for each in rollouts
        for log_prob, is_trained in zip(each.log_probs, each.train_mask, strict=True)
        if is_trained
    ]
    found = torch.tensor(values, dtype=torch.float32, device=mask.device)
    return torch.zeros(mask.shape, device=mask.device).masked_scatter(mask, found)


def rollout_advantages(
    rollouts: Sequence[Rollout], rows: Rows, scores: Scores, config: RlConfig
) -> Float[Tensor, "rows columns"]:
    """The advantage of each completion, or with a KL penalty that of each token."""
    advantages = group_advantages(
        [float("nan") if each.reward is None else each.reward for each in rollouts],
        1 if config.keep == "right" else config.group_size,
        baseline=config.baseline,
        normalizer=config.normalizer,
    )
    advantages = advantages.to(rows.mask.device)[:, None]
    if config.kl_coefficient == 0:
        return advantages
    assert scores.reference is not None, "a penalty has a reference"
    returns = kl_returns(scores.old, scores.reference, rows.mask, config.kl_coefficient)
    return advantages + returns


def row_lengths(rollouts: Sequence[Rollout]) -> list[int]:
    """How many of a row's inputs are not padding."""
    return [len(each.prompt_ids) + len(each.token_ids) - 1 for each in rollouts]


def minibatches(n_rows: int, config: RlConfig, step: int) -> Iterator[list[int]]:
    """The rows of each update of a step: every epoch in parts, in an order of its own.

    A function of seed, step and number of rows. Rows that number fewer than the parts leave
    some of these out.
    """
    order = counter_seed(config.seed, "minibatches", step)
    for epoch in range(config.epochs_per_rollout):
        rows = permute(n_rows, order, epoch, np.arange(n_rows))
        for part in np.array_split(rows, config.minibatches_per_rollout):
            if part.size:
                yield part.tolist()


@dataclass(frozen=True)
class Part:
    """Some rows of a rollout, cut to the longest of them.

    Attributes:
        indices: which.
        width: of the inputs that hold them.
    """

    indices: list[int]
    width: int

    def of(self, x: Int[Tensor, "..."] | Float[Tensor, "..."]) -> Tensor:
        """These rows of a tensor; one with a single column keeps it."""
        return x[self.indices, : self.width]


def micro_batches(indices: Sequence[int], lengths: Sequence[int], size: int | None) -> list[Part]:
    """The rows in parts of at most `size`, those of like length together: less is padded so."""
    ordered = sorted(indices, key=lambda index: lengths[index])
    size = size or max(1, len(ordered))
    parts = [ordered[first : first + size] for first in range(0, len(ordered), size)]
    return [Part(part, lengths[part[-1]]) for part in parts]
