"""What a corpus is and how it is counted: the arguments of everything that reads text.

They are checked here, once, and go to the Rust core as one `Counting`.
"""

from __future__ import annotations

import functools
import itertools
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict, Unpack

from rslm import _rslm
from rslm.errors import FormatError
from rslm.files import read_parquet
from rslm.progress import ProgressCallback, progress_callback

StrPath = str | os.PathLike[str]
Unit = Literal["document", "line"]
Errors = Literal["strict", "replace", "raw"]
Counts = StrPath | Sequence[StrPath] | Mapping[bytes, int] | Iterable[tuple[bytes, int]]

_warned_of_slowness = False


class InputOptions(TypedDict, total=False):
    """What input files are; each may be given by its name to whatever reads files.

    A file's format follows from its name: `.jsonl` and `.ndjson` hold a JSON object on each
    line, `.parquet` a table (it needs pyarrow, of the extra `data`), all others text; the
    first two kinds and text may be compressed, as `.gz` or `.zst` behind that name says.
    Each line or row is a document of its own; one without text, or a blank line, is none.
    """

    format: Literal["text", "jsonl", "parquet"] | None
    """The format of every file, whatever the names say."""
    text_field: str
    """The field of a JSON line, or the column of a table, with the text: "text"."""
    rows_hold_special_tokens: bool
    """Whether special tokens are recognised in lines and rows. By default they are ordinary
    text there: what somebody wrote on a page must not begin a document of the corpus. In
    text files they always count, for they are how those mark documents."""
    max_document_bytes: int
    """The longest line or row, or text without a place where it may be divided, that is read:
    16 MiB. It bounds the memory, whatever a compressed file unfolds to."""


class Inputs(NamedTuple):
    """`InputOptions` with every value, and who reads tables for the core."""

    format: str | None
    text_field: str
    rows_hold_special_tokens: bool
    max_document_bytes: int
    open_table: Callable[..., Any]


class Counting(NamedTuple):
    """What is counted, how, and within which limits; the core reads the fields by name."""

    paths: list[Path]
    texts: Iterable[str] | None
    special_tokens: list[str]
    pattern: str
    unit: str
    errors: str
    n_threads: int | None
    memory_limit: int | None
    spill_dir: StrPath | None
    inputs: Inputs


def count_pretokens(
    input_path: StrPath | Sequence[StrPath] | None,
    out: StrPath,
    special_tokens: Sequence[str] = (),
    *,
    texts: Iterable[str] | None = None,
    pattern: str = "gpt2",
    unit: Unit = "document",
    errors: Errors = "strict",
    n_threads: int | None = None,
    memory_limit: int | None = None,
    spill_dir: StrPath | None = None,
    progress: bool | ProgressCallback | None = None,
    **inputs: Unpack[InputOptions],
) -> dict[str, int]:
    """Writes the file of counts `out`; returns n_entries, n_pretokens and n_bytes of it.

    What training needs of a corpus, and no more: so several machines can count one
    corpus, each its part, and `train_bpe(None, ..., counts=[...])` makes of the parts what
    it makes of the whole. The same counts are the same bytes, whatever the threads and
    limits. Written beside and renamed. Arguments are those of `train_bpe`; under
    `memory_limit` any corpus can be counted.

    Raises:
        ValueError: an argument is invalid, or a file is not UTF-8 under "strict".
        FormatError: a compressed file, a JSON line or a table is not what it must be.
        OSError: a file cannot be read or written.
    """
    one_source(input_path=input_path, texts=texts)
    job = counting(
        input_path,
        texts,
        special_tokens,
        pattern=pattern,
        unit=unit,
        errors=errors,
        n_threads=n_threads,
        memory_limit=memory_limit,
        spill_dir=spill_dir,
        inputs=inputs,
    )
    with progress_callback(progress) as callback:
        return _rslm.count_pretokens(job, out, callback)


def read_counts(path: StrPath) -> _rslm.CountsReader:
    """An iterator of (pretoken, count) over a file of counts, ascending by bytes.

    Its `header` is a dict with pattern, special_tokens, unit, unicode_version, n_entries,
    n_pretokens and n_bytes. The checksum is checked after the last entry.

    Raises:
        FormatError: the file is corrupt, there or at a later entry.
        OSError: it cannot be read.
    """
    return _rslm.CountsReader(path)


def counting(
    input_path: StrPath | Sequence[StrPath] | None,
    texts: Iterable[str] | None,
    special_tokens: Sequence[str],
    *,
    pattern: str,
    unit: Unit,
    errors: Errors,
    n_threads: int | None,
    memory_limit: int | None,
    spill_dir: StrPath | None,
    inputs: InputOptions,
) -> Counting:
    """The arguments of `count_pretokens` as the core takes them, as far as Python checks them.

    Raises:
        ValueError: one is out of range, or `spill_dir` comes without `memory_limit`.
        TypeError: one is of another kind, or unknown.
    """
    if spill_dir is not None and memory_limit is None:
        raise ValueError(
            f"spill_dir must come with a memory_limit, got {os.fspath(spill_dir)!r} alone"
        )
    return Counting(
        paths_of(input_path),
        texts,
        strings("special_tokens", special_tokens),
        string("pattern", pattern),
        string("unit", unit),
        string("errors", errors),
        thread_count(n_threads),
        None if memory_limit is None else whole_number("memory_limit", memory_limit),
        spill_dir,
        all_inputs(inputs),
    )


def one_source(**sources: object) -> None:
    """Refuses no source of text, and several.

    Raises:
        ValueError: not exactly one is given.
        TypeError: `texts` is one str.
    """
    given = [name for name, source in sources.items() if source is not None]
    if len(given) != 1:
        raise ValueError(
            f"exactly one of {' and '.join(sources)} must be given, "
            f"got {' and '.join(given) or 'none'}"
        )
    if isinstance(sources["texts"], str):
        raise TypeError("texts must be an iterable of str, got one str")


def paths_of(paths: StrPath | Sequence[StrPath] | None) -> list[Path]:
    """One path or several as a list; None is no path.

    Raises:
        ValueError: the sequence is empty.
    """
    if paths is None:
        return []
    if isinstance(paths, (str, os.PathLike)):
        return [Path(paths)]
    if not paths:
        raise ValueError("at least one input path must be given, got none")
    return [Path(path) for path in paths]


def counts_of(counts: Counts | None) -> tuple[list[Path], Iterable[tuple[bytes, int]] | None]:
    """Counts as files or as pairs, whichever they are."""
    if counts is None:
        return [], None
    if isinstance(counts, (str, os.PathLike)):
        return [Path(counts)], None
    if isinstance(counts, Mapping):
        return [], counts.items()
    items: Iterator[Any] = iter(counts)
    first = next(items, None)
    if first is None:
        return [], ()
    items = itertools.chain([first], items)
    if isinstance(first, (str, os.PathLike)):
        return [Path(path) for path in items], None
    return [], items


def all_inputs(options: InputOptions) -> Inputs:
    """The options with their defaults.

    Raises:
        TypeError: one is unknown.
        ValueError: one is out of range.
    """
    if unknown := options.keys() - InputOptions.__annotations__.keys():
        raise TypeError(f"there is no argument {min(unknown)!r}")
    limit = options.get("max_document_bytes", 1 << 24)
    format = options.get("format")
    return Inputs(
        None if format is None else string("format", format),
        string("text_field", options.get("text_field", "text")),
        options.get("rows_hold_special_tokens", False),
        whole_number("max_document_bytes", limit),
        functools.partial(read_parquet, corrupt=FormatError),
    )


def strings(name: str, strings: Sequence[str] | None) -> list[str]:
    """A sequence of str as a list.

    Raises:
        TypeError: it is one string, whose characters nobody means, or holds something else.
        ValueError: one of them has no UTF-8.
    """
    if isinstance(strings, (str, bytes)):
        raise TypeError(f"{name} must be a sequence of str, got one {type(strings).__name__}")
    return [string(name, text) for text in strings or ()]


def string(name: str, text: str) -> str:
    """The text, which must be one that Rust can hold.

    Raises:
        TypeError: it is no str.
        ValueError: it has no UTF-8, as an argument of a command line may.
    """
    if not isinstance(text, str):
        raise TypeError(f"{name} must be str, got {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} must be UTF-8 text, got {text!r}") from None
    return text


def specials_of(
    special_tokens: Sequence[str] | Mapping[str, int] | None,
) -> list[tuple[str, int | None]]:
    """Special tokens and the ids that a mapping gives them.

    Raises:
        ValueError: such an id is out of range.
        TypeError: it is one string.
    """
    if isinstance(special_tokens, Mapping):
        for text, token_id in special_tokens.items():
            string("special_tokens", text)
            if not 0 <= token_id < 1 << 21:
                raise ValueError(
                    f"the id of the special token {text!r} must be from 0 to {(1 << 21) - 1}, "
                    f"got {token_id}"
                )
        return list(special_tokens.items())
    return [(text, None) for text in strings("special_tokens", special_tokens)]


def warn_if_slow(pattern: str) -> None:
    """Warns once per process of a pattern that only backtracking can run."""
    global _warned_of_slowness
    if _warned_of_slowness or _rslm.pattern_engine(pattern) != "backtracking":
        return
    _warned_of_slowness = True
    warnings.warn(
        f"the pattern {pattern!r} needs a backtracking engine, which is many times slower: "
        r"lookaround other than a final |\s+(?!\S)|\s+, backreferences and possessive "
        "quantifiers do",
        stacklevel=3,
    )


def check_vocabulary(
    vocab_size: int, n_specials: int, min_frequency: int, max_token_length: int | None
) -> None:
    """Refuses numbers that the core cannot hold; it checks the others itself.

    Raises:
        ValueError: one is out of range.
    """
    if not 0 <= vocab_size <= 1 << 21:
        limit = f"least {256 + n_specials}" if vocab_size < 0 else f"most {1 << 21}"
        raise ValueError(f"vocab_size must be at {limit}, got {vocab_size}")
    if not 0 <= min_frequency < 1 << 63:
        raise ValueError(f"min_frequency must be from 0 to {(1 << 63) - 1}, got {min_frequency}")
    if max_token_length is not None:
        whole_number("max_token_length", max_token_length)


def whole_number(name: str, value: int) -> int:
    """The value, which must be from 1 to 2^63 - 1.

    Raises:
        ValueError: it is not.
    """
    if not 1 <= value < 1 << 63:
        raise ValueError(f"{name} must be from 1 to {(1 << 63) - 1}, got {value}")
    return value


def thread_count(n_threads: int | None) -> int | None:
    """The number of threads, None for one per processor.

    Raises:
        ValueError: it is not from 1 to 1024.
    """
    if n_threads is not None and not 1 <= n_threads <= 1024:
        raise ValueError(f"n_threads must be from 1 to 1024, got {n_threads}")
    return n_threads
