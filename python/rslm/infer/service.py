"""A thread that owns an engine; requests cross to it, and their tokens come back to the loop.

Nothing else touches the engine. Requests wait in a bounded inbox; after each step everything that
it gave crosses back in one call of the event loop. A cancelled request is gone before the next
step. A step that fails answers all requests with an error, and a new engine takes its place.
"""

import asyncio
import collections
import contextlib
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rslm.errors import one_line
from rslm.infer.api_fields import ApiError
from rslm.infer.options import EngineStatistics, QueueFull
from rslm.infer.parameters import Chunk
from rslm.infer.token_stream import Stream, engine_failed, queue_full, stopping

if TYPE_CHECKING:
    from rslm.chat import ChatFormat
    from rslm.infer.engine import Engine
    from rslm.tokenizer import Tokenizer

MAX_FAILURES = 3
"""Steps in a row that may fail before the service gives up."""

_LAST_STEP_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model that can be run.

    Attributes:
        tokenizer: usable from any thread.
        chat_format: how conversations become prompts; None where there is no way.
        context_length: ids that a sequence may have.
        block_size: ids in a block of the engine's cache.
        make_engine: a fresh engine of the model, called in the service's thread.
    """

    tokenizer: "Tokenizer"
    chat_format: "ChatFormat | None"
    context_length: int
    block_size: int
    make_engine: "Callable[[], Engine]"


@dataclass
class _Running:
    """A request in the engine."""

    stream: Stream
    first_index: int
    n_open: int
    request: Any = field(repr=False)


@dataclass
class Counts:
    """What a service has done since it started; written by its thread alone."""

    n_failed_steps: int = 0
    step_seconds: float = 0.0


class EngineService:
    """A thread with an engine, as the event loop sees it.

    Args:
        load: makes the model; called in the thread.
        max_waiting: prompts that may wait to be taken to the engine.
        report: told a line, and the traceback, of what failed without being a client's fault.
    """

    def __init__(
        self,
        load: Callable[[], LoadedModel],
        *,
        max_waiting: int,
        report: Callable[[str], None],
        name: str = "engine",
    ) -> None:
        self._load = load
        self._max_waiting = max_waiting
        self._report = report
        self._loop = asyncio.get_running_loop()
        self._loaded: asyncio.Future[LoadedModel] = self._loop.create_future()
        self._ended = asyncio.Event()
        self._lock = threading.Condition()
        self._inbox: collections.deque[Stream] = collections.deque()
        self._cancelled: list[Stream] = []
        self._closing = False
        self._streams: set[Stream] = set()
        self._running: dict[int, _Running] = {}
        self._n_failures_in_a_row = 0
        self._made: Engine | None = None
        self.counts = Counts()
        self.statistics: EngineStatistics | None = None
        self.broken: str | None = None
        """Why no request can be taken any more."""
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)

    async def start(self) -> LoadedModel:
        """Starts the thread; the model once it is loaded.

        Raises:
            Exception: what `load` raised; the thread has ended.
        """
        self._thread.start()
        return await asyncio.shield(self._loaded)

    def submit(self, stream: Stream) -> None:
        """Sends a request to the engine; `stream.accepted` says what became of it.

        Raises:
            ApiError: too many wait, or the service is broken or stopping.
        """
        if self.broken is not None:
            raise ApiError(
                f"the engine has failed: {self.broken}", status=500, code="engine_failed"
            )
        n_choices = len(stream.prompts) * stream.parameters.n
        if n_choices > self._max_waiting:
            raise ApiError(
                f"a request must ask for at most {self._max_waiting} completions, got {n_choices}",
                "n",
            )
        with self._lock:
            if self._closing:
                raise stopping()
            if sum(len(s.prompts) for s in self._inbox) + len(stream.prompts) > self._max_waiting:
                raise queue_full()
            self._inbox.append(stream)
            self._lock.notify()
        self._streams.add(stream)

    def cancel(self, stream: Stream) -> None:
        """Drops a request before the next step; nothing happens where it has ended."""
        self._streams.discard(stream)
        with self._lock:
            self._cancelled.append(stream)
            self._lock.notify()

    @property
    def n_open(self) -> int:
        """Requests that have not ended."""
        return len(self._streams)

    async def stop(self, seconds: float) -> None:
        """Ends the thread; requests have so long to end, then they are ended."""
        deadline = time.monotonic() + seconds
        with self._lock:
            self._closing = True
            self._lock.notify()
        while self._streams and time.monotonic() < deadline and self._thread.is_alive():
            await asyncio.sleep(0.02)
        for stream in list(self._streams):
            stream.fail(stopping())
            self.cancel(stream)
        # A step, or a load, cannot be interrupted; one that hangs ends with the process.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_STEP_SECONDS):
                await self._ended.wait()

    # All below runs in the thread, but for _deliver and what it calls.

    def _work(self) -> None:
        try:
            model = self._load()
            self._made = model.make_engine()
        except BaseException as error:
            failure = error if isinstance(error, Exception) else RuntimeError(repr(error))
            self._call(self._set_failed, failure)
            self._call(self._ended.set)
            return
        self._note_statistics()
        self._call(self._set_loaded, model)
        self._make_engine = model.make_engine
        try:
            while self._obey():
                if self._engine.has_work:
                    self._step()
        except BaseException as error:
            self._give_up(error)
        finally:
            # Weights and cache go with the engine, before anything else is loaded.
            self._made = None
            del self._make_engine, self._load
            self._call(self._ended.set)

    def _obey(self) -> bool:
        """Takes what has come from the loop; waits for it where there is nothing else to do."""
        with self._lock:
            while not (self._inbox or self._cancelled or self._closing or self._engine.has_work):
                self._lock.wait()
            arrived, cancelled = list(self._inbox), set(self._cancelled)
            self._inbox.clear()
            self._cancelled.clear()
            closing = self._closing
        self._drop(cancelled)
        for stream in arrived:
            if stream not in cancelled:
                self._take(stream)
        if arrived or cancelled:
            self._note_statistics()
        return not closing or bool(self._running)

    def _drop(self, streams: set[Stream]) -> None:
        for key, running in list(self._running.items()):
            if running.stream in streams:
                self._engine.cancel(running.request)
                del self._running[key]

    def _take(self, stream: Stream) -> None:
        """Gives the prompts of a request to the engine: all, or none."""
        try:
            for i, prompt in enumerate(stream.prompts):
                request = self._engine.submit(prompt, stream.parameters)
                n = stream.parameters.n
                self._running[id(request)] = _Running(stream, i * n, n, request)
        except Exception as error:
            self._drop({stream})
            self._call(self._refuse, stream, self._refusal(error))
            return
        self._call(self._accept, stream)

    def _refusal(self, error: Exception) -> ApiError:
        """What a client is told that the engine would not take."""
        if isinstance(error, QueueFull):
            return queue_full()
        if isinstance(error, ValueError):
            return ApiError(one_line(str(error)))
        self._report("".join(traceback.format_exception(error)))
        return engine_failed(error)

    def _step(self) -> None:
        started = time.perf_counter()
        try:
            produced = self._engine.step()
        except Exception as error:
            self._recover(error)
            return
        self._n_failures_in_a_row = 0
        self.counts.step_seconds += time.perf_counter() - started
        events = []
        for request, chunk in produced:
            running = self._running.get(id(request))
            if running is None:
                continue
            events.append((running.stream, running.first_index + chunk.index, chunk))
            running.n_open -= chunk.completion is not None
            if running.n_open == 0:
                del self._running[id(request)]
        self._note_statistics()
        if events:
            self._call(self._deliver, events)

    def _recover(self, error: Exception) -> None:
        """Ends all requests with an error, and goes on with a new engine.

        What a failed step leaves in the old one's cache and tables is unknown.
        """
        self.counts.n_failed_steps += 1
        self._n_failures_in_a_row += 1
        self._report("".join(traceback.format_exception(error)))
        streams = {running.stream for running in self._running.values()}
        self._running.clear()
        self._call(self._fail, streams, engine_failed(error))
        if self._n_failures_in_a_row >= MAX_FAILURES:
            raise error
        # The old one's cache is freed first: there may be no memory for both.
        self._made = None
        self._made = self._make_engine()
        self._note_statistics()

    def _give_up(self, error: BaseException) -> None:
        with self._lock:
            self._closing = True
            waiting = set(self._inbox)
            self._inbox.clear()
        self.broken = one_line(str(error)) or type(error).__name__
        self._report(f"the engine is given up: {self.broken}")
        streams = waiting | {running.stream for running in self._running.values()}
        self._running.clear()
        self._call(self._fail, streams, engine_failed(error))

    @property
    def _engine(self) -> "Engine":
        assert self._made is not None, "it is gone only between two engines"
        return self._made

    def _note_statistics(self) -> None:
        self.statistics = self._engine.statistics()

    def _call(self, function: Callable[..., object], *args: Any) -> None:
        """Has the loop call a function; where the loop is closed nobody waits."""
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            if not self._loop.is_closed():
                raise

    def _set_failed(self, error: Exception) -> None:
        if not self._loaded.done():
            self._loaded.set_exception(error)
            self._loaded.exception()

    def _set_loaded(self, model: LoadedModel) -> None:
        if not self._loaded.done():
            self._loaded.set_result(model)

    def _accept(self, stream: Stream) -> None:
        if not stream.accepted.done():
            stream.accepted.set_result(None)

    def _refuse(self, stream: Stream, error: ApiError) -> None:
        self._streams.discard(stream)
        stream.fail(error)

    def _fail(self, streams: set[Stream], error: ApiError) -> None:
        for stream in streams:
            self._refuse(stream, error)

    def _deliver(self, events: list[tuple[Stream, int, Chunk]]) -> None:
        for stream, index, chunk in events:
            if not stream.put(index, chunk):
                self.cancel(stream)
            elif stream.is_over:
                self._streams.discard(stream)
