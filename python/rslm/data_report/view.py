"""A pipeline's report as it is shown: the documents' way step by step, and the work between.

The folder may be of a run that goes on or was stopped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rslm.data.pipeline.plan import PASSES, PLAN_FILE, Plan
from rslm.data.pipeline.report import PipelineReport, StageReport
from rslm.data.pipeline.tally import StepTally

READ = "read"


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

    report: PipelineReport

    @property
    def plan(self) -> Plan:
        """The run's."""
        return self.report.plan

    @property
    def stages(self) -> Sequence[StageReport]:
        """All of the plan, in their order."""
        return list(self.report.stages.values())

    def stage(self, name: str) -> StageReport | None:
        """The stage of this name, if the plan has it."""
        return self.report.stages.get(name)

    @property
    def is_complete(self) -> bool:
        """Whether all stages are."""
        return self.report.is_finished

    @cached_property
    def read(self) -> StepTally:
        """What reading came to: records, packed bytes, what was passed over by reason."""
        return self.tally("filter", READ)

    def tally(self, stage: str, step: str) -> StepTally:
        """The sum of a step over the finished tasks of a stage; of nothing, zero."""
        found = self.stage(stage)
        return found.steps.get(step, StepTally()) if found else StepTally()

    @cached_property
    def steps(self) -> list[StepView]:
        """The steps that documents go through, in their order, reading left out.

        Setting aside what ended a worker before ("skip") is a step where it happened.
        """
        steps = []
        for stage in self.report.passes:
            n_read = self._n_read(stage.marks)
            for step, tally in stage.steps.items():
                view = StepView(stage=stage.name, name=step, tally=tally, n_read=n_read)
                if step != READ and (step != "skip" or view.dropped):
                    steps.append(view)
        return steps

    def _n_read(self, shards: Mapping[int, Any]) -> int:
        marks = self.report.marks("filter")
        read = (marks[index].steps[READ] for index in shards if index in marks)
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
        return found.notes(key) if found else []

    def samples(self) -> list[dict[str, Any]]:
        """Examples by stage, step and reason: in each those of the smallest hashes."""
        return [
            record | {"stage": stage.name}
            for stage in self.report.passes
            for record in self.report.samples(stage.name)
        ]


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
    return PipelineView(report=PipelineReport.read(folder))


def languages(view: PipelineView) -> Counter[str]:
    """Documents by the language that was found, before it dropped any."""
    return view.tally("filter", "language").histogram


def languages_kept(view: PipelineView) -> Counter[str]:
    """Documents by language that the last step so far has left."""
    return view.steps[-1].tally.languages if view.steps else Counter()
