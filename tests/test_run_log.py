from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from matplotlib.figure import Figure

from rslm import run_log
from rslm.run_folder import AppendedFile
from rslm.run_log import (
    CLOCK_KEYS,
    Clock,
    Meter,
    peak_flops,
    write_curve,
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
    assert rows[0].keys() >= {"elapsed_seconds", "tokens_per_second", "mfu", "memory_bytes"}
    assert meter.take_rows() == []


def test_meter_counts_tokens_on_from_where_the_batch_size_changed() -> None:
    sizes = {"tokens_per_step": 10, "first_step": 7, "first_token": 28}
    meter = Meter(Clock(), CPU, flops_per_token=3.0, peak_flops=1e6, **sizes)
    for step in (8, 9):
        meter.add(step, learning_rate=0.1, loss=torch.ones(()), grad_norm=torch.ones(()))
    assert [row["n_tokens"] for row in meter.take_rows()] == [38, 48]
    row = meter.validation_row(7, 1.0, None)
    assert (row["n_tokens"], row["train_flops"]) == (28, 84.0)


def test_meter_counts_targets_apart_from_places_with_padding() -> None:
    sizes = {"tokens_per_step": 10, "flops_per_token": 3.0, "peak_flops": 1e6}
    meter = Meter(Clock(), CPU, n_targets=5, **sizes)
    for step, n_targets in ((1, 9), (2, 7)):
        one = torch.ones(())
        meter.add(step, learning_rate=0.1, loss=one, grad_norm=one, n_targets=n_targets)
    rows = [*meter.take_rows(), meter.validation_row(2, 1.0, None)]
    assert [(row["n_tokens"], row["n_targets"]) for row in rows] == [(10, 14), (20, 21), (20, 21)]
    assert meter.n_targets == 21


def test_meter_leaves_the_first_steps_out_of_the_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = count(step=0.25)
    monkeypatch.setattr(run_log, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    meter = make_meter()
    rows = []
    for step in (1, 2):
        meter.add(step, learning_rate=0.1, loss=torch.ones(()), grad_norm=torch.ones(()))
        rows += meter.take_rows()
    assert rows[0]["tokens_per_second"] is rows[0]["mfu"] is None
    speed = rows[1]["tokens_per_second"]
    assert speed == 10 / (rows[1]["elapsed_seconds"] - rows[0]["elapsed_seconds"])
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


def test_curve_shows_the_metric_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: drawn.append(figure))
    with AppendedFile(tmp_path / "metrics.jsonl") as file:
        for step, reward in enumerate((0.25, 0.5, 0.75), 1):
            file.write_row({"step": step, "loss": 0.0, "reward": reward})
        file.write_row({"step": 3, "val_loss": 0.25, "val_reward": 0.75})
    write_curve(tmp_path, "tiny", "reward", "mean reward")
    (axes,) = drawn[0].axes
    assert axes.get_ylabel() == "mean reward"
    values = [list(line.get_ydata()) for line in axes.lines]
    assert values == [[0.25, 0.5, 0.75], [0.25, 0.5, 0.75], [0.75]]
    assert axes.lines[-1].get_label() == "validation: 0.750 at the end"
