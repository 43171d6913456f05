"""HTTP messages as crawlers keep them: headers, and the body without its codings.

What a crawl holds need not be what the headers say: crawlers keep headers of a body that they
have unpacked already. So a coding that the body does not have is taken as undone.
Source: RFC 9112, sections 2 to 7.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

from rslm.data.byte_stream import Limits

_STATUS_LINE = re.compile(rb"HTTP/\d+(?:\.\d+)?[ \t]+(\d{3})(?!\d)")
_REQUEST_LINE = re.compile(rb"[A-Z]+[ \t]+\S+[ \t]+HTTP/\d")
_BLANK_LINE = re.compile(rb"\n\r?\n")
_FOLD = re.compile(rb"\n[ \t]")
_FOLDED = re.compile(rb"\r?\n[ \t]+")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\n]*)?\r?\n")

_SPACES = " \t\n\r\v\f"

# C0 controls without white space and the escape of ISO-2022-JP.
_BINARY = re.compile(rb"[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f]")


class Headers(dict[str, str]):
    """Header fields by name in lower case; of one that comes again the first holds."""

    def __init__(self, fields: Iterable[tuple[str, str]]) -> None:
        self.fields = list(fields)
        """Every field as it stands, in order."""
        super().__init__((name.lower(), value) for name, value in reversed(self.fields))


@dataclass(frozen=True, kw_only=True)
class HttpMessage:
    """A request or a response."""

    status: int
    """Of the response; 0 for a request."""
    headers: Headers
    raw_body: bytes
    """As it stands in the record."""
    body: bytes
    """Without transfer and content codings, empty if `problem` says it cannot be had."""
    problem: str = ""
    """`bad_coding`, `too_large` or `zip_bomb`, or "" for a body that can be read."""


def parse_headers(lines: bytes) -> Headers:
    """The fields of header lines; a line without a colon is none, a folded one goes on.

    Names and values are UTF-8, or else Latin-1, without the white space around them.
    """
    if _FOLD.search(lines):
        lines = _FOLDED.sub(b" ", lines)
    try:
        # Nearly always; field by field it takes three times as long.
        text = lines.decode()
    except UnicodeDecodeError:
        parted = [line.partition(b":") for line in lines.splitlines()]
        return Headers(
            (_text(name), _text(value)) for name, colon, value in parted if colon and name.strip()
        )
    fields = []
    for line in text.replace("\r", "\n").split("\n"):
        name, colon, value = line.partition(":")
        if colon and (name := name.strip(_SPACES)):
            fields.append((name, value.strip(_SPACES)))
    return Headers(fields)


def parse_http(block: bytes, limits: Limits) -> HttpMessage | None:
    """The message that a block holds; None if it does not begin as one."""
    status = _STATUS_LINE.match(block)
    if not status and not _REQUEST_LINE.match(block):
        return None
    end = _BLANK_LINE.search(block, 0, limits.max_header_bytes)
    if end is None and len(block) > limits.max_header_bytes:
        return None
    head, raw_body = (block[: end.start()], block[end.end() :]) if end else (block, b"")
    headers = parse_headers(head.partition(b"\n")[2])
    body, problem = _decoded(raw_body, headers, limits)
    return HttpMessage(
        status=int(status[1]) if status else 0,
        headers=headers,
        raw_body=raw_body,
        body=body,
        problem=problem,
    )


def _decoded(body: bytes, headers: Headers, limits: Limits) -> tuple[bytes, str]:
    """The body without codings and "", or nothing and why not."""
    if "chunked" in headers.get("transfer-encoding", "").lower():
        body = unchunk(body)
    codings = headers.get("content-encoding", "").lower().split(",")
    for coding in reversed([coding.strip() for coding in codings]):
        if coding in ("", "identity"):
            continue
        if coding not in ("gzip", "x-gzip", "deflate"):
            return (b"", "bad_coding") if _is_binary(body) else (body, "")
        body, problem = _unpacked(body, coding, limits)
        if problem:
            return b"", problem
    return body, ""


def unchunk(body: bytes) -> bytes:
    """The body of chunks joined; one that does not begin with a chunk as it is.

    From the place on where what follows is no chunk, and in a chunk that is cut, the bytes are
    taken as they are.
    """
    joined, n_chunks, at = bytearray(), 0, 0
    while size := _CHUNK.match(body, at):
        n_bytes = int(size[1], 16)
        start, end = size.end(), size.end() + n_bytes
        joined += body[start:end]
        n_chunks += 1
        if n_bytes == 0:
            return bytes(joined)
        line_end = 2 if body[end : end + 2] == b"\r\n" else int(body[end : end + 1] == b"\n")
        if end < len(body) and not line_end:
            # A size in a body without chunks: nothing of it was one.
            return body if n_chunks == 1 else bytes(joined) + body[end:]
        at = end + line_end
    return bytes(joined) + body[at:]


def _unpacked(body: bytes, coding: str, limits: Limits) -> tuple[bytes, str]:
    """The body unpacked and "", or nothing and why not; what is cut is had as far as it goes."""
    is_gzip = body.startswith(b"\x1f\x8b")
    if coding != "deflate" and not is_gzip:
        return body, ""
    unpacker = zlib.decompressobj(wbits=31 if is_gzip else _deflate_window(body))
    limit = limits.max_record_bytes
    try:
        unpacked = unpacker.decompress(body, limit + 1)
    except zlib.error:
        return (b"", "bad_coding") if is_gzip or _is_binary(body) else (body, "")
    if len(unpacked) <= limit:
        return unpacked, ""
    return b"", "zip_bomb" if limit > limits.max_inflation * len(body) else "too_large"


def _deflate_window(body: bytes) -> int:
    """zlib's header is part of the coding, but many servers leave it away."""
    has_header = len(body) > 1 and body[0] & 15 == 8 and (body[0] << 8 | body[1]) % 31 == 0
    return 15 if has_header else -15


def _is_binary(body: bytes) -> bool:
    """Whether the start holds controls that no page has; packed bytes nearly always do."""
    return bool(_BINARY.search(body, 0, 1024))


def _text(data: bytes) -> str:
    data = data.strip()
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")
