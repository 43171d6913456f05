"""What numbers and tables of a pipeline's config must be, beyond their types."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rslm.data.pipeline.config import PipelineConfig

# Of each table the option without which its step is not made.
_FIRST_OPTIONS = {
    "language": "languages",
    "decontaminate": "paths",
    "lines": "keep",
    "minhash": "preset",
    "tokenize": "tokenizer",
}
_MAX_RANGES = 4096
# Samples are kept in memory, and the report shows them all.
_MAX_SAMPLES = 100_000


def check_numbers(config: PipelineConfig) -> None:
    """Refuses numbers out of their range.

    Raises:
        ValueError: one is; the message names it.
    """
    for name, value, least, most in _numbers(config):
        # So written that NaN is refused.
        if value is not None and not least <= value <= most:
            raise ValueError(f"{name} must be from {least} to {most}, got {value}")


def _numbers(config: PipelineConfig) -> Iterator[tuple[str, float | None, float, float]]:
    """Name, value, least and most of each number that has a range."""
    yield "n_samples", config.n_samples, 0, _MAX_SAMPLES
    yield "n_ranges", config.n_ranges, 0, _MAX_RANGES
    yield "max_worker_bytes", config.max_worker_bytes, 1 << 26, 1 << 62
    yield "watchdog_seconds", config.watchdog_seconds, 1, 86_400
    yield "seed", config.seed, 0, 2**32 - 1
    yield "language.min_score", config.language.min_score, 0, 1
    yield "language.max_chars", config.language.max_chars, 1, 1 << 62
    yield "decontaminate.ngram_words", config.decontaminate.ngram_words, 1, 64
    yield "lines.min_words", config.lines.min_words, 0, 1 << 62
    yield "tokenize.shuffle_seed", config.tokenize.shuffle_seed, 0, 2**64 - 1
    for classifier in config.classifiers:
        yield f"min_score of the classifier {classifier.name}", classifier.min_score, 0, 1
        least = classifier.min_score or 0
        yield f"max_score of the classifier {classifier.name}", classifier.max_score, least, 1


def check_languages(languages: tuple[str, ...]) -> None:
    """Refuses what is no row of codes.

    Raises:
        ValueError: one is empty, or "any" does not stand alone.
    """
    if "" in languages:
        raise ValueError('language.languages must be codes such as "en", got an empty string')
    if "any" in languages and len(languages) > 1:
        raise ValueError(f'language.languages must be ["any"] or codes, got {", ".join(languages)}')


def check_tables(config: PipelineConfig) -> None:
    """Refuses options of steps that are not made, for whoever gives them wants the step.

    A preset's own options are let be: a file that takes the step out of it leaves them there.

    Raises:
        ValueError: such an option is given; the message names the one that is missing.
    """
    if config.preset is not None:
        return
    for table, first in _FIRST_OPTIONS.items():
        options: Any = getattr(config, table)
        if getattr(options, first) not in (None, ()):
            continue
        # Every option of these tables has a default.
        for name, default in vars(type(options)()).items():
            if getattr(options, name) != default:
                raise ValueError(
                    f"{table}.{name} must come with {table}.{first}, without which the step is "
                    "not made"
                )


def check_places(config: PipelineConfig, files: Iterable[str]) -> None:
    """Refuses inputs in the folder to write into, and that folder in one of the inputs.

    The next run would take for inputs what this one writes.

    Raises:
        ValueError: a file or folder is in such a place; the message names both.
    """
    out = os.path.realpath(config.out)
    for file in files:
        if Path(os.path.realpath(file)).is_relative_to(out):
            raise ValueError(f"inputs must not lie in out, {config.out}, got {file}")
    for path in (path for given in config.inputs for path in given.paths):
        if os.path.isdir(path) and Path(out).is_relative_to(os.path.realpath(path)):
            raise ValueError(f"out must not lie in a folder of inputs, {path}, got {config.out}")
