"""Documents in the order of a hash, of corpora larger than memory: runs, then parts.

Each document has a key, a hash of its source, its id, the number of the copy and the seed. The
first pass writes runs: pieces of the input, sorted by key. The second gathers parts: all lines of
a range of keys, sorted. So the order depends on the documents and the seed alone, not on how they
lie in files, and memory is that of a run, or of a part.
"""

from __future__ import annotations

import bisect
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rslm.data.document import Document
from rslm.data.mixture import Mixture, n_copies
from rslm.data.split import is_held_out
from rslm.data.text_lines import TextLine, read_text_lines
from rslm.files import write_atomically

SIDES = ("train", "valid")

# The two halves of a line's key, and where the line ends.
_INDEX = np.dtype([("head", ">u8"), ("tail", ">u8"), ("end", "<u8")])


@dataclass(frozen=True, kw_only=True)
class SortOptions:
    """What decides keys, sides and copies."""

    shuffle_seed: int | None
    """None keeps the order of the inputs."""
    validation_share: float
    mixture: Mixture
    repeats: Mapping[str, float]
    """The mixture's repeats, or those that its weights come to."""
    text_field: str
    run_bytes: int

    @property
    def seed(self) -> int:
        """The seed of every choice by hash."""
        return self.shuffle_seed or 0


@dataclass
class _Side:
    """Lines of a run, with their keys."""

    lines: list[tuple[bytes, bytes]] = field(default_factory=list)
    n_bytes: int = 0


def write_runs(path: Path, number: int, folder: Path, options: SortOptions) -> None:
    """Writes the runs of one input, and last a marker with what they hold; once.

    Raises:
        ValueError: a document lacks a score that the mixture goes by.
        OSError: reading or writing failed.
    """
    marker = _marker(folder, number)
    if marker.exists():
        return
    skipped: Counter[str] = Counter()
    counts: dict[str, Counter[str]] = {}
    sides = {name: _Side() for name in SIDES}
    runs: list[dict[str, Any]] = []
    found = read_text_lines(
        path,
        text_field=options.text_field,
        skipped=skipped,
        with_metadata=bool(options.mixture.score),
    )
    for row, text in enumerate(found):
        name, n = _side_of(text, options)
        line, n_bytes = text.line, text.n_bytes
        of_source = counts.get(text.source) or counts.setdefault(text.source, Counter())
        of_source["documents"] += 1
        of_source["bytes"] += n_bytes
        of_source[f"{name}_documents"] += n
        of_source[f"{name}_bytes"] += n * n_bytes
        side = sides[name]
        for copy in range(n):
            side.lines.append((_key(text, copy, (number, row), options.shuffle_seed), line))
        side.n_bytes += n * len(line)
        if side.n_bytes >= options.run_bytes:
            runs.append(_write_run(folder, number, len(runs), name, side))
            sides[name] = _Side()
    for name, side in sides.items():
        if side.lines:
            runs.append(_write_run(folder, number, len(runs), name, side))
    record = {"sources": counts, "skipped": skipped, "runs": runs}
    write_atomically(marker, json.dumps(record, sort_keys=True).encode())


def bytes_of_sources(path: Path, text_field: str) -> Counter[str]:
    """Bytes of text of each source in an input."""
    totals: Counter[str] = Counter()
    for text in read_text_lines(path, text_field=text_field, skipped=Counter()):
        totals[text.source] += text.n_bytes
    return totals


def read_marker(folder: Path, number: int) -> dict[str, Any]:
    """What the runs of an input hold: `sources`, `skipped`, `runs`."""
    record: dict[str, Any] = json.loads(_marker(folder, number).read_bytes())
    return record


def n_parts(runs: Sequence[Mapping[str, Any]], n_inputs: int, options: SortOptions) -> int:
    """The parts of one side: each of about the size of a run, or one for each input."""
    if options.shuffle_seed is None:
        return n_inputs
    n_bytes: int = sum(run["n_bytes"] for run in runs)
    return n_bytes // options.run_bytes + 1


def write_part(
    folder: Path,
    runs: Sequence[Mapping[str, Any]],
    part: int,
    n_parts: int,
    target: Path,
    options: SortOptions,
) -> None:
    """Writes the lines of one range of keys, in their order, from the runs of one side; once."""
    if target.exists():
        return
    step = 1 if options.shuffle_seed is None else -(-(2**64) // n_parts)
    first, last = part * step, (part + 1) * step - 1
    lines = [line for run in runs for line in _lines_between(folder, run["name"], first, last)]
    lines.sort()
    write_atomically(target, b"".join(line for _, line in lines))


def remove_runs(folder: Path, runs: Sequence[Mapping[str, Any]]) -> None:
    """Removes runs whose lines are all in parts."""
    for run in runs:
        for path in (_data(folder, run["name"]), _index(folder, run["name"])):
            path.unlink(missing_ok=True)


def _side_of(text: TextLine, options: SortOptions) -> tuple[str, int]:
    """Where a document goes, and how often."""
    if options.validation_share and is_held_out(text.id.encode(), options.validation_share):
        return "valid", 1
    mixture = options.mixture
    if not options.repeats and not mixture.score:
        return "train", 1
    document = Document(text="", id=text.id, source=text.source, metadata=dict(text.metadata))
    return "train", n_copies(document, options.repeats, mixture, options.seed)


def _key(text: TextLine, copy: int, place: tuple[int, int], seed: int | None) -> bytes:
    if seed is None:
        # Copies follow each other.
        return place[0].to_bytes(8, "big") + place[1].to_bytes(8, "big")
    name = f"{text.source}\0{text.id}\0{copy}".encode()
    key = seed.to_bytes(8, "little")
    return hashlib.blake2b(name, digest_size=16, key=key, person=b"shuffle").digest()


def _write_run(folder: Path, number: int, run: int, side_name: str, side: _Side) -> dict[str, Any]:
    """Sorts and writes a run; equal keys, of equal ids, are told apart by their text."""
    name = f"{number:06d}-{run:05d}-{side_name}"
    side.lines.sort()
    index = np.empty(len(side.lines), _INDEX)
    keys = np.frombuffer(b"".join(key for key, _ in side.lines), ">u8")
    index["head"], index["tail"] = keys[::2], keys[1::2]
    index["end"] = np.cumsum([len(line) for _, line in side.lines])
    write_atomically(_data(folder, name), *(line for _, line in side.lines))
    write_atomically(_index(folder, name), index.tobytes())
    return {"name": name, "side": side_name, "n_bytes": side.n_bytes}


def _lines_between(folder: Path, name: str, first: int, last: int) -> Iterator[tuple[bytes, bytes]]:
    """Lines of a run whose keys begin with a number from `first` to `last`, with their keys."""
    index = np.memmap(_index(folder, name), _INDEX, "r")
    # Of a run only the pages are read that this looks at: there may be many runs, and parts.
    start = bisect.bisect_left(index, first, key=_head)
    stop = bisect.bisect_right(index, last, lo=start, key=_head)
    at = int(index["end"][start - 1]) if start else 0
    with _data(folder, name).open("rb") as file:
        file.seek(at)
        for entry in index[start:stop]:
            key, end = entry.tobytes()[:16], int(entry["end"])
            yield key, file.read(end - at)
            at = end


def _head(entry: Any) -> int:
    return int(entry["head"])


def _marker(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.json"


def _data(folder: Path, name: str) -> Path:
    return folder / f"{name}.jsonl"


def _index(folder: Path, name: str) -> Path:
    return folder / f"{name}.index"
