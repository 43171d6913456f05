"""What a pipeline will do: its input files as shards, its stages, and what their bytes hang on.

A stage is a row of tasks that need nothing of each other, and all of the stages before. Its hash
is that of the options and versions that determine its bytes; workers, backend, folders and limits
of time and memory are not among them. `out/plan.json` holds a plan.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from rslm.config import Record, from_record, to_record, to_toml
from rslm.data.pipeline.checked import checked_record, unchecked_record
from rslm.data.pipeline.config import PipelineConfig
from rslm.data.pipeline.config_checks import check_places
from rslm.data.pipeline.ingredients import Ingredient, digest, identities, ingredients_of
from rslm.data.pipeline.inputs import Shard, find_shards
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
    made_with: tuple[Ingredient, ...] = ()
    """Besides the config's options: programs, models and lists that determine bytes."""

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
    check_places(config, (file for shard in shards for file, _, _ in shard.files))
    total = sum(shard.n_bytes for shard in shards)
    n_ranges = config.n_ranges or min(max(total // _RANGE_BYTES, _MIN_RANGES), _MAX_RANGES)
    plan = Plan(
        config=config,
        shards=shards,
        stages=(),
        n_ranges=n_ranges,
        made_with=ingredients_of(config),
    )
    return replace(plan, stages=tuple(_stages(plan)))


def _stages(plan: Plan) -> list[Stage]:
    """The stages that the config asks for, in their order."""
    # Imported here: it loads the extension, and a config can be read without.
    from rslm.data.dedup import stages as dedup

    config, n_shards, n_ranges = plan.config, len(plan.shards), plan.n_ranges
    general: Record = {"seed": config.seed, "version": _VERSION}
    shown = {"n_samples": config.n_samples}
    stages: list[Stage] = []

    def add(name: StageName, n_tasks: int, options: Record) -> None:
        made_with = identities(plan.made_with, name)
        hash = digest([name, n_tasks, general, made_with, options])
        stages.append(Stage(name=name, n_tasks=n_tasks, hash=hash))

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
    add("filter", 1, _filter_options(plan) | shown)
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
        options = to_record(config.tokenize) | {"tokenizer": None}
        add("tokenize", 1, options | {"mixture": config.mixture().as_json()})
    return stages


def _filter_options(plan: Plan) -> Record:
    """What of the first stage determines its bytes."""
    record = to_record(plan.config)
    options = {name: record[name] for name in ("limits", "extract", "quality")}
    # Where models and lists lie says nothing; what they hold is among what the plan is made with.
    if plan.config.language.languages:
        options["language"] = record["language"] | {"model": None}
    options["classifiers"] = [entry | {"model": None} for entry in record["classifiers"]]
    options["decontaminate"] = record["decontaminate"]["ngram_words"]
    return options


def write_plan(plan: Plan) -> None:
    """Writes `plan.json` and `config.toml` into the folder, which exists, where they differ.

    Processes of several machines may do so at once.
    """
    record = json.dumps(checked_record(_plan_record(plan)), indent=1).encode()
    for name, data in ((PLAN_FILE, record), ("config.toml", to_toml(plan.config).encode())):
        path = plan.folder / name
        if not path.exists() or path.read_bytes() != data:
            with written_beside(path, uuid.uuid4().hex) as beside:
                beside.write_bytes(data)


def _plan_record(plan: Plan) -> Record:
    return {
        "made_with": [to_record(ingredient) for ingredient in plan.made_with],
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
        record = unchecked_record(json.loads(path.read_bytes()))
        return Plan(
            # The folder may have been moved since.
            config=replace(from_record(PipelineConfig, record["config"]), out=folder),
            shards=tuple(_read_shard(shard) for shard in record["shards"]),
            stages=tuple(Stage(**stage) for stage in record["stages"]),
            n_ranges=record["n_ranges"],
            made_with=tuple(Ingredient(**each) for each in record["made_with"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError(f"{path}: must hold the plan of a pipeline: {error}") from error


def _read_shard(record: Record) -> Shard:
    files = tuple((path, name, size) for path, name, size in record["files"])
    return Shard(**record | {"files": files})
