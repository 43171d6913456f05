r"""Token files: the specification of the format, and its reader, in NumPy alone.

There are two implementations of it: `rust/token_file/` writes at the speed of encoding; this
module, `token_file_format` (bytes) and `token_file_writer` are the readable one. Both write
the same bytes. A change of the format touches both, its version and the golden files.

A token file is a folder:

    shard_00000.bin       1024 bytes of header, then the payload: token ids of 2 or 4 bytes
    shard_00000.idx.npy   where the documents of this shard begin
    shard_00001.bin ...
    manifest.json         what the folder holds; written last: without it the folder is incomplete

Everything is little-endian. A token has 2 bytes while vocab_size <= 65,536 and 4 above, so no
id ever wraps. Documents follow each other without padding, each with the end-of-text token
that ends it. A shard holds at least one token and is closed at the first end of a document at
which it holds as many tokens as was asked for. A payload has at most 2^30 bytes, as llm.c's
readers seek with 32 bits: a document that reaches this limit goes on in the next shard, counts
as a document there again, and is counted in the manifest's n_split_documents.

The header begins as llm.c's does, so its readers take a shard for one of their own files:

    offset type   field
         0 i32    magic              20240520 (2 bytes a token) or 20240801 (4 bytes)
         4 i32    version            1 or 7, belonging to the magic
         8 i32    n_tokens_i32       tokens in this shard
        12 u32    zero
        16 8 B    tag                "RSLMTOK\x01"
        24 u16    extension_version  1
        26 u16    flags              2: documents end with end_of_text; 4: there is an index;
                                     32: documents in the order of their sources
        28 u8     itemsize           2 or 4
        29 u8     zero
        30 u16    header_bytes       1024
        32 u64    n_tokens           tokens in this shard
        40 u64    n_documents        documents in this shard
        48 u64    n_utf8_bytes       bytes of text that its tokens stand for; special tokens: 0
        56 u32    vocab_size
        60 i32    beginning_of_text  -1: none
        64 i32    end_of_text        -1: none
        68 i32    padding            -1: none
        72 u32    shard_index
        76 u32    shard_count        0: not known when the shard was written
        80 u64    first_token        number of its first token in the whole file
        88 u64    first_document     number of its first document in the whole file
        96 32 B   tokenizer_sha256   of the tokenizer's canonical JSON
       128 32 B   payload_sha256
       160 32 B   index_sha256       of the whole .idx.npy file
       192 u32    crc_block_log2     22: every 4 MiB of payload have a CRC-32 in the manifest
       196 u32    n_crc_blocks
       200 64 B   tokenizer_name     UTF-8, padded with NUL
       264 64 B   dataset            UTF-8, padded with NUL
       328        zero
      1020 u32    header_crc32       CRC-32 of bytes 0 to 1019

A file with llm.c's magic and zeros from byte 12 on is a plain llm.c file. It is read, with a
warning: nothing but its size can be checked.

The index is u32[n_documents + 1] as `numpy.save` writes it (a header of 128 bytes): offsets in
tokens into this shard, from 0 to n_tokens, ascending; a document has at least one token.

The manifest is JSON in UTF-8: keys sorted, indented by two blanks, one newline at the end.

    command, dataset, rslm_version   where the file came from
    dtype                            "uint16" or "uint32"
    fingerprint                      SHA-256 of the canonical JSON (ASCII, sorted keys, no blanks)
                                     of {payload_sha256: [...], policy, tokenizer_sha256}:
                                     the identity of the content, whatever its name and place
    format, version                  "rslm token file", 1
    manifest_sha256                  SHA-256 of the manifest with 64 zeros in this place
    n_documents, n_shards, n_split_documents, n_tokens, n_utf8_bytes
    policy                           {documents: "end_of_text" | "none", order: "source"}
    shards                           [{bytes, crc32: [...], file, index: {bytes, file, sha256},
                                     n_documents, n_tokens, n_utf8_bytes, sha256}]
    sources                          [{bytes, file}]
    tokenizer                        {end_of_text, json, name, sha256, special_tokens, vocab_size}
                                     json: the tokenizer itself, as the text that sha256 is of

Readers trust no size that they have not compared with the size of the file.
"""

from __future__ import annotations

import functools
import operator
import os
import stat
import warnings
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    BinaryIO,
    NamedTuple,
    NoReturn,
    Protocol,
    Self,
    TypeAlias,
    overload,
)

from rslm.errors import FormatError
from rslm.token_file_format import (
    CRC_BLOCK_BYTES,
    HEADER_BYTES,
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    NPY_HEADER_BYTES,
    Header,
    Manifest,
    ShardRecord,
    fingerprint,
    first_difference,
    index_bytes,
    index_name,
    itemsize_for,
    npy_header,
    shard_name,
)

# What reads tokens loads NumPy; opening a file, as whoever writes one does, takes none.
if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Tokens: TypeAlias = NDArray[np.unsignedinteger[Any]]


class _Hashed(Protocol):
    @property
    def sha256(self) -> str: ...


class Shard(NamedTuple):
    """One file of a token file: where it is and what it must hold.

    A field is None where nothing states it: a plain llm.c file has no index, hashes or bytes
    of text, and CRC-32s are in the manifest, which a shard opened alone goes without.
    """

    path: Path
    n_tokens: int
    first_token: int = 0
    index_path: Path | None = None
    n_documents: int = 0
    n_utf8_bytes: int | None = None
    payload_sha256: str | None = None
    index_sha256: str | None = None
    crc32: tuple[int, ...] | None = None


class TokenFile:
    """A stream of token ids on disk, read in place.

    Opening reads headers and manifest only. Any number of threads and forked processes may
    read from one TokenFile; memory is that of what was asked for.
    """

    path: Path
    shards: tuple[Shard, ...]
    itemsize: int
    vocab_size: int | None
    end_of_text: int | None
    tokenizer_sha256: str | None
    tokenizer_json: bytes | None

    # Not a dataclass: to load that module and make the class takes longer than all else that
    # encoding a small file does in Python.
    def __init__(
        self,
        *,
        path: Path,
        shards: tuple[Shard, ...],
        itemsize: int,
        vocab_size: int | None,
        end_of_text: int | None,
        tokenizer_sha256: str | None,
        tokenizer_json: bytes | None = None,
    ) -> None:
        vars(self).update(
            path=path,
            shards=shards,
            itemsize=itemsize,
            vocab_size=vocab_size,
            end_of_text=end_of_text,
            tokenizer_sha256=tokenizer_sha256,
            tokenizer_json=tokenizer_json,
        )

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a TokenFile must not be changed, got a new {name}")

    def __repr__(self) -> str:
        shown = ("path", "itemsize", "vocab_size", "end_of_text", "tokenizer_sha256")
        return f"TokenFile({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        tokenizer: _Hashed | None = None,
        verify: bool = False,
    ) -> Self:
        """The token file in a folder, one shard of it, or a plain llm.c file.

        Args:
            path: The folder, or the .bin file of one shard.
            tokenizer: Refuse the file unless this tokenizer made it.
            verify: Read everything and compare it with its hashes.

        Raises:
            FormatError: the file is damaged, incomplete, or another tokenizer's.
            OSError: the system refuses to read it; FileNotFoundError if it is missing.
        """
        source = Path(path)
        facts = _open_folder(source) if source.is_dir() else _open_shard(source)
        token_file = cls(path=source, **facts)
        if token_file.tokenizer_sha256 is None:
            message = f"{source}: a plain llm.c file; its ids, text and tokenizer cannot be checked"
            warnings.warn(message, stacklevel=2)
        elif tokenizer is not None and tokenizer.sha256 != token_file.tokenizer_sha256:
            found = f"expected {tokenizer.sha256}, got {token_file.tokenizer_sha256}"
            _refuse(source, f"made by another tokenizer: {found}")
        if verify:
            token_file.verify()
        return token_file

    @classmethod
    def of_written(
        cls,
        path: str | os.PathLike[str],
        shards: Iterable[tuple[Any, ...]],
        *,
        vocab_size: int,
        end_of_text: int | None,
        tokenizer_sha256: str,
        tokenizer_json: bytes,
    ) -> Self:
        """The token file in a folder from whoever has just written it: nothing is read.

        Args:
            path: The folder.
            shards: What the manifest says of each, in the order of `ShardRecord`.
            vocab_size: Of the tokenizer, as what follows.
            end_of_text: The token that ends each document, None where none does.
            tokenizer_sha256: SHA-256 of `tokenizer_json`, in hexadecimal.
            tokenizer_json: The canonical JSON.
        """
        return cls(
            path=Path(path),
            shards=_shards(Path(path), (ShardRecord(*shard) for shard in shards)),
            itemsize=itemsize_for(vocab_size),
            vocab_size=vocab_size,
            end_of_text=end_of_text,
            tokenizer_sha256=tokenizer_sha256,
            tokenizer_json=tokenizer_json,
        )

    @functools.cached_property
    def dtype(self) -> np.dtype[np.unsignedinteger[Any]]:
        """The type of a token."""
        import numpy as np

        return np.dtype(f"<u{self.itemsize}")

    @functools.cached_property
    def n_tokens(self) -> int:
        """Tokens of all shards."""
        return sum(shard.n_tokens for shard in self.shards)

    @functools.cached_property
    def n_documents(self) -> int:
        """Documents of all shards; 0 for a plain llm.c file, which does not say."""
        return sum(shard.n_documents for shard in self.shards)

    @functools.cached_property
    def n_utf8_bytes(self) -> int | None:
        """Bytes of text that the tokens stand for; None for a plain llm.c file."""
        if self.tokenizer_sha256 is None:
            return None
        return sum(shard.n_utf8_bytes or 0 for shard in self.shards)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Identity of the content; a plain llm.c file is read whole for it."""
        hashes = [shard.payload_sha256 or self._hash_payload(shard) for shard in self.shards]
        return fingerprint(hashes, self.end_of_text, self.tokenizer_sha256)

    @functools.cached_property
    def document_starts(self) -> NDArray[np.int64]:
        """Number of the first token of each document: 8 bytes a document, kept.

        Raises:
            FormatError: an index does not ascend from 0 to its shard's end.
        """
        import numpy as np

        indexed = [shard for shard in self.shards if shard.index_path is not None]
        starts = [shard.first_token + _read_index(shard)[:-1] for shard in indexed]
        return np.concatenate([np.empty(0, np.int64), *starts])

    def __len__(self) -> int:
        return self.n_tokens

    @overload
    def __getitem__(self, where: int) -> int: ...
    @overload
    def __getitem__(self, where: slice) -> Tokens: ...
    def __getitem__(self, where: int | slice) -> int | Tokens:
        """A token id, or the ids of a slice of step 1, as of a list."""
        if isinstance(where, slice):
            start, stop, step = where.indices(self.n_tokens)
            if step != 1:
                raise ValueError(f"a slice of a token file must have step 1, got {step}")
            return self.read(start, max(0, stop - start))
        index = where + self.n_tokens if where < 0 else where
        if not 0 <= index < self.n_tokens:
            raise IndexError(f"token index must be in 0..{self.n_tokens - 1}, got {where}")
        return int(self.read(index, 1)[0])

    def read(self, start: int, count: int) -> Tokens:
        """The `count` tokens from `start` on, in an array of its own, across shards.

        Reads with pread: unlike a long-lived memory map it does not grow the process.

        Raises:
            ValueError: the range is not inside the file.
            FormatError: a shard became shorter since it was opened.
        """
        import numpy as np

        # NumPy's own integers would wrap around in the sums below.
        start, count = operator.index(start), operator.index(count)
        if start < 0 or count < 0 or start + count > self.n_tokens:
            given = f"start {start}, count {count}"
            raise ValueError(f"a range must lie inside {self.n_tokens} tokens, got {given}")
        tokens = np.empty(count, self.dtype)
        done = 0
        i = int(np.searchsorted(self._ends, start, side="right"))
        while done < count:
            shard = self.shards[i]
            offset = start + done - shard.first_token
            part = tokens[done : done + shard.n_tokens - offset]
            self._read_into(shard, offset, part)
            done += len(part)
            i += 1
        return tokens

    def document(self, index: int) -> Tokens:
        """The tokens of a document, the token that ends it included.

        Raises:
            IndexError: there is no such document.
        """
        if not 0 <= index < self.n_documents:
            raise IndexError(f"document must be in 0..{self.n_documents - 1}, got {index}")
        starts = self.document_starts
        start = int(starts[index])
        stop = int(starts[index + 1]) if index + 1 < len(starts) else len(self)
        return self.read(start, stop - start)

    def tokens(self, shard: int) -> Tokens:
        """The tokens of one shard as a read-only memory map."""
        import numpy as np

        n_tokens = self.shards[shard].n_tokens
        if n_tokens == 0:  # The system maps no empty range.
            return np.empty(0, self.dtype)
        path = self.shards[shard].path
        return np.memmap(path, self.dtype, "r", offset=HEADER_BYTES, shape=(n_tokens,))

    def verify(self) -> None:
        """Reads everything and compares it with hashes, vocabulary size and index.

        Raises:
            FormatError: at the first thing that does not hold.
        """
        for shard in self.shards:
            found = self._hash_payload(shard)
            if shard.payload_sha256 not in (None, found):
                expected = f"SHA-256 from here must be {shard.payload_sha256}, got {found}"
                _refuse(shard.path, expected, at=HEADER_BYTES)
            if shard.index_path is not None:
                _read_index(shard)
                _check_index_hash(shard.index_path, shard.index_sha256)

    def _hash_payload(self, shard: Shard) -> str:
        """SHA-256 of a payload; CRC-32s and ids are checked on the way."""
        import hashlib

        import numpy as np

        sha256 = hashlib.sha256()
        step = CRC_BLOCK_BYTES // self.dtype.itemsize
        for number, start in enumerate(range(0, shard.n_tokens, step)):
            block = np.empty(min(step, shard.n_tokens - start), self.dtype)
            self._read_into(shard, start, block)
            sha256.update(block.data)
            at = HEADER_BYTES + start * self.dtype.itemsize
            if shard.crc32 is not None and zlib.crc32(block.data) != shard.crc32[number]:
                end = at + block.nbytes
                _refuse(shard.path, f"bytes {at} to {end} do not match their CRC-32", at=at)
            if self.vocab_size is not None and int(block.max()) >= self.vocab_size:
                wrong = int(np.argmax(block >= self.vocab_size))
                reason = f"ids must be below vocab_size {self.vocab_size}, got {block[wrong]}"
                _refuse(shard.path, reason, at=at + wrong * self.dtype.itemsize)
        return sha256.hexdigest()

    def _read_into(self, shard: Shard, start: int, target: Tokens) -> None:
        """Fills `target` with the tokens of a shard from `start` on."""
        at = HEADER_BYTES + start * self.dtype.itemsize
        n_bytes = os.preadv(self._descriptor(shard.path).number, [target.data.cast("B")], at)
        if n_bytes != target.nbytes:
            _refuse(shard.path, "the file ends here, it became shorter", at=at + n_bytes)

    @functools.cached_property
    def _ends(self) -> NDArray[np.int64]:
        import numpy as np

        return np.cumsum([shard.n_tokens for shard in self.shards], dtype=np.int64)

    @functools.cached_property
    def _descriptor(self) -> Any:
        # Bounded: a large corpus has more shards than a process may have open files.
        return functools.lru_cache(maxsize=64)(_Descriptor)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_descriptor"}


class _Descriptor:
    """An open file, closed when the last reader in any thread lets go of it."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        os.close(self.number)


def _open_folder(folder: Path) -> dict[str, Any]:
    """The fields of a TokenFile, from a manifest with which headers and sizes agree."""
    manifest = _read_manifest(folder)
    shards = _shards(folder, manifest.shards)
    for number, (shard, record) in enumerate(zip(shards, manifest.shards, strict=True)):
        with _open_of_size(shard.path, record.file_bytes(manifest.itemsize)) as file:
            header = file.read(HEADER_BYTES)
        if difference := first_difference(manifest.shard_header(number), header):
            at, name = difference
            _refuse(shard.path, f"{name} must agree with {MANIFEST_NAME}", at=at)
        assert shard.index_path is not None
        _check_index_header(shard.index_path, record.n_documents)
    return {
        "shards": shards,
        "itemsize": manifest.itemsize,
        "vocab_size": manifest.vocab_size,
        "end_of_text": manifest.end_of_text,
        "tokenizer_sha256": manifest.tokenizer_sha256,
        "tokenizer_json": manifest.tokenizer_json.encode(),
    }


def _shards(folder: Path, records: Iterable[ShardRecord]) -> tuple[Shard, ...]:
    shards = []
    first_token = 0
    for number, record in enumerate(records):
        path = folder / shard_name(number)
        shard = Shard(
            path=path,
            n_tokens=record.n_tokens,
            first_token=first_token,
            index_path=path.with_name(index_name(path.name)),
            n_documents=record.n_documents,
            n_utf8_bytes=record.n_utf8_bytes,
            payload_sha256=record.sha256,
            index_sha256=record.index_sha256,
            crc32=record.crc32,
        )
        shards.append(shard)
        first_token += record.n_tokens
    return tuple(shards)


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST_NAME
    if not path.exists():
        reason = f"not a complete token file, {MANIFEST_NAME} is missing"
        _refuse(folder, f"{reason} (one shard of it opens by the path of its .bin file)")
    with _open(path) as file:
        # Before reading: a read allocates what is asked for, not what is there.
        if os.fstat(file.fileno()).st_size > MAX_MANIFEST_BYTES:
            _refuse(path, f"a manifest must have at most {MAX_MANIFEST_BYTES} bytes")
        data = file.read()
    try:
        return Manifest.decode(data)
    except ValueError as error:
        _refuse(path, str(error))


def _open_shard(path: Path) -> dict[str, Any]:
    """The fields of a TokenFile, from the header of a shard with which the sizes agree."""
    path.stat()  # Missing is the caller's mistake here, not the format's.
    with _open(path) as file:
        data = file.read(HEADER_BYTES)
    try:
        header = Header.decode(data)
    except ValueError as error:
        _refuse(path, str(error))
    _open_of_size(path, HEADER_BYTES + header.n_tokens * header.itemsize).close()
    index_path = path.with_name(index_name(path.name)) if header.has_index else None
    if index_path is not None:
        _check_index_header(index_path, header.n_documents)
    shard = Shard(
        path=path,
        n_tokens=header.n_tokens,
        index_path=index_path,
        n_documents=header.n_documents,
        n_utf8_bytes=header.n_utf8_bytes,
        payload_sha256=header.payload_sha256,
        index_sha256=header.index_sha256,
    )
    return {
        "shards": (shard,),
        "itemsize": header.itemsize,
        "vocab_size": header.vocab_size,
        "end_of_text": header.end_of_text,
        "tokenizer_sha256": header.tokenizer_sha256,
    }


def _check_index_header(path: Path, n_documents: int) -> None:
    with _open_of_size(path, index_bytes(n_documents)) as file:
        found = file.read(NPY_HEADER_BYTES)
    expected = npy_header(n_documents + 1)
    if found != expected:
        at = next(i for i in range(NPY_HEADER_BYTES) if found[i] != expected[i])
        _refuse(path, f"not the NPY header of u32[{n_documents + 1}]", at=at)


def _check_index_hash(path: Path, expected: str | None) -> None:
    import hashlib

    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        _refuse(path, f"SHA-256 from here must be {expected}, got {found}", at=0)


def _read_index(shard: Shard) -> NDArray[np.int64]:
    """Offsets of the documents in a shard and its end; they ascend from 0 to n_tokens."""
    import numpy as np

    assert shard.index_path is not None
    with _open_of_size(shard.index_path, index_bytes(shard.n_documents)) as file:
        file.seek(NPY_HEADER_BYTES)
        offsets = np.frombuffer(file.read(), "<u4").astype(np.int64)
    steps = np.diff(offsets, prepend=-1)
    if offsets[0] != 0 or steps.min() < 1:
        wrong = 0 if offsets[0] != 0 else int(np.argmax(steps < 1))
        reason = f"offsets must ascend from 0, got {offsets[wrong]}"
        _refuse(shard.index_path, reason, at=NPY_HEADER_BYTES + 4 * wrong)
    if offsets[-1] != shard.n_tokens:
        reason = f"the last offset must be {shard.n_tokens}, got {offsets[-1]}"
        _refuse(shard.index_path, reason, at=NPY_HEADER_BYTES + 4 * shard.n_documents)
    return offsets


def _open_of_size(path: Path, expected: int) -> BinaryIO:
    """Opens a file whose size must be `expected`, so that a wrong size is refused unread."""
    file = _open(path)
    found = os.fstat(file.fileno()).st_size
    if found != expected:
        file.close()
        reason = f"the file must have {expected} bytes, got {found}"
        _refuse(path, reason, at=min(found, expected))
    return file


def _open(path: Path) -> BinaryIO:
    """Opens a regular file that the manifest or a header promised."""
    if not path.exists():
        _refuse(path, "belongs to the token file but is missing")
    if not stat.S_ISREG(path.stat().st_mode):
        _refuse(path, "must be a regular file")
    return path.open("rb")


def _refuse(path: Path, reason: str, *, at: int | None = None) -> NoReturn:
    where = "" if at is None else f"at byte {at}: "
    raise FormatError(f"{path}: {where}{reason}") from None
