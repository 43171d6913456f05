import json
import math
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from rslm.process import STOP_SIGNALS, StopSignals
from rslm.run_folder import (
    AppendedFile,
    Background,
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
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        with StopSignals() as stop:
            os.kill(os.getpid(), number)
            assert stop.reason == "terminated"


def test_signals_are_as_before_afterwards() -> None:
    before = [signal.getsignal(s) for s in STOP_SIGNALS]
    with StopSignals():
        assert signal.getsignal(signal.SIGTERM) != before[1]
    assert [signal.getsignal(s) for s in STOP_SIGNALS] == before


def test_signals_are_left_alone_outside_the_main_thread() -> None:
    asked = []

    def use() -> None:
        with StopSignals() as stop:
            asked.append(stop.requested())

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert asked == [False]


def test_appended_file_writes_on_after_a_part_was_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with AppendedFile(tmp_path / "metrics.jsonl") as file:
        whole = file._file

        class Short:
            def write(self, data: memoryview) -> int:
                return whole.write(data[:3])

        with monkeypatch.context() as patch:
            patch.setattr(file, "_file", Short())
            file.write("a longer line\n")
        assert file.n_bytes == 14
    assert (tmp_path / "metrics.jsonl").read_text() == "a longer line\n"


def test_background_jobs_run_in_order_beside_the_caller() -> None:
    done: list[int] = []
    gate = threading.Event()

    def first() -> None:
        assert gate.wait(30)
        done.append(1)

    with Background() as background:
        background.start(first)
        background.start(lambda: done.append(2))
        background.check()
        assert done == []
        gate.set()
        background.wait()
        assert done == [1, 2]
        background.start(lambda: done.append(3))
    assert done == [1, 2, 3]


def fail() -> None:
    raise OSError("no space")


@pytest.mark.parametrize("ask", ["check", "wait", "start", "leave"])
def test_error_of_a_background_job_surfaces_once_at_the_next_call(ask: str) -> None:
    later: list[int] = []
    background = Background()

    def use() -> None:
        with background:
            background.start(fail)
            while not background._jobs[0].done():
                time.sleep(0.001)
            if ask == "start":
                background.start(lambda: later.append(1))
            elif ask != "leave":
                getattr(background, ask)()

    with pytest.raises(OSError, match="no space"):
        use()
    assert not later
    background.wait()


def test_jobs_behind_one_that_failed_are_dropped() -> None:
    later: list[int] = []
    gate = threading.Event()

    def wait_and_fail() -> None:
        assert gate.wait(30)
        fail()

    with Background() as background:
        background.start(wait_and_fail)
        background.start(lambda: later.append(1))
        gate.set()
        # The caller asks only when the thread has long been through with both.
        while not background._jobs[1].done():
            time.sleep(0.001)
        with pytest.raises(OSError, match="no space"):
            background.wait()
        assert later == []
        background.start(lambda: later.append(2))
    assert later == [2]


def test_block_left_by_an_exception_waits_and_keeps_that_exception() -> None:
    done: list[int] = []

    def slow() -> None:
        time.sleep(0.05)
        done.append(1)
        fail()

    def leave() -> None:
        with Background() as background:
            background.start(slow)
            raise KeyError

    with pytest.raises(KeyError):
        leave()
    assert done == [1]


def test_finished_jobs_are_not_kept_in_memory() -> None:
    class Copy:
        def use(self) -> None:
            pass

    def job_with(copy: Copy) -> Callable[[], None]:
        return lambda: copy.use()

    copy = Copy()
    alive = weakref.ref(copy)
    with Background() as background:
        background.start(job_with(copy))
        del copy
        background.wait()
        # The thread lets go of a job just after it has said that the job is done.
        for _ in range(1000):
            if alive() is None:
                break
            time.sleep(0.001)
        assert alive() is None
