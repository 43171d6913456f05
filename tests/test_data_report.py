"""The report on a pipeline: its numbers, its tables, its page, of runs that are finished or not."""

import dataclasses
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pipeline_folders import Scripted, make_pipeline, run_stages

from rslm import _rslm, cli
from rslm.data.pipeline.tally import StepTally
from rslm.data_report import words
from rslm.data_report.extrapolate import Extrapolation, extrapolate
from rslm.data_report.numbers import report_record
from rslm.data_report.page import make_page, write_page
from rslm.data_report.view import PipelineView, read_view
from rslm.html_report.blocks import Bars, Passages

LONG = "The boat came back to the harbour in the last light of a cold day. " * 9
HOSTILE = "<script>window.hacked=1</script>\x1b[31m\u202eturned\x00</pre>"
OTHER = {"drops": {"language": "other_language"}, "language": "de"}
SHARDS = [
    [
        Scripted(text=HOSTILE, url=f"https://example.org/?q={HOSTILE}", **OTHER),
        Scripted(text="kurz", **OTHER),
        Scripted(text=LONG),
        Scripted(text="a b", drops={"quality.course": "gopher_too_few_words"}),
        Scripted(text="a c", drops={"quality.course": "gopher_too_few_words"}),
        Scripted(text=LONG + "a@b.org", edits={"pii": LONG + "|||EMAIL_ADDRESS|||"}),
    ],
    [
        Scripted(text="x" * 1_000_000, drops={"language": "language_score"}),
        Scripted(text=LONG, drops={"exact": "exact_duplicate"}),
        Scripted(text=LONG + "Once. More", edits={"quality.course": LONG + "Once."}),
        Scripted(text=LONG + "Twice."),
    ],
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of ten documents in two files."""
    path = tmp_path_factory.mktemp("pipeline")
    plan = make_pipeline(path, SHARDS)
    run_stages(plan, SHARDS)
    return plan.folder


@pytest.fixture(scope="module")
def view(folder: Path) -> PipelineView:
    return read_view(folder)


def stopped(folder: Path, n_tasks: int) -> PipelineView:
    """A run of the same documents that was stopped after so many tasks."""
    plan = make_pipeline(folder, SHARDS)
    run_stages(plan, SHARDS, until=n_tasks)
    return read_view(plan.folder)


def run_cli(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.exit_code(list(arguments))
    out, err = capsys.readouterr()
    return code, out, err


def steps_of(view: PipelineView) -> dict[str, Mapping[str, Any]]:
    return {step["step"]: step for step in report_record(view, None)["steps"]}


def test_shares_are_of_all_that_was_read_and_of_what_came_in(view: PipelineView) -> None:
    steps = steps_of(view)
    assert list(steps) == ["extract", "language", "quality.course", "exact", "pii"]
    assert {name: step["taken"]["documents"] for name, step in steps.items()} == {
        "extract": 10, "language": 10, "quality.course": 7, "exact": 5, "pii": 4,
    }  # fmt: skip
    shares = {
        (name, reason): (drop["documents"], drop["share_of_all"], drop["share_of_remaining"])
        for name, step in steps.items()
        for reason, drop in step["dropped"].items()
    }
    assert shares == {
        ("language", "other_language"): (2, 2 / 10, 2 / 10),
        ("language", "language_score"): (1, 1 / 10, 1 / 10),
        ("quality.course", "gopher_too_few_words"): (2, 2 / 10, 2 / 7),
        ("exact", "exact_duplicate"): (1, 1 / 10, 1 / 5),
    }
    kept = {name: step["kept"]["share_of_all"] for name, step in steps.items()}
    assert kept == dict(zip(steps, [1.0, 0.7, 0.5, 0.4, 0.4], strict=True))
    assert steps["exact"]["kept"]["share_of_remaining"] == 4 / 5


def test_bytes_characters_and_counts_are_those_of_the_documents(view: PipelineView) -> None:
    steps = steps_of(view)
    record = report_record(view, None)
    assert steps["language"]["dropped"]["language_score"]["bytes"] == 1_000_000
    # Five Latin letters and a mark that is three bytes.
    assert steps["extract"]["taken"]["bytes"] - steps["extract"]["taken"]["characters"] == 2
    kept = len(LONG) * 4 + len("|||EMAIL_ADDRESS|||Once.Twice.")
    assert steps["pii"]["kept"]["bytes"] == steps["pii"]["kept"]["characters"] == kept
    assert steps["pii"]["counts"] == {"emails": 1}
    assert record["languages"] == {"en": 8, "de": 2}
    assert record["languages_kept"] == {"en": 4}
    assert steps["quality.course"]["languages"] == {"en": 5}
    assert record["read"]["skipped"] == {"not_json": 2}
    assert record["read"]["records"] == 12
    assert record["tokens"] is None
    assert record["is_complete"]


def test_kept_documents_and_drops_are_all_that_came_in(view: PipelineView) -> None:
    for step in view.steps:
        dropped = sum(amount.documents for amount in step.tally.drops.values())
        assert step.tally.taken.documents == step.tally.given.documents + dropped
        assert step.n_read == 10


def test_table_says_it_in_two_columns(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run_cli(capsys, "data", "report", str(folder))
    assert (code, err) == (0, "")
    lines = [re.sub(" {2,}", " | ", line.strip()) for line in out.splitlines()]
    assert "All stages are finished." in lines
    heads = "step, reason | documents in | dropped | % of all | % of remaining | kept"
    assert any(line.startswith(heads) for line in lines)
    assert "quality.course | 7 | 2 | 20.0 | 28.6 | 5 | 50.0" in lines
    assert "gopher_too_few_words | 2 | 20.0 | 28.6" in lines
    assert "exact | 5 | 1 | 10.0 | 20.0 | 4 | 40.0" in lines
    assert "not_json | 2" in lines
    assert "emails | 1 | pii" in lines
    assert f"program | rslm | {_rslm.VERSION}" in lines
    digest = hashlib.sha256(b"a model").hexdigest()
    assert f"model of languages | model.ftz | {digest[:12]}" in lines
    assert "en | 8 | 80.0 | 4 | 50.0" in lines
    assert "de | 2 | 20.0 | 0 | 0" in lines
    assert "2 | 1 | 2 | exact.cluster" in lines


def test_json_is_the_same_at_every_reading(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [run_cli(capsys, "data", "report", str(folder), "--json")[1] for _ in range(2)]
    assert texts[0] == texts[1]
    record = json.loads(texts[0])
    assert list(record) == [
        *["is_complete", "stages", "read", "steps", "work", "languages", "languages_kept"],
        *["tokens", "made_with", "extrapolation"],
    ]
    assert list(record["steps"][0]) == [
        *["stage", "step", "taken", "kept", "dropped", "lines_removed", "counts", "histogram"],
        *["languages", "cpu_seconds", "bytes_per_second"],
    ]
    amount = ["documents", "bytes", "characters", "share_of_all", "share_of_remaining"]
    assert list(record["steps"][0]["kept"]) == amount


def test_run_that_was_stopped_counts_what_is_finished(tmp_path: Path) -> None:
    view = stopped(tmp_path, 1)
    assert words.state(view) == (
        "Not finished: filter has done 1 of 2 tasks; "
        "still to come: exact.sign, exact.join, exact.cluster, finalize."
    )
    steps = steps_of(view)
    assert list(steps) == ["extract", "language", "quality.course"]
    # Of the six documents of the first file.
    assert steps["language"]["dropped"]["other_language"]["share_of_all"] == 2 / 6
    assert not report_record(view, None)["is_complete"]


def test_last_pass_that_was_stopped_is_held_against_the_same_files(tmp_path: Path) -> None:
    view = stopped(tmp_path, 7)
    done = [stage.name for stage in view.stages if stage.is_complete]
    assert done == ["filter", "exact.sign", "exact.join", "exact.cluster"]
    steps = steps_of(view)
    # One shard of six documents went through the last pass, and both through the first.
    assert steps["pii"]["taken"]["documents"] == 2
    assert steps["pii"]["kept"]["share_of_all"] == 2 / 6
    assert steps["language"]["kept"]["share_of_all"] == 7 / 10
    # The other shard would give as much.
    found = extrapolate(view, 2, 1)
    assert found is not None
    assert found.documents == 4
    assert found.not_begun == []


def test_run_of_which_nothing_is_finished_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    view = stopped(tmp_path, 0)
    assert view.steps == []
    assert extrapolate(view, 10, 1) is None
    page = tmp_path / "page.html"
    code, _, err = run_cli(
        capsys, "data", "report", str(view.plan.folder), "--html", str(page), "--files", "9"
    )
    assert code == 0, err
    code, out, _ = run_cli(capsys, "data", "report", str(view.plan.folder))
    assert code == 0
    assert "filter has done 0 of 2 tasks" in out


@pytest.mark.parametrize("name", ["plan.json", "filter/00000.report.json"])
def test_page_does_not_replace_what_the_pipeline_wrote(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    folder = stopped(tmp_path, 1).plan.folder
    before = (folder / name).read_bytes()
    code, _, err = run_cli(capsys, "data", "report", str(folder), "--html", str(folder / name))
    assert code == 2
    assert err.startswith("error: html must not be among the files of the pipeline, got ")
    assert (folder / name).read_bytes() == before


def test_marks_of_an_earlier_config_do_not_count(tmp_path: Path) -> None:
    plan = make_pipeline(tmp_path, SHARDS)
    run_stages(plan, SHARDS)
    path = plan.path("filter", 1, "report.json")
    path.write_text(path.read_text().replace(plan.task_hash("filter", 1), "0" * 32))
    view = read_view(plan.folder)
    assert [len(stage.marks) for stage in view.stages] == [1, 0, 0, 0, 0]


def test_extrapolation_grows_with_the_files(view: PipelineView) -> None:
    found = extrapolate(view, 200, 4)
    assert isinstance(found, Extrapolation)
    # Passes have 5 and 3 steps, and 2 tasks each; half a second a step.
    per_stage = {"filter": 5, "exact.sign": 1, "exact.join": 0.5, "exact.cluster": 0.5}
    cpu = {name: 100 * seconds for name, seconds in per_stage.items()} | {"finalize": 300}
    assert found.n_measured == 2
    assert found.cpu_seconds == pytest.approx(math.fsum(cpu.values()))
    # Clusters are found by one process, on however many cores.
    elapsed = (found.cpu_seconds - cpu["exact.cluster"]) / 4 + cpu["exact.cluster"]
    assert found.elapsed_seconds == pytest.approx(elapsed)
    assert found.documents == 400
    assert found.input_bytes == 100 * sum(shard.n_bytes for shard in view.plan.shards)
    assert (found.tokens, found.cpu_error) == (None, None)
    assert "200 files like the 2 measured" in words.forecast(found)[0]


def test_options_that_do_not_fit_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refusal(*flags: str, at: Path = folder) -> str:
        code, _, err = run_cli(capsys, "data", "report", str(at), *flags)
        assert code == 2
        assert err.count("\n") == 1
        return err

    assert "files must be at least 1, got 0" in refusal("--files", "0")
    assert "cpus must come with files" in refusal("--cpus", "2")
    assert "holds no plan.json" in refusal(at=tmp_path)
    assert "html must be a file" in refusal("--html", str(tmp_path))
    assert str(tmp_path / "no") in refusal("--html", str(tmp_path / "no" / "page.html"))


def test_scores_of_classifiers_are_drawn(view: PipelineView) -> None:
    tally = StepTally(histogram=Counter({"0.02": 3, "0.11": 1}))
    first = view.stages[0]
    marks = {n: dataclasses.replace(mark, steps=mark.steps | {"classify.spam": tally})
             for n, mark in first.marks.items()}  # fmt: skip
    stages = dict(view.report.stages) | {first.name: dataclasses.replace(first, marks=marks)}
    page = make_page(PipelineView(report=dataclasses.replace(view.report, stages=stages)), None)
    (section,) = [section for section in page.sections if section.title == "Languages and scores"]
    bars = section.blocks[-1]
    assert isinstance(bars, Bars)
    assert [(bar.name, *bar.texts) for bar in bars.bars] == [
        ("0.00 to 0.05", "6"), ("0.05 to 0.10", "0"), ("0.10 to 0.15", "2"),
    ]  # fmt: skip


def test_page_holds_examples_with_the_number_that_decided(view: PipelineView) -> None:
    page = make_page(view, None)
    (passages,) = [b for s in page.sections if s.title == "Examples" for b in s.blocks]
    assert isinstance(passages, Passages)
    groups = {group.title: group for group in passages.groups}
    short = groups["quality.course: gopher_too_few_words"]
    assert short.note == "2 documents; fewer than 50 words"
    assert {p.note.split("; ")[-1] for p in short.passages} == {"words: 2, must be at least 50"}
    (other,) = [p for p in groups["language: other_language"].passages if p.title != "0-1"]
    assert other.title == f"https://example.org/?q={HOSTILE}"
    assert other.note.endswith("; id 0-0")
    (long,) = groups["language: language_score"].passages
    assert long.text.endswith("[... 998,800 more characters]")
    # Reasons stand before what is kept.
    titles = [title for title in groups if title.startswith("language")]
    assert titles == [
        "language: other_language", "language: language_score", "language: kept",
    ]  # fmt: skip


def test_page_is_small_and_needs_no_plotly(
    view: PipelineView, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rslm.html_report.page._plotly", None)
    n_bytes = write_page(view, tmp_path / "page.html", extrapolate(view, 100_000, 64))
    data = (tmp_path / "page.html").read_bytes()
    assert len(data) == n_bytes < 150_000
    assert b"window.hacked=1</script>" not in data
    assert not re.search(rb"[\x00-\x08\x0b-\x1f]", data)
    assert "\u202e".encode() not in data
