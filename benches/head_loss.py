"""Head and loss by chunks beside the whole logits: memory and time of a training step on a CPU.

    python benches/head_loss.py > benches/results/head_loss.md

4,096 tokens, d 512, 32,000 ids; a step of four layers with clipping and AdamW. The two of a row
take turns in one process, on one model: two processes differ by 3 % without any reason in what
they do. Memory is measured in processes of their own, which give freed memory back at once:
without, how much a step holds is hidden by how much it held before.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from peer_table import commit, cpu_model

ROWS = [(p, c) for p in ("float32", "bfloat16") for c in (False, True)]
WAYS = ("chunks", "whole")


@dataclass(frozen=True)
class Job:
    """What a worker does: head and loss alone, or with `n_layers` the step of a model."""

    precision: str
    compiles: bool = False
    n_layers: int = 0
    d_model: int = 512
    vocab_size: int = 32_000
    n_tokens: int = 4096
    context_length: int = 256


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--turns", type=int, default=5, help="timed steps of each worker")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, one turn")
    options = parser.parse_args()
    if options.worker:
        work(Job(**options.worker))
        return
    small = {"d_model": 32, "vocab_size": 500, "n_tokens": 128, "context_length": 32}
    sizes: dict[str, Any] = small if options.quick else {}
    turns = 1 if options.quick else options.turns
    import torch

    print("# Head and loss: chunks beside the whole logits\n")
    print(f"Command: `python benches/head_loss.py --turns {turns}`.")
    print(f"Machine: {cpu_model()}, {commit()}, torch {torch.__version__}, 1 thread.")
    print(f"Medians of {turns} turns, with their range.\n")
    print("| what | chunks | whole | chunks / whole |")
    print("|---|--:|--:|--:|")
    for precision in ("float32", "bfloat16"):
        extra = [peak(Job(precision, **sizes), way) for way in WAYS]
        row(f"{precision}: extra peak of head and loss, MB", extra)
    for precision, compiles in ROWS:
        kind = "compiled" if compiles else "eager"
        times = race(Job(precision, compiles, n_layers=4, **sizes), turns)
        row(f"{precision} {kind}: CPU seconds of a step", [median(t) for t in times], times)


def row(what: str, values: list[float], samples: list[list[float]] | None = None) -> None:
    ranges = [f" ({min(s):,.2f}-{max(s):,.2f})" for s in samples] if samples else ["", ""]
    cells = [f"{value:,.2f}{span}" for value, span in zip(values, ranges, strict=True)]
    ratio = (
        median(a / b for a, b in zip(*samples, strict=True)) if samples else (values[0] / values[1])
    )
    print(f"| {what} | {' | '.join(cells)} | {ratio:.3f} |", flush=True)


def start(job: Job, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, __file__, "--worker", json.dumps(asdict(job))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def turn(worker: subprocess.Popen[str], way: str) -> dict[str, float]:
    """Lets a worker make a step in one of the ways; what it measured."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write(f"{way}\n")
    worker.stdin.flush()
    measured: dict[str, float] = json.loads(worker.stdout.readline())
    return measured


def peak(job: Job, way: str) -> float:
    """MB that become resident above what stands before the step, in a process of its own."""
    # By default glibc learns to put large blocks on its heap, where they leave holes.
    worker = start(job, MALLOC_MMAP_THRESHOLD_="65536")
    turn(worker, way)
    measured = turn(worker, way)["peak"]
    worker.communicate()
    return measured


def race(job: Job, turns: int) -> list[list[float]]:
    """CPU seconds of the steps of both ways, in turn."""
    worker = start(job)
    first = [turn(worker, way)["loss"] for way in WAYS]
    if not abs(first[0] - first[1]) <= 1e-3 * first[1]:
        sys.exit(f"error: the first losses differ: {first}")
    for way in WAYS:
        turn(worker, way)
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(turns):
        for way in WAYS[:: 1 if number % 2 else -1]:
            times[way].append(turn(worker, way)["cpu"])
    worker.communicate()
    return [times[way] for way in WAYS]


def work(job: Job) -> None:
    """Makes one step for each line that comes in."""
    import torch

    from rslm.allocator import keep_freed_memory

    torch.set_num_threads(1)
    torch.manual_seed(0)
    step = train_step(job) if job.n_layers else head_step(job)
    if job.n_layers:
        with keep_freed_memory():
            answer(step)
    else:
        answer(step)


def answer(step: Callable[[str], float]) -> None:
    for line in sys.stdin:
        # The high-water mark begins anew at what is resident now.
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
        before, begun = high_water_megabytes(), time.process_time()
        loss = step(line.strip())
        cpu = time.process_time() - begun
        measured = {"loss": loss, "cpu": cpu, "peak": high_water_megabytes() - before}
        print(json.dumps(measured), flush=True)


def high_water_megabytes() -> float:
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def head_step(job: Job) -> Callable[[str], float]:
    """Head and loss alone, forward and backward."""
    import torch

    from rslm.losses import linear_cross_entropy, training_loss

    hidden = torch.randn(job.n_tokens, job.d_model, requires_grad=True)
    weight = torch.randn(job.vocab_size, job.d_model).mul_(0.05).requires_grad_()
    targets = torch.randint(job.vocab_size, (job.n_tokens,))

    def step(way: str) -> float:
        hidden.grad = weight.grad = None
        with torch.autocast("cpu", torch.bfloat16, enabled=job.precision == "bfloat16"):
            if way == "whole":
                loss, _ = training_loss(hidden @ weight.T, targets)
            else:
                loss, _ = linear_cross_entropy(hidden, weight, targets)
        loss.backward()
        return loss.item()

    return step


def train_step(job: Job) -> Callable[[str], float]:
    """The step of a model, with clipping and AdamW."""
    import torch

    from rslm.architecture import TransformerConfig
    from rslm.losses import training_loss
    from rslm.model import Transformer
    from rslm.optim import AdamW, optimizer_step, parameter_groups

    config = TransformerConfig(
        vocab_size=job.vocab_size,
        context_length=job.context_length,
        d_model=job.d_model,
        n_layers=job.n_layers,
        n_heads=max(1, job.d_model // 64),
    )
    model = Transformer(config, generator=torch.Generator().manual_seed(0))
    optimizer = AdamW(parameter_groups(model, 0.1))
    run = torch.compile(model) if job.compiles else model
    shape = (job.n_tokens // job.context_length, job.context_length)
    inputs, targets = (torch.randint(job.vocab_size, shape) for _ in range(2))

    def step(way: str) -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=job.precision == "bfloat16"):
            if way == "whole":
                loss, _ = training_loss(run(inputs), targets)
            else:
                loss, _ = run(inputs, targets=targets)
        loss.backward()
        # An update that takes its time and leaves the losses of both ways comparable.
        optimizer_step(optimizer, learning_rate=1e-9, max_grad_norm=1.0)
        return loss.item()

    return step


if __name__ == "__main__":
    main()
