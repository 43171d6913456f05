"""Completion marks: what a task reports, written last, so that it stands for a finished task.

A mark holds the hash of what determines the task's bytes, a hash of what it read of the stages
before, and the hashes of its files. Where all of them hold, the task is not done again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rslm.data.pipeline.checked import checked_record, unchecked_record
from rslm.data.pipeline.ingredients import digest
from rslm.data.pipeline.plan import Plan, Stage
from rslm.data.pipeline.shards import hash_file, written_beside
from rslm.data.pipeline.tally import StepTally

MARK = "report.json"


@dataclass(frozen=True, kw_only=True)
class Task:
    """A part of a stage: what travels to whoever does it."""

    stage: str
    index: int
    upstream: str
    """Hash of the files of all tasks of the stages before."""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """The report of a finished task.

    Attributes:
        hash: of what determines its bytes, from the plan.
        upstream: of what it read of the stages before.
        files: the hash of each file that it wrote, by name.
        n_rows: documents that it wrote or signed.
        seconds: from its start to its end, by the clock, at the last attempt.
        steps: what each step did, in the order of the steps.
        notes: what else it found, such as examples of clusters.
    """

    stage: str
    index: int
    hash: str
    upstream: str
    files: dict[str, str]
    n_rows: int = 0
    seconds: float = 0.0
    steps: dict[str, StepTally] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)


def mark_path(plan: Plan, stage: str, index: int) -> Path:
    """Where the mark of a task lies."""
    return plan.path(stage, index, MARK)


def write_mark(plan: Plan, mark: Mark, attempt: str) -> None:
    """Writes the mark of a task whose files are in their places."""
    steps = [{"step": name} | tally.to_record() for name, tally in mark.steps.items()]
    record = checked_record(vars(mark) | {"steps": steps})
    path = mark_path(plan, mark.stage, mark.index)
    with written_beside(path, attempt) as beside:
        beside.write_text(json.dumps(record, ensure_ascii=False, indent=1), encoding="utf-8")


def read_mark(plan: Plan, stage: str, index: int) -> Mark | None:
    """The mark of a task; None where there is none, or none that can be read."""
    try:
        record = unchecked_record(json.loads(mark_path(plan, stage, index).read_bytes()))
        steps = {step.pop("step"): StepTally.from_record(step) for step in record.pop("steps")}
        return Mark(**record, steps=steps)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        # What another version wrote, or a disk lost: the task is done anew.
        return None


def finished_mark(
    plan: Plan, task: Task, *, strict: bool = False, check_inputs: bool = False
) -> Mark | None:
    """The mark of a task that need not be done again, else None.

    Args:
        plan: the plan of now.
        task: the task.
        strict: hash the task's files, too.
        check_inputs: an input that was written after the mark undoes it.
    """
    mark = read_mark(plan, task.stage, task.index)
    if mark is None or mark.hash != plan.task_hash(task.stage, task.index):
        return None
    if check_inputs and task.stage == "filter" and _inputs_are_newer(plan, task.index):
        return None
    folder = plan.folder / task.stage
    if mark.upstream != task.upstream or not all((folder / name).exists() for name in mark.files):
        return None
    if strict and not all(_holds(folder / name, known) for name, known in mark.files.items()):
        return None
    return mark


def _inputs_are_newer(plan: Plan, index: int) -> bool:
    """Whether an input was written after the mark: another text of the same size and name.

    Where the inputs are out of reach, as for a report elsewhere, nothing is known to be newer.
    """
    try:
        made = mark_path(plan, "filter", index).stat().st_mtime_ns
        return any(os.stat(path).st_mtime_ns > made for path, _, _ in plan.shards[index].files)
    except OSError:
        return False


def _holds(path: Path, known: str) -> bool:
    try:
        return hash_file(path) == known
    except ValueError:
        return False


def chain(upstream: str, marks: Iterable[Mark]) -> str:
    """The hash of the files of all stages up to one, given that of the stages before it."""
    return digest([upstream, [sorted(mark.files.items()) for mark in marks]])


def tasks_of(stage: Stage, upstream: str) -> list[Task]:
    """The tasks of a stage."""
    return [
        Task(stage=stage.name, index=index, upstream=upstream) for index in range(stage.n_tasks)
    ]


def finished_marks(plan: Plan) -> dict[str, dict[int, Mark]]:
    """The marks that hold, of every stage by the number of the task.

    Behind a stage that is not finished none does: what its tasks will write is not known.
    """
    marks: dict[str, dict[int, Mark]] = {stage.name: {} for stage in plan.stages}
    upstream = ""
    for stage in plan.stages:
        found = {task.index: finished_mark(plan, task) for task in tasks_of(stage, upstream)}
        held = {index: mark for index, mark in found.items() if mark is not None}
        marks[stage.name] = held
        if len(held) < stage.n_tasks:
            break
        upstream = chain(upstream, held.values())
    return marks
