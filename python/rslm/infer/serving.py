"""Serving: the pool, the routes, the guard and the socket, put together."""

import asyncio
import socket
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rslm.infer.http_guard import LOOPBACK_NAMES, Access, Guard, Limits
from rslm.infer.http_server import ends_at_sigterm, serve_app
from rslm.infer.model_pool import ModelPool
from rslm.infer.server import Server
from rslm.infer.server_metrics import ServerMetrics
from rslm.infer.service import EngineService, LoadedModel

if TYPE_CHECKING:
    from uvicorn import Server as HttpServer

    from rslm.infer.engine import EngineOptions

MIN_TOKEN_LENGTH = 16


@dataclass(frozen=True, kw_only=True)
class ServingOptions:
    """Where and how to serve.

    Attributes:
        host: address to listen at.
        port: 0 takes any that is free.
        allowed_hosts: names, beside those of this machine, by which the server may be called.
        token: what API requests must carry; None asks for nothing, on this machine alone.
        max_models: loaded at once.
        max_queued: requests that wait for a model, and prompts that wait for its thread.
        close_seconds: what streams have to end when the server does.

    Raises:
        ValueError: an option lies outside its range, or others could reach a server that asks
            for no token.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    allowed_hosts: tuple[str, ...] = ()
    token: str | None = field(default=None, repr=False)
    max_models: int = 1
    max_queued: int = 512
    close_seconds: float = 10.0
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        """Refuse what cannot be served, or should not."""
        if not 0 <= self.port < 65536:
            raise ValueError(f"port must be 0 to 65535, got {self.port}")
        if self.max_models < 1:
            raise ValueError(f"max_models must be at least 1, got {self.max_models}")
        if not 0 <= self.close_seconds <= 3600:
            raise ValueError(f"close_seconds must be from 0 to 3600, got {self.close_seconds}")
        if self.token is None and self.host not in LOOPBACK_NAMES:
            raise ValueError(
                f"a token must be given to serve others than this machine, got host {self.host!r}\n"
                "name a file that holds one by --token-file, or set RSLM_TOKEN"
            )
        if self.token is not None:
            check_token(self.token)

    @property
    def access(self) -> Access:
        """Who may ask."""
        is_open = self.host not in LOOPBACK_NAMES
        names = frozenset(name.lower().strip("[]") for name in (*self.allowed_hosts, self.host))
        # The name "" is that of a Host header that is none.
        return Access(hosts=names - {""}, any_address=is_open, token=self.token)


def check_token(token: str) -> None:
    """Refuses a token that a header cannot carry, or that is soon guessed.

    Raises:
        ValueError: it is one; the message does not show it.
    """
    if len(token) < MIN_TOKEN_LENGTH or not all("!" <= character <= "~" for character in token):
        raise ValueError(
            f"the token must be at least {MIN_TOKEN_LENGTH} visible ASCII characters without "
            f"blanks, got {len(token)} characters"
        )


def model_loader(device: str, options: "EngineOptions") -> Callable[[Path], LoadedModel]:
    """What loads a run or model folder for an engine of these options."""
    from rslm.infer.engine import Engine
    from rslm.infer.load import load_chat_format, load_run

    def load(path: Path) -> LoadedModel:
        model, tokenizer = load_run(path, device=device)
        return LoadedModel(
            tokenizer=tokenizer,
            chat_format=load_chat_format(path, tokenizer),
            context_length=model.config.context_length,
            block_size=options.block_size,
            make_engine=lambda: Engine(model, tokenizer, options),
        )

    return load


def serve(
    find: Callable[[], Mapping[str, Path]],
    load: Callable[[Path], LoadedModel],
    options: ServingOptions,
    *,
    on_start: Callable[[str, "HttpServer"], None],
    report: Callable[[str], None],
    log: Callable[[str], None] | None = None,
) -> None:
    """Answers requests until Ctrl-C or SIGTERM; streams that run have so long to end.

    Args:
        find: names and folders of the models.
        load: makes one ready; called in the thread that will run it.
        options: where and how.
        on_start: called with the address and the server once requests are taken.
        report: told what failed without being a client's fault.
        log: told a line for each request; None tells nobody.

    Raises:
        ValueError: the address cannot be listened at.
        KeyboardInterrupt: Ctrl-C.
        SystemExit: SIGTERM, with code 0.
    """
    with _listen(options) as listener, ends_at_sigterm():
        port = listener.getsockname()[1]
        shown = f"[{options.host}]" if ":" in options.host else options.host
        work = _serve(
            find,
            load,
            options,
            listener,
            on_start=lambda server: on_start(f"http://{shown}:{port}", server),
            report=report,
            log=log,
        )
        asyncio.run(work)


def _listen(options: ServingOptions) -> socket.socket:
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        return socket.create_server((options.host, options.port), family=family, backlog=1024)
    except OSError as error:
        raise ValueError(
            f"host and port must be free to listen at, got {options.host} and {options.port} "
            f"({error.strerror})\n--port names another one, 0 any that is free"
        ) from None


async def _serve(
    find: Callable[[], Mapping[str, Path]],
    load: Callable[[Path], LoadedModel],
    options: ServingOptions,
    listener: socket.socket,
    *,
    on_start: Callable[["HttpServer"], None],
    report: Callable[[str], None],
    log: Callable[[str], None] | None,
) -> None:
    measured = ServerMetrics()

    def make_service(path: Path) -> EngineService:
        return EngineService(
            lambda: load(path),
            max_waiting=options.max_queued,
            report=report,
            name=f"engine {path.name}",
        )

    def note_done(method: str, path: str, status: int, seconds: float) -> None:
        measured.note_request(path, status, seconds)
        if log is not None:
            log(f"{method} {path[:200]} {status} {seconds:.3f}s")

    def report_bug(error: BaseException) -> None:
        report("".join(traceback.format_exception(error)))

    def begin(server: "HttpServer") -> None:
        measured.n_connections = lambda: len(server.server_state.connections)
        on_start(server)

    pool = ModelPool(
        find, make_service, max_models=options.max_models, max_waiting=options.max_queued
    )
    app = Server(pool, options.limits, measured).app()
    await serve_app(
        Guard(app, options.access, options.limits, report=report_bug, done=note_done),
        listener,
        options.limits,
        close=lambda: pool.close(options.close_seconds),
        close_seconds=options.close_seconds,
        on_start=begin,
    )
