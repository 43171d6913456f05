"""MinHash signatures: short vectors that agree in about the share that two sets have in common.

Each of many hash functions keeps its least value over the set; two sets keep the same one with
a chance that is their Jaccard similarity.

Source: Broder 1997. The hash functions are those of FineWeb's signatures, bit for bit:
((x a + b) mod 2^64) mod (2^61 - 1). The wrap at 2^64 is no universal hashing's (Carter and
Wegman 1979), yet with it left out the values are others.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_MERSENNE_PRIME = 2**61 - 1
# Products of so many shingles at a time: 1 MB of them for 112 hash functions.
_BLOCK_SHINGLES = 1024


@dataclass(frozen=True, kw_only=True)
class HashFunctions:
    """Factors and summands of the hash functions, one each."""

    factors: NDArray[np.uint64]
    summands: NDArray[np.uint64]


def draw_hash_functions(n_hashes: int, seed: int) -> HashFunctions:
    """The hash functions of a seed, which NumPy promises never to draw otherwise.

    Factors are drawn first, all of them, then summands: so a seed's first ten hash functions
    are others when twenty are drawn.

    Raises:
        ValueError: `n_hashes` is below 1, or `seed` not in 0..2^32-1.
    """
    if n_hashes < 1:
        raise ValueError(f"n_hashes must be at least 1, got {n_hashes}")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must be between 0 and 2^32 - 1, got {seed}")
    draw = np.random.RandomState(seed)
    factors = draw.randint(1, _MERSENNE_PRIME, size=n_hashes, dtype=np.uint64)
    summands = draw.randint(0, _MERSENNE_PRIME, size=n_hashes, dtype=np.uint64)
    return HashFunctions(factors=factors, summands=summands)


def sign(hashes: NDArray[np.uint64], functions: HashFunctions) -> NDArray[np.uint64]:
    """The signature of a set of hashed shingles: for each hash function its least value.

    Raises:
        ValueError: the set is empty, which has no least value.
    """
    if not hashes.size:
        raise ValueError("a signature needs at least one shingle, got none")
    signature = np.full(functions.factors.shape, 2**64 - 1, dtype=np.uint64)
    for start in range(0, len(hashes), _BLOCK_SHINGLES):
        block = hashes[start : start + _BLOCK_SHINGLES, np.newaxis]
        # Products and sums of uint64 arrays wrap at 2^64, as they must here.
        values = (block * functions.factors + functions.summands) % np.uint64(_MERSENNE_PRIME)
        np.minimum(signature, values.min(axis=0), out=signature)
    return signature


def estimate_jaccard(left: NDArray[np.uint64], right: NDArray[np.uint64]) -> float:
    """The share of places where two signatures agree.

    Of the similarity s it is an estimate with the standard error sqrt(s (1 - s) / n_hashes).
    """
    return float(np.mean(left == right))
