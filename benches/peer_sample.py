"""One sample: a fresh process that makes one call of one peer, timed, and says what came out.

Started by peers.py with a JSON of `Sample` as its only argument; answers with one line of JSON.
"""

import dataclasses
import hashlib
import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peer_calls import PEERS, Job, as_ids, as_merges, read_peer_file


@dataclass(frozen=True)
class Sample:
    """What the process is asked for. `answer` is a file for the whole answer, if wanted."""

    peer: str
    operation: str
    path: str
    n_threads: int
    passes: int = 1
    repeats: int = 1
    peer_file: str | None = None
    vocabulary: str | None = None
    vocab_size: int = 0
    n_bytes: int | None = None
    piece_bytes: int | None = None
    separator: str | None = None
    out: str | None = None
    options: dict[str, str] = field(default_factory=dict)
    answer: str | None = None

    def job(self) -> Job:
        return Job(
            path=Path(self.path),
            n_threads=self.n_threads,
            vocabulary=Path(self.vocabulary) if self.vocabulary else None,
            vocab_size=self.vocab_size,
            n_bytes=self.n_bytes,
            piece_bytes=self.piece_bytes,
            separator=self.separator.encode() if self.separator else None,
            out=Path(self.out) if self.out else None,
            options=self.options,
        )


def cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def peak_megabytes() -> float:
    """Of this process alone: what getrusage says includes the parent's peak at the start."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    kilobyte = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilobyte / 1e6


def timed(call: Callable[[], Any]) -> tuple[Any, tuple[float, float]]:
    cpu, wall = cpu_seconds(), time.perf_counter()
    answer = call()
    wall = time.perf_counter() - wall
    return answer, (wall, cpu_seconds() - cpu)


def again(call: Callable[[], Any], n_times: int) -> Any:
    for _ in range(n_times - 1):
        call()
    return call()


def in_one_form(operation: str, answer: Any, sample: Sample) -> tuple[bytes, int]:
    """The answer in one form for all peers, as bytes, and the number of its items."""
    if operation == "train":
        merges = as_merges(answer, sample.options.get("tie_break") == "first_id")
        merges = merges[: sample.vocab_size - 256]
        return b"\n".join(merges), len(merges)
    if operation.startswith("decode"):
        data = answer.encode() if isinstance(answer, str) else bytes(answer)
        return data, len(data)
    ids = as_ids(answer)
    return ids.tobytes(), len(ids)


def run(sample: Sample) -> dict[str, Any]:
    peer = read_peer_file(Path(sample.peer_file)) if sample.peer_file else PEERS[sample.peer]
    call = getattr(peer(), sample.operation)(sample.job())
    answer, cold = timed(call)
    peak = peak_megabytes()
    warm = []
    for _ in range(sample.passes - 1):
        answer = None  # two answers at a time would double the memory
        answer, (wall, cpu) = timed(lambda: again(call, sample.repeats))
        warm.append((wall / sample.repeats, cpu / sample.repeats))
    if sample.operation == "encode_to_file":
        return {"peak": peak}  # what was written is read by another process, untimed
    data, n_items = in_one_form(sample.operation, answer, sample)
    if sample.answer:
        Path(sample.answer).write_bytes(data)
    best = [min(column) for column in zip(*(warm or [cold]), strict=True)]
    measured = {
        "sha256": hashlib.sha256(data).hexdigest(),
        "n_items": n_items,
        "wall": best[0],
        "cpu": best[1],
        "cold_wall": cold[0],
        "cold_cpu": cold[1],
        "peak": peak,
    }
    if sample.piece_bytes:
        pieces = sample.job().pieces()
        measured |= {"n_calls": len(pieces), "n_bytes": sum(map(len, pieces))}
    return measured


def main() -> None:
    sample = Sample(**json.loads(sys.argv[1]))
    sys.stdout.write("\n" + json.dumps(run(sample)) + "\n")


def command(sample: Sample) -> list[str]:
    return [sys.executable, __file__, json.dumps(dataclasses.asdict(sample))]


if __name__ == "__main__":
    main()
