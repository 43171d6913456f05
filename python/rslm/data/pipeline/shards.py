"""Files of a task: lines of JSON in zstd frames, written beside and renamed when they are whole.

A frame holds some 4 MB of whole lines, so a file that was cut is told by its last one, and the
bytes depend on the documents alone. Documents stand in it under the names of dolma, which
datatrove reads, too: `id`, `text`, `source` and `metadata`, with `url` in the last.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rslm.data.document import Document
from rslm.errors import FormatError
from rslm.files import sync_folder

_FRAME_BYTES = 4 << 20
_LEVEL = 3
_WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def is_beside(path: Path) -> bool:
    """Whether an attempt that did not end left this file."""
    return ".tmp." in path.name


@contextlib.contextmanager
def written_beside(path: Path, attempt: str) -> Iterator[Path]:
    """Where to write `path`; it is synced and renamed once the block ends well.

    Each attempt has a place of its own, on whatever machine it runs, so that two at once do not
    meet: both would put the same bytes there.
    """
    beside = path.with_name(f"{path.name}.tmp.{attempt}")
    try:
        yield beside
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        # A write names no file, and a user knows none of what is beside the one meant.
        if error.errno in _WRITE_ERRORS or error.filename == os.fspath(beside):
            raise OSError(error.errno, error.strerror, os.fspath(path)) from error
        raise
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def hash_file(path: Path) -> str:
    """BLAKE2b of 128 bits, of the bytes without the zstd that they may be packed in."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        if path.suffix != ".zst":
            while piece := file.read(1 << 20):
                digest.update(piece)
            return digest.hexdigest()
    for piece in _unpacked(path):
        digest.update(piece)
    return digest.hexdigest()


class LinesWriter:
    """Writes objects as lines; `digest` is that of `hash_file` when the block has ended."""

    def __init__(self, path: Path, attempt: str) -> None:
        import pyarrow

        self._codec = pyarrow.Codec("zstd", compression_level=_LEVEL)
        self._beside = written_beside(path, attempt)
        self._path, self._buffer, self._size = path, list[bytes](), 0
        self._hash = hashlib.blake2b(digest_size=16)

    def __enter__(self) -> Self:
        self._stack = contextlib.ExitStack()
        place = self._stack.enter_context(self._beside)
        # Closed before what is beside is renamed.
        self._file = self._stack.enter_context(place.open("wb"))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        if error is None:
            try:
                self._write_frame()
            except BaseException as failure:
                if not self._stack.__exit__(type(failure), failure, failure.__traceback__):
                    raise
        return self._stack.__exit__(kind, error, trace)

    def write(self, record: dict[str, Any]) -> None:
        """Appends one object."""
        line = json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
        self._buffer.append(line)
        self._size += len(line)
        if self._size >= _FRAME_BYTES:
            self._write_frame()

    def _write_frame(self) -> None:
        data = b"".join(self._buffer)
        self._hash.update(data)
        # An empty file would be no zstd file.
        if data or not self._file.tell():
            self._file.write(self._codec.compress(data, asbytes=True))
        self._buffer.clear()
        self._size = 0

    @property
    def digest(self) -> str:
        """Hash of all that was written."""
        return self._hash.hexdigest()


def read_lines(path: Path) -> Iterator[Any]:
    """The objects that a `LinesWriter` wrote.

    Raises:
        FormatError: the file is cut or damaged.
    """
    rest = b""
    for piece in _unpacked(path):
        *lines, rest = (rest + piece).split(b"\n")
        yield from map(json.loads, lines)
    if rest:
        raise FormatError(f"{path}: must end with a whole line")


def _unpacked(path: Path) -> Iterator[bytes]:
    import pyarrow

    try:
        with pyarrow.input_stream(os.fspath(path), compression="zstd") as stream:
            while piece := stream.read(1 << 20):
                yield piece
    except OSError as error:
        # A system's error has a number; pyarrow reports corrupt data without one.
        if error.errno is not None:
            raise
        raise FormatError(f"{path}: not a whole zstd file: {error}") from None


def document_record(document: Document) -> dict[str, Any]:
    """A document as a line of a shard."""
    url = {"url": document.url} if document.url else {}
    return {
        "id": document.id,
        "text": document.text,
        "source": document.source,
        "metadata": url | document.metadata,
    }


def read_shard(path: Path) -> Iterator[Document]:
    """The documents of a shard, in their order."""
    for record in read_lines(path):
        metadata = record["metadata"]
        url = metadata.pop("url", "")
        yield Document(
            id=record["id"],
            text=record["text"],
            url=url,
            source=record["source"],
            metadata=metadata,
        )
