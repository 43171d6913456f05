"""How many ids, merges or bytes of two answers differ, in words."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


def count_differences(operation: str, expected: Path, given: Path, vocabulary: str | None) -> str:
    if operation == "train":
        return compare_merges(expected.read_bytes(), given.read_bytes())
    if operation.startswith("decode"):
        return compare_bytes(expected.read_bytes(), given.read_bytes())
    assert vocabulary is not None
    return compare_ids(
        np.fromfile(expected, dtype="<u4"),
        np.fromfile(given, dtype="<u4"),
        token_lengths(Path(vocabulary)),
    )


def compare_merges(expected: bytes, given: bytes) -> str:
    ours, theirs = expected.split(b"\n"), given.split(b"\n")
    common = min(len(ours), len(theirs))
    first = next((i for i in range(common) if ours[i] != theirs[i]), common)
    if first == common:
        return f"differs: {len(theirs):,} merges, not {len(ours):,}"
    return f"differs: first in merge {first:,} of {len(ours):,}"


def compare_bytes(expected: bytes, given: bytes) -> str:
    common = min(len(expected), len(given))
    ours, theirs = (np.frombuffer(data[:common], dtype=np.uint8) for data in (expected, given))
    n_different = int(np.count_nonzero(ours != theirs)) + abs(len(expected) - len(given))
    return f"differs: {n_different:,} of {len(expected):,} bytes"


def compare_ids(
    expected: npt.NDArray[Any], given: npt.NDArray[Any], lengths: npt.NDArray[np.int64]
) -> str:
    """Counts the expected ids that do not stand at the same place of the text in `given`.

    Or at the same place of the list, if those are fewer: where the ids are of another text,
    all places behind the first difference are other ones.
    """
    n_placed = len(np.intersect1d(placed(expected, lengths), placed(given, lengths)))
    common = min(len(expected), len(given))
    n_listed = int(np.count_nonzero(expected[:common] == given[:common]))
    n_different = max(len(expected), len(given)) - max(n_placed, n_listed)
    return f"differs: {n_different:,} of {len(expected):,} ids"


def placed(ids: npt.NDArray[Any], lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """One number for each id and where it begins; an id without a token has no length."""
    known = np.minimum(ids.astype(np.int64), len(lengths) - 1)
    sizes = np.where(ids < len(lengths), lengths[known], 0)
    starts = np.cumsum(sizes) - sizes
    return starts << 22 | ids.astype(np.int64) & 0x3FFFFF


def token_lengths(vocabulary: Path) -> npt.NDArray[np.int64]:
    import rslm

    tokenizer = rslm.Tokenizer.load(vocabulary / f"{vocabulary.name}.json")
    return tokenizer.token_byte_lengths.astype(np.int64)
