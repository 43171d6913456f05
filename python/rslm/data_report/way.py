"""A document's way as lines of a terminal, and as JSON."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from rslm.data_report import words
from rslm.data_report.examples import number
from rslm.data_report.measures import Measure
from rslm.data_report.reasons import meaning
from rslm.data_report.trace import DROPPED, KEPT, Stop, Trace
from rslm.process import printable

MAX_LINES = 60
"""Of a difference."""
MAX_TEXT_LINES = 12
"""Of a text."""
MAX_WIDTH = 160
"""Of a line of either: one may hold the whole text."""


def print_trace(found: Trace) -> None:
    """Prints the way, step by step."""
    for line in itertools.chain(_head(found), *map(_stop, found.stops)):
        print(printable(line))


def _head(found: Trace) -> Iterator[str]:
    yield f"id        {found.id}"
    if found.document is not None:
        if found.document.url:
            yield f"url       {found.document.url}"
        yield f"source    {found.document.source}"
    files = found.files[0] if len(found.files) == 1 else words.plural(len(found.files), "file")
    yield f"read as   document {found.number:,} of shard {found.shard:,} ({files})"
    yield f"result    {result(found)}"


def result(found: Trace) -> str:
    """What became of it, in a sentence."""
    for stop in found.stops:
        if stop.verdict == DROPPED:
            text = meaning(stop.reason)
            return f"dropped by {stop.step}: {stop.reason}{f' ({text})' if text else ''}"
    at_end = any(stop.step == "written" for stop in found.stops)
    return KEPT if at_end else "kept so far; later stages are not finished"


def _stop(stop: Stop) -> Iterator[str]:
    yield ""
    reason = f": {stop.reason}" if stop.reason else ""
    yield f"{stop.stage} / {stop.step}: {stop.verdict}{reason}"
    width = max(map(len, stop.facts), default=0)
    for name, value in stop.facts.items():
        yield f"  {name:<{width}}  {value}"
    yield from _measures(stop)
    if stop.remark:
        yield f"  ! {stop.remark}"
    yield from _text(stop)


def _measures(stop: Stop) -> Iterator[str]:
    rows = [(m.name, number(m.value), f"{m.relation} {number(m.limit)}") for m in stop.measures]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for (name, value, limit), measure in zip(rows, stop.measures, strict=True):
        mark = "" if measure.holds else f"  <- {measure.reason}"
        line = f"  {name:<{widths[0]}}  {value:>{widths[1]}}  {limit:<{widths[2]}}{mark}"
        yield line.rstrip()


def _text(stop: Stop) -> Iterator[str]:
    """A difference where the text was edited, its beginning where it is new."""
    if stop.before is not None and stop.after is not None and stop.before != stop.after:
        yield from _cut((f"  {line}" for line in difference(stop.before, stop.after)), MAX_LINES)
    elif stop.after is not None and (stop.before is None or stop.step == "written"):
        lines = (f"  | {line}" for line in stop.after.split("\n") if line.strip())
        yield from _cut(lines, MAX_TEXT_LINES)


def difference(before: str, after: str) -> Iterator[str]:
    """A unified difference of two texts, line by line."""
    return difflib.unified_diff(
        before.split("\n"), after.split("\n"), "before", "after", n=1, lineterm=""
    )


def _cut(lines: Iterator[str], limit: int) -> Iterator[str]:
    shown = list(itertools.islice(lines, limit))
    for line in shown:
        more = f" [... {len(line) - MAX_WIDTH:,} more]" if len(line) > MAX_WIDTH else ""
        yield line[:MAX_WIDTH] + more
    if rest := sum(1 for _ in lines):
        yield f"  [... {words.plural(rest, 'more line')}]"


def trace_record(found: Trace) -> dict[str, Any]:
    """The way as JSON holds it, with whole texts."""
    return {
        "id": found.id,
        "url": found.document.url if found.document else None,
        "source": found.document.source if found.document else None,
        "shard": found.shard,
        "number": found.number,
        "files": list(found.files),
        "result": result(found),
        "steps": [_stop_record(stop) for stop in found.stops],
    }


def _stop_record(stop: Stop) -> Mapping[str, Any]:
    return {
        "stage": stop.stage,
        "step": stop.step,
        "verdict": stop.verdict,
        "reason": stop.reason,
        "facts": dict(stop.facts),
        "measures": [_measure_record(measure) for measure in stop.measures],
        "before": stop.before,
        "after": stop.after,
        "remark": stop.remark,
    }


def _measure_record(measure: Measure) -> Mapping[str, Any]:
    return vars(measure) | {"holds": measure.holds}
