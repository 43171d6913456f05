import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rslm.experiment.power import MAX_N, Kind, minimal_effect, n_needed, noncentrality_of, power_of


@pytest.mark.parametrize(
    ("deviation", "effect", "runs"),
    [
        (1.34e-3, 5e-3, 3),
        (1.34e-3, 2e-3, 9),
        (2.3e-4, 5e-4, 5),
        (2.3e-4, 2e-4, 22),
        (6.2e-3, 1e-2, 8),
        (6.2e-3, 5e-3, 26),
    ],
)
def test_runs_needed_are_those_of_the_exact_test(deviation: float, effect: float, runs: int):
    assert n_needed(effect, deviation) == runs
    assert n_needed(-effect, deviation) == runs
    # The formula with the normal distribution is short of it.
    assert math.ceil(15.7 * (deviation / effect) ** 2) < runs


@given(st.floats(0, 3), st.integers(2, 200), st.sampled_from(["welch", "paired"]))
def test_power_is_that_of_the_noncentral_t(effect: float, n: int, kind: Kind):
    freedom, runs = (2 * n - 2, n / 2) if kind == "welch" else (n - 1, n)
    critical, noncentrality = stats.t.ppf(0.975, freedom), effect * math.sqrt(runs)
    expected = stats.nct.sf(critical, freedom, noncentrality)
    expected += stats.nct.cdf(-critical, freedom, noncentrality)
    power = power_of(effect, 1.0, n, kind=kind)
    if not math.isnan(expected):  # As SciPy's is at many places.
        assert power == pytest.approx(expected, abs=1e-10)
    assert 0.05 - 1e-9 <= power <= 1 + 1e-9


def test_power_without_an_effect_is_alpha():
    for freedom in (1, 1.3, 5, 1000):
        reach = noncentrality_of(freedom, alpha=0.01, power=0.0100001)
        assert reach < 0.01
    assert power_of(0.0, 1.0, 2, alpha=0.2) == pytest.approx(0.2)


@given(st.floats(1e-3, 1e3), st.integers(2, 300), st.sampled_from(["welch", "paired"]))
def test_minimal_effect_is_found_with_the_power_asked_for(deviation: float, n: int, kind: Kind):
    effect = minimal_effect(deviation, n, kind=kind, power=0.9)
    assert power_of(effect, deviation, n, kind=kind) == pytest.approx(0.9, abs=1e-6)


@given(st.floats(0.05, 20), st.sampled_from(["welch", "paired"]))
def test_runs_needed_are_the_fewest(effect: float, kind: Kind):
    n = n_needed(effect, 1.0, kind=kind)
    assert n is not None
    assert power_of(effect, 1.0, n, kind=kind) >= 0.8
    assert n == 2 or power_of(effect, 1.0, n - 1, kind=kind) < 0.8


def test_runs_needed_have_an_end():
    assert n_needed(0.0, 1.0) is None
    assert n_needed(1e-4, 1.0) is None
    assert n_needed(0.0, 0.0) is None
    assert n_needed(1e-9, 0.0) == 2
    assert n_needed(1.0001 * minimal_effect(1.0, MAX_N), 1.0) == MAX_N - 1
    assert n_needed(0.9999 * minimal_effect(1.0, MAX_N), 1.0) is None
