"""The report of the alignment study, on runs whose metrics are written here."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BENCHES = Path(__file__).parents[1] / "benches"
Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def study() -> Iterator[Any]:
    sys.path.insert(0, str(BENCHES))
    try:
        yield importlib.import_module("alignment")
    finally:
        sys.path.remove(str(BENCHES))


@pytest.fixture(scope="module")
def report(study: Any) -> Any:
    return importlib.import_module("alignment_report")


def rows(first: float, last: float) -> Rows:
    """A run of two steps with an evaluation before, between and after."""
    scores = (first, (first + last) / 2, last)
    found: Rows = []
    for step, score in enumerate(scores):
        if step:
            found.append({"step": step, "entropy": 0.5, "zero_advantage_fraction": 0.25})
        of_all = dict.fromkeys(("val_reward", "val_greedy_reward", "val_pass_at_k"), score)
        found.append({"step": step, "elapsed_seconds": 10.0 * step, **of_all})
    return found


RUNS = {
    "grpo": [rows(0.4, 0.9), rows(0.5, 0.8)],
    "dr_grpo": [rows(0.4, 0.8), rows(0.5, 0.8)],
    "random": [rows(0.4, 0.1), rows(0.5, 0.2)],
}


def test_table_has_the_start_each_algorithm_and_dpo(report: Any) -> None:
    dpo = {"sampled": [0.7, 0.1], "greedy": [0.8, 0.1], "pass@8": [0.9, 0.1]}
    lines = report.table(RUNS, [dpo, dpo])
    assert lines[2].startswith("| fine-tuned | 45.0 (40.0 to 50.0) |")
    assert lines[3].startswith("| GRPO | 85.0 (80.0 to 90.0) |")
    assert lines[3].endswith("| 0.500 | 25 % | 20 |")
    assert lines[6].startswith("| DPO | 70.0 (70.0 to 70.0) |")


def test_bars_are_gains_of_each_seed_and_distances_to_grpo(report: Any) -> None:
    lines = report.bars(RUNS)
    assert "- GRPO: sampled +50.0, +30.0; pass@8 +50.0, +30.0" in lines
    assert "- GRPO, random rewards: sampled -30.0, -30.0; pass@8 -30.0, -30.0" in lines
    assert lines[-1] == "Sampled accuracy beside GRPO's, in points: Dr. GRPO -5.0."


def test_preferences_tell_margin_and_accuracy(report: Any) -> None:
    runs: list[Rows] = [
        [{"val_margin": 0.0, "val_accuracy": 0.5}, {"val_margin": 0.5, "val_accuracy": end}]
        for end in (0.8, 0.9)
    ]
    said = " ".join(report.preferences(runs))
    assert "margin 0.00 to 0.50 (0.50 to 0.50), accuracy 0.50 to 0.85 (0.80 to 0.90)" in said


def test_curve_is_over_the_steps_that_all_seeds_have(report: Any) -> None:
    assert next(report.curve(RUNS["grpo"], "val_reward")) == (0, 0.4, pytest.approx(0.45), 0.5)
    assert [point[0] for point in report.curve(RUNS["grpo"], "entropy")] == [1, 2]
    assert [p[0] for p in report.curve([rows(0, 1), rows(0, 1)[:1]], "val_reward")] == [0]


def test_draw_writes_a_picture(report: Any, tmp_path: Path) -> None:
    report.draw(RUNS, tmp_path / "alignment.png")
    assert (tmp_path / "alignment.png").stat().st_size > 10_000


def test_algorithms_differ_in_their_own_options_alone(study: Any, report: Any) -> None:
    for name in study.ALGORITHMS:
        config = study.algorithm_config(name, Path("seed-1"), 7, seed=1)
        assert (config.out, config.base) == (Path("seed-1") / name, Path("seed-1/sft"))
        assert (config.n_steps, config.seed, config.evaluate_every) == (7, 1, 5)
        assert name in report.NAMES
        assert (config.rewards == ("random",)) == (name == "random")
