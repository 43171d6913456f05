"""What several methods say of the same runs, side by side, as plain values; and reading it back."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rslm.errors import FormatError
from rslm.scaling.fit import fit
from rslm.scaling.fitted import Fit, Method
from rslm.scaling.huber import huber_objective
from rslm.scaling.laws import LossLaw
from rslm.scaling.pitfalls import extrapolation_warning, find_pitfalls
from rslm.scaling.points import ScalingPoints
from rslm.scaling.vpnls import fit_vpnls

PUBLISHED = {
    "Hoffmann et al. 2022, rounded": LossLaw(
        irreducible_loss=1.69,
        parameter_factor=406.4,
        parameter_exponent=0.34,
        token_factor=410.7,
        token_exponent=0.28,
    ),
    "Besiroglu et al. 2024": LossLaw(
        irreducible_loss=1.81686,
        parameter_factor=482.01,
        parameter_exponent=0.34781,
        token_factor=2085.43,
        token_exponent=0.36585,
    ),
}
"""Laws of Chinchilla's runs (arXiv:2203.15556, arXiv:2404.10102)."""

_LARGE_DISAGREEMENT = 1.5


def fit_all(
    points: ScalingPoints,
    curves: ScalingPoints | None,
    methods: Sequence[Method],
    *,
    n_resamples: int = 1000,
    seed: int = 0,
) -> list[Fit]:
    """A fit by each method; "envelope" is fitted to the curves.

    Raises:
        ValueError: a method cannot be used on these points; it is named.
    """
    fits = []
    for method in methods:
        source = curves if method == "envelope" else points
        if source is None:
            raise ValueError("envelope needs training curves: several points of each size")
        try:
            fits.append(fit(source, method, n_resamples=n_resamples, seed=seed))
        except ValueError as error:
            raise ValueError(f"{method}: {error}") from None
    return fits


def report_record(
    points: ScalingPoints,
    curves: ScalingPoints | None,
    fits: Sequence[Fit],
    flop_budget: float,
    *,
    level: float,
    published: bool,
) -> dict[str, Any]:
    """Everything that `rslm scaling fit` shows and writes.

    Raises:
        ValueError: a law has no optimum at the budget.
    """
    budgets = points.budgets
    predictions = [prediction_row(fit, flop_budget, level=level) for fit in fits]
    held_out = [
        {"method": fit.method, **vars(fit.held_out)} for fit in fits if fit.held_out is not None
    ]
    return {
        "points": {
            "n_points": len(points),
            "n_budgets": len(set(budgets.tolist())),
            "flop_range": [float(budgets.min()), float(budgets.max())],
            "flops_factor": points.flops_factor,
        },
        "flop_budget": flop_budget,
        "level": level,
        "laws": [_law_row(fit, level) for fit in fits],
        "predictions": predictions,
        "held_out": held_out,
        "published": _published_rows(points, fits) if published else [],
        "spread": _spread(predictions, flop_budget),
        "warnings": _warnings(points, curves, fits, flop_budget),
        "fits": [fit.record() for fit in fits],
    }


def _law_row(fit: Fit, level: float) -> dict[str, Any]:
    """The method's own numbers; "-" where it has none."""
    exponents = fit.exponents(level=level)
    a, b = fit.shares(level=level)
    law = fit.law if isinstance(fit.law, LossLaw) else None
    names = {"alpha": "parameter_exponent", "beta": "token_exponent"}
    return {
        "method": fit.method,
        "E": vars(exponents["irreducible_loss"]),
        "A": law and law.parameter_factor,
        "B": law and law.token_factor,
        **{key: vars(exponents[name]) if law else None for key, name in names.items()},
        "a": vars(a),
        "b": vars(b),
        "objective": fit.objective,
    }


def prediction_row(fit: Fit, flop_budget: float, *, level: float) -> dict[str, Any]:
    """What a fit says of a budget, with intervals as low and high.

    Raises:
        ValueError: the law has no optimum there.
    """
    found = fit.predict(flop_budget, level=level)
    return {
        "method": fit.method,
        "FLOPs": flop_budget,
        "N*": vars(found.n_parameters),
        "D*": vars(found.n_tokens),
        "D*/N*": found.tokens_per_parameter,
        "loss": vars(found.loss),
        "loss of a run": vars(found.run_loss),
    }


def _published_rows(points: ScalingPoints, fits: Sequence[Fit]) -> list[dict[str, Any]]:
    """The summed Huber loss and a of our laws and of published ones, on these points."""
    ours = {f"ours, {fit.method}": fit.law for fit in fits if isinstance(fit.law, LossLaw)}
    return [
        {"law": name, "sum of Huber losses": huber_objective(points, law), "a": law.parameter_share}
        for name, law in (ours | PUBLISHED).items()
    ]


def _spread(predictions: Sequence[dict[str, Any]], flop_budget: float) -> str:
    """How far the methods are from each other, in a sentence."""
    sizes = {row["method"]: row["N*"]["value"] for row in predictions}
    smallest, largest = min(sizes, key=sizes.__getitem__), max(sizes, key=sizes.__getitem__)
    if len(sizes) == 1:
        return f"one method only: others can differ by a factor of 2 at {flop_budget:.3g} FLOPs"
    return (
        f"at {flop_budget:.3g} FLOPs {largest} puts N* {sizes[largest] / sizes[smallest]:.2f} "
        f"times as high as {smallest}"
    )


def _warnings(
    points: ScalingPoints,
    curves: ScalingPoints | None,
    fits: Sequence[Fit],
    flop_budget: float,
) -> list[str]:
    try:
        reference = fit_vpnls(points)
    except ValueError:
        reference = None
    found = []
    for fitted in fits:
        source = curves if fitted.method == "envelope" and curves is not None else points
        pitfalls = find_pitfalls(source, fitted, reference)
        found += [f"{fitted.method}: {sentence}" for sentence in pitfalls]
    far = extrapolation_warning(fits[0], flop_budget)
    sizes = [fit.predict(flop_budget).n_parameters.value for fit in fits]
    if max(sizes) > _LARGE_DISAGREEMENT * min(sizes):
        found.append(
            f"the methods differ by a factor of {max(sizes) / min(sizes):.2f} in N* at "
            f"{flop_budget:.3g} FLOPs"
        )
    return [*found, *([far] if far else [])]


def read_fits(path: str | os.PathLike[str]) -> list[Fit]:
    """The fits in a `fit.json`.

    Raises:
        FormatError: the file is none.
        OSError: it cannot be read.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise FormatError(f"{path} must be a file, the fit.json of rslm scaling fit")
    try:
        record = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is not JSON: {error}") from None
    entries = record.get("fits") if isinstance(record, dict) else None
    if not isinstance(entries, list) or not entries:
        raise FormatError(f"{path} must hold fits of rslm scaling fit")
    return [Fit.of_record(entry, str(path)) for entry in entries]
