"""Encoding that is stopped, by a kill or an error, and gone on with: the same bytes."""

import contextlib
import gzip
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import rslm

END_OF_TEXT = "<|endoftext|>"
SHARD_TOKENS = 150_000
STATE = "resume.json"

ENCODE = """
import json, sys
import rslm
tokenizer = rslm.Tokenizer.load(sys.argv[1])
paths = json.loads(sys.argv[4])
tokenizer.encode_files(paths, sys.argv[2], shard_tokens=int(sys.argv[3]), n_threads=2, resume=True)
"""


def encode(tokenizer: rslm.Tokenizer, paths: list[Path], out: Path, **options) -> rslm.TokenFile:
    return tokenizer.encode_files(paths, out, **{"shard_tokens": SHARD_TOKENS, **options})


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, stdlib_text: str, rust_tokenizer) -> Path:
    """A tokenizer, inputs of every kind, and what they give in one run, in 25 shards or so."""
    folder = tmp_path_factory.mktemp("resume")
    pieces = [stdlib_text[start : start + 3000] for start in range(0, 4_000_000, 3000)]
    texts = [pieces[i::4] for i in range(4)]
    (folder / "a.txt").write_text(END_OF_TEXT.join(texts[0] * 3), encoding="utf-8", newline="")
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts[1] * 3)
    (folder / "b.jsonl").write_text(lines)
    (folder / "c.txt.gz").write_bytes(gzip.compress(END_OF_TEXT.join(texts[2] * 3).encode(), 1))
    (folder / "d.jsonl.gz").write_bytes(gzip.compress(lines.encode(), 1))
    with contextlib.suppress(ModuleNotFoundError):
        import pyarrow
        from pyarrow import parquet

        table = pyarrow.table({"text": texts[3]})
        parquet.write_table(table, folder / "e.parquet", row_group_size=100)
    rust_tokenizer().save(folder / "tokenizer.json")
    encode(rust_tokenizer(), inputs(folder), folder / "whole")
    return folder


def inputs(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("[a-e].*"))


def start(work: Path, out: Path) -> "subprocess.Popen[bytes]":
    paths = json.dumps(list(map(str, inputs(work))))
    arguments = [str(work / "tokenizer.json"), str(out), str(SHARD_TOKENS), paths]
    return subprocess.Popen([sys.executable, "-c", ENCODE, *arguments])


def kill_once(process: "subprocess.Popen[bytes]", is_time: Callable[[], bool]) -> bool:
    """Kills the process when it is time; whether it was still at work."""
    while process.poll() is None and not is_time():
        time.sleep(0.0002)
    process.kill()
    return process.wait() == -signal.SIGKILL


def test_a_run_killed_at_every_shard_ends_with_the_same_bytes(work: Path, tmp_path: Path) -> None:
    out, n_kills, most = tmp_path / "tokens", 0, 0
    n_shards = len(list((work / "whole").glob("*.bin")))
    assert n_shards > 15
    while True:
        before = most
        # Each run is killed as soon as it has finished two, four or six shards more than
        # those before it, so that kills hit every input.
        step = 2 + 2 * (n_kills % 3)
        killed = kill_once(
            start(work, out), lambda wanted=before + step: (out / f"shard_{wanted:05}.bin").exists()
        )
        if not killed:
            break
        n_kills += 1
        shards = sorted(out.glob("shard_*.bin"))
        # What has its name is finished and stays; only the last may be unknown to the state.
        known = len(json.loads((out / STATE).read_text().splitlines()[0])["shards"])
        assert len(shards) - 1 <= known
        most = known - 1
        assert most >= before
        assert not (out / "manifest.json").exists()
        for shard in shards[:known]:
            assert shard.read_bytes() == (work / "whole" / shard.name).read_bytes()
    assert n_kills > 3
    assert contents(out) == contents(work / "whole")


def test_a_run_killed_at_any_time_ends_with_the_same_bytes(work: Path, tmp_path: Path) -> None:
    draw, n_kills = random.Random(0), 0
    for attempt in range(3):
        out = tmp_path / f"tokens_{attempt}"
        for _ in range(2):
            process = start(work, out)
            # Loading takes a while; the lock is there once the work begins.
            deadline = None

            def is_time(out: Path = out) -> bool:
                nonlocal deadline
                if deadline is None and (out / "writer.lock").exists():
                    deadline = time.monotonic() + draw.uniform(0, 0.4)
                return deadline is not None and time.monotonic() > deadline

            n_kills += kill_once(process, is_time)
        assert start(work, out).wait() == 0
        assert contents(out) == contents(work / "whole")
    assert n_kills > 1


@pytest.fixture
def stopped(work: Path, tmp_path: Path) -> Path:
    """A folder in which a killed run has finished some shards."""
    out = tmp_path / "stopped"
    assert kill_once(start(work, out), lambda: (out / "shard_00004.bin").exists())
    return out


def test_resume_reads_only_what_is_left(stopped: Path, work: Path, rust_tokenizer) -> None:
    calls: list[int] = []
    encode(
        rust_tokenizer(),
        inputs(work),
        stopped,
        resume=True,
        progress=lambda done, total, phase: calls.append(done),
    )
    # Five shards are two of the ten megabytes, and more than the whole first input.
    assert min(calls) > (work / "a.txt").stat().st_size / 2
    assert calls[-1] == sum(path.stat().st_size for path in inputs(work))
    assert contents(stopped) == contents(work / "whole")


def test_a_complete_folder_is_left_alone(work: Path, tmp_path: Path, rust_tokenizer) -> None:
    out = tmp_path / "tokens"
    shutil.copytree(work / "whole", out)
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    # What a kill between the last two steps leaves.
    (out / "writer.lock").touch()
    (out / STATE).write_text("{}")
    again = encode(rust_tokenizer(), inputs(work), out, resume=True)
    assert again.fingerprint == rslm.TokenFile.open(work / "whole").fingerprint
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before
    with pytest.raises(ValueError, match="holds a complete token file"):
        encode(rust_tokenizer(), inputs(work), out)
    with pytest.raises(ValueError, match=r"the run in .* began with: the input was a\.txt"):
        encode(rust_tokenizer(), inputs(work)[1:], out, resume=True)
    with pytest.raises(ValueError, match="began with: the tokenizer was"):
        encode(rust_tokenizer("o200k"), inputs(work), out, resume=True)


def test_resume_begins_where_there_is_nothing(work: Path, tmp_path: Path, rust_tokenizer) -> None:
    for out in (tmp_path / "new", tmp_path / "empty"):
        if out.name == "empty":
            out.mkdir()
        encode(rust_tokenizer(), inputs(work), out, resume=True)
        assert contents(out) == contents(work / "whole")


def test_without_resume_a_stopped_run_is_overwritten(
    stopped: Path, work: Path, rust_tokenizer
) -> None:
    encode(rust_tokenizer(), inputs(work)[:1], stopped)
    assert rslm.TokenFile.open(stopped).n_tokens < rslm.TokenFile.open(work / "whole").n_tokens
    rslm.TokenFile.open(stopped, verify=True)
    assert not (stopped / STATE).exists()


def test_resume_with_something_else_is_refused_and_changes_nothing(
    stopped: Path, work: Path, tmp_path: Path, rust_tokenizer
) -> None:
    tokenizer, paths = rust_tokenizer(), inputs(work)
    copy = tmp_path / "other" / "b.jsonl"
    copy.parent.mkdir()
    shutil.copy(work / "b.jsonl", copy)
    touched = [path if path.name != copy.name else copy for path in paths]
    names = [path.name for path in stopped.iterdir()]
    for match, changed in [
        (r"input 2 was b\.jsonl of \d+ bytes, changed", {"paths": touched}),
        (r"input 1 was a\.txt", {"paths": paths[::-1]}),
        (rf"number of inputs was {len(paths)}, got {len(paths) - 1}", {"paths": paths[:-1]}),
        (r"shard_tokens was 150000, got 150001", {"shard_tokens": 150_001}),
        (r"the tokenizer was \w+, got", {"tokenizer": rust_tokenizer("o200k")}),
        (r"the id of end_of_text was \d+, got none", {"end_of_text": None}),
        (r"dataset was , got x", {"dataset": "x"}),
        (r"errors was strict, got raw", {"errors": "raw"}),
        (r"text_field was text, got body", {"text_field": "body"}),
        (r"rows_hold_special_tokens was false, got true", {"rows_hold_special_tokens": True}),
        (r"format of input 2 was jsonlines, got text", {"format": "text"}),
    ]:
        options = {"tokenizer": tokenizer, "paths": paths, "out": stopped, "resume": True}
        with pytest.raises(
            ValueError, match=f"resume must be given .*stopped began with: .*{match}"
        ):
            encode(**{**options, **changed})
        assert [path.name for path in stopped.iterdir()] == names
    encode(tokenizer, paths, stopped, resume=True, n_threads=3)
    assert contents(stopped) == contents(work / "whole")


@pytest.mark.parametrize("name", [STATE, "shard_00001.bin", "shard_00002.idx.npy"])
def test_damaged_remains_are_refused(name: str, stopped: Path, work: Path, rust_tokenizer) -> None:
    path = stopped / name
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content if not name.endswith("npy") else content[:-1])
    with pytest.raises(rslm.FormatError, match=name):
        encode(rust_tokenizer(), inputs(work), stopped, resume=True)
    path.unlink()
    if name != STATE:
        with pytest.raises(FileNotFoundError, match=name):
            encode(rust_tokenizer(), inputs(work), stopped, resume=True)
    encode(rust_tokenizer(), inputs(work), stopped)
    assert contents(stopped) == contents(work / "whole")


@pytest.fixture
def small_disk() -> Iterator[None]:
    """Files can grow to 280 kB only: a shard fits, the next one after it is larger."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (280_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("resume", [False, True])
def test_a_disk_that_is_full_leaves_nothing_that_looks_complete(
    resume: bool, work: Path, tmp_path: Path, rust_tokenizer, small_disk
) -> None:
    out = tmp_path / "tokens"
    options = {"shard_tokens": 120_000, "resume": resume}
    long = tmp_path / "long.txt"
    with open(work / "a.txt", encoding="utf-8", newline="") as file:
        text = file.read()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (before[1], before[1]))
    # The last document is too long for the disk.
    long.write_text(
        text + END_OF_TEXT + text.replace(END_OF_TEXT, ""), encoding="utf-8", newline=""
    )
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    with pytest.raises(OSError, match=r"shard_\d+\.bin") as raised:
        encode(rust_tokenizer(), [long], out, **options)
    assert raised.value.errno is not None
    if not resume:
        assert not out.exists()
        return
    kept = {path.name for path in out.iterdir()}
    assert {"shard_00000.bin", STATE, "writer.lock"} <= kept
    assert not any(name.endswith(".tmp") or name == "manifest.json" for name in kept)
    with pytest.raises(rslm.FormatError, match=r"manifest\.json is missing"):
        rslm.TokenFile.open(out)
    resource.setrlimit(resource.RLIMIT_FSIZE, (before[1], before[1]))
    encode(rust_tokenizer(), [long], out, **options)
    encode(rust_tokenizer(), [long], tmp_path / "once", **{**options, "resume": False})
    assert contents(out) == contents(tmp_path / "once")


def test_an_error_in_the_text_keeps_what_is_finished(
    work: Path, tmp_path: Path, rust_tokenizer
) -> None:
    bad = tmp_path / "z.jsonl"
    bad.write_text('{"text": 1}\n')
    out, paths = tmp_path / "tokens", [*inputs(work), bad]
    with pytest.raises(rslm.FormatError, match=r"z\.jsonl: line 1 \(byte 0\)"):
        encode(rust_tokenizer(), paths, out, resume=True)
    shard = out / "shard_00000.bin"
    kept = shard.stat()
    assert (out / STATE).exists()
    # Another text of the same name and size is another input.
    bad.write_text('{"text":""}\n')
    changed = bad.stat()
    os.utime(bad, ns=(changed.st_atime_ns, changed.st_mtime_ns + 10**9))
    with pytest.raises(ValueError, match=rf"input {len(paths)} was z\.jsonl of 12 bytes, changed"):
        encode(rust_tokenizer(), paths, out, resume=True)
    assert shard.stat() == kept
