"""Files of a data set from a folder, an archive or one packed file, read into memory, bounded.

An archive is not unpacked to disk. What a data set has no use for, links, devices, names that
lead out of the archive, is refused, and so is more data than a data set has.
"""

import io
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from rslm.errors import FormatError

MAX_BYTES = 512 << 20
"""Of all that is read of one source, unpacked."""
MAX_MEMBERS = 20_000
_PIECE_BYTES = 1 << 16
# A file made by `xz -9` asks for 65 MiB; a header may ask for 4 GiB.
_XZ_MEMORY_BYTES = 128 << 20
_ERRORS = (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError)


def read_files(source: Path, is_wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Name and content of the files that are wanted, of which no two may have the same name.

    Args:
        source: a folder (its own files and those one folder below), an archive `.tar`, `.tar.gz`,
            `.tgz` or `.tar.xz`, or one file, which may be packed as `.gz` or `.xz`.
        is_wanted: told the name without folders, and without the suffix of packing.

    Raises:
        OSError: there is nothing at `source`, or it cannot be read.
        FormatError: the archive is corrupt, hostile or too large.
    """
    if source.is_dir():
        files = _of_folder(source, is_wanted)
    elif ".tar" in source.suffixes or source.suffix == ".tgz":
        files = _of_archive(source, is_wanted)
    else:
        files = ((name, content) for name, content in _of_file(source) if is_wanted(name))
    seen = set()
    for name, content in files:
        if name in seen:
            raise FormatError(f"{source} must hold only one file {name}")
        seen.add(name)
        yield name, content


def _of_folder(folder: Path, is_wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    for path in sorted([*folder.glob("*"), *folder.glob("*/*")]):
        name = path.name.removesuffix(".gz").removesuffix(".xz")
        if is_wanted(name) and path.is_file():
            yield from _of_file(path)


def _of_file(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with path.open("rb") as file:
            content = b"".join(_unpacked(file, path))
    except _ERRORS as error:
        raise FormatError(f"{path} must be a whole file: {error}") from error
    yield path.name.removesuffix(".gz").removesuffix(".xz"), content


def _of_archive(path: Path, is_wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    try:
        with (
            path.open("rb") as packed,
            # Read as a stream: headers that tarfile takes whole are bounded with the rest.
            tarfile.open(
                fileobj=io.BufferedReader(_Pieces(_unpacked(packed, path))), mode="r|"
            ) as archive,
        ):
            for number, member in enumerate(archive):
                _check_member(path, number, member)
                name = PurePosixPath(member.name).name
                if member.isfile() and not name.startswith(".") and is_wanted(name):
                    file = archive.extractfile(member)
                    assert file is not None, "a regular file has content"
                    yield name, file.read()
    except (*_ERRORS, ValueError, OverflowError, RecursionError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"{path} must be a whole tar archive: {error}") from error


def _check_member(path: Path, number: int, member: tarfile.TarInfo) -> None:
    """Refuses what an archive of a data set does not hold."""
    name = PurePosixPath(member.name)
    if number >= MAX_MEMBERS:
        raise FormatError(f"{path} must hold at most {MAX_MEMBERS} files")
    if not (member.isfile() or member.isdir()) or member.issparse():
        raise FormatError(f"{path} must hold plain files and folders only, and {name} is neither")
    if name.is_absolute() or ".." in name.parts:
        raise FormatError(f"{path} must hold files below itself only, and {name} is not")
    if not 0 <= member.size <= MAX_BYTES:
        raise FormatError(
            f"{path} must hold at most {MAX_BYTES >> 20} MiB, and {name} has {member.size} bytes"
        )


class _Pieces(io.RawIOBase):
    """Pieces of bytes as a file to read on in."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._held = pieces, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._held and (piece := next(self._pieces, None)) is not None:
            self._held = piece
        taken = self._held[: len(buffer)]
        self._held = self._held[len(buffer) :]
        buffer[: len(taken)] = taken
        return len(taken)


def _unpacked(file: BinaryIO, path: Path) -> Iterator[bytes]:
    """The content, by the suffix of the path, in small pieces and at most `MAX_BYTES` of it."""
    n_bytes = 0
    for piece in _pieces(file, path.suffix):
        n_bytes += len(piece)
        if n_bytes > MAX_BYTES:
            raise FormatError(f"{path} must hold at most {MAX_BYTES >> 20} MiB, and has more")
        yield piece


def _pieces(file: BinaryIO, suffix: str) -> Iterator[bytes]:
    if suffix == ".xz":
        yield from _unpacked_xz(file)
    elif suffix in (".gz", ".tgz"):
        yield from _unpacked_gzip(file)
    else:
        while piece := file.read(_PIECE_BYTES):
            yield piece


def _unpacked_xz(file: BinaryIO) -> Iterator[bytes]:
    unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY_BYTES)
    while not unpacker.eof:
        packed = file.read(_PIECE_BYTES) if unpacker.needs_input else b""
        if unpacker.needs_input and not packed:
            raise EOFError("it is cut off")
        yield unpacker.decompress(packed, _PIECE_BYTES)


def _unpacked_gzip(file: BinaryIO) -> Iterator[bytes]:
    unpacker, packed = zlib.decompressobj(wbits=31), b""
    while not unpacker.eof:
        if not (packed := packed or file.read(_PIECE_BYTES)):
            raise EOFError("it is cut off")
        yield unpacker.decompress(packed, _PIECE_BYTES)
        packed = unpacker.unconsumed_tail
