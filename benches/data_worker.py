"""One side's process of `data_peers.py`: prepares a job, then does it as often as it is told.

    python data_worker.py MODULE JOB FOLDER MEGABYTES

A job prepares everything and gives a call, which alone is timed, and a function that makes of
the call's result an answer to compare. Every line on standard input asks for one measurement,
which is written as a line of JSON; the first also holds the answer. CPU seconds are those of the
process and of its children, all threads, user and system.
"""

import contextlib
import importlib
import json
import os
import resource
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# So long a measurement takes at least, by repeating a short call.
LEAST_SECONDS = 0.3


@dataclass
class Input:
    """The first documents of a text, and a folder to write into."""

    folder: Path
    megabytes: float
    scratch: Path
    n_bytes: int = field(default=0, init=False)

    def pages(self) -> list[dict[str, str]]:
        return self._read("pages.jsonl", "html")

    def rows(self) -> list[dict[str, str]]:
        return self._read("texts.jsonl", "text")

    def texts(self) -> list[str]:
        return [row["text"] for row in self.rows()]

    def _read(self, name: str, key: str) -> list[dict[str, str]]:
        found = []
        self.n_bytes = 0
        with (self.folder / name).open(encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                size = len(row[key].encode())
                if found and self.n_bytes + size > self.megabytes * 1e6:
                    continue
                self.n_bytes += size
                found.append(row)
        return found


Call = Callable[[], Any]
Job = Callable[[Input], tuple[Call, Callable[[Any], Any]]]


def cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def measure(call: Call) -> tuple[float, Any]:
    """CPU seconds of a call, over enough of them, and what the last gave."""
    n_calls, start = 0, cpu_seconds()
    while (seconds := cpu_seconds() - start) < LEAST_SECONDS or not n_calls:
        result = call()
        n_calls += 1
    return seconds / n_calls, result


def main() -> None:
    module, name, folder, megabytes = sys.argv[1:]
    # Libraries print what they like; the answers go where standard output went.
    answers, sys.stdout = sys.stdout, sys.stderr
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with (
        tempfile.TemporaryDirectory(prefix="data-peers-") as scratch,
        contextlib.suppress(EOFError),
    ):
        given = Input(Path(folder), float(megabytes), Path(scratch))
        jobs: dict[str, Job] = importlib.import_module(module).JOBS
        try:
            call, answer_of = jobs[name](given)
        except ImportError as error:
            print(json.dumps({"missing": str(error)}), file=answers, flush=True)
            return
        for number, _ in enumerate(sys.stdin):
            seconds, result = measure(call)
            reply = {"seconds": seconds, "n_bytes": given.n_bytes}
            if number == 0:
                reply["answer"] = answer_of(result)
            print(json.dumps(reply), file=answers, flush=True)


if __name__ == "__main__":
    main()
