"""The bytes of a file, unpacked where it is packed, in segments that damage cannot join.

A packed file is a row of members (gzip) or frames (zstd), each with a checksum. Every member is
a segment: reads stop at its end, where it is known whether its bytes were whole. After a damaged
one reading goes on at the next that can be found, so a bad byte costs one member. A file that is
not packed is one segment. Which it is, the file's first bytes say, not its name.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from rslm.data.members import PIECE_BYTES, SegmentEnd, packing_of, read_pieces, unpack_members

# So much may be put back before it must be in proportion to what was read.
_UNREAD_FREE_BYTES = 64 << 20
_MAX_LIMIT = 1 << 62


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

    def __post_init__(self) -> None:
        """Refuse numbers that cannot be."""
        for name, value in vars(self).items():
            if not 1 <= value <= _MAX_LIMIT:
                raise ValueError(f"{name} must be from 1 to 2^62, got {value}")


# Stands for the segment after the last.
_NO_MORE = SegmentEnd("no more")


class ByteStream:
    """Reads a seekable file segment by segment; memory: what is asked for at once.

    `begins` is how every segment of such files begins, empty where that is not known; a segment
    that begins otherwise continues the one before it.
    """

    def __init__(self, file: BinaryIO, *, limits: Limits, begins: bytes = b"") -> None:
        kind = packing_of(file, begins)
        file.seek(0)
        pieces = (
            unpack_members(file, kind, limits.max_inflation, begins) if kind else read_pieces(file)
        )
        self._pieces = _within(pieces, limits.max_file_bytes)
        self._max_file_bytes = limits.max_file_bytes
        self._file, self._is_packed, self._begins = file, bool(kind), begins
        self._n_pulled, self._n_unread = 0, 0
        # Whole members come in one piece, which is handed out without a copy of the rest.
        self._buffer, self._at = b"", 0
        self._ended = True
        self._held: bytes | SegmentEnd | None = None
        self._damage = ""

    def next_segment(self) -> bool:
        """Goes to the next segment, if there is one; what is left of this one is lost."""
        self._buffer, self._at = b"", 0
        while not self._ended:
            self._pull()
            self._buffer = b""
        piece = self._held or next(self._pieces, None)
        self._held, self._damage = None, ""
        if piece is None:
            return False
        self._ended = False
        self._take(piece)
        return True

    def peek(self, n_bytes: int) -> bytes:
        """The next bytes without passing them; fewer at the segment's end."""
        if len(self._buffer) - self._at < n_bytes and not self._ended:
            self._fill(n_bytes)
        return self._buffer[self._at : self._at + n_bytes]

    def read(self, n_bytes: int) -> bytes:
        """The next bytes; fewer at the segment's end."""
        data = self.peek(n_bytes)
        self._at += len(data)
        return data

    def skip(self, n_bytes: int) -> int:
        """How many bytes were passed; fewer at the segment's end."""
        if n_bytes <= len(self._buffer) - self._at:
            self._at += n_bytes
            return n_bytes
        left = n_bytes
        while left and (data := self.read(min(left, PIECE_BYTES))):
            left -= len(data)
        return n_bytes - left

    def unread(self, data: bytes) -> None:
        """Puts bytes of this segment back in front.

        Of a file that would have most of its bytes put back again and again they are lost
        instead, so that reading takes time in proportion to the file.
        """
        self._n_unread += len(data)
        if self._n_unread <= _UNREAD_FREE_BYTES + 4 * self._n_pulled:
            self._buffer, self._at = data + self._buffer[self._at :], 0

    def unskip(self, n_bytes: int) -> None:
        """Goes back over bytes that were passed; where the file is packed they are lost."""
        self._n_unread += n_bytes
        if self._is_packed or self._n_unread > _UNREAD_FREE_BYTES + 4 * self._n_pulled:
            return
        n_bytes += len(self._buffer) - self._at
        self._file.seek(-n_bytes, io.SEEK_CUR)
        # They are pulled a second time, which must not allow for more of the same.
        self._n_pulled -= n_bytes
        self._buffer, self._at = b"", 0
        left = self._max_file_bytes - self._n_pulled
        self._pieces, self._ended = _within(read_pieces(self._file), left), False

    def at_end(self) -> bool:
        """Whether the segment has no more bytes."""
        return self._at >= len(self._buffer) and not self.peek(1)

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

    def _start_of_next(self) -> tuple[bytes, SegmentEnd | None]:
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

    def _hold(self, start: bytes, end: SegmentEnd | None) -> None:
        if start and end:
            self._pieces = _chain(end, self._pieces)
        self._held = start or (None if end == _NO_MORE else end)

    def _fill(self, n_bytes: int) -> None:
        """Pulls until so many bytes are there, or the segment ends."""
        pieces = [self._buffer[self._at :]] if self._at < len(self._buffer) else []
        n_left = n_bytes - sum(map(len, pieces))
        while n_left > 0 and not self._ended:
            self._buffer, self._at = b"", 0
            self._pull()
            pieces.append(self._buffer)
            n_left -= len(self._buffer)
        self._buffer = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self._at = 0

    def _pull(self) -> None:
        self._take(next(self._pieces, None) or SegmentEnd())

    def _take(self, piece: bytes | SegmentEnd) -> None:
        if isinstance(piece, bytes):
            rest = self._buffer[self._at :]
            self._buffer, self._at = rest + piece if rest else piece, 0
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
        chunk = stream.read(PIECE_BYTES)
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


def _chain(
    first: bytes | SegmentEnd, rest: Iterator[bytes | SegmentEnd]
) -> Iterator[bytes | SegmentEnd]:
    yield first
    yield from rest


def _within(pieces: Iterator[bytes | SegmentEnd], n_bytes: int) -> Iterator[bytes | SegmentEnd]:
    """The pieces until they are more than so many bytes together."""
    for piece in pieces:
        n_bytes -= len(piece) if isinstance(piece, bytes) else 0
        if n_bytes < 0:
            yield SegmentEnd("file_too_large")
            return
        yield piece
