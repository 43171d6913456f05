"""What `rslm runs` reads from run folders, and how its commands show it."""

import json
import os
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from rslm import train as loop
from rslm.checkpoint import list_checkpoints
from rslm.cli import main
from rslm.errors import FormatError
from rslm.run_folder import open_run_folder, read_metrics
from rslm.runs import describe, differences, find_runs, plot_runs, read_run, summarise
from rslm.train import train
from rslm.train_config import TrainConfig

MakeConfig = Callable[..., TrainConfig]


@pytest.fixture
def runs(
    tiny_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, Path]:
    """Two runs that differ in seed and batch size, in one folder with something that is none."""
    monkeypatch.setattr(loop, "peak_flops", lambda *_: 1e12)
    monkeypatch.setattr(loop, "write_loss_curve", lambda *_: None)
    monkeypatch.setattr(os, "fsync", lambda _: None)
    folder = tmp_path / "runs"
    (folder / "notes").mkdir(parents=True)
    train(tiny_config(out=folder / "b"))
    train(tiny_config(out=folder / "a", seed=1, batch_size=2))
    return folder / "a", folder / "b"


def test_runs_of_a_folder_are_found_by_name(runs: tuple[Path, Path]) -> None:
    assert find_runs(runs[0].parent) == list(runs)
    assert find_runs(runs[1]) == [runs[1]]
    assert find_runs(runs[0].parent / "notes") == []
    with pytest.raises(FileNotFoundError, match="must be a folder of runs"):
        find_runs(runs[0].parent / "missing")


def test_summary_holds_the_numbers_of_the_metrics(runs: tuple[Path, Path]) -> None:
    rows = read_metrics(runs[1] / "metrics.jsonl")
    losses = [row["loss"] for row in rows if "loss" in row]
    validated = [(row["val_loss"], row["step"]) for row in rows if "val_loss" in row]
    summary = summarise(read_run(runs[1]))
    assert summary["run"] == "b"
    assert (summary["status"], summary["step"], summary["n_steps"]) == ("finished", 20, 20)
    assert summary["n_tokens"] == 20 * 4 * 16
    assert summary["loss"] == losses[-1]
    assert summary["val_loss"] == validated[-1][0]
    assert (summary["best_val_loss"], summary["best_step"]) == min(validated)


def test_run_is_running_while_its_folder_is_locked(
    runs: tuple[Path, Path], tiny_config: MakeConfig
) -> None:
    config = tiny_config(out=runs[1])
    config = replace(config, model=replace(config.model, vocab_size=257))
    with open_run_folder(runs[1], config, resume=True, resumable=()):
        assert read_run(runs[1]).status == "running"
    assert read_run(runs[1]).status == "finished"


def test_run_that_was_cut_short_is_stopped_and_its_half_line_left_out(
    runs: tuple[Path, Path],
) -> None:
    path = runs[0] / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:7]) + lines[7][:10])
    run = read_run(runs[0])
    assert run.status == "stopped"
    assert run.step == json.loads(lines[6])["step"]
    path.unlink()
    summary = summarise(read_run(runs[0]))
    assert (summary["step"], summary["loss"], summary["best_step"]) == (0, None, None)


@pytest.mark.parametrize(
    ("line", "message"),
    [("{", "is not JSON"), ("[]", "object with a step"), ('{"step": "1"}', "object with a step")],
)
def test_damaged_metrics_are_named_by_line(
    runs: tuple[Path, Path], line: str, message: str
) -> None:
    path = runs[0] / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n')
    with pytest.raises(FormatError, match=rf"metrics.jsonl, line 2 .*{message}"):
        read_run(runs[0])


def test_description_lists_checkpoints_and_options(runs: tuple[Path, Path]) -> None:
    record = describe(read_run(runs[0]))
    found = [path.name for path in list_checkpoints(runs[0] / "checkpoints")]
    assert record["checkpoints"] == found
    assert record["best_checkpoint"] == os.readlink(runs[0] / "checkpoints" / "best")
    assert record["n_starts"] == 1
    assert record["config"]["model.d_model"] == 16


def test_differences_are_of_options_and_of_results(runs: tuple[Path, Path]) -> None:
    one, other = map(read_run, runs)
    pairs = differences(one, other)
    assert pairs["seed"] == (1, 0)
    assert pairs["batch_size"] == (2, 4)
    assert pairs["n_tokens"] == (640, 1280)
    assert "out" not in pairs
    assert "n_steps" not in pairs
    assert pairs["val_loss"] == (one.last("val_loss"), other.last("val_loss"))
    assert differences(one, one) == {}


def test_plot_draws_each_run_that_has_the_metric(runs: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "curves.svg"
    plot_runs(list(map(read_run, runs)), out, metric="val_loss", over="step")
    # Text is drawn as shapes, but for its comments.
    assert all(f"<!-- {name} -->" in out.read_text() for name in ("a", "b", "val_loss", "step"))
    with pytest.raises(ValueError, match=r"metric must be one .*val_loss.*, got 'speed'"):
        plot_runs([read_run(runs[0])], out, metric="speed", over="step")


def test_commands_print_tables_and_json(
    runs: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)

    def rslm(command: str) -> str:
        capsys.readouterr()
        assert main(shlex.split(command)) == 0
        return capsys.readouterr().out

    assert [line.split()[0] for line in rslm("runs ls").splitlines()] == ["run", "a", "b"]
    assert [row["run"] for row in json.loads(rslm("runs ls runs --json"))] == ["a", "b"]
    assert "model.d_model" in rslm("runs show runs/a")
    assert json.loads(rslm("runs show runs/a --json"))["config"]["seed"] == 1
    assert "batch_size" in rslm("runs diff runs/a runs/b")
    assert json.loads(rslm("runs diff runs/a runs/b --json"))["seed"] == [1, 0]
    rslm("runs plot runs/a runs/b --out curves.png --metric loss --over n_tokens")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


HOSTILE: dict[str, dict[str, str]] = {
    "no config": {"metrics.jsonl": ""},
    "broken config": {"config.toml": "n_steps = = 3"},
    "infinite steps": {"config.toml": "n_steps = inf"},
    "list of steps": {"config.toml": "n_steps = [1]"},
    "broken line": {"metrics.jsonl": '{"step": 1\n'},
    "nested line": {"metrics.jsonl": '{"step": 1, "loss": ' + "[" * 100_000 + "\n"},
    "text for a loss": {"metrics.jsonl": '{"step": 1, "val_loss": "low"}\n'},
    "huge loss": {"metrics.jsonl": f'{{"step": 1, "loss": 1{"0" * 400}}}\n'},
    "huge step": {"metrics.jsonl": f'{{"step": 1{"0" * 5000}}}\n'},
    "zeros": {"metrics.jsonl": "\0\0\n"},
    "red \x1b[31m\x9b1m\n": {"metrics.jsonl": "{\n"},
}


def hostile_run(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir()
    (folder / "config.toml").write_text("n_steps = 20\n")
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0, "n_tokens": 4}\n')
    for name, text in files.items():
        (folder / name).write_text(text)
    if "config.toml" not in files and files.get("metrics.jsonl") == "":
        (folder / "config.toml").unlink()
    return folder


@pytest.mark.parametrize(("name", "files"), HOSTILE.items(), ids=map(repr, HOSTILE))
def test_damaged_folders_are_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, files: dict[str, str]
) -> None:
    run = str(hostile_run(tmp_path / name, files))
    good = str(hostile_run(tmp_path / "good", {}))
    picture = str(tmp_path / "p.png")
    for arguments in (
        ["show", run],
        ["show", run, "--json"],
        ["diff", good, run],
        ["plot", good, run, "--out", picture],
        *([] if name == "no config" else [["ls", run]]),
    ):
        assert main(["runs", *arguments]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith("error: ")
        assert said.err.count("\n") == 1
        assert said.err.rstrip("\n").isprintable()
    assert main(["runs", "show", f"{good}/config.toml"]) == 2


def test_names_and_numbers_of_a_run_steer_no_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {
        "config.toml": 'n_steps = 20\n"key\\u001b[31m" = "\\u001b]0;t\\u0007\\u009b1m\\u202e"\n',
        "metrics.jsonl": '{"step": 1, "loss": NaN, "val_loss": NaN, "n_tokens": 4}\n'
        '{"step": 2, "loss": Infinity, "val_loss": 3.0, "n_tokens": 8}\n{"step": 3, "lo',
    }
    run = hostile_run(tmp_path / "red \x1b[31m$x^$", files)
    other = hostile_run(tmp_path / "good", {})
    picture = str(tmp_path / "p.png")
    commands = (["ls", str(tmp_path)], ["show", str(run)], ["show", str(run), "--json"])
    for arguments in (
        *commands,
        ["diff", str(run), str(other)],
        ["plot", str(run), str(other), "--metric", "loss", "--out", picture],
    ):
        assert main(["runs", *arguments]) == 0
        said = capsys.readouterr()
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", said.out + said.err)
    assert summarise(read_run(run))["best_val_loss"] == 3.0


@pytest.mark.parametrize("text", ["{", "3", "null", "[1]"])
def test_damaged_list_of_starts_is_named(tmp_path: Path, text: str) -> None:
    run = hostile_run(tmp_path / "run", {"env.json": text})
    with pytest.raises(FormatError, match=r"env\.json"):
        describe(read_run(run))


def test_rewards_are_shown_where_a_run_has_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"step": 1, "n_tokens": 4, "loss": 0.0, "reward": 0.25},
        {"step": 2, "n_tokens": 8, "loss": 0.0, "reward": 0.5},
        {"step": 2, "n_tokens": 8, "val_loss": 0.375, "val_reward": 0.625},
    ]
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    files = {"config.toml": "n_steps = 2\n", "metrics.jsonl": text}
    run = hostile_run(tmp_path / "rl", files)
    assert main(["runs", "ls", str(run.parent)]) == 0
    table = capsys.readouterr().out
    assert "val_reward" in table
    assert "0.625" in table
    assert main(["runs", "show", str(run)]) == 0
    shown = capsys.readouterr().out
    assert re.search("rewards +▁█", shown)
    assert "losses" not in shown
    picture = tmp_path / "p.svg"
    assert main(["runs", "plot", str(run), "--out", str(picture)]) == 0
    assert "<!-- val_reward -->" in picture.read_text()
