"""Counts of what each step did with the documents of a task, and examples of it.

Tallies of two tasks add up to that of both, in any order.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rslm.data.document import Document

SAMPLE_CHARACTERS = 3000
# Of an id, address or source: a page of samples must not grow with what somebody puts there.
_NAME_CHARACTERS = 2000
Record = dict[str, Any]


@dataclass(kw_only=True)
class Amount:
    """Documents, and the bytes of their texts in UTF-8 and the characters."""

    documents: int = 0
    bytes: int = 0
    characters: int = 0

    def add(self, other: Amount) -> None:
        """Adds another amount to this one."""
        self.documents += other.documents
        self.bytes += other.bytes
        self.characters += other.characters


@dataclass(kw_only=True)
class StepTally:
    """What one step did.

    Attributes:
        taken: what came in.
        given: what went on, as the step left it.
        drops: what did not, as it came in, by reason.
        lines_removed: lines taken out of documents, by reason.
        counts: whatever else is counted, by name.
        histogram: documents by language or score, or clusters by their size.
        largest: the largest numbers that were seen, by name.
        languages: documents that went on, by their language, where it is known.
        cpu_seconds: of the process, the Rust core's threads included.
    """

    taken: Amount = field(default_factory=Amount)
    given: Amount = field(default_factory=Amount)
    drops: dict[str, Amount] = field(default_factory=dict)
    lines_removed: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    histogram: Counter[str] = field(default_factory=Counter)
    largest: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    cpu_seconds: float = 0.0

    def add(self, other: StepTally) -> None:
        """Adds the tally of another task."""
        self.taken.add(other.taken)
        self.given.add(other.given)
        for reason, amount in other.drops.items():
            self.drops.setdefault(reason, Amount()).add(amount)
        self.lines_removed.update(other.lines_removed)
        self.counts.update(other.counts)
        self.histogram.update(other.histogram)
        self.largest |= other.largest
        self.languages.update(other.languages)
        self.cpu_seconds += other.cpu_seconds

    def to_record(self) -> Record:
        """As JSON holds it, names in order."""
        return {
            "taken": vars(self.taken),
            "given": vars(self.given),
            "drops": {reason: vars(self.drops[reason]) for reason in sorted(self.drops)},
            "lines_removed": dict(sorted(self.lines_removed.items())),
            "counts": dict(sorted(self.counts.items())),
            "histogram": dict(sorted(self.histogram.items())),
            "largest": dict(sorted(self.largest.items())),
            "languages": dict(sorted(self.languages.items())),
            "cpu_seconds": self.cpu_seconds,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> StepTally:
        """The tally that `to_record` wrote."""
        return cls(
            taken=Amount(**record["taken"]),
            given=Amount(**record["given"]),
            drops={reason: Amount(**amount) for reason, amount in record["drops"].items()},
            lines_removed=Counter(record["lines_removed"]),
            counts=Counter(record["counts"]),
            histogram=Counter(record["histogram"]),
            largest=Counter(record["largest"]),
            languages=Counter(record["languages"]),
            cpu_seconds=record["cpu_seconds"],
        )


class Samples:
    """For each step and reason ("" keeps) the documents of the smallest hashes of seed and id.

    So which they are depends neither on the order of documents nor on how they lie in tasks.
    """

    def __init__(self, n: int, seed: int) -> None:
        self._n, self._seed = n, seed
        # Heaps of the negated hash, so that the largest of them is on top.
        self._heaps: dict[tuple[str, str], list[tuple[int, str, Record]]] = {}

    def rank(self, id: str) -> int:
        """The hash that decides whether a document is shown."""
        seeded = f"{self._seed}:{id}".encode("utf-8", "surrogatepass")
        return int.from_bytes(hashlib.blake2b(seeded, digest_size=6).digest(), "big")

    def offer(
        self, step: str, reason: str, rank: int, document: Document, language: str = ""
    ) -> None:
        """Shows the document, if its rank is among the smallest."""
        heap = self._heaps.setdefault((step, reason), [])
        if len(heap) < self._n or (heap and -rank >= heap[0][0]):
            self._push(heap, -rank, _sample(step, reason, rank, document, language))

    def add(self, records: Iterable[Record]) -> None:
        """Takes in the samples of other tasks."""
        for record in records:
            heap = self._heaps.setdefault((record["step"], record["reason"]), [])
            self._push(heap, -record["rank"], record)

    def records(self) -> list[Record]:
        """All samples: by step and reason, the smallest rank first."""
        heaps = (self._heaps[key] for key in sorted(self._heaps))
        return [
            record
            for heap in heaps
            for _, _, record in sorted(heap, key=lambda entry: (-entry[0], entry[1]))
        ]

    def _push(self, heap: list[tuple[int, str, Record]], key: int, record: Record) -> None:
        # Of equal ids, as two files may have, the text decides, and then nothing differs.
        entry = (key, f"{record['source']}\n{record['text']}", record)
        if any(entry[:2] == known[:2] for known in heap):
            return
        if len(heap) < self._n:
            heapq.heappush(heap, entry)
        elif heap and entry[:2] > heap[0][:2]:
            heapq.heapreplace(heap, entry)


def language_of(document: Document) -> str:
    """The language that was found; "" where none was looked for."""
    language = document.metadata.get("language", "")
    return language if isinstance(language, str) else ""


def _sample(step: str, reason: str, rank: int, document: Document, language: str) -> Record:
    return {
        "step": step,
        "reason": reason,
        "rank": rank,
        "id": document.id[:_NAME_CHARACTERS],
        "url": document.url[:_NAME_CHARACTERS],
        "source": document.source[:_NAME_CHARACTERS],
        "language": language[:_NAME_CHARACTERS],
        "text": document.text[:SAMPLE_CHARACTERS],
        "characters": len(document.text),
    }
