"""One pass over the documents of a shard: batch by batch through all steps, then written.

Nothing here knows which steps there are. Every document ends up in the index of the pass, with the
step that dropped it and why, or with its row among those that were written.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

from rslm.data.document import Document
from rslm.data.pipeline.pulse import Pulse
from rslm.data.pipeline.shards import LinesWriter, document_record
from rslm.data.pipeline.steps import Decision, Step
from rslm.data.pipeline.tally import Amount, Samples, StepTally, language_of
from rslm.errors import FormatError

# A batch is so small that its step is far from the watchdog's limit, and so large that what is
# done once for it costs nothing.
_BATCH_DOCUMENTS, _BATCH_BYTES = 64, 2 << 20
# Of so many documents and more one at least passes a step that works.
_SUSPICIOUS = 8
SKIPPED = "skip"
Ranges = Sequence[tuple[int, int]]
Entry = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Item:
    """A document on its way, its number among those of the pass, its size and its rank."""

    number: int
    document: Document
    n_bytes: int
    rank: int

    def amount(self) -> Amount:
        """As it is counted."""
        return Amount(documents=1, bytes=self.n_bytes, characters=len(self.document.text))


@dataclass(frozen=True, kw_only=True)
class PassFiles:
    """Where a pass writes."""

    documents: Path
    index: Path
    samples: Path
    attempt: str


def pass_documents(
    documents: Iterable[Document],
    steps: Mapping[str, Step],
    files: PassFiles,
    *,
    samples: Samples,
    skip: Mapping[int, str],
    careful: Ranges = (),
    pulse: Pulse,
) -> tuple[dict[str, StepTally], dict[str, str], int]:
    """Sends documents through the steps and writes what passes them all.

    Args:
        documents: in the order of their numbers.
        steps: by name, in their order.
        files: where to write documents, index and samples.
        samples: to fill.
        skip: numbers of documents to pass over, and why.
        careful: numbers, first to last, of documents to take one at a time, since one of them
            ended a worker.
        pulse: is told what is under way.

    Returns:
        The tallies by step, the hashes of the files by name, and how many documents were written.
    """
    tallies = {name: StepTally() for name in (SKIPPED, *steps)}
    n_rows = 0
    with (
        LinesWriter(files.documents, files.attempt) as shard,
        LinesWriter(files.index, files.attempt) as index,
    ):
        for batch in batches(documents, samples, careful):
            entries: list[Entry] = []
            batch = _skip(batch, skip, tallies[SKIPPED], entries, samples)
            for name, step in steps.items():
                if batch:
                    pulse.beat(batch[0].number, batch[-1].number, name)
                    batch = _take_step(name, step, batch, tallies[name], entries, samples)
            pulse.rest()
            for item in batch:
                shard.write(document_record(item.document))
                entries.append(_entry(item, "", "", n_rows))
                n_rows += 1
            # In the order of documents, for that of drops depends on how they lie in batches.
            for entry in sorted(entries, key=itemgetter("number")):
                index.write(entry)
    with LinesWriter(files.samples, files.attempt) as shown:
        for record in samples.records():
            shown.write(record)
    written = {files.documents: shard, files.index: index, files.samples: shown}
    return tallies, {path.name: writer.digest for path, writer in written.items()}, n_rows


def scout_documents(
    documents: Iterable[Document],
    steps: Mapping[str, Step],
    first: int,
    *,
    skip: Collection[int],
    careful: Ranges,
    pulse: Pulse,
) -> None:
    """Sends documents from a number on through steps as `pass_documents` does; keeps nothing.

    The steps must be such as remember nothing from document to document.
    """
    samples = Samples(0, 0)
    for batch in batches(documents, samples, careful):
        batch = [item for item in batch if item.number >= first and item.number not in skip]
        for name, step in steps.items():
            if batch:
                pulse.beat(batch[0].number, batch[-1].number, name)
                batch = _take_step(name, step, batch, StepTally(), [], samples)
        pulse.rest()


def batches(
    documents: Iterable[Document], samples: Samples, careful: Ranges
) -> Iterator[list[Item]]:
    """Documents a few at a time, and one at a time where care is needed."""
    batch: list[Item] = []
    n_bytes = 0
    for number, document in enumerate(documents):
        alone = any(first <= number <= last for first, last in careful)
        if batch and (alone or len(batch) == _BATCH_DOCUMENTS or n_bytes >= _BATCH_BYTES):
            yield batch
            batch, n_bytes = [], 0
        item = Item(number, document, _n_bytes(document.text), samples.rank(document.id))
        if alone:
            yield [item]
            continue
        batch.append(item)
        n_bytes += item.n_bytes
    if batch:
        yield batch


def _n_bytes(text: str) -> int:
    # Python knows of a string that it is ASCII; counting the bytes of others takes a copy.
    return len(text) if text.isascii() else len(text.encode())


def _skip(
    batch: list[Item],
    skip: Mapping[int, str],
    tally: StepTally,
    entries: list[Entry],
    samples: Samples,
) -> list[Item]:
    """Takes out what ended a worker at an earlier attempt."""
    decisions = [
        Decision(document=item.document, reason=skip.get(item.number, "")) for item in batch
    ]
    return _count(SKIPPED, batch, decisions, tally, entries, samples)


def _take_step(
    name: str,
    step: Step,
    batch: list[Item],
    tally: StepTally,
    entries: list[Entry],
    samples: Samples,
) -> list[Item]:
    started = time.process_time()
    decisions = _decide(name, step, [item.document for item in batch])
    tally.cpu_seconds += time.process_time() - started
    return _count(name, batch, decisions, tally, entries, samples)


def _decide(name: str, step: Step, documents: list[Document]) -> list[Decision]:
    """The step's decisions; where it fails, each document alone, and what fails then is dropped.

    A page must not end a shard. A step that fails with every document is broken itself, though.
    """
    try:
        return step(documents)
    except FormatError:
        raise
    except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as error:
        decisions, n_failed = [], 0
        for document in documents:
            try:
                decisions += step([document])
            except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError):
                decisions.append(
                    Decision(document=document, reason=f"{name.partition('.')[0]}_error")
                )
                n_failed += 1
        if n_failed == len(documents) >= _SUSPICIOUS:
            raise error
        return decisions


def _count(
    name: str,
    batch: list[Item],
    decisions: Sequence[Decision],
    tally: StepTally,
    entries: list[Entry],
    samples: Samples,
) -> list[Item]:
    """Counts and shows what a step did, and gives what goes on."""
    passed = []
    for item, decision in zip(batch, decisions, strict=True):
        tally.taken.add(item.amount())
        tally.lines_removed.update(decision.lines_removed)
        tally.counts.update(decision.counts)
        if decision.group:
            tally.histogram[decision.group] += 1
        language = language_of(decision.document)
        if decision.reason:
            tally.drops.setdefault(decision.reason, Amount()).add(item.amount())
            samples.offer(name, decision.reason, item.rank, item.document, language)
            entries.append(_entry(item, name, decision.reason, None))
            continue
        document = decision.document
        same = document.text is item.document.text
        n_bytes = item.n_bytes if same else _n_bytes(document.text)
        item = Item(item.number, document, n_bytes, item.rank)
        tally.given.add(item.amount())
        if language:
            tally.languages[language] += 1
        samples.offer(name, "", item.rank, document, language)
        passed.append(item)
    return passed


def _entry(item: Item, step: str, reason: str, row: int | None) -> Entry:
    return {
        "id": item.document.id,
        "step": step,
        "reason": reason,
        "number": item.number,
        "row": row,
    }


def read_skip(path: Path, hash: str) -> dict[int, str]:
    """Numbers of documents to pass over and why, as an earlier attempt at this task found them."""
    try:
        record = json.loads(path.read_bytes())
        if record["hash"] != hash:
            return {}
        return {int(number): str(reason) for number, reason in record["skip"].items()}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        # What a disk lost: the documents are found again.
        return {}
