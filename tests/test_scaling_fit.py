import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scaling_points import BUDGETS, LAW, isoflop_points, training_curves, with_noise
from scipy.optimize import approx_fprime, minimize, nnls

from rslm.scaling.fit import fit_law, hold_out, optima_of
from rslm.scaling.fitted import METHODS
from rslm.scaling.frontier import fit_decay, fit_frontier
from rslm.scaling.huber import _Logarithms, fit_huber, huber_objective, refit_huber
from rslm.scaling.laws import LossLaw
from rslm.scaling.least_squares import nonnegative_least_squares
from rslm.scaling.parabolas import find_valleys
from rslm.scaling.points import ScalingPoints, read_points
from rslm.scaling.vpnls import fit_vpnls, refit_vpnls

# Besiroglu et al. 2024, and Hoffmann et al. 2022 as rounded.
PUBLISHED = LossLaw(
    irreducible_loss=1.81686,
    parameter_factor=482.01,
    parameter_exponent=0.34781,
    token_factor=2085.43,
    token_exponent=0.36585,
)


def values(law: LossLaw) -> list[float]:
    return law.values()


def test_published_law_spends_budgets_as_published() -> None:
    expected = {
        1e19: (262e6, 6.35e9, 2.926),
        1e21: (2.78e9, 59.9e9, None),
        5.76e23: (72.3e9, 1.33e12, None),
    }
    for budget, (n_parameters, n_tokens, loss) in expected.items():
        best = PUBLISHED.optimum(budget)
        assert best.n_parameters == pytest.approx(n_parameters, rel=2e-3)
        assert best.n_tokens == pytest.approx(n_tokens, rel=3e-3)
        assert loss is None or best.loss == pytest.approx(loss, abs=5e-4)
    assert PUBLISHED.optimum(1e19).tokens_per_parameter == pytest.approx(24.2, abs=0.05)
    assert PUBLISHED.optimum(5.76e23).tokens_per_parameter == pytest.approx(18.3, abs=0.05)
    assert PUBLISHED.parameter_share == pytest.approx(0.513, abs=5e-4)


@given(st.floats(1e8, 1e26), st.floats(0.5, 2.0), st.floats(3, 9))
def test_optimum_is_the_lowest_loss_of_its_budget(budget: float, off: float, factor: float) -> None:
    law = replace(LAW, flops_factor=factor)
    best = law.optimum(budget)
    assert factor * best.n_parameters * best.n_tokens == pytest.approx(budget)
    elsewhere = best.n_parameters * off
    assert law.loss(elsewhere, budget / factor / elsewhere) >= best.loss - 1e-12
    assert law.budget_for(best.loss) == pytest.approx(budget, rel=1e-9)
    assert law.tokens_for(best.n_parameters, best.loss) == pytest.approx(best.n_tokens, rel=1e-6)


def test_what_no_law_can_tell_is_refused() -> None:
    with pytest.raises(ValueError, match="loss must be above the law's irreducible"):
        LAW.budget_for(1.69)
    assert LAW.tokens_for(1e6, 1.7) == math.inf
    with pytest.raises(ValueError, match="flop_budget must be positive"):
        LAW.optimum(-1)
    with pytest.raises(ValueError, match="to have an optimum"):
        replace(LAW, token_factor=0.0).optimum(1e20)
    with pytest.raises(ValueError, match="token_exponent must be positive"):
        replace(LAW, token_exponent=0.0)


def test_nonnegative_least_squares_equals_scipy() -> None:
    draw = np.random.default_rng(0)
    columns, targets = draw.normal(size=(200, 12, 3)), draw.normal(size=12)
    columns[::3] = np.abs(columns[::3])
    weights = draw.integers(0, 4, size=(200, 12)).astype(float)
    found = nonnegative_least_squares(columns, targets, weights)
    supports = set()
    for own, w, factors in zip(columns, np.sqrt(weights), found, strict=True):
        expected, _ = nnls(own * w[:, None], targets * w)
        np.testing.assert_allclose(factors, expected, atol=1e-9)
        supports.add(tuple(expected > 0))
    assert len(supports) == 8


def test_vpnls_recovers_the_law_of_clean_points() -> None:
    law = fit_vpnls(isoflop_points())
    np.testing.assert_allclose(values(law), values(LAW), rtol=1e-6)
    # What the method can do: the last digits of float64.
    np.testing.assert_allclose(values(law), values(LAW), rtol=1e-11)


@given(
    st.floats(0.5, 3), st.floats(0.15, 0.9), st.floats(0.15, 0.9), st.floats(0.3, 3),
    st.floats(0.3, 3),
)  # fmt: skip
def test_vpnls_recovers_any_law(e: float, alpha: float, beta: float, a: float, b: float) -> None:
    law = LossLaw(
        irreducible_loss=e,
        parameter_factor=a * 1e8**alpha,
        parameter_exponent=alpha,
        token_factor=b * 1e10**beta,
        token_exponent=beta,
    )
    n_parameters = np.tile(np.geomspace(1e7, 1e9, 6), 6)
    n_tokens = np.repeat(np.geomspace(1e9, 1e11, 6), 6)
    points = ScalingPoints.of_allocations(n_parameters, n_tokens, law.loss(n_parameters, n_tokens))
    np.testing.assert_allclose(values(fit_vpnls(points)), values(law), rtol=1e-6)


def test_vpnls_finds_the_least_squared_error() -> None:
    points = with_noise(isoflop_points(n_sizes=5), 0.01)
    logs = np.log(points.n_parameters / 1e6), np.log(points.n_tokens / 1e9)

    def error(exponents: np.ndarray) -> float:
        columns = [np.exp(-x * log) for x, log in zip(exponents, logs, strict=True)]
        _, rest = nnls(np.stack([np.ones(len(points)), *columns], axis=1), points.loss)
        return float(rest**2)

    starts = [(0.2, 0.2), (0.4, 0.4), (0.3, 0.6), (0.6, 0.3), (1.0, 1.0)]
    tight = {"xatol": 1e-10, "fatol": 1e-16, "maxiter": 4000}
    found = [minimize(error, x, method="Nelder-Mead", options=tight) for x in starts]
    best = min(found, key=lambda result: result.fun)
    law = fit_vpnls(points)
    np.testing.assert_allclose(best.x, [law.parameter_exponent, law.token_exponent], rtol=1e-5)
    errors = law.loss(points.n_parameters, points.n_tokens) - points.loss
    assert (errors**2).sum() == pytest.approx(best.fun, rel=1e-9)


def test_refits_equal_fits_of_the_repeated_points() -> None:
    points = with_noise(isoflop_points(n_sizes=5), 0.003)
    draw = np.random.default_rng(1)
    for method, refit, n_refits in (("vpnls", refit_vpnls, 6), ("huber", refit_huber, 2)):
        counts = draw.multinomial(len(points), [1 / len(points)] * len(points), n_refits)
        full = fit_law(points, method)
        for law, count in zip(refit(points, full, counts.astype(float)), counts, strict=True):
            repeated = points.take(np.repeat(np.arange(len(points)), count))
            alone = fit_law(repeated, method)
            assert law.parameter_share == pytest.approx(alone.parameter_share, abs=2e-4)
            best = [fitted.optimum(1e21).loss for fitted in (law, alone)]
            assert best[0] == pytest.approx(best[1], abs=2e-4)


def test_huber_gradient_is_that_of_its_objective() -> None:
    points = with_noise(isoflop_points(n_sizes=3), 0.002)
    logs = _Logarithms(points, np.ones((1, len(points))))
    theta = logs.theta(LAW) + 0.01
    row = np.array([0])
    numeric = approx_fprime(theta, lambda x: logs.expand(x[None], row).cost[0], 1e-8)
    np.testing.assert_allclose(logs.expand(theta[None], row).gradient[0], numeric, rtol=1e-4)


def test_huber_finds_the_least_sum() -> None:
    points = with_noise(isoflop_points(n_sizes=5), 0.003)
    law = fit_huber(points)
    log_n, log_d = np.log(points.n_parameters), np.log(points.n_tokens)

    def objective(x: np.ndarray) -> float:
        terms = [x[0] - x[3] * (log_n - 18), x[1] - x[4] * (log_d - 22), np.full(len(log_n), x[2])]
        size = np.abs(np.log(points.loss) - np.logaddexp.reduce(terms))
        return float(np.where(size <= 1e-3, size**2 / 2, 1e-3 * (size - 5e-4)).sum())

    x = np.array([
        math.log(law.parameter_factor) - 18 * law.parameter_exponent,
        math.log(law.token_factor) - 22 * law.token_exponent,
        math.log(law.irreducible_loss), law.parameter_exponent, law.token_exponent,
    ])  # fmt: skip
    assert objective(x) == pytest.approx(huber_objective(points, law), rel=1e-9)
    draw = np.random.default_rng(2)
    tight = {"maxiter": 4000, "maxfev": 4000, "xatol": 1e-12, "fatol": 1e-18}
    for _ in range(3):
        start = x + 0.03 * draw.standard_normal(5)
        found = minimize(objective, start, method="Nelder-Mead", options=tight)
        assert objective(x) <= found.fun * (1 + 1e-9)
    # On clean points nothing is left.
    clean = isoflop_points()
    np.testing.assert_allclose(values(fit_huber(clean)), values(LAW), rtol=1e-6)
    assert huber_objective(clean, LAW) < 1e-20


def test_published_laws_score_as_published_on_their_points() -> None:
    """The points of Besiroglu et al. 2024 as CSV, which RSLM_CHINCHILLA_CSV names."""
    if not (path := os.environ.get("RSLM_CHINCHILLA_CSV")):
        pytest.skip("RSLM_CHINCHILLA_CSV is not set")
    points = read_points(path)
    points = points.take(np.argsort(points.loss)[: len(points) - 5])
    law = fit_huber(points)
    assert huber_objective(points, law) <= 1.01828e-3
    assert law.parameter_share == pytest.approx(0.5139, abs=2e-4)
    assert huber_objective(points, PUBLISHED) == pytest.approx(1.018753e-3, rel=1e-4)
    assert huber_objective(points, LAW) == pytest.approx(4.121e-3, rel=1e-3)


@pytest.mark.parametrize(("width", "bias"), [(2, 0.37), (4, 1.51), (8, 3.42), (16, 6.16)])
def test_parabolas_of_centred_sizes_are_too_large_by_a_known_part(
    width: float, bias: float
) -> None:
    law = fit_law(isoflop_points(width), "parabolas")
    assert law.parameter_share == pytest.approx(LAW.parameter_share, abs=1e-9)
    ratio = law.optimum(1e24).n_parameters / LAW.optimum(1e24).n_parameters
    assert 100 * (ratio - 1) == pytest.approx(bias, abs=0.006)


@pytest.mark.parametrize(
    ("width", "share", "tokens_off"),
    [(2, 0.4432, 12.6), (4, 0.4448, 9.1), (8, 0.4474, 3.7), (16, 0.4510, -3.4)],
)
def test_parabolas_of_drifting_sizes_have_a_known_bias(
    width: float, share: float, tokens_off: float
) -> None:
    law = fit_law(isoflop_points(width, drift=3), "parabolas")
    assert law.parameter_share == pytest.approx(share, abs=6e-5)
    ratio = law.optimum(1e24).n_tokens / LAW.optimum(1e24).n_tokens
    assert 100 * (ratio - 1) == pytest.approx(tokens_off, abs=0.06)


def test_parabola_equals_polyfit() -> None:
    points = with_noise(isoflop_points(), 0.01)
    for valley, own in zip(find_valleys(points), points.by_budget().values(), strict=True):
        c2, c1, c0 = np.polyfit(np.log(own.n_parameters), own.loss, 2)
        np.testing.assert_allclose(valley.coefficients, [c0, c1, c2], rtol=1e-7)
        assert math.log(valley.n_parameters) == pytest.approx(-c1 / (2 * c2), rel=1e-9)
        assert valley.loss == pytest.approx(c0 - c1**2 / (4 * c2), rel=1e-9)


def test_exercise_points_give_the_known_answers(test_data: Path) -> None:
    points = read_points(test_data / "scaling" / "isoflops_curves.json")
    assert len(points) == 72
    assert len(points.by_budget()) == 9
    expected = {
        "min-runs": (0.469, 7.0e10, 2.06e11, 2.38e11, 8.1e11),
        "parabolas": (0.515, 9.1e10, 2.98e11, 1.83e11, 5.6e11),
    }
    for method, (share, *sizes) in expected.items():
        law = fit_law(points, method)
        assert law.parameter_share == pytest.approx(share, abs=5e-4)
        optima = [law.optimum(budget) for budget in (1e23, 1e24)]
        found = [*(o.n_parameters for o in optima), *(o.n_tokens for o in optima)]
        assert found == pytest.approx(sizes, rel=0.01)
    # The losses turn out to be made by a law, which is found again.
    law = fit_vpnls(points)
    assert values(law)[:5] == pytest.approx([2.69, 1606.4, 0.34, 3210.7, 0.36], rel=1e-6)


def test_envelope_of_curves_finds_the_law_that_made_them() -> None:
    law = fit_law(training_curves(), "envelope")
    assert law.parameter_share == pytest.approx(LAW.parameter_share, abs=0.005)
    assert law.token_share == pytest.approx(LAW.token_share, abs=0.005)
    best = LAW.optimum(1e21)
    assert law.optimum(1e21).n_parameters == pytest.approx(best.n_parameters, rel=0.03)
    assert law.optimum(1e21).loss == pytest.approx(best.loss, abs=1e-3)


def test_envelope_is_never_above_a_curve_nor_of_an_outer_size() -> None:
    points = training_curves(6)
    envelope = optima_of(points, "envelope")
    sizes = np.unique(points.n_parameters)
    assert set(envelope.n_parameters) <= set(sizes[1:-1])
    for flops, loss in zip(envelope.flop_budgets, envelope.loss, strict=True):
        for size in sizes:
            tokens = flops / 6 / size
            if 1e8 <= tokens <= 3e11:
                # Between the points of a curve stands a line, a little above the law.
                assert loss <= LAW.loss(size, tokens) + 2e-3


# The search knows g to some 1e-8, which moves E by that share of the largest loss: hence no
# losses of 1e5 nats.
@given(st.floats(0.5, 3), st.floats(1e-2, 1e2), st.floats(0.02, 1.5))
def test_decay_is_found_again(e: float, k: float, g: float) -> None:
    x = np.geomspace(1e17, 1e20, 6)
    factor = k * 1e18**g
    found = fit_decay(x, e + factor * x**-g)
    best = [e + factor * 1e21**-g, found[0] + found[1] * 1e21 ** -found[2]]
    assert best[1] == pytest.approx(best[0], rel=1e-4)


def test_two_budgets_make_a_plain_power() -> None:
    points = isoflop_points(budgets=(1e18, 1e20))
    law = fit_law(points, "parabolas")
    assert law.irreducible_loss == 0
    optima = optima_of(points, "parabolas")
    for budget, loss in zip(optima.flop_budgets, optima.loss, strict=True):
        assert law.optimum(float(budget)).loss == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize("method", METHODS[:4])
def test_held_out_budgets_of_clean_points_are_told(method: str) -> None:
    held = hold_out(isoflop_points(), method)
    assert held is not None
    assert held.flops_ratio == pytest.approx(BUDGETS[-1] / BUDGETS[-2])
    assert held.n_points == (7 if method in ("vpnls", "huber") else 1)
    assert held.rms_error < 2e-4
    noisy = hold_out(with_noise(isoflop_points(), 0.02), method)
    assert noisy is not None
    assert noisy.rms_error > held.rms_error


def test_runs_without_budgets_are_held_out_by_their_flops() -> None:
    draw = np.random.default_rng(0)
    n_parameters, n_tokens = np.exp(draw.uniform(np.log([[1e7], [1e9]]), np.log([[1e9], [1e11]]),
                                                 size=(2, 40)))  # fmt: skip
    points = ScalingPoints.of_allocations(n_parameters, n_tokens, LAW.loss(n_parameters, n_tokens))
    one = replace(points, flop_budget=np.full(40, 1e18))
    held = hold_out(one, "vpnls")
    assert held is not None
    assert held.n_points == 10
    assert held.rms_error < 1e-9


def test_points_that_determine_no_law_are_refused() -> None:
    points = isoflop_points()
    with pytest.raises(ValueError, match="at least 5 points are needed, got 4"):
        fit_law(points.take(np.arange(4)), "vpnls")
    same = replace(points, n_parameters=np.full(len(points), 1e8))
    with pytest.raises(ValueError, match="points must differ in n_parameters"):
        fit_law(same, "huber")
    one = points.take(np.arange(7))
    for method in ("parabolas", "min-runs"):
        with pytest.raises(ValueError, match="at least two different budgets"):
            fit_law(one, method)
    with pytest.raises(ValueError, match="at least 3 sizes for a parabola"):
        fit_law(isoflop_points(n_sizes=2), "parabolas")
    with pytest.raises(ValueError, match="must have a lowest place"):
        fit_law(
            replace(points, loss=3 - 0.01 * np.log(points.n_parameters) ** 2 / 100), "parabolas"
        )
    with pytest.raises(ValueError, match="at least 2 training curves"):
        fit_law(points, "envelope")
    with pytest.raises(ValueError, match="must be envelope"):
        optima_of(points, "vpnls")
    assert hold_out(one, "parabolas") is None


def test_frontier_goes_through_points_of_a_frontier() -> None:
    optima = optima_of(isoflop_points(), "parabolas")
    law = fit_frontier(optima)
    for budget, n_parameters in zip(optima.flop_budgets, optima.n_parameters, strict=True):
        assert law.optimum(float(budget)).n_parameters == pytest.approx(n_parameters, rel=1e-6)
    with pytest.raises(ValueError, match="must be near what was fitted"):
        replace(law, parameter_share=9.0).optimum(1e300)
