"""Noise that is a function of its place: Philox4x32-10, and Gumbel noise from it.

There is no generator and no state. The noise of vocabulary entry v at position t of a sequence is
word v mod 4 of Philox4x32-10 under the sequence's key, of the counter (v div 4, t, 0, 0). What
batch a sequence is in, what was drawn before, what was preempted or drafted cannot change it.

NumPy computes it for CPUs, where it calls faster, and torch for other devices; the integers are
the same, which the tests hold.

Source: Salmon et al. 2011, Parallel Random Numbers: As Easy as 1, 2, 3, section 3.3 and Table 2.
"""

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Words = npt.NDArray[np.uint64]

N_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF
_CACHED_COUNTERS = 16_384
_N_AHEAD, _MOST_AHEAD = 8, 4096


def sampling_key(seed: int, index: int) -> int:
    """The 64-bit key of completion `index` of a request with this seed."""
    digest = hashlib.blake2b(f"{seed} {index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def philox(counter: Sequence[Words], key: Sequence[Words]) -> list[Words]:
    """The four output words for four words of counter and two of key, by broadcasting.

    Every word is a 32-bit number in an unsigned 64-bit integer.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    m0, m1 = (np.uint64(multiplier) for multiplier in _MULTIPLIERS)
    mask, half = np.uint64(_MASK), np.uint64(32)
    for _ in range(N_ROUNDS):
        p0, p1 = c0 * m0, c2 * m1
        c0, c1, c2, c3 = (p1 >> half) ^ (c1 ^ k0), p1 & mask, (p0 >> half) ^ (c3 ^ k1), p0 & mask
        k0, k1 = (k0 + np.uint64(_WEYL[0])) & mask, (k1 + np.uint64(_WEYL[1])) & mask
    return [c0, c1, c2, c3]


def philox_torch(counter: Sequence[Tensor], key: Sequence[Tensor]) -> list[Tensor]:
    """`philox` in torch, with the words in int64.

    Products overflow into the sign, which the shift then drags along: hence one mask more.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(N_ROUNDS):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1 = ((p1 >> 32) & _MASK) ^ (c1 ^ k0), p1 & _MASK
        c2, c3 = ((p0 >> 32) & _MASK) ^ (c3 ^ k1), p0 & _MASK
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return [c0, c1, c2, c3]


def vocabulary_noise(
    keys: Sequence[int], positions: Sequence[int], vocab_size: int, device: torch.device
) -> Tensor:
    """Gumbel noise (rows, vocab_size) of every vocabulary entry: row i has key and position i."""
    if device.type == "cpu" and len(keys) * vocab_size <= _MOST_AHEAD:
        return torch.stack(
            [
                _noise_ahead(key, position // _N_AHEAD, vocab_size)[position % _N_AHEAD]
                for key, position in zip(keys, positions, strict=True)
            ]
        )
    return _vocabulary_noise(keys, positions, vocab_size, device)


@lru_cache(maxsize=16)
def _noise_ahead(key: int, eighth: int, vocab_size: int) -> Tensor:
    """The noise of eight positions that follow one another.

    So little takes about as long to compute as one position's: calls cost more than numbers. A
    sequence alone with 1,024 ids draws in 0.10 ms instead of 0.21 ms.
    """
    positions = range(eighth * _N_AHEAD, (eighth + 1) * _N_AHEAD)
    cpu = torch.device("cpu")
    return _vocabulary_noise([key] * _N_AHEAD, list(positions), vocab_size, cpu)


def _vocabulary_noise(
    keys: Sequence[int], positions: Sequence[int], vocab_size: int, device: torch.device
) -> Tensor:
    n_counters = -(-vocab_size // 4)
    if device.type == "cpu":
        counters = np.arange(n_counters, dtype=np.uint64)
        noise = torch.empty(len(keys), n_counters * 4)
        # So many rows at once as stay in the processor's cache: eight of a vocabulary of 49,152
        # take 13 ms in one go, 4.5 ms one by one.
        n_rows = max(1, _CACHED_COUNTERS // n_counters)
        for first in range(0, len(keys), n_rows):
            rows = slice(first, first + n_rows)
            words = philox(*_numpy_inputs(keys[rows], positions[rows], counters))
            integers = np.empty((*words[0].shape, 4))
            for i, word in enumerate(words):
                # As signed integers, which processors turn into floating point faster.
                integers[:, :, i] = word.view(np.int64)
            noise[rows] = _gumbel(torch.from_numpy(integers)).view(len(integers), -1)
    else:
        every = torch.arange(n_counters, device=device)
        stacked = torch.stack(philox_torch(*_torch_inputs(keys, positions, every)), -1)
        noise = _gumbel(stacked.double()).view(len(keys), -1)
    return noise[:, :vocab_size]


def candidate_noise(
    keys: Sequence[int], positions: Sequence[int], token_ids: Tensor, vocab_size: int
) -> Tensor:
    """`vocabulary_noise` at the `token_ids` (rows, candidates) alone, the cheapest way."""
    # A counter gives the noise of four ids that follow one another.
    few = 4 * token_ids.shape[-1] < vocab_size
    if not few or (token_ids.device.type == "cpu" and len(keys) * vocab_size <= _MOST_AHEAD):
        return vocabulary_noise(keys, positions, vocab_size, token_ids.device).gather(-1, token_ids)
    if token_ids.device.type == "cpu":
        ids = token_ids.numpy().astype(np.uint64)
        words = philox(*_numpy_inputs(keys, positions, ids >> np.uint64(2)))
        chosen = np.choose((ids & np.uint64(3)).view(np.int64), words)
        return _gumbel(torch.from_numpy(chosen.astype(np.float64)))
    stacked = torch.stack(philox_torch(*_torch_inputs(keys, positions, token_ids >> 2)), -1)
    return _gumbel(stacked.gather(-1, (token_ids & 3).unsqueeze(-1)).squeeze(-1).double())


def uniform(key: int, position: int) -> float:
    """A number from (0, 1), apart from all noise: its counter ends in 1 where theirs end in 0."""
    one = [np.array([word], dtype=np.uint64) for word in (0, position, 0, 1)]
    halves = [np.array([half], dtype=np.uint64) for half in (key & _MASK, key >> 32)]
    return (int(philox(one, halves)[0][0]) + 0.5) / 2**32


def _gumbel(integers: Tensor) -> Tensor:
    """Standard Gumbel noise, in float32, of 32-bit integers held in float64.

    Half a step up puts the integers strictly between 0 and 1: either end would be infinite. The
    inner logarithm is taken in float64, as float32 has no 32-bit numbers just below 1, where
    the noise of unlikely ids that win comes from.
    """
    exponential = integers.add_(0.5).mul_(2.0**-32).log_().neg_()
    return exponential.float().log_().neg_()


def _numpy_inputs(
    keys: Sequence[int], positions: Sequence[int], counters: Words
) -> tuple[list[Words], list[Words]]:
    zero = np.zeros((1, 1), np.uint64)
    whole = np.array(keys, dtype=np.uint64).reshape(-1, 1)
    place = np.array(positions, dtype=np.uint64).reshape(-1, 1)
    # Rows differ only in key and position, so the first round is of one row.
    counter = [np.atleast_2d(counters), place, zero, zero]
    return counter, [whole & np.uint64(_MASK), whole >> np.uint64(32)]


def _torch_inputs(
    keys: Sequence[int], positions: Sequence[int], counters: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    device = counters.device
    halves = [[key & _MASK for key in keys], [key >> 32 for key in keys]]
    low, high = (torch.tensor(half, device=device).unsqueeze(-1) for half in halves)
    place = torch.tensor(positions, device=device).unsqueeze(-1)
    zero = torch.zeros_like(place)
    return [counters.view(-1, counters.shape[-1]), place, zero, zero], [low, high]
