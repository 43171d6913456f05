"""What a report says of run folders and studies, and what it says to bad input."""

import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from run_folders import write_run, write_study

from rslm.architecture import TransformerConfig
from rslm.cli import main
from rslm.errors import FormatError
from rslm.experiment import report_sections
from rslm.experiment.report import (
    find_sources,
    group_name,
    make_page,
    read_views,
    title_of,
    write_report,
)
from rslm.experiment.report_runs import MAX_CHARACTERS, MAX_MOMENTS, RunView, read_samples
from rslm.html_report.blocks import Cell, Curves, Notes, Table, Texts
from rslm.train_config import OptimizerConfig

RELU2 = TransformerConfig(vocab_size=512, ffn="relu2")
SWIGLU = TransformerConfig(vocab_size=512)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five runs: two arms of two seeds, and one that diverged."""
    folder = tmp_path_factory.mktemp("report") / "runs"
    for seed in (0, 1):
        write_run(folder / f"ffn=relu2,seed={seed}", model=RELU2, seed=seed)
        write_run(folder / f"ffn=swiglu,seed={seed}", model=SWIGLU, seed=seed)
    hot = OptimizerConfig(learning_rate=1.0)
    write_run(folder / "hot", model=SWIGLU, optimizer=hot, diverges_at=70)
    return folder


@pytest.fixture(scope="module")
def views(folder: Path) -> list[RunView]:
    return read_views(find_sources([folder])[1])


def table_of(block: object) -> dict[str, dict[str, Cell]]:
    """A table's cells by row and heading."""
    assert isinstance(block, Table)
    heads = [title for title, _ in block.columns]
    return {row[0].text: dict(zip(heads, row, strict=True)) for row in block.rows}


def test_table_holds_the_numbers_of_the_runs(views: list[RunView]) -> None:
    runs = table_of(report_sections.runs(views).blocks[0])
    assert set(runs) == {view.name for view in views}
    hot = runs["hot"]
    assert (hot["status"].text, hot["status"].tone) == ("diverged at step 70", "bad")
    assert (hot["not finite"].value, hot["tokens"].value) == (1, 70 * 1024)
    one = runs["ffn=relu2,seed=1"]
    numbers = next(view for view in views if view.name == "ffn=relu2,seed=1").numbers
    assert one["status"].text == "finished"
    assert one["val loss"].value == numbers["val_loss"]
    assert one["best val loss"].value == numbers["best_val_loss"] <= numbers["val_loss"]
    assert one["tokens/s"].value == 2048
    assert one["time"].text == "1m 40s"
    assert one["parameters"].value == numbers["n_parameters"] > 0


def test_best_run_is_first_and_named_in_the_summary(views: list[RunView]) -> None:
    best = min(views, key=lambda view: view.numbers["best_val_loss"])
    assert report_sections.ranked(views)[0] is best
    section = report_sections.runs(views)
    assert next(iter(table_of(section.blocks[0]))) == best.name
    lead = report_sections.lead(views)
    assert lead.startswith("5 runs: 4 finished, 1 diverged. Best is")
    assert f"{best.name} with a validation loss of {best.numbers['best_val_loss']:.4f}" in lead


def test_runs_of_different_vocabularies_are_ranked_by_bits_per_byte(views: list[RunView]) -> None:
    assert report_sections.score_key(views) == "best_val_loss"
    other = replace(views[0], options=views[0].options | {"model.vocab_size": 1024})
    assert report_sections.score_key([other, *views[1:]]) == "best_bits_per_byte"
    unseen = [replace(v, numbers=v.numbers | {"best_val_loss": None}) for v in views]
    assert report_sections.score_key(unseen) == "loss"


def test_runs_that_differ_in_the_seed_share_a_group(views: list[RunView]) -> None:
    assert {view.name: view.group for view in views} == {
        "ffn=relu2,seed=0": "ffn=relu2",
        "ffn=relu2,seed=1": "ffn=relu2",
        "ffn=swiglu,seed=0": "ffn=swiglu",
        "ffn=swiglu,seed=1": "ffn=swiglu",
        "hot": "hot",
    }
    spread = table_of(report_sections.runs(views).blocks[1])
    values = [v.numbers["best_val_loss"] for v in views if v.group == "ffn=relu2"]
    assert list(spread) == ["ffn=relu2", "ffn=swiglu"]
    assert spread["ffn=relu2"]["mean"].value == pytest.approx(sum(values) / 2)
    expected = abs(values[0] - values[1]) / 2**0.5
    assert spread["ffn=relu2"]["standard deviation"].value == pytest.approx(expected)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["only"], "only"),
        (["base,seed=0", "base,seed=1"], "base"),
        (["lr=1e-3-s1", "lr=1e-3-s2"], "lr=1e-3"),
        (["run10", "run11", "run12"], "run10 and 2 more"),
        (["seed=0", "seed=1"], "seed=0 and 1 more"),
        (["a", "ab"], "a and 1 more"),
    ],
)
def test_groups_are_named_by_what_names_share(names: list[str], expected: str) -> None:
    assert group_name(names) == expected
    assert group_name(names, [*names, "else"]) == expected


def test_group_is_not_called_what_another_run_begins_with() -> None:
    assert group_name(["run-1", "run-2"], ["run-1", "run-2", "run-3"]) == "run-1 and 1 more"


def test_differences_are_those_options_alone(views: list[RunView]) -> None:
    section = report_sections.configuration(views)
    rows = table_of(section.blocks[0])
    assert set(rows) == {"model.ffn", "seed", "optimizer.learning_rate"}
    assert rows["model.ffn"]["ffn=relu2,seed=0"].text == "relu2"
    assert rows["optimizer.learning_rate"]["hot"].value == 1.0
    assert "differ in 3 options" in section.lead
    assert "a CPU, rslm 0.1, torch 2.8" in section.lead
    many = [replace(view, name=f"{view.name} {n}") for n in range(2) for view in views]
    turned = table_of(report_sections.configuration(many).blocks[0])
    assert turned["hot 1"]["optimizer.learning_rate"].value == 1.0


def test_curves_hold_every_run_over_every_axis(views: list[RunView]) -> None:
    section = report_sections.curves(views)
    assert section is not None
    (block,) = section.blocks
    assert isinstance(block, Curves)
    assert [line.name for line in block.lines] == [view.name for view in views]
    assert next(iter(block.metrics.values())) == ("val_loss",)
    hot = next(line for line in block.lines if line.name == "hot").series["loss"]
    assert set(hot.x) == {"step", "n_tokens", "train_flops", "elapsed_seconds"}
    assert hot.x["n_tokens"] == 1024
    assert len(hot.y) == 70
    assert hot.y[-1] != hot.y[-1]


def test_samples_are_read_by_step_and_cut(tmp_path: Path, folder: Path) -> None:
    samples = read_samples(folder / "hot" / "samples.md")
    assert samples == {50: "sample at 50\n\nof hot\n――――――\nsecond"}
    path = tmp_path / "samples.md"
    path.write_text("".join(f"## Step {n:,}\n\n    {'x' * 5000}\n\n" for n in range(1000, 1100)))
    many = read_samples(path)
    assert (len(many), min(many), max(many)) == (MAX_MOMENTS, 1000, 1099)
    assert all(len(text) <= MAX_CHARACTERS + 2 for text in many.values())
    assert read_samples(tmp_path / "none.md") == {}
    path.write_bytes(b"\xff no section")
    assert read_samples(path) == {}


def test_study_says_how_runs_ended(tmp_path: Path) -> None:
    path = write_study(
        tmp_path / "study",
        [
            {"labels": {"seed": 0}, "status": "finished", "options": {"model": SWIGLU}},
            {"labels": {"seed": 1}, "status": "failed", "message": "no disk",
             "options": {"model": SWIGLU, "seed": 1}},
            {"labels": {"seed": 2}, "status": "waiting"},
        ],
        kind="ablate",
    )  # fmt: skip
    studies, sources = find_sources([path])
    assert [(source.name, source.status) for source in sources] == [
        ("seed=0", "finished"),
        ("seed=1", "failed"),
    ]
    page = make_page(read_views(sources), studies, title=title_of(studies, sources))
    assert page.title == "Ablation study"
    assert "1 failed" in page.lead
    assert page.lead.endswith("1 more is still to begin.")
    runs = next(section for section in page.sections if section.title == "Runs")
    assert runs.blocks[-1] == Notes(title="What runs said of their end", notes=["seed=1: no disk"])


def test_runs_are_found_once_and_told_apart_by_their_paths(tmp_path: Path) -> None:
    for name in ("a/run", "b/run", "b/other"):
        write_run(tmp_path / name, model=SWIGLU)
    _, sources = find_sources([tmp_path / "a", tmp_path / "b", tmp_path / "b" / "run"])
    assert [source.name for source in sources] == ["a/run", "other", "b/run"]


def test_run_that_has_barely_begun_makes_a_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", model=SWIGLU)
    (run / "metrics.jsonl").unlink()
    (run / "samples.md").unlink()
    (run / "env.json").unlink()
    assert write_report([run], tmp_path / "out.html") == 1
    assert "None has a loss yet" in (tmp_path / "out.html").read_text()


def test_page_of_a_single_run_lists_its_options(folder: Path) -> None:
    views = read_views(find_sources([folder / "hot"])[1])
    page = make_page(views, [], title="hot")
    assert [section.title for section in page.sections] == [
        *["Summary", "Curves", "Runs", "Configuration", "Samples"]
    ]
    assert table_of(page.sections[3].blocks[0])["model.ffn"]["value"].text == "swiglu"
    assert isinstance(page.sections[4].blocks[0], Texts)


def test_run_with_options_of_another_version_is_shown(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", model=SWIGLU)
    text = (run / "config.toml").read_text()
    (run / "config.toml").write_text(text.replace("[model]\n", "[model]\nflux = 3\n"))
    (view,) = read_views(find_sources([run])[1])
    assert view.options["model.flux"] == 3
    assert view.numbers["n_parameters"] is None


def test_command_writes_the_page_and_says_so(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.html"
    out.write_text("before")
    assert main(["report", str(folder), "--out", str(out), "--title", "My <b> runs"]) == 0
    text = out.read_text()
    assert "<h1>My &lt;b&gt; runs</h1>" in text
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"wrote {out}: 5 runs, ")
    assert [path.name for path in tmp_path.iterdir()] == ["out.html"]


def spoil_study(folder: Path) -> str:
    folder.mkdir()
    (folder / "study.json").write_text('{"runs": [{"name": "a", "folder": "../a"}]}')
    return str(folder)


def spoil_metrics(folder: Path) -> str:
    write_run(folder, model=SWIGLU)
    (folder / "metrics.jsonl").write_text("{\n")
    return str(folder)


def spoil_encoding(folder: Path) -> str:
    write_run(folder, model=SWIGLU)
    (folder / "metrics.jsonl").write_bytes(b"\xff\xfe\n")
    return str(folder)


def make_empty(folder: Path) -> str:
    folder.mkdir()
    return str(folder)


def spoil_tokens(folder: Path) -> str:
    write_run(folder, model=SWIGLU)
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 3.0, "n_tokens": NaN}\n')
    return str(folder)


def spoil_model(folder: Path) -> str:
    write_run(folder, model=SWIGLU)
    (folder / "config.toml").write_text("model = 3\n")
    return str(folder)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (spoil_tokens, "metrics.jsonl, line 1: n_tokens must be finite, got nan"),
        (spoil_model, "model must be a table in"),
        (str, "must be a run folder or a study, and does not exist"),
        (make_empty, "must be or hold run folders or studies, and does not"),
        (spoil_study, "study.json: a run must have a name and a folder's name"),
        (spoil_metrics, "metrics.jsonl, line 1 is not JSON"),
        (spoil_encoding, "metrics.jsonl must be UTF-8, got an invalid byte at offset 0"),
        (lambda _: "", "runs must name at least one run folder or study"),
    ],
)
def test_bad_input_gets_one_sentence_and_no_page(
    make: Callable[[Path], str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out.html"
    assert main(shlex.split(f"report {make(tmp_path / 'given')} --out {out}")) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not list(tmp_path.glob("out*"))


def test_out_that_is_a_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"out must be a file"):
        write_report([folder], tmp_path)


def test_place_of_the_page_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    out = tmp_path / "missing" / "x.html"
    with pytest.raises(FileNotFoundError, match="folder to write it into does not exist") as found:
        write_report([tmp_path / "nothing"], out)
    assert found.value.filename == str(out)


def test_damaged_study_is_named_and_an_empty_one_shown(tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text("{")
    with pytest.raises(FormatError, match=r"study\.json is not JSON"):
        find_sources([tmp_path])
    (tmp_path / "study.json").write_text(json.dumps({"runs": []}))
    assert write_report([tmp_path], tmp_path / "out.html") == 0
    assert "There are no runs here yet." in (tmp_path / "out.html").read_text()
