r"""One bit for each token of a token file: whether it is trained on.

The file `train_mask.bits` lies in the token file's folder. Everything is little-endian:

    offset type   field
         0 8 B    tag            "RSLMMASK"
         8 u32    version        1
        12        zero
        16 u64    n_tokens       of the token file
        24 32 B   fingerprint    of the token file
        56 u32    payload_crc32  CRC-32 of all from byte 64 on
        60 u32    header_crc32   CRC-32 of bytes 0 to 59
        64 u8[]   the bits, that of token i at bit i % 8 of byte i // 8; those left over are 0
"""

import os
import struct
import zlib
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from rslm.errors import FormatError
from rslm.token_file import TokenFile

NAME = "train_mask.bits"
_TAG, _VERSION = b"RSLMMASK", 1
_HEADER = struct.Struct("<8sIIQ32sI")
_HEADER_BYTES = _HEADER.size + 4
_BLOCK_BYTES = 1 << 20

Mask = npt.NDArray[np.bool_]


class MaskWriter:
    """Writes a mask plane in the order of the tokens, in constant memory."""

    def __init__(self, folder: Path) -> None:
        self._file = (folder / NAME).open("wb")
        self._file.write(bytes(_HEADER_BYTES))
        self._held = np.empty(0, np.bool_)
        self._crc32 = self._n_tokens = 0

    def add(self, mask: Mask) -> None:
        """Appends the bits of so many tokens."""
        self._n_tokens += len(mask)
        self._held = np.concatenate([self._held, mask])
        if len(self._held) >= 8 * _BLOCK_BYTES:
            n_whole = len(self._held) // 8 * 8
            self._write(self._held[:n_whole])
            self._held = self._held[n_whole:]

    def finish(self, fingerprint: str) -> None:
        """Writes what is held and the header; `fingerprint` is the token file's."""
        self._write(self._held)
        known = bytes.fromhex(fingerprint)
        header = _HEADER.pack(_TAG, _VERSION, 0, self._n_tokens, known, self._crc32)
        self._file.seek(0)
        self._file.write(header + struct.pack("<I", zlib.crc32(header)))
        self._file.flush()
        os.fsync(self._file.fileno())

    def _write(self, mask: Mask) -> None:
        data = np.packbits(mask, bitorder="little").tobytes()
        self._crc32 = zlib.crc32(data, self._crc32)
        self._file.write(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()


class MaskPlane:
    """The mask of a token file, read in place.

    Raises:
        FormatError: the plane is damaged, or another token file's.
        FileNotFoundError: there is none.
    """

    def __init__(self, token_file: TokenFile) -> None:
        path = self._path = token_file.path / NAME
        with path.open("rb") as file:
            self.crc32 = _check_header(path, file.read(_HEADER_BYTES), token_file)
            expected = _HEADER_BYTES + -(-len(token_file) // 8)
            found = os.fstat(file.fileno()).st_size
            if found != expected:
                raise FormatError(f"{path}: the file must have {expected} bytes, got {found}")
            crc32 = 0
            while block := file.read(_BLOCK_BYTES):
                crc32 = zlib.crc32(block, crc32)
        if crc32 != self.crc32:
            raise FormatError(
                f"{path}: bytes {_HEADER_BYTES} to {expected} are damaged: payload_crc32 must be "
                f"{crc32}, got {self.crc32}"
            )

    def read(self, start: int, count: int) -> Mask:
        """The bits of `count` tokens from `start` on, which must be in the file."""
        first, last = start // 8, -(-(start + count) // 8)
        with self._path.open("rb", buffering=0) as file:
            file.seek(_HEADER_BYTES + first)
            data = file.read(last - first)
        bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
        return bits[start - 8 * first :][:count].view(np.bool_)


def _check_header(path: Path, data: bytes, token_file: TokenFile) -> int:
    """The sum that the payload must have."""
    if len(data) < _HEADER_BYTES:
        raise FormatError(f"{path}: a mask must have {_HEADER_BYTES} bytes of header")
    (header_crc32,) = struct.unpack("<I", data[_HEADER.size :])
    tag, version, zero, n_tokens, fingerprint, payload_crc32 = _HEADER.unpack(data[: _HEADER.size])
    expected = {
        "tag": (_TAG, tag),
        "version": (_VERSION, version),
        "zero": (0, zero),
        "header_crc32": (zlib.crc32(data[: _HEADER.size]), header_crc32),
        "n_tokens": (len(token_file), n_tokens),
        "fingerprint": (token_file.fingerprint, fingerprint.hex()),
    }
    for name, (want, have) in expected.items():
        if want != have:
            raise FormatError(f"{path}: {name} must be {want!r}, got {have!r}")
    return int(payload_crc32)
