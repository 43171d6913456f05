"""How the texts of a shard reach the Rust that reads them."""

from collections.abc import Iterable, Iterator

from rslm import _rslm

MEMORY_LIMIT_BYTES = 256 << 20
"""What a stage holds of records or sets, unless told otherwise."""

_BATCH_CHARACTERS = 4 << 20
_BATCH_TEXTS = 4096
_MOST_RANGES = 1 << 16


def require_n_ranges(n_ranges: int) -> None:
    """Raises a `ValueError` if hashes cannot be cut into as many ranges."""
    if not 1 <= n_ranges <= _MOST_RANGES:
        raise ValueError(f"n_ranges must be between 1 and {_MOST_RANGES}, got {n_ranges}")


def fill(writer: _rslm.ShardWriter, texts: Iterable[str]) -> int:
    """Gives all texts to the writer, which writes its file; what it counted."""
    try:
        for batch in batches(texts):
            writer.add(batch)
        return writer.finish()
    finally:
        # An exception keeps its frames, and so the writer, alive: what lies beside the target
        # goes now.
        writer.discard()


def batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """The texts in lists of some megabytes: few calls, and time for Ctrl-C between them."""
    batch: list[str] = []
    n_characters = 0
    for text in texts:
        batch.append(text)
        n_characters += len(text)
        if n_characters >= _BATCH_CHARACTERS or len(batch) == _BATCH_TEXTS:
            yield batch
            batch, n_characters = [], 0
    if batch:
        yield batch
