"""The command line: what it prints, how it ends, and what it says to bad input."""

import base64
import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

from rslm import cli
from rslm.cli import main

TEXT = "The quick brown fox jumps over the lazy dog. Ünïcode naïveté, 你好!\n" * 60
DOCUMENTS = f"{TEXT}<|endoftext|>\nA second document.\n<|endoftext|>" + "A third one, short.\n"

TINY_MODEL = "--model.context-length 16 --model.d-model 16 --model.n-layers 1 --model.n-heads 2"
TINY_RUN = f"{TINY_MODEL} --n-steps 2 --batch-size 2 --optimizer.warmup-steps 1 --device cpu"

Rslm = Callable[..., "Outcome"]


class Outcome:
    """How a command ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def rslm(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Rslm:
    """`rslm("tokens info tokens", stdin=b"")` runs a command in this process."""

    def run(command: str, stdin: bytes = b"") -> Outcome:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        capsys.readouterr()
        try:
            code = main(shlex.split(command))
        except SystemExit as stop:
            code = int(stop.code or 0)
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a good and a bad one of everything, made by the commands themselves."""
    folder = tmp_path_factory.mktemp("made")
    before = Path.cwd()
    os.chdir(folder)
    try:
        Path("text.txt").write_bytes(DOCUMENTS.encode())
        Path("latin1.txt").write_bytes("naïve café\n".encode("latin-1") * 10)
        Path("short.txt").write_text("word")
        Path("folder").mkdir()
        for command in (
            "tokenizer train text.txt --vocab-size 300 --out tok.json",
            "tokenizer train text.txt --vocab-size 280 --out other.json",
            "tokenizer encode tok.json text.txt --out tokens",
            "tokenizer encode tok.json short.txt --out short",
            f"train --out run --data.train tokens --data.valid tokens {TINY_RUN}",
        ):
            assert main(shlex.split(command)) == 0
        spoil()
    finally:
        os.chdir(before)
    return folder


def spoil() -> None:
    """Bad ones beside the good ones, in the working folder."""
    ranks = (f"{base64.b64encode(bytes([byte])).decode()} {byte}\n" for byte in range(256))
    Path("bare.tiktoken").write_text("".join(ranks))
    Path("broken.json").write_text('{"vocab": ')
    Path("list.json").write_text("[1, 2]")
    Path("bad.toml").write_text("[model]\nn_layer = 4\n")
    Path("not.toml").write_text("n_steps = = 3\n")
    Path("wrong_type.toml").write_text('n_steps = "many"\n')
    for name in ("flipped", "truncated", "unfinished", "headless"):
        shutil.copytree("tokens", name)
    shard = Path("flipped/shard_00000.bin")
    payload = bytearray(shard.read_bytes())
    payload[1024] ^= 1
    shard.write_bytes(payload)
    shard = Path("truncated/shard_00000.bin")
    shard.write_bytes(shard.read_bytes()[:-2])
    shard = Path("headless/shard_00000.bin")
    shard.write_bytes(bytes(1024) + shard.read_bytes()[1024:])
    Path("unfinished/manifest.json").unlink()


def snapshot(folder: Path) -> dict[str, int]:
    """Every path below a folder with its time of change."""
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


# Each row: command, stdin, a fragment of the message. The exit code is 2 for all.
BAD_INPUT = {
    "unknown command": ("tokenise", b"", "did you mean tokenizer?"),
    "unknown subcommand": ("tokenizer trian", b"", "did you mean train?"),
    "unknown flag": ("tokens info tokens --jsn", b"", "did you mean --json?"),
    "missing flag": ("tokenizer train text.txt --vocab-size 300", b"", "missing --out"),
    "flag without value": ("tokenizer train text.txt --out", b"", "missing value"),
    "word for a number": (
        "tokenizer train text.txt --out x --vocab-size many",
        b"",
        "--vocab-size must be a whole number, got 'many'",
    ),
    "unknown choice": (
        "tokenizer train text.txt --out x --vocab-size 300 --unit page",
        b"",
        "page",
    ),
    "train: no files": ("tokenizer train --vocab-size 300 --out x", b"", "at least one text file"),
    "train: missing file": ("tokenizer train no.txt --vocab-size 300 --out x", b"", "no.txt"),
    "train: a folder": ("tokenizer train folder --vocab-size 300 --out x", b"", "folder"),
    "train: not UTF-8": ("tokenizer train latin1.txt --vocab-size 300 --out x", b"", "latin1.txt"),
    "train: small vocab_size": (
        "tokenizer train text.txt --vocab-size 100 --out x",
        b"",
        "vocab_size must be at least 257",
    ),
    "train: negative vocab_size": (
        "tokenizer train text.txt --vocab-size -5 --out x",
        b"",
        "vocab_size must be",
    ),
    "train: duplicate special token": (
        "tokenizer train text.txt --vocab-size 300 --out x --special-tokens a a",
        b"",
        "special",
    ),
    "train: empty special token": (
        "tokenizer train text.txt --vocab-size 300 --out x --special-tokens ''",
        b"",
        "special",
    ),
    "train: broken pattern": (
        "tokenizer train text.txt --vocab-size 300 --out x --pattern '(['",
        b"",
        "pattern",
    ),
    "train: out exists": (
        "tokenizer train text.txt --vocab-size 300 --out tok.json",
        b"",
        "tok.json",
    ),
    "train: no threads": (
        "tokenizer train text.txt --vocab-size 300 --out x --n-threads 0",
        b"",
        "n_threads",
    ),
    "encode: missing tokenizer": ("tokenizer encode no.json text.txt --out x", b"", "no.json"),
    "encode: tokenizer is a folder": ("tokenizer encode folder text.txt --out x", b"", "folder"),
    "encode: broken tokenizer": (
        "tokenizer encode broken.json text.txt --out x",
        b"",
        "broken.json",
    ),
    "encode: another JSON file": ("tokenizer encode list.json text.txt --out x", b"", "list.json"),
    "encode: text for tokenizer": ("tokenizer encode text.txt text.txt --out x", b"", "text.txt"),
    "encode: .tiktoken without pattern": (
        "tokenizer encode bare.tiktoken text.txt --out x",
        b"",
        "pattern",
    ),
    "encode: out exists": ("tokenizer encode tok.json text.txt --out tokens", b"", "tokens"),
    "encode: out is another folder": ("tokenizer encode tok.json text.txt --out run", b"", "run"),
    "encode: files without out": ("tokenizer encode tok.json text.txt", b"", "--out"),
    "encode: not UTF-8": ("tokenizer encode tok.json latin1.txt --out x", b"", "latin1.txt"),
    "encode: stdin not UTF-8": ("tokenizer encode tok.json", b"ab\xff", "UTF-8"),
    "encode: no shard size": (
        "tokenizer encode tok.json text.txt --out x --shard-tokens 0",
        b"",
        "shard_tokens",
    ),
    "decode: id out of range": ("tokenizer decode tok.json", b"65 300", "300"),
    "decode: huge id": (
        "tokenizer decode tok.json",
        b"99999999999999999999",
        "99999999999999999999",
    ),
    "decode: negative id": ("tokenizer decode tok.json", b"-1", "'-1'"),
    "decode: a word": ("tokenizer decode tok.json", b"1 two 3", "'two'"),
    "decode: stdin not UTF-8": ("tokenizer decode tok.json", b"1 \xff", "UTF-8"),
    "compare: no tokenizer": ("tokenizer compare --text text.txt", b"", "at least one tokenizer"),
    "compare: no text": ("tokenizer compare tok.json --text no.txt", b"", "no.txt"),
    "tokens: missing": ("tokens info no", b"", "no"),
    "tokens: not a token file": ("tokens verify text.txt", b"", "text.txt"),
    "tokens: a run folder": ("tokens verify run", b"", "run"),
    "tokens: flipped byte": ("tokens verify flipped", b"", "shard_00000.bin"),
    "tokens: truncated": ("tokens info truncated", b"", "shard_00000.bin"),
    "tokens: zeroed header": ("tokens info headless", b"", "shard_00000.bin"),
    "tokens: unfinished": ("tokens info unfinished", b"", "manifest.json"),
    "tokens: another tokenizer": ("tokens verify tokens --tokenizer other.json", b"", "tokenizer"),
    "show: document out of range": (
        "tokens show tokens --document 9",
        b"",
        "document must be in 0..",
    ),
    "show: start out of range": (
        "tokens show tokens --start 99999999",
        b"",
        "start must be in 0..",
    ),
    "show: no tokens": ("tokens show tokens --start 0 --count 0", b"", "count must be at least 1"),
    "show: both ranges": ("tokens show tokens --start 0 --document 0", b"", "not both"),
    "run: missing data": (f"train --out x --data.train no {TINY_RUN}", b"", "no"),
    "run: unfinished data": (
        f"train --out x --data.train unfinished {TINY_RUN}",
        b"",
        "unfinished",
    ),
    "run: data not named": (f"train --out x {TINY_RUN}", b"", "missing --data.train"),
    "run: folder exists": (f"train --out run --data.train tokens {TINY_RUN}", b"", "--resume"),
    "run: other options on resume": (
        "train --out run --resume --seed 5",
        b"",
        "seed must stay 0",
    ),
    "run: unknown preset": ("train --preset tinystory --out x", b"", "tinystories"),
    "run: unknown config key": (
        "train --config bad.toml --out x --data.train tokens",
        b"",
        "closest known one is model.n_layers",
    ),
    "run: broken config": ("train --config not.toml --out x --data.train tokens", b"", "not.toml"),
    "run: missing config": ("train --config no.toml --out x --data.train tokens", b"", "no.toml"),
    "run: wrong type in config": (
        "train --config wrong_type.toml --out x --data.train tokens",
        b"",
        "n_steps must be a whole number",
    ),
    "run: heads do not divide": (
        f"train --out x --data.train tokens {TINY_RUN} --model.n-heads 3",
        b"",
        "n_heads",
    ),
    "run: negative steps": (
        f"train --out x --data.train tokens {TINY_RUN} --n-steps -1",
        b"",
        "n_steps",
    ),
    "run: no batch": (
        f"train --out x --data.train tokens {TINY_RUN} --batch-size 0",
        b"",
        "batch_size",
    ),
    "run: context longer than data": (
        f"train --out x --data.train short {TINY_RUN} --model.context-length 4096",
        b"",
        "context_length",
    ),
    "run: vocabulary too small": (
        f"train --out x --data.train tokens {TINY_RUN} --model.vocab-size 20",
        b"",
        "vocab_size",
    ),
    "run: unknown device": (
        f"train --out x --data.train tokens {TINY_RUN} --device tpu9",
        b"",
        "tpu9",
    ),
    "run: text without vocab_size": (
        f"train --out x --text text.txt {TINY_RUN}",
        b"",
        "vocab_size",
    ),
    "run: missing text": (
        f"train --out x --text no.txt --vocab-size 300 {TINY_RUN}",
        b"",
        "no.txt",
    ),
    "run: option that nothing reads": (
        f"train --out x --data.train tokens --vocab-size 300 {TINY_RUN}",
        b"",
        "--text",
    ),
    "run: tokenizer and vocab_size": (
        f"train --out x --text text.txt --tokenizer tok.json --vocab-size 300 {TINY_RUN}",
        b"",
        "not both",
    ),
    "run: init from nothing": (
        f"train --out x --data.train tokens --init-from no {TINY_RUN}",
        b"",
        "no",
    ),
    "sample: missing run": ("sample no", b"", "no"),
    "sample: not a run": ("sample tokens", b"", "tokens"),
    "sample: negative temperature": ("sample run --temperature -1", b"", "temperature must be"),
    "sample: top_p": ("sample run --top-p 1.5", b"", "top_p must be"),
    "sample: top_k": ("sample run --top-k 0", b"", "top_k must be"),
    "sample: empty stop": ("sample run --stop ''", b"", "stop"),
    "sample: n_samples": ("sample run --n-samples 0", b"", "n_samples must be"),
    "download: unknown corpus": ("data download pile --out x", b"", "pile"),
    "demo: missing corpus": ("demo --corpus no --out x", b"", "no"),
    "demo: corpus too small": ("demo --corpus short.txt --out x", b"", "short.txt"),
    "demo: corpus not UTF-8": ("demo --corpus latin1.txt --out x", b"", "latin1.txt"),
    "demo: unknown preset": ("demo --preset demos --out x", b"", "preset must be one of"),
    "demo: out exists": ("demo --corpus text.txt --out run", b"", "--resume"),
    "demo: no steps": ("demo --corpus text.txt --out x --n-steps 0", b"", "n_steps"),
}


@pytest.mark.parametrize(("command", "stdin", "fragment"), BAD_INPUT.values(), ids=BAD_INPUT.keys())
def test_bad_input_is_one_line_and_leaves_nothing(
    made: Path,
    rslm: Rslm,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    stdin: bytes,
    fragment: str,
) -> None:
    monkeypatch.chdir(made)
    before = snapshot(made)
    outcome = rslm(command, stdin)
    assert outcome.code == 2
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert fragment in outcome.err
    assert outcome.out == ""
    assert snapshot(made) == before
