"""A run in numbers: what `rslm data report --json` prints, and the table and the page show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from rslm.config import to_record
from rslm.data.pipeline.tally import Amount, StepTally
from rslm.data_report.extrapolate import Extrapolation, n_tokens
from rslm.data_report.view import PipelineView, StepView, languages, languages_kept

MAX_SIZES = 10
"""Sizes of clusters that each have a row."""

CLASSIFY = "classify."
"""How the names of steps begin that classify."""
N_SCORES = 20
"""Bins of the scores from 0 to 1."""


def share(part: float, whole: float) -> float | None:
    """A part of the whole; None where there is no whole."""
    return part / whole if whole else None


def bytes_per_second(tally: StepTally) -> float | None:
    """Of what came in, by processor time; None where too little was measured to say."""
    return tally.taken.bytes / tally.cpu_seconds if tally.cpu_seconds >= 0.001 else None


def report_record(view: PipelineView, extrapolation: Extrapolation | None) -> dict[str, Any]:
    """The run as JSON holds it; keys only ever come to be more."""
    read = view.read
    return {
        "is_complete": view.is_complete,
        "stages": [
            {
                "stage": stage.name,
                "tasks": stage.stage.n_tasks,
                "tasks_finished": len(stage.marks),
                "cpu_seconds": stage.cpu_seconds,
            }
            for stage in view.stages
        ],
        "read": {
            "files": sum(len(view.plan.shards[i].files) for i in view.stages[0].marks),
            "bytes": read.taken.bytes,
            "records": read.taken.documents,
            "documents": vars(read.given),
            "skipped": {reason: a.documents for reason, a in sorted(read.drops.items())},
            "cpu_seconds": read.cpu_seconds,
            "bytes_per_second": bytes_per_second(read),
        },
        "steps": [_step(step) for step in view.steps],
        "work": [
            {
                "stage": name,
                "bytes": tally.taken.bytes,
                "cpu_seconds": tally.cpu_seconds,
                "bytes_per_second": bytes_per_second(tally) if tally.taken.bytes else None,
                "counts": dict(sorted(tally.counts.items())),
                "largest": dict(sorted(tally.largest.items())),
                "histogram": by_number(tally.histogram),
            }
            for name, tally in view.work
        ],
        "languages": dict(by_count(languages(view))),
        "languages_kept": dict(by_count(languages_kept(view))),
        "tokens": n_tokens(view),
        "made_with": [to_record(each) for each in view.plan.made_with],
        "extrapolation": None if extrapolation is None else to_record(extrapolation),
    }


def _step(step: StepView) -> dict[str, Any]:
    tally = step.tally
    return {
        "stage": step.stage,
        "step": step.name,
        "taken": vars(tally.taken),
        "kept": _with_shares(tally.given, step),
        "dropped": {
            reason: _with_shares(amount, step) for reason, amount in by_documents(tally.drops)
        },
        "lines_removed": dict(by_count(tally.lines_removed)),
        "counts": dict(sorted(tally.counts.items())),
        "histogram": by_number(tally.histogram),
        "languages": dict(by_count(tally.languages)),
        "cpu_seconds": tally.cpu_seconds,
        "bytes_per_second": bytes_per_second(tally),
    }


def _with_shares(amount: Amount, step: StepView) -> dict[str, Any]:
    return vars(amount) | {
        "share_of_all": share(amount.documents, step.n_read),
        "share_of_remaining": share(amount.documents, step.tally.taken.documents),
    }


def compared(view: PipelineView) -> list[tuple[str, Mapping[str, int]]]:
    """What comparing counted, stage by stage, without what other numbers say already."""
    told = ("documents", "dropped", "lines")
    return [
        (
            name,
            {what: n for what, n in tally.counts.items() if n and what not in told}
            | {f"largest_{what}": n for what, n in tally.largest.items() if n},
        )
        for name, tally in view.work
    ]


def by_language(view: PipelineView, limit: int) -> list[tuple[str, int, int]]:
    """Languages as (code, documents found, documents left at the end), the commonest first."""
    found, kept = languages(view), languages_kept(view)
    rows = [(code, n, kept[code]) for code, n in by_count(found)]
    if rest := rows[limit:]:
        name = f"{len(rest)} more"
        rows[limit:] = [(name, sum(n for _, n, _ in rest), sum(n for _, _, n in rest))]
    return rows


def by_documents(drops: Mapping[str, Amount]) -> list[tuple[str, Amount]]:
    """Reasons, the commonest first."""
    return sorted(drops.items(), key=lambda entry: (-entry[1].documents, entry[0]))


def by_count(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """Names, the commonest first."""
    return sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))


def by_number(histogram: Mapping[str, int]) -> dict[str, int]:
    """Keys that are numbers in their order, names behind them in theirs."""

    def place(entry: tuple[str, int]) -> tuple[bool, float, str]:
        try:
            return False, float(entry[0]), entry[0]
        except ValueError:
            return True, 0.0, entry[0]

    return dict(sorted(histogram.items(), key=place))


def binned(histogram: Mapping[str, int]) -> list[tuple[str, int, int]]:
    """Clusters by size as (name, clusters, documents in them); large sizes by doubling ranges."""
    sizes = {int(size): n for size, n in histogram.items()}
    if len(sizes) <= MAX_SIZES:
        return [(str(size), n, size * n) for size, n in sorted(sizes.items())]
    bins: dict[tuple[int, int], tuple[int, int]] = {}
    for size, n in sorted(sizes.items()):
        # 2, 3, 4, 5 to 8, 9 to 16, ...
        end = size if size <= 4 else 1 << (size - 1).bit_length()
        start = size if size <= 4 else end // 2 + 1
        clusters, members = bins.get((start, end), (0, 0))
        bins[start, end] = clusters + n, members + size * n
    return [
        (str(start) if start == end else f"{start:,} to {end:,}", *counts)
        for (start, end), counts in bins.items()
    ]


def scores(histogram: Mapping[str, int]) -> list[tuple[str, int]]:
    """Documents by score, in bins of equal width from the lowest to the highest that there is."""
    bins: Counter[int] = Counter()
    for score, n in histogram.items():
        # What is rounded for its name lies a hair below where a bin begins.
        bins[min(int(float(score) * N_SCORES + 1e-9), N_SCORES - 1)] += n
    if not bins:
        return []
    return [
        (f"{i / N_SCORES:.2f} to {(i + 1) / N_SCORES:.2f}", bins[i])
        for i in range(min(bins), max(bins) + 1)
    ]
