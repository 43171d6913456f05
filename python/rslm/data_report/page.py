"""A run as one self-contained page, without scripts for plots: bars, tables and texts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from rslm.config import to_record
from rslm.data_report import words
from rslm.data_report.examples import examples
from rslm.data_report.extrapolate import Extrapolation, n_tokens
from rslm.data_report.numbers import share
from rslm.data_report.sections import duplicates, funnels, language_bars, reasons, time
from rslm.data_report.view import PipelineView
from rslm.files import require_place, write_atomically
from rslm.html_report.blocks import (
    Block,
    Cell,
    Fact,
    Facts,
    Notes,
    Page,
    Section,
    Table,
)
from rslm.html_report.page import render
from rslm.run_folder import flatten
from rslm.series import duration

MAX_FILES = 100


def write_page(view: PipelineView, out: Path, extrapolation: Extrapolation | None) -> int:
    """Writes the page beside its place, renames it, and gives its size in bytes.

    Raises:
        FileNotFoundError: `out` is to be in no folder.
        ValueError: it is a folder.
    """
    if out.is_dir():
        raise ValueError(f"html must be a file, and {out} is a folder")
    require_place(out)
    data = render(make_page(view, extrapolation))
    write_atomically(out, data)
    return len(data)


def make_page(view: PipelineView, extrapolation: Extrapolation | None) -> Page:
    """The report as blocks."""
    parts = {
        ("Summary", ""): _summary(view, extrapolation),
        ("Steps", _STEPS): funnels(view),
        ("Reasons", _REASONS): reasons(view),
        ("Languages and scores", ""): language_bars(view),
        ("Duplicates", ""): duplicates(view),
        ("Time", _TIME): time(view),
        ("Examples", ""): iter([shown] if (shown := examples(view)) else []),
        ("Configuration", ""): _configuration(view),
    }
    sections = [
        Section(title=title, lead=lead, blocks=list(blocks))
        for (title, lead), blocks in parts.items()
    ]
    sentences = [words.state(view), words.reading(view), words.result(view)]
    return Page(
        title=f"Data pipeline {view.plan.folder.resolve().name}",
        lead=" ".join(filter(None, sentences)),
        sections=[section for section in sections if section.blocks],
        footer=f"Made from {view.plan.folder.resolve()}.",
    )


_STEPS = (
    "What came into each step, and what went on. Steps stand in their order; shares of all are of "
    "the documents that were read."
)
_REASONS = (
    "Why documents and lines were taken out, the commonest reason first. A document counts for the "
    "first step and reason that took it; what came later never saw it."
)
_TIME = "Processor time of each step, summed over all tasks, and what it got through in it."


def _summary(view: PipelineView, extrapolation: Extrapolation | None) -> Iterator[Block]:
    read, steps = view.read, view.steps
    cpu = sum(stage.cpu_seconds for stage in view.stages)
    facts = [
        Fact(
            label="Read",
            value=words.plural(read.given.documents, "document"),
            note=f"{words.size(read.taken.bytes)} packed, {words.size(read.given.bytes)} unpacked",
        )
    ]
    if steps:
        last = steps[-1].tally.given
        kept = words.percent(share(last.documents, steps[-1].n_read))
        facts += [
            Fact(
                label="Kept",
                value=words.plural(last.documents, "document"),
                note=f"{kept} % of all",
            ),
            Fact(
                label="Text kept",
                value=words.size(last.bytes),
                note=f"{words.amount(last.characters)} characters",
            ),
        ]
    if (tokens := n_tokens(view)) is not None:
        facts.append(Fact(label="Tokens", value=words.amount(tokens), note=f"{tokens:,}"))
    pace = read.taken.bytes / cpu if cpu else None
    facts.append(
        Fact(
            label="Processor time",
            value=duration(cpu),
            note=f"{words.speed(pace)} MB of packed input a second and core",
        )
    )
    yield Facts(facts=facts)
    if extrapolation is not None:
        yield Notes(
            title=words.plural(extrapolation.n_files, "file"), notes=words.forecast(extrapolation)
        )


def _configuration(view: PipelineView) -> Iterator[Block]:
    plan = view.plan
    options = flatten(to_record(plan.config))
    yield _texts(
        "Options, as they were resolved",
        ("option", "value"),
        [(name, json.dumps(value, ensure_ascii=False)) for name, value in options.items()],
    )
    yield _texts(
        "Made with",
        ("what", "name", "version", "SHA-256"),
        [(each.what, each.name, each.version, each.sha256) for each in plan.made_with],
    )
    yield Table(
        caption="Stages",
        columns=[
            ("stage", ""),
            ("tasks", ""),
            ("finished", ""),
            ("hash", "of what makes its bytes"),
        ],
        rows=[
            [
                Cell(value=stage.name, text=stage.name),
                Cell(value=stage.stage.n_tasks, text=f"{stage.stage.n_tasks:,}"),
                Cell(value=len(stage.marks), text=f"{len(stage.marks):,}"),
                Cell(value=stage.stage.hash, text=stage.stage.hash),
            ]
            for stage in view.stages
        ],
        is_sortable=False,
    )
    files = [file for shard in plan.shards for file in shard.files]
    title = words.plural(len(files), "input file")
    first = f", of which the first {MAX_FILES}" if len(files) > MAX_FILES else ""
    yield Table(
        caption=f"{title}{first}",
        columns=[("file", ""), ("bytes", "as it is packed")],
        rows=[
            [Cell(value=path, text=path), Cell(value=n_bytes, text=words.size(n_bytes))]
            for path, _, n_bytes in files[:MAX_FILES]
        ],
    )


def _texts(caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    return Table(
        caption=caption,
        columns=[(head, "") for head in heads],
        rows=[[Cell(value=text, text=text) for text in row] for row in rows],
        is_sortable=False,
    )
