"""Writes arrays of token ids as a token file: the readable twin of `rust/token_file/`.

`Tokenizer.encode_files` goes from text to the same bytes, faster and in bounded memory; this
is for ids that are already there, from another tokenizer or a generator.
"""

import hashlib
import importlib.metadata
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rslm.files import write_atomically
from rslm.token_file_format import (
    CRC_BLOCK_BYTES,
    MANIFEST_NAME,
    MAX_PAYLOAD_BYTES,
    NAME_BYTES,
    Manifest,
    ShardRecord,
    index_name,
    itemsize_for,
    npy_header,
    shard_name,
)

TokenIds = NDArray[np.integer[Any]]


@dataclass(frozen=True, kw_only=True)
class TokenizerRecord:
    """What a token file remembers about the tokenizer that made it."""

    name: str
    vocab_size: int
    canonical_json: bytes
    special_tokens: Mapping[str, int]
    end_of_text: int | None
    token_byte_lengths: TokenIds = field(compare=False, repr=False)

    @property
    def sha256(self) -> str:
        """SHA-256 of the canonical JSON, in hexadecimal."""
        return hashlib.sha256(self.canonical_json).hexdigest()


def write_token_file(
    out: str | os.PathLike[str],
    documents: Iterable[ArrayLike],
    *,
    tokenizer: TokenizerRecord,
    dataset: str = "",
    shard_tokens: int = 2**27,
    sources: Sequence[tuple[str, int]] = (),
    command: str = "",
    rslm_version: str | None = None,
) -> None:
    """Writes the ids of `documents` to the folder `out`, holding one shard in memory.

    An interrupted call leaves a folder without manifest, which readers refuse and which is
    the caller's to remove.

    Args:
        out: A new or empty folder.
        documents: Ids of each document, the token that ends it included.
        tokenizer: The tokenizer of the ids.
        dataset: A name for the text, at most 64 bytes.
        shard_tokens: A shard is closed at the first end of a document at which it holds these.
        sources: Name and size in bytes of each input file.
        command: The command that made the file.
        rslm_version: Recorded in the manifest; by default that of the installed package.

    Raises:
        ValueError: an argument is out of range, an id is not below the vocabulary size, a
            document is empty, or `out` holds something.
    """
    max_tokens = MAX_PAYLOAD_BYTES // itemsize_for(tokenizer.vocab_size)
    _check_arguments(tokenizer, dataset, shard_tokens, max_tokens)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    if held := sorted(os.listdir(folder)):
        raise ValueError(f"out must be a new or empty folder, but {folder} holds {held[0]}")
    manifest = Manifest(
        command=command,
        dataset=dataset,
        n_split_documents=0,
        rslm_version=rslm_version or importlib.metadata.version("rslm"),
        shards=(),
        sources=tuple(sources),
        end_of_text=tokenizer.end_of_text,
        tokenizer_json=tokenizer.canonical_json.decode(),
        tokenizer_name=tokenizer.name,
        special_tokens=tokenizer.special_tokens,
        vocab_size=tokenizer.vocab_size,
    )
    checked = (_check_document(document, tokenizer.vocab_size) for document in documents)
    for pieces, is_split in _fill_shards(checked, shard_tokens, max_tokens):
        manifest = manifest._replace(n_split_documents=manifest.n_split_documents + is_split)
        manifest = _write_shard(folder, manifest, pieces, tokenizer.token_byte_lengths)
    write_atomically(folder / MANIFEST_NAME, manifest.encode())


def _check_arguments(
    tokenizer: TokenizerRecord, dataset: str, shard_tokens: int, max_tokens: int
) -> None:
    for what, name in (("dataset", dataset), ("tokenizer name", tokenizer.name)):
        if len(name.encode()) > NAME_BYTES or "\0" in name:
            limit = f"at most {NAME_BYTES} bytes and no NUL"
            raise ValueError(f"{what} must have {limit}, got {name!r}")
    if not 1 <= shard_tokens <= max_tokens:
        raise ValueError(f"shard_tokens must be between 1 and {max_tokens}, got {shard_tokens}")
    vocab_size, n_lengths = tokenizer.vocab_size, len(tokenizer.token_byte_lengths)
    if n_lengths != vocab_size:
        expected = f"vocab_size = {vocab_size} entries"
        raise ValueError(f"token_byte_lengths must have {expected}, got {n_lengths}")
    if tokenizer.end_of_text is not None and not 0 <= tokenizer.end_of_text < vocab_size:
        raise ValueError(f"end_of_text must be below vocab_size {vocab_size}")


def _check_document(document: ArrayLike, vocab_size: int) -> TokenIds:
    token_ids = np.asarray(document)
    if token_ids.size == 0 or token_ids.ndim != 1 or token_ids.dtype.kind not in "iu":
        shape = f"shape {token_ids.shape} and dtype {token_ids.dtype}"
        raise ValueError(f"a document must be a vector of at least one integer, got {shape}")
    low, high = int(token_ids.min()), int(token_ids.max())
    if low < 0 or high >= vocab_size:
        wrong = low if low < 0 else high
        raise ValueError(f"token_ids must be in 0..{vocab_size - 1}, got {wrong}")
    return token_ids


def _fill_shards(
    documents: Iterable[TokenIds], shard_tokens: int, max_tokens: int
) -> Iterator[tuple[list[TokenIds], bool]]:
    """The documents of each shard, and whether the last one goes on in the next shard."""
    pieces: list[TokenIds] = []
    n_tokens = 0
    for document in documents:
        rest = document
        while n_tokens + len(rest) > max_tokens:
            room = max_tokens - n_tokens
            yield [*pieces, rest[:room]], True
            pieces, n_tokens, rest = [], 0, rest[room:]
        pieces.append(rest)
        n_tokens += len(rest)
        if n_tokens >= shard_tokens:
            yield pieces, False
            pieces, n_tokens = [], 0
    if pieces:
        yield pieces, False


def _write_shard(
    folder: Path,
    manifest: Manifest,
    pieces: list[TokenIds],
    token_byte_lengths: TokenIds,
) -> Manifest:
    """Writes a shard and its index; the manifest with the shard in it."""
    token_ids = np.concatenate(pieces)
    payload = token_ids.astype(f"<u{manifest.itemsize}").tobytes()
    offsets = np.cumsum([0, *map(len, pieces)]).astype("<u4")
    index = npy_header(len(offsets)) + offsets.tobytes()
    blocks = range(0, len(payload), CRC_BLOCK_BYTES)
    record = ShardRecord(
        n_tokens=len(token_ids),
        n_documents=len(pieces),
        n_utf8_bytes=int(np.asarray(token_byte_lengths)[token_ids].sum(dtype=np.int64)),
        sha256=hashlib.sha256(payload).hexdigest(),
        index_sha256=hashlib.sha256(index).hexdigest(),
        crc32=tuple(zlib.crc32(payload[at : at + CRC_BLOCK_BYTES]) for at in blocks),
    )
    manifest = manifest._replace(shards=(*manifest.shards, record))
    number = len(manifest.shards) - 1
    name = shard_name(number)
    write_atomically(folder / index_name(name), index)
    write_atomically(folder / name, manifest.shard_header(number) + payload)
    return manifest
