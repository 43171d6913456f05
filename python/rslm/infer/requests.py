"""What an engine knows of a request and of each sequence it continues."""

import time
from collections import deque
from collections.abc import Sequence
from itertools import count

from torch import Tensor

from rslm.infer.blocks import chain_hash
from rslm.infer.parameters import (
    Chunk,
    Completion,
    FinishReason,
    SamplingParameters,
    TokenLogProb,
)
from rslm.infer.philox import sampling_key
from rslm.infer.stopping import StoppedText

_numbers = count()


class Request:
    """A prompt, its parameters and its `n` sequences.

    Attributes:
        number: tells it from every other.
        prompt_ids: what is continued.
        parameters: how.
        seed: theirs, or the fresh one that stands in for none.
        sequences: one for each completion, once it is queued.
        prompt_log_probs: of the prompt's ids, as far as they are computed; None if not wanted.
        submitted: when, by `time.perf_counter`.
        prompt_index: what the completions say of it.
        inbox: chunks that are kept for who streams it; None where steps return them.
    """

    def __init__(
        self, prompt_ids: Sequence[int], parameters: SamplingParameters, seed: int
    ) -> None:
        self.number = next(_numbers)
        self.prompt_ids = tuple(prompt_ids)
        self.parameters, self.seed = parameters, seed
        self.sequences: list[SequenceState] = []
        self.prompt_log_probs: list[TokenLogProb | None] | None = None
        if parameters.prompt_log_probs:
            self.prompt_log_probs = [None] * len(self.prompt_ids)
        self.submitted = time.perf_counter()
        self.prompt_index = 0
        self.inbox: deque[Chunk] | None = None

    @property
    def is_done(self) -> bool:
        """Whether all its sequences have ended."""
        return bool(self.sequences) and all(each.completion for each in self.sequences)

    @property
    def completions(self) -> list[Completion]:
        """Of the sequences that have ended, in their order."""
        return [each.completion for each in self.sequences if each.completion is not None]


class SequenceState:
    """One sequence: the prompt's ids, those drawn so far, and where their keys and values are.

    Attributes:
        request: whose it is.
        index: among the request's.
        key: of its noise.
        token_ids: prompt and drawn.
        n_prompt: how many of them are the prompt's.
        max_length: of `token_ids`, at which it ends.
        blocks: held, in the order of the tokens.
        n_computed: tokens whose keys and values are in the blocks.
        n_registered: blocks whose names the manager was told.
        n_drafted: tokens whose keys and values a drafting model has in its blocks.
        n_cached: tokens of the prompt that were found at first admission; None before it.
        prompt_is_read: whether the prompt was ever computed whole; siblings wait for it.
        seen: True at the ids in `token_ids`; None where nothing asks.
        completion: once it has ended.
    """

    def __init__(
        self,
        request: Request,
        index: int,
        *,
        text: StoppedText,
        end_ids: frozenset[int],
        max_length: int,
        seen: Tensor | None = None,
    ) -> None:
        self.request, self.index, self.seen, self.max_length = request, index, seen, max_length
        seeds = request.parameters.seeds
        self._seed = request.seed if seeds is None else seeds[index]
        self.key = sampling_key(self._seed, index if seeds is None else 0)
        self.token_ids = list(request.prompt_ids)
        self.n_prompt = len(self.token_ids)
        self.blocks: list[int] = []
        self.n_computed = self.n_registered = self.n_drafted = 0
        self.n_cached: int | None = None
        self.prompt_is_read = False
        self.completion: Completion | None = None
        self._text, self._end_ids = text, end_ids
        self._names: list[bytes] = []
        self._pieces: list[str] = []
        self._log_probs: list[TokenLogProb] | None = None
        if request.parameters.log_probs is not None:
            self._log_probs = []
        self._first_token_seconds: float | None = None

    @property
    def n_missing(self) -> int:
        """Tokens whose keys and values are still to be computed."""
        return len(self.token_ids) - self.n_computed

    @property
    def scores_prompt(self) -> bool:
        """Whether the prompt's ids are scored as this sequence reads them."""
        wanted = self.request.prompt_log_probs is not None
        return wanted and self.index == 0 and not self.prompt_is_read

    def names(self, root: bytes, n_blocks: int, block_size: int) -> list[bytes]:
        """Of its first full blocks, see `chain_hash`; kept, since ids are only ever added."""
        names = self._names
        for i in range(len(names), n_blocks):
            parent = names[-1] if names else root
            names.append(chain_hash(parent, self.token_ids[i * block_size : (i + 1) * block_size]))
        return names[:n_blocks]

    def forget_names(self) -> None:
        """Makes them anew when they are asked for."""
        self._names.clear()

    def take(
        self,
        token_ids: Sequence[int],
        log_probs: Sequence[TokenLogProb | None],
        draft: Sequence[int],
    ) -> Chunk:
        """Adds drawn ids up to the first that ends it, or that the draft did not foresee."""
        text, n_taken = "", 0
        ending: tuple[FinishReason, str | int | None] | None = None
        for token_id in token_ids:
            n_taken += 1
            piece, ending = self._read(token_id, n_taken)
            text += piece
            if ending is not None or n_taken > len(draft) or token_id != draft[n_taken - 1]:
                break
        if self._first_token_seconds is None:
            self._first_token_seconds = time.perf_counter() - self.request.submitted
        new = list(token_ids[:n_taken])
        self.token_ids += new
        if self.seen is not None:
            self.seen[new] = True
        scores = None
        if self._log_probs is not None:
            scores = tuple(found for found in log_probs[:n_taken] if found is not None)
            self._log_probs += scores
        self._pieces.append(text)
        if ending is not None:
            text += self.finish(*ending)
        return Chunk(self.index, text, tuple(new), scores, self.completion)

    def _read(
        self, token_id: int, n_taken: int
    ) -> tuple[str, tuple[FinishReason, str | int | None] | None]:
        """The text of a new id, and why it ends the sequence, if it does."""
        if token_id in self._end_ids:
            return "", ("stop", token_id)
        piece = self._text.add(token_id)
        if self._text.stopped_by is not None:
            return piece, ("stop", self._text.stopped_by)
        if len(self.token_ids) + n_taken == self.max_length:
            return piece, ("length", None)
        return piece, None

    def finish(self, reason: FinishReason, stop_reason: str | int | None = None) -> str:
        """Ends it; the text that was held back."""
        rest = ""
        if self._text.stopped_by is None:
            rest = self._text.finish()
            self._pieces.append(rest)
            # Half a character, made whole as U+FFFD, may complete a stop string.
            if self._text.stopped_by is not None and reason == "length":
                reason, stop_reason = "stop", self._text.stopped_by
        request = self.request
        seconds = time.perf_counter() - request.submitted
        wanted, first = request.prompt_log_probs, self._first_token_seconds
        self.completion = Completion(
            prompt_ids=request.prompt_ids,
            token_ids=tuple(self.token_ids[self.n_prompt :]),
            text="".join(self._pieces),
            finish_reason=reason,
            stop_reason=stop_reason,
            log_probs=None if self._log_probs is None else tuple(self._log_probs),
            prompt_log_probs=None if wanted is None else tuple(wanted),
            seed=self._seed,
            index=self.index,
            prompt_index=request.prompt_index,
            n_cached_tokens=self.n_cached or 0,
            first_token_seconds=seconds if first is None else first,
            seconds=seconds,
        )
        return rest
