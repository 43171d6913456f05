import io
import json
import math
import os
import signal
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from rich.console import Console

from rslm.run_folder import AppendedFile, StopSignals, append_start, open_run_folder, read_metrics
from rslm.run_log import (
    CLOCK_KEYS,
    Clock,
    Meter,
    RunDisplay,
    duration,
    peak_flops,
    smooth,
    sparkline,
    write_loss_curve,
)

CPU = torch.device("cpu")


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
    begin(tmp_path / "run", Config(n_threads=3), resume=True)
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


def test_clock_goes_on_and_leaves_time_away_out_of_training() -> None:
    clock = Clock(100.0)
    with clock.away():
        before = clock.elapsed_seconds
        while clock.elapsed_seconds < before + 0.02:
            pass
    assert 100.02 <= clock.elapsed_seconds < 110
    assert 100 <= clock.training_seconds <= clock.elapsed_seconds - 0.02


def make_meter(device: torch.device = CPU) -> Meter:
    return Meter(Clock(), device, tokens_per_step=10, flops_per_token=3.0, peak_flops=1e6)


def test_meter_gives_a_row_for_each_update_with_the_keys_of_the_house() -> None:
    meter = make_meter()
    for step in (1, 2):
        loss, norm = torch.tensor(step / 2), torch.tensor(7.0)
        meter.add(step, learning_rate=0.1, loss=loss, grad_norm=norm)
    rows = meter.take_rows()
    assert [{k: v for k, v in row.items() if k not in CLOCK_KEYS} for row in rows] == [
        {
            "step": step,
            "n_tokens": 10 * step,
            "train_flops": 30.0 * step,
            "loss": step / 2,
            "learning_rate": 0.1,
            "grad_norm": 7.0,
        }
        for step in (1, 2)
    ]
    assert rows[0].keys() >= set(CLOCK_KEYS)
    assert meter.take_rows() == []


def test_meter_leaves_the_first_steps_out_of_the_speed() -> None:
    meter = make_meter()
    rows = []
    for step in (1, 2):
        meter.add(step, learning_rate=0.1, loss=torch.ones(()), grad_norm=torch.ones(()))
        rows += meter.take_rows()
    assert rows[0]["tokens_per_second"] is rows[0]["mfu"] is None
    speed = rows[1]["tokens_per_second"]
    assert speed == pytest.approx(
        10 / (rows[1]["elapsed_seconds"] - rows[0]["elapsed_seconds"]), rel=0.5
    )
    assert rows[1]["mfu"] == pytest.approx(speed * 3 / 1e6)


def test_validation_row_has_its_keys() -> None:
    row = make_meter().validation_row(5, 1.5, None)
    assert row.pop("elapsed_seconds") >= 0
    assert row == {
        "step": 5,
        "n_tokens": 50,
        "train_flops": 150.0,
        "val_loss": 1.5,
        "val_bits_per_byte": None,
    }


def test_peak_is_measured_where_no_data_sheet_is_known() -> None:
    assert 1e8 < peak_flops(CPU, torch.float32) < 1e15


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], ""),
        ([1.0], "▁"),
        ([2.0, 2.0], "▁▁"),
        ([1.0, 2.0], "▁█"),
        ([8, 7, 6, 5, 4, 3, 2, 1], "█▇▆▅▄▃▂▁"),
        ([1.0, math.nan, 2.0], "▁█"),
        ([4.0] * 50 + [1.0] * 50, "████▁▁▁▁"),
    ],
)
def test_sparkline(values: list[float], expected: str) -> None:
    assert sparkline(values, 8) == expected


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0s"), (59, "59s"), (65, "1m 05s"), (3599.7, "1h 00m"), (7900, "2h 11m")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_smooth_keeps_constants_and_does_not_lag() -> None:
    assert smooth([2.0] * 7) == [2.0] * 7
    line = [float(i) for i in range(200)]
    assert smooth(line)[2:-2] == pytest.approx(line[2:-2])


def show_some(console: Console) -> RunDisplay:
    display = RunDisplay(console, title="tiny", n_steps=40, first_step=0, log_every=20)
    with display:
        for step in range(1, 41):
            shared = {"elapsed_seconds": float(step), "learning_rate": 1e-3, "grad_norm": 2.0}
            display.show({"step": step, "loss": 5 - step / 10, "tokens_per_second": None} | shared)
        display.note("a [sentence]")
        display.show(
            {"step": 40, "val_loss": 1.0, "val_bits_per_byte": 2.5, "elapsed_seconds": 40.0}
        )
    return display


def test_display_in_a_pipe_is_one_parseable_line_a_logged_step() -> None:
    file = io.StringIO()
    show_some(Console(file=file, width=20))
    lines = file.getvalue().splitlines()
    assert lines == [
        "step=1/40 loss=4.9000 learning_rate=0.001 grad_norm=2",
        "step=20/40 loss=3.0000 learning_rate=0.001 grad_norm=2 seconds_left=20",
        "step=40/40 loss=1.0000 learning_rate=0.001 grad_norm=2 seconds_left=0",
        "a [sentence]",
        "step=40/40 val_loss=1.0000 val_bits_per_byte=2.5000 seconds_left=0",
    ]


def test_display_on_a_terminal_is_one_panel() -> None:
    file = io.StringIO()
    show_some(Console(file=file, force_terminal=True, width=100, color_system=None))
    shown = file.getvalue()
    for text in ("tiny", "40/40", "1.0000", "2.5000", "time left", "a [sentence]", "█"):
        assert text in shown
    assert "step=" not in shown


def write_metrics(run: Path, *, validated: bool) -> None:
    with AppendedFile(run / "metrics.jsonl") as file:
        for step in range(1, 50):
            file.write_row({"step": step, "loss": 1 / step})
            if validated and step % 10 == 0:
                file.write_row({"step": step, "val_loss": 2 / step, "val_bits_per_byte": None})


@pytest.mark.parametrize("validated", [True, False])
def test_loss_curve_is_a_picture(tmp_path: Path, validated: bool) -> None:
    write_metrics(tmp_path, validated=validated)
    write_loss_curve(tmp_path, "tiny")
    assert (tmp_path / "loss_curve.png").read_bytes().startswith(b"\x89PNG")


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
