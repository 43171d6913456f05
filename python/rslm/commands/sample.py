"""`rslm sample`."""

import secrets
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from rslm.commands.tokenizer import File
from rslm.process import harmless
from rslm.terminal import Switch, note

if TYPE_CHECKING:
    from rslm.infer.engine import Engine
    from rslm.infer.parameters import Chunk
    from rslm.model import Transformer
    from rslm.tokenizer import StreamDecoder, Tokenizer

DEFAULT_TOKENS = 256


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """Continue a prompt with the newest model of a run folder."""

    run: File
    """Run or model folder."""
    prompt: str = ""
    """Text to continue; empty: a new document."""
    max_new_tokens: int | None = None
    """Tokens at most; by default 256, or what the model's context has room for. Beyond its
    context a model is asked about the last tokens alone, which is slow."""
    temperature: float = 0.8
    """Below 1 bolder where the model is sure; 0 takes the likeliest token each time."""
    top_k: int | None = None
    """Draw from the k likeliest tokens only."""
    top_p: float | None = None
    """Draw from the likeliest tokens that together have this probability."""
    stop: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """End before this string; may be given several times."""
    n_samples: int = 1
    """Continuations to draw, one after the other, with consecutive seeds."""
    n: int = 1
    """Continuations of each seed, drawn together."""
    seed: int | None = None
    """Seed; a new one each time unless given."""
    exact: Switch = False
    """Draw by the log-probabilities of the full forward, bit for bit."""
    int8: Switch = False
    """Keep the weights of matrices in 8 bits."""
    device: str = "auto"
    """cpu, cuda, mps; auto takes a GPU when there is one."""

    def __post_init__(self) -> None:
        """Refuse to draw nothing."""
        for name, value in (("n_samples", self.n_samples), ("n", self.n)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.seed is not None and not -(2**63) <= self.seed <= 2**64 - self.n_samples:
            raise ValueError(
                f"seed, and those that follow it, must lie in [-2^63, 2^64), got {self.seed} "
                f"for {self.n_samples} samples"
            )


def sample(options: SampleOptions) -> None:
    """Prints prompt and continuation as they are drawn; on a terminal, how fast."""
    from rslm.infer.load import load_run

    model, tokenizer = load_run(options.run, device=options.device)
    end = tokenizer.end_of_text
    token_ids = tokenizer.encode(options.prompt) or [0 if end is None else end]
    room = model.config.context_length - len(token_ids)
    n_new = options.max_new_tokens
    if n_new is None:
        n_new = min(DEFAULT_TOKENS, room) if room > 0 else DEFAULT_TOKENS
    first_seed = secrets.randbits(32) if options.seed is None else options.seed
    seeds = range(first_seed, first_seed + options.n_samples)
    if n_new > room:
        _sample_beyond_context(options, model, tokenizer, token_ids, n_new, seeds)
        return
    engine = make_engine(model, tokenizer, exact=options.exact, int8=options.int8, n=options.n)
    for seed in seeds:
        _sample_by_engine(options, engine, token_ids, n_new, seed)


def make_engine(
    model: "Transformer", tokenizer: "Tokenizer", *, exact: bool, int8: bool, n: int = 1
) -> "Engine":
    """An engine for one person's prompts, with room for `n` continuations."""
    from rslm.infer.engine import Engine, EngineOptions

    quantize: Literal["int8"] | None = "int8" if int8 else None
    options = EngineOptions(
        exact=exact, quantize=quantize, max_sequences=min(n, 64), max_queued=max(n, 1)
    )
    return Engine(model, tokenizer, options)


def _sample_by_engine(
    options: SampleOptions, engine: "Engine", token_ids: list[int], n_new: int, seed: int
) -> None:
    from rslm.infer.parameters import SamplingParameters

    parameters = SamplingParameters(
        max_new_tokens=n_new,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        stop=options.stop,
        seed=seed,
        n=options.n,
    )
    speed = Speed()
    for i, pieces in enumerate(
        in_order(speed.watch(engine.stream(token_ids, parameters)), options.n)
    ):
        _print(options.prompt, pieces)
        if i == options.n - 1:
            speed.tell(f"seed {seed}")


def in_order(chunks: Iterable["Chunk"], n: int) -> Iterator[Iterator[str]]:
    """The texts of `n` continuations that are drawn together: each in pieces, one after another.

    Those whose turn has not come wait in memory.
    """
    chunks = iter(chunks)
    held: list[list[str]] = [[] for _ in range(n)]
    is_whole = [False] * n

    def pieces(index: int) -> Iterator[str]:
        yield from held[index]
        while not is_whole[index]:
            chunk = next(chunks)
            is_whole[chunk.index] = chunk.completion is not None
            if chunk.index == index:
                yield chunk.text
            else:
                held[chunk.index].append(chunk.text)

    for index in range(n):
        yield pieces(index)


def _sample_beyond_context(
    options: SampleOptions,
    model: "Transformer",
    tokenizer: "Tokenizer",
    token_ids: list[int],
    n_new: int,
    seeds: range,
) -> None:
    """Draws more than the context holds, which the engine does not: it keeps every position."""
    from rslm.infer.load import end_ids
    from rslm.infer.sampler import decode_until, generate

    if options.exact or options.int8 or options.n > 1:
        raise ValueError(
            f"exact, int8 and n need prompt and max_new_tokens within the model's context of "
            f"{model.config.context_length} tokens, got {len(token_ids)} and {n_new}"
        )
    for seed in seeds:
        new_token_ids = generate(
            model,
            token_ids,
            max_new_tokens=n_new,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            stop_token_ids=end_ids(model, tokenizer),
            seed=seed,
        )
        speed = Speed()
        decoder: StreamDecoder = tokenizer.stream_decoder()
        pieces = decode_until(speed.watch_ids(new_token_ids), decoder, options.stop)
        _print(options.prompt, pieces)
        speed.tell(f"seed {seed}")


def _print(prompt: str, pieces: Iterable[str]) -> None:
    is_terminal = sys.stdout.isatty()
    sys.stdout.write(prompt)
    for piece in pieces:
        sys.stdout.write(harmless(piece) if is_terminal else piece)
        sys.stdout.flush()
    sys.stdout.write("\n")


class Speed:
    """How fast tokens come: the time to the first, and the rate of all."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._first: float | None = None
        self._last = self._started
        self._n_tokens = 0

    def watch(self, chunks: Iterable["Chunk"]) -> Iterator["Chunk"]:
        """The chunks, whose tokens are counted as they pass."""
        for chunk in chunks:
            self._note(len(chunk.token_ids))
            yield chunk

    def watch_ids(self, token_ids: Iterable[int]) -> Iterator[int]:
        """The ids, counted as they pass."""
        for token_id in token_ids:
            self._note(1)
            yield token_id

    def tell(self, head: str) -> None:
        """Says it on a terminal, where somebody waits."""
        if not sys.stderr.isatty():
            return
        seconds = self._last - self._started
        if self._first is None or seconds <= 0:
            note(f"({head}: no tokens)")
            return
        note(
            f"({head}: {self._n_tokens:,} tokens, the first after {self._first:.3f} s, "
            f"{self._n_tokens / seconds:,.1f} tokens/s)"
        )

    def _note(self, n_tokens: int) -> None:
        if n_tokens == 0:
            return
        self._last = time.perf_counter()
        self._n_tokens += n_tokens
        if self._first is None:
            self._first = self._last - self._started
