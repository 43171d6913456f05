"""Instructions and answers as one stream of ids, cut into pieces of equal length."""

import gzip
import os
import random
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from rslm.post.json_lines import read_json_lines
from rslm.tokenizer import Tokenizer

_ALPACA = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{}\n\n### Response:\n"
)


def alpaca_prompt(instruction: str) -> str:
    """An instruction in the template of Stanford Alpaca; the answer follows it.

    Source: Taori et al. 2023, Stanford Alpaca (github.com/tatsu-lab/stanford_alpaca).
    """
    return _ALPACA.format(instruction)


class PackedSFTDataset(Dataset[dict[str, Tensor]]):
    """Pieces of `seq_length` ids of a whole data set, with the ids that follow them.

    Each line of the file, {"prompt": ..., "response": ...}, is a document: the Alpaca template
    with its answer, after the token that begins texts, where the tokenizer has one, and before the
    one that ends them. Documents are joined; what does not fill a last piece is dropped. Attention
    crosses documents, and prompts are trained, unlike in `rslm.post.sft`.

    Args:
        tokenizer: rslm's, or one with `encode`, `bos_token_id` and `eos_token_id`.
        dataset_path: a JSON Lines file, may be compressed (`.gz`).
        seq_length: ids of a piece.
        shuffle: put documents into random order before they are joined.
        seed: of that order.

    Raises:
        ValueError: a line is not an object with the two texts.
        OSError: the file cannot be read.
    """

    def __init__(
        self,
        tokenizer: Any,
        dataset_path: str | os.PathLike[str],
        seq_length: int,
        shuffle: bool = False,
        *,
        seed: int = 0,
    ) -> None:
        if seq_length < 1:
            raise ValueError(f"seq_length must be at least 1, got {seq_length}")
        documents = _read_documents(dataset_path)
        if shuffle:
            random.Random(seed).shuffle(documents)
        begin, end = begin_ids(tokenizer), end_id(tokenizer)
        ids: list[int] = []
        for document in documents:
            ids += [*begin, *ordinary_ids(tokenizer, document), end]
        self._ids = torch.tensor(ids, dtype=torch.int64)
        self._length = seq_length

    def __len__(self) -> int:
        return max(0, len(self._ids) - 1) // self._length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """`input_ids` and `labels` of one piece, (seq_length,) each."""
        if not 0 <= index < len(self):
            raise IndexError(f"index must be 0 to {len(self) - 1}, got {index}")
        first = index * self._length
        ids = self._ids[first : first + self._length + 1]
        return {"input_ids": ids[:-1], "labels": ids[1:]}


def ordinary_ids(tokenizer: Any, text: str) -> list[int]:
    """The ids of a text without special tokens; with rslm's tokenizer, what looks like them too."""
    if isinstance(tokenizer, Tokenizer):
        return tokenizer.encode_ordinary(text)
    return list(tokenizer.encode(text, add_special_tokens=False))


def end_id(tokenizer: Any) -> int:
    """The id that ends a text.

    Raises:
        ValueError: the tokenizer has none.
    """
    is_ours = isinstance(tokenizer, Tokenizer)
    end = tokenizer.end_of_text if is_ours else tokenizer.eos_token_id
    if end is None:
        raise ValueError("the tokenizer must have a token that ends texts, and has none")
    return int(end)


def begin_ids(tokenizer: Any) -> list[int]:
    """The id that begins a text, where it is another than the one that ends texts."""
    begin = getattr(tokenizer, "bos_token_id", None)
    return [] if begin is None or begin == end_id(tokenizer) else [int(begin)]


def _read_documents(path: str | os.PathLike[str]) -> list[str]:
    """The text of each line's document, without what begins and ends it."""
    documents = []
    opened: Any = gzip.open if os.fspath(path).endswith(".gz") else open
    with opened(path, "rb") as file:
        for where, row in read_json_lines(file, os.fspath(path)):
            prompt, response = (
                (row.get("prompt"), row.get("response")) if isinstance(row, dict) else (None, None)
            )
            if not (isinstance(prompt, str) and isinstance(response, str)):
                raise ValueError(f'{where}: must be an object with the texts "prompt", "response"')
            documents.append(alpaca_prompt(prompt) + response)
    return documents
