"""What the ways of documents go by, read again: each file once, for all of them."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from rslm.data.document import Document
from rslm.data.pipeline.places import (
    Place,
    documents_at,
    inputs,
    masks_before,
    rows_dropped,
    writer_before,
)
from rslm.data.pipeline.plan import DOCUMENTS
from rslm.data.pipeline.report import Entry
from rslm.data.pipeline.shards import read_shard
from rslm.data_report.links import kept_among, links_of, members_among
from rslm.data_report.view import PipelineView

MAX_MEMBERS = 10
"""Documents of a cluster that are shown, beside the one that is kept."""
_INPUT = "input"


@dataclass(frozen=True, kw_only=True)
class Crossing:
    """A stage that drops documents without writing any, and where a document stands before it."""

    mask: str
    place: Place
    is_dropped: bool

    @property
    def kind(self) -> str:
        """What it drops: "exact" copies or those by "minhash"."""
        return self.mask.partition(".")[0]


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Documents that are alike.

    Attributes:
        members: all of them, ascending.
        kept: the one that is.
        documents: those that are shown, among others.
    """

    members: Sequence[Place]
    kept: Place | None
    documents: Mapping[Place, Document]

    @property
    def shown(self) -> Sequence[Place]:
        """The first members."""
        return self.members[:MAX_MEMBERS]


class Again:
    """Reads what some ways go by, and keeps it: no shard is read twice.

    Args:
        view: of the run.
        ways: of the documents, each its entries.
    """

    def __init__(self, view: PipelineView, ways: Sequence[Sequence[Entry]]) -> None:
        self._plan = view.plan
        self._later = [entry for way in ways for entry in way if entry.stage != "filter"]
        self._rows: dict[tuple[str, int], set[int]] = defaultdict(set)
        for way in ways:
            self._rows[_INPUT, way[0].shard].add(way[0].number)
        for entry in self._later:
            writer = writer_before(self._plan, entry.stage)
            self._rows[writer, entry.shard].add(entry.number)
            if entry.row is not None:
                self._rows[entry.stage, entry.shard].add(entry.row)
        self._shard = functools.cache(self._read_shard)
        self._rows_dropped = functools.cache(functools.partial(rows_dropped, self._plan))
        self._links = functools.cache(functools.partial(links_of, self._plan))
        self._copies = functools.cache(self._read_copies)

    def input(self, entry: Entry) -> Document | None:
        """The document as it was read; None where its shard has no more so many.

        Raises:
            OSError: the input is not where it was.
        """
        return self._document(_INPUT, entry.shard, entry.number)

    def written(self, stage: str, shard: int, row: int) -> Document:
        """The document that a stage wrote.

        Raises:
            OSError: the shard is not where it was.
        """
        document = self._document(stage, shard, row)
        assert document is not None
        return document

    def crossings(self, entry: Entry) -> Iterator[Crossing]:
        """The stages that a document came by before a pass, up to the one that dropped it."""
        row = entry.number
        for mask in masks_before(self._plan, entry.stage):
            dropped = self._rows_dropped(mask, entry.shard)
            yield Crossing(mask=mask, place=(entry.shard, row), is_dropped=row in dropped)
            if row in dropped:
                return
            row -= sum(other < row for other in dropped)

    def row_before(self, entry: Entry) -> int:
        """The row of a document among those that are left before a pass."""
        row = entry.number
        for mask in masks_before(self._plan, entry.stage):
            row -= sum(other < row for other in self._rows_dropped(mask, entry.shard))
        return row

    def cluster(self, crossing: Crossing) -> Cluster:
        """The documents that one is like."""
        members, kept = self._members(crossing)
        documents = self._copies(crossing.kind) if len(members) > 1 else {}
        return Cluster(members=members, kept=kept, documents=documents)

    def _members(self, crossing: Crossing) -> tuple[Sequence[Place], Place | None]:
        members = members_among(self._links(crossing.kind), crossing.place)
        if len(members) == 1:
            return members, crossing.place
        mask = f"{crossing.kind}.cluster"
        return members, kept_among(members, lambda shard: self._rows_dropped(mask, shard))

    def _read_copies(self, kind: str) -> dict[Place, Document]:
        """The documents that are shown of the clusters of all ways."""
        wanted: set[Place] = set()
        for crossing in (each for entry in self._later for each in self.crossings(entry)):
            if crossing.kind == kind:
                members, kept = self._members(crossing)
                if len(members) > 1:
                    wanted |= {*members[:MAX_MEMBERS], *([] if kept is None else [kept])}
        return documents_at(self._plan, f"{kind}.sign", wanted)

    def _document(self, stage: str, shard: int, row: int) -> Document | None:
        documents, error = self._shard(stage, shard)
        if row not in documents and error is not None:
            raise error
        return documents.get(row)

    def _read_shard(self, stage: str, shard: int) -> tuple[dict[int, Document], OSError | None]:
        """The wanted documents of a shard, and what ended reading before the last of them."""
        wanted = self._rows[stage, shard]
        documents: Iterable[Document]
        if stage == _INPUT:
            documents = inputs(self._plan, shard)
        else:
            documents = read_shard(self._plan.path(stage, shard, DOCUMENTS))
        found: dict[int, Document] = {}
        try:
            for row, document in enumerate(documents):
                if row in wanted:
                    found[row] = document
                if len(found) == len(wanted):
                    break
        except OSError as error:
            return found, error
        return found, None
