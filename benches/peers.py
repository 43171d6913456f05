"""One table: rslm beside every installed peer, answers compared before anything is timed.

    python benches/peers.py --list
    python benches/peers.py --quick --rows train decode

Each sample is a process of its own, and the peers of a row take turns. A peer whose answer
differs is named with the number of differences and is not timed. The table goes to
benches/results/tokenizer.md with a plot beside it.
"""

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from peer_calls import PEERS, read_peer_file
from peer_compare import count_differences
from peer_inputs import Inputs, Missing
from peer_rows import ROWS, Entry, Row
from peer_sample import Sample, command
from peer_table import Outcome, Result, header, plot, table

from rslm import _rslm

BENCHES = Path(__file__).parent
# Whatever a peer takes its number of threads from, where its interface takes none.
THREAD_VARIABLES = ("RAYON_NUM_THREADS", "FASTOKENS_BPE_THREADS", "OMP_NUM_THREADS")
QUICK_BYTES, QUICK_VOCAB_SIZE = 5_000_000, 4_000


def main() -> None:
    options = read_options()
    if options.list:
        for row in ROWS.values():
            print(f"{row.name:<20} {row.title}")
        return
    if _rslm.BUILD_PROFILE == "debug":
        sys.exit("error: only a release build is timed, this one is debug; run `make setup`")
    test_data = os.environ.get("RSLM_TEST_DATA")
    limit = options.max_bytes or (QUICK_BYTES if options.quick else None)
    inputs = Inputs(options.cache, Path(test_data) if test_data else None, options.data, limit)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=options.cache) as folder:
        runner = Runner(inputs, Path(folder), options.timeout)
        results = [measure(row, runner, options.samples) for row in chosen_rows(options)]
    texts = dict.fromkeys(result.row.text for result in results)
    remarks = [inputs.describe(name) for name in texts if (inputs.folder / f"{name}.txt").exists()]
    elapsed = time.perf_counter() - started
    text = "\n".join(header(options.samples, elapsed) + table(results) + foot(remarks))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text + "\n")
    plot(results, options.out.with_suffix(".png"))
    print(text)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--list", action="store_true", help="name the rows and stop")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="names or beginnings of names")
    parser.add_argument("--only", nargs="+", metavar="PEER", help="these peers beside rslm")
    parser.add_argument("--samples", type=int, help="of each peer; 5, with --quick 1")
    parser.add_argument("--quick", action="store_true", help="a few minutes: 5 MB of each text")
    parser.add_argument("--max-bytes", type=int, help="how much of each text is used")
    parser.add_argument("--data", type=Path, help="a text file in place of the books")
    parser.add_argument("--out", type=Path, default=BENCHES / "results" / "tokenizer.md")
    parser.add_argument("--cache", type=Path, default=BENCHES.parent / ".benchmarks" / "peers")
    parser.add_argument("--timeout", type=float, default=300, help="seconds of one sample")
    parser.add_argument(
        "--peer",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a Python file with a class `Peer` like those of peer_calls.py",
    )
    options = parser.parse_args()
    options.samples = options.samples or (1 if options.quick else 5)
    if options.data is not None and not options.data.is_file():
        parser.error(f"--data must be a text file, got {options.data}")
    options.cache.mkdir(parents=True, exist_ok=True)
    for name in options.only or []:
        if name not in PEERS:
            parser.error(f"--only must name peers ({', '.join(PEERS)}), got {name}")
    for wanted in options.rows or []:
        if not names_of(wanted):
            parser.error(f"--rows must name rows that --list shows, got {wanted}")
    return options


def names_of(wanted: str) -> set[str]:
    """The row of this name, or else all whose names begin so."""
    return {wanted} & set(ROWS) or {name for name in ROWS if name.startswith(wanted)}


def chosen_rows(options: argparse.Namespace) -> Iterator[Row]:
    wanted = set().union(*map(names_of, options.rows or [""]))
    if options.quick and not options.rows:
        wanted.discard("train-large")
    for row in ROWS.values():
        if row.name not in wanted:
            continue
        who = row.entries
        if options.only:
            who = tuple(entry for entry in who if entry.peer in ("rslm", *options.only))
        if options.quick:
            who = tuple(entry for entry in who if not entry.once)
            row = replace(row, vocab_size=min(row.vocab_size, QUICK_VOCAB_SIZE))
        for path in options.peer:
            if hasattr(read_peer_file(path), row.operation):
                group = who[0].group
                who = (*who, Entry(path.stem, group, who[0].options, peer_file=str(path)))
        yield replace(row, entries=who)


def foot(remarks: list[str]) -> list[str]:
    return ["", "Texts:", "", *(f"- {remark}" for remark in remarks)]


def is_installed(entry: Entry) -> bool:
    if entry.peer_file:
        return True
    peer = PEERS[entry.peer]
    return importlib.util.find_spec(peer.package) is not None


class Failed(Exception):
    """A sample that gave no answer: its last line of complaint, or how long it took."""


@dataclass
class Runner:
    """Starts samples, in processes of their own."""

    inputs: Inputs
    folder: Path
    timeout: float

    def sample(self, row: Row, entry: Entry) -> Sample:
        vocabulary = self.inputs.vocabulary(row.vocabulary) if row.vocabulary else None
        return Sample(
            peer=entry.peer,
            operation=row.operation,
            path=str(self.inputs.text(row.text)),
            n_threads=row.n_threads,
            passes=row.passes,
            repeats=row.repeats,
            peer_file=entry.peer_file,
            vocabulary=str(vocabulary) if vocabulary else None,
            vocab_size=row.vocab_size,
            n_bytes=row.n_bytes,
            piece_bytes=row.piece_bytes,
            separator=row.separator,
            options=entry.options,
        )

    def run(self, sample: Sample, answer: Path | None = None) -> dict[str, Any]:
        """What a sample measured, and with `answer`, the whole answer in that file."""
        if sample.operation != "encode_to_file":
            asked = replace(sample, answer=str(answer) if answer else None)
            return self._start(asked)[0]
        with output_folder(self.folder) as folder:
            written = replace(sample, out=str(folder / "ids"))
            reply, wall, cpu = self._start(written)
            read = replace(written, operation="read_output", answer=str(answer) if answer else None)
            answer_reply, _, _ = self._start(read)
        keys = ("sha256", "n_items")
        measured = {"wall": wall, "cpu": cpu, "cold_wall": wall, "cold_cpu": cpu, **reply}
        return {**measured, **{key: answer_reply[key] for key in keys}}

    def _start(self, sample: Sample) -> tuple[dict[str, Any], float, float]:
        """The reply, and wall and CPU seconds of the whole process."""
        threads = str(sample.n_threads)
        pinned = dict.fromkeys(("RAYON_NUM_THREADS", "OMP_NUM_THREADS"), threads)
        parallel = {"TOKENIZERS_PARALLELISM": "true" if sample.n_threads > 1 else "false"}
        start = time.perf_counter()
        process = subprocess.Popen(
            command(sample),
            env={**os.environ, **pinned, **parallel},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        timer = threading.Timer(self.timeout, process.kill)
        timer.start()
        assert process.stderr is not None
        complaints: list[str] = []
        reader = threading.Thread(target=lambda: complaints.extend(process.stderr or []))
        reader.start()
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        in_time = timer.is_alive()
        timer.cancel()
        reader.join()
        process.stdout.close()
        process.stderr.close()
        process.returncode = os.waitstatus_to_exitcode(status)
        if not in_time:
            raise Failed(f"over {self.timeout:.0f} s")
        if process.returncode:
            raise Failed((complaints or [f"exit status {process.returncode}"])[-1].strip())
        reply: dict[str, Any] = json.loads(output.splitlines()[-1])
        return reply, wall, usage.ru_utime + usage.ru_stime


@contextmanager
def output_folder(parent: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(dir=parent))
    yield folder
    shutil.rmtree(folder)


def measure(row: Row, runner: Runner, n_samples: int) -> Result:
    """Compares the answers of all peers of a row, then times those that agree, in turns."""
    outcomes = {entry.label: Outcome(entry) for entry in row.entries}
    result = Result(row, list(outcomes.values()))
    try:
        for outcome in result.outcomes:
            if is_installed(outcome.entry):
                tell(f"{row.name}: {outcome.entry.label}, answer")
                check(row, outcome, result, runner)
            else:
                outcome.refusal = "not installed"
    except Missing as missing:
        for outcome in result.outcomes:
            outcome.refusal = outcome.refusal or str(missing)
    for turn in range(min(n_samples, row.max_samples)):
        for outcome in result.outcomes:
            if outcome.refusal or outcome.entry.once:
                continue
            tell(f"{row.name}: {outcome.entry.label}, sample {turn + 1}")
            time_once(row, outcome, runner)
    result.n_bytes = used_bytes(row, runner)
    for path in runner.folder.glob("answer-*"):
        path.unlink()
    tell("")
    return result


def used_bytes(row: Row, runner: Runner) -> int:
    size = runner.inputs.text(row.text).stat().st_size
    return size if row.n_bytes is None else min(size, row.n_bytes)


def check(row: Row, outcome: Outcome, result: Result, runner: Runner) -> None:
    """Runs a peer once and compares its whole answer with that of rslm in its group."""
    entry = outcome.entry
    ours = result.ours(entry.group)
    path = runner.folder / f"answer-{result.outcomes.index(outcome)}"
    sample = replace(runner.sample(row, entry), passes=row.passes if entry.once else 1)
    try:
        measured = runner.run(sample, path)
    except Failed as failed:
        outcome.refusal = f"failed: {failed}"
        return
    outcome.sha256 = measured["sha256"]
    if entry.once:
        outcome.samples.append(measured)
    if ours is not outcome:
        if ours.refusal:
            outcome.refusal = "no answer of rslm to compare with"
        elif ours.sha256 != outcome.sha256:
            expected = runner.folder / f"answer-{result.outcomes.index(ours)}"
            vocabulary = runner.sample(row, entry).vocabulary
            outcome.refusal = count_differences(row.operation, expected, path, vocabulary)
            outcome.samples.clear()


def time_once(row: Row, outcome: Outcome, runner: Runner) -> None:
    try:
        measured = runner.run(runner.sample(row, outcome.entry))
    except Failed as failed:
        outcome.refusal = f"failed: {failed}"
        return
    if measured["sha256"] != outcome.sha256:
        outcome.refusal = "another answer than the first time"
        return
    outcome.samples.append(measured)


def tell(message: str) -> None:
    """Progress for a person at a terminal; nothing in a pipe."""
    if sys.stderr.isatty():
        print(f"\r\033[K{message}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
