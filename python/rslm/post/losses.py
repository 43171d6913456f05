"""Losses of post-training: what one token weighs, what it costs, and how far two models are apart.

Nothing is divided inside a micro-batch. Before the first forward pass of an optimizer step
`token_weights` gives the weight of every token of the whole batch, over all processes; what
is minimised is Σ weight · loss, which micro-batches and processes only add to. So the result
depends on neither their sizes nor on padding, packing or the order of rows.

Supervised fine-tuning is `batch_loss(-log_probs, token_weights(n_trained, "token"), mask)`.
All (batch, sequence) tensors are aligned with the labels, and `mask` says which labels are trained.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Aggregation = Literal["sequence", "token", "constant"]
Baseline = Literal["none", "mean", "leave_one_out"]
Normalizer = Literal["none", "std", "mean"]
Ratio = Literal["none", "no_clip", "clip", "dual", "gspo", "cispo"]
KlKind = Literal["k1", "k2", "k3"]

MAX_LOG_RATIO = 20.0
"""Bound of a log ratio before its exponential is taken; float32 overflows at 88."""


def token_weights(
    n_trained: Sequence[int], aggregation: Aggregation, *, max_length: int | None = None
) -> list[float]:
    """The weight of each trained token of row i, for every row of an optimizer batch.

    With T the trained tokens of a row and N the rows that have any: 1 / (N·T) for "sequence",
    1 / ΣT for "token", 1 / (N·max_length) for "constant". Rows without a trained token weigh 0.

    Args:
        n_trained: T of every row of the batch, those on other processes and those that are left
            out for their advantage of 0 among them: to leave rows out must not move the others.
        aggregation: what the weights of a row or a batch add up to.
        max_length: most tokens of a completion, the same for the whole run; "constant" alone.

    Raises:
        ValueError: no row has a trained token, or `max_length` is missing or useless.

    Source: "sequence" Shao et al. 2024 (arXiv:2402.03300), "token" Yu et al. 2025
    (arXiv:2503.14476), "constant" Liu et al. 2025 (arXiv:2503.20783).
    """
    _check_choice("aggregation", aggregation, get_args(Aggregation))
    if (max_length is not None) != (aggregation == "constant"):
        raise ValueError(
            f'max_length goes with the aggregation "constant" and with no other, '
            f"got {max_length} with {aggregation!r}"
        )
    if max_length is not None and max_length < 1:
        raise ValueError(f"max_length must be at least 1, got {max_length}")
    if any(n < 0 for n in n_trained):
        raise ValueError(f"n_trained must not be negative, got {min(n_trained)}")
    n_rows, n_tokens = sum(n > 0 for n in n_trained), sum(n_trained)
    if n_tokens == 0:
        raise ValueError(
            f"a batch must have trained tokens, and none of its {len(n_trained)} rows has one"
        )
    if aggregation == "sequence":
        return [1 / (n_rows * n) if n else 0.0 for n in n_trained]
    weight = 1 / n_tokens if max_length is None else 1 / (n_rows * max_length)
    return [weight if n else 0.0 for n in n_trained]


def batch_loss(
    per_token: Float[Tensor, "batch sequence"],
    weights: Sequence[float] | Float[Tensor, "batch sequence"],
    mask: Bool[Tensor, "batch sequence"],
) -> Float[Tensor, ""]:
    """Σ weight · loss over the trained tokens of these rows: their part of the batch's loss.

    What stands where `mask` is false, NaN included, reaches neither the sum nor a gradient.

    Args:
        per_token: the loss of every token.
        weights: those that `token_weights` gave to these rows; of each token where rows are packed
            from several.
        mask: what is trained.
    """
    if not isinstance(weights, Tensor):
        weights = torch.tensor(weights, dtype=torch.float64)[:, None]
    return (per_token.masked_fill(~mask, 0.0) * weights.to(per_token)).sum()


def group_advantages(
    rewards: Sequence[float] | Float[Tensor, " batch"],
    group_size: int,
    *,
    baseline: Baseline,
    normalizer: Normalizer,
    epsilon: float = 1e-6,
) -> Float[Tensor, " batch"]:
    """How much better each completion is than the others of its prompt.

    Rows of a group are contiguous. With μ and σ of a group (σ unbiased, as `torch.std`): the
    baseline takes off μ ("mean") or the mean of the others ("leave_one_out", which is
    G/(G-1)·(r-μ)), the normaliser divides by σ + `epsilon` or μ + `epsilon`. Computed in float64;
    the result is float32 unless `rewards` is a float64 tensor, and on its device. A group of
    equal rewards gets exactly 0, unless its baseline is "none".

    | preset | baseline, normalizer |
    |---|---|
    | GRPO | mean, std |
    | Dr. GRPO | mean, none |
    | RLOO | leave_one_out, none |
    | MaxRL | mean, mean |
    | expert iteration, RFT | none, none |

    Raises:
        ValueError: a reward is not finite, rewards do not come in groups of `group_size`, a group
            of 1 has a baseline or σ, or "mean" is to divide by the mean of negative rewards.

    Source: Shao et al. 2024, section 4.1 (arXiv:2402.03300), there with a biased σ; Liu et al.
    2025 (arXiv:2503.20783); Ahmadian et al. 2024 (arXiv:2402.14740); MaxRL (arXiv:2602.02710).
    """
    _check_choice("baseline", baseline, get_args(Baseline))
    _check_choice("normalizer", normalizer, get_args(Normalizer))
    given = torch.as_tensor(rewards)
    exact = given.detach().to(torch.float64)
    if group_size < 1 or exact.ndim != 1 or exact.numel() % group_size:
        raise ValueError(
            f"rewards must come in groups of group_size, got {tuple(exact.shape)} in groups "
            f"of {group_size}"
        )
    if group_size == 1 and (baseline != "none" or normalizer == "std"):
        raise ValueError(
            "a group of 1 has nothing to be compared with: "
            "take group_size of at least 2, or the baseline none without std"
        )
    if not exact.isfinite().all():
        first = int((~exact.isfinite()).nonzero()[0])
        raise ValueError(f"rewards must be finite, got {exact[first]} as number {first}")
    groups = exact.view(-1, group_size)
    # From the first one on: the mean of equal numbers need not be that number, 0 it is.
    shifted = groups - groups[:, :1]
    means = shifted.mean(1, keepdim=True)
    advantages = groups if baseline == "none" else shifted - means
    if baseline == "leave_one_out":
        advantages = advantages * (group_size / (group_size - 1))
    if normalizer == "std":
        advantages = advantages / (groups.std(1, keepdim=True) + epsilon)
    if normalizer == "mean":
        means = groups[:, :1] + means
        if (means < 0).any():
            raise ValueError(
                f'the normalizer "mean" is for rewards of which no group has a negative mean, '
                f"got {means.min():g}"
            )
        advantages = advantages / (means + epsilon)
    is_exact = isinstance(rewards, Tensor) and rewards.dtype == torch.float64
    return advantages.flatten().to(torch.float64 if is_exact else torch.float32)


class PolicyLoss(NamedTuple):
    """The loss of every token, and how many trained tokens had their ratio clipped."""

    per_token: Float[Tensor, "batch sequence"]
    """0 where nothing is trained."""
    n_clipped_low: Int[Tensor, ""]
    """Tokens with r < 1 - ε_low and a negative advantage: they get no gradient."""
    n_clipped_high: Int[Tensor, ""]
    """Tokens with r > 1 + ε_high and a positive advantage; for "cispo" any advantage but 0."""
    n_clipped_dual: Int[Tensor, ""]
    """Tokens with r above the dual clip and a negative advantage."""


def policy_loss(
    advantages: Float[Tensor, " batch"]
    | Float[Tensor, "batch 1"]
    | Float[Tensor, "batch sequence"],
    log_probs: Float[Tensor, "batch sequence"],
    *,
    ratio: Ratio,
    mask: Bool[Tensor, "batch sequence"],
    old_log_probs: Float[Tensor, "batch sequence"] | None = None,
    clip_range: tuple[float, float] = (0.2, 0.2),
    dual_clip: float = 3.0,
) -> PolicyLoss:
    """What a policy-gradient step minimises at each token, before weights.

    With r = exp(log_probs - old_log_probs) and A the advantage:

    | ratio | loss |
    |---|---|
    | none | -A·log_probs |
    | no_clip | -A·r |
    | clip | -min(A·r, A·clip(r, 1-ε_low, 1+ε_high)) |
    | dual | as clip, and at most `dual_clip`·abs(A) where A < 0 |
    | gspo | as clip, with s = exp(mean of log r over the row's trained tokens) in r's place |
    | cispo | -sg[min(r, 1+ε_high)]·A·log_probs |

    At r = 1 the gradients of a row are those of the first; its T losses of "gspo" are one number,
    whose gradient holds 1/T. Gradients flow through `log_probs` alone.

    Args:
        advantages: one of each row, or of each token.
        log_probs: of the labels, by the model that is trained.
        ratio: the form of the loss.
        mask: what is trained.
        old_log_probs: by the model when the step began; None: `log_probs`, detached, as in the
            first update after sampling, where r = 1.
        clip_range: ε_low and ε_high; for "gspo" some 3e-4.
        dual_clip: above 1.

    Raises:
        ValueError: `ratio` is unknown, or `clip_range` or `dual_clip` is out of range.

    Source: Schulman et al. 2017, equation 7 (arXiv:1707.06347); the two ranges Yu et al. 2025
    (arXiv:2503.14476); dual clip Ye et al. 2020 (arXiv:1912.09729); GSPO Zheng et al. 2025
    (arXiv:2507.18071); CISPO MiniMax 2025 (arXiv:2506.13585).
    """
    _check_choice("ratio", ratio, get_args(Ratio))
    low, high = clip_range
    if not (0 <= low <= 1 and high >= 0):
        raise ValueError(
            f"clip_range must be 0 to 1 below and not negative above, got {clip_range}"
        )
    if dual_clip <= 1:
        raise ValueError(f"dual_clip must be above 1, got {dual_clip}")
    log_probs = log_probs.masked_fill(~mask, 0.0)
    scale = (advantages[:, None] if advantages.ndim == 1 else advantages).detach()
    scale = scale.to(log_probs).expand_as(log_probs).masked_fill(~mask, 0.0)
    old = log_probs.detach() if old_log_probs is None else old_log_probs.detach()
    log_ratios = (log_probs - old).masked_fill(~mask, 0.0)
    if ratio == "gspo":
        n_trained = mask.sum(1, keepdim=True).clamp_min(1)
        log_ratios = (log_ratios.sum(1, keepdim=True) / n_trained).expand_as(log_probs)
    ratios = log_ratios.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    is_low = (ratios < 1 - low) & (scale < 0)
    is_high = (ratios > 1 + high) & (scale > 0)
    is_dual = (ratios > dual_clip) & (scale < 0) & (ratio == "dual")
    if ratio in ("none", "no_clip"):
        losses = -scale * (log_probs if ratio == "none" else ratios)
        is_low = is_high = torch.zeros_like(mask)
    elif ratio == "cispo":
        losses = -scale * ratios.detach().clamp_max(1 + high) * log_probs
        is_low, is_high = torch.zeros_like(mask), (ratios > 1 + high) & (scale != 0)
    else:
        losses = -torch.minimum(ratios * scale, ratios.clamp(1 - low, 1 + high) * scale)
        if ratio == "dual":
            losses = torch.where(scale < 0, torch.minimum(losses, -dual_clip * scale), losses)
    return PolicyLoss(losses, is_low.sum(), is_high.sum(), is_dual.sum())


def importance_weights(
    old_log_probs: Float[Tensor, "batch sequence"],
    sampler_log_probs: Float[Tensor, "batch sequence"],
    *,
    cap: float | None = 2.0,
) -> Float[Tensor, "batch sequence"]:
    """What corrects a token's loss for a sampler whose probabilities are not the trainer's.

    exp(old_log_probs - sampler_log_probs), at most `cap`: it stands outside the clip, whose
    ratio is between trainer and trainer. Exactly 1 where the two are equal bit for bit. Without
    a gradient. None does not truncate: without bias, and with a variance that has no bound.

    Source: Espeholt et al. 2018, section 4.1 (arXiv:1802.01561), for the truncation.
    """
    log_ratios = old_log_probs.detach() - sampler_log_probs.detach().to(old_log_probs)
    weights = log_ratios.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    return weights if cap is None else weights.clamp_max(cap)


def kl_estimate(
    log_probs: Float[Tensor, "*shape"],
    reference_log_probs: Float[Tensor, "*shape"],
    kind: KlKind = "k3",
) -> Float[Tensor, "*shape"]:
    """An estimate of KL(π‖reference) from each label that π sampled, to be looked at.

    With d = log_probs - reference_log_probs: d for "k1", d²/2 for "k2", e⁻ᵈ + d - 1 for "k3".
    The means of k1 and k3 are the divergence, k3 is never negative. To minimise any of them has
    another gradient than the divergence of sequences has: that is `kl_returns` and `kl_loss`.

    Source: Schulman 2020, "Approximating KL divergence".
    """
    _check_choice("kind", kind, get_args(KlKind))
    differences = log_probs - reference_log_probs.to(log_probs)
    if kind == "k1":
        return differences
    if kind == "k2":
        return differences.square() / 2
    # Both terms are near -d where d is small, and their difference near d²/2.
    return torch.expm1(-differences.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)) + differences


def kl_returns(
    log_probs: Float[Tensor, "batch sequence"],
    reference_log_probs: Float[Tensor, "batch sequence"],
    mask: Bool[Tensor, "batch sequence"],
    coefficient: float,
) -> Float[Tensor, "batch sequence"]:
    """What a penalty on KL(π‖reference) adds to the advantage of each token.

    -coefficient · Σ k1 from that token to the end of its row: the penalty as a reward, and the
    return of it. Added after the advantages are normalised, which else would scale it. With
    weights that do not depend on a row's length ("constant") the expected gradient is that of
    coefficient · KL of whole sequences, on policy. Without a gradient; 0 where nothing is trained.
    """
    rewards = (-coefficient * kl_estimate(log_probs, reference_log_probs, "k1")).detach()
    rewards = rewards.masked_fill(~mask, 0.0)
    return rewards.flip(1).cumsum(1).flip(1).masked_fill(~mask, 0.0)


def kl_loss(
    log_probs: Float[Tensor, "batch sequence"],
    reference_log_probs: Float[Tensor, "batch sequence"],
    mask: Bool[Tensor, "batch sequence"],
    *,
    old_log_probs: Float[Tensor, "batch sequence"] | None = None,
    kind: Literal["k1", "k3"] = "k3",
) -> Float[Tensor, "batch sequence"]:
    """A loss of every token whose gradient is that of KL(π‖reference), on and off policy.

    k · r₁·r₂·…·rₜ, with r the ratios to `old_log_probs` up to and with the token: the change of
    what comes before it is part of the divergence. So its variance grows with the length;
    `kl_returns` is steadier where samples are the model's own. Sum it with the weights of
    "constant".

    Args:
        log_probs: by the model that is trained; the gradient flows through these.
        reference_log_probs: by the model to stay near to.
        mask: what is trained.
        old_log_probs: by the model that sampled; None: `log_probs`, detached.
        kind: of the estimate; the gradients' expectations are equal.
    """
    reference = reference_log_probs.detach().to(log_probs)
    log_probs = log_probs.masked_fill(~mask, 0.0)
    old = log_probs.detach() if old_log_probs is None else old_log_probs.detach()
    log_ratios = (log_probs - old).masked_fill(~mask, 0.0).cumsum(1)
    ratios = log_ratios.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    estimate = kl_estimate(log_probs, reference.masked_fill(~mask, 0.0), kind)
    return (ratios * estimate).masked_fill(~mask, 0.0)


def masked_mean(
    x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"], dim: int | None = None
) -> Float[Tensor, "..."]:
    """Σ x / n over what `mask` marks, along `dim` or of all; NaN where it marks nothing."""
    return _masked_sum(x, mask, dim) / (mask.sum() if dim is None else mask.sum(dim))


def masked_normalize(
    x: Float[Tensor, "*shape"],
    mask: Bool[Tensor, "*shape"],
    constant: float,
    dim: int | None = None,
) -> Float[Tensor, "..."]:
    """Σ x / constant over what `mask` marks, along `dim` or of all."""
    return _masked_sum(x, mask, dim) / constant


def _masked_sum(x: Tensor, mask: Tensor, dim: int | None) -> Tensor:
    # Filled, not multiplied: 0 times what is not finite is not 0.
    x = x.masked_fill(~mask, 0.0)
    return x.sum() if dim is None else x.sum(dim)


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
