"""What is asked of the engine, and what it answers: plain data, without torch."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from math import inf
from numbers import Integral, Real
from typing import Literal

FinishReason = Literal["stop", "length", "cancelled"]

PENALTIES = (1e-6, 1e6)
"""The smallest repetition penalty and the largest: beyond, float32 logits run out of range."""


@dataclass(frozen=True, kw_only=True)
class SamplingParameters:
    """How a prompt is continued.

    A drawn id depends on the model, the ids before it, these parameters and (seed, index)
    alone: not on what else the engine runs, nor on when. Logits pass through the repetition
    penalty, the temperature, top-k, top-p and min-p, in this order.

    Attributes:
        max_new_tokens: ids after the prompt; 0 only scores it. Fewer where the model's
            context_length ends the sequence.
        temperature: divides the logits; 0 takes the largest, the lowest id of equals.
        top_k: ids kept, the lower id of equals; None keeps all.
        top_p: the smallest set of the likeliest ids with at least this mass is kept.
        min_p: ids of less than this share of the likeliest one's probability are dropped.
        repetition_penalty: logits of ids in the sequence, prompt included, are divided by it
            where positive and multiplied where negative (Keskar et al. 2019, section 4.1,
            arXiv:1909.05858); 1 leaves them. From 1e-6 to 1e6.
        stop_token_ids: ids that end a sequence, beside the engine's own; never in the text.
        stop: strings that end it where they first complete, however tokens cut them.
        keep_stop: the stop string stays in the text, which otherwise ends before it.
        ignore_end: the engine's own end ids do not end it.
        seed: of the draws; None takes a fresh one, told in the completion.
        n: completions of the prompt, which draw independently.
        seeds: one for each of the `n`, which then draws as if it were asked for alone with it;
            None leaves them to `seed` and index.
        log_probs: None gives none, 0 those of the ids drawn, k also the k likeliest.
        prompt_log_probs: the ids of the prompt are scored as well.

    Raises:
        ValueError: an option is of another kind, or lies outside its range.
    """

    max_new_tokens: int = 256
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    stop_token_ids: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    keep_stop: bool = False
    ignore_end: bool = False
    seed: int | None = None
    n: int = 1
    seeds: tuple[int, ...] | None = None
    log_probs: int | None = None
    prompt_log_probs: bool = False

    def __post_init__(self) -> None:
        """Refuse what no distribution can be drawn with."""
        self._check_kinds()
        if self.max_new_tokens < 0:
            raise ValueError(f"max_new_tokens must be at least 0, got {self.max_new_tokens}")
        if not 0 <= self.temperature < inf:
            raise ValueError(f"temperature must be at least 0 and finite, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p must lie in [0, 1], got {self.min_p}")
        low, high = PENALTIES
        if not low <= self.repetition_penalty <= high:
            raise ValueError(
                f"repetition_penalty must be from {low:g} to {high:g}, "
                f"got {self.repetition_penalty}"
            )
        self._check_stops()
        if self.n < 1:
            raise ValueError(f"n must be at least 1, got {self.n}")
        self._check_seeds()
        if self.log_probs is not None and self.log_probs < 0:
            raise ValueError(f"log_probs must be at least 0, got {self.log_probs}")

    def _check_kinds(self) -> None:
        """Refuse what would be found wrong in the midst of a step, where others run, too.

        A NaN among counts compares as neither too small nor too large, for one.
        """
        for name in ("max_new_tokens", "n", "top_k", "seed", "log_probs"):
            value = getattr(self, name)
            is_left_out = value is None and name not in ("max_new_tokens", "n")
            if not is_left_out and not _is_whole(value):
                raise ValueError(f"{name} must be a whole number, got {value!r:.80}")
        for name in ("temperature", "repetition_penalty", "top_p", "min_p"):
            value = getattr(self, name)
            is_left_out = value is None and name in ("top_p", "min_p")
            if not is_left_out and (isinstance(value, bool) or not isinstance(value, Real)):
                raise ValueError(f"{name} must be a number, got {value!r:.80}")
        for name in ("keep_stop", "ignore_end", "prompt_log_probs"):
            if not isinstance(value := getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, got {value!r:.80}")
        seeds = () if self.seeds is None else self.seeds
        for name, numbers in (("stop_token_ids", self.stop_token_ids), ("seeds", seeds)):
            if not isinstance(numbers, Collection) or not all(map(_is_whole, numbers)):
                raise ValueError(f"{name} must be a tuple of whole numbers, got {numbers!r:.80}")

    def _check_seeds(self) -> None:
        """Refuse what is no key, and seeds that are not one for each completion."""
        if self.seeds is not None and (self.seed is not None or len(self.seeds) != self.n):
            raise ValueError(
                f"seeds must be as many as n and come without seed, got {len(self.seeds)}, "
                f"n {self.n} and seed {self.seed}"
            )
        for seed in self.seeds or () if self.seed is None else (self.seed,):
            if not -(2**63) <= seed < 2**64:
                raise ValueError(f"seed must lie in [-2^63, 2^64), got {seed}")

    def _check_stops(self) -> None:
        """Refuse stop strings that end every text, and one string where several belong."""
        if isinstance(self.stop, str):
            raise ValueError(f"stop must be a tuple of strings, got the string {self.stop!r:.80}")
        if not isinstance(self.stop, Iterable) or not all(isinstance(s, str) for s in self.stop):
            raise ValueError(f"stop must be a tuple of strings, got {self.stop!r:.80}")
        if "" in self.stop:
            raise ValueError("stop must not hold an empty string")


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


@dataclass(frozen=True)
class TokenLogProb:
    """Natural log-probabilities of one id, in float32 arithmetic.

    Attributes:
        token_id: the id scored.
        log_prob: under the whole softmax of the model's own logits, at temperature 1.
        processed_log_prob: under what it was drawn from, after penalty, temperature and
            filters; 0 at temperature 0. Of a prompt's id: `log_prob`.
        top: the likeliest ids with their `log_prob`, in falling order, the lower id of equals
            first.
    """

    token_id: int
    log_prob: float
    processed_log_prob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Completion:
    """One continuation of one prompt.

    Attributes:
        prompt_ids: what was continued.
        token_ids: all that was drawn, the stop id or what completed a stop string included:
            whoever trains on a completion trains on its end.
        text: of `token_ids` without a stop id, and up to a stop string; half a character at its
            end is U+FFFD.
        finish_reason: a stop id or string, a length reached, or `Engine.cancel`.
        stop_reason: the id or the string of "stop".
        log_probs: one for each of `token_ids`.
        prompt_log_probs: one for each of `prompt_ids`; None for the first, which follows
            nothing.
        seed: gives the same ids again, with the same `index`; with index 0 where there were
            `seeds`.
        index: 0 to n - 1 within the prompt's completions.
        prompt_index: of the prompt in `Engine.generate`; 0 elsewhere.
        n_cached_tokens: of the prompt, whose keys and values were still there.
        first_token_seconds: from submission to the first id.
        seconds: from submission to the end.
    """

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    stop_reason: str | int | None
    log_probs: tuple[TokenLogProb, ...] | None
    prompt_log_probs: tuple[TokenLogProb | None, ...] | None
    seed: int
    index: int
    prompt_index: int
    n_cached_tokens: int
    first_token_seconds: float
    seconds: float


@dataclass(frozen=True)
class Chunk:
    """What one step adds to one completion.

    Attributes:
        index: of the completion within its prompt's.
        text: that has become certain; the chunks' texts joined are the completion's.
        token_ids: drawn in this step; their text may come with a later chunk.
        log_probs: one for each of `token_ids`.
        completion: the whole, with the last chunk.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    log_probs: tuple[TokenLogProb, ...] | None
    completion: Completion | None = None
