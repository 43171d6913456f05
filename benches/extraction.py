"""Compare extractors on pages with gold text: benches/results/extraction.md.

The pages are ScrapingHub's 181 articles (`web/articles.tar` of RSLM_TEST_DATA). Every extractor
gets the same decoded pages, in turns within one run; peers run in an environment of their own.
"""

from __future__ import annotations

import argparse
import gzip
import importlib
import importlib.metadata
import io
import json
import os
import platform
import random
import re
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "extraction.md"
OURS = ("readability", "resiliparse-main", "resiliparse")
PEERS = ("trafilatura", "trafilatura fast")
_WORD = re.compile(r"\w+")
_SHINGLE_WORDS = 4


@dataclass(frozen=True)
class Page:
    html: str
    gold: str


@dataclass(frozen=True)
class Counts:
    """Shares of true, false and missing shingles of a page; they sum to 1."""

    true: float
    false: float
    missing: float


def read_pages(data: Path) -> list[Page]:
    """The articles with their gold text, decoded by rslm."""
    from rslm.data.decoding import decode_page

    with tarfile.open(data / "web" / "articles.tar") as tar:
        members = {member.name: member for member in tar.getmembers()}

        def content(name: str) -> bytes:
            file = tar.extractfile(members[name])
            assert file is not None
            return file.read()

        gold = json.loads(content("articles/ground-truth.json"))
        return [
            Page(
                decode_page(gzip.decompress(content(f"articles/html/{name}.html.gz")))[0],
                article["articleBody"],
            )
            for name, article in sorted(gold.items())
        ]


def shingles(text: str) -> Counter[tuple[str, ...]]:
    """The multiset of the text's word 4-grams; a shorter text is one."""
    words = _WORD.findall(text)
    starts = range(max(len(words) - _SHINGLE_WORDS + 1, 1)) if words else ()
    return Counter(tuple(words[start : start + _SHINGLE_WORDS]) for start in starts)


def compare(gold: str, found: str) -> Counts:
    expected, given = shingles(gold), shingles(found)
    true = (expected & given).total()
    counts = (true, given.total() - true, expected.total() - true)
    total = sum(counts) or 1
    return Counts(*(count / total for count in counts))


def precision_recall_f1(pages: Sequence[Counts]) -> tuple[float, float, float]:
    """Means over pages of precision and recall, and the F1 of the two.

    Nothing found is a precision of 0 and, of nothing to find, one of 1; likewise for recall.
    """
    precisions = [_share(page.true, page.false, page.missing) for page in pages]
    recalls = [_share(page.true, page.missing, page.false) for page in pages]
    precision, recall = sum(precisions) / len(pages), sum(recalls) / len(pages)
    both = precision + recall
    return precision, recall, 2 * precision * recall / both if both else 0.0


def _share(true: float, wrong: float, others: float) -> float:
    if true + wrong == 0:
        return float(others == 0)
    return true / (true + wrong)


def f1_error(pages: Sequence[Counts], *, n_samples: int = 500, seed: int = 0) -> float:
    """The standard error of F1 over bootstrap samples of the pages."""
    chosen = random.Random(seed)
    scores = [precision_recall_f1(chosen.choices(pages, k=len(pages)))[2] for _ in range(n_samples)]
    mean = sum(scores) / n_samples
    return float((sum((score - mean) ** 2 for score in scores) / (n_samples - 1)) ** 0.5)


def extractor_named(name: str) -> Callable[[str], str]:
    """The function of an extractor, ours or a peer's."""
    if name in OURS:
        from rslm.data.extract import extract_batch

        return lambda html: extract_batch([html], extractor=name)[0].text  # type: ignore[arg-type]
    trafilatura: Any = importlib.import_module("trafilatura")
    fast = name.endswith("fast")
    return lambda html: trafilatura.extract(html, include_comments=False, fast=fast) or ""


def serve(names: Sequence[str]) -> None:
    """Extracts pages that come over standard input, one JSON line each, timed here."""
    extractors = {name: extractor_named(name) for name in names}
    print(json.dumps(versions()), flush=True)
    for line in sys.stdin:
        name, html = json.loads(line)
        start = time.process_time()
        try:
            text = extractors[name](html)
        except Exception:
            text = ""
        print(json.dumps([text, time.process_time() - start]), flush=True)


def versions() -> dict[str, str]:
    found = {}
    for package in ("rslm", "resiliparse", "trafilatura", "lxml"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


class Worker:
    """A process that extracts; the time is its own CPU time."""

    def __init__(self, python: str, names: Sequence[str]) -> None:
        command = [python, __file__, "--serve", *names]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.versions: dict[str, str] = json.loads(self._line())

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def extract(self, name: str, html: str) -> tuple[str, float]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([name, html]) + "\n")
        self._process.stdin.flush()
        text, seconds = json.loads(self._line())
        return text, seconds

    def close(self) -> None:
        self._process.communicate()


def measure(pages: Sequence[Page], workers: dict[str, Worker], n_passes: int) -> dict[str, Any]:
    """Of each extractor its counts for each page, and the seconds of its fastest pass."""
    counts: dict[str, list[Counts]] = {name: [] for name in workers}
    seconds = {name: [0.0] * n_passes for name in workers}
    for number in range(n_passes):
        for page in pages:
            for name, worker in workers.items():
                text, taken = worker.extract(name, page.html)
                seconds[name][number] += taken
                if number == 0:
                    counts[name].append(compare(page.gold, text))
    return {name: (counts[name], min(seconds[name])) for name in workers}


def table(pages: Sequence[Page], measured: dict[str, Any]) -> str:
    n_bytes = sum(len(page.html.encode()) for page in pages)
    out = io.StringIO()
    out.write("| extractor | precision | recall | F1 | ms per page | MB of HTML per CPU s |\n")
    out.write("|---|--:|--:|--:|--:|--:|\n")
    for name, (counts, seconds) in measured.items():
        precision, recall, f1 = precision_recall_f1(counts)
        out.write(
            f"| {name} | {precision:.3f} | {recall:.3f} | {f1:.3f} ± {f1_error(counts):.3f} "
            f"| {1000 * seconds / len(pages):.1f} | {n_bytes / 1e6 / seconds:.1f} |\n"
        )
    return out.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers-python", help="interpreter that has trafilatura")
    parser.add_argument("--data", type=Path, default=os.environ.get("RSLM_TEST_DATA"))
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    parser.add_argument("--serve", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve)
        return
    if arguments.data is None:
        parser.error("name the data by --data or RSLM_TEST_DATA")
    pages = read_pages(Path(arguments.data))
    ours = Worker(sys.executable, OURS)
    workers = dict.fromkeys(OURS, ours)
    if arguments.peers_python:
        workers |= dict.fromkeys(PEERS, Worker(arguments.peers_python, PEERS))
    report = table(pages, measure(pages, workers, arguments.passes))
    used = {
        key: value for worker in set(workers.values()) for key, value in worker.versions.items()
    }
    for worker in set(workers.values()):
        worker.close()
    note = (
        f"\n{len(pages)} pages, {sum(len(page.html.encode()) for page in pages) / 1e6:.1f} MB. "
        f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, "
        + ", ".join(f"{key} {value}" for key, value in sorted(used.items()))
        + ".\n"
    )
    print(report + note)
    if arguments.write:
        text = RESULTS.read_text() if RESULTS.exists() else ""
        start, mark, rest = text.partition("<!-- table -->\n")
        _, end_mark, end = rest.partition("<!-- end of table -->\n")
        RESULTS.write_text(start + mark + report + note + end_mark + end)


if __name__ == "__main__":
    main()
