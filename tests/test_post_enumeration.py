"""Estimators against exact gradients, by sums over all answers of a tiny vocabulary, in float64.

A policy is a table of logits, a row for each prefix. Answers end with token 0 or at the greatest
length, so their lengths differ. Expectations of what a batch of G answers gives are sums over
all G-tuples. Estimators that are known to be wrong are kept, with the error that was measured.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from rslm.post.losses import (
    batch_loss,
    group_advantages,
    importance_weights,
    kl_estimate,
    kl_loss,
    kl_returns,
    policy_loss,
    token_weights,
)
from rslm.post.preferences import preference_loss

TOLERANCE = 1e-10


@dataclass(frozen=True)
class Answers:
    """All answers: token, row of the table and whether it is there, for each position."""

    token_ids: Tensor
    prefixes: Tensor
    mask: Tensor
    n_prefixes: int
    vocab_size: int

    def logits(self, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        shape = (self.n_prefixes, self.vocab_size)
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    def log_probs(self, logits: Tensor) -> Tensor:
        log_probs = logits.log_softmax(-1)[self.prefixes, self.token_ids]
        return log_probs.masked_fill(~self.mask, 0.0)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Of whole answers, by products: nothing of ours is in it."""
        return self.log_probs(logits).sum(1).exp()


def all_answers(vocab_size: int, length: int) -> Answers:
    rows: list[tuple[int, ...]] = []
    for n in range(1, length + 1):
        for token_ids in itertools.product(range(vocab_size), repeat=n):
            if 0 not in token_ids[:-1] and (token_ids[-1] == 0 or n == length):
                rows.append(token_ids)
    prefixes = {row[:t]: 0 for row in rows for t in range(len(row))}
    prefixes = {prefix: i for i, prefix in enumerate(prefixes)}
    shape = (len(rows), length)
    token_ids = torch.zeros(shape, dtype=torch.int64)
    rows_of = torch.zeros(shape, dtype=torch.int64)
    mask = torch.zeros(shape, dtype=torch.bool)
    for i, row in enumerate(rows):
        for t, token_id in enumerate(row):
            token_ids[i, t], rows_of[i, t], mask[i, t] = token_id, prefixes[row[:t]], True
    return Answers(token_ids, rows_of, mask, len(prefixes), vocab_size)


ONE_TOKEN = all_answers(4, 1)
SEQUENCES = all_answers(3, 3)


def gradient(value: Tensor, logits: Tensor) -> Tensor:
    return torch.autograd.grad(value, logits)[0]


def some_rewards(n: int, *, binary: bool) -> Tensor:
    rewards = torch.rand(n, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return (rewards > 0.6).double() if binary else rewards


PRESETS = {
    "grpo": ("mean", "std"),
    "dr_grpo": ("mean", "none"),
    "rloo": ("leave_one_out", "none"),
    "maxrl": ("mean", "mean"),
    "rft": ("none", "none"),
}
RATIOS = ("none", "no_clip", "clip", "dual", "gspo", "cispo")
AGGREGATIONS = ("sequence", "token", "constant")
EPSILON = 1e-6


def expected_gradient(
    answers: Answers,
    logits: Tensor,
    rewards: Tensor,
    *,
    group_size: int,
    preset: str,
    ratio: str,
    aggregation: str,
    sampler: Tensor | None = None,
    correction: Callable[[Tensor, Tensor], Tensor] | None = None,
    clip_range: tuple[float, float] = (0.2, 0.2),
) -> Tensor:
    """Mean gradient of an optimizer step on one group, over all groups that can be sampled."""
    sampler = logits if sampler is None else sampler
    tuples = torch.tensor(list(itertools.product(range(len(rewards)), repeat=group_size)))
    rows = tuples.flatten()
    baseline, normalizer = PRESETS[preset]
    advantages = group_advantages(
        rewards[rows], group_size, baseline=baseline, normalizer=normalizer, epsilon=EPSILON
    )
    mask = answers.mask[rows]
    old = answers.log_probs(sampler).detach()[rows]
    log_probs = answers.log_probs(logits)[rows]
    # With a correction the step is on policy for the trainer, and the sampler is another.
    is_corrected = correction is not None
    per_token = policy_loss(
        advantages,
        log_probs,
        ratio=ratio,
        mask=mask,
        old_log_probs=log_probs.detach() if is_corrected else old,
        clip_range=clip_range,
    ).per_token
    if correction is not None:
        per_token = per_token * correction(log_probs, old)
    lengths = mask.sum(1).view(-1, group_size).tolist()
    max_length = answers.mask.shape[1] if aggregation == "constant" else None
    of_tuples = old.sum(1).view(-1, group_size).sum(1).exp().tolist()
    weights = [
        p * w
        for p, n in zip(of_tuples, lengths, strict=True)
        for w in token_weights(n, aggregation, max_length=max_length)
    ]
    return gradient(batch_loss(per_token, weights, mask), logits)


def advantage_formula(preset: str, r: float, k: int, n: int) -> float:
    """The advantage of an answer with reward `r` where `k` of `n` have reward 1, on paper."""
    mean, sigma = k / n, math.sqrt(k * (n - k) / (n * max(n - 1, 1)))
    return {
        "grpo": (r - mean) / (sigma + EPSILON),
        "dr_grpo": r - mean,
        "rloo": r - (k - r) / max(n - 1, 1),
        "maxrl": (r - mean) / (mean + EPSILON),
        "rft": r,
    }[preset]


def prompt_weight(preset: str, p: float, n: int) -> float:
    """By what a preset multiplies ∇p: the mean advantage of success minus that of failure."""

    def others(k: int) -> float:
        return math.comb(n - 1, k) * p**k * (1 - p) ** (n - 1 - k)

    return sum(
        others(k) * (advantage_formula(preset, 1, k + 1, n) - advantage_formula(preset, 0, k, n))
        for k in range(n)
    )


@pytest.mark.parametrize("group_size", [2, 3])
@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("preset", PRESETS)
def test_presets_climb_expected_reward(preset: str, ratio: str, group_size: int):
    logits = SEQUENCES.logits(0)
    rewards = some_rewards(len(SEQUENCES.mask), binary=True)
    p = SEQUENCES.probabilities(logits) @ rewards
    weight = prompt_weight(preset, p.item(), group_size)
    found = expected_gradient(
        *(SEQUENCES, logits, rewards),
        group_size=group_size,
        preset=preset,
        ratio=ratio,
        aggregation="constant",
    )
    exact = -weight / SEQUENCES.mask.shape[1] * gradient(p, logits)
    torch.testing.assert_close(found, exact, rtol=0, atol=TOLERANCE)


def test_prompt_weights_are_those_of_the_papers():
    for n in (2, 3, 8):
        assert prompt_weight("dr_grpo", 0.3, n) == pytest.approx((n - 1) / n)
        assert prompt_weight("rloo", 0.3, n) == pytest.approx(1)
        assert prompt_weight("rft", 0.3, n) == pytest.approx(1)
        by_paper = (1 - 0.7**n) / 0.3 - 0.7 ** (n - 1)
        assert prompt_weight("maxrl", 0.3, n) == pytest.approx(by_paper, abs=1e-4)
    for p in (0.2, 0.5, 0.7):
        assert prompt_weight("grpo", p, 1000) == pytest.approx(1 / math.sqrt(p * (1 - p)), rel=2e-3)
        assert prompt_weight("maxrl", p, 1000) == pytest.approx(1 / p, rel=2e-3)


def score_gradient(
    logits: Tensor, rewards: Tensor, *, group_size: int, preset: str, aggregation: str
) -> Tensor:
    """-Σ over tuples and rows of ∇p(row) · p(others) · its advantage · its weight.

    The gradient comes from probabilities alone; advantages and weights are written out.
    """
    p = SEQUENCES.probabilities(logits)
    n_tokens = SEQUENCES.mask.sum(1).tolist()
    total = torch.zeros((), dtype=torch.float64)
    for rows in itertools.product(range(len(rewards)), repeat=group_size):
        of_group = rewards[list(rows)]
        mean, sigma = of_group.mean(), of_group.std(correction=1)
        for i, row in enumerate(rows):
            others = math.prod(p[other].item() for j, other in enumerate(rows) if j != i)
            weight = {
                "sequence": 1 / (group_size * n_tokens[row]),
                "token": 1 / sum(n_tokens[other] for other in rows),
            }[aggregation]
            advantage = {
                "grpo": (rewards[row] - mean) / (sigma + EPSILON),
                "dr_grpo": rewards[row] - mean,
                "rloo": (rewards[row] - mean) * group_size / (group_size - 1),
                "maxrl": (rewards[row] - mean) / (mean + EPSILON),
                "rft": rewards[row],
            }[preset]
            total = total - p[row] * others * advantage * weight
    return gradient(total, logits)


@pytest.mark.parametrize("aggregation", ["sequence", "token"])
@pytest.mark.parametrize("preset", PRESETS)
def test_other_aggregations_weigh_whole_answers(preset: str, aggregation: str):
    logits = SEQUENCES.logits(1)
    rewards = some_rewards(len(SEQUENCES.mask), binary=False)
    exact = score_gradient(logits, rewards, group_size=2, preset=preset, aggregation=aggregation)
    for ratio in RATIOS:
        found = expected_gradient(
            *(SEQUENCES, logits, rewards),
            group_size=2,
            preset=preset,
            ratio=ratio,
            aggregation=aggregation,
        )
        torch.testing.assert_close(found, exact, rtol=0, atol=TOLERANCE)


def test_sequence_aggregation_climbs_reward_per_token_not_reward():
    logits = SEQUENCES.logits(1)
    rewards = some_rewards(len(SEQUENCES.mask), binary=False)
    p, lengths = SEQUENCES.probabilities(logits), SEQUENCES.mask.sum(1)
    found = expected_gradient(
        *(SEQUENCES, logits, rewards),
        group_size=1,
        preset="rft",
        ratio="none",
        aggregation="sequence",
    )
    per_token = gradient(p @ (rewards / lengths), logits)
    torch.testing.assert_close(found, -per_token, rtol=0, atol=TOLERANCE)
    reward = gradient(SEQUENCES.probabilities(logits) @ rewards, logits)
    cosine = torch.cosine_similarity(-found.flatten(), reward.flatten(), dim=0)
    assert cosine.item() == pytest.approx(0.908, abs=1e-3)


@pytest.mark.parametrize("ratio", ["no_clip", "clip", "dual", "gspo", "cispo"])
def test_ratios_off_policy_are_exact_for_one_token(ratio: str):
    logits, sampler = ONE_TOKEN.logits(2), ONE_TOKEN.logits(8).detach()
    rewards = some_rewards(4, binary=False)
    found = expected_gradient(
        *(ONE_TOKEN, logits, rewards),
        group_size=1,
        preset="rft",
        ratio=ratio,
        aggregation="constant",
        sampler=sampler,
        clip_range=(1.0, 1e6),
    )
    exact = -gradient(ONE_TOKEN.probabilities(logits) @ rewards, logits)
    torch.testing.assert_close(found, exact, rtol=0, atol=TOLERANCE)


def test_ratios_off_policy_freeze_what_states_are_visited():
    logits, sampler = SEQUENCES.logits(2), SEQUENCES.logits(3).detach()
    rewards = some_rewards(len(SEQUENCES.mask), binary=False)
    found = expected_gradient(
        *(SEQUENCES, logits, rewards),
        group_size=1,
        preset="rft",
        ratio="no_clip",
        aggregation="constant",
        sampler=sampler,
    )
    # Exact: the sum over answers and positions of what the sampler visits, times π there.
    p = SEQUENCES.probabilities(sampler)
    ratios = (SEQUENCES.log_probs(logits) - SEQUENCES.log_probs(sampler)).exp()
    visited = (p[:, None] * ratios * rewards[:, None] * SEQUENCES.mask).sum() / 3
    torch.testing.assert_close(found, -gradient(visited, logits), rtol=0, atol=TOLERANCE)
    exact = -gradient(SEQUENCES.probabilities(logits) @ rewards, logits) / 3
    assert (found - exact).norm() / exact.norm() == pytest.approx(0.622, abs=1e-3)
    # A correction at each token freezes them, too.
    corrected = expected_gradient(
        *(SEQUENCES, logits, rewards),
        group_size=1,
        preset="rft",
        ratio="clip",
        aggregation="constant",
        sampler=sampler,
        correction=lambda trainer, old: importance_weights(trainer, old, cap=None),
    )
    torch.testing.assert_close(corrected, found, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("ratio", ["clip", "dual", "gspo", "cispo"])
def test_clipped_tokens_get_the_gradient_of_the_formula(ratio: str):
    logits, sampler = SEQUENCES.logits(2), SEQUENCES.logits(3).detach()
    rewards = some_rewards(len(SEQUENCES.mask), binary=False) - 0.5
    low, high, cap = 0.3, 0.6, 3.0
    found = expected_gradient(
        *(SEQUENCES, logits, rewards),
        group_size=1,
        preset="rft",
        ratio=ratio,
        aggregation="sequence",
        sampler=sampler,
        clip_range=(low, high),
    )
    log_probs, old = SEQUENCES.log_probs(logits), SEQUENCES.log_probs(sampler)
    n_tokens = SEQUENCES.mask.sum(1, keepdim=True)
    log_ratios = log_probs.detach() - old
    if ratio == "gspo":
        log_ratios = log_ratios.sum(1, keepdim=True).expand_as(old) / n_tokens
    r, scale = log_ratios.exp(), rewards[:, None].expand_as(old)
    factor = r.clone()
    if ratio == "cispo":
        factor[r > 1 + high] = 1 + high
    else:
        factor[(r > 1 + high) & (scale > 0)] = 0
        factor[(r < 1 - low) & (scale < 0)] = 0
        if ratio == "dual":
            factor[(r > cap) & (scale < 0)] = 0
    assert (factor != r).any()
    weights = SEQUENCES.probabilities(sampler)[:, None] / n_tokens * SEQUENCES.mask
    exact = -gradient((weights * factor * scale * log_probs).sum(), logits)
    torch.testing.assert_close(found, exact, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("cap", [None, 1.2])
def test_correction_for_another_sampler(cap: float | None):
    logits, sampler = ONE_TOKEN.logits(2), ONE_TOKEN.logits(8).detach()
    rewards = some_rewards(4, binary=False)
    found = expected_gradient(
        *(ONE_TOKEN, logits, rewards),
        group_size=1,
        preset="rft",
        ratio="clip",
        aggregation="constant",
        sampler=sampler,
        correction=lambda trainer, old: importance_weights(trainer, old, cap=cap),
    )
    p, q = ONE_TOKEN.probabilities(logits), ONE_TOKEN.probabilities(sampler)
    kept = p.detach() if cap is None else torch.minimum(p.detach(), cap * q)
    exact = -gradient((kept * rewards * p.log()).sum(), logits)
    torch.testing.assert_close(found, exact, rtol=0, atol=TOLERANCE)
    unbiased = -gradient(ONE_TOKEN.probabilities(logits) @ rewards, logits)
    assert torch.allclose(found, unbiased, rtol=0, atol=TOLERANCE) == (cap is None)


def kl(answers: Answers, logits: Tensor, reference: Tensor) -> Tensor:
    """KL of whole answers, by its definition."""
    p, q = answers.probabilities(logits), answers.probabilities(reference)
    return (p * (p / q).log()).sum()


KL_ESTIMATORS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "k1": lambda new, ref, mask, old: kl_estimate(new, ref, "k1"),
    "k2": lambda new, ref, mask, old: kl_estimate(new, ref, "k2"),
    "k3": lambda new, ref, mask, old: kl_estimate(new, ref, "k3"),
    "token ratio, k1": lambda new, ref, mask, old: (new - old).exp() * kl_estimate(new, ref, "k1"),
    "token ratio, k3": lambda new, ref, mask, old: (new - old).exp() * kl_estimate(new, ref, "k3"),
    "kl_returns": lambda new, ref, mask, old: (
        policy_loss(kl_returns(new, ref, mask, 1.0), new, ratio="none", mask=mask).per_token
    ),
    "kl_loss k1": lambda new, ref, mask, old: kl_loss(new, ref, mask, old_log_probs=old, kind="k1"),
    "kl_loss k3": lambda new, ref, mask, old: kl_loss(new, ref, mask, old_log_probs=old),
    "answer ratio, sum of k1": lambda new, ref, mask, old: (
        (new - old).sum(1, keepdim=True).exp() * kl_estimate(new, ref, "k1")
    ),
    "half of squared sum": lambda new, ref, mask, old: (
        (new - ref).sum(1, keepdim=True).square() / 2 / mask.sum(1, keepdim=True)
    ).expand_as(new),
}
# Errors over the norm of the exact gradient: one token on and off policy, answers on and off.
KL_ERRORS = {
    "k1": (1, 2.145, 1, 1.462),
    "k2": (0, 1.288, 0.4488, 1.941),
    "k3": (0.6372, 2.105, 1.204, 10.68),
    "token ratio, k1": (0, 0, 0.4488, 0.6837),
    "token ratio, k3": (0, 0, 0.4488, 0.6837),
    "kl_returns": (0, 1.288, 0, 1.721),
    "kl_loss k1": (0, 0, 0, 0),
    "kl_loss k3": (0, 0, 0, 0),
    "answer ratio, sum of k1": (0, 0, 0, 0),
    "half of squared sum": (0, 1.288, 0, 1.869),
}


def kl_gradient(name: str, answers: Answers, logits: Tensor, sampler: Tensor) -> Tensor:
    reference = answers.log_probs(answers.logits(7)).detach()
    new, old = answers.log_probs(logits), answers.log_probs(sampler).detach()
    per_token = KL_ESTIMATORS[name](new, reference, answers.mask, old)
    weights = old.sum(1).exp().tolist()
    return gradient(batch_loss(per_token, weights, answers.mask), logits)


@pytest.mark.parametrize("name", KL_ESTIMATORS)
def test_kl_gradients_have_the_errors_of_the_table(name: str):
    errors = []
    for answers in (ONE_TOKEN, SEQUENCES):
        logits = answers.logits(6)
        exact = gradient(kl(answers, logits, answers.logits(7).detach()), logits)
        for sampler in (logits, answers.logits(8)):
            found = kl_gradient(name, answers, logits, sampler)
            errors.append(((found - exact).norm() / exact.norm()).item())
    for found, listed in zip(errors, KL_ERRORS[name], strict=True):
        assert found == pytest.approx(listed, rel=1e-3, abs=TOLERANCE)


def test_k1_in_the_loss_does_nothing_and_k3_turns_the_divergence_around():
    for answers in (ONE_TOKEN, SEQUENCES):
        logits = answers.logits(6)
        assert kl_gradient("k1", answers, logits, logits).abs().max() < TOLERANCE
    logits, reference = ONE_TOKEN.logits(6), ONE_TOKEN.logits(7).detach()
    p, q = ONE_TOKEN.probabilities(logits), ONE_TOKEN.probabilities(reference)
    turned = gradient((q * (q / p).log()).sum(), logits)
    found = kl_gradient("k3", ONE_TOKEN, logits, logits)
    torch.testing.assert_close(found, turned, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_kl_estimates_have_the_divergence_as_mean(kind: str):
    logits, reference = SEQUENCES.logits(6).detach(), SEQUENCES.logits(7).detach()
    new, ref = SEQUENCES.log_probs(logits), SEQUENCES.log_probs(reference)
    estimate = kl_estimate(new, ref, kind)
    found = batch_loss(estimate, SEQUENCES.probabilities(logits).tolist(), SEQUENCES.mask)
    assert found.item() == pytest.approx(kl(SEQUENCES, logits, reference).item(), abs=TOLERANCE)
    if kind == "k3":
        assert (estimate >= 0).all()


def bradley_terry(rewards: Tensor) -> Tensor:
    """The chance that row is preferred to column."""
    return torch.sigmoid(rewards[:, None] - rewards[None])


def expected_preference_gradient(
    logits: Tensor, reference: Tensor, preferred: Tensor, kind: str, **options: float
) -> Tensor:
    """Gradient of the mean loss over all pairs of answers, whatever sampled them."""
    new = SEQUENCES.log_probs(logits).sum(1)
    ref = SEQUENCES.log_probs(reference).sum(1)
    i, j = torch.triu_indices(len(new), len(new), offset=1)
    lengths = SEQUENCES.mask.sum(1)
    forward = (new[i], new[j], ref[i], ref[j], lengths[i], lengths[j])
    backward = (new[j], new[i], ref[j], ref[i], lengths[j], lengths[i])
    p = preferred[i, j]
    losses = p * preference_loss(*forward, kind=kind, **options).per_pair
    losses = losses + (1 - p) * preference_loss(*backward, kind=kind, **options).per_pair
    return gradient(losses.sum(), logits)


def tilted(reference: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """Logits of the policy with probabilities ∝ reference · exp(reward / beta)."""
    p = SEQUENCES.probabilities(reference) * (rewards / beta).exp()
    p = p / p.sum()
    table = torch.zeros_like(reference)
    table.index_put_(
        (SEQUENCES.prefixes[SEQUENCES.mask], SEQUENCES.token_ids[SEQUENCES.mask]),
        p[:, None].expand_as(SEQUENCES.mask)[SEQUENCES.mask],
        accumulate=True,
    )
    return table.log().requires_grad_()


def test_optimum_of_dpo_is_the_tilted_reference():
    reference = SEQUENCES.logits(9).detach()
    rewards, beta = some_rewards(len(SEQUENCES.mask), binary=False), 0.4
    preferred = bradley_terry(rewards)
    optimum = tilted(reference, rewards, beta)
    found = expected_preference_gradient(optimum, reference, preferred, "sigmoid", beta=beta)
    assert found.abs().max() < TOLERANCE
    # And it is also what reward minus beta times the divergence is greatest at.
    objective = SEQUENCES.probabilities(optimum) @ rewards
    objective = objective - beta * kl(SEQUENCES, optimum, reference)
    assert gradient(objective, optimum).abs().max() < TOLERANCE
    elsewhere = SEQUENCES.logits(9)
    found = expected_preference_gradient(elsewhere, reference, preferred, "sigmoid", beta=beta)
    assert found.abs().max() > 1e-2


def test_robust_loss_of_flipped_labels_is_dpo_of_clean_ones():
    logits, reference = SEQUENCES.logits(10), SEQUENCES.logits(9).detach()
    preferred, flips = bradley_terry(some_rewards(len(SEQUENCES.mask), binary=False)), 0.2
    flipped = (1 - flips) * preferred + flips * (1 - preferred)
    clean = expected_preference_gradient(logits, reference, preferred, "sigmoid", beta=0.3)
    robust = expected_preference_gradient(
        logits, reference, flipped, "robust", beta=0.3, label_smoothing=flips
    )
    torch.testing.assert_close(robust, clean, rtol=0, atol=TOLERANCE)
    conservative = expected_preference_gradient(
        logits, reference, flipped, "sigmoid", beta=0.3, label_smoothing=flips
    )
    assert (conservative - clean).norm() / clean.norm() > 0.1
