"""What a model that is being trained thinks of given ids: log-probabilities with gradients."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import is_
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rslm.head_chunks import chunk_tokens
from rslm.infer.cpu_network import cpu_network, refresh
from rslm.infer.runner import Runner, StepBatch
from rslm.losses import token_losses
from rslm.model import Transformer

_MOST_LOGITS, _MOST_TOKENS = 1 << 22, 4096
"""Of one step of exact scoring: 16 MiB of logits, and keys and values that stay in a cache."""


@dataclass(frozen=True)
class LogProbs:
    """Of each label, 0 where the mask is False.

    Attributes:
        values: natural log-probabilities, through which gradients flow.
        entropy: of the distribution that each label was drawn from, in nats, without gradients;
            None if not asked for.
    """

    values: Float[Tensor, "rows sequence"]
    entropy: Float[Tensor, "rows sequence"] | None


def label_log_probs(
    model: Transformer,
    input_ids: Int[Tensor, "rows sequence"],
    labels: Int[Tensor, "rows sequence"],
    *,
    mask: Bool[Tensor, "rows sequence"] | None = None,
    exact: bool = False,
    temperature: float = 1.0,
    with_entropy: bool = False,
    autocast_dtype: torch.dtype | None = None,
) -> LogProbs:
    """The log-probability of each label after the ids up to its own place, in float32 at least.

    Logits are made at the places of the mask alone, so many at a time as `rslm.head_chunks`
    says, and made again in the backward pass where there are several such parts.

    With `exact` the values are, bit for bit, what an engine in exact mode gives as it draws the
    same ids at this temperature by the same weights, whatever the rows are padded to or stand
    beside; the gradients are those of the ordinary pass, whose values differ by rounding. So it
    costs an ordinary pass where gradients are wanted, and one by the compiled extension.

    Args:
        model: whose module is trained, not a wrapper of it.
        input_ids: padded on the right with any ids of the model.
        labels: the id after each of them.
        mask: labels that are wanted; None wants all.
        exact: compute the values in exact arithmetic, see `rslm.exact`.
        temperature: divides the logits.
        with_entropy: see `LogProbs.entropy`.
        autocast_dtype: of the ordinary pass's matrix products; None leaves them as they are.

    Raises:
        ValueError: the temperature is not above 0, rows are longer than the context, or `exact`
            and the weights are not float32 on a CPU.
    """
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature must be above 0 and finite, got {temperature}")
    if mask is None:
        mask = torch.ones_like(labels, dtype=torch.bool)
    targets = labels[mask]
    found = None
    if torch.is_grad_enabled() or not exact:
        found = _ordinary(
            model, input_ids, targets, mask, temperature, with_entropy, autocast_dtype
        )
    if exact:
        with torch.no_grad():
            bits = _exact(model, input_ids, targets, mask, temperature, with_entropy)
        values = bits[0] if found is None else _Replaced.apply(found[0], bits[0])
        found = values, bits[1]
    assert found is not None
    empty = found[0].new_zeros(labels.shape)
    values, entropy = (None if x is None else empty.masked_scatter(mask, x) for x in found)
    assert values is not None
    return LogProbs(values, entropy)


_Found = tuple[Tensor, Tensor | None]
"""Log-probabilities and entropies of the labels that are wanted, row by row."""


def _ordinary(
    model: Transformer,
    input_ids: Tensor,
    targets: Tensor,
    mask: Tensor,
    temperature: float,
    with_entropy: bool,
    autocast_dtype: torch.dtype | None,
) -> _Found:
    """By the model's own operations."""

    def score(hidden: Tensor, targets: Tensor) -> _Found:
        logits = model.logits(hidden)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if temperature != 1:
            logits = logits / temperature
        entropy = _entropy(logits.detach().log_softmax(-1)) if with_entropy else None
        return -token_losses(logits, targets), entropy

    with _autocast(input_ids.device, autocast_dtype):
        hidden = model.hidden_states(input_ids)[mask]
        size = chunk_tokens(len(targets), model.config.resolved_vocab_size, hidden.device.type)
        if size >= len(targets):
            return score(hidden, targets)
        parts = zip(hidden.split(size), targets.split(size), strict=True)
        return _joined([_again(score, *part) for part in parts])


def _again(score: Callable[..., _Found], *tensors: Tensor) -> _Found:
    """What it gives, computed again in the backward pass instead of kept for it."""
    found: _Found = checkpoint(score, *tensors, use_reentrant=False, preserve_rng_state=False)
    return found


def _exact(
    model: Transformer,
    input_ids: Tensor,
    targets: Tensor,
    mask: Tensor,
    temperature: float,
    with_entropy: bool,
) -> _Found:
    """By ragged steps of the compiled extension, without gradients."""
    runner = Runner(
        model,
        n_blocks=len(mask),
        block_size=mask.shape[1],
        exact=True,
        network=_exact_network(model),
    )
    n_tokens = min(_MOST_TOKENS, max(1, _MOST_LOGITS // model.config.resolved_vocab_size))
    nothing = targets.new_zeros(0, dtype=torch.float32)
    found: list[_Found] = [(nothing, nothing if with_entropy else None)]
    first = 0
    for batch in _steps(input_ids, mask, n_tokens):
        logits = runner.forward(batch)
        if not batch.rows:
            continue
        log_probs = tempered_log_probs(logits, temperature)
        part = targets[first : first + len(batch.rows), None]
        first += len(part)
        values = log_probs.gather(-1, part)[:, 0]
        found.append((values, _entropy(log_probs) if with_entropy else None))
    return _joined(found)


def _exact_network(model: Transformer) -> Transformer:
    """The model's exact parts, kept from call to call: two layers take 2 ms to make."""
    network = _NETWORKS.get(model)
    if network is not None and all(map(is_, model.parameters(), network.parameters())):
        refresh(network)
        return network
    network = _NETWORKS[model] = cpu_network(model)
    return network


_NETWORKS: WeakKeyDictionary[Transformer, Transformer] = WeakKeyDictionary()


def tempered_log_probs(
    logits: Float[Tensor, "rows vocab_size"], temperature: float
) -> Float[Tensor, "rows vocab_size"]:
    """The log-softmax that `rslm.infer.sampling` draws from, by the same operations."""
    if temperature != 1:
        logits = logits - logits.amax(-1, keepdim=True)
        logits.div_(torch.tensor(temperature))
    return logits.log_softmax(-1)


def _steps(input_ids: Tensor, mask: Tensor, most: int) -> Iterator[StepBatch]:
    """The rows up to their last wanted label, one after another, so many tokens at a time."""
    batch = StepBatch([], [], [], [], [])
    for number, (ids, wanted) in enumerate(zip(input_ids.tolist(), mask.tolist(), strict=True)):
        end = max((place + 1 for place, is_wanted in enumerate(wanted) if is_wanted), default=0)
        start = 0
        while start < end:
            n_before = len(batch.token_ids)
            new = range(start, min(end, start + most - n_before))
            start = new.stop
            batch.token_ids += ids[new.start : new.stop]
            batch.positions += new
            batch.lengths.append(len(new))
            batch.block_tables.append([number])
            batch.rows += [n_before + i for i, place in enumerate(new) if wanted[place]]
            if len(batch.token_ids) == most:
                yield batch
                batch = StepBatch([], [], [], [], [])
    if batch.token_ids:
        yield batch


def _entropy(log_probs: Tensor) -> Tensor:
    """-sum p log p, which is lse(z) - sum softmax(z) z without its cancellation."""
    return -(log_probs.exp() * log_probs).sum(-1)


def _joined(parts: Sequence[_Found]) -> _Found:
    values, entropies = zip(*parts, strict=True)
    return torch.cat(values), None if entropies[0] is None else torch.cat(entropies)


def _autocast(device: torch.device, dtype: torch.dtype | None) -> Any:
    if dtype is None:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype)


class _Replaced(torch.autograd.Function):
    """The second tensor's values with the first one's gradients."""

    @staticmethod
    def forward(ctx: Any, trained: Tensor, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Passed on as it is."""
        return gradient, None
