r"""Text that holds pieces of evaluation sets, found by n-grams of words.

A page that quotes test questions would be learnt by heart, and the scores would lie. Words are
runs of letters, marks and numbers, in lower case character by character; punctuation and white
space only part them. A text overlaps where it has `ngram_words` words in a row in common with
an item. Items of fewer words are sought whole, down to `min_words`; shorter ones, which chance
would find everywhere ("Which of these is true?"), are counted and not sought.

In scripts that write no blanks a word is a whole run of characters, so there an overlap is a
match of thirteen clauses: hardly ever found.
Source: Brown et al. 2020, appendix C (arXiv:2005.14165): 13-grams for training text, and N from
8 to 13 by the length of a set's items; lower case, without punctuation. Differs: the whole page
is dropped instead of the 200 characters around a match, and however many pages hold the n-gram.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import lzma
import os
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import regex

from rslm import _rslm
from rslm.errors import FormatError

NGRAM_WORDS = 13
MIN_WORDS = 8
FIELDS = ("question", "query", "context", "context_options", "passage", "text")
"""Where evaluation sets keep what is asked, by the names of GSM8K, MMLU and CORE."""

Implementation = Literal["rust", "reference"]

_WORD = regex.compile(r"[\p{L}\p{M}\p{N}]+")
# A field of a CSV file may be a whole passage.
_MAX_FIELD_BYTES = 1 << 24
_DAMAGED = (
    *(ValueError, RecursionError, EOFError, csv.Error),
    *(tarfile.TarError, lzma.LZMAError, zlib.error, gzip.BadGzipFile),
)


class Overlap(NamedTuple):
    """An n-gram that a text and an evaluation item have in common."""

    source: str
    """Name of the item's file, behind that of its archive."""
    item: int
    """Number of the row in that file, from 0."""
    ngram: str
    """The words, joined by blanks."""


class _Item(NamedTuple):
    text: str
    source: str
    row: int


class EvaluationNgrams:
    """The n-grams of evaluation sets, and which of them texts hold.

    Immutable. Finding is linear in the text and lets go of the interpreter lock.
    """

    def __init__(
        self,
        items: Iterable[tuple[str, str, int]],
        *,
        ngram_words: int = NGRAM_WORDS,
        min_words: int = MIN_WORDS,
        implementation: Implementation = "rust",
    ) -> None:
        """Indexes items given as (text, source, row).

        Raises:
            ValueError: a length is out of range: 1 <= min_words <= ngram_words <= 64.
        """
        self._items = [_Item(*item) for item in items]
        self.ngram_words, self.min_words = ngram_words, min_words
        texts = [item.text for item in self._items]
        make = _ReferenceIndex if implementation == "reference" else _rslm.NgramIndex
        self._index: Any = make(texts, ngram_words, min_words)

    @classmethod
    def read(
        cls,
        paths: Iterable[str | os.PathLike[str]],
        *,
        ngram_words: int = NGRAM_WORDS,
        min_words: int = MIN_WORDS,
        fields: Sequence[str] = FIELDS,
        column: int = 0,
        implementation: Implementation = "rust",
    ) -> EvaluationNgrams:
        """The n-grams of evaluation files; what a file is its name says.

        `.jsonl`: of each row the strings, and the lists of strings, in those of `fields` that it
        has; `.csv`: one column; `.txt`: each line. These may be packed (`.gz`, `.xz`), lie in a
        folder, whose other files are passed over, or in a tar archive, packed or not.

        Raises:
            FormatError: a file is damaged, or a row has none of the fields.
            OSError: it cannot be read.
            ValueError: a length is out of range, or files of this name are unknown.
        """
        items = [item for path in paths for item in _read_items(Path(path), tuple(fields), column)]
        return cls(
            items, ngram_words=ngram_words, min_words=min_words, implementation=implementation
        )

    @property
    def n_items(self) -> int:
        """Texts that were indexed, those too short included."""
        return len(self._items)

    @property
    def n_skipped(self) -> int:
        """Texts with too few words to be sought."""
        return int(self._index.n_skipped)

    @property
    def n_ngrams(self) -> int:
        """Different n-grams that are sought."""
        return int(self._index.n_ngrams)

    def find_batch(self, texts: Sequence[str]) -> list[Overlap | None]:
        """For each text the overlap that ends first, of several the longest; None without one."""
        return [
            None
            if found is None
            else Overlap(self._items[found[0]].source, self._items[found[0]].row, found[1])
            for found in self._index.find_batch(texts)
        ]

    def overlaps_batch(self, texts: Sequence[str]) -> list[bool]:
        """Whether each text has an n-gram in common with any item."""
        return [found is not None for found in self._index.find_batch(texts)]


def words_of(text: str) -> list[str]:
    """The words that n-grams are made of.

    >>> words_of("The cat's hat, No.1!")
    ['the', 'cat', 's', 'hat', 'no', '1']
    """
    # By character, for the lower case of a whole word has a sigma of its own at its end.
    return ["".join(map(str.lower, word)) for word in _WORD.findall(text)]


class _ReferenceIndex:
    """What `_rslm.NgramIndex` does, in a dict of tuples."""

    def __init__(self, items: Sequence[str], ngram_words: int, min_words: int) -> None:
        if not 1 <= ngram_words <= 64:
            raise ValueError(f"ngram_words must be from 1 to 64, got {ngram_words}")
        if not 1 <= min_words <= ngram_words:
            limit = f"from 1 to ngram_words = {ngram_words}"
            raise ValueError(f"min_words must be {limit}, got {min_words}")
        self._ngrams: dict[tuple[str, ...], int] = {}
        self.n_skipped = 0
        for number, item in enumerate(items):
            words = words_of(item)
            if len(words) < min_words:
                self.n_skipped += 1
                continue
            n = min(ngram_words, len(words))
            for start in range(len(words) - n + 1):
                self._ngrams.setdefault(tuple(words[start : start + n]), number)
        self._lengths = sorted({len(ngram) for ngram in self._ngrams}, reverse=True)

    @property
    def n_ngrams(self) -> int:
        return len(self._ngrams)

    def find_batch(self, texts: Sequence[str]) -> list[tuple[int, str] | None]:
        return [self._find(words_of(text)) for text in texts]

    def _find(self, words: list[str]) -> tuple[int, str] | None:
        for end in range(1, len(words) + 1):
            for n in self._lengths:
                ngram = tuple(words[end - n : end]) if n <= end else ()
                if ngram in self._ngrams:
                    return self._ngrams[ngram], " ".join(ngram)
        return None


def _read_items(path: Path, fields: tuple[str, ...], column: int) -> Iterator[_Item]:
    """The items of a file, an archive, or a folder in the order of its files' names."""
    if path.is_dir():
        files = sorted(inner for inner in path.rglob("*") if inner.is_file())
        known = [inner for inner in files if _kind_of(inner.name)]
        if not known:
            raise ValueError(f"{path} must hold .jsonl, .csv or .txt files, and holds none")
        for inner in known:
            yield from _read_items(inner, fields, column)
        return
    if not (kind := _kind_of(path.name)):
        raise ValueError(f"evaluation files must be .jsonl, .csv, .txt or .tar, got {path}")
    try:
        if kind == "tar":
            yield from _read_archive(path, fields, column)
        else:
            with _unpacked(path) as file:
                yield from _read_rows(file, kind, path.name, fields, column)
    except _DAMAGED as error:
        raise FormatError(f"{path}: {error}") from error


def _kind_of(name: str) -> str:
    """What a file is: "jsonl", "csv", "txt" or "tar"; "" for others."""
    name = name.lower()
    for packing in (".gz", ".xz"):
        name = name.removesuffix(packing)
    kind = "tar" if name.endswith(".tgz") else os.path.splitext(name)[1].removeprefix(".")
    return kind if kind in ("jsonl", "csv", "txt", "tar") else ""


def _unpacked(path: Path) -> IO[bytes] | gzip.GzipFile:
    name = path.name.lower()
    if name.endswith(".gz"):
        return gzip.open(path)
    return lzma.open(path) if name.endswith(".xz") else path.open("rb")


def _read_archive(path: Path, fields: tuple[str, ...], column: int) -> Iterator[_Item]:
    with tarfile.open(path) as archive:
        for member in archive:
            kind = _kind_of(member.name)
            packed = member.name.lower().endswith((".gz", ".xz"))
            if not member.isfile() or packed or kind in ("", "tar"):
                continue
            file = archive.extractfile(member)
            assert file is not None
            yield from _read_rows(file, kind, f"{path.name}/{member.name}", fields, column)


def _read_rows(
    file: IO[bytes] | gzip.GzipFile, kind: str, source: str, fields: tuple[str, ...], column: int
) -> Iterator[_Item]:
    with io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as lines:
        if kind == "csv":
            csv.field_size_limit(_MAX_FIELD_BYTES)
            for number, row in enumerate(csv.reader(lines)):
                if len(row) <= column:
                    raise ValueError(f"{source}: row {number} must have more than {column} columns")
                yield _Item(row[column], source, number)
            return
        for number, line in enumerate(lines):
            if kind == "txt":
                yield _Item(line, source, number)
            elif line.strip():
                for text in _texts_of(json.loads(line), f"{source}: row {number}", fields):
                    yield _Item(text, source, number)


def _texts_of(row: Any, place: str, fields: tuple[str, ...]) -> list[str]:
    """The strings in those fields that a row has."""
    values = [row[field] for field in fields if field in row] if isinstance(row, dict) else []
    if not values:
        raise ValueError(f"{place} must have one of the fields {', '.join(fields)}")
    texts = [text for value in values for text in (value if isinstance(value, list) else [value])]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{place} must have strings in the fields {', '.join(fields)}")
    return texts
