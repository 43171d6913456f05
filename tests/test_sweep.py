import json
import math
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fake_trainer
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rslm.cli import main
from rslm.config import read_config
from rslm.errors import FormatError
from rslm.experiment import child
from rslm.experiment.halving import Halving, value_by
from rslm.experiment.queue import Outcome, PlannedRun
from rslm.experiment.queue_display import last_step
from rslm.experiment.space import Dimension, grid_points, parse_dimension, random_points
from rslm.experiment.study import read_study
from rslm.experiment.sweep import Sweep, run_sweep
from rslm.experiment.sweep_results import analyse, stability_edge, to_preset
from rslm.experiment.tpe import STORAGE, Tpe
from rslm.runs import Run
from rslm.train_config import TrainConfig

RATE = "optimizer.learning_rate"


@pytest.fixture(autouse=True)
def trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, fake_trainer.__file__]
    monkeypatch.setattr(child, "train_command", lambda path: [*command, path])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{RATE}=log:1e-4..1e-1", Dimension(option=RATE, scale="log", low=1e-4, high=1e-1)),
        (
            "optimizer.beta2=linear:0.9..0.99:4",
            Dimension(option="optimizer.beta2", scale="linear", low=0.9, high=0.99, n_points=4),
        ),
        (
            "batch_size=log:8..64",
            Dimension(option="batch_size", scale="log", low=8, high=64, is_whole=True),
        ),
        (
            "model.ffn=relu2,silu",
            Dimension(option="model.ffn", scale="choice", values=("relu2", "silu")),
        ),
    ],
)
def test_dimension_is_a_range_or_a_choice(text: str, expected: Dimension):
    found = parse_dimension(text)
    # NaN, as a choice's ends are, equals nothing.
    assert repr(found) == repr(expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{RATE}=log:1", "range must be log:LOW..HIGH or linear:LOW..HIGH, got 'log:1'"),
        (f"{RATE}=log:0..1", "range must have 0 < LOW < HIGH"),
        (f"{RATE}=linear:1..1", "range must have LOW < HIGH"),
        (f"{RATE}=log:1..2:0", "range must have 1 to 10000 points"),
        (f"{RATE}=log:1..2:1000000000", "range must have 1 to 10000 points"),
        (f"{RATE}=log:1..2:{'1' * 5000}", "range must have 1 to 10000 points"),
        (f"{RATE}=linear:1..inf", "must be of an option that is a number"),
        ("device=linear:1..2", "must be of an option that is a number"),
        ("compile=linear:true..false", "must be of an option that is a number"),
        ("batch_size=linear:1..2.5", "batch_size must be a whole number, got 2.5"),
        ("optimizer.lerning_rate=log:1..2", "the closest known one is optimizer.learning_rate"),
        ("seed=linear:0..9", "seed is set for each run of a study"),
        ("model.ffn=relu2", "at least two values"),
    ],
)
def test_what_is_no_dimension_is_refused(text: str, message: str):
    with pytest.raises(ValueError, match=message):
        parse_dimension(text)


def test_grid_has_equal_distances():
    rate = parse_dimension(f"{RATE}=log:1e-4..1e-1")
    assert rate.grid(4) == [1e-4, 1e-3, 1e-2, 1e-1]
    assert parse_dimension("optimizer.beta2=linear:0.9..0.99").grid(4) == [0.9, 0.93, 0.96, 0.99]
    # Whole numbers between 1 and 3 are three, however many are asked for.
    assert parse_dimension("batch_size=linear:1..3").grid(9) == [1, 2, 3]
    ffn = parse_dimension("model.ffn=relu2,silu")
    points = grid_points([rate, ffn], 7)
    # Three rates with two choices are the most that seven runs allow.
    assert [point[RATE] for point in points] == [1e-4, 1e-4, 0.003162, 0.003162, 0.1, 0.1]
    assert [point["model.ffn"] for point in points] == ["relu2", "silu"] * 3
    asked = parse_dimension(f"{RATE}=log:1e-4..1e-1:5")
    assert len(grid_points([asked, ffn], 10)) == 10
    with pytest.raises(ValueError, match="n_runs must be at least the grid's 10 points, got 9"):
        grid_points([asked, ffn], 9)


def test_values_stay_within_the_range_and_finite():
    near_one = parse_dimension("optimizer.beta2=linear:0.9..0.99999")
    assert near_one.grid(2) == [0.9, 0.99999]
    above = parse_dimension("optimizer.beta2=linear:0.900049..0.95")
    assert above.grid(2) == [0.900049, 0.95]
    wide = parse_dimension(f"{RATE}=log:1e-320..1e300")
    low, middle, high = wide.grid(3)
    assert (low, high) == (1e-320, 1e300)
    assert math.log10(middle) == pytest.approx(-10, abs=0.01)


def test_large_grid_is_counted_before_it_is_made():
    space = [
        parse_dimension(f"optimizer.{name}=linear:0.1..0.9:9000") for name in ("beta1", "beta2")
    ]
    space += [parse_dimension(f"{RATE}=log:1e-9..1:9000")]
    with pytest.raises(
        ValueError, match=r"n_runs must be at least the grid's \d{9,} points, got 5"
    ):
        grid_points(space, 5)


@given(st.integers(0, 1000), st.integers(1, 40))
def test_random_points_are_even_and_stay_as_more_are_asked_for(seed: int, n_runs: int):
    space = [parse_dimension(f"{RATE}=log:1e-4..1e-1"), parse_dimension("batch_size=linear:1..9")]
    points = random_points(space, n_runs, seed)
    assert points == random_points(space, n_runs + 3, seed)[:n_runs]
    assert all(1e-4 <= point[RATE] <= 1e-1 for point in points)
    assert all(point["batch_size"] in range(1, 10) for point in points)


def test_random_points_of_a_log_range_are_even_in_the_logarithm():
    points = random_points([parse_dimension(f"{RATE}=log:1e-4..1")], 400, 0)
    assert sum(point[RATE] < 1e-2 for point in points) == pytest.approx(200, abs=3 * 10)


@pytest.mark.parametrize(
    ("curve", "edge"),
    [
        ([(0.1, 3.0), (1.0, 2.5), (10.0, 2.6), (100.0, None)], (10.0, 100.0)),
        # Slow small rates are not unstable, and what is 12 % above the best is.
        ([(1.0, 9.0), (2.0, 2.5), (4.0, 2.8), (8.0, 2.5)], (2.0, 4.0)),
        ([(2.0, 2.4), (1.0, 2.5)], (2.0, None)),
        ([(1.0, None)], None),
    ],
)
def test_edge_of_stability(curve: Any, edge: Any):
    assert stability_edge(curve) == edge


def make_sweep(base: Mapping[str, Any], **changes: Any) -> Sweep:
    options = {
        "base": dict(base),
        "space": [parse_dimension(f"{RATE}=log:1e-4..100:7")],
        "method": "grid",
        "n_runs": 7,
        "metric": "loss",
        "complete": dict,
    }
    return Sweep(**(options | changes))


@pytest.fixture(scope="module")
def base(token_files: tuple[Path, Path]) -> dict[str, Any]:
    return {
        "data": {"train": str(token_files[0])},
        "model": {"vocab_size": 257},
        "optimizer": {"learning_rate": 0.01, "warmup_steps": 0},
        "n_steps": 5,
    }


def test_grid_finds_the_best_rate_and_the_edge(base: dict[str, Any], tmp_path: Path):
    sweep = make_sweep(base)
    outcomes = run_sweep(sweep, tmp_path / "s", n_processes=3)
    result = analyse(sweep, outcomes)
    assert result.best.labels == {RATE: 0.01}
    (edge,) = result.edges
    assert (edge.stable, edge.unstable) == (0.1, 1.0)  # 0.4 above the best's 3 at 1.
    assert [tried.outcome.status for tried in result.tried[-2:]] == ["diverged", "diverged"]
    study = read_study(tmp_path / "s")
    assert (study["kind"], study["method"], study["metric"]) == ("sweep", "grid", "loss")
    assert study["space"] == [{"option": RATE, "scale": "log", "low": 1e-4, "high": 100}]


def test_preset_makes_the_best_run(base: dict[str, Any], tmp_path: Path):
    sweep = make_sweep(base, n_runs=3, space=[parse_dimension("model.ffn=swiglu,relu2,silu")])
    result = analyse(sweep, run_sweep(sweep, tmp_path / "s", n_processes=3))
    text = to_preset(result)
    assert text.startswith("# Best of 3 finished runs: loss 2.9")
    assert "out" not in tomllib.loads(text)
    path = tmp_path / "best.toml"
    path.write_text(f'out = "run"\n{text}')
    config = read_config(TrainConfig, path)
    assert config.model.ffn == "relu2"
    assert config.n_steps == 5


def test_points_that_come_to_one_run_are_made_once(base: dict[str, Any], tmp_path: Path):
    sweep = make_sweep(base, method="random", space=[parse_dimension("batch_size=linear:1..2")])
    outcomes = run_sweep(sweep, tmp_path, n_processes=2)
    assert sorted(outcome.run.name for outcome in outcomes) == ["batch_size=1", "batch_size=2"]


def n_starts(folder: Path) -> int:
    return sum(len(path.read_text().splitlines()) for path in folder.glob("*/starts"))


def test_tpe_looks_where_it_is_good(tmp_path: Path):
    pytest.importorskip("optuna")
    run = PlannedRun(name="a", options={}, labels={})
    shares: list[float] = []
    for n_runs in (4, 30):
        tpe = Tpe([parse_dimension(f"{RATE}=log:1e-5..100")], n_runs, tmp_path)
        while (asked := tpe.next()) is not None:
            distance = abs(math.log10(asked[1][RATE]) + 2)
            finished = distance < 2
            outcome = Outcome(
                run=run, path=tmp_path, status="finished" if finished else "diverged", seconds=0.0
            )
            tpe.tell(asked[0], outcome, distance if finished else None)
            shares.append(distance < 1.5)
    assert len(shares) == 30
    # Three of seven decades are so near the best; chance would find 6 of 15 there.
    assert sum(shares[15:]) >= 10


def test_tpe_goes_on_with_new_points(base: dict[str, Any], tmp_path: Path):
    pytest.importorskip("optuna")
    space = [parse_dimension(f"{RATE}=log:1e-5..100")]
    for n_runs in (4, 8):
        sweep = make_sweep(base, method="tpe", n_runs=n_runs, space=space)
        outcomes = run_sweep(sweep, tmp_path, n_processes=2)
        assert len(outcomes) == len({o.run.hash for o in outcomes}) == n_runs
        assert n_starts(tmp_path) == n_runs
    run_sweep(sweep, tmp_path)
    assert n_starts(tmp_path) == n_runs
    with pytest.raises(ValueError, match="holds a sweep of other options"):
        run_sweep(make_sweep(base | {"n_steps": 6}, method="tpe", space=space), tmp_path)


def test_tpe_refuses_another_space_and_stays_usable(base: dict[str, Any], tmp_path: Path):
    pytest.importorskip("optuna")
    sweeps = [
        make_sweep(base, method="tpe", n_runs=1, space=[parse_dimension(f"{RATE}={scale}")])
        for scale in ("log:1e-4..1e-1", "linear:1e-4..1e-1")
    ]
    run_sweep(sweeps[0], tmp_path)
    with pytest.raises(ValueError, match="holds a sweep of another space"):
        run_sweep(sweeps[1], tmp_path)
    assert len(run_sweep(sweeps[0], tmp_path)) == n_starts(tmp_path) == 1


def test_tpe_passes_over_points_that_were_asked_for_in_part(tmp_path: Path):
    optuna = pytest.importorskip("optuna")
    space = [parse_dimension(f"{RATE}=log:1e-4..1")]
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / STORAGE))
    storage = optuna.storages.JournalStorage(backend)
    optuna.create_study(storage=storage, study_name="sweep").ask()
    tpe = Tpe(space, 1, tmp_path)
    asked = tpe.next()
    assert asked is not None
    assert (asked[0], list(asked[1])) == (1, [RATE])
    assert tpe.next() is None


@pytest.mark.parametrize("damage", [b"\x00\xff\n", b"[]\n", b'{"op_code": 0', b'{"op_code": 99}\n'])
def test_damaged_journal_is_refused(tmp_path: Path, damage: bytes):
    pytest.importorskip("optuna")
    space = [parse_dimension(f"{RATE}=log:1e-4..1")]
    Tpe(space, 1, tmp_path)
    with (tmp_path / STORAGE).open("ab") as file:
        file.write(damage)
    for _ in range(2):
        with pytest.raises(FormatError, match=f"{STORAGE} must be a journal of optuna"):
            Tpe(space, 1, tmp_path)


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import fake_trainer, json
from rslm.experiment import child
from rslm.experiment.space import parse_dimension
from rslm.experiment.sweep import run_sweep
from test_sweep import RATE, make_sweep
child.train_command = lambda path: [sys.executable, fake_trainer.__file__, path]
sweep = make_sweep(json.loads({base!r}), method="tpe", n_runs=5,
                   space=[parse_dimension(RATE + "=log:1e-4..1")])
run_sweep(sweep, Path({folder!r}), n_processes=2)
"""


def test_tpe_that_was_killed_goes_on_with_its_points(base: dict[str, Any], tmp_path: Path):
    pytest.importorskip("optuna")
    slow, folder = base | {"n_steps": 40}, tmp_path / "s"
    program = KILLED.format(
        tests=str(Path(__file__).parent), base=json.dumps(slow), folder=str(folder)
    )
    process = subprocess.Popen([sys.executable, "-c", program])
    while not any(last_step(path) > 3 for path in folder.glob("*/metrics.jsonl")):
        assert process.poll() is None
    process.kill()
    process.wait()
    begun = {run["hash"] for run in read_study(folder)["runs"]}
    space = [parse_dimension(f"{RATE}=log:1e-4..1")]
    sweep = make_sweep(slow, method="tpe", n_runs=5, space=space)
    outcomes = run_sweep(sweep, folder, n_processes=2)
    assert [outcome.status for outcome in outcomes] == ["finished"] * 5
    assert begun <= {outcome.run.hash for outcome in outcomes}


def test_pruned_sweep_keeps_the_best(base: dict[str, Any], tmp_path: Path):
    # Long enough to be looked at while they run.
    sweep = make_sweep(
        base | {"n_steps": 300},
        prune=True,
        space=[parse_dimension(f"{RATE}=0.01,0.0001,0.00001")],
        n_runs=3,
    )
    outcomes = run_sweep(sweep, tmp_path, n_processes=3)
    result = analyse(sweep, outcomes)
    assert result.best.labels == {RATE: 0.01}
    statuses = [tried.outcome.status for tried in result.tried]
    assert statuses == ["finished", "pruned", "pruned"]
    assert "the best had" in result.tried[1].outcome.message
    again = run_sweep(sweep, tmp_path)
    assert n_starts(tmp_path) == 3
    assert sorted(outcome.status for outcome in again) == ["finished", "pruned", "pruned"]


def made_run(folder: Path, name: str, level: float) -> tuple[PlannedRun, Path]:
    path = folder / name
    path.mkdir()
    (path / "config.toml").write_text("n_steps = 90\n")
    rows = [{"step": step, "val_loss": level} for step in range(1, 91)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return PlannedRun(name=name, options={"n_steps": 90, "level": level}, labels={}), path


def test_third_of_the_runs_goes_on_from_a_rung(tmp_path: Path):
    halving = Halving(metric="val_loss")
    assert halving.rungs(90) == [10, 30]
    assert halving.rungs(3) == [1]
    levels = [5.0, 6.0, 4.0, 4.5, 3.0, 4.2]
    runs = [made_run(tmp_path, f"run{i}", level) for i, level in enumerate(levels)]
    stopped = [halving.judge(*run) is not None for run in runs]
    # The first goes on; then the best of up to five, and with the sixth the second best, too.
    assert stopped == [False, True, False, True, False, True]
    said = halving.judge(*made_run(tmp_path, "late", 3.5))
    # The second best of seven passes the first rung, not that of four after it.
    assert said == "val_loss 3.5 at step 30, the best had 3"


def test_rung_is_read_once_it_is_reached():
    rows = [{"step": step, "loss": float(step)} for step in range(1, 31)]
    rows += [{"step": 20, "val_loss": 7.0}, {"step": 25, "val_loss": 8.0}]
    run = Run(path=Path("run"), config={}, rows=rows, status="running")
    assert value_by(run, "loss", 20) == 19.5  # Steps 19 and 20, a tenth of the way.
    assert value_by(run, "val_loss", 21) == 8.0
    assert value_by(run, "val_loss", 26) is None


def test_nothing_finished_is_said(base: dict[str, Any], tmp_path: Path):
    sweep = make_sweep(base)
    run = sweep.plan({RATE: 1.0})
    outcome = Outcome(run=run, path=tmp_path / "no", status="diverged", seconds=0.0)
    with pytest.raises(ValueError, match="no run finished: there is no best one"):
        analyse(sweep, [outcome])


def write_base(folder: Path, token_files: tuple[Path, Path]) -> Path:
    path = folder / "base.toml"
    path.write_text(
        f'n_steps = 5\n[data]\ntrain = "{token_files[0]}"\nvalid = "{token_files[1]}"\n'
        "[optimizer]\nwarmup_steps = 0\n[model]\nvocab_size = 257\n"
    )
    return path


def test_command_writes_table_picture_and_preset(
    tmp_path: Path, token_files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
):
    base, out, preset = write_base(tmp_path, token_files), tmp_path / "s", tmp_path / "best.toml"
    command = ["sweep", str(base), "--over", f"{RATE}=log:1e-4..100:4", "--out", str(out)]
    command += ["--over", "model.ffn=relu2,silu", "--processes", "4", "--preset-out", str(preset)]
    assert main([*command, "--dry-run"]) == 0
    assert "8 runs" in capsys.readouterr().out
    assert not out.exists()
    assert main(command) == 0
    shown = capsys.readouterr()
    assert f"{RATE} with model.ffn = relu2: stable up to 0.01; 1 is not" in shown.out
    assert shown.err.endswith(
        f"wrote {out}/sweep.md, sweep.json, sweep.png; the best into {preset}\n"
    )
    assert (out / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert tomllib.loads(preset.read_text())["model"]["ffn"] == "relu2"
    assert main([*command, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record == json.loads((out / "sweep.json").read_text())
    assert record["best"]["labels"] == {RATE: 0.01, "model.ffn": "relu2"}


def test_preset_that_has_no_folder_is_refused_before_the_runs(
    tmp_path: Path, token_files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
):
    base, preset = write_base(tmp_path, token_files), tmp_path / "missing" / "best.toml"
    command = ["sweep", str(base), "--over", f"{RATE}=1e-3", "--out", str(tmp_path / "s")]
    assert main([*command, "--preset-out", str(preset)]) == 2
    fault = "the folder to write it into does not exist"
    assert capsys.readouterr().err == f"error: {preset}: {fault}\n"
    assert not (tmp_path / "s").exists()


def test_command_refuses_before_anything_is_made(
    tmp_path: Path, token_files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
):
    base, out = write_base(tmp_path, token_files), tmp_path / "s"
    rate = ["--over", f"{RATE}=log:1e-4..1"]
    for arguments, message in [
        ([], "over must name at least one option"),
        ([*rate, *rate], "over must name at least one option, none twice"),
        ([*rate, "--metric", "mfu"], "metric must be one of val_bits_per_byte, val_loss, loss"),
        ([*rate, "--n-runs", "0"], "n_runs must be at least 1, got 0"),
        ([*rate, "--n-runs", "1000000000", "--method", "random"], "at most 10000, got 1000000000"),
        (["--over", f"{RATE}=0.0010000001,0.0010000002", "--dry-run"], "runs must differ, got"),
        ([*rate, "--seed", "-1"], "seed must be at least 0, got -1"),
        (["--over", "optimizer.beta2=linear:0.5..1.5:3"], "beta2=1: beta2 must be in [0, 1)"),
        (
            ["--over", "optimizer.beta2=linear:0.5..1.5", "--method", "tpe"],
            "beta2=1.5: beta2 must be in [0, 1)",
        ),
    ]:
        assert main(["sweep", str(base), "--out", str(out), *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not out.exists()


def test_command_shows_how_runs_ended_where_none_finished(
    tmp_path: Path, token_files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
):
    base = write_base(tmp_path, token_files)
    command = ["sweep", str(base), "--over", f"{RATE}=1e-7,9", "--out", str(tmp_path / "s")]
    assert main(command) == 1
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert [line.split()[:2] for line in lines[-2:]] == [
        ["learning_rate=1e-07", "failed"],
        ["learning_rate=9", "diverged"],
    ]
    assert shown.err == "no run finished: there is nothing to compare\n"


def test_missing_optuna_is_said_before_a_folder_is_made(
    tmp_path: Path,
    token_files: tuple[Path, Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setitem(sys.modules, "optuna", None)
    base, out = write_base(tmp_path, token_files), tmp_path / "s"
    command = ["sweep", str(base), "--over", f"{RATE}=log:1e-4..1", "--out", str(out)]
    assert main([*command, "--method", "tpe"]) == 2
    assert "pip install 'rslm[sweep]'" in capsys.readouterr().err
    assert not out.exists()
