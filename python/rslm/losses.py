"""The training loss and what is read off it."""

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable


def token_losses(
    logits: Float[Tensor, "... vocab_size"], targets: Int[Tensor, "..."]
) -> Float[Tensor, "..."]:
    """Cross-entropy of each position in nats: logsumexp(logits) - logits[target].

    The maximum is subtracted inside the logsumexp, so logits of any size are safe, and
    half-precision logits are read as float32; the result is float32 (float64 for float64
    logits). One tensor of the logits' shape is kept for the backward pass.
    """
    losses: Tensor = _TokenLosses.apply(logits.reshape(-1, logits.shape[-1]), targets.flatten())
    return losses.view(targets.shape)


def cross_entropy(
    logits: Float[Tensor, "... vocab_size"], targets: Int[Tensor, "..."]
) -> Float[Tensor, ""]:
    """Mean of the token losses over all leading dimensions, in nats per token."""
    return token_losses(logits, targets).mean()


def training_loss(
    logits: Float[Tensor, "... vocab_size"],
    targets: Int[Tensor, "..."],
    *,
    z_loss: float = 0.0,
    has_padding: bool = False,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """What training minimises, and the cross-entropy in it, which runs report.

    The first is the second plus z_loss · mean(log²Z) with Z the sum of the exponentials of a
    position's logits, which keeps Z near 1 and so the logits from drifting; without a z-loss
    the two are one tensor. With `has_padding` the means leave out positions with a negative
    target, whose logits get no gradient; there must be others.

    Source: Chowdhery et al. 2022, PaLM, section 5 (arXiv:2204.02311), there with 1e-4.
    """
    is_padding = None
    if has_padding:
        # To pick the real rows of the logits would copy the largest tensor of the step.
        is_padding = targets < 0
        targets = targets.clamp_min(0)
    losses = token_losses(logits, targets)
    loss = _mean(losses, is_padding)
    if z_loss == 0:
        return loss, loss
    # log Z = loss + logit of the target, so the exponentials are not summed again.
    target_logits = logits.gather(-1, targets[..., None])[..., 0]
    log_sums = losses + target_logits.to(losses.dtype)
    return loss + z_loss * _mean(log_sums.square(), is_padding), loss


def _mean(x: Tensor, is_padding: Tensor | None) -> Tensor:
    """The mean of what is no padding."""
    if is_padding is None:
        return x.mean()
    return x.masked_fill(is_padding, 0.0).sum() / (~is_padding).sum()


def perplexity(loss: float) -> float:
    """exp(loss): the number of equally likely tokens that would be as surprising."""
    return math.exp(loss) if loss < 709.0 else math.inf


class _TokenLosses(torch.autograd.Function):
    """logsumexp(logits) - logits[target], with d/dlogits = softmax(logits) - onehot(target).

    Written by hand because autograd's derivative of the same formula makes three tensors
    of the logits' shape where this makes one, and takes over twice as long on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        target_logits = wide.gather(-1, targets[:, None])
        largest = wide.amax(-1, keepdim=True)
        # Where `wide` is a copy it may be overwritten: one more tensor costs page faults, too.
        is_copy = wide is not logits
        exponentials = (wide.sub_(largest) if is_copy else wide - largest).exp_()
        sums = exponentials.sum(-1, keepdim=True)
        ctx.save_for_backward(exponentials, sums, targets)
        ctx.logits_dtype = logits.dtype
        # The difference first: beside huge logits the logarithm would be rounded away.
        return (sums.log() + (largest - target_logits))[:, 0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        exponentials, sums, targets = ctx.saved_tensors
        gradient = gradient[:, None]
        logits_gradient = exponentials * (gradient / sums)
        logits_gradient.scatter_add_(-1, targets[:, None], -gradient)
        return logits_gradient.to(ctx.logits_dtype), None
