"""`rslm tokens verify | info | show | pack`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rslm.commands.tokenizer import File, load_tokenizer
from rslm.packing_reference import PackingPolicy
from rslm.terminal import Switch, print_fields, print_json

if TYPE_CHECKING:
    from rslm.token_file import TokenFile
    from rslm.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """Read a whole token file and check its sums, sizes, ids and document starts."""

    path: File
    """Token-file folder, or one shard."""
    tokenizer: Path | None = None
    """Also check that this tokenizer wrote it."""


def verify(options: VerifyOptions) -> None:
    """Prints one line when everything holds; otherwise FormatError says what does not."""
    token_file = open_token_file(options.path, options.tokenizer, verify=True)
    print(
        f"{options.path}: good, {len(token_file):,} tokens "
        f"in {token_file.n_documents:,} documents, fingerprint {token_file.fingerprint}"
    )


def open_token_file(path: Path, tokenizer: Path | None, *, verify: bool = False) -> "TokenFile":
    """Opens a token file, and holds it against a tokenizer when one is named."""
    from rslm.token_file import TokenFile

    written_by = None if tokenizer is None else load_tokenizer(tokenizer)
    return TokenFile.open(path, tokenizer=written_by, verify=verify)


@dataclass(frozen=True, kw_only=True)
class InfoOptions:
    """Describe a token file."""

    path: File
    """Token-file folder, or one shard."""
    json: Switch = False
    """Print JSON."""


def info(options: InfoOptions) -> None:
    """Prints counts, width, hash and fingerprint; reads headers and the manifest only."""
    token_file = open_token_file(options.path, None)
    n_bytes = token_file.n_utf8_bytes
    record = {
        "n_tokens": len(token_file),
        "n_documents": token_file.n_documents,
        "n_utf8_bytes": n_bytes,
        "bytes_per_token": n_bytes / len(token_file) if n_bytes and len(token_file) else None,
        "n_shards": len(token_file.shards),
        "dtype": str(token_file.dtype),
        "vocab_size": token_file.vocab_size,
        "end_of_text": token_file.end_of_text,
        "tokenizer_sha256": token_file.tokenizer_sha256,
        "fingerprint": token_file.fingerprint,
    }
    if options.json:
        print_json(record)
    else:
        print_fields(record)


@dataclass(frozen=True, kw_only=True)
class ShowOptions:
    """Show a document, or a range of tokens, as text and as ids."""

    path: File
    """Token-file folder, or one shard."""
    document: int | None = None
    """Number of the document, from 0; without it and --start, document 0."""
    start: int | None = None
    """First token of a range."""
    count: int = 256
    """Tokens in the range."""
    tokenizer: Path | None = None
    """Tokenizer file; by default the copy inside the token file."""
    json: Switch = False
    """Print JSON."""


def show(options: ShowOptions) -> None:
    """Prints where the tokens lie, their text and their ids."""
    token_file = open_token_file(options.path, options.tokenizer)
    tokenizer = tokenizer_of(token_file, options.tokenizer)
    start, stop = span(token_file, options)
    token_ids = token_file[start:stop].tolist()
    text = tokenizer.decode(token_ids)
    if options.json:
        print_json({"start": start, "stop": stop, "text": text, "token_ids": token_ids})
        return
    print(f"tokens {start:,} to {stop:,} of {len(token_file):,}\n\n{text}\n")
    print(*token_ids)


def span(token_file: "TokenFile", options: ShowOptions) -> tuple[int, int]:
    """The token range that the options name.

    Raises:
        ValueError: it does not lie in the file, or both kinds of range are given.
    """
    if options.document is not None and options.start is not None:
        raise ValueError("give document or start, not both")
    if options.start is None:
        return document_span(token_file, options.document or 0)
    if options.count < 1:
        raise ValueError(f"count must be at least 1, got {options.count}")
    if not 0 <= options.start < len(token_file):
        raise ValueError(f"start must be in 0..{len(token_file) - 1}, got {options.start}")
    return options.start, min(options.start + options.count, len(token_file))


def document_span(token_file: "TokenFile", document: int) -> tuple[int, int]:
    """The token range of a document."""
    if not token_file.n_documents:
        raise ValueError("the token file tells no documents apart: name a range with --start")
    if not 0 <= document < token_file.n_documents:
        raise ValueError(f"document must be in 0..{token_file.n_documents - 1}, got {document}")
    starts = token_file.document_starts
    after = document + 1
    stop = int(starts[after]) if after < token_file.n_documents else len(token_file)
    return int(starts[document]), stop


def tokenizer_of(token_file: "TokenFile", path: Path | None) -> "Tokenizer":
    """The tokenizer at `path`, or the one that the token file carries.

    Raises:
        ValueError: no path is given and the file carries none.
    """
    if path is not None:
        return load_tokenizer(path)
    if token_file.tokenizer_json is None:
        raise ValueError("this token file carries no tokenizer: name one with --tokenizer")
    from rslm.tokenizer import Tokenizer

    return Tokenizer.from_json(token_file.tokenizer_json)


@dataclass(frozen=True, kw_only=True)
class PackOptions:
    """Plan how documents share rows, and tell what the rows hold and what is lost."""

    path: File
    """Token-file folder, or one shard."""
    context_length: int
    """Places of a row, as in the model that is to be trained."""
    policy: PackingPolicy = "obfd"
    """How documents are packed; a plan of bos-bestfit or obfd is kept for training."""
    json: Switch = False
    """Print JSON."""


def pack(options: PackOptions) -> None:
    """Prints the counts of one epoch, with the plan made and kept beside the token file."""
    from rslm.packing import open_plan, packing_stats, plan_path, require_documents

    if options.context_length < 1:
        raise ValueError(f"context_length must be at least 1, got {options.context_length}")
    token_file = open_token_file(options.path, None)
    plan = path = None
    if options.policy == "chunk":
        require_documents(token_file, "packing chunk")
    else:
        plan = open_plan(token_file, options.context_length, options.policy)
        path = plan_path(token_file, options.context_length, options.policy)
    stats = packing_stats(token_file, options.context_length, plan)
    plan_file = str(path) if path is not None and path.exists() else None
    record = {"policy": options.policy, **stats._asdict(), "plan": plan_file}
    if options.json:
        print_json(record)
    else:
        print_fields(record)
