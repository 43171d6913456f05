"""The Rust core of rslm."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, final

import numpy as np
import numpy.typing as npt

from rslm.corpus import Counting

__all__ = [
    "BUILD_PROFILE",
    "UNICODE_VERSION",
    "VERSION",
    "Block",
    "CountsReader",
    "EncodeIterator",
    "FastText",
    "NgramIndex",
    "ShardWriter",
    "StepPlan",
    "StreamDecoder",
    "Tokenizer",
    "UrlLists",
    "activate",
    "check_quality",
    "check_repeated_lines",
    "clean_controls",
    "cluster_edges",
    "count_line_files",
    "count_pretokens",
    "count_sentences",
    "decode_bytes",
    "encode_files",
    "enter_namespaces",
    "exact_keys",
    "extract_readable",
    "find_among",
    "give_up_privileges",
    "join_signatures",
    "limit_resources",
    "linear",
    "linear_int8",
    "mask_pii",
    "mask_pii_kind",
    "merge_line_files",
    "minhash_signature",
    "normalize_texts",
    "page_problem",
    "pattern_engine",
    "permute",
    "plan_packing",
    "pretokenize",
    "quantize_rows",
    "read_dropped_rows",
    "read_text_row",
    "restrict_calls",
    "restrict_files",
    "rewrite_line_files",
    "rewrite_lines",
    "rms_norm",
    "rotate",
    "train_bpe",
    "unicode_words",
    "unpack_member",
    "verify_token_file",
]

BUILD_PROFILE: str
UNICODE_VERSION: str
VERSION: str

_StrPath = str | os.PathLike[str]
_Floats = npt.NDArray[np.float32]
_Progress = Callable[[int, int, str], object]
# Format, field or column, whether rows hold special tokens, longest document, reader of tables.
_Inputs = tuple[str | None, str, bool, int, Callable[..., Any]]

@final
class Tokenizer:
    def __new__(
        cls,
        vocab: dict[int, bytes],
        merges: Sequence[tuple[bytes, bytes]],
        special_tokens: Sequence[tuple[str, int | None]],
        pattern: str,
    ) -> Tokenizer: ...
    @staticmethod
    def load(
        path: _StrPath,
        format: str | None,
        pattern: str | None,
        special_tokens: Sequence[tuple[str, int | None]],
    ) -> Tokenizer: ...
    @staticmethod
    def load_gpt2(
        vocab_path: _StrPath,
        merges_path: _StrPath,
        special_tokens: Sequence[tuple[str, int | None]],
        pattern: str,
    ) -> Tokenizer: ...
    @staticmethod
    def from_json(data: bytes) -> Tokenizer: ...
    def to_files(self, format: str) -> list[tuple[str, bytes]]: ...
    def gguf_vocabulary(self, pre: str | None) -> tuple[str, list[str], list[int], list[str]]: ...
    def to_json(self) -> bytes: ...
    def sha256(self) -> bytes: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def pattern(self) -> str: ...
    @property
    def vocab(self) -> dict[int, bytes]: ...
    @property
    def merges(self) -> list[tuple[bytes, bytes]]: ...
    @property
    def special_tokens(self) -> dict[str, int]: ...
    def token_byte_lengths(self) -> npt.NDArray[np.uint32]: ...
    def encode(self, text: str) -> list[int]: ...
    def encode_ordinary(self, text: str) -> list[int]: ...
    def encode_allowing(self, text: str, allowed: Sequence[str]) -> list[int]: ...
    def encode_to_numpy(
        self, text: str | bytes
    ) -> npt.NDArray[np.uint16] | npt.NDArray[np.uint32]: ...
    def encode_with_dropout(self, text: str, dropout: float, seed: int) -> list[int]: ...
    def offsets(self, token_ids: Sequence[int]) -> npt.NDArray[np.int64]:
        """Start and end of each id in the characters of the text."""

    def count(self, text: str | bytes) -> int: ...
    def encode_batch(
        self, texts: Iterable[str] | Iterable[bytes], n_threads: int | None
    ) -> tuple[npt.NDArray[np.uint16] | npt.NDArray[np.uint32], npt.NDArray[np.int64]]: ...
    def encode_iterable(self, texts: Iterable[str]) -> EncodeIterator: ...
    def decode_bytes(self, token_ids: Sequence[int] | npt.NDArray[Any]) -> bytes: ...
    def token_to_id(self, token_bytes: bytes) -> int | None: ...

@final
class EncodeIterator(Iterator[int]):
    def __iter__(self) -> EncodeIterator: ...
    def __next__(self) -> int: ...

@final
class StreamDecoder:
    """Decodes ids one at a time and never shows half a character.

    `add` returns the text that the new id completes, `finish` what is left. Joined, the
    pieces are `decode` of all ids with `errors="replace"`.
    """

    def __new__(cls, tokenizer: Any) -> StreamDecoder: ...
    def add(self, token_id: int) -> str:
        """The text that this id completes: perhaps none, never half a character."""

    def finish(self) -> str:
        """What is left, with U+FFFD for a character that never became whole."""

@final
class CountsReader(Iterator[tuple[bytes, int]]):
    """Reads a file of counts entry by entry; see `rslm.tokenizer.read_counts`."""

    def __new__(cls, path: _StrPath) -> CountsReader: ...
    @property
    def header(self) -> dict[str, Any]:
        """How the pretokens were made, and what they come to."""

    def __iter__(self) -> CountsReader: ...
    def __next__(self) -> tuple[bytes, int]: ...

@final
class NgramIndex:
    """N-grams of evaluation items; see `rslm.data.decontaminate`."""

    def __new__(cls, items: list[str], ngram_words: int, min_words: int) -> NgramIndex: ...
    def find_batch(self, texts: Sequence[str]) -> list[tuple[int, str] | None]:
        """For each text, the number of an item and the n-gram of it that the text holds."""

    @property
    def n_ngrams(self) -> int: ...
    @property
    def n_skipped(self) -> int: ...

@final
class FastText:
    """A supervised fastText model; see `rslm.data.language` and `rslm.data.classify`."""

    def __new__(cls, path: _StrPath) -> FastText:
        """Of a file."""

    def labels(self) -> list[str]:
        """The labels, in the order of their numbers."""

    def predict(self, texts: Sequence[str], n_threads: int) -> list[tuple[int, float] | None]:
        """(number of the likeliest label, its score) for each text; None where there is none."""

    def scores(self, texts: Sequence[str], label: int, n_threads: int) -> list[float]:
        """The score of one label for each text."""

@final
class UrlLists:
    """Lists of addresses and words; see `rslm.data.url_filter`."""

    def __new__(
        cls, domains: Iterable[str], urls: Iterable[str], words: list[list[bytes]], n_soft: int
    ) -> UrlLists: ...
    def reasons(self, urls: Sequence[str]) -> list[str | None]:
        """The reason of each address; None where the host must be given."""

    def reason_with_host(self, url: bytes, host: bytes) -> str: ...
    def registered_domain(self, host: bytes) -> bytes: ...

@final
class Block:
    """The weights of one layer where they lie, and its sizes."""

    def __new__(
        cls,
        gains: tuple[_Floats, _Floats],
        matrices: Sequence[tuple[_Floats | npt.NDArray[np.int8], _Floats | None]],
        turns: tuple[_Floats, ...] | None,
        epsilon: float,
        heads: tuple[int, int, int],
        window: int | None,
        scale: float,
    ) -> Block: ...

@final
class StepPlan:
    """Where the tokens of a ragged step stand, and where the keys of their sequences are."""

    def __new__(
        cls,
        positions: Sequence[int],
        lengths: Sequence[int],
        block_tables: Sequence[Sequence[int]],
        block_size: int,
        n_blocks: int,
    ) -> StepPlan: ...
    def append(self, new: _Floats, stored: _Floats) -> None: ...
    def run_block(
        self,
        block: Block,
        x: _Floats,
        keys: _Floats,
        values: _Floats,
        out: _Floats,
        n_threads: int,
    ) -> None: ...
    def attend(
        self,
        q: _Floats,
        keys: _Floats,
        values: _Floats,
        window: int | None,
        scale: float,
        out: _Floats,
        n_threads: int,
    ) -> None: ...

def train_bpe(
    counting: Counting,
    counts_paths: Sequence[_StrPath],
    pairs: Iterable[tuple[bytes, int]] | None,
    vocab_size: int,
    tie_break: str,
    min_frequency: int,
    max_token_length: int | None,
    extend: Tokenizer | None,
    progress: _Progress | None,
) -> Tokenizer: ...
def count_pretokens(
    counting: Counting, out: _StrPath, progress: _Progress | None
) -> dict[str, int]: ...
def encode_files(
    tokenizer: Tokenizer,
    paths: Sequence[_StrPath],
    out: _StrPath,
    name: str,
    dataset: str,
    shard_tokens: int,
    end_of_text: str | None,
    errors: str,
    command: str,
    n_threads: int | None,
    progress: _Progress | None,
    inputs: _Inputs,
    resume: bool,
) -> dict[str, Any]: ...
def verify_token_file(path: _StrPath) -> dict[str, Any]: ...
def permute(n: int, seed: int, epoch: int, index: int) -> int: ...
def plan_packing(
    lengths: npt.NDArray[np.uint32], context_length: int, policy: str
) -> tuple[
    npt.NDArray[np.uint64], npt.NDArray[np.uint32], npt.NDArray[np.uint32], npt.NDArray[np.uint32]
]:
    """Where rows begin among the pieces, and the document, start and length of each piece."""

def linear(x: _Floats, weight: _Floats, bias: _Floats | None, out: _Floats, n_threads: int) -> None:
    """Puts x Wᵀ + bias over the last dimension into `out`; arrays lie in order, here and below."""

def linear_int8(
    x: _Floats,
    weight: npt.NDArray[np.int8],
    scales: _Floats,
    bias: _Floats | None,
    out: _Floats,
    n_threads: int,
) -> None: ...
def quantize_rows(weight: _Floats) -> tuple[npt.NDArray[np.int8], _Floats]: ...
def rms_norm(x: _Floats, gains: _Floats | None, epsilon: float, out: _Floats) -> None: ...
def rotate(
    x: _Floats, positions: npt.NDArray[np.int64], cos: _Floats, sin: _Floats, out: _Floats
) -> None: ...
def activate(name: str, x: _Floats, gate: _Floats | None, out: _Floats) -> None: ...
def check_quality(
    texts: list[str], preset: str, n_threads: int, step: int | None = None
) -> list[tuple[str, str | None, list[tuple[str, int]]] | None]:
    """Why each page is dropped, its text if that changed, lines removed; None for no UTF-8.

    By `step` alone of the preset's, if given: to measure each by itself.
    """

def mask_pii(
    texts: list[str], preset: str, n_threads: int
) -> list[tuple[str, dict[str, int], str] | None]:
    """Each text masked, masks put, why the page is dropped; None for no UTF-8."""

def unicode_words(text: str) -> list[str] | None: ...
def count_sentences(text: str) -> int | None: ...
def mask_pii_kind(text: str, preset: str, kind: str) -> tuple[str | None, int] | None: ...
def pretokenize(text: str, pattern: str) -> list[str]: ...
def pattern_engine(pattern: str) -> str: ...

# Most bytes of a page, depth, nodes, and bytes of a text.
_ExtractLimits = tuple[int, int, int, int]

def extract_readable(
    pages: Sequence[str], limits: _ExtractLimits, n_threads: int, *, reference: bool = False
) -> list[tuple[str, str]]: ...
def page_problem(page: str, limits: _ExtractLimits) -> str: ...
def clean_controls(text: str) -> str: ...
def read_text_row(line: bytes, text_field: str) -> tuple[str | None, str, bytes, int] | None:
    """Source, id, the line with the text alone, bytes of the text; None if Python must read it."""

def decode_bytes(page: bytes, label: str) -> tuple[str, str]: ...
def unpack_member(
    packed: bytes, start: int, max_bytes: int, max_inflation: int
) -> tuple[bytes | None, int]: ...

# Normalisation, words of a shingle, whether fewer are one shingle, bands, threshold, factors,
# summands.
_MinHashArguments = tuple[
    str, int, bool, int, float | None, npt.NDArray[np.uint64], npt.NDArray[np.uint64]
]
_Place = tuple[int, int]

@final
class ShardWriter:
    @staticmethod
    def of_lines(shard: int, target: _StrPath, n_ranges: int, limit: int) -> ShardWriter: ...
    @staticmethod
    def of_exact(shard: int, target: _StrPath, n_ranges: int, limit: int) -> ShardWriter: ...
    @staticmethod
    def of_minhash(
        options: _MinHashArguments, shard: int, target: _StrPath, n_ranges: int, limit: int
    ) -> ShardWriter: ...
    def add(self, texts: Sequence[str]) -> None: ...
    def finish(self) -> int: ...
    def discard(self) -> None: ...

def normalize_texts(texts: Sequence[str], rule: str) -> list[str]: ...
def exact_keys(texts: Sequence[str]) -> list[bytes]: ...
def minhash_signature(text: str, options: _MinHashArguments) -> npt.NDArray[np.uint64] | None: ...
def merge_line_files(
    counts: Sequence[_StrPath], range: int, target: _StrPath, n_ranges: int
) -> tuple[int, int, int, int]:
    """Lines, different ones, repeated ones, copies of these."""

def check_repeated_lines(path: _StrPath) -> tuple[int, int, int, int]:
    """Range, number of ranges, start and length of the records."""

def rewrite_lines(
    tables: Sequence[npt.NDArray[np.uint8]],
    texts: Sequence[str],
    shard: int,
    first_row: int,
    keep_first: bool,
) -> list[tuple[str, int]]: ...
def count_line_files(paths: Sequence[_StrPath], target: _StrPath, limit: int) -> int: ...
def rewrite_line_files(
    tables: Sequence[npt.NDArray[np.uint8]],
    paths: Sequence[tuple[_StrPath, _StrPath]],
    keep_first: bool,
) -> int: ...
def join_signatures(
    signatures: Sequence[_StrPath], part: int, target: _StrPath, cap: tuple[int, int], limit: int
) -> tuple[int, int, int, int, int]:
    """Candidates, duplicates, copies, capped buckets, members of the largest bucket."""

def cluster_edges(
    edges: Sequence[_StrPath], n_rows: Sequence[int], target: _StrPath, seed: int | None
) -> tuple[int, int, list[tuple[int, int]], list[tuple[_Place, int, list[_Place]]]]:
    """Documents, dropped ones, sizes and how often, the largest: kept, size, first members."""

def read_dropped_rows(path: _StrPath, shard: int) -> npt.NDArray[np.uint32]: ...
def find_among(
    path: _StrPath, ranks: npt.NDArray[np.uint32], cap: tuple[int, int], limit: int
) -> tuple[npt.NDArray[np.uint32], int, int, int]:
    """For each rank the least of its cluster; candidates, duplicates, capped buckets."""

def enter_namespaces(readable: Sequence[str | os.PathLike[str]], directory_bytes: int) -> None:
    """Moves this process behind a root of its own and off the network; OSError if it cannot.

    This and the four below are walls that nothing takes down again: `rslm.evaluate.sandbox`.
    """

def limit_resources(
    memory_bytes: int, cpu_seconds: int, file_bytes: int, n_open_files: int
) -> None:
    """Sets hard limits on this process."""

def give_up_privileges(die_with_parent: bool) -> None:
    """Drops every capability, and the right to gain any through a program."""

def restrict_files(
    readable: Sequence[str | os.PathLike[str]],
    writable: Sequence[str | os.PathLike[str]],
    killer: bool,
) -> None:
    """Leaves reading beneath some paths and writing beneath others, by Landlock."""

def restrict_calls(child: int | None) -> None:
    """Leaves the system calls of a list, by seccomp; `child` may be killed and waited for."""
