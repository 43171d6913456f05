import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rslm.config import from_record, read_toml
from rslm.errors import FormatError
from rslm.experiment import child
from rslm.experiment.queue import Outcome, PlannedRun, Queue, run_all, run_name
from rslm.experiment.queue_display import last_step, run_flops
from rslm.experiment.study import read_study
from rslm.run_folder import read_metrics
from rslm.train_config import TrainConfig

TRAINER = Path(__file__).with_name("fake_trainer.py")


@pytest.fixture(autouse=True)
def trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "train_command", lambda path: [sys.executable, TRAINER, path])


def planned(seed: int = 0, *, rate: float = 1e-3, n_steps: int = 5) -> PlannedRun:
    options: dict[str, Any] = {"data": {"train": "tokens"}, "seed": seed, "n_steps": n_steps}
    options["optimizer"] = {"learning_rate": rate, "warmup_steps": 0}
    labels = {"optimizer.learning_rate": rate, "seed": seed}
    return PlannedRun(name=run_name(labels), options=options, labels=labels)


def n_starts(outcome: Outcome) -> int:
    return len((outcome.path / "starts").read_text().splitlines())


def statuses(folder: Path) -> list[str]:
    return [run["status"] for run in read_study(folder)["runs"]]


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_runs_are_made_in_order_and_only_once(tmp_path: Path) -> None:
    runs, seen = [planned(seed) for seed in (2, 0, 1)], []
    outcomes = run_all(runs, tmp_path / "s", n_processes=2, on_change=seen.append, study={"a": 1})
    assert [outcome.run for outcome in outcomes] == runs
    assert {outcome.status for outcome in outcomes} == {"finished"}
    assert {outcome.seconds for outcome in outcomes} == {5 / 8}
    assert sorted(o.run.name for o in seen) == sorted(run.name for run in runs)
    study = read_study(tmp_path / "s")
    assert study["a"] == 1
    assert [run["labels"]["seed"] for run in study["runs"]] == [2, 0, 1]

    again = run_all([*runs, planned(9)], tmp_path / "s")
    assert [n_starts(outcome) for outcome in again] == [1, 1, 1, 1]
    assert read_study(tmp_path / "s")["a"] == 1


def test_process_reads_the_options_that_were_planned(tmp_path: Path) -> None:
    (outcome,) = run_all([planned(7, rate=0.25)], tmp_path)
    assert outcome.path == tmp_path / f"learning_rate=0.25,seed=7-{outcome.run.hash}"
    config = read_toml(outcome.path / "config.toml")
    assert (config["seed"], config["optimizer"]["learning_rate"]) == (7, 0.25)
    assert config["out"] == str(outcome.path)


def test_diverged_run_is_told_and_not_repeated(tmp_path: Path) -> None:
    runs = [planned(0, rate=2.0), planned(1)]
    for _ in range(2):
        outcomes = run_all(runs, tmp_path)
        assert [outcome.status for outcome in outcomes] == ["diverged", "finished"]
        assert outcomes[0].message == "step 1: loss nan, grad_norm nan"
        assert n_starts(outcomes[0]) == 1


def test_failed_run_is_told_and_repeated(tmp_path: Path) -> None:
    for count in (1, 2):
        (outcome,) = run_all([planned(rate=1e-7)], tmp_path)
        assert outcome.status == "failed"
        assert outcome.message.startswith("out of ideas (exit code 2, see ")
        assert n_starts(outcome) == count


def test_folder_that_was_taken_away_is_made_anew(tmp_path: Path) -> None:
    (outcome,) = run_all([planned()], tmp_path)
    for path in outcome.path.iterdir():
        path.unlink()
    assert n_starts(run_all([planned()], tmp_path)[0]) == 1


def test_processes_share_the_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("rslm.experiment.queue.n_cpus", lambda: 9)
    (outcome,) = run_all([planned(0)], tmp_path, n_processes=4)
    assert (outcome.path / "starts").read_text() == "2 -\n"
    (outcome,) = run_all([planned(1)], tmp_path)
    assert (outcome.path / "starts").read_text() == "- -\n"


def test_processes_take_turns_on_the_devices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    outcomes = run_all([planned(seed) for seed in range(4)], tmp_path / "a", n_processes=4)
    devices = [(outcome.path / "starts").read_text().split()[1] for outcome in outcomes]
    assert devices == ["4", "6", "4", "6"]
    (outcome,) = run_all([planned()], tmp_path / "b")
    assert (outcome.path / "starts").read_text().split()[1] == "4,6"


QUEUE = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from rslm.experiment import child
from rslm.experiment.queue import run_all
from test_queue import TRAINER, planned
child.train_command = lambda path: [sys.executable, TRAINER, path]
run_all([planned(seed, n_steps=60) for seed in range(3)], Path({folder!r}), n_processes=2)
"""


def start_queue(folder: Path) -> "subprocess.Popen[bytes]":
    tests = str(Path(__file__).parent)
    program = QUEUE.format(tests=tests, folder=str(folder))
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE)
    wait_until(lambda: len(list(folder.glob("*/metrics.jsonl"))) == 2)
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_has_every_run_save(tmp_path: Path, number: signal.Signals) -> None:
    folder = tmp_path / "study"
    process = start_queue(folder)
    process.send_signal(number)
    _, error = process.communicate(timeout=20)
    if number == signal.SIGTERM:
        assert process.returncode == 75
    else:
        assert b"KeyboardInterrupt" in error
    assert statuses(folder) == ["stopped", "stopped", "waiting"]
    steps = [last_step(path) for path in folder.glob("*/metrics.jsonl")]
    assert all(0 < step < 60 for step in steps)
    time.sleep(0.1)
    assert [last_step(path) for path in folder.glob("*/metrics.jsonl")] == steps

    outcomes = run_all([planned(seed, n_steps=60) for seed in range(3)], folder, n_processes=3)
    assert [n_starts(outcome) for outcome in outcomes] == [2, 2, 1]


def test_killed_queue_goes_on_and_never_doubles_a_run(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    process = start_queue(folder)
    process.kill()
    process.communicate(timeout=20)
    assert statuses(folder) == ["running", "running", "waiting"]
    runs = [planned(seed, n_steps=60) for seed in range(3)]
    outcomes = run_all(runs, folder, n_processes=3)
    for outcome in outcomes:
        rows = read_metrics(outcome.path / "metrics.jsonl")
        assert [row["step"] for row in rows if "loss" in row] == list(range(1, 61))
    # What lived on was waited for: the second start found it finished.
    assert [n_starts(outcome) for outcome in outcomes] == [2, 2, 1]
    assert statuses(folder) == ["finished"] * 3
    assert not any("another process" in log.read_text() for log in folder.glob("queue/*.log"))


def test_two_queues_cannot_have_one_folder(tmp_path: Path) -> None:
    with Queue(tmp_path), pytest.raises(BlockingIOError, match="uses the folder of a study"):
        run_all([], tmp_path)


def test_pruned_run_stops_and_stays_so(tmp_path: Path) -> None:
    run = planned(n_steps=10_000)
    with Queue(tmp_path, [run]) as queue:
        while last_step(tmp_path / run.folder / "metrics.jsonl") < 3:
            queue.work()
            time.sleep(0.01)
        assert queue.running() == [run]
        queue.prune(run, "worse than the others")
        (outcome,) = queue.wait()
        assert (outcome.status, outcome.message) == ("pruned", "worse than the others")
    with Queue(tmp_path) as queue:
        queue.add(run)
        assert queue.wait()[0].status == "pruned"
        assert not queue.has_work
        assert queue.wait() == []


def test_what_cannot_be_queued_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    with pytest.raises(ValueError, match=r"runs must differ, got learning_rate=0.001,seed=0"):
        run_all([planned(), planned()], folder)
    with pytest.raises(ValueError, match="n_processes must be at least 1, got 0"):
        run_all([planned()], folder, n_processes=0)
    assert not folder.exists()


def test_damaged_study_is_refused(tmp_path: Path) -> None:
    for text in ("{", "[]", '{"runs": 1}', '{"runs": [1]}'):
        (tmp_path / "study.json").write_text(text)
        with pytest.raises(FormatError, match=r"study.json (is not JSON|must be an object)"):
            run_all([], tmp_path)


@pytest.mark.parametrize(
    "run",
    [
        {"hash": []},
        {"labels": [1]},
        {"folder": []},
        {"status": 3},
        {"seconds": "x"},
        {"seconds": math.nan},
        {"seconds": 10**400},
        {"labels": {"flop_budgets": ["x"]}},
        {"labels": {"flop_budgets": 3}},
    ],
)
def test_run_of_wrong_types_is_refused(tmp_path: Path, run: dict[str, Any]) -> None:
    (tmp_path / "study.json").write_text(json.dumps({"runs": [run]}))
    with pytest.raises(FormatError, match=r"/study.json: "):
        read_study(tmp_path)


def test_runs_of_an_earlier_plan_are_kept(tmp_path: Path) -> None:
    run_all([planned(0)], tmp_path, study={"kind": "scaling"})
    run_all([planned(1)], tmp_path, study={"kind": "scaling"})
    assert [run["labels"]["seed"] for run in read_study(tmp_path)["runs"]] == [0, 1]
    assert statuses(tmp_path) == ["finished", "finished"]


def test_folder_of_another_study_or_a_run_is_refused(tmp_path: Path) -> None:
    (outcome,) = run_all([planned()], tmp_path, study={"kind": "ablate"})
    before = (tmp_path / "study.json").read_bytes()
    with pytest.raises(ValueError, match=f"^{tmp_path} holds a study of kind ablate, not sweep"):
        run_all([planned()], tmp_path, study={"kind": "sweep"})
    assert (tmp_path / "study.json").read_bytes() == before
    with pytest.raises(ValueError, match="folder of a study must not be that of a run"):
        run_all([planned()], outcome.path, study={"kind": "ablate"})
    assert not (outcome.path / "study.json").exists()


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "a\nb", "-" * 201, " a"])
def test_name_must_be_fit_for_a_folder(name: str) -> None:
    with pytest.raises(ValueError, match="name must be fit for a folder's"):
        PlannedRun(name=name, options={}, labels={})


def test_hash_is_of_the_options_alone() -> None:
    run = planned()
    shuffled = {key: run.options[key] for key in reversed(run.options)}
    assert PlannedRun(name="other", options=shuffled, labels={}).hash == run.hash
    assert planned(1).hash != run.hash
    # By hand: printf '{"seed":1}' | sha256sum
    assert PlannedRun(name="a", options={"seed": 1}, labels={}).hash == "fbe47f6d82b4"


def test_names_hold_nothing_that_a_folder_cannot() -> None:
    labels = {"data.train": Path("/a b/c"), "optimizer.learning_rate": 0.1 + 0.2, "seed": 3}
    assert run_name(labels) == "train=_a_b_c,learning_rate=0.3,seed=3"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_terminal_shows_how_many_runs_are_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "90")
    monkeypatch.setattr(sys, "stderr", Terminal())
    run_all([planned(seed) for seed in range(3)], tmp_path, n_processes=2)
    shown = sys.stderr.getvalue()
    assert "runs 0/3" in shown
    assert "learning_rate=0.001,seed=0" in shown
    assert "runs 3/3" in shown.splitlines()[-2]
    assert "100%" in shown.splitlines()[-2]


def test_pipe_is_told_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_all([planned()], tmp_path)
    assert capsys.readouterr() == ("", "")


def test_larger_runs_count_for_more() -> None:
    options = planned().options | {"out": "run"}
    flops = [run_flops(from_record(TrainConfig, options | {"n_steps": n})) for n in (100, 300)]
    assert flops[1] == pytest.approx(3 * flops[0])


def test_last_step_reads_the_end_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert last_step(path) == 0
    path.write_text("".join(f'{{"step": {step}}}\n' for step in range(1000)) + '{"step": 10')
    assert last_step(path) == 999
    os.truncate(path, 3)
    assert last_step(path) == 0


def test_options_of_one_last_name_are_told_apart() -> None:
    rates = {"optimizer.learning_rate": 1.0, "optimizer.muon.learning_rate": 2.0}
    assert run_name(rates) == "optimizer.learning_rate=1,optimizer.muon.learning_rate=2"
    alone = run_name({"optimizer.learning_rate": 1.0}, among=rates)
    assert alone == "optimizer.learning_rate=1"
