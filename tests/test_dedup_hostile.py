"""Texts made to be slow or large: linear, capped and counted, never a crash."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rslm import _rslm
from rslm.data.dedup import lsh, stages
from rslm.data.dedup.files import deduplicate_lines
from rslm.data.dedup.near_duplicates import PRESETS, MinHashOptions

MB = 1 << 20


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


PIECES = {
    "letter": "a",
    "mark": "\u0301",
    "marks of many classes": "\u0301\u0316\u0345\u0334\u05b0\u093c",
    "spacing marks to be put in order": "\U0001d165\u302e\U0001d16d\U00016ff0",
    "sigma": "Σ",
    "sigmas among ignorable": "Σ" + "'" * 50,
    "digit": "7",
    "numbers": "1.1.",
    "punctuation": "@",
    "blank": " ",
    "control": "\x00",
    "Hangul": "각",
    "surrogate": "\ud800",
    "words of marks": "\u0301 ",
}


@pytest.mark.parametrize("rule", ["course", "fineweb"])
@pytest.mark.parametrize("piece", PIECES.values(), ids=PIECES)
def test_ten_megabytes_of_one_thing_are_normalised_in_linear_time(piece: str, rule: str) -> None:
    n = 10 * MB // len(piece.encode("utf-8", "surrogatepass"))
    small = min(seconds(lambda: _rslm.normalize_texts([piece * (n // 10)], rule)) for _ in range(2))
    large = seconds(lambda: _rslm.normalize_texts([piece * n], rule))
    # Ten times the text; a cost of its square would take a hundred times as long.
    assert large < 40 * small + 0.2


def test_one_long_line_of_ignorable_characters_is_looked_through_twice_at_most() -> None:
    text = "aΣ" + "\u0301" * (4 * MB) + "Σ"
    assert seconds(lambda: _rslm.normalize_texts([text], "course")) < 5


@pytest.mark.parametrize("preset", ["course", "fineweb"])
def test_documents_of_one_thing_are_signed(tmp_path: Path, preset: str) -> None:
    texts = [piece * (MB // 4) for piece in PIECES.values()] + ["a " * MB, ". " * MB, ""]
    options = PRESETS[preset]
    assert stages.sign_minhash(texts, 0, tmp_path / "s", options=options, n_ranges=1) == len(texts)
    found = stages.join([tmp_path / "s"], 0, tmp_path / "e")
    assert found.n_capped_buckets == 0


@pytest.mark.slow  # 64 MB in one line, thrice.
def test_a_line_of_64_mb_is_a_line(tmp_path: Path) -> None:
    line = "x" * (64 * MB)
    assert stages.count_lines([line, line + "\n"], 0, tmp_path / "c", n_ranges=1) == 2
    assert stages.merge_lines([tmp_path / "c"], 0, tmp_path / "m", n_ranges=1).n_repeated == 1
    repeated = stages.RepeatedLines([tmp_path / "m"])
    assert repeated.rewrite([line], 0, 0, "none") == [("", 1)]
    (tmp_path / "a").write_text(line)
    (tmp_path / "b").write_text("short\n" + line + "\n")
    report = deduplicate_lines([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    assert (report.n_lines, report.n_kept) == (3, 1)
    assert (tmp_path / "out" / "b").read_bytes() == b"short\n"


@pytest.mark.slow  # A million documents.
@pytest.mark.parametrize("options", [None, *PRESETS.values()], ids=["exact", "course", "fineweb"])
def test_a_million_identical_documents_leave_one(
    tmp_path: Path, options: MinHashOptions | None
) -> None:
    n = 1_000_000
    text = "one page that a site serves a million times over\n"
    edges = []
    for shard in range(2):
        target = tmp_path / f"s{shard}"
        texts = (text for _ in range(n // 2))
        if options is None:
            stages.sign_exact(texts, shard, target, n_ranges=1)
        else:
            stages.sign_minhash(texts, shard, target, options=options, n_ranges=1)
    files = [tmp_path / "s0", tmp_path / "s1"]
    for part in range(stages.n_parts(options, 1)):
        edges.append(tmp_path / f"e{part}")
        stages.join(files, part, edges[-1])
    found = stages.cluster(edges, [n // 2, n // 2], tmp_path / "c", keep="first", seed=0)
    assert found.sizes == {n: 1}
    assert found.n_dropped == n - 1
    assert len(stages.dropped_rows(tmp_path / "c", 0)) == n // 2 - 1


@pytest.mark.slow  # Two million lines.
def test_a_million_empty_lines_are_one_line(tmp_path: Path) -> None:
    n = 1_000_000
    texts = ["\n" * n, *["\n"] * n]
    assert stages.count_lines(texts, 0, tmp_path / "c", n_ranges=1, memory_limit_bytes=MB) == 2 * n
    merge = stages.merge_lines([tmp_path / "c"], 0, tmp_path / "m", n_ranges=1)
    assert (merge.n_repeated, merge.n_copies) == (1, 2 * n)
    repeated = stages.RepeatedLines([tmp_path / "m"])
    assert repeated.rewrite(texts[:2], 0, 0, "first") == [("\n", n - 1), ("", 1)]


@pytest.mark.slow  # A bucket of a million, compared with its representatives.
@pytest.mark.timeout(300)
def test_a_bucket_of_a_million_is_capped_and_counted(tmp_path: Path) -> None:
    # The one hash of a document is that of the word with the least, which nearly all share.
    options = MinHashOptions(n_hashes=1, n_bands=1, ngram_words=1, jaccard_threshold=0.9)
    n = 1 << 20
    words = [f"common{number}" for number in range(200)]
    texts = (" ".join([*words[:3], f"own{number}"]) for number in range(n))
    stages.sign_minhash(texts, 0, tmp_path / "s", options=options, n_ranges=1)
    work = lambda: found.append(stages.join([tmp_path / "s"], 0, tmp_path / "e"))  # noqa: E731
    found: list[stages.Join] = []
    used = seconds(work)
    assert found[0].n_capped_buckets >= 1
    assert found[0].largest_bucket > lsh.MAX_BUCKET
    assert found[0].n_candidate_pairs <= lsh.N_REPRESENTATIVES * n + lsh.MAX_BUCKET * n
    assert used < 200
