"""Token files: reading, both implementations, damage; long because every damage is a case."""

import copy
import dataclasses
import itertools
import json
import pickle
import shutil
import subprocess
import sys
import threading
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from rslm import Tokenizer, _rslm, token_file_format, token_file_writer
from rslm.errors import FormatError
from rslm.token_file import TokenFile
from rslm.token_file_format import Manifest
from rslm.token_file_writer import TokenizerRecord, write_token_file

FIXTURES = Path(__file__).parent / "fixtures"
WIDTHS = {"token_file_u16": 300, "token_file_u32": 70_000}
FILES = [
    "manifest.json",
    *["shard_00000.bin", "shard_00000.idx.npy", "shard_00001.bin", "shard_00001.idx.npy"],
]


def record(vocab_size: int) -> TokenizerRecord:
    lengths = 1 + np.arange(vocab_size) % 5
    lengths[0] = 0
    return TokenizerRecord(
        name="golden",
        vocab_size=vocab_size,
        canonical_json=b'{"note":"stands for a tokenizer"}',
        special_tokens={"<|endoftext|>": 0},
        end_of_text=0,
        token_byte_lengths=lengths,
    )


def golden_documents(vocab_size: int) -> list[list[int]]:
    """The Rust tests write the same documents and must get the same files."""
    return [
        [1 + (d * 7919 + j * 104_729) % (vocab_size - 1) for j in range(length - 1)] + [0]
        for d, length in enumerate([3, 1, 9, 5, 12, 2, 8])
    ]


def joined(documents: list[list[int]]) -> list[int]:
    return list(itertools.chain.from_iterable(documents))


def write_golden(out: Path, vocab_size: int) -> None:
    write_token_file(
        out,
        golden_documents(vocab_size),
        tokenizer=record(vocab_size),
        dataset="golden/é",
        shard_tokens=16,
        sources=[("golden.txt", 123)],
        command="make golden",
        rslm_version="golden",
    )


@pytest.fixture(params=WIDTHS)
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of a golden token file, of either width, that a test may damage."""
    return shutil.copytree(FIXTURES / request.param, tmp_path / request.param)


@pytest.mark.parametrize("name", WIDTHS)
def test_golden_files_are_what_the_writer_writes(
    name: str, tmp_path: Path, check_golden: Callable[[str, bytes], None]
):
    write_golden(tmp_path / name, WIDTHS[name])
    assert sorted(path.name for path in (tmp_path / name).iterdir()) == FILES
    for file in FILES:
        check_golden(f"{name}/{file}", (tmp_path / name / file).read_bytes())


# Reading.


def test_open_reads_documents_and_facts(golden: Path):
    vocab_size = WIDTHS[golden.name]
    documents = golden_documents(vocab_size)
    token_file = TokenFile.open(golden, tokenizer=record(vocab_size), verify=True)
    assert [token_file.document(i).tolist() for i in range(7)] == documents
    assert token_file.document_starts.tolist() == [0, 3, 4, 13, 18, 30, 32]
    assert len(token_file) == token_file.n_tokens == 40
    assert token_file.n_documents == 7
    tokens = np.concatenate(documents)
    assert token_file.n_utf8_bytes == record(vocab_size).token_byte_lengths[tokens].sum()
    assert token_file.dtype == (np.uint16 if vocab_size <= 2**16 else np.uint32)
    assert (token_file.vocab_size, token_file.end_of_text) == (vocab_size, 0)
    assert token_file.tokenizer_json == record(vocab_size).canonical_json
    assert token_file.tokenizer_sha256 == record(vocab_size).sha256
    assert [shard.n_tokens for shard in token_file.shards] == [18, 22]


def test_numpy_alone_reads_payload_and_index(golden: Path):
    dtype = "<u2" if WIDTHS[golden.name] <= 2**16 else "<u4"
    payload = np.memmap(golden / "shard_00001.bin", dtype, "r", offset=1024)
    index = np.load(golden / "shard_00001.idx.npy")
    assert payload.tolist() == joined(golden_documents(WIDTHS[golden.name])[4:])
    assert index.tolist() == [0, 12, 14, 22]


def test_a_token_file_must_not_be_changed(golden: Path):
    token_file = TokenFile.open(golden)
    with pytest.raises(AttributeError, match="must not be changed, got a new vocab_size"):
        token_file.vocab_size = 3


@pytest.mark.parametrize("number", [0, 1])
def test_one_shard_opens_alone(golden: Path, number: int):
    whole = TokenFile.open(golden)
    shard = TokenFile.open(whole.shards[number].path, verify=True)
    assert shard[:].tolist() == whole.tokens(number).tolist()
    assert shard.n_documents == whole.shards[number].n_documents
    assert shard.document(1).tolist() == whole.document([1, 5][number]).tolist()
    assert shard.tokenizer_sha256 == whole.tokenizer_sha256
    assert shard.tokenizer_json is None
    assert shard.fingerprint != whole.fingerprint


def test_indexing_is_that_of_a_list(golden: Path):
    token_file = TokenFile.open(golden)
    tokens = joined(golden_documents(WIDTHS[golden.name]))
    assert [token_file[i] for i in range(-40, 40)] == tokens + tokens
    assert isinstance(token_file[3], int)
    assert list(token_file) == tokens
    for index in (40, -41):
        with pytest.raises(IndexError, match=rf"token index must be in 0\.\.39, got {index}"):
            token_file[index]
    with pytest.raises(ValueError, match="must have step 1, got 2"):
        token_file[::2]
    for index in (7, -1):
        with pytest.raises(IndexError, match=rf"document must be in 0\.\.6, got {index}"):
            token_file.document(index)


@pytest.mark.parametrize(("start", "count"), [(-1, 1), (0, 41), (40, 1), (3, -1), (41, 0)])
def test_read_refuses_a_range_outside_the_file(golden: Path, start: int, count: int):
    with pytest.raises(ValueError, match="must lie inside 40 tokens"):
        TokenFile.open(golden).read(start, count)


def test_read_gives_an_array_of_its_own(golden: Path):
    token_file = TokenFile.open(golden)
    token_file.read(0, 3)[:] = 1
    assert token_file.read(0, 3).tolist() == golden_documents(WIDTHS[golden.name])[0]


def test_read_spans_more_shards_than_are_kept_open(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(token_file_writer, "write_atomically", Path.write_bytes)
    documents = [[i] for i in range(200)]
    write_token_file(tmp_path, documents, tokenizer=record(300), shard_tokens=1, rslm_version="1")
    token_file = TokenFile.open(tmp_path)
    assert len(token_file.shards) == 200
    for _ in range(2):
        assert token_file[:].tolist() == list(range(200))


def test_tokens_is_a_read_only_view(golden: Path):
    tokens = TokenFile.open(golden).tokens(0)
    assert isinstance(tokens, np.memmap)
    assert not tokens.flags.writeable


def test_token_file_is_shared_by_threads_and_survives_pickling(golden: Path):
    token_file = TokenFile.open(golden)
    expected = token_file[:].tolist()
    results = []
    threads = [
        threading.Thread(target=lambda: results.extend(token_file[:].tolist() for _ in range(50)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 400
    assert pickle.loads(pickle.dumps(token_file))[:].tolist() == expected
    assert copy.deepcopy(token_file).fingerprint == token_file.fingerprint


def test_fingerprint_follows_content_not_origin(tmp_path: Path):
    arguments = {"tokenizer": record(300), "rslm_version": "1"}
    write_token_file(tmp_path / "a", [[1, 2, 0]], dataset="x", command="x", **arguments)
    write_token_file(tmp_path / "b", [[1], [2, 0]], **arguments)
    write_token_file(tmp_path / "c", [[1, 3, 0]], **arguments)
    a, b, c = (TokenFile.open(tmp_path / name).fingerprint for name in "abc")
    assert a == b != c


# Slices across shards, documents split by the limit, both writers.


@given(st.data())
def test_slices_across_shards_equal_the_concatenation(tmp_path_factory, data):
    vocab_size = data.draw(st.sampled_from([300, 70_000]))
    ids = st.integers(0, vocab_size - 1)
    documents = data.draw(st.lists(st.lists(ids, min_size=1, max_size=12), max_size=12))
    max_tokens = data.draw(st.integers(1, 20))
    shard_tokens = data.draw(st.integers(1, max_tokens))
    out = tmp_path_factory.mktemp("slices") / "out"
    with pytest.MonkeyPatch.context() as patch:
        limit = max_tokens * token_file_format.itemsize_for(vocab_size)
        patch.setattr(token_file_writer, "MAX_PAYLOAD_BYTES", limit)
        # Syncing some hundred files to disk takes seconds and is not what is tested.
        patch.setattr(token_file_writer, "write_atomically", Path.write_bytes)
        write_token_file(
            out,
            documents,
            tokenizer=record(vocab_size),
            shard_tokens=shard_tokens,
            rslm_version="1",
        )
    token_file = TokenFile.open(out, verify=True)
    tokens = joined(documents)
    assert len(token_file) == len(tokens)
    assert all(shard.n_tokens <= max_tokens for shard in token_file.shards)
    for _ in range(4):
        where = slice(
            data.draw(st.none() | st.integers(-50, 150)), data.draw(st.integers(-50, 150))
        )
        assert token_file[where].tolist() == tokens[where]
    pieces = [token_file.document(i).tolist() for i in range(token_file.n_documents)]
    assert joined(pieces) == tokens
    n_split = json.loads((out / "manifest.json").read_bytes())["n_split_documents"]
    assert len(pieces) == len(documents) + n_split


def test_document_goes_on_in_the_next_shard_at_the_limit(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(token_file_writer, "MAX_PAYLOAD_BYTES", 10)
    documents = [[1] * 12, [2] * 5]
    write_token_file(tmp_path, documents, tokenizer=record(300), shard_tokens=4, rslm_version="1")
    token_file = TokenFile.open(tmp_path, verify=True)
    assert [shard.n_tokens for shard in token_file.shards] == [5, 5, 5, 2]
    assert token_file.document_starts.tolist() == [0, 5, 10, 12, 15]
    assert json.loads((tmp_path / "manifest.json").read_bytes())["n_split_documents"] == 3


def test_empty_token_file_opens(tmp_path: Path):
    write_token_file(tmp_path, [], tokenizer=record(300), rslm_version="1")
    token_file = TokenFile.open(tmp_path, verify=True)
    assert (len(token_file), token_file.n_documents, token_file.n_utf8_bytes) == (0, 0, 0)
    assert token_file[:].tolist() == token_file.document_starts.tolist() == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"documents": [[1], []]}, "at least one integer, got shape"),
        ({"documents": [[0.5]]}, "dtype float64"),
        ({"documents": [[1, 300]]}, r"token_ids must be in 0\.\.299, got 300"),
        ({"documents": [[-1, 5]]}, "got -1"),
        ({"dataset": "é" * 33}, "dataset must have at most 64 bytes"),
        ({"shard_tokens": 0}, "shard_tokens must be between 1 and 536870912, got 0"),
        ({"out": FIXTURES}, "must be a new or empty folder"),
    ],
)
def test_write_refuses_bad_arguments(tmp_path: Path, changes: dict, message: str):
    arguments = {
        "out": tmp_path / "out",
        "documents": [[1, 0]],
        "tokenizer": record(300),
        "rslm_version": "1",
    }
    with pytest.raises(ValueError, match=message):
        write_token_file(**(arguments | changes))
    assert not (tmp_path / "out" / "manifest.json").exists()


# The two implementations.


@pytest.mark.parametrize("shard_tokens", [1, 20, 1000])
def test_both_writers_write_the_same_bytes(tmp_path: Path, shard_tokens: int):
    end = "<|endoftext|>"
    texts = [f"low lower{end}lowest \n{end}", "newer é 世界", f"{end}widest{end}"]
    tokenizer = Tokenizer.train(None, 280, [end], texts=texts)
    paths = [tmp_path / f"{i}.txt" for i in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_bytes(text.encode())
    tokenizer.encode_files(paths, tmp_path / "rust", shard_tokens=shard_tokens, dataset="dä")
    documents = ["low lower", "lowest \n", "newer é 世界", "", "widest"]
    write_token_file(
        tmp_path / "numpy",
        [tokenizer.encode(document + end) for document in documents],
        tokenizer=TokenizerRecord(
            name=f"rslm-{tokenizer.vocab_size}",
            vocab_size=tokenizer.vocab_size,
            canonical_json=tokenizer.to_json(),
            special_tokens=tokenizer.special_tokens,
            end_of_text=tokenizer.end_of_text,
            token_byte_lengths=tokenizer.token_byte_lengths,
        ),
        dataset="dä",
        shard_tokens=shard_tokens,
        sources=[(path.name, path.stat().st_size) for path in paths],
        command="Tokenizer.encode_files",
    )
    rust, numpy = (
        {path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()}
        for folder in ("rust", "numpy")
    )
    assert rust == numpy


def test_both_readers_agree(golden: Path):
    token_file = TokenFile.open(golden)
    assert _rslm.verify_token_file(golden) == {
        "n_tokens": token_file.n_tokens,
        "n_documents": token_file.n_documents,
        "n_utf8_bytes": token_file.n_utf8_bytes,
        "n_shards": len(token_file.shards),
        "itemsize": token_file.dtype.itemsize,
        "fingerprint": token_file.fingerprint,
    }


# Damage: each kind gives one FormatError with path and place.


def assert_refused(path: Path, damaged: Path, message: str, **options: object) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(FormatError, match=message or None) as caught:
            TokenFile.open(path, **options)
    text = str(caught.value)
    assert text.startswith(f"{damaged}: ")
    assert "\n" not in text
    return text


def overwrite(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


@pytest.mark.parametrize("file", FILES)
def test_any_flipped_byte_is_found_and_its_file_named(golden: Path, file: str):
    path = golden / file
    good = path.read_bytes()
    for at in range(len(good)):
        overwrite(path, at, bytes([good[at] ^ 1 << at % 8]))
        # Opening alone finds what is wrong with manifest and headers.
        is_payload = file != "manifest.json" and at >= (128 if file.endswith(".npy") else 1024)
        assert_refused(golden, path, "", verify=is_payload)
        overwrite(path, at, good[at : at + 1])
    TokenFile.open(golden, verify=True)


@pytest.mark.parametrize("file", [file for file in FILES if file.endswith(".bin")])
def test_flipped_byte_is_found_in_a_shard_opened_alone(golden: Path, file: str):
    path = golden / file
    good = path.read_bytes()
    for at in range(len(good)):
        overwrite(path, at, bytes([good[at] ^ 1 << at % 8]))
        assert_refused(path, path, "at byte ", verify=at >= 1024)
        overwrite(path, at, good[at : at + 1])


DAMAGE: dict[str, tuple[str, int, bytes, str]] = {
    "magic": ("shard_00000.bin", 0, b"\0\0\0\0", "at byte 0: magic must agree"),
    "n_tokens": ("shard_00001.bin", 32, b"\xff" * 8, "at byte 32: n_tokens must agree"),
    "header sum": ("shard_00000.bin", 1020, b"\0\0\0\0", "at byte 1020: header_crc32 must"),
    "payload": ("shard_00001.bin", 1026, b"\xff", r"at byte 1024: bytes 1024 to \d+ do not match"),
    "index header": ("shard_00000.idx.npy", 1, b"X", r"at byte 1: not the NPY header of u32\[5\]"),
    "index order": ("shard_00001.idx.npy", 132, b"\0", "at byte 132: offsets must ascend from 0"),
    "index start": ("shard_00001.idx.npy", 128, b"\x01", "at byte 128: offsets must ascend"),
    "index end": ("shard_00001.idx.npy", 140, b"\x15", "at byte 140: the last offset must be 22"),
    "index hash": ("shard_00001.idx.npy", 132, b"\x0b", "at byte 0: SHA-256 from here must be"),
    "manifest": ("manifest.json", 20, b"X", r"at byte \d+: the manifest contradicts its own hash"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_described_with_its_offset(golden: Path, kind: str):
    file, at, data, message = DAMAGE[kind]
    overwrite(golden / file, at, data)
    text = assert_refused(golden, golden / file, message, verify=True)
    with pytest.raises(FormatError) as caught:
        _rslm.verify_token_file(golden)
    # The readers describe it alike, up to the hash that does not match.
    assert str(caught.value).partition(", got")[0] == text.partition(", got")[0]


@pytest.mark.parametrize("file", FILES[1:])
def test_wrong_size_is_refused_on_opening(golden: Path, file: str):
    path = golden / file
    good = path.read_bytes()
    for data, at in [(good[:-1], len(good) - 1), (good + b"\0", len(good)), (b"", 0)]:
        path.write_bytes(data)
        message = f"at byte {at}: the file must have {len(good)} bytes, got {len(data)}"
        assert_refused(golden, path, message)


@pytest.mark.parametrize("size", [0, 12, 1023, 1024, 1025])
def test_truncated_shard_alone_is_refused(golden: Path, size: int):
    path = golden / "shard_00000.bin"
    path.write_bytes(path.read_bytes()[:size])
    assert_refused(path, path, f"at byte {size}: ")


@pytest.mark.parametrize("file", FILES[1:])
def test_missing_file_is_named(golden: Path, file: str):
    (golden / file).unlink()
    assert_refused(golden, golden / file, "is missing")


def test_folder_without_manifest_is_incomplete(golden: Path):
    (golden / "manifest.json").unlink()
    assert_refused(golden, golden, "not a complete token file, manifest.json is missing")


def test_missing_path_is_the_systems_error(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        TokenFile.open(tmp_path / "nothing")


def test_shard_shorter_since_it_was_opened_is_refused(golden: Path):
    token_file = TokenFile.open(golden)
    path = golden / "shard_00001.bin"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(FormatError, match="the file ends here, it became shorter"):
        token_file.read(0, 40)


def test_folder_in_place_of_a_file_is_refused(golden: Path):
    (golden / "shard_00000.bin").unlink()
    (golden / "shard_00000.bin").mkdir()
    assert_refused(golden, golden / "shard_00000.bin", "must be a regular file")


def test_another_tokenizers_file_is_refused(golden: Path):
    other = SimpleNamespace(sha256="00" * 32)
    for path in (golden, golden / "shard_00000.bin"):
        text = assert_refused(path, path, "made by another tokenizer", tokenizer=other)
        assert record(300).sha256 in text


@pytest.mark.parametrize("name", WIDTHS)
def test_wrong_width_is_refused(name: str, tmp_path: Path):
    """The headers of one width on the payload of the other, true to themselves."""
    golden = shutil.copytree(FIXTURES / name, tmp_path / name)
    other = FIXTURES / next(other for other in WIDTHS if other != name)
    path = golden / "shard_00000.bin"
    overwrite(path, 0, (other / "shard_00000.bin").read_bytes()[:1024])
    assert_refused(golden, path, "at byte 0: magic must agree with manifest.json")
    assert_refused(path, path, r"the file must have \d+ bytes, got")


@pytest.mark.parametrize(
    ("at", "data", "message"),
    [
        (24, b"\x02\0", "at byte 24: extension_version must be 1, got 2"),
        (28, b"\x04", "at byte 28: itemsize must be 2, got 4"),
        (30, b"\0\0", "at byte 30: header_bytes must be 1024, got 0"),
        (32, b"\xff" * 8, "at byte 32: n_tokens must be 18, got 18446744073709551615"),
        (40, b"\xff" * 8, r"at byte 148: the file must have \d+ bytes, got 148"),
        (56, b"\0\0\1\1", "at byte 56: vocab_size 16842752 does not go with 2 bytes a token"),
        (64, b"\x2c\1\0\0", "at byte 64: end_of_text must be below 300, got 300"),
        (8, b"\xff" * 4, "at byte 32: n_tokens must be -1, got 18"),
    ],
)
def test_crafted_header_is_refused(tmp_path: Path, at: int, data: bytes, message: str):
    """Headers whose sum is right."""
    golden = shutil.copytree(FIXTURES / "token_file_u16", tmp_path / "out")
    path = golden / "shard_00000.bin"
    overwrite(path, at, data)
    overwrite(path, 1020, zlib.crc32(path.read_bytes()[:1020]).to_bytes(4, "little"))
    index = path.with_suffix(".idx.npy")
    assert_refused(path, index if at == 40 else path, message)


def test_id_outside_the_vocabulary_is_refused(tmp_path: Path):
    """A file true to its hashes, but written for a larger vocabulary."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_file_writer, "_check_document", lambda document, _: np.array(document))
        lengths = np.ones(500, np.uint32)
        patch.setattr(token_file_writer, "_check_arguments", lambda *_: None)
        tokenizer = dataclasses.replace(record(300), token_byte_lengths=lengths)
        write_token_file(tmp_path, [[1, 2, 400]], tokenizer=tokenizer, rslm_version="1")
    shard = tmp_path / "shard_00000.bin"
    message = "at byte 1028: ids must be below vocab_size 300, got 400"
    assert_refused(tmp_path, shard, message, verify=True)


MANIFESTS: dict[str, tuple[Callable[[dict], object], str]] = {
    "no number": (lambda m: m.update(n_split_documents=True), "n_split_documents must be an"),
    "negative": (lambda m: m["shards"][0].update(n_tokens=-1), "n_tokens must be an integer"),
    "huge": (lambda m: m["shards"][0].update(n_tokens=2**62), r"shards\[0\] must hold 1 to"),
    "too many documents": (lambda m: m["shards"][0].update(n_documents=19), "n_documents must be"),
    "no list": (lambda m: m.update(shards={}), "shards must be list, got dict"),
    "no object": (lambda m: m.update(shards=[1]), "shards must be an object"),
    "no digest": (lambda m: m["shards"][1].update(sha256="0" * 63), "sha256 must be 64"),
    "no sums": (lambda m: m["shards"][1].update(crc32=[]), r"shards\[1\] must hold"),
    "path": (lambda m: m["shards"][0].update(file="../x.bin"), "contradicts its own hash or"),
    "total": (lambda m: m.update(n_tokens=39), "contradicts its own hash or totals"),
    "unknown field": (lambda m: m.update(zebra=1), "contradicts its own hash or totals"),
    "version": (lambda m: m.update(version=2), "format and version must be"),
    "surrogate": (lambda m: m.update(command="\ud800"), "command must have no lone surrogates"),
    "long name": (lambda m: m.update(dataset="x" * 65), "dataset must have at most 64 bytes"),
    "tokenizer": (lambda m: m["tokenizer"].update(json="{}"), "contradicts its own hash or"),
    "no tokenizer": (lambda m: m.pop("tokenizer"), "tokenizer must be an object"),
}


@pytest.mark.parametrize("kind", MANIFESTS)
def test_crafted_manifest_is_refused(golden: Path, kind: str):
    change, message = MANIFESTS[kind]
    path = golden / "manifest.json"
    manifest = json.loads(path.read_bytes())
    change(manifest)
    path.write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")
    assert_refused(golden, path, message)


@pytest.mark.parametrize("data", [b"", b"{", b"null", b"[" * 10**5, b"\xff", b"1" * 5000, b"NaN"])
def test_manifest_that_is_no_json_object_is_refused(golden: Path, data: bytes):
    (golden / "manifest.json").write_bytes(data)
    assert_refused(golden, golden / "manifest.json", "")


def test_manifest_of_absurd_size_is_refused_unread(golden: Path):
    with (golden / "manifest.json").open("r+b") as file:
        file.truncate(token_file_format.MAX_MANIFEST_BYTES + 1)
    assert_refused(golden, golden / "manifest.json", "must have at most 134217728 bytes")


def test_manifest_true_to_itself_is_compared_with_the_sizes(golden: Path):
    """Counts far above what is there must not be believed: this must not allocate 1 GiB."""
    path = golden / "manifest.json"
    manifest = Manifest.decode(path.read_bytes())
    n_tokens = token_file_format.MAX_PAYLOAD_BYTES // manifest.itemsize
    huge = manifest.shards[0]._replace(n_tokens=n_tokens, crc32=(0,) * 256)
    shards = (huge, manifest.shards[1])
    path.write_bytes(manifest._replace(shards=shards).encode())
    expected = 1024 + token_file_format.MAX_PAYLOAD_BYTES
    assert_refused(golden, golden / "shard_00000.bin", f"the file must have {expected} bytes")


def test_huge_counts_in_headers_allocate_nothing(tmp_path: Path):
    """The crafted files are opened with 64 MiB to spare, the size of none of their claims."""
    golden = shutil.copytree(FIXTURES / "token_file_u16", tmp_path / "out")
    path = golden / "shard_00000.bin"
    overwrite(path, 8, (2**31 - 1).to_bytes(4, "little"))
    overwrite(path, 32, (2**31 - 1).to_bytes(8, "little"))
    overwrite(path, 40, (2**31 - 1).to_bytes(8, "little"))
    overwrite(path, 1020, zlib.crc32(path.read_bytes()[:1020]).to_bytes(4, "little"))
    plain = tmp_path / "plain.bin"
    plain.write_bytes(plain_header(20240520, 1, 2**31 - 1) + b"\0\0")
    program = f"""
import resource
from rslm.errors import FormatError
from rslm.token_file import TokenFile
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**26, used + 2**26))
for path in {[str(path), str(golden), str(plain)]!r}:
    try:
        TokenFile.open(path, verify=True)
    except FormatError as error:
        print(error)
"""
    if not Path("/proc/self/statm").exists():
        pytest.skip("needs /proc to know the address space in use")
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert len(run.stdout.splitlines()) == 3


# Plain llm.c files.


def plain_header(magic: int, version: int, n_tokens: int) -> bytes:
    return np.array([magic, version, n_tokens] + [0] * 253, "<i4").tobytes()


@pytest.mark.parametrize(
    ("magic", "version", "dtype"), [(20240520, 1, "<u2"), (20240801, 7, "<u4")]
)
def test_plain_llm_c_file_is_read_with_one_warning(
    tmp_path: Path, magic: int, version: int, dtype: str
):
    path = tmp_path / "plain.bin"
    path.write_bytes(plain_header(magic, version, 4) + np.array([5, 6, 7, 8], dtype).tobytes())
    with pytest.warns(UserWarning, match=r"plain\.bin: a plain llm\.c file") as caught:
        token_file = TokenFile.open(path, tokenizer=record(300), verify=True)
    assert len(caught) == 1
    assert token_file[:].tolist() == [5, 6, 7, 8]
    assert token_file.dtype == dtype
    assert token_file.vocab_size is token_file.n_utf8_bytes is token_file.tokenizer_sha256 is None
    assert (token_file.n_documents, token_file.document_starts.size) == (0, 0)
    assert len(token_file.fingerprint) == 64


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (plain_header(20240520, 1, 3) + b"\0" * 8, "at byte 1030: the file must have 1030 bytes"),
        (plain_header(20240520, 1, -1), "the file must have 1022 bytes"),
        (plain_header(20240520, 7, 0), "at byte 0: magic must be 20240520 version 1 or"),
        (plain_header(20240520, 1, 0)[:-1] + b"x", "at byte 16: neither the tag RSLMTOK nor"),
        (b"not a token file", "at byte 16: a token file must have 1024 bytes of header"),
        (b"x" * 2000, "at byte 0: magic must be"),
    ],
)
def test_file_that_is_neither_is_refused(tmp_path: Path, data: bytes, message: str):
    path = tmp_path / "plain.bin"
    path.write_bytes(data)
    assert_refused(path, path, message)
