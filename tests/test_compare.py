import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from rslm.cli import main
from rslm.experiment.compare import (
    common_metric,
    compare,
    final_value,
    group_runs,
    has_diverged,
    last_mean,
    shared_place,
    value_at,
    verdict,
)
from rslm.experiment.statistics import paired_test, welch_test
from rslm.runs import Run, read_run

STEPS = (20, 40, 60, 80, 90, 95, 100)


def make_run(
    folder: Path,
    name: str,
    *,
    level: float,
    seed: int = 0,
    flops: float = 1e6,
    seconds: float = 1.0,
    metric: str = "val_bits_per_byte",
    options: str = 'algorithm = "adamw"',
) -> Path:
    """A run whose metric falls on a line, by 0.01 a step, to `level` at step 100."""
    path = folder / name
    path.mkdir(parents=True)
    (path / "config.toml").write_text(
        f'out = "{path}"\nseed = {seed}\nn_steps = 100\n[optimizer]\n{options}\n'
    )
    rows = [
        {"step": s, "train_flops": flops * s, "elapsed_seconds": seconds * s, "loss": 1.0}
        | {metric: level + 0.01 * (100 - s)}
        for s in STEPS
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_group(folder: Path, name: str, levels: Sequence[float], **options: Any) -> list[Run]:
    paths = [
        make_run(folder, f"{name}{seed}", level=level, seed=seed, **options)
        for seed, level in enumerate(levels)
    ]
    return [read_run(path) for path in paths]


A, B = (1.0, 1.1, 1.3), (0.9, 1.02, 1.19)
MUON = 'algorithm = "muon"'


def test_runs_of_equal_seeds_are_pairs(tmp_path: Path) -> None:
    a, b = make_group(tmp_path, "a", A), make_group(tmp_path, "b", B, options=MUON)
    comparison = compare(a, b[::-1], "val_bits_per_byte")
    final = comparison.views[0]
    assert (final.name, final.a, final.b) == ("final", list(A), list(B))
    assert final.paired is not None
    assert final.test is final.paired
    assert final.paired.p_value == pytest.approx(stats.ttest_rel(B, A).pvalue)
    assert final.welch.p_value == pytest.approx(stats.ttest_ind(B, A, equal_var=False).pvalue)
    assert final.bootstrap is None
    assert comparison.options == {"optimizer.algorithm": (["adamw"], ["muon"])}


@pytest.mark.parametrize("change", ["other seeds", "one seed twice", "another option within"])
def test_other_runs_are_no_pairs(tmp_path: Path, change: str) -> None:
    a = make_group(tmp_path, "a", A)
    if change == "other seeds":
        b = make_group(tmp_path, "b", [*B, 1.0], options=MUON)[1:]
    elif change == "one seed twice":
        again = read_run(make_run(tmp_path, "c", level=1.0, options=MUON))
        b = [*make_group(tmp_path, "b", B[:2], options=MUON), again]
    else:
        third = read_run(make_run(tmp_path, "c", level=1.0, seed=2))
        b = [*make_group(tmp_path, "b", B[:2], options=MUON), third]
    final = compare(a, b, "val_bits_per_byte").views[0]
    assert final.paired is None
    assert final.test is final.welch


def test_views_of_equal_compute_and_time_read_the_curves(tmp_path: Path) -> None:
    a = make_group(tmp_path, "a", A)
    # Each step costs twice the FLOPs and half the time.
    b = make_group(tmp_path, "b", B, options=MUON, flops=2e6, seconds=0.5)
    views = {view.name: view for view in compare(a, b, "val_bits_per_byte").views}
    flops = views["equal train_flops"]
    assert flops.at == 1e8
    assert flops.a == pytest.approx(A)
    assert flops.b == pytest.approx([level + 0.5 for level in B])  # Step 50, between 40 and 60.
    seconds = views["equal elapsed_seconds"]
    assert seconds.at == 50.0
    assert seconds.a == pytest.approx([level + 0.5 for level in A])
    assert seconds.b == pytest.approx(B)
    # Steps 95 and 100 lie beyond 90.
    assert views["last tenth"].a == pytest.approx([level + 0.025 for level in A])


def test_many_runs_have_a_bootstrap_interval(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    a = make_group(tmp_path, "a", rng.normal(1, 0.01, 8).tolist())
    b = make_group(tmp_path, "b", rng.normal(1.1, 0.01, 8).tolist(), options=MUON)
    final = compare(a, b, "val_bits_per_byte").views[0]
    assert final.bootstrap is not None
    low, high = final.bootstrap
    assert 0.08 < low < final.test.effect < high < 0.12


def test_group_is_what_differs_in_the_seed_alone(tmp_path: Path) -> None:
    a, b = make_group(tmp_path, "a", A), make_group(tmp_path, "b", B, options=MUON)
    assert group_runs([a[0], b[0], a[1], b[1], b[2], a[2]]) == [a, b]


def test_metric_that_all_runs_share_is_chosen(tmp_path: Path) -> None:
    a = make_group(tmp_path, "a", A)
    b = make_group(tmp_path, "b", B, metric="val_loss")
    assert common_metric(a) == "val_bits_per_byte"
    assert common_metric(b) == "val_loss"
    assert common_metric([*a, *b]) == "loss"
    with pytest.raises(
        ValueError, match=r"metric must be one that every run has, got 'val_loss'\n"
    ):
        compare(a, b, "val_loss")


def test_training_loss_is_smoothed_where_curves_are_read(tmp_path: Path) -> None:
    path = make_run(tmp_path, "a", level=1.0)
    losses = [math.sin(step) for step in range(1, 401)]
    rows = [{"step": i + 1, "train_flops": i, "loss": loss} for i, loss in enumerate(losses)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = read_run(path)
    assert value_at(run, "loss", "train_flops", 200.0) == pytest.approx(np.mean(losses[196:205]))
    assert last_mean(run, "loss") == pytest.approx(np.mean(losses[360:]))
    assert final_value(run, "loss") == losses[-1]


def test_diverged_run_is_refused(tmp_path: Path) -> None:
    a, b = make_group(tmp_path, "a", A), make_group(tmp_path, "b", B)
    with (b[1].path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 101, "loss": null}\n')
    diverged = read_run(b[1].path)
    assert has_diverged(diverged)
    assert not has_diverged(b[0])
    with pytest.raises(ValueError, match=r"finite losses, .*b1 diverged at step 101"):
        compare(a, [b[0], diverged], "val_bits_per_byte")


def test_run_that_is_not_finished_is_refused(tmp_path: Path) -> None:
    a, b = make_group(tmp_path, "a", A), make_group(tmp_path, "b", B)
    lines = (b[1].path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (b[1].path / "metrics.jsonl").write_text("".join(lines[:3]))
    with pytest.raises(ValueError, match=r"be finished, .*b1 is at step 60 of 100$"):
        compare(a, [b[0], read_run(b[1].path)], "val_bits_per_byte")


def test_run_counts_once(tmp_path: Path) -> None:
    a, b = make_group(tmp_path, "a", A), make_group(tmp_path, "b", B)
    (tmp_path / "link").symlink_to(a[0].path)
    link = read_run(tmp_path / "link")
    for groups in [([*a, a[0]], b), (a, [*b, a[2]]), ([*a, link], b)]:
        with pytest.raises(ValueError, match=r"given once each, got .* twice$"):
            compare(*groups, "val_bits_per_byte")


def test_curves_must_overlap(tmp_path: Path) -> None:
    runs = make_group(tmp_path, "a", A)
    late = read_run(make_run(tmp_path, "late", level=1.0, flops=1e9))
    with pytest.raises(
        ValueError, match=r"late has its first val_bits_per_byte beyond train_flops"
    ):
        shared_place([*runs, late], "val_bits_per_byte", "train_flops")


@pytest.mark.parametrize(
    ("a", "b", "metric", "said"),
    [
        ([1.0, 1.1, 1.2], [0.5, 0.61, 0.7], "val_loss", "better"),
        ([1.0, 1.1, 1.2], [0.5, 0.61, 0.7], "tokens_per_second", "worse"),
        ([1.0, 1.1, 1.2], [1.0, 1.1, 1.2], "val_loss", "no difference at n = 3"),
        ([1.0, 1.1, 1.2], [1.0, 1.3, 1.15], "val_loss", "not significant at n = 3; n needed = "),
    ],
)
def test_verdict(a: list[float], b: list[float], metric: str, said: str) -> None:
    assert verdict(paired_test(a, b), metric).startswith(said)
    assert "at n = 3 and 2" in verdict(welch_test(a, [a[0], a[1] + 0.1]), metric)


def test_command_tells_the_groups_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = make_group(tmp_path, "a", A), make_group(tmp_path, "b", B, options=MUON)
    paths = [[str(run.path) for run in group] for group in (a, b)]
    assert main(["compare", *paths[0], *paths[1]]) == 0
    shown = capsys.readouterr().out
    assert "optimizer.algorithm: adamw -> muon" in shown
    assert f"final: {verdict(paired_test(A, B), 'val_bits_per_byte')}" in shown

    named = ["compare", "--a", *paths[1], "--b", *paths[0], "--target", "1.05", "--json"]
    assert main(named) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["views"][0]["paired"]["effect"] == pytest.approx(np.mean(A) - np.mean(B))
    assert record["views"][0]["verdict"].startswith("worse")
    expected = stats.ttest_1samp(B, 1.05, alternative="less").pvalue
    assert record["target_a"]["p_value"] == pytest.approx(expected)


def test_command_shows_the_coverage_of_its_bootstrap(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(1)
    a = make_group(tmp_path, "a", rng.normal(1, 0.01, 8).tolist())
    b = make_group(tmp_path, "b", rng.normal(1, 0.01, 8).tolist(), options=MUON)
    assert main(["compare", *(str(run.path) for run in [*a, *b])]) == 0
    shown = capsys.readouterr().out
    assert "final: bootstrap (BCa)" in shown
    assert "% of 1,000 simulated experiments of 8 runs" in shown


def test_command_refuses_what_is_not_two_groups(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = [str(run.path) for run in make_group(tmp_path, "a", A)]
    for arguments, message in [
        (a, "error: runs must fall into two groups by their options, seeds aside, got 1"),
        ([], "error: runs must be given as two groups"),
        (["--a", *a], "error: runs must be given as two groups"),
        ([*a, "--confidence", "1.5"], "error: confidence must be in [0.5, 0.9999], got 1.5"),
        ([*a, "--confidence", "0.9999999999999999"], "error: confidence must be in [0.5, 0.9999]"),
        ([*a, "--target", "nan"], "error: target must be finite, got nan"),
        ([*a, "--target", "inf"], "error: target must be finite, got inf"),
        (["--a", a[0], "--b", a[1]], "error: each arm needs at least 2 runs"),
        ([*a, str(tmp_path / "nowhere")], "nowhere/config.toml: No such file"),
    ]:
        assert main(["compare", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
