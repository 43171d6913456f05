"""pass@k: exact values, by the binomials and by trying all draws."""

import math
from fractions import Fraction
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rslm.evaluate.pass_at_k import mean_pass_at_k, pass_at_k


def test_the_values_of_the_paper():
    assert pass_at_k(10, 3, 1) == pytest.approx(0.3, rel=1e-15)
    assert pass_at_k(10, 3, 5) == pytest.approx(11 / 12, rel=1e-15)


@given(st.data())
def test_it_is_the_ratio_of_binomials(data: st.DataObject):
    n = data.draw(st.integers(1, 200))
    n_right, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    exact = 1 - Fraction(math.comb(n - n_right, k), math.comb(n, k))
    assert pass_at_k(n, n_right, k) == pytest.approx(float(exact), abs=1e-14)


def test_it_is_the_share_of_draws_with_a_right_one():
    for n_right in range(7):
        for k in range(1, 7):
            draws = list(combinations(range(6), k))
            share = sum(any(i < n_right for i in draw) for draw in draws) / len(draws)
            assert pass_at_k(6, n_right, k) == pytest.approx(share, abs=1e-15)


def test_it_is_unbiased():
    p, n, k = 0.3, 8, 5
    mean = sum(
        math.comb(n, c) * p**c * (1 - p) ** (n - c) * pass_at_k(n, c, k) for c in range(n + 1)
    )
    assert mean == pytest.approx(1 - (1 - p) ** k, abs=1e-14)


def test_it_does_not_overflow():
    assert 0 < pass_at_k(10**6, 10, 1000) < 0.02
    assert pass_at_k(10**6, 10**6 - 1, 2) == 1.0


@pytest.mark.parametrize("wrong", [(0, 0, 1), (3, 4, 1), (3, -1, 1), (3, 1, 4), (3, 1, 0)])
def test_impossible_counts_are_refused(wrong: tuple[int, int, int]):
    with pytest.raises(ValueError, match="k from 1 to n"):
        pass_at_k(*wrong)


def test_the_mean_has_a_standard_error():
    value, error = mean_pass_at_k([(2, 0), (2, 2), (2, 1)], 1)
    assert value == pytest.approx(0.5)
    assert error == pytest.approx(0.5 / math.sqrt(3))
