"""What a model thinks of each token of a text: log-probability, rank, likeliest alternatives."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rslm.evaluate.few_shot import begin_ids
from rslm.evaluate.results import finite, require_numbers
from rslm.model import Transformer
from rslm.tokenizer import Tokenizer

_ROWS = 256
"""Positions whose probabilities are held at once, beside the logits of a window."""


@dataclass(frozen=True, kw_only=True)
class TokenScore:
    """A token and what was thought of it before it came.

    Attributes:
        token_id: the id.
        log_prob: at temperature 1, over the whole vocabulary, in nats; None: nothing stood before.
        rank: how many ids were thought at least as likely, itself among them; None as above.
        top: the likeliest ids, with their log-probabilities, descending.
    """

    token_id: int
    log_prob: float | None
    rank: int | None
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, kw_only=True)
class TextScores:
    """A text's tokens, scored.

    Attributes:
        tokens: one a token, in order.
        vocab: bytes of each id that occurs; none for those that stand for no text.
        n_bytes: of the tokens that were predicted; special tokens have none.
    """

    tokens: Sequence[TokenScore]
    vocab: dict[int, bytes]
    n_bytes: int

    @property
    def losses(self) -> list[float]:
        """Of the tokens that were predicted, in nats."""
        return [-token.log_prob for token in self.tokens if token.log_prob is not None]

    @property
    def loss(self) -> float:
        """Nats per predicted token."""
        return math.fsum(self.losses) / len(self.losses)

    @property
    def perplexity(self) -> float:
        """exp of the loss, at most the largest float64."""
        return math.exp(min(self.loss, 709.0))

    @property
    def bits_per_byte(self) -> float | None:
        """Sum of the losses / (ln 2 x bytes of the predicted tokens); None without any byte."""
        return math.fsum(self.losses) / (math.log(2) * self.n_bytes) if self.n_bytes else None

    @property
    def accuracy(self) -> float:
        """Share of predicted tokens than which none was thought likelier."""
        return sum(token.rank == 1 for token in self.tokens) / len(self.losses)

    def record(self) -> dict[str, Any]:
        """Everything as JSON has it; bytes that are no text as lists."""
        return {
            "n_tokens": len(self.tokens),
            "n_predicted": len(self.losses),
            "n_bytes": self.n_bytes,
            "loss": finite(self.loss),
            "perplexity": self.perplexity,
            "bits_per_byte": finite(self.bits_per_byte),
            "accuracy": self.accuracy,
            "tokens": [self._token_record(token) for token in self.tokens],
        }

    def _token_record(self, token: TokenScore) -> dict[str, Any]:
        top = [
            self._named(token_id) | {"log_prob": log_prob}
            for token_id, log_prob in token.top
            if math.isfinite(log_prob)
        ]
        scores = {"log_prob": finite(token.log_prob), "rank": token.rank, "top": top}
        return self._named(token.token_id) | scores

    def _named(self, token_id: int) -> dict[str, Any]:
        data = self.vocab[token_id]
        text = data.decode("utf-8", "replace")
        is_text = text.encode() == data
        return {"id": token_id, "text": text} | ({} if is_text else {"bytes": list(data)})


def score_text(
    model: Transformer, tokenizer: Tokenizer, token_ids: Sequence[int], *, n_top: int = 5
) -> TextScores:
    """Scores each token of a text given those before it.

    The text is taken as the begin of a document: what stands before its first token is
    `<|endoftext|>`, and where the tokenizer has none that token is not predicted. Beyond the
    context's length windows overlap by half, so that every token sees at least half a
    context. Losses are float32 and summed in float64.

    Raises:
        ValueError: no token is left to predict, or an id is none of the model's.
        FloatingPointError: the model's logits are no numbers.
    """
    vocab_size = model.config.resolved_vocab_size
    before = begin_ids(tokenizer)
    sequence = [*before, *token_ids]
    if len(sequence) < 2 or not token_ids:
        raise ValueError(f"the text must have a token to predict, got {len(token_ids)} tokens")
    if max(sequence) >= vocab_size:
        raise ValueError(
            f"token ids must lie below the model's {vocab_size}, got {max(sequence)}: "
            "is the tokenizer another's?"
        )
    scores = [TokenScore(token_id=i, log_prob=None, rank=None, top=()) for i in sequence[:1]]
    scores += _scores(model, sequence, min(n_top, vocab_size))
    scores = scores[len(before) :]
    require_numbers(score.log_prob for score in scores if score.log_prob is not None)
    occurring = {s.token_id for s in scores} | {i for s in scores for i, _ in s.top}
    known = tokenizer.vocab
    lengths = tokenizer.token_byte_lengths
    predicted = [s.token_id for s in scores if s.log_prob is not None]
    return TextScores(
        tokens=scores,
        vocab={token_id: known.get(token_id, b"") for token_id in sorted(occurring)},
        n_bytes=sum(int(lengths[i]) for i in predicted if i < len(lengths)),
    )


@torch.inference_mode()
def _scores(model: Transformer, sequence: Sequence[int], n_top: int) -> Iterator[TokenScore]:
    """Scores of all tokens but the first."""
    device = next(model.parameters()).device
    for start, first, stop in windows(len(sequence) - 1, model.config.context_length):
        inputs = torch.tensor(sequence[start:stop], device=device)
        targets = torch.tensor(sequence[first + 1 : stop + 1], device=device)
        logits = model(inputs[None])[0, first - start :]
        for at in range(0, len(targets), _ROWS):
            yield from _rows(logits[at : at + _ROWS].float(), targets[at : at + _ROWS], n_top)


def windows(n_inputs: int, length: int) -> Iterator[tuple[int, int, int]]:
    """(start, first, stop): the model sees inputs start..stop, and those from first on count.

    Every input counts once.

    >>> list(windows(9, 4))
    [(0, 0, 4), (2, 4, 6), (4, 6, 8), (5, 8, 9)]
    """
    step, first = max(1, length // 2), 0
    while first < n_inputs:
        stop = min(first + (step if first else length), n_inputs)
        yield max(0, stop - length), first, stop
        first = stop


def _rows(logits: Tensor, targets: Tensor, n_top: int) -> Iterator[TokenScore]:
    log_probs = logits.log_softmax(-1)
    own = log_probs.gather(-1, targets[:, None])
    ranks = (log_probs > own).sum(-1) + 1
    top = log_probs.topk(n_top, dim=-1)
    columns = (targets, own[:, 0], ranks, top.indices, top.values)
    for token_id, log_prob, rank, ids, values in zip(*(c.tolist() for c in columns), strict=True):
        pairs = tuple(zip(ids, values, strict=True))
        yield TokenScore(token_id=token_id, log_prob=log_prob, rank=rank, top=pairs)
