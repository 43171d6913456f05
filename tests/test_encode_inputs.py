"""JSON lines, tables and compressed files: the ids of their texts, bounded and checked."""

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import texts_with_special

import rslm
from rslm import reference
from rslm.cli import main

END_OF_TEXT = "<|endoftext|>"
LIMIT_MB = 600


def json_lines(texts: list[str], *, ascii_only: bool = False, end: str = "\n") -> bytes:
    rows = [{"id": [i, {"text": "no"}], "text": text} for i, text in enumerate(texts)]
    return "".join(json.dumps(row, ensure_ascii=ascii_only) + end for row in rows).encode()


def zstd(data: bytes) -> bytes:
    return pytest.importorskip("pyarrow").compress(data, codec="zstd", asbytes=True)


def row_ids(tokenizer: rslm.Tokenizer, texts: list[str]) -> list[int]:
    """Each row with text is a document; special tokens in it are ordinary text."""
    ids: list[int] = []
    for text in texts:
        if text:
            ids += [*tokenizer.encode_ordinary(text), tokenizer.end_of_text]
    return ids


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@given(data=st.data())
def test_json_lines_are_documents_whose_text_is_data(
    data: st.DataObject, rust_tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tokenizer = rust_tokenizer(data.draw(st.sampled_from(["gpt2", "o200k"])))
    texts = data.draw(st.lists(texts_with_special([END_OF_TEXT]), max_size=5))
    content = json_lines(
        texts, ascii_only=data.draw(st.booleans()), end=data.draw(st.sampled_from(["\n", "\r\n\n"]))
    )
    folder = tmp_path_factory.mktemp("lines")
    path = write(folder / "a.jsonl", content)
    token_file = tokenizer.encode_files(path, folder / "data", n_threads=2)
    assert token_file[:].tolist() == row_ids(tokenizer, texts)
    assert token_file.n_documents == sum(map(bool, texts))
    token_file.verify()
    marked = tokenizer.encode_files(path, folder / "marks", rows_hold_special_tokens=True)
    files = [write(folder / f"{i}.txt", text.encode()) for i, text in enumerate(texts)]
    if files:
        assert marked[:].tolist() == tokenizer.encode_files(files, folder / "files")[:].tolist()


@pytest.mark.parametrize("ending", ["txt", "jsonl", "ndjson"])
@pytest.mark.parametrize("packing", ["gz", "zst"])
def test_compressed_files_give_what_the_plain_ones_do(
    ending: str, packing: str, stdlib_text: str, rust_tokenizer, tmp_path: Path
) -> None:
    tokenizer = rust_tokenizer()
    texts = [stdlib_text[start : start + 7000] for start in range(0, 12_000_000, 7000)]
    texts = [text for text in texts * 3 if text]
    content = END_OF_TEXT.join(texts).encode() if ending == "txt" else json_lines(texts)
    compress = gzip.compress if packing == "gz" else zstd
    # Members and frames end anywhere, and may be empty.
    parts = [content[:5_000_001], b"", content[5_000_001:]]
    packed = b"".join(map(compress, parts))
    plain = tokenizer.encode_files(write(tmp_path / f"a.{ending}", content), tmp_path / "plain")
    calls: list[tuple[int, int, str]] = []
    path = write(tmp_path / f"b.{ending}.{packing}", packed)
    unpacked = tokenizer.encode_files(
        path, tmp_path / "unpacked", progress=lambda *call: calls.append(call)
    )
    assert unpacked.fingerprint == plain.fingerprint
    assert len(plain) > 1_000_000
    assert calls[-1][:2] == (len(packed), len(packed))
    trained = [rslm.train_bpe(p, 300, [END_OF_TEXT]) for p in (tmp_path / f"a.{ending}", path)]
    assert trained[0] == trained[1]


def test_training_on_rows_counts_special_tokens_as_text(tmp_path: Path) -> None:
    texts = [f"low{END_OF_TEXT}er <|end", "", "low low"] * 9
    path = write(tmp_path / "a.jsonl", json_lines(texts))
    vocab, merges = rslm.train_bpe(path, 280, [END_OF_TEXT])
    plain = reference.train_bpe(texts, 279, [])
    assert merges == plain[1]
    assert any(b"endoftext" in token for token in vocab.values() if token != END_OF_TEXT.encode())
    marked = rslm.train_bpe(path, 270, [END_OF_TEXT], rows_hold_special_tokens=True)
    assert marked[1] == reference.train_bpe(texts, 270, [END_OF_TEXT])[1]


@pytest.fixture
def write_table(tmp_path: Path) -> Callable[..., Path]:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    def write_rows(texts: list[Any], kind: str = "string", name: str = "a.parquet") -> Path:
        column = pyarrow.array(texts, pyarrow.string())
        column = (
            column.dictionary_encode()
            if kind == "dictionary"
            else column.cast(getattr(pyarrow, kind)())
        )
        table = pyarrow.table({"id": range(len(texts)), "text": column})
        parquet.write_table(table, tmp_path / name, row_group_size=300)
        return tmp_path / name

    return write_rows


@pytest.mark.parametrize("kind", ["string", "large_string", "dictionary"])
def test_rows_of_a_table_are_documents(
    kind: str, write_table, stdlib_text: str, rust_tokenizer, tmp_path: Path
) -> None:
    tokenizer = rust_tokenizer()
    texts = [stdlib_text[start : start + start % 9000] for start in range(0, 4_000_000, 1999)]
    texts[5:7] = ["", f"a{END_OF_TEXT}b é"]
    path = write_table(texts, kind)
    calls: list[tuple[int, int, str]] = []
    token_file = tokenizer.encode_files(
        path, tmp_path / "tokens", progress=lambda *call: calls.append(call)
    )
    assert np.array_equal(token_file[:], row_ids(tokenizer, texts))
    assert calls[-1][:2] == (path.stat().st_size,) * 2
    text_path = write(tmp_path / "a.jsonl", json_lines(texts))
    assert rslm.train_bpe(path, 300, []) == rslm.train_bpe(text_path, 300, [])


def test_inputs_of_all_kinds_follow_one_another(
    write_table, rust_tokenizer, tmp_path: Path
) -> None:
    tokenizer = rust_tokenizer()
    paths = [
        write(tmp_path / "a.txt", b"one"),
        write_table(["two", "three"]),
        write(tmp_path / "b.jsonl.gz", gzip.compress(json_lines(["four", "five"]))),
        write_table([], name="none.parquet"),
        write(tmp_path / "c", b"six"),
    ]
    token_file = tokenizer.encode_files(paths, tmp_path / "tokens")
    expected = row_ids(tokenizer, ["one", "two", "three", "four", "five", "six"])
    assert token_file[:].tolist() == expected


def test_format_and_field_may_be_given(write_table, rust_tokenizer, tmp_path: Path) -> None:
    tokenizer = rust_tokenizer()
    path = write(tmp_path / "a.json", b'{"body": "low", "text": 1}')
    lines = tokenizer.encode_files(path, tmp_path / "lines", format="jsonl", text_field="body")
    assert lines[:].tolist() == row_ids(tokenizer, ["low"])
    text = tokenizer.encode_files(path, tmp_path / "text")
    assert text[:].tolist() == row_ids(tokenizer, [path.read_text()])
    renamed = write_table(["low"]).rename(tmp_path / "table")
    table = tokenizer.encode_files(renamed, tmp_path / "tokens", format="parquet")
    assert table[:].tolist() == row_ids(tokenizer, ["low"])


BIG_WINDOW = b"\x28\xb5\x2f\xfd\x00\xa8" + b"\x19\x00\x00abc"
"""A zstd frame of three bytes that asks for a window of 2 GiB."""


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("a.txt.gz", lambda data: data[:-3], r"a\.txt\.gz: .*ends at byte \d+"),
        ("a.txt.gz", lambda data: data[: len(data) // 2], r"a\.txt\.gz: .*ends at byte \d+"),
        (
            "a.txt.gz",
            lambda data: data + b"garbage" * 9,
            r"a\.txt\.gz: .*before byte \d+: invalid gzip",
        ),
        ("a.txt.gz", lambda data: data[:-8] + bytes(8), r"a\.txt\.gz: .*byte \d+: corrupt gzip"),
        ("a.txt.gz", lambda _: b"", r"a\.txt\.gz: .*ends at byte 0"),
        ("a.txt.gz", lambda _: b"plain text, no gzip", r"a\.txt\.gz: .*invalid gzip header"),
        ("a.jsonl.zst", lambda data: data[:-3], r"a\.jsonl\.zst: .*ends at byte \d+"),
        ("a.jsonl.zst", lambda data: data[: len(data) // 2], r"a\.jsonl\.zst: .*ends at byte"),
        (
            "a.jsonl.zst",
            lambda data: data + b"garbage",
            r"a\.jsonl\.zst: .*byte \d+: Unknown frame",
        ),
        ("a.txt.zst", lambda _: BIG_WINDOW, r"a\.txt\.zst: .*too much memory"),
    ],
)
def test_corrupt_compressed_files_are_refused_and_leave_nothing(
    name: str, damage: Callable[[bytes], bytes], message: str, rust_tokenizer, tmp_path: Path
) -> None:
    content = json_lines([f"text {i}" for i in range(9000)])
    packed = gzip.compress(content) if name.endswith("gz") else zstd(content)
    path = write(tmp_path / name, damage(packed))
    with pytest.raises(rslm.FormatError, match=message):
        rust_tokenizer().encode_files(path, tmp_path / "tokens", shard_tokens=100)
    assert not (tmp_path / "tokens").exists()
    with pytest.raises(rslm.FormatError, match=message):
        rslm.train_bpe(path, 300)


def test_bad_rows_are_refused_with_their_place(write_table, rust_tokenizer, tmp_path: Path) -> None:
    encode, out = rust_tokenizer().encode_files, tmp_path / "tokens"
    lines = json_lines(["low"] * 400_000)
    path = write(tmp_path / "a.jsonl", lines + b'{"text": 3}\n' + lines)
    with pytest.raises(
        rslm.FormatError, match=rf"line 400001 \(byte {len(lines)}\): .*expected a string"
    ):
        encode(path, out)
    path = write(tmp_path / "b.jsonl", lines + b'{"text": "\xff"}\n')
    with pytest.raises(ValueError, match=rf"b\.jsonl: invalid UTF-8 at byte {len(lines) + 10}"):
        encode(path, out)
    replaced = encode(path, tmp_path / "replaced", errors="replace")
    assert rust_tokenizer().decode(replaced[-4:-1]).endswith("�")
    table = write_table(["a"] * 700 + [None])
    with pytest.raises(rslm.FormatError, match=r"a\.parquet: row 700: must hold a text, got null"):
        encode(table, out)
    with pytest.raises(ValueError, match=r"text_field must be a column .*\(id, text\), got 'body'"):
        encode(table, out, text_field="body")
    with pytest.raises(
        ValueError, match="text_field must be a column of strings, got one of int64"
    ):
        encode(table, out, text_field="id")
    write(table, table.read_bytes()[:-9])
    with pytest.raises(rslm.FormatError, match=r"a\.parquet: not a whole Parquet file"):
        encode(table, out)
    with pytest.raises(ValueError, match=r"must not be compressed as a whole.*a\.parquet\.gz"):
        encode(write(tmp_path / "a.parquet.gz", b""), out)
    assert not out.exists()


def test_wrong_input_options_are_refused(rust_tokenizer, tmp_path: Path) -> None:
    path, encode = write(tmp_path / "a.txt", b"abc"), rust_tokenizer().encode_files
    with pytest.raises(ValueError, match='format must be text, jsonl or parquet, got "csv"'):
        encode(path, tmp_path / "tokens", format="csv")
    with pytest.raises(ValueError, match=r"max_document_bytes must be from 1 .*, got 0"):
        encode(path, tmp_path / "tokens", max_document_bytes=0)
    with pytest.raises(TypeError, match="no argument 'field'"):
        encode(path, tmp_path / "tokens", field="text")


def test_parquet_without_pyarrow_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, rust_tokenizer, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    path = write(tmp_path / "a.parquet", b"PAR1")
    with pytest.raises(ValueError, match=r"need pyarrow.*pip install 'rslm\[data\]'"):
        rust_tokenizer().encode_files(path, tmp_path / "tokens")


needs_proc = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="the peak of the memory is read from /proc"
)
# The peak that `getrusage` tells is that of the process it was forked from, if that is higher.
MEASURE = """
import re, sys
import rslm
def peak():
    status = open("/proc/self/status").read()
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) // 1024
tokenizer = rslm.Tokenizer.load(sys.argv[1])
try:
    rslm.train_bpe(sys.argv[2], 300) if sys.argv[4] == "train" else None
    tokenizer.encode_files(sys.argv[2], sys.argv[3], n_threads=2)
    print("whole", peak())
except ValueError as error:
    print(error, peak())
"""


def measure(path: Path, tokenizer: rslm.Tokenizer, *, job: str = "encode") -> tuple[str, int]:
    """What came of encoding a file in a process of its own, and the peak of its memory in MB."""
    saved = path.parent / "tokenizer.json"
    tokenizer.save(saved)
    arguments = [str(saved), str(path), str(path.parent / "tokens"), job]
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, *arguments], capture_output=True, text=True, check=True
    )
    outcome, _, megabytes = run.stdout.strip().rpartition(" ")
    return outcome, int(megabytes)


@needs_proc
@pytest.mark.parametrize("ending", ["txt", "jsonl"])
@pytest.mark.parametrize("job", ["encode", "train"])
def test_a_gigabyte_in_one_document_is_refused_in_bounded_memory(
    ending: str, job: str, rust_tokenizer, tmp_path: Path
) -> None:
    head = b'{"text": "' if ending == "jsonl" else b""
    packed = gzip.compress(head) + gzip.compress(b"a" * (1 << 24), 1) * 64
    path = write(tmp_path / f"bomb.{ending}.gz", packed)
    outcome, megabytes = measure(path, rust_tokenizer(), job=job)
    assert "bomb" in outcome
    assert "max_document_bytes = 16777216" in outcome
    assert megabytes < LIMIT_MB
    assert not (tmp_path / "tokens").exists()


@needs_proc
# 2 GB of text take a quarter of a minute.
@pytest.mark.slow
@pytest.mark.parametrize("ending", ["txt", "jsonl"])
def test_two_gigabytes_take_bounded_memory(
    ending: str, stdlib_text: str, rust_tokenizer, tmp_path: Path
) -> None:
    pieces = [stdlib_text[start : start + 5000] for start in range(0, 4_000_000, 5000)]
    content = END_OF_TEXT.join(pieces).encode() if ending == "txt" else json_lines(pieces)
    path = write(
        tmp_path / f"a.{ending}.gz", gzip.compress(content, 1) * (2 * 10**9 // len(content) + 1)
    )
    outcome, megabytes = measure(path, rust_tokenizer())
    assert outcome == "whole"
    assert megabytes < LIMIT_MB


def test_commands_take_the_same_inputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"body": f"low{END_OF_TEXT}er"}, {"body": "lowest"}] * 50
    write(Path("a.gz"), gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    flags = ["--format", "jsonl", "--text-field", "body"]
    train = ["tokenizer", "train", "a.gz", "--vocab-size", "270", "--out", "tok.json"]
    assert main([*train, *flags]) == 0
    encode = ["tokenizer", "encode", "tok.json", "a.gz", "--out", "tokens"]
    assert main([*encode, *flags]) == 0
    assert rslm.TokenFile.open("tokens").n_documents == 100
    assert main([*encode, *flags]) == 2
    assert main([*encode, *flags, "--resume"]) == 0
    assert main([*encode[:-1], "marked", *flags, "--rows-hold-special-tokens"]) == 0
    assert rslm.TokenFile.open("marked").n_documents == 150
    capsys.readouterr()
    assert main([*encode[:-1], "short", *flags, "--max-document-bytes", "20"]) == 2
    assert "max_document_bytes = 20 bytes" in capsys.readouterr().err
