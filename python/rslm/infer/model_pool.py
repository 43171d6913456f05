"""The models below a folder, of which a few are loaded; requests for another one wait their turn.

All of it lives in the event loop. Requests are served in the order they came: one for a model that
is not loaded waits until a loaded one has no requests left, and those behind it wait as well, or a
busy model would never make room.
"""

import asyncio
import collections
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rslm.infer.api_fields import ApiError
from rslm.infer.service import EngineService, LoadedModel
from rslm.infer.token_stream import load_failed, queue_full, stopping

_FIND_SECONDS = 2.0
"""For which the list of models is good: a folder of thousands of runs takes a while to read."""


@dataclass(eq=False)
class Loaded:
    """A model in memory, and the requests it has."""

    name: str
    path: Path
    model: LoadedModel
    service: EngineService
    n_leases: int = 0
    last_used: float = 0.0


@dataclass(eq=False)
class _Waiting:
    name: str
    path: Path
    turn: "asyncio.Future[Loaded]"


class ModelPool:
    """Loads models when they are asked for, and lets them go for others.

    Args:
        find: names and folders of the models there are.
        make_service: a service, not started, that will load the folder's model.
        max_models: loaded at once.
        max_waiting: requests that may wait for another model.
    """

    def __init__(
        self,
        find: Callable[[], Mapping[str, Path]],
        make_service: Callable[[Path], EngineService],
        *,
        max_models: int,
        max_waiting: int,
    ) -> None:
        self._find = find
        self._make_service = make_service
        self._max_models = max_models
        self._max_waiting = max_waiting
        self._waiting: collections.deque[_Waiting] = collections.deque()
        self._changing: asyncio.Task[None] | None = None
        self._closing = False
        self._found: Mapping[str, Path] | None = None
        self._found_at = 0.0
        self.loaded: dict[str, Loaded] = {}
        self.n_loads = 0

    async def models(self) -> Mapping[str, Path]:
        """Names and folders of the models there are, as of a moment ago.

        Raises:
            ApiError: the folder cannot be read.
        """
        now = time.monotonic()
        if self._found is None or now - self._found_at > _FIND_SECONDS:
            try:
                self._found = await asyncio.to_thread(self._find)
            except OSError as error:
                raise ApiError(
                    f"the models cannot be listed: {error.strerror or error}", status=500
                ) from None
            self._found_at = now
        return self._found

    @property
    def n_waiting(self) -> int:
        """Requests that wait for their model."""
        return len(self._waiting)

    @contextlib.asynccontextmanager
    async def lease(self, name: str) -> AsyncIterator[Loaded]:
        """The model, loaded, and kept so within the block.

        Raises:
            ApiError: there is none of that name, it cannot be loaded, too many requests wait, or
                the server is stopping.
        """
        loaded = await self._acquire(name)
        try:
            yield loaded
        finally:
            self._release(loaded)

    async def _acquire(self, name: str) -> Loaded:
        loaded = self.loaded.get(name)
        path = loaded.path if loaded is not None else (await self.models()).get(name)
        if path is None:
            raise ApiError(
                f"the model {name!r:.80} does not exist; /v1/models lists those that do",
                "model",
                status=404,
                code="model_not_found",
            )
        if self._closing:
            raise stopping()
        if len(self._waiting) >= self._max_waiting:
            raise queue_full()
        waiting = _Waiting(name, path, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._advance()
        try:
            return await waiting.turn
        except asyncio.CancelledError:
            # The client has gone; its turn may have come at the same moment.
            if waiting in self._waiting:
                self._waiting.remove(waiting)
            elif not waiting.turn.cancelled() and waiting.turn.exception() is None:
                self._release(waiting.turn.result())
            self._advance()
            raise

    def _release(self, loaded: Loaded) -> None:
        loaded.n_leases -= 1
        loaded.last_used = time.monotonic()
        self._advance()

    def _advance(self) -> None:
        """Gives turns to the first in line, as long as their models are loaded."""
        while self._waiting and self._changing is None:
            first = self._waiting[0]
            loaded = self.loaded.get(first.name)
            if loaded is None or loaded.service.broken is not None:
                self._begin_change(first)
                return
            self._waiting.popleft()
            if not first.turn.done():
                loaded.n_leases += 1
                first.turn.set_result(loaded)

    def _begin_change(self, first: _Waiting) -> None:
        """Makes room and loads, where no request is in the way."""
        leaving = None
        if first.name in self.loaded:
            # It is broken: whoever still holds it will get nothing but errors.
            leaving = self.loaded[first.name]
        elif len(self.loaded) >= self._max_models:
            idle = [loaded for loaded in self.loaded.values() if loaded.n_leases == 0]
            leaving = min(idle, key=lambda loaded: loaded.last_used, default=None)
            if leaving is None:
                return
        self._changing = asyncio.create_task(self._change(first, leaving))

    async def _change(self, first: _Waiting, leaving: Loaded | None) -> None:
        try:
            if leaving is not None:
                del self.loaded[leaving.name]
                await leaving.service.stop(0)
            service = self._make_service(first.path)
            self.n_loads += 1
            model = await service.start()
            self.loaded[first.name] = Loaded(first.name, first.path, model, service)
        except Exception as error:
            failure = load_failed(first.name, error)
            for waiting in [waiting for waiting in self._waiting if waiting.name == first.name]:
                self._waiting.remove(waiting)
                if not waiting.turn.done():
                    waiting.turn.set_exception(failure)
        finally:
            self._changing = None
        self._advance()

    async def close(self, seconds: float) -> None:
        """Takes no more requests; those there are have so long to end, then they are ended."""
        self._closing = True
        for waiting in self._waiting:
            if not waiting.turn.done():
                waiting.turn.set_exception(stopping())
        self._waiting.clear()
        if self._changing is not None:
            await asyncio.wait([self._changing], timeout=seconds)
        await asyncio.gather(*(loaded.service.stop(seconds) for loaded in self.loaded.values()))
        self.loaded.clear()
