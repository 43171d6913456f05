"""The parts of an experiment on the trainer itself, for which other tests use a stand-in."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rslm.config import to_record
from rslm.experiment.ablate import plan_ablation, run_ablation
from rslm.experiment.ablation_results import analyse, judge
from rslm.experiment.axes import parse_axis
from rslm.experiment.study import read_study
from rslm.runs import read_run


@pytest.mark.slow
def test_trainer_is_seen_to_finish_and_to_diverge(
    tiny_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    python = str(Path(__file__).parents[1] / "python")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([python, os.environ.get("PYTHONPATH", "")]))
    config = tiny_config()
    # Such a step makes every weight infinite.
    config = replace(config, optimizer=replace(config.optimizer, max_skipped_steps=0))
    base = to_record(config)
    del base["out"]
    axes = [parse_axis("optimizer.learning_rate=0.01,1e30")]
    plan = plan_ablation(base, axes, n_seeds=1, complete=dict)
    finished, diverged = run_ablation(plan, tmp_path / "study", n_processes=2)
    ablation = analyse(plan, [finished, diverged])
    said = [judge(result, ablation) for result in ablation.results]
    assert said == ["baseline", "diverged (1 of 1)"]
    assert diverged.message.startswith("step ")
    assert [run["status"] for run in read_study(tmp_path / "study")["runs"]] == [
        "finished",
        "diverged",
    ]
    run = read_run(finished.path)
    assert (run.status, run.config["model"]["vocab_size"]) == ("finished", 257)
    assert finished.seconds == run.last("elapsed_seconds")
