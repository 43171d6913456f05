"""Pipelines from files to documents: the same bytes always, whatever ends a process or a page."""

import itertools
import json
import os
import random
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pipelines import (
    ALL_STEPS,
    config_of,
    drops,
    run,
    start,
    tree,
    workers_of,
    write_inputs,
    write_lines,
)

from rslm import TokenFile, Tokenizer
from rslm.config import merge_records
from rslm.data.dedup.exact import find_exact_duplicates
from rslm.data.dedup.lines import (
    count_lines,
    drop_repeated,
    merge_line_counts,
    repeated_lines,
    split_lines,
)
from rslm.data.dedup.near_duplicates import PRESETS, find_near_duplicates
from rslm.data.pii import mask_pii
from rslm.data.pipeline import make_plan
from rslm.data.pipeline.marks import chain, tasks_of
from rslm.data.pipeline.plan import write_plan
from rslm.data.pipeline.report import PipelineReport
from rslm.data.pipeline.run import Part, Progress
from rslm.data.pipeline.stages import run_task
from rslm.data.quality import check_quality

COURSE = PRESETS["course"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # More documents in each than a batch has.
    return write_inputs(tmp_path_factory.mktemp("inputs"), n_files=3, n_documents=90)


@pytest.fixture(scope="module")
def finished(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline of all steps, done by one worker."""
    out = tmp_path_factory.mktemp("pipeline") / "out"
    run(config_of(inputs, out, **ALL_STEPS))
    return out


def lines_left(texts: dict[str, str]) -> dict[str, str]:
    """What keeping the first of each line leaves, by the plain functions."""
    lines = {name: split_lines(text.encode()) for name, text in texts.items()}
    counts = merge_line_counts(count_lines(name, content) for name, content in lines.items())
    repeated = repeated_lines(counts)
    left = {
        name: b"".join(drop_repeated(name, content, repeated, keep="first")).decode()
        for name, content in lines.items()
    }
    return {
        name: text
        for name, text in left.items()
        if text.strip() and (text == texts[name] or len(text.split()) >= 5)
    }


def without_near_duplicates(texts: dict[str, str]) -> dict[str, str]:
    """One of each cluster, by the plain functions."""
    return {name: texts[name] for name in find_near_duplicates(texts.items(), COURSE).kept}


def in_memory(texts: dict[str, str], *, lines_first: bool) -> dict[str, str]:
    """What the pipeline of all steps leaves, by the plain functions; ids sort as places do."""
    texts = {name: text for name, text in texts.items() if not check_quality(text, "course").reason}
    texts = {name: texts[name] for name in find_exact_duplicates(texts.items()).kept}
    if lines_first:
        texts = without_near_duplicates(lines_left(texts))
    else:
        texts = lines_left(without_near_duplicates(texts))
    return {name: mask_pii(text, "course").text for name, text in texts.items()}


def documents_left(out: Path) -> dict[str, str]:
    return {document.id: document.text for document in PipelineReport.read(out).documents()}


def read_inputs(inputs: Path) -> dict[str, dict[str, str]]:
    """The rows of all files, by names that sort as places do."""
    texts = (path.read_text() for path in sorted(inputs.iterdir()))
    read = [json.loads(line) for text in texts for line in text.splitlines()]
    return {f"{row['id'][0]}{int(row['id'][2:]):03d}": row for row in read}


@pytest.fixture(scope="module")
def finished_lines_first(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with lines before near-duplicates."""
    out = tmp_path_factory.mktemp("pipeline") / "out"
    run(config_of(inputs, out, **merge_records(ALL_STEPS, {"lines": {"before_minhash": True}})))
    return out


@pytest.mark.parametrize("lines_first", [False, True])
def test_documents_are_those_of_the_plain_functions(
    inputs: Path, finished: Path, finished_lines_first: Path, lines_first: bool
) -> None:
    places = read_inputs(inputs)
    texts = {place: row["text"] for place, row in places.items()}
    wanted = in_memory(texts, lines_first=lines_first)
    got = documents_left(finished_lines_first if lines_first else finished)
    assert got == {places[place]["id"]: text for place, text in wanted.items()}
    assert 20 < len(got) < len(places)
    assert wanted != in_memory(texts, lines_first=not lines_first)


def test_every_step_drops_something(finished: Path, finished_lines_first: Path) -> None:
    assert {name: set(reasons) for name, reasons in drops(finished).items()} == {
        "filter/quality.course": {"gopher_too_few_words"},
        "lines.rewrite/exact": {"exact_duplicate"},
        "lines.rewrite/minhash": {"near_duplicate"},
    }
    assert set(drops(finished_lines_first)) == {
        *("filter/quality.course", "lines.rewrite/exact", "finalize/minhash")
    }
    report = PipelineReport.read(finished)
    assert report.steps["finalize/pii"].counts["emails"] > 0
    assert report.steps["lines.rewrite/lines"].lines_removed


@pytest.mark.slow
def test_order_of_lines_and_near_duplicates_is_an_option(tmp_path: Path) -> None:
    inputs, out = write_inputs(tmp_path / "in", n_files=1, n_documents=30), tmp_path / "out"
    run(config_of(inputs, out, **ALL_STEPS))
    before = tree(out)
    first = merge_records(ALL_STEPS, {"lines": {"before_minhash": True}})
    assert remade(config_of(inputs, out, **first)) == {
        *("lines.count", "lines.merge", "lines.rewrite"),
        *("minhash.sign", "minhash.join", "minhash.cluster", "finalize"),
    }
    run(config_of(inputs, out, **ALL_STEPS))
    assert tree(out) == before


def test_what_a_step_gives_the_next_one_takes(finished: Path) -> None:
    for stage in PipelineReport.read(finished).stages.values():
        tallies = list(stage.steps.values())
        for before, after in itertools.pairwise(tallies):
            assert vars(before.given) == vars(after.taken)
        for tally in tallies[1:]:
            dropped = sum(amount.documents for amount in tally.drops.values())
            assert tally.taken.documents == tally.given.documents + dropped


def test_index_tells_the_way_of_every_document(finished: Path) -> None:
    report = PipelineReport.read(finished)
    assert report.is_finished
    kept = {document.id for document in report.documents()}
    assert {entry.id for entry in report.entries("filter")} == {
        f"{file}-{number}" for file in range(3) for number in range(90)
    }
    for id in ("0-0", "1-7", "2-89"):
        decisions = report.find(id)
        assert (decisions[-1].step == "") == (id in kept)
        assert decisions[-1].stage == "finalize" or decisions[-1].reason


@pytest.mark.parametrize("n_workers", [1, 3])
def test_bytes_do_not_depend_on_workers(
    inputs: Path, finished: Path, tmp_path: Path, n_workers: int
) -> None:
    run(config_of(inputs, tmp_path / "out", **ALL_STEPS), n_workers)
    assert tree(tmp_path / "out") == tree(finished)


def test_bytes_do_not_depend_on_the_order_of_tasks(
    inputs: Path, finished: Path, tmp_path: Path
) -> None:
    plan = make_plan(config_of(inputs, tmp_path / "out", **ALL_STEPS))
    plan.folder.mkdir()
    write_plan(plan)
    upstream, draw = "", random.Random(1)
    for stage in plan.stages:
        tasks = tasks_of(stage, upstream)
        # Each task twice, as if two attempts had met.
        shuffled = draw.sample(tasks * 2, 2 * len(tasks))
        marks = {task.index: run_task(plan, task, f"{i}") for i, task in enumerate(shuffled)}
        upstream = chain(upstream, [marks[task.index] for task in tasks])
    assert tree(plan.folder) == tree(finished)


def test_second_run_does_nothing(inputs: Path, finished: Path) -> None:
    times = {path: path.stat().st_mtime_ns for path in finished.rglob("*.*") if path.is_file()}
    seen: list[Progress] = []
    run(config_of(inputs, finished, **ALL_STEPS), on_progress=seen.append)
    assert all(progress.n_found == progress.n_tasks for progress in seen)
    assert {path: path.stat().st_mtime_ns for path in times} == times


def remade(config: object, **options: object) -> set[str]:
    """The stages of which a run does something."""
    seen: list[Progress] = []
    run(config, on_progress=seen.append, **options)  # type: ignore[arg-type]
    return {progress.stage for progress in seen if progress.n_found < progress.n_tasks}


def test_changed_option_remakes_its_stage_and_what_follows(inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(config_of(inputs, out, exact={"keep": "first"}, pii={"preset": "course"}))
    changed = config_of(inputs, out, exact={"keep": "first"}, pii={"preset": "fineweb"})
    assert remade(changed) == {"finalize"}
    changed = config_of(inputs, out, exact={"keep": "random"}, pii={"preset": "fineweb"})
    assert "filter" not in remade(changed)
    changed = config_of(inputs, out, quality={"presets": ["gopher"]}, watchdog_seconds=77.0)
    assert remade(changed) == {"filter", "finalize"}
    assert remade(config_of(inputs, out, quality={"presets": ["gopher"]})) == set()
    # The last stage is the same, but not the documents that it is given.
    changed = config_of(inputs, out, quality={"presets": ["course"]})
    assert remade(changed) == {"filter", "finalize"}
    assert "filter" not in remade(changed, strict=True)


def test_another_input_leaves_the_shards_before_it(tmp_path: Path) -> None:
    folder = write_inputs(tmp_path / "inputs", n_files=2, n_documents=3)
    run(config_of(folder, tmp_path / "out"))
    write_lines(folder / "9.jsonl", ["more"])
    seen: list[Progress] = []
    run(config_of(folder, tmp_path / "out"), on_progress=seen.append)
    assert (seen[0].n_found, seen[0].n_tasks) == (2, 3)
    # A file that has changed is read anew, and no other.
    write_lines(folder / "9.jsonl", ["more", "and more"])
    seen.clear()
    run(config_of(folder, tmp_path / "out"), on_progress=seen.append)
    assert (seen[0].n_found, seen[0].n_tasks) == (2, 3)
    assert PipelineReport.read(tmp_path / "out").stages["filter"].n_rows == 2 * 3 + 2
    # Also where its size is the same.
    write_lines(folder / "9.jsonl", ["more", "and else"])
    seen.clear()
    run(config_of(folder, tmp_path / "out"), on_progress=seen.append)
    assert (seen[0].n_found, seen[0].n_tasks) == (2, 3)
    texts = [document.text for document in PipelineReport.read(tmp_path / "out").documents()]
    assert texts[-1] == "and else"


def test_strict_finds_what_was_changed(tmp_path: Path) -> None:
    folder = write_inputs(tmp_path / "inputs", n_files=1, n_documents=5)
    config = config_of(folder, tmp_path / "out")
    run(config)
    before = tree(config.out)
    shard = config.out / "finalize" / "00000.jsonl.zst"
    shard.write_bytes(shard.read_bytes()[:-3])
    assert remade(config) == set()
    assert remade(config, strict=True) == {"finalize"}
    assert tree(config.out) == before


def kill_at_random(
    config: object, n_kills: int, seconds: float, who: Callable[[int], list[int]]
) -> int:
    """Runs and kills, again and again, until a run comes to its end; how many were killed."""
    draw, n_killed = random.Random(0), 0
    while True:
        process = start(config, "--workers", "2")  # type: ignore[arg-type]
        if n_killed < n_kills:
            # Before that the process only loads its modules.
            time.sleep(draw.uniform(0.3, seconds))
            for pid in who(process.pid):
                try:
                    os.kill(pid, signal.SIGKILL)
                    n_killed += 1
                except ProcessLookupError:
                    pass
        out, errors = process.communicate(timeout=120)
        if process.returncode == 0:
            return n_killed
        assert process.returncode == -signal.SIGKILL, (out, errors)


def test_killed_runs_end_with_the_same_bytes(inputs: Path, finished: Path, tmp_path: Path) -> None:
    config = config_of(inputs, tmp_path / "out", **ALL_STEPS)
    kill_at_random(config, 3, 2.0, lambda pid: [pid])
    assert tree(config.out) == tree(finished)


def test_killed_workers_cost_no_document(inputs: Path, finished: Path, tmp_path: Path) -> None:
    config = config_of(inputs, tmp_path / "out", **ALL_STEPS)
    kill_at_random(config, 2, 2.0, workers_of)
    assert tree(config.out) == tree(finished)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_hundred_kills_end_with_the_same_bytes(
    inputs: Path, finished: Path, tmp_path: Path
) -> None:
    n_killed, round_ = 0, 0
    while n_killed < 100:
        config = config_of(inputs, tmp_path / f"out{round_}", **ALL_STEPS)
        n_killed += kill_at_random(config, 100 - n_killed, 3.0, lambda pid: [pid])
        assert tree(config.out) == tree(finished)
        round_ += 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_stopped_run_goes_on(
    inputs: Path, finished: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    config = config_of(inputs, tmp_path / "out", **ALL_STEPS)
    process = start(config, "--workers", "2")
    deadline = time.monotonic() + 60
    while not list(config.out.glob("filter/*.report.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    workers = workers_of(process.pid)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert not list(config.out.rglob("*.tmp.*"))
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    run(config)
    assert tree(config.out) == tree(finished)


def test_full_disk_ends_the_run_with_its_name(inputs: Path, tmp_path: Path) -> None:
    config = config_of(inputs, tmp_path / "out", **ALL_STEPS)
    config.out.mkdir()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        # Of no file more than this may be written.
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limit[1]))
        with pytest.raises(OSError, match=r"00000|config\.toml|plan\.json"):
            run(config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert not list(config.out.rglob("*.tmp*"))
    run(config)


def test_part_of_a_stage(inputs: Path, tmp_path: Path) -> None:
    config = config_of(inputs, tmp_path / "out", exact={"keep": "first"}, n_ranges=1)
    run(config, part=Part(stage="filter", task_index=0, n_tasks=2))
    with pytest.raises(ValueError, match=r"stage exact.sign must come after filter.*00001.report"):
        run(config, part=Part(stage="exact.sign"))
    run(config, part=Part(stage="filter", task_index=1, n_tasks=2))
    for stage in make_plan(config).stages:
        run(config, part=Part(stage=stage.name))
    assert PipelineReport.read(config.out).is_finished


def test_token_file_is_the_last_stage(tmp_path: Path, byte_tokenizer: Tokenizer) -> None:
    folder = write_inputs(tmp_path / "inputs", n_files=2, n_documents=10)
    byte_tokenizer.save(tmp_path / "tokenizer.json")
    tokenize = {
        "tokenizer": str(tmp_path / "tokenizer.json"),
        "shuffle_seed": 1,
        "validation_share": 0.2,
    }
    config = config_of(folder, tmp_path / "out", tokenize=tokenize)
    run(config)
    before = tree(config.out)
    tokens = TokenFile.open(config.out / "tokenize" / "tokens" / "train", verify=True)
    tally = PipelineReport.read(config.out).stages["tokenize"].steps["tokenize"]
    assert tally.counts["train_tokens"] == len(tokens)
    assert remade(config) == set()
    assert remade(config_of(folder, config.out, tokenize=tokenize | {"shuffle_seed": 2})) == {
        "tokenize"
    }
    assert tree(config.out) != before
    run(config, 2)
    assert tree(config.out) == before


def test_folder_in_use_is_refused(inputs: Path, finished: Path) -> None:
    from rslm.files import locked

    with locked(finished, "folder"), pytest.raises(BlockingIOError, match="another process uses"):
        run(config_of(inputs, finished, **ALL_STEPS))
