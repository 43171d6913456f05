"""Set-up that every test shares: shape checking, hypothesis profiles, data, golden files."""

import functools
import lzma
import os
import random
import shutil
import signal
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

# The models of the tests are so small that waking a second thread costs more than it gives.
# torch reads this when it is imported, and child processes inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Threads that wait for each other must not spin: on a busy machine that makes a step five times
# as long. The command line sets the same.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import rslm
from rslm import reference

# A runner that was started in the background ignores SIGINT, and so would every child; the tests
# of Ctrl-C would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Under pytest every call of these modules checks its tensors' shapes and dtypes against the
# signature. It must run before anything imports them.
install_import_hook(
    [
        *["rslm.model", "rslm.layers", "rslm.attention", "rslm.losses"],
        *["rslm.optim", "rslm.muon", "rslm.post.losses", "rslm.post.preferences"],
    ],
    "beartype.beartype",
)

# `fast` draws the same examples each time, so that a run that passed passes again; `slow` looks
# for new ones. A deadline per example would measure the neighbours on a shared machine.
settings.register_profile("fast", max_examples=50, deadline=None, derandomize=True)
settings.register_profile(
    "slow",
    max_examples=1000,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("fast")

FIXTURES = Path(__file__).parent / "fixtures"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rewrite-golden",
        action="store_true",
        help="write tests/fixtures anew instead of comparing with it",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_items:
        return
    import torch

    if not torch.cuda.is_available():
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real text that RSLM_TEST_DATA names; skips where it is not set."""
    if not (folder := os.environ.get("RSLM_TEST_DATA")):
        pytest.skip("RSLM_TEST_DATA is not set")
    return Path(folder)


@pytest.fixture(scope="session")
def read_test_text(test_data: Path) -> Callable[[str, int], str]:
    """`read_test_text(name, n_bytes)`: the head of `text/<name>.txt.xz`, cut at a character."""

    def read(name: str, n_bytes: int = -1) -> str:
        with lzma.open(test_data / "text" / f"{name}.txt.xz") as file:
            return file.read(n_bytes).decode("utf-8", errors="ignore")

    return read


@pytest.fixture
def check_golden(request: pytest.FixtureRequest) -> Callable[[str, bytes], None]:
    """`check_golden(name, data)`: `data` equals the file `tests/fixtures/<name>`.

    `make golden` writes the file instead; tests that use this have `golden` in their name.
    """

    def check(name: str, data: bytes) -> None:
        path = FIXTURES / name
        if request.config.getoption("--rewrite-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        assert path.read_bytes() == data, f"{path} differs; if that is meant, run `make golden`"

    return check


@pytest.fixture(scope="session")
def stdlib_text() -> str:
    """The source of the standard library's top-level modules: real text on every machine, 4 MB."""
    folder = Path(sysconfig.get_path("stdlib"))
    return "".join(path.read_bytes().decode() for path in sorted(folder.glob("*.py")))


@pytest.fixture(scope="session")
def bpe_corpus() -> str:
    """A page of many scripts, line endings and borders, with two special tokens in it."""
    return (FIXTURES / "bpe" / "corpus.txt").read_bytes().decode()


@pytest.fixture(scope="session")
def build_tiktoken() -> Callable[[Any], Any]:
    """`build_tiktoken(tokenizer)`: tiktoken's engine with the ranks of one of our tokenizers.

    The patterns are those of the installed tiktoken, letter by letter. Skips without tiktoken.
    """
    tiktoken = pytest.importorskip("tiktoken")
    public = pytest.importorskip("tiktoken_ext.openai_public")
    with pytest.MonkeyPatch.context() as patch:  # The patterns without the ranks, a download.
        patch.setattr(public, "load_tiktoken_bpe", lambda *_, **__: {})
        patterns = {
            "gpt2": public.r50k_pat_str,
            "cl100k": public.cl100k_base()["pat_str"],
            "o200k": public.o200k_base()["pat_str"],
        }

    def build(tokenizer: Any) -> Any:
        special_ids = set(tokenizer.special_tokens.values())
        pattern = reference.PATTERNS.get(tokenizer.pattern, tokenizer.pattern)
        return tiktoken.Encoding(
            "ours",
            pat_str=patterns.get(tokenizer.pattern, pattern),
            mergeable_ranks={b: i for i, b in tokenizer.vocab.items() if i not in special_ids},
            special_tokens=dict(tokenizer.special_tokens),
        )

    return build


@pytest.fixture(scope="session")
def reference_tokenizer(bpe_corpus: str) -> Callable[..., reference.Tokenizer]:
    """`reference_tokenizer(pattern)`: trained on the corpus, with end of text and 200 merges."""

    @functools.cache
    def train(pattern: str = "gpt2") -> reference.Tokenizer:
        special = ["<|endoftext|>"]
        vocab, merges = reference.train_bpe(bpe_corpus, 457, special, pattern=pattern)
        return reference.Tokenizer(vocab, merges, special, pattern=pattern)

    return train


@pytest.fixture(scope="session")
def rust_tokenizer(reference_tokenizer: Callable[..., Any]) -> Callable[..., Any]:
    """`rust_tokenizer(pattern)`: the twin of `reference_tokenizer(pattern)`."""

    @functools.cache
    def build(pattern: str = "gpt2") -> Any:
        twin = reference_tokenizer(pattern)
        return rslm.Tokenizer(twin.vocab, list(twin.ranks), ["<|endoftext|>"], pattern=pattern)

    return build


@pytest.fixture(scope="session")
def byte_tokenizer() -> Any:
    """A tokenizer of 256 bytes and end of text, whose ids can be read off the text."""
    from rslm.tokenizer import Tokenizer

    return Tokenizer({i: bytes([i]) for i in range(256)}, [], ["<|endoftext|>"])


@pytest.fixture(scope="session")
def token_files(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: Any) -> tuple[Path, Path]:
    """Token files to train and to validate on: 40 kB and 2 kB of made-up sentences, in bytes."""
    folder = tmp_path_factory.mktemp("tokens")
    draw = random.Random(0)
    for name, n_sentences in (("train", 1200), ("valid", 60)):
        words = ("the cat", "a dog", "sees", "and", "hears", "the moon", "<|endoftext|>")
        sentences = (" ".join(draw.choices(words, k=5)) for _ in range(n_sentences))
        (folder / f"{name}.txt").write_text(".\n".join(sentences))
        byte_tokenizer.encode_files([folder / f"{name}.txt"], folder / name)
    return folder / "train", folder / "valid"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs without matrix products for the peak, without a picture, and without syncs.

    Killing a process, unlike a power cut, loses nothing that was written.
    """
    from rslm import train as loop

    monkeypatch.setattr(loop, "peak_flops", lambda *_: 1e12)
    monkeypatch.setattr(loop, "write_loss_curve", lambda *_: None)
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def tiny_config(token_files: tuple[Path, Path], tmp_path: Path) -> Callable[..., Any]:
    """`tiny_config(**changes)`: a run of 20 steps, a tenth of a second long, in tmp_path/run."""
    from rslm.architecture import TransformerConfig
    from rslm.train_config import DataConfig, OptimizerConfig, TrainConfig

    train, valid = token_files
    options = {
        "out": tmp_path / "run",
        "data": DataConfig(train=train, valid=valid),
        "model": TransformerConfig(context_length=16, d_model=16, n_layers=1, n_heads=2, d_ff=32),
        "optimizer": OptimizerConfig(learning_rate=1e-2, warmup_steps=4),
        "n_steps": 20,
        "batch_size": 4,
        "validate_every": 5,
        "n_validation_tokens": 200,
        "checkpoint_every": 6,
        "sample_every": 10,
        "n_sample_tokens": 8,
        "n_threads": 1,
        "device": "cpu",
    }
    return lambda **changes: TrainConfig(**{**options, **changes})


# Not of the whole session: while Playwright is up, no other test can run an event loop.
@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's Chromium; skips without it or without playwright."""
    api = pytest.importorskip("playwright.sync_api")
    if not (path := shutil.which("chromium")):
        pytest.skip("needs chromium")
    with api.sync_playwright() as playwright:
        # As root, as in a container, Chromium starts only without its sandbox.
        browser = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox"], timeout=120_000
        )
        yield browser
        browser.close()
