"""Documents held out for validation by a hash of their bytes.

Whether a document is held out depends on its bytes and the share alone: not on its place, on the
other documents or on how often the corpus was put together anew. So copies of a document are all
on one side, a corpus that grows keeps its validation documents, and a larger share holds out what
a smaller one does and more.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from rslm.files import END_OF_TEXT

_SEPARATOR = END_OF_TEXT.encode()
_BLOCK_BYTES = 1 << 20


@dataclass(kw_only=True)
class SideCounts:
    """Documents and bytes of one side of a split, without separators."""

    n_documents: int = 0
    n_bytes: int = 0


def is_held_out(document: bytes, share: float) -> bool:
    """Whether the first 64 bits of the SHA-256 of a document, as a fraction, are below `share`.

    >>> is_held_out(b"Once upon a time", 1.0), is_held_out(b"Once upon a time", 0.0)
    (True, False)
    """
    number = int.from_bytes(hashlib.sha256(document).digest()[:8], "big")
    # Compared as whole numbers: as a float the largest hashes would round up to 1.
    return number < int(share * 2**64)


def documents_of(path: Path) -> Iterator[bytes]:
    """The documents of a text file that end with `<|endoftext|>` or the file; blank ones are none.

    Memory: the longest document, and a block.
    """
    rest: list[bytes] = []
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            # A separator may be cut by the border of two blocks: the end of what came before is
            # searched again, and no more of it, however long a document is.
            tail = rest.pop() if rest else b""
            if len(tail) > len(_SEPARATOR):
                rest.append(tail[: -len(_SEPARATOR)])
                tail = tail[-len(_SEPARATOR) :]
            first, *others = (tail + block).split(_SEPARATOR)
            rest.append(first)
            if others:
                yield from _unless_blank(b"".join(rest))
                for document in others[:-1]:
                    yield from _unless_blank(document)
                rest = others[-1:]
    yield from _unless_blank(b"".join(rest))


def _unless_blank(document: bytes) -> Iterator[bytes]:
    if document.strip():
        yield document


def split_files(
    files: Sequence[Path], train: Path, valid: Path, share: float
) -> tuple[SideCounts, SideCounts]:
    """Writes the documents of text files to two files, those held out to `valid`, in order.

    Each document is followed by `<|endoftext|>`. Both files are complete or absent.

    Raises:
        ValueError: `share` is not between 0 and 1, the two files or one of them and a file to
            split are one, or no document would be on one side.
        FileExistsError: one of the two exists.
        OSError: reading or writing failed.
    """
    if not 0 < share < 1:
        raise ValueError(f"share must be between 0 and 1 to make {valid}, got {share}")
    targets = (train, valid)
    resolved = [path.resolve() for path in (*files, *targets)]
    for target in targets:
        if resolved.count(target.resolve()) > 1:
            raise ValueError(
                f"train, valid and the files to split must be different files, got {target} twice"
            )
    for target in targets:
        if target.exists():
            raise FileExistsError(f"{target} already exists")
    besides = [target.with_name(f"{target.name}.tmp-{os.getpid()}") for target in targets]
    try:
        with besides[0].open("wb") as train_file, besides[1].open("wb") as valid_file:
            counts = _route(files, train_file, valid_file, share)
            _require_both(targets, counts, share)
            for file in (train_file, valid_file):
                file.flush()
                os.fsync(file.fileno())
        for beside, target in zip(besides, targets, strict=True):
            beside.replace(target)
    finally:
        for beside in besides:
            beside.unlink(missing_ok=True)
    return counts


def _require_both(
    targets: tuple[Path, Path], counts: tuple[SideCounts, SideCounts], share: float
) -> None:
    """Refuses a share that leaves one of the files without a document."""
    n_documents = sum(count.n_documents for count in counts)
    for target, count in zip(targets, counts, strict=True):
        if count.n_documents == 0:
            raise ValueError(
                f"share must leave a document for {target}: {share} of {n_documents} documents "
                "held out by their hashes leaves none"
            )


def _route(
    files: Iterable[Path], train_file: IO[bytes], valid_file: IO[bytes], share: float
) -> tuple[SideCounts, SideCounts]:
    counts = SideCounts(), SideCounts()
    for path in files:
        for document in documents_of(path):
            held_out = is_held_out(document, share)
            (valid_file if held_out else train_file).write(document + _SEPARATOR)
            counts[held_out].n_documents += 1
            counts[held_out].n_bytes += len(document)
    return counts
