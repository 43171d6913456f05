"""What stands before the routes: who may ask, how long a body may be, what every answer carries.

Plain ASGI, for the same reason as everywhere here: nothing between the engine and the socket may
hold back pieces of a stream or hide that the client has gone.
"""

import asyncio
import hashlib
import hmac
import ipaddress
import json
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rslm.infer.api_fields import ApiError

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
OPEN_PATHS = frozenset({"/", "/health"})
"""What may be read without a token: the page, which asks for it, and whether the server lives."""
SECURITY_HEADERS = {
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "x-frame-options": "DENY",
    "cache-control": "no-store",
}
MAX_JSON_DEPTH = 64
_DISCARD_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one client may take.

    Attributes:
        body_bytes: of a request.
        body_seconds: in which a body must arrive.
        header_seconds: in which a request line and its headers must arrive.
        write_seconds: for which a client may leave what was sent to it unread.
        idle_seconds: for which a connection may stand without a request.
        discard_seconds: for which a body that was refused is read on, so that its sender, who
            may not listen before, gets to see the answer.
        connections: at once.
    """

    body_bytes: int = 1 << 20
    body_seconds: float = 30.0
    header_seconds: float = 10.0
    write_seconds: float = 60.0
    idle_seconds: float = 30.0
    discard_seconds: float = 2.0
    connections: int = 512


@dataclass(frozen=True, kw_only=True)
class Access:
    """Who may ask.

    Attributes:
        hosts: names by which the server may be called, beside those of this machine.
        any_address: any numeric address may be one, as when all interfaces are served; a name
            that an attacker made lead here is none.
        token: what API requests must carry; None asks for nothing.
    """

    hosts: frozenset[str] = frozenset()
    any_address: bool = False
    token: str | None = field(default=None, repr=False)

    def check(self, path: str, headers: Headers) -> None:
        """Refuses a request that comes by a foreign name, from a foreign page, or without token.

        Raises:
            ApiError: 403 or 401.
        """
        host = headers.get("host", "")
        if not self._is_ours(host_name(host)):
            raise ApiError(
                f"host must be a name of this server, got {host!r:.80}; --allowed-host adds one",
                status=403,
                code="host_not_allowed",
            )
        origin = headers.get("origin")
        if origin is not None and not is_same_origin(origin, host):
            raise ApiError(
                f"origin must be this server, got {origin!r:.80}",
                status=403,
                code="origin_not_allowed",
            )
        if self.token is not None and path not in OPEN_PATHS:
            self._check_token(headers.get("authorization", ""))

    def _is_ours(self, name: str) -> bool:
        if name in LOOPBACK_NAMES or name in self.hosts:
            return True
        return self.any_address and is_address(name)

    def _check_token(self, authorization: str) -> None:
        assert self.token is not None
        kind, _, given = authorization.partition(" ")
        # Digests, for the comparison to take the same time whatever the lengths.
        same = hmac.compare_digest(_digest(given.strip()), _digest(self.token))
        if kind.lower() != "bearer" or not same:
            raise ApiError(
                "a token must be given as 'Authorization: Bearer ...', and be the server's",
                status=401,
                code="invalid_api_key",
            )


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


def host_name(host: str) -> str:
    """The name in a Host header, in small letters, without port, brackets and final dot."""
    name, port = host.strip().lower(), ""
    if name.startswith("["):
        name, bracket, port = name[1:].partition("]")
        if not bracket:
            return ""
        port = port.removeprefix(":")
    elif name.count(":") == 1:
        name, _, port = name.partition(":")
    if port and not (port.isascii() and port.isdigit()):
        return ""
    return name.removesuffix(".")


def is_address(name: str) -> bool:
    """Whether a name is a numeric address."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_same_origin(origin: str, host: str) -> bool:
    """Whether a page from `origin` was served under the name `host`, port included."""
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and parts.netloc.lower() == host.strip().lower()


class Guard:
    """The outermost layer: checks each request, answers errors, and marks every answer.

    Args:
        app: what answers.
        access: who may ask.
        limits: of one client.
        report: told what failed without being a client's fault.
        done: told method, path, status and seconds of each request.
    """

    def __init__(
        self,
        app: ASGIApp,
        access: Access,
        limits: Limits,
        *,
        report: Callable[[BaseException], None],
        done: Callable[[str, str, int, float], None],
    ) -> None:
        self._app = app
        self._access = access
        self._limits = limits
        self._report = report
        self._done = done

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            return
        started = time.perf_counter()
        headers = Headers(scope=scope)
        exchange = Exchange(receive, send, self._limits, has_body=_has_body(headers))
        try:
            self._access.check(scope["path"], headers)
            await self._app(scope, exchange.receive, exchange.send)
        except ApiError as error:
            await exchange.answer_error(error)
        except asyncio.CancelledError:
            await exchange.answer_error(ApiError("the server is stopping", status=503))
        except Exception as error:
            self._report(error)
            await exchange.answer_error(ApiError("an internal error", status=500, code="internal"))
        finally:
            seconds = time.perf_counter() - started
            self._done(scope["method"], scope["path"], exchange.status, seconds)


def _has_body(headers: Headers) -> bool:
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"


class Exchange:
    """One request and its answer, as far as they have come."""

    def __init__(self, receive: Receive, send: Send, limits: Limits, *, has_body: bool) -> None:
        self._limits = limits
        self._receive = receive
        self._send = send
        self._body_is_read = not has_body
        self._begun = False
        self.status = 0

    async def receive(self) -> Message:
        """The next message; whether the body has come to its end is remembered."""
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self._body_is_read = True
        return message

    async def send(self, message: Message) -> None:
        """Passes an answer on, with the headers that every answer has."""
        if message["type"] == "http.response.start":
            self._begun = True
            self.status = message["status"]
            headers = MutableHeaders(raw=list(message.get("headers", [])))
            for name, value in SECURITY_HEADERS.items():
                headers.setdefault(name, value)
            if not self._body_is_read:
                # Else the rest of it could go on dripping for ever.
                headers["connection"] = "close"
            message = {**message, "headers": headers.raw}
        await self._send(message)

    async def answer_error(self, error: ApiError) -> None:
        """Answers with an error, unless an answer has begun.

        A body that nobody wants is read to some length all the same: a client that is still
        sending when the connection closes never sees the answer.
        """
        if self._begun:
            # The server closes a connection whose answer was not finished.
            self.status = error.status
            return
        body = json.dumps(error.body()).encode()
        headers = {"content-type": "application/json", "content-length": str(len(body))}
        if error.retry_after is not None:
            headers["retry-after"] = str(error.retry_after)
        if error.status == 401:
            headers["www-authenticate"] = "Bearer"
        raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": error.status, "headers": raw})
        await self.send({"type": "http.response.body", "body": body, "more_body": True})
        await self._discard()
        await self.send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _discard(self) -> None:
        n_bytes = 0
        try:
            async with asyncio.timeout(self._limits.discard_seconds):
                while not self._body_is_read and n_bytes < _DISCARD_BYTES:
                    message = await self.receive()
                    n_bytes += len(message.get("body", b""))
        except TimeoutError:
            return


async def read_json(scope: Scope, receive: Receive, limits: Limits) -> Mapping[str, Any]:
    """The object that a request's body holds, read no further than it may be long.

    Raises:
        ApiError: it is no JSON object, is too long, or does not come in time.
    """
    headers = Headers(scope=scope)
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # A page elsewhere cannot send this type unasked.
        raise ApiError(
            f"content-type must be application/json, got {kind!r:.80}",
            status=415,
            code="unsupported_media_type",
        )
    declared = headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared[:20]) > limits.body_bytes:
        raise _too_large(limits)
    try:
        async with asyncio.timeout(limits.body_seconds):
            data = await _read_body(receive, limits)
    except TimeoutError:
        raise ApiError(
            f"a body must arrive within {limits.body_seconds:g} seconds",
            status=408,
            code="request_timeout",
        ) from None
    return parse_object(data)


async def _read_body(receive: Receive, limits: Limits) -> bytes:
    data = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ApiError("the client has gone", status=400, code="disconnected")
        data += message.get("body", b"")
        if len(data) > limits.body_bytes:
            raise _too_large(limits)
        if not message.get("more_body", False):
            return bytes(data)


def _too_large(limits: Limits) -> ApiError:
    return ApiError(
        f"a body must have at most {limits.body_bytes} bytes",
        status=413,
        code="request_too_large",
    )


def parse_object(data: bytes) -> Mapping[str, Any]:
    """The JSON object in `data`.

    Raises:
        ApiError: it is none, or holds what JSON does not (NaN, a name twice), or is nested so
            deep that no request means it.
    """
    try:
        record = json.loads(
            data.decode("utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_unique
        )
    except (ValueError, RecursionError) as error:
        raise ApiError(f"a body must be JSON: {error!s:.200}", code="invalid_json") from None
    if not isinstance(record, dict):
        raise ApiError("a body must be a JSON object", code="invalid_json")
    if not _is_shallow(record):
        raise ApiError(f"a body must be nested at most {MAX_JSON_DEPTH} deep", code="invalid_json")
    return record


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        raise ValueError("a name stands twice in an object")
    return record


def _is_shallow(record: object) -> bool:
    """Whether no value lies deeper than MAX_JSON_DEPTH; level by level, without recursion."""
    level: list[Collection[Any]] = [record] if isinstance(record, dict | list) else []
    for _ in range(MAX_JSON_DEPTH):
        below: list[Collection[Any]] = []
        for item in level:
            values = item.values() if isinstance(item, dict) else item
            below += [value for value in values if isinstance(value, dict | list)]
        if not below:
            return True
        level = below
    return False
