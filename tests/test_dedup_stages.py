"""Stages over shards: the result of the plain functions, whatever the shards, ranges and memory."""

import os
import random
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rslm.data.dedup import lsh, stages
from rslm.data.dedup.exact import find_exact_duplicates
from rslm.data.dedup.lines import (
    KeepLines,
    count_lines,
    drop_repeated,
    merge_line_counts,
    repeated_lines,
    split_lines,
)
from rslm.data.dedup.near_duplicates import PRESETS, MinHashOptions, find_near_duplicates
from rslm.data.dedup.stages import Clusters, LineMerge, RepeatedLines
from rslm.errors import FormatError

Shards = list[list[str]]

TEXTS = st.lists(
    st.sampled_from(["", "a", "b", "a\r", "é", "\u2028", "\ud800", "\x00", "a b c"]), max_size=6
).map("\n".join)
SHARDS = st.lists(st.lists(TEXTS, max_size=4), max_size=5)
LETTERS = st.lists(st.sampled_from("abcdefg"), max_size=6).map(" ".join)
LETTER_SHARDS = st.lists(st.lists(LETTERS, max_size=5), max_size=5)
OPTIONS = st.builds(
    MinHashOptions,
    n_hashes=st.just(12),
    n_bands=st.sampled_from([1, 3, 12]),
    ngram_words=st.integers(1, 2),
    jaccard_threshold=st.sampled_from([None, 0.3, 0.5, 1.0]),
    normalization=st.sampled_from(["course", "fineweb"]),
    short_documents=st.sampled_from(["whole", "none"]),
    seed=st.integers(0, 3),
)
# Of records of 16 to 32 bytes: one, three, all.
LIMITS = st.sampled_from([1, 100, 1 << 20])


@pytest.fixture(autouse=True, scope="module")
def _folders_in_memory() -> Iterator[None]:
    """Every stage syncs what it wrote, which here would wait for a disk a thousand times."""
    with pytest.MonkeyPatch.context() as patch:
        if os.path.isdir("/dev/shm"):
            patch.setattr(tempfile, "tempdir", "/dev/shm")
        yield


def name_of(shard: int, row: int) -> str:
    return f"{shard:02}-{row:02}"


def dedupe_lines(
    folder: Path, shards: Shards, keep: KeepLines, n_ranges: int, limit: int, draw: random.Random
) -> tuple[Shards, int, list[LineMerge]]:
    counts = [folder / f"counts-{shard}" for shard in range(len(shards))]
    numbers = list(range(len(shards)))
    draw.shuffle(numbers)
    n_lines = sum(
        stages.count_lines(shards[n], n, counts[n], n_ranges=n_ranges, memory_limit_bytes=limit)
        for n in numbers
    )
    merged = [folder / f"merged-{index}" for index in range(n_ranges)]
    found = []
    for index in range(n_ranges):
        draw.shuffle(counts)
        found.append(stages.merge_lines(counts, index, merged[index], n_ranges=n_ranges))
    draw.shuffle(merged)
    repeated = RepeatedLines(merged)
    rewritten = []
    for shard, texts in enumerate(shards):
        cut = draw.randint(0, len(texts))
        out = repeated.rewrite(texts[:cut], shard, 0, keep)
        out += repeated.rewrite(texts[cut:], shard, cut, keep)
        lines = [len(split_lines(t.encode("utf-8", "surrogatepass"))) for t in texts]
        kept = [len(split_lines(t.encode("utf-8", "surrogatepass"))) for t, _ in out]
        assert [n for _, n in out] == [a - b for a, b in zip(lines, kept, strict=True)]
        rewritten.append([text for text, _ in out])
    return rewritten, n_lines, found


@given(SHARDS, st.sampled_from(["none", "first"]), st.sampled_from([1, 2, 7]), LIMITS, st.randoms())
def test_lines_equal_the_reference(
    shards: Shards, keep: KeepLines, n_ranges: int, limit: int, draw: random.Random
) -> None:
    corpus = {
        name_of(shard, row): text.encode("utf-8", "surrogatepass")
        for shard, texts in enumerate(shards)
        for row, text in enumerate(texts)
    }
    counts = merge_line_counts(
        count_lines(name, split_lines(text)) for name, text in corpus.items()
    )
    repeated = repeated_lines(counts)
    with TemporaryDirectory() as folder:
        rewritten, n_lines, found = dedupe_lines(Path(folder), shards, keep, n_ranges, limit, draw)
        assert len(list(Path(folder).iterdir())) == len(shards) + n_ranges
    assert n_lines == sum(count.n for count in counts.values())
    assert sum(merge.n_lines for merge in found) == n_lines
    assert sum(merge.n_distinct for merge in found) == len(counts)
    assert sum(merge.n_repeated for merge in found) == len(repeated)
    assert sum(merge.n_copies for merge in found) == sum(counts[line].n for line in repeated)
    for shard, texts in enumerate(rewritten):
        for row, text in enumerate(texts):
            name = name_of(shard, row)
            expected = drop_repeated(name, split_lines(corpus[name]), repeated, keep=keep)
            assert text.encode("utf-8", "surrogatepass") == b"".join(expected)


def run_documents(
    folder: Path,
    shards: Shards,
    options: MinHashOptions | None,
    *,
    n_ranges: int = 1,
    limit: int = 1 << 20,
    draw: random.Random | None = None,
    keep: str = "first",
    seed: int = 0,
) -> tuple[Clusters, list[stages.Join], list[list[int]]]:
    """Signs, joins and clusters shards; what is dropped of each shard."""
    draw = draw or random.Random(0)
    files = [folder / f"signatures-{shard}" for shard in range(len(shards))]
    for shard, texts in enumerate(shards):
        size = {"n_ranges": n_ranges, "memory_limit_bytes": limit}
        if options is None:
            n = stages.sign_exact(texts, shard, files[shard], **size)
        else:
            n = stages.sign_minhash(texts, shard, files[shard], options=options, **size)
        assert n == len(texts)
    edges, joins = [], []
    for part in range(stages.n_parts(options, n_ranges)):
        edges.append(folder / f"edges-{part}")
        draw.shuffle(files)
        joins.append(stages.join(files, part, edges[-1], memory_limit_bytes=limit))
    draw.shuffle(edges)
    target = folder / "clusters"
    n_rows = [len(texts) for texts in shards]
    clusters = stages.cluster(edges, n_rows, target, keep=keep, seed=seed)  # type: ignore[arg-type]
    dropped = [stages.dropped_rows(target, shard).tolist() for shard in range(len(shards))]
    assert len(list(folder.iterdir())) == len(files) + len(edges) + 1
    return clusters, joins, dropped


def named(shards: Shards) -> list[tuple[str, str]]:
    return [
        (name_of(shard, row), text)
        for shard, texts in enumerate(shards)
        for row, text in enumerate(texts)
    ]


def check(shards: Shards, clusters: Clusters, dropped: list[list[int]], expected: object) -> None:
    """Against what the functions in memory find."""
    names = {name_of(shard, row) for shard, rows in enumerate(dropped) for row in rows}
    assert names == {name for cluster in expected.clusters for name in cluster.dropped}  # type: ignore[attr-defined]
    sizes: dict[int, int] = {}
    for cluster in expected.clusters:  # type: ignore[attr-defined]
        size = len(cluster.dropped) + 1
        sizes[size] = sizes.get(size, 0) + 1
    assert clusters.sizes == sizes
    assert clusters.n_dropped == len(names)
    assert clusters.n_documents == sum(map(len, shards))
    for example in clusters.examples:
        members = {name_of(*place) for place in example.members}
        (cluster,) = [c for c in expected.clusters if members <= {c.kept, *c.dropped}]  # type: ignore[attr-defined]
        assert name_of(*example.kept) == cluster.kept
        assert example.size == len(cluster.dropped) + 1
        assert len(members) == min(10, example.size)


@given(LETTER_SHARDS, OPTIONS, st.sampled_from([1, 2, 5]), LIMITS, st.randoms())
def test_near_duplicates_equal_those_in_memory(
    shards: Shards, options: MinHashOptions, n_ranges: int, limit: int, draw: random.Random
) -> None:
    expected = find_near_duplicates(named(shards), options, implementation="reference")
    with TemporaryDirectory() as folder:
        clusters, joins, dropped = run_documents(
            Path(folder), shards, options, n_ranges=n_ranges, limit=limit, draw=draw
        )
    check(shards, clusters, dropped, expected)
    assert sum(join.n_duplicate_pairs + join.n_copies for join in joins) >= clusters.n_dropped


@given(SHARDS, st.sampled_from([1, 2, 5]), LIMITS, st.randoms())
def test_exact_documents_equal_those_in_memory(
    shards: Shards, n_ranges: int, limit: int, draw: random.Random
) -> None:
    with TemporaryDirectory() as folder:
        clusters, joins, dropped = run_documents(
            Path(folder), shards, None, n_ranges=n_ranges, limit=limit, draw=draw
        )
    check(shards, clusters, dropped, find_exact_duplicates(named(shards)))
    assert sum(join.n_copies for join in joins) == clusters.n_dropped


def test_random_keeps_the_least_hash_of_seed_and_place(tmp_path: Path) -> None:
    shards = [["same", "other"], ["same"], ["same", "same"]]
    chosen = set()
    for seed in range(12):
        folder = tmp_path / str(seed)
        folder.mkdir()
        _, _, dropped = run_documents(folder, shards, None, keep="random", seed=seed)
        places = [(0, 0), (1, 0), (2, 0), (2, 1)]
        kept = min(places, key=lambda p: sha256(f"{seed}:{p[0]}:{p[1]}".encode()).digest())
        assert {(s, r) for s, rows in enumerate(dropped) for r in rows} == {*places} - {kept}
        chosen.add(kept)
    assert len(chosen) > 1


def texts_with_copies(n: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    texts = []
    for number in range(n):
        words = [draw.choice("abcdefghijklmnopqrst") + str(draw.randint(0, 99)) for _ in range(40)]
        texts.append(" ".join(words) + f"\nline {number % 5}\n")
        if number % 3 == 0:
            texts.append(texts[-1].replace("a", "b", 1))
    return texts


def test_files_are_the_same_bytes_whatever_the_memory_and_the_order(tmp_path: Path) -> None:
    shards = [texts_with_copies(40, seed % 2) for seed in range(4)]
    results = []
    for number, limit in enumerate((64, 5000, 1 << 20)):
        folder = tmp_path / str(number)
        folder.mkdir()
        options = replace(PRESETS["course"], n_bands=20)
        draw = random.Random(number)
        run_documents(folder, shards, options, n_ranges=2, limit=limit, draw=draw)
        dedupe_lines(folder, shards, "none", 2, limit, draw)
        results.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert results[0] == results[1] == results[2]
    assert len(results[0]) == 4 + 40 + 1 + 4 + 2


def test_more_files_than_are_open_at_a_time_are_merged(tmp_path: Path) -> None:
    shards = [[f"menu {shard % 9}\nown {shard}\n"] for shard in range(200)]
    rewritten, n_lines, _ = dedupe_lines(tmp_path, shards, "none", 1, 1 << 20, random.Random(0))
    assert rewritten == [[f"own {shard}\n"] for shard in range(200)]
    assert n_lines == 400
    folder = tmp_path / "documents"
    folder.mkdir()
    shards = [[f"page {'abcdefghi'[shard % 9]} of one site and no other"] for shard in range(200)]
    _, _, dropped = run_documents(folder, shards, PRESETS["fineweb"])
    assert dropped == [[] if shard < 9 else [0] for shard in range(200)]


def test_capped_buckets_are_counted_and_joined_by_their_representatives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lsh, "MAX_BUCKET", 5)
    monkeypatch.setattr(lsh, "N_REPRESENTATIVES", 2)
    options = MinHashOptions(n_hashes=1, n_bands=1, ngram_words=1, jaccard_threshold=0.3)
    shards = [[f"a{shard} b{row} c{row}" for row in range(40)] for shard in range(3)]
    expected = find_near_duplicates(named(shards), options, implementation="reference")
    clusters, joins, dropped = run_documents(tmp_path, shards, options)
    assert sum(join.n_capped_buckets for join in joins) == expected.n_capped_buckets
    check(shards, clusters, dropped, expected)


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


def test_no_shards_and_empty_shards(tmp_path: Path) -> None:
    assert stages.merge_lines([], 0, tmp_path / "m", n_ranges=1) == LineMerge(
        n_lines=0, n_distinct=0, n_repeated=0, n_copies=0
    )
    assert RepeatedLines([tmp_path / "m"]).rewrite(["a\n"], 0, 0, "none") == [("a\n", 0)]
    (tmp_path / "m").unlink()
    for options in (None, *PRESETS.values()):
        clusters, _, dropped = run_documents(tmp_path, [], options)
        assert (clusters.n_documents, dropped) == (0, [])
        for path in tmp_path.iterdir():
            path.unlink()
        _, _, dropped = run_documents(tmp_path, [[], ["a"], []], options)
        assert dropped == [[], [], []]
        for path in tmp_path.iterdir():
            path.unlink()


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
