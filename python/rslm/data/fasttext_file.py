"""fastText models, checked before its loader sees them, since that believes whatever it reads.

The loader takes every size from the file: a cut or crafted one ends the process, in an
allocation of terabytes or a read behind an array. So sizes, counts and weights are held against
each other and the file's length here first; what passes can be loaded and asked about any text.
Source: the format, version 12, as fastText 0.9.2 writes it (`fasttext.cc`, `dictionary.cc`,
`matrix.cc`, `quantmatrix.cc`, `productquantizer.cc`).
"""

from __future__ import annotations

import mmap
import os
import re
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rslm.errors import FormatError

_MAGIC, _VERSIONS = 793712314, (11, 12)
_SUPERVISED = 3
_LOSSES = (1, 2, 3, 4)  # Hierarchical softmax, negative sampling, softmax, one against all.
_N_CENTROIDS = 256
# A trained model is far within these. Products and sums of such weights are finite, and a NaN
# would be an index to fastText's table of sigmoids.
_MAX_WEIGHT = 1e6
# A long word costs its length times `maxn`.
_MAX_NGRAM = 64
# What the Huffman tree takes for infinite.
_MAX_COUNT = 10**15
_ENTRY = re.compile(rb"([^\0]*)\0(.{8})([\0\1])", re.DOTALL)
# What is a mark to fastText where it stands as a word, or at the beginning of one.
_LABEL = re.compile(r"(?:(?<=[ \t\v\f\r\0])|^)__label__")
_END = "</s>"

_FIX = "pip install --force-reinstall --no-deps fasttext-community"


class Arguments(NamedTuple):
    """What a model was trained with, as far as its file says."""

    dim: int
    ws: int
    epoch: int
    min_count: int
    neg: int
    word_ngrams: int
    loss: int
    model: int
    bucket: int
    minn: int
    maxn: int
    lr_update_rate: int


def load_fasttext(path: str | os.PathLike[str]) -> Any:
    """The model of a file, as `fasttext.load_model` gives it.

    Raises:
        FormatError: the file is no supervised fastText model, or is damaged.
        OSError: it cannot be read.
        ValueError: the module `fasttext` is missing, or is not a whole one.
    """
    check_model(path)
    fasttext = fasttext_module("load_model")
    try:
        return fasttext.load_model(os.fspath(path))
    except (ValueError, RuntimeError) as error:
        raise FormatError(f"{os.fspath(path)}: fastText refuses the model: {error}") from error


def fasttext_module(needed: str) -> Any:
    """The module `fasttext`, which must have the function that is needed.

    Several packages install a module of this name over each other; some can only predict.

    Raises:
        ValueError: it is missing, broken, or another.
    """
    try:
        import fasttext
    except ModuleNotFoundError as error:
        raise ValueError(
            "this needs fasttext-community, which is not installed: pip install 'rslm[data]'"
        ) from error
    except ImportError as error:
        raise ValueError(f"the module fasttext is damaged ({error}); mend it: {_FIX}") from error
    if not hasattr(fasttext, needed):
        raise ValueError(
            f"the module fasttext must have {needed}, but another package installed its own over "
            f"that of fasttext-community; mend it: {_FIX}"
        )
    return fasttext


def one_line(text: str) -> str:
    """The text as fastText takes it: one line, in which no word is a mark.

    Line ends become blanks. `</s>` would end the text there, and a word that begins with
    `__label__` would be a label; both are text that anybody may write on a page.
    """
    if "\n" in text:
        text = text.replace("\n", " ")
    if _END in text:
        text = text.replace(_END, " ")
    if "__label__" in text:
        text = _LABEL.sub("label ", text)
    try:
        text.encode()
    except UnicodeEncodeError:
        units = text.encode("utf-16-le", "surrogatepass")
        text = units.decode("utf-16-le", "replace")
    return text


def check_model(path: str | os.PathLike[str]) -> Arguments:
    """What the file of a supervised model was trained with, after everything in it was checked.

    Reads the file once; memory: that of its dictionary's counts.

    Raises:
        FormatError: the file is none, is cut, or could make fastText read what is not there.
        OSError: it cannot be read.
    """
    try:
        with (
            Path(path).open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            return _Reader(data).model()
    except _BadModelError as error:
        raise FormatError(f"{os.fspath(path)}: not a whole fastText model: {error}") from None
    except ValueError:  # An empty file cannot be mapped.
        raise FormatError(f"{os.fspath(path)}: not a fastText model: it is empty") from None


class _BadModelError(Exception):
    """What is wrong with a model."""


class _Reader:
    """Reads fields one after the other, none of them behind the end."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._at = data, 0

    def model(self) -> Arguments:
        magic, version = self.take("<2i")
        _require(magic == _MAGIC and version in _VERSIONS, "it has another magic or version")
        arguments = Arguments(*self.take("<12i"))
        self.take("<d")
        _check_arguments(arguments)
        n_words, n_labels, n_pruned = self._dictionary(arguments)
        (quantized,) = self.take("<B")
        _require(quantized <= 1 and (quantized or n_pruned < 0), "only quantised ones are pruned")
        n_rows = self._matrix(quantized, arguments.dim)
        wanted = self._rows_needed(arguments, n_words, n_pruned)
        _require(n_rows >= wanted, f"{wanted} rows are needed, and there are {n_rows}")
        (quantized_output,) = self.take("<B")
        _require(quantized_output <= 1, "a flag is none")
        n_rows = self._matrix(quantized and quantized_output, arguments.dim)
        _require(n_rows == n_labels, f"{n_labels} labels have {n_rows} rows")
        _require(self._at == len(self._data), f"{len(self._data) - self._at} bytes are left over")
        return arguments

    def take(self, code: str) -> tuple[Any, ...]:
        size = struct.calcsize(code)
        return struct.unpack(code, self._bytes(size))

    def _bytes(self, size: int) -> bytes:
        start = self._skip(size)
        return self._data[start : self._at]

    def _skip(self, size: int) -> int:
        start = self._at
        _require(0 <= size <= len(self._data) - start, f"it ends within {size} bytes at {start}")
        self._at += size
        return start

    def _dictionary(self, arguments: Arguments) -> tuple[int, int, int]:
        n_entries, n_words, n_labels, _, n_pruned = self.take("<3i2q")
        sizes_fit = n_words >= 0 and n_labels >= 1 and n_words + n_labels == n_entries
        _require(sizes_fit and n_pruned >= -1, "the dictionary's sizes contradict each other")
        # Each entry takes ten bytes at least, so a count cannot promise more than the file has.
        _require(n_entries <= len(self._data) // 10, "the dictionary is larger than the file")
        counts = []
        for number in range(n_entries):
            entry = _ENTRY.match(self._data, self._at)
            is_label = number >= n_words
            _require(entry is not None and entry[3] == bytes([is_label]), "an entry is none")
            assert entry is not None
            self._at = entry.end()
            if is_label:
                counts.append(int.from_bytes(entry[2], "little", signed=True))
                _require(_is_utf8(entry[1]), "a label is not UTF-8")
        # As a trained model has them, the Huffman tree is complete and not deep.
        ordered = counts == sorted(counts, reverse=True)
        _require(ordered and counts[-1] >= 0 and sum(counts) < _MAX_COUNT, "counts are impossible")
        self._pruned_at = self._skip(8 * max(n_pruned, 0))
        return n_words, n_labels, n_pruned

    def _rows_needed(self, arguments: Arguments, n_words: int, n_pruned: int) -> int:
        """Rows of the input matrix that texts can ask for."""
        if n_pruned < 0:
            return n_words + arguments.bucket
        pairs = np.frombuffer(
            self._data[self._pruned_at : self._pruned_at + 8 * n_pruned], "<i4"
        ).reshape(-1, 2)
        if not len(pairs):
            return n_words
        _require(int(pairs[:, 1].min()) >= 0, "a pruned row is below 0")
        return n_words + int(pairs[:, 1].max()) + 1

    def _matrix(self, quantized: bool, dim: int) -> int:
        """Passes over a matrix of `dim` columns; its number of rows."""
        with_norm = self.take("<B")[0] if quantized else 0
        n_rows, n_columns = self.take("<2q")
        _require(n_rows >= 0 and n_columns == dim, f"a matrix has {n_columns} columns, not {dim}")
        if not quantized:
            self._weights(n_rows * n_columns)
            return int(n_rows)
        _require(with_norm <= 1, "a flag is none")
        (n_codes,) = self.take("<i")
        self._skip(n_codes)
        n_parts = self._quantizer(dim)
        _require(n_codes == n_rows * n_parts, "codes do not fit the rows")
        if with_norm:
            self._skip(n_rows)
            self._quantizer(1)
        return int(n_rows)

    def _quantizer(self, dim: int) -> int:
        """Passes over a product quantiser; the codes that a row has."""
        own_dim, n_parts, part, last = self.take("<4i")
        fits = own_dim == dim and part >= 1 and n_parts >= 1 and 1 <= last <= part
        _require(fits and (n_parts - 1) * part + last == dim, "a quantiser does not fit its rows")
        self._weights(dim * _N_CENTROIDS)
        return int(n_parts)

    def _weights(self, count: int) -> None:
        start = self._skip(4 * count)
        step = 1 << 20
        for at in range(start, self._at, step):
            weights = np.frombuffer(self._data[at : min(at + step, self._at)], "<f4")
            # A NaN makes the comparison false.
            _require(bool(np.abs(weights).max() <= _MAX_WEIGHT), "a weight is no possible number")


def _check_arguments(arguments: Arguments) -> None:
    _require(arguments.model == _SUPERVISED, "it was not trained on labels")
    _require(arguments.loss in _LOSSES, "its loss is unknown")
    _require(1 <= arguments.dim <= 1 << 16, f"rows of {arguments.dim} numbers are impossible")
    # Some of these fastText compares without their sign.
    lengths = (arguments.word_ngrams, arguments.minn, arguments.maxn)
    _require(all(0 <= n <= _MAX_NGRAM for n in lengths), "n-grams have no such length")
    uses_buckets = arguments.maxn > 0 or arguments.word_ngrams > 1
    _require(arguments.bucket >= uses_buckets, "n-grams have no buckets")


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise _BadModelError(otherwise)
