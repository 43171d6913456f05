"""Text files to token files: the ids of `encode`, with every document ended, for any threads."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import texts_with_special

import rslm

END_OF_TEXT = "<|endoftext|>"


def write_files(folder: Path, texts: list[str]) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{number}.txt" for number in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_bytes(text.encode())
    return paths


def expected_ids(tokenizer: rslm.Tokenizer, texts: list[str]) -> list[int]:
    ids: list[int] = []
    for text in texts:
        ids += tokenizer.encode(text)
        if text and not text.endswith(END_OF_TEXT):
            ids.append(tokenizer.end_of_text)
    return ids


@given(data=st.data())
def test_encode_files_equals_encode_with_every_document_ended(
    data: st.DataObject, rust_tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tokenizer = rust_tokenizer(data.draw(st.sampled_from(["gpt2", "o200k", "cl100k"])))
    texts = data.draw(st.lists(texts_with_special([END_OF_TEXT]), min_size=1, max_size=4))
    folder = tmp_path_factory.mktemp("files")
    paths = write_files(folder / "text", texts)
    token_file = tokenizer.encode_files(paths, folder / "tokens", n_threads=2)
    expected = expected_ids(tokenizer, texts)
    assert token_file[:].tolist() == expected
    assert len(token_file) == token_file.n_tokens == len(expected)
    ends = [i + 1 for i, token_id in enumerate(expected) if token_id == tokenizer.end_of_text]
    assert token_file.n_documents == len(ends)
    assert token_file.document_starts.tolist()[: len(ends)] == [0, *ends][: len(ends)]
    assert token_file.tokenizer_sha256 == tokenizer.sha256
    assert token_file.n_utf8_bytes == int(tokenizer.token_byte_lengths[expected].sum())
    token_file.verify()


@pytest.fixture(scope="module")
def large_texts(stdlib_text: str) -> list[str]:
    """12 MB in three files: end-of-text tokens every few thousand characters, and blank runs."""
    pieces = [stdlib_text[start : start + 5000] for start in range(0, 4_000_000, 5000)]
    return [END_OF_TEXT.join(pieces), " \n".join(pieces), ("\n" * 999).join(pieces)]


@pytest.mark.parametrize("shard_tokens", [2**27, 1_000_000])
def test_encode_files_does_not_depend_on_threads(
    shard_tokens: int, large_texts: list[str], rust_tokenizer, tmp_path: Path
) -> None:
    tokenizer = rust_tokenizer("o200k")
    paths = write_files(tmp_path / "text", large_texts)
    token_files = [
        tokenizer.encode_files(
            paths, tmp_path / f"tokens_{n_threads}", n_threads=n_threads, shard_tokens=shard_tokens
        )
        for n_threads in (1, 2, 3)
    ]
    assert len({token_file.fingerprint for token_file in token_files}) == 1
    if shard_tokens < 2**27:
        assert len(token_files[0].shards) > 1
    assert np.array_equal(token_files[0][:], expected_ids(tokenizer, large_texts))


@pytest.mark.parametrize("pattern", ["gpt2", r"\S+|\s+"])
@pytest.mark.parametrize("n_bytes", [2**20 - 1, 2**20, 2**20 + 1])
def test_a_file_that_ends_where_a_block_does_ends_its_document(
    n_bytes: int, pattern: str, rust_tokenizer, tmp_path: Path
) -> None:
    twin = rust_tokenizer()
    tokenizer = rslm.Tokenizer(twin.vocab, twin.merges, [END_OF_TEXT, "<|pad|>"], pattern=pattern)
    text = ("low lower\n" * n_bytes)[: n_bytes - len("<|pad|>")] + "<|pad|>"
    token_file = tokenizer.encode_files(write_files(tmp_path / "text", [text]), tmp_path / "tokens")
    assert token_file[-2:].tolist() == [tokenizer.special_tokens["<|pad|>"], tokenizer.end_of_text]
    assert token_file.n_documents == 1


def test_encode_files_reads_bytes_as_they_are(rust_tokenizer, tmp_path: Path) -> None:
    tokenizer = rust_tokenizer()
    (path,) = write_files(tmp_path / "text", ["a\r\nb\ufeff\0"])
    token_file = tokenizer.encode_files([path], tmp_path / "tokens")
    assert tokenizer.decode(token_file[:-1]) == "a\r\nb\ufeff\0"


def test_encode_files_and_invalid_utf8(rust_tokenizer, tmp_path: Path) -> None:
    tokenizer, path = rust_tokenizer(), tmp_path / "bad.txt"
    content = b"good caf\xc3\xa9 \xff\xfe bad \xe4\xb8"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"bad\.txt.*byte 11"):
        tokenizer.encode_files(path, tmp_path / "strict")
    assert not (tmp_path / "strict" / "manifest.json").exists()
    replaced = tokenizer.encode_files(path, tmp_path / "replace", errors="replace")
    assert tokenizer.decode(replaced[:-1]) == content.decode(errors="replace")
    raw = tokenizer.encode_files(path, tmp_path / "raw", errors="raw")
    assert tokenizer.decode_bytes(raw[:-1]) == content


def test_encode_files_reports_progress_in_bytes(
    large_texts: list[str], rust_tokenizer, tmp_path: Path
) -> None:
    paths = write_files(tmp_path / "text", large_texts)
    calls: list[tuple[int, int, str]] = []
    rust_tokenizer().encode_files(
        paths, tmp_path / "tokens", progress=lambda *call: calls.append(call)
    )
    total = sum(path.stat().st_size for path in paths)
    assert calls[-1][:2] == (total, total)
    assert [call[0] for call in calls] == sorted(call[0] for call in calls)


def test_encode_files_refuses_what_it_cannot_do(rust_tokenizer, tmp_path: Path) -> None:
    tokenizer = rust_tokenizer()
    (path,) = write_files(tmp_path / "text", ["abc"])
    with pytest.raises(FileNotFoundError, match="missing"):
        tokenizer.encode_files(tmp_path / "missing.txt", tmp_path / "tokens")
    with pytest.raises(ValueError, match=r"end_of_text.*<\|end\|>"):
        tokenizer.encode_files(path, tmp_path / "tokens", end_of_text="<|end|>")
    with pytest.raises(ValueError, match=r"errors.*ignore"):
        tokenizer.encode_files(path, tmp_path / "tokens", errors="ignore")
    with pytest.raises(ValueError, match="shard_tokens"):
        tokenizer.encode_files(path, tmp_path / "tokens", shard_tokens=0)
    tokenizer.encode_files(path, tmp_path / "tokens")
    with pytest.raises((ValueError, FileExistsError), match="tokens"):
        tokenizer.encode_files(path, tmp_path / "tokens")


@pytest.mark.parametrize("end_of_text", [END_OF_TEXT, None])
def test_what_encode_files_returns_is_what_opening_it_returns(
    end_of_text: str | None, large_texts: list[str], rust_tokenizer, tmp_path: Path
) -> None:
    tokenizer = rust_tokenizer("gpt2")
    paths = write_files(tmp_path / "text", large_texts)
    for resume in (False, True, True):
        out = tmp_path / ("resumed" if resume else "tokens")
        written = tokenizer.encode_files(
            paths, out, shard_tokens=300_000, end_of_text=end_of_text, resume=resume
        )
        opened = rslm.TokenFile.open(out, tokenizer=tokenizer, verify=True)
        assert len(written.shards) > 1
        assert vars(written) == {name: vars(opened)[name] for name in vars(written)}
        assert repr(written) == repr(opened)


def test_encoding_files_loads_no_numpy(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("some text")
    program = """
import sys
import rslm
tokenizer = rslm.Tokenizer({i: bytes([i]) for i in range(256)}, [], ["<|endoftext|>"])
token_file = tokenizer.encode_files("text.txt", "tokens")
assert rslm.TokenFile.open("tokens").n_tokens == 10
assert "numpy" not in sys.modules, "encode_files or open loads NumPy"
assert token_file[:4].tolist() == [*b"some"]
assert "numpy" in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120, cwd=tmp_path)
