"""Documents, mixed, shuffled and split, to token files: the same bytes whatever happens."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest

from rslm import TokenFile, Tokenizer
from rslm.data import shuffle, token_stage
from rslm.data.mixture import Mixture
from rslm.data.token_stage import export_raw, write_token_file
from rslm.errors import FormatError

END = "<|endoftext|>"
Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    Tokenizer.train(None, 300, [END], texts=["page number one two three " * 9]).save(path)
    return path


def rows_of(n: int) -> Rows:
    return [
        {
            "id": f"id-{i}",
            "text": f"page number {i}\n“é” {END} and {'more ' * (i % 7)}",
            "source": "web" if i % 3 else "books",
            "metadata": {"scores": {"quality": i / n}},
        }
        for i in range(n)
    ]


def write_shards(folder: Path, rows: Rows, n_shards: int) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{i:03d}.jsonl.zst" for i in range(n_shards)]
    for i, path in enumerate(paths):
        lines = "".join(json.dumps(row) + "\n" for row in rows[i::n_shards])
        path.write_bytes(pyarrow.compress(lines.encode(), codec="zstd", asbytes=True))
    return paths


def texts_of(out: Path) -> list[str]:
    token_file = TokenFile.open(out, verify=True)
    assert token_file.tokenizer_json is not None
    tokenizer = Tokenizer.from_json(token_file.tokenizer_json)
    documents = [token_file.document(i).tolist() for i in range(token_file.n_documents)]
    assert all(tokenizer.end_of_text not in document[:-1] for document in documents)
    assert all(document[-1] == tokenizer.end_of_text for document in documents)
    return [tokenizer.decode(document[:-1]) for document in documents]


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


ROWS = rows_of(200)
OPTIONS: dict[str, Any] = {"run_bytes": 1500, "shard_tokens": 2000, "validation_share": 0.1}


@pytest.fixture(scope="module")
def whole(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `OPTIONS` make of `ROWS` in three files."""
    folder = tmp_path_factory.mktemp("whole")
    write_token_file(write_shards(folder / "in", ROWS, 3), tokenizer, folder / "out", **OPTIONS)
    return folder / "out"


def test_every_document_is_there_once_in_another_order(whole: Path):
    train, valid = texts_of(whole / "train"), texts_of(whole / "valid")
    texts = [row["text"] for row in ROWS]
    assert Counter(train + valid) == Counter(texts)
    assert 5 < len(valid) < 40
    order = [texts.index(text) for text in train]
    assert order != sorted(order)
    # A shuffle: neighbours are as far from each other as in a random order, some 67 of 200.
    assert 50 < np.abs(np.diff(order)).mean() < 85
    assert sorted(os.listdir(whole)) == ["report.json", "train", "valid"]


@pytest.mark.parametrize("n_shards", [1, 5])
def test_tokens_do_not_depend_on_files_runs_and_threads(
    whole: Path, tokenizer: Path, tmp_path: Path, n_shards: int
):
    rows = list(ROWS)
    random.Random(n_shards).shuffle(rows)
    shards = write_shards(tmp_path / "in", rows, n_shards)
    other = OPTIONS | {"run_bytes": 777 * n_shards}
    report = write_token_file(
        shards[::-1], tokenizer, tmp_path / "out", n_threads=n_shards, **other
    )
    expected = json.loads((whole / "report.json").read_text())
    assert report["tokens"] == expected["tokens"]
    assert report["sources"] == expected["sources"]
    for side in ("train", "valid"):
        assert texts_of(tmp_path / "out" / side) == texts_of(whole / side)


@pytest.mark.slow  # Starts processes.
def test_workers_give_the_same_bytes(whole: Path, tokenizer: Path, tmp_path: Path):
    shards = write_shards(tmp_path / "in", ROWS, 3)
    write_token_file(shards, tokenizer, tmp_path / "out", n_workers=2, n_threads=2, **OPTIONS)
    assert contents(tmp_path / "out") == contents(whole)


def test_without_a_seed_the_order_is_that_of_the_files(tokenizer: Path, tmp_path: Path):
    shards = write_shards(tmp_path / "in", ROWS, 3)[::-1]
    options = OPTIONS | {"shuffle_seed": None, "validation_share": 0.0}
    report = write_token_file(shards, tokenizer, tmp_path / "out", **options)
    plain = Tokenizer.load(tokenizer).encode_files(shards, tmp_path / "plain", shard_tokens=2000)
    assert report["tokens"]["train"]["fingerprint"] == plain.fingerprint
    assert list(report["tokens"]) == ["train"]


def test_seeds_change_the_order_and_not_the_sides(whole: Path, tokenizer: Path, tmp_path: Path):
    shards = write_shards(tmp_path / "in", ROWS, 3)
    write_token_file(shards, tokenizer, tmp_path / "out", shuffle_seed=1, **OPTIONS)
    for side in ("train", "valid"):
        one, two = texts_of(whole / side), texts_of(tmp_path / "out" / side)
        assert one != two
        assert sorted(one) == sorted(two)


def test_report_counts_sources_and_remembers_the_plan(whole: Path):
    report = json.loads((whole / "report.json").read_text())
    counts = Counter(row["source"] for row in ROWS)
    assert {name: source["documents"] for name, source in report["sources"].items()} == counts
    n_bytes = sum(len(row["text"].encode()) for row in ROWS)
    assert sum(source["bytes"] for source in report["sources"].values()) == n_bytes
    tokens = report["tokens"]
    assert tokens["train"]["n_utf8_bytes"] + tokens["valid"]["n_utf8_bytes"] == n_bytes
    for side in ("train", "valid"):
        documents = (source[f"{side}_documents"] for source in report["sources"].values())
        assert sum(documents) == tokens[side]["n_documents"]
        manifest = json.loads((whole / side / "manifest.json").read_text())
        assert report["plan"]["sha256"] in manifest["command"]


def mixed(tokenizer: Path, folder: Path, mixture: Mixture, rows: Rows = ROWS) -> Counter[str]:
    """How often each document is in the training tokens."""
    shards = write_shards(folder / "in", rows, 2)
    write_token_file(shards, tokenizer, folder / "out", mixture=mixture, run_bytes=1500)
    return Counter(texts_of(folder / "out" / "train"))


def test_sources_are_repeated_or_left_out(tokenizer: Path, tmp_path: Path):
    counts = mixed(tokenizer, tmp_path, Mixture(repeats={"we?": 3, "*": 0}))
    web = [row["text"] for row in ROWS if row["source"] == "web"]
    assert counts == Counter(dict.fromkeys(web, 3))
    # Copies do not follow each other.
    train = texts_of(tmp_path / "out" / "train")
    assert sum(a == b for a, b in pairwise(train)) < 20


def test_fractions_are_chosen_by_hash(tokenizer: Path, tmp_path: Path):
    counts = mixed(tokenizer, tmp_path, Mixture(repeats={"web": 1.5}))
    assert set(counts) == {row["text"] for row in ROWS}
    web = [counts[row["text"]] for row in ROWS if row["source"] == "web"]
    assert set(web) == {1, 2}
    assert 1.3 < sum(web) / len(web) < 1.7
    assert all(counts[row["text"]] == 1 for row in ROWS if row["source"] == "books")


def test_scores_decide_about_repeats(tokenizer: Path, tmp_path: Path):
    steps = ((0.84, 4), (0.5, 1))
    counts = mixed(tokenizer, tmp_path, Mixture(score="quality", score_repeats=steps))
    for row in ROWS:
        score = row["metadata"]["scores"]["quality"]
        assert counts[row["text"]] == (4 if score > 0.84 else 1 if score > 0.5 else 0)


def test_weights_give_sources_their_shares(tokenizer: Path, tmp_path: Path):
    rows = rows_of(1200)
    weights = Mixture(weights={"books": 3, "*": 1})
    counts = mixed(tokenizer, tmp_path, weights, rows)
    sizes: Counter[str] = Counter()
    for row in rows:
        sizes[row["source"]] += counts[row["text"]] * len(row["text"].encode())
    assert 2.4 < sizes["books"] / sizes["web"] < 3.7
    assert max(counts.values()) == 1
    assert all(counts[row["text"]] for row in rows if row["source"] == "books")


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        ({"repeats": {"a": 1}, "weights": {"a": 1}}, "must not be given both"),
        ({"repeats": {"a": -1}}, "repeats must be from 0 to 1000, got -1 for 'a'"),
        ({"repeats": {"a": float("nan")}}, "repeats must be from 0 to 1000"),
        ({"weights": {"a": 0}}, "weights must not all be 0"),
        ({"score": "q"}, "must be given together"),
        ({"score": "q", "score_repeats": ((0.1, 1), (0.5, 2))}, "by descending scores"),
        ({"score": "q", "score_repeats": ((0.1, 1e9),)}, "score_repeats must be from 0"),
    ],
)
def test_impossible_mixtures_are_refused(mixture: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        Mixture(**mixture)


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        ({"score": "q", "score_repeats": ((0.5, 1),)}, "a score 'q' in its metadata, but 'id-"),
        ({"weights": {"web": 1}}, "weights must have one for each source, but none for 'books'"),
        ({"weights": {"web": 1, "boks": 2, "*": 1}}, "sources that there are, got 'boks'"),
        ({"repeats": {"*": 0}}, "a document must be left for train"),
    ],
)
def test_mixtures_that_do_not_fit_the_documents_are_refused(
    tokenizer: Path, tmp_path: Path, mixture: dict[str, Any], message: str
):
    with pytest.raises(ValueError, match=message):
        mixed(tokenizer, tmp_path, Mixture(**mixture))


def test_equal_ids_and_texts_are_kept_apart(tokenizer: Path, tmp_path: Path):
    rows: Rows = [{"id": "same", "source": "web", "text": text} for text in ["b", "a", "c", "a"]]
    for name, order in (("x", rows), ("y", rows[::-1])):
        (tmp_path / name).mkdir()
        assert mixed(tokenizer, tmp_path / name, Mixture(), order) == Counter("aabc")
    outs = [contents(tmp_path / name / "out" / "train") for name in "xy"]
    assert outs[0]["shard_00000.bin"] == outs[1]["shard_00000.bin"]


class _KilledError(BaseException):
    pass


def test_killed_anywhere_it_goes_on_to_the_same_bytes(
    whole: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shards = write_shards(tmp_path / "in", ROWS, 3)
    out = tmp_path / "out"
    real, calls = shuffle.write_atomically, Counter[str]()

    def write_or_die(path: Path, *data: bytes) -> None:
        calls["writes"] += 1
        if calls["writes"] == calls["dies_at"]:
            raise _KilledError
        real(path, *data)

    for module in (shuffle, token_stage):
        monkeypatch.setattr(module, "write_atomically", write_or_die)
    for dies_at in range(1, 200):
        calls["writes"], calls["dies_at"] = 0, dies_at
        try:
            write_token_file(shards, tokenizer, out, **OPTIONS)
        except _KilledError:
            continue
        break
    assert dies_at > 10
    assert contents(out) == contents(whole)
    # Nothing is done again, in whatever order the files are named.
    calls["writes"] = calls["dies_at"] = 0
    report = write_token_file(shards[::-1], tokenizer, out, **OPTIONS)
    assert report == json.loads((whole / "report.json").read_text())
    assert calls["writes"] == 0


PROGRAM = """
import sys
from rslm.data.token_stage import write_token_file
write_token_file(sys.argv[3:], sys.argv[1], sys.argv[2], run_bytes=100_000, shard_tokens=50_000,
    validation_share=0.1, n_threads=1)
"""


def n_files(folder: Path) -> int:
    # Unlike a glob this passes over folders that vanish meanwhile.
    return sum(len(files) for _, _, files in os.walk(folder))


@pytest.mark.slow  # Kills processes at random moments: half a minute.
def test_sigkill_at_random_moments_gives_the_same_bytes(tokenizer: Path, tmp_path: Path):
    rows = [row | {"text": row["text"] * 30} for row in rows_of(3000)]
    shards = write_shards(tmp_path / "in", rows, 4)
    command = [sys.executable, "-c", PROGRAM, str(tokenizer)]
    subprocess.run([*command, tmp_path / "whole", *shards], check=True, timeout=120)
    rng = random.Random(5)
    n_killed, code, out = 0, -1, tmp_path / "out"
    while code != 0:
        process = subprocess.Popen([*command, out, *shards])
        # Killed once some more files are there than before, on however slow a machine.
        wanted = n_files(out) + rng.randint(1, 12)
        while (code := process.poll()) is None and n_files(out) < wanted:
            time.sleep(0.001)
        if code is None:
            process.send_signal(signal.SIGKILL)
            code = process.wait()
        n_killed += code != 0
    assert code == 0
    assert n_killed > 1
    assert contents(out) == contents(tmp_path / "whole")


def test_another_plan_in_the_same_folder_is_refused(whole: Path, tokenizer: Path, tmp_path: Path):
    shards = write_shards(tmp_path / "in", ROWS, 3)
    with pytest.raises(ValueError, match="was begun with another shuffle_seed: 0, got 4"):
        write_token_file(shards, tokenizer, whole, shuffle_seed=4, **OPTIONS)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"must be a new or empty folder, but .* holds notes\.txt"):
        write_token_file(shards, tokenizer, tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation_share": 1.0}, "validation_share must be from 0 to below 1"),
        ({"shuffle_seed": -1}, "shuffle_seed must be from 0"),
        ({"run_bytes": 0}, "run_bytes must be at least 1"),
        ({"n_workers": 0}, "n_workers must be from 1"),
        ({"shards": []}, "at least one path"),
        ({"shards": "x"}, "at least one path"),
        ({"shards": ["x", "x"]}, "named twice"),
    ],
)
def test_impossible_arguments_are_refused(
    tokenizer: Path, tmp_path: Path, options: dict[str, Any], message: str
):
    shards = options.pop("shards", ["x"])
    with pytest.raises(ValueError, match=message):
        write_token_file(shards, tokenizer, tmp_path / "out", **options)
    assert os.listdir(tmp_path) == []


def test_what_is_no_document_is_counted(tokenizer: Path, tmp_path: Path):
    path = tmp_path / "x.jsonl"
    lines = [b'{"text": "a"}', b"junk", b'{"text": ""}', b'{"text": "\\ud800 \\u0000b\\r"}', b"[]"]
    path.write_bytes(b"\n".join([*lines, b'{"text": "' + b"x" * 11_000_000 + b'"}']))
    report = write_token_file([path], tokenizer, tmp_path / "out")
    assert report["skipped"] == {"empty": 1, "not_json": 2, "too_large": 1}
    assert Counter(texts_of(tmp_path / "out" / "train")) == Counter(["a", "\ufffd b\n"])
    (tmp_path / "empty.jsonl").write_bytes(b"")
    with pytest.raises(ValueError, match="a document must be left for train"):
        write_token_file([tmp_path / "empty.jsonl"], tokenizer, tmp_path / "none")
    with pytest.raises(FileNotFoundError):
        write_token_file([tmp_path / "no.jsonl"], tokenizer, tmp_path / "none2")
    with pytest.raises(FormatError):
        write_token_file([path], path, tmp_path / "none3")


def test_tokenizer_without_an_end_is_refused(tmp_path: Path):
    Tokenizer.train(None, 260, [], texts=["a b"]).save(tmp_path / "tokenizer.json")
    with pytest.raises(ValueError, match="tokenizer must have the special token"):
        write_token_file([tmp_path / "x"], tmp_path / "tokenizer.json", tmp_path / "out")


def test_raw_export_is_the_ids_end_to_end(whole: Path, tmp_path: Path):
    n = export_raw(whole / "train", tmp_path / "train.bin")
    raw = np.fromfile(tmp_path / "train.bin", "<u2")
    token_file = TokenFile.open(whole / "train")
    assert len(token_file.shards) > 1
    assert n == len(raw) == len(token_file)
    np.testing.assert_array_equal(raw, token_file[:])
    assert (raw == token_file.end_of_text).sum() == token_file.n_documents


def test_raw_export_of_what_it_cannot_hold_is_refused(whole: Path, tmp_path: Path):
    vocab = {i: bytes([i]) for i in range(256)}
    wide = Tokenizer(vocab, [], {END: 70_000})
    (tmp_path / "a.txt").write_text("text")
    wide.encode_files(tmp_path / "a.txt", tmp_path / "wide")
    with pytest.raises(ValueError, match=r"ids up to 65535, but those of .* may go up to 70000"):
        export_raw(tmp_path / "wide", tmp_path / "raw.bin")
    Tokenizer(vocab, []).encode_files(tmp_path / "a.txt", tmp_path / "open", end_of_text=None)
    with pytest.raises(ValueError, match="must end with a token"):
        export_raw(tmp_path / "open", tmp_path / "raw.bin")
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for name, data in contents(whole / "train").items():
        (damaged / name).write_bytes(data[:-1] + b"\xff" if name == "shard_00000.bin" else data)
    with pytest.raises(FormatError):
        export_raw(damaged, tmp_path / "raw.bin")
    assert not (tmp_path / "raw.bin").exists()
