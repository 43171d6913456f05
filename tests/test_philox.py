import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rslm.infer import philox as module
from rslm.infer.philox import (
    candidate_noise,
    philox,
    philox_torch,
    sampling_key,
    uniform,
    vocabulary_noise,
)

CPU = torch.device("cpu")
WORDS = st.integers(0, 2**32 - 1)

# The vectors that Random123 ships in kat_vectors: counter, key, output.
KNOWN_ANSWERS = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


def philox_plain(counter: list[int], key: list[int]) -> list[int]:
    """Salmon et al. 2011, in Python's whole numbers."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c0, 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c2, 2**32)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return [c0, c1, c2, c3]


def in_numpy(counter: list[int], key: list[int]) -> list[int]:
    as_array = [np.array([word], np.uint64) for word in [*counter, *key]]
    return [int(word[0]) for word in philox(as_array[:4], as_array[4:])]


def in_torch(counter: list[int], key: list[int]) -> list[int]:
    as_tensor = [torch.tensor([word]) for word in [*counter, *key]]
    return [int(word) for word in philox_torch(as_tensor[:4], as_tensor[4:])]


@pytest.mark.parametrize("compute", [philox_plain, in_numpy, in_torch])
@pytest.mark.parametrize(("counter", "key", "output"), KNOWN_ANSWERS)
def test_philox_gives_the_known_answers(compute, counter, key, output):
    assert compute(counter, key) == output


@given(st.lists(WORDS, min_size=4, max_size=4), st.lists(WORDS, min_size=2, max_size=2))
def test_numpy_and_torch_equal_whole_numbers(counter: list[int], key: list[int]):
    assert philox_plain(counter, key) == in_numpy(counter, key) == in_torch(counter, key)


@given(
    st.lists(
        st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1)), min_size=1, max_size=4
    ),
    st.integers(1, 70),
)
def test_noise_is_that_of_its_key_position_and_id(places: list[tuple[int, int]], vocab_size: int):
    keys, positions = [key for key, _ in places], [position for _, position in places]
    noise = vocabulary_noise(keys, positions, vocab_size, CPU)
    assert noise.shape == (len(places), vocab_size)
    for row, (key, position) in zip(noise, places, strict=True):
        for v in (0, vocab_size // 2, vocab_size - 1):
            word = philox_plain([v // 4, position, 0, 0], [key % 2**32, key >> 32])[v % 4]
            expected = -math.log(-math.log((word + 0.5) / 2**32))
            # float32 rounds E = -log u, then -log E: two half ulps, the first over E.
            assert row[v].item() == pytest.approx(expected, rel=3e-7, abs=3e-7)


@given(st.data(), st.integers(1, 6), st.integers(5, 3000))
def test_noise_of_candidates_is_that_of_the_whole_vocabulary(
    data: st.DataObject, rows: int, vocab_size: int
):
    keys = data.draw(st.lists(st.integers(0, 2**64 - 1), min_size=rows, max_size=rows))
    positions = data.draw(st.lists(st.integers(0, 9999), min_size=rows, max_size=rows))
    n = data.draw(st.integers(1, 9))
    ids = torch.tensor(
        data.draw(
            st.lists(
                st.lists(st.integers(0, vocab_size - 1), min_size=n, max_size=n),
                min_size=rows,
                max_size=rows,
            )
        )
    )
    whole = vocabulary_noise(keys, positions, vocab_size, CPU)
    assert torch.equal(whole.gather(1, ids), candidate_noise(keys, positions, ids, vocab_size))


@pytest.mark.parametrize("vocab_size", [1, 3, 1000, 49_152])
def test_noise_of_a_row_is_the_same_in_every_batch(vocab_size: int):
    keys, positions = [sampling_key(7, i) for i in range(9)], list(range(3, 12))
    together = vocabulary_noise(keys, positions, vocab_size, CPU)
    for row in range(9):
        alone = vocabulary_noise(keys[row : row + 1], positions[row : row + 1], vocab_size, CPU)
        assert torch.equal(together[row], alone[0])


def test_other_devices_get_the_same_noise(monkeypatch: pytest.MonkeyPatch):
    keys, positions, ids = (
        [sampling_key(1, 0), 2**64 - 1],
        [5, 70],
        torch.tensor([[3, 900], [1, 2]]),
    )
    expected = (
        vocabulary_noise(keys, positions, 1001, CPU),
        candidate_noise(keys, positions, ids, 1001),
    )

    class Elsewhere:
        """A device that is not called cpu, whose tensors are those of the CPU."""

        type = "elsewhere"

    for name in ("arange", "tensor"):
        make = getattr(torch, name)
        monkeypatch.setattr(module.torch, name, lambda *args, device=None, make=make: make(*args))
    assert torch.equal(vocabulary_noise(keys, positions, 1001, Elsewhere()), expected[0])


def test_noise_is_finite_at_both_ends():
    ends = torch.tensor([0.0, 2.0**32 - 1], dtype=torch.float64)
    low, high = module._gumbel(ends).tolist()
    # -log(-log(2^-33)), and 33 log 2 as 1 - u is 2^-33.
    assert low == pytest.approx(-math.log(33 * math.log(2)), rel=1e-6)
    assert high == pytest.approx(33 * math.log(2), rel=1e-6)


def test_noise_has_the_moments_of_a_gumbel_distribution():
    noise = vocabulary_noise([sampling_key(0, i) for i in range(8)], [0] * 8, 50_000, CPU).double()
    # Five standard errors at 400,000 draws: sd π/√6 = 1.28; the variance's from kurtosis 5.4.
    assert noise.mean().item() == pytest.approx(0.5772157, abs=5 * 1.2825 / 400_000**0.5)
    assert noise.var().item() == pytest.approx(
        math.pi**2 / 6, abs=5 * math.pi**2 / 6 * (4.4 / 400_000) ** 0.5
    )


def test_uniform_differs_from_all_noise_of_its_place():
    key = sampling_key(3, 1)
    assert 0 < uniform(key, 5) < 1
    assert uniform(key, 5) == uniform(key, 5)
    assert len({uniform(key, position) for position in range(100)}) == 100
    word = philox_plain([0, 5, 0, 1], [key % 2**32, key >> 32])[0]
    assert uniform(key, 5) == (word + 0.5) / 2**32


def test_keys_differ_by_seed_and_by_index():
    keys = {sampling_key(seed, index) for seed in range(-20, 20) for index in range(20)}
    assert len(keys) == 800
    assert all(0 <= key < 2**64 for key in keys)
    # The same on every machine and in every version: a seed that was told stays good.
    assert sampling_key(1, 0) == 0x2AA35D3658BBF38B
