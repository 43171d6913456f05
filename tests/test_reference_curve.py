"""Bands of measured losses: made of finished runs, found by what was measured, warned by once."""

import os
import shlex
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rslm import reference_curve
from rslm import train as loop
from rslm.cli import main
from rslm.errors import FormatError
from rslm.reference_curve import (
    BandWatch,
    Point,
    ReferenceCurve,
    curve_to_toml,
    find_curve,
    measure_curve,
    read_curve,
)
from rslm.run_data import open_data
from rslm.run_folder import read_metrics
from rslm.train import train
from rslm.train_config import OptimizerConfig, TrainConfig

MakeConfig = Callable[..., TrainConfig]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "peak_flops", lambda *_: 1e12)
    monkeypatch.setattr(loop, "write_loss_curve", lambda *_: None)
    monkeypatch.setattr(os, "fsync", lambda _: None)


def resolved(config: TrainConfig) -> TrainConfig:
    return replace(config, model=replace(config.model, vocab_size=257))


@pytest.fixture
def band_file(tiny_config: MakeConfig, tmp_path: Path) -> Path:
    """The band of three runs, as the command makes it."""
    for seed in (1, 2, 3):
        train(tiny_config(out=tmp_path / f"seed-{seed}", seed=seed))
    runs = " ".join(str(tmp_path / f"seed-{seed}") for seed in (1, 2, 3))
    assert main(shlex.split(f"runs band {runs} --name tiny --out {tmp_path / 'band.toml'}")) == 0
    return tmp_path / "band.toml"


def test_band_is_around_the_median_of_the_runs(band_file: Path) -> None:
    curve = read_curve(band_file)
    rows = [read_metrics(band_file.parent / f"seed-{s}" / "metrics.jsonl") for s in (1, 2, 3)]
    losses = [[row["loss"] for row in part if "loss" in row] for part in rows]
    assert [point.step for point in curve.points] == list(range(1, 21))
    assert [point.n_tokens for point in curve.points] == [64 * i for i in range(1, 21)]
    for point, at in zip(curve.points, zip(*losses, strict=True), strict=True):
        assert point.median == pytest.approx(statistics.median(at), abs=1e-5)
        assert point.high - point.median == pytest.approx(point.median - point.low, abs=2e-5)
    spread = [statistics.variance(at) for at in list(zip(*losses, strict=True))[7:12]]
    reach = 4 * (statistics.fmean(spread) * 4 / 3) ** 0.5
    assert curve.points[9].high - curve.points[9].median == pytest.approx(reach, abs=2e-5)
    assert curve.measured.startswith("3 runs on ")
    assert "seed" not in curve.options
    assert curve.options["optimizer.learning_rate"] == 1e-2


def test_run_is_warned_of_once_where_it_leaves_the_band(
    tiny_config: MakeConfig, band_file: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    capsys.readouterr()
    inside = tiny_config(out=tmp_path / "inside", seed=4, reference_curve=band_file)
    train(inside)
    assert "the band" not in capsys.readouterr().err
    text = band_file.read_text()
    lines = text.splitlines()
    # From step 8 on the measured losses lie far below.
    first = lines.index("points = [") + 8
    for number in range(first, first + 13):
        step, n_tokens, *_ = lines[number].strip(" [],").split(", ")
        lines[number] = f"    [{step}, {n_tokens}, 0.5, 0.4, 0.6],"
    low = tmp_path / "low.toml"
    low.write_text("\n".join(lines))
    train(tiny_config(out=tmp_path / "above", seed=4, reference_curve=low))
    warnings = [line for line in capsys.readouterr().err.splitlines() if "the band" in line]
    assert len(warnings) == 1
    assert warnings[0].startswith("the loss of steps 8 to 8, ")
    assert "is above the band 0.4000 to 0.6000 of tiny (3 runs on " in warnings[0]


def test_shipped_curve_is_used_only_for_what_was_measured(
    tiny_config: MakeConfig, band_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = resolved(tiny_config())
    data = open_data(config).fingerprints
    assert find_curve(config, data) is None, "nothing that ships was measured on this"
    (tmp_path / "package" / "reference_curves").mkdir(parents=True)
    (tmp_path / "package" / "reference_curves" / "tiny.toml").write_bytes(band_file.read_bytes())
    monkeypatch.setattr(reference_curve.resources, "files", lambda _: tmp_path / "package")
    found = find_curve(replace(config, seed=9, log_every=1, n_threads=2), data)
    assert found is not None
    assert found.name == "tiny"
    hot = replace(config, optimizer=OptimizerConfig(learning_rate=2e-2, warmup_steps=4))
    assert find_curve(hot, data) is None
    assert find_curve(config, {**data, "train": "other"}) is None
    assert find_curve(config, {**data, "valid": None}) is not None
    with pytest.raises(ValueError, match=r"is of other runs: optimizer\.learning_rate must be"):
        find_curve(replace(hot, reference_curve=band_file), data)


def watch(losses: dict[int, float], points: list[Point]) -> list[str | None]:
    curve = ReferenceCurve(name="c", measured="m", data={}, options={}, points=tuple(points))
    band = BandWatch(curve)
    return [band.check({"step": step, "loss": loss}) for step, loss in losses.items()]


def test_each_excursion_is_told_once_and_means_are_over_stretches() -> None:
    points = [Point(step, step, 2.0, 1.5, 2.5) for step in (2, 4, 6, 8, 10)]
    losses = dict(enumerate([2.0, 2.0, 0.0, 4.0, 3.0, 3.0, 9.0, 9.0, 2.0, 2.0], 1))
    told = watch(losses, points)
    assert [step for step, text in enumerate(told, 1) if text] == [6]
    losses |= {7: 2.0, 8: 2.0, 9: 1.0, 10: 1.0}
    told = watch(losses, points)
    assert [step for step, text in enumerate(told, 1) if text] == [6, 10]
    assert "below" in (told[9] or "")
    assert not any(watch(losses | {5: float("nan"), 9: 2.0, 10: 2.0}, points))


def test_earlier_rows_are_taken_in_without_a_word() -> None:
    points = (Point(2, 2, 2.0, 1.5, 2.5), Point(4, 4, 2.0, 1.5, 2.5), Point(6, 6, 2.0, 1.5, 2.5))
    curve = ReferenceCurve(name="c", measured="m", data={}, options={}, points=points)
    rows = [{"step": 1, "loss": 9.0}, {"step": 2, "loss": 9.0}, {"step": 3, "loss": 9.0}]
    band = BandWatch(curve, [*rows, {"step": 3, "val_loss": 1.0}])
    assert band.check({"step": 4, "loss": 9.0}) is None, "the same excursion"
    assert BandWatch(None).check({"step": 1, "loss": 9.0}) is None


def test_what_makes_no_band_is_refused(band_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = band_file.parent
    for runs, message in (
        (f"{folder}/seed-1 {folder}/seed-2", "at least 3 finished runs, got 2"),
        (f"{folder}/seed-1 {folder}/seed-2 {folder}/seed-2", "differ in their seeds"),
    ):
        assert main(shlex.split(f"runs band {runs} --name x --out {folder / 'x.toml'}")) == 2
        assert message in capsys.readouterr().err
    configs: list[dict[str, Any]] = [{"seed": i, "n_steps": 20} for i in range(3)]
    configs[2]["batch_size"] = 7
    with pytest.raises(ValueError, match="differ in their seed alone, and do in batch_size"):
        measure_curve("x", "m", configs, [[]] * 3, {})


def test_file_reads_back_and_a_damaged_one_is_refused(band_file: Path, tmp_path: Path) -> None:
    curve = read_curve(band_file)
    (tmp_path / "again.toml").write_text(curve_to_toml(curve))
    assert read_curve(tmp_path / "again.toml") == curve
    for bad in ("name = 1\n", band_file.read_text().replace("[20, ", "[3, ")):
        (tmp_path / "bad.toml").write_text(bad)
        with pytest.raises(FormatError, match=r"bad\.toml"):
            read_curve(tmp_path / "bad.toml")
