"""What a pipeline will do: its input files as shards, its stages, and what their bytes hang on.

A stage is a row of tasks that need nothing of each other, and all of the stages before. Its hash
is that of the options and versions that determine its bytes; workers, backend, folders and limits
of time and memory are not among them. `out/plan.json` holds a plan.
"""

from __future__ import annotations

import glob
import hashlib
import importlib.metadata
import json
import os
import unicodedata
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rslm import _rslm
from rslm.config import Record, from_record, to_record, to_toml
from rslm.data.documents import Format, format_of
from rslm.data.pipeline.config import InputConfig, PipelineConfig
from rslm.data.pipeline.shards import written_beside
from rslm.errors import FormatError

PLAN_FILE = "plan.json"
# Endings of a task's files.
DOCUMENTS = "jsonl.zst"
INDEX = "index.jsonl.zst"
SAMPLES = "samples.jsonl.zst"
SKIP = "skip.json"
PLACES = "bin"
# Goes up with every change of what a stage writes.
_VERSION = 2
# What a folder's pages are taken together to, so that a task is worth starting.
_MAX_PAGES, _MAX_PAGES_BYTES = 1000, 64 << 20
_RANGE_BYTES = 1 << 30
_MIN_RANGES, _MAX_RANGES = 4, 4096

StageName = Literal[
    "filter",
    "exact.sign",
    "exact.join",
    "exact.cluster",
    "lines.count",
    "lines.merge",
    "lines.rewrite",
    "minhash.sign",
    "minhash.join",
    "minhash.cluster",
    "finalize",
    "tokenize",
]
PASSES: tuple[StageName, ...] = ("filter", "lines.rewrite", "finalize")
"""The stages that write documents."""


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
        }


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage: how many tasks it has, and the hash of what determines its bytes."""

    name: StageName
    n_tasks: int
    hash: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A config with its inputs found and its stages laid out."""

    config: PipelineConfig
    shards: tuple[Shard, ...]
    stages: tuple[Stage, ...]
    n_ranges: int

    @property
    def folder(self) -> Path:
        """Where everything is written."""
        return self.config.out

    def stage(self, name: str) -> Stage:
        """The stage of this name.

        Raises:
            ValueError: the plan has none.
        """
        for stage in self.stages:
            if stage.name == name:
                return stage
        known = ", ".join(stage.name for stage in self.stages)
        raise ValueError(f"stage must be one of {known}, got {name!r}")

    def has(self, name: StageName) -> bool:
        """Whether there is such a stage."""
        return any(stage.name == name for stage in self.stages)

    def path(self, stage: str, index: int, ending: str) -> Path:
        """A file of a task."""
        return self.folder / stage / f"{index:05d}.{ending}"

    def task_bytes(self, stage: Stage) -> list[int]:
        """How much of the inputs each task of a stage stands for."""
        sizes = [shard.n_bytes for shard in self.shards]
        by_shard = stage.n_tasks == len(sizes)
        return sizes if by_shard else [sum(sizes) // stage.n_tasks] * stage.n_tasks

    def task_hash(self, stage: str, index: int) -> str:
        """What determines the bytes of a task, but for what it reads of the stages before.

        Only the first stage reads inputs: a file more leaves what was made of the others valid.
        """
        of_inputs = self.shards[index].identity() if stage == "filter" else None
        return digest([self.stage(stage).hash, index, of_inputs])


def digest(value: Any) -> str:
    """A hash of plain values."""
    data = json.dumps(value, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def make_plan(config: PipelineConfig) -> Plan:
    """Finds the inputs and lays out the stages; writes nothing.

    Raises:
        ValueError: an input, a model or a package is missing or cannot be what it must be.
        OSError: a file cannot be read.
    """
    shards = tuple(
        shard for number, given in enumerate(config.inputs) for shard in find_shards(given, number)
    )
    if not shards:
        raise ValueError("inputs must name at least one file, got none")
    total = sum(shard.n_bytes for shard in shards)
    n_ranges = config.n_ranges or min(max(total // _RANGE_BYTES, _MIN_RANGES), _MAX_RANGES)
    plan = Plan(config=config, shards=shards, stages=(), n_ranges=n_ranges)
    return replace(plan, stages=tuple(_stages(plan)))


def find_shards(given: InputConfig, number: int) -> list[Shard]:
    """The shards of an input, in the order of their paths.

    Raises:
        FileNotFoundError: a path or pattern is of nothing.
    """
    files: dict[str, str] = {}
    for pattern in given.paths:
        found = [pattern] if Path(pattern).exists() else sorted(glob.glob(pattern, recursive=True))
        if not found:
            raise FileNotFoundError(f"inputs must exist, got {pattern}")
        for path in found:
            files |= _files_at(path, given.format)
    shards: list[Shard] = []
    pages: list[tuple[str, str, int]] = []
    for path in sorted(files):
        entry = (path, files[path], Path(path).stat().st_size)
        kind = given.format or format_of(path) or "text"
        if kind == "html":
            pages.append(entry)
        else:
            shards.append(_shard(given, number, kind, (entry,)))
    return [_shard(given, number, "html", group) for group in _groups(pages)] + shards


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


def _stages(plan: Plan) -> list[Stage]:
    """The stages that the config asks for, in their order."""
    # Imported here: it loads the extension, and a config can be read without.
    from rslm.data.dedup import stages as dedup

    config, n_shards, n_ranges = plan.config, len(plan.shards), plan.n_ranges
    general: Record = {"seed": config.seed, "version": _VERSION}
    general["rslm"] = _rslm.VERSION
    shown = {"n_samples": config.n_samples}
    stages: list[Stage] = []

    def add(name: StageName, n_tasks: int, options: Record) -> None:
        stages.append(
            Stage(name=name, n_tasks=n_tasks, hash=digest([name, n_tasks, general, options]))
        )

    def add_lines() -> None:
        if config.lines.keep is not None:
            # Where they stand is told by what they read.
            options = to_record(config.lines) | {"n_ranges": n_ranges}
            del options["before_minhash"]
            add("lines.count", n_shards, options)
            add("lines.merge", n_ranges, options)
            add("lines.rewrite", n_shards, options | shown)

    def add_minhash() -> None:
        if config.minhash.preset is not None:
            minhash = config.minhash.options()
            options = to_record(minhash) | {"n_ranges": n_ranges}
            add("minhash.sign", n_shards, options)
            add("minhash.join", dedup.n_parts(minhash, n_ranges), options)
            add("minhash.cluster", 1, options)

    # How many tasks a stage by shards has says nothing about the bytes of one.
    add("filter", 1, _filter_options(config) | shown)
    stages[0] = replace(stages[0], n_tasks=n_shards)
    if config.exact.keep is not None:
        options = to_record(config.exact) | {"n_ranges": n_ranges}
        add("exact.sign", n_shards, options)
        add("exact.join", dedup.n_parts(None, n_ranges), options)
        add("exact.cluster", 1, options)
    if config.lines.before_minhash:
        add_lines()
        add_minhash()
    else:
        add_minhash()
        add_lines()
    add("finalize", n_shards, {"pii": config.pii.preset} | shown)
    if config.tokenize.tokenizer is not None:
        options = to_record(config.tokenize) | {"tokenizer": hash_of(config.tokenize.tokenizer)}
        add("tokenize", 1, options | {"mixture": config.mixture().as_json()})
    return stages


def _filter_options(config: PipelineConfig) -> Record:
    """What of the first stage determines its bytes, models and packages by what they hold."""
    record = to_record(config)
    options: Record = {"unicode": [unicodedata.unidata_version, _rslm.UNICODE_VERSION]}
    for name in ("limits", "extract", "quality"):
        options[name] = record[name]
    if config.extract.extractor != "readability":
        options["resiliparse"] = importlib.metadata.version("resiliparse")
    if config.url_filter.lists is not None:
        options["url_filter"] = hash_of(config.url_filter.lists)
    if config.language.languages:
        options["language"] = record["language"] | {"model": _language_model(config)}
    options["classifiers"] = [
        entry | {"model": hash_of(Path(entry["model"]))} for entry in record["classifiers"]
    ]
    if config.decontaminate.paths:
        hashes = [hash_of(path) for path in config.decontaminate.paths]
        options["decontaminate"] = record["decontaminate"] | {"paths": hashes}
    return options


def _language_model(config: PipelineConfig) -> str:
    if config.language.model is not None:
        return hash_of(config.language.model)
    from rslm.data.language import LanguageModel

    return str(LanguageModel().sha256)


def hash_of(path: Path) -> str:
    """SHA-256 of a file, or of the names and files of a folder.

    Raises:
        OSError: it is missing or cannot be read.
    """
    if not path.is_dir():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return digest([(file.relative_to(path).as_posix(), hash_of(file)) for file in files])


def write_plan(plan: Plan) -> None:
    """Writes `plan.json` and `config.toml` into the folder, which exists, where they differ.

    Processes of several machines may do so at once.
    """
    record = json.dumps(_plan_record(plan), indent=1).encode()
    for name, data in ((PLAN_FILE, record), ("config.toml", to_toml(plan.config).encode())):
        path = plan.folder / name
        if not path.exists() or path.read_bytes() != data:
            with written_beside(path, uuid.uuid4().hex) as beside:
                beside.write_bytes(data)


def _plan_record(plan: Plan) -> Record:
    return {
        "rslm": _rslm.VERSION,
        "config": to_record(plan.config),
        "n_ranges": plan.n_ranges,
        "stages": [to_record(stage) for stage in plan.stages],
        "shards": [to_record(shard) for shard in plan.shards],
    }


def read_plan(folder: Path) -> Plan:
    """The plan in a folder.

    Raises:
        FormatError: it is damaged.
        OSError: there is none.
    """
    path = folder / PLAN_FILE
    try:
        record = json.loads(path.read_bytes())
        return Plan(
            # The folder may have been moved since.
            config=replace(from_record(PipelineConfig, record["config"]), out=folder),
            shards=tuple(_read_shard(shard) for shard in record["shards"]),
            stages=tuple(Stage(**stage) for stage in record["stages"]),
            n_ranges=record["n_ranges"],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(f"{path}: must hold the plan of a pipeline: {error}") from error


def _read_shard(record: Record) -> Shard:
    files = tuple((path, name, size) for path, name, size in record["files"])
    return Shard(**record | {"files": files})
