"""The law by variable projection: only the two exponents are searched, the rest is linear.

For given α and β the best E, A and B of L = E + A N^-α + B D^-β are a least-squares solution
without negative factors. What is left, the error as a function of the exponents, is evaluated
on a grid of 32 x 32 and refined from the grid's lowest places. N and D are measured in the
geometric means of the points, so that the columns have the same size.

Source: Golub & Pereyra 1973 (variable projection), with the Jacobian of Kaufman 1975;
for scaling laws arXiv:2603.22339. There N/10^6, D/10^9 and Nelder-Mead or L-BFGS-B.
"""

import numpy as np

from rslm.scaling.laws import LossLaw
from rslm.scaling.least_squares import (
    Expansion,
    Rows,
    chunks,
    minimise,
    nonnegative_least_squares,
)
from rslm.scaling.points import Array, ScalingPoints

MIN_POINTS = 5
EXPONENTS = (0.02, 3.0)
"""Range of α and β; a law that ends there is not determined by its points."""

_N_GRID = 32
_N_STARTS = 6


class _Projection:
    """Squared errors of rows of exponents, with the best factors for each."""

    def __init__(self, points: ScalingPoints, weights: Array) -> None:
        logs = [np.log(points.n_parameters), np.log(points.n_tokens)]
        self.centres = [float(log.mean()) for log in logs]
        self.logs = np.stack(logs) - np.array(self.centres)[:, None]
        self.loss = points.loss
        self.weights = weights

    def columns(self, exponents: Array) -> Array:
        """1, N^-α and D^-β for rows of exponents: (rows, points, 3)."""
        powers = np.exp(-exponents[:, :, None] * self.logs)
        return np.stack([np.ones_like(powers[:, 0]), powers[:, 0], powers[:, 1]], axis=2)

    def factors(self, exponents: Array, rows: Rows) -> tuple[Array, Array]:
        """The columns, and the best E, A and B in the units of the centres."""
        columns = self.columns(exponents)
        return columns, nonnegative_least_squares(columns, self.loss, self.weights[rows])

    def expand(self, logs_of_exponents: Array, rows: Rows) -> Expansion:
        """The error as a function of ln α and ln β, which keeps both positive."""
        exponents = np.exp(np.clip(logs_of_exponents, *np.log(EXPONENTS)))
        columns, factors = self.factors(exponents, rows)
        weights = self.weights[rows][..., None]
        residuals = (columns @ factors[..., None])[..., 0] - self.loss
        # d(column · factor)/d(ln exponent), without what the factors can make up for.
        slopes = -exponents[:, None, :] * self.logs.T * columns[..., 1:] * factors[:, None, 1:]
        used = columns * (factors > 0)[:, None, :]
        inverse = np.linalg.pinv(
            np.einsum("rpi,rpj->rij", used * weights, used), rcond=1e-13, hermitian=True
        )
        slopes = slopes - used @ (inverse @ np.einsum("rpi,rpj->rij", used * weights, slopes))
        return Expansion(
            (weights[..., 0] * residuals**2).sum(axis=1),
            np.einsum("rpi,rp->ri", slopes * weights, residuals),
            np.einsum("rpi,rpj->rij", slopes * weights, slopes),
        )

    def laws(self, logs_of_exponents: Array, flops_factor: float) -> list[LossLaw]:
        """The laws of rows of exponents, in parameters and tokens."""
        exponents = np.exp(np.clip(logs_of_exponents, *np.log(EXPONENTS)))
        _, factors = self.factors(exponents, np.arange(len(exponents)))
        scales = np.exp(exponents * self.centres)
        return [
            LossLaw(
                irreducible_loss=float(e),
                parameter_factor=float(a * of_size),
                parameter_exponent=float(alpha),
                token_factor=float(b * of_data),
                token_exponent=float(beta),
                flops_factor=flops_factor,
            )
            for (e, a, b), (alpha, beta), (of_size, of_data) in zip(
                factors, exponents, scales, strict=True
            )
        ]


def fit_vpnls(points: ScalingPoints) -> LossLaw:
    """The law of least squared error.

    Raises:
        ValueError: there are fewer than five points, or they have one N or one D only.
    """
    require_enough(points)
    axis = np.log(np.geomspace(*EXPONENTS, _N_GRID))
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=2).reshape(-1, 2)
    projection = _Projection(points, np.broadcast_to(1.0, (len(grid), len(points))))
    errors = np.concatenate(
        [
            projection.expand(grid[part], np.arange(len(grid))[part]).cost
            for part in chunks(len(grid), 8 * len(points))
        ]
    )
    starts = grid[_lowest_places(errors.reshape(_N_GRID, _N_GRID))]
    found, costs = minimise(projection.expand, starts)
    best = found[np.argmin(costs)][None]
    return projection.laws(best, points.flops_factor)[0]


def _lowest_places(errors: Array) -> Rows:
    """Places of the grid that are lower than those around them, the lowest first."""
    padded = np.pad(errors, 1, constant_values=np.inf)
    around = [
        padded[1 + i : 1 + i + len(errors), 1 + j : 1 + j + errors.shape[1]]
        for i in (-1, 0, 1)
        for j in (-1, 0, 1)
        if i or j
    ]
    places = np.flatnonzero((errors <= np.min(around, axis=0)).ravel())
    lowest: Rows = places[np.argsort(errors.ravel()[places])][:_N_STARTS]
    return lowest


def refit_vpnls(points: ScalingPoints, law: LossLaw, weights: Array) -> list[LossLaw]:
    """The laws of the points under each row of weights, all begun from one law.

    Args:
        points: the points.
        law: where each fit begins.
        weights: (refits, points); how often a resample has each point, say.
    """
    start = np.log([law.parameter_exponent, law.token_exponent])
    laws: list[LossLaw] = []
    for part in chunks(len(weights), 8 * len(points)):
        projection = _Projection(points, weights[part])
        starts = np.tile(start, (len(weights[part]), 1))
        found, _ = minimise(projection.expand, starts, n_iterations=60, tolerance=1e-9)
        laws += projection.laws(found, law.flops_factor)
    return laws


def require_enough(points: ScalingPoints) -> None:
    """Refuses points that cannot determine the law's five numbers.

    Raises:
        ValueError: there are fewer than five points, or fewer than two of N or of D.
    """
    if len(points) < MIN_POINTS:
        raise ValueError(f"the law has 5 unknowns: at least 5 points are needed, got {len(points)}")
    for name in ("n_parameters", "n_tokens"):
        if len(np.unique(getattr(points, name))) < 2:
            raise ValueError(
                f"points must differ in {name}, and all have {getattr(points, name)[0]:g}"
            )
