import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scaling_points import LAW

from rslm.architecture import TransformerConfig, n_parameters_by_group, train_flops_per_token
from rslm.config import from_record, to_toml
from rslm.errors import FormatError
from rslm.experiment.isoflop import _warmup, plan_isoflop, plan_pitfalls
from rslm.experiment.isoflop_runs import as_curves, read_scaling_runs
from rslm.experiment.shapes import count_parameters, find_shape
from rslm.scaling.envelope import split_curves
from rslm.scaling.fit import fit_law
from rslm.train_config import DataConfig, MuonConfig, OptimizerConfig, TrainConfig

MODEL = TransformerConfig(vocab_size=512, context_length=64, d_model=64, n_layers=2, n_heads=4)
BASE = TrainConfig(
    out=Path("study"),
    data=DataConfig(train=Path("tokens")),
    model=MODEL,
    optimizer=OptimizerConfig(learning_rate=4e-3, warmup_steps=50),
    n_steps=1000,
    batch_size=32,
)
BUDGETS = [1e11, 3e11, 1e12]


@settings(max_examples=20)
@given(st.floats(1.5e4, 1e8), st.sampled_from(["all", "non-embedding", "body"]))
def test_shapes_come_near_the_wanted_size(n_wanted: float, counting: Any) -> None:
    shape = find_shape(MODEL, n_wanted, counting)
    assert shape.resolved_d_head == 16
    n = count_parameters(shape, counting)
    smallest = count_parameters(replace(MODEL, d_model=16, n_heads=1, n_layers=1), counting)
    # Between widths of 16 and 32 there is little to choose from.
    reach = 2.2 if n_wanted < 1e5 else 1.35
    assert max(smallest, n_wanted) / reach < n < max(smallest * reach, n_wanted * reach)
    assert n_wanted < 1e5 or 8 <= shape.d_model / shape.n_layers <= 128


def test_warmup_is_the_smallest_whole_share() -> None:
    for warmup in range(26):
        base = replace(BASE, n_steps=25, optimizer=replace(BASE.optimizer, warmup_steps=warmup))
        # 7 / 25 * 25 is above 7.
        assert [_warmup(base, 25 * n) for n in (1, 2, 7)] == [warmup, 2 * warmup, 7 * warmup]
        assert _warmup(base, 24) == warmup - warmup // 25


@pytest.mark.parametrize("counting", ["all", "non-embedding", "body"])
@pytest.mark.parametrize("n_layers", [7, 8, 9, 10, 31])
def test_many_layers_are_counted_like_few(n_layers: int, counting: Any) -> None:
    switches: list[dict[str, Any]] = [
        {"value_embeddings": True},
        {"window_pattern": "SSL", "tied_head": True},
        {"residual_scalars": True, "x0_scalars": True, "biases": True},
        {"norm_position": "peri", "qk_norm": "rms-gain", "n_kv_heads": 2},
    ]
    for options in switches:
        model = replace(MODEL, n_layers=n_layers, **options)
        groups = n_parameters_by_group(model)
        tables = groups["embedding"] + groups["value_embeddings"] + groups["head"]
        expected = {"all": 0, "body": -tables, "non-embedding": 512 * 64 - tables}
        assert count_parameters(model, counting) == sum(groups.values()) + expected[counting]


def test_plan_of_the_largest_budget_is_quick_and_near() -> None:
    start = time.process_time()
    runs = plan_isoflop(BASE, [1e22, 1e40], n_sizes=3)
    assert time.process_time() - start < 10  # A minute and hours, width by width.
    for run in runs:
        assert run.miss < 1e-3
    wanted = [math.sqrt(1e40 / 120) / 4, math.sqrt(1e40 / 120) * 4]
    found = sorted(run.n_parameters for run in runs if run.flop_budgets == (1e40,))
    assert [found[0], found[-1]] == pytest.approx(wanted, rel=1e-3)


def test_shapes_keep_the_switches_of_the_base() -> None:
    base = replace(
        MODEL, n_kv_heads=2, d_ff=256, parametrisation="mup", ffn="relu2", tied_head=True
    )
    shape = find_shape(base, 1e6, "all")
    assert shape.n_heads == 2 * shape.resolved_n_kv_heads
    assert shape.d_ff == 4 * shape.d_model
    assert shape.base_d_model == 64
    assert (shape.ffn, shape.tied_head) == ("relu2", True)
    windows = replace(MODEL, window_pattern="SL", window_size=16)
    assert all(find_shape(windows, n, "all").n_layers > 1 for n in (1e4, 1e5, 1e6))


def test_plan_spends_every_budget_on_several_sizes() -> None:
    runs = plan_isoflop(BASE, BUDGETS[::-1], n_sizes=5)
    assert {run.flop_budgets for run in runs} == {(budget,) for budget in BUDGETS}
    for budget in BUDGETS:
        own = [run for run in runs if run.flop_budgets == (budget,)]
        assert len({run.config.model for run in own}) == len(own) >= 3
        guess = math.sqrt(budget / 120)
        assert own[0].n_parameters < guess < own[-1].n_parameters
        for run in own:
            exact = run.n_tokens * train_flops_per_token(run.config.model)
            assert run.train_flops == exact
            assert exact == pytest.approx(budget, rel=0.01)
            assert run.miss == pytest.approx(abs(exact / budget - 1))
    assert len({run.planned().hash for run in runs}) == len(runs)
    assert len({run.planned().name for run in runs}) == len(runs)


def test_batch_and_rates_follow_the_rules() -> None:
    for run in plan_isoflop(BASE, BUDGETS):
        config = run.config
        growth = run.n_tokens / (1000 * 32 * 64)
        assert config.batch_size == pytest.approx(32 * growth**0.383, abs=0.51)
        n_base = count_parameters(MODEL, "non-embedding")
        expected = (
            4e-3 * math.sqrt(config.batch_size / 32) * (run.n_parameters / n_base) ** (-1 / 3)
        )
        assert config.optimizer.learning_rate == pytest.approx(expected)
        assert config.optimizer.warmup_steps == math.ceil(0.05 * config.n_steps)
        assert config.validate_every == config.n_steps // 8


def test_transferring_parametrisations_and_muon_keep_their_rates_over_sizes() -> None:
    mup = replace(BASE, model=replace(MODEL, parametrisation="mup"))
    for run in plan_isoflop(mup, BUDGETS):
        by_batch = math.sqrt(run.config.batch_size / 32)
        assert run.config.optimizer.learning_rate == pytest.approx(4e-3 * by_batch)
        assert run.config.model.base_d_model == 64
    muon = OptimizerConfig(
        algorithm="muon", muon=MuonConfig(learning_rate=0.02), min_learning_rate=1e-4
    )
    for run in plan_isoflop(replace(BASE, optimizer=muon), BUDGETS):
        optimizer = run.config.optimizer
        by_batch = math.sqrt(run.config.batch_size / 32)
        assert optimizer.muon.learning_rate == pytest.approx(0.02 * by_batch)
        ratio = optimizer.learning_rate / optimizer.min_learning_rate
        assert ratio == pytest.approx(1e-3 / 1e-4)


def test_wsd_s_gives_several_budgets_in_one_run() -> None:
    runs = plan_isoflop(BASE, BUDGETS, n_sizes=8, wsd_s=True)
    assert len({run.config.model for run in runs}) == len(runs)
    assert max(len(run.flop_budgets) for run in runs) == 3
    for budget in BUDGETS:
        assert sum(budget in run.flop_budgets for run in runs) >= 3
    for run in runs:
        optimizer = run.config.optimizer
        assert optimizer.schedule == "wsd-s"
        assert (*optimizer.decay_ends, run.config.n_steps) == run.ends
        assert all(end % run.config.validate_every == 0 for end in run.ends)
        assert run.miss < 0.1


def test_micro_batches_still_divide_batches() -> None:
    for run in plan_isoflop(replace(BASE, micro_batch_size=16), BUDGETS):
        assert run.config.micro_batch_size <= 16
        assert run.config.batch_size % run.config.micro_batch_size == 0


def test_planned_options_are_those_of_a_run() -> None:
    planned = plan_isoflop(BASE, BUDGETS)[0].planned()
    config = from_record(TrainConfig, planned.options | {"out": "there"})
    assert config.out == Path("there")
    assert planned.labels["flop_budgets"] == [1e11]
    assert planned.name.startswith("flop_budget=1e+11,d_model=")


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"flop_budgets": []}, "budgets must be FLOPs"),
        ({"flop_budgets": [math.nan]}, "budgets must be FLOPs"),
        ({"flop_budgets": [1e12, 1e12]}, "budgets must differ"),
        ({"n_sizes": 2}, "sizes must be 3 to 100"),
        ({"width": 1.0}, "width must be above 1"),
        ({"tokens_per_parameter": 0}, "tokens_per_parameter must be"),
        ({"flop_budgets": [1e7]}, "at least 3 sizes are needed"),
        ({"flop_budgets": [1e8], "tokens_per_parameter": 1e-3}, "must be at least a step"),
    ],
)
def test_plans_that_cannot_be_are_refused(options: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        plan_isoflop(BASE, **{"flop_budgets": BUDGETS} | options)


def test_plan_pitfalls_name_misses_and_data_read_twice() -> None:
    runs = plan_isoflop(BASE, BUDGETS)
    assert plan_pitfalls(runs, 10**9) == []
    (found,) = plan_pitfalls(runs, 100_000)
    assert "reads the data" in found
    rough = replace(runs[0], flop_budgets=(0.9e11,))
    found = plan_pitfalls([rough], None)
    assert "miss a budget by up to" in found[0]
    assert "9e+10 FLOPs are spent on fewer than 3 sizes" in found[1]


def write_study(folder: Path, *, wsd_s: bool, validates: bool, kind: str = "") -> None:
    """Run folders as they would be were the law true, with the losses of it all along."""
    entries = []
    for run in plan_isoflop(BASE, BUDGETS, n_sizes=8 if wsd_s else 5, wsd_s=wsd_s):
        planned = run.planned()
        path = folder / planned.folder
        path.mkdir(parents=True)
        config = replace(run.config, out=path)
        (path / "config.toml").write_text(to_toml(config))
        rows = []
        per_token = train_flops_per_token(config.model)
        for step in range(1, config.n_steps + 1):
            n_tokens = step * run.tokens_per_step
            # Numbers of sizes for which the law was not made still have a lowest place.
            loss = float(LAW.loss(run.n_parameters * 1e3, n_tokens * 1e3))
            position = {"step": step, "n_tokens": n_tokens, "train_flops": n_tokens * per_token}
            rows.append(position | {"loss": loss})
            if (validates and step % config.validate_every == 0) or step == config.n_steps:
                rows.append(position | ({"val_loss": loss} if validates else {}))
        (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        entries.append({"folder": planned.folder, "labels": planned.labels})
    (folder / "study.json").write_text(json.dumps({"kind": "scaling", "runs": entries}))


@pytest.mark.parametrize("wsd_s", [False, True])
def test_runs_become_points_at_the_ends_of_their_schedules(tmp_path: Path, wsd_s: bool) -> None:
    write_study(tmp_path, wsd_s=wsd_s, validates=True)
    read = read_scaling_runs([tmp_path])
    assert read.is_validated
    assert read.n_left_out == 0
    points = read.points
    assert points.flop_budget is not None
    np.testing.assert_allclose(points.flop_budget, points.train_flops, rtol=0.1)
    assert set(points.flop_budget) == set(BUDGETS)
    expected = LAW.loss(points.n_parameters * 1e3, points.n_tokens * 1e3)
    np.testing.assert_allclose(points.loss, expected, rtol=1e-12)
    law = fit_law(points, "vpnls")
    assert law.parameter_exponent == pytest.approx(LAW.parameter_exponent, rel=1e-6)
    assert law.flops_factor == pytest.approx(points.flops_factor)
    assert len(np.unique(read.curves.n_parameters)) >= 5


def test_runs_without_validation_have_the_loss_of_their_last_steps(tmp_path: Path) -> None:
    write_study(tmp_path, wsd_s=False, validates=False)
    read = read_scaling_runs([tmp_path])
    assert not read.is_validated
    expected = LAW.loss(read.points.n_parameters * 1e3, read.points.n_tokens * 1e3)
    # A mean of a twentieth of the steps is a little above the last.
    np.testing.assert_allclose(read.points.loss, expected, rtol=5e-3)
    assert (read.points.loss > expected).all()
    envelope = fit_law(read.curves, "envelope")
    assert 0.3 < envelope.parameter_share < 0.6


def test_runs_that_are_not_finished_are_counted_and_left_out(tmp_path: Path) -> None:
    write_study(tmp_path, wsd_s=False, validates=True)
    first = sorted(tmp_path.glob("*/metrics.jsonl"))[0]
    lines = first.read_text().splitlines(keepends=True)
    first.write_text("".join(lines[: len(lines) // 2]))
    read = read_scaling_runs([tmp_path])
    assert read.n_left_out == 1
    folders = [path.parent for path in tmp_path.glob("*/metrics.jsonl")]
    assert len(read.points) == len(folders) - 1
    # Run folders by name are the same runs, but no study says for which budgets they are.
    alone = read_scaling_runs([folder for folder in sorted(folders) if folder != first.parent])
    np.testing.assert_array_equal(alone.points.loss, read.points.loss)
    assert alone.points.flop_budget is None
    with pytest.raises(ValueError, match="at least one finished run is needed, got 1 runs"):
        read_scaling_runs([first.parent])


def test_runs_that_do_not_compare_are_refused(tmp_path: Path) -> None:
    write_study(tmp_path / "a", wsd_s=False, validates=True)
    write_study(tmp_path / "b", wsd_s=False, validates=False)
    with pytest.raises(ValueError, match="all runs must be validated, or none"):
        read_scaling_runs([tmp_path / "a", tmp_path / "b"])
    run = sorted((tmp_path / "a").glob("*/config.toml"))[0]
    run.write_text(run.read_text().replace("[model]", "[model]\nnonsense = 3"))
    with pytest.raises(ValueError, match="must name the model's sizes"):
        read_scaling_runs([tmp_path / "a"])


def test_a_decay_without_a_validation_is_refused(tmp_path: Path) -> None:
    write_study(tmp_path, wsd_s=True, validates=True)
    for path in tmp_path.glob("*/metrics.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        last = rows[-1]["step"]
        kept = [row for row in rows if "val_loss" not in row or row["step"] == last]
        path.write_text("".join(json.dumps(row) + "\n" for row in kept))
    with pytest.raises(FormatError, match="must have a validation at step"):
        read_scaling_runs([tmp_path])


@pytest.mark.parametrize(
    ("table", "line", "fault"),
    [
        ("[optimizer]", "decay_ends = 5", "decay_ends must be a list of steps, got 5"),
        ("n_steps", "optimizer = 3", "optimizer must be a table in .*config.toml, got 3"),
        ("n_steps", "model = 3", "model must be a table in .*config.toml, got 3"),
    ],
)
def test_options_of_other_types_are_named(
    tmp_path: Path, table: str, line: str, fault: str
) -> None:
    write_study(tmp_path, wsd_s=False, validates=True)
    for run in tmp_path.glob("*/config.toml"):
        text = run.read_text().replace("decay_ends = []\n", "")
        run.write_text(
            text.replace(f"{table}\n", f"{table}\n{line}\n") if table[0] == "[" else f"{line}\n"
        )
    with pytest.raises(ValueError, match=fault):
        read_scaling_runs([tmp_path])


def test_counting_changes_sizes_alone(tmp_path: Path) -> None:
    write_study(tmp_path, wsd_s=False, validates=True)
    counted = {
        c: read_scaling_runs([tmp_path], counting=c).points
        for c in ("all", "non-embedding", "body")
    }
    sizes = [points.n_parameters for points in counted.values()]
    assert (sizes[0] > sizes[1]).all()
    assert (sizes[1] > sizes[2]).all()
    assert len({points.train_flops.tobytes() for points in counted.values()}) == 1


def test_a_file_holds_curves_where_sizes_repeat(tmp_path: Path) -> None:
    write_study(tmp_path, wsd_s=False, validates=True)
    read = read_scaling_runs([tmp_path])
    assert as_curves(read.curves) is read.curves
    different = read.points.take(np.unique(read.points.n_parameters, return_index=True)[1])
    assert len(split_curves(read.curves)) == 14
    assert as_curves(different) is None
