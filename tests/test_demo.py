"""The demo on a small text: every step, its result, and going on after a stop."""

import gzip
import json
import lzma
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rslm.cli import main
from rslm.data.local import END_OF_TEXT
from rslm.demo import chain as demo


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty documents in one file."""
    path = tmp_path_factory.mktemp("demo") / "corpus.txt"
    document = "def f{0}(value):\n    return value + {0}\n\n"
    path.write_text(
        END_OF_TEXT.join("".join(document.format(i * j) for i in range(30)) for j in range(60))
    )
    return path


def test_demo_runs_the_whole_chain(
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["demo", "--corpus", str(corpus), "--n-steps", "4", "--vocab-size", "300"]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    run = Path("runs/demo")
    summary = json.loads((run / "summary.json").read_text())
    text = (run / "text" / "valid.txt").read_bytes().replace(END_OF_TEXT.encode(), b"")
    assert summary["n_valid_bytes"] == len(text)
    scores = summary["bits_per_byte"]
    assert scores["gzip -9"] == 8 * len(gzip.compress(text, 9)) / len(text)
    assert scores["xz -9"] == 8 * len(lzma.compress(text, preset=9)) / len(text)
    assert 0 < scores["rslm"] < 8
    assert all(f"{score:.3f}" in out for score in scores.values())
    assert out.count("--- ") == 3, "a new document and two continuations"
    assert (run / "loss_curve.png").stat().st_size > 10_000
    assert "What to try next" in err
    assert f"rslm sample {run}" in err

    # The same again takes the next free folder; what is said to be tried next works.
    assert main([*arguments, "--seed", "1"]) == 0
    assert (Path("runs/demo-2") / "summary.json").exists()
    assert main(["sample", str(run), "--prompt", "def ", "--max-new-tokens", "4"]) == 0


def test_demo_goes_on_after_it_was_killed(corpus: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rslm", "demo", "--corpus", str(corpus), "--vocab-size", "300"]
    options = ["--n-steps", "6", "--out", "x", "--n-threads", "1"]
    metrics = tmp_path / "x" / "metrics.jsonl"
    process = subprocess.Popen([*command, *options], cwd=tmp_path, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    manifest = tmp_path / "x" / "tokens" / "train" / "manifest.json"
    made_at = manifest.stat().st_mtime_ns
    resume = [sys.executable, "-m", "rslm", "demo", "--resume", "--out", "x", "--n-threads", "1"]
    done = subprocess.run(resume, cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    done = subprocess.run([*resume, "--seed", "7"], cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 2
    assert b"seed must stay 0 when a demo is resumed, got 7" in done.stderr
    assert (tmp_path / "x" / "summary.json").exists()
    assert manifest.stat().st_mtime_ns == made_at, "finished parts are kept"


def test_demo_folder_to_resume_is_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert demo.run_folder(demo.DemoOptions(resume=True)) == Path("runs/demo")
    os.makedirs("runs/demo")
    os.makedirs("runs/demo-2")
    assert demo.run_folder(demo.DemoOptions()) == Path("runs/demo-3")
    assert demo.run_folder(demo.DemoOptions(resume=True)) == Path("runs/demo-2")
    assert demo.run_folder(demo.DemoOptions(out=Path("mine"))) == Path("mine")


def test_fastest_precision_keeps_float32_where_it_is_asked_for() -> None:
    assert demo.fastest_precision("float32") == "float32"
    assert demo.fastest_precision("bfloat16") in ("float32", "bfloat16")
