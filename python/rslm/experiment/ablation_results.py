"""What came of an ablation: effects against the baseline, as numbers, as JSON, as a table."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rslm.experiment.ablate import AblationPlan, Arm
from rslm.experiment.compare import common_metric, value_of, verdict
from rslm.experiment.queue import Outcome
from rslm.experiment.statistics import Difference, holm, paired_test
from rslm.experiment.study import shown
from rslm.runs import Run, read_run
from rslm.series import duration
from rslm.terminal import readable, with_prefix


@dataclass(frozen=True, kw_only=True)
class ArmResult:
    """What came of an arm.

    Attributes:
        arm: what was planned.
        runs: those that finished, by seed.
        values: of the metric, by seed.
        n_diverged: runs whose loss did not stay finite.
        n_failed: runs that ended otherwise before their last step.
        test: against the baseline, on the seeds that finished in both; None for the baseline, and
            where fewer than two did.
        p_value: of the test, corrected for there being several; None where there is no test.
        train_flops: mean of a run.
        seconds: mean of a run.
    """

    arm: Arm
    runs: dict[int, Run]
    values: dict[int, float]
    n_diverged: int
    n_failed: int
    test: Difference | None
    p_value: float | None
    train_flops: float | None
    seconds: float | None


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """The results of all arms, the baseline first.

    Attributes:
        plan: what was planned.
        metric: what arms are compared by.
        results: in the order of the plan's arms.
        alpha: level of a test that counts for all tests together, for the runs needed.
        seconds: of all runs together, diverged and failed ones too.
        train_flops: likewise.
    """

    plan: AblationPlan
    metric: str
    results: list[ArmResult]
    alpha: float
    seconds: float
    train_flops: float


def analyse(
    plan: AblationPlan,
    outcomes: Sequence[Outcome],
    *,
    metric: str | None = None,
    confidence: float = 0.95,
) -> Ablation:
    """Compares each arm with the baseline, by the last value of the metric.

    The training loss is one batch's, so its mean over the last tenth of the run counts instead.

    Raises:
        ValueError: no run finished, or finished runs lack the metric.
    """
    by_hash = {outcome.run.hash: outcome for outcome in outcomes}
    finished = {
        key: read_run(outcome.path)
        for key, outcome in by_hash.items()
        if outcome.status == "finished"
    }
    if not finished:
        raise ValueError("no run finished: there is nothing to compare")
    metric = metric or common_metric(list(finished.values()))
    values = {key: value_of(run, metric) for key, run in finished.items()}
    tests = [_test(plan.arms[0], arm, values, confidence) for arm in plan.arms[1:]]
    corrected = iter(holm([test.p_value for test in tests if test is not None]))
    results = [
        _result(arm, by_hash, finished, values, test, None if test is None else next(corrected))
        for arm, test in zip(plan.arms, [None, *tests], strict=True)
    ]
    made = [read_run(o.path) for o in by_hash.values() if (o.path / "config.toml").exists()]
    return Ablation(
        plan=plan,
        metric=metric,
        results=results,
        alpha=(1 - confidence) / max(1, sum(test is not None for test in tests)),
        seconds=sum(outcome.seconds for outcome in outcomes),
        train_flops=sum(float(run.last("train_flops") or 0) for run in made),
    )


def _test(
    baseline: Arm, arm: Arm, values: dict[str, float], confidence: float
) -> Difference | None:
    pairs = [(baseline.runs[seed].hash, run.hash) for seed, run in arm.runs.items()]
    pairs = [(one, other) for one, other in pairs if one in values and other in values]
    if len(pairs) < 2:
        return None
    a, b = ([values[key] for key in side] for side in zip(*pairs, strict=True))
    return paired_test(a, b, confidence=confidence)


def _result(
    arm: Arm,
    outcomes: dict[str, Outcome],
    finished: dict[str, Run],
    values: dict[str, float],
    test: Difference | None,
    p_value: float | None,
) -> ArmResult:
    statuses = [outcomes[run.hash].status for run in arm.runs.values()]
    runs = {seed: finished[run.hash] for seed, run in arm.runs.items() if run.hash in finished}
    return ArmResult(
        arm=arm,
        runs=runs,
        values={seed: values[arm.runs[seed].hash] for seed in runs},
        n_diverged=statuses.count("diverged"),
        n_failed=statuses.count("failed"),
        test=test,
        p_value=p_value,
        train_flops=_mean(runs.values(), "train_flops"),
        seconds=_mean(runs.values(), "elapsed_seconds"),
    )


def _mean(runs: Iterable[Run], metric: str) -> float | None:
    values = [value for run in runs if (value := run.last(metric)) is not None]
    return sum(values) / len(values) if values else None


def judge(result: ArmResult, ablation: Ablation) -> str:
    """What can be said of an arm, in words."""
    ends = []
    for count, word in ((result.n_diverged, "diverged"), (result.n_failed, "failed")):
        if count:
            ends.append(f"{word} ({count} of {len(result.arm.runs)})")
    if not result.arm.axis:
        said = "baseline"
    elif result.test is not None:
        said = verdict(result.test, ablation.metric, p_value=result.p_value, alpha=ablation.alpha)
    else:
        said = "" if ends else "not tested at n = 1"
    return "; ".join([*ends, said] if said else ends)


def to_record(ablation: Ablation) -> dict[str, Any]:
    """The results for JSON."""
    return {
        "metric": ablation.metric,
        "seeds": ablation.plan.seeds,
        "axes": [
            {"option": axis.option, "values": list(map(_plain, axis.values))}
            for axis in ablation.plan.axes
        ],
        "alpha_of_n_needed": ablation.alpha,
        "seconds": ablation.seconds,
        "train_flops": ablation.train_flops,
        "arms": [_arm_record(result, ablation) for result in ablation.results],
    }


def _arm_record(result: ArmResult, ablation: Ablation) -> dict[str, Any]:
    test = result.test
    return {
        "axis": result.arm.axis,
        "name": result.arm.name,
        "labels": {option: _plain(value) for option, value in result.arm.labels.items()},
        "folders": {seed: run.folder for seed, run in result.arm.runs.items()},
        "values": result.values,
        "n_diverged": result.n_diverged,
        "n_failed": result.n_failed,
        "test": None if test is None else asdict(test),
        "p_value_corrected": result.p_value,
        "minimal_effect": None if test is None else test.minimal_effect(alpha=ablation.alpha),
        "n_needed": None if test is None else test.n_needed(alpha=ablation.alpha),
        "verdict": judge(result, ablation),
        "train_flops": result.train_flops,
        "seconds": result.seconds,
    }


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | float | str | None) else str(value)


HEADER = ("axis", "value", "mean", "sd", "effect", "interval", "p", "FLOPs", "time", "verdict")


def to_rows(ablation: Ablation) -> list[list[str]]:
    """The table's cells, a row for each arm, under `HEADER`."""
    return [_row(result, ablation) for result in ablation.results]


def _row(result: ArmResult, ablation: Ablation) -> list[str]:
    values, test = list(result.values.values()), result.test
    tested = ["", "", ""]
    if test is not None and result.p_value is not None:
        tested = [f"{test.effect:+.4f}", f"{test.low:+.4f} to {test.high:+.4f}"]
        tested.append(f"{result.p_value:.2g}")
    return [
        result.arm.axis or "-",
        result.arm.name,
        f"{statistics.mean(values):.4f}" if values else "",
        f"{statistics.stdev(values):.4f}" if len(values) > 1 else "",
        *tested,
        "" if result.train_flops is None else with_prefix(result.train_flops, "").strip(),
        "" if result.seconds is None else duration(result.seconds),
        judge(result, ablation),
    ]


def to_markdown(ablation: Ablation) -> str:
    """The table with what one has to know to read it."""
    first = ablation.results[0]
    n_tests = sum(result.test is not None for result in ablation.results)
    level = f"{_confidence(ablation):.0%}".replace("%", " %")
    values = ", ".join(f"`{option}` = {_cell(shown(v))}" for option, v in first.arm.labels.items())
    rows = [HEADER, ["---"] * len(HEADER), *to_rows(ablation)]
    lines = [f"| {' | '.join(map(_cell, row))} |" for row in rows]
    return "\n".join(
        [
            f"# Ablation by {ablation.metric}",
            "",
            f"Baseline: {values}. Seeds: {', '.join(map(str, ablation.plan.seeds))}. An effect is "
            "the mean over seeds of the difference from the baseline's run of the same seed, with "
            f"its {level} interval by Student's t; p is corrected for {n_tests} tests (Holm), and "
            "so are the runs needed to find an effect of the size seen with 80 % power.",
            "",
            *lines,
            "",
            f"Cost of all runs: {with_prefix(ablation.train_flops, 'FLOP')}, "
            f"{duration(ablation.seconds)} of processes.",
            "",
        ]
    )


def _confidence(ablation: Ablation) -> float:
    tests = (result.test for result in ablation.results if result.test is not None)
    return next((test.confidence for test in tests), 0.95)


def _cell(value: Any) -> str:
    # A bar ends a cell.
    return readable(value).replace("|", "\\|")
