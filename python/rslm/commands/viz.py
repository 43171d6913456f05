"""`rslm viz logprobs`."""

import codecs
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from rslm.terminal import Switch, note, print_json

BYTES_PER_TOKEN = 64
"""So much of a file is read for each token that is wanted, at most."""


@dataclass(frozen=True, kw_only=True)
class LogprobsOptions:
    """Show how probable a model finds each token of a text."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run or model folder."""
    text: Path | None = None
    """File of text to score."""
    prompt: str | None = None
    """Text to score instead."""
    out: Path | None = None
    """HTML file to write; logprobs.html unless given, none with --json alone."""
    n_top: int = 5
    """Alternatives to keep of each token."""
    max_tokens: int = 10_000
    """Tokens from the begin of the text that are scored."""
    special_tokens: Switch = False
    """Recognise special tokens in the text, where they are text else."""
    device: str = "auto"
    """cpu, cuda, mps; auto takes a GPU when there is one."""
    json: Switch = False
    """Print everything as JSON."""


def logprobs(options: LogprobsOptions) -> None:
    """Writes the page, or prints JSON."""
    if (options.text is None) == (options.prompt is None):
        raise ValueError("one of text and prompt must be given")
    if options.out == Path("-"):
        raise ValueError("out must name a file, for a page is no text to read; --json prints")
    if not 1 <= options.n_top <= 100:
        raise ValueError(f"n_top must be from 1 to 100, got {options.n_top}")
    if not 1 <= options.max_tokens <= 1_000_000:
        raise ValueError(f"max_tokens must be from 1 to 1000000, got {options.max_tokens}")
    from rslm.evaluate.text_scores import score_text
    from rslm.evaluate.text_scores_page import write_page
    from rslm.infer.load import load_run

    text, is_whole = text_of(options)
    model, tokenizer = load_run(options.run, device=options.device)
    encode = tokenizer.encode if options.special_tokens else tokenizer.encode_ordinary
    token_ids = encode(text)
    kept = token_ids[: options.max_tokens]
    if len(kept) < len(token_ids) or not is_whole:
        note(f"scored the first {len(kept):,} tokens; --max-tokens takes more")
    scores = score_text(model, tokenizer, kept, n_top=options.n_top)
    if options.json:
        print_json(scores.record())
    if options.out is not None or not options.json:
        out = options.out or Path("logprobs.html")
        text_name = "Prompt" if options.text is None else options.text.name
        model_name = options.run.resolve().name
        n_bytes = write_page(scores, out, text_name=text_name, model_name=model_name)
        note(f"wrote {out}: {n_bytes / 1e6:.1f} MB")


def text_of(options: LogprobsOptions) -> tuple[str, bool]:
    """The text, and whether it is all of it: of a large file only as much as can be needed."""
    if options.text is None:
        assert options.prompt is not None
        return options.prompt, True
    limit = BYTES_PER_TOKEN * options.max_tokens
    with options.text.open("rb") as file:
        data = file.read(limit + 1)
    is_whole = len(data) <= limit
    # A file that is cut may be cut within a character.
    decoder = codecs.getincrementaldecoder("utf-8")()
    return decoder.decode(data[:limit], final=is_whole), is_whole
