"""Text on this machine, split into what is learnt from and what is held out."""

import random
from pathlib import Path

import pytest

from rslm.data.local import END_OF_TEXT, read_split, standard_library


def write_files(folder: Path, n: int) -> None:
    for i in range(n):
        path = folder / f"{'ab'[i % 2]}" / f"file_{i}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"Text of file {i}.\n" * 3)


def test_folder_split_is_by_file_and_the_same_in_every_place(tmp_path: Path) -> None:
    write_files(tmp_path / "one", 200)
    write_files(tmp_path / "two", 200)
    split = read_split(tmp_path / "one", 1 << 20)
    assert split == read_split(tmp_path / "two", 1 << 20)
    assert len(split.train) + len(split.valid) == 200
    assert not set(split.train) & set(split.valid)
    assert 2 <= len(split.valid) <= 22


def test_folder_split_of_a_file_does_not_depend_on_other_files(tmp_path: Path) -> None:
    write_files(tmp_path / "few", 100)
    write_files(tmp_path / "many", 200)
    few, many = (read_split(tmp_path / name, 1 << 20) for name in ("few", "many"))
    assert set(few.valid) <= set(many.valid)
    assert set(few.train) <= set(many.train)


def test_folder_leaves_out_what_is_no_text_or_not_the_users(tmp_path: Path) -> None:
    write_files(tmp_path, 100)
    (tmp_path / "latin1.txt").write_bytes(b"caf\xe9")
    (tmp_path / "binary").write_bytes(b"\0\1\2")
    (tmp_path / "empty.txt").write_text(" \n")
    for name in ("site-packages", "__pycache__", ".git"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.txt").write_text("not this")
    split = read_split(tmp_path, 1 << 20)
    assert len(split.train) + len(split.valid) == 100
    assert split.n_skipped == 2


def test_folder_keeps_to_the_limit(tmp_path: Path) -> None:
    write_files(tmp_path, 200)
    split = read_split(tmp_path, 5000)
    assert 4000 < sum(map(len, [*split.train, *split.valid])) <= 5000


def test_documents_of_a_file_are_split_one_in_twenty(tmp_path: Path) -> None:
    documents = [f"\nDocument {i}\n" for i in range(100)]
    (tmp_path / "x.txt").write_text(END_OF_TEXT.join(documents))
    split = read_split(tmp_path / "x.txt", 1 << 20)
    assert split.valid == documents[19::20]
    assert sorted([*split.train, *split.valid]) == sorted(documents)


def test_end_of_a_plain_file_is_held_out_from_a_line_on(tmp_path: Path) -> None:
    text = "".join(f"{'word ' * random.Random(i).randrange(20)}\r\n" for i in range(500))
    (tmp_path / "x.txt").write_bytes(text.encode())
    split = read_split(tmp_path / "x.txt", 1 << 20)
    ((train,), (valid,)) = split.train, split.valid
    assert train + valid == text
    assert train.endswith("\n")
    assert 0.03 < len(valid) / len(text) < 0.06


def test_file_cut_inside_a_character_loses_only_that(tmp_path: Path) -> None:
    text = "naïve café\n" * 100
    (tmp_path / "x.txt").write_bytes(text.encode())
    limit = text.encode().index("ï".encode(), 1000) + 1
    split = read_split(tmp_path / "x.txt", limit)
    assert "".join([*split.train, *split.valid]) == text.encode()[: limit - 1].decode()


@pytest.mark.parametrize("content", [b"", b"word", b"\n" * 5])
def test_too_little_text_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(ValueError, match="corpus must hold enough UTF-8 text"):
        read_split(tmp_path / "x.txt", 1 << 20)


def test_invalid_utf8_in_a_file_is_refused_with_its_offset(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(b"good\n\xff\n" * 50)
    with pytest.raises(ValueError, match=r"x\.txt must be UTF-8: invalid byte at offset 5"):
        read_split(tmp_path / "x.txt", 1 << 20)


def test_standard_library_is_python_source_without_installed_packages() -> None:
    split = read_split(None, 4 << 20)
    assert (standard_library() / "os.py").exists()
    assert sum(map(len, split.train)) > 10 * sum(map(len, split.valid)) > 0
    assert not any("site-packages" in document[:200] for document in split.valid)
