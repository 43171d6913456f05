"""Ids drawn from logits, each row by its own parameters and the noise of its own place.

A row's id is the argmax of its processed logits plus Gumbel noise, which is distributed as their
softmax (Gumbel 1954; Maddison et al. 2014, section 2, arXiv:1411.0030). As the noise is a
function of (key, position, id), see `rslm.infer.philox`, and everything here is computed row by
row, the id depends on nothing outside its row.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log

import torch
from jaxtyping import Float
from torch import Tensor

from rslm.infer.parameters import SamplingParameters, TokenLogProb
from rslm.infer.philox import candidate_noise, vocabulary_noise

MIN_TEMPERATURE = 1e-6
"""Below it is 0: float32 knows no smaller differences of logits of size one."""

_LARGEST = torch.finfo(torch.float32).max
_FIRST_CANDIDATES = 64
_MORE_CANDIDATES = 16


@dataclass(slots=True)
class Draw:
    """What one row of logits is drawn with.

    Attributes:
        parameters: temperature, filters and penalty.
        key: of the sequence, see `rslm.infer.philox.sampling_key`.
        position: of the id to draw: the count of ids before it, the prompt's included.
        seen: True at the ids that the repetition penalty falls on; None without a penalty.
        n_top: how many of the likeliest are told beside the id drawn; None tells nothing.
    """

    parameters: SamplingParameters
    key: int
    position: int
    seen: Tensor | None = None
    n_top: int | None = None


@dataclass(frozen=True)
class Drawn:
    """An id for each row, and the log-probabilities of the rows that want them."""

    token_ids: list[int]
    log_probs: list[TokenLogProb | None]


def sampling_device(device: torch.device) -> torch.device:
    """Where ids are drawn from logits on `device`: there, if it knows float64, else on the CPU."""
    return torch.device("cpu") if device.type == "mps" else device


def sample_tokens(logits: Float[Tensor, "rows vocab_size"], draws: Sequence[Draw]) -> Drawn:
    """Draws an id for each row, on `sampling_device`, where `Draw.seen` must be.

    Raises:
        ValueError: a row's largest logit is not finite.
    """
    logits = logits.float().to(sampling_device(logits.device))
    _check_finite(logits.amax(-1))
    if all(_is_plain_argmax(draw) for draw in draws):
        return Drawn(_argmax(logits), [None] * len(draws))
    # Many sequences have the same parameters, those of a prompt even one object.
    methods: dict[int, _Method] = {}
    groups: dict[_Method, list[int]] = {}
    for row, draw in enumerate(draws):
        method = methods.get(id(draw.parameters))
        if method is None:
            method = methods[id(draw.parameters)] = _method(draw.parameters, logits.shape[-1])
        groups.setdefault(method, []).append(row)
    token_ids, processed = [0] * len(draws), [0.0] * len(draws)
    for method, rows in groups.items():
        chosen = [draws[row] for row in rows]
        part = logits if len(rows) == len(draws) else logits[torch.tensor(rows).to(logits.device)]
        for row, token_id, log_prob in zip(
            rows, *method(_penalised(part, chosen), chosen), strict=True
        ):
            token_ids[row], processed[row] = token_id, log_prob
    return Drawn(token_ids, _log_probs(logits, draws, token_ids, processed))


def score_tokens(
    logits: Float[Tensor, "rows vocab_size"],
    token_ids: Sequence[int],
    n_top: Sequence[int],
    processed: Sequence[float] | None = None,
) -> list[TokenLogProb]:
    """The log-probabilities of given ids, one for each row, with so many of the likeliest.

    Those that are `processed` are the same where none are given.
    """
    log_probs = logits.float().log_softmax(-1)
    ids = torch.tensor(token_ids, device=logits.device)
    own = log_probs.gather(-1, ids[:, None])[:, 0].tolist()
    most = max(n_top, default=0)
    tops: list[list[tuple[int, float]]] = [[]] * len(token_ids)
    if most:
        values, top_ids = likeliest(log_probs, most)
        pairs = zip(top_ids.tolist(), values.tolist(), strict=True)
        tops = [list(zip(row_ids, row, strict=True)) for row_ids, row in pairs]
    columns = (token_ids, own, own if processed is None else processed, tops, n_top)
    return [
        TokenLogProb(token_id, log_prob, after, tuple(top[:n]))
        for token_id, log_prob, after, top, n in zip(*columns, strict=True)
    ]


def likeliest(
    logits: Float[Tensor, "rows vocab_size"], n: int
) -> tuple[Float[Tensor, "rows n"], Tensor]:
    """The `n` largest values of each row and their ids, in falling order, lower ids first.

    torch's top-k leaves open which of equals it takes, and in which order.
    """
    n = min(n, logits.shape[-1])
    if 4 * n >= logits.shape[-1]:
        values, ids = logits.sort(dim=-1, descending=True, stable=True)
        return values[:, :n], ids[:, :n]
    values, ids = logits.topk(n, sorted=False)
    ids, order = ids.sort(-1)
    values, order = values.gather(-1, order).sort(dim=-1, descending=True, stable=True)
    ids = ids.gather(-1, order)
    # Where equals stand on both sides of the cut, others may have been due.
    cut = ((logits >= values[:, -1:]).sum(-1) > n).nonzero()[:, 0]
    if len(cut):
        all_values, all_ids = logits[cut].sort(dim=-1, descending=True, stable=True)
        values[cut], ids[cut] = all_values[:, :n], all_ids[:, :n]
    return values, ids


_Chosen = tuple[list[int], list[float]]
_Method = Callable[[Tensor, Sequence[Draw]], _Chosen]


def _is_plain_argmax(draw: Draw) -> bool:
    """Whether an argmax is all there is to do."""
    return (
        draw.parameters.temperature < MIN_TEMPERATURE and draw.seen is None and draw.n_top is None
    )


def _method(parameters: SamplingParameters, vocab_size: int) -> _Method:
    if parameters.temperature < MIN_TEMPERATURE:
        return _take_largest
    if _top_k(parameters, vocab_size) < vocab_size or _top_p(parameters) < 1:
        return _draw_from_likeliest
    return _draw_from_all


def _take_largest(logits: Tensor, draws: Sequence[Draw]) -> _Chosen:
    return _argmax(logits), [0.0] * len(draws)


def _draw_from_all(logits: Tensor, draws: Sequence[Draw]) -> _Chosen:
    """Argmax over the whole vocabulary; min-p needs no order."""
    scaled = _min_p_cut(_scaled(logits, draws), draws)
    noise = vocabulary_noise(*_places(draws), logits.shape[-1], logits.device)
    ids = _argmax(noise.add_(scaled))
    log_probs = [0.0] * len(draws)
    if any(draw.n_top is not None for draw in draws):
        drawn = torch.tensor(ids, device=logits.device)[:, None]
        log_probs = scaled.log_softmax(-1).gather(-1, drawn)[:, 0].tolist()
    return ids, log_probs


def _draw_from_likeliest(logits: Tensor, draws: Sequence[Draw]) -> _Chosen:
    """Argmax over the likeliest ids that the filters keep, for which alone noise is made."""
    scaled = _scaled(logits, draws)
    values, ids, weights = _kept(scaled, draws)
    noise = candidate_noise(*_places(draws), ids, logits.shape[-1])
    scores = (values + noise).masked_fill_(weights == 0, -torch.inf)
    best = scores == scores.amax(-1, keepdim=True)
    # Of equal scores the lowest id, as argmax over the whole vocabulary takes it.
    chosen = ids.masked_fill(~best, logits.shape[-1]).amin(-1)
    log_probs = [0.0] * len(draws)
    if any(draw.n_top is not None for draw in draws):
        own = values.masked_fill(ids != chosen[:, None], -torch.inf).amax(-1)
        log_probs = (own - weights.cumsum(-1)[:, -1].log()).tolist()
    return chosen.tolist(), log_probs


def _kept(scaled: Tensor, draws: Sequence[Draw]) -> tuple[Tensor, Tensor, Tensor]:
    """(values, ids, weights) of the likeliest, in falling order; weight 0 is dropped.

    Weights are exp(values) in float64. Their running sums go from the left one by one, so that
    how many columns there are, which depends on the other rows, changes none of them.
    """
    rows, vocab_size = scaled.shape
    top_k = [_top_k(draw.parameters, vocab_size) for draw in draws]
    top_p = [_top_p(draw.parameters) for draw in draws]
    bounded = [k for k in top_k if k < vocab_size]
    n = max(bounded, default=0)
    unbounded = [row for row in range(rows) if top_k[row] == vocab_size]
    if unbounded:
        n = max(n, _FIRST_CANDIDATES)
        # The largest scaled logit is 0, so its log-probability is minus the log of the sum.
        whole = (-scaled[unbounded].log_softmax(-1).amax(-1).double()).exp()
    share = torch.tensor(top_p, dtype=torch.float64, device=scaled.device)[:, None]
    while True:
        n = min(n, vocab_size)
        values, ids = likeliest(scaled, n)
        weights = values.double().exp()
        if bounded:
            columns = torch.arange(n, device=scaled.device)
            limit = torch.tensor(top_k, device=scaled.device)[:, None]
            weights = weights.masked_fill(columns >= limit, 0)
        if min(top_p) == 1:
            break
        mass = weights.cumsum(-1)
        total = mass[:, -1:].clone()
        if unbounded:
            total[unbounded] = whole[:, None]
        goal = share * total
        if not unbounded or n == vocab_size or bool((mass[:, -1:] >= goal)[unbounded].all()):
            # The id that crosses the goal is the last that is kept.
            weights = weights.masked_fill((mass - weights >= goal) & (share < 1), 0)
            break
        n *= _MORE_CANDIDATES
    limits = _min_p_logs(draws)
    if limits is not None:
        weights = weights.masked_fill(values < limits.to(scaled.device), 0)
    return values, ids, weights


def _argmax(x: Float[Tensor, "rows vocab_size"]) -> list[int]:
    """The first of the largest of each row; NumPy finds it in a tenth of PyTorch's time."""
    ids: list[int] = (x.detach().numpy() if x.device.type == "cpu" else x).argmax(-1).tolist()
    return ids


def _scaled(logits: Tensor, draws: Sequence[Draw]) -> Tensor:
    """Logits over temperature, the largest of them 0.

    Dividing after subtracting the largest keeps tiny temperatures from overflowing.
    """
    shifted = logits - logits.amax(-1, keepdim=True)
    if all(draw.parameters.temperature == 1 for draw in draws):
        return shifted
    temperatures = [draw.parameters.temperature for draw in draws]
    return shifted.div_(torch.tensor(temperatures, device=logits.device)[:, None])


def _penalised(logits: Tensor, draws: Sequence[Draw]) -> Tensor:
    """Logits of ids already in the sequence, divided by the penalty or multiplied with it."""
    if all(draw.seen is None for draw in draws):
        return logits
    logits = logits.clone()
    for row, draw in zip(logits, draws, strict=True):
        if draw.seen is not None:
            penalty = draw.parameters.repetition_penalty
            punished = torch.where(row > 0, row / penalty, row * penalty)
            # Infinity less infinity, to which the largest is brought, would be no number.
            row.copy_(torch.where(draw.seen, punished.clamp_(-_LARGEST, _LARGEST), row))
    return logits


def _min_p_cut(scaled: Tensor, draws: Sequence[Draw]) -> Tensor:
    limits = _min_p_logs(draws)
    if limits is None:
        return scaled
    return scaled.masked_fill(scaled < limits.to(scaled.device), -torch.inf)


def _min_p_logs(draws: Sequence[Draw]) -> Tensor | None:
    """The smallest scaled logit that min-p keeps, by row: the largest is 0."""
    if not any(draw.parameters.min_p for draw in draws):
        return None
    shares = [draw.parameters.min_p for draw in draws]
    return torch.tensor([[log(share) if share else -torch.inf] for share in shares])


def _places(draws: Sequence[Draw]) -> tuple[list[int], list[int]]:
    return [draw.key for draw in draws], [draw.position for draw in draws]


def _top_k(parameters: SamplingParameters, vocab_size: int) -> int:
    return min(parameters.top_k or vocab_size, vocab_size)


def _top_p(parameters: SamplingParameters) -> float:
    return 1.0 if parameters.top_p is None else parameters.top_p


def _check_finite(largest: Tensor) -> None:
    """Refuse rows that no softmax exists of; what a NaN is in has a NaN as its largest."""
    if not largest.isfinite().all():
        raise ValueError(
            "the model's logits must be finite to draw from, got NaN or infinity: "
            "its weights are damaged, or too large for their precision"
        )


def _log_probs(
    logits: Tensor, draws: Sequence[Draw], token_ids: list[int], processed: list[float]
) -> list[TokenLogProb | None]:
    """The raw and the processed log-probabilities, of the rows that want them."""
    found: list[TokenLogProb | None] = [None] * len(draws)
    rows = [row for row, draw in enumerate(draws) if draw.n_top is not None]
    if not rows:
        return found
    part = logits if len(rows) == len(draws) else logits[rows]
    drawn, after = [token_ids[row] for row in rows], [processed[row] for row in rows]
    n_top = [draw.n_top for draw in draws if draw.n_top is not None]
    for row, score in zip(rows, score_tokens(part, drawn, n_top, after), strict=True):
        found[row] = score
    return found
