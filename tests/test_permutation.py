import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from rslm import _rslm
from rslm.permutation import permute, permute_scalar

VECTORS = [
    (10, 0, 0, range(10), [0, 9, 1, 2, 5, 7, 6, 4, 8, 3]),
    (10, 0, 1, range(10), [7, 2, 6, 1, 3, 8, 4, 5, 9, 0]),
    (1_000_003, 1337, 2, range(5), [117638, 440410, 817048, 887341, 428612]),
    (2**33, 42, 7, [0, 1, 2**33 - 1], [2287935811, 6964179958, 4139278292]),
]
UINT64 = st.integers(0, 2**64 - 1)


@pytest.mark.parametrize(("n", "seed", "epoch", "indices", "expected"), VECTORS)
def test_permute_equals_the_published_vectors(n, seed, epoch, indices, expected):
    assert permute(n, seed, epoch, indices).tolist() == expected
    assert [permute_scalar(n, seed, epoch, index) for index in indices] == expected


@given(st.data(), st.integers(1, 2**63), UINT64, UINT64)
def test_permute_equals_its_scalar_form(data, n, seed, epoch):
    indices = data.draw(st.lists(st.integers(0, n - 1), max_size=5))
    expected = [permute_scalar(n, seed, epoch, index) for index in indices]
    assert permute(n, seed, epoch, indices).tolist() == expected


@given(st.data(), st.integers(1, 2**63), UINT64, UINT64)
def test_permute_equals_rust(data, n, seed, epoch):
    index = data.draw(st.integers(0, n - 1))
    assert permute(n, seed, epoch, index) == _rslm.permute(n, seed, epoch, index)


@pytest.mark.parametrize("n", [1, 2, 16, 255, 256, 257, 5000])
def test_permute_visits_every_item_once(n):
    assert sorted(permute(n, 3, 1, range(n)).tolist()) == list(range(n))


@pytest.mark.parametrize("n", [10, 50])
def test_permute_favours_no_position(n):
    n_epochs = 400
    counts = np.zeros((n, n))
    for epoch in range(n_epochs):
        counts[np.arange(n), permute(n, 11, epoch, range(n))] += 1
    expected = n_epochs / n
    chi_square = ((counts - expected) ** 2 / expected).sum()
    # (n-1)^2 degrees of freedom, standard deviation sqrt(2) (n-1): five of them above the mean.
    assert chi_square < (n - 1) ** 2 + 5 * 2**0.5 * (n - 1)


def test_permute_keeps_the_shape_of_the_indices():
    assert permute(100, 0, 0, np.arange(6).reshape(2, 3)).shape == (2, 3)
    assert permute(100, 0, 0, []).shape == (0,)
    assert permute(100, 0, 0, 7).shape == ()


@pytest.mark.parametrize(
    ("n", "indices", "message"),
    [
        (0, [], r"n must be between 1 and 2\^63, got 0"),
        (2**63 + 1, [], r"n must be between 1 and 2\^63"),
        (10, [0, 10], "indices must be below n = 10, got 10"),
        (10, [-1], "indices must be at least 0, got -1"),
        (10, [0.5], "indices must be integers, got dtype float64"),
    ],
)
def test_permute_refuses_what_is_out_of_range(n, indices, message):
    with pytest.raises(ValueError, match=message):
        permute(n, 0, 0, indices)
