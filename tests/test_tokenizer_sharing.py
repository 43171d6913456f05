"""One tokenizer in many hands: threads, forks, pickles, and streams in constant memory."""

import itertools
import os
import pickle
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import rslm

END_OF_TEXT = "<|endoftext|>"


@pytest.fixture(scope="module")
def trained(stdlib_text: str) -> rslm.Tokenizer:
    """5,000 tokens learnt from source code."""
    vocab, merges = rslm.train_bpe(None, 5000, [END_OF_TEXT], texts=[stdlib_text[:2_000_000]])
    return rslm.Tokenizer(vocab, merges, [END_OF_TEXT])


def test_pickling_keeps_everything(rust_tokenizer, bpe_corpus: str) -> None:
    tokenizer = rust_tokenizer("cl100k")
    tokenizer.encode(bpe_corpus)
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.sha256 == tokenizer.sha256
    assert (copy.vocab, copy.merges, copy.pattern) == (tokenizer.vocab, tokenizer.merges, "cl100k")
    assert copy.encode(bpe_corpus) == tokenizer.encode(bpe_corpus)


def test_eight_threads_may_share_a_tokenizer(trained: rslm.Tokenizer, stdlib_text: str) -> None:
    shuffler = random.Random(0)
    starts = [shuffler.randrange(3_000_000) for _ in range(64)]
    texts = [stdlib_text[start : start + 20_000] for start in starts]
    expected = [trained.encode(text) for text in texts]
    fresh = pickle.loads(pickle.dumps(trained))
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(fresh.encode, texts)) == expected
        assert list(pool.map(lambda text: list(fresh.encode_iterable([text])), texts)) == expected
        assert list(pool.map(fresh.decode, expected)) == texts
        batches = list(pool.map(lambda _: fresh.encode_batch(texts)[0].tolist(), range(8)))
    joined = list(itertools.chain(*expected))
    assert all(batch == joined for batch in batches)


def test_batches_do_not_depend_on_threads(trained: rslm.Tokenizer, stdlib_text: str) -> None:
    # A thread is started for each MiB.
    texts = [stdlib_text[:1_500_000], "", *stdlib_text[1_500_000:].splitlines()]
    token_ids, offsets = trained.encode_batch(texts, n_threads=1)
    for n_threads in (2, 3, None):
        other_ids, other_offsets = trained.encode_batch(texts, n_threads=n_threads)
        assert np.array_equal(token_ids, other_ids)
        assert np.array_equal(offsets, other_offsets)
    assert token_ids[: offsets[1]].tolist() == trained.encode(texts[0])


FORKING_CHILD = """
import os, signal, warnings
import rslm

warnings.simplefilter("ignore", DeprecationWarning)  # Threads of NumPy's libraries are not ours.
vocab, merges = rslm.train_bpe(None, 300, texts=["low lower lowest " * 1000], n_threads=2)
tokenizer = rslm.Tokenizer(vocab, merges)
texts = ["low lower lowest " * 5000] * 40
expected = tokenizer.encode_batch(texts, n_threads=2)[0].tolist()
child = os.fork()
signal.alarm(60)
same = tokenizer.encode_batch(texts, n_threads=2)[0].tolist() == expected
same = same and rslm.train_bpe(None, 300, texts=texts, n_threads=2)[1] == merges
if child == 0:
    os._exit(0 if same else 1)
assert same and os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_fork_after_use_does_not_hang() -> None:
    subprocess.run([sys.executable, "-c", FORKING_CHILD], check=True, timeout=120)


# The limit is in force while the ids are consumed, not only while the generator is made.
STREAMING_CHILD = """
import resource, sys
import rslm

tokenizer = rslm.Tokenizer.load(sys.argv[1])
lines = open(sys.argv[2], encoding="utf-8", newline="").read().splitlines(keepends=True)

def stream(n_bytes):
    while n_bytes > 0:
        for line in lines:
            yield line
            n_bytes -= len(line)

def status(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(key)) * 1024

def consume(n_bytes):
    return sum(1 for _ in tokenizer.encode_iterable(stream(n_bytes)))

consume(2_000_000)
before = status("VmRSS")
resource.setrlimit(resource.RLIMIT_AS, (status("VmSize") + 1_000_000, -1))
n_tokens = consume(24_000_000)
growth = status("VmRSS") - before
assert n_tokens > 1_000_000
assert growth < 1_000_000, growth
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_encode_iterable_runs_in_constant_memory(
    trained: rslm.Tokenizer, stdlib_text: str, tmp_path: Path
) -> None:
    trained.save(tmp_path / "tokenizer.json")
    (tmp_path / "text.py").write_bytes(stdlib_text[:1_000_000].encode())
    paths = [str(tmp_path / "tokenizer.json"), str(tmp_path / "text.py")]
    subprocess.run([sys.executable, "-c", STREAMING_CHILD, *paths], check=True, timeout=120)
