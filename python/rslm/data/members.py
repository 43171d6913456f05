"""Members of gzip files and frames of zstd files, unpacked one by one whatever is broken.

Each has a checksum, so at its end it is known whether its bytes were whole; behind a damaged one
the next that can be found is gone on with.
Source: RFC 1952, section 2.2 (gzip); RFC 8878, section 3.1 (zstd).
"""

from __future__ import annotations

import contextlib
import io
import re
import zlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Literal

from rslm import _rslm

PIECE_BYTES = 1 << 16
_GZIP = b"\x1f\x8b\x08"
_ZSTD = b"\x28\xb5\x2f\xfd"
# Frames of any content between those that hold data: magic 0x184D2A50 to 0x184D2A5F.
_SKIPPABLE = re.compile(rb"[\x50-\x5f]\x2a\x4d\x18")
# What of a member is looked at to tell whether one begins there.
_PROBE_BYTES = 1 << 12
_RESERVED_FLAG, _RESERVED_BLOCK, _MAX_BLOCK_BYTES = 8, 3, 1 << 17
# What is read at once to find whole members in, and what one may hold to be unpacked at once.
_WINDOW_BYTES = 1 << 21
_WHOLE_BYTES = 4 << 20
# Stands for the end of a member that goes on behind the bytes there are.
_IS_CUT = 1
# A member may inflate to this much whatever the ratio.
_HARMLESS_BYTES = 1 << 20


@dataclass(frozen=True)
class SegmentEnd:
    """The end of a segment, and what was wrong with it, if anything."""

    damage: str = ""


class _DamagedError(Exception):
    """The member cannot be unpacked further; the message is the reason to count."""


def read_pieces(file: BinaryIO) -> Iterator[bytes | SegmentEnd]:
    """The file's bytes from where it stands, and the end of its one segment."""
    while piece := file.read(PIECE_BYTES):
        yield piece
    yield SegmentEnd()


def unpack_members(
    file: BinaryIO,
    kind: str,
    max_inflation: int,
    begins: bytes,
    *,
    implementation: Literal["rust", "reference"] = "rust",
) -> Iterator[bytes | SegmentEnd]:
    """The file's bytes unpacked, none of the pieces empty, and an end after each member.

    By "rust" a gzip member of at most 4 MiB that is whole is one piece; all others, and zstd
    frames, are unpacked as by "reference", in small ones.
    """
    size = file.seek(0, io.SEEK_END)
    start, wasted = 0, 0
    window = _Window(file)
    is_fast = kind == "gzip" and implementation == "rust"
    while start < size:
        if is_fast and (found := window.unpack(start, max_inflation)):
            piece, end = found
            if piece:
                yield piece
            yield SegmentEnd()
            start = end if window.holds_data(end) else _past_zeros(file, end, size)
            continue
        end, n_read, damage = yield from _member(file, start, kind, max_inflation)
        yield SegmentEnd(damage)
        wasted += n_read if damage else 0
        if damage:
            # Damage shows late, so the next member may begin before the place where it showed;
            # a file made to be unpacked over and over is not looked through that thoroughly.
            again = start + 1 if wasted <= 4 * size else start + max(n_read, 1)
            end = _next_member(file, again, kind, begins)
        start = _past_zeros(file, end, size)


class _Window:
    """A stretch of a packed file, of which whole gzip members are unpacked at once."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._start, self._bytes = 0, b""

    def unpack(self, start: int, max_inflation: int) -> tuple[bytes, int] | None:
        """The bytes of the member at `start` and its end; None if it is not known to be whole."""
        for is_last in (False, True):
            within = start - self._start
            if 0 <= within < len(self._bytes):
                piece, end = _rslm.unpack_member(self._bytes, within, _WHOLE_BYTES, max_inflation)
                if piece is not None:
                    return piece, self._start + end
                # Of a member that begins the window more would not be had.
                if end != _IS_CUT or within == 0:
                    return None
            if not is_last:
                self._file.seek(start)
                self._start, self._bytes = start, self._file.read(_WINDOW_BYTES)
        return None

    def holds_data(self, place: int) -> bool:
        """Whether the byte there is known not to be zero."""
        within = place - self._start
        return 0 <= within < len(self._bytes) and self._bytes[within] != 0


def packing_of(file: BinaryIO, begins: bytes) -> str:
    """How the file is packed; "" if it is not.

    Where only the first bytes are damaged, what members begin with finds the others.
    """
    file.seek(0)
    start = file.read(PIECE_BYTES)
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
    file: BinaryIO, start: int, kind: str, max_inflation: int
) -> Generator[bytes | SegmentEnd, None, tuple[int, int, str]]:
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
            if unpacked > max(_HARMLESS_BYTES, max_inflation * n_read):
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
            packed = file.read(PIECE_BYTES)
            position += len(packed)
        at_end = not packed
        before = unpacker.copy()
        try:
            piece = unpacker.decompress(packed, PIECE_BYTES)
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
        data = self._file.read(min(left, PIECE_BYTES, size if size >= 0 else left))
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
            while piece := stream.read(PIECE_BYTES):
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
    while data := file.read(PIECE_BYTES):
        if rest := data.lstrip(b"\0"):
            return start + len(data) - len(rest)
        start += len(data)
    return size


def _next_member(file: BinaryIO, start: int, kind: str, begins: bytes) -> int:
    """Where the next member begins, or the end of the file."""
    magic = _GZIP if kind == "gzip" else _ZSTD
    while True:
        file.seek(start)
        data = file.read(PIECE_BYTES + _PROBE_BYTES)
        at = data.find(magic)
        while 0 <= at < PIECE_BYTES:
            if kind == "zstd" or _is_gzip(data[at : at + _PROBE_BYTES], begins):
                return start + at
            at = data.find(magic, at + 1)
        if len(data) <= PIECE_BYTES:
            return start + len(data)
        start += PIECE_BYTES


def _is_gzip(start: bytes, begins: bytes) -> bool:
    """Whether these bytes unpack, to what members begin with, behind line ends or not."""
    try:
        unpacked = zlib.decompressobj(wbits=31).decompress(start, len(begins) + 8)
    except zlib.error:
        return False
    return unpacked.lstrip(b"\r\n").startswith(begins)
