"""`rslm serve`."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from rslm.commands.tokenizer import File, parse_bytes
from rslm.process import printable
from rslm.terminal import Switch, note

if TYPE_CHECKING:
    from rslm.infer.engine import EngineOptions

TOKEN_VARIABLE = "RSLM_TOKEN"


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """Serve models over HTTP, as OpenAI's API, with a page to talk to them.

    The page is at the address that is printed; clients of the API add /v1 to it. A model is loaded
    when it is first asked for. Ctrl-C and SIGTERM let running answers end within --close-seconds.
    """

    run: File
    """Run or model folder, or a folder that holds several."""
    host: str = "127.0.0.1"
    """Address to listen at; others than this machine need a token."""
    port: int = 8000
    """Port; 0 takes any that is free."""
    allowed_host: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A further name by which the server may be called; may be given several times."""
    token_file: Path | None = None
    """File with the token that requests must carry; else RSLM_TOKEN is read, if it is set."""
    max_models: int = 1
    """Models in memory at once; a request for another one waits for a turn."""
    max_sequences: int = 64
    """Sequences that run at once."""
    max_queued: int = 512
    """Sequences that wait; more are answered by 503."""
    cache_memory: str | None = None
    """Memory for keys and values, as 300MB or 2GiB; by default a share of what is free."""
    exact: Switch = False
    """Log-probabilities of the full forward, bit for bit, whatever else runs."""
    int8: Switch = False
    """Keep the weights of matrices in 8 bits."""
    compile: Switch = False
    """Compile the model, which takes a while at first."""
    draft_tokens: int = 0
    """Tokens to guess ahead from the text so far; 0 guesses none. Answers stay the same."""
    max_body: str = "1MiB"
    """The longest body of a request."""
    close_seconds: float = 10.0
    """What running answers have to end when the server is stopped."""
    access_log: Switch = False
    """Print a line for each request on stderr."""
    device: str = "auto"
    """cpu, cuda, mps; auto takes a GPU when there is one."""


def serve(options: ServeOptions) -> None:
    """Prints the address and answers until it is stopped."""
    from rslm.infer.http_guard import Limits
    from rslm.infer.load import choose_device, find_models
    from rslm.infer.serving import ServingOptions, model_loader
    from rslm.infer.serving import serve as answer

    body_bytes = parse_bytes(options.max_body, "max_body")
    if not body_bytes:
        raise ValueError(f"max_body must be at least 1 byte, got {options.max_body}")
    serving = ServingOptions(
        host=options.host,
        port=options.port,
        allowed_hosts=options.allowed_host,
        token=read_token(options.token_file),
        max_models=options.max_models,
        max_queued=options.max_queued,
        close_seconds=options.close_seconds,
        limits=Limits(body_bytes=body_bytes),
    )
    engine_options = engine_options_of(options)
    choose_device(options.device)  # Now, not when somebody asks.
    models = find_models(options.run)
    if not models:
        raise FileNotFoundError(
            f"{options.run} must be or hold a run or model folder, and does not"
        )
    if len(models) > 1:
        note(f"{len(models)} models: {', '.join(list(models)[:8])}{' ...' * (len(models) > 8)}")
    answer(
        lambda: find_models(options.run),
        model_loader(options.device, engine_options),
        serving,
        on_start=lambda url, server: print(url, flush=True),
        report=note,
        log=(lambda line: note(printable(line))) if options.access_log else None,
    )


def engine_options_of(options: ServeOptions) -> "EngineOptions":
    """The options of the engine among those of the command."""
    from rslm.infer.engine import EngineOptions, PromptLookup

    if options.draft_tokens < 0:
        raise ValueError(f"draft_tokens must be at least 0, got {options.draft_tokens}")
    return EngineOptions(
        max_sequences=options.max_sequences,
        max_queued=options.max_queued,
        cache_bytes=parse_bytes(options.cache_memory, "cache_memory"),
        exact=options.exact,
        quantize="int8" if options.int8 else None,
        compile=options.compile,
        speculation=PromptLookup(n_draft=options.draft_tokens) if options.draft_tokens else None,
    )


def read_token(path: Path | None) -> str | None:
    """The token that a file holds, or the environment; None where neither has one.

    Raises:
        ValueError: the file holds none.
        OSError: it cannot be read.
    """
    if path is None:
        return os.environ.get(TOKEN_VARIABLE) or None
    with open(path, "rb") as file:
        data = file.read(4097)
    token = data.decode("utf-8", "replace").strip()
    if not token or len(data) > 4096:
        raise ValueError(f"{path} must hold a token and nothing else, got {len(data)} bytes")
    return token
