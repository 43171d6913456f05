"""What a pipeline did, read from what its tasks left; from a run that is under way, too.

Files, all in the pipeline's folder; the first two have a `checksum` of their values, too:

- `plan.json`: `rslm` (version), `config` (resolved), `n_ranges`, `stages` (`name`, `n_tasks`,
  `hash`), `shards` (`files`: lists of path, name and packed bytes; `format`, `text_field`,
  `source`, `input`: the number of the config's input).
- `<stage>/<task>.report.json`, the mark of a finished task: `stage`, `index`, `hash`, `upstream`,
  `files` (name -> hash of the unpacked bytes), `n_rows` (documents written or signed), `seconds`
  (by the clock), `notes` (of deduplication, such as examples of clusters), and `steps`, in order:
    `step`; `taken`, `given`: `{documents, bytes, characters}` before and after it, UTF-8 bytes;
    `drops`: reason -> the same, as they came in; `lines_removed`: reason -> lines; `counts`: name
    -> number (`emails`, `ips`, `phones` masked; `lines`, pairs, clusters found); `histogram`:
    language -> documents, or size -> clusters; `cpu_seconds`.
  Steps of the stage `filter`: `read` (taken: records and packed bytes, drops: records that the
  reader passed over), `skip` (drops: `<step>_timeout`, `<step>_crash`, `<step>_memory` of pages
  that ended a worker), `url`, `extract`, `language`, `quality.<preset>`, `classify.<name>`,
  `decontaminate`. Of `lines.rewrite`: `skip`, `exact`, `lines`. Of `finalize`: `skip`, `exact`
  (without lines.rewrite), `minhash`, `pii`. Other stages have one step of their own name.
- `<stage>/<task>.samples.jsonl.zst` of those three stages: a line each for the `n_samples`
  documents with the smallest hash of seed and id, for every step and reason ("" kept): `step`,
  `reason`, `rank` (that hash), `id`, `url`, `source` (the first 2,000 characters of each), `text`
  (the first 3,000, before the step where dropped, else after it), `characters` (of all of it).
- `<stage>/<task>.index.jsonl.zst` of those three: a line each for all documents: `id`, `step`
  and `reason` ("" and "" where it went through), `number` among the documents that the task read,
  `row` among those that it wrote (null where dropped). `number` in `lines.rewrite` and `finalize`
  is `row` of the stage before that wrote documents.
- `<stage>/<task>.jsonl.zst` of those three: the documents; those of `finalize` are the result.
- `<stage>/<task>.skip.json`: documents passed over from the next attempt on.
- `tokenize/tokens`: what `token_stage` writes; its report is among the notes of the stage's mark,
  and `train_documents`, `train_tokens`, `train_utf8_bytes` (and `valid_...`) among the counts.
- `workers.log`: what workers printed, such as why they crashed.

What the step `skip` drops depends on the machine that was too slow or too small; all
else is the same wherever it is made, but for `seconds` and `cpu_seconds`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rslm.data.document import Document
from rslm.data.pipeline.marks import Mark, finished_marks
from rslm.data.pipeline.plan import Plan, Stage, read_plan
from rslm.data.pipeline.shards import read_lines, read_shard
from rslm.data.pipeline.stages import DOCUMENTS, INDEX, SAMPLES
from rslm.data.pipeline.tally import Samples, StepTally

PASSES = ("filter", "lines.rewrite", "finalize")
"""The stages that write documents."""


@dataclass(kw_only=True)
class StageReport:
    """What the finished tasks of a stage did, all together.

    Attributes:
        done: the numbers of its tasks that are finished, ascending.
        n_rows: documents that they wrote or signed.
        seconds: by the clock, the sum over the tasks.
        steps: in their order.
        notes: of each task that has some, by its number.
    """

    name: str
    n_tasks: int
    done: tuple[int, ...] = ()
    n_rows: int = 0
    seconds: float = 0.0
    steps: dict[str, StepTally] = field(default_factory=dict)
    notes: dict[int, dict[str, Any]] = field(default_factory=dict)

    @property
    def cpu_seconds(self) -> float:
        """Of all steps."""
        return sum(tally.cpu_seconds for tally in self.steps.values())


@dataclass(frozen=True, kw_only=True)
class Way:
    """What one stage decided on a document: kept, in this row, or dropped by a step."""

    stage: str
    task: int
    id: str
    step: str
    reason: str
    number: int
    row: int | None


@dataclass(frozen=True, kw_only=True)
class PipelineReport:
    """The plan of a pipeline and what was done of it."""

    plan: Plan
    stages: dict[str, StageReport]
    samples: dict[str, list[dict[str, Any]]]
    """By the stages of `PASSES`: the documents shown, in the order of step, reason and rank."""

    @classmethod
    def read(cls, folder: Path) -> PipelineReport:
        """Adds up the reports of all tasks that are finished.

        Tasks that a change of the config has made out of date are not among them.

        Raises:
            FormatError: a file is damaged.
            OSError: there is no plan in the folder.
        """
        plan = read_plan(folder)
        marks = finished_marks(plan)
        stages: dict[str, StageReport]
        stages = {stage.name: _add_up(stage, marks[stage.name]) for stage in plan.stages}
        samples = {name: _read_samples(plan, name, marks[name]) for name in PASSES if name in marks}
        return cls(plan=plan, stages=stages, samples=samples)

    @property
    def is_finished(self) -> bool:
        """Whether no task is left to do."""
        return all(len(stage.done) == stage.n_tasks for stage in self.stages.values())

    @property
    def steps(self) -> dict[str, StepTally]:
        """The steps of the stages that write documents, as "stage/step", in their order."""
        return {
            f"{name}/{step}": tally
            for name in PASSES
            if name in self.stages
            for step, tally in self.stages[name].steps.items()
        }

    def find(self, id: str) -> list[Way]:
        """Everything that was decided on the documents of an id, stage by stage.

        Reads the indices of all tasks; an id may be that of several documents.
        """
        return [way for way in self.ways() if way.id == id]

    def ways(self) -> Iterator[Way]:
        """What every stage decided on every document."""
        for stage, index in self._finished():
            for record in read_lines(self.plan.path(stage, index, INDEX)):
                yield Way(stage=stage, task=index, **record)

    def documents(self, stage: str = "finalize") -> Iterator[Document]:
        """The documents that a stage wrote, in their order."""
        for name, index in self._finished():
            if name == stage:
                yield from read_shard(self.plan.path(stage, index, DOCUMENTS))

    def _finished(self) -> Iterator[tuple[str, int]]:
        for name in PASSES:
            if name in self.stages:
                yield from ((name, index) for index in self.stages[name].done)


def _add_up(stage: Stage, marks: Mapping[int, Mark]) -> StageReport:
    report = StageReport(name=stage.name, n_tasks=stage.n_tasks, done=tuple(sorted(marks)))
    for index in report.done:
        mark = marks[index]
        report.n_rows += mark.n_rows
        report.seconds += mark.seconds
        for name, tally in mark.steps.items():
            report.steps.setdefault(name, StepTally()).add(tally)
        if mark.notes:
            report.notes[index] = mark.notes
    return report


def _read_samples(plan: Plan, stage: str, marks: Mapping[int, Mark]) -> list[dict[str, Any]]:
    samples = Samples(plan.config.n_samples, plan.config.seed)
    for index in sorted(marks):
        samples.add(read_lines(plan.path(stage, index, SAMPLES)))
    return samples.records()
