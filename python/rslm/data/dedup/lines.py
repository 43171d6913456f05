"""Lines that come more than once in a corpus, taken out of its documents.

A line is the bytes before a newline (0x0A), of which the last need not have one: so a carriage
return belongs to its line, blank lines are lines, and a last line without a newline is the same
as one with it. What is kept keeps its newline, or its lack of one.

Counts of parts of a corpus add up to those of the whole, in any order.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

KeepLines = Literal["none", "first"]
Place = tuple[str, int]
"""The id of a document, and the number of a line in it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LineCount:
    """How often a line comes, and the first of its places: by id, then by number."""

    n: int
    first: Place


def split_lines(text: bytes) -> list[bytes]:
    r"""The lines of a text with their newlines, as a binary file gives them; joined, the text.

    >>> split_lines(b"a\r\n\nb")
    [b'a\r\n', b'\n', b'b']
    """
    *lines, last = text.split(b"\n")
    return [line + b"\n" for line in lines] + ([last] if last else [])


def count_lines(name: str, lines: Iterable[bytes]) -> dict[bytes, LineCount]:
    """How often each line comes in one document.

    Args:
        name: the document's id.
        lines: with their newlines: an open binary file, or what `split_lines` gives.
    """
    counts: dict[bytes, LineCount] = {}
    for number, line in enumerate(lines):
        content = line.removesuffix(b"\n")
        known = counts.get(content, LineCount(n=0, first=(name, number)))
        counts[content] = LineCount(n=known.n + 1, first=known.first)
    return counts


def merge_line_counts(parts: Iterable[dict[bytes, LineCount]]) -> dict[bytes, LineCount]:
    """The counts of several documents, or parts of a corpus, that have no document in common."""
    merged: dict[bytes, LineCount] = {}
    for part in parts:
        for content, count in part.items():
            if content in merged:
                known = merged[content]
                count = LineCount(n=known.n + count.n, first=min(known.first, count.first))
            merged[content] = count
    return merged


def repeated_lines(counts: dict[bytes, LineCount]) -> dict[bytes, Place]:
    """The lines that come more than once, and their first places: all that rewriting needs."""
    return {content: count.first for content, count in counts.items() if count.n > 1}


def drop_repeated(
    name: str, lines: Iterable[bytes], repeated: dict[bytes, Place], *, keep: KeepLines
) -> Iterator[bytes]:
    """The lines of one document that stay, unchanged and in order.

    Args:
        name: the document's id, as it was when its lines were counted.
        lines: with their newlines.
        repeated: the lines that come more than once in the corpus.
        keep: "none" drops every copy of a repeated line, the first too; "first" keeps the one
            in the document of the least id, there the first.
    """
    for number, line in enumerate(lines):
        first = repeated.get(line.removesuffix(b"\n"))
        if first is None or (keep == "first" and first == (name, number)):
            yield line


def check_keep_lines(keep: str) -> None:
    """Raises a `ValueError` if lines cannot be kept so."""
    if keep not in ("none", "first"):
        raise ValueError(f'keep must be "none" or "first", got {keep!r}')
