"""Continues many prompts at once: what to compute, what was drawn, and what it says."""

import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rslm.infer.admission import check_request, max_length, plain_ids
from rslm.infer.blocks import BlockManager
from rslm.infer.cache_size import cache_blocks
from rslm.infer.load import end_ids as default_end_ids
from rslm.infer.load import textless_ids
from rslm.infer.options import (
    DraftModel,
    EngineOptions,
    EngineStatistics,
    PromptLookup,
    QueueFull,
)
from rslm.infer.parameters import Chunk, Completion, SamplingParameters, TokenLogProb
from rslm.infer.rejection import verify_by_chance
from rslm.infer.requests import Request, SequenceState
from rslm.infer.runner import Runner
from rslm.infer.sampling import sample_tokens, sampling_device, score_tokens
from rslm.infer.scheduler import Scheduler, Share
from rslm.infer.speculative import Speculator, StepRunner, make_speculator
from rslm.infer.step import Step
from rslm.infer.stopping import StoppedText
from rslm.model import Transformer
from rslm.tokenizer import Tokenizer

__all__ = [
    "DraftModel",
    "Engine",
    "EngineOptions",
    "EngineStatistics",
    "PromptLookup",
    "QueueFull",
    "Request",
    "StepRunner",
]

Prompt = str | Sequence[int]

_DEFAULT = SamplingParameters()
_MAX_SCORES = 1 << 24
"""Logits of a scored prompt that one step makes: 64 MiB of them."""


class Engine:
    """Continues prompts by a model, many at once, each as if it were alone.

    A prompt that is text is encoded with special tokens as ordinary text, and nothing is put
    before it. A sequence ends with an end id, a stop id or a stop string ("stop"), or with
    "length" at `max_new_tokens` or where prompt and continuation reach the model's
    `context_length`.

    Ids depend on prompt, parameters, seed and index alone, in exact mode; in fast mode, where
    rounding depends on what is computed together, as long as no two scores nearly tie. Equal
    prompts with equal seeds give equal completions: ask for several of one prompt by `n`.

    Not thread-safe: one thread owns it. `generate` and `stream` may be used while requests that
    were submitted run; their chunks are kept for the next `step`.

    Args:
        model: in evaluation mode, on the device that computes.
        tokenizer: its own.
        options: how it shares the machine.
        end_ids: that end every sequence, beside those of no text; None stands for end of text.
        make_runner: makes what runs the steps, by the arguments of `Runner`.

    Raises:
        ValueError: options and model do not fit.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        options: EngineOptions | None = None,
        *,
        end_ids: Iterable[int] | None = None,
        make_runner: Callable[..., StepRunner] = Runner,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.options = options = options or EngineOptions()
        vocab_size = model.config.resolved_vocab_size
        # Ids that stand for no text end a sequence in any case: there is nothing to show.
        self._textless = frozenset(textless_ids(model, tokenizer))
        given = default_end_ids(model, tokenizer) if end_ids is None else end_ids
        self.end_ids = self._textless.union(given)
        self._manager = BlockManager(cache_blocks(model, options), options.block_size)
        self._scheduler = Scheduler(
            self._manager,
            max_sequences=options.max_sequences,
            max_step_tokens=options.max_step_tokens,
            max_scored_tokens=max(1, _MAX_SCORES // vocab_size),
            prefix_cache=options.prefix_cache,
            root=b"weights 0",
        )
        self._runner = make_runner(
            model,
            n_blocks=self._manager.n_blocks,
            block_size=options.block_size,
            exact=options.exact,
            quantize=options.quantize,
            compile=options.compile,
        )
        self._speculator = make_speculator(
            options, model, n_blocks=self._manager.n_blocks, make_runner=make_runner
        )
        self._n_weights = 0
        self._undelivered: list[tuple[Request, Chunk]] = []
        self._counts = _Counts()

    def generate(
        self,
        prompts: Sequence[Prompt],
        parameters: SamplingParameters | Sequence[SamplingParameters] = _DEFAULT,
    ) -> list[Completion]:
        """The completions of all prompts: by prompt, then by index.

        There may be more prompts than may wait.

        Raises:
            ValueError: a prompt is refused, see `submit`, or there are not as many parameters.
        """
        if isinstance(prompts, str):
            raise ValueError(f"prompts must be a sequence of prompts, got the string {prompts!r}")
        if isinstance(parameters, SamplingParameters):
            parameters = [parameters] * len(prompts)
        if len(parameters) != len(prompts):
            raise ValueError(
                f"parameters must be as many as prompts, got {len(parameters)} and {len(prompts)}"
            )
        requests = [self._request(*both) for both in zip(prompts, parameters, strict=True)]
        for index, request in enumerate(requests):
            # Chunks that nobody reads.
            request.prompt_index, request.inbox = index, deque(maxlen=0)
        to_come, begun = deque(requests), deque[Request]()
        try:
            while to_come or begun:
                while to_come and self._has_room(to_come[0]):
                    self._enqueue(to_come[0])
                    begun.append(to_come.popleft())
                self._pump()
                while begun and begun[0].is_done:
                    begun.popleft()
        finally:
            for request in requests:
                self.cancel(request)
        return [completion for request in requests for completion in request.completions]

    def stream(self, prompt: Prompt, parameters: SamplingParameters = _DEFAULT) -> Iterator[Chunk]:
        """Chunks of the completions of one prompt, as they come; closing it cancels the rest.

        Raises:
            ValueError: the prompt is refused, see `submit`. By this call, not the first `next`.
            QueueFull: too many wait.
        """
        request = self._request(prompt, parameters)
        inbox = request.inbox = deque()
        self._check_room(request)

        def chunks() -> Iterator[Chunk]:
            try:
                self._check_room(request)
                self._enqueue(request)
                while inbox or not request.is_done:
                    while inbox:
                        yield inbox.popleft()
                    if not request.is_done:
                        self._pump()
            finally:
                self.cancel(request)

        return chunks()

    def submit(self, prompt_ids: Sequence[int], parameters: SamplingParameters) -> Request:
        """Queues a request, whose chunks the coming steps return.

        Raises:
            ValueError: the prompt is empty, holds an id that the model does not have, or leaves
                no room in the model's context or in the cache; or `n` is more than may wait.
            QueueFull: too many wait.
        """
        request = self._request(prompt_ids, parameters)
        self._check_room(request)
        self._enqueue(request)
        return request

    def step(self) -> list[tuple[Request, Chunk]]:
        """Makes one step of all that runs; what it adds to each sequence.

        Raises:
            ValueError: the model gives no finite logits. Nothing is lost; cancel the requests.
        """
        delivered, self._undelivered = self._undelivered, []
        for request, chunk in self._advance():
            if request.inbox is None:
                delivered.append((request, chunk))
            else:
                request.inbox.append(chunk)
        return delivered

    def cancel(self, request: Request) -> None:
        """Ends what still runs or waits of a request, and frees its blocks at once."""
        for sequence in request.sequences:
            # Also one that has ended: an interrupt may have come before it was taken out.
            self._scheduler.remove(sequence)
            if sequence.completion is None:
                sequence.finish("cancelled")

    def update_weights(self) -> None:
        """Takes over changed weights, a drafting model's too; nothing computed by old ones stays.

        What runs goes on: the ids that it has stay, and are read again by the new weights.
        """
        self._n_weights += 1
        self._manager.forget_all()
        self._scheduler.restart(b"weights %d" % self._n_weights)
        self._runner.update_weights()
        if self._speculator is not None:
            self._speculator.update_weights()

    @property
    def has_work(self) -> bool:
        """Whether a step has something to do or to deliver."""
        return bool(self._scheduler.running or self._scheduler.waiting or self._undelivered)

    def statistics(self) -> EngineStatistics:
        """Where it stands now, and what it has done."""
        scheduler, counts = self._scheduler, self._counts
        return EngineStatistics(
            n_running=len(scheduler.running),
            n_waiting=len(scheduler.waiting),
            n_blocks=self._manager.n_blocks,
            n_free_blocks=self._manager.n_free,
            prefix_lookups=scheduler.prefix_lookups,
            prefix_hits=scheduler.prefix_hits,
            prompt_tokens=counts.prompt_tokens,
            generated_tokens=counts.generated_tokens,
            steps=counts.steps,
            draft_proposed=counts.draft_proposed,
            draft_accepted=counts.draft_accepted,
            preemptions=scheduler.n_preemptions,
        )

    def _request(self, prompt: Prompt, parameters: SamplingParameters) -> Request:
        """A request that can be served, not yet queued."""
        if isinstance(prompt, str):
            prompt_ids: Sequence[int] = self.tokenizer.encode_ordinary(prompt)
        else:
            prompt_ids = plain_ids(prompt)
        if not isinstance(parameters, SamplingParameters):
            raise ValueError(f"parameters must be SamplingParameters, got {parameters!r:.80}")
        check_request(prompt_ids, parameters, self.model.config, self.options, self._manager)
        # Small enough for every JSON reader.
        seed = secrets.randbits(53) if parameters.seed is None else parameters.seed
        return Request(prompt_ids, parameters, seed)

    def _has_room(self, request: Request) -> bool:
        n_waiting = len(self._scheduler.waiting) + request.parameters.n
        return n_waiting <= self.options.max_queued

    def _check_room(self, request: Request) -> None:
        if not self._has_room(request):
            raise QueueFull(
                f"at most {self.options.max_queued} sequences may wait (max_queued), "
                f"got {len(self._scheduler.waiting)} and {request.parameters.n} more"
            )

    def _enqueue(self, request: Request) -> None:
        parameters = request.parameters
        end_ids = self._textless if parameters.ignore_end else self.end_ids
        if parameters.stop_token_ids:
            end_ids = end_ids.union(parameters.stop_token_ids)
        request.submitted = time.perf_counter()
        for index in range(parameters.n):
            sequence = SequenceState(
                request,
                index,
                text=StoppedText(
                    self.tokenizer.stream_decoder(),
                    parameters.stop,
                    keep_stop=parameters.keep_stop,
                ),
                end_ids=end_ids,
                max_length=max_length(len(request.prompt_ids), parameters, self.model.config),
                seen=None if parameters.repetition_penalty == 1 else self._mask(request.prompt_ids),
            )
            request.sequences.append(sequence)
            self._scheduler.waiting.append(sequence)

    def _mask(self, token_ids: Sequence[int]) -> Tensor:
        """True at these ids."""
        device = sampling_device(self.model.token_embeddings.weight.device)
        mask = torch.zeros(self.model.config.resolved_vocab_size, dtype=torch.bool, device=device)
        mask[list(token_ids)] = True
        return mask

    def _pump(self) -> None:
        """Makes a step on behalf of one request, and keeps the others' chunks for them."""
        self._undelivered = self.step()

    @torch.inference_mode()
    def _advance(self) -> list[tuple[Request, Chunk]]:
        """One step: plan, draft, forward, draw, and what follows for each sequence."""
        shares = self._scheduler.plan()
        if not shares:
            assert not self._scheduler.waiting, "what waits is admitted when nothing runs"
            return []
        if self._speculator is not None:
            self._draft(self._speculator, [share for share in shares if share.draws])
        step = Step(shares)
        logits = self._runner.forward(step.batch)
        if step.scored:
            _score(step, logits[step.score_rows])
            logits = logits[step.draw_rows]
        drawn = sample_tokens(logits, step.draws)
        if self._speculator is not None and self._speculator.acceptance == "rejection":
            verify_by_chance(shares, logits, step.draws, drawn)
        self._counts.steps += 1
        chunks, first = [], 0
        for share in shares:
            end = first + (len(share.draft) + 1 if share.draws else 0)
            chunk = self._take(share, drawn.token_ids[first:end], drawn.log_probs[first:end])
            first = end
            if chunk is not None:
                chunks.append((share.sequence.request, chunk))
        return chunks

    def _draft(self, speculator: Speculator, shares: Sequence[Share]) -> None:
        """Gives shares that draw something to verify, where blocks are free for it."""
        room = []
        for share in shares:
            sequence = share.sequence
            n_left = sequence.max_length - len(sequence.token_ids) - 1
            room.append(self._scheduler.reserve(sequence, min(speculator.n_draft, n_left)))
        drafts = speculator.propose([share.sequence for share in shares], room)
        for share, draft in zip(shares, drafts, strict=True):
            share.draft, share.draft_probabilities = draft.token_ids, draft.probabilities
            self._counts.draft_proposed += len(draft.token_ids)

    def _take(
        self, share: Share, token_ids: list[int], log_probs: list[TokenLogProb | None]
    ) -> Chunk | None:
        """What a step did for one sequence: computed tokens, drawn ids, perhaps its end."""
        sequence, counts = share.sequence, self._counts
        was_read, chunk, n_right = sequence.prompt_is_read, None, 0
        if token_ids:
            chunk = sequence.take(token_ids, log_probs, share.draft)
            # Of drafted ids that were right keys and values are computed already.
            n_right = len(chunk.token_ids) - 1
            counts.generated_tokens += len(chunk.token_ids)
            counts.draft_accepted += n_right
        self._scheduler.advance(sequence, share.n_tokens + n_right)
        if sequence.prompt_is_read and not was_read:
            counts.prompt_tokens += sequence.n_prompt
        if chunk is None and sequence.n_missing == 0:
            chunk = Chunk(sequence.index, sequence.finish("length"), (), None, sequence.completion)
        if sequence.completion is not None:
            self._scheduler.remove(sequence)
        return chunk


@dataclass(slots=True)
class _Counts:
    prompt_tokens: int = 0
    generated_tokens: int = 0
    steps: int = 0
    draft_proposed: int = 0
    draft_accepted: int = 0


def _score(step: Step, logits: Tensor) -> None:
    """Keeps the log-probabilities of prompts' ids, each from the logits before it."""
    n_top = [sequence.request.parameters.log_probs or 0 for sequence, _ in step.scored]
    token_ids = [sequence.token_ids[position] for sequence, position in step.scored]
    found = score_tokens(logits, token_ids, n_top)
    for (sequence, position), score in zip(step.scored, found, strict=True):
        wanted = sequence.request.prompt_log_probs
        assert wanted is not None, "only prompts whose scores are wanted are scored"
        wanted[position] = score
