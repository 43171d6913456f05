"""Files of the stages of deduplication: written whole or not at all, refused if damaged."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pipelines import texts_with_copies

from rslm.data.dedup import stages
from rslm.data.dedup.near_duplicates import PRESETS
from rslm.data.dedup.stages import RepeatedLines
from rslm.errors import FormatError


def test_writing_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    def broken() -> Iterator[str]:
        yield "a text\n"
        raise RuntimeError("no more")

    target = tmp_path / "target"
    target.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="no more"):
        stages.count_lines(broken(), 0, target, n_ranges=1, memory_limit_bytes=1)
    with pytest.raises(RuntimeError, match="no more"):
        stages.sign_minhash(broken(), 0, target, options=PRESETS["course"], n_ranges=1)
    with pytest.raises(RuntimeError, match="no more"):
        stages.sign_exact(broken(), 0, target, n_ranges=1)
    with pytest.raises(FileNotFoundError, match="missing"):
        stages.merge_lines([tmp_path / "missing"], 0, target, n_ranges=1)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        stages.count_lines(["a"], 0, tmp_path / "nowhere" / "x", n_ranges=1)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"target": b"old"}


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    one, two, other = tmp_path / "one", tmp_path / "two", tmp_path / "other"
    stages.count_lines(["a"], 0, one, n_ranges=2)
    stages.count_lines(["a"], 0, two, n_ranges=2)
    stages.count_lines(["a"], 1, other, n_ranges=3)
    with pytest.raises(ValueError, match=r"must be of different shards, got shard 0 in .*one and"):
        stages.merge_lines([one, two], 0, tmp_path / "x", n_ranges=2)
    with pytest.raises(ValueError, match=r"range 0 of 2 must be one of those .*got 3"):
        stages.merge_lines([one, other], 0, tmp_path / "x", n_ranges=2)
    with pytest.raises(ValueError, match="range 2 of 2"):
        stages.merge_lines([one], 2, tmp_path / "x", n_ranges=2)
    for index in range(2):
        stages.merge_lines([one], index, tmp_path / f"merged-{index}", n_ranges=2)
    for merged in ([], [tmp_path / "merged-0"], [tmp_path / "merged-0"] * 2):
        with pytest.raises(ValueError, match="merged must be one file of each"):
            RepeatedLines(merged)
    options = PRESETS["course"]
    stages.sign_minhash(["a"], 0, one, options=options, n_ranges=1)
    stages.sign_minhash(["a"], 1, two, options=replace(options, seed=1), n_ranges=1)
    with pytest.raises(ValueError, match="the same options and n_ranges"):
        stages.join([one, two], 0, tmp_path / "x")
    with pytest.raises(ValueError, match="different shards"):
        stages.join([one, one], 0, tmp_path / "x")
    with pytest.raises(ValueError, match="part must be below 10, got 10"):
        stages.join([one], 10, tmp_path / "x")
    for n_ranges in (0, 2**16 + 1):
        with pytest.raises(ValueError, match="n_ranges must be between 1 and 65536"):
            stages.sign_exact([], 0, one, n_ranges=n_ranges)
    with pytest.raises(ValueError, match="keep must be"):
        stages.cluster([], [], tmp_path / "x", keep="last", seed=0)  # type: ignore[arg-type]
    stages.cluster([], [3], tmp_path / "clusters", keep="first", seed=0)
    with pytest.raises(ValueError, match=r"shard must be below 1.* got 1"):
        stages.dropped_rows(tmp_path / "clusters", 1)
    # One kind of file for another.
    with pytest.raises(FormatError, match=r"one: a file of line counts must hold its kind"):
        stages.merge_lines([one], 0, tmp_path / "x", n_ranges=1)
    # Edges that name more documents than there are.
    stages.sign_exact(["a", "a"], 0, one, n_ranges=1)
    stages.join([one], 0, tmp_path / "edges")
    with pytest.raises(FormatError, match="edges: must hold documents of the shards"):
        stages.cluster([tmp_path / "edges"], [1], tmp_path / "x", keep="first", seed=0)


def _made(folder: Path) -> dict[str, Callable[[Path], object]]:
    """Files of each kind, and what reads each."""
    texts = texts_with_copies(6, 0)
    options = replace(PRESETS["course"], n_hashes=20, n_bands=20)
    stages.count_lines(texts, 0, folder / "counts", n_ranges=1)
    stages.merge_lines([folder / "counts"], 0, folder / "repeated", n_ranges=1)
    stages.sign_exact([*texts, *texts], 0, folder / "exact", n_ranges=1)
    stages.sign_minhash([*texts, *texts], 0, folder / "minhash", options=options, n_ranges=1)
    stages.join([folder / "exact"], 0, folder / "edges")
    n_rows = [2 * len(texts)]
    stages.cluster([folder / "edges"], n_rows, folder / "clusters", keep="first", seed=0)
    out = folder / "out"

    def merge(path: Path) -> object:
        stages.merge_lines([path], 0, out, n_ranges=1)
        return out.read_bytes()

    def rewrite(path: Path) -> object:
        return RepeatedLines([path]).rewrite(texts, 0, 0, "none")

    def join(path: Path) -> object:
        stages.join([path], 0, out)
        return out.read_bytes()

    def cluster(path: Path) -> object:
        return stages.cluster([path], n_rows, out, keep="first", seed=0)

    def dropped(path: Path) -> object:
        return stages.dropped_rows(path, 0).tolist()

    return {
        "counts": merge,
        "repeated": rewrite,
        "exact": join,
        "minhash": join,
        "edges": cluster,
        "clusters": dropped,
    }


def test_a_file_that_is_cut_or_changed_is_refused_or_not_read_there(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for name, read in _made(tmp_path).items():
        whole = (tmp_path / name).read_bytes()
        before = read(tmp_path / name)
        path = tmp_path / "damaged"
        n_refused = 0
        for place in draw.integers(0, len(whole), 60).tolist():
            path.write_bytes(whole[:place])
            with pytest.raises(FormatError, match=r"damaged.* at byte \d+"):
                read(path)
            changed = bytearray(whole)
            changed[place] ^= 1 << int(draw.integers(8))
            path.write_bytes(changed)
            try:
                assert read(path) == before
            except FormatError:
                n_refused += 1
        # All else of the signatures is of other parts, or of sets that are not compared.
        assert n_refused > (50 if name != "minhash" else 1)
        path.write_bytes(b"")
        with pytest.raises(FormatError, match=r"damaged.*at byte 0"):
            read(path)


def test_a_damaged_set_of_shingles_is_refused(tmp_path: Path) -> None:
    words = [f"w{number}" for number in range(300)]
    texts = [" ".join(words), " ".join([*words[:-1], "x"])]
    # Bands of one row: the first one is shared with a chance of 295 to 297.
    options = replace(PRESETS["course"], n_bands=100)
    stages.sign_minhash(texts, 0, tmp_path / "s", options=options, n_ranges=1)
    assert stages.join([tmp_path / "s"], 0, tmp_path / "e").n_duplicate_pairs == 1
    whole = (tmp_path / "s").read_bytes()
    for place in (8, 1000, 8 + 2 * (296 * 8 + 8) + 5):
        changed = bytearray(whole)
        changed[place] ^= 1
        (tmp_path / "s").write_bytes(changed)
        with pytest.raises(FormatError, match=r"s: must hold a (set of shingles|row) at byte \d+"):
            stages.join([tmp_path / "s"], 0, tmp_path / "e")
