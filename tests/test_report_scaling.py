"""What a report says of scaling laws, from runs that follow one and from `fit.json`."""

import json
from pathlib import Path

import numpy as np
import pytest
from run_folders import write_run

from rslm.architecture import TransformerConfig
from rslm.cli import main
from rslm.errors import FormatError
from rslm.experiment.isoflop import plan_isoflop
from rslm.experiment.report import find_sources, results, title_of, write_report
from rslm.experiment.report_scaling import scaling_section
from rslm.html_report.blocks import Notes, Plot, Section, Table
from rslm.scaling.laws import LossLaw
from rslm.scaling.report import read_fits
from rslm.train_config import DataConfig, TrainConfig

LAW = LossLaw(
    irreducible_loss=1.7,
    parameter_factor=60.0,
    parameter_exponent=0.34,
    token_factor=90.0,
    token_exponent=0.3,
)
BUDGETS = [1e11, 3e11, 1e12, 3e12]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of four budgets whose runs follow a law to the letter, fitted two ways."""
    folder = tmp_path_factory.mktemp("scaling") / "study"
    model = TransformerConfig(vocab_size=256, context_length=64, d_model=32, n_heads=2, n_layers=2)
    base = TrainConfig(out=folder, data=DataConfig(train=Path("tokens")), model=model)
    entries = []
    for run in plan_isoflop(base, BUDGETS, n_sizes=4):
        planned = run.planned()
        place = {"step": run.config.n_steps, "n_tokens": run.n_tokens, "elapsed_seconds": 1.0}
        place |= {"train_flops": run.train_flops}
        loss = LAW.loss(run.n_parameters, run.n_tokens)
        options = {name: getattr(run.config, name) for name in ("model", "n_steps", "batch_size")}
        rows = [place | {"loss": loss}, place | {"val_loss": loss}]
        write_run(folder / planned.folder, rows=rows, **options)
        entries.append(
            {"name": planned.name, "hash": planned.hash, "folder": planned.folder}
            | {"labels": planned.labels, "status": "finished", "seconds": 1.0}
        )
    (folder / "study.json").write_text(json.dumps({"kind": "scaling", "runs": entries}))
    flags = "--method vpnls,parabolas --resamples 20 --flops 1e13"
    assert main(["scaling", "fit", str(folder), "--out", str(folder), *flags.split()]) == 0
    return folder


def tables_of(section: Section) -> list[dict[str, list[str]]]:
    tables = [block for block in section.blocks if isinstance(block, Table)]
    return [{row[0].text: [cell.text for cell in row] for row in table.rows} for table in tables]


def test_laws_and_predictions_are_those_of_the_fits(study: Path) -> None:
    section = scaling_section([study], [study])
    assert section is not None
    laws, predictions = tables_of(section)
    assert list(laws) == list(predictions) == ["vpnls", "parabolas"]
    assert laws["vpnls"][1].startswith("1.7 (")
    assert laws["vpnls"][2].startswith("0.34 (")
    assert laws["parabolas"][2] == "–"
    fits = {fit.method: fit for fit in read_fits(study / "fit.json")}
    expected = fits["parabolas"].predict(1e13)
    assert f"{expected.loss.value:.4g}" in predictions["parabolas"][4]
    assert "What the laws say of 1e+13 FLOPs." in [
        block.caption for block in section.blocks if isinstance(block, Table)
    ]


def test_plots_show_the_runs_on_the_law_that_they_follow(study: Path) -> None:
    section = scaling_section([study], [study])
    assert section is not None
    isoflops, losses, sizes = [block for block in section.blocks if isinstance(block, Plot)]
    points = [trace for trace in isoflops.traces if trace.kind == "points"]
    lines = [trace for trace in isoflops.traces if trace.kind == "line"]
    assert [trace.name for trace in points] == [f"{budget:.3g} FLOPs" for budget in BUDGETS]
    for mine, line in zip(points, lines, strict=True):
        assert mine.colour == line.colour
        # A line is of C = kND with one k for all, which small models keep to within some per cent.
        assert np.interp(mine.x, line.x, line.y) == pytest.approx(np.array(mine.y), rel=0.05)
    assert {trace.name for trace in losses.traces} == {"runs", "", "vpnls", "parabolas"}
    law = next(trace for trace in sizes.traces if trace.name == "vpnls")
    assert law.x[-1] == pytest.approx(1e13)
    assert law.y[-1] == pytest.approx(
        read_fits(study / "fit.json")[0].law.optimum(1e13).n_parameters
    )


def test_warnings_of_the_fit_are_shown(study: Path, tmp_path: Path) -> None:
    record = json.loads((study / "fit.json").read_text())
    (tmp_path / "fit.json").write_text(json.dumps(record | {"warnings": ["mind the gap"]}))
    section = scaling_section([tmp_path], [])
    assert section is not None
    assert section.blocks[-1] == Notes(title="Warnings", notes=["mind the gap"])


def test_fit_is_found_in_the_study_or_beside_it(study: Path, tmp_path: Path) -> None:
    studies, sources = find_sources([study])
    assert title_of(studies, sources) == "Scaling study study"
    (tmp_path / "fits").mkdir()
    (study / "fit.json").rename(tmp_path / "fits" / "fit.json")
    try:
        (section,) = results(studies)
        assert "No law was fitted yet" in section.lead
        assert [type(block) for block in section.blocks] == [Plot]
        alone, no_runs = find_sources([tmp_path / "fits"])
        assert no_runs == []
        (section,) = results(alone)
        assert len([block for block in section.blocks if isinstance(block, Plot)]) == 2
        (section,) = results([*studies, *alone])
        assert len([block for block in section.blocks if isinstance(block, Plot)]) == 3
    finally:
        (tmp_path / "fits" / "fit.json").rename(study / "fit.json")


def test_page_of_a_study_holds_all_of_it(study: Path, tmp_path: Path) -> None:
    assert write_report([study], tmp_path / "out.html") == 16
    text = (tmp_path / "out.html").read_text()
    headings = ["Summary", "Scaling laws", "Curves", "Runs", "Configuration"]
    places = [text.index(f">{heading}</h2>") for heading in headings]
    assert places == sorted(places)


@pytest.mark.parametrize(
    "change", [{"fits": []}, {"level": 2}, {"flop_budget": "much"}, {"fits": [{}]}]
)
def test_damaged_fit_is_named(study: Path, tmp_path: Path, change: dict[str, object]) -> None:
    record = json.loads((study / "fit.json").read_text())
    (tmp_path / "fit.json").write_text(json.dumps(record | change))
    with pytest.raises(FormatError, match=r"fit\.json must hold .* of rslm scaling fit"):
        scaling_section([tmp_path], [])
