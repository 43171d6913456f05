import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_trainer
import pytest
from scipy import stats

from rslm.cli import main
from rslm.experiment import child
from rslm.experiment.ablate import plan_ablation, run_ablation
from rslm.experiment.ablation_results import analyse, judge, to_markdown, to_record
from rslm.experiment.axes import Axis
from rslm.experiment.study import read_study

FFN = Axis(option="model.ffn", values=("relu2", "swiglu", "silu"))
NORM = Axis(option="model.norm_position", values=("post", "peri"))
RATE = Axis(option="optimizer.learning_rate", values=(0.01, 5.0))


@pytest.fixture(autouse=True)
def trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, fake_trainer.__file__]
    monkeypatch.setattr(child, "train_command", lambda path: [*command, path])


@pytest.fixture(scope="module")
def base(token_files: tuple[Path, Path]) -> dict[str, Any]:
    return {
        "data": {"train": str(token_files[0])},
        "model": {"vocab_size": 257, "context_length": 8, "d_model": 8, "n_heads": 1},
        "optimizer": {"learning_rate": 0.01, "warmup_steps": 0},
        "n_steps": 5,
        "seed": 3,
    }


def test_one_option_differs_at_a_time(base: dict[str, Any]):
    plan = plan_ablation(base, [FFN, NORM], n_seeds=2, complete=dict)
    # The base has swiglu itself, and neither post nor peri.
    assert [axis.values for axis in plan.axes] == [("swiglu", "relu2", "silu"), ("post", "peri")]
    arms = [(arm.axis, arm.name, list(arm.labels.values())) for arm in plan.arms]
    assert arms == [
        ("", "base", ["swiglu", "post"]),
        ("model.ffn", "relu2", ["relu2", "post"]),
        ("model.ffn", "silu", ["silu", "post"]),
        ("model.norm_position", "peri", ["swiglu", "peri"]),
    ]
    names = [run.name for run in plan.planned]
    assert names[:4] == [
        "base,seed=3",
        "ffn=relu2,seed=3",
        "ffn=silu,seed=3",
        "norm_position=peri,seed=3",
    ]
    assert names[4] == "base,seed=4"
    run = plan.arms[3].runs[4]
    assert (run.options["model"]["ffn"], run.options["model"]["norm_position"]) == (
        "swiglu",
        "peri",
    )
    assert run.options["seed"] == run.labels["seed"] == 4


def test_grid_has_every_combination(base: dict[str, Any]):
    plan = plan_ablation(base, [FFN, NORM], n_seeds=1, complete=dict, grid=True)
    values = [tuple(arm.labels.values()) for arm in plan.arms]
    assert values[0] == ("swiglu", "post")
    assert sorted(values) == sorted((a, b) for a in FFN.values for b in NORM.values)
    assert {arm.axis for arm in plan.arms[1:]} == {"grid"}
    assert plan.arms[1].name == "ffn=swiglu,norm_position=peri"


def test_what_cannot_be_planned_is_refused(base: dict[str, Any]):
    for axes, n_seeds, message in [
        ([], 1, "axes must be at least one"),
        ([FFN, FFN], 1, "of different options"),
        ([FFN], 0, "seeds must be at least 1, got 0"),
        ([FFN], 10**9, "runs must be at most 10000, got 3 arms of 1000000000 seeds"),
        (
            [Axis(option="n_steps", values=(5, 0))],
            1,
            "n_steps=0,seed=3: n_steps must be at least 1",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            plan_ablation(base, axes, n_seeds=n_seeds, complete=dict)


@pytest.fixture(scope="module")
def made(base: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An ablation that was run, and its folder."""
    patch = pytest.MonkeyPatch()
    command = [sys.executable, fake_trainer.__file__]
    patch.setattr(child, "train_command", lambda path: [*command, path])
    folder = tmp_path_factory.mktemp("ablation") / "study"
    plan = plan_ablation(base, [FFN, RATE], n_seeds=3, complete=dict)
    outcomes = run_ablation(plan, folder, n_processes=3)
    patch.undo()
    return plan, outcomes, folder


def test_effects_are_those_of_pairs(made: Any):
    plan, outcomes, _ = made
    ablation = analyse(plan, outcomes)
    assert ablation.metric == "val_bits_per_byte"
    by_name = {result.arm.name: result for result in ablation.results}
    losses = {
        ffn: [
            fake_trainer.loss_of(
                {
                    "optimizer": {"learning_rate": 0.01},
                    "model": {"ffn": ffn},
                    "seed": seed,
                    "n_steps": 5,
                },
                5,
            )
            for seed in (3, 4, 5)
        ]
        for ffn in ("swiglu", "relu2")
    }
    relu2 = by_name["relu2"]
    assert list(relu2.values.values()) == pytest.approx(losses["relu2"])
    p_value = stats.ttest_rel(losses["relu2"], losses["swiglu"]).pvalue
    assert relu2.test is not None
    assert relu2.test.p_value == pytest.approx(p_value)
    # Two tests: that of silu, which is the baseline's twin to the stand-in, is the other.
    assert relu2.p_value == pytest.approx(2 * p_value)
    assert ablation.alpha == pytest.approx(0.025)
    assert judge(relu2, ablation) == "better"
    unsure = replace(relu2, p_value=0.051)
    assert judge(unsure, ablation).startswith("not significant at n = 3; n needed = ")
    assert judge(by_name["silu"], ablation) == "no difference at n = 3"
    assert judge(by_name["base"], ablation) == "baseline"


def test_diverged_runs_are_shown_as_such(made: Any):
    plan, outcomes, _ = made
    ablation = analyse(plan, outcomes)
    diverged = ablation.results[-1]
    assert (diverged.n_diverged, diverged.test, diverged.train_flops) == (3, None, None)
    assert judge(diverged, ablation) == "diverged (3 of 3)"
    assert "| optimizer.learning_rate | 5 |" in to_markdown(ablation)


def test_study_says_which_runs_make_an_arm(made: Any):
    plan, _, folder = made
    study = read_study(folder)
    assert study["kind"] == "ablate"
    assert study["axes"][0] == {"option": "model.ffn", "values": ["swiglu", "relu2", "silu"]}
    hashes = {run["hash"]: run["labels"] for run in study["runs"]}
    arm = next(arm for arm in study["arms"] if arm["name"] == "relu2")
    assert [hashes[key]["seed"] for key in arm["hashes"]] == plan.seeds
    assert {hashes[key]["model.ffn"] for key in arm["hashes"]} == {"relu2"}


def test_record_holds_numbers_that_json_can(made: Any):
    plan, outcomes, _ = made
    record = json.loads(json.dumps(to_record(analyse(plan, outcomes))))
    relu2 = record["arms"][1]
    assert relu2["test"]["low"] < relu2["test"]["effect"] < relu2["test"]["high"]
    assert math.isfinite(relu2["minimal_effect"])
    assert relu2["n_needed"] >= 2
    assert record["arms"][0]["test"] is None


def test_arm_of_few_finished_runs_is_compared_by_those(made: Any):
    plan, outcomes, _ = made
    lost = plan.arms[1].runs[3].hash
    changed = [
        type(o)(run=o.run, path=o.path, status="diverged", seconds=1.0) if o.run.hash == lost else o
        for o in outcomes
    ]
    ablation = analyse(plan, changed)
    relu2 = ablation.results[1]
    assert relu2.test is not None
    assert relu2.test.n == (2, 2)
    assert judge(relu2, ablation).startswith("diverged (1 of 3); ")


def test_nothing_finished_is_said(made: Any):
    plan, outcomes, _ = made
    failed = [type(o)(run=o.run, path=o.path, status="failed", seconds=0.0) for o in outcomes]
    with pytest.raises(ValueError, match="no run finished"):
        analyse(plan, failed)
    with pytest.raises(ValueError, match=r"metric must be one that runs have .*, got 'core'"):
        analyse(plan, outcomes, metric="core")


def write_base(folder: Path, token_files: tuple[Path, Path]) -> Path:
    path = folder / "base.toml"
    path.write_text(
        f'n_steps = 5\n[data]\ntrain = "{token_files[0]}"\n[optimizer]\nwarmup_steps = 0\n'
        "learning_rate = 0.01\n[model]\nvocab_size = 257\n"
    )
    return path


def test_command_writes_table_and_pictures(
    tmp_path: Path, token_files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
):
    base, out = write_base(tmp_path, token_files), tmp_path / "study"
    axes = ["--axis", "model.ffn=relu2,swiglu", "--axis", "optimizer.learning_rate=0.1,9"]
    command = ["ablate", str(base), *axes, "--out", str(out), "--seeds", "2", "--processes", "4"]
    assert main([*command, "--dry-run"]) == 0
    assert "6 runs" in capsys.readouterr().out
    assert not out.exists()
    assert main(command) == 0
    shown = capsys.readouterr()
    assert "baseline: model.ffn = swiglu, optimizer.learning_rate = 0.1" in shown.out
    assert "diverged (2 of 2)" in shown.out
    assert shown.err == f"wrote {out}/ablation.md, ablation.json, curves.png, forest.png\n"
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "forest.png").read_bytes().startswith(b"\x89PNG")
    assert "Baseline: `model.ffn` = swiglu" in (out / "ablation.md").read_text()
    assert main([*command, "--json", "--grid"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record == json.loads((out / "ablation.json").read_text())
    assert len(record["arms"]) == 4


def test_command_reports_runs_that_failed(
    tmp_path: Path, token_files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
):
    base, out = write_base(tmp_path, token_files), tmp_path / "study"
    axis = ["--axis", "optimizer.learning_rate=0.01,1e-7", "--seeds", "1"]
    assert main(["ablate", str(base), *axis, "--out", str(out)]) == 1
    shown = capsys.readouterr()
    assert "learning_rate=1e-07,seed=0 failed: out of ideas (exit code 2, see " in shown.err
    assert "failed (1 of 1)" in shown.out


def test_command_shows_how_runs_ended_where_none_finished(
    tmp_path: Path, token_files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
):
    base, out = write_base(tmp_path, token_files), tmp_path / "study"
    axis = ["--axis", "optimizer.learning_rate=9,1e-7", "--seeds", "1", "--json"]
    assert main(["ablate", str(base), *axis, "--out", str(out)]) == 1
    shown = capsys.readouterr()
    runs = json.loads(shown.out)["runs"]
    assert [(run["run"], run["status"]) for run in runs] == [
        ("base,seed=0", "diverged"),
        ("learning_rate=1e-07,seed=0", "failed"),
    ]
    assert shown.err == "no run finished: there is nothing to compare\n"


def test_command_refuses_before_anything_is_made(
    tmp_path: Path, token_files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
):
    base, out = write_base(tmp_path, token_files), tmp_path / "study"
    ffn = ["--axis", "model.ffn=relu2,silu"]
    for arguments, message in [
        ([], "axes must be at least one"),
        (["--axis", "model.fnn=relu2,silu"], "the closest known one is model.ffn"),
        ([*ffn, "--set", "n_steps=0"], "n_steps must be at least 1, got 0"),
        ([*ffn, "--set", "data.train=/nowhere"], "/nowhere: No such file or directory"),
        ([*ffn, "--metric", "core"], "metric must be one of val_bits_per_byte"),
        ([*ffn, "--metric", "val_loss"], "metric val_loss needs data.valid, which base,seed=0"),
        ([*ffn, "--metric", "mfu", "--set", "n_steps=1"], "metric mfu needs n_steps of at least 2"),
        (
            ["--axis", "optimizer.learning_rate=0.1,0.0010000001,0.0010000002", "--dry-run"],
            "runs must differ, got learning_rate=0.001,seed=0",
        ),
        ([*ffn, "--processes", "0"], "processes must be at least 1, got 0"),
        ([*ffn, "--confidence", "95"], "confidence must be in [0.5, 0.9999], got 95"),
    ]:
        assert main(["ablate", str(base), "--out", str(out), *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.startswith("error: ")
        assert error.count("\n") == 1
    assert not out.exists()
