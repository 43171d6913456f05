"""The training loss and what is read off it."""

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.library import custom_op

from rslm.architecture import SoftcapForm
from rslm.head_chunks import chunk_tokens
from rslm.matmul_peak import has_bfloat16_units


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


def linear_cross_entropy(
    hidden: Float[Tensor, "... d_model"],
    weight: Float[Tensor, "vocab_size d_model"],
    targets: Int[Tensor, "..."],
    *,
    bias: Float[Tensor, " vocab_size"] | None = None,
    softcap: float | None = None,
    softcap_form: SoftcapForm = "tanh",
    z_loss: float = 0.0,
    has_padding: bool = False,
    weights: Float[Tensor, "..."] | None = None,
    chunk: int | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """`training_loss` of the logits `hidden` Wᵀ + `bias`, which are never whole in memory.

    Equal to it up to rounding. The logits of `chunk` tokens at a time are made, turned into
    their gradient where they lie, and multiplied into the gradients of `hidden` and `weight`:
    these two and one chunk are all that is held, and the backward pass only scales them. They
    are summed in float32 at least. With a z-loss the second result has no gradient.

    Matrix products are in the dtype of autocast, else in the inputs'; on a CPU that lacks
    bfloat16 they are float32, which is faster there by a factor of up to 60.

    Args:
        hidden: what the head reads.
        weight: the head's, a row for each token of the vocabulary.
        targets: the tokens to predict.
        bias: the head's.
        softcap: bound of the logits' size, see `rslm.layers.softcap`.
        softcap_form: likewise.
        z_loss: see `training_loss`.
        has_padding: see `training_loss`.
        weights: what each loss counts; both results are then sums of weight times loss, in place
            of means.
        chunk: tokens at a time; None chooses.

    Raises:
        ValueError: `chunk` is below 1.

    Source: Hsu et al. 2024, Liger Kernel, section 3.2 (arXiv:2410.10989), there with chunks
    that are as large as `hidden`.
    """
    rows = hidden.reshape(-1, hidden.shape[-1])
    if chunk is None:
        chunk = chunk_tokens(len(rows), len(weight), hidden.device.type)
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    kind = hidden.device.type
    dtype = torch.promote_types(hidden.dtype, weight.dtype)
    if torch.is_autocast_enabled(kind) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(kind)
    trained = any(x is not None and x.requires_grad for x in (hidden, weight, bias))
    minimised, loss, *_ = _linear_cross_entropy(
        rows,
        weight,
        bias,
        targets.flatten(),
        softcap or 0.0,
        softcap_form,
        z_loss,
        has_padding,
        None if weights is None else weights.flatten(),
        chunk,
        dtype,
        trained and torch.is_grad_enabled(),
    )
    return minimised, minimised if z_loss == 0 else loss.detach()


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


# A custom operation, so that a compiler sees one step: unrolled, the chunks would be for it to
# order, and with them the memory.
@custom_op("rslm::linear_cross_entropy", mutates_args=())
def _linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    cap: float,
    form: str,
    z_loss: float,
    has_padding: bool,
    weights: Tensor | None,
    chunk: int,
    dtype: torch.dtype,
    with_gradients: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What is minimised, the cross-entropy, and the first's gradients for hidden, weight, bias."""
    if dtype.itemsize == 2 and not has_bfloat16_units(hidden.device):
        dtype = torch.float32
    wide = torch.promote_types(dtype, torch.float32)
    is_padding = targets < 0 if has_padding else None
    targets = targets.clamp_min(0)[:, None]
    shares = (
        _mean_shares(targets, is_padding, wide) if weights is None else weights.to(wide)[:, None]
    )
    results = hidden.new_empty(2, len(hidden), dtype=wide)
    d_hidden, d_weight, d_bias = _gradients(hidden, weight, bias, with_gradients, wide)
    with torch.autocast(hidden.device.type, enabled=False):
        head = weight.to(dtype)
        for first in range(0, len(hidden), chunk):
            part = slice(first, first + chunk)
            x = hidden[part].to(dtype)
            logits = x @ head.T if bias is None else torch.addmm(bias.to(dtype), x, head.T)
            d_logits = _losses_of_chunk(
                logits.to(wide),
                targets[part],
                results[:, part],
                cap=cap,
                is_sqrt=form == "sqrt",
                z_loss=z_loss,
                shares=shares[part] if with_gradients else None,
            )
            del logits
            if d_logits is None:
                continue
            if bias is not None:
                d_bias += d_logits.sum(0)
            d_logits = d_logits.to(dtype)
            d_hidden[part] = d_logits @ head
            if dtype == wide:
                d_weight.addmm_(d_logits.T, x)
            else:
                d_weight += d_logits.T @ x
            # Else it would stand beside the next one.
            del d_logits
    loss = _mean(results[0], is_padding) if weights is None else results[0] @ shares[:, 0]
    minimised = loss.clone()
    if z_loss:
        squares = results[1].square()
        minimised += z_loss * (
            _mean(squares, is_padding) if weights is None else squares @ shares[:, 0]
        )
    return minimised, loss, d_hidden, d_weight.to(weight.dtype), d_bias.to(weight.dtype)


def _mean_shares(targets: Tensor, is_padding: Tensor | None, dtype: torch.dtype) -> Tensor:
    """How much each token's loss counts in the mean, (tokens, 1)."""
    if is_padding is None:
        return torch.full(targets.shape, 1 / len(targets), dtype=dtype, device=targets.device)
    is_real = (~is_padding).to(dtype)[:, None]
    return is_real / is_real.sum()


def _gradients(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, wanted: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Room for the gradients, those that are summed in `dtype`; of size 0 where not wanted."""
    d_hidden = torch.empty_like(hidden) if wanted else hidden.new_empty(0)
    d_weight = weight.new_zeros(weight.shape if wanted else 0, dtype=dtype)
    d_bias = weight.new_zeros(len(weight) if wanted and bias is not None else 0, dtype=dtype)
    return d_hidden, d_weight, d_bias


def _losses_of_chunk(
    logits: Tensor,
    targets: Tensor,
    results: Tensor,
    *,
    cap: float,
    is_sqrt: bool,
    z_loss: float,
    shares: Tensor | None,
) -> Tensor | None:
    """Fills `results` with losses and log Z; with `shares`, turns logits into their gradient."""
    slope = None
    if cap:
        logits = _bend(logits, cap, is_sqrt)
        slope = None if shares is None else _slope(logits, cap, is_sqrt)
    target_logits = logits.gather(-1, targets)
    largest = logits.amax(-1, keepdim=True)
    exponentials = logits.sub_(largest).exp_()
    sums = exponentials.sum(-1, keepdim=True)
    # The difference first: beside huge logits the logarithm would be rounded away.
    results[0] = (sums.log() + (largest - target_logits))[:, 0]
    log_sums = sums.log() + largest
    results[1] = log_sums[:, 0]
    if shares is None:
        return None
    exponentials.mul_(shares * (1 + 2 * z_loss * log_sums) / sums)
    exponentials.scatter_add_(-1, targets, -shares)
    return exponentials if slope is None else exponentials.mul_(slope)


def _bend(logits: Tensor, cap: float, is_sqrt: bool) -> Tensor:
    """`rslm.layers.softcap` in place."""
    if is_sqrt:
        return logits.mul_(logits.square().add_(cap**2).rsqrt_()).mul_(cap)
    return logits.div_(cap).tanh_().mul_(cap)


def _slope(bent: Tensor, cap: float, is_sqrt: bool) -> Tensor:
    """The derivative of `_bend`, from its result y: 1 - (y/cap)² for tanh, else that to the 1.5."""
    slope = (bent / cap).square_().neg_().add_(1).clamp_min_(0)
    return slope.pow_(1.5) if is_sqrt else slope


@_linear_cross_entropy.register_fake
def _shapes(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    cap: float,
    form: str,
    z_loss: float,
    has_padding: bool,
    weights: Tensor | None,
    chunk: int,
    dtype: torch.dtype,
    with_gradients: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    wide = torch.promote_types(dtype, torch.float32)
    minimised, loss = (hidden.new_empty((), dtype=wide) for _ in range(2))
    return minimised, loss, *_gradients(hidden, weight, bias, with_gradients, weight.dtype)


def _keep_gradients(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*output[2:])
    ctx.has_bias, ctx.n_options = inputs[2] is not None, len(inputs) - 3


def _scale_gradients(ctx: Any, gradient: Tensor, *_unused: Tensor | None) -> tuple[Any, ...]:
    d_hidden, d_weight, d_bias = ctx.saved_tensors
    # A look is free on a CPU, and saves a pass over the largest gradient of the step. What is
    # traced by a compiler is of a subclass, and has no value yet.
    is_one = type(gradient) is Tensor and gradient.device.type == "cpu" and gradient.item() == 1
    if not is_one:
        d_hidden, d_weight, d_bias = (x * gradient.to(x.dtype) for x in ctx.saved_tensors)
    return d_hidden, d_weight, d_bias if ctx.has_bias else None, *[None] * ctx.n_options


_linear_cross_entropy.register_autograd(_scale_gradients, setup_context=_keep_gradients)
