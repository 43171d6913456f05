"""What a run would take and give on more files like its own."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rslm.data.pipeline.report import StageReport
from rslm.data_report.view import PipelineView

CRAWL_FILES = 100_000
"""WET or WARC files of a crawl of Common Crawl, about."""
MIN_SHARDS = 4
"""Of fewer, how much they differ cannot be told."""


@dataclass(frozen=True, kw_only=True)
class Extrapolation:
    """A run scaled to a number of files.

    Attributes:
        n_files: how many.
        n_measured: files whose tasks are finished, which it is taken from.
        input_bytes: of the files, as they are packed.
        cpu_seconds: of all tasks.
        elapsed_seconds: on `n_cpus` cores: clustering has one task and one thread.
        documents, bytes, tokens: what is kept; None where the run has not come so far.
        cpu_error, bytes_error: relative standard errors of what a file takes and gives, since
            files differ; None of few files.
        not_begun: stages that it leaves out, as none of their tasks is finished.
    """

    n_files: int
    n_cpus: int
    n_measured: int
    input_bytes: float
    cpu_seconds: float
    elapsed_seconds: float
    documents: float | None
    bytes: float | None
    tokens: float | None
    cpu_error: float | None
    bytes_error: float | None
    not_begun: Sequence[str]


def extrapolate(view: PipelineView, n_files: int, n_cpus: int) -> Extrapolation | None:
    """The run at `n_files` files on `n_cpus` cores; None where no task has read a file.

    Everything is taken to grow as the files do. Deduplication finds more in more text, so what is
    kept is an upper bound; and the tasks of a stage that wait for the last are not counted.
    """
    first = view.stages[0]
    n_measured = sum(len(view.plan.shards[index].files) for index in first.marks)
    if not n_measured:
        return None
    scale = n_files / n_measured
    begun = [stage for stage in view.stages if stage.marks]
    # A stage that is not finished stands for all files that the first one has read.
    cpu = {stage.name: scale * stage.cpu_seconds * _missing(stage, first) for stage in begun}
    kept = _kept(view)
    return Extrapolation(
        n_files=n_files,
        n_cpus=n_cpus,
        n_measured=n_measured,
        input_bytes=scale * sum(view.plan.shards[index].n_bytes for index in first.marks),
        cpu_seconds=math.fsum(cpu.values()),
        elapsed_seconds=math.fsum(
            seconds / (1 if name.endswith(".cluster") else n_cpus) for name, seconds in cpu.items()
        ),
        documents=None if kept is None else scale * kept[0],
        bytes=None if kept is None else scale * kept[1],
        tokens=None if (n := n_tokens(view)) is None else scale * n,
        cpu_error=_relative_error([_cpu(first, index) for index in first.marks]),
        bytes_error=None if kept is None else _relative_error(_bytes_by_shard(view)),
        not_begun=[stage.name for stage in view.stages if not stage.marks],
    )


def n_tokens(view: PipelineView) -> int | None:
    """Tokens written; None where the run has not come so far."""
    stage = view.stage("tokenize")
    if stage is None or not stage.is_complete:
        return None
    counts = view.tally("tokenize", "tokenize").counts
    return sum(n for name, n in counts.items() if name.endswith("_tokens"))


def _missing(stage: StageReport, first: StageReport) -> float:
    """How much more a stage takes for all shards that are read than for those that it has done."""
    n_shards = len(first.marks)
    if stage.stage.n_tasks == first.stage.n_tasks:
        return n_shards / len(stage.marks)
    return stage.stage.n_tasks / len(stage.marks)


def _kept(view: PipelineView) -> tuple[float, float] | None:
    """Documents and bytes that the last pass gives, of all shards that are read."""
    last, first = view.stage("finalize"), view.stages[0]
    if last is None or not last.marks:
        return None
    more = _missing(last, first)
    tallies = [list(mark.steps.values())[-1].given for mark in last.marks.values()]
    return more * sum(t.documents for t in tallies), more * sum(t.bytes for t in tallies)


def _bytes_by_shard(view: PipelineView) -> list[float]:
    last = view.stage("finalize")
    marks = last.marks.values() if last else ()
    return [list(mark.steps.values())[-1].given.bytes for mark in marks]


def _cpu(stage: StageReport, index: int) -> float:
    return sum(tally.cpu_seconds for tally in stage.marks[index].steps.values())


def _relative_error(values: Sequence[float]) -> float | None:
    """Standard error of the mean of a shard, as a part of it."""
    if len(values) < MIN_SHARDS or not (mean := statistics.fmean(values)):
        return None
    return statistics.stdev(values) / math.sqrt(len(values)) / mean
