"""Training and encoding: the Rust core beside the reference and the peers that are installed.

The text is the source code of the standard library. Every answer is compared with the Rust
core's, and that with the reference's, before anything is timed: the peers train with Hugging
Face's tie rule and encode with the very same vocabulary.
"""

import functools
import hashlib
import json
import sysconfig
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import rslm
from rslm import reference

Merges = Sequence[tuple[bytes, bytes]]

SMALL, LARGE = 1_000_000, 3_000_000
CORPUS_VOCAB_SIZE = {SMALL: 1256, LARGE: 8192}
THREADS = 2


@pytest.fixture(scope="module")
def text() -> str:
    folder = Path(sysconfig.get_path("stdlib"))
    source = "".join(path.read_bytes().decode() for path in sorted(folder.glob("*.py")))
    assert len(source) >= LARGE
    return source[:LARGE]


@pytest.fixture(scope="module")
def corpora(text: str, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The text in files, by size: some trainers read nothing else."""
    folder = tmp_path_factory.mktemp("corpora")
    paths = {size: folder / f"{size}.txt" for size in (SMALL, LARGE)}
    for size, path in paths.items():
        path.write_bytes(text[:size].encode())
    return paths


@functools.cache
def stand_ins() -> dict[int, str]:
    """The printable characters that Hugging Face's and GPT-2's files write for bytes."""
    others = (chr(256 + i) for i in range(68))
    return {b: chr(b) if reference.is_printable(b) else next(others) for b in range(256)}


def to_hf(token_bytes: bytes) -> str:
    return "".join(map(stand_ins().__getitem__, token_bytes))


def from_hf(merges: Iterable[Sequence[str]]) -> Merges:
    byte_of = {character: byte for byte, character in stand_ins().items()}
    return [
        (bytes(map(byte_of.__getitem__, left)), bytes(map(byte_of.__getitem__, right)))
        for left, right in merges
    ]


# Training. Each trainer takes a path and a vocabulary size, and gives the merges.


def train_rslm(path: Path, vocab_size: int, n_threads: int, **options: str) -> Merges:
    return rslm.train_bpe(path, vocab_size, n_threads=n_threads, **options)[1]


def train_reference(path: Path, vocab_size: int) -> Merges:
    return reference.train_bpe(path.read_bytes().decode(), vocab_size)[1]


def train_tokenizers(path: Path, vocab_size: int) -> Merges:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train([str(path)], trainer)
    return from_hf(json.loads(tokenizer.to_str())["model"]["merges"])


def train_gigabpe(path: Path, vocab_size: int) -> Merges:
    gigabpe = pytest.importorskip("gigabpe")
    _, merges = gigabpe.train_bpe(
        [str(path)], vocab_size, pretokenizer="bytelevel", threads=THREADS
    )
    return from_hf(merges)


def train_gigatoken(path: Path, vocab_size: int) -> Merges:
    gigatoken = pytest.importorskip("gigatoken")
    merges: Merges = gigatoken.train_bpe(path.read_bytes(), vocab_size, [])[1]
    return merges


# By name: the trainer, and the options with which the Rust core gives the same merges.
TRAINERS: dict[str, tuple[Callable[[Path, int], Merges], dict[str, str]]] = {
    "rslm": (functools.partial(train_rslm, n_threads=1), {}),
    "rslm_2_threads": (functools.partial(train_rslm, n_threads=2), {}),
    "reference": (train_reference, {}),
    "tokenizers": (train_tokenizers, {"tie_break": "hf", "unit": "line"}),
    "gigabpe": (train_gigabpe, {"tie_break": "hf", "unit": "line"}),
    "gigatoken": (train_gigatoken, {"tie_break": "hf"}),
}


@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("name", TRAINERS)
def bench_train(
    benchmark: BenchmarkFixture, corpora: dict[int, Path], name: str, size: int
) -> None:
    if name == "reference" and size == LARGE:
        pytest.skip("the reference takes minutes")
    train, options = TRAINERS[name]
    path, vocab_size = corpora[size], CORPUS_VOCAB_SIZE[size]
    expected = train_rslm(path, vocab_size, n_threads=1, **options)
    merges = train(path, vocab_size)
    # gigabpe leaves out bytes that the corpus does not hold, and makes as many more merges.
    assert merges[: len(expected)] == expected
    benchmark.group = f"train {vocab_size} tokens on {size // 10**6} MB"
    benchmark.extra_info["input_bytes"] = path.stat().st_size
    benchmark.pedantic(train, (path, vocab_size), rounds=1 if name == "reference" else 5)


# Encoding. Each builder takes the trained vocabulary, and gives a function from text to ids.

Encode = Callable[[str], Sequence[int] | np.ndarray]


@pytest.fixture(scope="module")
def tokenizer(corpora: dict[int, Path]) -> rslm.Tokenizer:
    vocab, merges = rslm.train_bpe(corpora[LARGE], CORPUS_VOCAB_SIZE[LARGE])
    return rslm.Tokenizer(vocab, merges)


def encode_rslm(tokenizer: rslm.Tokenizer) -> Encode:
    return tokenizer.encode


def encode_rslm_array(tokenizer: rslm.Tokenizer) -> Encode:
    return lambda text: tokenizer.encode_batch([text], n_threads=1)[0]


def encode_reference(tokenizer: rslm.Tokenizer) -> Encode:
    return reference.Tokenizer(tokenizer.vocab, tokenizer.merges).encode


def hf_tokenizer(tokenizer: rslm.Tokenizer) -> Any:
    tokenizers = pytest.importorskip("tokenizers")
    vocab = {to_hf(token_bytes): token_id for token_id, token_bytes in tokenizer.vocab.items()}
    merges = [(to_hf(left), to_hf(right)) for left, right in tokenizer.merges]
    hf = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, merges))
    hf.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    return hf


def encode_tokenizers(tokenizer: rslm.Tokenizer) -> Encode:
    hf = hf_tokenizer(tokenizer)
    return lambda text: hf.encode(text).ids


def encode_tiktoken(tokenizer: rslm.Tokenizer) -> Encode:
    tiktoken = pytest.importorskip("tiktoken")
    ranks = {token_bytes: token_id for token_id, token_bytes in tokenizer.vocab.items()}
    encoding = tiktoken.Encoding(
        "ours", pat_str=reference.PATTERNS["gpt2"], mergeable_ranks=ranks, special_tokens={}
    )
    return lambda text: encoding.encode_to_numpy(text)


def encode_gigatoken(tokenizer: rslm.Tokenizer) -> Encode:
    gigatoken = pytest.importorskip("gigatoken")
    encode: Encode = gigatoken.Tokenizer.from_json(hf_tokenizer(tokenizer).to_str()).encode
    return encode


ENCODERS: dict[str, Callable[[rslm.Tokenizer], Encode]] = {
    "rslm": encode_rslm,
    "rslm_array": encode_rslm_array,
    "reference": encode_reference,
    "tokenizers": encode_tokenizers,
    "tiktoken": encode_tiktoken,
    "gigatoken": encode_gigatoken,
}


def digest(token_ids: Sequence[int] | np.ndarray) -> str:
    return hashlib.sha256(np.asarray(token_ids, dtype="<u4").tobytes()).hexdigest()


@pytest.mark.parametrize("size", [1_000, SMALL, LARGE])
@pytest.mark.parametrize("name", ENCODERS)
def bench_encode(
    benchmark: BenchmarkFixture, tokenizer: rslm.Tokenizer, text: str, name: str, size: int
) -> None:
    encode = ENCODERS[name](tokenizer)
    text = text[:size]
    assert digest(encode(text)) == digest(tokenizer.encode(text))
    benchmark.group = f"encode {size // 1000} KB, warm"
    benchmark.extra_info["input_bytes"] = len(text.encode())
    benchmark(encode, text)


def bench_decode(benchmark: BenchmarkFixture, tokenizer: rslm.Tokenizer, text: str) -> None:
    token_ids = tokenizer.encode_batch([text])[0]
    assert tokenizer.decode(token_ids) == text
    benchmark.extra_info["input_bytes"] = len(text.encode())
    benchmark(tokenizer.decode, token_ids)
