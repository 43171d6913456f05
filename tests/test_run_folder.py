import json
import math
import os
import signal
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest

from rslm.run_folder import (
    AppendedFile,
    StopSignals,
    append_start,
    open_run_folder,
    read_metrics,
    write_config,
)


@dataclass(frozen=True, kw_only=True)
class Config:
    rate: float = 0.1
    n_threads: int | None = None


def begin(out: Path, config: Config | None = None, *, resume: bool = False) -> None:
    with open_run_folder(out, config or Config(), resume=resume, resumable={"n_threads"}):
        (out / "metrics.jsonl").touch()


def test_run_folder_is_made_and_then_refused_without_resume(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "run"
    begin(out)
    assert (out / "config.toml").read_text() == "rate = 0.1\n"
    with pytest.raises(FileExistsError, match=r"run already exists\nadd --resume"):
        begin(out)
    begin(out, resume=True)


def test_resuming_what_was_never_begun_begins_it(tmp_path: Path) -> None:
    begin(tmp_path / "missing", resume=True)
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / "config.toml.tmp-123").touch()
    begin(tmp_path / "killed", resume=True)
    assert (tmp_path / "killed" / "config.toml").exists()


def test_folder_that_is_no_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").touch()
    with pytest.raises(ValueError, match="is not a run folder"):
        begin(tmp_path, resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_resume_takes_changes_only_where_they_are_allowed(tmp_path: Path) -> None:
    begin(tmp_path / "run")
    with pytest.raises(ValueError, match=r"rate must stay 0.1 .*, got 0.2\nmay change: n_threads"):
        begin(tmp_path / "run", Config(rate=0.2), resume=True)
    changed = Config(n_threads=3)
    begin(tmp_path / "run", changed, resume=True)
    # The file follows once it is known that the run can go on.
    assert (tmp_path / "run" / "config.toml").read_text() == "rate = 0.1\n"
    write_config(tmp_path / "run", changed)
    assert (tmp_path / "run" / "config.toml").read_text() == "rate = 0.1\nn_threads = 3\n"


def test_two_processes_cannot_use_a_run_folder(tmp_path: Path) -> None:
    options = {"resume": True, "resumable": set()}
    with (
        open_run_folder(tmp_path / "run", Config(), **options),
        pytest.raises(BlockingIOError, match="another process uses the run folder"),
        open_run_folder(tmp_path / "run", Config(), **options),
    ):
        pass


def test_starts_are_listed(tmp_path: Path) -> None:
    append_start(tmp_path, {"first_step": 0})
    append_start(tmp_path, {"first_step": 7})
    assert [s["first_step"] for s in json.loads((tmp_path / "env.json").read_text())] == [0, 7]


def test_appended_file_is_cut_back_to_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with AppendedFile(path) as file:
        file.write_row({"step": 1, "loss": 0.5})
        end = file.n_bytes
        file.write_row({"step": 2, "loss": math.nan})
    assert read_metrics(path) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": None}]
    with AppendedFile(path, end) as file:
        assert file.n_bytes == end
        file.write("é\n")
        file.sync()
        assert file.n_bytes == path.stat().st_size == end + 3
    with pytest.raises(ValueError, match=f"must hold the {end + 9} bytes"):
        AppendedFile(path, end + 9)


def test_metrics_leave_out_a_line_that_is_being_written(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert read_metrics(path) == [{"step": 1}, {"step": 2}]
    path.write_text('{"st')
    assert read_metrics(path) == []


def test_signals_are_requests_and_the_second_acts_at_once() -> None:
    with StopSignals() as stop:
        assert not stop.requested()
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested()
        assert stop.reason == "interrupted"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.reason == "terminated"


def test_signals_are_as_before_afterwards() -> None:
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with StopSignals():
        assert signal.getsignal(signal.SIGTERM) != before[1]
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before


def test_signals_are_left_alone_outside_the_main_thread() -> None:
    asked = []

    def use() -> None:
        with StopSignals() as stop:
            asked.append(stop.requested())

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert asked == [False]
