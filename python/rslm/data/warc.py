"""Records of WARC and WET files, read in a stream; broken ones are counted and passed over.

A file may be plain, or packed by gzip or zstd, with a member for each record or one for all.
Source: ISO 28500:2017 (WARC 1.1), sections 4 to 6 and annex D.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rslm.data.byte_stream import ByteStream, Limits
from rslm.data.http_message import Headers, HttpMessage, parse_headers, parse_http

_BEGINS = b"WARC/"
_VERSION = re.compile(rb"WARC/\d+\.\d+[ \t]*\r?\n")
# After a broken record: a version at the start of a line, and a header under it.
_RECORD = re.compile(rb"(?<=\n)WARC/\d+\.\d+[ \t]*\r?\n[A-Za-z-]+[ \t]*:")
# What ends a header: a blank line, or another record before it.
_HEADER_END = re.compile(rb"\n\r?\n|\n(?=WARC/\d)")
_LENGTH = re.compile(r"[0-9]{1,18}")
_SCAN_BYTES = 1 << 16
# More than a pattern of _RECORD takes.
_OVERLAP_BYTES = 128
# Of what may stand between two records: two line ends, and some writers' further ones.
_BETWEEN_BYTES = 16


@dataclass(frozen=True, kw_only=True)
class WarcRecord:
    """One record: its headers and its block, with the HTTP message of a response parsed."""

    headers: Headers
    block: bytes
    """As it stands in the file; HTTP headers are its beginning."""
    http: HttpMessage | None = None
    """Of a request or response with an HTTP block that can be read as one."""

    @property
    def type(self) -> str:
        """Such as "response" or "conversion", in lower case."""
        return self.headers.get("warc-type", "").lower()

    @property
    def id(self) -> str:
        """`WARC-Record-ID` without the angle brackets."""
        return self.headers.get("warc-record-id", "").strip("<>")

    @property
    def url(self) -> str:
        """`WARC-Target-URI`, without the angle brackets that some versions of wget write."""
        return self.headers.get("warc-target-uri", "").strip("<>")

    @property
    def payload(self) -> bytes:
        """The body of the HTTP message, without transfer coding; else the block."""
        return self.block if self.http is None else self.http.body


class _BrokenError(Exception):
    """The record cannot be read; the message is the reason to count."""


def read_warc(
    path: str | os.PathLike[str],
    *,
    limits: Limits | None = None,
    check_digests: bool = False,
    skipped: Counter[str] | None = None,
) -> Iterator[WarcRecord]:
    """The whole records of a file in its order; what is skipped is counted by reason.

    A record is given once what follows it has been seen, so one of a member with a wrong
    checksum is not. Where a file has one member for all, those before the damage are.
    Reasons: `bad_header` (no version, or a header without end), `bad_length` (no
    `Content-Length`, or no record follows where it says), `truncated` (the file ends within),
    `corrupt_member`, `zip_bomb`, `too_large`, `file_too_large`, and `bad_digest` if asked for.
    Each counts one place of damage, where more than one record may have been. Memory: a few
    times `limits.max_record_bytes`.

    Raises:
        OSError: the file cannot be opened or read.
        ValueError: it is packed by zstd, and pyarrow is not installed.
    """
    limits = limits or Limits()
    skipped = Counter() if skipped is None else skipped
    with Path(path).open("rb") as file:
        stream = ByteStream(file, limits=limits, begins=_BEGINS)
        while stream.next_segment():
            while not stream.at_end():
                try:
                    record = _read_record(stream, limits, check_digests=check_digests)
                except _BrokenError as error:
                    # What ends in damage is counted as that, once for the segment.
                    if not stream.damage():
                        skipped[str(error)] += 1
                    continue
                if record is not None:
                    yield record
            if damage := stream.damage():
                skipped[damage] += 1


def _read_record(stream: ByteStream, limits: Limits, *, check_digests: bool) -> WarcRecord | None:
    """The record at the stream's place; None at the end. The stream is left at the next."""
    _skip_line_ends(stream)
    if stream.at_end():
        return None
    headers = _read_headers(stream, limits)
    length = headers.get("content-length", "")
    if not _LENGTH.fullmatch(length):
        _find_record(stream)
        raise _BrokenError("bad_length")
    if int(length) > limits.max_record_bytes:
        _skip_block(stream, int(length))
        raise _BrokenError("too_large")
    block = _read_block(stream, int(length))
    if check_digests and not _has_digest(block, headers.get("warc-block-digest", "")):
        raise _BrokenError("bad_digest")
    return WarcRecord(headers=headers, block=block, http=_http_of(headers, block, limits))


def _skip_line_ends(stream: ByteStream) -> None:
    while data := stream.peek(_BETWEEN_BYTES):
        n_line_ends = len(data) - len(data.lstrip(b"\r\n"))
        stream.skip(n_line_ends)
        if n_line_ends < len(data):
            return


def _read_headers(stream: ByteStream, limits: Limits) -> Headers:
    """The header of a record; leaves a stream without one at the next record."""
    start = stream.peek(min(4096, limits.max_header_bytes))
    version = _VERSION.match(start)
    end = _HEADER_END.search(start)
    if version and not end:
        start = stream.peek(limits.max_header_bytes)
        end = _HEADER_END.search(start)
    if version and end and len(end[0]) > 1:
        stream.skip(end.end())
        return parse_headers(start[version.end() : end.start()])
    cut = bool(version) and not end and len(start) < limits.max_header_bytes
    _find_record(stream, stream.read(1))
    raise _BrokenError("truncated" if cut else "bad_header")


def _read_block(stream: ByteStream, length: int) -> bytes:
    """The block of a record, after which one follows or the segment ends."""
    block = stream.read(length)
    while len(block) < length and stream.continues():
        block += stream.read(length - len(block))
    whole = len(block) == length
    if whole and _follows_record(stream):
        return block
    # The length may be wrong: the next record is looked for where this one's header ends.
    if not stream.damage():
        stream.unread(block)
    _find_record(stream)
    raise _BrokenError("bad_length" if whole else "truncated")


def _skip_block(stream: ByteStream, length: int) -> None:
    n_skipped = stream.skip(length)
    while n_skipped < length and stream.continues():
        n_skipped += stream.skip(length - n_skipped)
    if n_skipped < length or not _follows_record(stream):
        stream.unskip(n_skipped)
        _find_record(stream)


def _follows_record(stream: ByteStream) -> bool:
    """Whether a record may end here: before two line ends, a record, or an intact end.

    Beyond the standard, other line ends may stand before the next record, or none.
    """
    following = stream.peek(_BETWEEN_BYTES)
    at = following.find(_BEGINS)
    if 0 <= at <= 8:
        # One of the line ends may have been damaged; both records are whole.
        stream.skip(at)
        return True
    damage = stream.damage_ahead() if len(following) < _BETWEEN_BYTES else ""
    # Of a member that is cut the checksum is missing, but perhaps not a byte of this record.
    if damage not in ("", "truncated"):
        return False
    ends = following.startswith((b"\r\n\r\n", b"\n\n"))
    return ends or not (damage or following.strip(b"\r\n"))


def _find_record(stream: ByteStream, passed: bytes = b"\n") -> None:
    """Goes to the next record or the segment's end; `passed` is the byte before this place."""
    while window := stream.peek(_SCAN_BYTES):
        if found := _RECORD.search(passed + window):
            stream.skip(found.start() - len(passed))
            return
        # A record that is cut by the window's end is found in the next.
        overlap = _OVERLAP_BYTES if len(window) == _SCAN_BYTES else 0
        passed = stream.read(len(window) - overlap)[-1:]


def _http_of(headers: Headers, block: bytes, limits: Limits) -> HttpMessage | None:
    is_http = headers.get("content-type", "").lower().startswith("application/http")
    return parse_http(block, limits) if is_http else None


def _has_digest(block: bytes, digest: str) -> bool:
    """Whether the block has this digest; one by a method that is not known counts as right."""
    method, _, value = digest.partition(":")
    if method.lower() not in ("sha1", "sha256", "md5"):
        return True
    found = hashlib.new(method.lower(), block, usedforsecurity=False)
    return value.upper() in (base64.b32encode(found.digest()).decode(), found.hexdigest().upper())
