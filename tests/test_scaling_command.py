"""`rslm scaling plan | run | fit | predict` as a user calls them."""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scaling_points import LAW, isoflop_points, training_curves, with_noise

from rslm.cli import main
from rslm.commands.scaling_fit import require_folder
from rslm.experiment import child
from rslm.experiment.study import read_study
from rslm.scaling.points import ScalingPoints
from rslm.token_file_writer import TokenizerRecord, write_token_file

PNG = b"\x89PNG\r\n\x1a\n"
PLAN = [
    *("--budgets", "1e11,3e11", "--sizes", "5", "--model.vocab-size", "512"),
    *("--model.context-length", "64", "--model.d-model", "64", "--model.n-layers", "2"),
    *("--model.n-heads", "4", "--device", "cpu"),
]

# Makes the metrics of a run whose losses a law has made, in no time.
TRAINER = """
import json, pathlib, sys, tomllib
source = pathlib.Path(sys.argv[1])
options = tomllib.loads(source.read_text())
out = pathlib.Path(options["out"])
out.mkdir(exist_ok=True)
(out / "config.toml").write_text(source.read_text())
(out / "starts").open("a").write("x")
n, per_step = options["model"]["d_model"] ** 2, options["batch_size"] * 64
rows = []
for step in range(1, options["n_steps"] + 1):
    position = {"step": step, "n_tokens": step * per_step, "train_flops": 6.0 * n * step * per_step}
    loss = 1 + 30 * n**-0.4 + 60 * (step * per_step) ** -0.35
    rows.append(position | {"loss": loss, "elapsed_seconds": step / 100})
rows.append(position | {"val_loss": loss})
(out / "metrics.jsonl").write_text("".join(json.dumps(row) + chr(10) for row in rows))
"""


def write_csv(path: Path, points: ScalingPoints) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["parameters", "tokens", "flops", "loss"])
        columns = (points.n_parameters, points.n_tokens, points.train_flops, points.loss)
        writer.writerows(zip(*(map(float, column) for column in columns), strict=True))
    return path


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    points = with_noise(isoflop_points(n_sizes=5), 0.002)
    return write_csv(tmp_path_factory.mktemp("table") / "points.csv", points)


def run(*arguments: Any) -> int:
    return main(["scaling", *map(str, arguments)])


def output(capsys: pytest.CaptureFixture[str], *arguments: Any) -> Any:
    assert run(*arguments) == 0
    return json.loads(capsys.readouterr().out)


def test_fit_shows_methods_side_by_side_and_predict_reads_it_back(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "fits"
    record = output(
        capsys, "fit", table, "--method", "vpnls,parabolas,min-runs", "--flops", 1e21,
        "--resamples", 200, "--out", out, "--published", "--json",
    )  # fmt: skip
    assert [row["method"] for row in record["predictions"]] == ["vpnls", "parabolas", "min-runs"]
    best = LAW.optimum(1e21)
    size = record["predictions"][0]["N*"]
    assert size["low"] < size["value"] < size["high"]
    assert size["value"] == pytest.approx(best.n_parameters, rel=0.1)
    scores = {row["law"]: row["sum of Huber losses"] for row in record["published"]}
    # The points are of the one law and not of the other.
    assert scores["ours, vpnls"] < 1.1 * scores["Hoffmann et al. 2022, rounded"]
    assert scores["Besiroglu et al. 2024"] > 10 * scores["ours, vpnls"]
    assert (out / "scaling.png").read_bytes().startswith(PNG)

    rows = output(capsys, "predict", "--fit", out / "fit.json", "--flops", 1e21, "--json")
    assert rows == record["predictions"]
    rows = output(
        capsys, "predict", "--fit", out / "fit.json", "--json",
        "--parameters", best.n_parameters, "--tokens", best.n_tokens,
    )  # fmt: skip
    assert [row["method"] for row in rows] == ["vpnls"]
    assert rows[0]["loss of a run"]["value"] == pytest.approx(best.loss, abs=0.02)


def test_fit_prints_tables_and_what_to_be_wary_of(
    table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("fit", table, "--method", "vpnls,min-runs", "--flops", 1e24, "--resamples", 50) == 0
    shown = capsys.readouterr()
    assert "times as high as" in shown.out
    assert "35 points, 7 budgets from 1e+17 to 1e+20 FLOPs, C/(ND) 6.000" in shown.err
    assert "warning: 1e+24 FLOPs are 4.0 decades beyond" in shown.err
    assert "warning: min-runs: sizes are up to a factor of 2.00 apart" in shown.err


def test_fit_of_curves_in_a_file_has_an_envelope(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_csv(tmp_path / "curves.csv", training_curves(8))
    record = output(
        capsys, "fit", path, "--method", "vpnls,envelope", "--resamples", 50, "--json",
        "--out", tmp_path,
    )  # fmt: skip
    shares = [row["a"]["value"] for row in record["laws"]]
    assert shares == pytest.approx([LAW.parameter_share] * 2, abs=0.02)
    assert (tmp_path / "scaling.png").exists()


def test_dropping_the_highest_losses_leaves_the_others(
    table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = output(capsys, "fit", table, "--drop-highest", 5, "--json", "--resamples", 20,
                    "--method", "vpnls")  # fmt: skip
    assert record["points"]["n_points"] == 30


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["fit"], "inputs must name at least one file or folder"),
        (["fit", "missing.csv"], "missing.csv: No such file or directory"),
        (["fit", "{table}", "{table}"], "inputs must be one file, got 2"),
        (["fit", "{table}", "{folder}"], "not both"),
        (["fit", "{folder}"], "at least one finished run is needed, got 0 runs"),
        (["fit", "{table}", "--method", "vpnls,magic"], "method must be some of vpnls,huber"),
        (["fit", "{table}", "--method", "vpnls,vpnls"], "method must be some of vpnls,huber"),
        (["fit", "{table}", "--method", "envelope"], "envelope needs training curves"),
        (["fit", "{table}", "--resamples", "3"], "resamples must be 20 to 1,000,000"),
        (["fit", "{table}", "--level", "1"], "level must lie between 0 and 1"),
        (["fit", "{table}", "--flops", "-1"], "flops must be positive"),
        (["fit", "{table}", "--drop-highest", "35"], "drop_highest must be below 35"),
        (["fit", "{table}", "--drop-highest", "33"], "at least 5 points are needed, got 2"),
        (["predict", "--fit", "{table}", "--flops", "1e20"], "is not JSON"),
        (["predict", "--fit", "{folder}", "--flops", "1e20"], "must be a file, the fit.json"),
        (["predict", "--fit", "{table}"], "give flops, or parameters and tokens"),
        (["predict", "--fit", "{table}", "--parameters", "1"], "give flops, or parameters and"),
        (["predict", "--fit", "{table}", "--flops", "1", "--tokens", "1"], "give flops, or"),
        (["predict", "--fit", "{table}", "--flops", "nan"], "flops must be positive"),
        (["fit", "{table}", "--out", "{table}"], "out must be a folder or not exist yet, and"),
        (["plan", *PLAN, "--flops-per-second", "1e-320"], "flops_per_second must be at least 1"),
        (["plan", *PLAN, "--n-steps", "1" + "0" * 400], "n_steps must be below 2^63"),
        (["plan", *PLAN, "--batch-size", "1" + "0" * 400], "batch_size must be below 2^63"),
        (["plan", *PLAN, "--model.d-model", "1" + "0" * 400], "d_model must be below 2^63"),
        (["plan", "--budgets", "1e11"], "model.vocab_size must be given"),
        (["plan", *PLAN, "--budgets", "1e11,many"], "budgets must be numbers"),
        (["plan", *PLAN, "--budgets", "-1"], "budgets must be FLOPs"),
        (["plan", *PLAN, "--sizes", "1"], "sizes must be 3 to 100"),
        (["plan", *PLAN, "--measure", "--flops-per-second", "1"], "not both"),
        (["plan", *PLAN, "--price", "-1"], "price must be at least 0"),
        (["run", *PLAN], "out must be given"),
        (["run", *PLAN, "--out", "{folder}/x"], "data.train must be given"),
        (["run", *PLAN, "--processes", "0"], "processes must be at least 1"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    table: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    fault: str,
) -> None:
    places = {"{table}": str(table), "{folder}": str(tmp_path)}
    filled = [places.get(word, word.replace("{folder}", str(tmp_path))) for word in arguments]
    assert run(*filled) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert fault in shown.err
    assert list(tmp_path.iterdir()) == []


def test_points_without_a_valley_are_told_what_fits_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    points = isoflop_points(2)
    falling = ScalingPoints.of_allocations(
        points.n_parameters, points.n_tokens, 9 - 0.2 * np.log(points.n_parameters)
    )
    assert run("fit", write_csv(tmp_path / "points.csv", falling), "--resamples", "20") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.endswith(" FLOPs; --method vpnls does without\n")


def test_help_speaks_of_the_folder_of_the_study(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("plan", "run"):
        assert run(command, "--help") == 0
        shown = capsys.readouterr().out
        assert "Folder of the study" in shown
        assert "Run folder, made by the run" not in shown


def test_place_of_fits_is_refused_before_the_points_are_read(table: Path) -> None:
    with pytest.raises(ValueError, match=rf"and {table} is a file"):
        require_folder(table / "fits" / "new")


def test_a_fit_that_fails_leaves_no_folder(table: Path, tmp_path: Path) -> None:
    assert run("fit", table, "--method", "envelope", "--out", tmp_path / "fits") == 2
    assert list(tmp_path.iterdir()) == []


def test_plan_prints_every_run_with_time_and_cost(capsys: pytest.CaptureFixture[str]) -> None:
    record = output(
        capsys, "plan", *PLAN, "--flops-per-second", 1e9, "--price", 3, "--processes", 2, "--json"
    )
    runs, total = record["runs"], record["total"]
    assert total["n_runs"] == len(runs) >= 6
    assert total["train_flops"] == pytest.approx(sum(row["train_flops"] for row in runs))
    assert total["hours"] == pytest.approx(total["train_flops"] / 1e9 / 2 / 3600)
    assert total["cost"] == pytest.approx(3 * total["hours"])
    for row in runs:
        sizes = [row[f"n_{kind}parameters"] for kind in ("", "non_embedding_", "body_")]
        assert sizes[0] > sizes[1] > sizes[2]
    assert run("plan", *PLAN) == 0
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == len(runs) + 2
    assert "time not known" in shown[-1]


def test_measured_plan_has_a_time_for_every_run(capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--budgets", "1e11", "--sizes", 3]
    record = output(capsys, "plan", *PLAN, *few, "--measure", "--measured-steps", 1, "--json")
    assert all(row["seconds"] > 0 for row in record["runs"])


def test_run_makes_the_plan_once_and_its_folder_is_fitted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "trainer.py"
    program.write_text(TRAINER)
    monkeypatch.setattr(child, "train_command", lambda path: [sys.executable, program, path])
    tokens = tmp_path / "tokens"
    record = TokenizerRecord(
        name="count",
        vocab_size=512,
        canonical_json=b"{}",
        special_tokens={},
        end_of_text=None,
        token_byte_lengths=np.ones(512, np.uint32),
    )
    write_token_file(tokens, [np.arange(500)] * 10, tokenizer=record, rslm_version="0")
    study = tmp_path / "study"
    command = ["run", *PLAN, "--data.train", tokens, "--out", study, "--processes", 2, "--json"]
    outcomes = output(capsys, *command)
    assert {row["status"] for row in outcomes} == {"finished"}
    assert read_study(study)["kind"] == "scaling"
    assert read_study(study)["plan"]["budgets"] == "1e11,3e11"
    assert output(capsys, *command) == outcomes
    assert {path.read_text() for path in study.glob("*/starts")} == {"x"}

    fitted = output(capsys, "fit", study, "--resamples", 20, "--json")
    assert fitted["points"]["n_points"] == len(outcomes)
    assert fitted["points"]["n_budgets"] == 2
