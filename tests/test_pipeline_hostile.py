"""Inputs and pages that break things: counted and passed over, in bounded time and memory."""

import gzip
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pipelines import (
    HOSTILE,
    config_of,
    drops,
    made_up_documents,
    run,
    start,
    tree,
    workers_of,
    write_lines,
)

from rslm.data.pipeline.report import PipelineReport


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers end at documents that hold certain words."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(HOSTILE)
    before = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(folder), before])))


def test_name_that_is_no_utf8_is_an_id_all_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "inputs"
    folder.mkdir()
    Path(os.fsdecode(os.fsencode(folder / "caf") + b"\xe9.txt")).write_text("a text")
    run(config_of(folder, tmp_path / "out"))
    (document,) = PipelineReport.read(tmp_path / "out").documents()
    assert document.id == "caf\ufffd.txt:0"


def test_broken_inputs_are_counted_and_passed_over(tmp_path: Path) -> None:
    folder = tmp_path / "inputs"
    folder.mkdir()
    rows = "".join(json.dumps({"text": f"document {i}"}) + "\n" for i in range(20000)).encode()
    (folder / "cut.jsonl.gz").write_bytes(gzip.compress(rows)[:-100])
    (folder / "junk.jsonl").write_bytes(random.Random(0).randbytes(10_000))
    (folder / "long.jsonl").write_text(json.dumps({"text": "x" * 2000}) + "\n")
    (folder / "whole.jsonl").write_text(json.dumps({"text": "whole"}) + "\n")
    run(config_of(folder, tmp_path / "out", limits={"max_record_bytes": 1000}))
    found = drops(tmp_path / "out")["filter/read"]
    assert found["truncated"] == 1
    assert found["not_json"] > 1
    assert found["too_large"] >= 1
    texts = [document.text for document in PipelineReport.read(tmp_path / "out").documents()]
    assert "whole" in texts
    assert len(texts) > 1000


@pytest.mark.usefixtures("hostile")
@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("CRASH", "extract_crash"),
        pytest.param("HANG", "extract_timeout", marks=pytest.mark.slow),
        pytest.param("KILL", "extract_crash", marks=pytest.mark.slow),
    ],
)
def test_page_that_ends_its_worker_is_passed_over(tmp_path: Path, word: str, reason: str) -> None:
    folder = tmp_path / "inputs"
    folder.mkdir()
    write_lines(folder / "a.jsonl", [*["good"] * 5, f"bad {word}", *["good"] * 70])
    write_lines(folder / "b.jsonl", ["good"] * 3)
    config = config_of(folder, tmp_path / "out", watchdog_seconds=1.0)
    run(config, 2)
    assert drops(config.out) == {"filter/skip": {reason: 1}}
    assert [way.reason for way in PipelineReport.read(config.out).find("a-5")] == [reason]
    before = tree(config.out)
    # A rerun knows the page, and meets it no more.
    for mark in config.out.rglob("*.report.json"):
        mark.unlink()
    run(config)
    assert tree(config.out) == before


@pytest.mark.usefixtures("hostile")
def test_page_that_eats_memory_is_passed_over(tmp_path: Path) -> None:
    folder = tmp_path / "inputs"
    folder.mkdir()
    write_lines(folder / "a.jsonl", ["good", "EAT"])
    run(config_of(folder, tmp_path / "out", max_worker_bytes=1 << 29))
    assert drops(tmp_path / "out") == {"filter/skip": {"extract_memory": 1}}


@pytest.mark.usefixtures("hostile")
def test_page_at_which_a_step_raises_is_dropped(tmp_path: Path) -> None:
    folder = tmp_path / "inputs"
    folder.mkdir()
    write_lines(folder / "a.jsonl", [*["good"] * 9, "RAISE"])
    run(config_of(folder, tmp_path / "out"))
    assert drops(tmp_path / "out") == {"filter/extract": {"extract_error": 1}}


@pytest.mark.usefixtures("hostile")
def test_step_that_always_raises_ends_the_run(tmp_path: Path) -> None:
    folder = tmp_path / "inputs"
    folder.mkdir()
    write_lines(folder / "a.jsonl", ["RAISE"] * 9)
    with pytest.raises(ValueError, match="of a page"):
        run(config_of(folder, tmp_path / "out"))


@pytest.mark.slow
@pytest.mark.usefixtures("hostile")
def test_page_at_which_a_step_sleeps_is_passed_over(tmp_path: Path) -> None:
    folder = tmp_path / "inputs"
    folder.mkdir()
    write_lines(folder / "a.jsonl", ["good", "SLEEP"])
    run(config_of(folder, tmp_path / "out", watchdog_seconds=1.0))
    assert drops(tmp_path / "out") == {"filter/skip": {"extract_timeout": 1}}


@pytest.mark.usefixtures("hostile")
@pytest.mark.parametrize(
    ("word", "reason"),
    [("BREAK", "read_crash"), pytest.param("STALL", "read_timeout", marks=pytest.mark.slow)],
)
def test_reading_that_ends_its_worker_costs_the_rest_of_the_file(
    tmp_path: Path, word: str, reason: str
) -> None:
    folder = tmp_path / "inputs"
    folder.mkdir()
    write_lines(folder / "a.jsonl", [*["good"] * 70, f"bad {word}", *["lost"] * 3])
    write_lines(folder / "b.jsonl", ["good"] * 3)
    config = config_of(folder, tmp_path / "out", watchdog_seconds=1.0)
    run(config)
    assert drops(config.out) == {"filter/skip": {reason: 1}}
    report = PipelineReport.read(config.out)
    # The file is blamed, in the place of what could not be read.
    assert [way.reason for way in report.find("a.jsonl")] == [reason]
    assert [document.text for document in report.documents()] == ["good"] * 73
    before = tree(config.out)
    for mark in config.out.rglob("*.report.json"):
        mark.unlink()
    run(config, 2)
    assert tree(config.out) == before


@pytest.mark.usefixtures("hostile")
def test_workers_end_with_the_run_that_started_them(tmp_path: Path) -> None:
    folder = tmp_path / "inputs"
    folder.mkdir()
    write_lines(folder / "a.jsonl", ["SLEEP"])
    process = start(config_of(folder, tmp_path / "out"), "--workers", "1")
    deadline = time.monotonic() + 60
    while not (workers := workers_of(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.01)
    # What it sleeps over it has in hand by now.
    while not list((tmp_path / "out").rglob("*.tmp.*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.communicate(timeout=60)
    assert workers
    while any(map(is_alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(map(is_alive, workers))


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_memory_stays_flat(tmp_path: Path) -> None:
    """The peak of a worker over 20 MB of text, and over five times as much."""
    peaks = []
    for n_copies in (1, 5):
        folder = tmp_path / f"inputs{n_copies}"
        folder.mkdir()
        texts = made_up_documents(200)
        rows = "".join(json.dumps({"text": text * 10}) + "\n" for text in texts)
        with (folder / "a.jsonl").open("w") as file:
            for _ in range(n_copies):
                file.write(rows)
        peaks.append(peak_of_filter(folder, tmp_path / f"out{n_copies}"))
    assert peaks[1] - peaks[0] < 20 << 20


def peak_of_filter(folder: Path, out: Path) -> int:
    program = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from pipelines import config_of\n"
        "from rslm.data.pipeline import make_plan\n"
        "from rslm.data.pipeline.marks import Task\n"
        "from rslm.data.pipeline.stages import run_task\n"
        "plan = make_plan(config_of(Path(sys.argv[1]), Path(sys.argv[2])))\n"
        "run_task(plan, Task(stage='filter', index=0, upstream=''), 'a')\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder), str(out)],
        cwd=Path(__file__).parent,
        capture_output=True,
        check=True,
        text=True,
    )
    return int(done.stdout)
