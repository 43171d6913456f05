"""A random order of n items that needs no memory: any position can be asked for alone.

The order in which training visits the windows of a token file: a function of (n, seed,
epoch, position), the same for any batch size and after any interruption. It defines what a
seeded run reads, so it can never change.

Four rounds of a balanced Feistel network permute the numbers below 4^h, where h = max(4,
ceil(bits(n - 1) / 2)); a result that is not below n is permuted again until it is (cycle
walking), which leaves a permutation of the numbers below n.

Source: Luby and Rackoff 1988 (four Feistel rounds); Black and Rogaway 2002 (cycle walking);
Steele, Lea and Flood 2014 (the SplitMix64 finaliser that mixes the keys).
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

_GAMMA = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1
_N_ROUNDS = 4
_MAX_N = 2**63


def permute(n: int, seed: int, epoch: int, indices: ArrayLike) -> NDArray[np.int64]:
    """The items at the positions `indices` of the random order of `n` items.

    Args:
        n: Number of items, at most 2^63.
        seed: Taken modulo 2^64.
        epoch: Taken modulo 2^64; each epoch has an order of its own.
        indices: Positions, of any shape; the result has the same.

    Raises:
        ValueError: `n` is out of range, or an index is not in 0..n-1.

    >>> permute(10, 0, 0, range(10)).tolist()
    [0, 9, 1, 2, 5, 7, 6, 4, 8, 3]
    """
    positions = np.asarray(indices)
    if positions.size == 0:
        positions = positions.astype(np.int64)
    _check(n, positions)
    half, keys = _key_schedule(n, seed, epoch)
    items = _feistel(positions.astype(np.uint64).ravel(), half, keys)
    outside = np.flatnonzero(items >= np.uint64(n))
    while outside.size:
        items[outside] = _feistel(items[outside], half, keys)
        outside = outside[items[outside] >= np.uint64(n)]
    return items.astype(np.int64).reshape(positions.shape)


def permute_scalar(n: int, seed: int, epoch: int, index: int) -> int:
    """`permute` for one position in plain integers: the readable form, and its oracle."""
    _check(n, np.asarray(index))
    half, keys = _key_schedule(n, seed, epoch)
    item = index
    while True:
        left, right = item >> half, item & ((1 << half) - 1)
        for key in keys:
            left, right = right, left ^ (_mix(right ^ key) >> (64 - half))
        item = left << half | right
        if item < n:
            return item


def _check(n: int, positions: NDArray[np.generic]) -> None:
    if not 1 <= n <= _MAX_N:
        raise ValueError(f"n must be between 1 and 2^63, got {n}")
    if positions.dtype.kind not in "iu":
        raise ValueError(f"indices must be integers, got dtype {positions.dtype}")
    if positions.size and not 0 <= (low := int(positions.min())) <= (high := int(positions.max())):
        raise ValueError(f"indices must be at least 0, got {low}")
    if positions.size and high >= n:
        raise ValueError(f"indices must be below n = {n}, got {high}")


def _key_schedule(n: int, seed: int, epoch: int) -> tuple[int, list[int]]:
    """Bits of half a number, and the key of each round."""
    half = max(4, ((n - 1).bit_length() + 1) // 2)
    base = _mix(_mix(seed + _GAMMA) ^ (epoch & _MASK))
    return half, [_mix(base + (r + 1) * _GAMMA) for r in range(_N_ROUNDS)]


def _mix(x: int) -> int:
    """The finaliser of SplitMix64, modulo 2^64."""
    x &= _MASK
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & _MASK
    return x ^ x >> 31


def _feistel(x: NDArray[np.uint64], half: int, keys: list[int]) -> NDArray[np.uint64]:
    """One walk: a permutation of the numbers below 4^half."""
    left, right = x >> np.uint64(half), x & np.uint64((1 << half) - 1)
    for key in keys:
        left, right = right, left ^ (_mix_array(right ^ np.uint64(key)) >> np.uint64(64 - half))
    return left << np.uint64(half) | right


def _mix_array(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """`_mix` of each element; products of uint64 arrays wrap, as they must here."""
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return x ^ x >> np.uint64(31)
