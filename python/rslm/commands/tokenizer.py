"""`rslm tokenizer train | count-pretokens | encode | decode | info | export | compare`."""

import codecs
import re
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from rslm.commands.inputs import Files, InputFlags
from rslm.files import END_OF_TEXT
from rslm.terminal import Switch, note, print_fields, print_json, print_table, progress_bar

if TYPE_CHECKING:
    from rslm.tokenizer import Tokenizer

File = Annotated[Path, tyro.conf.Positional]

BLOCK_BYTES = 1 << 16


def load_tokenizer(path: Path, pattern: str | None = None) -> "Tokenizer":
    """Reads a tokenizer in any of the formats that `Tokenizer.load` knows."""
    from rslm.tokenizer import Tokenizer

    return Tokenizer.load(path, pattern=pattern)


def refuse_existing(path: Path) -> None:
    """Refuses to write over what is there, before any work is done.

    Raises:
        FileExistsError: there is something at `path` already.
    """
    if path.exists():
        raise FileExistsError(f"out must not exist yet, but {path} does")


@dataclass(frozen=True, kw_only=True)
class TrainOptions(InputFlags):
    """Train a byte-level BPE tokenizer on text files, or on counts of them, and save it."""

    files: Files = ()
    """UTF-8 text, .jsonl or .parquet files; the first two may be packed as .gz or .zst."""
    from_counts: tuple[Path, ...] = ()
    """Instead of text: files that count-pretokens wrote; their counts are summed."""
    out: Path
    """JSON file to write."""
    vocab_size: int
    """Number of token ids, special tokens and the 256 bytes included."""
    special_tokens: tuple[str, ...] = (END_OF_TEXT,)
    """Strings that are never split and never counted; none: --special-tokens."""
    pattern: str | None = None
    """Pre-token pattern: gpt2, cl100k, o200k, or a regular expression; by default that of
    --extend, else gpt2."""
    tie_break: Literal["bytes", "hf", "first_id"] = "bytes"
    """Which of equally frequent pairs is merged first."""
    unit: Literal["document", "line"] = "document"
    """What is split into pre-tokens at a time: a whole document or each line."""
    errors: Literal["strict", "replace", "raw"] = "strict"
    """What to do about bytes that are not UTF-8."""
    min_frequency: int = 0
    """End before pairs that are rarer than this."""
    max_token_length: int | None = None
    """Longest token in bytes."""
    extend: Path | None = None
    """Tokenizer file to go on from: its ids and merges stay, new ones follow."""
    n_threads: int | None = None
    """Threads; by default one per core."""
    memory_limit: str | None = None
    """Memory that training may take, as 300MB or 2GiB; counts that do not fit go to disk."""
    spill_dir: Path | None = None
    """Folder for these; by default the system's folder for temporary files."""


def train(options: TrainOptions) -> None:
    """Trains and saves; what was made is said on stderr."""
    from rslm.tokenizer import Tokenizer

    refuse_existing(options.out)
    if options.from_counts and options.files:
        raise ValueError("exactly one of files and --from-counts must be given, got both")
    sources = require_files(options.from_counts or options.files)
    started = time.perf_counter()
    tokenizer = Tokenizer.train(
        None if options.from_counts else sources,
        options.vocab_size,
        list(options.special_tokens),
        counts=sources if options.from_counts else None,
        pattern=options.pattern,
        tie_break=options.tie_break,
        unit=options.unit,
        errors=options.errors,
        min_frequency=options.min_frequency,
        max_token_length=options.max_token_length,
        extend=None if options.extend is None else load_tokenizer(options.extend, None),
        n_threads=options.n_threads,
        memory_limit=parse_bytes(options.memory_limit),
        spill_dir=options.spill_dir,
        progress=progress_bar(),
        **options.inputs(),
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(options.out)
    n_bytes = sum(file.stat().st_size for file in sources)
    note(
        f"{options.out}: {tokenizer.vocab_size:,} tokens from {n_bytes / 1e6:,.1f} MB "
        f"in {time.perf_counter() - started:.1f} s"
    )


@dataclass(frozen=True, kw_only=True)
class CountPretokensOptions(InputFlags):
    """Count the pretokens of text files: all that training needs of them, in one small file."""

    files: Files
    """UTF-8 text, .jsonl or .parquet files; the first two may be packed as .gz or .zst."""
    out: Path
    """File to write."""
    special_tokens: tuple[str, ...] = (END_OF_TEXT,)
    """Strings that are never split and never counted; none: --special-tokens."""
    pattern: str = "gpt2"
    """Pre-token pattern: gpt2, cl100k, o200k, or a regular expression."""
    unit: Literal["document", "line"] = "document"
    """What is split into pre-tokens at a time: a whole document or each line."""
    errors: Literal["strict", "replace", "raw"] = "strict"
    """What to do about bytes that are not UTF-8."""
    n_threads: int | None = None
    """Threads; by default one per core."""
    memory_limit: str | None = None
    """Memory that counting may take, as 300MB or 2GiB; counts that do not fit go to disk."""
    spill_dir: Path | None = None
    """Folder for these; by default the system's folder for temporary files."""


def count_pretokens(options: CountPretokensOptions) -> None:
    """Counts and saves; what was counted is said on stderr."""
    from rslm import tokenizer

    refuse_existing(options.out)
    files = require_files(options.files)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    total = tokenizer.count_pretokens(
        files,
        options.out,
        list(options.special_tokens),
        pattern=options.pattern,
        unit=options.unit,
        errors=options.errors,
        n_threads=options.n_threads,
        memory_limit=parse_bytes(options.memory_limit),
        spill_dir=options.spill_dir,
        progress=progress_bar(),
        **options.inputs(),
    )
    note(
        f"{options.out}: {total['n_entries']:,} different of {total['n_pretokens']:,} pretokens "
        f"from {total['n_bytes'] / 1e6:,.1f} MB"
    )


def parse_bytes(text: str | None, name: str = "memory_limit") -> int | None:
    """A number of bytes, perhaps with a unit: 300MB is 300 x 10^6, 2GiB is 2 x 2^30.

    Raises:
        ValueError: it is none.
    """
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([kmgt])(i?)b?|b)?", text.strip(), re.IGNORECASE)
    if not found or not found[1].isascii():
        raise ValueError(f"{name} must be a size as 300MB or 2GiB, got {text!r}")
    number, prefix, binary = found.groups()
    exponent = "kmgt".index(prefix.lower()) + 1 if prefix else 0
    return int(float(number) * (1024 if binary else 1000) ** exponent)


def require_files(files: Iterable[Path]) -> list[Path]:
    """The files as a list.

    Raises:
        ValueError: there is none.
        FileNotFoundError: one is missing.
        IsADirectoryError: one is a folder.
    """
    files = list(files)
    if not files:
        raise ValueError("files must name at least one text file")
    for file in files:
        if file.is_dir():
            raise IsADirectoryError(f"files must be text files, but {file} is a folder")
        if not file.exists():
            raise FileNotFoundError(f"no such file: {file}")
        if not file.is_file():
            raise ValueError(f"files must be regular files, but {file} is a pipe or device")
    return files


@dataclass(frozen=True, kw_only=True)
class EncodeOptions(InputFlags):
    """Encode text files into a token file, or stdin into ids on stdout."""

    tokenizer: File
    """Tokenizer file."""
    files: Files = ()
    """UTF-8 text, documents parted by <|endoftext|>, .jsonl or .parquet files, the first two
    perhaps packed as .gz or .zst; without files, stdin is read."""
    out: Path | None = None
    """Folder to write the token file to."""
    pattern: str | None = None
    """Pre-token pattern of a .tiktoken file, which carries none."""
    errors: Literal["strict", "replace", "raw"] = "strict"
    """What to do about bytes that are not UTF-8."""
    end_of_text: str = END_OF_TEXT
    """Special token that ends documents; an empty string: none is added."""
    shard_tokens: int = 1 << 27
    """Tokens after which the token file goes on in a new shard."""
    resume: Switch = False
    """Go on with the shards that a stopped run finished in --out, whose options were the same."""
    n_threads: int | None = None
    """Threads; by default one per core."""


def encode(options: EncodeOptions) -> None:
    """Writes a token-file folder, or prints ids."""
    if (options.out is None) != (not options.files):
        raise ValueError("files and --out belong together: give both, or neither and pipe text in")
    tokenizer = load_tokenizer(options.tokenizer, options.pattern)
    if options.out is None:
        encode_stdin(tokenizer, options.errors)
        return
    started = time.perf_counter()
    token_file = tokenizer.encode_files(
        require_files(options.files),
        options.out,
        shard_tokens=options.shard_tokens,
        end_of_text=options.end_of_text or None,
        errors=options.errors,
        n_threads=options.n_threads,
        progress=progress_bar(),
        resume=options.resume,
        **options.inputs(),
    )
    seconds = time.perf_counter() - started
    n_bytes = token_file.n_utf8_bytes or 0
    note(
        f"{options.out}: {len(token_file):,} tokens in {token_file.n_documents:,} documents, "
        f"{n_bytes / max(len(token_file), 1):.2f} bytes per token, "
        f"{n_bytes / 1e6 / seconds:.1f} MB/s"
    )


def encode_stdin(tokenizer: "Tokenizer", errors: str) -> None:
    """Prints the ids of stdin's text on one line, in constant memory."""
    if errors == "raw":
        raise ValueError("errors must be strict or replace for text from stdin, got raw")
    separator = ""
    for token_id in tokenizer.encode_iterable(stdin_text(errors)):
        sys.stdout.write(f"{separator}{token_id}")
        separator = " "
    sys.stdout.write("\n")


def stdin_text(errors: str) -> Iterator[str]:
    """Stdin's text in blocks, line endings as they are."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors)
    n_bytes = 0
    while True:
        block = sys.stdin.buffer.read(BLOCK_BYTES)
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            raise ValueError(
                f"stdin must be UTF-8, got an invalid byte near offset {n_bytes + error.start}"
            ) from error
        n_bytes += len(block)
        if text:
            yield text
        if not block:
            return


@dataclass(frozen=True, kw_only=True)
class DecodeOptions:
    """Decode ids from stdin (parted by blanks, commas or new lines) into text on stdout."""

    tokenizer: File
    """Tokenizer file."""
    pattern: str | None = None
    """Pre-token pattern of a .tiktoken file, which carries none."""


def decode(options: DecodeOptions) -> None:
    """Prints exactly the bytes of the ids."""
    tokenizer = load_tokenizer(options.tokenizer, options.pattern)
    for line in sys.stdin:
        sys.stdout.buffer.write(tokenizer.decode_bytes(parse_token_ids(line)))
    sys.stdout.buffer.flush()


def parse_token_ids(text: str) -> list[int]:
    """Reads ids parted by blanks or commas; the brackets of a Python list may stay.

    Raises:
        ValueError: something else stands between them, or an id is negative.
    """
    token_ids = []
    for word in re.split(r"[\s,\[\]]+", text):
        if word and not (word.isascii() and word.isdigit()):
            raise ValueError(f"token ids must be whole numbers from 0 up, got {word!r}")
        if word:
            token_ids.append(int(word))
    return token_ids


@dataclass(frozen=True, kw_only=True)
class InfoOptions:
    """Describe a tokenizer."""

    tokenizer: File
    """Tokenizer file."""
    pattern: str | None = None
    """Pre-token pattern of a .tiktoken file, which carries none."""
    json: Switch = False
    """Print JSON."""


def info(options: InfoOptions) -> None:
    """Prints size, pattern, special tokens, hash and the longest tokens."""
    tokenizer = load_tokenizer(options.tokenizer, options.pattern)
    special_ids = set(tokenizer.special_tokens.values())
    ordinary = [v for token_id, v in tokenizer.vocab.items() if token_id not in special_ids]
    longest = sorted(ordinary, key=lambda token: (-len(token), token))[:5]
    longest_tokens = [token.decode("utf-8", errors="replace") for token in longest]
    record = {
        "vocab_size": tokenizer.vocab_size,
        "n_merges": len(tokenizer.merges),
        "pattern": tokenizer.pattern,
        "special_tokens": tokenizer.special_tokens,
        "end_of_text": tokenizer.end_of_text,
        "longest_tokens": longest_tokens,
        "sha256": tokenizer.sha256,
    }
    if options.json:
        print_json(record)
        return
    shown = ", ".join(f"{name} = {i}" for name, i in tokenizer.special_tokens.items())
    longest_shown = " ".join(map(repr, longest_tokens))
    print_fields(record | {"special_tokens": shown or None, "longest_tokens": longest_shown})


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Write a tokenizer in another format."""

    tokenizer: File
    """Tokenizer file."""
    format: Literal["rslm", "hf", "gpt2", "tiktoken"]
    """hf is a tokenizer.json; gpt2 is a folder with vocab.json and merges.txt."""
    out: Path
    """File to write; for gpt2, a folder."""
    pattern: str | None = None
    """Pre-token pattern of a .tiktoken file, which carries none."""


def export(options: ExportOptions) -> None:
    """Writes what the format can hold; what it cannot is refused or said."""
    refuse_existing(options.out)
    tokenizer = load_tokenizer(options.tokenizer, options.pattern)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(options.out, options.format)
    note(f"{options.out}: {tokenizer.vocab_size:,} tokens as {options.format}")
    if options.format in ("gpt2", "tiktoken") and tokenizer.special_tokens:
        shown = ", ".join(f"{name} = {i}" for name, i in tokenizer.special_tokens.items())
        note(f"{options.format} does not say which tokens are special: {shown}")


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Compare tokenizers on a text: the more bytes per token, the shorter the sequences."""

    tokenizers: Files
    """Tokenizer files."""
    text: tuple[Path, ...]
    """UTF-8 text files."""
    pattern: str | None = None
    """Pre-token pattern of .tiktoken files, which carry none."""
    json: Switch = False
    """Print JSON."""


def compare(options: CompareOptions) -> None:
    """Prints vocabulary size, tokens and bytes per token of each tokenizer."""
    if not options.tokenizers:
        raise ValueError("tokenizers must name at least one tokenizer file")
    texts = [read_text(file) for file in require_files(options.text)]
    n_bytes = sum(len(text.encode()) for text in texts)
    if not n_bytes:
        raise ValueError("text must hold at least one character, got empty files")
    records = [
        {
            "tokenizer": str(path),
            "vocab_size": tokenizer.vocab_size,
            "n_tokens": (n_tokens := sum(len(tokenizer.encode(text)) for text in texts)),
            "bytes_per_token": n_bytes / n_tokens,
        }
        for path in options.tokenizers
        for tokenizer in [load_tokenizer(path, options.pattern if is_tiktoken(path) else None)]
    ]
    if options.json:
        print_json({"n_bytes": n_bytes, "tokenizers": records})
        return
    print_table(list(records[0]), [list(record.values()) for record in records])


def is_tiktoken(path: Path) -> bool:
    """Whether the file is of the one format that takes a pattern from outside."""
    return path.suffix == ".tiktoken"


def read_text(path: Path) -> str:
    """A file's text, line endings as they are.

    Raises:
        ValueError: the file is not UTF-8.
    """
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be UTF-8: invalid byte at offset {error.start}") from error
