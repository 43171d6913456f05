"""The losses of CS336, assignment 5, by their names and shapes; see `rslm.post.course`."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from rslm.post import losses
from rslm.post.losses import Aggregation, Baseline, Normalizer, Ratio

LossType = Literal["no_baseline", "reinforce_with_baseline", "grpo_clip", "grpo_no_clip"]
ImportanceReweighting = Ratio | Literal["noclip", "grpo_clip"]
"""A ratio of `policy_loss`, by our name or the course's."""


def compute_entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of the next token at each position: (..., vocab_size) to (...).

    In float32 at least.
    """
    log_probs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    # A token that can never come has probability 0 and log -inf, whose product is no number.
    finite = log_probs.clamp_min(torch.finfo(log_probs.dtype).min)
    return -(log_probs.exp() * finite).sum(-1)


def compute_group_normalized_rewards(
    raw_rewards: Sequence[float] | Tensor,
    group_size: int,
    baseline: Baseline = "mean",
    advantage_eps: float = 1e-6,
    advantage_normalizer: Normalizer = "std",
) -> tuple[Tensor, dict[str, float]]:
    """The advantage of each response, and statistics of the rewards.

    See `rslm.post.losses.group_advantages`.
    """
    rewards = torch.as_tensor(raw_rewards)
    if not rewards.is_floating_point():
        rewards = rewards.float()
    advantages = losses.group_advantages(
        rewards,
        group_size,
        baseline=baseline,
        normalizer=advantage_normalizer,
        epsilon=advantage_eps,
    )
    statistics = {
        "mean_reward": rewards.mean().item(),
        "std_reward": rewards.std(correction=0).item(),
        "min_reward": rewards.min().item(),
        "max_reward": rewards.max().item(),
        "zero_advantage_fraction": (advantages == 0).float().mean().item(),
    }
    return advantages, statistics


def compute_naive_policy_gradient_loss(
    raw_rewards_or_advantages: Tensor, policy_log_probs: Tensor
) -> Tensor:
    """-A·log π at each token; A is (batch, 1)."""
    return compute_policy_gradient_loss(raw_rewards_or_advantages, policy_log_probs)[0]


def compute_grpo_clip_loss(
    advantages: Tensor,
    policy_log_probs: Tensor,
    old_log_probs: Tensor,
    cliprange: float | tuple[float, float],
) -> tuple[Tensor, dict[str, Tensor]]:
    """-min(r·A, clip(r)·A) at each token; A is (batch, 1)."""
    return compute_policy_gradient_loss(
        advantages, policy_log_probs, "clip", old_log_probs, cliprange
    )


def compute_policy_gradient_loss(
    advantages: Tensor,
    policy_log_probs: Tensor,
    importance_reweighting_method: ImportanceReweighting | None = "none",
    old_log_probs: Tensor | None = None,
    cliprange: float | tuple[float, float] | None = None,
    response_mask: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of each token, and the shares of the tokens that were clipped.

    Args:
        advantages: (batch,) or (batch, 1).
        policy_log_probs: (batch, sequence), with gradients.
        importance_reweighting_method: see `rslm.post.losses.policy_loss`; "noclip" is "no_clip",
            "grpo_clip" is "clip".
        old_log_probs: all but "none" need them.
        cliprange: for both sides, or below and above; None: that of `policy_loss`.
        response_mask: the loss is 0 elsewhere, and "gspo" averages over it; None: all tokens.

    Raises:
        ValueError: the method is unknown, or needs `old_log_probs`.
    """
    method = importance_reweighting_method or "none"
    ratio: Any = {"noclip": "no_clip", "grpo_clip": "clip"}.get(method, method)
    if old_log_probs is None and ratio != "none":
        raise ValueError(f"importance reweighting by {method} needs old_log_probs")
    mask = torch.ones_like(policy_log_probs, dtype=torch.bool)
    if response_mask is not None:
        mask = response_mask.bool()
    options: dict[str, Any] = {}
    if cliprange is not None:
        both = (cliprange, cliprange)
        options["clip_range"] = cliprange if isinstance(cliprange, tuple) else both
    found = losses.policy_loss(
        advantages,
        policy_log_probs,
        ratio=ratio,
        mask=mask,
        old_log_probs=old_log_probs,
        **options,
    )
    n_tokens = mask.sum()
    shares = {
        "clip_fraction_low": found.n_clipped_low / n_tokens,
        "clip_fraction_high": found.n_clipped_high / n_tokens,
        "clip_fraction": (found.n_clipped_low + found.n_clipped_high) / n_tokens,
    }
    return found.per_token, shares


def masked_mean(tensor: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Mean of what the mask marks, along `dim` or of all; NaN where it marks nothing."""
    return losses.masked_mean(tensor, mask.bool(), dim)


def masked_normalize(
    tensor: Tensor, mask: Tensor, normalize_constant: float, dim: int | None = None
) -> Tensor:
    """Sum of what the mask marks over a constant, along `dim` or of all."""
    return losses.masked_normalize(tensor, mask.bool(), normalize_constant, dim)


def aggregate_loss(
    per_token_loss: Tensor,
    response_mask: Tensor,
    aggregation: Aggregation = "sequence",
    normalize_constant: float | None = None,
) -> Tensor:
    """The loss of a batch from those of its tokens, by `rslm.post.losses.token_weights`.

    "sequence": mean over rows of the mean over tokens; "token": mean over tokens; "constant":
    mean over rows of the sum over tokens, divided by `normalize_constant`.

    Raises:
        ValueError: nothing is trained, or `normalize_constant` is missing or useless.
    """
    mask = response_mask.bool()
    return losses.batch_loss(
        per_token_loss, row_weights(mask, aggregation, normalize_constant), mask
    )


def row_weights(
    mask: Tensor, aggregation: Aggregation, normalize_constant: float | None
) -> list[float]:
    """The weight of each trained token of a row; see `aggregate_loss`."""
    n_trained = mask.sum(1).tolist()
    if (normalize_constant is not None) != (aggregation == "constant"):
        raise ValueError(
            f'normalize_constant goes with the aggregation "constant" and with no other, '
            f"got {normalize_constant} with {aggregation!r}"
        )
    if normalize_constant is None:
        return losses.token_weights(n_trained, aggregation)
    if normalize_constant <= 0:
        raise ValueError(f"normalize_constant must be above 0, got {normalize_constant}")
    weights = losses.token_weights(n_trained, aggregation, max_length=1)
    return [weight / normalize_constant for weight in weights]


def sft_microbatch_train_step(
    policy_log_probs: Tensor,
    response_mask: Tensor,
    gradient_accumulation_steps: int,
    normalize_constant: float = 1.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Adds the gradient of a micro-batch; its loss, divided by the accumulation steps.

    The loss is the mean over rows of the summed loss of the response over `normalize_constant`.
    """
    per_row = masked_normalize(-policy_log_probs, response_mask, normalize_constant, dim=1)
    return _accumulate(per_row, gradient_accumulation_steps), {}


def grpo_microbatch_train_step(
    policy_log_probs: Tensor,
    response_mask: Tensor,
    gradient_accumulation_steps: int,
    loss_type: LossType,
    raw_rewards: Tensor | None = None,
    advantages: Tensor | None = None,
    old_log_probs: Tensor | None = None,
    cliprange: float | tuple[float, float] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Adds the gradient of a micro-batch; its loss, divided by the accumulation steps.

    The loss is the mean over rows of the mean over the response. "no_baseline" takes
    `raw_rewards`, the others `advantages`, (batch, 1) either.

    Raises:
        ValueError: `loss_type` is unknown, or what it needs is missing.
    """
    if loss_type not in get_args(LossType):
        raise ValueError(
            f"loss_type must be one of {', '.join(get_args(LossType))}, got {loss_type!r}"
        )
    name = "raw_rewards" if loss_type == "no_baseline" else "advantages"
    scale = raw_rewards if loss_type == "no_baseline" else advantages
    if scale is None:
        raise ValueError(f"loss_type {loss_type} needs {name}")
    methods: dict[str, Any] = {"grpo_clip": "clip", "grpo_no_clip": "no_clip"}
    per_token, metadata = compute_policy_gradient_loss(
        scale,
        policy_log_probs,
        methods.get(loss_type, "none"),
        old_log_probs,
        cliprange,
        response_mask,
    )
    per_row = masked_mean(per_token, response_mask, dim=1)
    return _accumulate(per_row, gradient_accumulation_steps), metadata


def _accumulate(per_row: Tensor, gradient_accumulation_steps: int) -> Tensor:
    """The course's share of a micro-batch, which it is called with the gradient of."""
    loss = per_row.mean() / gradient_accumulation_steps
    loss.backward()
    return loss.detach()
