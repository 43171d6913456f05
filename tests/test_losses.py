import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from rslm.losses import cross_entropy, perplexity, token_losses, training_loss


def random_batch(*shape: int, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(len(shape))
    logits = 4 * torch.randn(*shape, 11, generator=generator, dtype=dtype)
    return logits, torch.randint(0, 11, shape, generator=generator)


@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (2, 3, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cross_entropy_and_its_gradient_equal_torch(shape: tuple[int, ...], dtype: torch.dtype):
    logits, targets = random_batch(*shape, dtype=dtype)
    logits.requires_grad_()
    ours = cross_entropy(logits, targets)
    theirs = functional.cross_entropy(logits.view(-1, 11), targets.view(-1))
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(
        torch.autograd.grad(ours, logits), torch.autograd.grad(theirs, logits)
    )


def test_token_losses_keep_the_targets_shape_and_their_own_gradients():
    logits, targets = random_batch(2, 3)
    losses = token_losses(logits, targets)
    theirs = functional.cross_entropy(logits.mT, targets, reduction="none")
    torch.testing.assert_close(losses, theirs)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: token_losses(x, targets), logits)


@given(st.floats(-1e4, 1e4), st.integers(0, 10))
def test_cross_entropy_ignores_a_constant(constant: float, target: int):
    logits, _ = random_batch(1)
    targets = torch.tensor([target])
    torch.testing.assert_close(
        cross_entropy(logits + constant, targets),
        cross_entropy(logits, targets),
        rtol=0,
        atol=1e-11,  # 1e4 in float64 has a spacing of 2e-12.
    )


def test_cross_entropy_of_huge_logits_is_finite_and_exact():
    logits = torch.tensor([[1e30, 0.0], [-1e30, -1e30]])
    assert token_losses(logits, torch.tensor([1, 0])).tolist() == pytest.approx([1e30, math.log(2)])


def test_cross_entropy_of_equal_logits_is_log_of_their_number():
    assert cross_entropy(torch.zeros(3, 50304), torch.zeros(3, dtype=torch.long)).item() == (
        pytest.approx(10.82584, abs=1e-5)
    )


def test_cross_entropy_of_bfloat16_is_computed_in_float32():
    logits, targets = random_batch(64, dtype=torch.bfloat16)
    logits.requires_grad_()
    loss = cross_entropy(logits, targets)
    wide = logits.detach().float().requires_grad_()
    expected = cross_entropy(wide, targets)
    assert loss.dtype == torch.float32
    assert loss.item() == expected.item()
    loss.backward()
    expected.backward()
    assert torch.equal(logits.grad, wide.grad.bfloat16())


def test_backward_twice_gives_the_same_gradient():
    logits, targets = random_batch(2, 3)
    logits.requires_grad_()
    loss = cross_entropy(logits, targets)
    first = torch.autograd.grad(loss, logits, retain_graph=True)
    assert torch.equal(first[0], torch.autograd.grad(loss, logits)[0])


def test_perplexity():
    assert perplexity(math.log(50257)) == pytest.approx(50257)
    assert perplexity(1e4) == math.inf


def test_training_loss_without_z_loss_is_the_cross_entropy_itself():
    logits, targets = random_batch(3, 4)
    minimised, loss = training_loss(logits, targets)
    assert minimised is loss
    assert torch.equal(loss, cross_entropy(logits, targets))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_z_loss_and_its_gradient_equal_torch_s_logsumexp(dtype: torch.dtype):
    logits, targets = random_batch(3, 4, dtype=dtype)
    logits.requires_grad_()
    minimised, loss = training_loss(logits, targets, z_loss=0.1)
    wide = logits.detach().to(torch.promote_types(dtype, torch.float32)).requires_grad_()
    expected = functional.cross_entropy(wide.flatten(0, 1), targets.flatten())
    expected_sum = expected + 0.1 * torch.logsumexp(wide, -1).square().mean()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(minimised, expected_sum)
    assert minimised > loss + 0.01
    minimised.backward()
    expected_sum.backward()
    tolerance = {} if dtype == torch.float64 else {"rtol": 2**-7, "atol": 2**-10}
    torch.testing.assert_close(logits.grad.to(wide.dtype), wide.grad, **tolerance)
