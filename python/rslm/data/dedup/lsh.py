"""Locality-sensitive hashing: signatures cut into bands, and who shares one.

Two documents are candidates if they agree in all rows of at least one band.

Source: Leskovec, Rajaraman and Ullman 2020, Mining of Massive Datasets, section 3.4.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

MAX_BUCKET = 1000
"""Members of a bucket beyond which not every pair is compared: a cost of their square."""
N_REPRESENTATIVES = 64
"""Members of such a bucket, those of the smallest ids, that all others are compared with."""


def candidate_probability(similarity: float, n_rows: int, n_bands: int) -> float:
    """The chance that two documents of a similarity share a band: 1 - (1 - s^r)^b.

    >>> round(candidate_probability(0.8, 8, 14), 3)
    0.924
    """
    return float(1 - (1 - similarity**n_rows) ** n_bands)


def steepest_similarity(n_rows: int, n_bands: int) -> float:
    """About where the chance of a candidate rises steepest: (1/b)^(1/r).

    >>> round(steepest_similarity(8, 14), 2)
    0.72
    """
    return float((1 / n_bands) ** (1 / n_rows))


def cut_bands(signature: NDArray[np.uint64], n_bands: int) -> tuple[bytes, ...]:
    """The rows of each band, little-endian, 8 bytes each: whole, so that no two bands collide."""
    rows = signature.astype("<u8").reshape(n_bands, -1)
    return tuple(band.tobytes() for band in rows)


def find_buckets(documents: Sequence[tuple[bytes, ...]]) -> list[tuple[int, ...]]:
    """The groups of documents that share a band, as ascending indices into `documents`.

    Groups of one are left out; a group that shares several bands comes once for each. The
    groups are in ascending order. A document without bands is in none.
    """
    members: defaultdict[tuple[int, bytes], list[int]] = defaultdict(list)
    for index, bands in enumerate(documents):
        for number, band in enumerate(bands):
            members[number, band].append(index)
    return sorted(tuple(group) for group in members.values() if len(group) > 1)


def is_capped(bucket: Sequence[int]) -> bool:
    """Whether a bucket is so large that not every pair of it is compared."""
    return len(bucket) > MAX_BUCKET


def pairs_to_compare(bucket: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The pairs of a bucket, smaller index first; of a capped one those with a representative."""
    n_first = N_REPRESENTATIVES if is_capped(bucket) else len(bucket)
    for place, first in enumerate(bucket[:n_first]):
        for second in bucket[place + 1 :]:
            yield first, second
