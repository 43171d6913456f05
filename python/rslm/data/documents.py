"""Documents of whatever holds them: crawls, pages, JSON lines, tables, text, data sets.

Nothing here judges a text. What is no document, and what is broken, is passed over and counted
by reason; one bad record never ends a file.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from rslm.data.byte_stream import ByteStream, Limits, parts
from rslm.data.decoding import clean_text, decode_page
from rslm.data.document import Document
from rslm.data.warc import WarcRecord, read_warc
from rslm.errors import FormatError
from rslm.files import END_OF_TEXT, arrow_batches, open_parquet, parquet_batches

Format = Literal["warc", "jsonl", "parquet", "arrow", "html", "text"]

_FORMATS: dict[str, Format] = {
    **dict.fromkeys((".warc", ".wet"), "warc"),
    **dict.fromkeys((".jsonl", ".ndjson"), "jsonl"),
    **dict.fromkeys((".html", ".htm", ".xhtml"), "html"),
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".txt": "text",
}
_PAGE_TYPES = ("text/html", "application/xhtml+xml")
_OTHER_RECORDS = ("request", "revisit", "resource", "metadata", "warcinfo", "continuation")
OWN_FIELDS = ("id", "url", "source", "metadata")
"""Fields of a row that a document has itself; all others are its metadata."""


def read_documents(
    path: str | os.PathLike[str],
    *,
    format: Format | None = None,
    text_field: str = "text",
    name: str = "",
    limits: Limits | None = None,
    skipped: Counter[str] | None = None,
) -> Iterator[Document]:
    """The documents of a file, or of a folder's files in the order of their relative paths.

    A file's format follows from its name, behind which `.gz` or `.zst` may stand: `.warc` and
    `.wet`, `.jsonl` and `.ndjson`, `.parquet`, `.arrow` (the stream of `datasets`), `.html`,
    `.htm` and `.xhtml`, all others text. In a folder others than these and `.txt` are passed over,
    as `other_file`, unless `format` says what all of them are; links to folders are not followed.

    Sources are the files' names; that of a single file is `name` where it is given.

    A page is given as decoded HTML, with `media_type` "text/html" in its metadata; of a crawl
    those with status 200. Text is parted by `<|endoftext|>`, without the empty lines around it.
    A line or row is a document with its `text_field` as text and its further fields as metadata.

    What is passed over is added to `skipped` by reason: those of `read_warc`; of its records
    `request`, `revisit`, `resource`, `metadata`, `warcinfo`, `continuation`, `other_record`,
    `cut_by_crawler`, `bad_http`, `http_status`, `media_type`, `bad_coding`; of rows `not_json`,
    `no_text`, `too_deep`; of tables `corrupt_file`, `corrupt_rows`; and `empty`, a text of
    white space.

    Raises:
        OSError: there is no such file or folder, or it cannot be read.
        ValueError: pyarrow, which a file needs, is not installed, `format` is unknown, or it is a
            pipe or device.
    """
    if format is not None and format not in get_args(Format):
        raise ValueError(f"format must be one of {', '.join(get_args(Format))}, got {format!r}")
    path, limits = Path(path), limits or Limits()
    skipped = Counter() if skipped is None else skipped
    if not path.is_dir():
        kind = format or format_of(path.name) or "text"
        yield from _read_file(path, name or path.name, kind, text_field, limits, skipped)
        return
    for below in _files_of(path):
        if known := format or format_of(below):
            yield from _read_file(path / below, below, known, text_field, limits, skipped)
        else:
            skipped["other_file"] += 1


def read_rows(
    rows: Iterable[Mapping[str, Any]],
    *,
    source: str,
    text_field: str = "text",
    limits: Limits | None = None,
    skipped: Counter[str] | None = None,
) -> Iterator[Document]:
    """A document of each row, such as those of a split of `datasets`, streamed or not.

    Its text is the field `text_field`; `id`, `url` and `source` are the row's if it has such
    strings (an `id` may be a number), else the row's number behind the given `source`, nothing,
    and that source. Further fields, and those of a field `metadata`, are its metadata; what JSON
    does not know there becomes a string. Reasons in `skipped`: `no_text` (the field is missing
    or no string), `empty`, `too_large`, `too_deep` (fields nested hundreds of times).
    """
    limits = limits or Limits()
    skipped = Counter() if skipped is None else skipped
    for number, row in enumerate(rows):
        document = document_of_row(row, number, source, text_field, limits, skipped)
        if document is not None:
            yield document


def document_of_row(
    row: Mapping[str, Any],
    number: int,
    source: str,
    text_field: str,
    limits: Limits,
    skipped: Counter[str],
) -> Document | None:
    """The document of a row of that number, as `read_rows` gives it; None if that counts it."""
    text = row.get(text_field)
    if not isinstance(text, str):
        skipped["no_text"] += 1
    elif len(text.encode(errors="replace")) > limits.max_record_bytes:
        skipped["too_large"] += 1
    elif not (text := clean_text(text)).strip():
        skipped["empty"] += 1
    else:
        try:
            return _document_of(row, text, f"{source}:{number}", source, text_field)
        except RecursionError:
            skipped["too_deep"] += 1
    return None


def _files_of(folder: Path) -> list[str]:
    """Relative paths of all files, with slashes, in the order of their code points."""
    names = []
    for parent, _, files in os.walk(folder):
        names += [(Path(parent) / file).relative_to(folder).as_posix() for file in files]
    return sorted(names)


def format_of(name: str) -> Format | None:
    """What a file's name says that it holds; None where that is left open."""
    name = name.lower().removesuffix(".gz").removesuffix(".zst")
    return _FORMATS.get(os.path.splitext(name)[1])


def _read_file(
    path: Path, name: str, kind: Format, text_field: str, limits: Limits, skipped: Counter[str]
) -> Iterator[Document]:
    """The documents of one file, whose source is `name`."""
    # Opening a pipe may wait for ever, and a device may have no end.
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} must be a regular file, but is a pipe or device")
    if kind == "warc":
        yield from _read_crawl(path, name, limits, skipped)
    elif kind == "html":
        yield from _read_page(path, name, limits, skipped)
    elif kind == "text":
        yield from _read_text(path, name, limits, skipped)
    else:
        rows = _ROWS[kind](path, limits, skipped)
        yield from read_rows(
            rows, source=name, text_field=text_field, limits=limits, skipped=skipped
        )


def _read_crawl(
    path: Path, source: str, limits: Limits, skipped: Counter[str]
) -> Iterator[Document]:
    for number, record in enumerate(read_warc(path, limits=limits, skipped=skipped)):
        if reason := _why_no_document(record):
            skipped[reason] += 1
            continue
        if record.http is None:
            text, metadata = clean_text(record.block.decode(errors="replace")), {}
        else:
            text, charset = decode_page(record.payload, record.http.headers.get("content-type", ""))
            metadata = {"media_type": "text/html", "charset": charset}
        if not text.strip():
            skipped["empty"] += 1
            continue
        yield Document(
            text=text,
            id=record.id or f"{source}:{number}",
            url=record.url,
            source=source,
            metadata=metadata | _crawl_metadata(record),
        )


def _why_no_document(record: WarcRecord) -> str:
    """Why a whole record gives no document; "" if it does."""
    if record.type == "conversion":
        return ""
    if record.type != "response":
        return record.type if record.type in _OTHER_RECORDS else "other_record"
    if "warc-truncated" in record.headers:
        return "cut_by_crawler"
    if record.http is None or not record.http.status:
        return "bad_http"
    if record.http.status != 200:
        return "http_status"
    return record.http.problem if _is_page(record) else "media_type"


def _is_page(record: WarcRecord) -> bool:
    assert record.http is not None
    identified = record.headers.get("warc-identified-payload-type", "")
    media_type = record.http.headers.get("content-type") or identified
    return media_type.partition(";")[0].strip().lower() in _PAGE_TYPES


def _crawl_metadata(record: WarcRecord) -> dict[str, str]:
    """What later steps and people want to know of where a page came from."""
    names = {
        "date": "warc-date",
        "payload_digest": "warc-payload-digest",
        "identified_languages": "warc-identified-content-language",
    }
    return {
        key: clean_text(record.headers[name])
        for key, name in names.items()
        if name in record.headers
    }


def _read_page(
    path: Path, source: str, limits: Limits, skipped: Counter[str]
) -> Iterator[Document]:
    """The page that a file is; its id is the file's name."""
    with path.open("rb") as file:
        stream = ByteStream(file, limits=limits)
        page = b""
        while stream.next_segment():
            page += stream.read(limits.max_record_bytes + 1 - len(page))
            if len(page) > limits.max_record_bytes:
                skipped["too_large"] += 1
                return
            if damage := stream.damage():
                skipped[damage] += 1
                return
    text, charset = decode_page(page)
    if not text.strip():
        skipped["empty"] += 1
        return
    metadata = {"media_type": "text/html", "charset": charset}
    yield Document(text=text, id=source, source=source, metadata=metadata)


def _read_text(
    path: Path, source: str, limits: Limits, skipped: Counter[str]
) -> Iterator[Document]:
    with path.open("rb") as file:
        stream = ByteStream(file, limits=limits)
        texts = parts(stream, END_OF_TEXT.encode(), limits, skipped)
        for number, data in enumerate(texts):
            text = clean_text(data.removeprefix(b"\xef\xbb\xbf").decode(errors="replace"))
            # Nothing but white space between two marks is how they are written, not a document.
            if text.strip():
                yield Document(text=text.strip("\n"), id=f"{source}:{number}", source=source)


def _json_rows(path: Path, limits: Limits, skipped: Counter[str]) -> Iterator[Mapping[str, Any]]:
    """The objects of the lines."""
    for line in json_lines(path, limits, skipped):
        if (row := row_of_line(line, skipped)) is not None:
            yield row


def json_lines(path: Path, limits: Limits, skipped: Counter[str]) -> Iterator[bytes]:
    """The lines of a file of JSON lines; those that are too long or damaged are counted."""
    with path.open("rb") as file:
        yield from parts(ByteStream(file, limits=limits), b"\n", limits, skipped)


def row_of_line(line: bytes, skipped: Counter[str]) -> Mapping[str, Any] | None:
    """The object that a line is; None for a blank one, and for another, which is counted."""
    if not line.strip():
        return None
    try:
        row = json.loads(line.decode("utf-8-sig"), parse_constant=str)
    except (ValueError, RecursionError):
        row = None
    if isinstance(row, dict):
        return row
    skipped["not_json"] += 1
    return None


def _table_rows(path: Path, limits: Limits, skipped: Counter[str]) -> Iterator[Mapping[str, Any]]:
    """The rows of a Parquet file; a row group that cannot be read is passed over."""
    try:
        with open_parquet(path, corrupt=FormatError) as file:
            n_groups = file.num_row_groups
    except FormatError:
        skipped["corrupt_file"] += 1
        return
    for group in range(n_groups):
        try:
            with open_parquet(path, corrupt=FormatError) as file:
                for batch in parquet_batches(file, group):
                    yield from _python_rows(batch, skipped)
        except FormatError:
            skipped["corrupt_rows"] += 1


def _arrow_rows(path: Path, limits: Limits, skipped: Counter[str]) -> Iterator[Mapping[str, Any]]:
    """The rows of an Arrow stream, as `datasets` writes them; behind damage there is no more."""
    n_batches = 0
    try:
        for batch in arrow_batches(path, corrupt=FormatError):
            n_batches += 1
            yield from _python_rows(batch, skipped, is_checked=False)
    except FormatError:
        skipped["corrupt_rows" if n_batches else "corrupt_file"] += 1


_ROWS: dict[str, Callable[..., Iterator[Mapping[str, Any]]]] = {
    "jsonl": _json_rows,
    "parquet": _table_rows,
    "arrow": _arrow_rows,
}


def _python_rows(
    batch: Any, skipped: Counter[str], *, is_checked: bool = True
) -> list[dict[str, Any]]:
    """The rows of a batch without those that hold what Python cannot, such as broken UTF-8.

    Args:
        batch: record batch.
        skipped: counts the others.
        is_checked: whether it is known that nothing in it points beyond its ends.
    """
    try:
        if not is_checked:
            batch.validate(full=True)
        rows: list[dict[str, Any]] = batch.to_pylist()
    except (ValueError, OverflowError):
        if len(batch) == 1:
            skipped["corrupt_rows"] += 1
            return []
        half = len(batch) // 2
        return [
            *_python_rows(batch[:half], skipped, is_checked=is_checked),
            *_python_rows(batch[half:], skipped, is_checked=is_checked),
        ]
    return rows


def _document_of(
    row: Mapping[str, Any], text: str, id: str, source: str, text_field: str
) -> Document:
    metadata = row.get("metadata")
    metadata = dict(metadata) if isinstance(metadata, Mapping) else {}
    others = {key: row[key] for key in row if key not in (text_field, *OWN_FIELDS)}
    given_id = row.get("id")
    url = row.get("url", metadata.pop("url", None))
    return Document(
        text=text,
        id=clean_text(str(given_id)) if isinstance(given_id, (str, int)) else id,
        url=clean_text(url) if isinstance(url, str) else "",
        source=clean_text(row["source"]) if isinstance(row.get("source"), str) else source,
        metadata=_as_json(metadata | others),
    )


def _as_json(value: Any) -> Any:
    """The value with strings in place of what JSON does not know."""
    if isinstance(value, Mapping):
        return {clean_text(str(key)): _as_json(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_json(inner) for inner in value]
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, (bool, int, float)) else str(value)
