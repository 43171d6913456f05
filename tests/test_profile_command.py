"""`rslm profile`: tables on stdout, files in a folder."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rslm import cli
from rslm.commands.profile import (
    AttentionOptions,
    CollectivesOptions,
    MemoryOptions,
    StepOptions,
)

PNG = b"\x89PNG\r\n\x1a\n"
TINY = ["--sizes", "32x1x2", "--vocab-size", "64", "--batch-size", "2", "--device", "cpu"]
QUICK = ["--n-warmup", "0", "--n-timed", "2"]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(["profile", *arguments]) == 0
    return capsys.readouterr().out


def check_files(folder: Path, name: str, tables: list[str]) -> dict[str, list[dict[str, str]]]:
    """The CSV files' rows, once Markdown and picture are there and nothing else is."""
    expected = {f"{name}.md", f"{name}.png", *(f"{table}.csv" for table in tables)}
    assert {path.name for path in folder.iterdir()} == expected
    assert (folder / f"{name}.png").read_bytes().startswith(PNG)
    assert (folder / f"{name}.md").read_text().startswith(f"# {name}\n\n- command: rslm ")
    texts = {table: (folder / f"{table}.csv").read_text(encoding="utf-8") for table in tables}
    return {table: list(csv.DictReader(text.splitlines())) for table, text in texts.items()}


def test_step_writes_its_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = ["--out", str(tmp_path), "--sequence-lengths", "8", "16", "--operators"]
    shown = run(capsys, "step", *TINY, *QUICK, *out)
    assert shown.startswith("Training step: milliseconds of each phase")
    tables = ["step", "step-kinds", "step-operators", "step-dtypes", "step-sums"]
    rows = check_files(tmp_path, "step", tables)["step"]
    cases = [(row["sequence_length"], row["precision"]) for row in rows]
    assert cases == [(n, p) for n in ("8", "16") for p in ("float32", "bfloat16")]
    assert all(float(row["utilisation"]) > 0 for row in rows)


def test_memory_writes_its_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    lengths = ["--sequence-lengths", "16", "--precisions", "float32", "--out", str(tmp_path)]
    shown = run(capsys, "memory", *TINY, *lengths)
    assert "Largest tensors saved for the backward pass" in shown
    rows = check_files(tmp_path, "memory", ["memory", "memory-saved"])["memory"]
    assert [row["recompute_blocks"] for row in rows] == ["none", "1"]
    assert int(rows[0]["saved_bytes"]) > int(rows[1]["saved_bytes"]) > 0


def test_attention_writes_its_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    shape = ["--sequence-lengths", "16", "1048576", "--d-heads", "8", "--batch-size", "1"]
    options = ["--paths", "reference", "--precisions", "float32", "--out", str(tmp_path)]
    shown = run(capsys, "attention", *shape, *options, *QUICK, "--device", "cpu")
    assert "OOM" in shown
    rows = check_files(tmp_path, "attention", ["attention", "attention-parts"])["attention"]
    assert [row["status"] for row in rows] == ["measured", "out of memory"]
    assert "OOM: the memory did not suffice." in (tmp_path / "attention.md").read_text()


def test_collectives_start_their_processes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    sizes = ["--sizes-mb", "0.01", "--kinds", "none", "ddp-bucketed", "--bucket-mbs", "1", "2"]
    out = ["--sequence-lengths", "8", "--processes", "2", "--out", str(tmp_path)]
    shown = run(capsys, "collectives", *TINY, *QUICK, *sizes, *out)
    assert shown.startswith("All-reduce: milliseconds")
    tables = ["collectives", "collectives-step", "collectives-bytes"]
    rows = check_files(tmp_path, "collectives", tables)["collectives-bytes"]
    kinds = [(row["kind"], row["bucket_mb"]) for row in rows]
    assert kinds == [("none", ""), ("ddp-bucketed", "1.0"), ("ddp-bucketed", "2.0")]


def test_json_holds_the_records(capsys: pytest.CaptureFixture[str]):
    shown = run(capsys, "step", *TINY, *QUICK, "--sequence-lengths", "8", "--json")
    record: Any = json.loads(shown)["step"][0]
    assert (record["size"], record["sequence_length"]) == ("32x1x2", 8)


@pytest.mark.slow  # A compiler is started.
def test_a_compiled_step_is_timed_and_weighed():
    # In a process of its own: the compiler cannot see through the tests' checks of shapes.
    options = [*TINY, "--sequence-lengths", "8", "--modes", "eager", "compiled", "--json"]
    options += ["--precisions", "float32"]
    answers = []
    for name, more in (("step", QUICK), ("memory", ["--recompute-blocks", "0"])):
        command = [sys.executable, "-m", "rslm", "profile", name, *options, *more]
        done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=True)
        answers.append(json.loads(done.stdout)[name])
    weighed = [record["saved_bytes"] for record in answers[1]]
    assert 0 < weighed[1] < weighed[0]
    eager, compiled = answers[0]
    assert (eager["mode"], compiled["mode"]) == ("eager", "compiled")
    assert compiled["first_step_seconds"] > compiled["step_seconds_mean"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (lambda: StepOptions(n_timed=0), "n_timed must be positive"),
        (lambda: StepOptions(n_warmup=-1), "n_warmup must be at least 0, got -1"),
        (lambda: StepOptions(batch_size=0), "batch_size must be positive"),
        (lambda: StepOptions(sequence_lengths=()), "sequence_lengths must be positive, and one"),
        (lambda: MemoryOptions(recompute_blocks=(-1,)), "recompute_blocks must be at least 0"),
        (lambda: MemoryOptions(n_threads=-2), "n_threads must be positive"),
        (lambda: AttentionOptions(d_heads=(16, 0)), "d_heads must be positive"),
        (lambda: CollectivesOptions(sizes_mb=(-1.0,)), "sizes_mb must be positive"),
        (lambda: CollectivesOptions(processes=()), "processes must be positive, and one"),
    ],
)
def test_options_that_measure_nothing_are_refused(options: Any, message: str):
    with pytest.raises(ValueError, match=message):
        options()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["step", "--sizes", "huge"], "error: a size must be tinystories"),
        (["attention", "--paths", "flash"], "error: paths must be of reference, tiled, torch"),
        (["step", "--precisions", "tfloat32"], "error: precision tfloat32 needs device cuda"),
        (["memory", "--device", "nowhere"], "error: device must be one of this machine"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    device = [] if "--device" in arguments else ["--device", "cpu"]
    assert cli.main(["profile", *arguments, *device]) == 2
    assert message in capsys.readouterr().err
