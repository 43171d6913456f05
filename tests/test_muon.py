"""Muon against torch's, singular values against the SVD, the variants against their formulas."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import Parameter

from rslm.muon import COEFFICIENTS, Muon, learning_rate_factor, orthogonalize

SHAPES = [(12, 12), (24, 8), (8, 24), (1, 5), (5, 1)]


def random_matrix(shape: tuple[int, int], seed: int = 0, dtype: torch.dtype = torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def matrices(dtype: torch.dtype = torch.float32) -> list[Parameter]:
    return [Parameter(random_matrix(shape, i, dtype)) for i, shape in enumerate(SHAPES)]


def set_gradients(parameters: list[Parameter], seed: int) -> None:
    for i, parameter in enumerate(parameters):
        parameter.grad = random_matrix(parameter.shape, 100 * seed + i, parameter.dtype)


def polynomial(x: np.ndarray, coefficients: tuple[float, float, float]) -> np.ndarray:
    a, b, c = coefficients
    return a * x + b * x**3 + c * x**5


def composed(x: np.ndarray, name: str) -> np.ndarray:
    for coefficients in COEFFICIENTS[name]:
        x = polynomial(x, coefficients)
    return x


def best_quintic(low: float, high: float) -> tuple[float, float, float]:
    """The odd quintic nearest 1 on [low, high], by Remez' exchange: four equal errors."""
    middle = np.linspace(low, high, 4)[1:3]
    for _ in range(60):
        points = np.array([low, *middle, high])
        powers = np.stack([points, points**3, points**5, [1.0, -1.0, 1.0, -1.0]], axis=1)
        a, b, c, _ = np.linalg.solve(powers, np.ones(4))
        # Where the slope a + 3bx² + 5cx⁴ is 0.
        middle = np.sqrt(np.sort(np.roots([5 * c, 3 * b, a]).real))
    return float(a), float(b), float(c)


def test_polar_express_coefficients_follow_from_the_paper_s_algorithm():
    # Amsel et al. 2025, Algorithm 1: the best polynomial on where the values may be, which is
    # kept away from 0 (cushion), centred, and but for the last made safe for values above.
    low, high = 1e-3, 1.0
    for i, found in enumerate(COEFFICIENTS["polar_express"]):
        raw = np.array(best_quintic(max(low, 0.02 * high), high))
        ends = polynomial(np.array([low, high]), tuple(raw))
        raw *= 2 / ends.sum()
        expected = raw / (1.02 if i < 4 else 1.0) ** np.array([1, 3, 5])
        assert found == pytest.approx(tuple(expected), rel=1e-9)
        low = float(polynomial(np.array(low), tuple(expected)))
        high = 2 - low
    # The algorithm's own bound on what comes out, with which it is symmetric about 1.
    values = composed(np.geomspace(1e-3, 1.0, 100_001), "polar_express")
    assert values.min() == pytest.approx(low, abs=1e-6)
    assert values.max() == pytest.approx(high, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "smallest", "bounds"),
    [
        # Jordan's post: between 0.5 and 1.5; from about 0.7 to 1.2, once it has come that far.
        ("classic", 3e-3, (0.68, 1.203)),
        ("convergent", 1e-3, (1 - 1e-12, 1 + 1e-5)),
        ("polar_express", 1e-3, (0.8588, 1.1412)),
    ],
)
def test_singular_values_end_within_bounds(name: str, smallest: float, bounds: tuple[float, float]):
    values = composed(np.linspace(smallest, 1.0, 100_001), name)
    assert bounds[0] <= values.min()
    assert values.max() <= bounds[1] + 1e-12


@pytest.mark.parametrize("name", COEFFICIENTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_orthogonalize_applies_the_polynomials_to_singular_values(
    name: str, shape: tuple[int, int]
):
    matrix = random_matrix(shape, dtype=torch.float64)
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    margin = 1.01 if name == "polar_express" else 1.0
    values = torch.from_numpy(composed((s / s.norm() / margin).numpy(), name))
    expected = u @ torch.diag(values) @ vt
    found = orthogonalize(matrix, polynomials=name, dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    single = orthogonalize(matrix.float(), polynomials=name, dtype=torch.float32)
    torch.testing.assert_close(single.double(), expected, rtol=0, atol=1e-4)


def test_convergent_orthogonalization_is_the_polar_factor():
    matrix = torch.eye(6, 9, dtype=torch.float64) + 0.1 * random_matrix((6, 9), dtype=torch.float64)
    u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
    found = orthogonalize(matrix, polynomials="convergent", dtype=torch.float64)
    torch.testing.assert_close(found, u @ vt, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", COEFFICIENTS)
def test_bfloat16_keeps_singular_values_near_one(name: str):
    matrix = random_matrix((32, 96))
    found = orthogonalize(matrix, polynomials=name)
    assert found.dtype == torch.bfloat16
    values = torch.linalg.svdvals(found.double())
    assert values.min() > 0.6
    assert values.max() < 1.25


@pytest.mark.parametrize("name", COEFFICIENTS)
def test_orthogonalize_does_not_depend_on_the_scale_and_keeps_zero(name: str):
    matrix = random_matrix((8, 12))
    found = orthogonalize(matrix, polynomials=name)
    # Powers of two change no mantissa.
    assert torch.equal(orthogonalize(matrix * 2.0**60, polynomials=name), found)
    assert torch.equal(orthogonalize(matrix * 2.0**-20, polynomials=name), found)
    assert torch.equal(
        orthogonalize(matrix.T, polynomials="classic").T.float(),
        (orthogonalize(matrix, polynomials="classic").float()),
    )
    assert not orthogonalize(torch.zeros(3, 4), polynomials=name).any()


@pytest.mark.parametrize("convention", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_muon_equals_torch(convention: str, nesterov: bool, weight_decay: float):
    ours, theirs = matrices(), matrices()
    options: dict[str, Any] = {"lr": 0.02, "weight_decay": weight_decay, "nesterov": nesterov}
    optimizer = Muon(ours, **options, polynomials="classic", convention=convention)
    oracle = torch.optim.Muon(theirs, **options, adjust_lr_fn=convention)
    for step in range(8):
        set_gradients(ours, step)
        set_gradients(theirs, step)
        optimizer.step()
        oracle.step()
    for parameter, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(parameter, expected, rtol=1e-6, atol=1e-6)
        buffers = optimizer.state[parameter], oracle.state[expected]
        torch.testing.assert_close(*(state["momentum_buffer"] for state in buffers))


def test_learning_rate_factor_equals_the_conventions():
    wide, tall = torch.Size((512, 2048)), torch.Size((2048, 512))
    assert learning_rate_factor(wide, "original") == 1.0
    assert learning_rate_factor(tall, "original") == 2.0
    assert learning_rate_factor(wide, "match_rms_adamw") == pytest.approx(0.2 * 2048**0.5)
    assert learning_rate_factor(tall, "match_rms_adamw") == pytest.approx(0.2 * 2048**0.5)


def test_match_rms_adamw_moves_entries_by_a_fifth_of_the_rate():
    parameter = Parameter(torch.zeros(48, 80))
    parameter.grad = random_matrix((48, 80))
    Muon([parameter], 0.1, polynomials="convergent", convention="match_rms_adamw").step()
    assert parameter.square().mean().sqrt().item() == pytest.approx(0.2 * 0.1, rel=0.02)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5)])
def test_normuon_equals_its_formula(shape: tuple[int, int]):
    parameter, plain = Parameter(random_matrix(shape)), Parameter(random_matrix(shape))
    options: dict[str, Any] = {"lr": 0.1, "orthogonalization_dtype": "float32"}
    optimizer = Muon([parameter], **options, normuon_beta2=0.9)
    oracle = Muon([plain], **options)
    axis, scale = (1, 0.1 * math.sqrt(shape[0] / shape[1])) if shape[0] >= shape[1] else (0, 0.1)
    moment = np.zeros((shape[0], 1) if axis == 1 else (1, shape[1]))
    for step in range(5):
        before, plain_before = parameter.detach().clone(), plain.detach().clone()
        set_gradients([parameter], step)
        set_gradients([plain], step)
        optimizer.step()
        oracle.step()
        update = ((plain_before - plain.detach()) / scale).double().numpy()
        moment = 0.9 * moment + 0.1 * (update**2).mean(axis, keepdims=True)
        scaled = update / np.sqrt(moment)
        scaled *= np.linalg.norm(update) / np.linalg.norm(scaled)
        found = ((before - parameter.detach()) / scale).double().numpy()
        if step == 0:
            neurons = (found**2).mean(axis)
            np.testing.assert_allclose(neurons, neurons.mean(), rtol=1e-3)
        np.testing.assert_allclose(found, scaled, rtol=1e-3, atol=1e-4)
        stored = optimizer.state[parameter]["second_moment"].numpy()
        np.testing.assert_allclose(stored, moment, rtol=1e-4)


def test_cautious_decay_spares_entries_that_the_update_moves_away_from_zero():
    cautious, plain, decayed = (Parameter(random_matrix((6, 9))) for _ in range(3))
    for parameter, options in (
        (cautious, {"weight_decay": 0.5, "cautious_decay": True}),
        (plain, {}),
        (decayed, {"weight_decay": 0.5}),
    ):
        parameter.grad = random_matrix((6, 9), 1)
        Muon([parameter], 0.1, **options).step()
    start = random_matrix((6, 9))
    towards_zero = (start - plain.detach()) * start >= 0
    assert 0 < towards_zero.sum() < towards_zero.numel()
    expected = torch.where(towards_zero, decayed, plain)
    torch.testing.assert_close(cautious, expected, rtol=1e-6, atol=1e-7)


def test_equilibrated_rows_make_the_scale_of_a_row_count_for_nothing():
    scales = torch.tensor([[1.0], [100.0], [0.01], [1.0]])
    steps = []
    for scale in (torch.ones(4, 1), scales):
        parameter = Parameter(torch.zeros(4, 6))
        parameter.grad = random_matrix((4, 6)) * scale
        Muon([parameter], equilibrate_rows=True, orthogonalization_dtype="float32").step()
        steps.append(parameter.detach())
    torch.testing.assert_close(*steps, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_renormalized_update_has_the_norm_of_an_orthogonal_matrix(shape: tuple[int, int]):
    parameter = Parameter(torch.zeros(shape))
    parameter.grad = random_matrix(shape)
    Muon([parameter], 1.0, renormalize=True).step()
    factor = learning_rate_factor(parameter.shape, "original")
    assert parameter.norm().item() / factor == pytest.approx(math.sqrt(min(shape)), rel=1e-5)


VARIANTS: list[dict[str, Any]] = [
    {},
    {"normuon_beta2": 0.9},
    {"equilibrate_rows": True, "renormalize": True, "cautious_decay": True},
]


@pytest.mark.parametrize("options", VARIANTS)
def test_zero_gradient_moves_nothing(options: dict[str, Any]):
    parameter = Parameter(random_matrix((3, 5)))
    parameter.grad = torch.zeros_like(parameter)
    Muon([parameter], 0.1, **options).step()
    assert torch.equal(parameter, random_matrix((3, 5)))


@pytest.mark.parametrize("options", VARIANTS)
def test_muon_updates_a_matrix_the_same_whatever_is_beside_it(options: dict[str, Any]):
    together, apart = matrices(), matrices()
    one = [Muon(together, **options)]
    each = [Muon([parameter], **options) for parameter in apart]
    for step in range(3):
        set_gradients(together, step)
        set_gradients(apart, step)
        for optimizer in itertools.chain(one, each):
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(together, apart, strict=True))


def test_muon_skips_missing_gradients_and_returns_the_loss():
    parameters = matrices()
    set_gradients(parameters, 0)
    parameters[1].grad = None
    before = parameters[1].detach().clone()
    optimizer = Muon(parameters, weight_decay=0.1)
    assert optimizer.step(lambda: 3.0) == 3.0
    assert torch.equal(parameters[1], before)
    assert parameters[1] not in optimizer.state


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, r"lr must be at least 0, got -1\.0"),
        ({"weight_decay": math.nan}, "weight_decay must be at least 0, got nan"),
        ({"momentum": 1.0}, r"momentum must lie in \[0, 1\), got 1\.0"),
        ({"normuon_beta2": -0.1}, r"normuon_beta2 must lie in \[0, 1\), got -0\.1"),
        ({"polynomials": "best"}, "polynomials must be one of classic, .*, got 'best'"),
        ({"convention": "mine"}, "convention must be one of original, .*, got 'mine'"),
        ({"orthogonalization_dtype": "float16"}, "must be one of bfloat16, float32, got 'float16'"),
    ],
)
def test_muon_refuses_options_out_of_range(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        Muon([{"params": matrices(), **options}])


def test_muon_refuses_what_is_no_matrix():
    with pytest.raises(ValueError, match=r"Muon takes matrices only, got the shape \(3,\)"):
        Muon([Parameter(torch.zeros(2, 2)), Parameter(torch.zeros(3))])
