"""Prompts and completions as the rectangle of ids that a model is trained on."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Rows of ids, what follows each of them, and which of these are trained.

    Attributes:
        input_ids: what the model reads.
        labels: the id after each of `input_ids`.
        mask: True at the labels that are trained.
        n_trained: trained labels of each row.
    """

    input_ids: Int[Tensor, "rows sequence"]
    labels: Int[Tensor, "rows sequence"]
    mask: Bool[Tensor, "rows sequence"]
    n_trained: list[int]


def make_rows(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    *,
    train_masks: Sequence[Sequence[bool]] | None = None,
    pad_id: int = 0,
    device: torch.device | str = "cpu",
) -> Rows:
    """Each prompt with its completion, padded on the right to the longest of them.

    The width is one less than the longest row has ids: inputs lack the last column, labels the
    first. What is trained goes by position alone, so an id may be padding and text.

    Args:
        prompts: ids that are read and not trained, at least one of each row.
        completions: ids that are trained.
        train_masks: for each completion its ids that are trained; None trains all.
        pad_id: fills what is left.
        device: of the tensors.

    Raises:
        ValueError: the numbers of rows or of marks do not agree, there are no rows, a prompt is
            empty, or no row holds two ids.
    """
    n = len(prompts)
    if n == 0 or len(completions) != n:
        raise ValueError(
            f"prompts and completions must be equally many and at least one, "
            f"got {n} and {len(completions)}"
        )
    if train_masks is None:
        train_masks = [[True] * len(completion) for completion in completions]
    lengths = [len(marks) for marks in train_masks]
    if lengths != [len(completion) for completion in completions]:
        raise ValueError("train_masks must have a mark for each id of the completions")
    if not all(len(prompt) for prompt in prompts):
        raise ValueError("a prompt must hold at least one id, which the completion follows")
    rows = [[*prompt, *completion] for prompt, completion in zip(prompts, completions, strict=True)]
    longest = max(map(len, rows))
    if longest == 1:
        raise ValueError("completions must hold an id at least, got none in any row")
    ids = torch.full((n, longest), pad_id, dtype=torch.long)
    mask = torch.zeros((n, longest), dtype=torch.bool)
    for i, (row, prompt, marks) in enumerate(zip(rows, prompts, train_masks, strict=True)):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, len(prompt) : len(row)] = torch.tensor(list(marks), dtype=torch.bool)
    n_trained = mask.sum(1).tolist()
    ids, mask = ids.to(device), mask.to(device)
    return Rows(ids[:, :-1], ids[:, 1:], mask[:, 1:], n_trained)
