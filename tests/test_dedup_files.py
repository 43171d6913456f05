"""Whole files in and out: names, bytes, refusals, and the functions of the course."""

import inspect
import random
import sys
from itertools import permutations
from pathlib import Path

import pytest

from rslm.data.dedup.course import exact_line_deduplication, minhash_deduplication
from rslm.data.dedup.files import deduplicate_lines, deduplicate_minhash

OPTIONS = {"n_hashes": 100, "n_bands": 20, "ngram_words": 3}


def write(folder: Path, files: dict[str, bytes]) -> list[Path]:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in files]


def read(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def licence(holder: str) -> str:
    """A text of 190 words, of which few are the holder's."""
    draw = random.Random(0)
    body = [draw.choice(["grant", "use", "copy", "sell", "merge", "notice"]) for _ in range(180)]
    return f"Copyright (c) {holder}\n\n" + " ".join(f"{w}{i}" for i, w in enumerate(body)) + "\n"


LINES = {
    "b.txt": b"menu\n\ntwo\r\nfooter",
    "a.txt": b"menu\none\n\nfooter\n",
    "c.txt": b"menu\nfooter\n",
    "d.txt": b"",
}


def test_course_s_lines_leave_no_copy(tmp_path: Path) -> None:
    files = write(tmp_path / "in", LINES)
    assert exact_line_deduplication(files, tmp_path / "out" / "deep") is None
    assert read(tmp_path / "out" / "deep") == {
        "a.txt": b"one\n",
        "b.txt": b"two\r\n",
        "c.txt": b"",
        "d.txt": b"",
    }


def test_lines_keep_first_and_count(tmp_path: Path) -> None:
    files = write(tmp_path / "in", LINES)
    for order in permutations(files):
        report = deduplicate_lines(list(order), tmp_path / "out", keep="first")
        assert read(tmp_path / "out") == {
            "a.txt": b"menu\none\n\nfooter\n",
            "b.txt": b"two\r\n",
            "c.txt": b"",
            "d.txt": b"",
        }
        assert (report.n_lines, report.n_kept, report.n_repeated) == (10, 5, 3)


def test_course_s_minhash_keeps_one_of_near_copies_unchanged(tmp_path: Path) -> None:
    texts = {
        "react.txt": licence("Facebook, Inc.").encode(),
        "rails.txt": licence("2005-2024 David Heinemeier Hansson").upper().encode(),
        "other.txt": b"Quite \xff\xfe another text\r\n",
        "empty.txt": b"",
    }
    files = write(tmp_path / "in", texts)
    for number, order in enumerate(permutations(files)):
        out = tmp_path / f"out-{number}"
        assert minhash_deduplication(list(order), 500, 50, 5, 0.8, out) is None
        kept = ("empty.txt", "other.txt", "rails.txt")
        assert read(out) == {name: texts[name] for name in kept}


def test_course_s_functions_have_its_arguments() -> None:
    lines = list(inspect.signature(exact_line_deduplication).parameters)
    assert lines == ["input_files", "output_directory"]
    assert list(inspect.signature(minhash_deduplication).parameters) == [
        *["input_files", "num_hashes", "num_bands", "ngrams"],
        *["jaccard_threshold", "output_directory"],
    ]


def test_minhash_tells_what_it_found_and_keeps_at_random_by_seed(tmp_path: Path) -> None:
    files = write(tmp_path / "in", {f"{n}.txt": licence(f"holder {n}").encode() for n in range(4)})
    kept = set()
    for seed in range(12):
        found = deduplicate_minhash(
            files, tmp_path / f"{seed}", **OPTIONS, keep="random", seed=seed
        )
        assert list(read(tmp_path / f"{seed}")) == list(found.kept)
        kept.add(found.kept)
    # The chance that seeds choose one of four alike twelve times is 4^-11.
    assert len(kept) > 1


def test_outputs_from_before_are_replaced_or_taken_away_and_others_stay(tmp_path: Path) -> None:
    files = write(tmp_path / "in", {"a": b"same text", "b": b"same text"})
    write(tmp_path / "out", {"a": b"old", "b": b"old", "z": b"not ours"})
    deduplicate_minhash(files, tmp_path / "out", **OPTIONS)
    assert read(tmp_path / "out") == {"a": b"same text", "z": b"not ours"}
    deduplicate_lines(files, tmp_path / "out")
    assert read(tmp_path / "out") == {"a": b"", "b": b"", "z": b"not ours"}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_names_that_are_no_utf8_are_names(tmp_path: Path) -> None:
    files = write(tmp_path / "in", {"a\udcff": b"same text", "b\udcff": b"same text"})
    found = deduplicate_minhash(files, tmp_path / "out", **OPTIONS, keep="random")
    assert tuple(read(tmp_path / "out")) == found.kept
    deduplicate_lines(files, tmp_path / "lines")
    assert len(read(tmp_path / "lines")) == 2


@pytest.mark.parametrize("method", ["lines", "minhash"])
def test_refusals_leave_nothing_behind(tmp_path: Path, method: str) -> None:
    def run(files: list[Path], out: Path) -> None:
        if method == "lines":
            deduplicate_lines(files, out)
        else:
            deduplicate_minhash(files, out, **OPTIONS)

    files = write(tmp_path / "in", {"a": b"x\nx\n", "b": b"x\nx\n"})
    twin = write(tmp_path / "other", {"a": b"y\n"})
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=r"must differ in their names.*/in/a and .*/other/a"):
        run([*files, *twin], tmp_path / "out")
    with pytest.raises(ValueError, match="output_directory must not be where the files are"):
        run(files, tmp_path / "other" / ".." / "in")
    with pytest.raises(ValueError, match="output_directory must not be where"):
        run([*twin, files[1]], tmp_path / "in")
    with pytest.raises(FileNotFoundError):
        run([*files, tmp_path / "missing"], tmp_path / "out")
    assert sorted(tmp_path.rglob("*")) == before
    assert read(tmp_path / "in") == {"a": b"x\nx\n", "b": b"x\nx\n"}


def test_bad_options_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="n_bands must divide n_hashes"):
        minhash_deduplication([tmp_path / "missing"], 100, 7, 5, 0.8, tmp_path / "out")
    with pytest.raises(ValueError, match="keep must be"):
        deduplicate_lines([tmp_path / "missing"], tmp_path / "out", keep="all")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_no_files_make_an_empty_folder(tmp_path: Path) -> None:
    deduplicate_lines([], tmp_path / "out")
    minhash_deduplication([], 100, 10, 5, 0.8, tmp_path / "out")
    assert read(tmp_path / "out") == {}
