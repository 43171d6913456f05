"""What a report says of an ablation and of a sweep, from what these wrote."""

import json
from pathlib import Path
from typing import Any

import pytest
from run_folders import write_run

from rslm.config import from_record
from rslm.errors import FormatError
from rslm.experiment.ablate import plan_ablation
from rslm.experiment.ablation_results import analyse, to_record
from rslm.experiment.axes import parse_axis
from rslm.experiment.report_study import ablation, study_sections, sweep
from rslm.experiment.study import Outcome
from rslm.html_report.blocks import Cell, Forest, Plot, Section, Table
from rslm.train_config import TrainConfig

BASE = {"data": {"train": "tokens"}, "model": {"vocab_size": 512}, "n_steps": 200}
RATES = (1e-4, 1e-3, 1e-2, 1e-1)


@pytest.fixture(scope="module")
def ablated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Results of a change that is half a nat worse, of one that is noise, of one that diverges."""
    folder = tmp_path_factory.mktemp("study")
    axes = [
        "model.ffn=swiglu,relu2",
        "optimizer.beta1=0.9,0.91",
        "optimizer.learning_rate=1e-3,1.0",
    ]
    plan = plan_ablation(BASE, list(map(parse_axis, axes)), n_seeds=3, complete=lambda r: r)
    outcomes = []
    for run in plan.planned:
        config = from_record(TrainConfig, run.options | {"out": run.folder})
        is_hot = config.optimizer.learning_rate == 1.0
        options = {name: getattr(config, name) for name in ("model", "optimizer", "seed")}
        path = write_run(
            folder / run.folder,
            worse=0.5 if config.model.ffn == "relu2" else 0.001 * (config.seed - 1),
            diverges_at=70 if is_hot else None,
            **options,
        )
        status: Any = "diverged" if is_hot else "finished"
        outcomes.append(Outcome(run=run, path=path, status=status, seconds=1.0))
    return to_record(analyse(plan, outcomes))


def swept() -> dict[str, Any]:
    runs = [
        {
            "labels": {"optimizer.learning_rate": rate, "model.ffn": ffn},
            "value": None if rate > 0.05 else 3 + abs(place - 1) + 0.1 * (ffn == "silu"),
            "status": "diverged" if rate > 0.05 else "finished",
            "train_flops": 1e12,
        }
        for ffn in ("swiglu", "silu")
        for place, rate in enumerate(RATES)
    ]
    edge = {"option": "optimizer.learning_rate", "choice": {"model.ffn": "silu"}}
    edges = [edge | {"stable": 1e-2, "unstable": 1e-1}, edge | {"stable": 1e-1, "unstable": None}]
    return {"metric": "val_loss", "best": runs[1], "edges": edges, "runs": runs}


def rows_of(section: Section) -> dict[str, dict[str, Cell]]:
    (table,) = [block for block in section.blocks if isinstance(block, Table)]
    heads = [head for head, _ in table.columns]
    return {row[0].text: dict(zip(heads, row, strict=True)) for row in table.rows}


def test_effects_are_those_of_the_tests_and_coloured_by_them(ablated: dict[str, Any]) -> None:
    section = ablation(json.loads(json.dumps(ablated)))
    forest = section.blocks[0]
    assert isinstance(forest, Forest)
    worse, noise = forest.effects
    assert (worse.name, worse.tone) == ("model.ffn = relu2", "bad")
    assert worse.estimate == pytest.approx(0.25, abs=0.05)
    assert 0 < worse.low < worse.estimate < worse.high
    assert (noise.name, noise.tone) == ("optimizer.beta1 = 0.91", "muted")
    assert "left of the dotted line is better" in forest.caption
    assert "95 % interval" in forest.caption
    assert "model.ffn = swiglu" in section.lead
    assert "2 tests (Holm)" in section.lead


def test_change_that_lowers_a_loss_is_good_and_one_that_slows_is_bad(
    ablated: dict[str, Any],
) -> None:
    arm = ablated["arms"][1]
    lower = arm | {"test": arm["test"] | {"effect": -0.25}}
    for metric, tone in (("val_loss", "good"), ("tokens_per_second", "bad")):
        forest = ablation({"metric": metric, "arms": [ablated["arms"][0], lower]}).blocks[0]
        assert isinstance(forest, Forest)
        assert forest.effects[0].tone == tone


def test_table_has_every_arm_and_says_what_diverged(ablated: dict[str, Any]) -> None:
    rows = rows_of(ablation(ablated))
    assert list(rows) == [
        "base",
        "model.ffn = relu2",
        "optimizer.beta1 = 0.91",
        "optimizer.learning_rate = 1",
    ]
    hot = rows["optimizer.learning_rate = 1"]
    assert (hot["runs"].value, hot["diverged"].value, hot["diverged"].tone) == (0, 3, "bad")
    assert "diverged (3 of 3)" in hot["verdict"].text
    assert hot["mean"].text == hot["effect"].text == "–"
    worse, arm = rows["model.ffn = relu2"], ablated["arms"][1]
    assert worse["verdict"].text == "worse"
    assert worse["effect"].value == arm["test"]["effect"]
    assert worse["p"].value == arm["p_value_corrected"]
    assert "not significant at n = 3" in rows["optimizer.beta1 = 0.91"]["verdict"].text


def test_ablation_of_one_seed_has_a_table_alone(ablated: dict[str, Any]) -> None:
    arms = [arm | {"test": None, "p_value_corrected": None} for arm in ablated["arms"]]
    section = ablation(ablated | {"arms": arms})
    assert [type(block) for block in section.blocks] == [Table]


def test_sweep_is_drawn_over_numbers_with_a_line_for_each_choice() -> None:
    section = sweep(swept())
    plots = [block for block in section.blocks if isinstance(block, Plot)]
    (plot,) = plots
    assert (plot.x_title, plot.log_x) == ("optimizer.learning_rate", True)
    assert [(trace.name, trace.kind) for trace in plot.traces] == [
        ("model.ffn = swiglu", "line"),
        ("model.ffn = silu", "line"),
        ("diverged", "points"),
    ]
    assert list(plot.traces[0].x) == list(RATES[:3])
    assert list(plot.traces[0].y) == [4, 3, 4]
    assert list(plot.traces[2].x) == [0.1, 0.1]
    assert "lowest validation loss is 3.0000, at optimizer.learning_rate = 0.001" in section.lead
    assert "with model.ffn = silu is stable up to 0.01; 0.1 is not." in section.lead
    assert "stable up to 0.1; the largest tried." in section.lead
    assert rows_of(section)["0.1"]["status"].tone == "bad"


def test_sweep_without_shared_choices_is_points() -> None:
    record = swept()
    runs = [
        run | {"labels": run["labels"] | {"batch_size": n}} for n, run in enumerate(record["runs"])
    ]
    plot = sweep(record | {"runs": runs}).blocks[0]
    assert isinstance(plot, Plot)
    assert [trace.kind for trace in plot.traces] == ["points", "points"]


def test_damaged_results_are_named(tmp_path: Path, ablated: dict[str, Any]) -> None:
    assert study_sections(tmp_path) == []
    (tmp_path / "ablation.json").write_text(json.dumps(ablated))
    (tmp_path / "sweep.json").write_text(json.dumps(swept()))
    assert [section.title for section in study_sections(tmp_path)] == ["Ablation", "Sweep"]
    for text in ("{", "[]", '{"metric": "loss", "arms": [{}]}', '{"metric": 1, "arms": 2}'):
        (tmp_path / "ablation.json").write_text(text)
        with pytest.raises(FormatError, match=r"ablation\.json must hold results"):
            study_sections(tmp_path)


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("ablation.json", ["arms"], []),
        ("ablation.json", ["arms", 1, "test", "low"], None),
        ("ablation.json", ["arms", 1, "verdict"], 5),
        ("ablation.json", ["arms", 1, "train_flops"], 10**400),
        ("ablation.json", ["arms", 0, "labels", "model.ffn"], 10**400),
        ("ablation.json", ["arms", 1, "values"], {"0": 10**400}),
        ("sweep.json", ["runs", 0, "status"], []),
        ("sweep.json", ["runs", 0, "value"], "low"),
        ("sweep.json", ["runs", 0, "labels", "optimizer.learning_rate"], 10**400),
        ("sweep.json", ["best", "value"], 10**400),
        ("sweep.json", ["edges", 0, "choice"], 3),
    ],
)
def test_results_of_other_types_are_damaged(
    ablated: dict[str, Any], tmp_path: Path, name: str, path: list[Any], value: Any
) -> None:
    record = json.loads(json.dumps(ablated if name == "ablation.json" else swept()))
    assert ablated["arms"][1]["test"] is not None
    place = record
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (tmp_path / name).write_text(json.dumps(record))
    with pytest.raises(FormatError, match=f"{name} must hold results as rslm writes them"):
        study_sections(tmp_path)
