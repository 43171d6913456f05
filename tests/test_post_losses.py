"""Weights, advantages and policy losses: worked numbers, invariances, and mistakes of others."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rslm.architecture import TransformerConfig
from rslm.model import Transformer
from rslm.post.losses import (
    batch_loss,
    group_advantages,
    importance_weights,
    kl_estimate,
    kl_loss,
    kl_returns,
    masked_mean,
    masked_normalize,
    policy_loss,
    token_weights,
)

LOSSES = torch.tensor([[6.0, math.nan, math.nan], [1.0, 2.0, 3.0]])
MASK = torch.tensor([[True, False, False], [True, True, True]])
AGGREGATIONS = [("sequence", None), ("token", None), ("constant", 16)]


@pytest.mark.parametrize(
    ("aggregation", "max_length", "expected"),
    [("sequence", None, 4.0), ("token", None, 3.0), ("constant", 4, 1.5)],
)
def test_weights_worked_example(aggregation: str, max_length: int | None, expected: float):
    weights = token_weights([1, 3], aggregation, max_length=max_length)
    assert batch_loss(LOSSES, weights, MASK).item() == pytest.approx(expected)
    rows = [batch_loss(LOSSES[i : i + 1], weights[i : i + 1], MASK[i : i + 1]) for i in (0, 1)]
    assert sum(rows).item() == pytest.approx(expected)


def test_mean_of_means_under_accumulation_is_another_number():
    means = [LOSSES[i][MASK[i]].mean().item() for i in (0, 1)]
    assert sum(means) / 2 == 4.0
    assert batch_loss(LOSSES, token_weights([1, 3], "token"), MASK).item() == pytest.approx(3.0)


def test_last_partial_window_is_divided_by_its_own_counts():
    loss = batch_loss(torch.full((2, 3), 2.0), token_weights([1, 3], "token"), MASK)
    assert loss.item() == pytest.approx(2.0)


def test_rows_without_trained_tokens_weigh_nothing_and_are_not_counted():
    assert token_weights([2, 0, 2], "sequence") == [0.25, 0.0, 0.25]
    assert token_weights([2, 0, 2], "token") == [0.25, 0.0, 0.25]
    assert token_weights([2, 0, 2], "constant", max_length=5) == [0.1, 0.0, 0.1]


@given(st.lists(st.integers(0, 50), min_size=1, max_size=20).filter(any))
def test_weights_add_up_to_one_unless_constant(n_trained: list[int]):
    for aggregation in ("sequence", "token"):
        weights = token_weights(n_trained, aggregation)
        assert sum(w * n for w, n in zip(weights, n_trained, strict=True)) == pytest.approx(1)
    weights = token_weights(n_trained, "constant", max_length=50)
    assert sum(w * n for w, n in zip(weights, n_trained, strict=True)) <= 1 + 1e-12


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (([0, 0], "token"), "none of its 2 rows has one"),
        (([], "sequence"), "none of its 0 rows"),
        (([-1], "sequence"), "negative, got -1"),
        (([1], "constant"), "max_length goes with"),
    ],
)
def test_weights_refuse(arguments: tuple, sentence: str):
    with pytest.raises(ValueError, match=sentence):
        token_weights(*arguments)
    with pytest.raises(ValueError, match="no other"):
        token_weights([1], "token", max_length=3)
    with pytest.raises(ValueError, match="at least 1"):
        token_weights([1], "constant", max_length=0)


@pytest.mark.parametrize(
    ("rewards", "group_size", "baseline", "normalizer", "expected"),
    [
        ([1.0, 0.0, 0.0, 1.0], 2, "mean", "std", [0.7071, -0.7071, -0.7071, 0.7071]),
        ([1.0, 0.0, 0.0, 1.0], 2, "mean", "none", [0.5, -0.5, -0.5, 0.5]),
        ([1.0, 0.0, 0.0, 1.0], 2, "mean", "mean", [1.0, -1.0, -1.0, 1.0]),
        ([1.0, 0.0, 0.0, 1.0], 2, "leave_one_out", "none", [1.0, -1.0, -1.0, 1.0]),
        ([1.0, 0.0, 0.0, 1.0], 2, "none", "none", [1.0, 0.0, 0.0, 1.0]),
        ([1.0, 0.0, 0.0, 0.0], 4, "mean", "std", [1.5, -0.5, -0.5, -0.5]),
        ([1.0, 0.0, 0.0, 0.0], 4, "mean", "none", [0.75, -0.25, -0.25, -0.25]),
        ([1.0, 0.0, 0.0, 0.0], 4, "mean", "mean", [3.0, -1.0, -1.0, -1.0]),
        ([0.5], 1, "none", "none", [0.5]),
    ],
)
def test_advantages_worked_examples(
    rewards: list[float], group_size: int, baseline: str, normalizer: str, expected: list[float]
):
    found = group_advantages(rewards, group_size, baseline=baseline, normalizer=normalizer)
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx(expected, abs=2e-4)


REWARDS = st.floats(0, 10, allow_subnormal=False)


@given(st.lists(REWARDS, min_size=3, max_size=3), REWARDS)
def test_advantages_of_a_group_add_up_to_zero(rewards: list[float], shift: float):
    for baseline, normalizer in [("mean", "std"), ("mean", "none"), ("leave_one_out", "none")]:
        options = {"baseline": baseline, "normalizer": normalizer}
        found = group_advantages(torch.tensor(rewards, dtype=torch.float64), 3, **options)
        assert found.sum().abs() < 1e-9
        moved = torch.tensor([r + shift for r in rewards], dtype=torch.float64)
        torch.testing.assert_close(
            group_advantages(moved, 3, **options), found, rtol=1e-6, atol=1e-7
        )


@given(REWARDS, st.integers(2, 9))
def test_equal_rewards_give_exactly_zero(reward: float, group_size: int):
    for baseline in ("mean", "leave_one_out"):
        for normalizer in ("none", "std", "mean"):
            found = group_advantages(
                [reward] * group_size, group_size, baseline=baseline, normalizer=normalizer
            )
            assert found.tolist() == [0.0] * group_size


@pytest.mark.parametrize(
    ("rewards", "group_size", "baseline", "normalizer", "sentence"),
    [
        ([1.0, math.nan], 2, "mean", "std", "finite, got nan as number 1"),
        ([math.inf, 1.0], 2, "mean", "std", "finite, got inf as number 0"),
        ([1.0, 2.0, 3.0], 2, "mean", "std", r"got \(3,\) in groups of 2"),
        ([1.0], 0, "none", "none", "groups of 0"),
        ([1.0], 1, "mean", "none", "group of 1"),
        ([1.0], 1, "none", "std", "group of 1"),
        ([-1.0, 0.5], 2, "mean", "mean", "negative mean, got -0.25"),
    ],
)
def test_advantages_refuse(
    rewards: list[float], group_size: int, baseline: str, normalizer: str, sentence: str
):
    with pytest.raises(ValueError, match=sentence):
        group_advantages(rewards, group_size, baseline=baseline, normalizer=normalizer)


ONE = torch.ones(1, 1, dtype=torch.bool)


@pytest.mark.parametrize(
    ("ratio", "advantage", "r", "loss", "clipped"),
    [
        ("clip", 1, 1.3, -1.2, (0, 1, 0)),
        ("clip", -1, 0.7, 0.8, (1, 0, 0)),
        ("clip", -1, 5.0, 5.0, (0, 0, 0)),
        ("clip", 1, 0.7, -0.7, (0, 0, 0)),
        ("dual", -1, 5.0, 3.0, (0, 0, 1)),
        ("dual", 1, 5.0, -1.2, (0, 1, 0)),
        ("no_clip", -1, 5.0, 5.0, (0, 0, 0)),
        ("cispo", 1, 1.3, -1.2 * math.log(1.3), (0, 1, 0)),
        ("cispo", -1, 1.3, 1.2 * math.log(1.3), (0, 1, 0)),
        ("cispo", -1, 0.7, 0.7 * math.log(0.7), (0, 0, 0)),
        ("none", 2, 0.7, -2 * math.log(0.7), (0, 0, 0)),
    ],
)
def test_ratios_worked_examples(
    ratio: str, advantage: float, r: float, loss: float, clipped: tuple[int, int, int]
):
    found = policy_loss(
        torch.tensor([float(advantage)]),
        torch.tensor([[r]]).log(),
        ratio=ratio,
        mask=ONE,
        old_log_probs=torch.zeros(1, 1),
    )
    assert found.per_token.item() == pytest.approx(loss, rel=1e-6)
    assert tuple(n.item() for n in found[1:]) == clipped


def test_asymmetric_clip_has_two_bounds():
    options = {"ratio": "clip", "mask": ONE, "old_log_probs": torch.zeros(1, 1)}
    log_probs = torch.tensor([[1.25]]).log()
    plus = torch.ones(1)
    assert policy_loss(plus, log_probs, **options).per_token.item() == pytest.approx(-1.2)
    options["clip_range"] = (0.2, 0.28)
    assert policy_loss(plus, log_probs, **options).per_token.item() == pytest.approx(-1.25)
    options["clip_range"] = (0.3, 0.2)
    found = policy_loss(-plus, torch.tensor([[0.75]]).log(), **options)
    assert found.per_token.item() == pytest.approx(0.75)


def test_gspo_worked_example():
    log_probs = torch.tensor([[4e-4, 8e-4, -3e-4, 7.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, True, False]])
    options = {"ratio": "gspo", "mask": mask, "clip_range": (3e-4, 3e-4)}
    options["old_log_probs"] = torch.zeros_like(log_probs)
    plus = torch.ones(1, dtype=torch.float64)
    up, down = policy_loss(plus, log_probs, **options), policy_loss(-plus, log_probs, **options)
    assert up.per_token.tolist() == [[-1.0003] * 3 + [0.0]]
    assert down.per_token[0, 0].item() == pytest.approx(1.000300045, abs=1e-9)
    assert (up.n_clipped_high.item(), down.n_clipped_high.item()) == (3, 0)


@pytest.mark.parametrize("ratio", ["none", "no_clip", "clip", "dual", "cispo", "gspo"])
def test_first_update_after_sampling_has_one_gradient(ratio: str):
    torch.manual_seed(0)
    advantages = torch.randn(4, dtype=torch.float64)
    log_probs = (-torch.rand(4, 5, dtype=torch.float64)).requires_grad_()
    mask = torch.rand(4, 5) < 0.7
    mask[0] = False
    weights = token_weights(mask.sum(1).tolist(), "sequence")
    for old in (None, log_probs.detach().clone()):
        losses = policy_loss(advantages, log_probs, ratio=ratio, mask=mask, old_log_probs=old)
        (found,) = torch.autograd.grad(batch_loss(losses.per_token, weights, mask), log_probs)
        wanted = -advantages[:, None] * mask * torch.tensor(weights, dtype=torch.float64)[:, None]
        if ratio == "gspo":
            torch.testing.assert_close(found.sum(1), wanted.sum(1))
        else:
            torch.testing.assert_close(found, wanted)
        assert sum(n.item() for n in losses[1:]) == 0


@pytest.mark.parametrize("ratio", ["none", "no_clip", "clip", "dual", "cispo", "gspo"])
def test_nan_of_padding_reaches_nothing_and_nan_of_a_token_the_loss(ratio: str):
    log_probs = torch.tensor([[-1.0, math.nan], [-1.0, -2.0]], requires_grad=True)
    mask = torch.tensor([[True, False], [True, True]])
    old = torch.tensor([[-1.1, math.inf], [-1.2, -2.0]])
    weights = token_weights([1, 2], "token")
    options = {"ratio": ratio, "mask": mask, "old_log_probs": old}
    loss = batch_loss(policy_loss(torch.ones(2), log_probs, **options).per_token, weights, mask)
    (gradient,) = torch.autograd.grad(loss, log_probs)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    assert gradient[0, 1] == 0
    options["mask"] = torch.ones(2, 2, dtype=torch.bool)
    options["old_log_probs"] = old.nan_to_num(posinf=0.0)
    losses = policy_loss(torch.ones(2), log_probs, **options).per_token
    assert batch_loss(losses, weights, options["mask"]).isnan()


@pytest.mark.parametrize("ratio", ["no_clip", "clip", "dual", "cispo", "gspo"])
def test_ratios_do_not_overflow(ratio: str):
    log_probs = torch.tensor([[0.0, -1e4]], requires_grad=True)
    old = torch.tensor([[-1e4, 0.0]])
    mask = torch.ones(1, 2, dtype=torch.bool)
    losses = policy_loss(-torch.ones(1), log_probs, ratio=ratio, mask=mask, old_log_probs=old)
    loss = batch_loss(losses.per_token, [1.0], mask)
    assert loss.isfinite()
    assert torch.autograd.grad(loss, log_probs)[0].isfinite().all()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"ratio": "clip", "clip_range": (1.5, 0.2)}, "clip_range"),
        ({"ratio": "clip", "clip_range": (0.2, -0.1)}, "clip_range"),
        ({"ratio": "dual", "dual_clip": 1.0}, "dual_clip must be above 1"),
    ],
)
def test_policy_loss_refuses(options: dict, sentence: str):
    with pytest.raises(ValueError, match=sentence):
        policy_loss(torch.ones(1), torch.zeros(1, 1), mask=ONE, **options)


def test_unknown_choices_are_refused_where_types_are_not_checked():
    for call, name in [
        (lambda: token_weights.__wrapped__([1], "mean"), "aggregation"),
        (
            lambda: group_advantages.__wrapped__(
                [1.0, 0.0], 2, baseline="median", normalizer="none"
            ),
            "baseline",
        ),
        (
            lambda: group_advantages.__wrapped__([1.0, 0.0], 2, baseline="mean", normalizer="max"),
            "normalizer",
        ),
        (
            lambda: policy_loss.__wrapped__(torch.ones(1), ONE * 1.0, ratio="noclip", mask=ONE),
            "ratio",
        ),
        (lambda: kl_estimate.__wrapped__(ONE * 1.0, ONE * 1.0, "k4"), "kind"),
    ]:
        with pytest.raises(ValueError, match=f"{name} must be one of .*, got '"):
            call()


def test_importance_weights_are_truncated_and_exactly_one_at_equality():
    log_probs = torch.tensor([[-1.2345678, -3.3, -0.1]])
    assert (importance_weights(log_probs, log_probs.clone()) == 1).all()
    sampler = log_probs - torch.tensor([[0.1, 5.0, -0.2]])
    found = importance_weights(log_probs, sampler)
    assert found[0].tolist() == pytest.approx([math.exp(0.1), 2.0, math.exp(-0.2)])
    uncapped = importance_weights(log_probs, sampler, cap=None)
    assert uncapped[0, 1].item() == pytest.approx(math.exp(5.0), rel=1e-5)


LOG_PROBS = st.floats(-30, 0, width=32)


@given(st.lists(st.tuples(LOG_PROBS, LOG_PROBS), min_size=1, max_size=6))
def test_k3_is_never_negative_and_zero_at_equality(pairs: list[tuple[float, float]]):
    new, reference = (torch.tensor([x]) for x in zip(*pairs, strict=True))
    assert (kl_estimate(new, reference) >= 0).all()
    assert (kl_estimate(new, new) == 0).all()


def test_kl_returns_are_sums_to_the_end_of_the_row():
    new = torch.tensor([[-1.0, -2.0, -3.0, math.nan]])
    reference = torch.tensor([[-2.0, -2.5, -1.0, 0.0]])
    mask = torch.tensor([[True, True, True, False]])
    found = kl_returns(new, reference, mask, 0.5)
    assert found.tolist() == [[0.25, 0.75, 1.0, 0.0]]
    tool = torch.tensor([[True, False, True, False]])
    assert kl_returns(new, reference, tool, 0.5).tolist() == [[0.5, 0.0, 1.0, 0.0]]
    assert kl_loss(new, reference, mask).isfinite().all()


def test_masked_mean_and_normalize():
    assert masked_mean(LOSSES, MASK).item() == 3.0
    assert masked_mean(LOSSES, MASK, 1).tolist() == [6.0, 2.0]
    assert masked_mean(LOSSES, MASK, 0).tolist() == [3.5, 2.0, 3.0]
    assert masked_mean(LOSSES, MASK & False).isnan()
    assert masked_normalize(LOSSES, MASK, 4.0).item() == 3.0
    assert masked_normalize(LOSSES, MASK, 2.0, 1).tolist() == [3.0, 3.0]


class Batch:
    """Rows of random tokens of several lengths, with what a policy step needs of them."""

    def __init__(self, n_padding: int = 0) -> None:
        generator = torch.Generator().manual_seed(3)
        self.lengths = [9, 4, 12, 6]
        width = max(self.lengths) + n_padding
        self.token_ids = torch.zeros(4, width + 1, dtype=torch.int64)
        self.mask = torch.zeros(4, width, dtype=torch.bool)
        self.old = torch.zeros(4, width, dtype=torch.float64)
        for row, n in enumerate(self.lengths):
            self.token_ids[row, : n + 1] = torch.randint(32, (n + 1,), generator=generator)
            noise = torch.randn(n, generator=generator, dtype=torch.float64)
            self.old[row, :n] = -3.5 + 0.1 * noise
            self.mask[row, n // 3 : n] = True
        self.advantages = torch.tensor([0.5, -1.5, 1.0, 0.0], dtype=torch.float64)


@pytest.fixture(scope="module")
def model() -> Transformer:
    config = TransformerConfig(
        vocab_size=32, d_model=16, n_layers=1, n_heads=2, d_ff=32, context_length=64
    )
    generator = torch.Generator().manual_seed(0)
    return Transformer(config, generator=generator, dtype=torch.float64)


def gradient_of(
    model: Transformer, batch: Batch, ratio: str, parts: list[list[int]], weights: list[float]
) -> Tensor:
    """The gradient of all weights after a pass over each part of the rows."""
    model.zero_grad()
    for rows in parts:
        logits = model(batch.token_ids[rows, :-1])
        log_probs = logits.log_softmax(-1).gather(-1, batch.token_ids[rows, 1:, None])[..., 0]
        mask = batch.mask[rows]
        losses = policy_loss(
            batch.advantages[rows],
            log_probs,
            ratio=ratio,
            mask=mask,
            old_log_probs=batch.old[rows],
        )
        batch_loss(losses.per_token, [weights[row] for row in rows], mask).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("ratio", ["none", "clip", "gspo", "cispo"])
@pytest.mark.parametrize(("aggregation", "max_length"), AGGREGATIONS)
def test_gradient_knows_no_micro_batches_padding_order_or_pruning(
    model: Transformer, ratio: str, aggregation: str, max_length: int | None
):
    batch = Batch()
    weights = token_weights(batch.mask.sum(1).tolist(), aggregation, max_length=max_length)
    whole = gradient_of(model, batch, ratio, [[0, 1, 2, 3]], weights)
    assert whole.abs().max() > 1e-4
    for parts in ([[0], [1], [2], [3]], [[3, 1], [2, 0]], [[2, 1, 0]]):  # The last: A = 0 pruned.
        found = gradient_of(model, batch, ratio, parts, weights)
        torch.testing.assert_close(found, whole, rtol=1e-9, atol=1e-12)
    found = gradient_of(model, Batch(n_padding=7), ratio, [[0, 1, 2, 3]], weights)
    torch.testing.assert_close(found, whole, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("aggregation", "max_length"), AGGREGATIONS)
def test_gradient_knows_no_packing(model: Transformer, aggregation: str, max_length: int | None):
    batch = Batch()
    weights = token_weights(batch.mask.sum(1).tolist(), aggregation, max_length=max_length)
    whole = gradient_of(model, batch, "clip", [[0, 1, 2, 3]], weights)
    pieces = [(row, slice(0, n)) for row, n in enumerate(batch.lengths)]

    def packed(x: Tensor) -> Tensor:
        return torch.cat([x[row, part] for row, part in pieces])[None]

    shape = batch.mask.shape
    documents = packed(torch.arange(4)[:, None].expand(shape))
    positions = packed(torch.arange(shape[1])[None].expand(shape))
    model.zero_grad()
    logits = model(packed(batch.token_ids[:, :-1]), positions, documents=documents)
    labels = packed(batch.token_ids[:, 1:])
    log_probs = logits.log_softmax(-1).gather(-1, labels[..., None])[..., 0]
    mask = packed(batch.mask)
    losses = policy_loss(
        packed(batch.advantages[:, None].expand(shape)),
        log_probs,
        ratio="clip",
        mask=mask,
        old_log_probs=packed(batch.old),
    )
    of_tokens = packed(torch.tensor(weights, dtype=torch.float64)[:, None].expand(shape))
    batch_loss(losses.per_token, of_tokens, mask).backward()
    found = torch.cat([p.grad.flatten() for p in model.parameters()])
    torch.testing.assert_close(found, whole, rtol=1e-9, atol=1e-12)
