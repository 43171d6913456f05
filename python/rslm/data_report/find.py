"""A document found in what a run wrote down of all that it read: by id, by address, at random."""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence

from rslm.data.pipeline.places import inputs
from rslm.data.pipeline.report import Entry
from rslm.data.pipeline.tally import Samples
from rslm.data_report.view import PipelineView

KEPT = "kept"
MAX_FOUND = 20
"""Documents of one id that are shown: of lines without one in many files there may be many."""


_SHOWN_CHARACTERS = 300

Way = list[Entry]
"""The entries of a document, pass by pass; the last says what became of it so far."""


def find_by_id(view: PipelineView, given: str) -> list[Way]:
    """The ways of all documents of an id, in the order of their shards.

    Raises:
        ValueError: no document that was read has it; the closest that one has is named.
    """
    wanted = given.strip().removeprefix("<").removesuffix(">")
    found: list[Entry] = []
    closest = Closest(wanted)
    for entry in view.report.entries("filter"):
        if entry.id == wanted and len(found) < MAX_FOUND:
            found.append(entry)
        elif not found:
            closest.offer(entry.id)
    if not found:
        raise ValueError(closest.complaint("id"))
    return [follow(view, entry) for entry in found]


def find_by_url(view: PipelineView, url: str) -> list[Way]:
    """The ways of all documents of an address.

    The indices hold none, so inputs are read until the first file that has one is at its end.

    Raises:
        ValueError: no document that was read has it; the closest that one has is named.
        OSError: an input is not where it was.
    """
    closest = Closest(url)
    for shard in sorted(view.stages[0].marks):
        numbers = set()
        for number, document in enumerate(inputs(view.plan, shard)):
            if document.url == url:
                numbers.add(number)
            elif not numbers:
                closest.offer(document.url)
        if numbers:
            found = [e for e in view.report.entries_of("filter", shard) if e.number in numbers]
            return [follow(view, entry) for entry in found[:MAX_FOUND]]
    raise ValueError(closest.complaint("url"))


def find_at_random(view: PipelineView, n: int, *, reason: str | None, seed: int) -> list[Way]:
    """The ways of documents drawn by a hash of their ids: of one reason, of those kept, of all.

    Raises:
        ValueError: none was dropped for the reason; those that there are are named.
    """
    rank = Samples(0, seed).rank
    seen: Counter[str] = Counter()
    passes = [stage.name for stage in view.report.passes]

    def candidates() -> Iterator[Entry]:
        for stage in passes:
            for entry in view.report.entries(stage):
                if entry.row is not None and stage != passes[-1]:
                    continue
                name = entry.reason or KEPT
                seen[name] += 1
                if reason in (None, name):
                    yield entry

    drawn = heapq.nsmallest(n, candidates(), key=lambda entry: (rank(entry.id), entry.shard))
    if not drawn:
        known = ", ".join(name for name, _ in seen.most_common())
        raise ValueError(f"reason must be one of {known or 'those of a run'}, got {reason!r}")
    return _wholes(view, drawn)


def _wholes(view: PipelineView, drawn: Sequence[Entry]) -> list[Way]:
    """The ways of which these are the last entries, found back from there.

    The entries of a shard are read once for each pass.
    """
    ways = [[entry] for entry in drawn]
    passes = [stage.name for stage in view.report.passes]
    for stage, after in reversed(list(itertools.pairwise(passes))):
        wanted: dict[int, dict[int, list[Way]]] = {}
        for way in ways:
            if way[0].stage == after:
                rows = wanted.setdefault(way[0].shard, {})
                rows.setdefault(way[0].number, []).append(way)
        for shard, rows in wanted.items():
            for entry in view.report.entries_of(stage, shard):
                for way in rows.pop(entry.row, ()) if entry.row is not None else ():
                    way.insert(0, entry)
    return ways


def follow(view: PipelineView, first: Entry) -> Way:
    """What became of a document behind an entry."""
    way = [first]
    passes = [stage.name for stage in view.report.passes]
    for stage in passes[passes.index(first.stage) + 1 :]:
        row = way[-1].row
        if row is None:
            break
        entry = next(
            (e for e in view.report.entries_of(stage, first.shard) if e.number == row), None
        )
        if entry is None:
            break
        way.append(entry)
    return way


class Closest:
    """Of names that come by, the one most like another: in how it begins and ends, or a part."""

    def __init__(self, wanted: str) -> None:
        self._wanted, self._best, self._score, self._n = wanted, "", -1, 0

    def offer(self, name: str) -> None:
        """Looks at one more; takes time for the length of the name alone."""
        self._n += 1
        if (score := likeness(self._wanted, name)) > self._score:
            self._best, self._score = name, score

    def complaint(self, what: str) -> str:
        """Why there is no document, in a sentence."""
        if not self._n:
            return f"{what} must be of a document that was read, and none was yet"
        return (
            f"{what} must be of a document that was read, got {_shown(self._wanted)}; "
            f"the closest is {_shown(self._best)}"
        )


def _shown(name: str) -> str:
    """A name as a line takes it: whole, or how it begins and how long it is."""
    if len(name) <= _SHOWN_CHARACTERS:
        return repr(name)
    return f"{name[:_SHOWN_CHARACTERS]!r} and {len(name) - _SHOWN_CHARACTERS:,} more characters"


def likeness(wanted: str, name: str) -> int:
    """Characters that two names share at their beginning and at their end."""
    if wanted and wanted in name:
        return 2 * len(wanted)
    n_first = _n_alike(zip(wanted, name, strict=False))
    rest, of_name = wanted[n_first:], name[n_first:]
    return n_first + _n_alike(zip(reversed(rest), reversed(of_name), strict=False))


def _n_alike(pairs: Iterator[tuple[str, str]]) -> int:
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
