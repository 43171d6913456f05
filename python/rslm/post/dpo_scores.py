"""What models think of pairs of answers: summed log-probs, losses, and the reference's scores."""

import json
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from safetensors.torch import save
from torch import Tensor

from rslm.checkpoint import read_safetensors, weights_hash
from rslm.errors import FormatError
from rslm.files import write_atomically
from rslm.model import Transformer
from rslm.post.dpo_config import DpoConfig
from rslm.post.log_probs import label_log_probs
from rslm.post.pairs import Pair, pairs_hash
from rslm.post.preferences import PreferenceLoss, preference_loss
from rslm.post.rows import make_rows
from rslm.post.setup import Start, has_checkpoint, open_for

REFERENCE_FILE = "reference.safetensors"
MEASURES = (
    *("margin", "accuracy", "chosen_log_probs", "rejected_log_probs"),
    *("chosen_rewards", "rejected_rewards"),
)
"""What is measured of pairs, see `pair_measures`."""


class Scores(NamedTuple):
    """Of pairs, the chosen answer's first."""

    log_probs: Float[Tensor, "2 pairs"]
    """Sums over the trained tokens."""
    lengths: Int[Tensor, "2 pairs"]
    """Trained tokens."""


def score_pairs(
    model: Transformer,
    pairs: Sequence[Pair],
    *,
    device: torch.device,
    autocast_dtype: torch.dtype | None,
) -> Scores:
    """What a model thinks of both answers of each pair, in one pass, with gradients."""
    answers = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    rows = make_rows(
        [pair.prompt_ids for pair in pairs] * 2,
        [answer.token_ids for answer in answers],
        train_masks=[answer.train_mask for answer in answers],
        device=device,
    )
    found = label_log_probs(
        model, rows.input_ids, rows.labels, mask=rows.mask, autocast_dtype=autocast_dtype
    )
    return Scores(found.values.sum(1).view(2, -1), rows.mask.sum(1).view(2, -1))


def pair_parts(
    indices: Iterable[int], pairs: Sequence[Pair], micro_batch_size: int | None
) -> list[list[int]]:
    """Pairs in micro-batches of so many sequences, those of like length together."""
    ordered = sorted(indices, key=lambda index: pairs[index].width)
    size = max(1, len(ordered) if micro_batch_size is None else micro_batch_size // 2)
    return [ordered[first : first + size] for first in range(0, len(ordered), size)]


def pair_losses(
    scores: Scores, reference: Float[Tensor, "2 pairs"] | None, config: DpoConfig
) -> PreferenceLoss:
    """The losses of pairs by the options of a run."""
    references = (None, None) if reference is None else tuple(reference)
    return preference_loss(
        *scores.log_probs,
        *references,
        *scores.lengths,
        kind=config.loss,
        beta=config.beta,
        label_smoothing=config.label_smoothing,
        margin=config.margin,
        ipo_average=config.ipo_average,
    )


def pair_measures(scores: Scores, found: PreferenceLoss) -> Float[Tensor, " measures"]:
    """Sums over pairs of what `MEASURES` names; equal rewards count as half right."""
    margins = found.chosen_rewards - found.rejected_rewards
    right = (margins.sign() + 1) / 2
    return torch.stack(
        [
            *(margins.sum(), right.sum()),
            *scores.log_probs.detach().sum(1),
            *(found.chosen_rewards.sum(), found.rejected_rewards.sum()),
        ]
    )


class Reference(NamedTuple):
    """What the base model thinks of all answers of a run, on the host."""

    weights_hash: str
    log_probs: Float[Tensor, "2 pairs"]


def open_reference(start: Start[DpoConfig], pairs: Sequence[Pair]) -> Reference:
    """Reads the reference's scores from the run folder, or computes and leaves them there.

    A run that has a checkpoint reads them: its base may be gone by then.

    Raises:
        ValueError: they are of other pairs.
        FormatError: the file is damaged.
    """
    config, base = start.config, start.base
    path = config.out / REFERENCE_FILE
    is_begun = has_checkpoint(config.out)
    if is_begun and path.exists():
        return read_reference(config, pairs)
    if is_begun:
        base = open_for(config, config.base, start.processes.device)
    log_probs = reference_log_probs(start, base.model, pairs)
    found = Reference(weights_hash(base.model), log_probs)
    if start.processes.is_first:
        record = {"weights_hash": found.weights_hash, "pairs": pairs_hash(pairs)}
        data = save({"log_probs": log_probs.contiguous()}, {"rslm": json.dumps(record)})
        write_atomically(path, data)
    return found


@torch.no_grad()
def reference_log_probs(
    start: Start[DpoConfig], model: Transformer, pairs: Sequence[Pair]
) -> Float[Tensor, "2 pairs"]:
    """Summed log-probs of all answers, each process computing its share."""
    config, processes = start.config, start.processes
    found = torch.zeros(2, len(pairs), device=processes.device)
    mine = range(len(pairs))[processes.part_of(len(pairs))]
    dtype = torch.bfloat16 if config.precision == "bfloat16" else None
    for part in pair_parts(mine, pairs, config.micro_batch_size or 2 * config.batch_size):
        chosen = [pairs[index] for index in part]
        scores = score_pairs(model, chosen, device=processes.device, autocast_dtype=dtype)
        found[:, part] = scores.log_probs.float()
    # What the others add are zeros, which change no bit.
    return processes.total(found).cpu()


def read_reference(config: DpoConfig, pairs: Sequence[Pair]) -> Reference:
    """The scores that a run left in its folder.

    Raises:
        ValueError: they are of other pairs.
        FormatError: the file is damaged.
    """
    path = config.out / REFERENCE_FILE
    tensors, record = read_safetensors(path)
    log_probs, named = tensors.get("log_probs"), record.get("weights_hash")
    if log_probs is None or log_probs.dtype != torch.float32 or not isinstance(named, str):
        raise FormatError(f"{path} must hold log_probs in float32, and the weights_hash of a model")
    if record.get("pairs") != pairs_hash(pairs) or log_probs.shape != (2, len(pairs)):
        raise ValueError(
            f"{config.pairs} must be the pairs that the run began with, and {path} is of others"
        )
    return Reference(named, log_probs)
