"""uvicorn with the deadlines that it lacks, and an end that lets streams finish.

A connection that sends no whole request in time, or does not read what it is sent, is closed: each
holds a file descriptor, and a stream a place in the engine.
"""

import asyncio
import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from types import FrameType
from typing import Any, NoReturn

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from rslm.infer.http_guard import SECURITY_HEADERS, Limits

MAX_HEADER_BYTES = 1 << 15
_SEND_BUFFER_BYTES = 1 << 17
_LAST_WORDS_SECONDS = 10
"""In which streams that were ended must be told so, before their connections are cut."""
_KEEPALIVE = (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))
"""When a peer that has vanished without a word is found to be gone."""


class Protocol(H11Protocol):
    """One connection, with deadlines.

    Attributes:
        limits: set by `serve` on a subclass; uvicorn makes the instances.
    """

    limits = Limits()

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._header_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begins a connection, unless there are too many."""
        if len(self.connections) >= self.limits.connections:
            transport.write(_TOO_MANY)
            transport.close()
            self._abort_later(transport)
            return
        _set_up(transport.get_extra_info("socket"))
        super().connection_made(transport)
        self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the connection, and its timers."""
        self._stop_header_timer()
        self._stop_write_timer()
        if self.transport is not None:
            super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Reads on; headers must be whole by their deadline, however slowly they drip."""
        if self.transport is None:
            return
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_header_timer()
        elif self._header_timer is None and not self.transport.is_closing():
            self._await_headers()

    def pause_writing(self) -> None:
        """The peer reads too slowly: it has so long to catch up."""
        super().pause_writing()
        self._stop_write_timer()
        self._write_timer = self.loop.call_later(self.limits.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """The peer has caught up."""
        self._stop_write_timer()
        super().resume_writing()

    def on_response_complete(self) -> None:
        """Waits for the next request; a closing connection that is not read is cut off."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._abort_later(self.transport)

    def send_400_response(self, msg: str) -> None:
        """Answers what is no HTTP; in the middle of an answer the connection just ends."""
        if self.cycle is None or self.cycle.response_complete:
            self.transport.write(_BAD_REQUEST)
        self.transport.close()
        self._abort_later(self.transport)

    def _await_headers(self) -> None:
        self._header_timer = self.loop.call_later(self.limits.header_seconds, self._headers_late)

    def _headers_late(self) -> None:
        self._header_timer = None
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self.transport.abort()

    def _abort_later(self, transport: asyncio.Transport) -> None:
        self.loop.call_later(self.limits.write_seconds, transport.abort)

    def _stop_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None


def _plain_answer(status: str, body: bytes, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", "content-type: application/json"]
    lines += [f"content-length: {len(body)}", "connection: close", *headers]
    lines += [f"{name}: {value}" for name, value in SECURITY_HEADERS.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


_BAD_REQUEST = _plain_answer(
    "400 Bad Request",
    b'{"error":{"message":"this is no HTTP request","type":"invalid_request_error",'
    b'"param":null,"code":"invalid_http"}}',
)
_TOO_MANY = _plain_answer(
    "503 Service Unavailable",
    b'{"error":{"message":"too many connections; try again later","type":"overloaded_error",'
    b'"param":null,"code":"too_many_connections"}}',
    "retry-after: 1",
)


def _set_up(sock: socket.socket | None) -> None:
    """Bounds what waits for a slow peer, and has a silent one asked whether it is still there."""
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE:
        if (option := getattr(socket, name, None)) is not None:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, option, value)


class _Server(uvicorn.Server):
    """Lets streams end before it does."""

    def __init__(self, config: uvicorn.Config, close: Callable[[], Awaitable[None]]) -> None:
        super().__init__(config)
        self._close = close

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stops listening, ends what runs within its deadline, then closes."""
        closing = asyncio.ensure_future(self._close())
        await super().shutdown(sockets)
        await closing


async def serve_app(
    app: ASGIApp,
    listener: socket.socket,
    limits: Limits,
    *,
    close: Callable[[], Awaitable[None]],
    close_seconds: float,
    on_start: Callable[[uvicorn.Server], None],
) -> None:
    """Answers requests until a signal comes, or `should_exit` of the server is set.

    Args:
        close: ends what runs, within `close_seconds`; awaited before the server ends.
        on_start: called once requests are taken.
    """
    protocol = type("LimitedProtocol", (Protocol,), {"limits": limits})
    # Its log would tell of every broken request, which anybody can send at any rate.
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    config = uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        lifespan="off",
        loop="asyncio",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        # Only handed to the loop, which takes fractions.
        timeout_keep_alive=limits.idle_seconds,  # type: ignore[arg-type]
        timeout_graceful_shutdown=int(close_seconds) + _LAST_WORDS_SECONDS,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
    )
    server = _Server(config, close)
    watching = asyncio.create_task(_tell_when_started(server, on_start))
    try:
        await server.serve(sockets=[listener])
    finally:
        watching.cancel()


async def _tell_when_started(
    server: uvicorn.Server, on_start: Callable[[uvicorn.Server], None]
) -> None:
    while not server.started:
        await asyncio.sleep(0.01)
    on_start(server)


@contextlib.contextmanager
def ends_at_sigterm() -> Iterator[None]:
    """SIGTERM as an exit with code 0, which the server passes on once it has closed."""

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(0)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
