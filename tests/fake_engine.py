"""An engine without a model, which does as the real one does and can be made to fail."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from math import log
from typing import Any

from rslm.infer.options import EngineStatistics, QueueFull
from rslm.infer.parameters import Chunk, Completion, SamplingParameters, TokenLogProb
from rslm.infer.stopping import StoppedText

OTHER_COUNTS = ("prefix_lookups", "prefix_hits", "prompt_tokens", "generated_tokens") + (
    "draft_proposed",
    "draft_accepted",
    "preemptions",
)


@dataclass(eq=False)
class FakeRequest:
    prompt: tuple[int, ...]
    parameters: SamplingParameters
    drawn: list[list[int]]
    decoders: list[Any]
    texts: list[str]
    done: set[int] = field(default_factory=set)
    started: float = field(default_factory=time.perf_counter)


@dataclass
class Faults:
    """What goes wrong, and how slow a step is; tests change it while the engine runs."""

    fail_steps: int = 0
    fail_make: bool = False
    fail_load: Exception | None = None
    step_seconds: float = 0.0
    gate: Callable[[], object] | None = None
    """Called in each step, and may wait."""
    pieces: list[bytes] = field(default_factory=list)
    """What is said, token by token; else the alphabet."""


class FakeEngine:
    """Says the alphabet from the seed's letter on, a token a step, until told to stop."""

    def __init__(self, tokenizer: Any, faults: Faults, *, context: int = 64, max_queued: int = 100):
        if faults.fail_make:
            raise MemoryError("no room for a cache")
        self.tokenizer, self.faults, self.context = tokenizer, faults, context
        self.max_queued, self.requests = max_queued, []
        self.thread = threading.get_ident()
        self.n_steps = 0

    @property
    def has_work(self) -> bool:
        return bool(self.requests)

    def submit(self, prompt: Any, parameters: SamplingParameters) -> FakeRequest:
        assert threading.get_ident() == self.thread, "an engine belongs to one thread"
        if max(prompt) >= 257:
            raise ValueError(f"token ids must lie in [0, 257), got {max(prompt)}")
        if sum(r.parameters.n for r in self.requests) + parameters.n > self.max_queued:
            raise QueueFull("full")
        n = parameters.n
        decoders = [StoppedText(self.tokenizer.stream_decoder(), parameters.stop) for _ in range(n)]
        drawn: list[list[int]] = [[] for _ in range(n)]
        request = FakeRequest(tuple(prompt), parameters, drawn, decoders, [""] * n)
        self.requests.append(request)
        return request

    def cancel(self, request: FakeRequest) -> None:
        assert threading.get_ident() == self.thread
        if request in self.requests:
            self.requests.remove(request)

    def statistics(self) -> EngineStatistics:
        n = sum(request.parameters.n for request in self.requests)
        others = dict.fromkeys(OTHER_COUNTS, 0)
        return EngineStatistics(
            n_running=n,
            n_waiting=0,
            n_blocks=64,
            n_free_blocks=64 - n,
            steps=self.n_steps,
            **others,
        )

    def step(self) -> list[tuple[FakeRequest, Chunk]]:
        assert threading.get_ident() == self.thread
        self.n_steps += 1
        if self.faults.gate is not None:
            self.faults.gate()
        time.sleep(self.faults.step_seconds)
        if self.faults.fail_steps:
            self.faults.fail_steps -= 1
            raise RuntimeError("a step went wrong\nhere is a long story")
        chunks = []
        for request in list(self.requests):
            open_indices = [i for i in range(request.parameters.n) if i not in request.done]
            chunks += [(request, self._advance(request, index)) for index in open_indices]
            if len(request.done) == request.parameters.n:
                self.requests.remove(request)
        return chunks

    def _advance(self, request: FakeRequest, index: int) -> Chunk:
        parameters, drawn = request.parameters, request.drawn[index]
        new: tuple[int, ...] = ()
        if parameters.max_new_tokens:
            new = (self._draw(request, index, len(drawn)),)
            drawn += new
        decoder = request.decoders[index]
        text = "".join(map(decoder.add, new))
        reason: Any = None if decoder.stopped_by is None else "stop"
        room = min(parameters.max_new_tokens, self.context - len(request.prompt))
        if reason is None and len(drawn) >= room:
            reason, text = "length", text + decoder.finish()
        request.texts[index] += text
        log_probs = None
        if parameters.log_probs is not None:
            log_probs = tuple(self._scored(i, parameters.log_probs) for i in new)
        completion = None
        if reason is not None:
            request.done.add(index)
            completion = self._completion(request, index, reason, decoder.stopped_by)
        return Chunk(index, text, new, log_probs, completion)

    def _draw(self, request: FakeRequest, index: int, position: int) -> int:
        if self.faults.pieces:
            piece = self.faults.pieces[position % len(self.faults.pieces)]
            return int(self.tokenizer.token_to_id(piece))
        return ord("a") + ((request.parameters.seed or 0) + index + position) % 26

    def _scored(self, token_id: int, k: int) -> TokenLogProb:
        top = tuple((ord("a") + i, log(0.5) * (i + 1)) for i in range(k))
        return TokenLogProb(token_id, -0.25, -0.125, top)

    def _completion(
        self, request: FakeRequest, index: int, reason: Any, stop_reason: Any
    ) -> Completion:
        parameters, prompt = request.parameters, request.prompt
        k = parameters.log_probs
        ids = tuple(request.drawn[index])
        seconds = time.perf_counter() - request.started
        scored = [self._scored(i, k or 0) for i in prompt[1:]]
        return Completion(
            prompt_ids=prompt,
            token_ids=ids,
            text=request.texts[index],
            finish_reason=reason,
            stop_reason=stop_reason,
            log_probs=None if k is None else tuple(self._scored(i, k) for i in ids),
            prompt_log_probs=(None, *scored) if parameters.prompt_log_probs else None,
            seed=parameters.seed or 0,
            index=index,
            prompt_index=0,
            n_cached_tokens=1,
            first_token_seconds=seconds / 2,
            seconds=seconds,
        )
