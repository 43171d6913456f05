"""Stages over shards: the result of the plain functions, whatever the shards, ranges and memory."""

import os
import random
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pipelines import texts_with_copies

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
