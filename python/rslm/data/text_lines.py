"""Documents as lines of JSON with their text alone, which is what the encoder reads.

Lines of a shard go from one to the other in Rust wherever they are plain: an object with strings
for text, id and source. All else is read as `read_documents` says, which gives the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from json.encoder import encode_basestring
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rslm import _rslm
from rslm.data.byte_stream import Limits
from rslm.data.document import Document
from rslm.data.documents import (
    OWN_FIELDS,
    document_of_row,
    format_of,
    json_lines,
    read_documents,
    row_of_line,
)

Implementation = Literal["rust", "reference"]


class TextLine(NamedTuple):
    """A document: where it is from, its line, and the bytes of its text.

    `metadata` is only that of a line whose reader was asked for it.
    """

    source: str
    id: str
    line: bytes
    n_bytes: int
    metadata: Mapping[str, Any]


_NO_METADATA: Mapping[str, Any] = {}


def read_text_lines(
    path: Path,
    *,
    text_field: str,
    skipped: Counter[str],
    with_metadata: bool = False,
    implementation: Implementation = "rust",
) -> Iterator[TextLine]:
    """A line for each document of `read_documents`, in its order.

    Args:
        path: of a file or folder.
        text_field: the field or column with the text.
        skipped: what is passed over is added by reason.
        with_metadata: whether it matters.
        implementation: "rust", or "reference", by which Python reads every line.

    Raises:
        OSError: there is no such file or folder, or it cannot be read.
        ValueError: pyarrow, which a file needs, is not installed, or it is a pipe or device.
    """
    is_plain = path.is_file() and format_of(path.name) == "jsonl" and text_field not in OWN_FIELDS
    if is_plain and not with_metadata and implementation == "rust":
        yield from _read_plain(path, text_field, skipped)
        return
    for document in read_documents(path, text_field=text_field, skipped=skipped):
        yield _line_of(document)


def _read_plain(path: Path, text_field: str, skipped: Counter[str]) -> Iterator[TextLine]:
    limits, name = Limits(), path.name
    read, make = _rslm.read_text_row, TextLine._make
    number = 0
    for line in json_lines(path, limits, skipped):
        found = read(line, text_field)
        if found is not None:
            source, id, text_line, n_bytes = found
            number += 1
            yield make((name if source is None else source, id, text_line, n_bytes, _NO_METADATA))
        elif (row := row_of_line(line, skipped)) is not None:
            document = document_of_row(row, number, name, text_field, limits, skipped)
            number += 1
            if document is not None:
                yield _line_of(document)


def _line_of(document: Document) -> TextLine:
    # What `json.dumps` makes of a str, without the encoder that it makes for each call.
    line = b'{"text": ' + encode_basestring(document.text).encode() + b"}\n"
    n_bytes = len(document.text.encode())
    return TextLine(document.source, document.id, line, n_bytes, document.metadata)
