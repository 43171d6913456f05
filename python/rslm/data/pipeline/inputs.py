"""The inputs of a config as shards: what one task of the first stage reads."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rslm.config import Record
from rslm.data.documents import Format, format_of
from rslm.data.hugging_face import dataset_files
from rslm.data.pipeline.config import InputConfig

# What a folder's pages are taken together to, so that a task is worth starting.
_MAX_PAGES, _MAX_PAGES_BYTES = 1000, 64 << 20


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Files that one task reads: one, or pages of a folder; their documents keep their order."""

    files: tuple[tuple[str, str, int], ...]
    """Path, the name that ids hold, and the size of each."""
    format: Format
    text_field: str
    source: str
    """Of the documents; "" leaves them the one that they have."""
    input: int
    """Which of the config's inputs it belongs to."""
    revision: str = ""
    """Of the data set that it is of, where one is asked for."""

    @property
    def n_bytes(self) -> int:
        """Of all files, as they are packed."""
        return sum(size for _, _, size in self.files)

    def identity(self) -> Record:
        """What of the shard determines bytes: not in which folder it lies."""
        files = [(name, size) for _, name, size in self.files]
        return {
            "files": files,
            "format": self.format,
            "text_field": self.text_field,
            "source": self.source,
            "revision": self.revision,
        }


def find_shards(given: InputConfig, number: int) -> list[Shard]:
    """The shards of an input, in the order of their paths.

    Raises:
        FileNotFoundError: a path or pattern is of nothing.
        ValueError: a data set cannot be had.
    """
    if given.dataset is not None:
        return _shards_of_dataset(given, number)
    files: dict[str, str] = {}
    for pattern in given.paths:
        found = [pattern] if Path(pattern).exists() else sorted(glob.glob(pattern, recursive=True))
        if not found:
            raise FileNotFoundError(f"inputs must exist, got {pattern}")
        for path in found:
            files |= _files_at(path, given.format)
        if len(found) > 1:
            files = _without_loops(files)
    shards: list[Shard] = []
    pages: list[tuple[str, str, int]] = []
    for path in sorted(files):
        status = Path(path).stat()
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"inputs must be regular files, but {path} is a pipe or device")
        entry = (path, files[path], status.st_size)
        kind = given.format or format_of(path) or "text"
        if kind == "html":
            pages.append(entry)
        else:
            shards.append(_shard(given, number, kind, (entry,)))
    return [_shard(given, number, "html", group) for group in _groups(pages)] + shards


def _shards_of_dataset(given: InputConfig, number: int) -> list[Shard]:
    assert given.dataset is not None
    paths = dataset_files(
        given.dataset, subset=given.subset, split=given.split, revision=given.revision
    )
    # Ids are made of these names: not of where the files lie on this machine.
    name = "/".join(filter(None, [given.dataset.strip("/"), given.subset, given.split]))
    sizes = [path.stat().st_size for path in paths]
    entries = [
        (str(path), f"{name}/{part}", size)
        for part, (path, size) in enumerate(zip(paths, sizes, strict=True))
    ]
    return [
        replace(
            _shard(given, number, "arrow", (entry,)),
            source=given.name or given.dataset,
            revision=given.revision or "",
        )
        for entry in entries
    ]


def _without_loops(files: Mapping[str, str]) -> dict[str, str]:
    """Each file by its shortest path, for patterns follow links, which may lead to themselves."""
    shortest: dict[str, str] = {}
    for path in sorted(files, key=lambda path: (path.count(os.sep), path)):
        shortest.setdefault(os.path.realpath(path), path)
    return {path: files[path] for path in shortest.values()}


def _files_at(path: str, format: Format | None) -> dict[str, str]:
    """Files at a path or below it, and the name that each has in ids."""
    if not Path(path).is_dir():
        return {path: _in_utf8(os.path.basename(path))}
    below = {
        os.path.join(parent, file): _in_utf8(Path(parent, file).relative_to(path).as_posix())
        for parent, _, files in os.walk(path)
        for file in files
    }
    return {file: name for file, name in below.items() if format or format_of(name)}


def _in_utf8(name: str) -> str:
    # Ids are made of it. Of what is no UTF-8 in a file's name Python makes lone surrogates.
    return os.fsencode(name).decode(errors="replace")


def _groups(
    pages: Sequence[tuple[str, str, int]],
) -> list[tuple[tuple[str, str, int], ...]]:
    groups: list[list[tuple[str, str, int]]] = []
    size = 0
    for page in pages:
        if not groups or len(groups[-1]) == _MAX_PAGES or size + page[2] > _MAX_PAGES_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(page)
        size += page[2]
    return [tuple(group) for group in groups]


def _shard(
    given: InputConfig, number: int, kind: Format, files: tuple[tuple[str, str, int], ...]
) -> Shard:
    return Shard(
        files=files, format=kind, text_field=given.text_field, source=given.name, input=number
    )
