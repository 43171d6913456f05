"""What a pipeline did, read from what its tasks left; from a run that is under way, too.

Files, all in the pipeline's folder; the first two have a `checksum` of their values, too:

- `plan.json`: `made_with` (`stage`, `what`, `name`, `version`, `sha256` of each program, model and
  list that determines bytes), `config` (resolved), `n_ranges`, `stages` (`name`, `n_tasks`,
  `hash`), `shards` (`files`: lists of path, name and packed bytes; `format`, `text_field`,
  `source`, `input`: the number of the config's input; `revision` of a data set).
- `<stage>/<task>.report.json`, the mark of a finished task: `stage`, `index`, `hash`, `upstream`,
  `files` (name -> hash of the unpacked bytes), `n_rows` (documents written or signed), `seconds`
  (by the clock), `notes` (of deduplication, such as examples of clusters), and `steps`, in order:
    `step`; `taken`, `given`: `{documents, bytes, characters}` before and after it, UTF-8 bytes;
    `drops`: reason -> the same, as they came in; `lines_removed`: reason -> lines; `counts`: name
    -> number (`emails`, `ips`, `phones` masked; `lines`, pairs, clusters found); `histogram`:
    language or score (two digits) -> documents, or size -> clusters; `largest`: name -> the
    largest number seen (members of a `bucket`); `languages`: language -> documents that went on;
    `cpu_seconds`.
  Steps of the stage `filter`: `read` (taken: records and packed bytes, drops: records that the
  reader passed over), `skip` (drops: `<step>_timeout`, `<step>_crash`, `<step>_memory` of pages
  that ended a worker), `url`, `extract`, `language`, `quality.<preset>`, `classify.<name>`,
  `decontaminate`. Of `lines.rewrite`: `skip`, `exact` and `minhash` as far as they stand before
  it, `lines`. Of `finalize`: `skip`, those of `exact` and `minhash` that no lines.rewrite has
  taken, `pii`. Other stages have one step of their own name.
- `<stage>/<task>.samples.jsonl.zst` of those three stages: a line each for the `n_samples`
  documents with the smallest hash of seed and id, for every step and reason ("" kept): `step`,
  `reason`, `rank` (that hash), `id`, `url`, `source`, `language` (the first 2,000 characters of
  each), `text` (the first 3,000, before the step where dropped, else after it), `characters` (of
  all of it).
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

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rslm.data.document import Document
from rslm.data.pipeline.marks import Mark, finished_marks
from rslm.data.pipeline.plan import DOCUMENTS, INDEX, PASSES, SAMPLES, Plan, Stage, read_plan
from rslm.data.pipeline.shards import read_lines, read_shard
from rslm.data.pipeline.tally import Samples, StepTally

MAX_SAMPLED_TASKS = 256
"""Tasks of a stage whose examples are read: of more, some that lie evenly."""


@dataclass(frozen=True, kw_only=True)
class StageReport:
    """What the finished tasks of a stage did: their marks by their numbers, ascending."""

    stage: Stage
    marks: Mapping[int, Mark]

    @property
    def name(self) -> str:
        """The stage's."""
        return self.stage.name

    @property
    def is_complete(self) -> bool:
        """Whether all tasks are finished."""
        return len(self.marks) == self.stage.n_tasks

    @property
    def n_rows(self) -> int:
        """Documents that the tasks wrote or signed."""
        return sum(mark.n_rows for mark in self.marks.values())

    @cached_property
    def steps(self) -> Mapping[str, StepTally]:
        """The sums of each step over the tasks, in the order of the steps."""
        sums: dict[str, StepTally] = {}
        for mark in self.marks.values():
            for name, tally in mark.steps.items():
                sums.setdefault(name, StepTally()).add(tally)
        return sums

    @property
    def cpu_seconds(self) -> float:
        """Of all steps."""
        return sum(tally.cpu_seconds for tally in self.steps.values())

    def notes(self, key: str) -> list[Any]:
        """What the tasks noted under a key, one after the other."""
        return [note for mark in self.marks.values() for note in mark.notes.get(key, ())]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What one pass decided on one document.

    Attributes:
        shard: the number of the task.
        number: among the documents that the pass read of the shard.
        row: among those that it wrote; None where `step` dropped it.
    """

    stage: str
    shard: int
    id: str
    step: str
    reason: str
    number: int
    row: int | None


@dataclass(frozen=True, kw_only=True)
class PipelineReport:
    """A plan and what was done of it, stage by stage.

    A stage counts only where all before it are finished, and a task only where the config that it
    was done for is the plan's: what an earlier one left says nothing about this one.
    """

    plan: Plan
    stages: Mapping[str, StageReport]

    @classmethod
    def read(cls, folder: Path) -> PipelineReport:
        """Reads the plan and the marks in a folder.

        Raises:
            FormatError: the plan is damaged.
            OSError: there is none in the folder.
        """
        plan = read_plan(folder)
        marks = finished_marks(plan)
        stages: dict[str, StageReport] = {
            stage.name: StageReport(stage=stage, marks=dict(sorted(marks[stage.name].items())))
            for stage in plan.stages
        }
        return cls(plan=plan, stages=stages)

    @property
    def is_finished(self) -> bool:
        """Whether no task is left to do."""
        return all(stage.is_complete for stage in self.stages.values())

    @property
    def passes(self) -> list[StageReport]:
        """The stages that write documents, as far as a task of them is finished."""
        return [self.stages[name] for name in PASSES if self.marks(name)]

    @property
    def steps(self) -> dict[str, StepTally]:
        """The steps of the stages that write documents, as "stage/step", in their order."""
        return {
            f"{stage.name}/{step}": tally
            for stage in self.passes
            for step, tally in stage.steps.items()
        }

    def marks(self, stage: str) -> Mapping[int, Mark]:
        """The finished tasks of a stage; none where the plan has no such stage."""
        return self.stages[stage].marks if stage in self.stages else {}

    def samples(self, stage: str) -> list[dict[str, Any]]:
        """The documents shown of a stage of `PASSES`, in the order of step, reason and rank."""
        samples = Samples(self.plan.config.n_samples, self.plan.config.seed)
        for index in _evenly(list(self.marks(stage)), MAX_SAMPLED_TASKS):
            samples.add(read_lines(self.plan.path(stage, index, SAMPLES)))
        return samples.records()

    def find(self, id: str) -> list[Entry]:
        """Everything that was decided on the documents of an id, stage by stage.

        Reads the indices of all tasks; an id may be that of several documents.
        """
        return [entry for stage in PASSES for entry in self.entries(stage) if entry.id == id]

    def entries(self, stage: str) -> Iterator[Entry]:
        """What a stage of `PASSES` decided on every document of its finished tasks."""
        for index in self.marks(stage):
            yield from self.entries_of(stage, index)

    def entries_of(self, stage: str, index: int) -> Iterator[Entry]:
        """The same of one task; nothing where it is not finished."""
        if index in self.marks(stage):
            for record in read_lines(self.plan.path(stage, index, INDEX)):
                yield Entry(stage=stage, shard=index, **record)

    def documents(self, stage: str = "finalize") -> Iterator[Document]:
        """The documents that a stage wrote, in their order."""
        for index in self.marks(stage):
            yield from read_shard(self.plan.path(stage, index, DOCUMENTS))


def _evenly(numbers: Sequence[int], n: int) -> list[int]:
    """At most so many of the numbers, over their whole length."""
    if len(numbers) <= n:
        return list(numbers)
    return [numbers[i * len(numbers) // n] for i in range(n)]
