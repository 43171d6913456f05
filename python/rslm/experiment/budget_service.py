"""A service that trains within a budget of FLOPs, over HTTP on this machine alone.

| request | answer |
|---|---|
| POST /runs, options as an object | 201 and the run; 409 if there is one like it; 400 over budget |
| GET /runs | all runs |
| GET /runs/{id} | a run with its losses so far; 404 |
| GET /budget | FLOPs in all, charged, reserved, left |
| POST /prediction | 201; 409 when one was made |

Errors are `{"error": sentence}`. Bodies are JSON of at most 64 kB, and said to be JSON: a page in a
browser cannot send that to another origin unasked.
"""

import asyncio
import contextlib
import json
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from rslm.errors import one_line
from rslm.experiment.ledger import Ledger, RepeatedError
from rslm.experiment.queue import Queue
from rslm.process import EXIT_TERMINATED
from rslm.run_folder import Row

HOST = "127.0.0.1"
MAX_BODY_BYTES = 1 << 16

_POLL_SECONDS = 0.2
_CLOSE_SECONDS = 3
"""What requests that are under way have to end when the service does."""


class _BodyError(ValueError):
    """A body that is refused before it is read."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def make_app(ledger: Ledger) -> Starlette:
    """The service as an ASGI application; it answers requests and starts nothing."""

    async def post_run(request: Request) -> JSONResponse:
        return await _answer_post(request, ledger.submit)

    async def post_prediction(request: Request) -> JSONResponse:
        return await _answer_post(request, ledger.predict)

    async def get_runs(request: Request) -> JSONResponse:
        return JSONResponse(await run_in_threadpool(ledger.runs))

    async def get_budget(request: Request) -> JSONResponse:
        return JSONResponse(await run_in_threadpool(ledger.budget))

    async def get_run(request: Request) -> JSONResponse:
        try:
            found = await run_in_threadpool(ledger.run, request.path_params["id"])
        except KeyError:
            return _error("there is no such run", 404)
        return JSONResponse(found)

    routes = [
        Route("/runs", get_runs, methods=["GET"]),
        Route("/runs", post_run, methods=["POST"]),
        Route("/runs/{id}", get_run, methods=["GET"]),
        Route("/budget", get_budget, methods=["GET"]),
        Route("/prediction", post_prediction, methods=["POST"]),
    ]
    # A name that leads here from elsewhere does not make a page's script one of this machine.
    middleware = [Middleware(_OnlyThisHost)]
    return Starlette(
        routes=routes, middleware=middleware, exception_handlers={HTTPException: _no_route}
    )


class _OnlyThisHost:
    """Refuses requests that were sent to another name."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        host = Headers(scope=scope).get("host", "").partition(":")[0]
        app = self._app
        if host not in (HOST, "localhost"):
            app = _error(f"host must be {HOST} or localhost, got {host!r:.80}", 400)
        await app(scope, receive, send)


async def _no_route(request: Request, error: Exception) -> JSONResponse:
    """The answer where no route takes a path, or none with this method."""
    assert isinstance(error, HTTPException)
    path = f"{request.url.path!r:.80}"
    reasons = {404: f"there is no {path}", 405: f"{path} does not take {request.method:.20}"}
    message = reasons.get(error.status_code, error.detail)
    return JSONResponse({"error": message}, error.status_code, headers=error.headers)


async def _answer_post(request: Request, take: Callable[[Row], Row]) -> JSONResponse:
    try:
        made = await run_in_threadpool(take, await _body(request))
    except _BodyError as error:
        return _error(str(error), error.status)
    except RepeatedError as error:
        return JSONResponse({"error": str(error), "id": error.id}, 409)
    except (ValueError, OverflowError) as error:
        return _error(one_line(str(error)), 400)
    except ClientDisconnect:
        return _error("the client has gone", 400)
    except asyncio.CancelledError:
        # The body did not come before the service had to end.
        return _error("the service is stopping", 503)
    made.pop("options", None)
    return JSONResponse(made, 201)


def _error(message: str, status: int) -> JSONResponse:
    return JSONResponse({"error": message}, status)


async def _body(request: Request) -> Row:
    """The object that a request holds, read no further than it may be long."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    if kind != "application/json":
        raise _BodyError(f"content-type must be application/json, got {kind!r:.80}", 415)
    data = b""
    async for part in request.stream():
        data += part
        if len(data) > MAX_BODY_BYTES:
            raise _BodyError(f"a body must have at most {MAX_BODY_BYTES} bytes", 413)
    try:
        record = json.loads(data, parse_constant=_refuse_constant)
        # JSON can name halves of a character, and numbers beyond all floats, which no file or
        # answer can hold.
        json.dumps(record, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise _BodyError(f"a body must be JSON: {error}", 400) from None
    if not isinstance(record, dict):
        raise _BodyError("a body must be a JSON object", 400)
    return record


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def serve(
    ledger: Ledger,
    folder: Path,
    *,
    port: int,
    n_processes: int = 1,
    on_start: Callable[[str], None],
) -> None:
    """Answers and trains until Ctrl-C or SIGTERM; runs that are under way save and stop then.

    Args:
        ledger: the books, in `folder`.
        folder: of the runs.
        port: 0 for any that is free.
        n_processes: runs at once.
        on_start: called with the address once the folder is locked and requests are taken.

    Raises:
        OSError: the port is in use.
        BlockingIOError: another service works in the folder.
        KeyboardInterrupt: Ctrl-C.
        SystemExit: SIGTERM, with code 75.
    """
    with socket.create_server((HOST, port)) as listener:
        config = uvicorn.Config(
            make_app(ledger),
            log_level="error",
            lifespan="off",
            timeout_graceful_shutdown=_CLOSE_SECONDS,
        )
        server = uvicorn.Server(config)
        with _ends_at_sigterm(), _training(ledger, folder, n_processes, server):
            on_start(f"http://{HOST}:{listener.getsockname()[1]}")
            server.run(sockets=[listener])


@contextlib.contextmanager
def _ends_at_sigterm() -> Iterator[None]:
    """SIGTERM as an exception, which the server passes on once it has closed."""

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(EXIT_TERMINATED)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _training(
    ledger: Ledger, folder: Path, n_processes: int, server: uvicorn.Server
) -> Iterator[None]:
    """Trains in a thread beside the block; where that fails the server ends, and so does this."""
    begun, stopping, failed = threading.Event(), threading.Event(), []

    def work() -> None:
        try:
            _work(ledger, folder, n_processes, begun, stopping)
        except BaseException as error:
            failed.append(error)
            server.should_exit = True
            begun.set()

    thread = threading.Thread(target=work, name="training")
    thread.start()
    try:
        begun.wait()
        if not failed:
            yield
    finally:
        stopping.set()
        thread.join()
        if failed:
            raise failed[0]


def _work(
    ledger: Ledger,
    folder: Path,
    n_processes: int,
    begun: threading.Event,
    stopping: threading.Event,
) -> None:
    study = {"kind": "scaling", "flop_budget": ledger.flop_budget}
    with Queue(folder, ledger.take_new(), n_processes=n_processes, study=study) as queue:
        begun.set()
        while not stopping.is_set():
            for run in ledger.take_new():
                queue.add(run)
            for outcome in queue.wait(_POLL_SECONDS):
                ledger.settle(outcome)
            stopping.wait(_POLL_SECONDS)
