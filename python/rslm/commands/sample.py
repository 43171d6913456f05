"""`rslm sample`."""

import secrets
import sys
from dataclasses import dataclass
from typing import Annotated

import tyro

from rslm.commands.tokenizer import File
from rslm.terminal import note


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """Continue a prompt with the newest model of a run folder."""

    run: File
    """Run folder."""
    prompt: str = ""
    """Text to continue; empty: a new document."""
    max_new_tokens: int = 256
    """Tokens at most."""
    temperature: float = 0.8
    """Below 1 bolder where the model is sure; 0 takes the likeliest token each time."""
    top_k: int | None = None
    """Draw from the k likeliest tokens only."""
    top_p: float | None = None
    """Draw from the likeliest tokens that together have this probability."""
    stop: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """End before this string; may be given several times."""
    n_samples: int = 1
    """Continuations to draw, with consecutive seeds."""
    seed: int | None = None
    """Seed; a new one each time unless given."""
    device: str = "auto"
    """cpu, cuda, mps; auto takes a GPU when there is one."""


def sample(options: SampleOptions) -> None:
    """Prints prompt and continuation as they are drawn."""
    if options.n_samples < 1:
        raise ValueError(f"n_samples must be at least 1, got {options.n_samples}")
    from rslm.infer.load import end_ids, load_run
    from rslm.infer.sampler import generate_text

    model, tokenizer = load_run(options.run, device=options.device)
    end = tokenizer.end_of_text
    token_ids = tokenizer.encode(options.prompt) or [0 if end is None else end]
    first_seed = secrets.randbits(32) if options.seed is None else options.seed
    for seed in range(first_seed, first_seed + options.n_samples):
        pieces = generate_text(
            model,
            token_ids,
            tokenizer.stream_decoder(),
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            stop_token_ids=end_ids(model, tokenizer),
            stop_strings=options.stop,
            seed=seed,
        )
        sys.stdout.write(options.prompt)
        for piece in pieces:
            sys.stdout.write(piece)
            sys.stdout.flush()
        sys.stdout.write("\n")
        if sys.stderr.isatty():
            note(f"(seed {seed})")
