"""The other rule of accepting drafts: by chance, so that the ids have the right distribution.

With it ids are distributed as those of plain decoding, but are not the same ones, as they depend
on what was drafted; keyed acceptance, the default, keeps them the same and accepts about as often.

Source: Leviathan et al. 2023, Algorithm 1 (arXiv:2211.17192); Chen et al. 2023, Algorithm 2
(arXiv:2302.01318).
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from rslm.infer.philox import uniform, vocabulary_noise
from rslm.infer.sampling import Draw, Drawn, score_tokens
from rslm.infer.sampling_reference import processed_probabilities
from rslm.infer.scheduler import Share

_OTHER_NOISE = 0x9E3779B97F4A7C15
"""Turns a key into one whose noise is not what a drafting model has drawn with."""


def acceptance(
    target: Float[Tensor, "... vocab_size"], draft: Float[Tensor, "... vocab_size"]
) -> Float[Tensor, "... vocab_size"]:
    """With which probability each id is accepted if it was drafted: min(1, target/draft)."""
    return torch.where(draft > target, target / draft, torch.ones_like(target))


def residual(
    target: Float[Tensor, "... vocab_size"], draft: Float[Tensor, "... vocab_size"]
) -> Float[Tensor, "... vocab_size"]:
    """What is drawn from after a rejection: where the target exceeds the draft, normalised.

    Where both are the same nothing is ever rejected, and the target stands in.
    """
    excess = (target - draft).clamp(min=0)
    total = excess.sum(-1, keepdim=True)
    return torch.where(total > 0, excess / total, target)


def rejection_sample(
    target: Float[Tensor, "drawn vocab_size"],
    draft: Float[Tensor, "drafted vocab_size"],
    draft_ids: Sequence[int],
    uniforms: Sequence[float],
    noise: Float[Tensor, "drawn vocab_size"],
) -> list[int]:
    """The drafted ids up to the first that is rejected, and one more id.

    Args:
        target: distributions of the model after the last id and after each drafted one.
        draft: distributions that the ids were drafted from.
        draft_ids: drafted.
        uniforms: one from (0, 1) for each of them, which decides.
        noise: Gumbel noise that draws the one more; independent of what drafted.
    """
    accepted: list[int] = []
    for i, token_id in enumerate(draft_ids):
        if uniforms[i] >= acceptance(target[i], draft[i])[token_id]:
            rest = residual(target[i], draft[i])
            return [*accepted, int((rest.log() + noise[i]).argmax())]
        accepted.append(token_id)
    return [*accepted, int((target[-1].log() + noise[len(draft_ids)]).argmax())]


def verify_by_chance(
    shares: Sequence[Share],
    logits: Float[Tensor, "rows vocab_size"],
    draws: Sequence[Draw],
    drawn: Drawn,
) -> None:
    """Replaces what was drawn for the shares that have a draft, in place.

    After the id that follows the last accepted one, what stands is of no meaning.
    """
    first = 0
    for share in shares:
        end = first + (len(share.draft) + 1 if share.draws else 0)
        if share.draft:
            rows = logits[first:end].cpu()
            ids, processed = _verify(share, rows, draws[first:end])
            n_top = [draw.n_top or 0 for draw in draws[first : first + len(ids)]]
            scores = score_tokens(rows[: len(ids)], ids, n_top)
            for i, (token_id, log_prob, score) in enumerate(
                zip(ids, processed, scores, strict=True)
            ):
                drawn.token_ids[first + i] = token_id
                if draws[first + i].n_top is not None:
                    found = replace(score, processed_log_prob=log_prob)
                    drawn.log_probs[first + i] = found
        first = end


def _verify(share: Share, logits: Tensor, draws: Sequence[Draw]) -> tuple[list[int], list[float]]:
    """Ids as `rejection_sample` gives them, and their processed log-probabilities."""
    target = torch.stack(
        [
            processed_probabilities(row, draw.parameters, seen_ids(draw))
            for row, draw in zip(logits, draws, strict=True)
        ]
    )
    draft = share.draft_probabilities
    if draft is None:
        draft = torch.zeros_like(target[:-1])
        draft[range(len(share.draft)), share.draft] = 1
    keys, positions = [draw.key ^ _OTHER_NOISE for draw in draws], [draw.position for draw in draws]
    uniforms = [uniform(key, position) for key, position in zip(keys, positions, strict=True)]
    noise = vocabulary_noise(keys, positions, target.shape[-1], target.device)
    ids = rejection_sample(target, draft, share.draft, uniforms, noise)
    return ids, [target[i, token_id].log().item() for i, token_id in enumerate(ids)]


def seen_ids(draw: Draw) -> list[int]:
    """Ids that the repetition penalty falls on."""
    found: list[int] = [] if draw.seen is None else draw.seen.nonzero()[:, 0].tolist()
    return found
