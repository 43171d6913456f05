"""Shingles: the runs of n words that a text is compared by, as a set.

Source: Broder 1997, On the resemblance and containment of documents, section 2.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

ShortDocuments = Literal["whole", "none"]


def make_shingles(
    words: Sequence[str], ngram_words: int, short_documents: ShortDocuments
) -> frozenset[str]:
    """Every run of `ngram_words` words, joined by a blank.

    A text of fewer words is one shingle of all of them (of no word: the empty one) if
    `short_documents` is "whole", and has none if it is "none".

    >>> sorted(make_shingles("a rose is a rose is".split(), 3, "whole"))
    ['a rose is', 'is a rose', 'rose is a']
    """
    if len(words) < ngram_words:
        return frozenset([" ".join(words)] if short_documents == "whole" else [])
    starts = range(len(words) - ngram_words + 1)
    return frozenset(" ".join(words[start : start + ngram_words]) for start in starts)


def jaccard(left: frozenset[str], right: frozenset[str]) -> float:
    """The share of the shingles of either that both have; 1 of two empty sets.

    The quotient of two whole numbers in float64, so that 4 of 5 is not below 0.8.
    """
    n_shared = len(left & right)
    n_either = len(left) + len(right) - n_shared
    return n_shared / n_either if n_either else 1.0


def hash_shingles(shingles: Iterable[str]) -> NDArray[np.uint64]:
    """The first 8 bytes of the SHA-1 of each shingle's UTF-8, little-endian, ascending."""
    # A lone surrogate, which no UTF-8 holds, is hashed as the three bytes it would have.
    encoded = (shingle.encode("utf-8", "surrogatepass") for shingle in shingles)
    heads = b"".join(hashlib.sha1(data, usedforsecurity=False).digest()[:8] for data in encoded)
    return np.sort(np.frombuffer(heads, dtype="<u8").astype(np.uint64))
