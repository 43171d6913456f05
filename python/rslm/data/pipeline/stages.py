"""What a task of each stage does, from the first stage to the last.

`run_task` is a plain function of a plan and a task: whoever calls it, wherever, gets the same
files. Stages that write documents are passes through steps; between them deduplication works on
places, (shard, row), where a row is a document's number among those that are left before it.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rslm.data.document import Document
from rslm.data.pipeline.documents_pass import (
    PassFiles,
    Ranges,
    pass_documents,
    read_skip,
    scout_documents,
)
from rslm.data.pipeline.ingredients import digest
from rslm.data.pipeline.marks import Mark, Task, read_mark, write_mark
from rslm.data.pipeline.places import (
    documents_before,
    documents_written_before,
    inputs,
    masks_before,
    rows_dropped,
)
from rslm.data.pipeline.plan import (
    DOCUMENTS,
    INDEX,
    PASSES,
    PLACES,
    SAMPLES,
    SKIP,
    Plan,
    StageName,
)
from rslm.data.pipeline.pulse import Pulse
from rslm.data.pipeline.shards import hash_file, written_beside
from rslm.data.pipeline.steps import (
    Step,
    drop_rows,
    filter_step_names,
    filter_steps,
    lines_step,
    pii_step,
)
from rslm.data.pipeline.tally import Amount, Samples, StepTally
from rslm.files import locked
from rslm.process import n_cpus

# The reason that the pass behind gives for what each of these drops.
_MASKS = {
    "exact.cluster": "exact_duplicate",
    "minhash.cluster": "near_duplicate",
}


def run_task(
    plan: Plan, task: Task, attempt: str, *, pulse: Pulse | None = None, careful: Ranges = ()
) -> Mark:
    """Does one task and writes its files, the mark last.

    Args:
        plan: the plan of the task's pipeline.
        task: which.
        attempt: a name that no other attempt at it has.
        pulse: is told what is under way.
        careful: documents to take one at a time, by their numbers.

    Raises:
        OSError: an input cannot be read, or the disk is full.
        ValueError: an input, a model or a file of an earlier stage is not what it must be.
    """
    started = time.monotonic()
    pulse = pulse or Pulse()
    pulse.rest()
    (plan.folder / task.stage).mkdir(parents=True, exist_ok=True)
    match task.stage:
        case "filter":
            mark = _filter(plan, task, attempt, pulse, careful)
        case "lines.rewrite":
            mark = _rewrite_lines(plan, task, attempt, pulse, careful)
        case "finalize":
            mark = _finalize(plan, task, attempt, pulse, careful)
        case "tokenize":
            mark = _tokenize(plan, task)
        case "exact.sign" | "lines.count" | "minhash.sign":
            mark = _read_places(plan, task, attempt)
        case _:
            mark = _merge_places(plan, task, attempt)
    mark = dataclasses.replace(mark, seconds=time.monotonic() - started)
    write_mark(plan, mark, attempt)
    return mark


def scout_task(plan: Plan, task: Task, first: int, *, pulse: Pulse, careful: Ranges) -> None:
    """Judges the documents of a task of the first stage from one on, and writes nothing.

    So those that end a worker are found one after the other, and what was judged once is not
    judged again for each of them.
    """
    pulse.rest()
    scout_documents(
        inputs(plan, task.index, pulse=pulse),
        filter_steps(plan.config),
        first,
        skip=_skip(plan, task),
        careful=careful,
        pulse=pulse,
    )


def _filter(plan: Plan, task: Task, attempt: str, pulse: Pulse, careful: Ranges) -> Mark:
    """Reads, extracts and judges the documents of a shard: HTML never touches the disk."""
    skipped: Counter[str] = Counter()
    steps = filter_steps(plan.config)
    started = time.process_time()
    documents = inputs(plan, task.index, skipped, pulse)
    mark = _pass(plan, task, attempt, pulse, careful, documents, steps)
    read = StepTally(taken=Amount(bytes=plan.shards[task.index].n_bytes))
    read.given = dataclasses.replace(mark.steps["skip"].taken)
    read.drops = {reason: Amount(documents=n) for reason, n in sorted(skipped.items())}
    read.taken.documents = read.given.documents + sum(skipped.values())
    # With what writing the shard took, and all that no step did.
    of_steps = sum(tally.cpu_seconds for tally in mark.steps.values())
    read.cpu_seconds = max(time.process_time() - started - of_steps, 0.0)
    return dataclasses.replace(mark, steps={"read": read} | mark.steps)


def _rewrite_lines(plan: Plan, task: Task, attempt: str, pulse: Pulse, careful: Ranges) -> Mark:
    steps = _mask_steps(plan, "lines.rewrite", task.index)
    merged = _files_of(plan, "lines.merge", PLACES)
    steps["lines"] = lines_step(merged, task.index, plan.config.lines)
    documents = documents_written_before(plan, "lines.rewrite", task.index)
    return _pass(plan, task, attempt, pulse, careful, documents, steps)


def _finalize(plan: Plan, task: Task, attempt: str, pulse: Pulse, careful: Ranges) -> Mark:
    """Writes the documents that all stages leave, personal data masked."""
    steps = _mask_steps(plan, "finalize", task.index)
    if plan.config.pii.preset is not None:
        steps["pii"] = pii_step(plan.config.pii.preset)
    documents = documents_written_before(plan, "finalize", task.index)
    return _pass(plan, task, attempt, pulse, careful, documents, steps)


def _pass(
    plan: Plan,
    task: Task,
    attempt: str,
    pulse: Pulse,
    careful: Ranges,
    documents: Iterator[Document],
    steps: Mapping[str, Step],
) -> Mark:
    files = PassFiles(
        documents=plan.path(task.stage, task.index, DOCUMENTS),
        index=plan.path(task.stage, task.index, INDEX),
        samples=plan.path(task.stage, task.index, SAMPLES),
        attempt=attempt,
    )
    tallies, hashes, n_rows = pass_documents(
        documents,
        steps,
        files,
        samples=Samples(plan.config.n_samples, plan.config.seed),
        skip=_skip(plan, task),
        careful=careful,
        pulse=pulse,
    )
    return _mark(plan, task, hashes, n_rows=n_rows, steps=tallies)


def _skip(plan: Plan, task: Task) -> dict[int, str]:
    path = plan.path(task.stage, task.index, SKIP)
    return read_skip(path, plan.task_hash(task.stage, task.index))


def _mark(plan: Plan, task: Task, files: dict[str, str], **found: Any) -> Mark:
    return Mark(
        stage=task.stage,
        index=task.index,
        hash=plan.task_hash(task.stage, task.index),
        upstream=task.upstream,
        files=files,
        **found,
    )


def _mask_steps(plan: Plan, stage: StageName, index: int) -> dict[str, Step]:
    return {
        mask.partition(".")[0]: drop_rows(rows_dropped(plan, mask, index), _MASKS[mask])
        for mask in masks_before(plan, stage)
    }


def step_names(plan: Plan) -> list[str]:
    """What documents go through from file to result, in this order."""
    names = []
    for stage in plan.stages:
        if stage.name == "filter":
            names += ["read", *filter_step_names(plan.config)]
        elif stage.name == "tokenize":
            names.append(stage.name)
        elif stage.name in PASSES:
            names += [mask.partition(".")[0] for mask in masks_before(plan, stage.name)]
            if stage.name == "lines.rewrite":
                names.append("lines")
            elif plan.config.pii.preset is not None:
                names.append("pii")
    return names


def _files_of(plan: Plan, stage: StageName, ending: str) -> list[Path]:
    return [plan.path(stage, index, ending) for index in range(plan.stage(stage).n_tasks)]


def _read_places(plan: Plan, task: Task, attempt: str) -> Mark:
    """Signs the texts of a shard, or counts their lines, for the stage that compares shards."""
    from rslm.data.dedup import stages as dedup

    started, n_ranges, shard = time.process_time(), plan.n_ranges, task.index
    target = plan.path(task.stage, task.index, PLACES)
    amount, name = Amount(), task.stage

    def counted() -> Iterator[str]:
        for document in documents_before(plan, name, shard):
            text = document.text
            amount.add(Amount(documents=1, bytes=len(text.encode()), characters=len(text)))
            yield text

    texts, tally = counted(), StepTally(taken=amount, given=amount)
    with written_beside(target, attempt) as beside:
        if name == "lines.count":
            n_lines = dedup.count_lines(texts, shard, beside, n_ranges=n_ranges)
            tally.counts["lines"] = n_lines
        elif name == "exact.sign":
            dedup.sign_exact(texts, shard, beside, n_ranges=n_ranges)
        else:
            options = plan.config.minhash.options()
            dedup.sign_minhash(texts, shard, beside, options=options, n_ranges=n_ranges)
    tally.cpu_seconds = time.process_time() - started
    files = {target.name: hash_file(target)}
    return _mark(plan, task, files, n_rows=amount.documents, steps={name: tally})


def _merge_places(plan: Plan, task: Task, attempt: str) -> Mark:
    """Brings together what was read of all shards: a range of lines, a part of pairs, clusters."""
    from rslm.data.dedup import stages as dedup

    started, kind = time.process_time(), task.stage.partition(".")[0]
    target = plan.path(task.stage, task.index, PLACES)
    found: Any
    with written_beside(target, attempt) as beside:
        match task.stage:
            case "lines.merge":
                files = _files_of(plan, "lines.count", PLACES)
                found = dedup.merge_lines(files, task.index, beside, n_ranges=plan.n_ranges)
            case "exact.join" | "minhash.join":
                files = _files_of(plan, _sign_stage(kind), PLACES)
                found = dedup.join(files, task.index, beside)
            case _:
                found = _cluster(plan, kind, beside)
    tally, notes = _read_result(found)
    tally.cpu_seconds = time.process_time() - started
    hashes = {target.name: hash_file(target)}
    return _mark(plan, task, hashes, steps={task.stage: tally}, notes=notes)


def _sign_stage(kind: str) -> StageName:
    return "exact.sign" if kind == "exact" else "minhash.sign"


def _cluster(plan: Plan, kind: str, target: Path) -> Any:
    from rslm.data.dedup import stages as dedup

    edges = _files_of(plan, "exact.join" if kind == "exact" else "minhash.join", PLACES)
    keep, seed = plan.config.exact.keep or "first", plan.config.seed
    if kind == "minhash":
        options = plan.config.minhash.options()
        keep, seed = options.keep, options.seed
    n_rows = []
    for index in range(len(plan.shards)):
        mark = read_mark(plan, _sign_stage(kind), index)
        assert mark is not None, "a stage begins when those before are finished"
        n_rows.append(mark.n_rows)
    return dedup.cluster(edges, n_rows, target, keep=keep, seed=seed)


def _read_result(found: Any) -> tuple[StepTally, dict[str, Any]]:
    """The numbers of what deduplication found, its histogram, and its examples."""
    tally, notes = StepTally(), {}
    for name, value in dataclasses.asdict(found).items():
        if name.startswith("largest_"):
            tally.largest[name.removeprefix("largest_")] = value
        elif isinstance(value, int):
            tally.counts[name.removeprefix("n_")] = value
        elif isinstance(value, dict):
            tally.histogram.update({str(key): n for key, n in value.items()})
        elif isinstance(value, list | tuple):
            notes[name] = value
    return tally, notes


def _tokenize(plan: Plan, task: Task) -> Mark:
    """Writes the token file of the documents that are left, with all cores of the machine."""
    from rslm.data.token_stage import write_token_file

    config, started = plan.config.tokenize, time.process_time()
    assert config.tokenizer is not None
    out = plan.folder / "tokenize" / "tokens"
    # What is begun of other documents or options is no beginning of this.
    hash = digest([plan.task_hash(task.stage, task.index), task.upstream])
    with locked(out.parent, "token files of"):
        if _begun_with(out) not in ("", hash):
            shutil.rmtree(out)
        report = write_token_file(
            _files_of(plan, "finalize", DOCUMENTS),
            config.tokenizer,
            out,
            shuffle_seed=config.shuffle_seed,
            validation_share=config.validation_share,
            mixture=plan.config.mixture(),
            n_workers=n_cpus(),
            plan_hash=hash,
        )
    files = sorted(path for path in out.rglob("*") if path.is_file())
    hashes = {path.relative_to(out.parent).as_posix(): hash_file(path) for path in files}
    tally = StepTally(cpu_seconds=time.process_time() - started)
    for side, written in report["tokens"].items():
        for name in ("n_documents", "n_tokens", "n_utf8_bytes"):
            tally.counts[f"{side}_{name.removeprefix('n_')}"] = written[name]
    return _mark(plan, task, hashes, steps={"tokenize": tally}, notes={"report": report})


def _begun_with(out: Path) -> str:
    """The hash of the plan that a folder of token files was begun with; "" where there is none."""
    for path, keys in ((out / "report.json", ("plan",)), (out / "work" / "plan.json", ())):
        if path.exists():
            try:
                record = json.loads(path.read_bytes())
                for key in keys:
                    record = record[key]
                return str(record["plan_hash"])
            except (ValueError, KeyError, TypeError, RecursionError):
                return "unknown"
    return "unknown" if out.exists() else ""
