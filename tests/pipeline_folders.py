"""A pipeline's folder for tests: real files, of steps that decide as they are told."""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rslm.data.document import Document
from rslm.data.pipeline.config import (
    ExactConfig,
    InputConfig,
    LanguageConfig,
    PiiConfig,
    PipelineConfig,
    QualityConfig,
)
from rslm.data.pipeline.documents_pass import PassFiles, pass_documents
from rslm.data.pipeline.marks import Mark, Task, chain, tasks_of, write_mark
from rslm.data.pipeline.plan import DOCUMENTS, INDEX, SAMPLES, Plan, make_plan, write_plan
from rslm.data.pipeline.pulse import Pulse
from rslm.data.pipeline.shards import read_shard
from rslm.data.pipeline.stages import run_task
from rslm.data.pipeline.steps import Decision, Step
from rslm.data.pipeline.tally import Amount, Samples, StepTally


@dataclass(frozen=True, kw_only=True)
class Scripted:
    """A document and what becomes of it.

    Attributes:
        drops: step -> reason.
        edits: step -> text that it leaves.
        language: code.
    """

    text: str
    drops: Mapping[str, str] = field(default_factory=dict)
    edits: Mapping[str, str] = field(default_factory=dict)
    language: str = "en"
    url: str = ""


def make_pipeline(folder: Path, shards: Sequence[Sequence[Scripted]]) -> Plan:
    """Writes inputs and a plan: language, course rules, equal texts, masks of personal data."""
    (folder / "in").mkdir(parents=True)
    for n, shard in enumerate(shards):
        rows = [
            {"id": f"{n}-{row}", "text": document.text, "url": document.url}
            for row, document in enumerate(shard)
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "in" / f"part-{n}.jsonl").write_text(lines)
    (folder / "model.ftz").write_bytes(b"a model")
    config = PipelineConfig(
        out=folder / "run",
        inputs=(InputConfig(paths=(str(folder / "in"),)),),
        language=LanguageConfig(languages=("en",), model=folder / "model.ftz"),
        quality=QualityConfig(presets=("course",)),
        exact=ExactConfig(keep="first"),
        pii=PiiConfig(preset="course"),
        n_ranges=1,
        n_samples=9,
    )
    (folder / "run").mkdir()
    plan = make_plan(config)
    write_plan(plan)
    return plan


STEPS = {
    "filter": ("extract", "language", "quality.course"),
    "finalize": ("exact", "pii"),
}
"""Of the passes; what is between them is done in earnest."""


def run_stages(plan: Plan, shards: Sequence[Sequence[Scripted]], *, until: int = 99) -> None:
    """Does so many tasks of the plan, in their order."""
    script = {f"{n}-{row}": d for n, shard in enumerate(shards) for row, d in enumerate(shard)}
    upstream, n_done = "", 0
    for stage in plan.stages:
        marks = []
        for task in tasks_of(stage, upstream):
            if n_done == until:
                return
            if stage.name in STEPS:
                mark = _pass(plan, task, script)
            else:
                mark = run_task(plan, task, "test")
            mark = _timed(mark)
            write_mark(plan, mark, "test")
            marks.append(mark)
            n_done += 1
        upstream = chain(upstream, marks)


def _timed(mark: Mark) -> Mark:
    """The mark with times that do not depend on the machine."""
    for tally in mark.steps.values():
        tally.cpu_seconds = 0.5
    return replace(mark, seconds=2.0)


def _pass(plan: Plan, task: Task, script: Mapping[str, Scripted]) -> Mark:
    mark = Mark(
        stage=task.stage,
        index=task.index,
        hash=plan.task_hash(task.stage, task.index),
        upstream=task.upstream,
        files={},
    )
    path = functools.partial(plan.path, mark.stage, mark.index)
    path("x").parent.mkdir(exist_ok=True)
    if mark.stage == "filter":
        lines = Path(plan.shards[mark.index].files[0][0]).read_text().splitlines()
        documents = [
            Document(id=r["id"], text=r["text"], url=r["url"], source=f"part-{mark.index}.jsonl")
            for r in map(json.loads, lines)
        ]
    else:
        documents = list(read_shard(plan.path("filter", mark.index, DOCUMENTS)))
    steps = {name: scripted_step(name, script) for name in STEPS[mark.stage]}
    tallies, files, n_rows = pass_documents(
        documents,
        steps,
        PassFiles(
            documents=path(DOCUMENTS), index=path(INDEX), samples=path(SAMPLES), attempt="test"
        ),
        samples=Samples(plan.config.n_samples, plan.config.seed),
        skip={},
        pulse=Pulse(),
    )
    if mark.stage == "filter":
        n = len(documents)
        read = StepTally(taken=Amount(documents=n + 1, bytes=1000))
        read.given = replace(tallies["skip"].taken)
        read.drops = {"not_json": Amount(documents=1)}
        tallies = {"read": read} | tallies
    return replace(mark, steps=tallies, files=files, n_rows=n_rows)


def scripted_step(name: str, script: Mapping[str, Scripted]) -> Step:
    """Decides on each document as it says."""

    def step(documents: Sequence[Document]) -> list[Decision]:
        return [_decision(name, document, script[document.id]) for document in documents]

    return step


def _decision(name: str, document: Document, wanted: Scripted) -> Decision:
    text = wanted.edits.get(name, document.text)
    n_removed = document.text.count("\n") - text.count("\n")
    found = {"language": wanted.language} if name == "language" else {}
    return Decision(
        document=replace(document, text=text, metadata=document.metadata | found),
        reason=wanted.drops.get(name, ""),
        lines_removed={"repeated_line": n_removed} if n_removed > 0 else {},
        counts={"emails": 1} if name == "pii" and text != document.text else {},
        group=wanted.language if name == "language" else "",
    )


def run_here(plan: Plan) -> None:
    """Does all tasks in this process."""
    plan.folder.mkdir(parents=True, exist_ok=True)
    write_plan(plan)
    upstream = ""
    for stage in plan.stages:
        marks = [run_task(plan, task, "test") for task in tasks_of(stage, upstream)]
        upstream = chain(upstream, marks)
