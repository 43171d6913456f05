"""`rslm data run | plan`."""

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from rslm.terminal import Switch, note, print_json, print_table, with_prefix

if TYPE_CHECKING:
    from rslm.data.pipeline import Part, Plan
    from rslm.data.pipeline.marks import Mark
    from rslm.data.pipeline.plan import Stage

Config = Annotated[Path, tyro.conf.Positional]
_ARRAY = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN")
# What a core does of the inputs' bytes in a second, where no task has shown it yet.
_ASSUMED = {"filter": 5e6}
_ASSUMED_OTHER = 50e6


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Make of files what a config says: text extracted, judged, deduplicated, tokenized.

    The same command goes on with what was stopped; what a changed config leaves valid stays.
    """

    config: Config
    """TOML file."""
    workers: int | None = None
    """Processes; one for each core unless given."""
    backend: Literal["local", "ray"] = "local"
    """Where tasks run: on this machine, or on a Ray cluster."""
    address: str | None = None
    """Of a Ray cluster ("auto" finds the one that this machine is in); without it one is started
    here."""
    stage: str | None = None
    """Only this stage; those before it must be finished."""
    task_index: int | None = None
    """Only tasks of this number modulo --n-tasks; SLURM_ARRAY_TASK_ID with --stage unless given."""
    n_tasks: int | None = None
    """Into how many parts the stage's tasks are dealt; SLURM_ARRAY_TASK_COUNT with --stage."""
    strict: Switch = False
    """Hash the files of what is finished, and make anew what has changed."""

    def __post_init__(self) -> None:
        """Refuse what does not go together."""
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers must be at least 1, got {self.workers}")
        if self.address is not None and self.backend != "ray":
            raise ValueError("address is of a Ray cluster; add --backend ray")
        for name in ("task_index", "n_tasks"):
            if getattr(self, name) is not None and self.stage is None:
                raise ValueError(f"{name} needs the stage whose tasks are meant; add --stage")


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """Look at what a run would do, without doing it: stages, tasks, what is finished already."""

    config: Config
    """TOML file."""
    json: Switch = False
    """Print JSON."""


def run(options: RunOptions) -> None:
    """Does what is left, and says where the result lies."""
    from rslm.commands.data_progress import shown_progress
    from rslm.data.pipeline import run_pipeline
    from rslm.process import n_cpus

    plan = read_checked_plan(options.config)
    part = part_of(options)
    with shown_progress() as on_progress:
        run_pipeline(
            plan,
            n_workers=options.workers or (1 if part else n_cpus()),
            backend=options.backend,
            address=options.address,
            part=part,
            strict=options.strict,
            on_progress=on_progress,
        )
    print(plan.folder / (part.stage if part else plan.stages[-1].name))
    note(f"next: rslm data report {shlex.quote(str(plan.folder))}")


def part_of(options: RunOptions) -> "Part | None":
    """The part of a stage that flags, or the variables of a Slurm array, ask for."""
    from rslm.data.pipeline import Part

    if options.stage is None:
        return None
    index, count, first = (os.environ.get(name) for name in _ARRAY)
    task_index, n_tasks = options.task_index, options.n_tasks
    if task_index is None and n_tasks is None and index is not None:
        try:
            task_index, n_tasks = int(index) - int(first or 0), int(count or 1)
        except ValueError:
            raise ValueError(
                f"{', '.join(_ARRAY)} must be whole numbers, got {index}, {count}, {first}"
            ) from None
    return Part(
        stage=options.stage,
        task_index=0 if task_index is None else task_index,
        n_tasks=1 if n_tasks is None else n_tasks,
    )


def read_checked_plan(config: Path) -> "Plan":
    """The plan of a config file, once everything that it names is there."""
    from rslm.data.pipeline import make_plan, read_pipeline_config
    from rslm.data.pipeline.checks import check_config, warnings_of

    read = read_pipeline_config(config)
    check_config(read)
    found = make_plan(read)
    for warning in warnings_of(found):
        note(f"warning: {warning}")
    return found


def plan(options: PlanOptions) -> None:
    """Prints a row for each stage, and what is left to do."""
    from rslm.data.pipeline.marks import finished_marks
    from rslm.data.pipeline.stages import step_names

    planned = read_checked_plan(options.config)
    steps = step_names(planned)
    marks = finished_marks(planned)
    n_bytes = sum(shard.n_bytes for shard in planned.shards)
    seconds = {
        stage.name: seconds_left(planned, stage, marks[stage.name]) for stage in planned.stages
    }
    if options.json:
        stages = [
            {
                "stage": stage.name,
                "tasks": stage.n_tasks,
                "done": len(marks[stage.name]),
                "core_seconds_left": seconds[stage.name],
            }
            for stage in planned.stages
        ]
        record = {"files": len(planned.shards), "bytes": n_bytes, "steps": steps, "stages": stages}
        print_json(record)
        return
    rows = [
        [stage.name, stage.n_tasks, len(marks[stage.name]), duration(seconds[stage.name])]
        for stage in planned.stages
    ]
    print(f"steps: {', '.join(steps)}")
    print_table(["stage", "tasks", "done", "core time left"], rows)
    print(
        f"{len(planned.shards):,} shards, {with_prefix(n_bytes, 'B')}; "
        f"about {duration(sum(seconds.values()))} on one core"
    )


def seconds_left(planned: "Plan", stage: "Stage", marks: "Mapping[int, Mark]") -> float:
    """An estimate: at the speed of the stage's finished tasks, else at a guessed one."""
    sizes = planned.task_bytes(stage)
    done = sum(sizes[index] for index in marks)
    taken = sum(mark.seconds for mark in marks.values())
    left = sum(sizes) - done
    assumed = _ASSUMED.get(stage.name, _ASSUMED_OTHER)
    return left / (done / max(taken, 1e-3) if done else assumed)


def duration(seconds: float) -> str:
    """As people read it: 3 s, 12 min, 4.2 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
