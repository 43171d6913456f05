"""Peak memory of the stages of deduplication on made-up shards, beside the bound they state.

    python benches/web_dedup_memory.py [--megabytes 300] [--memory-limit-megabytes 64]

Each stage runs in a process of its own, whose peak is compared with that of one that only
imports. Documents are made by a seed while they are read, of some 1,200 bytes and fewer copies
than originals; lines are drawn so that a third of them are repeated.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

N_SHARDS = 4
N_RANGES = 4
MEGABYTE = 1 << 20


def make_texts(shard: int, n_bytes: int) -> Iterator[str]:
    """Lines of made-up words, of which some come again and again, and near-copies of pages."""
    draw = random.Random(shard)
    words = [
        "".join(draw.choices("abcdefghiklmnoprstuw", k=draw.randint(2, 9))) for _ in range(5000)
    ]
    menu = [" ".join(draw.choices(words, k=8)) for _ in range(2000)]
    last: list[str] = []
    while n_bytes > 0:
        if last and draw.random() < 0.3:
            lines = [*last[:-1], " ".join(draw.choices(words, k=3))]
        else:
            lines = [
                draw.choice(menu) if draw.random() < 0.3 else " ".join(draw.choices(words, k=10))
                for _ in range(20)
            ]
        last = lines
        text = "\n".join(lines) + "\n"
        n_bytes -= len(text)
        yield text


def stage(job: str, folder: Path, n_bytes: int, limit: int) -> dict[str, Any]:
    from rslm.data.dedup import stages
    from rslm.data.dedup.near_duplicates import PRESETS

    options = PRESETS["course"]
    name, _, number = job.partition(" ")
    shard = int(number or 0)
    shards = range(N_SHARDS)
    if name == "import":
        return {}
    if name == "count":
        n = stages.count_lines(
            make_texts(shard, n_bytes),
            shard,
            folder / f"c{shard}",
            n_ranges=N_RANGES,
            memory_limit_bytes=limit,
        )
        return {"lines": n, "stated": limit + 16 * MEGABYTE}
    if name == "merge":
        counts = [folder / f"c{shard}" for shard in shards]
        found = stages.merge_lines(counts, shard, folder / f"m{shard}", n_ranges=N_RANGES)
        return {"repeated": found.n_repeated, "stated": 16 * MEGABYTE}
    if name == "rewrite":
        repeated = stages.RepeatedLines([folder / f"m{part}" for part in range(N_RANGES)])
        n_removed = 0
        for row, text in enumerate(make_texts(shard, n_bytes)):
            n_removed += repeated.rewrite([text], shard, row, "none")[0][1]
        mapped = sum((folder / f"m{part}").stat().st_size for part in range(N_RANGES))
        return {"removed": n_removed, "stated": mapped + 16 * MEGABYTE}
    if name == "sign":
        n = stages.sign_minhash(
            make_texts(shard, n_bytes),
            shard,
            folder / f"s{shard}",
            options=options,
            n_ranges=N_RANGES,
            memory_limit_bytes=limit,
        )
        (folder / f"n{shard}").write_text(str(n))
        return {"documents": n, "stated": limit + 100 * n + 16 * MEGABYTE}
    if name == "join":
        signatures = [folder / f"s{shard}" for shard in shards]
        n_links = 0
        for part in range(shard, stages.n_parts(options, N_RANGES), N_RANGES):
            found_links = stages.join(
                signatures, part, folder / f"e{part}", memory_limit_bytes=limit
            )
            n_links += found_links.n_duplicate_pairs
        return {"links": n_links, "stated": limit + 16 * MEGABYTE}
    n_rows = [int((folder / f"n{shard}").read_text()) for shard in shards]
    edges = [folder / f"e{part}" for part in range(stages.n_parts(options, N_RANGES))]
    clusters = stages.cluster(edges, n_rows, folder / "k", keep="first", seed=0)
    return {"dropped": clusters.n_dropped, "stated": 8 * sum(n_rows) + 16 * MEGABYTE}


def run(job: str, options: argparse.Namespace, folder: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--job", job, "--folder", folder]
    command += ["--megabytes", str(options.megabytes)]
    command += ["--memory-limit-megabytes", str(options.memory_limit_megabytes)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def main() -> int:
    """Runs all stages; 1 if one takes more than it states."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=300)
    parser.add_argument("--memory-limit-megabytes", type=int, default=64)
    parser.add_argument("--job")
    parser.add_argument("--folder")
    options = parser.parse_args()
    limit = options.memory_limit_megabytes * MEGABYTE
    if options.job:
        n_bytes = options.megabytes * MEGABYTE // N_SHARDS
        answer = stage(options.job, Path(options.folder), n_bytes, limit)
        usage = resource.getrusage(resource.RUSAGE_SELF)
        peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        print(json.dumps({**answer, "peak": peak, "seconds": usage.ru_utime + usage.ru_stime}))
        return 0
    n_over = 0
    with tempfile.TemporaryDirectory() as folder:
        base = run("count 0", argparse.Namespace(megabytes=0, memory_limit_megabytes=1), folder)
        start = time.monotonic()
        for name in ("count", "merge", "rewrite", "sign", "join", "cluster"):
            numbers = range(1 if name == "cluster" else N_SHARDS)
            found = [run(f"{name} {number}", options, folder) for number in numbers]
            worst = max(found, key=lambda answer: answer["peak"] - answer["stated"])
            used = worst["peak"] - base["peak"]
            n_over += used > worst["stated"]
            others = {k: sum(f[k] for f in found) for k in worst if k not in ("peak", "stated")}
            print(
                f"{name:8} peak {used / MEGABYTE:7.1f} MB above an empty stage's, "
                f"stated {worst['stated'] / MEGABYTE:7.1f} MB, {others}"
            )
        seconds = time.monotonic() - start
        print(f"{options.megabytes} MB in {seconds:.0f} s; {n_over} above their bound")
    return int(n_over > 0)


if __name__ == "__main__":
    raise SystemExit(main())
