"""`rslm rl`: options, an unbroken run, a resumption, a replay, and what is refused."""

import re
from pathlib import Path
from typing import Any

import pytest
from rl_runs import make_base, make_task, weights_of

from rslm.cli import main
from rslm.config import read_config
from rslm.post.rl_config import RlConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rl")
    make_base(folder / "base", n_steps=0)
    make_task(folder / "task.jsonl")
    return folder


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rslm.post.setup.peak_flops", lambda *_: 1e12)
    monkeypatch.setattr("rslm.post.update.write_curve", lambda *_: None)


def call(folder: Path, out: Path, *flags: str) -> int:
    small = "--n-steps 2 --prompts-per-step 2 --group-size 2 --max-new-tokens 3 --device cpu"
    given = ["--task", str(folder / "task.jsonl"), "--n-evaluation-prompts", "0", *small.split()]
    return main(["rl", str(folder / "base"), "--out", str(out), *given, *flags])


def test_run_says_each_step_and_what_comes_next(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(folder, tmp_path / "run") == 0
    printed, said = capsys.readouterr()
    assert printed == ""
    assert "step=2/2" in said
    assert "reward=" in said
    assert said.endswith(f"next: rslm chat {tmp_path / 'run'}\n")
    assert call(folder, tmp_path / "run") == 2
    assert "already exists" in capsys.readouterr().err
    assert main(["rl", "--resume", "--out", str(tmp_path / "run")]) == 0
    config = read_config(RlConfig, tmp_path / "run" / "config.toml")
    assert config.exact is True
    assert config.model.d_model == 16


def test_algorithm_sets_options_which_flags_may_change(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--algorithm", "dapo", "--aggregation", "sequence", "--print-config"]
    assert call(folder, tmp_path / "run", *flags) == 0
    shown = tmp_path / "shown.toml"
    shown.write_text(capsys.readouterr().out)
    config = read_config(RlConfig, shown)
    assert (config.keep, config.clip_range, config.aggregation) == (
        "mixed",
        (0.2, 0.28),
        "sequence",
    )
    assert config.rewards == ("task", "overlong")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--algorithm", "ppo"], "ppo"),
        (["--task", "knitting"], "task must be"),
        (["--rewards", "length"], "rewards must be different ones of task"),
        (["--group-size", "1"], "group_size must be above 1"),
        (["--replay", "step_1.jsonl", "--resume"], "give --resume or --replay, not both"),
        (["--base", "x"], "--base"),
    ],
)
def test_mistake_is_one_line_and_leaves_nothing(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    message: str,
) -> None:
    assert call(folder, tmp_path / "run", *flags) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert message in said
    assert not (tmp_path / "run").exists()


def test_base_that_is_none_is_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--task", str(folder / "task.jsonl"), "--out", str(tmp_path / "run")]
    assert main(["rl", str(tmp_path / "nothing"), *flags]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_step_is_replayed_from_its_file(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    run, again = tmp_path / "run", tmp_path / "again"
    flags = ["--rewards", "random", "--checkpoint-every", "1", "--keep-checkpoints", "3"]
    assert call(folder, run, *flags) == 0
    file = run / "rollouts" / "step_2.jsonl"
    monkeypatch.setattr("rslm.post.rl.collect_rollouts", None)
    assert main(["rl", "--replay", str(file), "--out", str(again)]) == 0
    said = capsys.readouterr().err
    assert said.endswith("again: step 2 made again, with the same weights as the run's\n")
    assert weights_of(again) == weights_of(run)
    assert main(["rl", "--replay", str(run / "config.toml"), "--out", str(again)]) == 2
    assert main(["rl", "--replay", str(run / "rollouts" / "step_9.jsonl"), "--out", "x"]) == 2
    assert capsys.readouterr().err.count("error: ") == 2


def test_end_tells_the_reward_on_held_out_questions(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--n-evaluation-prompts", "2", "--n-evaluation-samples", "2", "--n-steps", "1"]
    assert call(folder, tmp_path / "run", *flags) == 0
    said = capsys.readouterr().err
    assert re.search(r"run: finished at step 1, val_reward [01]\.\d{4}\n", said)
