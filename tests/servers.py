"""Servers that run in a thread of the tests, on a port of their own."""

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

from fake_engine import FakeEngine, Faults

from rslm.chat import ChatFormat
from rslm.infer.service import LoadedModel
from rslm.infer.serving import ServingOptions, serve

PATIENCE = 120.0
"""Seconds for what only an error can make late, however busy the machine is."""


@dataclass
class Running:
    """A server, its address, and what it reported."""

    url: str
    server: Any
    thread: threading.Thread
    reports: list[str] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()

    def connect(self, timeout: float = PATIENCE) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=timeout)

    def ask(
        self, method: str, path: str, body: object = None, **headers: str
    ) -> tuple[HTTPResponse, bytes]:
        """One request on a connection of its own; an object is sent as JSON."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            data = body if isinstance(body, bytes) or body is None else json.dumps(body)
            sent = {"content-type": "application/json"} if body is not None else {}
            sent |= {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, data, sent)
            response = connection.getresponse()
            return response, response.read()
        finally:
            connection.close()

    def post(self, path: str, body: object, **headers: str) -> tuple[int, Any]:
        """Status and parsed answer."""
        response, data = self.ask("POST", path, body, **headers)
        return response.status, json.loads(data)

    def get(self, path: str, **headers: str) -> tuple[int, Any]:
        response, data = self.ask("GET", path, **headers)
        return response.status, json.loads(data)

    def metrics(self) -> dict[str, float]:
        """Values by name with labels."""
        _, data = self.ask("GET", "/metrics")
        lines = [line for line in data.decode().splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


@contextlib.contextmanager
def running(
    find: Callable[[], dict[str, Path]],
    load: Callable[[Path], LoadedModel],
    **options: Any,
) -> Iterator[Running]:
    """A server that ends with the block."""
    begun = threading.Event()
    found: list[Running] = []
    reports: list[str] = []
    errors: list[BaseException] = []

    def on_start(url: str, server: Any) -> None:
        found.append(Running(url, server, thread, reports, errors))
        begun.set()

    def work() -> None:
        try:
            serve(
                find,
                load,
                ServingOptions(port=0, **options),
                on_start=on_start,
                report=reports.append,
            )
        except BaseException as error:
            errors.append(error)
        finally:
            begun.set()

    thread = threading.Thread(target=work, name="server")
    thread.start()
    begun.wait(PATIENCE)
    try:
        assert found, errors
        yield found[0]
    finally:
        if found:
            found[0].stop()
        thread.join(PATIENCE)
        assert not errors, errors


def fake_loader(
    tokenizer: Any, faults: Faults, *, context: int = 64, max_queued: int = 100
) -> Callable[[Path], LoadedModel]:
    """A loader of fake engines that share their faults."""

    def load(path: Path) -> LoadedModel:
        if faults.fail_load is not None:
            raise faults.fail_load
        return LoadedModel(
            tokenizer=tokenizer,
            chat_format=ChatFormat.of(tokenizer),
            context_length=context,
            block_size=16,
            make_engine=lambda: FakeEngine(
                tokenizer, faults, context=context, max_queued=max_queued
            ),
        )

    return load


def until(holds: Callable[[], object]) -> None:
    """Waits for what comes from another thread; the test's own timeout ends it."""
    pause = threading.Event()
    while True:
        try:
            if holds():
                return
        except KeyError:
            pass
        pause.wait(0.01)
