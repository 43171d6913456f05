"""What is known of a pipeline's folder: its plan, the marks of its tasks, sums of these.

The folder may be of a run that goes on or was stopped. A stage counts only where all before it
are finished: what an earlier config left of it says nothing about this one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rslm.data.pipeline.marks import Mark, finished_marks
from rslm.data.pipeline.plan import PLAN_FILE, Plan, Stage, read_plan
from rslm.data.pipeline.report import PASSES
from rslm.data.pipeline.shards import read_lines
from rslm.data.pipeline.stages import SAMPLES
from rslm.data.pipeline.tally import Samples, StepTally

READ = "read"
MAX_SAMPLED_TASKS = 256
"""Tasks of a stage whose examples are read: of more, some that lie evenly."""


@dataclass(frozen=True, kw_only=True)
class StageView:
    """A stage, and the marks of those of its tasks that are finished, by their numbers."""

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
    def cpu_seconds(self) -> float:
        """Of all steps."""
        return sum(tally.cpu_seconds for m in self.marks.values() for tally in m.steps.values())


@dataclass(frozen=True, kw_only=True)
class StepView:
    """A step of the documents' way, over all tasks that are finished.

    Attributes:
        n_read: documents that were read in the same tasks: what shares of all are shares of.
    """

    stage: str
    name: str
    tally: StepTally
    n_read: int

    @property
    def dropped(self) -> int:
        """Documents."""
        return sum(amount.documents for amount in self.tally.drops.values())


@dataclass(frozen=True, kw_only=True)
class PipelineView:
    """A run's folder as far as the run has come."""

    plan: Plan
    stages: Sequence[StageView]

    def stage(self, name: str) -> StageView | None:
        """The stage of this name, if the plan has it."""
        return next((stage for stage in self.stages if stage.name == name), None)

    @property
    def is_complete(self) -> bool:
        """Whether all stages are."""
        return all(stage.is_complete for stage in self.stages)

    @cached_property
    def read(self) -> StepTally:
        """What reading came to: records, packed bytes, what was passed over by reason."""
        return self.tally("filter", READ)

    def tally(self, stage: str, step: str) -> StepTally:
        """The sum of a step over the finished tasks of a stage; of nothing, zero."""
        total, found = StepTally(), self.stage(stage)
        for mark in found.marks.values() if found else ():
            if step in mark.steps:
                total.add(mark.steps[step])
        return total

    @cached_property
    def steps(self) -> list[StepView]:
        """The steps that documents go through, in their order, reading left out.

        Setting aside what ended a worker before ("skip") is a step where it happened.
        """
        steps = []
        for name in PASSES:
            stage = self.stage(name)
            if stage is None or not stage.marks:
                continue
            n_read = self._n_read(stage.marks)
            for step in dict.fromkeys(s for mark in stage.marks.values() for s in mark.steps):
                view = StepView(stage=name, name=step, tally=self.tally(name, step), n_read=n_read)
                if step != READ and (step != "skip" or view.dropped):
                    steps.append(view)
        return steps

    def _n_read(self, shards: Mapping[int, Any]) -> int:
        stage = self.stage("filter")
        assert stage is not None, "every plan begins by it"
        read = (stage.marks[index].steps[READ] for index in shards if index in stage.marks)
        return sum(tally.given.documents for tally in read)

    @cached_property
    def work(self) -> list[tuple[str, StepTally]]:
        """What is done between the passes, by stage, with what it took."""
        names = [stage.name for stage in self.stages if stage.name not in PASSES and stage.marks]
        return [(name, self.tally(name, name)) for name in names]

    def in_order(self) -> list[tuple[str, StepTally]]:
        """Steps and work as they were done, from reading on."""
        rows = [(READ, self.read)]
        steps, work = self.steps, dict(self.work)
        for stage in self.stages:
            if stage.name in work:
                rows.append((stage.name, work[stage.name]))
            rows += [(step.name, step.tally) for step in steps if step.stage == stage.name]
        return rows

    def notes(self, stage: str, key: str) -> list[Any]:
        """What the tasks of a stage noted under a key, one after the other."""
        found = self.stage(stage)
        marks = found.marks.values() if found else ()
        return [note for mark in marks for note in mark.notes.get(key, ())]

    def samples(self) -> list[dict[str, Any]]:
        """Examples by stage, step and reason: in each those of the smallest hashes."""
        records = []
        for name in PASSES:
            stage = self.stage(name)
            if stage is None or not stage.marks:
                continue
            merged = Samples(self.plan.config.n_samples, self.plan.config.seed)
            for index in _evenly(sorted(stage.marks), MAX_SAMPLED_TASKS):
                merged.add(read_lines(self.plan.path(name, index, SAMPLES)))
            records += [record | {"stage": name} for record in merged.records()]
        return records


def read_view(folder: Path) -> PipelineView:
    """Reads a folder's plan and marks.

    Raises:
        FileNotFoundError: it is no folder of a pipeline.
        FormatError: its plan is damaged.
    """
    if not (folder / PLAN_FILE).is_file():
        raise FileNotFoundError(
            f"{folder} must be the folder of a pipeline, and holds no {PLAN_FILE}"
        )
    plan = read_plan(folder)
    marks = finished_marks(plan)
    stages = [StageView(stage=stage, marks=marks[stage.name]) for stage in plan.stages]
    return PipelineView(plan=plan, stages=stages)


def _evenly(numbers: Sequence[int], n: int) -> list[int]:
    """At most so many of the numbers, over their whole length."""
    if len(numbers) <= n:
        return list(numbers)
    return [numbers[i * len(numbers) // n] for i in range(n)]


def languages(view: PipelineView) -> Counter[str]:
    """Documents by the language that was found, before it dropped any."""
    return view.tally("filter", "language").histogram
