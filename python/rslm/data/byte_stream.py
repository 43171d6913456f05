"""The bytes of a file, unpacked where it is packed, in segments that damage cannot join.

A packed file is a row of members (gzip) or frames (zstd), each with a checksum. Every member is
a segment: reads stop at its end, where it is known whether its bytes were whole. After a damaged
one reading goes on at the next that can be found, so a bad byte costs one member. A file that is
not packed is one segment. Which it is, the file's first bytes say, not its name.
"""

from __future__ import annotations

import contextlib
import io
import re
import zlib
from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import BinaryIO

_PIECE_BYTES = 1 << 16
_GZIP = b"\x1f\x8b\x08"
_ZSTD = b"\x28\xb5\x2f\xfd"
# Frames of any content between those that hold data: magic 0x184D2A50 to 0x184D2A5F.
_SKIPPABLE = re.compile(rb"[\x50-\x5f]\x2a\x4d\x18")
# What of a member is looked at to tell whether one begins there.
_PROBE_BYTES = 1 << 12
_RESERVED_FLAG, _RESERVED_BLOCK, _MAX_BLOCK_BYTES = 8, 3, 1 << 17
# So much may be put back before it must be in proportion to what was read.
_UNREAD_FREE_BYTES = 64 << 20
# A member may inflate to this much whatever the ratio.
_HARMLESS_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What reading may cost; more is skipped and counted."""

    max_record_bytes: int = 10_000_000
    """A record's block, a document, a line: `too_large`."""
    max_header_bytes: int = 1 << 16
    """The header of a record, and of the HTTP message in it: `bad_header`."""
    max_file_bytes: int = 1 << 40
    """A file, unpacked: the rest is `file_too_large`."""
    max_inflation: int = 200
    """Unpacked bytes for each packed one, in a member beyond 1 MiB: `zip_bomb`. Pages seldom
    reach 20; gzip's limit is 1,032."""


@dataclass(frozen=True)
class _End:
    """The end of a segment, and what was wrong with it, if anything."""

    damage: str = ""


# Stands for the segment after the last.
_NO_MORE = _End("no more")


class _DamagedError(Exception):
    """The member cannot be unpacked further; the message is the reason to count."""


class ByteStream:
    """Reads a seekable file segment by segment; memory: what is asked for at once.

    `begins` is how every segment of such files begins, empty where that is not known; a segment
    that begins otherwise continues the one before it.
    """

    def __init__(self, file: BinaryIO, *, limits: Limits, begins: bytes = b"") -> None:
        kind = _kind_of(file, begins)
        file.seek(0)
        pieces = _packed(file, kind, limits, begins) if kind else _plain(file)
        self._pieces = _within(pieces, limits.max_file_bytes)
        self._file, self._is_packed, self._begins = file, bool(kind), begins
        self._n_pulled, self._n_unread = 0, 0
        self._buffer = bytearray()
        self._ended = True
        self._held: bytes | _End | None = None
        self._damage = ""

    def next_segment(self) -> bool:
        """Goes to the next segment, if there is one; what is left of this one is lost."""
        self._buffer.clear()
        while not self._ended:
            self._pull()
            self._buffer.clear()
        piece = self._held or next(self._pieces, None)
        self._held, self._damage = None, ""
        if piece is None:
            return False
        self._ended = False
        self._take(piece)
        return True

    def peek(self, n_bytes: int) -> bytes:
        """The next bytes without passing them; fewer at the segment's end."""
        while len(self._buffer) < n_bytes and not self._ended:
            self._pull()
        return bytes(memoryview(self._buffer)[:n_bytes])

    def read(self, n_bytes: int) -> bytes:
        """The next bytes; fewer at the segment's end."""
        data = self.peek(n_bytes)
        del self._buffer[:n_bytes]
        return data

    def skip(self, n_bytes: int) -> int:
        """How many bytes were passed; fewer at the segment's end."""
        left = n_bytes
        while left and (data := self.read(min(left, _PIECE_BYTES))):
            left -= len(data)
        return n_bytes - left

    def unread(self, data: bytes) -> None:
        """Puts bytes of this segment back in front.

        Of a file that would have most of its bytes put back again and again they are lost
        instead, so that reading takes time in proportion to the file.
        """
        self._n_unread += len(data)
        if self._n_unread <= _UNREAD_FREE_BYTES + 4 * self._n_pulled:
            self._buffer[:0] = data

    def unskip(self, n_bytes: int) -> None:
        """Goes back over bytes that were passed; where the file is packed they are lost."""
        self._n_unread += n_bytes
        if self._is_packed or self._n_unread > _UNREAD_FREE_BYTES + 4 * self._n_pulled:
            return
        self._file.seek(-len(self._buffer) - n_bytes, io.SEEK_CUR)
        # They are pulled a second time, which must not allow for more of the same.
        self._n_pulled -= len(self._buffer) + n_bytes
        self._buffer.clear()
        self._pieces, self._ended = _plain(self._file), False

    def at_end(self) -> bool:
        """Whether the segment has no more bytes."""
        return not self.peek(1)

    def damage(self) -> str:
        """What was wrong with the segment, known at its end; "" where it was whole."""
        return self._damage if self.at_end() else ""

    def damage_ahead(self) -> str:
        """What is wrong with the segment, if its end has been seen already; else ""."""
        return self._damage

    def continues(self) -> bool:
        """At a whole segment's end: whether the next one continues it, and is gone on with."""
        if self._damage or not self.at_end():
            return False
        start, end = self._start_of_next()
        if not start or (self._begins and start.startswith(self._begins)):
            self._hold(start, end)
            return False
        self._ended = False
        self._take(start)
        if end is not None:
            self._take(end)
        return True

    def _start_of_next(self) -> tuple[bytes, _End | None]:
        """Enough of the next segment to tell how it begins, and its end if that came first."""
        start = b""
        if isinstance(self._held, bytes):
            start, self._held = self._held, None
        while len(start) < max(len(self._begins), 1):
            piece = self._held or next(self._pieces, None) or _NO_MORE
            self._held = None
            if isinstance(piece, bytes):
                start += piece
            elif start or piece.damage:
                return start, piece
        return start, None

    def _hold(self, start: bytes, end: _End | None) -> None:
        if start and end:
            self._pieces = _chain(end, self._pieces)
        self._held = start or (None if end == _NO_MORE else end)

    def _pull(self) -> None:
        self._take(next(self._pieces, None) or _End())

    def _take(self, piece: bytes | _End) -> None:
        if isinstance(piece, bytes):
            self._buffer += piece
            self._n_pulled += len(piece)
        else:
            self._ended, self._damage = True, piece.damage


def parts(
    stream: ByteStream, mark: bytes, limits: Limits, skipped: Counter[str]
) -> Iterator[bytes]:
    """What stands between marks, such as lines; one that is cut by damage or too long is counted.

    A file that does not end in the mark has a last part as well, if it is not empty.
    """
    begun, too_large = bytearray(), False
    while True:
        chunk = stream.read(_PIECE_BYTES)
        if not chunk:
            if stream.continues():
                continue
            damage = stream.damage()
            if damage or too_large or len(begun) > limits.max_record_bytes:
                skipped[damage or "too_large"] += 1
            elif begun:
                yield bytes(begun)
            begun, too_large = bytearray(), False
            if not stream.next_segment():
                return
            continue
        searched = max(len(begun) - len(mark) + 1, 0)
        begun += chunk
        start = 0
        while (at := begun.find(mark, max(searched, start))) >= 0:
            if too_large or at - start > limits.max_record_bytes:
                skipped["too_large"] += 1
            else:
                yield bytes(begun[start:at])
            start, too_large = at + len(mark), False
        del begun[:start]
        if len(begun) > limits.max_record_bytes + len(mark):
            too_large = True
        if too_large:
            del begun[: 1 - len(mark) or len(begun)]


def _chain(first: bytes | _End, rest: Iterator[bytes | _End]) -> Iterator[bytes | _End]:
    yield first
    yield from rest


def _within(pieces: Iterator[bytes | _End], n_bytes: int) -> Iterator[bytes | _End]:
    """The pieces until they are more than so many bytes together."""
    for piece in pieces:
        n_bytes -= len(piece) if isinstance(piece, bytes) else 0
        if n_bytes < 0:
            yield _End("file_too_large")
            return
        yield piece


def _plain(file: BinaryIO) -> Iterator[bytes | _End]:
    """The file's bytes from where it stands, and the end of its one segment."""
    while piece := file.read(_PIECE_BYTES):
        yield piece
    yield _End()


def _packed(file: BinaryIO, kind: str, limits: Limits, begins: bytes) -> Iterator[bytes | _End]:
    """The file's bytes unpacked, none of the pieces empty, and an end after each member."""
    size = file.seek(0, io.SEEK_END)
    start, wasted = 0, 0
    while start < size:
        end, n_read, damage = yield from _member(file, start, kind, limits)
        yield _End(damage)
        wasted += n_read if damage else 0
        if damage:
            # Damage shows late, so the next member may begin before the place where it showed;
            # a file made to be unpacked over and over is not looked through that thoroughly.
            again = start + 1 if wasted <= 4 * size else start + max(n_read, 1)
            end = _next_member(file, again, kind, begins)
        start = _past_zeros(file, end, size)


def _kind_of(file: BinaryIO, begins: bytes) -> str:
    """How the file is packed; "" if it is not.

    Where only the first bytes are damaged, what members begin with finds the others.
    """
    file.seek(0)
    start = file.read(_PIECE_BYTES)
    kind = _kind(start)
    if kind or not start or not begins or begins in start:
        return kind
    size = file.seek(0, io.SEEK_END)
    kinds = (kind for kind in ("gzip", "zstd") if _next_member(file, 0, kind, begins) < size)
    return next(kinds, "")


def _kind(start: bytes) -> str:
    if start.startswith(_GZIP):
        return "gzip"
    return "zstd" if start.startswith(_ZSTD) or _SKIPPABLE.match(start) else ""


def _member(
    file: BinaryIO, start: int, kind: str, limits: Limits
) -> Generator[bytes | _End, None, tuple[int, int, str]]:
    """The bytes of the member at `start`; returns its end, how much was read and the damage."""
    unpacked, n_read = 0, 0
    members = _inflate(file, start) if kind == "gzip" else _unpack_zstd(file, start)
    try:
        while True:
            try:
                piece, n_read = next(members)
            except StopIteration as stop:
                return stop.value, n_read, ""
            unpacked += len(piece)
            if unpacked > max(_HARMLESS_BYTES, limits.max_inflation * n_read):
                return start, n_read, "zip_bomb"
            if piece:
                yield piece
    except _DamagedError as error:
        return start, n_read, str(error)


def _inflate(file: BinaryIO, start: int) -> Generator[tuple[bytes, int], None, int]:
    """Pieces of a gzip member and how many packed bytes they took; returns where it ends."""
    file.seek(start)
    unpacker, position, packed = zlib.decompressobj(wbits=31), start, b""
    while not unpacker.eof:
        if not packed:
            packed = file.read(_PIECE_BYTES)
            position += len(packed)
        at_end = not packed
        before = unpacker.copy()
        try:
            piece = unpacker.decompress(packed, _PIECE_BYTES)
        except zlib.error:
            piece, n_good = _before_error(before, packed)
            yield piece, position - len(packed) + n_good - start
            raise _DamagedError("corrupt_member") from None
        packed = unpacker.unconsumed_tail
        if at_end and not piece:
            raise _DamagedError("truncated")
        yield piece, position - len(packed) - start
    return position - len(unpacker.unused_data)


def _before_error(unpacker: zlib._Decompress, packed: bytes) -> tuple[bytes, int]:
    """What unpacks before the error, of how many bytes; a call that fails gives none of it."""
    pieces: list[bytes] = []
    # Each gives a piece, but for the one with the error.
    with contextlib.suppress(zlib.error):
        for at in range(len(packed)):
            pieces.append(unpacker.decompress(packed[at : at + 1]))
    return b"".join(pieces), len(pieces)


class _Part(io.RawIOBase):
    """A stretch of a file as a file."""

    def __init__(self, file: BinaryIO, start: int, end: int) -> None:
        self._file, self.position, self._end = file, start, end

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        left = self._end - self.position
        self._file.seek(self.position)
        data = self._file.read(min(left, _PIECE_BYTES, size if size >= 0 else left))
        self.position += len(data)
        return data


def _unpack_zstd(file: BinaryIO, start: int) -> Generator[tuple[bytes, int], None, int]:
    """Pieces of a zstd frame and how many packed bytes they took; returns where it ends."""
    try:
        import pyarrow
    except ModuleNotFoundError as error:
        raise ValueError(
            "zstd files need pyarrow, which is not installed: pip install 'rslm[data]'"
        ) from error
    end, holds_data = _zstd_frame(file, start)
    if not holds_data:
        return end
    part = _Part(file, start, end)
    try:
        with pyarrow.CompressedInputStream(pyarrow.PythonFile(part, mode="r"), "zstd") as stream:
            while piece := stream.read(_PIECE_BYTES):
                yield piece, part.position - start
    except OSError as error:
        # A system's error has a number; pyarrow reports corrupt data without one.
        if error.errno is not None:
            raise
        reason = "truncated" if end == file.seek(0, io.SEEK_END) else "corrupt_member"
        raise _DamagedError(reason) from None
    return end


def _zstd_frame(file: BinaryIO, start: int) -> tuple[int, bool]:
    """Where a frame ends, or its damage or the file does before, and whether it holds data.

    Source: RFC 8878, sections 3.1.1 and 3.1.2.
    """
    file.seek(start)
    head = file.read(18)
    size = file.seek(0, io.SEEK_END)
    if _SKIPPABLE.match(head):
        return min(start + 8 + int.from_bytes(head[4:8], "little"), size), False
    flags = head[4] if len(head) > 4 else _RESERVED_FLAG
    if not head.startswith(_ZSTD) or flags & _RESERVED_FLAG:
        raise _DamagedError("corrupt_member")
    single = flags >> 5 & 1
    at = start + 5 + (1 - single) + (0, 1, 2, 4)[flags & 3] + (single, 2, 4, 8)[flags >> 6]
    first, last = at, False
    while not last:
        file.seek(at)
        block = file.read(3)
        if len(block) < 3:
            return size, True
        header = int.from_bytes(block, "little")
        last, kind = bool(header & 1), header >> 1 & 3
        if kind == _RESERVED_BLOCK or header >> 3 > _MAX_BLOCK_BYTES:
            # Nothing is unpacked of what only looks like a frame: pyarrow 26 keeps 8 kB of
            # every one that ends in an error.
            if at == first:
                raise _DamagedError("corrupt_member")
            return at, True
        # A block of one repeated byte takes one, whatever its size.
        at += 3 + (1 if kind == 1 else header >> 3)
    return min(at + 4 * (flags >> 2 & 1), size), True


def _past_zeros(file: BinaryIO, start: int, size: int) -> int:
    """Where something else than zeros stands: tapes and some writers pad files with them."""
    file.seek(start)
    while data := file.read(_PIECE_BYTES):
        if rest := data.lstrip(b"\0"):
            return start + len(data) - len(rest)
        start += len(data)
    return size


def _next_member(file: BinaryIO, start: int, kind: str, begins: bytes) -> int:
    """Where the next member begins, or the end of the file."""
    magic = _GZIP if kind == "gzip" else _ZSTD
    while True:
        file.seek(start)
        data = file.read(_PIECE_BYTES + _PROBE_BYTES)
        at = data.find(magic)
        while 0 <= at < _PIECE_BYTES:
            if kind == "zstd" or _is_gzip(data[at : at + _PROBE_BYTES], begins):
                return start + at
            at = data.find(magic, at + 1)
        if len(data) <= _PIECE_BYTES:
            return start + len(data)
        start += _PIECE_BYTES


def _is_gzip(start: bytes, begins: bytes) -> bool:
    """Whether these bytes unpack, to what members begin with, behind line ends or not."""
    try:
        unpacked = zlib.decompressobj(wbits=31).decompress(start, len(begins) + 8)
    except zlib.error:
        return False
    return unpacked.lstrip(b"\r\n").startswith(begins)
