"""Every step on web data beside its peers, on the same documents in one run: results/data.md.

    python benches/data_peers.py --peers-python PATH --pages FOLDER [FOLDER ...] [--write]

Peers (datatrove, trafilatura, datasketch, rensa, warcio, fastwarc, resiliparse) run in their own
interpreter; `make bench-data` makes it. A FOLDER holds WARC files; without any, the documents are
what RSLM_TEST_DATA has. A side is a process of its own for each step and text. Answers are
compared first, then the sides take turns; the measure is CPU seconds, all threads and children.
"""

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_inputs import Text, all_of, make_texts
from data_rows import ROWS, Row
from peer_table import commit, cpu_model, rate

from rslm import _rslm

BENCHES = Path(__file__).parent
RESULTS = BENCHES / "results" / "data.md"
N_TURNS = 3
VOCAB_SIZE = 8000


@dataclass
class Side:
    """A process that does one job on one text."""

    name: str
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    answer: Any = None
    n_bytes: int = 0
    problem: str = ""

    def start(self) -> None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        environment = os.environ | self.environment
        with tempfile.TemporaryFile() as complaints:
            self._process = subprocess.Popen(
                self.command, env=environment, stderr=complaints, **pipes
            )
            self.answer = self._ask().get("answer")
            if self.problem == "failed":
                complaints.seek(0)
                tail = complaints.read().decode(errors="replace").strip().splitlines()[-1:]
                self.problem = f"failed: {' '.join(tail)[:90]}"

    def measure(self) -> None:
        reply = self._ask()
        if "seconds" in reply:
            self.seconds.append(reply["seconds"])

    def _ask(self) -> dict[str, Any]:
        assert self._process.stdin
        assert self._process.stdout
        try:
            self._process.stdin.write("\n")
            self._process.stdin.flush()
            reply: dict[str, Any] = json.loads(self._process.stdout.readline())
        except (OSError, ValueError):
            self.problem = "failed"
            return {}
        self.n_bytes = reply.get("n_bytes", 0)
        self.problem = "not installed" if "missing" in reply else ""
        return reply

    def end(self) -> None:
        assert self._process.stdin
        assert self._process.stdout
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def ratio(self, ours: "Side") -> str:
        """How many times as fast as this one the other is; "" where one was not timed."""
        return f"{ours.speed / self.speed:.3g}x" if ours.speed and self.speed else ""

    @property
    def speed(self) -> float:
        """MB per CPU second of the fastest turn."""
        return self.n_bytes / 1e6 / min(self.seconds) if self.seconds else 0.0


def main() -> None:
    options = read_options()
    if _rslm.BUILD_PROFILE == "debug":
        sys.exit("error: only a release build is timed, this one is debug; run `make setup`")
    started = time.monotonic()
    options.cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.cache) as folder:
        cache = Path(folder)
        texts = list(make_texts(options.pages, options.data, options.megabytes, cache))
        prepare(texts, cache, options.peers_python)
        lines = list(measure_all(texts, options))
    report = "\n".join([*head(options, texts, time.monotonic() - started), *lines, "", *notes()])
    print(report)
    if options.write:
        RESULTS.write_text(report + "\n")


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--peers-python", default=sys.executable)
    parser.add_argument("--pages", type=Path, nargs="+", default=[], help="folders of WARC files")
    parser.add_argument("--data", type=Path, default=os.environ.get("RSLM_TEST_DATA"))
    parser.add_argument("--megabytes", type=float, default=10, help="of HTML of each folder")
    parser.add_argument("--rows", nargs="+", choices=[row.name for row in ROWS], metavar="ROW")
    parser.add_argument("--turns", type=int, default=N_TURNS)
    parser.add_argument("--cache", type=Path, default=BENCHES.parent / ".benchmarks")
    parser.add_argument("--write", action="store_true", help=f"write results/{RESULTS.name}")
    options = parser.parse_args()
    options.data = Path(options.data) if options.data else None
    if options.data is None and not options.pages:
        parser.error("name documents by --pages, or set RSLM_TEST_DATA")
    return options


def prepare(texts: Sequence[Text], cache: Path, python: str) -> None:
    """What both sides are given beside the documents: a tokenizer, a model, lists, questions."""
    from rslm import Tokenizer
    from rslm.data.language import default_model
    from rslm.files import END_OF_TEXT

    shutil.copy(default_model(), cache / "lid.176.ftz")
    asked = [python, str(BENCHES / "data_theirs.py"), "--lists", str(cache / "lists")]
    subprocess.run(asked, check=True)
    for text in texts:
        with (text.folder / "texts.jsonl").open(encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        write_questions(rows, text.folder / "evaluation.txt")
        write_urls(rows, cache / "lists", text.folder / "urls.json")
    files = [text.folder / "texts.jsonl" for text in texts]
    Tokenizer.train(files, VOCAB_SIZE, [END_OF_TEXT]).save(cache / "tokenizer.json", "hf")


def write_questions(rows: Sequence[dict[str, str]], path: Path) -> None:
    """Of every tenth document some words in a row, for decontamination to find."""
    words = [row["text"].split() for row in rows[::10]]
    path.write_text("".join(" ".join(each[20:60]) + "\n" for each in words if len(each) > 60))


def write_urls(rows: Sequence[dict[str, str]], lists: Path, path: Path) -> None:
    """The documents' addresses, and a page on every so many of the listed hosts."""
    urls = [row["url"] for row in rows if row["url"]][:2000]
    if (lists / "domains").exists():
        with (lists / "domains").open(encoding="utf-8", errors="ignore") as file:
            hosts = [line.strip() for number, line in enumerate(file) if number % 20_000 == 0]
        urls += [f"http://www.{host}/index.html?page={len(host)}" for host in hosts]
    path.write_text(json.dumps(urls))


def measure_all(texts: Sequence[Text], options: argparse.Namespace) -> Iterator[str]:
    """The table, a row for each step and text."""
    yield "| step | text | MB | rslm | peers | of datatrove | of the fastest | answers |"
    yield "|---|---|--:|--:|---|--:|--:|---|"
    together = all_of(texts, texts[0].folder.parent)
    for row in ROWS:
        if options.rows and row.name not in options.rows:
            continue
        for text in [together] if row.together else texts:
            line = measure(row, text, options)
            print(line, file=sys.stderr, flush=True)
            yield line


def measure(row: Row, text: Text, options: argparse.Namespace) -> str:
    """Compares the sides' answers, then times them in turns."""
    worker = [str(BENCHES / "data_worker.py")]
    given = [str(text.folder), str(row.megabytes)]
    ours = Side("rslm", [sys.executable, *worker, "data_ours", row.job, *given])
    theirs = []
    for name in row.peers:
        newer = Path(options.peers_python).parent.parent / "trafilatura"
        extra = {"PYTHONPATH": str(newer)} if name.startswith("trafilatura") else {}
        command = [options.peers_python, *worker, "data_theirs", name, *given]
        theirs.append(Side(name, command, extra))
    sides = [ours, *theirs]
    for side in sides:
        side.start()
    agreement = [agreement_of(row, ours, side) for side in theirs]
    for _ in range(options.turns):
        for side in sides:
            if not side.problem:
                side.measure()
    for side in sides:
        side.end()
    cells = [f"{short(s.name)} {s.problem or rate(s.speed)}" for s in theirs]
    ratios = [s.ratio(ours) for s in theirs if s.name.startswith("datatrove")][:1]
    ratios = [*(ratios or [""]), min((s.ratio(ours) for s in theirs), key=number, default="")]
    found = "; ".join(dict.fromkeys(filter(None, agreement)))
    figures = [f"{ours.n_bytes / 1e6:.2f}", ours.problem or rate(ours.speed), ", ".join(cells)]
    return f"| {' | '.join([row.title, text.name, *figures, *ratios, found])} |"


def agreement_of(row: Row, ours: Side, side: Side) -> str:
    """What the comparison says; a side whose answer is another is named and not timed."""
    if side.problem or ours.problem:
        return ""
    try:
        return row.compare(ours.answer, side.answer)
    except AssertionError as error:
        side.problem = f"differs: {error}"
        return ""


def number(ratio: str) -> float:
    return float(ratio.rstrip("x") or "inf")


def short(name: str) -> str:
    """The peer, and what it was told where it stands there twice."""
    peer, _, rest = name.partition(" ")
    told = {"fast": " (fast)", "sign, words given": " (words given)"}
    return peer + told.get(rest, "")


def head(options: argparse.Namespace, texts: Sequence[Text], seconds: float) -> list[str]:
    asked = [options.peers_python, str(BENCHES / "data_theirs.py"), "--versions"]
    done = subprocess.run(asked, capture_output=True, text=True, check=True)
    versions = ", ".join(f"{name} {version}" for name, version in json.loads(done.stdout).items())
    folders = " ".join(f"--pages {' '.join(f.name for f in options.pages)}".split())
    newer = Path(options.peers_python).parent.parent / "trafilatura"
    newer_versions = [path.name for path in newer.glob("trafilatura-*.dist-info")]
    alone = f"trafilatura alone {newer_versions[0][12:-10]}, " if newer_versions else ""
    return [
        "# Web data beside the peers",
        "",
        (__doc__ or "").partition("\n")[0].replace(": results/data.md.", "."),
        "",
        f"Command: `python benches/data_peers.py --peers-python ... {folders}`, "
        f"{seconds / 60:.0f} minutes.",
        f"Machine: {cpu_model()}, {commit()}, load average {os.getloadavg()[0]:.1f} at the end.",
        f"Versions: rslm {_rslm.VERSION}, {alone}{versions}.",
        "",
        *(f"- {text.describe()}" for text in texts),
        "",
    ]


def notes() -> list[str]:
    return [f"{row.title}: {row.note}" for row in ROWS if row.note]


if __name__ == "__main__":
    main()
