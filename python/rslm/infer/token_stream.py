"""The way of a request's tokens to its client, and what is said when they end too early."""

import asyncio
import collections
from collections.abc import AsyncIterator, Sequence

from rslm.errors import one_line
from rslm.infer.api_fields import ApiError
from rslm.infer.parameters import Chunk, SamplingParameters

MAX_BUFFERED_CHUNKS = 4096
"""What a client may leave unread of each choice before its request is cancelled."""


class Stream:
    """The tokens of one request on their way to its client; lives in the event loop.

    Args:
        prompts: ids of each prompt.
        parameters: the same for all of them.
        max_chunks: that a slow reader may leave lying of each choice.
    """

    def __init__(
        self,
        prompts: Sequence[tuple[int, ...]],
        parameters: SamplingParameters,
        *,
        max_chunks: int = MAX_BUFFERED_CHUNKS,
    ) -> None:
        self.prompts = prompts
        self.parameters = parameters
        self.accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._chunks: collections.deque[tuple[int, Chunk]] = collections.deque()
        self._wake = asyncio.Event()
        self._n_open = len(prompts) * parameters.n
        self._max_chunks = max_chunks * self._n_open
        self._error: ApiError | None = None

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come."""
        return self._n_open == 0 or self._error is not None

    def put(self, index: int, chunk: Chunk) -> bool:
        """Keeps a chunk for the reader; False where the reader has left too many."""
        if self.is_over:
            return True
        if len(self._chunks) >= self._max_chunks:
            self.fail(ApiError("the answer was not read in time", status=503, code="slow_reader"))
            return False
        self._chunks.append((index, chunk))
        self._n_open -= chunk.completion is not None
        self._wake.set()
        return True

    def fail(self, error: ApiError) -> None:
        """Ends the stream with an error, after what it holds."""
        if self.is_over:
            return
        self._error = error
        if not self.accepted.done():
            self.accepted.set_exception(error)
            # Where nobody waits any more the error is nobody's.
            self.accepted.exception()
        self._wake.set()

    async def chunks(self) -> AsyncIterator[tuple[int, Chunk]]:
        """Choice and chunk, as they come, until all choices are complete.

        Raises:
            ApiError: the engine failed, the server stops, or the request was cancelled.
        """
        while True:
            while self._chunks:
                yield self._chunks.popleft()
            if self._error is not None:
                raise self._error
            if self._n_open == 0:
                return
            self._wake.clear()
            await self._wake.wait()


def queue_full() -> ApiError:
    """The answer when too many requests wait."""
    return ApiError(
        "too many requests wait; try again later",
        status=503,
        code="queue_full",
        type="overloaded_error",
        retry_after=1,
    )


def stopping() -> ApiError:
    """The answer when the server is about to end."""
    return ApiError("the server is stopping", status=503, code="stopping", retry_after=5)


def engine_failed(error: BaseException) -> ApiError:
    """The answer when a step failed."""
    reason = one_line(str(error)) or type(error).__name__
    return ApiError(f"the engine failed: {reason:.200}", status=500, code="engine_failed")


def load_failed(name: str, error: BaseException) -> ApiError:
    """The answer when a model cannot be loaded."""
    reason = one_line(str(error)) or type(error).__name__
    return ApiError(
        f"the model {name!r:.80} cannot be loaded: {reason:.300}",
        "model",
        status=500,
        code="model_load_failed",
    )
