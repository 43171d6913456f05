"""Documents held out by a hash of their bytes."""

import hashlib
import random
import shlex
from pathlib import Path

import pytest

from rslm.cli import main
from rslm.data import split
from rslm.data.split import documents_of, is_held_out, split_files
from rslm.files import END_OF_TEXT

SEPARATOR = END_OF_TEXT.encode()


def made_up(n: int, seed: int = 0) -> list[bytes]:
    draw = random.Random(seed)
    return [bytes(draw.choices(b"abc <|\n", k=draw.randint(3, 60))) + b"." for _ in range(n)]


def test_hash_of_the_document_decides() -> None:
    document = b"Once upon a time"
    # The first eight bytes of `printf 'Once upon a time' | sha256sum`, as a fraction.
    fraction = int(hashlib.sha256(document).hexdigest()[:16], 16) / 2**64
    assert is_held_out(document, fraction + 1e-9)
    assert not is_held_out(document, fraction - 1e-9)
    assert is_held_out(document, 1.0)
    assert not is_held_out(document, 0.0)


def test_about_the_share_is_held_out_and_a_larger_share_holds_out_more() -> None:
    documents = [str(number).encode() for number in range(20_000)]
    small = {d for d in documents if is_held_out(d, 0.05)}
    large = {d for d in documents if is_held_out(d, 0.2)}
    # 1000 and 4000, each within five standard deviations.
    assert abs(len(small) - 1000) < 155
    assert abs(len(large) - 4000) < 285
    assert small < large


@pytest.mark.parametrize("block_bytes", [1, 2, 5, 13, 14, 64, 1 << 20])
def test_documents_are_the_same_whatever_the_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    documents = [b"first", *made_up(40), b"<|endoftext|", b"|>", b"x" * 500, b"last, not ended"]
    text = SEPARATOR.join([documents[0], b"", b" \n", *documents[1:]])
    (tmp_path / "text.txt").write_bytes(text)
    monkeypatch.setattr(split, "_BLOCK_BYTES", block_bytes)
    assert list(documents_of(tmp_path / "text.txt")) == documents
    (tmp_path / "text.txt").write_bytes(text + SEPARATOR)
    assert list(documents_of(tmp_path / "text.txt")) == documents
    (tmp_path / "text.txt").write_bytes(b"")
    assert list(documents_of(tmp_path / "text.txt")) == []


def test_split_files_hold_every_document_once_in_order(tmp_path: Path) -> None:
    documents = made_up(300)
    files = [tmp_path / "a.txt", tmp_path / "b.txt"]
    files[0].write_bytes(SEPARATOR.join(documents[:200]))
    files[1].write_bytes(SEPARATOR.join(documents[200:]) + SEPARATOR)
    outs = tmp_path / "train.txt", tmp_path / "valid.txt"
    counts = split_files(files, *outs, 0.25)
    for out, held_out, count in zip(outs, (False, True), counts, strict=True):
        own = [d for d in documents if is_held_out(d, 0.25) == held_out]
        assert out.read_bytes() == b"".join(d + SEPARATOR for d in own)
        assert (count.n_documents, count.n_bytes) == (len(own), sum(map(len, own)))
    # The order of the files changes no side.
    again = tmp_path / "train2.txt", tmp_path / "valid2.txt"
    split_files(files[::-1], *again, 0.25)
    assert set(documents_of(again[1])) == set(documents_of(outs[1]))


@pytest.mark.parametrize(
    ("train", "valid"), [("x", "x"), ("x", "sub/../x"), ("a.txt", "y"), ("x", "link")]
)
def test_files_must_be_different(tmp_path: Path, train: str, valid: str) -> None:
    (tmp_path / "a.txt").write_bytes(SEPARATOR.join(made_up(100)))
    (tmp_path / "sub").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "x")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match="must be different files"):
        split_files([tmp_path / "a.txt"], tmp_path / train, tmp_path / valid, 0.3)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(("share", "empty"), [(1e-9, "y"), (1 - 1e-9, "x")])
def test_a_share_that_leaves_a_file_empty_is_refused(
    tmp_path: Path, share: float, empty: str
) -> None:
    (tmp_path / "a.txt").write_bytes(SEPARATOR.join(made_up(100)))
    with pytest.raises(ValueError, match=rf"document for .*/{empty}: {share} of 100 documents"):
        split_files([tmp_path / "a.txt"], tmp_path / "x", tmp_path / "y", share)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    with pytest.raises(ValueError, match=r"between 0 and 1 to make .*/y, got 1\.5"):
        split_files([tmp_path / "a.txt"], tmp_path / "x", tmp_path / "y", 1.5)


def test_nothing_is_left_where_a_file_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(FileNotFoundError):
        split_files([tmp_path / "a.txt", tmp_path / "no"], tmp_path / "x", tmp_path / "y", 0.5)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_command_splits_and_says_what_the_files_hold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_bytes(SEPARATOR.join(made_up(100)))
    assert main(shlex.split("data split text.txt --train t.txt --valid v.txt --share 0.3")) == 0
    n_held_out = sum(is_held_out(document, 0.3) for document in made_up(100))
    said = capsys.readouterr().err
    assert f"v.txt: {n_held_out} documents" in said
    assert f"t.txt: {100 - n_held_out} documents" in said
