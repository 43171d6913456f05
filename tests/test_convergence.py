"""The plan of the convergence study: it ends, within its runs, with what is to be compared."""

import importlib
import math
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHES = Path(__file__).parents[1] / "benches"


@pytest.fixture(scope="module")
def plan_module() -> Any:
    sys.path.insert(0, str(BENCHES))
    try:
        yield importlib.import_module("convergence_plan")
    finally:
        sys.path.remove(str(BENCHES))


def finish(module: Any, study: Any, best: dict[tuple[str, int], float]) -> dict[Any, Any]:
    """Makes all runs that the plan asks for, with a parabola over the rate as the loss."""
    outcomes: dict[Any, Any] = {}
    while len(outcomes) < module.MAX_RUNS:
        wanted = module.make_plan(study, outcomes).runs()
        missing = [run for run in wanted if run not in outcomes]
        if not missing:
            break
        run = missing[0]
        rate = run.muon_learning_rate or run.learning_rate
        gap = math.log2(rate / best[run.parametrisation, run.d_model])
        seconds = 1.25 if run.muon_learning_rate else 1.0
        value = 5 + gap**2 + abs(run.weight_decay - 0.1) + run.seed / 1000
        curve = ({"step": run.n_steps, "n_tokens": 1, "cpu_seconds": 1, "val_loss": value},)
        seconds *= run.n_steps
        outcomes[run] = module.Outcome(value, value, seconds, seconds, curve, ())
    return outcomes


def rates(study: Any, standard: tuple[float, ...], mup: tuple[float, ...]) -> Any:
    return {
        **{("standard", w): rate for w, rate in zip(study.widths, standard, strict=True)},
        **{("mup", w): rate for w, rate in zip(study.widths, mup, strict=True)},
    }


def test_plan_finds_the_best_rates_and_compares_seeds(plan_module: Any) -> None:
    study = plan_module.Study()
    centre = study.centre
    best = rates(study, (2 * centre, centre, centre / 4), (2 * centre,) * 3)
    outcomes = finish(plan_module, study, best)
    plan = plan_module.make_plan(study, outcomes)
    assert {key: found.best.learning_rate for key, found in plan.widths.items()} == best
    assert plan.tuned.weight_decay == 0.1
    assert plan.muon.muon_learning_rate == centre
    assert [run.seed for run in plan.muon_equal_time] == [0, 1, 2]
    assert {run.n_steps for run in plan.muon_equal_time} == {round(study.n_steps / 1.25)}
    assert set(plan.runs()) == set(outcomes)
    assert len(outcomes) <= plan_module.MAX_RUNS


def test_plan_keeps_runs_for_the_comparison_where_grids_never_end(plan_module: Any) -> None:
    study = plan_module.Study()
    outcomes = finish(plan_module, study, rates(study, (1e6,) * 3, (1e-9,) * 3))
    plan = plan_module.make_plan(study, outcomes)
    assert len(outcomes) <= plan_module.MAX_RUNS
    assert set(plan.muon_equal_time) <= set(outcomes)
    assert len(plan.muon_equal_time) == plan_module.N_SEEDS


def test_result_survives_its_line(plan_module: Any) -> None:
    study = plan_module.Study()
    run = plan_module.Run(64, 8, 0.01, muon_learning_rate=0.02)
    curve = ({"step": 8, "n_tokens": 64, "cpu_seconds": 0.5, "val_loss": 5.5},)
    outcome = plan_module.Outcome(math.inf, math.inf, 0.5, 0.6, curve, ((4, 6.0), (8, 5.0)), "abc")
    record = plan_module.to_record(study, run, outcome)
    assert plan_module.from_record(record) == (run, outcome)
