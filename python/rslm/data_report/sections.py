"""Sections of the page: steps, reasons, languages, duplicates, time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from rslm.data.pipeline.tally import StepTally
from rslm.data_report import words
from rslm.data_report.clusters import cluster_examples
from rslm.data_report.numbers import (
    CLASSIFY,
    binned,
    by_count,
    by_language,
    by_number,
    bytes_per_second,
    compared,
    scores,
    share,
)
from rslm.data_report.reasons import meaning
from rslm.data_report.view import PipelineView, StepView, languages
from rslm.html_report.blocks import Bar, Bars, Block, Cell, Table
from rslm.series import duration

MAX_LANGUAGES = 24


def funnels(view: PipelineView) -> Iterator[Block]:
    """Documents and bytes from step to step."""
    steps = view.steps
    if not steps:
        return
    yield Bars(
        caption="Documents",
        name="step",
        parts=["went on", "dropped"],
        columns=["in", "dropped", "% of all", "% of remaining", "kept, % of all"],
        bars=[
            Bar(
                name=step.name,
                parts=[step.tally.given.documents, step.dropped],
                texts=[
                    f"{step.tally.taken.documents:,}",
                    f"{step.dropped:,}",
                    words.percent(share(step.dropped, step.n_read)),
                    words.percent(share(step.dropped, step.tally.taken.documents)),
                    words.percent(share(step.tally.given.documents, step.n_read)),
                ],
            )
            for step in steps
        ],
    )
    of_pages, of_text = _split(steps)
    before = "".join(
        f" Before {step.name} stand the pages with their markup, {words.size(taken)}: the bars "
        "begin behind it."
        for step in of_pages[-1:]
        if (taken := step.tally.taken.bytes)
    )
    yield Bars(
        caption=f"Bytes of text.{before}",
        name="step",
        parts=["went on", "dropped or cut out"],
        columns=["in", "went on", "% of remaining", "characters", "lines removed"],
        bars=[_bytes_bar(step) for step in of_text],
    )


def _split(steps: Sequence[StepView]) -> tuple[Sequence[StepView], Sequence[StepView]]:
    """Steps on pages with markup, and those on text."""
    names = [step.name for step in steps]
    n = names.index("extract") + 1 if "extract" in names else 0
    pages, text = steps[:n], steps[n:]
    # Text that was never HTML passes extraction whole.
    shrunk = bool(pages) and pages[-1].tally.given.bytes < 0.9 * pages[-1].tally.taken.bytes
    return (pages, text) if shrunk and text else ([], steps)


def _bytes_bar(step: StepView) -> Bar:
    taken, given = step.tally.taken, step.tally.given
    n_lines = sum(step.tally.lines_removed.values())
    return Bar(
        name=step.name,
        # A mask may be longer than what it stands for.
        parts=[given.bytes, max(0, taken.bytes - given.bytes)],
        texts=[
            words.size(taken.bytes),
            words.size(given.bytes),
            words.percent(share(given.bytes, taken.bytes)),
            words.amount(given.characters),
            f"{n_lines:,}" if n_lines else "",
        ],
    )


def reasons(view: PipelineView) -> Iterator[Block]:
    """What took documents, lines and records out, and how much."""
    drops = [
        (step, reason, amount) for step in view.steps for reason, amount in step.tally.drops.items()
    ]
    drops.sort(key=lambda entry: (-entry[2].documents, entry[0].name, entry[1]))
    if drops:
        yield Bars(
            caption="Documents dropped",
            name="step: reason",
            parts=["documents"],
            columns=["documents", "% of all", "% of remaining", "bytes"],
            bars=[
                Bar(
                    name=f"{step.name}: {reason}",
                    parts=[amount.documents],
                    texts=[
                        f"{amount.documents:,}",
                        words.percent(share(amount.documents, step.n_read)),
                        words.percent(share(amount.documents, step.tally.taken.documents)),
                        words.size(amount.bytes),
                    ],
                    note=meaning(reason),
                )
                for step, reason, amount in drops
            ],
        )
    yield from _counted("Lines taken out", "lines", _lines(view))
    skipped = {reason: amount.documents for reason, amount in view.read.drops.items()}
    yield from _counted("Records that reading passed over", "records", skipped)
    masked = {
        f"{step.name}: {what}": n
        for step in view.steps
        for what, n in step.tally.counts.items()
        if n
    }
    yield from _counted("Personal data masked, and what else was counted", "number", masked)


def _lines(view: PipelineView) -> dict[str, int]:
    return {
        f"{step.name}: {reason}": n
        for step in view.steps
        for reason, n in step.tally.lines_removed.items()
    }


def _counted(caption: str, what: str, counts: Mapping[str, int]) -> Iterator[Block]:
    if counts:
        yield Bars(
            caption=caption,
            name="what",
            parts=[what],
            columns=[what],
            bars=[
                Bar(name=name, parts=[n], texts=[f"{n:,}"], note=meaning(name.split(": ")[-1]))
                for name, n in by_count(counts)
            ],
        )


def language_bars(view: PipelineView) -> Iterator[Block]:
    """Languages, and scores of classifiers where they were counted."""
    total = sum(languages(view).values())
    if total:
        yield Bars(
            caption=(
                "Languages that were found, before any document was dropped for its own, and what "
                "of each is left at the end"
            ),
            name="language",
            parts=["left at the end", "dropped"],
            columns=["documents", "% of these", "left at the end", "% of the language"],
            bars=[
                Bar(
                    name=code,
                    parts=[kept, n - kept],
                    texts=[
                        f"{n:,}",
                        words.percent(n / total),
                        f"{kept:,}",
                        words.percent(kept / n),
                    ],
                )
                for code, n, kept in by_language(view, MAX_LANGUAGES)
            ],
        )
    for step in view.steps:
        if step.name.startswith(CLASSIFY) and step.tally.histogram:
            yield Bars(
                caption=f"Scores of {step.name.removeprefix(CLASSIFY)}",
                name="score",
                parts=["documents"],
                columns=["documents"],
                bars=[
                    Bar(name=name, parts=[n], texts=[f"{n:,}"])
                    for name, n in scores(step.tally.histogram)
                ],
            )


def duplicates(view: PipelineView) -> Iterator[Block]:
    """Clusters by their size, the largest with their texts."""
    for name, tally in view.work:
        kind, _, what = name.partition(".")
        if what == "cluster":
            yield from _clusters(view, kind, tally)
    counts = {
        f"{name}: {what.replace('_', ' ')}": n
        for name, counted in compared(view)
        for what, n in counted.items()
    }
    if counts:
        rows = [
            [Cell(value=name, text=name), Cell(value=n, text=f"{n:,}")]
            for name, n in counts.items()
        ]
        yield Table(
            caption="What comparing documents and lines counted on its way",
            columns=[("what", ""), ("number", "")],
            rows=rows,
            is_sortable=False,
        )


def _clusters(view: PipelineView, kind: str, tally: StepTally) -> Iterator[Block]:
    title = {"exact": "equal texts", "minhash": "near-duplicates"}.get(kind, kind)
    sizes = by_number(tally.histogram)
    if not sizes:
        return
    n = sum(sizes.values())
    members = sum(int(size) * n for size, n in sizes.items())
    yield Bars(
        caption=(
            f"Clusters of {title}: {words.plural(n, 'cluster')} with "
            f"{words.plural(members, 'document')}, of which one each is kept"
        ),
        name="members",
        parts=["documents in them"],
        columns=["clusters", "documents in them"],
        bars=[
            Bar(name=name, parts=[members], texts=[f"{n:,}", f"{members:,}"])
            for name, n, members in binned(tally.histogram)
        ],
    )
    if (shown := cluster_examples(view, kind)) is not None:
        yield shown


def time(view: PipelineView) -> Iterator[Block]:
    """What each step took."""
    rows = view.in_order()
    total = math.fsum(tally.cpu_seconds for _, tally in rows)
    if not total:
        return
    yield Bars(
        caption=f"{duration(total)} of processor time",
        name="step",
        parts=["seconds"],
        columns=["CPU seconds", "% of all", "bytes in", "MB/s"],
        bars=[
            Bar(
                name=name,
                parts=[tally.cpu_seconds],
                texts=[
                    words.seconds(tally.cpu_seconds),
                    words.percent(tally.cpu_seconds / total),
                    words.size(tally.taken.bytes) if tally.taken.bytes else "",
                    words.speed(bytes_per_second(tally)) if tally.taken.bytes else "",
                ],
            )
            for name, tally in rows
        ],
    )
