import io
import math
from pathlib import Path

import pytest
import torch
from rich.console import Console

from rslm.run_folder import AppendedFile
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


def test_meter_counts_tokens_on_from_where_the_batch_size_changed() -> None:
    sizes = {"tokens_per_step": 10, "first_step": 7, "first_token": 28}
    meter = Meter(Clock(), CPU, flops_per_token=3.0, peak_flops=1e6, **sizes)
    for step in (8, 9):
        meter.add(step, learning_rate=0.1, loss=torch.ones(()), grad_norm=torch.ones(()))
    assert [row["n_tokens"] for row in meter.take_rows()] == [38, 48]
    row = meter.validation_row(7, 1.0, None)
    assert (row["n_tokens"], row["train_flops"]) == (28, 84.0)


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
