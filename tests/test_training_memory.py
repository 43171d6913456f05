"""What training says that it needs of memory, against what it takes."""

import random
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rslm.tokenizer import count_pretokens

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

CHILD = """
import re, sys
import rslm

def peak():
    # Not ru_maxrss, which begins with the peak of the process that forked this one.
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1]) * 1024

counts, vocab_size = sys.argv[1], int(sys.argv[2])
try:
    rslm.Tokenizer.train(None, vocab_size, counts=counts, memory_limit=1 << 20)
except ValueError as error:
    needed = int(re.search(r"at least (\\d+) bytes to train", str(error))[1])
rslm.Tokenizer.train(None, 300, texts=["a warm start " * 9])
before = peak()
rslm.Tokenizer.train(None, vocab_size, counts=counts, memory_limit=needed)
print(needed, peak() - before)
"""


# What many threads leave with the allocator when counting is done must not come on top.
LIMITED_CHILD = """
import re, sys
import rslm

def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1]) * 1024

path, vocab_size, limit = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
rslm.Tokenizer.train(None, 300, texts=["a warm start " * 9])
before = peak()
try:
    rslm.Tokenizer.train(path, vocab_size, n_threads=8, memory_limit=limit)
    print(limit, peak() - before)
except ValueError as error:
    print(re.search(r"at least (\\d+) bytes to train", str(error))[1], 0)
"""


def needed_and_taken(counts: Path, vocab_size: int) -> tuple[int, int]:
    command = [sys.executable, "-c", CHILD, str(counts), str(vocab_size)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)
    needed, taken = map(int, done.stdout.split())
    return needed, taken


def different_words(n_words: int) -> Iterator[str]:
    chance = random.Random(4)
    letters = "abcdefghijklmnopqrstuvwxyz"
    for _ in range(n_words // 1000):
        yield " ".join(
            "".join(chance.choices(letters, k=chance.randint(5, 12))) for _ in range(1000)
        )


def source_code() -> Iterator[str]:
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if "site-packages" not in path.parts:
            yield path.read_text(encoding="utf-8", errors="replace")


@pytest.fixture(scope="module")
def counts_of(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Callable[[str], Path]:
    """The counts of a corpus by its name, made once."""
    folder = tmp_path_factory.mktemp("counts")

    def counts(name: str) -> Path:
        out = folder / name
        if not out.exists():
            generated = {"different words": lambda: different_words(300_000), "code": source_code}
            if name in generated:
                texts = generated[name]()
            else:
                texts = iter([request.getfixturevalue("read_test_text")(name)])
            count_pretokens(None, out, texts=texts, n_threads=1)
        return out

    return counts


# Of different random words nobody can tell how many merges leave pairs that occur once; the
# estimate is high there for vocabularies of more ids than these.
CASES = [
    pytest.param("different words", 2_000),
    pytest.param("different words", 16_000),
    *(
        pytest.param(name, vocab_size, marks=pytest.mark.slow)
        for name in ("code", "multilingual", "books-train")
        for vocab_size in (8_000, 32_000, 65_000, 100_000)
    ),
]


@pytest.mark.parametrize(("name", "vocab_size"), CASES)
def test_training_takes_what_it_needs_and_little_less(
    name: str, vocab_size: int, counts_of: Callable[[str], Path]
) -> None:
    needed, taken = needed_and_taken(counts_of(name), vocab_size)
    assert taken <= needed, "more than it said"
    # A quarter, and a few megabytes that the warm start had taken already.
    assert needed <= 1.25 * taken + (5 << 20), "the estimate is too high"


@pytest.mark.slow
def test_files_counted_by_many_threads_take_no_more(
    tmp_path: Path, read_test_text: Callable[[str], str]
) -> None:
    path = tmp_path / "multilingual.txt"
    path.write_text(read_test_text("multilingual") * 4, encoding="utf-8")

    def run(limit: int) -> tuple[int, int]:
        command = [sys.executable, "-c", LIMITED_CHILD, str(path), "32000", str(limit)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)
        needed, taken = map(int, done.stdout.split())
        return needed, taken

    least_to_count = 8 * 8 << 20
    needed, _ = run(least_to_count)
    needed, taken = run(max(needed, least_to_count))
    assert 0 < taken <= needed


def test_a_larger_vocabulary_needs_more(counts_of: Callable[[str], Path]) -> None:
    counts = counts_of("different words")
    sizes = [needed_and_taken(counts, vocab_size)[0] for vocab_size in (300, 3_000, 30_000)]
    assert sizes == sorted(set(sizes))
