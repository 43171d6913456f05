"""The losses of pairs: worked numbers, the optimum of each form, and what is refused."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rslm.post.dpo_config import REFERENCE_FREE
from rslm.post.preferences import preference_loss

KINDS = [
    *["sigmoid", "robust", "ipo", "hinge", "length_normalized", "nca", "apo_zero", "apo_down"],
    *REFERENCE_FREE,
]


def of(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


PAIR = (of(-12.0), of(-15.0), of(-14.0), of(-13.0), torch.tensor([4]), torch.tensor([5]))


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def odds(mean: float) -> float:
    return mean - math.log(1 - math.exp(mean))


# The pair has Δ_w = 2, Δ_l = -2, lengths 4 and 5: h = 0.4 with β = 0.1.
@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("sigmoid", {}, 0.513015),
        ("sigmoid", {"label_smoothing": 0.1}, 0.553015),
        ("robust", {"label_smoothing": 0.1}, 0.463015),
        ("robust", {}, 0.513015),
        ("hinge", {}, 0.6),
        ("ipo", {}, 16.81),
        ("ipo", {"ipo_average": False}, 1.0),
        ("length_normalized", {}, -math.log(sigma(0.1 * (0.5 + 0.4)))),
        (
            "nca",
            {},
            -math.log(sigma(0.2)) - 0.5 * math.log(sigma(-0.2)) - 0.5 * math.log(sigma(0.2)),
        ),
        ("apo_zero", {}, 1 - sigma(0.2) + sigma(-0.2)),
        ("apo_down", {}, sigma(0.2) + 1 - sigma(0.4)),
        ("simpo", {"beta": 2.0}, -math.log(sigma(2.0 * (-3.0 + 3.0) - 0.5))),
        ("orpo", {}, 3.0 + 0.1 * -math.log(sigma(odds(-3.0) - odds(-3.0)))),
    ],
)
def test_worked_examples(kind: str, options: dict, expected: float):
    found = preference_loss(*PAIR, kind=kind, **options)
    assert found.per_pair.item() == pytest.approx(expected, abs=1e-6)


def test_rewards_are_what_is_compared():
    found = preference_loss(*PAIR)
    assert found.chosen_rewards.tolist() == pytest.approx([0.2])
    assert found.rejected_rewards.tolist() == pytest.approx([-0.2])
    found = preference_loss(*PAIR, kind="length_normalized")
    assert found.chosen_rewards.tolist() == pytest.approx([0.05])
    assert not found.chosen_rewards.requires_grad


@given(st.lists(st.floats(-200, -0.01), min_size=2, max_size=8), st.floats(0.01, 5))
def test_loss_at_the_reference_is_log_two(log_probs: list[float], beta: float):
    x = of(*log_probs)
    losses = preference_loss(x, x.flip(0), x, x.flip(0), beta=beta).per_pair
    assert losses.tolist() == pytest.approx([math.log(2)] * len(log_probs))


@given(st.floats(-50, -0.1), st.floats(-50, -0.1), st.integers(1, 30), st.integers(1, 30))
def test_to_prefer_the_chosen_more_never_costs(
    chosen: float, rejected: float, n_chosen: int, n_rejected: int
):
    lengths = (torch.tensor([n_chosen]), torch.tensor([n_rejected]))
    for kind in ("sigmoid", "hinge", "length_normalized", "simpo", "orpo", "apo_zero"):
        x = of(chosen).requires_grad_()
        loss = preference_loss(x, of(rejected), of(-9.0), of(-8.0), *lengths, kind=kind).per_pair
        (slope,) = torch.autograd.grad(loss.sum(), x)
        assert slope.item() <= 0


@pytest.mark.parametrize("smoothing", [0.1, 0.3])
def test_conservative_loss_is_least_at_the_log_odds_of_right_labels(smoothing: float):
    beta = 0.1
    best = math.log((1 - smoothing) / smoothing) / beta
    x = of(best).requires_grad_()
    losses = preference_loss(x, of(0.0), of(0.0), of(0.0), label_smoothing=smoothing, beta=beta)
    (slope,) = torch.autograd.grad(losses.per_pair.sum(), x)
    assert slope.abs().item() < 1e-10


@pytest.mark.parametrize("p", [0.5, 0.7, 1.0])
def test_ipo_regresses_to_how_often_an_answer_wins(p: float):
    # Minimised by Δ_w - Δ_l = (2p - 1) / 2β, and finite where every label agrees.
    beta, one = 0.1, torch.tensor([1])
    x = of((2 * p - 1) / (2 * beta)).requires_grad_()
    options = {"kind": "ipo", "beta": beta}
    wins = preference_loss(x, of(0.0), of(0.0), of(0.0), one, one, **options).per_pair
    losses = preference_loss(of(0.0), x, of(0.0), of(0.0), one, one, **options).per_pair
    (slope,) = torch.autograd.grad((p * wins + (1 - p) * losses).sum(), x)
    assert slope.abs().item() < 1e-10


@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_slopes_stay_finite(kind: str):
    chosen, rejected = of(-1e4, 0.0, -5.0).requires_grad_(), of(0.0, -1e4, -5.0).requires_grad_()
    lengths = torch.tensor([1, 1, 1])
    losses = preference_loss(
        chosen, rejected, of(0, 0, 0), of(0, 0, 0), lengths, lengths, kind=kind
    )
    slopes = torch.autograd.grad(losses.per_pair.sum(), (chosen, rejected))
    assert losses.per_pair.isfinite().all()
    assert all(slope.isfinite().all() for slope in slopes)


@pytest.mark.parametrize(
    ("arguments", "options", "sentence"),
    [
        (PAIR, {"beta": 0.0}, "beta must be above 0"),
        (PAIR, {"label_smoothing": 0.5}, "below 0.5"),
        (PAIR, {"kind": "hinge", "label_smoothing": 0.1}, "got it with hinge"),
        (PAIR[:2], {}, "needs the reference's log-probs"),
        (PAIR[:4], {"kind": "ipo"}, "needs the lengths"),
        (PAIR[:2], {"kind": "simpo"}, "needs the lengths"),
    ],
)
def test_refuses(arguments: tuple, options: dict, sentence: str):
    with pytest.raises(ValueError, match=sentence):
        preference_loss(*arguments, **options)


def test_refuses_an_unknown_form_where_types_are_not_checked():
    with pytest.raises(ValueError, match=r"kind must be one of sigmoid.*got 'dpo'"):
        preference_loss.__wrapped__(*PAIR, kind="dpo")
