"""One request to a server that is not trusted, with a deadline and a bound on its answer."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException, HTTPSConnection, IncompleteRead
from typing import Any
from urllib.parse import urlsplit

from rslm.errors import one_line

_RETRY_SECONDS = 0.2
_BUSY = (429, 503)


class Exchange:
    """Asks one server, each time over a connection of its own, without proxies or redirections.

    Args:
        url: http:// or https://, host and perhaps port and path.
        token: sent as a bearer token; None sends none.

    Raises:
        ValueError: the address is none.
    """

    def __init__(self, url: str, *, token: str | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"url must be http://host or https://host, got {url!r:.80}")
        self.url = url.rstrip("/")
        self._kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        self._host, self._port, self._path = parts.hostname, parts.port, parts.path.rstrip("/")
        self._headers = {"accept": "application/json", "connection": "close"}
        if token is not None:
            self._headers["authorization"] = f"Bearer {token}"

    def ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        what: str,
        seconds: float,
        max_bytes: int,
    ) -> Any:
        """The parsed JSON of an answer; a server that is busy is asked again until the deadline.

        Args:
            method: GET or POST.
            path: behind the server's address.
            body: sent as JSON.
            what: is waited for, as errors name it.
            seconds: until all of the answer must be here.
            max_bytes: that it may have.

        Raises:
            TimeoutError: it did not come in time.
            ConnectionError: the server cannot be reached, or hangs up.
            ValueError: the answer is an error, too large or no JSON.
        """
        end = time.monotonic() + seconds
        while True:
            left = max(0.001, end - time.monotonic())
            try:
                status, data = self._once(method, path, body, left, max_bytes)
            except TimeoutError:
                raise self._late(what, seconds) from None
            except (OSError, HTTPException) as error:
                reason = one_line(str(error)) or type(error).__name__
                raise ConnectionError(f"{self.url} did not give {what}: {reason:.200}") from None
            if status not in _BUSY:
                break
            if time.monotonic() + _RETRY_SECONDS > end:
                raise self._late(f"{what} ({_message(data)})", seconds)
            time.sleep(_RETRY_SECONDS)
        if len(data) > max_bytes:
            raise ValueError(f"{self.url} must give {what} in at most {max_bytes} bytes")
        if status != 200:
            raise ValueError(
                f"{self.url} must give {what}, and gave status {status}: {_message(data)}"
            )
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            raise ValueError(f"{self.url} must give {what} as JSON, got {data[:80]!r}") from None

    def _late(self, what: str, seconds: float) -> TimeoutError:
        return TimeoutError(f"{self.url} must give {what} within {seconds:g} seconds")

    def _once(
        self, method: str, path: str, body: object, seconds: float, max_bytes: int
    ) -> tuple[int, bytes]:
        connection = self._kind(self._host, self._port, timeout=seconds)
        is_late = threading.Event()
        opened: list[socket.socket] = []

        def cut() -> None:
            # A socket's timeout is for each piece: one that sends a byte now and then has none.
            is_late.set()
            for each in opened:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(seconds, cut)
        timer.daemon = True
        timer.start()
        try:
            connection.connect()
            opened.append(connection.sock)
            if is_late.is_set():
                raise TimeoutError
            headers = self._headers | ({} if body is None else {"content-type": "application/json"})
            sent = None if body is None else json.dumps(body).encode()
            connection.request(method, self._path + path, sent, headers)
            response = connection.getresponse()
            data = response.read(max_bytes + 1)
            if response.length and len(data) <= max_bytes:
                raise IncompleteRead(data, response.length)
            answer = response.status, data
        except (OSError, HTTPException):
            if is_late.is_set():
                raise TimeoutError from None
            raise
        finally:
            timer.cancel()
            connection.close()
        if is_late.is_set():
            raise TimeoutError
        return answer


def _message(data: bytes) -> str:
    """What an answer that is an error says."""
    text = data[:2000].decode("utf-8", "replace")
    with contextlib.suppress(ValueError, RecursionError, KeyError, TypeError):
        text = str(json.loads(text)["error"]["message"])
    return one_line(text)[:300]
