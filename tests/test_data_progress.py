"""How a run of a pipeline is shown: on a terminal, and in a log."""

import io
import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from pipelines import ALL_STEPS, config_of, write_inputs
from rich.console import Console
from rich.progress import Progress as Bars
from screens import Screen, run_on_terminal

from rslm.commands import data_progress
from rslm.config import to_toml
from rslm.data.pipeline import Progress

STARTED = Progress(
    stage="filter",
    n_tasks=4,
    n_done=1,
    n_bytes=400,
    n_bytes_done=100,
    n_found=1,
    n_bytes_found=100,
    n_documents=10,
)


def test_terminal_shows_a_line_for_each_stage(tmp_path: Path) -> None:
    steps = {"exact": ALL_STEPS["exact"], "n_ranges": 1}
    inputs = write_inputs(tmp_path / "in", n_documents=10)
    toml = tmp_path / "c.toml"
    toml.write_text(to_toml(config_of(inputs, tmp_path / "out", **steps)))
    command = [sys.executable, "-m", "rslm", "data", "run", str(toml), "--workers", "1"]
    environment = dict(os.environ, TERM="xterm")
    code, written = run_on_terminal(command, columns=200, lines=30, environment=environment)
    screen = Screen(200)
    screen.feed(written)
    assert code == 0
    lines = [re.sub(" +", " ", line) for line in screen.text.splitlines() if line]
    bar = "━" * 12
    assert re.fullmatch(rf"filter {bar} 3/3 tasks 30 kept [\d.]+ MB/s \d+s ?", lines[0])
    assert re.fullmatch(rf"exact.cluster {bar} 1/1 tasks \d+s ?", lines[3])
    assert re.fullmatch(rf"finalize {bar} 3/3 tasks \d+ kept [\d.]+ MB/s \d+s ?", lines[4])
    assert lines[-2:] == [
        str(tmp_path / "out" / "finalize"),
        f"next: rslm data report {tmp_path / 'out'}",
    ]
    # What is finished is not done again, and takes no time.
    code, written = run_on_terminal(command, columns=200, lines=30, environment=environment)
    assert code == 0
    assert "3/3 tasks" in written
    assert "MB/s" not in written


def test_log_has_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]
    monkeypatch.setattr(data_progress.time, "monotonic", lambda: clock[0])
    tell = data_progress.log_lines()
    for seconds in (1, 59, 61, 62, 122):
        clock[0] = float(seconds)
        tell(STARTED)
    assert capsys.readouterr().err.splitlines() == 2 * ["filter: 1 of 4 tasks, 1 of them before"]


def test_time_left_is_of_what_this_run_has_done(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    bars = Bars(console=Console(file=io.StringIO()), get_time=lambda: clock[0])
    draw = data_progress._bars(bars)
    times = data_progress._of_time()()
    draw(STARTED)
    clock[0] = 7.0
    # Nothing is known yet: what was found took no time.
    assert times.render(bars.tasks[0]).plain == "7s"
    clock[0] = 10.0
    draw(replace(STARTED, n_done=2, n_bytes_done=200, n_documents=20))
    assert times.render(bars.tasks[0]).plain == "20s left"
    clock[0] = 14.0
    assert times.render(bars.tasks[0]).plain == "16s left"
    assert bars.tasks[0].fields["documents"] == "20 kept"
    clock[0] = 30.0
    draw(replace(STARTED, n_done=4, n_bytes_done=400, n_documents=40))
    assert times.render(bars.tasks[0]).plain == "30s"
