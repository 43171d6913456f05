"""The comparisons of training: they run anywhere, and compare answers before times."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[1] / "benches" / "training_peers.py"


def test_table_has_the_loop_its_step_and_what_the_loop_costs(tmp_path: Path) -> None:
    out = tmp_path / "training.md"
    finished = subprocess.run(
        [sys.executable, PROGRAM, "--shapes", "test", "--quick", "--rows", "float32 eager"]
        + ["--out", str(out)],
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ""
    assert finished.stdout == out.read_text()
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    lines = [line for line in finished.stdout.splitlines() if line.startswith("| ")][2:]
    rows = {cells[1].strip(" *"): cells for line in lines if (cells := line.split("|")[1:-1])}
    assert list(rows) == ["rslm train", "rslm step", "transformers", "matmul peak"]
    assert "CPU over its step (median of 3 pairs" in rows["rslm train"][-1]
    for who in ("rslm train", "rslm step"):
        assert float(rows[who][3].replace(",", "")) > 0
        assert int(rows[who][6].replace(",", "")) > 100
    # Without the package, or with it and the same first loss; another loss would be named.
    refusal = rows["transformers"][2].strip()
    assert refusal == "not installed" or float(refusal.replace(",", "")) > 0


def test_unknown_row_is_refused() -> None:
    finished = subprocess.run(
        [sys.executable, PROGRAM, "--rows", "float8"], capture_output=True, text=True
    )
    assert finished.returncode == 2
    assert "--rows must begin names of rows" in finished.stderr


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="asks Linux for peaks")
def test_table_of_the_head_has_memory_and_time_of_both_ways() -> None:
    program = PROGRAM.with_name("head_loss.py")
    finished = subprocess.run(
        [sys.executable, program, "--quick"], capture_output=True, text=True, timeout=300
    )
    assert finished.returncode == 0, finished.stderr
    lines = [line for line in finished.stdout.splitlines() if line.startswith("| ")][1:]
    assert len(lines) == 6
    assert all(float(line.split("|")[-2]) > 0 for line in lines)
