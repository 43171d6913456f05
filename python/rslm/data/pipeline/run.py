"""A pipeline run from its first stage to its last, or one stage of it, or some tasks of that.

What an earlier run finished is not done again, so the same call goes on with what was stopped.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from rslm.data.pipeline.local_backend import LocalBackend
from rslm.data.pipeline.marks import Mark, Task, chain, finished_mark, mark_path, tasks_of
from rslm.data.pipeline.plan import Plan, Stage, write_plan
from rslm.data.pipeline.supervisor import StoppedError, remove_beside
from rslm.files import locked
from rslm.process import EXIT_TERMINATED, StopSignals

Backend = Literal["local", "ray"]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a stage is: tasks and the bytes of inputs that they stand for."""

    stage: str
    n_tasks: int
    n_done: int
    n_bytes: int
    n_bytes_done: int
    n_found: int
    """Tasks of those done that an earlier run had finished."""
    n_bytes_found: int
    """What those stand for."""
    n_documents: int
    """Documents that all tasks done wrote, or signed."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some tasks of one stage: every `n_tasks`th from `task_index` on, as arrays of Slurm do."""

    stage: str
    task_index: int = 0
    n_tasks: int = 1

    def __post_init__(self) -> None:
        """Refuse numbers that cannot be."""
        if not 0 <= self.task_index < self.n_tasks:
            raise ValueError(
                f"task_index must be at least 0 and below n_tasks, {self.n_tasks}, "
                f"got {self.task_index}"
            )


def run_pipeline(
    plan: Plan,
    *,
    n_workers: int = 1,
    backend: Backend = "local",
    address: str | None = None,
    part: Part | None = None,
    strict: bool = False,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> None:
    """Does what is not done yet of a plan.

    The bytes of all files but the reports, which hold times, are the same whatever `n_workers`,
    `backend` and `address` are, and however often the run was stopped.

    Args:
        plan: what is to be done.
        n_workers: processes on this machine, or the cores of a Ray cluster of its own.
        backend: this machine, or Ray.
        address: of a Ray cluster; without it "ray" starts one here.
        part: one stage, or some of its tasks; all stages unless given.
        strict: hash the files of finished tasks, and do those again that changed.
        on_progress: called when a stage begins and whenever a task has ended.

    Raises:
        ValueError: an earlier stage of `part` is not finished, or a task's input is not what it
            must be.
        OSError: reading or writing failed; what is finished stays.
        BlockingIOError: another run uses the folder.
        KeyboardInterrupt: Ctrl-C; SystemExit, with code 75: SIGTERM. The same call goes on.
    """
    plan.folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        if part is None:
            # Elements of an array share the folder, and two of them at one task do no harm.
            stack.enter_context(locked(plan.folder, "folder of a pipeline"))
        write_plan(plan)
        stop = stack.enter_context(StopSignals())
        try:
            with _open_backend(plan, backend, address, n_workers, stop) as run:
                _run_stages(plan, run, part, strict, on_progress)
        except StoppedError:
            if stop.reason == "interrupted":
                raise KeyboardInterrupt from None
            raise SystemExit(EXIT_TERMINATED) from None


@contextlib.contextmanager
def _open_backend(
    plan: Plan, backend: Backend, address: str | None, n_workers: int, stop: StopSignals
) -> Iterator[Callable[[Sequence[Task]], Iterator[Mark]]]:
    """What does tasks, as a function."""

    def is_stopped() -> bool:
        return stop.received is not None

    if backend == "local":
        with LocalBackend(plan, n_workers, is_stopped) as local:
            yield local.run
    else:
        # Imported here: whoever does not use it need not have it.
        from rslm.data.pipeline.ray_backend import RayBackend

        with RayBackend(plan, address, n_workers, is_stopped) as cluster:
            yield cluster.run


def _run_stages(
    plan: Plan,
    run: Callable[[Sequence[Task]], Iterator[Mark]],
    part: Part | None,
    strict: bool,
    on_progress: Callable[[Progress], None],
) -> None:
    if part is not None:
        stage = plan.stage(part.stage)
        tasks = tasks_of(stage, upstream_of(plan, stage))[part.task_index :: part.n_tasks]
        _run_tasks(plan, stage, tasks, run, strict, on_progress)
        return
    upstream = ""
    for stage in plan.stages:
        tasks = tasks_of(stage, upstream)
        marks = _run_tasks(plan, stage, tasks, run, strict, on_progress)
        # What attempts that were killed have left; nobody else is at work here.
        remove_beside(plan, stage.name)
        upstream = chain(upstream, marks)


def upstream_of(plan: Plan, stage: Stage) -> str:
    """The hash of what the stages before one wrote.

    Raises:
        ValueError: a task of them is not finished; the first is named by its mark.
    """
    upstream = ""
    for before in plan.stages[: plan.stages.index(stage)]:
        marks = []
        for task in tasks_of(before, upstream):
            mark = finished_mark(plan, task)
            if mark is None:
                raise ValueError(
                    f"stage {stage.name} must come after {before.name}, of which task "
                    f"{task.index} is not finished: {mark_path(plan, before.name, task.index)}"
                )
            marks.append(mark)
        upstream = chain(upstream, marks)
    return upstream


def _run_tasks(
    plan: Plan,
    stage: Stage,
    tasks: Sequence[Task],
    run: Callable[[Sequence[Task]], Iterator[Mark]],
    strict: bool,
    on_progress: Callable[[Progress], None],
) -> list[Mark]:
    """Does those tasks that are not finished; the marks of all, in the order of the tasks."""
    found = {
        task.index: finished_mark(plan, task, strict=strict, check_inputs=True) for task in tasks
    }
    marks = {index: mark for index, mark in found.items() if mark is not None}
    sizes = plan.task_bytes(stage)
    progress = Progress(
        stage=stage.name,
        n_tasks=len(tasks),
        n_done=len(marks),
        n_bytes=sum(sizes[task.index] for task in tasks),
        n_bytes_done=sum(sizes[index] for index in marks),
        n_found=len(marks),
        n_bytes_found=sum(sizes[index] for index in marks),
        n_documents=sum(mark.n_rows for mark in marks.values()),
    )
    on_progress(progress)
    for mark in run([task for task in tasks if task.index not in marks]):
        marks[mark.index] = mark
        progress = replace(
            progress,
            n_done=len(marks),
            n_bytes_done=progress.n_bytes_done + sizes[mark.index],
            n_documents=progress.n_documents + mark.n_rows,
        )
        on_progress(progress)
    return [marks[task.index] for task in tasks]
