"""The documents that a stage has before it: those of the inputs, or of what a stage before wrote.

A pass writes documents; what deduplication finds between two passes are masks, the rows that the
next one drops. A row is a document's number among those that the masks before leave.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice

from rslm.data.document import Document
from rslm.data.documents import read_documents
from rslm.data.pipeline.documents_pass import read_skip
from rslm.data.pipeline.plan import DOCUMENTS, PASSES, PLACES, SKIP, Plan
from rslm.data.pipeline.pulse import READ, Pulse
from rslm.data.pipeline.shards import read_shard

Place = tuple[int, int]
"""A shard, and a row among the documents that are left in it before a stage."""


def inputs(
    plan: Plan, shard: int, skipped: Counter[str] | None = None, pulse: Pulse | None = None
) -> Iterator[Document]:
    """The documents that the first stage reads, in the order of their numbers.

    Where reading ended a worker, a document without a text stands for the rest of the file; its
    id is the file's name.

    Args:
        plan: whose inputs.
        shard: the number of theirs.
        skipped: counts what reading passes over, by reason.
        pulse: is told which document is read.

    Raises:
        OSError: a file is not where it was.
    """
    given, pulse = plan.shards[shard], pulse or Pulse()
    unreadable = _unreadable(plan, shard)
    number = 0
    for path, name, _ in given.files:
        documents = read_documents(
            path,
            format=given.format,
            text_field=given.text_field,
            name=name,
            limits=plan.config.limits,
            skipped=skipped,
        )
        while number not in unreadable:
            pulse.read(number)
            document = next(documents, None)
            if document is None:
                break
            yield replace(document, source=given.source) if given.source else document
            number += 1
        else:
            yield Document(text="", id=name, source=given.source or name)
            number += 1
    pulse.rest()


def _unreadable(plan: Plan, shard: int) -> frozenset[int]:
    """Numbers of documents that reading ended a worker for."""
    path = plan.path("filter", shard, SKIP)
    skip = read_skip(path, plan.task_hash("filter", shard))
    return frozenset(n for n, reason in skip.items() if reason.startswith(f"{READ}_"))


def writer_before(plan: Plan, stage: str) -> str:
    """The last stage before one that wrote documents."""
    return [name for name in _names_before(plan, stage) if name in PASSES][-1]


def masks_before(plan: Plan, stage: str) -> list[str]:
    """Stages between that drop documents without writing any, in their order."""
    names = _names_before(plan, stage)
    after = names[names.index(writer_before(plan, stage)) :]
    return [name for name in after if name.endswith(".cluster")]


def _names_before(plan: Plan, stage: str) -> list[str]:
    names: list[str] = [each.name for each in plan.stages]
    return names[: names.index(stage)]


def rows_dropped(plan: Plan, mask: str, shard: int) -> frozenset[int]:
    """Rows of a shard that a stage such as "exact.cluster" drops."""
    from rslm.data.dedup.stages import dropped_rows

    return frozenset(map(int, dropped_rows(plan.path(mask, 0, PLACES), shard)))


def documents_written_before(plan: Plan, stage: str, shard: int) -> Iterator[Document]:
    """The documents of a shard that the last pass before a stage wrote."""
    return read_shard(plan.path(writer_before(plan, stage), shard, DOCUMENTS))


def documents_before(plan: Plan, stage: str, shard: int) -> Iterator[Document]:
    """The documents of a shard that are left before a stage; their order numbers their rows."""
    documents = documents_written_before(plan, stage, shard)
    for mask in masks_before(plan, stage):
        documents = _without(documents, rows_dropped(plan, mask, shard))
    return documents


def _without(documents: Iterator[Document], dropped: frozenset[int]) -> Iterator[Document]:
    return (document for row, document in enumerate(documents) if row not in dropped)


def documents_at(plan: Plan, stage: str, places: Iterable[Place]) -> dict[Place, Document]:
    """The documents at places before a stage; each shard is read once, up to the last place."""
    rows: dict[int, set[int]] = {}
    for shard, row in places:
        rows.setdefault(shard, set()).add(row)
    found: dict[Place, Document] = {}
    for shard, wanted in sorted(rows.items()):
        documents = islice(documents_before(plan, stage, shard), max(wanted) + 1)
        found |= {(shard, row): each for row, each in enumerate(documents) if row in wanted}
    return found
