"""A run as tables of a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rslm.data.pipeline.tally import StepTally
from rslm.data_report import words
from rslm.data_report.extrapolate import Extrapolation
from rslm.data_report.numbers import (
    CLASSIFY,
    binned,
    by_count,
    by_documents,
    by_language,
    bytes_per_second,
    compared,
    scores,
    share,
)
from rslm.data_report.view import READ, PipelineView, StepView, languages
from rslm.terminal import print_table

MAX_LANGUAGES = 12
Rows = Sequence[Sequence[Any]]


def print_report(view: PipelineView, extrapolation: Extrapolation | None) -> None:
    """Prints what each step did, and what was found on the way."""
    for sentence in (words.state(view), words.reading(view), words.result(view)):
        if sentence:
            print(sentence)
    for header, rows in tables(view):
        print()
        print_table(header, rows)
    if extrapolation is not None:
        print()
        print("\n".join(words.forecast(extrapolation)))


def tables(view: PipelineView) -> Iterator[tuple[Sequence[str], Rows]]:
    """Headings and rows of each table that has something to say."""
    candidates: list[tuple[Sequence[str], Rows]] = [
        (DOCUMENTS, [row for step in view.steps for row in _documents(step)]),
        (SIZES, _sizes(view) if view.stages[0].marks else []),
        (("records passed over", "records"), _counts(_skipped(view))),
        (("lines removed", "lines", "by step"), _lines(view)),
        (("counted on the way", "number", "by step"), _extras(view)),
        (LANGUAGES, _languages(view)),
        (("score", "documents", "by step"), _scores(view)),
        (("members of a cluster", "clusters", "documents", "by step"), _clusters(view)),
        (("made with", "name", "version", "SHA-256"), _made_with(view)),
    ]
    yield from ((header, rows) for header, rows in candidates if rows)


LANGUAGES = ("language", "documents", "% of these", "left at the end", "% of the language")
DOCUMENTS = (
    "step, reason",
    "documents in",
    "dropped",
    "% of all",
    "% of remaining",
    "kept",
    "kept, % of all",
)
SIZES = (
    "step",
    "bytes in",
    "bytes kept",
    "characters kept",
    "lines removed",
    "CPU s",
    "MB/s",
)


def _documents(step: StepView) -> Iterator[Sequence[Any]]:
    taken, kept = step.tally.taken.documents, step.tally.given.documents
    yield (
        step.name,
        taken,
        step.dropped,
        words.percent(share(step.dropped, step.n_read)),
        words.percent(share(step.dropped, taken)),
        kept,
        words.percent(share(kept, step.n_read)),
    )
    for reason, dropped in by_documents(step.tally.drops):
        yield (
            f"  {reason}",
            "",
            dropped.documents,
            words.percent(share(dropped.documents, step.n_read)),
            words.percent(share(dropped.documents, taken)),
            "",
            "",
        )


def _sizes(view: PipelineView) -> Rows:
    total = sum(stage.cpu_seconds for stage in view.stages)
    work = dict(view.work)
    return [
        *(_size(name, tally, name in work) for name, tally in view.in_order()),
        ("all", "", "", "", "", words.seconds(total), ""),
    ]


def _size(name: str, tally: StepTally, is_work: bool) -> Sequence[Any]:
    """Work between the passes takes nothing out, and some of it sees no text."""
    taken, given = tally.taken.bytes, tally.given
    n_lines = sum(tally.lines_removed.values())
    return (
        f"{name} (packed)" if name == READ else name,
        words.size(taken) if taken else "",
        "" if is_work else words.size(given.bytes),
        "" if is_work else words.amount(given.characters),
        f"{n_lines:,}" if n_lines else "",
        words.seconds(tally.cpu_seconds),
        words.speed(bytes_per_second(tally)) if taken else "",
    )


def _skipped(view: PipelineView) -> Mapping[str, int]:
    return {reason: dropped.documents for reason, dropped in view.read.drops.items()}


def _counts(counts: Mapping[str, int]) -> Rows:
    return by_count(counts)


def _lines(view: PipelineView) -> Rows:
    return [
        (reason, n, step.name)
        for step in view.steps
        for reason, n in by_count(step.tally.lines_removed)
    ]


def _extras(view: PipelineView) -> Rows:
    of_steps = [(step.name, step.tally.counts) for step in view.steps]
    return [
        (what.replace("_", " "), n, name)
        for name, counts in [*of_steps, *compared(view)]
        for what, n in by_count(counts)
        if n
    ]


def _languages(view: PipelineView) -> Rows:
    total = sum(languages(view).values())
    return [
        (code, n, words.percent(n / total), kept, words.percent(kept / n))
        for code, n, kept in by_language(view, MAX_LANGUAGES)
    ]


def _scores(view: PipelineView) -> Rows:
    return [
        (*row, step.name)
        for step in view.steps
        if step.name.startswith(CLASSIFY)
        for row in scores(step.tally.histogram)
    ]


def _clusters(view: PipelineView) -> Rows:
    return [
        (*row, name)
        for name, tally in view.work
        if name.endswith(".cluster")
        for row in binned(tally.histogram)
    ]


def _made_with(view: PipelineView) -> Rows:
    # So many digits tell any two files apart that one has.
    return [(each.what, each.name, each.version, each.sha256[:12]) for each in view.plan.made_with]
