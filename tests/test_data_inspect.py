"""A document's way through a pipeline: found, taken once more, and the same as the run wrote."""

import dataclasses
import itertools
import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pipeline_folders import Scripted, make_pipeline, run_here, run_stages
from pipelines import ALL_STEPS, config_of, write_inputs

from rslm import cli
from rslm.data.document import Document
from rslm.data.pipeline.places import documents_before, rows_dropped
from rslm.data.pipeline.plan import make_plan
from rslm.data.pipeline.shards import read_shard
from rslm.data.pipeline.steps import Decision
from rslm.data_report import again
from rslm.data_report.details import of_decision, positions
from rslm.data_report.find import (
    KEPT,
    Closest,
    find_at_random,
    find_by_id,
    find_by_url,
    likeness,
)
from rslm.data_report.links import kept_of, members_of, read_links
from rslm.data_report.trace import DROPPED, Stop, Trace, trace, trace_all
from rslm.data_report.view import PipelineView, read_view
from rslm.data_report.way import MAX_LINES, MAX_WIDTH, difference, print_trace, result, trace_record
from rslm.errors import FormatError
from rslm.token_file import TokenFile


@pytest.fixture(scope="module", params=["lines last", "lines before", "no lines"])
def folder(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A run of 120 documents in three files, through all steps that need no model.

    Without lines both kinds of copies are dropped by the last pass, one behind the other.
    """
    path = tmp_path_factory.mktemp("pipeline")
    inputs = write_inputs(path / "in", n_files=3, n_documents=40)
    steps: dict[str, Any] = dict(ALL_STEPS)
    if request.param == "no lines":
        del steps["lines"]
    else:
        is_before = request.param == "lines before"
        steps["lines"] = steps["lines"] | {"before_minhash": is_before}
    plan = make_plan(config_of(inputs, path / "out", **steps))
    run_here(plan)
    return plan.folder


@pytest.fixture(scope="module")
def view(folder: Path) -> PipelineView:
    return read_view(folder)


@pytest.fixture(scope="module")
def traces(view: PipelineView) -> dict[str, Trace]:
    """The ways of all documents."""
    ids = [entry.id for entry in view.report.entries("filter")]
    return {id: trace(view, way) for id in ids for way in find_by_id(view, id)}


def run_cli(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.exit_code(["data", "inspect", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_ways_end_as_the_report_counts(view: PipelineView, traces: dict[str, Trace]) -> None:
    assert len(traces) == 120
    counted = Counter[str]()
    for step in view.steps:
        counted.update({reason: a.documents for reason, a in step.tally.drops.items()})
    found = Counter(
        next((stop.reason for stop in each.stops if stop.verdict == DROPPED), KEPT)
        for each in traces.values()
    )
    assert found == counted | Counter({KEPT: view.steps[-1].tally.given.documents})
    # All that the pipeline can do is among them.
    assert {"gopher_too_few_words", "exact_duplicate", "near_duplicate"} <= found.keys()


def test_steps_taken_once_more_say_what_the_run_wrote(traces: dict[str, Trace]) -> None:
    assert [s.remark for each in traces.values() for s in each.stops if s.remark] == []


def test_text_at_the_end_is_what_was_written(view: PipelineView, traces: dict[str, Trace]) -> None:
    written = {
        document.id: document.text
        for shard in range(3)
        for document in read_shard(view.plan.path("finalize", shard, "jsonl.zst"))
    }
    ends = {id: each.stops[-1].after for id, each in traces.items() if not each.is_dropped}
    assert ends == written
    # What masking gives is what is written, and each step begins where another ended.
    for each in traces.values():
        texts = [stop for stop in each.stops if stop.before is not None]
        for one, other in itertools.pairwise(texts):
            assert one.after == other.before


def test_rule_that_dropped_a_document_is_the_one_out_of_its_limit(
    traces: dict[str, Trace],
) -> None:
    stops = [stop for each in traces.values() for stop in each.stops if stop.measures]
    for stop in stops:
        broken = [measure.reason for measure in stop.measures if not measure.holds]
        assert broken[:1] == ([stop.reason] if stop.reason else [])
    assert any(stop.reason for stop in stops)


@pytest.mark.parametrize("kind", ["exact", "minhash"])
def test_clusters_of_single_documents_are_those_that_clustering_counted(
    view: PipelineView, kind: str
) -> None:
    plan, sizes = view.plan, Counter[str]()
    for shard in range(3):
        for row, _ in enumerate(documents_before(plan, f"{kind}.sign", shard)):
            members = members_of(plan, kind, (shard, row))
            assert (shard, row) in members
            is_dropped = row in rows_dropped(plan, f"{kind}.cluster", shard)
            assert is_dropped == (kept_of(plan, kind, members) != (shard, row))
            if len(members) > 1 and not is_dropped:
                sizes[str(len(members))] += 1
    assert sizes == view.tally(f"{kind}.cluster", f"{kind}.cluster").histogram
    assert sizes


def test_dropped_copies_name_the_one_that_is_kept(traces: dict[str, Trace]) -> None:
    for each in traces.values():
        for stop in each.stops:
            if stop.reason in ("exact_duplicate", "near_duplicate"):
                kept = stop.facts["kept of it"]
                assert kept in traces
                assert kept != each.id
            if stop.step in ("exact", "minhash") and stop.facts["cluster"].endswith(" documents"):
                assert (stop.facts["kept of it"] == "this one") == (stop.verdict != DROPPED)
            if stop.reason == "near_duplicate":
                assert 0 < float(stop.facts["similarity to it"].split(";")[0]) <= 1


def test_language_is_held_against_what_is_to_be_kept(tmp_path: Path) -> None:
    page = Document(text="", id="1", metadata={"language": "de", "language_score": 0.5})
    decision = Decision(document=page)
    config = config_of(tmp_path, tmp_path, language={"languages": ["en", "fr"], "min_score": 0.7})
    facts, _ = of_decision(config, "language", page, decision)
    assert facts == {"language": "de, must be en or fr", "score": "0.5, must be at least 0.7"}
    config = config_of(tmp_path, tmp_path, language={"languages": ["any"]})
    assert of_decision(config, "language", page, decision)[0] == {"language": "de", "score": "0.5"}


def test_score_is_held_against_its_limits(tmp_path: Path) -> None:
    page = Document(text="", id="1", metadata={"scores": {"wiki": 0.25}})
    for limits, must in (
        ({}, ""),
        ({"min_score": 0.3}, ", must be at least 0.3"),
        ({"min_score": 0.1, "max_score": 0.9}, ", must be at least 0.1 and at most 0.9"),
    ):
        classifier = {"model": str(tmp_path / "wiki.bin"), "label": "good"} | limits
        config = config_of(tmp_path, tmp_path, classifiers=[classifier])
        facts, _ = of_decision(config, "classify.wiki", page, Decision(document=page))
        assert facts == {"score for good": f"0.25{must}"}


def test_tokens_are_found_by_what_they_are(tmp_path: Path, byte_tokenizer: Any) -> None:
    texts = ["one", "two of them", "one", "ones", "two or them"]
    (tmp_path / "text.txt").write_text("<|endoftext|>".join(texts))
    byte_tokenizer.encode_files([tmp_path / "text.txt"], tmp_path / "tokens")
    tokens = TokenFile.open(tmp_path / "tokens")
    assert positions(tokens, byte_tokenizer.encode("one")) == [(0, 0), (2, 16)]
    assert positions(tokens, byte_tokenizer.encode("ones")) == [(3, 20)]
    assert positions(tokens, byte_tokenizer.encode("two or them")) == [(4, 25)]
    assert positions(tokens, byte_tokenizer.encode("three")) == []


def test_damaged_links_are_named(tmp_path: Path, view: PipelineView) -> None:
    path = view.plan.path("minhash.join", 0, "bin")
    whole = path.read_bytes()
    draw = random.Random(0)
    for n in (0, 10, 47, len(whole) - 1, *draw.sample(range(len(whole)), 5)):
        (tmp_path / "cut.bin").write_bytes(whole[:n])
        with pytest.raises(FormatError, match=r"cut\.bin: must be a file of links"):
            read_links(tmp_path / "cut.bin")
    with pytest.raises(FormatError, match="of another kind"):
        read_links(view.plan.path("minhash.cluster", 0, "bin"))


def test_id_is_found_as_crawls_write_it(view: PipelineView) -> None:
    (way,) = find_by_id(view, " <1-7>\n")
    assert [(entry.stage, entry.shard, entry.number) for entry in way][:1] == [("filter", 1, 7)]


def test_unknown_names_get_the_closest_one(view: PipelineView) -> None:
    with pytest.raises(ValueError, match=r"id must be .* got '2-399'; the closest is '2-39'$"):
        find_by_id(view, "2-399")
    with pytest.raises(ValueError, match=r"reason must be one of kept, .*got 'no reason'"):
        find_at_random(view, 3, reason="no reason", seed=0)
    assert Closest("a").complaint("id").endswith("none was yet")


def test_names_without_end_are_cut_in_messages() -> None:
    closest = Closest("i" * 1_000_000)
    closest.offer("i" * 2_000_000)
    assert "and 999,700 more characters; the closest is 'iii" in closest.complaint("id")
    assert len(closest.complaint("id")) < 1000


@pytest.mark.parametrize(
    ("wanted", "name", "expected"),
    [
        ("", "abc", 0), ("abc", "", 0), ("abc", "abc", 6), ("b", "abc", 2), ("abcd", "abxd", 3),
        ("aaa", "aa", 2), ("xbc", "abc", 2),
    ],
)  # fmt: skip
def test_likeness_counts_both_ends(wanted: str, name: str, expected: int) -> None:
    assert likeness(wanted, name) == expected


def test_documents_at_random_are_the_same_each_time_and_all_there(view: PipelineView) -> None:
    ways = find_at_random(view, 1000, reason=None, seed=0)
    assert sorted(way[0].id for way in ways) == sorted(e.id for e in view.report.entries("filter"))
    # From the end back is the same way as from the beginning on.
    assert all(way == find_by_id(view, way[0].id)[0] for way in ways)
    copies = find_at_random(view, 3, reason="near_duplicate", seed=0)
    assert {way[-1].reason for way in copies} == {"near_duplicate"}
    kept = find_at_random(view, 5, reason=KEPT, seed=0)
    assert {(way[-1].stage, way[-1].reason) for way in kept} == {("finalize", "")}
    assert kept == find_at_random(view, 5, reason=KEPT, seed=0)
    assert kept != find_at_random(view, 5, reason=KEPT, seed=1)


def test_shards_are_read_once_for_all_documents_at_random(
    view: PipelineView, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Counter[str]()

    def count(owner: Any, name: str) -> None:
        function = getattr(owner, name)

        def counted(*given: Any) -> Any:
            read[f"{name} {given[1:] or given}"] += 1
            return function(*given)

        monkeypatch.setattr(owner, name, counted)

    # All entries once to draw from, and those before the last pass once more.
    count(type(view.report), "entries_of")
    ways = find_at_random(view, 1000, reason=None, seed=0)
    assert max(read.values()) == 2
    alone = [trace(view, way) for way in ways]
    read.clear()
    count(again, "inputs")
    count(again, "read_shard")
    assert list(trace_all(view, ways)) == alone
    assert len(read) > 3
    assert set(read.values()) == {1}


def test_examples_of_the_report_are_those_at_random(view: PipelineView) -> None:
    drawn = find_at_random(view, 20, reason="gopher_too_few_words", seed=view.plan.config.seed)
    shown = [s["id"] for s in view.samples() if s["reason"] == "gopher_too_few_words"]
    assert [way[-1].id for way in drawn] == shown


URL = "https://example.org/page?a=1&b=<2>"
SHARDS = [
    [
        Scripted(text="one", drops={"language": "other_language"}, url=URL),
        Scripted(text="\x1b[31m"),
    ],
    [Scripted(text="two\u202e\nthree", url=URL)],
]


def test_way_is_told_though_steps_cannot_be_taken_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = make_pipeline(tmp_path, SHARDS)
    run_stages(plan, SHARDS, until=2)
    # Its language model is none.
    code, out, err = run_cli(capsys, str(plan.folder), "--url", URL)
    assert (code, err) == (0, "")
    assert "result    dropped by language: other_language (in none of the languages" in out
    assert "the steps cannot be taken once more" in out
    code, out, _ = run_cli(capsys, str(plan.folder), "1-0")
    assert "result    kept so far; later stages are not finished" in out
    # And then the input is gone.
    (tmp_path / "in" / "part-0.jsonl").unlink()
    code, out, _ = run_cli(capsys, str(plan.folder), "0-0")
    assert code == 0
    assert "the input cannot be read any more: No such file" in out
    (tmp_path / "in" / "part-1.jsonl").write_text('{"id": "another", "text": "x"}\n')
    assert "the input is not the one that was read" in run_cli(capsys, str(plan.folder), "1-0")[1]


def test_url_that_no_document_has_gets_the_closest(tmp_path: Path) -> None:
    plan = make_pipeline(tmp_path, SHARDS)
    run_stages(plan, SHARDS, until=2)
    view = read_view(plan.folder)
    with pytest.raises(ValueError, match=re.escape(f"the closest is {URL!r}")):
        find_by_url(view, URL[:-1])


def test_what_ended_a_worker_is_not_taken_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_pipeline(tmp_path, SHARDS)
    run_stages(plan, SHARDS, until=2)
    (way,) = find_by_id(read_view(plan.folder), "0-0")
    hung = [entry.__class__(**vars(entry) | {"step": "skip", "reason": "extract_timeout"})
            for entry in way]  # fmt: skip
    monkeypatch.setattr("rslm.data_report.trace.filter_steps", None)
    found = trace(read_view(plan.folder), hung)
    assert found.stops[0].remark == "not taken once more, since it ended a worker"
    assert result(found).startswith("dropped by skip: extract_timeout (extract took longer")


def test_printed_way_shows_numbers_and_differences(
    view: PipelineView, traces: dict[str, Trace], capsys: pytest.CaptureFixture[str]
) -> None:
    edited = next(
        id for id, each in traces.items() if any(stop.verdict == "edited" for stop in each.stops)
    )
    code, out, err = run_cli(capsys, str(view.plan.folder), edited)
    assert (code, err) == (0, "")
    assert f"id        {edited}\n" in out
    assert "  --- before\n  +++ after\n" in out
    assert re.search(r"\n  words +\d+  at least 50\n", out)
    short = next(id for id, each in traces.items() if each.stops[-1].reason.startswith("gopher"))
    _, out, _ = run_cli(capsys, str(view.plan.folder), short)
    assert re.search(r"\n  words +5  at least 50 +<- gopher_too_few_words\n", out)
    assert not re.search("[\x00-\x09\x0b-\x1f]", out)


def test_hostile_texts_steer_no_terminal(
    traces: dict[str, Trace], capsys: pytest.CaptureFixture[str]
) -> None:
    text = "\x1b[31mred \u202eturned\x00\r\x07\x9b"
    stop = Stop(
        stage="s", step="written", verdict=KEPT, reason=text, facts={text: text}, after=text
    )
    print_trace(dataclasses.replace(traces["0-0"], id=text, stops=[stop]))
    out = capsys.readouterr().out
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", out)
    assert r"| \x1b[31mred \u202eturned\x00\r\x07\x9b" in out


def test_json_holds_whole_texts(
    view: PipelineView, traces: dict[str, Trace], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run_cli(capsys, str(view.plan.folder), "0-0", "--json")
    (record,) = json.loads(out)
    assert code == 0
    assert record == json.loads(json.dumps(trace_record(traces["0-0"])))
    assert list(record) == [
        *["id", "url", "source", "shard", "number", "files", "result", "steps"],
    ]
    assert record["steps"][1]["measures"][0]["limit"] == 50


def test_difference_of_long_texts_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    from rslm.data_report.way import _cut

    before = "\n".join(f"{n} " + "x" * 1000 for n in range(200))
    lines = list(_cut(difference(before, ""), MAX_LINES))
    assert len(lines) == MAX_LINES + 1
    assert max(map(len, lines)) < MAX_WIDTH + 20
    assert re.fullmatch(r"  \[\.\.\. \d+ more lines\]", lines[-1])


def test_options_that_do_not_fit_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for flags, complaint in (
        ([], "one of id, url and random must be given, got none"),
        (["0-0", "--random", "1"], "one of id, url and random must be given"),
        (["0-0", "--reason", "x"], "reason must come with random"),
        (["--random", "0"], "random must be at least 1, got 0"),
    ):
        code, _, err = run_cli(capsys, str(folder), *flags)
        assert code == 2
        assert complaint in err
        assert err.count("\n") == 1
